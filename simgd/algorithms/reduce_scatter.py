"""Reduce-scatter: every rank gives a buffer and gets its own part of the sum."""

from collections.abc import Callable

import numpy as np

from simgd.algorithms.steps import Made, Numbers, Step, Steps, folded, numbers, ordered, powers, send, whole


def ring(ranks: int, order: Numbers | None = None) -> Steps:
    """Send parts around the ring, each growing into the sum: n - 1 steps. Parts are numbered by place in the ring."""
    place, rank = numbers(ranks), ordered(ranks, order)
    step = send(rank, np.roll(rank, -1), (place - 1) % ranks, reduce=True, repeat=ranks - 1, shift=-1)
    return whole("ring", "reduce_scatter", ranks, ranks, [step], own=np.argsort(rank))


def recursive_halving(ranks: int) -> Steps:
    """Halve what is sent, at distance n/2, n/4, ..., 1: log2(n) steps."""
    core, others, parts = folded(ranks)
    steps = [send(others, others + 1, 0, ranks, reduce=True)]
    for distance in reversed(powers(core.size)):
        partner = numbers(core.size) ^ distance
        low = partner & -distance
        steps.append(send(core, core[partner], parts[low], parts[low + distance] - parts[low], reduce=True))
    steps.append(send(others + 1, others, others))
    return whole("recursive_halving", "reduce_scatter", ranks, ranks, steps)


def pairwise(ranks: int) -> Steps:
    """Send each rank its part directly, to distance 1, 2, ..., n - 1."""
    rank = numbers(ranks)

    def distance(number: int) -> Step:
        target = (rank + number + 1) % ranks
        return send(rank, target, target, reduce=True)

    return whole("pairwise", "reduce_scatter", ranks, ranks, Made(ranks - 1, distance))


def nvls(ranks: int) -> Steps:
    """Have the NVSwitch (participant number *ranks*) add all buffers, of which rank r reads block r, pipelined."""
    rank, switch = numbers(ranks), np.full(ranks, ranks)
    steps = [send(rank, switch, 0, ranks, reduce=True, pipelined=True), send(switch, rank, rank, pipelined=True)]
    return whole("nvls", "reduce_scatter", ranks, ranks, steps, others=1)


#: The algorithms that need no more than the number of ranks.
BY_NAME: dict[str, Callable[[int], Steps]] = {
    "ring": ring,
    "recursive_halving": recursive_halving,
    "pairwise": pairwise,
    "nvls": nvls,
}
