"""What a run is to do: the same values on every rank, and what a backend is usually run with."""

from collections.abc import Mapping
from dataclasses import dataclass

from msgspec.structs import replace

from executor.comm import Progress
from simgd.profile import Execution
from simgd.run import ComputeKind
from simgd.schedule import Schedule
from simgd.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run; the same on every rank. `op_seconds` are those of each op's own work, for emulated compute."""

    schedule: Schedule
    workload: Workload
    steps: int
    batch: int
    tokens: int
    seed: int
    optimizer: str
    compute: ComputeKind
    execution: Execution
    progress: Progress
    trace_steps: int
    op_seconds: Mapping[str, float] | None = None

    def agreed(self, ranks: int) -> dict[str, object]:
        """Return what all ranks must have been started with."""
        return {
            "ranks": ranks,
            "schedule": self.schedule.digest[:12],
            "workload": self.workload.name,
            "steps": self.steps,
            "batch": self.batch,
            "tokens": self.tokens,
            "seed": self.seed,
            "optimizer": self.optimizer,
            "compute": self.compute,
            "progress": str(self.progress),
            "trace steps": self.trace_steps,
        }


def execution_of(backend: str, measured: Execution | None) -> Execution:
    """Return how ranks of *backend* run a schedule: as in a profile, with the lanes that the backend has.

    On host memory one thread is host, compute and update. On a GPU updates stand on the compute lane unless the
    profile says otherwise: beside a pass they would hide a fifth of themselves (studies/update_beside_backward).
    """
    if measured is None:
        measured = Execution(origin="assumed", source="the executor's usual lanes", update_on_compute=backend == "nccl")
    on_host = backend != "nccl"
    return replace(
        measured,
        merged=on_host,
        wait_blocks_host=on_host,
        update_on_compute=measured.update_on_compute and not on_host,
    )


def usual_progress(backend: str) -> Progress:
    """Return who lets collectives progress unless somebody asks: the rank itself, which looks at every op.

    A thread of Python's would have to be woken for each message, and takes its turns from the computing one.
    """
    return Progress(every=1) if backend in ("mpi", "gloo") else Progress()
