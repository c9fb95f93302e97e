"""Times what a rank does by itself: the passes of each layer, updates, copies, and what the loop around them costs.

Model
    Schedules run with communication left out, on all ranks at once, since ranks of one node share caches and memory.
    They run in turns of a few iterations, in a random order, so that a slow phase of the machine falls on all alike.
    An op takes the median of its durations in place; of the ranks the one counts whose iterations take longest. A pass
    of a layer is the same op in every schedule. An update takes so much a call, a tensor and an element, a copy so much
    a call and a byte, and what is left of an iteration belongs to the loop: so much an iteration and an op.

    Iterations of one turn scatter as single ones do. Turns differ as the machine's slow phases do, which all ranks
    share: that is the costs' uncertainty.

What it leaves out
    Ranks that differ. Work that a schedule adds to a pass besides its own (none of the named ones does).
"""

import random
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple, get_args

import numpy as np
from msgspec.structs import replace

from calibration.fits import least_costs
from calibration.messages import Tick
from executor.backends.protocol import Backend
from executor.lanes import WAITING, Note
from executor.plan import Plan
from executor.rank import Rank
from simgd.costs import Direction
from simgd.profile import Host, LayerTimes, MemoryRate, UpdateTime
from simgd.schedule import Backward, Forward, Map, Schedule, Update

#: Iterations of one turn, of which the first ones are left out, and turns of each schedule.
STEPS, WARM_UP = 8, 2
TURNS = 8

#: What a rank that sleeps spends on each op, to see what that takes besides.
SLEPT_S = 4e-4

#: Tensors of an update that one launch of a kernel takes all the same.
FEW_TENSORS = 2

#: Turns that are made however long they take.
LEAST_TURNS = 3


class Row(NamedTuple):
    """What an update or a copy took: so many calls (one), tensors and elements in so many seconds."""

    calls: float
    tensors: float
    elements: float
    seconds: float


class Local(NamedTuple):
    """What local work costs: entries of a profile; rows of updates and copies, which those of other workloads join;
    each iteration's time over the median of its turn; and how many times as long an iteration takes on all ranks
    at once as on one of them alone."""

    layers: tuple[LayerTimes, ...]
    updates: list[Row]
    copies: list[Row]
    host: Host
    factors: list[float]
    sharing: float


class Summary(NamedTuple):
    """One schedule on one rank: seconds of each op and of an iteration, each iteration over the median of its turn,
    and each turn's over that of all."""

    ops: list[float]
    iteration: float
    factors: list[float]
    drift: list[float]


class _Turns:
    """One schedule on one rank, and what its ops took, by op, in seconds."""

    def __init__(self, plan: Plan, backend: Backend, note: Note) -> None:
        self.rank = Rank(plan, backend, note)
        self.plan = plan
        self.durations: list[list[float]] = [[] for _ in plan.schedule.ops]
        self.turns: list[list[float]] = []

    def run(self) -> None:
        """Run a few iterations and note those behind the warm-up."""
        recorder = self.rank.recorder(1)
        lanes = self.rank.lanes(recorder, traced=0, communicating=False)
        steps = STEPS + WARM_UP
        self.rank.interpreter(lanes).run(steps, lambda iteration: None)
        self.turns.append(lanes.iterations_s()[WARM_UP:steps])
        for k, found in enumerate(recorder.durations_ns):
            self.durations[k] += [ns * 1e-9 for iteration, ns in found if WARM_UP <= iteration < steps]

    def summary(self) -> Summary:
        """Return the medians, and how single iterations and turns scatter around theirs."""
        middle = median(seconds for turn in self.turns for seconds in turn)
        return Summary(
            ops=[median(found) if found else 0.0 for found in self.durations],
            iteration=middle,
            factors=[seconds / median(turn) for turn in self.turns for seconds in turn],
            drift=[median(turn) / middle for turn in self.turns],
        )


def measure(plans: Sequence[Plan], backend: Backend, note: Note, *, granted_s: float, source: str, tick: Tick) -> Local:
    """Return what local work costs, the same on every rank; the *plans* differ in their schedules only."""
    draw = random.Random(0)
    turns = [_Turns(plan, backend, note) for plan in plans]
    begin = time.perf_counter()
    for number in range(TURNS):
        note.at(WAITING)
        spent = backend.exchange(time.perf_counter() - begin)[0]
        if number >= LEAST_TURNS and spent > granted_s:
            break
        for each in draw.sample(turns, len(turns)):
            started = time.perf_counter()
            note.at(WAITING)
            backend.barrier()
            each.run()
            tick(f"{each.plan.workload.name}, {each.plan.schedule.name}", time.perf_counter() - started)
    found: list[list[Summary]] = backend.exchange([each.summary() for each in turns])
    alone_s = _alone_s(turns[0], backend, note)
    slowest = max(found, key=lambda own: sum(each.iteration for each in own))
    factors = [factor for own in found for each in own for factor in each.factors]
    drift = np.quantile([ratio for own in found for each in own for ratio in each.drift], (0.05, 0.95))
    uncertainty = min(float(drift[1] - drift[0]) / 2, 0.9)
    sharing = max(own[0].iteration for own in found) / alone_s
    made = _local([plan.schedule for plan in plans], slowest, plans[0], source, uncertainty)
    return made._replace(factors=factors, sharing=sharing)


def _alone_s(turns: "_Turns", backend: Backend, note: Note) -> float:
    """Return the median iteration of the fastest rank while the others wait."""
    found = []
    for rank in range(backend.ranks):
        own = turns.turns
        turns.turns = []
        note.at(WAITING)
        backend.barrier()
        if rank == backend.rank:
            turns.run()
            found.append(median(turns.turns[0]))
        turns.turns = own
    note.at(WAITING)
    return float(min(backend.exchange(found[0])))


class ByWork(NamedTuple):
    """Seconds of ops of several schedules by the work that they are: of passes by layer, one from each schedule."""

    forward: dict[str, list[float]]
    backward: dict[str, list[float]]
    updates: list[Row]
    copies: list[Row]


def by_work(schedules: Sequence[Schedule], seconds: Sequence[Sequence[float]]) -> ByWork:
    """Sort *seconds*, by schedule and op."""
    found = ByWork({}, {}, [], [])
    for schedule, ops in zip(schedules, seconds, strict=True):
        buckets = {bucket.name: bucket for bucket in schedule.buckets}
        for op, took in zip(schedule.ops, ops, strict=True):
            match op.work:
                case Forward(layers=(layer,)):
                    found.forward.setdefault(layer, []).append(took)
                case Backward(layers=(layer,)):
                    found.backward.setdefault(layer, []).append(took)
                case Update(bucket=name):
                    bucket = buckets[name]
                    found.updates.append(Row(1.0, len(bucket.slices), bucket.elements, took))
                case Map(bucket=name):
                    bucket = buckets[name]
                    found.copies.append(Row(1.0, len(bucket.slices), bucket.elements, took))
                case _:
                    pass
    return found


def passes(
    found: ByWork,
    plan: Plan,
    about: Mapping[str, Any],
    *,
    rest_s: float,
    issue: ByWork | None = None,
    beside: ByWork | None = None,
) -> tuple[LayerTimes, ...]:
    """Return the times of the passes of *plan*'s workload, with what the host took to *issue* them to a device, and how
    many times as long they took *beside* collectives."""

    def medians(of: ByWork | None, direction: Direction) -> dict[str, float]:
        return {name: median(s) for name, s in getattr(of, direction).items()} if of is not None else {}

    return tuple(
        LayerTimes(
            **about,
            workload=plan.workload.name,
            batch=plan.batch,
            tokens=plan.tokens,
            direction=direction,
            seconds=medians(found, direction),
            rest_s=rest_s if direction == "forward" else 0.0,
            issue=medians(issue, direction),
            beside=medians(beside, direction),
        )
        for direction in get_args(Direction)
    )


def loop(schedules: Sequence[Schedule], left_s: Sequence[float]) -> tuple[float, float]:
    """Return what the loop around ops takes an iteration and an op, from what it takes in each of *schedules*."""
    rows = [(1.0, len(schedule.ops)) for schedule in schedules]
    iteration, op = least_costs(rows, [max(0.0, each) for each in left_s])
    return iteration, op


def _local(
    schedules: Sequence[Schedule], found: Sequence[Summary], plan: Plan, source: str, uncertainty: float
) -> Local:
    about = {"origin": "measured", "source": source, "uncertainty": uncertainty}
    asleep = plan.compute != "real"
    spent = [SLEPT_S * sum(s > 0 for s in own.ops) if asleep else sum(own.ops) for own in found]
    iteration, op_s = loop(schedules, [own.iteration - s for own, s in zip(found, spent, strict=True)])
    nothing = dict.fromkeys(("forward_kernel", "backward_kernel", "collective", "update", "copy", "wait"), 0.0)
    # A rank that sleeps has no passes of its own: what it spends comes from the profile of one that computes.
    host = Host(**about, **nothing, iteration=iteration if asleep else 0.0, op=op_s)  # type: ignore[arg-type]
    if asleep:
        return Local((), [], [], host, [], 1.0)
    work = by_work(schedules, [own.ops for own in found])
    return Local(passes(work, plan, about, rest_s=iteration), work.updates, work.copies, host, [], 1.0)


def update_time(rows: Sequence[Row], optimizer: str, ranks: int) -> UpdateTime | None:
    """Return what an update costs by call, tensor and element: the best by relative errors of all *rows*."""
    if not rows:
        return None
    call, tensor, element = least_costs([[each / row.seconds for each in row[:3]] for row in rows], [1.0] * len(rows))
    missed = [call + row.tensors * tensor + row.elements * element - row.seconds for row in rows]
    off = sum(map(abs, missed)) / sum(row.seconds for row in rows)
    source = f"{len(rows)} updates in place on {ranks} ranks; their costs miss them by {off:.0%} of their time"
    return UpdateTime(
        origin="measured", source=source, optimizer=optimizer, call_s=call, tensor_s=tensor, element_s=element
    )


def update_curve(rows: Sequence[Row], optimizer: str, ranks: int) -> UpdateTime | None:
    """Return what an update takes on a GPU: a curve in elements of those of few tensors, and what more tensors add."""
    few = [row for row in rows if row.tensors <= FEW_TENSORS]
    if not few:
        return update_time(rows, optimizer, ranks)
    by_elements: dict[float, list[float]] = {}
    for row in few:
        by_elements.setdefault(row.elements, []).append(row.seconds)
    sizes = sorted(by_elements)
    # More elements never take less time.
    growing = np.maximum.accumulate([median(by_elements[size]) for size in sizes])
    points = tuple(zip(sizes, map(float, growing), strict=True))
    curve = UpdateTime(
        origin="measured", source="", optimizer=optimizer, call_s=0.0, tensor_s=0.0, element_s=0.0, points=points
    )
    more = [
        max(0.0, row.seconds - curve.seconds(row.elements, 1)) / (row.tensors - 1)
        for row in rows
        if row.tensors > FEW_TENSORS
    ]
    made = replace(curve, tensor_s=median(more) if more else 0.0)
    missed = sum(abs(made.seconds(row.elements, int(row.tensors)) - row.seconds) for row in rows)
    off = missed / sum(row.seconds for row in rows)
    return replace(made, source=f"{len(rows)} updates in place on {ranks} ranks; their costs miss them by {off:.0%}")


def memory_rate(rows: Sequence[Row], ranks: int) -> MemoryRate | None:
    """Return what a copy of gradients costs by call and byte, each read once and written once."""
    if not rows:
        return None
    call, each = least_costs(
        [(row.calls / row.seconds, 8 * row.elements / row.seconds) for row in rows], [1.0] * len(rows)
    )
    if not each:
        return None
    source = f"{len(rows)} copies of gradients in place on {ranks} ranks"
    return MemoryRate(origin="measured", source=source, bytes_per_s=1 / each, kernel=call)
