"""NCCL's choice against its own tuning formula, written out again here, and the time that the formula leaves out."""

import math
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simgd import catalogue, nccl
from simgd.collectives import bus_share
from simgd.fabrics import Fabric
from simgd.nccl import Candidate
from simgd.network import Network
from simgd.profile import CollectiveKind, Library, Protocol, ScheduledKind

KIB, MIB, GIB = 2**10, 2**20, 2**30
KINDS: tuple[ScheduledKind, ...] = ("all_reduce", "reduce_scatter", "all_gather", "broadcast")
STRAIGHT: tuple[CollectiveKind, ...] = ("all_to_all", "exchange", "push", "pull")
PROTOCOLS = ("LL", "LL128", "Simple")


# --- the oracle: src/graph/tuning.cc of NCCL 2.28.3 (Ampere, Hopper) and of 2.5 (Volta), in microseconds and GB/s

#: Of an algorithm: LL, LL128 and Simple.
Three = tuple[float, float, float]

BASE: dict[str, Three] = {"tree": (6.8, 14.0, 8.4), "ring": (6.6, 14.0, 8.4)}
NVLINK: dict[str, Three] = {"tree": (0.6, 1.25, 4.0), "ring": (0.6, 1.9, 3.4)}
NET: dict[str, Three] = {"tree": (5.0, 8.5, 14.0), "ring": (2.7, 4.0, 14.0)}

#: By architecture, for one node, two, and more: most of LL (beyond a node NCCL picks the row by the host's processor,
#: AMD's in a DGX A100 and Intel's in a DGX H100), and of one channel of the search.
LL_MOST = {"ampere": (87.7, 22.5, 19.0), "hopper": (141.0, 39.0, 20.4)}
RING_LL128 = {"ampere": (20.0, 20.0, 20.0), "hopper": (36.7, 36.7, 36.7)}
TREE_LL128 = {"ampere": (20.0, 20.0, 20.0), "hopper": (36.7, 36.7, 29.0)}
TREE = {"ampere": (24.0, 23.6, 17.8), "hopper": (38.7, 41.4, 36.0)}

#: Share of a tree's bandwidth at 64 B, 128 B, ... 256 MiB.
CORRECTION = {
    "LL": (1, 1, 1, 1, 0.9, 0.8, 0.7, 0.7, 0.7, 0.7, 0.6, 0.5, 0.4, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1, 1, 1),
    "LL128": (1, 1, 1, 1, 1, 0.9, 0.8, 0.8, 0.8, 0.7) + 6 * (0.6,) + (0.8, 0.9, 0.9, 0.9, 0.9, 1, 1),
    "Simple": 7 * (0.9,) + (0.8, 0.7, 0.6, 0.6, 0.5, 0.5, 0.5, 0.5, 0.6, 0.7, 0.8, 0.7, 0.7, 0.8, 0.9, 0.9),
}

VOLTA_BASE: Three = (3.6, 3.6, 8.4)
VOLTA_NVLINK: Three = (0.4, 2.5, 5.7)


def steps_of(kind: CollectiveKind, ranks: int) -> int:
    return {"all_reduce": 2 * (ranks - 1), "broadcast": ranks}.get(kind, ranks - 1)


def tuned_ring_s(
    kind: CollectiveKind, protocol: str, nbytes: float, *, ranks: int, nodes: int, bus: float, arch: str
) -> float:
    """NCCL 2.28's time of a ring of 12 channels of the search, without its overhead of posting to the network."""
    at, of = min(nodes, 3) - 1, PROTOCOLS.index(protocol)
    if protocol == "LL":
        bus = min(bus / 2, LL_MOST[arch][at])
    elif protocol == "LL128":
        bus = min(0.92 * bus, 12 * RING_LL128[arch][at])
    crossing = (2 if kind == "all_reduce" else 1) * (nodes - 1)
    net = NET["tree" if ranks == nodes else "ring"][of]
    steps = steps_of(kind, ranks)
    latency = BASE["ring"][of] + (steps - crossing) * NVLINK["ring"][of] + crossing * net
    if protocol == "Simple" and nodes > 1 and kind == "all_reduce":
        latency *= 1.4
    return 1e-6 * (latency + nbytes / (1000 * bus * ranks / steps))


def tuned_tree_s(protocol: str, nbytes: int, *, ranks: int, nodes: int, bus: float, arch: str) -> float:
    """NCCL 2.28's time of an all-reduce in a tree."""
    at, of = min(nodes, 3) - 1, PROTOCOLS.index(protocol)
    bus = min(0.92 * bus, 12 * TREE[arch][at])
    if protocol == "LL":
        bus = min(bus / 3.8, LL_MOST[arch][at])
    elif protocol == "LL128":
        bus = min(bus * (7 / 9 if nodes == 1 else 120 / 128), 12 * TREE_LL128[arch][at])
    place = nbytes.bit_length() - 7
    if 0 <= place < 23:
        bus *= CORRECTION[protocol][place]
    hops = (ranks // nodes - 1) * NVLINK["tree"][of] + (nodes.bit_length() - 1) * NET["tree"][of]
    return 1e-6 * (BASE["tree"][of] + 2 * hops + nbytes / (1000 * bus / 2))


def tuned_volta_ring_s(kind: CollectiveKind, protocol: str, nbytes: float, *, ranks: int, bus: float) -> float:
    """NCCL 2.5's time of a ring on one node."""
    of = PROTOCOLS.index(protocol)
    bus = {"LL": bus / 4, "LL128": min(bus * 120 / 128, 100.0), "Simple": bus}[protocol]
    steps = steps_of(kind, ranks)
    return 1e-6 * (VOLTA_BASE[of] + steps * VOLTA_NVLINK[of] + nbytes / (1000 * bus * ranks / steps))


# --- the same from the shipped machines --------------------------------------------------------------------------


def machine(name: str) -> Network:
    """A shipped machine, without measured curves."""
    profile = msgspec.structs.replace(catalogue.profile(name.partition(":")[0]), curves=(), fits=())
    return Network(catalogue.cluster(name), profile)


def found(
    network: Network, kind: CollectiveKind, ranks: int, devices: tuple[int, ...] | None = None
) -> dict[str, Candidate]:
    library = network.profile.library
    assert library is not None
    return {each.algorithm: each for each in nccl.candidates(kind, network.fabric(ranks, devices), library)}


#: The sizes that the two are held against: powers of two, where NCCL's steps and the lines between them meet.
SIZES = [2**power for power in range(6, 34)]

#: GB/s of rings: 12 NVLinks of 20 on a DGX A100, 18 of 20.6 on a DGX H100 (371, where NCCL's search stops at 360);
#: between nodes 8 NICs of 24 and of 48.
BUS = {"dgx-a100": ("ampere", 240.0, 192.0), "dgx-h100": ("hopper", 370.8, 384.0)}


@pytest.mark.parametrize("name", BUS)
@pytest.mark.parametrize("nodes", [1, 2, 4, 16])
@pytest.mark.parametrize("kind", ["all_reduce", "all_gather", "reduce_scatter"])
def test_rings_are_expected_to_take_what_nccls_formula_says(name: str, nodes: int, kind: CollectiveKind) -> None:
    arch, inside, between = BUS[name]
    bus, ranks = inside if nodes == 1 else between, 8 * nodes
    rings = found(machine(f"{name}:{nodes}"), kind, ranks)
    for protocol in PROTOCOLS:
        for nbytes in SIZES:
            expected = tuned_ring_s(kind, protocol, nbytes, ranks=ranks, nodes=nodes, bus=bus, arch=arch)
            assert rings[f"ring/{protocol}"].estimate_s(nbytes) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", BUS)
@pytest.mark.parametrize("nodes", [1, 4, 16])
def test_trees_are_expected_to_take_what_nccls_formula_says(name: str, nodes: int) -> None:
    arch, inside, between = BUS[name]
    bus, ranks = inside if nodes == 1 else between, 8 * nodes
    trees = found(machine(f"{name}:{nodes}"), "all_reduce", ranks)
    for protocol in PROTOCOLS:
        for nbytes in SIZES:
            expected = tuned_tree_s(protocol, nbytes, ranks=ranks, nodes=nodes, bus=bus, arch=arch)
            assert trees[f"tree/{protocol}"].estimate_s(nbytes) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("kind", "protocol"),
    # of LL128, v2.5 has another largest bandwidth for each kind; the profile has that of the all-reduce for all
    [(kind, protocol) for kind in KINDS[:3] for protocol in PROTOCOLS if protocol != "LL128" or kind == "all_reduce"],
)
def test_rings_of_a_v100_node_are_expected_to_take_what_nccl_2_5_says(kind: CollectiveKind, protocol: str) -> None:
    ring = found(machine("dgx1-v100"), kind, 8)[f"ring/{protocol}"]
    for nbytes in SIZES:
        # six NVLinks of 21 GB/s
        expected = tuned_volta_ring_s(kind, protocol, nbytes, ranks=8, bus=126.0)
        assert ring.estimate_s(nbytes) == pytest.approx(expected, rel=1e-9)


# --- where they are not meant to be the same ---------------------------------------------------------------------


def test_a_tree_over_two_nodes_has_the_rate_of_its_steps() -> None:
    # NCCL's formula has half of the rings' 192 GB/s; but of the two trees of two nodes each sends half of the bytes
    # once over the network, up and down. Slower are the chains inside: six GPUs send all bytes on both ways, the first
    # and the last one way; as each is first in one channel of 8, on average 14/8 of the bytes leave a GPU's 240 GB/s.
    tree = found(machine("dgx-a100:2"), "all_reduce", 16)["tree/Simple"]
    assert tree.latency_s == pytest.approx(1e-6 * (8.4 + 2 * (7 * 4 + 14)))
    assert 1 / tree.s_per_byte == pytest.approx(0.92 * 240e9 / (14 / 8))


@pytest.mark.parametrize(("nodes", "levels"), [(2, 1), (3, 2), (4, 2), (5, 3), (6, 3)])
def test_a_tree_has_as_many_levels_as_hold_its_nodes(nodes: int, levels: int) -> None:
    # NCCL's formula rounds log2 of the nodes down: 1 level for three nodes
    tree = found(machine(f"dgx-h100:{nodes}"), "all_reduce", 8 * nodes)["tree/LL"]
    assert tree.latency_s == pytest.approx(1e-6 * (6.8 + 2 * (7 * 0.6 + levels * 5.0)))


def test_a_broadcast_passes_n_less_one_hops_as_they_come() -> None:
    # NCCL's formula: n hops, all over the network if some are, of a tree with Simple; or one where all rings are one
    rings = found(machine("dgx-h100:2"), "broadcast", 16)
    assert rings["ring/LL"].latency_s == pytest.approx(1e-6 * (6.6 + 14 * 0.6 + 2.7))
    assert rings["ring/Simple"].latency_s == pytest.approx(1e-6 * (8.4 + 14 * 3.4 + 14.0))
    assert 1 / rings["ring/Simple"].s_per_byte == pytest.approx(384e9)


def test_posting_to_the_network_is_no_part_of_a_step_inside_a_node() -> None:
    # NCCL's formula lets no step of a ring over nodes take less than 1 us (Intel), or 2 us (AMD), with Simple three
    # times that: LL's rings over nodes are slower by 0.4 us a step. Here only the links count.
    ring = found(machine("dgx-h100:2"), "all_gather", 16)["ring/LL"]
    assert ring.latency_s == pytest.approx(1e-6 * (6.6 + 14 * 0.6 + 2.7))


def test_with_one_rank_a_node_a_ring_pays_a_trees_hop() -> None:
    rings = found(machine("dgx-h100:4"), "all_reduce", 4, (0, 8, 16, 24))
    assert rings["ring/LL"].latency_s == pytest.approx(1e-6 * (6.6 + 6 * 5.0))
    assert rings["ring/LL128"].latency_s == pytest.approx(1e-6 * (14.0 + 6 * 8.5))
    assert rings["ring/Simple"].latency_s == pytest.approx(1.4e-6 * (8.4 + 6 * 14.0))
    # two ranks on one of the nodes hide it again: 2 of 8 steps inside, 6 of 2.7 us
    ring = found(machine("dgx-h100:4"), "all_reduce", 5, (0, 1, 8, 16, 24))["ring/LL"]
    assert ring.latency_s == pytest.approx(1e-6 * (6.6 + 2 * 0.6 + 6 * 2.7))


def test_more_switches_lengthen_each_step_between_nodes_once() -> None:
    # NCCL adds what the NIC's driver says, twice with Simple. 32 nodes of 8 NICs, equal ones under one switch of 40
    # ports: 20 nodes; the others are two switches of 130 ns further.
    near, far = (found(machine(f"dgx-a100:{nodes}"), "all_reduce", 8 * nodes)["tree/Simple"] for nodes in (16, 32))
    assert near.latency_s == pytest.approx(1e-6 * (8.4 + 2 * (7 * 4 + 4 * 14)))
    assert far.latency_s == pytest.approx(1e-6 * (8.4 + 2 * (7 * 4 + 5 * (14 + 0.26))))


def test_reduction_in_the_switches_is_as_fast_as_a_port_that_carries_the_buffer_and_a_part() -> None:
    switched = found(machine("dgx-h100"), "all_reduce", 8)["nvls"]
    assert switched.latency_s == pytest.approx(25e-6)
    # 18 links of 20.6 GB/s, of which 0.85 are reached, carry 1 + 1/8 of the buffer: 280 GB/s; nccl-tests issue 212
    # shows about 275
    assert 1 / switched.s_per_byte == pytest.approx(0.85 * 370.8e9 / (1 + 1 / 8))
    assert 1 / switched.s_per_byte == pytest.approx(275e9, rel=0.02)
    half = found(machine("dgx-h100"), "all_gather", 8)["nvls"]
    assert 1 / half.s_per_byte == pytest.approx(0.85 * 370.8e9)


@pytest.mark.parametrize(("nodes", "levels"), [(2, 1), (4, 2), (16, 4)])
def test_a_tree_of_switches_climbs_the_network_with_its_own_hops(nodes: int, levels: int) -> None:
    joined = found(machine(f"dgx-h100:{nodes}"), "all_reduce", 8 * nodes)["nvls tree"]
    assert joined.latency_s == pytest.approx(1e-6 * (25 + 2 * levels * 20.9))
    # beyond two nodes an inner node sends the buffer twice over its 8 NICs of 48 GB/s; two nodes send it once, and
    # there the ports of the GPUs are slower, of which 0.85 are reached
    expected = 0.85 * 370.8e9 / (1 + 1 / 8) if nodes == 2 else 8 * 48e9 / 2
    assert 1 / joined.s_per_byte == pytest.approx(expected)


def test_a_protocol_has_its_own_hops_between_switches_if_it_names_them() -> None:
    network = machine("dgx-h100:4")
    library = network.profile.library
    assert library is not None
    slow = [
        msgspec.structs.replace(each, hop_us=each.hop_us | {"net": (18.0, 21.0)}) if each.name == "NVLS" else each
        for each in library.protocols
    ]
    library = msgspec.structs.replace(library, protocols=tuple(slow))
    joined = {each.algorithm: each for each in nccl.candidates("all_reduce", network.fabric(32), library)}["nvls tree"]
    assert joined.latency_s == pytest.approx(1e-6 * (25 + 4 * 21))


# --- what NCCL has -----------------------------------------------------------------------------------------------

RINGS = {"ring/LL", "ring/LL128", "ring/Simple"}
TREES = {"tree/LL", "tree/LL128", "tree/Simple"}


@pytest.mark.parametrize(
    ("name", "ranks", "kind", "names"),
    [
        ("dgx-a100", 8, "all_reduce", RINGS | TREES),
        ("dgx-a100", 8, "broadcast", RINGS),
        ("dgx-h100", 8, "all_reduce", RINGS | TREES | {"nvls"}),
        ("dgx-h100", 8, "all_gather", RINGS | {"nvls"}),
        ("dgx-h100", 8, "broadcast", RINGS),
        ("dgx-h100:2", 16, "all_reduce", RINGS | TREES | {"nvls tree"}),
        ("dgx-h100:2", 16, "all_gather", RINGS),
        ("dgx-h100:2", 12, "all_reduce", RINGS | TREES),  # 8 and 4 ranks: no part of the sum for each NIC
        ("pcie-box", 8, "all_reduce", {"ring/LL", "tree/LL", "ring/Simple", "tree/Simple"}),  # LL128 needs NVLink
        ("dgx1-p100", 8, "all_reduce", {"ring/LL", "tree/LL", "ring/Simple", "tree/Simple"}),  # and Volta
        ("dgx-h100", 8, "all_to_all", {"direct"}),
        ("dgx-h100:2", 16, "push", {"direct"}),
    ],
)
def test_a_machine_offers_its_algorithms(name: str, ranks: int, kind: CollectiveKind, names: set[str]) -> None:
    assert found(machine(name), kind, ranks).keys() == names


def test_nccl_chooses_by_its_formula_and_not_by_the_time() -> None:
    quick = Candidate("expected", 1e-6, 1e-9, estimated_s_per_byte=1e-12)
    other = Candidate("fast", 2e-6, 1e-12)
    assert nccl.chosen([quick, other], 10**6) is quick
    assert nccl.cheapest([quick, other], 10**6) == (1e-6 + 1e-3, 1e-6, "expected")


def test_of_two_equal_estimates_the_earlier_is_chosen() -> None:
    assert nccl.chosen([Candidate("one", 1e-6, 0.0), Candidate("other", 1e-6, 0.0)], 8).algorithm == "one"


def test_small_messages_use_ll_large_ones_simple_or_the_switches() -> None:
    for name, large in (("dgx-a100", "ring/Simple"), ("dgx-h100", "nvls"), ("dgx1-v100", "ring/Simple")):
        every = list(found(machine(name), "all_reduce", 8).values())
        assert nccl.chosen(every, 8).algorithm == "ring/LL"
        assert nccl.chosen(every, GIB).algorithm == large


def test_trees_are_chosen_where_a_ring_would_be_long() -> None:
    every = list(found(machine("dgx-a100:16"), "all_reduce", 128).values())
    # 1 KiB: LL in a tree 6.8 + 2 x (7 x 0.6 + 4 x 5) = 55.2 us; in a ring 254 steps
    assert nccl.chosen(every, 1024).algorithm == "tree/LL"


# --- what the formula leaves out ---------------------------------------------------------------------------------


def test_channels_are_added_while_each_gets_its_least_and_time_stands_still_meanwhile() -> None:
    # 4 channels of 1 GB/s, 1 kB each at least; the links would take a tenth
    one = Candidate("ring", 0.0, 1e-10 / 4, channels=4, channel_s_per_byte=1e-9, least=1000)
    # one channel until 1 kB; then as many as get 1 kB; from 4 kB on all four
    assert [one.seconds(nbytes) for nbytes in (500, 1000, 1500, 4000, 8000)] == pytest.approx(
        [0.5e-6, 1e-6, 1e-6, 1e-6, 2e-6]
    )
    assert one.estimate_s(8000) == pytest.approx(0.2e-6)


def test_links_that_are_slower_than_their_channels_decide() -> None:
    one = Candidate("ring", 0.0, 1e-9, channels=4, channel_s_per_byte=1e-9, least=1000)
    # 8 kB: 2 us in four channels, 8 us over the links
    assert one.seconds(8000) == pytest.approx(8e-6)


def test_the_last_chunk_of_each_channel_is_copied_at_the_end() -> None:
    # two channels; a chunk of 1 kB at most, of a channel's bytes a quarter (four ranks), at 1 GB/s
    one = Candidate("ring", 0.0, 0.0, channels=2, channel_s_per_byte=0.0, least=1000, tail=(1000.0, 1e-9, 4.0))
    # 800 B: one channel, 200 B of it; 4 kB: two channels, 500 B; 16 kB: 2 kB would be more than a chunk
    assert [one.seconds(nbytes) for nbytes in (800, 4000, 16000)] == pytest.approx([0.2e-6, 0.5e-6, 1e-6])
    assert one.extra_s(16000) == pytest.approx(1e-6)


def test_nvls_takes_a_hop_for_each_round_of_chunks_and_halves_these_for_small_buffers() -> None:
    one = Candidate("nvls", 0.0, 0.0, round_s=1e-6, round_bytes=1000.0)
    # 100 kB: 100 rounds; below 64 rounds' bytes chunks are half as large, below 8 a quarter, below 2 an eighth
    times = [one.seconds(nbytes) for nbytes in (100_000, 64_000, 63_000, 8_000, 7_000, 2_000, 1_000)]
    assert times == pytest.approx([100e-6, 64e-6, 126e-6, 16e-6, 28e-6, 8e-6, 8e-6])


def test_a_round_of_nvls_is_a_chunk_for_each_channel_and_rank() -> None:
    switched = found(machine("dgx-h100"), "all_reduce", 8)["nvls"]
    # 16 channels, 8 GPUs, 128 KiB; a round waits for one hop of Simple
    assert switched.round_bytes == 16 * 8 * 128 * KIB == 16 * MIB
    assert switched.round_s == pytest.approx(3.4e-6)


def test_a_trees_bandwidth_is_linear_in_log_bytes_between_powers_of_two() -> None:
    one = Candidate("tree/LL", 0.0, 1e-9, correction=(1.0, 0.5))
    # the share of 64 B, half way, of 128 B; held beyond
    assert [one.seconds(nbytes) / nbytes for nbytes in (1, 64, 64 * math.sqrt(2), 128, 1e9)] == pytest.approx(
        [1e-9, 1e-9, 1e-9 / 0.75, 2e-9, 2e-9]
    )
    assert one.seconds(0) == 0.0


def test_every_correction_ends_with_the_plain_formula() -> None:
    for shares in nccl.TREE_CORRECTION.values():
        assert len(shares) == 24
        assert shares[-1] == 1


def test_a_kernel_is_counted_once_and_only_in_the_time() -> None:
    network = machine("dgx-a100")
    library, memory = network.profile.library, network.profile.memory
    assert library is not None
    assert memory is not None
    plain = nccl.candidates("all_reduce", network.fabric(8), library)
    launched = nccl.candidates("all_reduce", network.fabric(8), library, memory.kernel)
    for one, other in zip(plain, launched, strict=True):
        assert other.estimate_s(MIB) == one.estimate_s(MIB)
        assert other.seconds(MIB) == pytest.approx(one.seconds(MIB) + memory.kernel)
    cost, bare = nccl.cheapest(launched, MIB), nccl.cheapest(plain, MIB)
    assert cost.latency_s == pytest.approx(bare.latency_s + memory.kernel)
    # the network's answer is that cost
    assert network.seconds("all_reduce", MIB, 8) == cost.seconds


def test_eight_a100_take_the_time_that_is_derived_here() -> None:
    ring = found(machine("dgx-a100"), "all_reduce", 8)["ring/Simple"]
    # 8.4 us + 14 steps of 3.4 us
    latency_s = 56e-6
    # 256 KiB: 8 channels get 32 KiB each, at 12 GB/s of traffic; a ring sends 7/4 of it; then a channel's last chunk,
    # an eighth of its 32 KiB, is copied
    assert ring.seconds(256 * KIB) == pytest.approx(latency_s + 32 * KIB * 1.75 / 12e9 + 4 * KIB / 12e9)
    # 1 GiB: 24 channels could move 288 GB/s, the links 240; of a channel's part an eighth is more than a chunk of 2 MiB
    assert ring.seconds(GIB) == pytest.approx(latency_s + GIB * 1.75 / 240e9 + 2 * MIB / 12e9)


def test_channels_grow_with_faster_links_but_not_those_of_ll() -> None:
    profile = msgspec.structs.replace(catalogue.profile("dgx-a100"), curves=())
    before, after = (
        found(Network(profile.cluster, profile, {"nvlink": scale}), "all_reduce", 8) for scale in (1.0, 3.0)
    )
    assert after["ring/Simple"].channel_s_per_byte == pytest.approx(before["ring/Simple"].channel_s_per_byte / 3)
    assert after["ring/LL"].channel_s_per_byte == before["ring/LL"].channel_s_per_byte


def test_the_formula_caps_what_all_channels_of_ll128_and_of_trees_move() -> None:
    # a made-up library of one protocol, whose two channels of 1 GB/s (tree: 3 GB/s) are slower than the links
    network = machine("dgx-a100")
    slow = Protocol(
        name="LL128",
        base_ring_us=0.0,
        base_tree_us=0.0,
        hop_us={"nvlink": (0.0, 0.0)},
        efficiency=0.92,
        channel_bytes_per_s=(1e9,),
        tree_channel_bytes_per_s=(3e9,),
    )
    library = Library(name="nccl", protocols=(slow,), channels=2, origin="assumed", source="a test")
    ring, tree = nccl.candidates("all_reduce", network.fabric(8), library)
    # 7/4 of the bytes at 2 GB/s; up and down at 6 GB/s
    assert ring.estimate_s(1e9) == pytest.approx(1.75 / 2)
    assert tree.estimate_s(1e9) == pytest.approx(2 / 6)


# --- laws --------------------------------------------------------------------------------------------------------

MACHINES = {
    (name, ranks): machine(name)
    for name, ranks in [
        ("dgx-a100", 8),
        ("dgx-a100:4", 32),
        ("dgx-h100", 8),
        ("dgx-h100", 3),
        ("dgx-h100:2", 16),
        ("dgx1-v100", 8),
        ("dgx2-v100", 16),
        ("pcie-box", 5),
        ("gb200-nvl72", 72),
    ]
}
EVERY = {
    (name, ranks, kind): found(network, kind, ranks)
    for (name, ranks), network in MACHINES.items()
    for kind in (*KINDS, *STRAIGHT)
}


@given(st.sampled_from(sorted(EVERY)), st.floats(0, 2**36), st.floats(1.0, 4.0))
@settings(deadline=None, max_examples=300)
def test_more_bytes_never_take_less_time_but_where_nvls_takes_larger_chunks(
    case: tuple[str, int, CollectiveKind], nbytes: float, more: float
) -> None:
    for one in EVERY[case].values():
        larger = nbytes * more
        assert one.estimate_s(larger) >= one.estimate_s(nbytes) * (1 - 1e-12)
        switches = [times * one.round_bytes for times in nccl.NVLS_HALVED_BELOW]
        if not any(nbytes < at <= larger for at in switches):
            assert one.seconds(larger) >= one.seconds(nbytes) * (1 - 1e-12)


def test_where_chunks_of_nvls_grow_the_time_falls_by_the_rounds_that_are_saved() -> None:
    switched = found(machine("dgx-h100"), "all_reduce", 8)["nvls"]
    for times in (2, 8, 64):
        at = times * switched.round_bytes
        # twice as many rounds before: at 64 full rounds, 1 GiB, 128 of 3.4 us
        saved = switched.seconds(math.nextafter(at, 0)) - switched.seconds(at)
        halvings = {2: 2, 8: 1, 64: 0}[times]
        assert saved == pytest.approx(times * 2**halvings * 3.4e-6)


@given(st.sampled_from(sorted(EVERY)), st.floats(0, 2**36))
@settings(deadline=None, max_examples=300)
def test_no_algorithm_beats_its_latency_or_its_links(case: tuple[str, int, CollectiveKind], nbytes: float) -> None:
    name, ranks, kind = case
    fabric: Fabric = MACHINES[name, ranks].fabric(ranks)
    for one in EVERY[case].values():
        assert one.seconds(nbytes) >= one.latency_s
        assert one.seconds(nbytes) >= one.steps_s_per_byte * nbytes * (1 - 1e-12)
        if one.algorithm.startswith("ring"):
            assert one.seconds(nbytes) >= bus_share(kind, ranks) * nbytes / fabric.ring_bytes_per_s * (1 - 1e-12)
    cost = nccl.cheapest(list(EVERY[case].values()), nbytes)
    assert 0 <= cost.latency_s <= cost.seconds


@given(st.sampled_from(sorted(EVERY)), st.floats(0, 2**36))
@settings(deadline=None, max_examples=100)
def test_the_chosen_algorithm_has_the_least_estimate(case: tuple[str, int, CollectiveKind], nbytes: float) -> None:
    every = list(EVERY[case].values())
    assert nccl.chosen(every, nbytes).estimate_s(nbytes) == min(one.estimate_s(nbytes) for one in every)


@pytest.mark.parametrize("name", ["dgx-a100", "dgx-h100"])
@pytest.mark.parametrize("kind", [*KINDS, *STRAIGHT])
def test_one_rank_has_nothing_to_do(name: str, kind: CollectiveKind) -> None:
    network = machine(name)
    (alone,) = found(network, kind, 1).values()
    assert nccl.cheapest([alone], GIB) == (0.0, 0.0, "none")
    assert nccl.unknown(kind, network.fabric(1), 5e-6).seconds(GIB) == 0.0
    assert network.seconds(kind, GIB, 1) == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_more_nodes_never_make_a_ring_or_tree_faster(kind: CollectiveKind) -> None:
    sizes = [found(machine(f"dgx-h100:{nodes}"), kind, 8 * nodes) for nodes in (2, 4, 8, 16)]
    for fewer, more in pairwise(sizes):
        for name in RINGS | (TREES if kind == "all_reduce" else set()):
            for nbytes in (8, MIB, GIB):
                assert more[name].seconds(nbytes) >= fewer[name].seconds(nbytes)


# --- sends and receives ------------------------------------------------------------------------------------------


def test_messages_that_go_straight_pay_one_hop_and_the_fullest_link() -> None:
    network = machine("dgx-h100")
    # a GPU's port has 370.8 GB/s in each direction
    shares = {"all_to_all": 7 / 8, "exchange": 1.0, "push": 7.0, "pull": 7.0}
    for kind in STRAIGHT:
        (straight,) = found(network, kind, 8).values()
        assert straight.latency_s == pytest.approx(1e-6 * (8.4 + 3.4))
        assert straight.seconds(1e9) == pytest.approx(1e-6 * (8.4 + 3.4) + shares[kind] / 370.8)


def test_between_nodes_a_gpus_way_to_its_nics_carries_what_goes_straight() -> None:
    network = machine("dgx-h100:2")
    # a GPU sends half of its buffer to the other node, over PCIe of 48 GB/s to its two NICs; to a server come the whole
    # buffers of the 8 GPUs of the other node
    shares: dict[CollectiveKind, float] = {"all_to_all": 1 / 2, "push": 8.0, "pull": 8.0}
    for kind, share in shares.items():
        (straight,) = found(network, kind, 16).values()
        assert straight.seconds(1e9) == pytest.approx(1e-6 * (8.4 + 14.0) + share / 48)


def test_a_library_of_which_nothing_is_known_takes_a_ring() -> None:
    fabric = machine("dgx-a100").fabric(8)
    ring = nccl.unknown("all_reduce", fabric, 5e-6)
    assert ring.algorithm == "ring"
    assert ring.seconds(1e9) == pytest.approx(14 * 5e-6 + 1.75 / 240)
    assert nccl.unknown("broadcast", fabric, 5e-6).seconds(1e9) == pytest.approx(7 * 5e-6 + 1 / 240)
    # to each of seven others an eighth, through a port of 240 GB/s
    assert nccl.unknown("all_to_all", fabric, 5e-6).seconds(1e9) == pytest.approx(5e-6 + 7 / 8 / 240)
