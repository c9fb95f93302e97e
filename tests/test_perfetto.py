"""A written timeline holds each event of the trace, at its time, on the track of its lane."""

import gzip
import json
from decimal import Decimal
from itertools import pairwise

import pytest

from simgd import catalogue, perfetto
from simgd.errors import FileError
from simgd.job import job
from simgd.predict import Machine, trace_of
from simgd.schedule import LANES
from simgd.trace import Trace


def _trace(rows, *, ranks=1):
    """Return a trace of (rank, lane, op, iteration, start, end)."""
    lanes, ops = tuple(dict.fromkeys(row[1] for row in rows)), tuple(dict.fromkeys(row[2] for row in rows))
    return Trace(
        origin="simulated",
        schedule="s",
        workload="w",
        cluster="c",
        ranks=ranks,
        lanes=lanes,
        ops=ops,
        rank=[row[0] for row in rows],
        lane=[lanes.index(row[1]) for row in rows],
        op=[ops.index(row[2]) for row in rows],
        iteration=[row[3] for row in rows],
        start_ps=[row[4] for row in rows],
        end_ps=[row[5] for row in rows],
    )


def _events(content):
    return json.loads(content, parse_float=Decimal)["traceEvents"]


def _complete(content):
    return [event for event in _events(content) if event["ph"] == "X"]


def _names(content, kind):
    key = {"process_name": "pid", "thread_name": "tid"}[kind]
    return {event[key]: event["args"]["name"] for event in _events(content) if event["name"] == kind}


@pytest.fixture(scope="module")
def predicted():
    cluster = catalogue.cluster("dgx1-p100")
    machine = Machine(cluster, catalogue.profile_for("dgx1-p100", cluster, []))
    return trace_of(machine.study("layerwise", job(catalogue.workload("alexnet")), 4))


def test_every_event_of_a_prediction_appears_once_with_its_exact_times(predicted):
    content = perfetto.to_chrome(predicted)
    threads = _names(content, "thread_name")
    processes = _names(content, "process_name")
    found = [
        (
            int(processes[event["pid"]].removeprefix("rank ")),
            threads[event["tid"]],
            event["name"],
            event["args"]["iteration"],
            event["ts"] * 10**6,
            (event["ts"] + event["dur"]) * 10**6,
        )
        for event in _complete(content)
    ]
    assert sorted(found) == sorted(tuple(event) for event in predicted)
    assert len(found) > 100


def test_a_time_of_one_picosecond_survives():
    # 2^53 ps are 2.5 hours: as a float of microseconds the last picosecond would be lost
    late = 123_456_789_012_345_678
    (event,) = _complete(perfetto.to_chrome(_trace([(0, "compute", "forward a", 3, late, late + 1)])))
    assert event["ts"] == Decimal("123456789012.345678")
    assert event["dur"] == Decimal("0.000001")


def test_each_event_is_a_complete_or_metadata_event_as_the_format_defines_them(predicted):
    for event in _events(perfetto.to_chrome(predicted)):
        assert event["ph"] in ("X", "M")
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert isinstance(event["name"], str)
        if event["ph"] == "X":
            assert event["ts"] >= 0
            assert event["dur"] >= 0
        else:
            assert list(event["args"]) == (["name"] if event["name"].endswith("name") else ["sort_index"])


def test_events_of_one_track_never_overlap_and_stand_in_order(predicted):
    tracks = {}
    for event in _complete(perfetto.to_chrome(predicted)):
        tracks.setdefault((event["pid"], event["tid"]), []).append(event)
    for track in tracks.values():
        for before, after in pairwise(track):
            assert before["ts"] + before["dur"] <= after["ts"]


def test_messages_in_flight_together_get_tracks_of_their_own():
    rows = [(0, "comm", "all_reduce a", 0, 0, 10), (0, "comm", "all_reduce b", 0, 5, 15)]
    rows += [(0, "comm", "all_reduce c", 0, 12, 20), (0, "compute", "forward a", 0, 0, 4)]
    content = perfetto.to_chrome(_trace(rows))
    threads = _names(content, "thread_name")
    on = {event["name"]: threads[event["tid"]] for event in _complete(content)}
    assert on == {"forward a": "compute", "all_reduce a": "comm", "all_reduce b": "comm 2", "all_reduce c": "comm"}


def test_lanes_stand_in_one_order_whatever_the_trace_begins_with():
    rows = [(0, lane, f"{lane} op", 0, 0, 1) for lane in reversed(LANES)]
    events = _events(perfetto.to_chrome(_trace(rows)))
    order = {event["tid"]: event["args"]["sort_index"] for event in events if event["name"] == "thread_sort_index"}
    threads = _names(perfetto.to_chrome(_trace(rows)), "thread_name")
    assert tuple(threads[tid] for tid in sorted(order, key=order.__getitem__)) == LANES


def test_eight_ranks_are_written_unless_more_are_asked_for():
    trace = _trace([(rank, "compute", "forward a", 0, 0, 1) for rank in range(12)], ranks=12)
    assert list(_names(perfetto.to_chrome(trace), "process_name").values()) == [f"rank {rank}" for rank in range(8)]
    assert len(_complete(perfetto.to_chrome(trace, most_ranks=12))) == 12


def test_thread_numbers_are_unique_in_a_file_of_several_traces(predicted):
    content = perfetto.to_chrome([("sync", predicted), ("layerwise", predicted)])
    tids = [event["tid"] for event in _events(content) if event["name"] == "thread_name"]
    assert len(tids) == len(set(tids))
    names = list(_names(content, "process_name").values())
    assert names == [f"{label}, rank {rank}" for label in ("sync", "layerwise") for rank in range(4)]


def test_a_file_can_be_packed_and_holds_the_same(predicted, tmp_path):
    perfetto.write(predicted, tmp_path / "t.json")
    perfetto.write([("layerwise", predicted)], tmp_path / "t.json.gz")
    plain = (tmp_path / "t.json").read_bytes()
    packed = gzip.decompress((tmp_path / "t.json.gz").read_bytes())
    assert _events(plain) == _events(packed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.json", "t.json.gz"]


def test_another_ending_is_refused_before_anything_is_written(predicted, tmp_path):
    with pytest.raises(FileError, match=r"t\.csv: a timeline for Perfetto is JSON; end the name in \.json or"):
        perfetto.write(predicted, tmp_path / "t.csv")
    assert list(tmp_path.iterdir()) == []
