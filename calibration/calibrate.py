"""Measures this machine and makes a profile of it: local work, messages alone, and both beside each other.

Model
    All ranks run this together; rank 0 returns the profile. Steps: local work of each workload (`local`), what an
    idle link saves up, operations by size (`messages`) and their fits (`fits`), both beside each other (`beside`).

What it leaves out
    Several collectives in flight; numbers of ranks other than the ones that run: a profile of each may be given to a
    prediction, later ones adding to the earlier.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, get_args

import numpy as np
from msgspec.structs import replace

from calibration import beside, fits, local, machine, messages
from calibration.messages import Key, Messages
from executor import comm, environment, processes
from executor.assembling import About
from executor.backends.protocol import Backend
from executor.job import Task
from executor.lanes import Note
from executor.measuring import agree
from executor.plan import Plan, execution_of
from simgd.errors import BackendError
from simgd.profile import (
    CollectiveKind,
    CommunicationWork,
    Fit,
    Jitter,
    Library,
    PointToPoint,
    Profile,
    Progress,
    Sharing,
)
from simgd.provenance import Environment
from simgd.run import BackendName
from simgd.schedule import Communicate
from simgd.schedules import build, parse
from simgd.topology import Cluster
from simgd.units import MIB, Bytes
from simgd.workload import Workload

#: Schedules whose local work is measured: updates and copies of all sizes are among them.
SCHEDULES = ("sync", "layerwise", "bucketed:256KiB", "async:1:256KiB")

#: Seconds that are granted to the local work of one workload, and to messages by size.
LOCAL_S, MESSAGES_S = 40.0, 60.0

#: Spreads of collectives count from this size on: smaller ones scatter by more of their time, which no step feels.
SPREAD_BYTES = 2**16

#: Kinds besides all-reduce are timed at every so many-th power of two.
OTHERS_EVERY = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to calibrate; the same on every rank. `cluster` None makes one of what is measured."""

    name: str
    backend: BackendName
    workloads: Sequence[tuple[Workload, int, int]]
    optimizer: str
    asleep: bool
    progress: comm.Progress
    cluster: Cluster | None
    largest_bytes: int
    seed: int

    def plans(self, workload: Workload, batch: int, tokens: int) -> list[Plan]:
        """Return what is run of one workload, with communication left out."""
        schedules = [build(parse(name), workload) for name in SCHEDULES]
        return [
            Plan(
                schedule=schedule,
                workload=workload,
                steps=local.STEPS,
                batch=batch,
                tokens=tokens,
                seed=self.seed,
                optimizer=self.optimizer,
                compute="emulated" if self.asleep else "real",
                execution=execution_of(self.backend, None),
                progress=comm.Progress(),
                trace_steps=0,
                op_seconds={op.name: local.SLEPT_S for op in schedule.ops if not isinstance(op.work, Communicate)},
            )
            for schedule in schedules
        ]

    def agreed(self) -> dict[str, object]:
        """Return what all ranks must have been started with."""
        return {
            "backend": self.backend,
            "workloads": [(workload.name, batch, tokens) for workload, batch, tokens in self.workloads],
            "optimizer": self.optimizer,
            "asleep": self.asleep,
            "progress": str(self.progress),
            "largest message": self.largest_bytes,
        }


def task(wanted: Wanted) -> Task:
    """Return what all ranks do."""
    return Task(
        measure=lambda backend, part, finished, about: run(wanted, backend, part, finished, about),
        kind=Profile,
        ops=[],
        names={"calibration": wanted.name},
        threads=wanted.progress.thread,
        torch=bool(wanted.workloads) and not wanted.asleep,
    )


def steps(wanted: Wanted) -> int:
    """Return how many measurements there are, if each size is settled after two rounds."""
    locally = len(wanted.workloads) * len(SCHEDULES) * local.TURNS
    together = len(beside.SIZES) * beside.REPEATS + (
        len(beside.COUNTED) * beside.COUNTS if wanted.progress.every else 0
    )
    return locally + 2 * len(keys(wanted, 2)) + together


def keys(wanted: Wanted, ranks: int) -> list[Key]:
    """Return every operation and size: powers of two, and of all-reduces the sizes that the workloads send."""
    every = list(messages.sizes(4 * ranks, wanted.largest_bytes))
    own = {
        4 * bucket.elements
        for each in wanted.workloads
        for plan in wanted.plans(*each)
        for bucket in plan.schedule.buckets
    }
    own = {nbytes for nbytes in own if every[0] <= nbytes <= wanted.largest_bytes}
    found = [Key("all_reduce", nbytes) for nbytes in sorted({*every, *own})]
    for kind in get_args(CollectiveKind):
        if kind != "all_reduce":
            found += [Key(kind, nbytes) for nbytes in every[::OTHERS_EVERY]]
    return found + [Key("point_to_point", nbytes) for nbytes in every]


def run(
    wanted: Wanted, backend: Backend, note: Note, finished: Callable[[int, float], None], about: About
) -> Profile | None:
    """Measure on this rank; return the profile on rank 0, None on the others. Raises a SimgdError in one line."""
    if backend.ranks < 2 or backend.device != "cpu":
        found = f"{backend.ranks} rank" if backend.ranks < 2 else f"buffers on {backend.device}"
        raise BackendError(f"calibrate: {found}; it measures two ranks or more with buffers on the host")
    agree(wanted.agreed(), backend)
    made = _Making(wanted, backend, note, finished, about)
    return made.profile()


class _Making:
    """One calibration on one rank."""

    def __init__(
        self, wanted: Wanted, backend: Backend, note: Note, finished: Callable[[int, float], None], about: About
    ) -> None:
        self.wanted = wanted
        self.backend = backend
        self.note = note
        self.about = about
        self._finished = finished
        self._steps = 0
        self.messages = Messages(backend, note, divides=not wanted.asleep)

    def tick(self, step: str, seconds: float) -> None:
        """Count a step."""
        self._finished(self._steps, seconds)
        self._steps += 1

    def profile(self) -> Profile | None:
        """Measure everything."""
        wanted, backend = self.wanted, self.backend
        found = [self._local(*each) for each in wanted.workloads]
        burst_s = self.messages.burst_s()
        rate = self._rate()
        empty = round(2 * burst_s * rate)
        times = self.messages.measure(
            keys(wanted, backend.ranks), empty=empty, granted_s=MESSAGES_S, seed=wanted.seed, tick=self.tick
        )
        alone = {
            nbytes: median(self.messages.slowest(self.messages.visit(Key("all_reduce", nbytes), 3, empty)))
            for nbytes in beside.SIZES
        }
        neighbours = beside.Neighbours(backend, self.note, self.messages, wanted.progress, asleep=wanted.asleep)
        together = neighbours.measure(alone, empty, self.tick)
        if wanted.asleep:
            call_s, s_per_byte = self.messages.rested()
            together = together._replace(call_s=call_s, s_per_byte=s_per_byte)
        largest = beside.SIZES[-1]
        hidden = {mode: neighbours.hidden(mode, largest, alone[largest], empty) for mode in self._modes()}
        ranks = backend.exchange((processes.boot(), environment.host()))
        if backend.rank:
            return None
        where = environment.described(
            ranks,
            library=backend.library,
            launcher=self.about.launcher,
            command=self.about.command,
        )
        cluster = self._cluster(times, len(where.hosts), burst_s)
        profile = self._put_together(cluster, where, found, times, together)
        about: dict[str, Any] = {"origin": "measured", "source": profile.description}
        return replace(
            profile,
            progress=tuple(
                Progress(**about, mode=mode, nbytes=largest, hidden=share) for mode, share in hidden.items()
            ),
            sharing=tuple(
                Sharing(**about, workload=workload.name, ranks=backend.ranks, factor=each.sharing)
                for (workload, _, _), each in zip(wanted.workloads, found, strict=True)
                if not wanted.asleep
            ),
        )

    def _modes(self) -> tuple[beside.Mode, ...]:
        """Return the ways of progress that the library allows here."""
        own_thread = self.wanted.backend != "mpi"
        return ("none", "poll", "thread") if own_thread or self.wanted.progress.thread else ("none", "poll")

    # --- steps -------------------------------------------------------------------------------------------------

    def _local(self, workload: Workload, batch: int, tokens: int) -> local.Local:
        source = f"{workload.name} of {batch} a rank on {self.backend.ranks} ranks at once, without communication"
        plans = self.wanted.plans(workload, batch, tokens)
        return local.measure(plans, self.backend, self.note, granted_s=LOCAL_S, source=source, tick=self.tick)

    def _rate(self) -> float:
        """Return the bytes a second of large all-reduces, as their size over their time."""
        key = Key("all_reduce", MIB)
        return MIB / median(self.messages.slowest(self.messages.visit(key, 3, 0)))

    # --- the profile -------------------------------------------------------------------------------------------

    def _cluster(self, times: dict[Key, list[float]], hosts: int, burst_s: float) -> Cluster:
        cluster = self.wanted.cluster
        if cluster is None:
            points = sorted((key.nbytes, median(s)) for key, s in times.items() if key.kind == "point_to_point")
            (small, first), (large, last) = points[0], points[-1]
            cluster = machine.cluster(
                self.wanted.name,
                machine.cpu(environment.host()),
                bytes_per_s=(large - small) / (last - first),
                latency_s=first / 2,
                kind="ethernet" if hosts > 1 else "memory",
            )
        joint = cluster.interconnect
        if joint is not None:
            burst = Bytes(round(burst_s * float(joint.bandwidth)))
            cluster = replace(cluster, interconnect=replace(joint, burst=burst))
        return cluster

    def _put_together(
        self,
        cluster: Cluster,
        where: Environment,
        found: Sequence[local.Local],
        times: dict[Key, list[float]],
        together: beside.Beside,
    ) -> Profile:
        wanted, ranks = self.wanted, self.backend.ranks
        progress = str(wanted.progress) if wanted.backend == "mpi" else "the library's own thread"
        computing = "asleep" if wanted.asleep else "computing"
        source = f"all-reduces beside ranks that are {computing}, progress: {progress}"
        about: dict[str, Any] = {"origin": "measured", "source": source}
        execution = execution_of(wanted.backend, None)
        execution = replace(
            execution,
            **about,
            looks=together.looks,
            look_s=together.look_s,
            progress=max(together.share, 0.01),
        )
        factors = [factor for each in found for factor in each.factors]
        spread = messages.spread(times, SPREAD_BYTES)
        jitter = Jitter(
            origin="measured",
            source=f"{len(factors)} iterations without communication, {len(spread)} messages",
            iteration=_quantiles(factors),
            communication=_quantiles(spread),
        )
        update = local.update_time([row for each in found for row in each.updates], wanted.optimizer, ranks)
        largest = max(found, key=lambda each: each.host.iteration, default=None)
        work = CommunicationWork(
            **about, call_s=together.call_s, s_per_byte=together.s_per_byte, shares_core=not wanted.asleep
        )
        return Profile(
            name=wanted.name,
            cluster=cluster,
            description=f"{cluster.device.name}, {ranks} ranks, {wanted.backend}",
            backend=wanted.backend,
            environment=where,
            layers=tuple(entry for each in found for entry in each.layers),
            updates=(update,) if update is not None else (),
            memory=local.memory_rate([row for each in found for row in each.copies], ranks),
            host=replace(largest.host, collective=together.post_s, cold=together.cold_s)
            if largest is not None
            else None,
            fits=self._fits(cluster, times),
            point_to_point=self._points(times),
            library=Library(origin="assumed", source="the executor's backend", name="mpi"),
            communication_work=work,
            execution=execution,
            jitter=jitter,
        )

    def _fits(self, cluster: Cluster, times: dict[Key, list[float]]) -> tuple[Fit, ...]:
        ranks = self.backend.ranks
        joint = cluster.interconnect
        by_kind: dict[str, list[Key]] = {}
        for key in sorted(times):
            if key.kind != "point_to_point":
                by_kind.setdefault(key.kind, []).append(key)
        return tuple(
            fits.fit(
                keys[0].kind,
                [fits.sample(key.nbytes, times[key]) for key in keys],
                ranks=ranks,
                nodes=ranks,
                link_bytes_per_s=float(joint.bandwidth) if joint is not None else 0.0,
                source=f"{self.wanted.backend}, back to back on {ranks} ranks",
            )
            for keys in by_kind.values()
        )

    def _points(self, times: dict[Key, list[float]]) -> PointToPoint:
        points = sorted((float(key.nbytes), median(s)) for key, s in times.items() if key.kind == "point_to_point")
        return PointToPoint(origin="measured", source="half of there and back, ranks 0 and 1", points=tuple(points))


def _quantiles(factors: Sequence[float]) -> tuple[float, ...]:
    """Return the quantiles at 0, 0.5 .. 100 %, to five digits: fine enough that one outlier is no tail of 5 %."""
    if not factors:
        return ()
    return tuple(float(f"{each:.5g}") for each in np.quantile(factors, np.linspace(0, 1, 201)))
