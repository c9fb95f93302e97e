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


def draw(found: Validation, worst: str, traces: Labelled) -> Figure:
    """Return the page; *traces* are the measured and the predicted one of the case that *worst* names, or none."""
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
    if pair:
        page.figure.text(*page.at(0.12, strips_top_in - 0.42), f"The worst: {worst}", fontsize=8.5, fontweight="bold")
        room = page.axes(0.72, strips_top_in - 0.2, page.width_in - 0.72 - 1.12, pair_in)
        window_s = _WINDOW * max(strip.period_s for strip in pair)
        timelines.draw(room, pair, window_s=window_s, whose="rank 0")
    return page.figure


def _scatter(axes: Axes, comparisons: Sequence[Comparison]) -> None:
    times = [1e3 * s for each in comparisons for s in (each.predicted_s, each.measured_s)]
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
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else ""))
        axis.set_tick_params(which="minor", labelsize=7.0)
    axes.legend(loc="upper left", fontsize=7.0, handletextpad=0.4, borderaxespad=0.2)


def _text(page: pages.Page, found: Validation, top_in: float) -> None:
    """Write the figures, and what differs most in the worst case, beside the scatter plot."""
    lines = [part for line in figures(found) for part in textwrap.wrap(line, 54, subsequent_indent="  ")]
    with_residuals = [each for each in found.comparisons if each.residuals]
    if with_residuals:
        worst = max(with_residuals, key=lambda each: (each.counted, abs(each.relative_error)))
        lines += ["", f"worst: {worst.workload}, {worst.schedule}: {show_seconds(worst.measured_s)}"]
        lines += [f"  predicted {show_seconds(worst.predicted_s)}; what differs most:"]
        for residual in worst.residuals[:5]:
            lines += textwrap.wrap(told(residual), 54, initial_indent="  ", subsequent_indent="    ")
    if any(not each.counted for each in found.comparisons):
        lines += ["", "hollow: noisy, or seen by calibration"]
    page.figure.text(*page.at(4.0, top_in + 0.05), "\n".join(lines), fontsize=7.0, va="top", linespacing=1.35)
