"""Reads a trace of torch.profiler (Kineto, `export_chrome_trace`) as the device times of a workload's layers.

Model
    Time belongs to the outermost operation of a thread: on a GPU that of the kernels and copies which it launched,
    joined by their correlation (or by `External id`), else the operation's own. An iteration goes through all layers
    once; times are medians over the iterations.

    Forward: layers begin in the workload's order, each with an operation that is recorded for autograd and takes the
    shapes of all its tensors among its inputs (`record_shapes=True`). A layer whose tensors no one operation takes
    begins where its largest is taken, whatever the order. Where the user has annotated layers (`record_function` with
    the layer's name), operations inside belong to it instead. Operations between two layers belong to the one before,
    as in a workload, so the loss to the last.

    Backward: `autograd::engine::evaluate_function` carries the sequence number of the forward operation that made its
    node, which tells the layer; one without a number accumulates a gradient, for the layer of the one before it.

What it leaves out
    Operations outside these two: input, optimizer, communication. How much time they take, and how much could not be
    attributed, goes into the entries' source. Profiling slows down what it measures, small operations of a CPU most.
"""

import statistics
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from simgd.errors import FileError
from simgd.profile import Dtype, LayerTimes
from simgd.units import MIB, show_seconds
from simgd.workload import Workload

#: Larger traces take many times their size in memory; a few iterations are enough.
MOST_BYTES = 256 * MIB

#: 90 % interval of layer times: medians over few iterations, under a profiler.
UNCERTAINTY = 0.15

_BACKWARD = "autograd::engine::evaluate_function: "

#: Kinds of events by their category; older versions capitalised them, and called operations so.
_KINDS = {
    "cpu_op": "op",
    "operator": "op",
    "kernel": "device",
    "gpu_memcpy": "device",
    "gpu_memset": "device",
    "memcpy": "device",
    "memset": "device",
    "cuda_runtime": "launch",
    "cuda_driver": "launch",
    "runtime": "launch",
    "user_annotation": "annotation",
}

Part = Literal["forward", "backward"]


class _Args(msgspec.Struct):
    external: int | str | None = msgspec.field(name="External id", default=None)
    sequence: int | None = msgspec.field(name="Sequence number", default=None)
    dims: Any = msgspec.field(name="Input Dims", default=None)
    types: Any = msgspec.field(name="Input type", default=None)
    correlation: int | None = None


class _Event(msgspec.Struct):
    ph: str = ""
    cat: str = ""
    name: str = ""
    pid: int | float | str | None = None
    tid: int | float | str | None = None
    ts: float | str = 0.0
    dur: float = 0.0
    args: Any = None


class _File(msgspec.Struct):
    events: list[_Event] = msgspec.field(name="traceEvents")


class _Op:
    """An outermost operation: when it ran, the input shapes that it took, its sequence number and its device time."""

    __slots__ = ("end", "name", "seconds", "sequence", "shapes", "start", "thread")

    def __init__(self, event: _Event, args: _Args, thread: object) -> None:
        self.start = float(event.ts)
        self.end = self.start + event.dur
        self.name = event.name
        self.thread = thread
        self.sequence = args.sequence
        self.shapes = _shapes(args.dims)
        self.seconds = 1e-6 * event.dur

    @property
    def backward(self) -> bool:
        """Whether autograd called it."""
        return self.name.startswith(_BACKWARD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Seconds of each layer's passes, medians over *iterations*; `rest_s` says where the trace's other time went."""

    where: str
    forward: Mapping[str, float]
    backward: Mapping[str, float]
    iterations: int
    batch: int
    tokens: int
    dtype: Dtype
    device: Literal["kernels of the GPU", "operations of the CPU"]
    attributed_s: float
    rest_s: Mapping[str, float]

    @property
    def tool(self) -> str:
        """What was read, with how much of its time belongs to no layer."""
        total = self.attributed_s + sum(self.rest_s.values())
        rest = ", ".join(f"{name} {100 * seconds / total:.1f} %" for name, seconds in self.rest_s.items() if seconds)
        times = "1 iteration" if self.iterations == 1 else f"{self.iterations} iterations"
        told = f"trace of torch.profiler, {self.device}, {times}; {show_seconds(self.attributed_s)} in layers"
        return told + (f", {100 * (1 - self.attributed_s / total):.1f} % in none ({rest})" if rest else "")


def recognises(content: bytes) -> bool:
    """Say whether *content* looks like such a trace, or another one of Chrome's format."""
    return b'"traceEvents"' in content


def parse(content: bytes, where: str, workload: Workload, batch: int = 0) -> Measurement:
    """Return the layer times of *workload* that a trace holds; *batch* is needed only if the first input hides it.

    Raises FileError if layers cannot be told apart.
    """
    if len(content) > MOST_BYTES:
        raise FileError(f"{where}: is larger than {MOST_BYTES // MIB} MiB; profile fewer iterations")
    try:
        events = msgspec.json.decode(content, type=_File).events
    except msgspec.MsgspecError as error:
        raise FileError(f"{where}: is no trace of torch.profiler: {' '.join(str(error).split())[:120]}") from None
    except RecursionError:
        raise FileError(f"{where}: is no trace of torch.profiler: nested too deeply") from None
    return _Reader(events, where, workload).measurement(batch)


@dataclass(slots=True)
class _Iteration:
    """What one pass through the layers took, by layer and direction."""

    seconds: dict[tuple[str, Part], float] = field(default_factory=dict)
    done: bool = False


class _Reader:
    """One trace on its way to layer times."""

    def __init__(self, events: Sequence[_Event], where: str, workload: Workload) -> None:
        self.where = where
        self.workload = workload
        self.names = [layer.name for layer in workload.layers]
        self.tensors = _tensors(workload)
        self.rest = {"communication": 0.0, "optimizer": 0.0, "other work": 0.0, "unknown": 0.0}
        self.bf16 = False
        launches: dict[int, tuple[object, float]] = {}
        device: list[tuple[_Event, _Args]] = []
        ops: list[tuple[_Event, _Args]] = []
        self.annotations: list[_Event] = []
        for event in events:
            kind = _KINDS.get(event.cat.lower()) if event.ph == "X" else None
            if kind is None:
                continue
            self._check(event)
            args = self._args(event)
            if kind == "op":
                ops.append((event, args))
            elif kind == "device":
                device.append((event, args))
            elif kind == "launch" and args.correlation is not None:
                launches[args.correlation] = (_thread(event), float(event.ts))
            elif kind == "annotation":
                self.annotations.append(event)
        if not ops:
            raise FileError(f"{where}: holds no operations (category cpu_op); record ProfilerActivity.CPU as well")
        self.on_gpu = bool(device)
        self.marked = {event.name for event in self.annotations} & set(self.names)
        self.ops, owners, ids = self._outermost(ops)
        self.owners = owners
        if self.on_gpu:
            self._take_kernels(device, launches, ids)
        self.main = self._main_thread()
        self.at_once = self._taken_at_once()

    def measurement(self, batch: int) -> Measurement:
        """Return the layer times."""
        iterations, first = self._iterations()
        whole = [each for each in iterations if each.done]
        if not whole:
            raise FileError(f"{self.where}: holds no backward pass of workload {self.workload.name!r}")
        for each in iterations:
            if not each.done:
                self.rest["other work"] += sum(each.seconds.values())
        for each in whole:
            for name in self.names:
                if (name, "backward") not in each.seconds:
                    raise FileError(f"{self.where}: layer {name!r} has no backward operation; is it trained?")
        medians: dict[Part, dict[str, float]] = {
            part: {
                name: statistics.median(each.seconds.get((name, part), 0.0) for each in whole) for name in self.names
            }
            for part in ("forward", "backward")
        }
        found_batch, tokens = self._batch(first)
        if batch and found_batch:
            raise FileError(f"{self.where}: batch={batch}: its first input says {found_batch} itself; leave batch out")
        return Measurement(
            where=self.where,
            forward=medians["forward"],
            backward=medians["backward"],
            iterations=len(whole),
            batch=batch or found_batch,
            tokens=tokens,
            dtype="bf16" if self.bf16 else "fp32",
            device="kernels of the GPU" if self.on_gpu else "operations of the CPU",
            attributed_s=sum(sum(each.seconds.values()) for each in whole),
            rest_s=self.rest,
        )

    # --- reading -----------------------------------------------------------------------------------------------

    def _check(self, event: _Event) -> None:
        try:
            start = float(event.ts)
        except ValueError:
            start = -1.0
        if not (0 <= start < 1e18 and 0 <= event.dur < 1e12):
            shown = f"ts {str(event.ts)[:20]}, dur {event.dur}"
            raise FileError(f"{self.where}: event {event.name[:40]!r} has {shown}; both must be 0 or more")

    def _args(self, event: _Event) -> _Args:
        try:
            return msgspec.convert(event.args or {}, _Args)
        except msgspec.ValidationError as error:
            raise FileError(f"{self.where}: event {event.name[:40]!r}: {' '.join(str(error).split())[:80]}") from None

    def _outermost(self, ops: list[tuple[_Event, _Args]]) -> tuple[list[_Op], dict[int, _Op], dict[int | str, _Op]]:
        """Return the outermost operations by start, the last one at each sequence number, and those by external id."""
        owners: dict[int, tuple[float, _Op]] = {}
        ids: dict[int | str, _Op] = {}
        open_: dict[object, _Op] = {}
        found: list[_Op] = []
        for event, args in sorted(ops, key=lambda pair: (float(pair[0].ts), -pair[0].dur)):
            thread = _thread(event)
            outer = open_.get(thread)
            if outer is None or float(event.ts) >= outer.end:
                outer = open_[thread] = _Op(event, args, thread)
                found.append(outer)
            if args.sequence is not None and not outer.backward:
                owners[args.sequence] = (float(event.ts), outer)
            if args.external is not None:
                ids[args.external] = outer
            types = args.types if isinstance(args.types, list) else []
            self.bf16 = self.bf16 or "c10::BFloat16" in types
            if "c10::Half" in types and not outer.backward:
                raise FileError(
                    f"{self.where}: {event.name[:40]!r} takes 16-bit floats (half); profile in bf16 or fp32"
                )
        return found, {number: op for number, (_, op) in owners.items()}, ids

    def _take_kernels(
        self,
        device: list[tuple[_Event, _Args]],
        launches: Mapping[int, tuple[object, float]],
        ids: Mapping[int | str, _Op],
    ) -> None:
        """Give each kernel's time to the operation that launched it."""
        by_thread: dict[object, list[_Op]] = {}
        for each in self.ops:
            each.seconds = 0.0
            by_thread.setdefault(each.thread, []).append(each)
        starts = {thread: [op.start for op in mine] for thread, mine in by_thread.items()}
        for event, args in device:
            seconds = 1e-6 * event.dur
            if event.name.startswith(("nccl", "ncclKernel", "rccl")):
                self.rest["communication"] += seconds
                continue
            op: _Op | None = None
            launch = launches.get(args.correlation) if args.correlation is not None else None
            if launch is not None and launch[0] in starts:
                place = bisect_right(starts[launch[0]], launch[1]) - 1
                candidate = by_thread[launch[0]][place] if place >= 0 else None
                op = candidate if candidate is not None and launch[1] <= candidate.end else None
            elif launch is None and args.external is not None:
                op = ids.get(args.external)
            if op is None:
                self.rest["unknown"] += seconds
            else:
                op.seconds += seconds

    def _main_thread(self) -> object:
        counts = Counter(op.thread for op in self.ops if op.sequence is not None and not op.backward)
        if not counts:
            raise FileError(f"{self.where}: no operation is recorded for autograd; profile training, not inference")
        return counts.most_common(1)[0][0]

    def _taken_at_once(self) -> list[bool]:
        """Say of each layer whether some forward operation takes all of its tensors."""
        forward = [op for op in self.ops if op.thread == self.main and op.sequence is not None and not op.backward]
        taken = {tuple(sorted(op.shapes)) for op in forward}
        counted = [Counter(shapes) for shapes in taken]
        return [any(Counter(tensors) <= shapes for shapes in counted) for tensors in self.tensors]

    # --- layers ------------------------------------------------------------------------------------------------

    def _iterations(self) -> tuple[list[_Iteration], _Op]:
        """Go through all operations in the order of their starts, and return what each iteration took."""
        marks = _Marks(self.annotations, self.names)
        layer_of: dict[int, str] = {}
        found: list[_Iteration] = []
        first: _Op | None = None
        phase = "outside"
        layer = backward_layer = ""
        left: list[int] = []
        numbers: dict[int, list[int]] = {}
        for number, op in self.owners.items():
            numbers.setdefault(id(op), []).append(number)
        for op in self.ops:
            if op.backward:
                if phase == "forward":
                    self._check_begun(left)
                    phase, backward_layer = "backward", ""
                if phase == "backward" and op.sequence is not None:
                    backward_layer = layer_of.get(op.sequence, "")
                if phase == "backward" and backward_layer:
                    _add(found[-1], backward_layer, "backward", op.seconds)
                    found[-1].done = True
                else:
                    self.rest["unknown"] += op.seconds
                continue
            if op.thread != self.main:
                self.rest["other work"] += op.seconds
                continue
            begins = self._begins(op, marks, left if phase == "forward" else range(len(self.names)))
            if phase != "forward" and begins is not None:
                phase, left = "forward", list(range(len(self.names)))
                found.append(_Iteration())
                first = first or op
            if phase == "forward":
                if begins is not None:
                    layer = self.names[begins]
                    left = [place for place in left if place != begins]
                _add(found[-1], layer, "forward", op.seconds)
                layer_of |= dict.fromkeys(numbers.get(id(op), ()), layer)
                continue
            phase = "outside"
            self.rest["optimizer" if marks.optimizer(op) else "other work"] += op.seconds
        if first is None:
            raise self._not_found(0)
        if phase == "forward":
            self._check_begun(left)
        return found, first

    def _begins(self, op: _Op, marks: "_Marks", left: Sequence[int]) -> int | None:
        """Return the number of the layer, one of those *left*, that *op* begins, or in whose annotation it lies."""
        if self.marked:
            return marks.layer(op)
        if op.sequence is None or not op.shapes:
            return None
        following = next((place for place in left if self.at_once[place]), None)
        if following is not None and Counter(self.tensors[following]) <= Counter(op.shapes):
            return following
        # Shapes of activations may equal those of tensors: only layers that nothing else tells are looked for so.
        return next((place for place in left if not self.at_once[place] and self.tensors[place][0] in op.shapes), None)

    def _check_begun(self, left: Sequence[int]) -> None:
        if self.marked and len(self.marked) < len(self.names):
            missing = next(name for name in self.names if name not in self.marked)
            raise FileError(f"{self.where}: layers are annotated, but not {missing!r}; annotate each or none")
        if left:
            raise self._not_found(left[0])

    def _not_found(self, place: int) -> FileError:
        if not any(op.shapes for op in self.ops):
            return FileError(
                f"{self.where}: operations have no input shapes, so layers cannot be told apart; profile with "
                "record_shapes=True, or wrap each layer in record_function with its name"
            )
        name, shape = self.names[place], "x".join(map(str, self.tensors[place][0]))
        return FileError(
            f"{self.where}: no operation takes the {shape} of layer {name!r}; is it a trace of training "
            f"{self.workload.name!r}?"
        )

    def _batch(self, first: _Op) -> tuple[int, int]:
        """Return samples and tokens by the first input of the first layer; 0 where its shape does not say."""
        if self.workload.sample == "node":
            return 0, 0
        own = {tensor.shape for tensor in self.workload.layers[0].tensors}
        inputs = [shape for shape in first.shapes if shape and shape not in own]
        if not inputs:
            return 0, 0
        shape = inputs[0]
        return shape[0], shape[1] if self.workload.tokens and len(shape) > 1 else 0


class _Marks:
    """Annotations: which layer an operation lies in, and whether it lies in the optimizer's step."""

    def __init__(self, annotations: Sequence[_Event], names: Sequence[str]) -> None:
        place = {name: number for number, name in enumerate(names)}
        spans = [(float(e.ts), float(e.ts) + e.dur, _thread(e), e.name) for e in annotations]
        spans.sort(key=lambda span: span[:2])
        self._layers = _Spans([(*span[:3], place[span[3]]) for span in spans if span[3] in place])
        self._optimizer = _Spans([(*span[:3], 0) for span in spans if span[3].startswith("Optimizer.step")])

    def layer(self, op: _Op) -> int | None:
        """Return the number of the layer in whose annotation *op* lies."""
        return self._layers.at(op)

    def optimizer(self, op: _Op) -> bool:
        """Say whether *op* belongs to the optimizer's step."""
        return self._optimizer.at(op) is not None


class _Spans:
    """Intervals of time on threads, with a number each; the one that began last holds an operation."""

    def __init__(self, spans: Sequence[tuple[float, float, object, int]]) -> None:
        self._spans = spans
        self._starts = [span[0] for span in spans]

    def at(self, op: _Op) -> int | None:
        """Return the number of the innermost interval around the start of *op*."""
        # Annotations nest a few deep: the one that holds it is among the last that began before.
        last = bisect_right(self._starts, op.start)
        for start, end, thread, number in reversed(self._spans[max(0, last - 64) : last]):
            if start <= op.start < end and thread == op.thread:
                return number
        return None


def _thread(event: _Event) -> object:
    return event.pid, event.tid


def _add(iteration: _Iteration, layer: str, part: Part, seconds: float) -> None:
    key: tuple[str, Part] = (layer, part)
    iteration.seconds[key] = iteration.seconds.get(key, 0.0) + seconds


def _tensors(workload: Workload) -> list[list[tuple[int, ...]]]:
    """Return the shapes of each layer's tensors, its own and shared ones, the largest first."""
    known = {tensor.name: tensor for layer in workload.layers for tensor in layer.tensors}
    found = []
    for layer in workload.layers:
        tensors = [*layer.tensors, *(known[name] for name in layer.shared)]
        found.append([tensor.shape for tensor in sorted(tensors, key=lambda tensor: -tensor.elements)])
    return found


def _shapes(dims: Any) -> list[tuple[int, ...]]:
    """Return the shapes of an operation's inputs; lists of tensors count with each of theirs."""
    found: list[tuple[int, ...]] = []
    for shape in dims if isinstance(dims, list) else []:
        if isinstance(shape, list) and all(isinstance(size, int) for size in shape):
            found.append(tuple(shape))
        elif isinstance(shape, list):
            found += [tuple(s) for s in shape if isinstance(s, list) and all(isinstance(size, int) for size in s)]
    return found


def to_layer_times(measurement: Measurement, source: str, workload: Workload) -> tuple[LayerTimes, LayerTimes]:
    """Return the forward and the backward times as entries for a profile."""

    def entry(direction: Part, seconds: Mapping[str, float]) -> LayerTimes:
        return LayerTimes(
            origin="measured",
            source=source,
            uncertainty=UNCERTAINTY,
            workload=workload.name,
            batch=measurement.batch,
            tokens=measurement.tokens,
            dtype=measurement.dtype,
            direction=direction,
            seconds=dict(seconds),
        )

    return entry("forward", measurement.forward), entry("backward", measurement.backward)
