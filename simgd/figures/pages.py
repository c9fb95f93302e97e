"""Puts panels, strips, titles and legends on a page; places are in inches from its upper left corner."""

import math
import textwrap
from collections.abc import Sequence
from typing import get_args

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simgd.errors import FileError
from simgd.figures import curves, style, timelines
from simgd.figures.strips import Labelled, Strip, strips
from simgd.predict import Prediction
from simgd.profile import Origin, weakest

#: Iterations of the slowest schedule that a timeline spans: a little more than two, so that what follows the second
#: one is seen.
WINDOW = 2.08

ROW_IN = 0.135
_LEFT_IN = 0.72
_RIGHT_IN = 1.12
_CURVES_IN = 2.15
_BAR_IN = 0.22
_LEGEND_ROW_IN = 0.19

#: Room below axes for ticks and their label, and between that and the strips for the strips' legend.
_AXIS_IN = 0.46
_BETWEEN_IN = 0.38

#: Height of a line of text of 7 points, and how much of it fits on one.
LINE_IN, LINE_CHARACTERS = 0.14, 133


class Page:
    """A figure of full width, measured from its upper left corner."""

    def __init__(self, *, height_in: float) -> None:
        self.width_in = style.WIDTH_IN
        self.height_in = height_in
        self.figure = Figure(figsize=(self.width_in, height_in))

    def axes(self, left_in: float, top_in: float, width_in: float, height_in: float) -> Axes:
        """Return axes at this place."""
        bottom = 1 - (top_in + height_in) / self.height_in
        return self.figure.add_axes(
            (left_in / self.width_in, bottom, width_in / self.width_in, height_in / self.height_in)
        )

    def at(self, left_in: float, top_in: float) -> tuple[float, float]:
        """Return a place as parts of width and height from the lower left corner."""
        return left_in / self.width_in, 1 - top_in / self.height_in

    def titles(self, title: str, lines: Sequence[str]) -> None:
        """Write the title and what stands in small letters below it."""
        self.figure.text(*self.at(0.12, 0.1), title, fontsize=9.5, fontweight="bold", va="top")
        for index, line in enumerate(lines):
            at = self.at(0.12, 0.29 + index * LINE_IN)
            self.figure.text(*at, line, fontsize=7.0, color=style.FAINT, va="top")


def speedups(predictions: Sequence[Prediction], traces: Labelled) -> Figure:
    """Return panels of speed-ups with the strips of *traces* below, where there are any."""
    if not predictions:
        raise FileError("figure: there is no prediction to draw")
    title, small = title_of(predictions), textwrap.wrap(rests_on(predictions), LINE_CHARACTERS)
    names = curves.names_of(predictions)
    found = strips(traces, window=WINDOW) if traces else []
    single = len(curves.ranks_of(predictions)) == 1
    rows = 0 if single else _legend_rows(names)
    top_in = 0.4 + LINE_IN * len(small) + _LEGEND_ROW_IN * rows
    panels_in = _BAR_IN * len(names) + 0.12 if single else _CURVES_IN
    strips_in = timelines.height(found) * ROW_IN if found else 0.0
    strips_top_in = top_in + panels_in + _AXIS_IN + _BETWEEN_IN
    page = Page(height_in=strips_top_in + strips_in + _AXIS_IN if found else strips_top_in - _BETWEEN_IN)
    page.titles(title, small)
    over_one, over_baseline = _panels(page, top_in, panels_in, names, single=single)
    curves.draw(over_one, over_baseline, predictions)
    if rows:
        _add_legend(page, over_one, top_in - _LEGEND_ROW_IN * rows - 0.08, rows)
    if found:
        colors = [style.line(names.index(strip.label)).color if strip.label in names else style.INK for strip in found]
        whose = f"rank 0 of {max(curves.ranks_of(predictions))}"
        _add_strips(page, found, strips_top_in, WINDOW, whose, colors)
    return page.figure


def timeline(traces: Labelled, *, window: float, rank: int, title: str) -> Figure:
    """Return the strips of *traces* alone."""
    if not traces:
        raise FileError("timeline: there is no trace to draw")
    found = strips(traces, window=window, rank=rank)
    top_in = 0.3 + (0.2 if title else 0.0)
    page = Page(height_in=top_in + timelines.height(found) * ROW_IN + _AXIS_IN)
    if title:
        page.titles(title, ())
    _add_strips(page, found, top_in, window, f"rank {rank}", ())
    return page.figure


def _panels(page: Page, top_in: float, height_in: float, names: Sequence[str], *, single: bool) -> tuple[Axes, Axes]:
    """Return the axes of both panels; bars have their names on the left instead of a legend."""
    if not single:
        return page.axes(0.55, top_in, 2.85, height_in), page.axes(4.15, top_in, 2.85, height_in)
    left_in = 0.2 + 0.07 * max(map(len, names))
    room_in = page.width_in - left_in - 0.5
    return (
        page.axes(left_in, top_in, 0.56 * room_in, height_in),
        page.axes(left_in + 0.56 * room_in + 0.3, top_in, 0.44 * room_in, height_in),
    )


def _legend_rows(names: Sequence[str]) -> int:
    """Return how many rows the legend takes, with the ideal line and the band in it."""
    texts = [*names, curves.IDEAL, curves.BAND]
    return math.ceil(sum(0.45 + 0.062 * len(text) for text in texts) / 6.8)


def _add_legend(page: Page, axes: Axes, top_in: float, rows: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    page.figure.legend(
        handles,
        labels,
        loc="upper left",
        bbox_to_anchor=page.at(0.46, top_in),
        ncols=math.ceil(len(labels) / rows),
        columnspacing=1.4,
        handlelength=2.0,
        borderaxespad=0.0,
    )


def _add_strips(
    page: Page, found: Sequence[Strip], top_in: float, window: float, whose: str, colors: Sequence[str]
) -> None:
    height_in = timelines.height(found) * ROW_IN
    axes = page.axes(_LEFT_IN, top_in, page.width_in - _LEFT_IN - _RIGHT_IN, height_in)
    window_s = window * max(strip.period_s for strip in found)
    timelines.draw(axes, found, window_s=window_s, whose=whose, colors=colors)


def title_of(predictions: Sequence[Prediction]) -> str:
    """Return workload, machine and batch; raise FileError if the predictions speak of several machines or jobs."""
    jobs = {(each.workload, each.cluster): None for each in predictions}
    if len(jobs) > 1:
        raise FileError(f"figure: shows one workload on one machine, but was given {len(jobs)}")
    ((workload, cluster),) = jobs
    batches = {each.batch_per_rank for each in predictions}
    first = predictions[0]
    batch = f"{first.batch_per_rank} a rank" if len(batches) == 1 else f"{first.batch_per_rank * first.ranks} in all"
    ranks = curves.ranks_of(predictions)
    count = "" if len(ranks) > 1 else ", 1 rank" if ranks == [1] else f", {ranks[0]} ranks"
    return f"{workload} on {cluster}, batch {batch}{count}"


def rests_on(predictions: Sequence[Prediction]) -> str:
    """Return on what the numbers rest: each part by its weakest origin over all predictions."""
    parts: dict[str, Origin] = {}
    for each in predictions:
        for part, origin in each.origins.items():
            parts[part] = weakest(origin, parts.get(part, origin))
    said = [
        f"{', '.join(part for part in parts if parts[part] == origin)} {origin}"
        for origin in get_args(Origin)
        if origin in parts.values()
    ]
    beyond = "; partly extrapolated" if any(each.extrapolated for each in predictions) else ""
    return f"Predicted from profile {predictions[0].profile}: {'; '.join(said)}{beyond}"
