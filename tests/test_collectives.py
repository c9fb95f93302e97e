"""Bus bandwidth as nccl-tests defines it, and the sizes of its tables."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simgd.algorithms import ALGORITHMS, volume, workers
from simgd.collectives import Cost, bus_bytes_per_s, bus_share
from simgd.errors import UnitError
from simgd.profile import CollectiveKind
from simgd.units import sizes

KINDS: tuple[CollectiveKind, ...] = get_args(CollectiveKind)

SHARES: dict[CollectiveKind, float] = {
    "all_reduce": 1.5,
    "reduce_scatter": 0.75,
    "all_gather": 0.75,
    "broadcast": 1.0,
    "all_to_all": 0.75,
    "exchange": 1.0,
    "push": 1.0,
    "pull": 1.0,
}


@pytest.mark.parametrize("kind", KINDS)
def test_four_ranks_send_these_shares_of_their_message_at_least(kind: CollectiveKind) -> None:
    assert bus_share(kind, 4) == SHARES[kind]
    assert bus_bytes_per_s(kind, 4, 8e9, 2.0) == SHARES[kind] * 4e9


def test_bus_bandwidth_is_what_a_ring_carries_whatever_the_ranks() -> None:
    # a ring's links carry 2 x 7/8 of 8 GB for an all-reduce of eight ranks: 14 GB in a second
    assert bus_bytes_per_s("all_reduce", 8, 8e9, 1.0) == 14e9
    # a hundred times as many: 2 x 799/800
    assert bus_bytes_per_s("all_reduce", 800, 8e9, 1.0) == pytest.approx(15.98e9)


@pytest.mark.parametrize("kind", KINDS)
def test_one_rank_and_no_time_have_no_bandwidth(kind: CollectiveKind) -> None:
    assert bus_bytes_per_s(kind, 1, 8e9, 1.0) == 0.0
    assert bus_bytes_per_s(kind, 8, 8e9, 0.0) == 0.0
    assert bus_bytes_per_s(kind, 8, 0.0, 1.0) == 0.0


@given(st.sampled_from(KINDS), st.integers(1, 32))
def test_no_algorithm_sends_less_than_the_share_over_its_fullest_port(kind: CollectiveKind, half: int) -> None:
    ranks = 2 * half
    for name, make in ALGORITHMS[kind].items():
        if name != "nvls":  # the switch sums and copies
            sent, received = volume(make(workers(kind, ranks)))
            assert max(sent.max(), received.max()) >= bus_share(kind, ranks) * (1 - 1e-12)


@given(st.sampled_from(KINDS), st.integers(2, 1000), st.floats(1, 1e12), st.floats(1e-6, 1e3))
def test_bus_bandwidth_turns_back_into_the_time(kind: CollectiveKind, ranks: int, nbytes: float, time_s: float) -> None:
    rate = bus_bytes_per_s(kind, ranks, nbytes, time_s)
    assert bus_share(kind, ranks) * nbytes / rate == pytest.approx(time_s)


def test_a_cost_reads_as_a_tuple() -> None:
    assert Cost(2.0, 1.0, "ring") == (2.0, 1.0, "ring")


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
