"""A measured run: what was run, how long each iteration took on each rank, where the time went, and on what.

Model
    `iterations_s` holds every iteration of every rank, in the rank's own time from the end of its compute to the end
    of the next; an iteration of the run ends when the last rank has ended it. (The slowest rank's own time would count
    a lead twice that ranks lose and win in turns: a late sender delays the others, not itself.) The first `warm_up` are
    left out of the figures, as are those in `left_out`, which a comparison of weights or the timing events of a GPU
    disturbed.
    `compute_s` is the same schedule with communication left out, run before and after; `communication_s` the sum of
    the schedule's collectives, each alone; what an iteration takes beyond compute is exposed communication.

    Everything is embedded that a prediction of the same run needs: schedule, workload, execution.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Literal

from simgd.errors import RunError
from simgd.files import Document, Value, check_positive
from simgd.profile import Execution
from simgd.provenance import Environment
from simgd.schedule import Schedule
from simgd.trace import Trace
from simgd.workload import Workload

BackendName = Literal["loopback", "mpi", "gloo", "nccl"]

ComputeKind = Literal["real", "emulated", "emulated:busy"]


class Spread(Value, frozen=True, kw_only=True, omit_defaults=False):
    """Median, 5th and 95th percentile of a quantity."""

    median: float
    p5: float
    p95: float


class OpTimes(Value, frozen=True, kw_only=True):
    """Seconds of one op on its lane, from start to end: median and 95th percentile on each rank."""

    lane: str
    median_s: list[float]
    p95_s: list[float]


class Clock(Value, frozen=True, kw_only=True):
    """How a rank's clock was laid on rank 0's: rank 0's = own + `offset_s` + `drift` * time since the start.

    `uncertainty_s` is half the shortest round trip. Ranks of one host share one clock (`shared`): their offset is 0 by
    definition, and the estimate stays in `estimate_s` for comparison.
    """

    offset_s: float
    drift: float
    uncertainty_s: float
    estimate_s: float
    shared: bool


class TracingCost(Value, frozen=True, kw_only=True, omit_defaults=False):
    """What recording costs an iteration: events on a rank, seconds of one, and their share of the iteration.

    `traced_over_untraced` compares the iterations with timing events on the device with those without (1 where the
    host's clock is read anyway).
    """

    events: float
    event_s: float
    share: float
    traced_over_untraced: float


class Run(Document, frozen=True, kw_only=True, tag="simgd run"):
    """What was measured; see the module's text. Times in seconds, memory in bytes, lists by rank.

    `begun_s` says when each rank began its first iteration, on rank 0's clock and since the first rank did.
    """

    schedule: Schedule
    workload: Workload
    backend: BackendName
    ranks: int
    batch_per_rank: int
    tokens: int
    steps: int
    seed: int
    optimizer: str
    compute: ComputeKind
    progress: str
    execution: Execution
    iterations_s: list[list[float]]
    begun_s: list[float]
    warm_up: int
    left_out: list[int]
    iteration: Spread
    samples_per_s: float
    compute_s: float
    compute_before_s: float
    compute_after_s: float
    communication_s: float
    exposed_communication_s: float
    overlap: float | None
    staleness: dict[str, dict[str, int]]
    peak_memory_bytes: list[float]
    buffer_bytes: float
    losses: list[list[float]]
    weights_digest: int | None
    ops: dict[str, OpTimes]
    clocks: list[Clock]
    tracing: TracingCost
    environment: Environment
    trace: Trace

    def __post_init__(self) -> None:
        where = f"run of {self.schedule.name!r}"
        check_positive(RunError, where, ranks=self.ranks, batch_per_rank=self.batch_per_rank, steps=self.steps)
        if len(self.iterations_s) != self.ranks or any(len(own) != self.steps for own in self.iterations_s):
            raise RunError(f"{where}: iterations_s must hold {self.steps} times of each of {self.ranks} ranks")
        if len(self.begun_s) != self.ranks:
            raise RunError(f"{where}: begun_s must hold one time of each of {self.ranks} ranks")
        if not 0 <= self.warm_up < self.steps:
            raise RunError(f"{where}: warm_up is {self.warm_up}; it must be from 0 up to {self.steps} steps")

    @property
    def slowest_s(self) -> list[float]:
        """The seconds of each iteration, from when the last rank has ended one to when the last has ended the next."""
        return together_s(self.iterations_s, self.begun_s)


class Runs(Document, frozen=True, kw_only=True, tag="simgd runs"):
    """Many runs in one file; `note` says what they have in common."""

    runs: tuple[Run, ...]
    note: str = ""


def together_s(iterations_s: Sequence[Sequence[float]], begun_s: Sequence[float]) -> list[float]:
    """Return the seconds of each iteration of all ranks together, from those of each rank.

    >>> together_s([[3.0, 1.0, 3.0], [1.0, 3.0, 1.0]], [0.0, 0.0])
    [3.0, 1.0, 3.0]
    """
    ends = [list(accumulate(own, initial=begin)) for own, begin in zip(iterations_s, begun_s, strict=True)]
    last = [max(own) for own in zip(*ends, strict=True)]
    return [later - sooner for sooner, later in pairwise(last)]


def counted(steps: int, warm_up: int, left_out: list[int]) -> list[int]:
    """Return the iterations that the figures count: those behind the warm-up that nothing disturbed."""
    kept = [place for place in range(warm_up, steps) if place not in left_out]
    return kept or list(range(warm_up, steps))


def warm_up_of(steps: int) -> int:
    """Return how many first iterations are left out: a fifth, at most 5.

    >>> warm_up_of(20), warm_up_of(3), warm_up_of(1000)
    (4, 0, 5)
    """
    return min(steps // 5, 5)
