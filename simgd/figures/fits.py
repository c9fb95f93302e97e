"""Draws what a profile knows of times: by message size with what was fitted, and by layer.

Model
    A panel for each fit and curve: samples with their confidence intervals, the fitted lines between the sizes at which
    they switch, and in grey what the network's model alone says. Below it, by how many percent the fit (beside a curve,
    the model) is off at each sample; what lies beyond the axis is a triangle at its edge.
"""

import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from simgd.errors import FileError
from simgd.figures import style
from simgd.figures.pages import LINE_CHARACTERS, LINE_IN, Page
from simgd.network import Call, Network, at_link_rate
from simgd.profile import CollectiveKind, Curve, Entry, Fit, LayerTimes, PointToPoint, Profile, Sample
from simgd.units import show_bytes, show_rate, show_seconds

MOST_PANELS = 12

#: Residuals within this many percent need no larger axis.
LEAST_RANGE = 5.0

#: More layers than these are named only here and there.
MOST_NAMES = 48

_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))

_MEASURED, _FITTED = style.LINES[0].color, style.LINES[1].color
_FORWARD, _BACKWARD = style.LINES[0].color, style.LINES[4].color

#: Lines of small print that a panel has room for.
_SMALL_LINES = 4

_PANEL_IN, _RESIDUALS_IN, _GAP_IN, _FOOT_IN, _HEAD_IN = 1.35, 0.5, 0.06, 0.42, 0.6
_LAYERS_IN, _NAMES_IN = 1.2, 0.85
_LEFT_IN, _BETWEEN_IN, _RIGHT_IN = 0.62, 0.66, 0.12


class Panel(NamedTuple):
    """What one panel shows: `line` is the fitted time by bytes, `model` the network's own, where there are any."""

    title: str
    about: tuple[str, ...]
    samples: tuple[Sample, ...]
    line: Fit | None
    model: Callable[[float], float] | None


def panels(profile: Profile) -> list[Panel]:
    """Return a panel for each fit, each curve and the times of messages, in the order of the profile."""
    found = []
    for fit in profile.fits:
        if fit.samples:
            model = None if fit.kind == "point_to_point" else _model(profile, fit.kind, fit)
            found.append(Panel(_title(fit), _about_fit(fit), fit.samples, fit, model))
    for curve in profile.curves:
        samples = tuple(Sample(nbytes=nbytes, seconds=seconds) for nbytes, seconds in curve.points)
        about = (_places(curve), _trust(curve), f"{len(samples)} sizes")
        found.append(Panel(_title(curve), about, samples, None, _model(profile, curve.kind, curve)))
    if profile.point_to_point is not None:
        found.append(_messages(profile.point_to_point))
    return found


def _messages(times: PointToPoint) -> Panel:
    samples = tuple(Sample(nbytes=nbytes, seconds=seconds) for nbytes, seconds in times.points)
    return Panel("message between 2 nodes", (_trust(times), f"{len(samples)} sizes"), samples, None, None)


def _trust(entry: Entry) -> str:
    return f"{entry.origin}, +-{100 * entry.uncertainty:.0f} %" if entry.uncertainty else entry.origin


def _title(entry: Fit | Curve) -> str:
    return entry.kind.replace("_", "-")


def _places(entry: Fit | Curve) -> str:
    return f"{entry.ranks} ranks on {'1 node' if entry.nodes == 1 else f'{entry.nodes} nodes'}"


def _about_fit(fit: Fit) -> tuple[str, ...]:
    rate = f", {show_rate(fit.link_bytes_per_s)} a link" if fit.link_bytes_per_s else ""
    repeats = sum(each.repeats for each in fit.samples)
    outliers = sum(each.outliers for each in fit.samples)
    errors = f"left out {_percent(fit.left_out)}, median {_percent(fit.left_out_median)}"
    return (
        f"{_places(fit)}{rate}",
        f"{_trust(fit)}; residual {_percent(fit.residual)}",
        errors if len(fit.samples) > 2 else "two sizes: none can be left out",
        f"{outliers} of {repeats} repeats are outliers" if repeats > len(fit.samples) else "one run of each size",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 1 else f"{100 * share:.0f} %"


def _model(profile: Profile, kind: CollectiveKind, entry: Fit | Curve) -> Callable[[float], float] | None:
    rate = entry.link_bytes_per_s if isinstance(entry, Fit) else 0.0
    bare = msgspec.structs.replace(profile, curves=(), fits=())
    network = Network(at_link_rate(profile.cluster, rate), bare)
    devices = network.spread(entry.ranks, entry.nodes)
    if devices is None or entry.ranks == 1:
        return None
    return lambda nbytes: network.demand(Call(kind, round(nbytes), entry.ranks, devices)).solo_s


def shows(profile: Profile) -> bool:
    """Say whether *profile* holds times that a figure could show."""
    return bool(profile.layers or panels(profile))


def draw(profile: Profile) -> Figure:
    """Return the page of a profile; raise FileError if it has no times to show."""
    found = panels(profile)
    layers = _layers(profile)
    if not found and not layers:
        raise FileError(f"figure: profile {profile.name!r} holds no times by size or by layer")
    shown = found[:MOST_PANELS]
    columns = min(3, max(1, len(shown)))
    rows = -(-len(shown) // columns)
    small, notes = _wrapped([_about(profile)]), _wrapped(_notes(profile, len(found) - len(shown)))
    legend_in = 0.2 if shown else 0.0
    top_in = 0.33 + LINE_IN * len(small) + legend_in
    row_in = _HEAD_IN + _PANEL_IN + _GAP_IN + _RESIDUALS_IN + _FOOT_IN
    layers_in = 0.4 + _LAYERS_IN + _NAMES_IN if layers else 0.0
    page = Page(height_in=top_in + rows * row_in + layers_in + LINE_IN * len(notes) + 0.12)
    page.titles(f"profile {profile.name}: {profile.description}" if profile.description else profile.name, small)
    width_in = (page.width_in - _LEFT_IN - _RIGHT_IN - 2 * _BETWEEN_IN) / 3
    if columns < 3:
        width_in = min(4.0, (page.width_in - _LEFT_IN - _RIGHT_IN - (columns - 1) * _BETWEEN_IN) / columns)
    for place, panel in enumerate(shown):
        row, column = divmod(place, columns)
        left_in, panel_in = _LEFT_IN + column * (width_in + _BETWEEN_IN), top_in + row * row_in + _HEAD_IN
        upper = page.axes(left_in, panel_in, width_in, _PANEL_IN)
        _draw_times(upper, panel)
        if residuals(panel):
            upper.xaxis.set_major_formatter(NullFormatter())
            lower = page.axes(left_in, panel_in + _PANEL_IN + _GAP_IN, width_in, _RESIDUALS_IN)
            _draw_residuals(lower, panel)
        else:
            upper.set_xlabel("message size", fontsize=7.0, labelpad=2)
    if shown:
        _add_legend(page, shown, 0.33 + LINE_IN * len(small))
    at_in = top_in + rows * row_in
    if layers:
        wide_in = page.width_in - _LEFT_IN - _RIGHT_IN
        _draw_layers(page.axes(_LEFT_IN, at_in + 0.3, wide_in, _LAYERS_IN), layers)
        at_in += layers_in
    for index, line in enumerate(notes):
        page.figure.text(*page.at(0.12, at_in + index * LINE_IN), line, fontsize=7.0, color=style.FAINT, va="top")
    return page.figure


def _wrapped(texts: Sequence[str]) -> list[str]:
    return [line for text in texts for line in textwrap.wrap(text, LINE_CHARACTERS)]


def _about(profile: Profile) -> str:
    made = profile.environment
    if made is None:
        return f"cluster {profile.cluster.name}"
    what = [f"cluster {profile.cluster.name}", made.library, made.date, f"commit {made.commit}" if made.commit else ""]
    return "; ".join(text for text in what if text)


def _notes(profile: Profile, left_out: int) -> list[str]:
    notes = [f"{left_out} more fits and curves are not shown"] if left_out else []
    if profile.interference:
        pairs = [
            f"{each.workload} {each.compute}-bound over {each.path} ".lstrip()
            + f"{each.compute_factor:.3g}x and {each.communication_factor:.3g}x ({each.origin})"
            for each in profile.interference
        ]
        notes.append(f"beside each other compute and communication take longer: {'; '.join(pairs)}")
    if profile.execution is not None:
        how = profile.execution
        looks = ", ".join(f"{count:g} at {show_bytes(nbytes)}" for nbytes, count in how.looks)
        needs = f" and needs looks of the host: {looks}" if looks else ""
        notes.append(f"a collective beside compute keeps {how.progress:.0%} of its speed{needs} ({how.origin})")
    if profile.communication_work is not None:
        work = profile.communication_work
        notes.append(
            f"the library's own work: {show_seconds(work.call_s)} a collective and "
            f"{show_seconds(1e6 * work.s_per_byte)} a MB ({work.origin})"
        )
    return notes


def _draw_times(axes: Axes, panel: Panel) -> None:
    drawn = [each for each in panel.samples if each.nbytes > 0]  # 0 bytes have no place on a logarithmic axis
    sizes, times = [each.nbytes for each in drawn], [each.seconds for each in drawn]
    dense = np.geomspace(sizes[0], sizes[-1], 200)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    if panel.model is not None:
        modelled = [panel.model(float(nbytes)) for nbytes in dense]
        axes.plot(dense, modelled, color=style.FAINT, linewidth=1.1, dashes=(4, 2), gid="model")
    if panel.line is None:
        axes.plot(sizes, times, color=_MEASURED, linewidth=0.8, gid="curve")
    else:
        for index, (start, end) in enumerate(_spans(panel.line, sizes[0], sizes[-1])):
            segment = panel.line.segments[index]
            within = np.geomspace(start, end, 100)
            fitted = segment.latency_s + within * segment.seconds_per_byte
            axes.plot(within, fitted, color=_FITTED, linewidth=1.3, gid=f"line {index}")
            if index:
                axes.axvline(start, color=_FITTED, linewidth=0.7, dashes=(1, 2), gid=f"switch {index}")
    _with_bars(axes, sizes, times, [(each.low_s, each.high_s) for each in drawn])
    low, high = axes.get_ylim()
    if panel.line is not None:  # room for where they switch
        axes.set_ylim(low, high * (high / low) ** 0.2)
        for index, (start, _) in enumerate(_spans(panel.line, sizes[0], sizes[-1])[1:]):
            axes.annotate(
                show_bytes(start),
                (start, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(-1.5, -1 - 6 * (index % 2)),
                textcoords="offset points",
                fontsize=5.5,
                color=_FITTED,
                ha="right",
                va="top",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.3},
            )
    _size_axis(axes, sizes)
    axes.set_ylabel("time", fontsize=7.0, labelpad=1)
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: show_seconds(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=6.5, length=2.5)
    axes.tick_params(which="minor", length=1.5)
    small = "\n".join([*panel.about, "", "", ""][:_SMALL_LINES])
    axes.set_title(small, fontsize=6.0, color=style.FAINT, loc="left", pad=3, linespacing=1.15)
    above = 3 + 7.1 * _SMALL_LINES
    axes.annotate(
        panel.title,
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, above),
        textcoords="offset points",
        fontsize=7.5,
        fontweight="bold",
        va="bottom",
    )


def _spans(fit: Fit, least: float, most: float) -> list[tuple[float, float]]:
    """Return from where to where each segment holds, within the sizes that were measured."""
    starts = [max(least, segment.from_bytes) for segment in fit.segments]
    return list(zip(starts, [*starts[1:], most], strict=True))


def _with_bars(
    axes: Axes, sizes: Sequence[float], values: Sequence[float], ends: Sequence[tuple[float, float]]
) -> None:
    axes.plot(
        sizes, values, "o", color=_MEASURED, markersize=2.6, markeredgewidth=0.4, markeredgecolor="white", gid="samples"
    )
    for nbytes, value, (low, high) in zip(sizes, values, ends, strict=True):
        if low < high:
            axes.plot([nbytes, nbytes], [min(low, value), max(high, value)], color=_MEASURED, linewidth=0.8, gid="bar")


class Residual(NamedTuple):
    """By how many percent the fit lies above a sample, and above both ends of the sample's interval."""

    nbytes: float
    percent: float
    low: float
    high: float


def residuals(panel: Panel) -> list[Residual]:
    """Return how far the fit lies above the samples, or the model where there is no fit; nothing without both."""
    time = panel.line.seconds if panel.line is not None else panel.model
    if time is None:
        return []
    found = []
    for each in panel.samples:
        if each.nbytes > 0:
            ends = (each.low_s, each.high_s) if each.low_s < each.high_s else (each.seconds, each.seconds)
            percent, high, low = (100 * (time(each.nbytes) / value - 1) for value in (each.seconds, *ends))
            found.append(Residual(each.nbytes, percent, low, high))
    return found


def _draw_residuals(axes: Axes, panel: Panel) -> None:
    found, fitted = residuals(panel), panel.line is not None
    sizes = [row[0] for row in found]
    off = [row[1] for row in found]
    axes.set_xscale("log", base=2)
    axes.axhline(0.0, color=_FITTED if fitted else style.FAINT, linewidth=0.9)
    reach = max(LEAST_RANGE, 1.5 * float(np.quantile(np.abs(off), 0.9)))
    low, high = (-reach, reach) if fitted else (min(-reach / 5, 1.2 * min(off)), max(reach / 5, 1.2 * max(off)))
    inside = [row for row in found if low <= row[1] <= high]
    _with_bars(axes, [row[0] for row in inside], [row[1] for row in inside], [row[2:] for row in inside])
    for nbytes, percent, _, _ in found:
        if not low <= percent <= high:
            edge, marker = (0.84 * high, "^") if percent > 0 else (0.84 * low, "v")
            axes.plot(nbytes, edge, marker, color=_MEASURED, markersize=3.2, gid="beyond")
            if abs(percent) == max(map(abs, off)):
                left = nbytes > (sizes[0] * sizes[-1]) ** 0.5
                axes.annotate(
                    f"{percent:+.0f} %",
                    (nbytes, edge),
                    xytext=(-3 if left else 3, 0),
                    textcoords="offset points",
                    fontsize=5.5,
                    ha="right" if left else "left",
                    va="center",
                )
    axes.set_ylim(low, high)
    axes.set_ylabel(f"{'fit' if fitted else 'model'} off\nby, %", fontsize=7.0, labelpad=1)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    _size_axis(axes, sizes)
    axes.tick_params(labelsize=6.5, length=2.5)
    axes.set_xlabel("message size", fontsize=7.0, labelpad=2)


def _size_axis(axes: Axes, sizes: Sequence[float]) -> None:
    low, high = sizes[0], sizes[-1]
    room = (high / low) ** 0.04 if high > low else 2.0
    axes.set_xlim(low / room, high * room)
    decades = [10.0**power for power in range(13) if low / room <= 10.0**power <= high * room]
    axes.xaxis.set_major_locator(FixedLocator(decades[:: -(-len(decades) // 5)] if len(decades) > 1 else [low, high]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: show_bytes(value)))


def _add_legend(page: Page, shown: Sequence[Panel], top_in: float) -> None:
    """Explain what the panels hold; the first axes lend the handles their kinds."""
    axes = page.figure.axes[0]
    bars = any(each.low_s < each.high_s for panel in shown for each in panel.samples)
    label = "median, 95 % interval" if bars else "measured or published"
    drawn: Any = {"color": _MEASURED, "markersize": 3}
    handles: list[Any] = [axes.errorbar([], [], yerr=[] if bars else None, fmt="o", label=label, **drawn)]
    if any(panel.line is not None for panel in shown):
        handles += axes.plot([], [], color=_FITTED, linewidth=1.3, label="fit, and where it switches")
    if any(panel.model is not None for panel in shown):
        handles += axes.plot([], [], color=style.FAINT, linewidth=1.1, dashes=(4, 2), label="model of the network")
    page.figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=page.at(0.12, top_in),
        ncols=3,
        fontsize=7.0,
        borderaxespad=0.0,
        columnspacing=1.4,
    )


def _layers(profile: Profile) -> list[LayerTimes]:
    """Return both directions of the workload that takes longest, forward first."""
    if not profile.layers:
        return []
    longest = max(profile.layers, key=lambda each: sum(each.seconds.values()))
    same = [
        each
        for each in profile.layers
        if (each.workload, each.batch, each.dtype, each.tokens)
        == (longest.workload, longest.batch, longest.dtype, longest.tokens)
    ]
    return sorted(same, key=lambda each: each.direction, reverse=True)


def _draw_layers(axes: Axes, layers: Sequence[LayerTimes]) -> None:
    names = list(dict.fromkeys(name for each in layers for name in each.seconds))
    places = np.arange(len(names))
    width = 0.8 / len(layers)
    longest_s = max(max(each.seconds.values()) for each in layers)
    unit_s, unit = next((each for each in _UNITS if longest_s >= each[0]), _UNITS[-1])
    for index, each in enumerate(layers):
        axes.bar(
            places + (index - (len(layers) - 1) / 2) * width,
            [each.seconds.get(name, 0.0) / unit_s for name in names],
            width,
            color=_FORWARD if each.direction == "forward" else _BACKWARD,
            label=f"{each.direction}, {show_seconds(sum(each.seconds.values()))} in all ({each.origin})",
        )
    first = layers[0]
    batch = f", batch {first.batch}" if first.batch else ""
    axes.set_title(f"{first.workload}{batch}: time of each layer", fontsize=7.5, fontweight="bold", loc="left")
    shown = names[:: -(-len(names) // MOST_NAMES)]
    axes.set_xticks(places[:: -(-len(names) // MOST_NAMES)], [_cut(name) for name in shown], rotation=90)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylabel(f"time, {unit}", fontsize=7.0)
    axes.tick_params(labelsize=6.0, length=2.0)
    axes.legend(fontsize=6.5, loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=2, borderaxespad=0.0)


def _cut(name: str) -> str:
    return name if len(name) <= 16 else f"{name[:6]}..{name[-8:]}"
