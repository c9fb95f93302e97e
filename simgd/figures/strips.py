"""What a timeline shows of each trace: the bars of one rank's lanes in a few steady iterations.

Model
    Strips begin together, at the first forward pass of an iteration, and are equally long: so many iterations of the
    slowest one. A faster one holds more iterations, and is seen to be ahead. A bar is one op; on the host lane it is
    the issuing of an op, or the op itself where the host runs it.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from simgd import units
from simgd.errors import FileError
from simgd.profile import CollectiveKind
from simgd.schedule import LANES
from simgd.trace import Event, Trace

Kind = Literal["forward", "backward", "compute", "update", "copy", "communication", "host issue", "host wait"]

_BY_WORD: dict[str, Kind] = {
    "forward": "forward",
    "backward": "backward",
    "update": "update",
    "copy": "copy",
    "wait": "host wait",
    **dict.fromkeys(get_args(CollectiveKind), "communication"),
}

_BY_LANE: dict[str, Kind] = {
    "host": "host issue",
    "compute": "compute",
    "update": "update",
    "copy_out": "copy",
    "copy_in": "copy",
    "comm": "communication",
}

#: What a caller wants drawn: a label and a trace for each strip.
Labelled: TypeAlias = Sequence[tuple[str, Trace]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One op on one lane, in seconds from the strip's first iteration, with the iteration counted from there."""

    lane: str
    kind: Kind
    iteration: int
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """What one trace shows in `span_s` seconds: bars, starts of iterations, the mean period, and the share of the time
    of whole iterations in which compute runs; `messages` are the collectives that it uses."""

    label: str
    span_s: float
    lanes: tuple[str, ...]
    bars: tuple[Bar, ...]
    starts_s: tuple[float, ...]
    period_s: float
    busy: float
    messages: tuple[str, ...]


def kind_of(event: Event, *, issued: bool) -> Kind:
    """Return what sort of work a row is; *issued* says that it is a host's issuing of an op that runs elsewhere.

    Shipped schedules name their ops after their work; other names tell by their lane.
    """
    if issued:
        return "host issue"
    return _BY_WORD.get(event.op.partition(" ")[0], _BY_LANE[event.lane])


def strips(traces: Labelled, *, window: float, rank: int = 0) -> list[Strip]:
    """Return the strip of each trace, all of the same length: *window* iterations of the slowest one.

    A strip is taken as late as its trace allows: late iterations are steady ones. Raises FileError if a trace does
    not hold two iterations of *rank*.
    """
    rows = [_rows(label, trace, rank) for label, trace in traces]
    starts = [_iteration_starts(label, each) for (label, _), each in zip(traces, rows, strict=True)]
    slowest_ps = max(_period_ps(each) for each in starts)
    span_ps = round(window * slowest_ps)
    return [_strip(label, each, its, span_ps) for (label, _), each, its in zip(traces, rows, starts, strict=True)]


_Row: TypeAlias = tuple[Event, Kind]


def _rows(label: str, trace: Trace, rank: int) -> list[_Row]:
    events = [event for event in trace if event.rank == rank]
    if not events:
        raise FileError(f"timeline of {label!r}: its trace holds nothing of rank {rank}")
    elsewhere = {event.op for event in events if event.lane != "host"}
    return [(event, kind_of(event, issued=event.lane == "host" and event.op in elsewhere)) for event in events]


def _computes(row: _Row) -> bool:
    """Say whether a row keeps the device busy; on a CPU rank the host runs the passes."""
    event, kind = row
    return event.lane == "compute" or (event.lane == "host" and kind not in ("host issue", "host wait"))


def _iteration_starts(label: str, rows: list[_Row]) -> dict[int, int]:
    """Return when the first pass of each iteration starts; updates that are owed after the last one start none."""
    starts: dict[int, int] = {}
    for row in rows:
        event, kind = row
        if _computes(row) and kind in ("forward", "backward", "compute"):
            starts[event.iteration] = min(event.start_ps, starts.get(event.iteration, event.start_ps))
    if len(starts) < 2:
        raise FileError(f"timeline of {label!r}: its trace holds {len(starts)} iterations; two or more are needed")
    return dict(sorted(starts.items()))


def _period_ps(starts: dict[int, int]) -> float:
    """Return the mean period of the later half of the iterations."""
    times = list(starts.values())
    late = times[(len(times) - 1) // 2 :]
    return (late[-1] - late[0]) / (len(late) - 1)


def _strip(label: str, rows: list[_Row], starts: dict[int, int], span_ps: int) -> Strip:
    numbers, times = list(starts), list(starts.values())
    # The last iteration's end may be a drain, so the window should end where the last iteration begins.
    first = max(0, bisect_right(times, times[-1] - span_ps) - 1)
    begin, base = times[first], numbers[first]
    shown = [(event, kind) for event, kind in rows if event.end_ps > begin and event.start_ps < begin + span_ps]

    def seconds(at: int) -> float:
        return (at - begin) / units.PS_PER_S

    bars = tuple(
        Bar(
            lane=event.lane,
            kind=kind,
            iteration=event.iteration - base,
            start_s=seconds(event.start_ps),
            end_s=seconds(event.end_ps),
        )
        for event, kind in shown
    )
    inside = [at for at in times[first:] if at <= begin + span_ps]
    inside = inside if len(inside) > 1 else times[first : first + 2]
    return Strip(
        label=label,
        span_s=span_ps / units.PS_PER_S,
        lanes=tuple(lane for lane in LANES if any(event.lane == lane for event, _ in rows)),
        bars=bars,
        starts_s=tuple(seconds(at) for at in inside),
        period_s=seconds(inside[-1]) / (len(inside) - 1),
        busy=_busy_ps(filter(_computes, rows), begin, inside[-1]) / (inside[-1] - begin),
        messages=tuple(sorted({event.op.partition(" ")[0] for event, kind in rows if kind == "communication"})),
    )


def _busy_ps(rows: Iterable[_Row], begin: int, end: int) -> int:
    return sum(max(0, min(event.end_ps, end) - max(event.start_ps, begin)) for event, _ in rows)
