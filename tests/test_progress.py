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
from simgd.timing import OpTime, Timing

TWO = small_workload(1, 1)

LAYERWISE = build(parse("layerwise"), TWO)

SYNC = build(parse("sync"), TWO)


def merged(schedule=LAYERWISE, *, looks: int = 0, burst_ps: int = 0, collective_ps: int = 40, least_ps: int = 0):
    """Return the costs of a CPU rank: passes of 100 ps, updates of 10, each collective *collective_ps*."""

    def time(name: str) -> OpTime:
        if name.startswith("all_reduce"):
            return OpTime(run_ps=collective_ps, use={"network": 1.0}, looks=looks, least_ps=least_ps)
        return OpTime(run_ps=10 if name.startswith("update") else 100)

    times = {op.name: time(op.name) for op in schedule.ops}
    return Timing(ops=times, merged=True, wait_blocks_host=True, burst_ps=burst_ps)


def ran(schedule, timing: Timing, iterations: int = 1):
    """Return start and end of the ops of the last iteration, by name, on the lanes that run them."""
    trace = simulate(schedule, derive(schedule, TWO), timing, iterations=iterations)
    last = [row for row in trace if row.iteration == iterations - 1]
    return {row.op: (row.start_ps, row.end_ps) for row in last if row.end_ps > row.start_ps}


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
    found = ran(LAYERWISE, merged(looks=3, collective_ps=180))
    assert found["all_reduce l1"] == (300, 400 + 2 * 60)


@given(st.integers(0, 20), st.integers(1, 500))
def test_looks_never_make_a_collective_faster_nor_lose_any_of_it(looks: int, collective_ps: int):
    plain = steady(LAYERWISE, derive(LAYERWISE, TWO), merged(collective_ps=collective_ps))
    polled = steady(LAYERWISE, derive(LAYERWISE, TWO), merged(looks=looks, collective_ps=collective_ps))
    assert polled.repeats
    # At most everything stands in a row: four passes, two updates, both messages.
    assert plain.period_ps <= polled.period_ps <= 420 + 2 * collective_ps


def test_a_rested_link_lets_its_burst_pass_at_once_and_saves_up_again_while_it_is_idle():
    # sync: the message of 80 starts at 400. Idle for 400, the link has saved up 30 at most.
    first = ran(SYNC, merged(SYNC, burst_ps=30, collective_ps=80))
    assert first["all_reduce all"] == (400, 450)
    # It is idle for 410 until the next one, and full again.
    period = steady(SYNC, derive(SYNC, TWO), merged(SYNC, burst_ps=30, collective_ps=80)).period_ps
    assert period == 400 + 50 + 10


def test_what_a_link_saved_up_is_used_once():
    # layerwise: the first message of 40 takes what was saved up, 30; the link then rests for 90 until 400.
    found = ran(LAYERWISE, merged(burst_ps=30))
    assert found["all_reduce l1"] == (300, 310)
    assert found["all_reduce l0"] == (400, 410)
    # With messages back to back there is nothing left for the second: 300 + 250 - 30, then at once the next 250.
    found = ran(LAYERWISE, merged(burst_ps=30, collective_ps=250))
    assert (found["all_reduce l1"], found["all_reduce l0"]) == ((300, 520), (520, 770))


def test_even_a_rested_link_takes_the_time_that_the_library_needs():
    found = ran(SYNC, merged(SYNC, burst_ps=1000, collective_ps=80, least_ps=25))
    assert found["all_reduce all"] == (400, 425)


def test_noise_of_a_collective_stretches_it_alone():
    # sync: 400 of passes, a message of 40 twice as long, an update of 10 that the next iteration waits for.
    stretched = [[2.0] * len(SYNC.ops)] * 3
    ends = iteration_ends_ps(SYNC, derive(SYNC, TWO), merged(SYNC), slowdowns=[[1.0]] * 3, stretches=stretched)
    assert [ends[1][0] - ends[0][0], ends[2][0] - ends[1][0]] == [400 + 80 + 10] * 2


def test_one_rank_at_a_time_and_all_at_once_know_the_same_noise():
    import numpy as np

    schedule, derived = LAYERWISE, derive(LAYERWISE, TWO)
    timing = replace(merged(), merged=False, wait_blocks_host=False)
    draw = np.random.default_rng(3)
    slowdowns, stretches = draw.uniform(1, 2, (5, 3)), draw.uniform(1, 2, (5, len(schedule.ops)))
    alone = iteration_ends_ps(schedule, derived, timing, slowdowns=slowdowns.tolist(), stretches=stretches.tolist())
    together = ensemble(schedule, derived, timing, slowdowns=slowdowns, stretches=stretches).iteration_ends_ps
    assert alone == together.tolist()


@pytest.mark.parametrize("how", [{"looks": 2}, {"burst_ps": 10}])
def test_what_depends_on_looks_or_bursts_is_not_simulated_as_arrays(how):
    import numpy as np

    with pytest.raises(ScheduleError, match="simulated rank by rank only"):
        ensemble(LAYERWISE, derive(LAYERWISE, TWO), merged(**how), slowdowns=np.ones((2, 2)))
