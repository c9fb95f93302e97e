"""What local work costs on a device: passes, updates, copies, host time; never communication.

Model
    A layer's pass takes ``max(flops / peak, matrix_bytes / bandwidth) + (bytes - matrix_bytes) / bandwidth`` (its
    roofline: operations run one after the other) divided by an efficiency. From strong to weak:

    1. the layer's own measured time at this batch (at another batch it is scaled by the roofline, and marked);
    2. a measured or published time of the whole iteration, shared out over the layers by their rooflines, so that
       the efficiency is the one of this very workload;
    3. the efficiency of the published workload of this device that is nearest in arithmetic intensity;
    4. the efficiency that the profile states; 5. `FALLBACK_EFFICIENCY`, marked as assumed.

    An update or a copy moves its bytes at the profile's memory rate. Host time is launches times the cost of one.

Known not to hold
    Efficiency is one number for a workload: a single layer may be far from it. Everything derived from a roofline is
    "modelled" and carries at least +-25 %.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from simgd import catalogue
from simgd.errors import ProfileError, SimgdError
from simgd.job import ACTIVATION_BYTES, OPTIMIZERS, Job
from simgd.profile import Host, Interference, LayerTimes, Origin, Profile, StepTime, weakest
from simgd.schedule import Communicate, Map, Schedule
from simgd.topology import Device
from simgd.workload import Layer, Work, Workload

Direction = Literal["forward", "backward"]

#: What limits local work: matrix arithmetic or moving bytes.
Bound = Literal["matrix", "memory"]

#: The least half-width of the 90 % interval of anything that rests on a roofline.
MODEL_UNCERTAINTY = 0.25

#: Share of the roofline that training reaches where neither the device nor its class tells: the published P100 and
#: V100 steps of the shipped profiles reach 0.35-0.75 of theirs.
FALLBACK_EFFICIENCY = 0.5

#: Share of a data sheet's memory bandwidth that updates and copies reach where none was measured: 4.3 of 4.8 TB/s on
#: one H200 (a large copy).
COPY_EFFICIENCY = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Seconds, with what they rest on: the weakest origin, the widest uncertainty, and whether a measurement was
    stretched beyond its range."""

    seconds: float
    origin: Origin
    uncertainty: float = 0.0
    extrapolated: bool = False

    def times(self, factor: float) -> "Estimate":
        """Return *factor* times as many seconds that rest on the same."""
        return Estimate(
            seconds=self.seconds * factor,
            origin=self.origin,
            uncertainty=self.uncertainty,
            extrapolated=self.extrapolated,
        )


def roofline_s(work: Work, job: Job, device: Device) -> float:
    """Return the least time of *work* on *device*.

    Raises ProfileError if the device has no such precision.
    """
    matrix, other = _roofline(work, job, device)
    return matrix + other


def memory_bound(work: Work, job: Job, device: Device) -> bool:
    """Say whether most of *work*'s roofline is moving bytes."""
    flops_s = work.flops.at(job.batch, job.tokens) / _peak(job, device)
    return flops_s < 0.5 * roofline_s(work, job, device)


def _peak(job: Job, device: Device) -> float:
    peak = {"fp32": device.fp32, "tf32": device.tf32, "bf16": device.bf16}[job.dtype]
    if peak is None:
        raise ProfileError(f"device {device.name!r}: has no {job.dtype} arithmetic; take --dtype fp32")
    return float(peak)


def _roofline(work: Work, job: Job, device: Device) -> tuple[float, float]:
    scale = ACTIVATION_BYTES[job.dtype] / 4 / device.memory_rate
    moved = work.bytes.at(job.batch, job.tokens) * scale
    matrix = work.matrix_bytes.at(job.batch, job.tokens) * scale
    flops_s = work.flops.at(job.batch, job.tokens) / _peak(job, device)
    return max(flops_s, matrix), max(0.0, moved - matrix)


def _passes(job: Job, device: Device, layer: Layer) -> tuple[float, float]:
    if layer.forward is None or layer.backward is None:
        raise ProfileError(
            f"workload {job.workload.name!r}: layer {layer.name!r} has no counted work; give a --profile that holds "
            "its measured times (a forward pass may also follow from backward times and a split)"
        )
    return roofline_s(layer.forward, job, device), roofline_s(layer.backward, job, device)


def step_roofline_s(job: Job, device: Device) -> float:
    """Return the least time of one forward and backward pass."""
    return sum(sum(_passes(job, device, layer)) for layer in job.workload.layers)


def intensity(job: Job) -> float:
    """Return the FLOPs of one iteration for each byte that it moves."""
    works = [work for layer in job.workload.layers for work in (layer.forward, layer.backward) if work is not None]
    flops = sum(work.flops.at(job.batch, job.tokens) for work in works)
    moved = sum(work.bytes.at(job.batch, job.tokens) for work in works)
    return flops / moved if moved else 0.0


def update_s(elements: int, tensors: int, job: Job, profile: Profile) -> Estimate:
    """Return the device time of the optimizer's step on *elements* parameters of so many *tensors*.

    Where nobody measured it, it moves its bytes at the memory rate.
    """
    entry = next((entry for entry in profile.updates if entry.optimizer == job.optimizer), None)
    if entry is not None:
        return Estimate(seconds=entry.seconds(elements, tensors), origin=entry.origin, uncertainty=entry.uncertainty)
    return _moved(elements * OPTIMIZERS[job.optimizer][0], profile)


def copy_s(elements: int, profile: Profile) -> Estimate:
    """Return the device time of copying *elements* gradients, of 4 bytes."""
    return _moved(elements * 8, profile)


def cast_s(elements: int, profile: Profile) -> Estimate:
    """Return the device time of casting *elements* gradients from 32 to 16 bits or back."""
    return _moved(elements * 6, profile)


def _moved(nbytes: float, profile: Profile) -> Estimate:
    entry = profile.memory
    if entry is None:
        rate = COPY_EFFICIENCY * profile.cluster.device.memory_rate
        return Estimate(seconds=nbytes / rate, origin="assumed", uncertainty=MODEL_UNCERTAINTY)
    return Estimate(
        seconds=entry.kernel + nbytes / entry.bytes_per_s, origin=entry.origin, uncertainty=entry.uncertainty
    )


_NO_HOST = Host(
    origin="assumed",
    source="no host costs in the profile: taken as none",
    forward_kernel=0.0,
    backward_kernel=0.0,
    collective=0.0,
    update=0.0,
    copy=0.0,
    wait=0.0,
    iteration=0.0,
)


def host(profile: Profile) -> Host:
    """Return the profile's host costs; where it has none they are taken as 0, marked assumed."""
    return profile.host or _NO_HOST


class LayerCosts:
    """The device time of every layer's passes, for one job on one machine."""

    def __init__(self, job: Job, profile: Profile) -> None:
        self.job = job
        self.profile = profile
        self.device = profile.cluster.device
        #: What an iteration takes besides layers, updates and copies, as measured.
        self.rest_s = 0.0
        self._scale: Callable[[Direction], Estimate] | None = None
        self._table: dict[tuple[str, Direction], Estimate] = {}
        self._bound: dict[tuple[str, Direction], Bound] = {}
        self._issue: dict[tuple[str, Direction], float] = {}
        self._beside: dict[tuple[str, Direction], float] = {}
        for direction in ("forward", "backward"):
            self._fill(direction)

    def of(self, layer: str, direction: Direction) -> Estimate:
        """Return the time of one pass of one layer."""
        return self._table[layer, direction]

    def bound(self, layer: Layer, direction: Direction) -> Bound:
        """Return what limits a pass of *layer*; where nobody counted its work it is taken to be arithmetic."""
        return self._bound.get((layer.name, direction), "matrix")

    def issue_s(self, layer: str, direction: Direction) -> float | None:
        """Return the host time of issuing one pass of one layer; None where nobody measured it."""
        return self._issue.get((layer, direction))

    def slowed(self, layer: str, direction: Direction) -> float | None:
        """Return how many times as long one pass of one layer takes beside a collective; None: nobody measured it."""
        return self._beside.get((layer, direction))

    def _fill(self, direction: Direction) -> None:
        measured = self._measured(direction)
        for layer in self.job.workload.layers:
            self.job.workload.check_amounts(layer, self.job.batch, self.job.tokens)
            found = measured(layer)
            work = layer.forward if direction == "forward" else layer.backward
            if found is None:
                assert work is not None or not self.job.workload.counted()
                _passes(self.job, self.device, layer)
                assert work is not None
                found = self._share(direction).times(roofline_s(work, self.job, self.device))
            if work is not None and memory_bound(work, self.job, self.device):
                self._bound[layer.name, direction] = "memory"
            self._table[layer.name, direction] = found

    # --- 1. measured layers ------------------------------------------------------------------------------------

    def _measured(self, direction: Direction) -> Callable[[Layer], Estimate | None]:
        entry = self._entry(direction)
        if entry is None:
            return lambda layer: None
        if direction == "forward":
            self.rest_s = entry.rest_s
        if entry.direction == direction:
            self._issue |= {(name, direction): seconds for name, seconds in entry.issue.items()}
            self._beside |= {(name, direction): factor for name, factor in entry.beside.items()}
        ratio = 1.0
        if entry.direction != direction:
            split = self.profile.split
            assert split is not None
            ratio = 1 / split.backward_plus_update if direction == "forward" else split.backward_plus_update
            weak, doubt = weakest(entry.origin, split.origin), split.uncertainty
        else:
            weak, doubt = entry.origin, 0.0
        stretched = entry.batch not in (0, self.job.batch) or entry.tokens not in (0, self.job.tokens)

        def found(layer: Layer) -> Estimate | None:
            seconds = entry.seconds.get(layer.name)
            if seconds is None:
                return None
            scale = ratio * (self._stretch(layer, direction, entry) if stretched else 1.0)
            origin = weakest(weak, "modelled") if stretched else weak
            uncertainty = max(entry.uncertainty, doubt, MODEL_UNCERTAINTY if stretched else 0.0)
            return Estimate(seconds=seconds * scale, origin=origin, uncertainty=uncertainty, extrapolated=stretched)

        return found

    def _entry(self, direction: Direction) -> LayerTimes | None:
        """Return the measured times of this direction, else of the other one if a split is known."""
        job = self.job
        mine = [
            entry for entry in self.profile.layers if entry.workload == job.workload.name and entry.dtype == job.dtype
        ]
        for wanted in (direction, "backward" if direction == "forward" else "forward"):
            of_direction = [entry for entry in mine if entry.direction == wanted]
            if wanted != direction and (self.profile.split is None or job.workload.counted()):
                return None
            if of_direction:
                return min(of_direction, key=lambda entry: _far(entry.batch or job.batch, job.batch))
        return None

    def _stretch(self, layer: Layer, direction: Direction, entry: LayerTimes) -> float:
        """Return how much longer the pass is at this batch and length than where it was measured, by the roofline."""
        work = layer.forward if direction == "forward" else layer.backward
        if work is None:
            return self.job.batch / (entry.batch or self.job.batch)
        there = msgspec.structs.replace(
            self.job, batch=entry.batch or self.job.batch, tokens=entry.tokens or self.job.tokens
        )
        before = roofline_s(work, there, self.device)
        return roofline_s(work, self.job, self.device) / before if before else 1.0

    # --- 2. to 5. a share of the roofline ----------------------------------------------------------------------

    def _share(self, direction: Direction) -> Estimate:
        """Return the seconds of one second of roofline."""
        if self._scale is None:
            self._scale = self._find_scale()
        return self._scale(direction)

    def _find_scale(self) -> Callable[[Direction], Estimate]:
        job, profile = self.job, self.profile
        own = [step for step in profile.steps if step.workload == job.workload.name]
        if own:
            return self._between(own)
        # By the usual batch, so that the choice, and with it the efficiency, does not change with the batch.
        usual = job.workload.batch, job.workload.tokens
        wanted = intensity(msgspec.structs.replace(job, batch=usual[0], tokens=usual[1]))
        others: list[tuple[float, StepTime, Job]] = []
        for step in profile.steps:
            if step.workload not in catalogue.names("workload"):
                continue
            there = self._job_of(step, catalogue.workload(step.workload))
            near = _far(intensity(there), wanted) if intensity(there) and wanted else math.inf
            others.append((near, step, there))
        if others:
            _, step, there = min(others, key=lambda other: (other[1].dtype != job.dtype, other[0]))
            return self._from_step(step, there, own=False)
        entry = profile.efficiency
        if entry is None:
            weak = Estimate(seconds=1 / FALLBACK_EFFICIENCY, origin="assumed", uncertainty=2 * MODEL_UNCERTAINTY)
        else:
            weak = Estimate(
                seconds=1 / entry.value,
                origin=weakest(entry.origin, "modelled"),
                uncertainty=max(entry.uncertainty, MODEL_UNCERTAINTY),
            )
        return lambda direction: weak

    def _between(self, own: Sequence[StepTime]) -> Callable[[Direction], Estimate]:
        """Return the scale between the steps of this workload with the next smaller and the next larger batch, linear
        in log batch; that of the nearest one beyond them."""
        job = self.job
        best = min((step.dtype != job.dtype, abs((step.tokens or job.tokens) - job.tokens)) for step in own)
        alike = sorted(
            (s for s in own if (s.dtype != job.dtype, abs((s.tokens or job.tokens) - job.tokens)) == best),
            key=lambda step: step.batch,
        )
        smaller = [step for step in alike if step.batch <= job.batch]
        larger = [step for step in alike if step.batch >= job.batch]
        low, high = (smaller or larger)[-1 if smaller else 0], (larger or smaller)[0 if larger else -1]
        first = self._from_step(low, self._job_of(low, job.workload), own=True)
        if low.batch == high.batch:
            return first
        second = self._from_step(high, self._job_of(high, job.workload), own=True)
        share = math.log(job.batch / low.batch) / math.log(high.batch / low.batch)

        def scale(direction: Direction) -> Estimate:
            a, b = first(direction), second(direction)
            return Estimate(
                seconds=a.seconds + share * (b.seconds - a.seconds),
                origin=weakest(a.origin, b.origin),
                uncertainty=max(a.uncertainty, b.uncertainty),
            )

        return scale

    def _job_of(self, step: StepTime, workload: Workload) -> Job:
        """Return the job whose time *step* is; those who publish such times train with SGD."""
        try:
            there = Job(
                workload=workload,
                batch=step.batch,
                tokens=step.tokens or workload.tokens,
                dtype=step.dtype,
                optimizer="sgd",
            )
            _peak(there, self.device)
        except SimgdError as error:
            where = f"profile {self.profile.name!r}: step of {step.workload!r} at batch {step.batch}, {step.dtype}"
            raise ProfileError(f"{where}: {error}") from None
        return there

    def _from_step(self, step: StepTime, there: Job, *, own: bool) -> Callable[[Direction], Estimate]:
        """Return the scale at which *there*'s passes and update take the time of *step*."""
        rooflines = [_passes(there, self.device, layer) for layer in there.workload.layers]
        forward, backward = sum(pair[0] for pair in rooflines), sum(pair[1] for pair in rooflines)
        tensors = sum(len(layer.tensors) for layer in there.workload.layers)
        update = update_s(there.workload.parameters, tensors, there, self.profile).seconds
        passes = max(step.seconds - update, 0.1 * step.seconds)
        split = self.profile.split
        if split is not None:
            forward_s = step.seconds / (1 + split.backward_plus_update)
        else:
            forward_s = passes * forward / ((forward + backward) or 1.0)
        exact = own and (step.batch, step.dtype) == (self.job.batch, self.job.dtype) and there.tokens == self.job.tokens
        origin = step.origin if exact else weakest(step.origin, "modelled")
        uncertainty = max(step.uncertainty, 0.0 if exact else MODEL_UNCERTAINTY)
        # A direction without any work takes no time at any scale.
        scales = {"forward": forward_s / (forward or 1.0), "backward": max(passes - forward_s, 0.0) / (backward or 1.0)}
        return lambda direction: Estimate(
            seconds=scales[direction], origin=origin, uncertainty=uncertainty, extrapolated=own and not exact
        )


def _far(a: float, b: float) -> float:
    return abs(math.log(a / b))


def interference_entry(profile: Profile, compute: Bound, path: str, workload: str) -> Interference | None:
    """Return the entry for such compute of *workload* beside communication over *path*; else that for any workload."""
    found = [entry for entry in profile.interference if (entry.compute, entry.path) == (compute, path)]
    own = [entry for entry in found if entry.workload == workload]
    return next(iter([*own, *(entry for entry in found if not entry.workload)]), None)


def peak_memory_bytes(schedule: Schedule, job: Job, profile: Profile) -> float:
    """Return the most bytes of device memory that one rank holds: weights, gradient copies as the schedule keeps
    them, optimizer state, activations, and what the software takes for itself."""
    workload = job.workload
    state = OPTIMIZERS[job.optimizer][1]
    sent = {op.work.bucket for op in schedule.ops if isinstance(op.work, Communicate)}
    fresh = {op.work.bucket for op in schedule.ops if isinstance(op.work, Map)}
    gradients = 4 * sum(bucket.elements * bucket.copies for bucket in schedule.buckets if bucket.name in sent)
    gradients += 4 * max((bucket.elements for bucket in schedule.buckets if bucket.name in fresh), default=0)
    wire = 2 * workload.parameters if job.wire == "bf16" else 0
    kept = sum(layer.kept.at(job.batch, job.tokens) for layer in workload.layers) * ACTIVATION_BYTES[job.dtype] / 4
    overhead = profile.memory_overhead.nbytes if profile.memory_overhead is not None else 0.0
    return (4 + state) * workload.parameters + gradients + wire + kept + overhead
