"""All-gather: every rank gives its own part and gets all parts."""

from collections.abc import Callable

import numpy as np

from simgd.algorithms.steps import Numbers, Steps, folded, numbers, ordered, powers, send, whole


def ring(ranks: int, order: Numbers | None = None) -> Steps:
    """Pass parts on around the ring: n - 1 steps. Parts are numbered by place in the ring."""
    place, rank = numbers(ranks), ordered(ranks, order)
    step = send(rank, np.roll(rank, -1), place, repeat=ranks - 1, shift=-1)
    return whole("ring", "all_gather", ranks, ranks, [step], own=np.argsort(rank))


def recursive_doubling(ranks: int) -> Steps:
    """Swap all that is there with a partner at distance 1, 2, 4, ...: log2(n) steps."""
    core, others, parts = folded(ranks)
    steps = [send(others, others + 1, others)]
    for distance in powers(core.size):
        low = numbers(core.size) & -distance
        partner = core[numbers(core.size) ^ distance]
        steps.append(send(core, partner, parts[low], parts[low + distance] - parts[low]))
    steps.append(send(others + 1, others, others + 1, ranks - 1))  # all but its own part
    return whole("recursive_doubling", "all_gather", ranks, ranks, steps)


def bruck(ranks: int) -> Steps:
    """Send all that is there, or what lacks, to the rank 1, 2, 4, ... before: ceil(log2(n)) steps for any n."""
    rank = numbers(ranks)
    steps = [send(rank, (rank - there) % ranks, rank, min(there, ranks - there)) for there in powers(ranks)]
    return whole("bruck", "all_gather", ranks, ranks, steps)


def nvls(ranks: int) -> Steps:
    """Have the NVSwitch (participant number *ranks*) copy each rank's part to all, pipelined."""
    rank, switch = numbers(ranks), np.full(ranks, ranks)
    steps = [send(rank, switch, rank, pipelined=True), send(switch, rank, 0, ranks, pipelined=True)]
    return whole("nvls", "all_gather", ranks, ranks, steps, others=1)


#: The algorithms that need no more than the number of ranks.
BY_NAME: dict[str, Callable[[int], Steps]] = {
    "ring": ring,
    "recursive_doubling": recursive_doubling,
    "bruck": bruck,
    "nvls": nvls,
}
