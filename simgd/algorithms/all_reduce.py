"""All-reduce: every rank gives a buffer and gets the sum of all."""

from collections.abc import Callable, Sequence

import numpy as np

from simgd.algorithms import all_gather, reduce_scatter
from simgd.algorithms.steps import (
    Group,
    Ints,
    Numbers,
    Step,
    Steps,
    binomial,
    folded,
    grouped,
    numbers,
    ordered,
    powers,
    send,
    whole,
)
from simgd.errors import ClusterError, unknown


def ring(ranks: int, order: Numbers | None = None) -> Steps:
    """Reduce-scatter around the ring, then all-gather: n - 1 steps each, of 1/n of the bytes."""
    steps = (*reduce_scatter.ring(ranks, order).steps, *all_gather.ring(ranks, order).steps)
    return whole("ring", "all_reduce", ranks, ranks, steps)


def recursive_doubling(ranks: int) -> Steps:
    """Swap whole buffers with a partner at distance 1, 2, 4, ...: log2(n) steps."""
    core, others, _ = folded(ranks)
    steps = [send(core, core[numbers(core.size) ^ distance], reduce=True) for distance in powers(core.size)]
    fold, unfold = send(others, others + 1, reduce=True), send(others + 1, others)
    return whole("recursive_doubling", "all_reduce", ranks, 1, [fold, *steps, unfold])


def rabenseifner(ranks: int) -> Steps:
    """Halve what is sent, at distance 1, 2, 4, ..., then double it on the way back: 2 log2(n) steps."""
    core, others, _ = folded(ranks)
    power = core.size
    number, kept = numbers(power), np.zeros(power, dtype=np.int64)  # kept: first block of what a worker adds up
    halving, doubling = [send(others, others + 1, 0, power, reduce=True)], [send(others + 1, others, 0, power)]
    for distance in powers(power):
        half = power // (2 * distance)
        upper = (number & distance) > 0
        partner, given, kept = core[number ^ distance], kept + np.where(upper, 0, half), kept + np.where(upper, half, 0)
        halving.append(send(core, partner, given, half, reduce=True))
        doubling.append(send(core, partner, kept, half))
    return whole("rabenseifner", "all_reduce", ranks, power, [*halving, *reversed(doubling)])


def binomial_tree(ranks: int) -> Steps:
    """Reduce to rank 0 up a binomial tree, then broadcast down: whole buffers, 2 ceil(log2(n)) steps."""
    pairs = binomial(numbers(ranks).size)
    up = [send(child, parent, reduce=True) for parent, child, _ in reversed(pairs)]
    down = [send(parent, child) for parent, child, _ in pairs]
    return whole("binomial_tree", "all_reduce", ranks, 1, [*up, *down])


def double_binary_tree(ranks: int) -> Steps:
    """Send each half of the bytes up and down its own tree, pipelined; no rank is inner in both trees.

    The trees are NCCL's for even numbers. For odd ones NCCL's have rank 0 inner in both; those of Sanders, Speck and
    Traeff, which are no deeper, are taken.
    """
    return _tree("double_binary_tree", numbers(ranks), np.ones(ranks, dtype=np.int64))


def chain(ranks: int, order: Numbers | None = None) -> Steps:
    """Reduce along the chain to the first rank of *order*, and send the sum back, pipelined."""
    return _tree("chain", ordered(ranks, order), np.array([ranks]))


def tree(groups: Sequence[Group]) -> Steps:
    """Reduce along the chain of each group (a node) to its first rank, between these over two trees, and back."""
    return _tree("tree", *grouped(groups))


def _tree(algorithm: str, ranks: Ints, sizes: Ints) -> Steps:
    """Return chains of the *ranks*, in groups of these *sizes*, whose heads are joined by two trees."""
    place = np.arange(ranks.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    heads, chained = ranks[place == 0], np.flatnonzero(place)[::-1]
    child, parent, depth = _two_trees(heads.size)
    blocks = 1 if heads.size == 1 else 2
    half = np.repeat([0, 1], heads.size - 1)  # block 0 takes the first tree, block 1 the second
    deepest = np.argsort(-depth, kind="stable")
    source = np.concatenate([ranks[chained], heads[child[deepest]]])
    target = np.concatenate([ranks[chained - 1], heads[parent[deepest]]])
    first = np.concatenate([np.zeros_like(chained), half[deepest]])
    count = np.concatenate([np.full_like(chained, blocks), np.ones_like(deepest)])
    hops = int(sizes.max() - 1 + depth.max(initial=0))
    up = send(source, target, first, count, reduce=True, pipelined=True, hops=hops)
    down = send(target[::-1], source[::-1], first[::-1], count[::-1], pipelined=True, hops=hops)
    return whole(algorithm, "all_reduce", ranks.size, blocks, [up, down])


def _two_trees(nodes: int) -> tuple[Ints, Ints, Ints]:
    """Return children, their parents and their depths: first all of one tree, then all of the other.

    A tree in order of numbers: odd numbers are leaves; the parent of ...01000 or ...11000 is ...10000, or, where that
    is too large, the number without its last 1. Even numbers of nodes start at 0, the root, and the other tree is the
    mirror image; odd ones start at 1, and the other tree is moved on by one.
    """
    node, even = numbers(nodes), nodes % 2 == 0
    number = node + (0 if even else 1)
    bit = number & -number
    up = (number ^ bit) | (bit << 1)
    up = np.where(up > number[-1], number ^ bit, up) - number[0]
    if even:
        up[0] = -1
    depth, at = np.zeros_like(node), node
    while (below := up[at] >= 0).any():
        depth, at = depth + below, np.where(below, up[at], at)
    other = nodes - 1 - node if even else (node + 1) % nodes  # who plays the part of each node in the second tree
    child = np.flatnonzero(up >= 0)
    pairs = [np.concatenate([first, other[first]]) for first in (child, up[child])]
    return pairs[0], pairs[1], np.tile(depth[child], 2)


def nvls(ranks: int) -> Steps:
    """Have the NVSwitch (participant number *ranks*) add all buffers and copy the sum to all, pipelined.

    Rank r reads block r of the sum and writes it to all: a port carries the buffer and 1/n of it in each direction.
    """
    rank, switch = numbers(ranks), np.full(ranks, ranks)
    read = reduce_scatter.nvls(ranks).steps
    write = [send(rank, switch, rank, pipelined=True), send(switch, rank, 0, ranks, pipelined=True)]
    return whole("nvls", "all_reduce", ranks, ranks, [*read, *write], others=1)


def nvls_tree(groups: Sequence[Group]) -> Steps:
    """Have each group's NVSwitch (participants after the ranks, one a group) add its buffers, of which each rank reads
    a part, joins it with the other groups' over two trees, and writes it to all of its group, pipelined.

    Raises ClusterError if the groups differ in size.
    """
    ranks, sizes = grouped(groups)
    if (sizes != sizes[0]).any():
        raise ClusterError(f"groups: have {sizes.min()} to {sizes.max()} ranks; NVLS trees need groups of one size")
    member = ranks.reshape(sizes.size, -1)
    teams, size = member.shape
    switch = np.repeat(ranks.size + np.arange(teams), size)
    halves = 1 if teams == 1 else 2
    blocks = size * halves
    part = np.tile(halves * np.arange(size), teams)
    child, parent, depth = _two_trees(teams)
    deepest = np.argsort(-depth, kind="stable")
    half = np.repeat([0, 1], teams - 1)[deepest]
    below, above = member[child[deepest]], member[parent[deepest]]
    first = halves * np.arange(size) + half[:, None]
    hops = int(depth.max(initial=0))
    steps = [
        send(ranks, switch, 0, blocks, reduce=True, pipelined=True),
        send(switch, ranks, part, halves, pipelined=True),
        send(below.ravel(), above.ravel(), first.ravel(), reduce=True, pipelined=True, hops=hops),
        send(above[::-1].ravel(), below[::-1].ravel(), first[::-1].ravel(), pipelined=True, hops=hops),
        send(ranks, switch, part, halves, pipelined=True),
        send(switch, ranks, 0, blocks, pipelined=True),
    ]
    return whole("nvls_tree", "all_reduce", ranks.size, blocks, steps, others=teams)


def hierarchical(groups: Sequence[Group], inner: str = "ring", outer: str = "ring") -> Steps:
    """Reduce-scatter in each group, all-reduce of each part across groups, all-gather in each group.

    *inner* names the reduce-scatter ("ring" or "recursive_halving"), *outer* the all-reduce. All groups have one size.
    """
    ranks, sizes = grouped(groups)
    if (sizes != sizes[0]).any():
        raise ClusterError(f"groups: have {sizes.min()} to {sizes.max()} ranks; hierarchical needs groups of one size")
    if inner not in _INNER:
        raise unknown("inner reduce-scatter", inner, _INNER)
    if outer not in _OUTER:
        raise unknown("outer all-reduce", outer, _OUTER)
    member = ranks.reshape(sizes.size, -1)
    teams, size = member.shape
    scatter, gather = (make(size) for make in _INNER[inner])
    across = _OUTER[outer](teams)

    def lifted(step: Step, member: Ints, first: Ints, count: Ints, shift: int, wrap: int) -> Step:
        return send(
            member[step.source].ravel(),
            member[step.target].ravel(),
            first.ravel(),
            count.ravel(),
            reduce=step.reduce,
            repeat=step.repeat,
            shift=shift,
            pipelined=step.pipelined,
            hops=step.hops,
            wrap=wrap,
        )

    def within(step: Step) -> Step:
        first, count = (np.repeat(across.blocks * blocks, teams) for blocks in (step.first, step.count))
        return lifted(step, member.T, first, count, across.blocks * step.shift, 0)

    def between(step: Step) -> Step:
        first = step.first[:, None] + across.blocks * np.arange(size)
        return lifted(step, member, first, np.repeat(step.count, size), step.shift, across.blocks)

    steps = [*map(within, scatter.steps), *map(between, across.steps), *map(within, gather.steps)]
    return whole("hierarchical", "all_reduce", ranks.size, size * across.blocks, steps)


#: The algorithms that need no more than the number of ranks.
BY_NAME: dict[str, Callable[[int], Steps]] = {
    "ring": ring,
    "recursive_doubling": recursive_doubling,
    "rabenseifner": rabenseifner,
    "binomial_tree": binomial_tree,
    "double_binary_tree": double_binary_tree,
    "chain": chain,
    "nvls": nvls,
}

_OUTER = {name: make for name, make in BY_NAME.items() if name != "nvls"}
_INNER: dict[str, tuple[Callable[[int], Steps], Callable[[int], Steps]]] = {
    "ring": (reduce_scatter.ring, all_gather.ring),
    "recursive_halving": (reduce_scatter.recursive_halving, all_gather.recursive_doubling),
}
