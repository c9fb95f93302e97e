"""What was mispredicted in an iteration: each op's time, and the wait before it, as predicted and as measured.

Model
    Of the traced iterations behind the warm-up each op counts with its median over iterations, on the rank where that
    is longest. The wait before an op is the time since the op before it on its lane ended. On a comm lane nothing
    waits in that sense: a message starts when its gradient is there. Ops are told apart by name; a row that only
    issues an op is not the op.
"""

from collections.abc import Iterable
from statistics import median

from simgd.schedule import Communicate, Schedule
from simgd.trace import Event, Trace
from simgd.units import PS_PER_S
from simgd.validation import Residual

#: So many are kept, the largest ones.
SHOWN = 10


def residuals(predicted: Trace, measured: Trace, schedule: Schedule) -> list[Residual]:
    """Return the `SHOWN` largest differences between two traces of one *schedule*, the largest first."""
    theirs, ours = _times(predicted, schedule), _times(measured, schedule)
    found = [
        Residual(op=op, lane=lane, what=what, predicted_s=theirs.get((op, what), (lane, 0.0))[1], measured_s=seconds)
        for (op, what), (lane, seconds) in ours.items()
    ]
    return sorted(found, key=lambda each: -abs(each.predicted_s - each.measured_s))[:SHOWN]


def _times(trace: Trace, schedule: Schedule) -> dict[tuple[str, str], tuple[str, float]]:
    """Return lane and seconds of each (op, "run" or "wait before")."""
    collectives = {op.name for op in schedule.ops if isinstance(op.work, Communicate)}
    times: dict[tuple[str, str], dict[int, list[int]]] = {}
    lanes: dict[str, str] = {}
    for rank, rows in _by_rank(trace, collectives).items():
        ended: dict[str, int] = {}
        for row in rows:
            lanes[row.op] = row.lane
            times.setdefault((row.op, "run"), {}).setdefault(rank, []).append(row.end_ps - row.start_ps)
            if row.lane in ended and row.op not in collectives:
                wait = max(0, row.start_ps - ended[row.lane])
                times.setdefault((row.op, "wait before"), {}).setdefault(rank, []).append(wait)
            ended[row.lane] = row.end_ps
    return {
        key: (lanes[key[0]], max(median(each) for each in by_rank.values()) / PS_PER_S)
        for key, by_rank in times.items()
    }


def _by_rank(trace: Trace, collectives: set[str]) -> dict[int, list[Event]]:
    """Return the rows of the ops themselves, by rank and in the order of their starts."""
    own: dict[str, str] = {}
    for row in trace:
        # Of an op with rows on two lanes that on the host lane is its issuing.
        if row.lane != "host" or row.op not in own:
            own[row.op] = row.lane
    found: dict[int, list[Event]] = {}
    for row in _late(trace):
        if row.lane == own[row.op] and not (row.lane == "host" and row.op in collectives):
            found.setdefault(row.rank, []).append(row)
    return {rank: sorted(rows, key=lambda row: row.start_ps) for rank, rows in found.items()}


def _late(trace: Trace) -> Iterable[Event]:
    """Return the rows of the last iterations: a predicted trace begins with its warm-up."""
    last = max(trace.iteration, default=0)
    return (row for row in trace if row.iteration > last - 3)
