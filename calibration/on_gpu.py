"""Calibrates ranks that have a GPU each: device times from captured graphs, the host's from a loop that waits for none.

Model
    Steps: operations between the GPUs by size, captured (`captured`), and their fits (`fits`). Then of each workload:
    its local step, captured; the same beside all-reduces in the background; what the host takes to issue its ops, and
    collectives among them (`issuing`); and how single iterations scatter in eager execution.

    Every pass has its own factor of interference beside all-reduces of `BACKGROUND_BYTES`; all-reduces have one beside
    each workload. Ops besides passes take the factor of those bound by memory. What the loop around the ops takes is
    each workload's own as well; the host's costs hold what passes until a host that waits knows of an end.

What it leaves out
    Other numbers of ranks. GPUs of several hosts need a cluster that says how they are joined.
"""

import os
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from msgspec.structs import replace

from calibration import ahead, captured, fits, issuing, local, machine, messages
from calibration.captured import DeviceMessages
from calibration.local import ByWork
from calibration.messages import Tick
from calibration.wanted import Wanted
from executor import environment, processes
from executor.assembling import About
from executor.backends.protocol import Backend
from executor.lanes import WAITING, Note
from executor.plan import Plan, execution_of
from executor.rank import Rank
from simgd.costs import Bound, memory_bound
from simgd.errors import BackendError
from simgd.job import job
from simgd.pricing import Prices
from simgd.profile import Host, Interference, Jitter, LayerTimes, Library, Profile
from simgd.schedule import Backward, Communicate, Forward
from simgd.topology import Cluster
from simgd.units import MIB

#: Size of the all-reduces in the background.
BACKGROUND_BYTES = 25 * MIB

#: Iterations of a turn in eager execution, those before them that are left out, and turns.
STEPS, WARM_UP, TURNS = 8, 3, 4

#: Measurements of one workload, for the bar.
STEPS_EACH = 5

#: More than this eager execution does not take longer than a captured one, unless the host holds it up.
MOST_EAGER = 1.15

#: The place of the layer-wise schedule, which has the most collectives, among `wanted.ON_GPU`.
LAYERWISE = 1


class _Workload(NamedTuple):
    """What was found of one workload: entries of a profile, and rows that those of others join."""

    layers: tuple[LayerTimes, ...]
    device: ByWork
    issue: ByWork
    kernels: dict[str, float]
    interference: tuple[Interference, ...]
    collectives: int
    collectives_s: float
    op_s: float
    factors: list[float]


class OnGpu:
    """One calibration on one rank whose buffers lie on its GPU."""

    def __init__(self, wanted: Wanted, backend: Backend, note: Note, tick: Tick, about: About) -> None:
        self.wanted = wanted
        self.backend = backend
        self.note = note
        self.tick = tick
        self.about = about
        # Nothing can be captured on the default stream.
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._comm = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def profile(self) -> Profile | None:
        """Measure everything; return the profile on rank 0, None on the others."""
        with torch.cuda.stream(self._stream):
            return self._profile()

    def _profile(self) -> Profile | None:
        wanted, backend = self.wanted, self.backend
        ranks = backend.exchange((processes.boot(), environment.host()))
        hosts = len({boot for boot, _ in ranks})
        if wanted.cluster is None and hosts > 1:
            raise BackendError(f"calibrate: ranks on {hosts} hosts; say with --on CLUSTER how their GPUs are joined")
        library = DeviceMessages(backend, self.note, wanted.largest_bytes)
        with torch.cuda.stream(self._comm):
            times = messages.measure(library, wanted.keys(backend.ranks), empty=0, seed=wanted.seed, tick=self.tick)
        cluster = wanted.cluster or self._cluster(times)
        found = [self._workload(wanted.plans(*each), cluster, library) for each in wanted.workloads]
        round_trip_s = max(backend.exchange(issuing.round_trip_s()))
        if backend.rank:
            return None
        where = environment.described(
            ranks, library=backend.library, launcher=self.about.launcher, command=self.about.command
        )
        spread = messages.spread_s(times)
        factors = [factor for each in found for factor in each.factors]
        updates = [row for each in found for row in each.device.updates]
        copies = [row for each in found for row in each.device.copies]
        update = local.update_curve(updates, wanted.optimizer, backend.ranks)
        execution = execution_of(wanted.backend, None)
        return Profile(
            name=wanted.name,
            cluster=cluster,
            description=f"{cluster.device.name}, {backend.ranks} ranks, {wanted.backend}",
            backend=wanted.backend,
            environment=where,
            layers=tuple(entry for each in found for entry in each.layers),
            updates=(update,) if update is not None else (),
            memory=local.memory_rate(copies, backend.ranks),
            host=self._host(found, round_trip_s) if found else None,
            fits=messages.fitted(
                times,
                ranks=backend.ranks,
                nodes=hosts,
                link_bytes_per_s=0.0,
                source=f"{backend.library}, captured, on {backend.ranks} ranks; sums are divided",
            ),
            point_to_point=messages.point_to_point(times),
            library=Library(origin="assumed", source="the executor's backend", name="nccl"),
            interference=tuple(entry for each in found for entry in each.interference),
            execution=replace(execution, origin="assumed", source="the executor's streams"),
            jitter=Jitter(
                origin="measured",
                source=f"{len(factors)} eager iterations without communication, {len(spread)} messages",
                iteration=fits.quantiles(factors),
                communication_s=fits.quantiles(spread),
            ),
        )

    # --- one workload ------------------------------------------------------------------------------------------

    def _workload(self, plans: Sequence[Plan], cluster: Cluster, library: DeviceMessages) -> _Workload:
        first = plans[0]
        name = first.workload.name
        source = f"{name} of {first.batch} a rank on {self.backend.ranks} ranks at once"
        schedules = [plan.schedule for plan in plans]
        ranks = [Rank(plan, self.backend, self.note) for plan in plans]
        alone, beside = self._captured(name, ranks, library)
        silent, sending = self._timed(f"{name}, issued", lambda: self._issued(ranks))
        turns = self._turns(ranks[0])
        eager = ahead.step_s(ranks[0], self.note, silent[0].iteration) / alone[0].whole
        eager = min(eager, MOST_EAGER)
        for rank in ranks:
            assert rank.training is not None
            rank.training.close()
        middle = median(s for turn in turns for s in turn)
        drift = np.quantile([median(turn) / middle for turn in turns], (0.05, 0.95))
        about = {
            "origin": "measured",
            "uncertainty": min(float(drift[1] - drift[0]) / 2, 0.9),
            "source": f"{source}, captured, eager {eager:.3f} times as long; issued with {issuing.BATCH} a rank",
        }
        device = local.by_work(schedules, [[s * eager for s in each.ops] for each in alone])
        host = local.by_work(schedules, [each.ops for each in silent])
        left_s = sum(each.iteration - each.start - sum(each.ops) for each in silent)
        layers = local.passes(
            device,
            first,
            about,
            # The device makes the next batch while the host goes on.
            rest_s=max(median(each.start for each in silent), alone[0].rest),
            issue=host,
            beside=local.by_work(schedules[:1], [beside.ops]),
        )
        return _Workload(
            layers=layers,
            device=device,
            issue=host,
            kernels=_kernels(first),
            interference=self._interference(first, cluster, alone[0].ops, beside, source),
            collectives=sum(isinstance(op.work, Communicate) for op in schedules[LAYERWISE].ops),
            collectives_s=max(0.0, sending.iteration - silent[LAYERWISE].iteration),
            op_s=max(0.0, left_s) / sum(len(schedule.ops) for schedule in schedules),
            factors=[s / median(turn) for turn in turns for s in turn],
        )

    def _captured(
        self, name: str, ranks: Sequence[Rank], library: DeviceMessages
    ) -> tuple[list[captured.Durations], captured.Factors]:
        """Return what the local step of each of *ranks* takes, and what the first one and all-reduces do to each other.

        One at a time: each graph holds the activations of a step.
        """
        alone: list[captured.Durations] = []
        beside = None
        for rank in ranks:
            step = self._timed(f"{name}, captured", partial(captured.step, rank))
            alone.append(captured.durations(step))
            if beside is None:
                beside = self._timed(
                    f"{name}, beside all-reduces",
                    partial(captured.beside, step, alone[0], library, self._comm, BACKGROUND_BYTES),
                )
            assert rank.training is not None
            rank.training.losses()
            del step
            torch.cuda.empty_cache()
        assert beside is not None
        return alone, beside

    def _issued(self, ranks: Sequence[Rank]) -> tuple[list[issuing.Issued], issuing.Issued]:
        """Return what the host takes for each schedule without communication, and for the layer-wise one with it."""
        silent = [issuing.Turns(rank, self.note, communicating=False) for rank in ranks]
        sending = issuing.Turns(ranks[LAYERWISE], self.note, communicating=True)
        draw = random.Random(self.wanted.seed)
        for _ in range(issuing.TURNS):
            for each in draw.sample([*silent, sending], len(silent) + 1):
                each.run()
        return [each.issued() for each in silent], sending.issued()

    def _timed(self, step: str, work: Callable[[], Any]) -> Any:
        self.note.at(WAITING)
        self.backend.barrier()
        begin = time.perf_counter()
        found = work()
        self.tick(step, time.perf_counter() - begin)
        return found

    def _turns(self, rank: Rank) -> list[list[float]]:
        """Return the seconds of eager iterations without communication, by turn; of the slowest rank."""
        own = []
        for _ in range(TURNS):
            self.note.at(WAITING)
            self.backend.barrier()
            lanes = rank.lanes(rank.recorder(1), traced=0, communicating=False)
            rank.interpreter(lanes).run(WARM_UP + STEPS, lambda iteration: None)
            own.append(lanes.iterations_s()[WARM_UP:])
        assert rank.training is not None
        rank.training.losses()
        found: list[list[list[float]]] = self.backend.exchange(own)
        return max(found, key=lambda turns: sum(map(sum, turns)))

    def _interference(
        self, plan: Plan, cluster: Cluster, alone: Sequence[float], beside: captured.Factors, source: str
    ) -> tuple[Interference, ...]:
        """Return an entry for ops of each bound: weighted by their times."""
        about = job(plan.workload, batch=plan.batch, tokens=plan.tokens)
        path = Prices(about, cluster, Profile(name=cluster.name, cluster=cluster), self.backend.ranks).path
        before: dict[Bound, float] = {}
        behind: dict[Bound, float] = {}
        layers = {layer.name: layer for layer in plan.workload.layers}
        for op, took, factor in zip(plan.schedule.ops, alone, beside.ops, strict=True):
            bound: Bound = "memory"
            if isinstance(op.work, (Forward, Backward)):
                layer = layers[op.work.layers[0]]
                work = layer.forward if isinstance(op.work, Forward) else layer.backward
                bound = "memory" if work is not None and memory_bound(work, about, cluster.device) else "matrix"
            before[bound] = before.get(bound, 0.0) + took
            behind[bound] = behind.get(bound, 0.0) + took * factor
        return tuple(
            Interference(
                origin="measured",
                source=f"{source}, beside all-reduces of {BACKGROUND_BYTES / MIB:g} MiB",
                compute=bound,
                path=path,
                compute_factor=behind[bound] / seconds,
                communication_factor=beside.communication,
                workload=plan.workload.name,
            )
            for bound, seconds in before.items()
            if seconds
        )

    # --- the profile -------------------------------------------------------------------------------------------

    def _host(self, found: Sequence[_Workload], round_trip_s: float) -> Host:
        """Return the host's costs: passes by the kernels that workloads count, for those that were not measured."""
        update, update_tensor = _by_tensor([row for each in found for row in each.issue.updates])
        copy, copy_tensor = _by_tensor([row for each in found for row in each.issue.copies])
        kernel = {
            direction: sum(sum(map(median, getattr(each.issue, direction).values())) for each in found)
            / max(1.0, sum(each.kernels[direction] for each in found))
            for direction in ("forward", "backward")
        }
        names = ", ".join(workload.name for workload, _, _ in self.wanted.workloads)
        return Host(
            origin="measured",
            source=f"issuing {names}, {issuing.BATCH} samples a rank, on {self.backend.ranks} ranks at once",
            forward_kernel=kernel["forward"],
            backward_kernel=kernel["backward"],
            collective=sum(each.collectives_s for each in found) / sum(each.collectives for each in found),
            update=update,
            update_tensor=update_tensor,
            copy=copy,
            copy_tensor=copy_tensor,
            wait=0.0,
            iteration=round_trip_s,
            op=median(each.op_s for each in found),
        )

    def _cluster(self, times: dict[messages.Key, list[float]]) -> Cluster:
        largest = max((key for key in times if key.kind == "all_reduce"), key=lambda key: key.nbytes)
        ranks = self.backend.ranks
        device = machine.gpu()
        direct = all(torch.cuda.can_device_access_peer(0, other) for other in range(1, torch.cuda.device_count()))
        over: Literal["nvlink", "pcie"] = (
            "nvlink" if direct and os.environ.get("NCCL_P2P_DISABLE", "0") == "0" else "pcie"
        )
        bus = 2 * (ranks - 1) / ranks * largest.nbytes / median(times[largest])
        return machine.gpus(self.wanted.name, device, ranks, bytes_per_s=bus, kind=over)


def _kernels(plan: Plan) -> dict[str, float]:
    """Return the kernels of all passes that the workload counts."""
    layers = plan.workload.layers
    return {
        direction: float(sum(work.kernels for layer in layers if (work := getattr(layer, direction)) is not None))
        for direction in ("forward", "backward")
    }


def _by_tensor(rows: Sequence[local.Row]) -> tuple[float, float]:
    """Return what issuing an update or a copy takes, and what it takes more for each of its tensors."""
    rows = [row for row in rows if row.seconds]
    if not rows:
        return 0.0, 0.0
    call, tensor = fits.least_costs(
        [(row.calls / row.seconds, row.tensors / row.seconds) for row in rows], [1.0] * len(rows)
    )
    return call, tensor
