"""What a collective costs with NCCL: its own choice among its algorithms, and the time of the chosen one.

NCCL's choice
    Its tuning model, src/graph/tuning.cc: seconds = latency + bytes / algorithm bandwidth, one such line for each
    algorithm and protocol, and the fastest is used (`Candidate.estimate_s`). A ring has 2(n-1) steps for an all-reduce,
    n-1 for the others, of which 2 or 1 for each further node cross the network; a tree has a chain of the GPUs of a
    node and a binary tree of the nodes. LL writes flags with the data, LL128 has 120 of 128 bytes of data and needs
    NVLink, Simple waits for whole chunks. NVLS lets the NVSwitch add and copy; a tree of NVLS joins nodes.

Time (`Candidate.seconds`): what that model leaves out is added
    - A collective is a kernel: the device's smallest one takes `kernel_s`.
    - Small messages use few channels (a thread block each): as many as get `least` bytes each. So their bytes pass at
      that many times one channel's rate, and while channels are added the time stays the same.
    - A thread block moves data all the time, but in a step of a ring it first receives: the last chunk of each channel,
      of at most `chunk` bytes, is copied when nothing else moves any more.
    - NVLS goes through the buffer in rounds of one chunk for each channel and rank, and each round waits for all ranks:
      one hop. Chunks are smaller for smaller buffers.
    The bandwidths are what the links carry, from the steps and the graph (`fabrics`).

Where NCCL's choice has other numbers (v2.28.3)
    - Trees over two nodes: half of a ring's rate, where here each node sends every byte once. Levels of a tree: log2 of
      the nodes rounded down, here up; its chain: the mean number of ranks of a node, here the largest.
    - Broadcasts: n hops of the slowest sort, or one where all rings are alike; here the n - 1 hops as they come.
    - Rings over nodes: at least 1 or 2 us a step for posting to the network (Simple 3 times that), here only hops; the
      plateau from 64 bytes a channel and rank on, here for all; 1.9 before Ampere (none in v2.5), here 1.4.
    - Delays of a NIC count twice with Simple, here more switches once.
    - NVLS: by its own search's channels, of which one less counts; here by a port's bytes. Its trees: what a ring over
      the NICs reaches, with a cap on each channel; here what the steps reach.
    - Trees of v2.5 (Volta, Pascal): 0.9, LL 1/3, at most 90 GB/s (70 over nodes); here as later ones.

What it leaves out
    CollNet and PAT; how channels that began in step drift apart, which makes long messages up to a tenth faster; that
    one process which drives several GPUs launches one after another.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from simgd.collectives import Cost, bus_share
from simgd.fabrics import Fabric
from simgd.profile import CollectiveKind, Library, Protocol

#: NCCL's trees reach this share of the rings' bandwidth (tuning.cc: 0.9 in v2.8, 0.92 since v2.12).
TREE_SHARE = 0.92

#: Of that, LL in trees reaches 1/3.8 (tuning.cc, since v2.8), LL128 on one node 7/9 and over several 120/128.
TREE_LL_SHARE, TREE_LL128_SHARE, TREE_LL128_NET_SHARE = 1 / 3.8, 7 / 9, 120 / 128

#: "Plateau effect of ring": over several nodes NCCL multiplies the latency of Ring/Simple all-reduces (tuning.cc: by
#: 1.9 before Ampere, 1.4 since).
PLATEAU = 1.4

#: NVLS has 16 channels (nvls.cc, Hopper) and chunks of 128 KiB, which are halved while the buffer has less than so many
#: times the bytes of a round of the full chunks (enqueue.cc: 64, 8 and 2).
NVLS_CHUNK, NVLS_HALVED_BELOW = 128 * 1024, (64, 8, 2)

#: "Trees are not perfectly sticking to the model for medium sizes" (tuning.cc): measured bandwidth over the model's, at
#: 64 B, 128 B, ... 256 MiB, and 1 from 512 MiB on. NCCL steps at powers of two; here the factor is linear between them,
#: in log bytes. These are v2.28's; LL128's differ from v2.8's.
TREE_CORRECTION: dict[str, tuple[float, ...]] = {
    "LL": (1, 1, 1, 1, 0.9, 0.8, *(0.7,) * 4, 0.6, 0.5, 0.4, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1, 1, 1, 1),
    "LL128": (*(1,) * 5, 0.9, 0.8, 0.8, 0.8, 0.7, *(0.6,) * 6, 0.8, *(0.9,) * 4, 1, 1, 1),
    "Simple": (*(0.9,) * 7, 0.8, 0.7, 0.6, 0.6, *(0.5,) * 4, 0.6, 0.7, 0.8, 0.7, 0.7, 0.8, 0.9, 0.9, 1),
}


#: Kinds for which NCCL has no algorithm but its sends and receives.
DIRECT: tuple[CollectiveKind, ...] = ("all_to_all", "exchange", "push", "pull")


class Candidate(NamedTuple):
    """One algorithm of NCCL: ``latency_s + nbytes * s_per_byte``, the slope divided by `correction`; by NCCL's own
    formula with `estimated_s_per_byte` where that is another slope.

    The other fields are what the formula leaves out: `channels` that take `channel_s_per_byte` each, as many as get
    `least` bytes; a `tail` (bytes of a channel's last chunk at most, seconds for each byte, number of parts of a
    channel's bytes); NVLS's rounds of `round_s`, whose full chunks make `round_bytes`. 0 where nothing is known.

    For the flows of its steps one by one (`transfers`): `latency_s` is `base_s` and hops, of which one takes `hops_s`
    inside a node and between nodes; `steps_s_per_byte` is what the steps ask of the links without any overhead.
    """

    algorithm: str
    latency_s: float
    s_per_byte: float
    correction: tuple[float, ...] = ()
    estimated_s_per_byte: float = 0.0
    kernel_s: float = 0.0
    channels: int = 0
    channel_s_per_byte: float = 0.0
    least: float = 0.0
    tail: tuple[float, float, float] = (0.0, 0.0, 1.0)
    round_s: float = 0.0
    round_bytes: float = 0.0
    base_s: float = 0.0
    hops_s: tuple[float, float] = (0.0, 0.0)
    steps_s_per_byte: float = 0.0

    def estimate_s(self, nbytes: float) -> float:
        """Return the time that NCCL's tuning model expects."""
        return self.latency_s + self._volume_s(nbytes, self.estimated_s_per_byte or self.s_per_byte)

    def seconds(self, nbytes: float) -> float:
        """Return the time of a message."""
        moving_s = max(self.volume_s(nbytes), self.channels_s(nbytes))
        return self.kernel_s + self.latency_s + moving_s + self.extra_s(nbytes)

    def volume_s(self, nbytes: float) -> float:
        """Return how long the links are busy."""
        return self._volume_s(nbytes, self.s_per_byte)

    def channels_s(self, nbytes: float) -> float:
        """Return how long the channels in use are busy."""
        return nbytes / self._used(nbytes) * self.channel_s_per_byte if self.channels else 0.0

    def extra_s(self, nbytes: float) -> float:
        """Return what the last chunk and the rounds of NVLS add."""
        time = 0.0
        if self.channels:
            chunk, s_per_byte, parts = self.tail
            time += min(chunk, nbytes / (self._used(nbytes) * parts)) * s_per_byte
        if self.round_bytes:
            halvings = sum(nbytes < times * self.round_bytes for times in NVLS_HALVED_BELOW)
            time += self.round_s * nbytes / (self.round_bytes / 2**halvings)
        return time

    def _used(self, nbytes: float) -> float:
        return min(self.channels, max(1.0, nbytes / self.least)) if self.least else self.channels

    def _volume_s(self, nbytes: float, s_per_byte: float) -> float:
        time = nbytes * s_per_byte
        if not self.correction or nbytes <= 0:
            return time
        place = min(max(math.log2(nbytes) - 6, 0.0), len(self.correction) - 1.0)
        low = min(int(place), len(self.correction) - 2)
        a, b = self.correction[low], self.correction[low + 1]
        return time / (a + (place - low) * (b - a))


def candidates(kind: CollectiveKind, fabric: Fabric, library: Library, kernel_s: float = 0.0) -> tuple[Candidate, ...]:
    """Return NCCL's algorithms for a collective on *fabric*; *kernel_s* is what the smallest kernel takes.

    A protocol named "NVLS" stands for in-switch reduction: its base is `base_ring_us` plus the first nvlink hop, and
    without hops of its own between nodes it has those of Simple's trees. One rank alone has nothing to do.
    """
    if fabric.ranks == 1:
        return (Candidate("none", 0.0, 0.0),)
    if kind in DIRECT:
        simple = [protocol for protocol in library.protocols if protocol.name == "Simple"]
        return tuple(_direct(kind, fabric, protocol)._replace(kernel_s=kernel_s) for protocol in simple)
    found: list[Candidate] = []
    for protocol in library.protocols:
        if protocol.name == "NVLS":
            found += _nvls(kind, fabric, library, protocol)
        elif protocol.name != "LL128" or fabric.inside == "nvlink":
            found.append(_ring(kind, fabric, library, protocol))
            if kind == "all_reduce":
                found.append(_tree(fabric, library, protocol))
    return tuple(each._replace(kernel_s=kernel_s) for each in found)


def unknown(kind: CollectiveKind, fabric: Fabric, step_s: float) -> Candidate:
    """Return a ring whose steps take *step_s*, for a library of which nothing is known."""
    if fabric.ranks == 1:
        return Candidate("none", 0.0, 0.0)
    if kind in DIRECT:
        return Candidate("direct", step_s, fabric.direct(kind).s_per_byte)
    steps = (2 if kind == "all_reduce" else 1) * (fabric.ranks - 1)
    return Candidate("ring", steps * step_s, bus_share(kind, fabric.ranks) / fabric.ring_bytes_per_s)


def chosen(found: Sequence[Candidate], nbytes: float) -> Candidate:
    """Return the candidate that NCCL's own formula finds fastest for a message; the earlier of two equal ones."""
    return min(found, key=lambda candidate: candidate.estimate_s(nbytes))


def cheapest(found: Sequence[Candidate], nbytes: float) -> Cost:
    """Return the cost of the candidate that NCCL chooses for a message."""
    best = chosen(found, nbytes)
    return Cost(best.seconds(nbytes), best.kernel_s + best.latency_s, best.algorithm)


def _ring(kind: CollectiveKind, fabric: Fabric, library: Library, protocol: Protocol) -> Candidate:
    ranks, nodes = fabric.ranks, fabric.nodes
    turns = 2 if kind == "all_reduce" else 1
    steps = turns * (ranks - 1)
    crossing = turns * (nodes - 1)
    inside_us = _inside_us(_hop(protocol, fabric.inside)[0], fabric)
    # With one rank a node nothing hides the network's latency: NCCL takes a tree's hop (tuning.cc, v2.28). Simple's two
    # are equal there; before, the tree's was that of a chunk, which a ring's step does not wait for.
    exposed = fabric.most == 1 and protocol.name != "Simple"
    net_us = _hop(protocol, "net")[1 if exposed else 0] + 1e6 * fabric.net_extra_s
    plateau = PLATEAU if nodes > 1 and kind == "all_reduce" and protocol.name == "Simple" else 1.0
    latency_us = plateau * (protocol.base_ring_us + (steps - crossing) * inside_us + crossing * net_us)
    rate = _capped(fabric.ring_bytes_per_s * protocol.efficiency, protocol, nodes)
    share = bus_share(kind, ranks)
    channel = _channel(protocol.channel_bytes_per_s, protocol, fabric)
    expected = min(rate, library.channels * channel or rate) if protocol.name == "LL128" else rate
    return Candidate(
        f"ring/{protocol.name}",
        1e-6 * latency_us,
        share / rate,
        estimated_s_per_byte=share / expected,
        channels=library.channels if channel else 0,
        channel_s_per_byte=share / channel if channel else 0.0,
        least=max(protocol.least_bytes, ranks * protocol.least_bytes_a_rank),
        tail=(protocol.chunk, 1 / channel, float(ranks)) if channel else (0.0, 0.0, 1.0),
        base_s=1e-6 * plateau * protocol.base_ring_us,
        hops_s=(1e-6 * plateau * inside_us, 1e-6 * plateau * net_us),
        steps_s_per_byte=share / fabric.ring_bytes_per_s,
    )


def _tree(fabric: Fabric, library: Library, protocol: Protocol) -> Candidate:
    """Return the line of a chain in each node and a double binary tree of nodes; its rate is that of its steps.

    NCCL itself expects half of a ring's rate on one node, though a chain may use both directions of every link.
    """
    nodes = fabric.nodes
    inside_us = _inside_us(_hop(protocol, fabric.inside)[1], fabric)
    net_us = _hop(protocol, "net")[1] + 1e6 * fabric.net_extra_s
    levels = math.ceil(math.log2(nodes))
    latency_us = protocol.base_tree_us + 2 * ((fabric.most - 1) * inside_us + levels * net_us)
    share = TREE_SHARE * (TREE_LL_SHARE if protocol.name == "LL" else protocol.efficiency)
    if protocol.name == "LL128":
        share = TREE_SHARE * (TREE_LL128_SHARE if nodes == 1 else TREE_LL128_NET_SHARE)
    most = _capped(float("inf"), protocol, nodes) / 2
    rate = min(share * fabric.tree_bytes_per_s, most)
    channel = _channel(protocol.tree_channel_bytes_per_s, protocol, fabric)
    expected = min(share * fabric.ring_bytes_per_s / 2, most) if nodes == 1 else rate
    expected = min(expected, library.channels * channel / 2 or expected)
    return Candidate(
        f"tree/{protocol.name}",
        1e-6 * latency_us,
        1 / rate,
        TREE_CORRECTION.get(protocol.name, ()),
        1 / expected,
        channels=library.channels if channel else 0,
        # a rank inside the tree receives and sends on, up and down; of two ranks none is
        channel_s_per_byte=(1 if fabric.ranks == 2 else 2) / channel if channel else 0.0,
        least=protocol.least_bytes,
        base_s=1e-6 * protocol.base_tree_us,
        hops_s=(1e-6 * inside_us, 1e-6 * net_us),
        steps_s_per_byte=1 / fabric.tree_bytes_per_s,
    )


def _nvls(kind: CollectiveKind, fabric: Fabric, library: Library, protocol: Protocol) -> list[Candidate]:
    """Return in-switch reduction on one node, and a tree of it over several."""
    name = "nvls" if fabric.nodes == 1 else "nvls tree"
    offered = fabric.switched.get((kind, name))
    if offered is None:
        return []
    plain = next((other for other in library.protocols if other.name == "Simple"), protocol)
    net_us = _hop(protocol if "net" in protocol.hop_us else plain, "net")[1] + 1e6 * fabric.net_extra_s
    levels = math.ceil(math.log2(fabric.nodes))
    inside_us = _inside_us(_hop(protocol, "nvlink")[0], fabric)
    latency_us = protocol.base_ring_us + inside_us + 2 * levels * net_us
    simple = _hop(plain, "nvlink")[0] if plain is not protocol else 0.0
    # a device's port carries what others read of it and, for an all-reduce, its own part of the sum
    port_s = (1 + 1 / fabric.most if kind == "all_reduce" else 1.0) / fabric.port_bytes_per_s
    return [
        Candidate(
            name,
            1e-6 * latency_us,
            max(port_s / protocol.efficiency, offered.s_per_byte),
            round_s=1e-6 * _inside_us(simple, fabric),
            round_bytes=library.nvls_channels * fabric.most * NVLS_CHUNK,
            base_s=1e-6 * (protocol.base_ring_us + inside_us),
            hops_s=(0.0, 1e-6 * net_us),
            steps_s_per_byte=offered.s_per_byte,
        )
    ]


def _direct(kind: CollectiveKind, fabric: Fabric, protocol: Protocol) -> Candidate:
    """Return sends and receives that all happen at once: one hop."""
    hop = _hop(protocol, "net" if fabric.nodes > 1 else fabric.inside)[0]
    extra_s = fabric.net_extra_s if fabric.nodes > 1 else fabric.inside_extra_s
    base_s, hop_s = 1e-6 * protocol.base_ring_us, max(0.0, 1e-6 * hop + extra_s)
    steps_s_per_byte = fabric.direct(kind).s_per_byte
    return Candidate(
        "direct",
        base_s + hop_s,
        steps_s_per_byte / protocol.efficiency,
        base_s=base_s,
        hops_s=(hop_s, hop_s),
        steps_s_per_byte=steps_s_per_byte,
    )


def _hop(protocol: Protocol, kind: str) -> tuple[float, float]:
    """Return the latency of a hop in a ring and in a tree; kinds of links that NCCL has no number for are as PCIe."""
    return protocol.hop_us.get(kind) or protocol.hop_us.get("pcie") or next(iter(protocol.hop_us.values()), (0.0, 0.0))


def _inside_us(hop_us: float, fabric: Fabric) -> float:
    """Return a hop inside a node, where its links may be longer than the library's constants speak of."""
    return max(0.0, hop_us + 1e6 * fabric.inside_extra_s)


def _of_nodes(rates: Sequence[float], nodes: int) -> float:
    """Return the one of up to three rates that is for one node, two, or more; 0 for none."""
    return rates[min(nodes, len(rates), 3) - 1] if rates else 0.0


def _channel(rates: Sequence[float], protocol: Protocol, fabric: Fabric) -> float:
    """Return what a channel moves at most: with faster links that much more, but for LL, as NCCL would open more."""
    return _of_nodes(rates, fabric.nodes) * (1.0 if protocol.name == "LL" else max(1.0, fabric.inside_faster))


def _capped(rate: float, protocol: Protocol, nodes: int) -> float:
    return min(rate, _of_nodes(protocol.cap_bytes_per_s, nodes) or float("inf"))
