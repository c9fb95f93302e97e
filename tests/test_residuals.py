"""What was mispredicted: times of ops, waits before them and their issuing, from rows made by hand (milliseconds)."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from measured import planned, run, traced

from calibration.residuals import SHOWN, residuals, whole_iterations
from simgd.trace import Trace
from simgd.validation import Residual, What
from simgd.validationreport import told

SYNC = planned("sync")
OPS = [op.name for op in SYNC.ops]

#: What the ops of an iteration of `sync` take on a rank whose host computes, in ms.
ITERATION = [
    ("host", "forward a", 0, 10),
    ("host", "forward b", 10, 20),
    ("host", "backward b", 20, 50),
    ("host", "backward a", 50, 80),
    ("comm", "all_reduce all", 80, 100),
    ("host", "update all", 100, 101),
]


def iterations(*changes: dict[str, tuple[str, float, float]], rank: int = 0) -> list[tuple]:
    """The rows of iterations of 110 ms; each of *changes* puts other (lane, start, end) for the ops that it names."""
    return [
        (rank, *placed(lane, op, start, end, number, change))
        for number, change in enumerate(changes)
        for lane, op, start, end in ITERATION
    ]


def placed(lane, op, start, end, number, change):
    lane, start, end = change.get(op, (lane, start, end))
    return lane, op, number, 110 * number + start, 110 * number + end


def rows(found: list[tuple]) -> Trace:
    return traced(found, OPS)


PLAIN = rows(iterations({}, {}, {}))


def by_key(found: list[Residual]) -> dict[tuple[str, str], Residual]:
    return {(each.op, each.what): each for each in found}


def test_a_trace_beside_itself_differs_in_nothing():
    found = residuals(PLAIN, PLAIN, SYNC)
    assert found
    assert all(each.predicted_s == each.measured_s for each in found)


def test_an_op_counts_with_its_median_over_iterations():
    takes = [{"all_reduce all": ("comm", 80, 80 + ms)} for ms in (12, 13, 20)]
    first = residuals(PLAIN, rows(iterations(*takes)), SYNC)[0]
    assert (first.op, first.what, first.lane) == ("all_reduce all", "run", "comm")
    assert first.measured_s == pytest.approx(0.013)
    assert first.predicted_s == pytest.approx(0.020)


def test_an_op_counts_on_the_rank_where_it_takes_longest():
    slow = {"backward a": ("host", 50, 84)}
    measured = rows([*iterations({}, {}, {}), *iterations(slow, slow, slow, rank=1)])
    found = by_key(residuals(PLAIN, measured, SYNC))
    assert found["backward a", "run"].measured_s == pytest.approx(0.034)


def test_the_wait_before_an_op_lasts_since_the_one_before_it_on_its_lane_ended():
    # the update follows the pass that ended at 80; it starts at 103 instead of 100
    late = {"update all": ("host", 103, 104)}
    first = residuals(PLAIN, rows(iterations(late, late, late)), SYNC)[0]
    assert (first.op, first.what, first.lane) == ("update all", "wait before", "host")
    assert first.measured_s == pytest.approx(0.023)
    assert first.predicted_s == pytest.approx(0.020)


def test_the_next_iterations_first_op_waits_since_the_end_of_this_one():
    # 110 - 101 between iterations, and 4 more where it starts late; nothing before the first one
    late = {"forward a": ("host", 4, 10)}
    found = by_key(residuals(PLAIN, rows(iterations({}, late, late)), SYNC))["forward a", "wait before"]
    assert (found.predicted_s, found.measured_s) == (pytest.approx(0.009), pytest.approx(0.013))


def test_a_message_waits_for_nothing():
    assert ("all_reduce all", "wait before") not in by_key(residuals(PLAIN, PLAIN, SYNC))


def test_issuing_counts_apart_from_the_op():
    posted = [(0, "host", "all_reduce all", number, 110 * number + 80, 110 * number + 83) for number in range(3)]
    found = by_key(residuals(PLAIN, rows([*iterations({}, {}, {}), *posted]), SYNC))
    issued, ran = found["all_reduce all", "issue"], found["all_reduce all", "run"]
    assert (issued.lane, issued.measured_s, issued.predicted_s) == ("host", pytest.approx(0.003), 0.0)
    assert (ran.lane, ran.measured_s) == ("comm", pytest.approx(0.020))
    # what the host spends on posting, it does not wait before the update
    assert found["update all", "wait before"].measured_s == pytest.approx(0.017)


def test_lanes_that_one_machine_merges_are_compared_by_the_op():
    apart = {"update all": ("update", 100, 104)}
    found = by_key(residuals(PLAIN, rows(iterations(apart, apart, apart)), SYNC))
    update = found["update all", "run"]
    assert (update.lane, update.measured_s, update.predicted_s) == (
        "update",
        pytest.approx(0.004),
        pytest.approx(0.001),
    )


def test_a_warm_up_and_what_is_owed_at_the_end_do_not_count():
    slow = {"backward a": ("host", 50, 79)}
    owed = [(0, "host", "update all", 5, 560, 569)]
    predicted = rows([*iterations(slow, slow, {}, {}, {}), *owed])
    assert whole_iterations(predicted, SYNC) == [0, 1, 2, 3, 4]
    assert all(each.predicted_s == each.measured_s for each in residuals(predicted, PLAIN, SYNC))


def test_the_largest_difference_stands_first_and_ten_are_kept():
    changed = {"forward a": ("host", 0, 8), "backward a": ("host", 50, 75), "update all": ("host", 100, 102)}
    found = residuals(PLAIN, rows(iterations(changed, changed, changed)), SYNC)
    sizes = [abs(each.predicted_s - each.measured_s) for each in found]
    assert sizes == sorted(sizes, reverse=True)
    assert len(found) == SHOWN
    # the pass that ends 5 ms early, and the wait behind it, which is as much longer
    assert {(each.op, each.what) for each in found[:2]} == {("backward a", "run"), ("update all", "wait before")}


def test_a_trace_of_nothing_has_no_residuals():
    assert residuals(PLAIN, run(0.1).trace, SYNC) == []
    assert residuals(rows([]), PLAIN, SYNC)[0].predicted_s == 0.0


@given(
    st.lists(st.tuples(st.sampled_from(OPS), st.integers(0, 2), st.integers(0, 500), st.integers(0, 50)), max_size=30)
)
def test_times_and_waits_are_never_below_nothing(drawn):
    measured = rows([(0, "host", op, number, start, start + took) for op, number, start, took in drawn])
    for each in residuals(PLAIN, measured, SYNC):
        assert each.measured_s >= 0
        assert each.op in OPS


def test_the_order_of_rows_does_not_matter():
    found = iterations({}, {}, {})
    assert residuals(PLAIN, rows(found[::-1]), SYNC) == residuals(PLAIN, rows(found), SYNC)


def test_a_residual_is_told_in_words():
    def residual(what: What, predicted_s: float = 0.0104, measured_s: float = 0.0121) -> Residual:
        lane = "comm" if what == "run" else "host"
        return Residual(op="all_reduce b", lane=lane, what=what, predicted_s=predicted_s, measured_s=measured_s)

    assert told(residual("run")) == "'all_reduce b' takes 12.1 ms, predicted 10.4 ms (-14%)"
    assert told(residual("wait before")) == "host waits 12.1 ms before 'all_reduce b', predicted 10.4 ms"
    assert told(residual("issue")) == "host takes 12.1 ms to issue 'all_reduce b', predicted 10.4 ms"
    assert told(residual("run", measured_s=0.0)) == "'all_reduce b' takes 0 s, predicted 10.4 ms"
    assert set(get_args(What)) == {"run", "wait before", "issue"}
