"""Measures this machine and makes a profile of it: local work, messages alone, and both beside each other.

All ranks run this together, `on_host` or `on_gpu`, where their buffers lie; rank 0 returns the profile.
"""

from collections.abc import Callable

from calibration import beside, local
from calibration.wanted import Wanted
from executor.assembling import About
from executor.backends.protocol import Backend
from executor.job import Task
from executor.lanes import Note
from executor.measuring import agree
from simgd.errors import BackendError
from simgd.profile import Profile


def task(wanted: Wanted) -> Task:
    """Return what all ranks do."""
    return Task(
        measure=lambda backend, part, finished, about: run(wanted, backend, part, finished, about),
        kind=Profile,
        ops=[],
        names={"calibration": wanted.name},
        threads=wanted.progress.thread,
        torch=wanted.backend == "nccl" or (bool(wanted.workloads) and not wanted.asleep),
    )


def steps(wanted: Wanted) -> int:
    """Return how many measurements there are, if each size is settled after two rounds."""
    messages = 2 * len(wanted.keys(2))
    if wanted.backend == "nccl":
        from calibration.on_gpu import STEPS_EACH

        return messages + STEPS_EACH * len(wanted.workloads)
    locally = len(wanted.workloads) * len(wanted.schedules) * local.TURNS
    together = len(beside.SIZES) * beside.REPEATS
    return locally + messages + together + (len(beside.COUNTED) * beside.COUNTS if wanted.progress.every else 0)


def run(
    wanted: Wanted, backend: Backend, note: Note, finished: Callable[[int, float], None], about: About
) -> Profile | None:
    """Measure on this rank; return the profile on rank 0, None on the others. Raises a SimgdError in one line."""
    if backend.ranks < 2:
        raise BackendError(f"calibrate: {backend.ranks} rank; it measures two or more")
    agree(wanted.agreed(), backend)
    done = 0

    def tick(step: str, seconds: float) -> None:
        nonlocal done
        finished(done, seconds)
        done += 1

    if backend.device == "cuda":
        from calibration.on_gpu import OnGpu

        return OnGpu(wanted, backend, note, tick, about).profile()
    from calibration.on_host import OnHost

    return OnHost(wanted, backend, note, tick, about).profile()
