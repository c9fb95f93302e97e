"""What MPI's rounds cost, and which algorithm a library chooses."""

import math
from collections.abc import Callable
from typing import Literal, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simgd import catalogue
from simgd.collectives import Cost, bus_share
from simgd.errors import UnknownNameError
from simgd.mpi import USED, Algorithms, Messages, interpolated, mpich, open_mpi
from simgd.profile import CollectiveKind
from simgd.topology import Cluster, Device, Interconnect, Link, VertexKind
from simgd.units import Bytes, FlopRate, Rate, Seconds
from simgd.wiring import Place, Wiring

KINDS: tuple[CollectiveKind, ...] = get_args(CollectiveKind)
Choice = Literal["fastest", "mpich", "openmpi"]
CHOICES: tuple[Choice, ...] = get_args(Choice)

#: 1 us and 1 GB/s: 1,000 bytes take 2 us.
WIRE = ((0.0, 1e-6), (1e6, 1e-6 + 1e-3))

#: And 2 GB/s of sums.
MESSAGES = Messages(points=WIRE, add_s_per_byte=0.5e-9)

RANKS = [*range(2, 18), 32, 64]


def lab(
    *, devices: int = 1, nodes: int = 64, ports: int = 128, oversubscription: float = 1.0, half_duplex: bool = False
) -> Cluster:
    """Nodes of CPUs that share a socket's NIC of 1 GB/s; inside a node links have 4 GB/s."""
    names = [f"cpu{number}" for number in range(devices)]
    vertices: dict[str, VertexKind] = {**dict.fromkeys(names, "device"), "socket": "socket", "nic": "nic"}
    duplex: Literal["full", "half"] = "half" if half_duplex else "full"
    return Cluster(
        name="lab",
        device=Device(name="c", kind="cpu", memory=Bytes(1), memory_rate=Rate(1.0), fp32=FlopRate(1.0)),
        vertices=vertices,
        links=(
            *(Link(ends=(name, "socket"), kind="socket", bandwidth=Rate(4e9), duplex=duplex) for name in names),
            Link(ends=("socket", "nic"), kind="pcie", bandwidth=Rate(4e9)),
        ),
        interconnect=Interconnect(
            kind="infiniband",
            bandwidth=Rate(1e9),
            latency=Seconds(1e-7),
            ports=ports,
            oversubscription=oversubscription,
        ),
        nodes=nodes,
    )


def wired(cluster: Cluster, ranks: int, a_node: int = 1) -> Wiring:
    """*ranks* ranks, so many on each node."""
    rates = {"socket": 4e9, "pcie": 4e9, "infiniband": 1e9}
    return Wiring(cluster, [Place(*divmod(rank, a_node)) for rank in range(ranks)], rates, {})


def seconds(kind: CollectiveKind, name: str, wiring: Wiring, nbytes: float, messages: Messages = MESSAGES) -> float:
    """The time of one algorithm."""
    found = Algorithms(kind, wiring, only=name.replace("_", " ")).cost(messages, nbytes)
    assert found.algorithm == name.replace("_", " ")
    return found.seconds


ALONE = {ranks: wired(lab(), ranks) for ranks in RANKS}
EVERY = {(kind, ranks): Algorithms(kind, wiring) for ranks, wiring in ALONE.items() for kind in KINDS}


# --- algorithms in closed form: messages, bytes that follow each other and bytes that are added, of n = 1 ----------

#: Of an algorithm of so many ranks.
Closed = Callable[[int], tuple[float, float, float]]


def doublings(ranks: int) -> tuple[int, int]:
    """The largest power of two that ranks hold, as its exponent, and how many ranks are left."""
    rounds = ranks.bit_length() - 1
    return rounds, ranks - 2**rounds


def recursive_doubling(ranks: int) -> tuple[float, float, float]:
    rounds, left = doublings(ranks)
    # who is left gives its buffer to a neighbour before, which adds it, and gets the sum after
    fold = 2 if left else 0
    return rounds + fold, rounds + fold, rounds + fold / 2


def rabenseifner(ranks: int) -> tuple[float, float, float]:
    rounds, left = doublings(ranks)
    # 1/2 + 1/4 + ... of the bytes to and fro, with those that are left folded as above
    halves = 1 - 1 / 2**rounds
    fold = 2 if left else 0
    return 2 * rounds + fold, 2 * halves + fold, halves + fold / 2


def ring_all_reduce(ranks: int) -> tuple[float, float, float]:
    share = (ranks - 1) / ranks
    return 2 * (ranks - 1), 2 * share, share


def ring_reduce_scatter(ranks: int) -> tuple[float, float, float]:
    share = (ranks - 1) / ranks
    return ranks - 1, share, share


def ring_all_gather(ranks: int) -> tuple[float, float, float]:
    return ranks - 1, (ranks - 1) / ranks, 0


def largest_parts(ranks: int) -> float:
    """Bytes of all rounds that halve or double, of each its largest message.

    A worker stands for its own part and for that of whoever is folded into it, so h workers hold up to 2h parts. Thakur
    et al. count (n-1)/n, as if parts were alike; with powers of two that is the same.
    """
    rounds, left = doublings(ranks)
    return sum((1 << k) + min(left, 1 << k) for k in range(rounds)) / ranks


def recursive_halving(ranks: int) -> tuple[float, float, float]:
    rounds, left = doublings(ranks)
    # the whole buffer of who is left comes before, its part of the sum goes back after
    moved = largest_parts(ranks)
    return (rounds + 2, moved + 1 + 1 / ranks, moved + 1) if left else (rounds, moved, moved)


def all_gather_doubling(ranks: int) -> tuple[float, float, float]:
    rounds, left = doublings(ranks)
    moved = largest_parts(ranks)
    # its part comes before, all other parts go back after
    return (rounds + 2, moved + 1 / ranks + (ranks - 1) / ranks, 0) if left else (rounds, moved, 0)


def binomial_tree(ranks: int) -> tuple[float, float, float]:
    rounds = math.ceil(math.log2(ranks))
    return rounds, rounds, 0


def scatter_all_gather(ranks: int) -> tuple[float, float, float]:
    rounds, share = math.ceil(math.log2(ranks)), (ranks - 1) / ranks
    # each part leaves the root once, on the longest way; then a ring
    return rounds + ranks - 1, 2 * share, 0


def pairwise(ranks: int) -> tuple[float, float, float]:
    return ranks - 1, (ranks - 1) / ranks, 0


def bruck(ranks: int) -> tuple[float, float, float]:
    rounds = math.ceil(math.log2(ranks))
    # in round k go the blocks whose number has bit k
    return rounds, sum(number.bit_count() for number in range(ranks)) / ranks, 0


CLOSED: dict[tuple[CollectiveKind, str], Closed] = {
    ("all_reduce", "recursive_doubling"): recursive_doubling,
    ("all_reduce", "rabenseifner"): rabenseifner,
    ("all_reduce", "ring"): ring_all_reduce,
    ("reduce_scatter", "recursive_halving"): recursive_halving,
    ("reduce_scatter", "ring"): ring_reduce_scatter,
    ("all_gather", "recursive_doubling"): all_gather_doubling,
    ("all_gather", "ring"): ring_all_gather,
    ("broadcast", "binomial_tree"): binomial_tree,
    ("broadcast", "scatter_all_gather"): scatter_all_gather,
    ("all_to_all", "pairwise"): pairwise,
    ("all_to_all", "bruck"): bruck,
    # the server's link carries every worker's buffer, and the server adds them all
    ("push", "direct"): lambda ranks: (1, ranks - 1, ranks - 1),
    ("pull", "direct"): lambda ranks: (1, ranks - 1, 0),
    ("exchange", "pairs"): lambda ranks: (1, 1, 0),
}


def test_every_algorithm_of_an_mpi_library_has_a_closed_form_here() -> None:
    assert {(kind, name) for kind, names in USED.items() for name in names} == CLOSED.keys()


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize(("kind", "name"), CLOSED)
def test_steps_cost_what_the_closed_form_says_where_no_link_is_shared(
    kind: CollectiveKind, name: str, ranks: int
) -> None:
    """After Thakur, Rabenseifner, Gropp 2005, whose parts of a buffer are alike (see `largest_parts`)."""
    messages, moved, added = CLOSED[kind, name](ranks)
    for nbytes in (0, 1000, 10**8):
        expected = messages * 1e-6 + moved * nbytes / 1e9 + added * nbytes / 2e9
        assert seconds(kind, name, ALONE[ranks], nbytes) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("ranks", [2, 4, 8, 16, 32, 64])
def test_with_powers_of_two_all_parts_are_alike(ranks: int) -> None:
    assert largest_parts(ranks) == (ranks - 1) / ranks


def test_five_ranks_halve_three_and_then_two_fifths() -> None:
    # ranks 0 and 1 are one worker of two parts, beside three workers of one each: 3/5 + 2/5, where (n-1)/n would be
    # 4/5; before that rank 0's whole buffer comes to rank 1, after that its part goes back
    shares = [one.share for one in Algorithms("reduce_scatter", ALONE[5]).rounds["recursive_halving"]]
    assert shares == pytest.approx([1, 3 / 5, 2 / 5, 1 / 5])


@pytest.mark.parametrize(
    ("ranks", "nbytes", "algorithm", "expected"),
    [
        # 3 rounds of 1 us + 8 B at 1 GB/s, each with 8 B added at 2 GB/s
        (8, 8, "recursive doubling", 3 * (1e-6 + 8e-9 + 4e-9)),
        # 2 x 3 messages of 4, 2 and 1 MB: 6 us + 14 ms; 7 MB added: 3.5 ms
        (8, 8e6, "rabenseifner", 6e-6 + 14e-3 + 3.5e-3),
        # 3 ranks: folding costs more than a ring: 2 x 2 messages of 1 MB, 2 MB added
        (3, 3e6, "ring", 4e-6 + 4e-3 + 1e-3),
        (2, 2e6, "rabenseifner", 2e-6 + 2e-3 + 0.5e-3),
        # 5 ranks: 1 message in, 2 rounds among 4, 1 message out
        (5, 0, "recursive doubling", 4e-6),
    ],
)
def test_where_nobody_knows_the_rules_the_fastest_is_used(
    ranks: int, nbytes: float, algorithm: str, expected: float
) -> None:
    cost = Algorithms("all_reduce", ALONE[ranks]).cost(MESSAGES, nbytes)
    assert cost.algorithm == algorithm
    assert cost.seconds == pytest.approx(expected, rel=1e-9)


def test_small_messages_are_broadcast_by_a_tree_and_large_ones_by_scattering() -> None:
    small, large = (Algorithms("broadcast", ALONE[8]).cost(MESSAGES, nbytes) for nbytes in (8, 8e6))
    assert small.algorithm == "binomial tree"
    assert small.seconds == pytest.approx(3 * (1e-6 + 8e-9))
    # scatter 4 + 2 + 1 MB in 3 messages, all-gather 7 parts of 1 MB
    assert large.algorithm == "scatter all gather"
    assert large.seconds == pytest.approx(10e-6 + 14e-3)


# --- who chooses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nbytes", "name"), [(0, "recursive_doubling"), (2048, "recursive_doubling"), (2049, "rabenseifner")]
)
def test_mpich_doubles_up_to_2_kib(nbytes: float, name: str) -> None:
    assert mpich(nbytes) == name


@pytest.mark.parametrize(
    ("ranks", "below"),
    # coll_tuned_decision_fixed.c since 4.1: where the algorithm changes, and to what; D doubles, R is a ring, S
    # scatters and gathers (Rabenseifner's). Reduce-and-broadcast counts as D, a segmented ring as R.
    [
        (2, "R 8 D 4096 R 8192 D 16384 R 262144 S"),
        (3, "R 8 D 4096 R 8192 D 16384 R 262144 S"),
        (4, "R 16 D 8192 S"),
        (7, "R 16 D 8192 S"),
        (8, "D 8192 S"),
        (15, "D 8192 S"),
        (16, "R 64 D 4096 S"),
        (31, "R 64 D 4096 S"),
        (32, "R 128 S"),
        (63, "R 128 S"),
        (64, "D 262144 S"),
        (127, "D 262144 S"),
        (128, "D 262144 S"),
        (255, "D 262144 S"),
        (256, "D 4096 S"),
        (511, "D 4096 S"),
        (512, "D 16384 S"),
        (2047, "D 16384 S"),
        (2048, "D 2048 R 4096 D 16384 S"),
        (4095, "D 2048 R 4096 D 16384 S"),
        (4096, "D 2048 R 16384 D 32768 S"),
        (10**6, "D 2048 R 16384 D 32768 S"),
    ],
)
def test_open_mpi_changes_its_algorithm_at_these_bytes(ranks: int, below: str) -> None:
    names = {"D": "recursive_doubling", "R": "ring", "S": "rabenseifner"}
    words = below.split()
    assert open_mpi(ranks, 0) == names[words[0]]
    for before, size, after in zip(words[::2], words[1::2], words[2::2], strict=False):
        assert open_mpi(ranks, int(size) - 1) == names[before]
        assert open_mpi(ranks, int(size)) == names[after]
    assert open_mpi(ranks, 1e12) == "rabenseifner"


def test_a_librarys_rules_are_followed_even_where_another_algorithm_is_faster() -> None:
    # 8 ranks, 4 kB: doubling 3 x (1 + 4 + 2) = 21 us; Rabenseifner's 6 + 7 + 1.75 us
    fastest = Algorithms("all_reduce", ALONE[8]).cost(MESSAGES, 4000)
    assert fastest.algorithm == "rabenseifner"
    assert fastest.seconds == pytest.approx(14.75e-6)
    ruled = Algorithms("all_reduce", ALONE[8], "openmpi").cost(MESSAGES, 4000)
    assert ruled.algorithm == "recursive doubling"
    assert ruled.seconds == pytest.approx(21e-6)
    assert Algorithms("all_reduce", ALONE[8], "mpich").cost(MESSAGES, 4000).algorithm == "rabenseifner"


def test_rules_speak_of_all_reduces_only() -> None:
    for choice in CHOICES[1:]:
        ruled = Algorithms("broadcast", ALONE[8], choice).cost(MESSAGES, 8e6)
        assert ruled == Algorithms("broadcast", ALONE[8]).cost(MESSAGES, 8e6)


def test_an_algorithm_that_a_kind_does_not_have_is_refused_in_one_line() -> None:
    with pytest.raises(UnknownNameError, match=r"algorithm of broadcast") as error:
        Algorithms("broadcast", ALONE[4], only="rabenseifner")
    assert "\n" not in str(error.value)


# --- what shares a link --------------------------------------------------------------------------------------------


def test_two_ranks_on_a_nic_take_twice_the_time_of_their_bytes() -> None:
    wiring = wired(lab(devices=2), 4, a_node=2)
    # doubling: 0-1 and 2-3 inside a node, then 0-2 and 1-3: each way both messages over one NIC
    expected = 2 * 1e-6 + 1e-3 + 2e-3 + 2 * 0.5e-3
    assert seconds("all_reduce", "recursive_doubling", wiring, 1e6) == pytest.approx(expected)


def test_empty_messages_are_not_stretched() -> None:
    wiring = wired(lab(devices=4), 16, a_node=4)
    assert seconds("all_reduce", "recursive_doubling", wiring, 0) == pytest.approx(4e-6)


def test_both_directions_of_a_half_duplex_bus_share_it() -> None:
    full, half = (wired(lab(devices=2, half_duplex=half), 2, a_node=2) for half in (False, True))
    assert seconds("all_reduce", "recursive_doubling", full, 1e6) == pytest.approx(1e-6 + 1e-3 + 0.5e-3)
    assert seconds("all_reduce", "recursive_doubling", half, 1e6) == pytest.approx(1e-6 + 2e-3 + 0.5e-3)


def test_an_oversubscribed_tree_stretches_only_what_leaves_a_switch() -> None:
    # switches of 6 ports, 4 down and 2 up: nodes 0-3 are under one, 4-7 under the other
    wiring = wired(lab(nodes=8, ports=6, oversubscription=2.0), 8)
    # doubling to distance 1 and 2 stays below; at distance 4 four messages share two cables up, three switches
    messages = Messages(points=WIRE, switch_s=1e-7)
    expected = 3 * 1e-6 + 2 * 1e-7 + 1e-3 + 1e-3 + 2e-3
    assert seconds("all_reduce", "recursive_doubling", wiring, 1e6, messages) == pytest.approx(expected)
    # a ring leaves a switch with one message
    ring = 14 * (1e-6 + 2e-7 + 1e-3 / 8)
    assert seconds("all_reduce", "ring", wiring, 1e6, messages) == pytest.approx(ring)


def test_a_non_blocking_tree_stretches_nothing() -> None:
    one, tree = wired(lab(), 32), wired(lab(ports=8), 32)
    for kind in KINDS:
        for name in USED[kind]:
            assert seconds(kind, name, tree, 1e6) == pytest.approx(seconds(kind, name, one, 1e6))


def test_every_message_pays_what_longer_cables_and_switches_add() -> None:
    far = Messages(points=WIRE, extra_s=2e-6)
    assert seconds("all_reduce", "ring", ALONE[5], 0, far) == pytest.approx(8 * 3e-6)


def test_sums_are_made_once_a_step_after_the_bytes_came() -> None:
    plain = Messages(points=WIRE)
    # a ring adds in its first half only: 4 parts of 1/5; doubling adds in every round
    for name, added in (("ring", 4 / 5), ("recursive_doubling", 3)):
        more = seconds("all_reduce", name, ALONE[5], 1e6) - seconds("all_reduce", name, ALONE[5], 1e6, plain)
        assert more == pytest.approx(added * 0.5e-3)


def test_all_workers_of_a_server_share_its_link_and_it_adds_what_each_sent() -> None:
    # 4 workers and the server: 4 MB over its link, in one direction, and 4 MB to add
    assert seconds("push", "direct", ALONE[5], 1e6) == pytest.approx(1e-6 + 4e-3 + 4 * 0.5e-3)
    assert seconds("pull", "direct", ALONE[5], 1e6) == pytest.approx(1e-6 + 4e-3)


def test_nodes_with_several_ranks_may_be_joined_by_a_hierarchical_all_reduce() -> None:
    assert "hierarchical" in Algorithms("all_reduce", wired(lab(devices=2), 8, a_node=2)).rounds
    assert "hierarchical" not in Algorithms("all_reduce", wired(lab(devices=2), 7, a_node=2)).rounds
    assert "hierarchical" not in Algorithms("all_reduce", ALONE[8]).rounds
    assert "hierarchical" not in Algorithms("all_gather", wired(lab(devices=2), 8, a_node=2)).rounds


# --- laws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("choice", CHOICES)
def test_one_rank_has_nothing_to_do(kind: CollectiveKind, choice: Choice) -> None:
    assert Algorithms(kind, wired(lab(), 1), choice).cost(MESSAGES, 1e9) == Cost(0.0, 0.0, "none")


@given(st.sampled_from(KINDS), st.sampled_from(RANKS), st.floats(0, 1e9), st.floats(1.01, 4))
@settings(deadline=None)
def test_no_cost_beats_the_wire_or_falls_with_more_bytes(
    kind: CollectiveKind, ranks: int, nbytes: float, more: float
) -> None:
    cost = EVERY[kind, ranks].cost(MESSAGES, nbytes)
    # each rank sends at least (or a broadcast's ranks receive) this share of the buffer at 1 GB/s
    assert cost.seconds >= bus_share(kind, ranks) * nbytes / 1e9
    assert 0 < cost.latency_s <= cost.seconds
    assert EVERY[kind, ranks].cost(MESSAGES, nbytes * more).seconds >= cost.seconds


@given(st.sampled_from(KINDS), st.sampled_from(RANKS), st.floats(0, 1e9))
@settings(deadline=None)
def test_the_fastest_is_as_fast_as_each_alone(kind: CollectiveKind, ranks: int, nbytes: float) -> None:
    alone = [sum(MESSAGES.seconds(one, nbytes) for one in rounds) for rounds in EVERY[kind, ranks].rounds.values()]
    assert EVERY[kind, ranks].cost(MESSAGES, nbytes).seconds == min(alone)


@given(st.integers(1, 10), st.sampled_from(KINDS[:-2]), st.floats(0, 1e9))
@settings(deadline=None, max_examples=50)
def test_ranks_that_share_nodes_are_never_faster_than_ranks_of_their_own(
    nodes: int, kind: CollectiveKind, nbytes: float
) -> None:
    # but for a server, whose NIC is spared by the workers on its node
    shared, alone = wired(lab(devices=2), 2 * nodes, a_node=2), wired(lab(), 2 * nodes)
    for name in USED[kind]:
        apart = seconds(kind, name, alone, nbytes)
        assert seconds(kind, name, shared, nbytes) >= apart * (1 - 1e-12)


def test_a_table_is_linear_between_points_and_keeps_its_last_slope() -> None:
    table = ((0.0, 1.0), (10.0, 2.0), (20.0, 6.0))
    assert [interpolated(table, size) for size in (0, 5, 10, 15, 20, 30)] == [1.0, 1.5, 2.0, 4.0, 6.0, 10.0]
    assert interpolated(((8.0, 1.0), (16.0, 2.0)), 1) == 1.0
    assert interpolated(((8.0, 1.0),), 100) == 1.0


def test_of_thousands_of_alike_steps_some_stand_for_their_neighbours() -> None:
    # 2,999 steps of a pairwise all-to-all of 3,000 ranks: 1,024 are looked at, and all are counted
    wiring = Wiring(catalogue.cluster("xeon-edr"), [Place(rank, 0) for rank in range(3000)], {}, {})
    found = Algorithms("all_to_all", wiring)
    assert sum(one.repeat for one in found.rounds["pairwise"]) == 2999
    assert {one.share for one in found.rounds["pairwise"]} == {1 / 3000}
