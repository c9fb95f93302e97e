"""What a calibration is to measure: the same on every rank."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from calibration import local
from calibration.messages import Key, sizes
from executor import comm
from executor.plan import Plan, execution_of
from simgd.profile import ScheduledKind
from simgd.run import BackendName
from simgd.schedule import Communicate
from simgd.schedules import build, parse
from simgd.topology import Cluster
from simgd.workload import Workload

#: Schedules whose local work is measured: updates and copies of all sizes are among them.
ON_HOST = ("sync", "layerwise", "bucketed:256KiB", "async:1:256KiB")
ON_GPU = ("sync", "layerwise", "async:1")

#: Sizes that are nearer to each other, as a ratio, tell the same.
APART = 1.05

#: Kinds besides all-reduce are timed at every so many-th power of two.
OTHERS_EVERY = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to calibrate; `cluster` None makes one of what is measured."""

    name: str
    backend: BackendName
    workloads: Sequence[tuple[Workload, int, int]]
    optimizer: str
    asleep: bool
    progress: comm.Progress
    cluster: Cluster | None
    largest_bytes: int
    seed: int

    @property
    def schedules(self) -> tuple[str, ...]:
        """The schedules whose local work is measured."""
        return ON_GPU if self.backend == "nccl" else ON_HOST

    def plans(self, workload: Workload, batch: int, tokens: int) -> list[Plan]:
        """Return what is run of one workload, with communication left out."""
        schedules = [build(parse(name), workload) for name in self.schedules]
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

    def keys(self, ranks: int) -> list[Key]:
        """Return every operation and size: powers of two, and of all-reduces the sizes that the workloads send."""
        every = list(sizes(4 * ranks, self.largest_bytes))
        own = {
            4 * bucket.elements
            for each in self.workloads
            for plan in self.plans(*each)
            for bucket in plan.schedule.buckets
        }
        known = list(every)
        for nbytes in sorted(own):
            inside = every[0] <= nbytes <= self.largest_bytes
            if inside and all(max(nbytes, size) > APART * min(nbytes, size) for size in known):
                known.append(nbytes)
        found = [Key("all_reduce", nbytes) for nbytes in sorted(known)]
        for kind in get_args(ScheduledKind):
            if kind != "all_reduce":
                found += [Key(kind, nbytes) for nbytes in every[::OTHERS_EVERY]]
        return found + [Key("point_to_point", nbytes) for nbytes in every]

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
