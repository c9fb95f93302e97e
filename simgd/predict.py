"""Predicts: from a job and a machine, the steady iteration of each schedule, what it costs and what binds it.

Model
    The steady period is simulated with interference. Its interval comes from the cycle ratio, which has no
    interference and is exact: the period with every cost at the low or the high end of its own 90 % interval, relative
    to the period as it is. All costs of one machine are wrong together, so their ends are taken together.

    Of the speed-up over one device the interval has local costs and those of collectives at opposite ends: what both
    sides of that ratio share cancels. One iteration and the median of a run differ only by jitter, see `noise`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import assert_never

import msgspec

from simgd import noise, units
from simgd.costs import LayerCosts, peak_memory_bytes
from simgd.errors import ProfileError, ScheduleError
from simgd.files import Value, check_positive
from simgd.job import Job
from simgd.network import Fidelity, Network
from simgd.plan import WIRE, plan
from simgd.pricing import AS_IT_IS, Part, Priced, Prices, WhatIf
from simgd.profile import Origin, Profile
from simgd.schedule import Backward, Communicate, Forward, Map, Schedule, Update, Wait, Work
from simgd.schedules import parse
from simgd.simulator import Steady, simulate, steady
from simgd.soundness import Derived, derive
from simgd.steady_state import Cycle, EventGraph
from simgd.topology import Cluster
from simgd.trace import Trace

#: A trace shows no more ranks than this, and no longer a warm-up.
SHOWN_RANKS = 8
MOST_WARM_UP = 5


class Prediction(Value, frozen=True, kw_only=True, omit_defaults=False):
    """What one schedule does on so many ranks; times in seconds, memory in bytes.

    `compute_s` is the steady period with communication free, `communication_s` the sum of the schedule's collectives,
    each alone, `exposed_communication_s` the rest of the iteration beyond compute, `host_stall_s` the time for which
    the compute lane is idle because nothing was issued. `iteration_s` is without noise, `median_s` the median with it;
    the intervals are with noise, and wide enough to hold `iteration_s`. `memory_is_least` says that activations are
    unknown and left out. `origins` says what each part rests on; `origin` is the weakest. `repeats` is False where no
    steady state was found, and the period is then a mean.
    """

    workload: str
    cluster: str
    profile: str
    ranks: int
    schedule: str
    batch_per_rank: int
    iteration_s: float
    iteration_low_s: float
    iteration_high_s: float
    median_s: float
    median_low_s: float
    median_high_s: float
    samples_per_s: float
    speedup_over_sync: float
    speedup_over_baseline: float
    speedup_over_one: float
    speedup_over_one_low: float
    speedup_over_one_high: float
    efficiency: float
    compute_s: float
    communication_s: float
    exposed_communication_s: float
    host_stall_s: float
    staleness: int
    peak_memory_bytes: float
    memory_fits: bool
    memory_is_least: bool
    bound_by: str
    origin: Origin
    extrapolated: bool
    origins: dict[str, Origin]
    baseline: str
    algorithms: tuple[str, ...]
    repeats: bool
    steady_iterations: int
    warm_up_iterations: int

    def __post_init__(self) -> None:
        where = f"prediction of {self.schedule!r} on {self.ranks} ranks"
        check_positive(ProfileError, where, ranks=self.ranks, batch_per_rank=self.batch_per_rank)
        for name, low, high in (
            ("iteration_s", self.iteration_low_s, self.iteration_high_s),
            ("iteration_s", self.median_low_s, self.median_high_s),
            ("speedup_over_one", self.speedup_over_one_low, self.speedup_over_one_high),
        ):
            # as many digits as two ways of adding the same costs agree in
            if not low * (1 - 1e-9) <= getattr(self, name) <= high * (1 + 1e-9):
                raise ProfileError(f"{where}: {name} is {getattr(self, name)}, outside its interval {low} to {high}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Studied:
    """One schedule on so many ranks, with everything that was computed on the way."""

    prices: Prices
    schedule: Schedule
    derived: Derived
    priced: Priced
    steady: Steady

    @property
    def period_s(self) -> float:
        """The steady period in seconds."""
        return float(self.steady.period_ps) / units.PS_PER_S

    def graph(self) -> EventGraph:
        """Return the timed event graph, without interference and with one collective in flight."""
        return EventGraph(self.schedule, self.derived, replace(self.priced.timing, in_flight=1))

    def period_if(self, what_if: WhatIf) -> float:
        """Return the steady period on another machine, in seconds."""
        found = steady(self.schedule, self.derived, self.prices.price(self.schedule, what_if).timing)
        return float(found.period_ps) / units.PS_PER_S


def _check_wire(schedule: Schedule, job: Job) -> None:
    for op in schedule.ops:
        if isinstance(op.work, Communicate) and op.work.wire != WIRE[job.wire]:
            other = next(name for name, wire in WIRE.items() if wire == op.work.wire)
            raise ScheduleError(
                f"schedule {schedule.name!r}: {op.name!r} sends {op.work.wire}, but --wire is {job.wire}; give --wire "
                f"{other}, or write the schedule anew"
            )


def trace_of(study: Studied, *, iterations: int = 3) -> Trace:
    """Return the trace of the warm-up and of *iterations* steady iterations, at most `SHOWN_RANKS` ranks of it.

    Ranks that are alike run alike: they are simulated once, and the rows stand once for each.
    """
    one = simulate(
        study.schedule,
        study.derived,
        study.priced.timing,
        iterations=min(study.steady.warm_up, MOST_WARM_UP) + iterations,
        cluster=study.prices.cluster.name,
    )
    shown = min(study.prices.ranks, SHOWN_RANKS)
    return one.repeated(shown)


class Machine:
    """A cluster with its profile, and what was already computed for one job on it."""

    def __init__(self, cluster: Cluster, profile: Profile, *, devices: tuple[int, ...] | None = None) -> None:
        self.cluster = cluster
        self.profile = profile
        self.devices = devices
        self._network = Network(cluster, profile)
        self._layers: dict[tuple[str, int, int, str], LayerCosts] = {}
        self._plans: dict[tuple[str, str, str], tuple[Schedule, Derived]] = {}

    def prices(self, job: Job, ranks: int) -> Prices:
        """Return what ops cost on *ranks* ranks."""
        key = (job.workload.name, job.batch, job.tokens, job.dtype)
        if key not in self._layers:
            self._layers[key] = LayerCosts(job, self.profile)
        devices = self.devices[:ranks] if self.devices is not None else None
        return Prices(
            job, self.cluster, self.profile, ranks, devices=devices, layers=self._layers[key], network=self._network
        )

    def _planned(self, schedule: str | Schedule, prices: Prices, what_if: WhatIf) -> tuple[Schedule, Derived]:
        workload = prices.job.workload
        if not isinstance(schedule, str):
            _check_wire(schedule, prices.job)
            return schedule, derive(schedule, workload)
        key = (schedule, workload.name, prices.job.wire)
        if key in self._plans:
            return self._plans[key]
        planned = plan(schedule, workload, prices, what_if)
        found = planned, derive(planned, workload)
        if not parse(schedule).needs_delays:
            self._plans[key] = found
        return found

    def network(self, fidelity: Fidelity = "collectives", algorithm: str = "") -> Network:
        """Return what collectives cost on this machine; by one *algorithm* only, if it is named."""
        if (fidelity, algorithm) == ("collectives", ""):
            return self._network
        return Network(self.cluster, self.profile, fidelity=fidelity, algorithm=algorithm)

    def study(self, schedule: str | Schedule, job: Job, ranks: int, what_if: WhatIf = AS_IT_IS) -> Studied:
        """Plan, check, price and simulate one schedule."""
        prices = self.prices(job, ranks)
        planned, derived = self._planned(schedule, prices, what_if)
        priced = prices.price(planned, what_if)
        found = steady(planned, derived, priced.timing)
        if not found.period_ps:
            where = f"profile {self.profile.name!r}: {job.workload.name!r} on {self.cluster.name}"
            raise ProfileError(f"{where}: an iteration of {planned.name} takes no time; every cost is 0")
        return Studied(prices=prices, schedule=planned, derived=derived, priced=priced, steady=found)


def predict(
    machine: Machine,
    job: Job,
    ranks: Sequence[int],
    schedules: Sequence[str | Schedule],
    *,
    baseline: str | Schedule = "bucketed:25MiB",
    global_batch: int | None = None,
    seed: int | None = None,
) -> tuple[Prediction, ...]:
    """Return the predictions, ranks by ranks and schedule by schedule.

    With *global_batch* the batch of one rank is its share, which must be whole; else every rank has the job's batch.
    With *seed* the profile's noise is drawn and simulated, which takes seconds; else its spread is a closed form.

    Raises a SimgdError where the machine has no such ranks or a cost is missing.
    """
    alone = _alone(machine, with_global_batch(job, global_batch, 1))
    found: list[Prediction] = []
    for count in ranks:
        here = with_global_batch(job, global_batch, count)
        sync = machine.study("sync", here, count)
        base = sync if baseline == "sync" else machine.study(baseline, here, count)
        # By name only: a schedule of the same name that a file holds may be another one.
        known = {"sync": sync} | ({baseline: base} if isinstance(baseline, str) else {})
        for schedule in schedules:
            named = known.get(schedule) if isinstance(schedule, str) else None
            study = named or machine.study(schedule, here, count)
            found.append(_prediction(machine, here, study, sync, base, alone, seed))
    return tuple(found)


def with_global_batch(job: Job, global_batch: int | None, ranks: int) -> Job:
    """Return the job with one rank's share of *global_batch*; the job itself where that is None."""
    if global_batch is None:
        return job
    if ranks < 1 or global_batch % ranks:
        raise ProfileError(f"--global-batch {global_batch}: is not a multiple of {ranks} ranks")
    return msgspec.structs.replace(job, batch=global_batch // ranks)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Alone:
    """Samples a second of one rank on its own, as predicted and with its costs at the low and the high end."""

    rate: float
    slow: float
    fast: float


def _alone(machine: Machine, job: Job) -> _Alone:
    study = machine.study("sync", job, 1)
    bounds = _Bounds(study)
    slow, fast = (job.batch / bounds.period_s(sway, sway) for sway in (1.0, -1.0))
    return _Alone(rate=job.batch / study.period_s, slow=slow, fast=fast)


class _Bounds:
    """Periods of a study with its costs moved within their intervals: exact ratios, times the simulated period."""

    def __init__(self, study: Studied) -> None:
        self._study = study
        self._graph = study.graph()
        self.cycle = self._graph.critical_cycle()
        ops, uncertainty = study.priced.timing.ops, study.priced.uncertainty
        # For each node its cost, its uncertainty, and whether it is a collective's own time
        self._nodes = [
            (node.cost_ps, uncertainty[node.op][0 if node.issue else 1], bool(ops[node.op].use) and not node.issue)
            for node in self._graph.nodes
        ]

    def period_s(self, local: float, communication: float) -> float:
        """Return the period with local costs and those of collectives moved by so much: -1 and 1 are the ends of
        their 90 % intervals."""
        costs = [
            round(cost * (1 + (communication if collective else local) * uncertainty))
            for cost, uncertainty, collective in self._nodes
        ]
        moved = self._graph.period_of(costs, self.cycle)
        return self._study.period_s * float(moved / self.cycle.period_ps)

    def compute_s(self) -> float:
        """Return the period with communication free: collectives take neither the network nor the host any time."""
        collectives = {op.name for op in self._study.schedule.ops if isinstance(op.work, Communicate)}
        costs = [0 if node.op in collectives else node.cost_ps for node in self._graph.nodes]
        return float(self._graph.period_of(costs, self.cycle)) / units.PS_PER_S


def _prediction(
    machine: Machine, job: Job, study: Studied, sync: Studied, base: Studied, alone: _Alone, seed: int | None
) -> Prediction:
    ranks, period = study.prices.ranks, study.period_s
    rate = ranks * job.batch / period
    bounds = _Bounds(study)
    low, high = bounds.period_s(-1.0, -1.0), bounds.period_s(1.0, 1.0)
    speedups = (
        ranks * job.batch / bounds.period_s(-1.0, 1.0) / alone.fast,
        rate / alone.rate,
        ranks * job.batch / bounds.period_s(1.0, -1.0) / alone.slow,
    )
    spread = _spread(machine, study, seed)
    compute = bounds.compute_s() if ranks > 1 else period
    memory = peak_memory_bytes(study.schedule, job, machine.profile)
    return Prediction(
        workload=job.workload.name,
        cluster=machine.cluster.name,
        profile=machine.profile.name,
        ranks=ranks,
        schedule=study.schedule.name,
        batch_per_rank=job.batch,
        iteration_s=period,
        # Noisy intervals can miss the period without noise: one of many ranks is always slow, one draw may be fast.
        iteration_low_s=min(low * spread.low, period),
        iteration_high_s=max(high * spread.high, period),
        median_s=period * spread.middle,
        median_low_s=min(low * spread.median_low, period),
        median_high_s=max(high * spread.median_high, period),
        samples_per_s=rate,
        speedup_over_sync=sync.period_s / period,
        speedup_over_baseline=base.period_s / period,
        speedup_over_one=rate / alone.rate,
        speedup_over_one_low=min(speedups),
        speedup_over_one_high=max(speedups),
        efficiency=rate / alone.rate / ranks,
        compute_s=compute,
        communication_s=study.priced.collective_s,
        exposed_communication_s=period - compute,
        host_stall_s=float(study.steady.host_stall_ps) / units.PS_PER_S,
        staleness=max(study.derived.staleness.values(), default=0),
        peak_memory_bytes=memory,
        memory_fits=memory <= machine.cluster.device.memory,
        memory_is_least=not job.workload.counted(),
        bound_by=bound_by(study, bounds.cycle),
        origin=study.priced.origin,
        extrapolated=study.priced.extrapolated,
        origins=dict(study.priced.origins),  # type: ignore[arg-type]
        baseline=base.schedule.name,
        algorithms=study.priced.algorithms,
        repeats=study.steady.repeats,
        steady_iterations=study.steady.iterations,
        warm_up_iterations=study.steady.warm_up,
    )


def _spread(machine: Machine, study: Studied, seed: int | None) -> noise.Spread:
    jitter, ranks = machine.profile.jitter, study.prices.ranks
    if seed is None:
        return noise.closed_form(jitter, ranks)
    return noise.simulated(
        study.schedule,
        study.derived,
        study.priced.timing,
        jitter,
        ranks=ranks,
        period_ps=float(study.steady.period_ps),
        seed=seed,
    )


def shares(study: Studied, cycle: Cycle) -> dict[Part, float]:
    """Return the seconds of each part on the critical cycle."""
    parts = {op.name: _part(op.work) for op in study.schedule.ops}
    found: dict[Part, float] = {}
    lags = sum(step.lag for step in cycle.steps)
    for step in cycle.steps:
        part = "host" if step.issue else parts[step.op]
        found[part] = found.get(part, 0.0) + step.cost_ps / units.PS_PER_S / lags
    return found


def _part(work: Work) -> Part:
    match work:
        case Forward():
            return "forward"
        case Backward():
            return "backward"
        case Communicate():
            return "communication"
        case Update() | Map():
            return "update"
        case Wait():
            return "host"
        case _ as never:
            assert_never(never)


def bound_by(study: Studied, cycle: Cycle) -> str:
    """Return what most of the critical cycle is: compute, communication, update or host."""
    found = shares(study, cycle)
    compute = found.pop("forward", 0.0) + found.pop("backward", 0.0)
    ordered = [("compute", compute), *((str(part), seconds) for part, seconds in found.items())]
    return max(ordered, key=lambda item: item[1])[0]
