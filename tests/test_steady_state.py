"""The largest cycle ratio: equal to the simulator's period as a fraction, and explained by a cycle that is there."""

from fractions import Fraction
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Play
from strategies import build, cases, graph, loose, named, ring, small_workload, sound, timed, timing, workload

from simgd.errors import ScheduleError
from simgd.schedule import Communicate, Dep, Forward, Op, Schedule, Update
from simgd.simulator import simulate, steady
from simgd.soundness import Derived, derive
from simgd.steady_state import Cycle, EventGraph
from simgd.timing import Timing

Case = tuple[Schedule, Derived, Timing]


def case(rng: Random) -> Case:
    kind = rng.randrange(4)
    if kind == 0:
        schedule, derived = graph(rng)
    elif kind == 1:
        schedule, derived = ring(rng)
    else:
        of = workload(rng, 3)
        schedule = named(rng, of) if kind == 2 else sound(rng, of)
        derived = derive(schedule, of)
    return schedule, derived, timing(rng, schedule)


def check_cycle(paths: EventGraph, found: Cycle) -> None:
    """Costs over lags are the period, and each step follows the one before it along an edge of the graph."""
    assert sum(step.cost_ps for step in found.steps) == found.period_ps * sum(step.lag for step in found.steps)
    at = {(node.op, node.issue): place for place, node in enumerate(paths.nodes)}
    for before, step in zip((found.steps[-1], *found.steps[:-1]), found.steps, strict=True):
        node = paths.nodes[at[step.op, step.issue]]
        assert step.cost_ps == node.cost_ps
        assert (at[before.op, before.issue], step.lag) in node.before


def test_the_period_of_the_simulator_is_the_largest_cycle_ratio_as_a_fraction_once_the_state_repeats():
    repeated, fractions = 0, 0
    for seed in range(2000):
        found = case(Random(seed))
        paths = EventGraph(*found)
        cycle = paths.critical_cycle()
        check_cycle(paths, cycle)
        state = steady(*found, limit=200)
        repeated += state.repeats
        fractions += state.repeats and state.period_ps.denominator > 1
        assert not state.repeats or state.period_ps == cycle.period_ps, seed
    # A lane that nobody waits for may fall behind for ever; all else comes back.
    assert repeated > 1800
    assert fractions > 10


@settings(max_examples=150, deadline=None)
@given(cases(case))
def test_period_and_cycle_ratio_agree_whatever_hypothesis_thinks_of(found: Case):
    paths = EventGraph(*found)
    cycle = paths.critical_cycle()
    check_cycle(paths, cycle)
    state = steady(*found, limit=200)
    assert not state.repeats or state.period_ps == cycle.period_ps


def loop() -> tuple[Schedule, Derived]:
    """Return three ops in a loop of two iterations: compute, copy out, communicate, compute two iterations later."""
    return loose(
        [
            Op(name="forward", lane="compute", work=Forward(layers=("l0",)), after=(Dep("send", 2),)),
            Op(name="copy", lane="copy_out", work=Update(bucket="b"), after=(Dep("forward"),)),
            Op(name="send", lane="comm", work=Communicate(collective="all_reduce", bucket="b"), after=(Dep("copy"),)),
        ]
    )


def test_a_period_can_alternate_and_is_then_a_fraction():
    schedule, derived = loop()
    costs = timed(schedule, {"forward": 10, "copy": 10, "send": 11})
    # Each lane alone could repeat every 11, but the loop of 10 + 10 + 11 comes around every two iterations.
    cycle = EventGraph(schedule, derived, costs).critical_cycle()
    assert cycle.period_ps == Fraction(31, 2)
    state = steady(schedule, derived, costs)
    assert (state.period_ps, state.repeats, state.iterations) == (Fraction(31, 2), True, 2)
    # forward 0-10, 10-20; copies 10-20, 20-30; sends 20-31, 31-42; forward 31-41, 42-52; copies 41-51, 52-62; sends
    # 51-62, 62-73; forward 62-72, 73-83: gaps of 21 and 11, then 20 and 11, 31 for two iterations from there on
    ends = [row.end_ps for row in simulate(schedule, derived, costs, iterations=6) if row.op == "forward" and row.lane]
    assert ends == [10, 20, 41, 52, 72, 83]
    assert [late - early for early, late in zip(ends, ends[2:], strict=False)] == [31, 32, 31, 31]


def test_where_no_repeat_is_found_within_the_limit_both_numbers_are_said():
    # Communicating takes 101, computing 100, and three gradients may be under way: the message falls behind by 1 an
    # iteration, and only when it is 200 behind does computing wait for it.
    of = small_workload(1)
    schedule, derived = build("async:3:all", of)
    costs = timed(schedule, {"forward": 50, "backward": 50, "all_reduce": 101})
    early = steady(schedule, derived, costs, limit=20)
    assert (early.repeats, early.period_ps) == (False, 100)
    assert EventGraph(schedule, derived, costs).critical_cycle().period_ps == 101
    late = steady(schedule, derived, costs, limit=400)
    assert (late.repeats, late.period_ps) == (True, 101)
    assert late.warm_up >= 200


def test_the_critical_cycle_names_what_limits_the_speed():
    schedule, derived = build("layerwise", small_workload(1, 1))
    costs = timed(schedule, {"forward": 10, "backward": 20, "all_reduce": 50, "update": 5})
    # forward l0, forward l1, backward l1, message l1, message l0, update l0, and the next forward l0:
    # 10 + 10 + 20 + 50 + 50 + 5, once an iteration
    cycle = EventGraph(schedule, derived, costs).critical_cycle()
    assert cycle.period_ps == 145
    ran = [step.op for step in cycle.steps if not step.issue]
    start = ran.index("forward l0")
    assert [*ran[start:], *ran[:start]] == [
        "forward l0", "forward l1", "backward l1", "all_reduce l1", "all_reduce l0", "update l0"
    ]  # fmt: skip
    assert sum(step.lag for step in cycle.steps) == 1


def test_the_critical_cycle_is_the_host_where_issuing_is_slowest():
    schedule, derived = build("layerwise:tensor", small_workload(1, 1))
    costs = timed(schedule, {"all_reduce": 3}, issue_ps=10)
    cycle = EventGraph(schedule, derived, costs).critical_cycle()
    assert cycle.period_ps == 80
    assert [step.issue for step in cycle.steps] == [True] * 8


@settings(max_examples=60, deadline=None)
@given(cases(case), st.randoms(use_true_random=False))
def test_the_period_with_other_costs_is_that_of_a_graph_made_with_them(found: Case, rng: Random):
    schedule, derived, costs = found
    other = Timing(
        ops=timing(rng, schedule).ops,
        merged=costs.merged,
        wait_blocks_host=costs.wait_blocks_host,
        run_ahead=costs.run_ahead,
    )
    paths = EventGraph(schedule, derived, costs)
    there = EventGraph(schedule, derived, other)
    costs_there = [node.cost_ps for node in there.nodes]
    assert paths.period_of(costs_there, near=paths.critical_cycle()) == there.critical_cycle().period_ps


def test_what_the_cycle_ratio_cannot_say_is_refused():
    schedule, derived = build("layerwise", small_workload(1, 1))
    with pytest.raises(ScheduleError, match="2 collectives in flight share bandwidth"):
        EventGraph(schedule, derived, timed(schedule, {}, in_flight=2))
    rare, derived = loose(
        [
            Op(name="forward", lane="compute", work=Forward(layers=("l0",))),
            Op(name="update", lane="update", work=Update(bucket="b"), every=2),
        ]
    )
    with pytest.raises(ScheduleError, match="op 'update' does not run in every iteration"):
        EventGraph(rare, derived, timed(rare, {})).critical_cycle()


def rare_first() -> Case:
    """Return two ops that the host issues in turn, the first in every second iteration only."""
    schedule, derived = loose(
        [
            Op(name="update", lane="compute", work=Update(bucket="b"), every=2),
            Op(name="forward", lane="compute", work=Forward(layers=("l0",))),
        ]
    )
    return schedule, derived, timed(schedule, {"update": 10, "forward": 5}, issue_ps=1)


def test_an_op_behind_one_that_the_iteration_lacks_still_comes_after_all_before_it():
    schedule, derived, costs = rare_first()
    # Issued and run in turn: update 1-11, forward 11-16; from 16 on iteration 1, which has no update: forward 17-22;
    # update 23-33, forward 33-38.
    expected = {("update", 0): 11, ("forward", 0): 16, ("forward", 1): 22, ("update", 2): 33, ("forward", 2): 38}
    played = Play(schedule, derived.dependencies, costs, 3).ends
    assert {(op, i): end for (_, op, i), end in played.items()} == expected
    assert EventGraph(schedule, derived, costs).op_ends(3) == expected


def test_the_period_is_that_of_an_iteration_also_where_the_last_op_does_not_run_in_each():
    schedule, derived = loose(
        [
            Op(name="forward", lane="compute", work=Forward(layers=("l0",))),
            Op(name="update", lane="compute", work=Update(bucket="b"), every=2),
        ]
    )
    # Two iterations take 5 + 5 + 10.
    state = steady(schedule, derived, timed(schedule, {"update": 10, "forward": 5}))
    assert (state.repeats, state.period_ps) == (True, 10)
