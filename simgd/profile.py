"""How fast it really is: costs that were measured, published, modelled or assumed, each with its source.

A profile embeds the cluster that it speaks of and holds lists of entries; an entry says where its numbers come from,
how weak they are (`origin`), and the relative half-width of their 90 % interval (`uncertainty`). Of two profiles the
later one wins, entry by entry; `key` says what an entry is about.
"""

from itertools import pairwise
from typing import Any, ClassVar, Literal

import msgspec

from simgd.errors import ProfileError
from simgd.files import Document, Value, check_not_negative, check_positive
from simgd.provenance import Environment
from simgd.topology import Cluster

Origin = Literal["measured", "published", "modelled", "assumed"]

#: From strong to weak. An answer is as weak as the weakest number that went into it.
ORIGINS: tuple[Origin, ...] = ("measured", "published", "modelled", "assumed")

Dtype = Literal["fp32", "tf32", "bf16"]

#: What schedules use, and probes measure.
ScheduledKind = Literal["all_reduce", "reduce_scatter", "all_gather", "broadcast"]

CollectiveKind = Literal[ScheduledKind, "all_to_all", "exchange", "push", "pull"]

#: What a fit is of; a message between two ranks counts one way.
Operation = Literal["all_reduce", "reduce_scatter", "all_gather", "broadcast", "point_to_point"]


def weakest(*origins: Origin) -> Origin:
    """Return the weakest of the *origins*.

    >>> weakest("measured", "modelled", "published")
    'modelled'
    """
    return max(origins, key=ORIGINS.index, default="measured")


class Entry(Value, frozen=True, kw_only=True):
    """What every entry says of its numbers; `uncertainty` 0.25 means that 90 % of truths lie within +-25 %."""

    origin: Origin
    source: str
    uncertainty: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.uncertainty < 1:
            raise ProfileError(f"uncertainty is {self.uncertainty}; it must be from 0 up to 1")
        self._check()

    def _check(self) -> None:
        """Raise ProfileError if a number of this entry is impossible."""

    @property
    def key(self) -> tuple[object, ...]:
        """What this entry is about; a later entry with the same key replaces it."""
        return (type(self).__name__,)


class StepTime(Entry, frozen=True, kw_only=True):
    """Time of one training iteration on one device, without communication, of a published or measured workload."""

    workload: str
    batch: int
    seconds: float
    dtype: Dtype = "fp32"
    tokens: int = 0

    def _check(self) -> None:
        where = f"step of {self.workload!r}"
        check_positive(ProfileError, where, batch=self.batch, seconds=self.seconds)
        check_not_negative(ProfileError, where, tokens=self.tokens)

    @property
    def key(self) -> tuple[object, ...]:  # noqa: D102
        return (type(self).__name__, self.workload, self.batch, self.dtype, self.tokens)


class LayerTimes(Entry, frozen=True, kw_only=True):
    """Device seconds of each layer's forward or backward pass; `batch` 0 means that the batch is unknown.

    `rest_s` is what an iteration takes besides layers, updates and copies: data, loss, the loop. `issue` are the host's
    seconds of issuing each pass to a device; empty, they follow from the kernels that the workload counts. `beside`
    says how many times as long each pass takes beside a collective; empty, `Interference` does.
    """

    workload: str
    batch: int
    direction: Literal["forward", "backward"]
    seconds: dict[str, float]
    dtype: Dtype = "fp32"
    tokens: int = 0
    rest_s: float = 0.0
    issue: dict[str, float] = msgspec.field(default_factory=dict)
    beside: dict[str, float] = msgspec.field(default_factory=dict)

    def _check(self) -> None:
        where = f"{self.direction} times of {self.workload!r}"
        check_not_negative(ProfileError, where, batch=self.batch, tokens=self.tokens, rest_s=self.rest_s)
        check_not_negative(ProfileError, where, **self.seconds)
        check_not_negative(ProfileError, f"{where}: issue", **self.issue)
        for name, factor in self.beside.items():
            if not 1 <= factor <= 100:
                raise ProfileError(f"{where}: beside: factor {factor} of {name!r} must be from 1 to 100")
        if not self.seconds:
            raise ProfileError(f"{where}: no layer has a time")

    @property
    def key(self) -> tuple[object, ...]:  # noqa: D102
        return (type(self).__name__, self.workload, self.batch, self.direction, self.dtype, self.tokens)


class Split(Entry, frozen=True, kw_only=True):
    """Backward pass plus update take `backward_plus_update` times the forward pass."""

    backward_plus_update: float

    def _check(self) -> None:
        check_positive(ProfileError, "split", backward_plus_update=self.backward_plus_update)


class Efficiency(Entry, frozen=True, kw_only=True):
    """The share of the roofline that a training step reaches where no published workload of the device tells it."""

    value: float

    def _check(self) -> None:
        check_positive(ProfileError, "efficiency", value=self.value)


class Host(Entry, frozen=True, kw_only=True):
    """Seconds of host time to issue one forward or backward kernel, collective (with its hook), update or copy;
    to return from a wait; once an iteration (data, loss, loop); and for every op of the schedule (the runner's own).
    An update and a copy take `update_tensor` and `copy_tensor` more for each of their tensors. `cold` is what a
    collective takes more, and starting it, where there was none before it for 10 ms or longer."""

    forward_kernel: float
    backward_kernel: float
    collective: float
    update: float
    copy: float
    wait: float
    iteration: float
    op: float = 0.0
    cold: float = 0.0
    update_tensor: float = 0.0
    copy_tensor: float = 0.0

    def _check(self) -> None:
        numbers = {name: getattr(self, name) for name in self.__struct_fields__ if name not in Entry.__struct_fields__}
        check_not_negative(ProfileError, "host", **numbers)


class MemoryRate(Entry, frozen=True, kw_only=True):
    """Bytes read plus written a second by updates and copies; `kernel` is the time of the smallest kernel."""

    bytes_per_s: float
    kernel: float

    def _check(self) -> None:
        check_positive(ProfileError, "memory", bytes_per_s=self.bytes_per_s)
        check_not_negative(ProfileError, "memory", kernel=self.kernel)


class UpdateTime(Entry, frozen=True, kw_only=True):
    """Seconds of one optimizer step of a bucket: ``call_s + tensors * tensor_s + elements * element_s``.

    On a GPU time is no line in elements (a kernel that does not fill the device takes as long with more): there
    `points` are (elements, seconds) of one tensor, linear between them and in proportion beyond the last, instead of
    `call_s` and `element_s`.
    """

    optimizer: str
    call_s: float
    tensor_s: float
    element_s: float
    points: tuple[tuple[float, float], ...] = ()

    def _check(self) -> None:
        check_not_negative(
            ProfileError,
            f"update of {self.optimizer!r}",
            call_s=self.call_s,
            tensor_s=self.tensor_s,
            element_s=self.element_s,
        )
        if any(not 0 <= a < b or not 0 <= s <= t for (a, s), (b, t) in pairwise(self.points)):
            raise ProfileError(f"update of {self.optimizer!r}: points must grow in elements and seconds")

    def seconds(self, elements: float, tensors: int) -> float:
        """Return the time of a step on *elements* parameters of so many *tensors*.

        >>> about = {"origin": "measured", "source": "", "optimizer": "sgd"}
        >>> UpdateTime(**about, call_s=1.0, tensor_s=0.5, element_s=0.1).seconds(10, 2)
        3.0
        >>> curve = UpdateTime(**about, call_s=0, tensor_s=0.5, element_s=0, points=((10, 1.0), (20, 2.0), (40, 2.5)))
        >>> curve.seconds(5, 1), curve.seconds(15, 2), curve.seconds(80, 1)
        (1.0, 2.0, 5.0)
        """
        if not self.points:
            return self.call_s + tensors * self.tensor_s + elements * self.element_s
        (least, shortest), (most, longest) = self.points[0], self.points[-1]
        more = (tensors - 1) * self.tensor_s
        if elements <= least:
            return shortest + more
        if elements >= most:
            return longest * elements / most + more
        place = next(place for place, (size, _) in enumerate(self.points) if elements <= size)
        (a, s), (b, t) = self.points[place - 1], self.points[place]
        return s + (t - s) * (elements - a) / (b - a) + more

    @property
    def key(self) -> tuple[object, ...]:  # noqa: D102
        return (type(self).__name__, self.optimizer)


class Curve(Entry, frozen=True, kw_only=True):
    """Measured seconds of one collective alone, by message size in bytes, on `ranks` ranks over `nodes` nodes."""

    kind: CollectiveKind
    ranks: int
    nodes: int
    points: tuple[tuple[float, float], ...]

    def _check(self) -> None:
        where = f"{self.kind} curve of {self.ranks} ranks"
        check_positive(ProfileError, where, ranks=self.ranks, nodes=self.nodes)
        if not self.points:
            raise ProfileError(f"{where}: has no points")
        for (size, time), (following, _) in zip(self.points, (*self.points[1:], (float("inf"), 0.0)), strict=True):
            check_positive(ProfileError, where, size=size, seconds=time)
            if not size < following:
                raise ProfileError(f"{where}: sizes are out of order at {following:.0f} B")

    @property
    def key(self) -> tuple[object, ...]:  # noqa: D102
        return (type(self).__name__, self.kind, self.ranks, self.nodes)


class Segment(Value, frozen=True, kw_only=True, omit_defaults=False):
    """From `from_bytes` on an operation takes ``latency_s + nbytes * seconds_per_byte``; a library's protocol there."""

    from_bytes: float
    latency_s: float
    seconds_per_byte: float


class Sample(Value, frozen=True, kw_only=True):
    """What repeats of one message size took: the median, its 95 % confidence interval, and how many of the `repeats`
    are outliers (kept in the median's ranks; see `calibration.fits`)."""

    nbytes: float
    seconds: float
    low_s: float = 0.0
    high_s: float = 0.0
    repeats: int = 1
    outliers: int = 0


class Fit(Entry, frozen=True, kw_only=True):
    """Time of one operation alone, piecewise linear in its bytes, on `ranks` ranks over `nodes` nodes.

    `link_bytes_per_s` is the nominal rate of the interconnect on which it was measured (0: that of the profile's
    cluster). `samples` are what it was fitted to; `residual` is the largest relative deviation from them, `left_out`
    and `left_out_median` the largest and the median error at a size between others that the fit had not seen (each one
    left out in turn), `extrapolation` the larger error at the smallest and the largest size. Where there are too few
    samples to leave one out these are 0.
    """

    kind: Operation
    ranks: int
    nodes: int
    segments: tuple[Segment, ...]
    link_bytes_per_s: float = 0.0
    samples: tuple[Sample, ...] = ()
    residual: float = 0.0
    left_out: float = 0.0
    left_out_median: float = 0.0
    extrapolation: float = 0.0

    def _check(self) -> None:
        where = f"{self.kind} fit of {self.ranks} ranks"
        check_positive(ProfileError, where, ranks=self.ranks, nodes=self.nodes)
        if not self.segments:
            raise ProfileError(f"{where}: has no segments")
        for segment, following in zip(self.segments, (*self.segments[1:], None), strict=True):
            check_not_negative(ProfileError, where, from_bytes=segment.from_bytes, slope=segment.seconds_per_byte)
            if segment.latency_s + segment.from_bytes * segment.seconds_per_byte < 0 or (
                segment.latency_s <= 0 and segment.from_bytes == 0
            ):
                raise ProfileError(f"{where}: takes no time at {segment.from_bytes:.0f} B")
            if following is not None and not segment.from_bytes < following.from_bytes:
                raise ProfileError(f"{where}: segments are out of order at {following.from_bytes:.0f} B")
        check_not_negative(
            ProfileError,
            where,
            residual=self.residual,
            left_out=self.left_out,
            left_out_median=self.left_out_median,
            extrapolation=self.extrapolation,
            link_bytes_per_s=self.link_bytes_per_s,
        )

    @property
    def key(self) -> tuple[object, ...]:  # noqa: D102
        return (type(self).__name__, self.kind, self.ranks, self.nodes, self.link_bytes_per_s)

    @property
    def range(self) -> tuple[float, float]:
        """The sizes between which it was measured, in bytes; everything where no samples say."""
        if not self.samples:
            return 0.0, float("inf")
        return self.samples[0].nbytes, self.samples[-1].nbytes

    def seconds(self, nbytes: float) -> float:
        """Return the time of *nbytes*."""
        segment = self.segments[0]
        for later in self.segments[1:]:
            if nbytes >= later.from_bytes:
                segment = later
        return segment.latency_s + nbytes * segment.seconds_per_byte


class LinkRate(Entry, frozen=True, kw_only=True):
    """What a library reaches on one cable of a link kind, in one direction."""

    kind: str
    bytes_per_s: float

    def _check(self) -> None:
        check_positive(ProfileError, f"link {self.kind!r}", bytes_per_s=self.bytes_per_s)

    @property
    def key(self) -> tuple[object, ...]:  # noqa: D102
        return (type(self).__name__, self.kind)


class PointToPoint(Entry, frozen=True, kw_only=True):
    """One-way seconds of a message between two nodes, by its size in bytes (the first size may be 0)."""

    points: tuple[tuple[float, float], ...]

    def _check(self) -> None:
        if len(self.points) < 2:
            raise ProfileError("point-to-point times: needs two sizes or more")
        for (size, time), (following, later) in zip(self.points, self.points[1:], strict=False):
            check_positive(ProfileError, "point-to-point times", seconds=time, following=later)
            if not 0 <= size < following < float("inf"):
                raise ProfileError(f"point-to-point times: sizes are out of order at {following:.0f} B")


class Protocol(Value, frozen=True, kw_only=True):
    """One protocol of NCCL: latencies in microseconds as its tuning model has them, and its share of a link.

    LL128 is used over NVLink only; a protocol named NVLS stands for reduction inside NVSwitches. `cap_bytes_per_s` is
    the most that it reaches, `channel_bytes_per_s` and `tree_channel_bytes_per_s` the most of one channel in a ring and
    a tree: up to three numbers, for one node, for two, and for more. A channel is used when it gets `least_bytes`,
    in a ring also `least_bytes_a_rank` for each rank; its last `chunk` of bytes is copied at the end.
    """

    name: str
    base_ring_us: float
    base_tree_us: float
    hop_us: dict[str, tuple[float, float]]
    efficiency: float
    cap_bytes_per_s: tuple[float, ...] = ()
    channel_bytes_per_s: tuple[float, ...] = ()
    tree_channel_bytes_per_s: tuple[float, ...] = ()
    least_bytes: float = 0.0
    least_bytes_a_rank: float = 0.0
    chunk: float = 0.0

    def __post_init__(self) -> None:
        where = f"protocol {self.name!r}"
        hops = {f"hop_us.{kind}.{place}": us for kind, both in self.hop_us.items() for place, us in enumerate(both)}
        latencies = {"base_ring_us": self.base_ring_us, "base_tree_us": self.base_tree_us} | hops
        sizes = {name: getattr(self, name) for name in ("least_bytes", "least_bytes_a_rank", "chunk")}
        check_not_negative(ProfileError, where, **latencies, **sizes)
        check_positive(ProfileError, where, efficiency=self.efficiency)
        for name in ("cap_bytes_per_s", "channel_bytes_per_s", "tree_channel_bytes_per_s"):
            check_positive(ProfileError, where, **{f"{name}.{at}": rate for at, rate in enumerate(getattr(self, name))})


class Library(Entry, frozen=True, kw_only=True):
    """The communication library: which algorithms it has, and the constants of its own cost model.

    For `nccl`, `protocols` holds its tuning constants; `hop_us` gives (ring, tree) for the link kinds nvlink, pcie
    and net; `channels` is how many it opens, 0 if nobody knows, and `nvls_channels` how many in-switch reduction has.
    For `mpi`, costs follow from `PointToPoint` and `reduce_bytes_per_s`, the rate of adding two buffers; `choice` is
    whose rules choose the algorithm, "fastest" if nobody knows.
    """

    name: Literal["nccl", "mpi"]
    protocols: tuple[Protocol, ...] = ()
    channels: int = 0
    nvls_channels: int = 16
    reduce_bytes_per_s: float = 0.0
    choice: Literal["fastest", "mpich", "openmpi"] = "fastest"

    def _check(self) -> None:
        where = f"library {self.name!r}"
        check_not_negative(ProfileError, where, reduce_bytes_per_s=self.reduce_bytes_per_s, channels=self.channels)
        check_positive(ProfileError, where, nvls_channels=self.nvls_channels)


class Interference(Entry, frozen=True, kw_only=True):
    """How many times slower compute runs beside communication, and communication beside compute.

    `compute` says which compute: bound by matrix arithmetic or by memory; `path` the link kind that the communication
    crosses; `workload` of which workload, where it was measured for that one (empty: of any other).
    """

    compute: Literal["matrix", "memory"]
    path: str
    compute_factor: float
    communication_factor: float
    workload: str = ""

    def _check(self) -> None:
        for factor in (self.compute_factor, self.communication_factor):
            if not 1 <= factor <= 100:
                raise ProfileError(f"interference: factor {factor} must be from 1 to 100")

    @property
    def key(self) -> tuple[object, ...]:  # noqa: D102
        return (type(self).__name__, self.compute, self.path, self.workload)


class Progress(Entry, frozen=True, kw_only=True):
    """The share of an all-reduce of `nbytes` that is done behind as much compute: when nobody looks at it, when the
    rank polls it, when a thread waits for it. A record: predictions use `Execution` and `CommunicationWork`."""

    mode: Literal["none", "poll", "thread"]
    nbytes: float
    hidden: float

    def _check(self) -> None:
        check_positive(ProfileError, f"progress {self.mode!r}", nbytes=self.nbytes)
        if not 0 <= self.hidden <= 1:
            raise ProfileError(f"progress {self.mode!r}: hides {self.hidden}; it must be from 0 to 1")

    @property
    def key(self) -> tuple[object, ...]:  # noqa: D102
        return (type(self).__name__, self.mode)


class Sharing(Entry, frozen=True, kw_only=True):
    """How many times as long an iteration without communication takes on all `ranks` of a node at once as on one of
    them alone. A record: layers' times are measured on all at once."""

    workload: str
    ranks: int
    factor: float

    def _check(self) -> None:
        check_positive(ProfileError, f"sharing of {self.workload!r}", ranks=self.ranks, factor=self.factor)

    @property
    def key(self) -> tuple[object, ...]:  # noqa: D102
        return (type(self).__name__, self.workload, self.ranks)


class CommunicationWork(Entry, frozen=True, kw_only=True):
    """The library's own work on the processor for one collective: ``call_s + nbytes * s_per_byte``.

    Where the rank computes on the same core meanwhile (`shares_core`), its compute takes so much longer; over an idle
    link that has saved up a burst the collective takes at least that long.
    """

    call_s: float
    s_per_byte: float
    shares_core: bool = True

    def _check(self) -> None:
        check_not_negative(ProfileError, "communication work", call_s=self.call_s, s_per_byte=self.s_per_byte)


class Execution(Entry, frozen=True, kw_only=True):
    """How the software runs a schedule.

    `merged` says that host, compute and update are one lane (a CPU rank); `update_on_compute` that updates run on the
    compute lane, in list order (a GPU, whose memory a pass and an update would share); `wait_blocks_host` that an op
    which needs a finished collective makes the host wait (MPI, gloo) instead of the device (NCCL); `in_flight` how
    many collectives run at once; `run_ahead` how many iterations the host may be ahead of the compute lane; `progress`
    the share of its speed that a collective keeps while the rank computes (1: a NIC or a GPU moves the data; less: the
    library needs the CPU).

    A library that progresses only when it is called (MPI) needs the host to look several times before a collective has
    ended: `looks` are (bytes, looks), linear between them and beyond the last; empty, it needs nobody. The host looks
    when it begins an op; where `look_s` is not 0 it looks all the time, each look that much late.
    """

    merged: bool = False
    update_on_compute: bool = False
    wait_blocks_host: bool = False
    in_flight: int = 1
    run_ahead: int = 1
    progress: float = 1.0
    looks: tuple[tuple[float, float], ...] = ()
    look_s: float = 0.0

    def _check(self) -> None:
        check_positive(ProfileError, "execution", in_flight=self.in_flight, run_ahead=self.run_ahead)
        check_not_negative(ProfileError, "execution", look_s=self.look_s)
        if any(not 0 <= a < b or not 0 <= n <= m for (a, n), (b, m) in pairwise(self.looks)):
            raise ProfileError("execution: looks must grow with the bytes")
        if not 0.01 <= self.progress <= 1:
            raise ProfileError(f"execution: progress is {self.progress}; it must be from 0.01 to 1")

    def looks_at(self, nbytes: float) -> int:
        """Return how often the host must look at a collective of *nbytes*.

        >>> Execution(origin="measured", source="", looks=((1e3, 2.0), (2e3, 4.0))).looks_at(3e3)
        6
        """
        if not self.looks:
            return 0
        if len(self.looks) == 1:
            return round(self.looks[0][1])
        place = next((place for place, (size, _) in enumerate(self.looks) if nbytes <= size), len(self.looks) - 1)
        (a, n), (b, m) = self.looks[max(place - 1, 0)], self.looks[max(place, 1)]
        return round(n + (m - n) * max(0.0, (nbytes - a) / (b - a)))


class Jitter(Entry, frozen=True, kw_only=True):
    """Spread of times. Of compute: of one rank's iterations and between ranks, each the sigma of a log-normal factor
    whose median is 1.

    Where it was measured, `iteration` are the quantiles, at equal steps of probability from 0 to 1, of the factor on a
    rank's compute, which replaces `iteration_sigma`; and `communication_s` those of the seconds that one collective
    takes beyond its median (or less): hosts and schedulers delay a message by as much over any link.
    """

    iteration_sigma: float = 0.0
    rank_sigma: float = 0.0
    iteration: tuple[float, ...] = ()
    communication_s: tuple[float, ...] = ()

    def _check(self) -> None:
        for name in ("iteration_sigma", "rank_sigma"):
            if not 0 <= getattr(self, name) <= 3:
                raise ProfileError(f"jitter: {name} is {getattr(self, name)}; it must be from 0 to 3")
        for name, least in (("iteration", 0.0), ("communication_s", -float("inf"))):
            factors = getattr(self, name)
            if len(factors) == 1 or any(not least <= a <= b < float("inf") for a, b in pairwise(factors)):
                raise ProfileError(f"jitter: {name} must be two quantiles or more, in order")


class MemoryOverhead(Entry, frozen=True, kw_only=True):
    """Bytes of device memory that the framework and the communication library take for themselves."""

    nbytes: float

    def _check(self) -> None:
        check_not_negative(ProfileError, "memory overhead", nbytes=self.nbytes)


class Profile(Document, frozen=True, kw_only=True, tag="simgd profile"):
    """Costs of one machine with its software; see the module's text.

    `environment` says on what it was measured and with which command, `backend` over which library of the executor;
    both are empty where costs were put together from publications.
    """

    name: str
    cluster: Cluster
    description: str = ""
    backend: str = ""
    environment: Environment | None = None
    steps: tuple[StepTime, ...] = ()
    layers: tuple[LayerTimes, ...] = ()
    split: Split | None = None
    efficiency: Efficiency | None = None
    host: Host | None = None
    memory: MemoryRate | None = None
    curves: tuple[Curve, ...] = ()
    fits: tuple[Fit, ...] = ()
    updates: tuple[UpdateTime, ...] = ()
    links: tuple[LinkRate, ...] = ()
    point_to_point: PointToPoint | None = None
    library: Library | None = None
    interference: tuple[Interference, ...] = ()
    communication_work: CommunicationWork | None = None
    progress: tuple[Progress, ...] = ()
    sharing: tuple[Sharing, ...] = ()
    execution: Execution | None = None
    jitter: Jitter | None = None
    memory_overhead: MemoryOverhead | None = None

    _lists: ClassVar[tuple[str, ...]] = (
        "steps",
        "layers",
        "curves",
        "fits",
        "updates",
        "links",
        "interference",
        "progress",
        "sharing",
    )

    def updated(self, later: "Profile") -> "Profile":
        """Return this profile with the entries of *later* added, which win where both speak of the same thing.

        The cluster stays this profile's: what a later profile was measured on is the caller's to compare.
        """
        changes: dict[str, Any] = {"name": f"{self.name} + {later.name}"}
        for name in self.__struct_fields__:
            mine, theirs = getattr(self, name), getattr(later, name)
            if name in self._lists:
                merged = {entry.key: entry for entry in (*mine, *theirs)}
                changes[name] = tuple(merged.values())
            elif isinstance(theirs, Entry):
                changes[name] = theirs
        return msgspec.structs.replace(self, **changes)
