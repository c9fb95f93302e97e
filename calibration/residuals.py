"""What was mispredicted in an iteration: each op's time, and the wait before it, as predicted and as measured.

Model
    Each op counts with its median over the last iterations that compute (a predicted trace begins with a warm-up, and
    what is owed after the last pass is no whole iteration), on the rank where that is longest. The wait before an op is
    the time since the op before it on its lane ended. On a comm lane nothing waits in that sense: a message starts when
    its gradient is there. Ops are told apart by name: the lanes of a rank may be merged in one trace and not in the
    other. A row that only issues an op is not the op, but counts by itself.
"""

from statistics import median

from simgd.schedule import Backward, Communicate, Forward, Schedule
from simgd.trace import Event, Trace
from simgd.units import PS_PER_S
from simgd.validation import Residual, What

#: So many are kept, the largest ones.
SHOWN = 10

#: So many iterations of a trace count, the last ones.
COUNTED = 3


def residuals(predicted: Trace, measured: Trace, schedule: Schedule) -> list[Residual]:
    """Return the `SHOWN` largest differences between two traces of one *schedule*, the largest first."""
    theirs, ours = _times(predicted, schedule), _times(measured, schedule)
    found = [
        Residual(op=op, lane=lane, what=what, predicted_s=theirs.get((op, what), (lane, 0.0))[1], measured_s=seconds)
        for (op, what), (lane, seconds) in ours.items()
    ]
    return sorted(found, key=lambda each: -abs(each.predicted_s - each.measured_s))[:SHOWN]


def whole_iterations(trace: Trace, schedule: Schedule) -> list[int]:
    """Return the iterations in which *trace* shows a forward or backward pass, in order."""
    passes = {op.name for op in schedule.ops if isinstance(op.work, (Forward, Backward))}
    return sorted({row.iteration for row in trace if row.op in passes})


def _times(trace: Trace, schedule: Schedule) -> dict[tuple[str, What], tuple[str, float]]:
    """Return lane and seconds of each op's run, of the wait before it, and of its issuing."""
    collectives = {op.name for op in schedule.ops if isinstance(op.work, Communicate)}
    elsewhere = collectives | {row.op for row in trace if row.lane != "host"}
    late = set(whole_iterations(trace, schedule)[-COUNTED:])
    times: dict[tuple[str, What], dict[int, list[int]]] = {}
    lanes: dict[tuple[str, What], str] = {}
    ended: dict[tuple[int, str], int] = {}

    def add(row: Event, what: What, ps: int) -> None:
        if row.iteration in late:
            lanes[row.op, what] = row.lane
            times.setdefault((row.op, what), {}).setdefault(row.rank, []).append(ps)

    for row in sorted(trace, key=lambda row: (row.start_ps, row.end_ps)):
        issues = row.lane == "host" and row.op in elsewhere
        add(row, "issue" if issues else "run", row.end_ps - row.start_ps)
        before = ended.get((row.rank, row.lane))
        if before is not None and row.op not in collectives and not issues:
            add(row, "wait before", max(0, row.start_ps - before))
        ended[row.rank, row.lane] = max(row.end_ps, before or 0)
    return {
        key: (lanes[key], max(median(each) for each in by_rank.values()) / PS_PER_S) for key, by_rank in times.items()
    }
