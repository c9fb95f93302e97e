"""Broadcast: the first rank has a buffer, and all get it."""

from collections.abc import Callable

import numpy as np

from simgd.algorithms import all_gather
from simgd.algorithms.steps import Numbers, Steps, binomial, numbers, ordered, send, whole


def binomial_tree(ranks: int) -> Steps:
    """Send the whole buffer down a binomial tree from rank 0: ceil(log2(n)) steps."""
    steps = [send(parent, child) for parent, child, _ in binomial(numbers(ranks).size)]
    return whole("binomial_tree", "broadcast", ranks, 1, steps)


def chain(ranks: int, order: Numbers | None = None) -> Steps:
    """Pass the buffer on from the first rank of *order*, pipelined; in NCCL this is the ring's broadcast."""
    rank = ordered(ranks, order)
    return whole("chain", "broadcast", ranks, 1, [send(rank[:-1], rank[1:], pipelined=True, hops=ranks - 1)])


def scatter_all_gather(ranks: int) -> Steps:
    """Scatter down a binomial tree from rank 0, then all-gather around a ring (van de Geijn)."""
    scatter = [
        send(parent, child, child, np.minimum(distance, ranks - child))
        for parent, child, distance in binomial(numbers(ranks).size)
    ]
    return whole("scatter_all_gather", "broadcast", ranks, ranks, [*scatter, *all_gather.ring(ranks).steps])


#: The algorithms that need no more than the number of ranks.
BY_NAME: dict[str, Callable[[int], Steps]] = {
    "binomial_tree": binomial_tree,
    "chain": chain,
    "scatter_all_gather": scatter_all_gather,
}
