"""A rank that trains nothing: it all-reduces in a loop and, in iteration 7, rank 1 meets the fate that it is told.

usage: rank_loop.py mpi|gloo|plain FOLDER STEPS TIMEOUT FATE

`plain` ranks have no library between them: the all-reduce of iteration 7 waits for ever, as if for rank 1.
"""

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from executor.launch import detect, torch_environment
from executor.parts import Part, Phase, clear, peek
from executor.supervise import give_up, watch

OPS = ["backward fc", "all_reduce fc"]
FATEFUL = 7

#: Fates that let the job finish.
#: They leave no parts under a foreign launcher.
KIND = ("none", "status")


def all_reduce_of(backend: str, fate: str) -> tuple[Callable[[int], object], Callable[[int], object] | None]:
    """Return what all-reduces in an iteration, and what aborts the job."""
    if backend == "mpi":
        import numpy as np
        from mpi4py import MPI

        buffer = np.ones(4)
        return lambda _: MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, buffer), MPI.COMM_WORLD.Abort
    if backend == "gloo":
        import torch
        from torch import distributed

        launched = detect(os.environ)
        assert launched is not None
        os.environ.update(torch_environment(launched, os.environ))
        distributed.init_process_group("gloo")
        ones = torch.ones(4)
        return lambda _: distributed.all_reduce(ones), None
    return lambda iteration: threading.Event().wait(None if iteration == FATEFUL and fate not in KIND else 0), None


def meet(fate: str, folder: Path) -> None:
    """Do what the fate is, once rank 0 waits for us."""
    while (Phase.WAITING, FATEFUL) not in [(state.phase, state.iteration) for state in peek(folder)]:
        time.sleep(0.001)
    match fate:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "hang":
            threading.Event().wait()
        case "exit":
            os._exit(3)
        case "raise":
            raise ValueError("the loss is\nno number")
        case "crash":
            raise Uncaught("nobody expected this")


class Uncaught(BaseException):
    pass


def main(backend: str, name: str, steps: str, timeout: str, fate: str) -> None:
    folder = Path(name)
    launched = detect(os.environ)
    assert launched is not None
    if fate == "import" and launched.rank == 1:
        raise ImportError("no such library")
    if not launched.supervised and launched.rank == 0 and backend != "plain":
        clear(folder)
    all_reduce, abort = all_reduce_of(backend, fate)
    all_reduce(0)
    part = Part(folder, launched.rank, launched.ranks, OPS)
    all_reduce(0)
    watch(part, launched, timeout_s=float(timeout), out_name="run.json", abort=abort)
    try:
        for iteration in range(1, int(steps) + 1):
            part.at(Phase.RUNNING, 0, iteration)
            if launched.rank == 1 and iteration == FATEFUL and fate not in KIND:
                meet(fate, folder)
            part.at(Phase.WAITING, 1, iteration)
            all_reduce(iteration)
            part.iteration(iteration, 0.5, loss=1 / iteration)
    except Exception as error:
        give_up(part, launched, str(error), out_name="run.json", abort=abort)
    part.at(Phase.FINISHED)
    if backend == "mpi" and not launched.supervised:
        all_reduce(0)
        if launched.rank == 0:
            shutil.rmtree(folder)
    if launched.rank == 0:
        print("done", flush=True)
    if fate == "status":
        sys.exit(launched.rank)


if __name__ == "__main__":
    main(*sys.argv[1:])
