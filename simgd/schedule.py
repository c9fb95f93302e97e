"""In which order the work is done: the ops of one iteration of one rank, as plain data.

Model
    A schedule lists ops; the list is the order in which the host issues them. An op runs on a lane, and a lane is a
    FIFO in the order (iteration, place in the list). Instance i of an op starts when the host has issued it, when the
    op before it on its lane has ended, and when each dependency has: ``Dep(op, lag)`` means the instance `lag`
    iterations earlier, and nothing where that would lie before the first. A delay is such a lag and nothing else.

    A bucket is a part of the parameters, with `copies` gradient buffers: iteration i writes buffer i mod copies, and
    the edge from the last reader of a buffer to its next writer is derived (`dependencies`), never stored. An update
    whose gradient would come from before the first iteration is skipped; after the last iteration the updates that
    are still owed run in order.

    No durations and no machine: the simulator and the executor interpret the same object.

Known not to hold
    Every rank runs the same list (SPMD); a second role, as a parameter server needs, has a place in the file and no
    interpreter yet.
"""

import hashlib
import re
from collections.abc import Iterable
from typing import Literal, TypeAlias, assert_never, get_args

from simgd.errors import ScheduleError
from simgd.files import Document, Value, check_distinct
from simgd.profile import ScheduledKind
from simgd.workload import Workload

Lane = Literal["host", "compute", "update", "copy_out", "copy_in", "comm"]

LANES: tuple[Lane, ...] = get_args(Lane)

#: What ops read and write of a bucket. `fresh` is the gradient as the backward pass leaves it, where a schedule keeps
#: it apart from `gradient`, the buffer that is communicated and applied.
Kept = Literal["fresh", "gradient", "weight"]

Wire = Literal["float32", "bfloat16"]

ROLE = "worker"


def placed(lane: Lane, *, merged: bool, update_on_compute: bool) -> Lane:
    """Return the lane on which software runs what a schedule puts on *lane*; see `simgd.profile.Execution`."""
    if merged and lane in ("compute", "update"):
        return "host"
    return "compute" if update_on_compute and lane == "update" else lane


# The text form separates with these; spaces inside a name are fine.
#: Larger lags, copies and strides than this are a slip of the pen; what is checked grows with them.
MOST_ITERATIONS = 1000

_NAME = re.compile(r"[^\s|;,\[\]](?:[^|;,\[\]\n\r\t]{0,198}[^\s|;,\[\]])?")


def check_name(what: str, name: str) -> None:
    """Raise ScheduleError if the text form could not hold *name*."""
    if not _NAME.fullmatch(name) or not name.isprintable():
        raise ScheduleError(f"{what} {name[:60]!r}: a name has 1 to 200 printable characters and none of | ; , [ ]")


class Slice(Value, frozen=True, array_like=True):
    """Elements `first` up to and without `last` of a tensor; written ``[tensor, first, last]``."""

    tensor: str
    first: int
    last: int

    def __post_init__(self) -> None:
        check_name("tensor", self.tensor)
        if not 0 <= self.first < self.last:
            raise ScheduleError(f"slice {self.tensor}[{self.first}:{self.last}] holds no elements")


class Bucket(Value, frozen=True, kw_only=True):
    """A part of the parameters; `copies` is the number of its gradient buffers."""

    name: str
    slices: tuple[Slice, ...]
    copies: int = 1

    def __post_init__(self) -> None:
        check_name("bucket", self.name)
        if not self.slices or self.copies < 1:
            raise ScheduleError(f"bucket {self.name!r}: needs at least one slice and one gradient copy")
        if self.copies > MOST_ITERATIONS:
            raise ScheduleError(f"bucket {self.name!r}: has more than {MOST_ITERATIONS} gradient copies")

    @property
    def elements(self) -> int:
        """Number of parameters."""
        return sum(part.last - part.first for part in self.slices)


class Dep(Value, frozen=True, array_like=True):
    """The instance of *op* that is *lag* iterations older; written ``[op, lag]``."""

    op: str
    lag: int = 0

    def __post_init__(self) -> None:
        if self.lag < 0:
            raise ScheduleError(f"dependency on {self.op!r}: lag {self.lag} points into the future")
        if self.lag > MOST_ITERATIONS:
            raise ScheduleError(f"dependency on {self.op!r}: lag is more than {MOST_ITERATIONS} iterations")


class Forward(Value, frozen=True, kw_only=True, tag="forward", tag_field="kind"):
    """The forward pass through these layers."""

    layers: tuple[str, ...]


class Backward(Value, frozen=True, kw_only=True, tag="backward", tag_field="kind"):
    """The backward pass through these layers."""

    layers: tuple[str, ...]


class Communicate(Value, frozen=True, kw_only=True, tag="communicate", tag_field="kind"):
    """One collective on one bucket, among all ranks, in place."""

    collective: ScheduledKind
    bucket: str
    value: Literal["gradient", "weight"] = "gradient"
    wire: Wire = "float32"


class Update(Value, frozen=True, kw_only=True, tag="update", tag_field="kind"):
    """The optimizer's step on one bucket; `part` "mine" is the 1/p of it that this rank owns."""

    bucket: str
    part: Literal["all", "mine"] = "all"


class Map(Value, frozen=True, kw_only=True, tag="map", tag_field="kind"):
    """Local work on one bucket that reads one value and writes another."""

    function: Literal["copy"]
    bucket: str
    reads: Kept
    writes: Kept


class Wait(Value, frozen=True, kw_only=True, tag="wait", tag_field="kind"):
    """The host waits for an op before it issues anything more."""

    op: str
    lag: int = 0


Work: TypeAlias = Forward | Backward | Communicate | Update | Map | Wait


class Op(Value, frozen=True, kw_only=True):
    """One piece of work on one lane; its instance i exists when ``i % every == phase``."""

    name: str
    lane: Lane
    work: Work
    after: tuple[Dep, ...] = ()
    every: int = 1
    phase: int = 0

    def __post_init__(self) -> None:
        where = f"op {self.name!r}"
        check_name("op", self.name)
        if not 0 <= self.phase < self.every:
            raise ScheduleError(f"{where}: phase {self.phase} must be from 0 up to every = {self.every}")
        if self.every > MOST_ITERATIONS:
            raise ScheduleError(f"{where}: runs once in more than {MOST_ITERATIONS} iterations")
        match self.work:
            case Forward(layers=layers) | Backward(layers=layers):
                for layer in layers:
                    check_name("layer", layer)
                right: tuple[Lane, ...] = ("compute",)
            case Communicate():
                right = ("comm",)
            case Update() | Map():
                right = ("compute", "update", "copy_out", "copy_in")
            case Wait():
                right = ("host",)
            case _ as never:
                assert_never(never)
        if self.lane not in right:
            raise ScheduleError(f"{where}: lane {self.lane!r} cannot run it; it belongs on {' or '.join(right)}")


class Schedule(Document, frozen=True, kw_only=True, tag="simgd schedule"):
    """The ops of one iteration, by role, and the buckets they speak of; `workload` is the name of the one it is for."""

    name: str
    workload: str
    buckets: tuple[Bucket, ...]
    roles: dict[str, tuple[Op, ...]]

    def __post_init__(self) -> None:
        where = f"schedule {self.name!r}"
        if list(self.roles) != [ROLE]:
            raise ScheduleError(f"{where}: has roles {', '.join(self.roles) or 'none'}; the only role is {ROLE!r}")
        check_name("workload", self.workload)
        check_name("schedule", self.name)
        check_distinct(ScheduleError, where, "bucket", [bucket.name for bucket in self.buckets])
        check_distinct(ScheduleError, where, "op", [op.name for op in self.ops])
        if not any(op.lane == "compute" for op in self.ops):
            raise ScheduleError(f"{where}: has no op on the compute lane")
        names = {op.name: op for op in self.ops}
        buckets = {bucket.name for bucket in self.buckets}
        for op in self.ops:
            for dep in (*op.after, *waits_for(op.work)):
                if dep.op not in names:
                    raise ScheduleError(f"{where}: op {op.name!r} waits for {dep.op!r}, which is no op")
            if isinstance(op.work, (Communicate, Update, Map)) and op.work.bucket not in buckets:
                raise ScheduleError(f"{where}: op {op.name!r} names bucket {op.work.bucket!r}, which is not there")

    @property
    def ops(self) -> tuple[Op, ...]:
        """The ops of a worker, in the order in which the host issues them."""
        return self.roles[ROLE]

    @property
    def digest(self) -> str:
        """Return a hash of the text form; ranks compare it at start."""
        return hashlib.sha256(to_text(self).encode()).hexdigest()


def waits_for(work: Work) -> tuple[Dep, ...]:
    """Return what the host itself waits for in *work*."""
    return (Dep(work.op, work.lag),) if isinstance(work, Wait) else ()


class Access(Value, frozen=True, array_like=True):
    """That an op touches a value of a bucket, or of a part of one through a layer."""

    value: Kept
    bucket: str


#: For each op, what it reads and what it writes.
Touched: TypeAlias = dict[str, tuple[tuple[Access, ...], tuple[Access, ...]]]


def accesses(schedule: Schedule, workload: Workload) -> Touched:
    """Return, for each op, what it reads and what it writes.

    The parts that are told apart are the buckets of gradient communication. Passes touch those that hold tensors of
    their layers; an op on another bucket touches all that share elements with it (one update may span many).
    """
    sent = {op.work.bucket for op in schedule.ops if isinstance(op.work, Communicate) and op.work.value == "gradient"}
    by_tensor: dict[str, list[tuple[str, Slice]]] = {}
    for bucket in schedule.buckets:
        for part in bucket.slices:
            its = by_tensor.setdefault(part.tensor, [])
            if bucket.name in sent or not sent:
                its.append((bucket.name, part))
    overlaps = {
        bucket.name: tuple(
            dict.fromkeys(
                other
                for part in bucket.slices
                for other, its in by_tensor[part.tensor]
                if its.first < part.last and part.first < its.last
            )
        )
        for bucket in schedule.buckets
    }
    kept_apart = {op.work.bucket for op in schedule.ops if isinstance(op.work, Map) and op.work.reads == "fresh"}
    of_layer = {
        layer.name: tuple(
            dict.fromkeys(
                bucket
                for tensor in [tensor.name for tensor in layer.tensors] + list(layer.shared)
                for bucket, _ in by_tensor.get(tensor, ())
            )
        )
        for layer in workload.layers
    }

    def touched(layers: Iterable[str]) -> tuple[str, ...]:
        for layer in layers:
            if layer not in of_layer:
                raise ScheduleError(f"schedule {schedule.name!r}: layer {layer!r} is not in workload {workload.name!r}")
        return tuple(dict.fromkeys(bucket for layer in layers for bucket in of_layer[layer]))

    found = {}
    for op in schedule.ops:
        reads: tuple[Access, ...] = ()
        writes: tuple[Access, ...] = ()
        match op.work:
            case Forward(layers=layers):
                reads = tuple(Access("weight", bucket) for bucket in touched(layers))
            case Backward(layers=layers):
                reads = tuple(Access("weight", bucket) for bucket in touched(layers))
                writes = tuple(
                    Access("fresh" if bucket in kept_apart else "gradient", bucket) for bucket in touched(layers)
                )
            case Communicate(bucket=name, value=value):
                reads = writes = tuple(Access(value, other) for other in overlaps[name])
            case Update(bucket=name):
                reads = tuple(Access("gradient", other) for other in overlaps[name])
                writes = tuple(Access("weight", other) for other in overlaps[name])
            case Map(bucket=name, reads=read, writes=written):
                reads = tuple(Access(read, other) for other in overlaps[name])
                writes = tuple(Access(written, other) for other in overlaps[name])
            case Wait():
                pass
            case _ as never:
                assert_never(never)
        found[op.name] = (reads, writes)
    return found


def data_lag(op: Op, access: Access, touched: Touched) -> int:
    """Return how many iterations old the data are that *op* reads through *access*.

    It is the lag of its dependency on an op that wrote them, 0 where it names none.
    """
    return min((dep.lag for dep in op.after if access in touched[dep.op][1]), default=0)


def dependencies(schedule: Schedule, touched: Touched) -> dict[str, tuple[Dep, ...]]:
    """Return the dependencies of each op: those it states, and the derived ones that keep buffers from being reused
    too early.

    With n buffers, the writer of iteration i overwrites what iteration i - n wrote; a reader whose data are k
    iterations old has read that in iteration i - n + k, so the writer waits for it with lag n - k.
    """
    copies = {bucket.name: bucket.copies for bucket in schedule.buckets}
    readers: dict[Access, list[tuple[str, int]]] = {}
    first_writers: dict[Access, dict[str, None]] = {}
    for op in schedule.ops:
        reads, writes = touched[op.name]
        for access in reads:
            if access.value != "weight":
                readers.setdefault(access, []).append((op.name, data_lag(op, access, touched)))
        for access in writes:
            # Who writes without reading fills the buffer anew; a collective works in place.
            if access.value != "weight" and access not in reads:
                first_writers.setdefault(access, {})[op.name] = None
    derived: dict[str, dict[Dep, None]] = {op.name: dict.fromkeys(op.after) for op in schedule.ops}
    for access, writers in first_writers.items():
        buffers = 1 if access.value == "fresh" else copies[access.bucket]
        for reader, lag in readers.get(access, ()):
            if lag > buffers:
                raise ScheduleError(
                    f"schedule {schedule.name!r}: op {reader!r} reads the gradient of bucket {access.bucket!r} of "
                    f"{lag} iterations ago, but its {buffers} copies are overwritten by then"
                )
            for writer in writers:
                derived[writer][Dep(reader, buffers - lag)] = None
    return {name: tuple(deps) for name, deps in derived.items()}


# --- the text form -----------------------------------------------------------------------------------------------


def to_text(schedule: Schedule) -> str:
    """Return the schedule as text, an op a line: name | lane | work | dependencies [lag]; ..."""
    lines = [f"schedule {schedule.name} | {schedule.workload}"]
    for bucket in schedule.buckets:
        parts = ", ".join(f"{part.tensor}[{part.first}:{part.last}]" for part in bucket.slices)
        lines.append(f"bucket {bucket.name} | {bucket.copies} | {parts}")
    for role, ops in schedule.roles.items():
        lines.append(f"role {role}")
        lines += [_op_text(op) for op in ops]
    return "\n".join(lines) + "\n"


def _op_text(op: Op) -> str:
    match op.work:
        case Forward(layers=layers):
            work = f"forward | {', '.join(layers)}"
        case Backward(layers=layers):
            work = f"backward | {', '.join(layers)}"
        case Communicate(collective=kind, bucket=bucket, value=value, wire=wire):
            work = f"communicate | {kind}, {bucket}, {value}, {wire}"
        case Update(bucket=bucket, part=part):
            work = f"update | {bucket}, {part}"
        case Map(function=function, bucket=bucket, reads=reads, writes=writes):
            work = f"map | {function}, {bucket}, {reads}, {writes}"
        case Wait(op=name, lag=lag):
            work = f"wait | {name}, {lag}"
        case _ as never:
            assert_never(never)
    rare = f" | {op.every}, {op.phase}" if op.every > 1 else ""
    return f"{op.name} | {op.lane} | {work} | {'; '.join(f'{dep.op} [{dep.lag}]' for dep in op.after)}{rare}".rstrip()


_FIELDS = {
    "forward": (),
    "backward": (),
    "communicate": ("collective", "bucket", "value", "wire"),
    "update": ("bucket", "part"),
    "map": ("function", "bucket", "reads", "writes"),
    "wait": ("op", "lag"),
}


def from_text(text: str, *, where: str = "text") -> Schedule:
    """Return the schedule that `to_text` wrote; an error names the line."""
    from simgd.files import convert

    raw: dict[str, object] = {"format": "simgd schedule", "version": 1, "buckets": [], "roles": {}}
    buckets: list[object] = []
    ops: list[object] | None = None
    roles: dict[str, list[object]] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        cells = [cell.strip() for cell in line.split("|")]
        try:
            if line.startswith("schedule ") and len(cells) == 2:
                raw |= {"name": cells[0].removeprefix("schedule "), "workload": cells[1]}
            elif line.startswith("bucket ") and len(cells) == 3 and ops is None:
                parts = [_bracketed(part) for part in cells[2].split(", ")]
                slices = [[name, *map(int, inside.split(":"))] for name, inside in parts]
                buckets.append({"name": cells[0].removeprefix("bucket "), "copies": int(cells[1]), "slices": slices})
            elif line.startswith("role ") and len(cells) == 1:
                ops = roles.setdefault(line.removeprefix("role ").strip(), [])
            elif ops is not None and line.strip():
                ops.append(_raw_op(cells))
            elif line.strip():
                raise ValueError("is not a line of a schedule here")
        except (ValueError, IndexError, KeyError) as error:
            raise ScheduleError(f"{where}, line {number}: {line[:60]!r}: {str(error)[:80]}") from None
    return convert(raw | {"buckets": buckets, "roles": roles}, Schedule, where=where)


def _raw_op(cells: list[str]) -> dict[str, object]:
    name, lane, kind, arguments, *rest = cells
    if kind not in _FIELDS:
        raise ValueError(f"{kind!r} is no work; it is one of {', '.join(_FIELDS)}")
    values = arguments.split(", ")
    work: dict[str, object] = {"kind": kind}
    if kind in ("forward", "backward"):
        work["layers"] = values
    else:
        work |= dict(zip(_FIELDS[kind], values, strict=True))
    if kind == "wait":
        work["lag"] = int(values[1])
    deps = [_bracketed(dep) for dep in rest[0].split("; ")] if rest and rest[0] else []
    raw: dict[str, object] = {"name": name, "lane": lane, "work": work}
    raw["after"] = [[op, int(lag)] for op, lag in deps]
    if len(rest) > 1:
        every, phase = rest[1].split(", ")
        raw |= {"every": int(every), "phase": int(phase)}
    return raw


def _bracketed(text: str) -> tuple[str, str]:
    name, bracket, inside = text.partition("[")
    if not bracket or not inside.endswith("]"):
        raise ValueError(f"{text!r} should end in [...]")
    return name.strip(), inside[:-1]
