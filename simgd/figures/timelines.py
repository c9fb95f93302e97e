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

from simgd import units
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


def height(found: Sequence[Strip]) -> float:
    """Return the height of the strips in rows."""
    return sum(_HEAD + _ROW * len(strip.lanes) + _GAP for strip in found) - _GAP


def draw(axes: Axes, found: Sequence[Strip], *, window_s: float, colors: Sequence[str] = ()) -> None:
    """Draw the strips below each other on one time axis of *window_s* seconds.

    *colors* are those of the schedules elsewhere in the figure.
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
    axes.set_xlabel(f"time since the start of an iteration ({unit})")
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
        spans = [(max(bar.start_s * scale, low), min(bar.end_s * scale, high)) for bar in bars]
        corners = [
            [(start, middle - _BAR / 2), (start, middle + _BAR / 2), (end, middle + _BAR / 2), (end, middle - _BAR / 2)]
            for start, end in spans
        ]
        # Ops that are wide enough are parted by a thin white edge; the others are as wide as the pen at least.
        wide = [(end - start) * points > 3.0 for start, end in spans]
        axes.add_collection(
            PolyCollection(
                corners,
                facecolors=color,
                edgecolors=["white" if each else color for each in wide],
                linewidths=[0.4 if each else 0.3 for each in wide],
                label=kind,
            ),
            autolim=False,
        )
    if lane == "comm":
        _number_messages(axes, strip, middle, scale, points)


def _number_messages(axes: Axes, strip: Strip, middle: float, scale: float, points: float) -> None:
    """Write the iteration on the widest message of each."""
    widest: dict[int, tuple[float, float]] = {}
    low, high = axes.get_xlim()
    for bar in strip.bars:
        start, end = max(bar.start_s * scale, low), min(bar.end_s * scale, high)
        if bar.lane == "comm":
            widest[bar.iteration] = max(widest.get(bar.iteration, (0.0, 0.0)), (end - start, (start + end) / 2))
    for iteration, (width, at) in widest.items():
        text = str(iteration).replace("-", "−")
        if width * points > 5.0 * len(text) + 2:
            axes.text(
                at, middle, text, ha="center", va="center_baseline", fontsize=6.0, color="white", fontweight="bold"
            )


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
        units.show_seconds(strip.period_s),
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


def _draw_legend(axes: Axes, found: Sequence[Strip]) -> None:
    """Name the kinds of work in one line above the strips."""
    kinds = [kind for kind in COLORS if any(bar.kind == kind for strip in found for bar in strip.bars)]
    used = sorted({name for strip in found for name in strip.messages})
    names = {"communication": used[0].replace("_", "-") if len(used) == 1 else "communication"}
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
