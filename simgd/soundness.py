"""What is true of a schedule before anything runs: staleness, races, lost parameters, deadlock.

Model
    *a precedes b with lag k* when instance i of a has ended before instance i + k of b starts, for every i, by
    dependencies and lanes alone. All such relations with lag 0, 1, ... up to the largest that matters are found in one
    pass over the ops for each lag, with the set of preceding ops of each op as the bits of one integer.

Known not to hold
    The host's issue order proves nothing here (issuing is not ending), except behind a `Wait`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from simgd.errors import ScheduleError
from simgd.schedule import (
    Access,
    Backward,
    Communicate,
    Dep,
    Forward,
    Map,
    Op,
    Schedule,
    Touched,
    Update,
    Wait,
    accesses,
    data_lag,
    dependencies,
    waits_for,
)
from simgd.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """What follows from a schedule: every dependency, the derived ones included, and by update how many iterations
    old the gradient is that it applies; `staleness` says the same by bucket."""

    dependencies: dict[str, tuple[Dep, ...]]
    ages: dict[str, int]
    staleness: dict[str, int]


def derive(schedule: Schedule, workload: Workload) -> Derived:
    """Return what follows from *schedule*; raise ScheduleError, naming the op, if it could not run to its end or
    would train wrongly.

    Checked are: that collectives and updates cover every parameter once; deadlock; that each gradient is complete
    before it is communicated and communicated before it is applied; races on weights. The order of collectives is
    the same on every rank because every collective stands on the one comm lane.
    """
    if schedule.workload != workload.name:
        raise ScheduleError(
            f"schedule {schedule.name!r}: is for workload {schedule.workload!r}, found {workload.name!r}"
        )
    _check_passes(schedule, workload)
    _check_cover(schedule, workload)
    _check_alike(schedule)
    touched = accesses(schedule, workload)
    deps = dependencies(schedule, touched)
    order = dry_run(schedule, deps)
    ages = _ages(schedule, touched, Order(schedule, deps, order))
    buckets = {op.name: op.work.bucket for op in schedule.ops if isinstance(op.work, Update)}
    return Derived(dependencies=deps, ages=ages, staleness={buckets[name]: age for name, age in ages.items()})


def _check_passes(schedule: Schedule, workload: Workload) -> None:
    for kind in (Forward, Backward):
        passes = [layer for op in schedule.ops if isinstance(op.work, kind) for layer in op.work.layers]
        for layer in workload.layers:
            if passes.count(layer.name) != 1:
                raise ScheduleError(
                    f"schedule {schedule.name!r}: {kind.__name__.lower()} of layer {layer.name!r} stands "
                    f"{passes.count(layer.name)} times; it must stand once"
                )


def _check_alike(schedule: Schedule) -> None:
    """Ranks stay alike only if each applies, in every iteration, a gradient that all have summed."""
    where = f"schedule {schedule.name!r}"
    for op in schedule.ops:
        if op.every > 1 and not isinstance(op.work, Wait):
            raise ScheduleError(f"{where}: op {op.name!r} runs every {op.every} iterations; ranks would drift apart")
    sent = {(op.work.collective, op.work.value) for op in schedule.ops if isinstance(op.work, Communicate)}
    parts = {op.work.part for op in schedule.ops if isinstance(op.work, Update)}
    whole = ("all_reduce", "gradient") in sent or {("reduce_scatter", "gradient"), ("all_gather", "gradient")} <= sent
    shared = {("reduce_scatter", "gradient"), ("all_gather", "weight")} <= sent
    if not (whole and parts == {"all"}) and not (shared and parts == {"mine"}):
        done = ", ".join(f"{collective} of {value}s" for collective, value in sorted(sent)) or "no collective"
        raise ScheduleError(
            f"{where}: {done} with updates of {' and '.join(sorted(parts)) or 'nothing'}: ranks would drift apart; "
            "gradients are all-reduced and every rank applies all, or reduce-scattered and the weights gathered"
        )


def _check_cover(schedule: Schedule, workload: Workload) -> None:
    """Buckets of one kind of op must partition the parameters."""
    sizes = {tensor.name: tensor.elements for layer in workload.layers for tensor in layer.tensors}
    slices = {bucket.name: bucket.slices for bucket in schedule.buckets}
    kinds: dict[str, list[str]] = {"update": []}
    for op in schedule.ops:
        match op.work:
            case Communicate(collective=collective, bucket=bucket, value=value):
                kinds.setdefault(f"{collective} of {value}s", []).append(bucket)
            case Update(bucket=bucket):
                kinds["update"].append(bucket)
            case _:
                pass
    for kind, buckets in kinds.items():
        covered: dict[str, list[tuple[int, int]]] = {name: [] for name in sizes}
        for bucket in buckets:
            for part in slices[bucket]:
                if part.tensor not in covered:
                    raise ScheduleError(
                        f"schedule {schedule.name!r}: bucket {bucket!r} names tensor {part.tensor!r}, "
                        f"which workload {workload.name!r} does not have"
                    )
                covered[part.tensor].append((part.first, part.last))
        for tensor, parts in covered.items():
            at = 0
            for first, last in sorted(parts):
                if first != at:
                    at = min(at, first)
                    break
                at = last
            else:
                if at == sizes[tensor]:
                    continue
            raise ScheduleError(
                f"schedule {schedule.name!r}: {kind} must cover tensor {tensor!r} once, elements 0 to "
                f"{sizes[tensor]}; from element {at} on it is missing or stands twice"
            )


def dry_run(schedule: Schedule, deps: dict[str, tuple[Dep, ...]]) -> tuple[str, ...]:
    """Return the ops of one iteration in an order in which they can end, without times.

    Raises ScheduleError that names the op at which each lane is stuck.
    """
    lanes: dict[str, list[Op]] = {}
    for op in schedule.ops:
        lanes.setdefault(op.lane, []).append(op)
    # Within one iteration only dependencies without lag can wait in vain; the host issues in list order.
    ended: dict[str, None] = {}
    heads = dict.fromkeys(lanes, 0)
    issued = 0
    moved = True
    while moved:
        moved = False
        while issued < len(schedule.ops):
            op = schedule.ops[issued]
            needed = (*deps[op.name], *waits_for(op.work)) if op.lane == "host" else ()
            if any(dep.lag == 0 and dep.op not in ended for dep in needed):
                break
            issued += 1
            moved = True
        reachable = {op.name for op in schedule.ops[:issued]}
        for lane, queue in lanes.items():
            while heads[lane] < len(queue):
                op = queue[heads[lane]]
                if op.name not in reachable or any(dep.lag == 0 and dep.op not in ended for dep in deps[op.name]):
                    break
                ended[op.name] = None
                heads[lane] += 1
                moved = True
    if len(ended) < len(schedule.ops):
        stuck = [queue[heads[lane]] for lane, queue in lanes.items() if heads[lane] < len(queue)]
        first = stuck[0]
        missing = [dep.op for dep in (*deps[first.name], *waits_for(first.work)) if dep.lag == 0]
        waits = next(
            (name for name in missing if name not in ended), schedule.ops[min(issued, len(schedule.ops) - 1)].name
        )
        raise ScheduleError(
            f"schedule {schedule.name!r}: deadlock: op {first.name!r} on lane {first.lane} waits for {waits!r}, "
            f"which can never end before it; stuck lanes: {', '.join(f'{op.lane} at {op.name!r}' for op in stuck)}"
        )
    return tuple(ended)


class Order:
    """Which op precedes which, and with how many iterations between them."""

    def __init__(self, schedule: Schedule, deps: dict[str, tuple[Dep, ...]], order: tuple[str, ...]) -> None:
        self._bit = {op.name: 1 << place for place, op in enumerate(schedule.ops)}
        edges = {op.name: list(found) for op, found in zip(schedule.ops, _edges(schedule, deps), strict=True)}
        highest = max((dep.lag for found in edges.values() for dep in found), default=0) + 1
        self._before: list[dict[str, int]] = []
        for lag in range(highest + 1):
            level: dict[str, int] = {}
            for name in order:
                found = self._before[lag - 1][name] if lag else 0
                for dep in edges[name]:
                    if dep.lag == 0 and dep.op in level:
                        found |= level[dep.op] | self._bit[dep.op]
                    elif 0 < dep.lag <= lag:
                        found |= self._before[lag - dep.lag][dep.op] | self._bit[dep.op]
                level[name] = found
            self._before.append(level)

    def precedes(self, first: str, second: str, lag: int) -> bool:
        """Say whether instance i of *first* has ended before instance i + *lag* of *second* starts."""
        return bool(self._before[min(lag, len(self._before) - 1)][second] & self._bit[first])


def _edges(schedule: Schedule, deps: dict[str, tuple[Dep, ...]]) -> Iterator[list[Dep]]:
    """Yield, for each op, everything that must have ended: dependencies, its lane, and waits of the host before it."""
    last_of_lane = {op.lane: op.name for op in schedule.ops}
    waits = [op.name for op in schedule.ops if op.lane == "host"]
    seen: dict[str, str] = {}
    wait = waits[-1] if waits else None
    lag = 1
    for op in schedule.ops:
        before = Dep(seen[op.lane]) if op.lane in seen else Dep(last_of_lane[op.lane], 1)
        found = [*deps[op.name], *waits_for(op.work), before]
        if wait is not None and wait != op.name:
            found.append(Dep(wait, lag))
        if op.lane == "host":
            wait, lag = op.name, 0
        seen[op.lane] = op.name
        yield found


def _ages(schedule: Schedule, touched: Touched, order: Order) -> dict[str, int]:
    """Return, for each update, how many iterations old the gradient is that it applies: its staleness.

    An update that applies the gradient of k iterations ago, with weights that every pass reads right after the update
    before it, is stale by k. Raises ScheduleError where a pass could read weights while an update writes them, or
    where a gradient could be sent before it is complete or applied before it is reduced.
    """
    races = _Races(schedule, touched, order)
    found: dict[str, int] = {}
    for op in schedule.ops:
        match op.work:
            case Update():
                found[op.name] = races.update_lag(op)
                races.check_weights(op)
            case Communicate() | Map():
                races.check_complete(op)
            case _:
                pass
    return found


class _Races:
    """Finds two ops that touch the same value with nothing to order them."""

    def __init__(self, schedule: Schedule, touched: Touched, order: Order) -> None:
        self._where = f"schedule {schedule.name!r}"
        self._order = order
        self._touched = touched
        # Who fills a buffer anew, who works on it in place, and who only reads it
        self._fill: dict[Access, list[str]] = {}
        self._in_place: dict[Access, list[str]] = {}
        self._read: dict[Access, list[str]] = {}
        for op in schedule.ops:
            reads, writes = self._touched[op.name]
            for access in writes:
                (self._in_place if access in reads else self._fill).setdefault(access, []).append(op.name)
            for access in reads:
                if access not in writes:
                    self._read.setdefault(access, []).append(op.name)

    def _demand(self, access: Access, first: str, second: str, lag: int) -> None:
        if not self._order.precedes(first, second, lag):
            when = (
                f"{lag} iterations before" if lag > 1 else "in the iteration before" if lag else "in the same iteration"
            )
            raise ScheduleError(
                f"{self._where}: race on the {access.value} of bucket {access.bucket!r}: nothing makes {second!r} "
                f"wait for {first!r} {when}"
            )

    def update_lag(self, update: Op) -> int:
        """Return the age of the gradients that *update* applies, each reduced before, all equally old."""
        lags: dict[str, int] = {}
        for access in self._touched[update.name][0]:
            lag = data_lag(update, access, self._touched)
            for name in self._in_place.get(access, self._fill.get(access, [])):
                self._demand(access, name, update.name, lag)
            lags[access.bucket] = lag
        first = next(iter(lags))
        for bucket, lag in lags.items():
            if lag != lags[first]:
                raise ScheduleError(
                    f"{self._where}: {update.name!r} applies the gradient of bucket {first!r} of {lags[first]} "
                    f"iterations ago and that of bucket {bucket!r} of {lag}; one update applies gradients of one age"
                )
        return lags[first]

    def check_complete(self, op: Op) -> None:
        """Whoever sends or copies a gradient waits for all who make it."""
        for access in self._touched[op.name][0]:
            for name in self._fill.get(access, []):
                self._demand(access, name, op.name, 0)

    def check_weights(self, update: Op) -> None:
        """Every pass of an iteration reads the weights before this iteration's update, and after the one before."""
        for access in self._touched[update.name][1]:
            for name in self._read.get(access, []):
                self._demand(access, name, update.name, 0)
                self._demand(access, update.name, name, 1)
