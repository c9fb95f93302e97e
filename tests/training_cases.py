"""Trains many cases on the ranks of one backend; run as a program it is one rank.

Each case is a schedule, a network and an optimizer. The gradients of every rank are rounded to multiples of the case's
grid before they are summed, so that sums are exact and the weights can be compared bit for bit.
"""

import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import torch
from torch import nn

from executor.backends.protocol import Backend, Buffer, Pending
from executor.comm import Progress
from executor.networks.case import Case, load
from executor.optimizers import optimizer
from executor.parts import Phase
from executor.plan import Plan, execution_of
from executor.rank import Rank
from simgd import files
from simgd.schedule import Schedule
from simgd.workload import Workload

SEED = 7


class Trained(msgspec.Struct, kw_only=True):
    """One case: a schedule and a workload as files hold them."""

    name: str
    schedule: Any
    workload: Any
    optimizer: str
    steps: int
    grid: float | None = None
    progress: str = "none"
    in_flight: int = 1
    delays_seed: int | None = None


class Rounding:
    """A backend that rounds gradients before they are summed; the rest is the real one's."""

    def __init__(self, backend: Backend, grid: float | None, random: Random | None = None) -> None:
        self._backend, self._grid, self._random = backend, grid, random

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def _round(self, buffer: Buffer) -> None:
        if self._grid is not None:
            buffer.div_(self._grid).round_().mul_(self._grid)

    def all_reduce(self, buffer: Buffer) -> Pending:
        self._round(buffer)
        pause(self._random)
        return self._backend.all_reduce(buffer)

    def reduce_scatter(self, buffer: Buffer) -> Pending:
        self._round(buffer)
        pause(self._random)
        return self._backend.reduce_scatter(buffer)


def pause(random: Random | None) -> None:
    """Take up to a millisecond at some places: a lane or a rank that is slow at times."""
    if random is not None and random.random() < 0.2:
        time.sleep(random.random() * 1e-3)


def slowed(case: Case, random: Random) -> None:
    """Let the layers of a case pause at random, forward and backward."""
    for module in case.module.modules():
        if not list(module.children()):
            module.register_forward_pre_hook(lambda *_: pause(random))
    for parameter in case.module.parameters():
        parameter.register_hook(lambda gradient: pause(random))


class Nobody:
    """Is told where a rank is, and tells nobody."""

    def at(self, phase: Phase, op: int | None = None, iteration: int = 0) -> None: ...


def train(case: Trained, backend: Backend) -> dict[str, torch.Tensor]:
    """Train one case on this rank and return its weights; all ranks must end with the same."""
    schedule = files.convert(case.schedule, Schedule, where=case.name)
    workload = files.convert(case.workload, Workload, where=case.name)
    thread = case.progress == "thread"
    every = int(case.progress.partition(":")[2] or 0)
    random = Random(case.delays_seed * 100 + backend.rank) if case.delays_seed is not None else None
    plan = Plan(
        schedule=schedule,
        workload=workload,
        steps=case.steps,
        batch=workload.batch,
        tokens=workload.tokens,
        seed=SEED,
        optimizer=case.optimizer,
        compute="real",
        execution=msgspec.structs.replace(execution_of(backend.name, None), in_flight=case.in_flight),
        progress=Progress(thread=thread, every=every),
        trace_steps=1,
    )
    rounding: Any = Rounding(backend, case.grid, random)
    rank = Rank(plan, rounding, Nobody())
    assert rank.training is not None
    if random is not None:
        slowed(rank.training.case, random)
    lanes = rank.lanes(rank.recorder(1), traced=0)
    rank.interpreter(lanes).run(case.steps, lambda iteration: None)
    lanes.close()
    digests = backend.exchange(rank.training.digest())
    assert digests == digests[:1] * backend.ranks, "replicas differ"
    return {name: weight.detach().cpu().clone() for name, weight in rank.training.parameters.items()}


def be_deterministic() -> None:
    """Let a GPU compute the same bits each time."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def train_all(cases: Sequence[Trained], backend: Backend) -> dict[str, dict[str, torch.Tensor]]:
    """Train all cases, one after the other."""
    torch.set_num_threads(1)
    return {case.name: train(case, backend) for case in cases}


def distributed_data_parallel(case: Trained, backend: Backend) -> dict[str, torch.Tensor]:
    """Train the same by torch's DistributedDataParallel, which averages with its own buckets."""
    from executor.shards import shard_seed

    workload = files.convert(case.workload, Workload, where=case.name)
    torch.manual_seed(SEED)
    made = load(workload.source.function, workload.source.arguments)
    made.module.to(backend.device)
    with warnings.catch_warnings():
        # Its new name does not exist yet in the oldest torch that we take.
        warnings.simplefilter("ignore", FutureWarning)
        module = nn.parallel.DistributedDataParallel(made.module, broadcast_buffers=False)
    chosen = optimizer(case.optimizer)(list(made.module.parameters()))
    for iteration in range(case.steps):
        torch.manual_seed(shard_seed(SEED, backend.rank, iteration))
        loss = made.loss(module, made.example(workload.batch, workload.tokens, backend.device))
        loss.backward()
        chosen.step()
        chosen.zero_grad()
    return {name: weight.detach().cpu().clone() for name, weight in made.module.named_parameters()}


def main(backend_name: str, given: str, out: str) -> None:
    cases = msgspec.json.decode(Path(given).read_bytes(), type=list[Trained])
    if backend_name == "mpi":
        from executor.backends.mpi import open_mpi

        backend: Backend = open_mpi(threads=True)
    else:
        from executor.backends.distributed import open_distributed

        backend = open_distributed(backend_name, timeout_s=60)  # type: ignore[arg-type]
    if backend.device == "cuda":
        be_deterministic()
    found = train_all(cases, backend)
    if backend_name in ("gloo", "nccl"):
        for case in cases:
            if case.name.startswith("ddp "):
                found[f"theirs {case.name}"] = distributed_data_parallel(case, backend)
    if backend.rank == 0:
        torch.save(found, out)
    backend.close()


__all__ = ["Nobody", "Trained", "train_all"]

if __name__ == "__main__":
    main(*sys.argv[1:])
