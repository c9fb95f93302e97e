"""Writes traces for Perfetto (ui.perfetto.dev): Chrome's trace-event JSON, one track for each lane of each rank.

A process is a rank and a thread is a lane, in one order on every rank; predicted and measured traces get the same
names. The format counts microseconds; whole picoseconds are written as decimals with six places, so nothing is lost in
the file. Ops that overlap on a lane (several messages in flight) go to a second track of that lane, since complete
events of a track must nest.
"""

from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path

import msgspec

from simgd import files
from simgd.errors import FileError
from simgd.schedule import LANES
from simgd.trace import Event, Trace

MOST_RANKS = 8

#: Process numbers of one trace; ranks of the next one start after them, rank 0 of the first at 1 (0 is the kernel's).
_PROCESSES = 100_000

#: Tracks of one rank: lanes, with what overlaps on them.
_TRACKS = 100

_ENCODER = msgspec.json.Encoder(decimal_format="number")


def to_chrome(traces: Trace | Sequence[tuple[str, Trace]], *, most_ranks: int = MOST_RANKS) -> bytes:
    """Return one trace, or several with their labels, as JSON; of each the first *most_ranks* ranks.

    Processes are called "rank 0", and "sync, rank 0" where there are several traces.
    """
    labelled = [("", traces)] if isinstance(traces, Trace) else list(traces)
    alone = len(labelled) == 1
    events: list[dict[str, object]] = []
    for index, (label, trace) in enumerate(labelled):
        events += _events(trace, "" if alone else f"{label}, ", index * _PROCESSES + 1, most_ranks)
    about = [
        {"label": label, "origin": trace.origin, "schedule": trace.schedule, "workload": trace.workload}
        | {"cluster": trace.cluster}
        for label, trace in labelled
    ]
    return _ENCODER.encode({"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"traces": about}}) + b"\n"


def write(traces: Trace | Sequence[tuple[str, Trace]], path: str | Path, *, most_ranks: int = MOST_RANKS) -> None:
    """Write what Perfetto opens, under a temporary name first; raise FileError if the name ends otherwise."""
    if not str(path).endswith((".json", ".json.gz")):
        raise FileError(f"{path}: a timeline for Perfetto is JSON; end the name in .json or .json.gz")
    files.write_bytes(path, to_chrome(traces, most_ranks=most_ranks))


def microseconds(time_ps: int) -> Decimal:
    """Return a time of the trace in the format's unit, exactly.

    >>> str(microseconds(1_234_567)), str(microseconds(3))
    ('1.234567', '0.000003')
    """
    return Decimal(f"{time_ps // 10**6}.{time_ps % 10**6:06d}")


def tracks(events: Iterable[Event]) -> list[tuple[str, list[Event]]]:
    """Return the events of one rank by track, in the order of the lanes; an event that begins before the last one on
    its track has ended goes to the lane's next track."""
    lanes: dict[str, list[list[Event]]] = {lane: [] for lane in LANES}
    for event in sorted(events, key=lambda event: (event.start_ps, event.end_ps)):
        its = lanes[event.lane]
        free = next((track for track in its if track[-1].end_ps <= event.start_ps), None)
        if free is None:
            its.append([event])
        else:
            free.append(event)
    return [
        (lane if index == 0 else f"{lane} {index + 1}", track)
        for lane, its in lanes.items()
        for index, track in enumerate(its)
    ]


def _events(trace: Trace, prefix: str, first_pid: int, most_ranks: int) -> list[dict[str, object]]:
    by_rank: dict[int, list[Event]] = {}
    for event in trace:
        if event.rank < most_ranks:
            by_rank.setdefault(event.rank, []).append(event)
    found: list[dict[str, object]] = []
    for rank, its in sorted(by_rank.items()):
        pid = first_pid + rank
        found += [
            _metadata("process_name", pid, pid * _TRACKS, {"name": f"{prefix}rank {rank}"}),
            _metadata("process_sort_index", pid, pid * _TRACKS, {"sort_index": pid}),
        ]
        for place, (name, track) in enumerate(tracks(its)):
            # Thread numbers are unique in the whole file: viewers follow Linux in that.
            tid = pid * _TRACKS + place
            found += [
                _metadata("thread_name", pid, tid, {"name": name}),
                _metadata("thread_sort_index", pid, tid, {"sort_index": place}),
                *(_complete(event, pid, tid) for event in track),
            ]
    return found


def _metadata(name: str, pid: int, tid: int, arguments: dict[str, object]) -> dict[str, object]:
    return {"ph": "M", "name": name, "pid": pid, "tid": tid, "args": arguments}


def _complete(event: Event, pid: int, tid: int) -> dict[str, object]:
    return {
        "ph": "X",
        "name": event.op,
        "cat": event.lane,
        "pid": pid,
        "tid": tid,
        "ts": microseconds(event.start_ps),
        "dur": microseconds(event.end_ps - event.start_ps),
        "args": {"iteration": event.iteration},
    }
