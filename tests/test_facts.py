"""The five facts that the design of the schedules rests on, for any costs."""

from collections.abc import Mapping
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import build, loose, small_workload, timed

from simgd.schedule import ROLE, Dep, Forward, Map, Op, Schedule, Update
from simgd.simulator import steady
from simgd.soundness import Derived, derive
from simgd.steady_state import EventGraph
from simgd.timing import OpTime, Timing

#: Costs large enough that nothing is round by accident.
COST = st.integers(0, 1000)


def period(schedule: Schedule, derived: Derived, costs: Timing) -> Fraction:
    """Return the period by the cycle ratio; the simulator says the same if the state repeats soon."""
    ratio = EventGraph(schedule, derived, costs).critical_cycle().period_ps
    state = steady(schedule, derived, costs, limit=60)
    assert not state.repeats or state.period_ps == ratio
    return ratio


def layers(number: int) -> st.SearchStrategy[list[int]]:
    return st.lists(COST, min_size=number, max_size=number)


def three(first_words: Mapping[str, list[int]]) -> dict[str, int | OpTime]:
    """Return costs of ops on l0, l1, l2 by the first word of their names; buckets b0, b1, ... stand in send order."""
    return {
        f"{word} {name}": cost
        for word, costs in first_words.items()
        for k, cost in enumerate(costs)
        for name in ([f"l{k}"] if word in ("forward", "backward") else [f"l{k}", f"bucket{2 - k}"])
    }


def sent_in_turn(costs: list[int]) -> list[int]:
    return costs[::-1]


# --- fact 1 ---------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(layers(3), layers(3), COST, COST, st.integers(1, 4))
def test_fact_1_one_flat_message_and_k_plus_1_copies(
    forward: list[int], backward: list[int], update: int, reduce: int, k: int
):
    schedule, derived = build(f"async:{k}:all", small_workload(1, 1, 1))
    assert schedule.buckets[0].copies == k + 1
    run = three({"forward": forward, "backward": backward}) | {"update": update, "all_reduce": reduce}
    computing = sum(forward) + sum(backward) + update
    expected = max(computing, reduce, Fraction(computing + reduce, k + 1))
    assert period(schedule, derived, timed(schedule, run)) == expected
    # From k = 1 on the last term is at most the mean of the other two.
    assert expected == max(computing, reduce)


@settings(max_examples=60, deadline=None)
@given(layers(3), layers(3), COST, COST)
def test_fact_1_without_delay_it_is_sync(forward: list[int], backward: list[int], update: int, reduce: int):
    schedule, derived = build("sync", small_workload(1, 1, 1))
    run = three({"forward": forward, "backward": backward}) | {"update": update, "all_reduce": reduce}
    assert period(schedule, derived, timed(schedule, run)) == sum(forward) + sum(backward) + update + reduce


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=4, max_size=4), st.integers(1, 3))
def test_fact_1_every_further_lane_in_the_loop_adds_to_the_last_term(cost: list[int], k: int):
    names = ("forward", "copy out", "all_reduce", "copy in")
    ops = [
        Op(name="forward", lane="compute", work=Forward(layers=("l0",)), after=(Dep("copy in", k + 1),)),
        Op(name="copy out", lane="copy_out", work=Update(bucket="b"), after=(Dep("forward"),)),
        Op(name="all_reduce", lane="copy_in", work=Update(bucket="b"), after=(Dep("copy out"),)),
        Op(name="copy in", lane="update", work=Update(bucket="b"), after=(Dep("all_reduce"),)),
    ]
    schedule, derived = loose(ops)
    costs = timed(schedule, dict(zip(names, cost, strict=True)), run_ahead=k + 1)
    assert period(schedule, derived, costs) == max(*cost, Fraction(sum(cost), k + 1))


def test_fact_1_staged_copies_may_need_a_delay_of_3_to_hide_all():
    # Four lanes of 100: delays of 1, 2 and 3 give 400 / 2, 400 / 3 and 400 / 4.
    found = []
    for k in (1, 2, 3):
        ops = [Op(name="o0", lane="compute", work=Forward(layers=("l0",)), after=(Dep("o3", k + 1),))]
        for place, lane in enumerate(("copy_out", "copy_in", "update"), start=1):
            ops.append(Op(name=f"o{place}", lane=lane, work=Update(bucket="b"), after=(Dep(f"o{place - 1}"),)))
        schedule, derived = loose(ops)
        found.append(period(schedule, derived, timed(schedule, dict.fromkeys(("o0", "o1", "o2", "o3"), 100))))
    assert found == [200, Fraction(400, 3), 100]


# --- fact 2 ---------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(layers(3), layers(3), layers(3), layers(3), layers(3), st.integers(1, 3), st.sampled_from(["async", "layers"]))
def test_fact_2_d_copies_per_bucket_suffice(
    forward: list[int], backward: list[int], update: list[int], copy: list[int], reduce: list[int], d: int, kind: str
):
    name = f"async:{d}:1B" if kind == "async" else f"async_layerwise:{d}"
    schedule, derived = build(name, small_workload(1, 1, 1))
    assert [bucket.copies for bucket in schedule.buckets] == [d, d, d]
    assert set(derived.staleness.values()) == {d}
    run = three({"forward": forward, "backward": backward, "update": update, "copy": copy, "all_reduce": reduce})
    computing = sum(forward) + sum(backward) + sum(update) + sum(copy)
    loops = [Fraction(reduce[b] + update[b] + copy[b], d) for b in range(3)]
    assert period(schedule, derived, timed(schedule, run)) == max(computing, sum(reduce), *loops)


# --- fact 3 ---------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(layers(3), layers(3), layers(3), layers(3), st.integers(0, 50), st.integers(1, 3))
def test_fact_3_waiting_for_all_updates_costs_no_more_than_waiting_for_ones_own(
    forward: list[int], backward: list[int], update: list[int], reduce: list[int], issue: int, run_ahead: int
):
    run = three({"forward": forward, "backward": backward, "update": update, "all_reduce": reduce})
    own, all_ = (
        period(*found, timed(found[0], run, issue_ps=issue, run_ahead=run_ahead))
        for found in (build(name, small_workload(1, 1, 1)) for name in ("layerwise", "layerwise:join"))
    )
    assert own == all_


@settings(max_examples=150, deadline=None)
@given(layers(3), layers(3), layers(3), layers(3))
def test_layerwise_has_a_closed_form(forward: list[int], backward: list[int], update: list[int], reduce: list[int]):
    schedule, derived = build("layerwise", small_workload(1, 1, 1))
    run = three({"forward": forward, "backward": backward, "update": update, "all_reduce": reduce})
    b, r, u = sent_in_turn(backward), sent_in_turn(reduce), sent_in_turn(update)
    # Down the compute lane to some backward, from there down the comm lane, from there down the update lane.
    down = [sum(b[: k + 1]) + sum(r[k : j + 1]) + sum(u[j:]) for k in range(3) for j in range(k, 3)]
    assert period(schedule, derived, timed(schedule, run)) == sum(forward) + max(down)


@settings(max_examples=100, deadline=None)
@given(layers(3), layers(3), COST, layers(3))
def test_bucketed_has_a_closed_form(forward: list[int], backward: list[int], update: int, reduce: list[int]):
    schedule, derived = build("bucketed:1B", small_workload(1, 1, 1))
    run = three({"forward": forward, "backward": backward, "all_reduce": reduce}) | {"update": update}
    b, r = sent_in_turn(backward), sent_in_turn(reduce)
    down = [sum(b[: k + 1]) + sum(r[k:]) for k in range(3)]
    assert period(schedule, derived, timed(schedule, run)) == sum(forward) + max(down) + update


def test_fact_3_a_delay_moves_communication_behind_the_next_forward():
    # Forward 100, backward 10, messages 60: layerwise 100 + 5 + 2 x 30; by one iteration later 110
    run: dict[str, int | OpTime] = {"forward": 50, "backward": 5, "all_reduce": 30}
    found = {}
    for name in ("layerwise", "layerwise:join", "async_layerwise:1"):
        schedule, derived = build(name, small_workload(1, 1))
        found[name] = period(schedule, derived, timed(schedule, run))
    assert found == {"layerwise": 165, "layerwise:join": 165, "async_layerwise:1": 110}


# --- fact 4 ---------------------------------------------------------------------------------------------------------


def update_behind_backward() -> tuple[Schedule, Derived]:
    """Return layerwise on three layers with each update on the compute lane, right behind its backward."""
    of = small_workload(1, 1, 1)
    eager, _ = build("layerwise", of)
    by_name = {op.name: op for op in eager.ops}
    ops = [by_name[f"forward l{k}"] for k in (0, 1, 2)]
    for k in (2, 1, 0):
        late = by_name[f"update l{k}"]
        ops += [
            by_name[f"backward l{k}"],
            by_name[f"all_reduce l{k}"],
            Op(name=late.name, lane="compute", work=late.work, after=late.after),
        ]
    schedule = Schedule(name="behind", workload=of.name, buckets=eager.buckets, roles={ROLE: tuple(ops)})
    return schedule, derive(schedule, of)


@settings(max_examples=60, deadline=None)
@given(layers(3), layers(3), layers(3), layers(3))
def test_fact_4_an_update_right_behind_its_backward_without_lag_loses_all_overlap(
    forward: list[int], backward: list[int], update: list[int], reduce: list[int]
):
    schedule, derived = update_behind_backward()
    run = three({"forward": forward, "backward": backward, "update": update, "all_reduce": reduce})
    assert period(schedule, derived, timed(schedule, run)) == sum(forward + backward + update + reduce)


@settings(max_examples=60, deadline=None)
@given(layers(3), layers(3), layers(3), st.lists(st.integers(0, 100), min_size=3, max_size=3))
def test_fact_4_at_lag_1_it_costs_nothing_there_once_the_message_is_done(
    forward: list[int], backward: list[int], update: list[int], reduce: list[int]
):
    backward = [cost + 300 for cost in backward]
    schedule, derived = build("async_layerwise:1", small_workload(1, 1, 1))
    assert [op.name for op in schedule.ops if op.lane == "compute"][3:6] == ["backward l2", "update l2", "copy l2"]
    run = three({"forward": forward, "backward": backward, "update": update, "all_reduce": reduce})
    # All messages together are shorter than one backward pass, so each is done an iteration later.
    assert period(schedule, derived, timed(schedule, run)) == sum(forward + backward + update)


# --- fact 5 ---------------------------------------------------------------------------------------------------------


def with_interference(computing: int, reduce: int, c: Fraction, m: Fraction) -> Fraction:
    """Return the simulated period of delay 1, all compute in one op that does not end in the middle of a message."""
    schedule, derived = build("async:1:all", small_workload(1))
    run = {"backward": OpTime(run_ps=computing, slowed=c, slows=m), "all_reduce": reduce}
    state = steady(schedule, derived, timed(schedule, run))
    assert state.repeats
    return state.period_ps


def test_fact_5_overlap_is_not_free():
    c, m = Fraction(6, 5), Fraction(8, 5)
    # x = min(1.2 x 1000, 1.6 x 1000) = 1200 of both; T = max(1000 + 1200 x (1 - 1/1.2), 1000 + 1200 x (1 - 1/1.6))
    # = max(1000 + 200, 1000 + 450) = 1450
    assert with_interference(1000, 1000, c, m) == 1450
    # over sync: (1000 + 1000) / 1450
    assert round(2000 / 1450, 2) == 1.38
    # without interference it would have been 2, the upper bound (1 + r) / max(1, r) at r = 1
    assert with_interference(1000, 1000, Fraction(1), Fraction(1)) == 1000


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 50),
    st.integers(1, 50),
    st.sampled_from(["1", "6/5", "5/4", "3/2", "2"]),
    st.sampled_from(["1", "8/5", "5/4", "3/2", "2"]),
)
def test_fact_5_for_any_costs_and_factors(computing: int, reduce: int, slowed: str, slows: str):
    c, m = Fraction(slowed), Fraction(slows)
    # Multiples of 7200, so that no end has to be rounded
    whole = with_interference(7200 * computing, 7200 * reduce, c, m)
    x = min(c * 7200 * computing, m * 7200 * reduce)
    assert whole == max(7200 * computing + x * (1 - 1 / c), 7200 * reduce + x * (1 - 1 / m))
    assert Fraction(7200 * (computing + reduce)) / whole <= Fraction(computing + reduce, max(computing, reduce))


def test_the_copies_of_fact_2_are_the_fewest():
    """With one copy fewer the update would read a gradient that the next one has overwritten."""
    of = small_workload(1, 1)
    schedule, _ = build("async:2:1B", of)
    fewer = tuple(type(bucket)(name=bucket.name, slices=bucket.slices, copies=1) for bucket in schedule.buckets)
    short = Schedule(name="short", workload=of.name, buckets=fewer, roles=schedule.roles)
    with pytest.raises(
        ValueError, match="reads the gradient of bucket 'bucket0' of 2 iterations ago, but its 1 copies"
    ):
        derive(short, of)
    assert sum(isinstance(op.work, Map) for op in schedule.ops) == 2
