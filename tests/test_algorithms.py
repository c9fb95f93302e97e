"""Algorithms of collectives: carried out on numbers by a slow interpreter, and their closed forms."""

import math
from collections.abc import Callable, Sequence
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from simgd.algorithms import (
    ALGORITHMS,
    Pattern,
    Step,
    Steps,
    all_gather,
    all_reduce,
    all_to_all,
    broadcast,
    patterns,
    reduce_scatter,
    servers,
    volume,
)
from simgd.algorithms.steps import MOST_TRANSFERS
from simgd.errors import ClusterError, UnknownNameError
from simgd.profile import CollectiveKind

Buffers = NDArray[np.int64]  # one row for each participant, one number for each block

SIZES = (*range(1, 18), 32)
POWERS = (2, 4, 8, 16, 32, 256)
NAMED = [(kind, name) for kind, names in ALGORITHMS.items() for name in names]
ONE_PORT = [(kind, name) for kind, name in NAMED if name not in ("direct", "nvls", "chain", "double_binary_tree")]
NOTHING = -(10**12)  # stands where a participant has nothing yet


def sent_blocks(algorithm: Steps, step: Step, transfer: int, time: int) -> list[int]:
    """Return the blocks of one transfer, as the docstrings of a step define them."""
    segment = step.wrap or algorithm.blocks
    start = int(step.first[transfer])
    base = start // segment * segment
    found = []
    for block in range(int(step.count[transfer])):
        skipped = block // step.run * step.run if step.run else 0
        found.append(base + (start - base + time * step.shift + block + skipped) % segment)
    return found


def carried_out(algorithm: Steps, buffers: Buffers) -> Buffers:
    """Return what the participants have in the end."""
    now = buffers.copy()
    for step in algorithm.steps:
        for time in range(step.repeat):
            before = now if step.pipelined else now.copy()
            written: set[tuple[int, int]] = set()
            for transfer, (source, target) in enumerate(zip(step.source, step.target, strict=True)):
                blocks = sent_blocks(algorithm, step, transfer, time)
                assert source != target
                assert len(set(blocks)) == len(blocks)
                got = before[source, blocks]
                if step.reduce:
                    now[target, blocks] += got
                else:
                    now[target, blocks] = got
                    assert step.pipelined or not written & {(target, block) for block in blocks}, "written twice"
                    written |= {(target, block) for block in blocks}
    return now


def random_buffers(rows: int, algorithm: Steps) -> Buffers:
    return np.random.default_rng(algorithm.ranks).integers(1, 10**6, (rows, algorithm.blocks))


def check(algorithm: Steps, first: int = 0) -> None:
    """Carry out *algorithm* and compare with what its kind promises; a broadcast comes from rank *first*."""
    ranks, blocks = algorithm.ranks, algorithm.blocks
    others = algorithm.participants - ranks
    assert sorted(algorithm.own) == list(range(ranks))
    given = random_buffers(ranks, algorithm)
    total = given.sum(axis=0)
    empty = np.full((ranks, blocks), NOTHING)
    zeros = np.zeros((others, blocks), dtype=np.int64)
    rank = np.arange(ranks)
    start, end = given, np.tile(total, (ranks, 1))
    match algorithm.kind:
        case "all_reduce":
            pass
        case "reduce_scatter":
            last = carried_out(algorithm, np.vstack([given, zeros]))
            assert last[rank, algorithm.own].tolist() == total[algorithm.own].tolist()
            return
        case "all_gather":
            start, end = empty, np.tile(given[0], (ranks, 1))
            start[rank, algorithm.own] = given[0, algorithm.own]
        case "broadcast":
            start, end = empty, np.tile(given[0], (ranks, 1))
            start[first] = given[0]
        case "all_to_all":
            distance = np.arange(ranks)
            start = 1000 * rank[:, None] + (rank[:, None] + distance) % ranks  # from a thousand, for a unit
            end = 1000 * ((rank[:, None] - distance) % ranks) + rank[:, None]
        case "exchange":
            end = given[[r ^ 1 if r ^ 1 < ranks else r for r in range(ranks)]]
        case "push":
            last = carried_out(algorithm, np.vstack([given, zeros]))
            assert last[:ranks].tolist() == given.tolist()
            assert np.diag(last[ranks:]).tolist() == total.tolist()
            return
        case "pull":
            start, end, zeros = empty, np.tile(given[0], (ranks, 1)), np.full((others, others), NOTHING)
            np.fill_diagonal(zeros, given[0])
    last = carried_out(algorithm, np.vstack([start, zeros]))
    assert last[:ranks].tolist() == end.tolist()


@pytest.mark.parametrize(("kind", "name"), NAMED)
def test_every_rank_ends_with_what_the_kind_promises(kind: CollectiveKind, name: str) -> None:
    for ranks in SIZES:
        made = ALGORITHMS[kind][name](ranks)
        assert (made.kind, made.algorithm, made.ranks) == (kind, name, ranks)
        check(made)


orders = st.integers(1, 12).flatmap(lambda ranks: st.permutations(range(ranks)))


@given(orders)
def test_rings_and_chains_work_in_any_order(order: list[int]) -> None:
    ranks = len(order)
    for make in (all_reduce.ring, reduce_scatter.ring, all_gather.ring, all_reduce.chain):
        check(make(ranks, order))
    check(broadcast.chain(ranks, order), first=order[0])


@given(orders, st.data())
def test_a_tree_works_over_groups_of_any_sizes(order: list[int], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(order))) if len(order) > 1 else st.just(set())) - {len(order)})
    groups = [order[a:b] for a, b in zip([0, *cuts], [*cuts, len(order)], strict=True)]
    check(all_reduce.tree(groups))


@given(
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from(["ring", "recursive_halving"]),
    st.sampled_from([name for name in all_reduce.BY_NAME if name != "nvls"]),
    st.randoms(use_true_random=False),
)
def test_a_hierarchy_works_over_any_equal_groups(
    groups: int, size: int, inner: str, outer: str, random: Random
) -> None:
    order = list(range(groups * size))
    random.shuffle(order)
    check(all_reduce.hierarchical(np.reshape(order, (groups, size)).tolist(), inner, outer))


@given(st.integers(1, 6), st.integers(1, 5), st.randoms(use_true_random=False))
def test_trees_between_nvswitches_work_over_equal_groups(groups: int, size: int, random: Random) -> None:
    order = list(range(groups * size))
    random.shuffle(order)
    made = all_reduce.nvls_tree(np.reshape(order, (groups, size)).tolist())
    check(made)
    if len(order) > 1:
        # a port carries the buffer and a part of 1/size; a rank inner in one tree sends twice its part to other groups
        between = {1: 0.0, 2: 1 / size}.get(groups, 2 / size)
        assert volume(made)[0][: len(order)].max() <= 1 + 1 / size + between + 1e-12


@given(st.integers(1, 9), st.integers(1, 9))
def test_servers_share_the_blocks(workers: int, count: int) -> None:
    push, pull = servers.push(workers, count), servers.pull(workers, count)
    check(push)
    check(pull)
    # each server gets 1/count of the bytes of each worker
    expected = [workers / count] * count
    assert volume(push)[1][workers:].tolist() == volume(pull)[0][workers:].tolist() == expected


@pytest.mark.parametrize(("kind", "name"), NAMED)
def test_what_is_sent_is_received_and_patterns_hold_all_of_it(kind: CollectiveKind, name: str) -> None:
    for ranks in SIZES:
        made = ALGORITHMS[kind][name](ranks)
        sent, received = volume(made)
        assert sent.sum() == pytest.approx(received.sum())
        total = np.zeros_like(sent)
        for pattern in patterns(made):
            np.add.at(total, pattern.source, pattern.repeat * pattern.bytes_share)
        assert total == pytest.approx(sent)


@pytest.mark.parametrize(("kind", "name"), ONE_PORT)
def test_in_a_step_a_rank_sends_to_one_and_gets_from_one(kind: CollectiveKind, name: str) -> None:
    for ranks in SIZES:
        for step in ALGORITHMS[kind][name](ranks).steps:
            assert not step.pipelined
            assert np.unique(step.source).size == np.unique(step.target).size == step.source.size


# --- closed forms -------------------------------------------------------------------------------------------------


def rounds(algorithm: Steps) -> int:
    return sum(step.repeat for step in algorithm.steps)


@pytest.mark.parametrize("ranks", [2, 3, 8, 17])
def test_a_ring_sends_twice_the_bytes_less_one_part_in_twice_the_steps_less_one(ranks: int) -> None:
    ring = all_reduce.ring(ranks)
    assert rounds(ring) == 2 * (ranks - 1)
    assert volume(ring)[0].tolist() == [2 * (ranks - 1) / ranks] * ranks
    for half in (reduce_scatter.ring(ranks), all_gather.ring(ranks)):
        assert rounds(half) == ranks - 1
        assert volume(half)[0].tolist() == [(ranks - 1) / ranks] * ranks


@pytest.mark.parametrize("ranks", POWERS)
def test_recursive_doubling_sends_the_whole_buffer_in_each_of_log2_steps(ranks: int) -> None:
    doubling = all_reduce.recursive_doubling(ranks)
    assert rounds(doubling) == math.log2(ranks)
    assert volume(doubling)[0].tolist() == [math.log2(ranks)] * ranks


@pytest.mark.parametrize("ranks", POWERS)
def test_rabenseifner_sends_as_little_as_a_ring_in_2_log2_steps(ranks: int) -> None:
    halving = all_reduce.rabenseifner(ranks)
    assert rounds(halving) == 2 * math.log2(ranks)
    # a half, a quarter, ..., 1/n, and the same back: 2 (1 - 1/n)
    assert volume(halving)[0].tolist() == [2 * (ranks - 1) / ranks] * ranks


def test_ranks_that_are_no_power_of_two_fold_first_and_unfold_last() -> None:
    # 6 ranks: 0 and 2 hand their buffers to 1 and 3; 1, 3, 4, 5 work; 1 and 3 hand the sum back
    doubling = all_reduce.recursive_doubling(6)
    assert rounds(doubling) == 1 + 2 + 1
    assert [step.source.tolist() for step in doubling.steps] == [[0, 2], [1, 3, 4, 5], [1, 3, 4, 5], [1, 3]]
    assert volume(doubling)[0].tolist() == [1, 3, 1, 3, 2, 2]
    assert volume(all_reduce.rabenseifner(6))[0].tolist() == [1, 2.5, 1, 2.5, 1.5, 1.5]


def test_rabenseifner_sends_halves_to_neighbours_and_small_parts_far() -> None:
    sent = [(int(step.target[0]), int(step.count[0])) for step in all_reduce.rabenseifner(8).steps]
    assert sent == [(1, 4), (2, 2), (4, 1), (4, 1), (2, 2), (1, 4)]
    # a reduce-scatter begins far away, since parts next to each other belong to neighbours
    sent = [(int(step.target[0]), int(step.count[0])) for step in reduce_scatter.recursive_halving(8).steps]
    assert sent == [(4, 4), (2, 2), (1, 1)]


@pytest.mark.parametrize("ranks", POWERS)
def test_halving_and_doubling_send_all_but_one_part_in_log2_steps(ranks: int) -> None:
    for made in (reduce_scatter.recursive_halving(ranks), all_gather.recursive_doubling(ranks)):
        assert rounds(made) == math.log2(ranks)
        assert volume(made)[0].tolist() == [(ranks - 1) / ranks] * ranks


@pytest.mark.parametrize("ranks", [2, 3, 7, 8, 9, 100])
def test_bruck_needs_the_logarithm_rounded_up_for_any_number_of_ranks(ranks: int) -> None:
    gather = all_gather.bruck(ranks)
    assert rounds(gather) == rounds(all_to_all.bruck(ranks)) == math.ceil(math.log2(ranks))
    assert volume(gather)[0].tolist() == [(ranks - 1) / ranks] * ranks
    # a block for distance d moves once for each 1 in the binary form of d
    ones = sum(distance.bit_count() for distance in range(ranks))
    assert volume(all_to_all.bruck(ranks))[0].tolist() == [ones / ranks] * ranks


@pytest.mark.parametrize("ranks", [2, 5, 16])
def test_an_all_to_all_sends_every_block_but_ones_own_once(ranks: int) -> None:
    pairwise, direct = all_to_all.pairwise(ranks), all_to_all.direct(ranks)
    assert (rounds(pairwise), rounds(direct)) == (ranks - 1, 1)
    for made in (pairwise, direct, reduce_scatter.pairwise(ranks)):
        assert volume(made)[0].tolist() == volume(made)[1].tolist() == [(ranks - 1) / ranks] * ranks


@pytest.mark.parametrize("ranks", [2, 3, 8, 13])
def test_binomial_trees_take_the_logarithm_rounded_up_and_reach_each_rank_once(ranks: int) -> None:
    tree = broadcast.binomial_tree(ranks)
    assert rounds(tree) == math.ceil(math.log2(ranks))
    assert rounds(all_reduce.binomial_tree(ranks)) == 2 * rounds(tree)
    assert volume(tree)[1].tolist() == [0] + [1] * (ranks - 1)


@pytest.mark.parametrize("ranks", [2, 5, 8, 13])
def test_a_broadcast_by_scatter_and_all_gather_sends_from_the_root_twice_the_bytes_less_one_part(ranks: int) -> None:
    # rank 0 gives away all parts but its own, then passes on as many
    made = broadcast.scatter_all_gather(ranks)
    assert rounds(made) == math.ceil(math.log2(ranks)) + ranks - 1
    assert volume(made)[0][0] == 2 * (ranks - 1) / ranks


def test_a_chain_sends_the_buffer_up_and_down_with_all_bytes_on_the_way_at_once() -> None:
    (pattern,) = patterns(all_reduce.chain(5))
    assert (pattern.repeat, pattern.hops, pattern.pipelined) == (1, 2 * 4, True)
    assert pattern.bytes_share.tolist() == [1.0] * 8
    assert volume(all_reduce.chain(5))[0].tolist() == [1, 2, 2, 2, 1]
    (pattern,) = patterns(broadcast.chain(5))
    assert pattern.hops == 4


def test_nvls_loads_a_port_with_the_buffer_and_one_part_each_way() -> None:
    nvls = all_reduce.nvls(8)
    for direction in volume(nvls):
        assert direction.tolist() == [1 + 1 / 8] * 8 + [8 + 1]
    (pattern,) = patterns(nvls)
    assert pattern.bytes_share.tolist() == [1 + 1 / 8] * 16  # 8 ports, two ways
    assert pattern.hops == 4  # to the switch and back, twice
    assert volume(reduce_scatter.nvls(8))[0].tolist() == [1.0] * 8 + [1.0]
    assert volume(all_gather.nvls(8))[0].tolist() == [1 / 8] * 8 + [8.0]


def parents(algorithm: Steps, half: int) -> dict[int, int]:
    """Return the parent of each rank in one of two trees, from the way up."""
    up = algorithm.steps[0]
    pairs = zip(up.source.tolist(), up.target.tolist(), up.first.tolist(), strict=True)
    return {source: target for source, target, block in pairs if block == half}


@pytest.mark.parametrize("ranks", [*range(2, 18), 32, 1000, 1001])
def test_no_rank_is_inner_in_both_trees_nor_sends_more_than_twice_the_bytes(ranks: int) -> None:
    made = all_reduce.double_binary_tree(ranks)
    trees = [parents(made, half) for half in (0, 1)]
    for tree in trees:
        assert len(tree) == ranks - 1  # all but the root
        assert max(np.bincount(list(tree.values()))) <= 2
    assert not set(trees[0].values()) & set(trees[1].values())
    assert volume(made)[0].max() <= 2
    assert made.steps[0].hops <= math.ceil(math.log2(ranks))


def test_the_trees_of_12_are_those_that_nccl_draws() -> None:
    # src/graph/trees.cc: 0 - 8 - (4, 10), 4 - (2, 6), ..., and its mirror image 11 - 3 - (1, 7), ...
    made = all_reduce.double_binary_tree(12)
    first = {8: 0, 4: 8, 10: 8, 2: 4, 6: 4, 1: 2, 3: 2, 5: 6, 7: 6, 9: 10, 11: 10}
    assert parents(made, 0) == first
    assert parents(made, 1) == {11 - child: 11 - parent for child, parent in first.items()}
    assert made.steps[0].hops == 4  # 1 - 2 - 4 - 8 - 0


def test_a_tree_over_nodes_has_a_chain_in_each_and_two_trees_of_their_first_ranks() -> None:
    made = all_reduce.tree([[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]])
    up = made.steps[0]
    inside = up.source // 3 == up.target // 3
    assert sorted(zip(up.source[inside].tolist(), up.target[inside].tolist(), strict=True)) == [
        (1, 0), (2, 1), (4, 3), (5, 4), (7, 6), (8, 7), (10, 9), (11, 10)
    ]  # fmt: skip
    assert up.count[inside].tolist() == [2] * 8  # whole buffers
    assert up.count[~inside].tolist() == [1] * 6  # halves
    # heads 0, 3, 6, 9 stand for 0, 1, 2, 3: 0 - 2 - (1, 3), and the mirror image
    up_trees = sorted((int(up.first[at]), int(up.source[at]), int(up.target[at])) for at in np.flatnonzero(~inside))
    assert up_trees == [(0, 3, 6), (0, 6, 0), (0, 9, 6), (1, 0, 3), (1, 3, 9), (1, 6, 3)]
    assert up.hops == 2 + 2
    (pattern,) = patterns(made)
    assert pattern.hops == 2 * up.hops


def test_a_hierarchy_sends_between_groups_only_its_part() -> None:
    # 4 groups of 8: inside 2 * 7/8 of the bytes; between groups a ring of 4 for each eighth: 2 * 3/4 * 1/8
    groups = [list(range(8 * node, 8 * node + 8)) for node in range(4)]
    made = all_reduce.hierarchical(groups)
    inside, between = patterns(made)
    assert (inside.repeat, inside.bytes_share[0]) == (2 * 7, 1 / 8)
    assert (between.repeat, between.bytes_share[0]) == (2 * 3, 1 / 8 / 4)
    assert (inside.source // 8 == inside.target // 8).all()
    assert (between.source % 8 == between.target % 8).all()
    assert volume(made)[0].tolist() == [2 * 7 / 8 + 2 * 3 / 4 / 8] * 32


# --- compactness --------------------------------------------------------------------------------------------------


def entries(algorithm: Steps) -> int:
    """Return how many numbers the steps hold in memory; a number that stands for a whole array counts as none."""
    arrays = [array for step in algorithm.steps for array in step[:4]]
    return sum(array.size for array in arrays if array.strides[0])


@pytest.mark.parametrize(
    ("make", "bound"),
    [
        (all_reduce.ring, 2 * 3),
        (all_reduce.recursive_doubling, 14 * 2),
        (all_reduce.rabenseifner, 28 * 3),
        (all_reduce.binomial_tree, 2 * 2),
        (all_reduce.double_binary_tree, 2 * 4 * 2),
        (all_reduce.chain, 2 * 4),
        (all_reduce.nvls, 4 * 3),
        (all_gather.bruck, 14 * 3),
        (all_to_all.bruck, 14 * 2),
        (lambda ranks: all_reduce.tree(np.arange(ranks).reshape(-1, 8).tolist()), 2 * 4 * 2),
        (lambda ranks: all_reduce.hierarchical(np.arange(ranks).reshape(-1, 8).tolist()), 4 * 4),
    ],
)
def test_steps_of_16384_ranks_are_few_arrays_of_that_length(make: Callable[[int], Steps], bound: int) -> None:
    assert entries(make(16_384)) <= bound * 16_384


def test_a_ring_of_16384_is_one_pattern() -> None:
    (pattern,) = patterns(all_reduce.ring(16_384))
    assert (pattern.repeat, pattern.source.size) == (2 * 16_383, 16_384)


def test_unlike_steps_are_made_only_when_they_are_read() -> None:
    made = all_to_all.pairwise(16_384)
    assert len(made.steps) == 16_383
    assert made.steps[-1].target[:2].tolist() == [16_383, 0]
    assert [step.target[0] for step in made.steps[3:6]] == [4, 5, 6]
    pattern = next(patterns(made))
    assert isinstance(pattern, Pattern)
    assert pattern.target[:2].tolist() == [1, 2]


def test_halving_and_doubling_back_are_the_same_patterns_twice() -> None:
    assert [pattern.repeat for pattern in patterns(all_reduce.rabenseifner(16))] == [2, 2, 2, 2]


def test_steps_cannot_be_written_to() -> None:
    for step in (all_reduce.ring(4).steps[0], all_reduce.hierarchical([[0, 1], [2, 3]]).steps[1]):
        assert not any(array.flags.writeable for array in step[:4])


# --- one rank, and errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), [pair for pair in NAMED if pair[0] not in ("push", "pull")])
def test_one_rank_has_nothing_to_do(kind: CollectiveKind, name: str) -> None:
    assert len(ALGORITHMS[kind][name](1).steps) == 0


@pytest.mark.parametrize(("kind", "name"), NAMED)
@pytest.mark.parametrize("ranks", [0, -1])
def test_no_ranks_are_refused(kind: CollectiveKind, name: str, ranks: int) -> None:
    with pytest.raises(ClusterError, match=f"^collective of {ranks} ranks: there must be at least 1$"):
        ALGORITHMS[kind][name](ranks)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([0, 1, 1, 3], "order: names rank 1 2 times; it must name each of 4 ranks once"),
        ([0, 1, 2], "order: names rank 3 0 times; it must name each of 4 ranks once"),
        ([], "order: names rank 0 0 times; it must name each of 4 ranks once"),
        ([0, 1, 2, 4], "order: names rank 4; ranks are 0 to 3"),
        ([0, 1, 2, -1], "order: names rank -1; ranks are 0 to 3"),
        ([0, 1, 2, 2.5], "order: ranks must be whole numbers"),
    ],
)
def test_an_order_that_is_no_permutation_is_refused(order: Sequence[int], message: str) -> None:
    for make in (all_reduce.ring, all_reduce.chain, reduce_scatter.ring, all_gather.ring, broadcast.chain):
        with pytest.raises(ClusterError) as error:
            make(4, order)
        assert str(error.value) == message


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([], "collective of 0 ranks: there must be at least 1"),
        ([[0, 1], []], "groups: group 1 is empty; each must have a rank"),
        ([[0, 1], [1, 2]], "groups: names rank 1 2 times; it must name each of 4 ranks once"),
        ([[0, 1], [2, 7]], "groups: names rank 7; ranks are 0 to 3"),
    ],
)
def test_groups_that_do_not_share_out_the_ranks_are_refused(groups: Sequence[Sequence[int]], message: str) -> None:
    for make in (all_reduce.tree, all_reduce.hierarchical):
        with pytest.raises(ClusterError) as error:
            make(groups)
        assert str(error.value) == message


def test_hierarchies_need_groups_of_one_size_and_known_algorithms() -> None:
    with pytest.raises(ClusterError, match=r"^groups: have 1 to 2 ranks; NVLS trees need groups of one size$"):
        all_reduce.nvls_tree([[0, 1], [2]])
    with pytest.raises(ClusterError, match=r"^groups: have 1 to 2 ranks; hierarchical needs groups of one size$"):
        all_reduce.hierarchical([[0, 1], [2]])
    with pytest.raises(UnknownNameError, match="inner reduce-scatter 'rings' is unknown; did you mean 'ring'"):
        all_reduce.hierarchical([[0], [1]], "rings")
    with pytest.raises(UnknownNameError, match="outer all-reduce 'nvls' is unknown"):
        all_reduce.hierarchical([[0], [1]], "ring", "nvls")


def test_steps_that_would_fill_memory_and_absent_servers_are_refused() -> None:
    with pytest.raises(ClusterError, match=r"^collective with 0 servers: there must be at least 1$"):
        servers.push(4, 0)
    # 16,384 * 16,383 transfers
    with pytest.raises(ClusterError, match=f"268,419,072 transfers at once; at most {MOST_TRANSFERS:,} can be held"):
        all_to_all.direct(16_384)
    with pytest.raises(ClusterError, match="16384 workers with 16384 servers: 268,435,456 transfers at once"):
        servers.pull(16_384, 16_384)
