"""Data-parallel training with delayed gradients, in one process: what a distributed run is compared with, bit for bit.

Model
    There is one copy of the weights. In iteration i each rank, in order, seeds torch with `shard(rank, i)`, makes its
    inputs and passes forward (dropout draws from the same stream) and backward at the current weights. The ranks'
    gradients are added in float32, in rank order, and the sum is divided once by the number of ranks.
    A parameter of delay d applies the average of iteration i after the passes of iteration i + d, by a step of torch's
    own optimizer, so the gradient of iteration i + d does not yet see it. Until its first gradient is due nothing
    happens to a parameter, to its momentum or to its step count. After the last iteration the queues are drained.
    Buffers (the running mean of a batch norm) belong to a rank and are never averaged.

Exact sums
    Another order of the ranks adds up to other bits, unless each rank's gradient is first rounded to multiples of a
    power of two, `grid`: integers below 2^24 are float32 numbers, so while ranks * max|g| < 2^24 * grid every partial
    sum is exact, in any order. Rounding changes the training; `Result.vanished` says how much of it becomes 0.

Left out
    Gradients that are None (a parameter that the loss does not use: torch raises), sparse gradients, and what ties
    parameters together, such as clipping by a global norm. Bits are the same only for the same number of threads.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from executor.networks.case import Case

#: Whole numbers up to this one, and their sums up to it, are exact in float32 (24 bits of significand).
EXACT = 2**24


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run leaves behind.

    `largest` is the largest |gradient| of any rank before rounding. `vanished` is the share, of the gradients' elements
    that are not 0 before rounding, that round to 0, over all ranks and iterations: of each parameter and in total.
    """

    weights: dict[str, Tensor]
    largest: float
    vanished: dict[str, float]
    vanished_total: float
    losses: list[list[float]]  # [iteration][rank]


def train(
    make_case: Callable[[], Case],
    make_optimizer: Callable[[list[Tensor]], Optimizer],
    delays: Mapping[str, int],
    *,
    ranks: int,
    steps: int,
    batch: int,
    tokens: int = 0,
    shard: Callable[[int, int], object],
    grid: float | None = None,
) -> Result:
    """Train a fresh case for `steps` iterations, drain, and return the weights.

    `delays` names every parameter that is trained; `batch` is the size of one rank's shard.
    """
    case = make_case()
    trained = {name: weight for name, weight in case.module.named_parameters() if weight.requires_grad}
    if delays.keys() != trained.keys():
        raise ValueError(f"delays and parameters differ in {sorted(delays.keys() ^ trained.keys())}")
    if grid is not None and math.frexp(grid)[0] != 0.5:
        raise ValueError(f"grid {grid} is not a power of two")
    groups = {delay: [name for name in trained if delays[name] == delay] for delay in sorted(delays.values())}
    optimizers = {delay: make_optimizer([trained[name] for name in names]) for delay, names in groups.items()}
    queues: dict[str, deque[Tensor]] = {name: deque() for name in trained}
    local = [[buffer.clone() for buffer in case.module.buffers()] for _ in range(ranks)]
    nonzero, lost = dict.fromkeys(trained, 0), dict.fromkeys(trained, 0)
    losses: list[list[float]] = []
    largest = 0.0
    for iteration in range(steps + max(groups)):
        if iteration < steps:
            losses.append([])
            sums: dict[str, Tensor] = {}
            for rank in range(ranks):
                for buffer, mine in zip(case.module.buffers(), local[rank], strict=True):
                    buffer.copy_(mine)
                shard(rank, iteration)
                loss = case.loss(case.module, case.inputs(batch, tokens))
                gradients = torch.autograd.grad(loss, list(trained.values()))
                local[rank] = [buffer.clone() for buffer in case.module.buffers()]
                losses[-1].append(loss.item())
                for name, raw in zip(trained, gradients, strict=True):
                    gradient = raw if grid is None else _rounded(raw, grid, ranks)
                    sums[name] = sums[name] + gradient if rank else gradient.clone()
                    largest = max(largest, _peak(raw))
                    nonzero[name] += int(raw.count_nonzero())
                    lost[name] += int(raw.count_nonzero()) - int(gradient.count_nonzero())
            for name, total in sums.items():
                queues[name].append(total.div_(ranks))
        for delay, optimizer in optimizers.items():
            if delay <= iteration < delay + steps:
                for name in groups[delay]:
                    trained[name].grad = queues[name].popleft()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
    return Result(
        weights={name: weight.detach().clone() for name, weight in case.module.named_parameters()},
        largest=largest,
        vanished={name: lost[name] / max(1, nonzero[name]) for name in trained},
        vanished_total=sum(lost.values()) / max(1, sum(nonzero.values())),
        losses=losses,
    )


def exact_grid(largest: float, ranks: int) -> float:
    """Return the finest grid 2^-q on which sums over the ranks are exact, with a factor of two of headroom.

    The largest q for which 2 * ranks * largest < 2^(24 - q). Pass the `largest` that a run without a grid saw: a run on
    the grid takes another course, and its gradients may be almost twice as large before `train` refuses them.

    >>> exact_grid(0.75, 4) == 2.0**-21  # 2 * 4 * 0.75 = 6 < 8 = 2^(24 - 21)
    True
    >>> exact_grid(1.0, 4) == 2.0**-20  # 8 < 8 does not hold; 8 < 16 does
    True
    """
    if not 0 < largest < math.inf:
        raise ValueError(f"no grid suits a largest gradient of {largest}; it must be positive and finite")
    _, exponent = math.frexp(2 * ranks * largest)  # the least e for which 2 * ranks * largest < 2^e
    return math.ldexp(1.0, exponent - 24)


def _rounded(gradient: Tensor, grid: float, ranks: int) -> Tensor:
    """Return the gradient in multiples of the grid, small enough that the sum over the ranks is exact."""
    rounded = torch.round(gradient / grid) * grid
    # The sum is of rounded numbers, and rounding can lift one by grid / 2, so both must fit.
    peak = max(_peak(gradient), _peak(rounded))
    assert ranks * peak < EXACT * grid, f"{ranks} ranks * {peak} is not below 2^24 * {grid}; take a coarser grid"
    return rounded


def _peak(gradient: Tensor) -> float:
    """Return the largest magnitude; a run that diverged has no bits worth comparing."""
    peak = gradient.abs().max().item()
    assert math.isfinite(peak), "a gradient is not finite; take a smaller learning rate"
    return peak
