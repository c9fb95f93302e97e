"""Traces: rows that read back, whoever wrote them, and refuse to be what no run could be."""

from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from strategies import build, cases, named, small_workload, timed, timing, workload

from simgd import files
from simgd.errors import FileError
from simgd.simulator import simulate
from simgd.soundness import derive
from simgd.trace import Event, Trace


def two_rows() -> Trace:
    return Trace(
        origin="measured",
        schedule="sync",
        workload="w",
        cluster="c",
        ranks=1,
        lanes=("host", "compute"),
        ops=("f", "b"),
        rank=[0, 0],
        lane=[1, 1],
        op=[0, 1],
        iteration=[0, 0],
        start_ps=[0, 10],
        end_ps=[10, 30],
    )


def changed(**columns: object) -> Trace:
    return Trace(**({name: getattr(two_rows(), name) for name in Trace.__struct_fields__} | columns))  # type: ignore[arg-type]


def test_rows_come_back_as_events_with_names():
    assert list(two_rows()) == [Event(0, "compute", "f", 0, 0, 10), Event(0, "compute", "b", 0, 10, 30)]


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(FileError, match=r"^trace: its columns differ in length$"):
        changed(end_ps=[10])


def test_a_row_that_points_to_no_lane_or_op_is_refused():
    with pytest.raises(FileError, match=r"^trace: column 'lane' points outside its list of 2 names$"):
        changed(lane=[1, 2])
    with pytest.raises(FileError, match=r"^trace: column 'op' points outside its list of 2 names$"):
        changed(op=[-1, 0])


def test_an_event_that_ends_before_it_starts_is_refused():
    with pytest.raises(FileError, match=r"^trace: an event ends before it starts$"):
        changed(end_ps=[10, 9])


def simulated(rng: Random) -> Trace:
    of = workload(rng, 3)
    schedule = named(rng, of)
    return simulate(schedule, derive(schedule, of), timing(rng, schedule), iterations=3, ranks=rng.randint(1, 2))


@settings(max_examples=50, deadline=None)
@given(cases(simulated))
def test_a_simulated_trace_reads_back_from_json(trace: Trace):
    assert files.parse(files.to_json(trace), Trace, where="x", toml=False) == trace


@pytest.mark.parametrize("name", ["t.json", "t.json.gz"])
def test_a_trace_reads_back_from_its_file_packed_or_not(tmp_path: Path, name: str):
    trace = simulated(Random(1))
    files.write(tmp_path / name, trace)
    assert files.read(tmp_path / name, Trace) == trace


@settings(max_examples=50, deadline=None)
@given(cases(simulated))
def test_every_op_of_every_iteration_and_rank_has_one_row_on_its_lane(trace: Trace):
    ran = [(row.rank, row.op, row.iteration) for row in trace if row.lane != "host"]
    assert len(ran) == len(set(ran))
    everything = {(row.rank, row.op, row.iteration) for row in trace}
    wanted = {(rank, op, i) for rank in range(trace.ranks) for op in trace.ops for i in range(3)}
    # What lies beyond are updates that were still owed.
    assert wanted <= everything
    assert all(op.startswith("update ") and i >= 3 for _, op, i in everything - wanted)


def test_a_row_on_the_host_lane_is_the_issuing_of_its_op():
    schedule, derived = build("sync", small_workload(1))
    trace = simulate(schedule, derived, timed(schedule, {"forward": 10, "backward": 20}, issue_ps=1), iterations=1)
    assert trace.origin == "simulated"
    assert (trace.schedule, trace.workload, trace.ranks) == ("sync", "small", 1)
    forward = [row for row in trace if row.op == "forward l0"]
    assert forward == [Event(0, "host", "forward l0", 0, 0, 1), Event(0, "compute", "forward l0", 0, 1, 11)]


def test_where_the_host_runs_an_op_itself_that_is_its_only_row():
    schedule, derived = build("sync", small_workload(1))
    costs = timed(schedule, {"forward": 10, "backward": 20}, issue_ps=1, merged=True)
    rows = list(simulate(schedule, derived, costs, iterations=1))
    # issued 0-1, runs 1-11
    assert [row for row in rows if row.op == "forward l0"] == [Event(0, "host", "forward l0", 0, 1, 11)]
