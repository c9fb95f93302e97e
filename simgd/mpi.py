"""What a collective costs with an MPI library: its algorithm's rounds, each at the cost of a message.

Model
    A round costs what the point-to-point table says of its largest message. Where messages of a round share links, what
    the table has beyond an empty message's time takes as many times longer as the fullest link is busier than the
    message alone would keep it. Adding what came costs bytes / reduce rate, after all of it came. Ranks that are no
    power of two are folded.
    The algorithm is the one that the library's rules choose (`Library.choice`), or the fastest where nobody knows;
    where several ranks share each node that may be a hierarchical one.

Rules
    MPICH: all-reduce by recursive doubling up to 2 KiB (MPIR_CVAR_ALLREDUCE_SHORT_MSG_SIZE), then Rabenseifner's. Open
    MPI since 4.1 (coll_tuned_decision_fixed.c): a table by ranks and bytes, `OPEN_MPI_ALL_REDUCE`. Of other kinds the
    fastest is taken.

What it leaves out
    Segmentation inside a round, skew between ranks, in-network reduction, trees that know which ranks share a node.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

from simgd.algorithms import ALGORITHMS, Step, Steps, workers
from simgd.algorithms.all_reduce import hierarchical
from simgd.collectives import Cost
from simgd.errors import unknown
from simgd.profile import CollectiveKind
from simgd.wiring import Wiring

Points = Sequence[tuple[float, float]]

#: The algorithms that MPI libraries have, of those that are known here; trees that NCCL pipelines are none of theirs.
USED: dict[CollectiveKind, tuple[str, ...]] = {
    "all_reduce": ("recursive_doubling", "rabenseifner", "ring"),
    "reduce_scatter": ("recursive_halving", "ring"),
    "all_gather": ("recursive_doubling", "ring"),
    "broadcast": ("binomial_tree", "scatter_all_gather"),
    "all_to_all": ("pairwise", "bruck"),
    "exchange": ("pairs",),
    "push": ("direct",),
    "pull": ("direct",),
}

_DOUBLING, _RING, _RABENSEIFNER = "recursive_doubling", "ring", "rabenseifner"

#: Open MPI's choice for an all-reduce: below so many ranks, (below so many bytes, algorithm).
#: Its linear algorithm (reduce, then broadcast) is taken for recursive doubling, its segmented ring for a ring.
OPEN_MPI_ALL_REDUCE: tuple[tuple[float, tuple[tuple[float, str], ...]], ...] = (
    (4, ((8, _RING), (4096, _DOUBLING), (8192, _RING), (16384, _DOUBLING), (262144, _RING), (math.inf, _RABENSEIFNER))),
    (8, ((16, _RING), (8192, _DOUBLING), (math.inf, _RABENSEIFNER))),
    (16, ((8192, _DOUBLING), (math.inf, _RABENSEIFNER))),
    (32, ((64, _RING), (4096, _DOUBLING), (math.inf, _RABENSEIFNER))),
    (64, ((128, _RING), (math.inf, _RABENSEIFNER))),
    (256, ((262144, _DOUBLING), (math.inf, _RABENSEIFNER))),
    (512, ((4096, _DOUBLING), (math.inf, _RABENSEIFNER))),
    (2048, ((16384, _DOUBLING), (math.inf, _RABENSEIFNER))),
    (4096, ((2048, _DOUBLING), (4096, _RING), (16384, _DOUBLING), (math.inf, _RABENSEIFNER))),
    (math.inf, ((2048, _DOUBLING), (16384, _RING), (32768, _DOUBLING), (math.inf, _RABENSEIFNER))),
)

#: Of an algorithm with more steps (a pairwise all-to-all) so many are looked at, each for its neighbours.
MOST_STEPS = 1024

#: MPICH's longest all-reduce by recursive doubling.
MPICH_SHORT_BYTES = 2048


class Round(NamedTuple):
    """A step of an algorithm, `repeat` times: its largest message as a share of the buffer, how many times longer that
    message's bytes take for what shares its links, the switches that it crosses beyond the first, and how many times
    its bytes the busiest rank adds.
    """

    repeat: int
    share: float
    stretch: float
    switches: int
    adds: float


def rounds(wiring: Wiring, steps: Steps) -> tuple[Round, ...]:
    """Return the rounds of an algorithm between the ranks of *wiring*; of a pipelined step as many as it has hops."""
    found: dict[Round, int] = {}
    for step, alike in _sampled(steps):
        if not len(step.source):
            continue
        share = float(step.count.max()) * steps.block_share
        switches = max(0, int(wiring.switches(step.source, step.target).max()) - 1)
        adds = float(np.bincount(step.target, step.count).max() / step.count.max()) if step.reduce else 0.0
        one = Round(1, share, _stretch(wiring, step), switches, adds)
        found[one] = found.get(one, 0) + alike * step.repeat * step.hops
    return tuple(one._replace(repeat=repeat) for one, repeat in found.items())


def _sampled(steps: Steps) -> Iterator[tuple[Step, int]]:
    """Yield steps, each with the number of steps that it stands for: every one, or `MOST_STEPS` of many."""
    many = len(steps.steps)
    edges = [many * at // min(many, MOST_STEPS) for at in range(min(many, MOST_STEPS) + 1)]
    for first, end in pairwise(edges):
        yield steps.steps[(first + end) // 2], end - first


def _stretch(wiring: Wiring, step: Step) -> float:
    """Return how many times longer a step's fullest link is busy than the message alone that keeps a link busiest."""
    routes = wiring.routes(step.source, step.target)
    own_s = routes.weight * step.count[routes.flow] / wiring.capacity[routes.resource]
    together_s = np.bincount(routes.resource, own_s, len(wiring.capacity))
    alone_s = own_s.max(initial=0.0)
    # what sums and their parts round to differently is no sharing
    return float(round(together_s.max() / alone_s, 9)) if alone_s > 0 else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Messages:
    """What a message costs: `points` are one-way times by size, `extra_s` what every one takes beyond them, `switch_s`
    each switch beyond the first; `add_s_per_byte` is the time of adding a byte."""

    points: Points
    extra_s: float = 0.0
    switch_s: float = 0.0
    add_s_per_byte: float = 0.0

    def seconds(self, one: Round, nbytes: float) -> float:
        """Return the time of a round, all its repeats, where the buffer has *nbytes*."""
        size = one.share * nbytes
        time = interpolated(self.points, size)
        time += (one.stretch - 1) * max(0.0, time - self.points[0][1])
        time += self.extra_s + one.switches * self.switch_s
        return one.repeat * (time + one.adds * size * self.add_s_per_byte)


class Algorithms:
    """The algorithms that a library has for one kind of collective between the ranks of *wiring*; *only* one if named.

    Raises UnknownNameError if *only* names none of them.
    """

    def __init__(
        self,
        kind: CollectiveKind,
        wiring: Wiring,
        choice: Literal["fastest", "mpich", "openmpi"] = "fastest",
        only: str = "",
    ) -> None:
        self.kind, self.ranks, self.choice = kind, len(wiring.device), choice
        self.steps: dict[str, Steps] = {}
        if self.ranks > 1:
            many = workers(kind, self.ranks)
            self.steps = {name: ALGORITHMS[kind][name](many) for name in USED[kind]}
            sizes = np.bincount(wiring.host)
            if kind == "all_reduce" and len(sizes) > 1 and sizes[0] > 1 and (sizes == sizes[0]).all():
                groups = np.argsort(wiring.host, kind="stable").reshape(len(sizes), -1)
                self.steps["hierarchical"] = hierarchical(list(groups), outer=_DOUBLING)
        if only:
            if only not in map(_shown, self.steps):
                raise unknown(f"algorithm of {kind}", only, map(_shown, self.steps))
            self.steps = {name: steps for name, steps in self.steps.items() if _shown(name) == only}
            self.choice = "fastest"
        self.rounds = {name: rounds(wiring, steps) for name, steps in self.steps.items()}

    def cost(self, messages: Messages, nbytes: float) -> Cost:
        """Return the cost of the algorithm that the library chooses."""
        if self.ranks == 1:
            return Cost(0.0, 0.0, "none")
        name = self.chosen(messages, nbytes)
        time = self._seconds(name, messages, nbytes)
        return Cost(time, min(self._seconds(name, messages, 0.0), time), _shown(name))

    def chosen(self, messages: Messages, nbytes: float) -> str:
        """Return the name of the algorithm that the library chooses."""
        if self.kind == "all_reduce" and self.choice != "fastest":
            return mpich(nbytes) if self.choice == "mpich" else open_mpi(self.ranks, nbytes)
        return min(self.rounds, key=lambda name: self._seconds(name, messages, nbytes))

    def _seconds(self, name: str, messages: Messages, nbytes: float) -> float:
        return sum(messages.seconds(one, nbytes) for one in self.rounds[name])


def _shown(name: str) -> str:
    return name.replace("_", " ")


def mpich(nbytes: float) -> str:
    """Return MPICH's algorithm for an all-reduce."""
    return _DOUBLING if nbytes <= MPICH_SHORT_BYTES else _RABENSEIFNER


def open_mpi(ranks: int, nbytes: float) -> str:
    """Return Open MPI's algorithm for an all-reduce.

    >>> open_mpi(4, 1024), open_mpi(4, 1e6), open_mpi(1024, 1024)
    ('recursive_doubling', 'rabenseifner', 'recursive_doubling')
    """
    rules = next(rules for below, rules in OPEN_MPI_ALL_REDUCE if ranks < below)
    return next(name for below, name in rules if nbytes < below)


def interpolated(points: Points, nbytes: float) -> float:
    """Return the seconds of a message: linear in bytes between *points*, with the last slope beyond the end.

    Below the first point its time holds.

    >>> interpolated([(0, 1.0), (10, 2.0), (20, 4.0)], 15), interpolated([(0, 1.0), (10, 2.0)], 30)
    (3.0, 4.0)
    """
    if nbytes <= points[0][0] or len(points) == 1:
        return points[0][1]
    at = min(bisect_right(points, (nbytes, math.inf)), len(points) - 1)
    (size, time), (following, later) = points[at - 1], points[at]
    return time + (nbytes - size) * (later - time) / (following - size)
