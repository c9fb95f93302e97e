"""Draws timelines: a strip for each schedule, its lanes as rows, all on one time axis.

Model
    Numbers on messages count iterations from the strip's first: a message that carries 0 beside the passes of
    iteration 1 is a delayed one.

Known not to hold
    Bars thinner than the pen are drawn as wide as the pen (0.3 points): a lane of very short ops looks busier than it
    is. The printed share of time for which compute runs comes from the trace.
"""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.patches import Patch

from simgd.figures import style
from simgd.figures.strips import Kind, Strip

#: Told apart by hue for the colour-blind and by lightness in grey; forward, backward and update, which follow each
#: other on a lane, have CIE lightness of about 86, 62 and 37.
COLORS: dict[Kind, str] = {
    "forward": "#b9dcf5",
    "backward": "#4f9bd9",
    "compute": "#4f9bd9",
    "update": "#0e6b3d",
    "copy": "#8c4aa8",
    "communication": "#d55e00",
    "host issue": "#808080",
    "host wait": "#d9d9d9",
}

_ROW = 1.0
_BAR = 0.78
_HEAD = 1.05
_GAP = 0.55

#: Ops wider than this, in points, are parted from the next one by a gap.
_WIDE_POINTS = 3.0
_GAP_POINTS = 0.4


def height(found: Sequence[Strip]) -> float:
    """Return the height of the strips in rows."""
    return sum(_HEAD + _ROW * len(strip.lanes) + _GAP for strip in found) - _GAP


def draw(axes: Axes, found: Sequence[Strip], *, window_s: float, whose: str, colors: Sequence[str] = ()) -> None:
    """Draw the strips below each other on one time axis of *window_s* seconds.

    *whose* time it is stands at the axis; *colors* are those of the schedules elsewhere in the figure.
    """
    scale, unit = _time_unit(window_s)
    axes.set_xlim(-0.012 * window_s * scale, window_s * scale)
    total = height(found)
    axes.set_ylim(total, 0)
    ticks: list[float] = []
    names: list[str] = []
    top = 0.0
    for index, strip in enumerate(found):
        color = colors[index] if index < len(colors) else style.INK
        top += _HEAD
        for row, lane in enumerate(strip.lanes):
            middle = top + (row + 0.5) * _ROW
            ticks.append(middle)
            names.append(lane.replace("_", " "))
            axes.axhline(middle, color="#ececec", linewidth=0.6, zorder=0)
            _draw_lane(axes, strip, lane, middle, scale)
        bottom = top + _ROW * len(strip.lanes)
        _draw_frame(axes, strip, top, bottom, scale, color)
        top = bottom + _GAP
    axes.set_yticks(ticks, names)
    axes.tick_params(axis="y", length=0, labelsize=7.0, pad=3)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"time on {whose} since the start of an iteration ({unit})")
    _draw_legend(axes, found)


def _time_unit(span_s: float) -> tuple[float, str]:
    for scale, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
        if span_s * scale >= 1.5:
            return scale, unit
    return 1e9, "ns"


def _points_per_unit(axes: Axes) -> float:
    figure = axes.get_figure()
    assert figure is not None
    low, high = axes.get_xlim()
    return axes.get_position().width * figure.get_figwidth() * 72 / (high - low)  # type: ignore[union-attr]


def _draw_lane(axes: Axes, strip: Strip, lane: str, middle: float, scale: float) -> None:
    points = _points_per_unit(axes)
    low, high = axes.get_xlim()
    for kind, color in COLORS.items():
        bars = [bar for bar in strip.bars if bar.lane == lane and bar.kind == kind]
        if not bars:
            continue
        spans = spans_to_draw([(bar.start_s * scale, bar.end_s * scale) for bar in bars], point=1 / points)
        below, above = middle - _BAR / 2, middle + _BAR / 2
        corners = [
            [(start, below), (start, above), (end, above), (end, below)]
            for start, end in ((max(start, low), min(end, high)) for start, end in spans)
        ]
        # Without snapping to pixels, which would let some of the narrowest ones vanish
        drawn = PolyCollection(corners, facecolors=color, linewidths=0, label=kind, snap=False)
        axes.add_collection(drawn, autolim=False)
    if lane == "comm":
        _number_messages(axes, strip, middle, scale, points)


def spans_to_draw(spans: Sequence[tuple[float, float]], *, point: float) -> list[tuple[float, float]]:
    """Return the rectangles of ops: wide ones end in a small gap, narrow ones that touch are joined, and none is
    narrower than the pen.

    >>> spans_to_draw([(0, 10), (10, 20), (20, 21), (21, 22), (30, 30)], point=1.0)
    [(0, 9.6), (10, 19.6), (20, 21.6), (30, 30.3)]
    """
    joined: list[tuple[float, float]] = []
    was_wide = True
    for start, end in sorted(spans):
        wide = end - start > _WIDE_POINTS * point
        if joined and not wide and not was_wide and start - joined[-1][1] < 0.1 * point:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
        was_wide = wide
    return [
        (start, end - _GAP_POINTS * point if end - start > 2 * _GAP_POINTS * point else max(end, start + 0.3 * point))
        for start, end in joined
    ]


def _number_messages(axes: Axes, strip: Strip, middle: float, scale: float, points: float) -> None:
    """Write the iteration on the widest message of each run of them, where there is room."""
    low, high = axes.get_xlim()
    for iteration, spans in _runs(strip, gap_s=0.5 / points / scale):
        shown = [(max(start * scale, low), min(end * scale, high)) for start, end in spans]
        text = str(iteration).replace("-", "\u2212")
        needed = (5.0 * len(text) + 2) / points
        left, right = max(shown, key=lambda span: span[1] - span[0])
        if right - left < needed:
            left, right = shown[0][0], shown[-1][1]
        if right - left > needed:
            at = (left + right) / 2
            axes.text(
                at, middle, text, ha="center", va="center_baseline", fontsize=6.0, color="white", fontweight="bold"
            )


def _runs(strip: Strip, *, gap_s: float) -> list[tuple[int, list[tuple[float, float]]]]:
    """Return the messages that follow each other with less than *gap_s*, by iteration, as spans in seconds."""
    runs: list[tuple[int, list[tuple[float, float]]]] = []
    for bar in sorted((bar for bar in strip.bars if bar.lane == "comm"), key=lambda bar: (bar.start_s, bar.end_s)):
        if runs and runs[-1][0] == bar.iteration and bar.start_s - runs[-1][1][-1][1] < gap_s:
            runs[-1][1].append((bar.start_s, bar.end_s))
        else:
            runs.append((bar.iteration, [(bar.start_s, bar.end_s)]))
    return runs


def _draw_frame(axes: Axes, strip: Strip, top: float, bottom: float, scale: float, color: str) -> None:
    """Draw the strip's name, the bounds of its iterations, and what it comes to."""
    low, _ = axes.get_xlim()
    points = _points_per_unit(axes)
    room = strip.period_s * scale * points
    axes.text(low, top - 0.12, strip.label, ha="left", va="bottom", fontweight="bold", color=color, fontsize=8.0)
    name_points = 6.2 * len(strip.label) + 8
    for index, at in enumerate(strip.starts_s):
        axes.plot([at * scale] * 2, [top - 0.05, bottom], color=style.INK, linewidth=0.8, clip_on=False)
        text = f"iteration {index}" if room > 60 else str(index)
        fits = index > 0 and (at * scale - low) * points > name_points and room > 16
        if fits and (axes.get_xlim()[1] - at * scale) * points > 3.6 * len(text):
            axes.text(at * scale, top - 0.12, f" {text}", ha="left", va="bottom", fontsize=6.5, color=style.FAINT)
    axes.annotate(
        show_time(strip.period_s),
        (1.0, (top + bottom) / 2 - 0.05),
        xycoords=("axes fraction", "data"),
        xytext=(6, 0),
        textcoords="offset points",
        va="bottom",
        fontsize=8.0,
        fontweight="bold",
        annotation_clip=False,
    )
    axes.annotate(
        f"compute busy {math.floor(100 * strip.busy + 0.5)} %",
        (1.0, (top + bottom) / 2 + 0.05),
        xycoords=("axes fraction", "data"),
        xytext=(6, -1),
        textcoords="offset points",
        va="top",
        fontsize=6.5,
        color=style.FAINT,
        annotation_clip=False,
    )


def show_time(seconds: float) -> str:
    """Return a time with three digits, zeros too: numbers below each other are compared.

    >>> show_time(0.0440), show_time(2.5), show_time(0.1234)
    ('44.0 ms', '2.50 s', '123 ms')
    """
    for scale, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
        if seconds * scale >= 0.9995:
            return f"{seconds * scale:#.3g}".rstrip(".") + f" {unit}"
    return f"{seconds * 1e9:#.3g}".rstrip(".") + " ns"


def _draw_legend(axes: Axes, found: Sequence[Strip]) -> None:
    """Name the kinds of work in one line above the strips."""
    kinds = [kind for kind in COLORS if any(bar.kind == kind for strip in found for bar in strip.bars)]
    used = sorted({name for strip in found for name in strip.messages})
    message = used[0].replace("_", "-") if len(used) == 1 else "communication"
    names: dict[Kind, str] = {"communication": f"{message}, numbered by iteration"}
    axes.legend(
        handles=[Patch(facecolor=COLORS[kind], label=names.get(kind, kind)) for kind in kinds],
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=len(kinds),
        borderaxespad=0.2,
        handlelength=1.1,
        handleheight=0.9,
        columnspacing=1.2,
        handletextpad=0.45,
        fontsize=7.5,
    )
