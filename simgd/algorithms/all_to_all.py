"""All-to-all: every rank has a block for each. Block d of a rank is for, and in the end from, the rank d away.

Numbers relative to the rank keep Bruck's algorithm compact: all ranks send the same blocks, and they keep their place.
"""

from collections.abc import Callable

import numpy as np

from simgd.algorithms.steps import Made, Step, Steps, check_transfers, numbers, powers, send, whole


def pairwise(ranks: int) -> Steps:
    """Send to distance 1, 2, ..., n - 1, one after the other."""
    rank = numbers(ranks)

    def distance(number: int) -> Step:
        return send(rank, (rank + number + 1) % ranks, number + 1)

    return whole("pairwise", "all_to_all", ranks, ranks, Made(ranks - 1, distance))


def bruck(ranks: int) -> Steps:
    """Send to distance 1, 2, 4, ... all blocks whose number has that bit: ceil(log2(n)) steps, half the bytes each."""
    rank = numbers(ranks)
    steps = []
    for bit in powers(ranks):
        full, rest = divmod(ranks, 2 * bit)
        steps.append(send(rank, (rank + bit) % ranks, bit, full * bit + max(0, rest - bit), run=bit))
    return whole("bruck", "all_to_all", ranks, ranks, steps)


def direct(ranks: int) -> Steps:
    """Send everything to everybody at once."""
    rank = numbers(ranks)
    check_transfers(f"direct all-to-all of {ranks} ranks", ranks * (ranks - 1))
    source, distance = np.repeat(rank, ranks - 1), np.tile(rank[1:], ranks)
    return whole("direct", "all_to_all", ranks, ranks, [send(source, (source + distance) % ranks, distance)])


def exchange(ranks: int) -> Steps:
    """Swap whole buffers in pairs 0-1, 2-3, ...; the last of an odd number stays alone."""
    rank = numbers(ranks)[: ranks - ranks % 2]
    return whole("pairs", "exchange", ranks, 1, [send(rank, rank ^ 1)])


#: The algorithms that need no more than the number of ranks.
BY_NAME: dict[str, Callable[[int], Steps]] = {"pairwise": pairwise, "bruck": bruck, "direct": direct}
