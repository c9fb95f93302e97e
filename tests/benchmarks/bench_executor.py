"""What the executor costs beside the torch and MPI calls that it makes, and how it compares with torch's DDP.

``python tests/benchmarks/bench_executor.py cost`` prints the runner's own host time for each op;
``python tests/benchmarks/bench_executor.py ddp [gloo|nccl]`` starts 2 ranks and prints the ratio of iteration times of
`bucketed:25MiB` and DistributedDataParallel, interleaved in one process on each rank, with its 90 % interval.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

import training_cases
from groups import run_ranks

from calibration.counting import from_spec
from executor.comm import Progress
from executor.networks.case import load
from executor.parts import Part
from executor.plan import Plan, execution_of, usual_progress
from executor.rank import Rank
from executor.shards import shard_seed
from simgd import schedules
from simgd.workload import Workload

#: Workloads of the comparison: one whose communication weighs, and one of many small layers.
COMPARED: dict[str, tuple[tuple[str, str, dict[str, Any], int], ...]] = {
    "gloo": (
        ("resnet50", "executor.networks:resnet50", {"image_size": 64}, 8),
        ("char-transformer", "executor.networks:char_transformer", {}, 8),
    ),
    "nccl": (
        ("vgg16", "executor.networks:vgg16", {}, 32),
        ("resnet50", "executor.networks:resnet50", {}, 64),
        ("googlenet", "executor.networks:googlenet", {}, 64),
    ),
}

PAIRS = 40

#: Iterations in a block of a pair.
BLOCK = {"gloo": 3, "nccl": 20}


class Nothing:
    """A pending call that has ended."""

    def done(self) -> bool:
        return True

    def wait(self) -> None: ...


class Null:
    """A backend of 2 ranks whose collectives do nothing and take no time: what is left is the runner."""

    name, rank, ranks, library, device = "loopback", 0, 2, "nothing", "cpu"

    def all_reduce(self, buffer: Any) -> Nothing:
        return Nothing()


def plan(schedule: str, workload: Workload, batch: int, compute: str, progress: Progress, steps: int) -> Plan:
    made = schedules.build(schedules.parse(schedule), workload)
    return Plan(
        schedule=made,
        workload=workload,
        steps=steps,
        batch=batch,
        tokens=workload.tokens,
        seed=0,
        optimizer="sgd",
        compute=compute,  # type: ignore[arg-type]
        execution=execution_of("gloo", None),
        progress=progress,
        trace_steps=3,
        op_seconds={op.name: 0.0 for op in made.ops},
    )


def seconds(run: Callable[[], None]) -> float:
    begin = perf_counter()
    run()
    return perf_counter() - begin


def cpu_seconds(run: Callable[[], None]) -> float:
    """Return the processor's time: what else runs on a shared machine does not count."""
    begin = process_time()
    run()
    return process_time() - begin


def cost() -> None:
    """Print the host time of an op: of the interpreter alone, and with a module against the same torch calls."""
    with TemporaryDirectory() as folder:
        for name in ("layerwise", "async:1:100kB", "layerwise:tensor"):
            workload = from_spec("executor.networks:resnet50", name="resnet50")
            made = plan(name, workload, 1, "emulated:busy", Progress(every=1), 30)
            ops = len(made.schedule.ops)
            note = Part(Path(folder), 0, 2, [op.name for op in made.schedule.ops])
            rank = Rank(made, Null(), note)  # type: ignore[arg-type]
            lanes = rank.lanes(rank.recorder(3), traced=0)
            rank.interpreter(lanes).run(made.steps, lambda iteration: None)
            per_op = [each / ops * 1e6 for each in lanes.iterations_s()]
            print(f"{name:18} {ops} ops, nothing to compute or send: {median(per_op):5.2f} us an op")
        torch.set_num_threads(1)
        beyond_torch(Path(folder))


class ByHand:
    """The same layer-wise step written by hand: the torch calls of the runner at the same places, and nothing else."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        torch.manual_seed(0)
        self.case = load("executor.networks:mlp", arguments)
        self.flats, self.optimizers = [], []
        for module in self.case.module:
            own = list(module.parameters())
            if not own:
                continue
            flat = torch.zeros(sum(p.numel() for p in own))
            views = [part.view(p.shape) for part, p in zip(flat.split([p.numel() for p in own]), own, strict=True)]
            shadows = [nn.Parameter(p.detach()) for p in own]
            for shadow, view in zip(shadows, views, strict=True):
                shadow.grad = view
            self.flats.append(flat)
            self.optimizers.append(torch.optim.SGD(shadows, lr=0.01, momentum=0.9))
            module.register_forward_pre_hook(lambda module, inputs: None)
            for p in own:
                p.register_post_accumulate_grad_hook(lambda p, own=own, views=views: self.arrived(own, views))

    @staticmethod
    def arrived(own: list[nn.Parameter], views: list[torch.Tensor]) -> None:
        gradients = [p.grad for p in own]
        if all(gradient is not None for gradient in gradients):
            torch._foreach_copy_(views, gradients)
            for p in own:
                p.grad = None

    def run(self, steps: int) -> None:
        for iteration in range(steps):
            torch.manual_seed(shard_seed(0, 0, iteration))
            loss = self.case.loss(self.case.module, self.case.example(4))
            loss.backward()
            for flat, chosen in zip(self.flats, self.optimizers, strict=True):
                flat.div_(2)
                chosen.step()


def beyond_torch(folder: Path) -> None:
    """Compare a perceptron of many layers with the same step by hand."""
    arguments = {"features": 16, "hidden": 16, "depth": 40}
    workload = from_spec("executor.networks:mlp", arguments, name="mlp")
    made = plan("layerwise", workload, 4, "real", Progress(every=1), 20)
    note = Part(folder, 1, 2, [op.name for op in made.schedule.ops])
    rank = Rank(made, Null(), note)  # type: ignore[arg-type]
    lanes = rank.lanes(rank.recorder(3), traced=0)
    interpreter = rank.interpreter(lanes)
    by_hand = ByHand(arguments)

    def ours() -> None:
        interpreter.run(made.steps, lambda iteration: None)

    ours(), by_hand.run(made.steps)
    differences = [cpu_seconds(ours) - cpu_seconds(lambda: by_hand.run(made.steps)) for _ in range(21)]
    ops = len(made.schedule.ops)
    per_op = median(differences) / made.steps / ops * 1e6
    print(f"{'layerwise':18} {ops} ops of a module, beyond the same step by hand: {per_op:5.2f} us an op")


def compared(backend: Any, name: str, spec: str, arguments: dict[str, Any], batch: int) -> list[tuple[float, float]]:
    """Return the seconds of pairs of blocks, ours and DDP's, each on its slower rank."""
    workload = from_spec(spec, arguments, name=name)
    steps = BLOCK[backend.name]
    made = plan("bucketed:25MiB", workload, batch, "real", usual_progress(backend.name), steps)
    if backend.device == "cuda":
        made = replace(made, execution=execution_of("nccl", None))
    rank = Rank(made, backend, training_cases.Nobody())
    training = rank.training
    assert training is not None
    lanes = rank.lanes(rank.recorder(3), traced=0)
    interpreter = rank.interpreter(lanes)
    torch.manual_seed(0)
    case = load(spec, arguments)
    case.module.to(backend.device)
    module = nn.parallel.DistributedDataParallel(
        case.module, bucket_cap_mb=25, gradient_as_bucket_view=True, static_graph=True, broadcast_buffers=False
    )
    chosen = torch.optim.SGD(case.module.parameters(), lr=0.01, momentum=0.9)

    def theirs() -> None:
        for iteration in range(steps):
            torch.manual_seed(shard_seed(0, backend.rank, iteration))
            loss = case.loss(module, case.example(batch, workload.tokens, backend.device))
            loss.backward()
            chosen.step()
            chosen.zero_grad()
            if backend.device == "cuda":
                # The host waits for the iteration before it issues another, as ours does (run_ahead 1).
                torch.cuda.synchronize()

    def ours() -> None:
        interpreter.run(steps, lambda iteration: None)
        training.losses()

    random = Random(0)  # the same order on both ranks
    pairs = []
    for pair in range(PAIRS + 1):
        order = [ours, theirs]
        random.shuffle(order)
        times = {}
        for each in order:
            backend.barrier()
            times[each] = seconds(each)
        both = backend.exchange([times[ours], times[theirs]])
        mine, other = (max(one[place] for one in both) for place in (0, 1))
        if pair:
            pairs.append((mine, other))
    lanes.close()
    training.close()
    return pairs


def ddp_rank(name: str, out: str) -> None:
    """Run one rank of the comparison; rank 0 writes the ratios of pairs of blocks, by workload."""
    from executor.backends.distributed import open_distributed

    torch.set_num_threads(1)
    backend = open_distributed(name, timeout_s=120)  # type: ignore[arg-type]
    found = {case[0]: compared(backend, *case) for case in COMPARED[name]}
    if backend.rank == 0:
        Path(out).write_text(json.dumps(found))
    backend.close()


def ddp(backend: str = "gloo") -> None:
    """Start the ranks and print the ratios."""
    from scipy.stats import bootstrap

    with TemporaryDirectory() as folder:
        out = Path(folder) / "ratios.json"
        said = run_ranks(backend, 2, [__file__, "rank", backend, str(out)], limit_s=1200, warnings="default")
        if not out.exists():
            sys.exit(said)
        for name, pairs in json.loads(out.read_text()).items():
            ratios = np.array([ours / theirs for ours, theirs in pairs])
            low, high = bootstrap((ratios,), np.median, confidence_level=0.9, rng=0).confidence_interval
            ours, theirs = (median(pair[place] for pair in pairs) / BLOCK[backend] for place in (0, 1))
            print(
                f"{name:18} bucketed:25MiB {ours * 1e3:.4g} ms, DDP {theirs * 1e3:.4g} ms an iteration; ratio "
                f"{np.median(ratios):.3f}, 90 % interval {low:.3f} to {high:.3f} ({len(ratios)} pairs)"
            )


if __name__ == "__main__":
    {"cost": cost, "ddp": ddp, "rank": ddp_rank}[sys.argv[1]](*sys.argv[2:])
