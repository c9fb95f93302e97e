"""Costs of collectives, algorithm by algorithm."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simgd.collectives import (
    PLATEAU,
    Candidate,
    bus_bytes_per_s,
    bus_share,
    cheapest,
    interpolated,
    mpi,
    nccl_candidates,
)
from simgd.errors import UnitError
from simgd.fabrics import Fabric
from simgd.profile import CollectiveKind, Protocol
from simgd.units import sizes

KINDS: tuple[CollectiveKind, ...] = ("all_reduce", "reduce_scatter", "all_gather", "broadcast")

#: 1 us and 1 GB/s: 1,000 bytes take 2 us.
WIRE = ((0.0, 1e-6), (1e6, 1e-6 + 1e-3))

SIMPLE = Protocol(
    name="Simple",
    base_ring_us=8.0,
    base_tree_us=2.0,
    efficiency=1.0,
    hop_us={"nvlink": (3.0, 4.0), "net": (10.0, 20.0)},
)
LL = Protocol(name="LL", base_ring_us=4.0, base_tree_us=4.0, efficiency=0.25, hop_us={"nvlink": (0.5, 0.5)})
LL128 = Protocol(name="LL128", base_ring_us=4.0, base_tree_us=4.0, efficiency=0.94, hop_us={"nvlink": (2.0, 2.0)})

NODE = Fabric(
    ranks=4,
    nodes=1,
    ring_bytes_per_s=10e9,
    inside_bytes_per_s=10e9,
    net_bytes_per_s=float("inf"),
    port_bytes_per_s=0.0,
    inside="nvlink",
    path="nvlink",
    rings=(),
    hops=(("nvlink", 4),),
    net_extra_s=0.0,
    assumed=(),
)
NODES = replace(NODE, ranks=8, nodes=4, net_bytes_per_s=4e9, ring_bytes_per_s=4e9, path="infiniband")


def named(candidates: tuple[Candidate, ...], name: str) -> Candidate:
    return next(candidate for candidate in candidates if candidate.algorithm == name)


def test_a_ring_in_one_node_takes_its_steps_and_twice_the_bytes_less_one_part() -> None:
    ring = named(nccl_candidates("all_reduce", NODE, [SIMPLE]), "ring/Simple")
    # 8 us + 2 (4-1) steps of 3 us = 26 us; 1 GB x 2 x 3/4 / 10 GB/s = 150 ms
    assert ring.latency_s == pytest.approx(26e-6)
    assert ring.seconds(1e9) == pytest.approx(26e-6 + 0.15)


def test_a_reduce_scatter_and_an_all_gather_are_half_an_all_reduce() -> None:
    for kind in ("reduce_scatter", "all_gather"):
        ring = named(nccl_candidates(kind, NODE, [SIMPLE]), "ring/Simple")
        assert ring.latency_s == pytest.approx(8e-6 + 3 * 3e-6)
        assert ring.seconds(1e9) - ring.latency_s == pytest.approx(0.075)


def test_a_ring_over_nodes_crosses_the_network_once_a_node_and_turn() -> None:
    ring = named(nccl_candidates("all_reduce", NODES, [SIMPLE]), "ring/Simple")
    # 14 steps, 6 of them between nodes: 8 + 8 x 3 + 6 x 10 = 92 us, times the plateau of Simple rings over nodes
    assert ring.latency_s == pytest.approx(PLATEAU * 92e-6)
    assert ring.seconds(1e9) - ring.latency_s == pytest.approx(2 * 7 / 8 / 4)


def test_more_switches_between_nodes_lengthen_each_step_between_them() -> None:
    far = replace(NODES, net_extra_s=1e-6)
    near, distant = (named(nccl_candidates("all_reduce", f, [SIMPLE]), "ring/Simple") for f in (NODES, far))
    assert distant.latency_s - near.latency_s == pytest.approx(PLATEAU * 6e-6)


def test_a_tree_is_a_chain_in_a_node_and_binary_between_nodes() -> None:
    tree = named(nccl_candidates("all_reduce", NODES, [SIMPLE]), "tree/Simple")
    # 2 us + 2 x ((8/4 - 1) x 4 us + log2(4) x 20 us) = 90 us
    assert tree.latency_s == pytest.approx(90e-6)
    # a node sends twice the bytes: 0.92 x 4 / 2 GB/s; beyond 256 MiB NCCL's correction of Simple trees is 0.9
    assert tree.seconds(1e9) - tree.latency_s == pytest.approx(1 / (0.92 * 2 * 0.9))


def test_two_nodes_send_each_byte_once_in_a_double_tree() -> None:
    two, four = replace(NODES, ranks=4, nodes=2), replace(NODES, ranks=8, nodes=4)
    slopes = [named(nccl_candidates("all_reduce", f, [SIMPLE]), "tree/Simple").seconds_per_byte for f in (two, four)]
    assert slopes[1] == pytest.approx(2 * slopes[0])


def test_ll128_needs_nvlink() -> None:
    pcie = replace(NODE, inside="pcie")
    assert {c.algorithm for c in nccl_candidates("all_reduce", pcie, [LL128, LL])} == {"ring/LL", "tree/LL"}
    assert "ring/LL128" in {c.algorithm for c in nccl_candidates("all_reduce", NODE, [LL128, LL])}


def test_small_messages_use_ll_and_large_ones_simple_and_the_fastest_wins_in_between() -> None:
    candidates = nccl_candidates("all_reduce", NODE, [LL, LL128, SIMPLE])
    assert cheapest(candidates, 8).algorithm == "ring/LL"
    assert cheapest(candidates, 1e9).algorithm == "ring/Simple"
    for nbytes in (8, 1e4, 1e6, 1e9):
        assert cheapest(candidates, nbytes).seconds == min(c.seconds(nbytes) for c in candidates)


def test_a_protocol_has_a_largest_bandwidth() -> None:
    capped = Protocol(
        name="LL", base_ring_us=0, base_tree_us=0, efficiency=0.5, hop_us={"nvlink": (0, 0)}, cap_bytes_per_s=2e9
    )
    ring = named(nccl_candidates("all_reduce", NODE, [capped]), "ring/LL")
    assert ring.seconds(1e9) == pytest.approx(1.5 / 2)  # not 1.5 / 5


def test_in_switch_reduction_moves_the_buffer_once_and_a_part_of_it() -> None:
    nvls = Protocol(name="NVLS", base_ring_us=0.0, base_tree_us=0.0, efficiency=0.8, hop_us={"nvlink": (25.0, 25.0)})
    switched = replace(NODE, port_bytes_per_s=10e9)
    found = named(nccl_candidates("all_reduce", switched, [nvls, SIMPLE]), "nvls")
    # (1 + 1/4) x 1 GB / (0.8 x 10 GB/s)
    assert found.seconds(1e9) == pytest.approx(25e-6 + 1.25 / 8)
    assert [c.algorithm for c in nccl_candidates("broadcast", switched, [nvls, SIMPLE])] == ["ring/Simple"]
    assert "nvls" not in {c.algorithm for c in nccl_candidates("all_reduce", NODE, [nvls, SIMPLE])}


def test_bus_bandwidth_is_as_nccl_tests_defines_it() -> None:
    assert [bus_share(kind, 4) for kind in KINDS] == [1.5, 0.75, 0.75, 1.0]
    assert bus_bytes_per_s("all_reduce", 8, 8e9, 1.0) == 14e9
    assert bus_bytes_per_s("all_reduce", 1, 8e9, 0.0) == 0.0


def test_a_table_is_linear_between_points_and_keeps_its_last_slope() -> None:
    table = ((0.0, 1.0), (10.0, 2.0), (20.0, 6.0))
    assert [interpolated(table, size) for size in (0, 5, 10, 15, 20, 30)] == [1.0, 1.5, 2.0, 4.0, 6.0, 10.0]
    assert interpolated(((8.0, 1.0), (16.0, 2.0)), 1) == 1.0


@pytest.mark.parametrize(
    ("ranks", "nbytes", "algorithm", "seconds"),
    [
        # 3 rounds of 1 us + 8 B at 1 GB/s, each with 8 B added at 2 GB/s
        (8, 8, "recursive doubling", 3 * (1e-6 + 8e-9 + 4e-9)),
        # 2 x 3 messages of 4, 2 and 1 MB: 6 us + 14 ms; 7 MB added: 3.5 ms
        (8, 8e6, "rabenseifner", 6e-6 + 14e-3 + 3.5e-3),
        # 3 ranks: folding costs more than a ring: 2 x 2 messages of 1 MB, 2 MB added
        (3, 3e6, "ring", 4e-6 + 4e-3 + 1e-3),
        (2, 2e6, "rabenseifner", 2e-6 + 2e-3 + 0.5e-3),
    ],
)
def test_mpi_uses_the_fastest_algorithm(ranks: int, nbytes: float, algorithm: str, seconds: float) -> None:
    cost = mpi("all_reduce", ranks, nbytes, WIRE, 2e9)
    assert cost.algorithm == algorithm
    assert cost.seconds == pytest.approx(seconds, rel=1e-9)


def test_mpi_folds_surplus_ranks_for_small_messages() -> None:
    # 5 ranks: 1 message in, 2 rounds among 4, 1 message out
    assert mpi("all_reduce", 5, 0, WIRE, 2e9).seconds == pytest.approx(4e-6)


def test_mpi_broadcasts_small_messages_by_a_tree_and_large_ones_by_scattering() -> None:
    small, large = mpi("broadcast", 8, 8, WIRE, 2e9), mpi("broadcast", 8, 8e6, WIRE, 2e9)
    assert small.algorithm == "binomial tree"
    assert small.seconds == pytest.approx(3 * (1e-6 + 8e-9))
    # scatter 4 + 2 + 1 MB in 3 messages, all-gather 7 parts of 1 MB
    assert large.algorithm == "scatter and all-gather"
    assert large.seconds == pytest.approx(10e-6 + 14e-3)


def test_one_rank_has_nothing_to_do() -> None:
    for kind in KINDS:
        assert mpi(kind, 1, 1e9, WIRE, 2e9).seconds == 0.0


@given(st.sampled_from(KINDS), st.integers(2, 70), st.floats(0, 1e9), st.floats(1.01, 4))
def test_mpi_never_beats_the_wire_and_never_gets_faster_with_more_bytes(
    kind: CollectiveKind, ranks: int, nbytes: float, more: float
) -> None:
    cost = mpi(kind, ranks, nbytes, WIRE, 2e9)
    # each rank sends at least (or a broadcast's ranks receive) this share of the buffer at 1 GB/s
    assert cost.seconds >= bus_share(kind, ranks) * nbytes / 1e9
    assert cost.latency_s <= cost.seconds
    assert mpi(kind, ranks, nbytes * more, WIRE, 2e9).seconds >= cost.seconds


@given(st.sampled_from(KINDS), st.integers(2, 64), st.floats(0, 1e10), st.floats(1.01, 4))
def test_nccl_never_beats_its_rings_and_never_gets_faster_with_more_bytes(
    kind: CollectiveKind, ranks: int, nbytes: float, more: float
) -> None:
    candidates = nccl_candidates(kind, replace(NODE, ranks=ranks), [LL, LL128, SIMPLE])
    cost = cheapest(candidates, nbytes)
    assert cost.seconds >= bus_share(kind, ranks) * nbytes / 10e9
    assert cost.latency_s <= cost.seconds
    assert cheapest(candidates, nbytes * more).seconds >= cost.seconds * (1 - 1e-12)


def test_sizes_are_a_list_or_a_span() -> None:
    assert sizes("8B:1GiB:x2") == [2**power for power in range(3, 31)]
    assert sizes("1kB:10kB:x1.5") == [1000, 1500, 2250, 3375, 5062, 7594]
    assert sizes("1B:4B:x1.1") == [1, 2, 3, 4]  # whole bytes, each once
    assert sizes("64KiB, 1MiB") == [65536, 1048576]


@pytest.mark.parametrize(
    "text",
    ["8B:1GiB", "8B:1GiB:2", "8B:1GiB:x1", "8B:1GiB:xnan", "1GiB:8B:x2", "0B:8B:x2", "8B:1GiB:x1.0000001", "", "8Q"],
)
def test_impossible_sizes_are_an_error_of_one_line(text: str) -> None:
    with pytest.raises(UnitError, match="write"):
        sizes(text)
