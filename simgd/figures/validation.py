"""Draws a validation: predicted against measured seconds, and the worst case as a pair of timelines."""

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from simgd.figures import pages, style, timelines
from simgd.figures.strips import Labelled, strips
from simgd.units import show_seconds
from simgd.validation import NOISY_ERROR, Comparison, Validation
from simgd.validationreport import figures, told

_SCATTER_IN = 3.0
_WINDOW = 1.9

#: How much text of 7 points fits beside the scatter plot.
_CHARACTERS = 60


def draw(found: Validation, traces: Labelled) -> Figure:
    """Return the page; *traces* are the measured and the predicted one of the worst case, or none."""
    pair = strips(traces, window=_WINDOW) if traces else []
    pair_in = timelines.height(pair) * pages.ROW_IN if pair else 0.0
    top_in = 0.45
    strips_top_in = top_in + _SCATTER_IN + 1.0
    page = pages.Page(height_in=strips_top_in + pair_in + 0.46 if pair else top_in + _SCATTER_IN + 0.5)
    machines = list(dict.fromkeys(each.cluster for each in found.comparisons))
    page.titles(f"Predicted and measured: {len(found.comparisons)} cases", [", ".join(machines)])
    axes = page.axes(0.62, top_in + 0.05, _SCATTER_IN, _SCATTER_IN)
    _scatter(axes, found.comparisons)
    _text(page, found, top_in)
    if pair and found.worst is not None:
        page.figure.text(
            *page.at(0.12, strips_top_in - 0.42), f"The worst: {_named(found.worst)}", fontsize=8.5, fontweight="bold"
        )
        room = page.axes(0.72, strips_top_in - 0.2, page.width_in - 0.72 - 1.12, pair_in)
        timelines.draw(room, pair, window_s=pair[0].span_s, whose="rank 0")
    return page.figure


def _named(each: Comparison) -> str:
    where = f"{each.ranks} ranks of {each.cluster}, {each.backend}"
    return f"{each.workload}, {each.schedule}, {where}: {each.relative_error:+.1%}"


def _scatter(axes: Axes, comparisons: Sequence[Comparison]) -> None:
    times = [1e3 * s for each in comparisons for s in (each.predicted_s, each.measured_low_s, each.measured_high_s)]
    low, high = min(times) / 1.2, max(times) * 1.2
    line = [low, high]
    axes.fill_between(
        line,
        [each * (1 - NOISY_ERROR) for each in line],
        [each * (1 + NOISY_ERROR) for each in line],
        color="#ececec",
        linewidth=0,
        label=f"within {NOISY_ERROR:.0%}",
    )
    axes.plot(line, line, color=style.FAINT, linewidth=0.8)
    names = list(dict.fromkeys(each.schedule for each in comparisons))
    for place, name in enumerate(names):
        look = style.line(place)
        for counted in (True, False):
            some = [each for each in comparisons if each.schedule == name and each.counted == counted]
            for each in some:
                spread = [1e3 * each.measured_low_s, 1e3 * each.measured_high_s]
                axes.plot(spread, [1e3 * each.predicted_s] * 2, color=look.color, linewidth=0.7)
            axes.plot(
                [1e3 * each.measured_s for each in some],
                [1e3 * each.predicted_s for each in some],
                look.marker,
                color=look.color,
                markerfacecolor=look.color if counted else "none",
                markersize=4,
                markeredgewidth=0.8,
                linestyle="none",
                label=name if counted else None,
            )
    axes.set(xscale="log", yscale="log", xlim=line, ylim=line, xlabel="measured, ms", ylabel="predicted, ms")
    # Enough numbers to read a decade by, and no more than there is room for.
    numbered = "2357" if high < 10 * low else "25" if high < 100 * low else ""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in numbered else ""))
        axis.set_tick_params(which="minor", labelsize=7.0)
    axes.legend(loc="best", fontsize=7.0, handletextpad=0.4, borderaxespad=0.2)


def _text(page: pages.Page, found: Validation, top_in: float) -> None:
    """Write the figures, and what differs most in the worst case, beside the scatter plot."""
    lines = [part for line in figures(found) for part in textwrap.wrap(line, _CHARACTERS, subsequent_indent="  ")]
    worst = found.worst
    if worst is not None:
        lines += ["", f"worst: {worst.workload}, {worst.schedule}: {show_seconds(worst.measured_s)}"]
        lines += [f"  predicted {show_seconds(worst.predicted_s)}; what differs most:"]
        for residual in worst.residuals[:5]:
            lines += textwrap.wrap(told(residual), _CHARACTERS, initial_indent="  ", subsequent_indent="    ")
    if any(not each.counted for each in found.comparisons):
        lines += ["", "hollow: noisy, or seen by calibration; bars: runs of one case"]
    page.figure.text(*page.at(4.0, top_in + 0.05), "\n".join(lines), fontsize=7.0, va="top", linespacing=1.35)
