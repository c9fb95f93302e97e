"""Puts a price on every op of a schedule: the one place where workload, machine and schedule meet.

`Prices` holds what does not depend on the schedule; `price` turns a schedule into a `Timing`, for the simulator and
the cycle ratio, and says what each part of it rests on. A `WhatIf` makes links, the device or the host faster.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal, assert_never

import msgspec

from simgd import costs, fabrics, units
from simgd.costs import Bound, Estimate, LayerCosts
from simgd.errors import ProfileError
from simgd.job import Job
from simgd.network import Call, Demand, Network
from simgd.profile import Execution, Host, Origin, Profile, weakest
from simgd.schedule import Backward, Communicate, Forward, Map, Op, Schedule, Update, Wait
from simgd.timing import ONE, OpTime, Timing
from simgd.topology import Cluster

#: What a cost is a cost of; "update" counts copies too.
Part = Literal["forward", "backward", "update", "communication", "host", "interference"]

WIRE_BYTES = {"float32": 4, "bfloat16": 2}

#: Of a core, communication takes no more than this while the rank computes: the scheduler shares fairly.
MOST_STOLEN = 0.5

_DEFAULT_EXECUTION = Execution(
    origin="assumed", source="no entry in the profile: streams of one GPU, waits on the device", update_on_compute=True
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """Another machine: kinds of links, the device and kinds of host work (the fields of `simgd.profile.Host`) so many
    times as fast."""

    links: Mapping[str, float] = field(default_factory=dict)
    device: float = 1.0
    host: Mapping[str, float] = field(default_factory=dict)


AS_IT_IS = WhatIf()


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """A schedule's costs; `origins` says what each part rests on, `collective_s` sums its collectives, each alone;
    `uncertainty` is the relative half-width of the 90 % interval of each op's host time and of its run."""

    timing: Timing
    origins: Mapping[Part, Origin]
    extrapolated: bool
    collective_s: float
    algorithms: tuple[str, ...]
    path: str
    uncertainty: Mapping[str, tuple[float, float]]

    @property
    def origin(self) -> Origin:
        """The weakest origin of all that went in."""
        return weakest(*self.origins.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """How many times slower a local op is beside a collective, and the collective beside it; None rests on nothing."""

    slowed: Fraction = ONE
    slows: Fraction = ONE
    origin: Origin | None = None


_UNDISTURBED = Beside()


class Prices:
    """What ops cost for one job on *ranks* ranks of one machine; *devices* names the devices if not the first ones."""

    def __init__(
        self,
        job: Job,
        cluster: Cluster,
        profile: Profile,
        ranks: int,
        *,
        devices: tuple[int, ...] | None = None,
        layers: LayerCosts | None = None,
        network: Network | None = None,
    ) -> None:
        self.job = job
        self.cluster = cluster
        self.profile = profile
        self.ranks = ranks
        self.devices = devices
        self.layers = layers or LayerCosts(job, profile)
        self.network = network or Network(cluster, profile)
        fabrics.placement(cluster, ranks, devices)  # refuses ranks that the cluster has no place for
        self.execution = profile.execution or _DEFAULT_EXECUTION
        self.path = "" if ranks == 1 else self.demand(1).path
        self.layer = {layer.name: layer for layer in job.workload.layers}
        self._beside: dict[object, Beside] = {}

    def demand(self, nbytes: int, kind: str = "all_reduce", network: Network | None = None) -> Demand:
        """Return what one collective of *nbytes* asks of the network."""
        call = Call(kind, nbytes, self.ranks, self.devices)  # type: ignore[arg-type]
        return (network or self.network).demand(call)

    def beside(self, compute: Bound) -> "Beside":
        """Return what compute bound by *compute* does to collectives of this machine, and they to it."""
        found = self._beside.get(compute)
        if found is None:
            found = self._beside[compute] = self._find_beside(compute)
        return found

    def _find_beside(self, compute: Bound) -> "Beside":
        entry = costs.interference_entry(self.profile, compute, self.path, self.job.workload.name)
        progress = Fraction(self.execution.progress).limit_denominator(100)
        slowed = slows = ONE
        origins: list[Origin] = []
        if entry is not None:
            slowed = Fraction(entry.compute_factor).limit_denominator(100)
            slows = Fraction(entry.communication_factor).limit_denominator(100)
            origins.append(entry.origin)
        if progress != 1:
            slows /= progress
            origins.append(self.execution.origin)
        return Beside(slowed=slowed, slows=slows, origin=weakest(*origins) if origins else None)

    def _burst_ps(self, what_if: WhatIf) -> int:
        """Return the time at the rate of the interconnect of what an idle NIC saves up."""
        joint = self.cluster.interconnect
        if joint is None or self.ranks == 1:
            return 0
        rate = float(joint.bandwidth) * what_if.links.get(joint.kind, 1.0)
        return units.picoseconds(float(joint.burst) / rate)

    def price(self, schedule: Schedule, what_if: WhatIf = AS_IT_IS) -> Priced:
        """Return the costs of every op of *schedule*."""
        network = self.network.scaled(what_if.links)
        pricing = _Pricing(self, schedule, what_if, network)
        times = {op.name: pricing.op(op, first=place == 0) for place, op in enumerate(schedule.ops)}
        timing = Timing(
            ops=times,
            merged=self.execution.merged,
            update_on_compute=self.execution.update_on_compute,
            wait_blocks_host=self.execution.wait_blocks_host,
            in_flight=self.execution.in_flight,
            run_ahead=self.execution.run_ahead,
            burst_ps=self._burst_ps(what_if),
            cold_ps=0 if self.ranks == 1 else units.picoseconds(pricing.host.cold),
        )
        return Priced(
            timing=timing,
            origins=pricing.origins,
            extrapolated=pricing.extrapolated,
            collective_s=pricing.collective_s,
            algorithms=tuple(pricing.algorithms),
            path=self.path,
            uncertainty=pricing.uncertainty,
        )


def _faster(host: Host, factors: Mapping[str, float]) -> Host:
    changes = {kind: getattr(host, kind) / factor for kind, factor in factors.items()}
    return msgspec.structs.replace(host, **changes) if changes else host


class _Pricing:
    """One pass over the ops of a schedule, collecting what the costs rest on."""

    def __init__(self, prices: Prices, schedule: Schedule, what_if: WhatIf, network: Network) -> None:
        self.prices = prices
        self.what_if = what_if
        self.network = network
        self.buckets = {bucket.name: bucket for bucket in schedule.buckets}
        self.collectives = {op.name for op in schedule.ops if isinstance(op.work, Communicate)}
        self.host = _faster(costs.host(prices.profile), what_if.host)
        self.alone = prices.ranks == 1
        self.origins: dict[Part, Origin] = {}
        self.extrapolated = False
        self.collective_s = 0.0
        self.uncertainty: dict[str, tuple[float, float]] = {}
        self._widest = 0.0
        self.algorithms: dict[str, None] = {}
        self._stolen, self._delayed = self._shared(schedule)

    def op(self, op: Op, *, first: bool) -> OpTime:
        """Return the costs of one op, and note how uncertain they are."""
        self._widest = 0.0
        found = self._op(op, first=first)
        self.uncertainty[op.name] = (self.host.uncertainty, self._widest)
        return found

    def _op(self, op: Op, *, first: bool) -> OpTime:
        issue_s = self.host.op + (self.host.iteration + self.prices.layers.rest_s if first else 0.0)
        job, profile = self.prices.job, self.prices.profile
        if any(dep.op in self.collectives for dep in op.after) and not self.alone:
            issue_s += self.host.wait
        match op.work:
            case Forward(layers=layers):
                return self._pass(layers, "forward", issue_s)
            case Backward(layers=layers):
                return self._pass(layers, "backward", issue_s)
            case Communicate():
                return self._collective(op.work, issue_s)
            case Update(bucket=bucket, part=part):
                share = 1 if part == "all" else self.prices.ranks
                elements, tensors = -(-self.buckets[bucket].elements // share), len(self.buckets[bucket].slices)
                estimate = costs.update_s(elements, tensors, job, profile)
                return self._local(estimate, issue_s + self.host.update + tensors * self.host.update_tensor)
            case Map(bucket=bucket):
                copied = self.buckets[bucket]
                issue_s += self.host.copy + len(copied.slices) * self.host.copy_tensor
                return self._local(costs.copy_s(copied.elements, profile), issue_s)
            case Wait():
                return OpTime(issue_ps=self._host_ps(issue_s), run_ps=self._host_ps(self.host.wait))
            case _ as never:
                assert_never(never)

    def _pass(self, layers: tuple[str, ...], direction: Literal["forward", "backward"], issue_s: float) -> OpTime:
        run_ps, slowed, slows = 0, ONE, ONE
        kind = "forward_kernel" if direction == "forward" else "backward_kernel"
        kernel_s, faster = getattr(self.host, kind), self.what_if.host.get(kind, 1.0)
        for name in layers:
            layer = self.prices.layer[name]
            work = layer.forward if direction == "forward" else layer.backward
            measured_s = self.prices.layers.issue_s(name, direction)
            issue_s += (
                (work.kernels if work is not None else 1) * kernel_s if measured_s is None else measured_s / faster
            )
            run_ps += self._device_ps(self._noted(direction, self.prices.layers.of(name, direction)))
            beside = self._beside(
                self.prices.layers.bound(layer, direction), self.prices.layers.slowed(name, direction)
            )
            if beside is not _UNDISTURBED:
                slowed, slows = max(slowed, beside.slowed), max(slows, beside.slows)
        return OpTime(issue_ps=self._host_ps(issue_s), run_ps=run_ps, slowed=slowed, slows=slows)

    def _local(self, estimate: Estimate, issue_s: float) -> OpTime:
        run_ps = self._device_ps(self._noted("update", estimate))
        beside = self._beside("memory")
        return OpTime(issue_ps=self._host_ps(issue_s), run_ps=run_ps, slowed=beside.slowed, slows=beside.slows)

    def _beside(self, compute: Bound, slowed: float | None = None) -> Beside:
        """Return what compute bound by *compute* and collectives do to each other; *slowed*: as it was measured."""
        if self.alone:
            return _UNDISTURBED
        found = self.prices.beside(compute)
        if slowed is not None:
            found = replace(found, slowed=Fraction(slowed).limit_denominator(100), origin=found.origin or "measured")
        if found.origin is not None:
            self._note("interference", found.origin)
        if self._stolen == self._delayed == ONE:
            return found
        return replace(found, slowed=found.slowed * self._stolen, slows=found.slows * self._delayed)

    def _shared(self, schedule: Schedule) -> tuple[Fraction, Fraction]:
        """Return how much slower local work is beside collectives that need its core, and they beside it, as they wait
        for its looks: each on the average of the schedule."""
        work, execution = self.prices.profile.communication_work, self.prices.execution
        sizes = [
            self.buckets[op.work.bucket].elements * WIRE_BYTES[op.work.wire]
            for op in schedule.ops
            if isinstance(op.work, Communicate)
        ]
        alone_s = 0.0 if self.alone else sum(self.prices.demand(size, network=self.network).solo_s for size in sizes)
        if not alone_s:
            return ONE, ONE
        stolen = delayed = ONE
        if work is not None and work.shares_core:
            share = min(sum(map(self._work_s, sizes)) / alone_s, MOST_STOLEN)
            stolen = 1 / Fraction(1 - share).limit_denominator(100)
            self._note("interference", work.origin)
        if execution.look_s:
            late_s = execution.look_s * sum(map(execution.looks_at, sizes))
            delayed = Fraction(1 + late_s / alone_s).limit_denominator(100)
            self._note("interference", execution.origin)
        return stolen, delayed

    def _work_s(self, nbytes: int) -> float:
        """Return the processor time that a collective takes from the rank's core."""
        work = self.prices.profile.communication_work
        return work.call_s + nbytes * work.s_per_byte if work is not None else 0.0

    def _looks(self, nbytes: int) -> int:
        """Return how often a collective waits for the host to begin an op, and look."""
        execution = self.prices.execution
        return 0 if execution.look_s else execution.looks_at(nbytes)

    def _collective(self, work: Communicate, issue_s: float) -> OpTime:
        if self.alone:
            return OpTime(issue_ps=self._host_ps(issue_s))
        elements = self.buckets[work.bucket].elements
        nbytes = elements * WIRE_BYTES[work.wire]
        demand = self.prices.demand(nbytes, work.collective, self.network)
        cast_s, casts = self._cast_s(elements, work.wire)
        self._note("communication", demand.origin)
        self.extrapolated |= demand.extrapolated
        self.collective_s += demand.solo_s
        self.algorithms[demand.algorithm] = None
        self._widest = demand.uncertainty
        post_s, latency_s = 0.0, demand.latency_s
        if self.prices.execution.looks:
            # Without a thread that would do it, the host itself starts it, or whoever frees the lane; and no part of a
            # message waits for looks longer than the smallest one takes.
            post_s = self.host.collective
            latency_s = min(latency_s, self.prices.demand(1, work.collective, self.network).solo_s)
        return OpTime(
            issue_ps=self._host_ps(issue_s + self.host.collective - post_s + casts * self.host.copy),
            post_ps=self._host_ps(post_s),
            run_ps=units.picoseconds(demand.solo_s + cast_s),
            latency_ps=units.picoseconds(latency_s + cast_s),
            use=demand.use,
            looks=self._looks(nbytes),
            least_ps=units.picoseconds(self._work_s(nbytes)),
        )

    def _cast_s(self, elements: int, wire: str) -> tuple[float, int]:
        """Return the time and the number of casts of a message: to 16 bits before it and back after it, on its lane."""
        if wire == "float32":
            return 0.0, 0
        library = self.prices.profile.library
        if library is not None and library.name == "mpi":
            raise ProfileError(f"profile {self.prices.profile.name!r}: MPI has no bfloat16 to sum; take --wire fp32")
        estimate = costs.cast_s(elements, self.prices.profile)
        self._note("update", estimate.origin)
        return 2 * estimate.seconds / self.what_if.device, 2

    def _noted(self, part: Part, estimate: Estimate) -> Estimate:
        self._note(part, estimate.origin)
        self._widest = max(self._widest, estimate.uncertainty)
        self.extrapolated |= estimate.extrapolated
        return estimate

    def _note(self, part: Part, origin: Origin) -> None:
        if self.origins.get(part) != origin:
            self.origins[part] = weakest(self.origins.get(part, "measured"), origin)

    def _device_ps(self, estimate: Estimate) -> int:
        return units.picoseconds(estimate.seconds / self.what_if.device)

    def _host_ps(self, issue_s: float) -> int:
        self._note("host", self.host.origin)
        return units.picoseconds(issue_s)
