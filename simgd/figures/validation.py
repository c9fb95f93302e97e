"""Draws a validation: predicted against measured seconds, their errors below, and the worst case as two timelines."""

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

_SCATTER_IN = 2.75

#: Errors stand below the scatter plot, on the same axis: over decades nobody sees 5 % in that.
_GAP_IN, _ERRORS_IN = 0.12, 0.85

#: Height of a line of the text beside it.
_LINE_IN = 0.135

_WINDOW = 1.9

#: How much text of 7 points fits beside the scatter plot.
_CHARACTERS = 60


def draw(found: Validation, traces: Labelled) -> Figure:
    """Return the page; *traces* are the measured and the predicted one of the worst case, or none."""
    pair = strips(traces, window=_WINDOW) if traces else []
    pair_in = timelines.height(pair) * pages.ROW_IN if pair else 0.0
    top_in = 0.45
    lines = _lines(found)
    bottom_in = top_in + max(_SCATTER_IN + _GAP_IN + _ERRORS_IN + 0.45, 0.1 + _LINE_IN * len(lines))
    strips_top_in = bottom_in + 0.55
    page = pages.Page(height_in=strips_top_in + pair_in + 0.26 if pair else bottom_in + 0.05)
    machines = list(dict.fromkeys(each.cluster for each in found.comparisons))
    page.titles(f"Predicted and measured: {len(found.comparisons)} cases", [", ".join(machines)])
    above = page.axes(0.62, top_in + 0.05, _SCATTER_IN, _SCATTER_IN)
    below = page.axes(0.62, top_in + 0.05 + _SCATTER_IN + _GAP_IN, _SCATTER_IN, _ERRORS_IN)
    _scatter(above, below, found.comparisons)
    page.figure.text(*page.at(3.75, top_in + 0.05), "\n".join(lines), fontsize=7.0, va="top", linespacing=1.35)
    if pair and found.worst is not None:
        page.figure.text(
            *page.at(0.12, strips_top_in - 0.42),
            f"The worst with a trace: {_named(found.worst)}",
            fontsize=8.5,
            fontweight="bold",
        )
        room = page.axes(0.72, strips_top_in - 0.2, page.width_in - 0.72 - 1.12, pair_in)
        timelines.draw(room, pair, window_s=pair[0].span_s, whose="rank 0")
    return page.figure


def _named(each: Comparison) -> str:
    where = f"{each.ranks} rank{'s' if each.ranks > 1 else ''} of {each.cluster}, {each.backend}"
    return f"{each.workload}, {each.schedule}, {where}: {each.relative_error:+.1%}"


def _scatter(above: Axes, below: Axes, comparisons: Sequence[Comparison]) -> None:
    """Draw predicted against measured times *above*, and their errors *below*."""
    times = [1e3 * s for each in comparisons for s in (each.predicted_s, each.measured_low_s, each.measured_high_s)]
    low, high = min(times) / 1.2, max(times) * 1.2
    line, percent = [low, high], 100 * NOISY_ERROR
    for axes, middle, lower, upper in (
        (above, line, [each * (1 - NOISY_ERROR) for each in line], [each * (1 + NOISY_ERROR) for each in line]),
        (below, [0.0] * 2, [-percent] * 2, [percent] * 2),
    ):
        axes.fill_between(line, lower, upper, color="#ececec", linewidth=0, label=f"within {NOISY_ERROR:.0%}")
        axes.plot(line, middle, color=style.FAINT, linewidth=0.8)
    for place, name in enumerate(dict.fromkeys(each.schedule for each in comparisons)):
        for counted in (True, False):
            some = [each for each in comparisons if each.schedule == name and each.counted == counted]
            _points(above, below, some, style.line(place), name if counted else None, filled=counted)
    # Enough numbers to read a decade by, and no more than there is room for.
    numbered = "2357" if high < 10 * low else "25" if high < 100 * low else ""
    for axis in (above.xaxis, above.yaxis, below.xaxis):
        axis.axes.set(**{f"{axis.axis_name}scale": "log", f"{axis.axis_name}lim": line})
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in numbered else ""))
        axis.set_tick_params(which="minor", labelsize=7.0)
    above.tick_params(axis="x", which="both", labelbottom=False)
    above.set_ylabel("predicted, ms")
    most = 1.15 * max(2 * percent, *(100 * abs(each.relative_error) for each in comparisons))
    below.set(xlabel="measured, ms", ylabel="error, %", ylim=(-most, most))
    above.legend(loc="best", fontsize=7.0, handletextpad=0.4, borderaxespad=0.2)


def _points(
    above: Axes, below: Axes, some: Sequence[Comparison], look: style.Line, label: str | None, *, filled: bool
) -> None:
    """Draw the comparisons of one schedule; a bar is as wide as their runs' medians spread."""
    for axes, heights in (
        (above, [1e3 * each.predicted_s for each in some]),
        (below, [100 * each.relative_error for each in some]),
    ):
        for each, height in zip(some, heights, strict=True):
            spread = [1e3 * each.measured_low_s, 1e3 * each.measured_high_s]
            axes.plot(spread, [height] * 2, color=look.color, linewidth=0.7)
        axes.plot(
            [1e3 * each.measured_s for each in some],
            heights,
            look.marker,
            color=look.color,
            markerfacecolor=look.color if filled else "none",
            markersize=4,
            markeredgewidth=0.8,
            linestyle="none",
            label=label,
        )


def _lines(found: Validation) -> list[str]:
    """Return the figures, and what differs most in the worst case, to stand beside the scatter plot."""
    lines = [part for line in figures(found) for part in textwrap.wrap(line, _CHARACTERS, subsequent_indent="  ")]
    worst = found.worst
    if worst is not None:
        lines += ["", f"worst with a trace: {worst.workload}, {worst.schedule}: {show_seconds(worst.measured_s)}"]
        lines += [f"  predicted {show_seconds(worst.predicted_s)}; what differs most:"]
        for residual in worst.residuals[:5]:
            lines += textwrap.wrap(told(residual), _CHARACTERS, initial_indent="  ", subsequent_indent="    ")
    if any(not each.counted for each in found.comparisons):
        lines += ["", "hollow: noisy, or seen by calibration; bars: runs of one case"]
    return lines
