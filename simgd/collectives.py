"""What a collective costs, algorithm by algorithm, as NCCL and MPI libraries do them.

Model (NCCL)
    Its own cost model, src/graph/tuning.cc: seconds = latency + bytes / algorithm bandwidth, one such line for each
    algorithm and protocol; the fastest is used. A ring has 2(n-1) steps for an all-reduce, n-1 for the others, of
    which 2 or 1 for each node cross the network; a tree has a chain of the GPUs of a node and a binary tree of the
    nodes. LL writes flags with the data (half of the bytes or less are data), LL128 has 120 of 128 bytes of data and
    needs NVLink, Simple waits for whole chunks. NVLS lets the NVSwitch add and copy.

Model (MPI)
    Each round of an algorithm costs what the point-to-point table says of its message, and adding two buffers costs
    bytes / reduce rate. Recursive doubling sends all bytes log2(n) times; Rabenseifner's algorithm halves, then
    doubles, the part that is sent; a ring sends n-1 parts of 1/n, twice. Numbers of ranks that are no power of two
    fold the surplus ranks into others first and unfold them last. The fastest is used.

What it leaves out
    NCCL: numbers of threads and channels, and its caps per channel; PAT, CollNet. MPI: segmentation inside a round,
    several ranks on a node, skew between ranks, in-network reduction.

Throughout, `nbytes` is the whole buffer: what each rank gives to an all-reduce or reduce-scatter, or receives from
an all-gather or broadcast, as nccl-tests counts "size".
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import NamedTuple, assert_never

from simgd.fabrics import Fabric
from simgd.profile import CollectiveKind, Protocol

Points = Sequence[tuple[float, float]]

#: NCCL's trees reach this share of the rings' bandwidth (tuning.cc: 0.9 in v2.8, 0.92 since v2.12).
TREE_SHARE = 0.92

#: Of that, LL in trees reaches 1/3.8 (tuning.cc, since v2.8) and LL128 on one node 7/9.
TREE_LL_SHARE, TREE_LL128_SHARE = 1 / 3.8, 7 / 9

#: "Plateau effect of ring": over several nodes NCCL multiplies the latency of Ring/Simple all-reduces (tuning.cc: by
#: 1.9 before Ampere, 1.4 since).
PLATEAU = 1.4

#: "Trees are not perfectly sticking to the model for medium sizes" (tuning.cc): measured bandwidth over the model's, at
#: 64 B, 128 B, ... 256 MiB. NCCL steps at powers of two; here the factor is linear between them, in log bytes.
TREE_CORRECTION: dict[str, tuple[float, ...]] = {
    "LL": (1, 1, 1, 1, 0.9, 0.8, 0.7, 0.7, 0.7, 0.7, 0.6, 0.5, 0.4, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1, 1, 1),
    "LL128": (
        1,
        1,
        1,
        1,
        1,
        0.9,
        0.8,
        0.8,
        0.8,
        0.7,
        0.6,
        0.6,
        0.6,
        0.5,
        0.6,
        0.6,
        0.7,
        0.7,
        0.8,
        0.9,
        0.9,
        0.92,
        0.92,
    ),
    "Simple": (0.9,) * 7 + (0.8, 0.7, 0.6, 0.6, 0.5, 0.5, 0.5, 0.5, 0.6, 0.7, 0.8, 0.7, 0.7, 0.8, 0.9, 0.9),
}


class Cost(NamedTuple):
    """Seconds of a collective alone, of which `latency_s` would remain for an empty message, and the algorithm."""

    seconds: float
    latency_s: float
    algorithm: str


class Candidate(NamedTuple):
    """One algorithm of NCCL: ``latency_s + nbytes * seconds_per_byte``, the slope divided by `correction`, if any."""

    algorithm: str
    latency_s: float
    seconds_per_byte: float
    correction: tuple[float, ...] = ()

    def seconds(self, nbytes: float) -> float:
        """Return the time of a message."""
        time = nbytes * self.seconds_per_byte
        if self.correction and nbytes > 0:
            place = math.log2(nbytes) - 6
            last = len(self.correction) - 1
            if place <= 0:
                time /= self.correction[0]
            elif place >= last:
                time /= self.correction[last]
            else:
                low = int(place)
                a, b = self.correction[low], self.correction[low + 1]
                time /= a + (place - low) * (b - a)
        return self.latency_s + time


def bus_bytes_per_s(kind: CollectiveKind, ranks: int, nbytes: float, seconds: float) -> float:
    """Return the bus bandwidth as nccl-tests defines it: what a link would carry, whatever the number of ranks.

    nbytes/seconds times 2(n-1)/n for an all-reduce, (n-1)/n for reduce-scatter and all-gather, 1 for a broadcast.

    >>> bus_bytes_per_s("all_reduce", 4, 1e9, 1.0)
    1500000000.0
    """
    if ranks == 1 or seconds <= 0:
        return 0.0
    return nbytes / seconds * bus_share(kind, ranks)


def bus_share(kind: CollectiveKind, ranks: int) -> float:
    """Return how many times its message a rank must send at least."""
    match kind:
        case "all_reduce":
            return 2 * (ranks - 1) / ranks
        case "reduce_scatter" | "all_gather":
            return (ranks - 1) / ranks
        case "broadcast":
            return 1.0
        case _ as never:
            assert_never(never)


def nccl_candidates(kind: CollectiveKind, fabric: Fabric, protocols: Sequence[Protocol]) -> tuple[Candidate, ...]:
    """Return NCCL's algorithms for a collective on *fabric*, each as a line over message size.

    A protocol named "NVLS" stands for in-switch reduction: its base is `base_ring_us` plus the first nvlink hop.
    """
    found: list[Candidate] = []
    for protocol in protocols:
        if protocol.name == "NVLS":
            found += _nvls(kind, fabric, protocol)
        elif protocol.name != "LL128" or fabric.inside == "nvlink":
            found.append(_ring(kind, fabric, protocol))
            if kind == "all_reduce":
                found.append(_tree(fabric, protocol))
    return tuple(found)


def _ring(kind: CollectiveKind, fabric: Fabric, protocol: Protocol) -> Candidate:
    ranks, nodes = fabric.ranks, fabric.nodes
    turns = 2 if kind == "all_reduce" else 1
    steps = turns * (ranks - 1)
    crossing = turns * (nodes - 1)
    inside_us = max(0.0, _hop(protocol, fabric.inside)[0] + 1e6 * fabric.inside_extra_s)
    net_us = _hop(protocol, "net")[0] + 1e6 * fabric.net_extra_s
    latency_us = protocol.base_ring_us + (steps - crossing) * inside_us + crossing * net_us
    if nodes > 1 and kind == "all_reduce" and protocol.name == "Simple":
        latency_us *= PLATEAU
    rate = _capped(fabric.ring_bytes_per_s * protocol.efficiency, protocol)
    return Candidate(f"ring/{protocol.name}", 1e-6 * latency_us, bus_share(kind, ranks) / rate)


def _tree(fabric: Fabric, protocol: Protocol) -> Candidate:
    """Return the line of a chain in each node and a double binary tree of nodes.

    A node inside one tree sends half of the bytes to its parent and to two children, and as a leaf of the other tree
    the other half to its parent: twice its bytes in all, or once with two nodes.
    """
    ranks, nodes = fabric.ranks, fabric.nodes
    inside_us = max(0.0, _hop(protocol, fabric.inside)[1] + 1e6 * fabric.inside_extra_s)
    net_us = _hop(protocol, "net")[1] + 1e6 * fabric.net_extra_s
    latency_us = protocol.base_tree_us + 2 * (
        (math.ceil(ranks / nodes) - 1) * inside_us + (math.ceil(math.log2(nodes)) * net_us if nodes > 1 else 0.0)
    )
    rate = TREE_SHARE * min(fabric.inside_bytes_per_s / 2, fabric.net_bytes_per_s / (1 if nodes == 2 else 2))
    if protocol.name == "LL":
        rate *= TREE_LL_SHARE
    elif protocol.name == "LL128":
        rate *= TREE_LL128_SHARE if nodes == 1 else protocol.efficiency
    else:
        rate *= protocol.efficiency
    rate = min(rate, _capped(float("inf"), protocol) / 2)
    return Candidate(f"tree/{protocol.name}", 1e-6 * latency_us, 1 / rate, TREE_CORRECTION.get(protocol.name, ()))


def _nvls(kind: CollectiveKind, fabric: Fabric, protocol: Protocol) -> list[Candidate]:
    """Each GPU has 1/n of the buffer added by the switch (it reads that part of all GPUs) and writes the sum to all
    through the switch: a port carries S for the others' reads and S/n for its own writes, so S (1 + 1/n) in all."""
    if fabric.port_bytes_per_s <= 0 or fabric.nodes > 1 or kind == "broadcast":
        return []
    parts = 1 + 1 / fabric.ranks if kind == "all_reduce" else 1.0
    latency_us = protocol.base_ring_us + max(0.0, _hop(protocol, "nvlink")[0] + 1e6 * fabric.inside_extra_s)
    rate = _capped(fabric.port_bytes_per_s * protocol.efficiency, protocol)
    return [Candidate("nvls", 1e-6 * latency_us, parts / rate)]


def _hop(protocol: Protocol, kind: str) -> tuple[float, float]:
    """Return the latency of a hop in a ring and in a tree; kinds of links that NCCL has no number for are as PCIe."""
    return protocol.hop_us.get(kind) or protocol.hop_us.get("pcie") or next(iter(protocol.hop_us.values()), (0.0, 0.0))


def _capped(rate: float, protocol: Protocol) -> float:
    return rate if protocol.cap_bytes_per_s is None else min(rate, protocol.cap_bytes_per_s)


def cheapest(candidates: Sequence[Candidate], nbytes: float) -> Cost:
    """Return the fastest of NCCL's *candidates* for a message; the earlier of two equal ones."""
    best, least = candidates[0], float("inf")
    for candidate in candidates:
        time = candidate.seconds(nbytes)
        if time < least:
            best, least = candidate, time
    return Cost(least, best.latency_s, best.algorithm)


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


def mpi(
    kind: CollectiveKind, ranks: int, nbytes: float, points: Points, reduce_bytes_per_s: float, extra_s: float = 0.0
) -> Cost:
    """Return the cost of the fastest of MPI's algorithms for a collective.

    *points* are one-way times by message size, *extra_s* what each message takes beyond them (more switches);
    *reduce_bytes_per_s* is how many bytes of a sum are made a second, 0 for no cost.
    """
    if ranks == 1:
        return Cost(0.0, 0.0, "none")
    add_s = 1.0 / reduce_bytes_per_s if reduce_bytes_per_s > 0 else 0.0

    def send(size: float) -> float:
        return interpolated(points, size) + extra_s

    best = ""
    least = float("inf")
    for name, seconds in _MPI[kind].items():
        time = seconds(ranks, nbytes, send, add_s)
        if time < least:
            best, least = name, time
    return Cost(least, min(_MPI[kind][best](ranks, 0.0, send, add_s), least), best)


_Send = Callable[[float], float]


def _recursive_doubling(ranks: int, nbytes: float, send: _Send, add_s: float) -> float:
    rounds = ranks.bit_length() - 1
    fold = 0.0 if ranks == 1 << rounds else 2 * send(nbytes) + nbytes * add_s
    return fold + rounds * (send(nbytes) + nbytes * add_s)


def _rabenseifner(ranks: int, nbytes: float, send: _Send, add_s: float) -> float:
    rounds = ranks.bit_length() - 1
    time = 0.0 if ranks == 1 << rounds else 2 * send(nbytes) + nbytes * add_s
    part = nbytes
    for _ in range(rounds):
        part /= 2
        time += 2 * send(part) + part * add_s
    return time


def _ring_all_reduce(ranks: int, nbytes: float, send: _Send, add_s: float) -> float:
    part = nbytes / ranks
    return (ranks - 1) * (2 * send(part) + part * add_s)


def _ring_reduce_scatter(ranks: int, nbytes: float, send: _Send, add_s: float) -> float:
    part = nbytes / ranks
    return (ranks - 1) * (send(part) + part * add_s)


def _halving(ranks: int, nbytes: float, send: _Send, add_s: float) -> float:
    rounds = ranks.bit_length() - 1
    time = 0.0 if ranks == 1 << rounds else send(nbytes) + nbytes * add_s + send(nbytes / ranks)
    part = nbytes
    for _ in range(rounds):
        part /= 2
        time += send(part) + part * add_s
    return time


def _ring_all_gather(ranks: int, nbytes: float, send: _Send, add_s: float) -> float:
    return (ranks - 1) * send(nbytes / ranks)


def _doubling(ranks: int, nbytes: float, send: _Send, add_s: float) -> float:
    rounds = ranks.bit_length() - 1
    time = 0.0 if ranks == 1 << rounds else send(nbytes) + send(nbytes / ranks)
    part = nbytes
    for _ in range(rounds):
        part /= 2
        time += send(part)
    return time


def _binomial(ranks: int, nbytes: float, send: _Send, add_s: float) -> float:
    return (ranks - 1).bit_length() * send(nbytes)


def _scatter_all_gather(ranks: int, nbytes: float, send: _Send, add_s: float) -> float:
    """Van de Geijn's broadcast: a binomial scatter, then a ring all-gather."""
    time, part = 0.0, nbytes
    for _ in range((ranks - 1).bit_length()):
        part /= 2
        time += send(part)
    return time + _ring_all_gather(ranks, nbytes, send, add_s)


_MPI: dict[CollectiveKind, dict[str, Callable[[int, float, _Send, float], float]]] = {
    "all_reduce": {
        "recursive doubling": _recursive_doubling,
        "rabenseifner": _rabenseifner,
        "ring": _ring_all_reduce,
    },
    "reduce_scatter": {"recursive halving": _halving, "ring": _ring_reduce_scatter},
    "all_gather": {"recursive doubling": _doubling, "ring": _ring_all_gather},
    "broadcast": {"binomial tree": _binomial, "scatter and all-gather": _scatter_all_gather},
}
