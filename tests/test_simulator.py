"""The simulator, against an oracle that plays the design's text out, and against numbers derived by hand."""

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Play, StuckError
from strategies import build, cases, graph, loose, named, ring, small_workload, sound, timed, timing, workload

from simgd.errors import ScheduleError
from simgd.schedule import Backward, Dep, Forward, Op, Schedule, Wait
from simgd.simulator import simulate, steady
from simgd.soundness import Derived, derive
from simgd.steady_state import EventGraph
from simgd.timing import OpTime, Timing
from simgd.trace import Trace

Case = tuple[Schedule, Derived, Timing]

TWO = small_workload(1, 1)

THREE = small_workload(1, 1, 1)


def case(rng: Random, **how: bool | int) -> Case:
    """Return a random schedule, of a name, sound without one, or only a graph, with its costs."""
    kind = rng.randrange(3)
    if kind == 0:
        schedule, derived = graph(rng)
    else:
        of = workload(rng, 3)
        schedule = named(rng, of) if kind == 1 else sound(rng, of)
        derived = derive(schedule, of)
    return schedule, derived, timing(rng, schedule, **how)  # type: ignore[arg-type]


def ran(trace: Trace) -> dict[tuple[int, str, int], tuple[int, int]]:
    """Return start and end of every op by rank, op and iteration, without the host's issuing."""
    # Where the host runs an op itself, that is the op's only row; else its row on the host lane comes first.
    return {(row.rank, row.op, row.iteration): (row.start_ps, row.end_ps) for row in trace}


def played(
    found: Case, iterations: int = 4, ranks: int = 1, slowdowns: list[list[float]] | None = None
) -> dict[tuple[int, str, int], tuple[int | None, int | None]]:
    schedule, derived, costs = found
    play = Play(schedule, derived.dependencies, costs, iterations, ranks=ranks, slowdowns=slowdowns)
    return {key: (play.starts[key], play.ends[key]) for key in play.all}


def simulated(
    found: Case, iterations: int = 4, ranks: int = 1, slowdowns: list[list[float]] | None = None
) -> dict[tuple[int, str, int], tuple[int, int]]:
    schedule, derived, costs = found
    trace = simulate(schedule, derived, costs, iterations=iterations, ranks=ranks, slowdowns=slowdowns)
    return ran(trace)


# --- against the oracle and the longest path ----------------------------------------------------------------------


def test_every_op_starts_and_ends_as_the_oracle_plays_it_and_as_the_longest_path_says():
    for seed in range(1500):
        found = case(Random(seed))
        expected = played(found)
        assert simulated(found) == expected, seed
        ends = EventGraph(*found).op_ends(4)
        # The longest path knows the first iterations; what is owed after them only who plays or simulates.
        assert ends == {(op, i): end for (_, op, i), (_, end) in expected.items() if i < 4}, seed


@settings(max_examples=100, deadline=None)
@given(cases(case))
def test_simulator_oracle_and_longest_path_agree_whatever_hypothesis_thinks_of(found: Case):
    expected = played(found, 3)
    assert simulated(found, 3) == expected
    assert EventGraph(*found).op_ends(3).items() <= {(op, i): end for (_, op, i), (_, end) in expected.items()}.items()


def test_with_interference_every_op_starts_and_ends_as_the_oracle_plays_it():
    for seed in range(1000):
        found = case(Random(seed), interferes=True)
        assert simulated(found) == played(found), seed


def test_with_several_in_flight_every_op_starts_and_ends_as_the_oracle_plays_it():
    for seed in range(1000):
        rng = Random(seed)
        found = case(rng, interferes=rng.random() < 0.5, in_flight=rng.choice([2, 3]))
        assert simulated(found) == played(found), seed


def test_on_ranks_of_different_speed_every_op_starts_and_ends_as_the_oracle_plays_it():
    for seed in range(500):
        rng = Random(seed)
        found = case(rng, interferes=rng.random() < 0.5)
        ranks = rng.randint(2, 3)
        slowdowns = [[rng.choice([1.0, 2.0, 3.0]) for _ in range(ranks)] for _ in range(3)]
        assert simulated(found, 3, ranks, slowdowns) == played(found, 3, ranks, slowdowns), seed


def test_what_gets_stuck_gets_stuck_in_the_simulator_the_oracle_and_the_graph_alike():
    stuck = 0
    for seed in range(600):
        rng = Random(seed)
        schedule, derived = graph(rng, stuck=True)
        costs = timing(rng, schedule)
        try:
            expected = played((schedule, derived, costs), 2)
        except StuckError:
            stuck += 1
            with pytest.raises(ScheduleError, match="stuck: "):
                simulate(schedule, derived, costs, iterations=2)
            with pytest.raises(ScheduleError, match="waits for itself"):
                EventGraph(schedule, derived, costs)
        else:
            assert simulated((schedule, derived, costs), 2) == expected, seed
    assert stuck > 100


def test_ops_that_do_not_run_in_every_iteration_start_and_end_as_the_oracle_plays_them():
    for seed in range(500):
        rng = Random(seed)
        schedule, derived = graph(rng, rare=True)
        if all(op.every > 1 for op in schedule.ops if op.lane == "compute"):
            continue
        found = (schedule, derived, timing(rng, schedule))
        # Up to the end; which of the host's waits hold while owed updates run is open where their lane is rare too.
        expected = {key: times for key, times in played(found, 6).items() if key[2] < 6}
        assert {key: times for key, times in simulated(found, 6).items() if key[2] < 6} == expected, seed
        ends = EventGraph(*found).op_ends(6)
        assert ends == {(op, i): end for (_, op, i), (_, end) in expected.items()}, seed


@settings(max_examples=60, deadline=None)
@given(cases(lambda rng: case(rng, interferes=rng.random() < 0.5, in_flight=rng.choice([1, 2]))))
def test_two_runs_give_the_same_trace(found: Case):
    assert simulate(*found, iterations=3) == simulate(*found, iterations=3)


@settings(max_examples=60, deadline=None)
@given(cases(lambda rng: case(rng, interferes=rng.random() < 0.5)))
def test_ranks_that_are_alike_simulated_apart_do_as_one_rank_simulated_alone(found: Case):
    alone, apart = simulated(found), simulated(found, ranks=3)
    assert apart == {(rank, op, i): times for rank in range(3) for (_, op, i), times in alone.items()}


@settings(max_examples=60, deadline=None)
@given(cases(lambda rng: case(rng, interferes=rng.random() < 0.5)))
def test_a_lane_runs_its_ops_in_the_order_of_the_list_one_at_a_time(found: Case):
    schedule = found[0]
    place = {op.name: k for k, op in enumerate(schedule.ops)}
    lanes: dict[str, list[tuple[tuple[int, int], int, int]]] = {}
    for row in simulate(*found, iterations=3):
        lanes.setdefault(row.lane, []).append(((row.iteration, place[row.op]), row.start_ps, row.end_ps))
    for rows in lanes.values():
        assert rows == sorted(rows)
        assert all(end <= start for (_, _, end), (_, start, _) in pairwise(rows))


# --- numbers derived by hand ----------------------------------------------------------------------------------------


def period(name: str, run_ps: dict[str, int | OpTime], **how: int | bool) -> Fraction:
    """Return the steady period on two layers, the same from the simulator and from the cycle ratio."""
    schedule, derived = build(name, TWO)
    costs = timed(schedule, run_ps, **how)  # type: ignore[arg-type]
    found = steady(schedule, derived, costs)
    assert found.repeats
    assert EventGraph(schedule, derived, costs).critical_cycle().period_ps == found.period_ps
    return found.period_ps


#: Forward 10 and backward 20 for each of two layers; a message of one layer takes 30, of both 60; an update 5.
COSTS: dict[str, int | OpTime] = {
    "forward": 10, "backward": 20, "all_reduce": 30, "all_reduce all": 60, "update": 5, "copy": 1
}  # fmt: skip


def test_sync_takes_the_sum_of_its_parts():
    # 2 x 10 + 2 x 20 + 60 + 5
    assert period("sync", COSTS) == 125


def test_bucketed_hides_all_but_the_last_message_behind_backward():
    # forward ends at 20, backward l1 at 40, backward l0 at 60; messages 40-70 and 70-100; the update 100-105
    assert period("bucketed:1B", COSTS) == 105


def test_layerwise_updates_early_but_the_front_layer_is_sent_last_and_needed_first():
    # messages 40-70 and 70-100; update l1 70-75, update l0 100-105; forward l0 needs update l0
    assert period("layerwise", COSTS) == 105
    # An update longer than a message delays the next: update l1 70-110, update l0 110-150
    assert period("layerwise", COSTS | {"update": 40}) == 150


def test_async_by_one_takes_the_longer_of_computing_and_communicating():
    # computing: 20 + 40 + 2 x 5 + 2 x 1 = 72; communicating: 2 x 30
    assert period("async:1:1B", COSTS) == 72
    # communicating: 2 x 50
    assert period("async:1:1B", COSTS | {"all_reduce": 50}) == 100
    # one message of 60 flat, two gradient copies: computing 20 + 40 + 5
    assert period("async:1:all", COSTS) == 65


def test_one_message_a_tensor_is_slower_than_sync_where_the_host_cannot_issue_fast_enough():
    # sync: 6 ops, 10 of host time each. The host is ahead but for the first op: its issuing starts when the last
    # update of the iteration before has ended, so 10 of issue + 2 + 2 + 6 more wait: forward l0 10-11, forward l1
    # 20-21, backward l1 30-31, backward l0 40-41, the message issued at 50: 50-56, the update issued at 60: 60-61.
    short: dict[str, int | OpTime] = {"forward": 1, "backward": 1, "all_reduce": 3, "all_reduce all": 6, "update": 1}
    assert period("sync", short, issue_ps=10) == 61
    # one message a layer: 8 ops; the last op of the compute lane is backward l0, issued at 50, 50-51; from 51 on the
    # next iteration could be issued, but the host is busy with this one until 80: 80 an iteration.
    assert period("layerwise", short, issue_ps=10) == 80


def test_run_ahead_lets_the_host_issue_while_the_device_computes():
    # Issuing takes 6 x 10 = 60. Without running ahead: forward l0 is issued at 10, 10-60; forward l1 60-110,
    # backward l1 110-160, backward l0 160-210, no time to communicate, the update 210-260.
    long: dict[str, int | OpTime] = {"forward": 50, "backward": 50, "update": 50}
    assert period("sync", long, issue_ps=10) == 260
    # Running ahead by one more iteration hides the first issue too: 5 x 50
    assert period("sync", long, issue_ps=10, run_ahead=2) == 250


def test_a_merged_rank_issues_and_computes_one_after_the_other():
    # forward, backward: 4 x (1 + 10); the message's issue 1; it runs 45-105 while the host issues the update, 46;
    # the host waits to 105; the update ends at 110
    costs: dict[str, int | OpTime] = {"forward": 10, "backward": 10, "all_reduce all": 60, "update": 5}
    assert period("sync", costs, issue_ps=1, merged=True) == 110


def test_a_merged_rank_runs_updates_between_passes_not_beside_them():
    # layerwise: forward l0 0-10, l1 10-20, backward l1 20-40, message l1 40-70, backward l0 40-60, message l0 70-100;
    # the host waits for message l1, update l1 70-90, then for message l0, update l0 100-120
    costs: dict[str, int | OpTime] = {"forward": 10, "backward": 20, "all_reduce": 30, "update": 20}
    assert period("layerwise", costs, merged=True, wait_blocks_host=True) == 120
    # With messages of no length both updates lie between the passes: 20 + 40 + 2 x 20
    assert period("layerwise", costs | {"all_reduce": 0}, merged=True, wait_blocks_host=True) == 100


def test_a_wait_that_blocks_the_host_keeps_it_from_issuing_what_could_run():
    # async by one, a message longer than an iteration is computed in: update l1 of iteration i waits for message l1 of
    # i-1. Where the device waits, the host has long issued all; where the host waits, it issues each op behind a
    # message 10 later.
    schedule, derived = build("layerwise", TWO)
    run: dict[str, int | OpTime] = {"forward": 10, "backward": 20, "all_reduce": 100, "update": 5}
    free = timed(schedule, run, issue_ps=10)
    # issued: forward l0 10, l1 20, backward l1 30, message l1 40, backward l0 50, message l0 60, updates 70, 80.
    # forward 10-30, backward l1 30-50, message l1 50-150, backward l0 50-70, message l0 150-250, update l0 250-255.
    # The next forward l0 is issued at 90, starts at 255: all is shifted by 245, so the period is 245: forward 255-275,
    # backward l1 275-295, message l1 295-395, message l0 395-495, update l0 495-500.
    assert steady(schedule, derived, free).period_ps == 245
    # The host waits for message l1 before issuing update l1 (150-160), for message l0 before update l0 (250-260,
    # runs 260-265), and for both updates no more than the device does: forward l0 is issued 260-270 and runs 270-280.
    # From forward l0 at 10 to forward l0 at 270:
    blocked = replace(free, wait_blocks_host=True)
    assert steady(schedule, derived, blocked).period_ps == 260


def test_a_wait_holds_the_host_until_the_op_has_ended():
    # The host issues forward (1), waits for its end at 101, and only then issues backward: 102.
    schedule, derived = loose(
        [
            Op(name="forward", lane="compute", work=Forward(layers=("l0",))),
            Op(name="wait", lane="host", work=Wait(op="forward")),
            Op(name="backward", lane="compute", work=Backward(layers=("l0",))),
        ]
    )
    ops = {"forward": OpTime(issue_ps=1, run_ps=100), "wait": OpTime(), "backward": OpTime(issue_ps=1, run_ps=10)}
    times = simulated((schedule, derived, Timing(ops=ops)), 1)
    assert times == {(0, "forward", 0): (1, 101), (0, "wait", 0): (101, 101), (0, "backward", 0): (102, 112)}


def test_updates_that_are_still_owed_run_in_order_after_the_last_iteration():
    schedule, derived = build("async:2:all", TWO)
    costs = timed(schedule, {"forward": 10, "backward": 20, "all_reduce": 100, "update": 5})
    times = simulated((schedule, derived, costs), 3)
    updates = {i: time for (_, op, i), time in times.items() if op == "update all"}
    # Iteration 0 is computed until 60 and iteration 1 until 120; neither has an old gradient to apply. Messages:
    # 60-160, 160-260, 260-360. Update 2 applies the gradient of iteration 0 once backward has ended, at 180. Those of
    # iterations 1 and 2 are owed, and applied when they have arrived.
    assert updates == {0: (60, 60), 1: (120, 120), 2: (180, 185), 3: (260, 265), 4: (360, 365)}


# --- several ranks --------------------------------------------------------------------------------------------------


def test_a_slow_rank_delays_all_and_a_collective_holds_each_lane_from_that_ranks_own_start():
    schedule, derived = build("sync", TWO)
    costs = timed(schedule, {"forward": 10, "backward": 20, "all_reduce": 60, "update": 5})
    times = simulated((schedule, derived, costs), 2, 2, [[1.0, 2.0], [1.0, 1.0]])
    # Rank 0 computes until 60, rank 1 until 120; data move 120-180 for both.
    assert times[0, "all_reduce all", 0] == (60, 180)
    assert times[1, "all_reduce all", 0] == (120, 180)
    # The update is local work too: 5 and 10; in iteration 1 both are as fast as ever, rank 1 is 5 late.
    assert times[0, "update all", 0] == (180, 185)
    assert times[1, "update all", 0] == (180, 190)
    assert times[0, "all_reduce all", 1] == (245, 310)
    assert times[1, "all_reduce all", 1] == (250, 310)


@settings(max_examples=60, deadline=None)
@given(cases(lambda rng: (case(rng), rng.randrange(3))))
def test_making_one_rank_slower_makes_no_op_of_any_rank_earlier(found: tuple[Case, int]):
    one, slow = found
    even = simulated(one, 3, 3)
    late = simulated(one, 3, 3, [[2.0 if rank == slow else 1.0 for rank in range(3)]] * 3)
    assert all(late[key][1] >= even[key][1] for key in even)


# --- interference ---------------------------------------------------------------------------------------------------


def slowed(run_ps: int, slowed: str = "1", slows: str = "1") -> OpTime:
    return OpTime(run_ps=run_ps, slowed=Fraction(slowed), slows=Fraction(slows))


def test_ops_slow_each_other_only_while_they_overlap_and_ends_round_up_to_a_picosecond():
    schedule, derived = build("bucketed:1B", TWO)
    costs = timed(schedule, {"backward l1": 20, "backward l0": slowed(30, "3/2", "2"), "all_reduce": 30})
    times = simulated((schedule, derived, costs), 1)
    # From 20 on both run: backward l0 at 2/3 takes 45, until 65; the message at 1/2 has moved 22.5 of its 30 by then.
    assert times[0, "backward l0", 0] == (20, 65)
    # The other 7.5 at full speed: until 72.5, which is 73 on a clock of whole picoseconds.
    assert times[0, "all_reduce bucket0", 0] == (20, 73)
    # Beside the second message nothing runs.
    assert times[0, "all_reduce bucket1", 0] == (73, 103)


def test_a_local_op_runs_on_at_its_own_speed_when_the_message_has_ended():
    schedule, derived = build("bucketed:1B", TWO)
    costs = timed(schedule, {"backward l1": 20, "backward l0": slowed(70, "3/2"), "all_reduce": 30})
    times = simulated((schedule, derived, costs), 1)
    # 30 beside the message do 20 of the work of backward l0, the other 50 follow alone
    assert times[0, "all_reduce bucket0", 0] == (20, 50)
    assert times[0, "backward l0", 0] == (20, 100)


def test_latency_neither_slows_nor_is_slowed():
    schedule, derived = build("bucketed:1B", TWO)
    message = OpTime(run_ps=30, latency_ps=20)
    costs = timed(schedule, {"backward l1": 20, "backward l0": slowed(30, "2", "2"), "all_reduce": message})
    times = simulated((schedule, derived, costs), 1)
    # 20-40: latency, backward l0 does 20 of 30. From 40 on both at 1/2: the 10 left of each take 20, until 60.
    assert times[0, "all_reduce bucket0", 0] == (20, 60)
    assert times[0, "backward l0", 0] == (20, 60)


def test_a_collective_that_waits_for_another_rank_slows_nobody():
    schedule, derived = build("bucketed:1B", TWO)
    costs = timed(schedule, {"backward l1": 20, "backward l0": slowed(10, "2"), "all_reduce": 20})
    times = simulated((schedule, derived, costs), 1, 2, [[1.0, 3.0]])
    # Rank 1 has backward l1 at 60 only: on rank 0 backward l0 is over by then, undisturbed.
    assert times[0, "backward l0", 0] == (20, 30)
    # On rank 1, 30 of work beside a message that moves 60-80: 20 do 10, the other 20 run alone but for nothing: the
    # second message waits for it.
    assert times[1, "backward l0", 0] == (60, 100)
    assert times[0, "all_reduce bucket0", 0] == (20, 80)


def test_the_rank_that_slows_a_collective_most_sets_its_pace():
    schedule, derived = build("bucketed:1B", TWO)
    costs = timed(schedule, {"backward l1": 20, "backward l0": slowed(10, "1", "2"), "all_reduce": 50})
    times = simulated((schedule, derived, costs), 1, 2, [[1.0, 1.0]])
    # 20-30 at half speed on both ranks: 10 more than 50
    assert times[0, "all_reduce bucket0", 0] == (20, 75)
    # Rank 1 computes backward l1 to 40 and backward l0 until 60; rank 0 is long done: 20 at half speed, 40 alone
    times = simulated((schedule, derived, costs), 1, 2, [[1.0, 2.0]])
    assert times[0, "all_reduce bucket0", 0] == (20, 100)


def test_an_op_that_costs_nothing_ends_when_it_starts_beside_interference_and_in_flight():
    schedule, derived = build("bucketed:1B", TWO)
    slow = timed(schedule, {"backward": slowed(20, "2", "2"), "all_reduce": OpTime(run_ps=10, latency_ps=10)})
    assert simulated((schedule, derived, slow), 1)[0, "all_reduce bucket0", 0] == (20, 30)
    none = timed(schedule, {"backward": 20}, in_flight=2)
    assert simulated((schedule, derived, none), 1)[0, "all_reduce bucket0", 0] == (20, 20)


def test_a_message_whose_speed_changes_twice_at_the_instant_of_its_end_ends_there():
    schedule, derived = build("layerwise", THREE)
    passes = {"backward l2": 10, "backward l1": slowed(20, "1", "2"), "backward l0": slowed(20, "1", "3/2")}
    costs = timed(schedule, {**passes, "all_reduce": 10}, merged=True)
    times = simulated((schedule, derived, costs), 1)
    # backward l1 10-30; beside it the message of l2 moves its 10 at half speed: 10-30. At 30 the factor 2 goes and
    # the factor 3/2 comes: message l1 takes 15.
    assert times[0, "all_reduce l2", 0] == (10, 30)
    assert times[0, "all_reduce l1", 0] == (30, 45)


@settings(max_examples=150, deadline=None)
@given(cases(lambda rng: case(rng, interferes=True)))
def test_with_interference_the_longest_path_and_the_cycle_ratio_are_lower_bounds(found: Case):
    paths = EventGraph(*found)
    times = simulated(found)
    assert all(times[0, op, i][1] >= end for (op, i), end in paths.op_ends(4).items())
    state = steady(*found, limit=100)
    assert not state.repeats or state.period_ps >= paths.critical_cycle().period_ps


# --- several in flight ----------------------------------------------------------------------------------------------


def in_flight(name: str, messages: dict[str, OpTime], **backward: int) -> dict[tuple[int, str, int], tuple[int, int]]:
    schedule, derived = build(name, TWO)
    passes = {f"backward {layer}": cost for layer, cost in backward.items()}
    return simulated((schedule, derived, timed(schedule, {**passes, **messages}, in_flight=2)), 1)


def test_two_in_flight_share_a_resource_fairly():
    whole = OpTime(run_ps=40, use={"net": 1.0})
    times = in_flight("layerwise", {"all_reduce": whole}, l1=20, l0=10)
    # message l1 alone 20-30 (10 of 40), then both at 1/2: l1 has 30 left, until 90; l0 has moved 30, the last 10 alone
    assert times[0, "all_reduce l1", 0] == (20, 90)
    assert times[0, "all_reduce l0", 0] == (30, 100)


def test_two_in_flight_that_leave_room_for_each_other_are_as_fast_as_alone():
    half = OpTime(run_ps=40, use={"net": 0.5})
    times = in_flight("layerwise", {"all_reduce": half}, l1=20, l0=10)
    assert times[0, "all_reduce l1", 0] == (20, 60)
    assert times[0, "all_reduce l0", 0] == (30, 70)


def test_latency_claims_no_bandwidth():
    late = OpTime(run_ps=40, latency_ps=30, use={"net": 1.0})
    times = in_flight("layerwise", {"all_reduce l1": OpTime(run_ps=40, use={"net": 1.0}), "all_reduce l0": late})
    # message l0 is in its latency 0-30 while l1 moves 30 of 40 alone; then both have 10 left, at 1/2: until 50
    assert times[0, "all_reduce l1", 0] == (0, 50)
    assert times[0, "all_reduce l0", 0] == (0, 50)


def test_unequal_shares_are_exact():
    # One takes the whole link alone, one half of it: both get r with r + r / 2 = 1, so 2/3 of their own speed.
    messages = {
        "all_reduce l1": OpTime(run_ps=20, use={"net": 1.0}),
        "all_reduce l0": OpTime(run_ps=40, use={"net": 0.5}),
    }
    times = in_flight("layerwise", messages)
    # 20 / (2/3) = 30; the other has moved 20 by then, and its last 20 alone
    assert times[0, "all_reduce l1", 0] == (0, 30)
    assert times[0, "all_reduce l0", 0] == (0, 50)


def test_a_third_waits_until_one_of_two_has_landed():
    schedule, derived = build("layerwise", THREE)
    costs = timed(schedule, {"all_reduce": OpTime(run_ps=10, use={"net": 0.5})}, in_flight=2)
    times = simulated((schedule, derived, costs), 1)
    assert [times[0, f"all_reduce {layer}", 0] for layer in ("l2", "l1", "l0")] == [(0, 10), (0, 10), (10, 20)]


# --- monotonicity, where it is true and where it is not --------------------------------------------------------------


def cheaper(rng: Random) -> tuple[Case, Case]:
    """Return a case, and the same with one op cheaper to run or to issue."""
    schedule, derived, costs = case(rng)
    name = rng.choice([op.name for op in schedule.ops])
    was = costs.ops[name]
    now = OpTime(issue_ps=rng.randint(0, was.issue_ps), run_ps=rng.randint(0, was.run_ps))
    return (schedule, derived, costs), (schedule, derived, replace(costs, ops={**costs.ops, name: now}))


@settings(max_examples=150, deadline=None)
@given(cases(cheaper))
def test_without_interference_a_cheaper_op_makes_nothing_later(found: tuple[Case, Case]):
    dear, cheap = found
    before, after = simulated(dear), simulated(cheap)
    assert all(after[key][1] <= before[key][1] for key in before)
    assert EventGraph(*cheap).critical_cycle().period_ps <= EventGraph(*dear).critical_cycle().period_ps


def test_with_interference_a_cheaper_op_can_make_the_period_longer():
    """A scheduling anomaly, found by random search: work that ends sooner lets worse work in beside a message."""
    schedule, derived = build("layerwise", THREE)
    run: dict[str, int | OpTime] = {"all_reduce l2": 20, "backward l0": slowed(20, "1", "2"), "update l1": 20}
    # backward l1 0-20 beside message l2 0-20; then backward l0 20-40, beside update l1 20-40 and no message: 40
    assert steady(schedule, derived, timed(schedule, run | {"backward l1": 20})).period_ps == 40
    # backward l0 0-20 beside message l2, which it slows: 10 of 20 by 20, 10 more by 30; update l1 waits for the
    # message behind that one: 30-50
    assert steady(schedule, derived, timed(schedule, run)).period_ps == 50


def test_with_two_in_flight_a_cheaper_op_can_make_the_period_longer():
    """A scheduling anomaly, found by random search: a gradient that is ready sooner takes half of another's link."""
    schedule, derived = build("layerwise", TWO)
    run: dict[str, int | OpTime] = {
        "forward l0": 20,
        "forward l1": 40,
        "backward l1": 20,
        "all_reduce l1": OpTime(run_ps=20, use={"net": 1.0}),
        "all_reduce l0": OpTime(run_ps=40, use={"net": 1.0}),
        "update l1": 40,
        "update l0": 20,
    }
    # passes until 80; message l1 80-100 beside backward l0 80-100; message l0 100-140 beside update l1 100-140;
    # update l0 140-160
    assert steady(schedule, derived, timed(schedule, run | {"backward l0": 20}, in_flight=2)).period_ps == 160
    # both messages from 80 on: l1 80-120; l0 has moved 20 by then, until 140; update l1 120-160, update l0 160-180
    assert steady(schedule, derived, timed(schedule, run, in_flight=2)).period_ps == 180


# --- steady state ---------------------------------------------------------------------------------------------------


def test_the_host_stall_is_what_the_compute_lane_waits_for_issuing_alone():
    # Every op of the compute lane costs 1 and is issued every 10: of the 61 (see above) it computes 5, waits for the
    # message until 56, and for issuing: 10 - 0, 20 - 11, 30 - 21, 40 - 31 and 60 - 56.
    schedule, derived = build("sync", TWO)
    short: dict[str, int | OpTime] = {"forward": 1, "backward": 1, "all_reduce": 6, "update": 1}
    found = steady(schedule, derived, timed(schedule, short, issue_ps=10))
    assert found.period_ps == 61
    assert found.host_stall_ps == 10 + 9 + 9 + 9 + 4


@settings(max_examples=100, deadline=None)
@given(cases(lambda rng: (*(parts := ring(rng)), timing(rng, parts[0]))), st.integers(1, 3))
def test_after_the_state_has_come_back_everything_repeats(found: Case, times: int):
    state = steady(*found, limit=150)
    if not state.repeats:
        return
    cycle, first = state.iterations, state.warm_up + state.iterations * (times - 1)
    ends = simulated(found, first + 2 * cycle + 5)
    for op in found[0].ops:
        for i in range(first, first + cycle):
            if op.lane == "compute":
                assert ends[0, op.name, i + cycle][1] - ends[0, op.name, i][1] == state.period_ps * cycle


def test_an_update_that_only_waits_for_the_message_of_another_bucket_of_before_is_not_a_delayed_one():
    # update l1 applies this iteration's gradient of l1; that it also waits for message l0 of the iteration before
    # orders it and delays nothing: it is not skipped in iteration 0, and nothing is owed after the last.
    schedule, _ = build("layerwise", TWO)
    ops = tuple(
        Op(name=op.name, lane=op.lane, work=op.work, after=(*op.after, Dep("all_reduce l0", 1)))
        if op.name == "update l1"
        else op
        for op in schedule.ops
    )
    waits = Schedule(name="waits", workload=TWO.name, buckets=schedule.buckets, roles={"worker": ops})
    derived = derive(waits, TWO)
    assert derived.staleness == {"l1": 0, "l0": 0}
    times = simulated((waits, derived, timed(waits, {"all_reduce": 30, "update": 5})), 1)
    # messages 0-30 and 30-60
    assert times[0, "update l1", 0] == (30, 35)
    assert (0, "update l1", 1) not in times
