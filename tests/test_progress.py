"""Collectives that need the host's looks, links that save up a burst, and the core's share that a library takes."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import small_workload

from simgd.ensemble import ensemble
from simgd.errors import ScheduleError
from simgd.schedules import build, parse
from simgd.simulator import iteration_ends_ps, simulate, steady
from simgd.soundness import derive
from simgd.timing import COOL_PS, LOOKS_SPAN_PS, OpTime, Timing

TWO = small_workload(1, 1)

LAYERWISE = build(parse("layerwise"), TWO)

SYNC = build(parse("sync"), TWO)


#: Times below count in this: long beside the span in which looks of one instant come.
UNIT = 100 * LOOKS_SPAN_PS


def merged(schedule=LAYERWISE, *, looks: int = 0, burst: int = 0, collective: int = 40, least: int = 0):
    """Return the costs of a CPU rank: passes of 100 units, updates of 10, each collective so many."""

    def time(name: str) -> OpTime:
        if name.startswith("all_reduce"):
            return OpTime(run_ps=collective * UNIT, use={"network": 1.0}, looks=looks, least_ps=least * UNIT)
        return OpTime(run_ps=(10 if name.startswith("update") else 100) * UNIT)

    times = {op.name: time(op.name) for op in schedule.ops}
    return Timing(ops=times, merged=True, wait_blocks_host=True, burst_ps=burst * UNIT)


def ran(schedule, timing: Timing, iterations: int = 1):
    """Return start and end of the ops of the last iteration, by name, on the lanes that run them."""
    trace = simulate(schedule, derive(schedule, TWO), timing, iterations=iterations)
    last = [row for row in trace if row.iteration == iterations - 1]
    return {row.op: (row.start_ps // UNIT, row.end_ps // UNIT) for row in last if row.end_ps > row.start_ps}


def test_the_ops_are_those_that_the_numbers_below_speak_of():
    passes = ["forward l0", "forward l1", "backward l1", "all_reduce l1", "backward l0", "all_reduce l0"]
    assert [op.name for op in LAYERWISE.ops] == [*passes, "update l1", "update l0"]


def test_a_collective_that_nobody_needs_to_look_at_runs_beside_compute():
    found = ran(LAYERWISE, merged())
    # backward l1 ends at 300 and l0 at 400
    assert (found["all_reduce l1"], found["all_reduce l0"]) == ((300, 340), (400, 440))


def test_one_that_needs_looks_moves_a_part_after_each_and_on_without_pause_while_the_host_waits():
    found = ran(LAYERWISE, merged(looks=2))
    # The first half moves until 320, then nobody looks before backward l0 has ended and the first update waits at 400:
    # the second half moves until 420, and that it has ended is seen at once.
    assert found["all_reduce l1"] == (300, 420)
    # The second one follows on the lane; an update of 10 runs beside its first half, and the next one waits for it.
    assert found["all_reduce l0"] == (420, 460)


def test_a_look_that_comes_before_a_part_has_moved_is_of_no_use():
    # 3 parts of 60: the first one moves from 300 to 360; the pass that began at 300 and looked ends at 400.
    found = ran(LAYERWISE, merged(looks=3, collective=180))
    assert found["all_reduce l1"] == (300, 400 + 2 * 60)


def test_looks_of_one_instant_let_several_short_parts_move():
    # 3 parts of a hundredth of the span: all three looks of the boundary behind backward l1 find one that has moved.
    timing = merged(looks=3)
    short = {
        name: replace(time, run_ps=3 * LOOKS_SPAN_PS // 100) if time.use else time for name, time in timing.ops.items()
    }
    trace = simulate(LAYERWISE, derive(LAYERWISE, TWO), replace(timing, ops=short), iterations=1)
    (message,) = [row for row in trace if row.op == "all_reduce l1" and row.lane == "comm"]
    assert message.end_ps - message.start_ps == 3 * LOOKS_SPAN_PS // 100


def test_a_message_takes_longer_the_longer_there_was_none_before_it():
    # sync: the first message starts 400 units after nothing; the pause counts up to COOL_PS.
    timing = replace(merged(SYNC), cold_ps=7 * UNIT)
    assert 400 * UNIT > COOL_PS
    assert ran(SYNC, timing)["all_reduce all"] == (400, 447)


def test_the_host_posts_a_message_where_the_lane_is_free_and_else_leaves_it_to_whoever_frees_it():
    timing = merged(collective=250)
    posting = {name: replace(time, post_ps=5 * UNIT) if time.use else time for name, time in timing.ops.items()}
    found = ran(LAYERWISE, replace(timing, ops=posting))
    # The first one is posted from 300 on while its data move already; backward l0 begins after that, and the second
    # message is only put behind the first: update l1 waits for its end at 550 and no 5 longer.
    assert (found["all_reduce l1"], found["backward l0"]) == ((300, 550), (305, 405))
    assert found["update l1"] == (550, 560)


@given(st.integers(0, 20), st.integers(1, 500))
def test_looks_never_make_a_collective_faster_nor_lose_any_of_it(looks: int, collective: int):
    plain = steady(LAYERWISE, derive(LAYERWISE, TWO), merged(collective=collective))
    polled = steady(LAYERWISE, derive(LAYERWISE, TWO), merged(looks=looks, collective=collective))
    assert polled.repeats
    # At most everything stands in a row: four passes, two updates, both messages.
    assert plain.period_ps <= polled.period_ps <= (420 + 2 * collective) * UNIT


def test_a_rested_link_lets_its_burst_pass_at_once_and_saves_up_again_while_it_is_idle():
    # sync: the message of 80 starts at 400. Idle for 400, the link has saved up 30 at most.
    first = ran(SYNC, merged(SYNC, burst=30, collective=80))
    assert first["all_reduce all"] == (400, 450)
    # It is idle for 410 until the next one, and full again.
    period = steady(SYNC, derive(SYNC, TWO), merged(SYNC, burst=30, collective=80)).period_ps
    assert period == (400 + 50 + 10) * UNIT


def test_what_a_link_saved_up_is_used_once():
    # layerwise: the first message of 40 takes what was saved up, 30; the link then rests for 90 until 400.
    found = ran(LAYERWISE, merged(burst=30))
    assert found["all_reduce l1"] == (300, 310)
    assert found["all_reduce l0"] == (400, 410)
    # With messages back to back there is nothing left for the second: 300 + 250 - 30, then at once the next 250.
    found = ran(LAYERWISE, merged(burst=30, collective=250))
    assert (found["all_reduce l1"], found["all_reduce l0"]) == ((300, 520), (520, 770))


def test_even_a_rested_link_takes_the_time_that_the_library_needs():
    found = ran(SYNC, merged(SYNC, burst=1000, collective=80, least=25))
    assert found["all_reduce all"] == (400, 425)


def test_noise_of_a_collective_stretches_it_alone():
    # sync: 400 of passes, a message of 40 twice as long, an update of 10 that the next iteration waits for.
    stretched = [[2.0] * len(SYNC.ops)] * 3
    ends = iteration_ends_ps(SYNC, derive(SYNC, TWO), merged(SYNC), slowdowns=[[1.0]] * 3, stretches=stretched)
    assert [ends[1][0] - ends[0][0], ends[2][0] - ends[1][0]] == [(400 + 80 + 10) * UNIT] * 2


def test_one_rank_at_a_time_and_all_at_once_know_the_same_noise():
    import numpy as np

    schedule, derived = LAYERWISE, derive(LAYERWISE, TWO)
    timing = replace(merged(), merged=False, wait_blocks_host=False)
    draw = np.random.default_rng(3)
    slowdowns, stretches = draw.uniform(1, 2, (5, 3)), draw.uniform(1, 2, (5, len(schedule.ops)))
    alone = iteration_ends_ps(schedule, derived, timing, slowdowns=slowdowns.tolist(), stretches=stretches.tolist())
    together = ensemble(schedule, derived, timing, slowdowns=slowdowns, stretches=stretches).iteration_ends_ps
    assert alone == together.tolist()


@pytest.mark.parametrize("how", [{"looks": 2}, {"burst": 10}])
def test_what_depends_on_looks_or_bursts_is_not_simulated_as_arrays(how):
    import numpy as np

    with pytest.raises(ScheduleError, match="simulated rank by rank only"):
        ensemble(LAYERWISE, derive(LAYERWISE, TWO), merged(**how), slowdowns=np.ones((2, 2)))
