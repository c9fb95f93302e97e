"""Draws speed-ups: over one device and over the baseline, against ranks; bars where there is one number of ranks.

Model
    The band of a schedule is the 90 % interval of its speed-up over one device. Costs of one machine are wrong
    together, so the bands of two schedules say little about which is faster; the panel beside it, of ratios on equal
    costs, does.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from simgd.figures import style
from simgd.predict import Prediction

IDEAL = "ideal"

BAND = "90 % interval"

#: From this ratio of most to fewest ranks on, both axes are logarithmic.
_WIDE = 16


def names_of(predictions: Sequence[Prediction]) -> list[str]:
    """Return the schedules, in order."""
    return list(dict.fromkeys(each.schedule for each in predictions))


def ranks_of(predictions: Sequence[Prediction]) -> list[int]:
    """Return the numbers of ranks, in order."""
    return sorted({each.ranks for each in predictions})


def interval(each: Prediction) -> tuple[float, float]:
    """Return the low and the high end of the speed-up over one device."""
    return each.speedup_over_one_low, each.speedup_over_one_high


def draw(over_one: Axes, over_baseline: Axes, predictions: Sequence[Prediction]) -> None:
    """Draw both panels: curves, or bars for a single number of ranks."""
    if len(ranks_of(predictions)) == 1:
        _bars(over_one, over_baseline, predictions)
    else:
        _curves(over_one, over_baseline, predictions)


def _curves(over_one: Axes, over_baseline: Axes, predictions: Sequence[Prediction]) -> None:
    ranks = ranks_of(predictions)
    over_baseline.axhline(1.0, color=style.FAINT, linewidth=1.0, dashes=(1, 1.5), zorder=1)
    for index, name in enumerate(names_of(predictions)):
        its = sorted((each for each in predictions if each.schedule == name), key=lambda each: each.ranks)
        at = [each.ranks for each in its]
        line = style.line(index)
        drawn = {"color": line.color, "marker": line.marker, "linestyle": line.dashes, "markersize": 4.2}
        edge = {"markeredgecolor": "white", "markeredgewidth": 0.5, "label": name}
        ends = [interval(each) for each in its]
        low, high = [end[0] for end in ends], [end[1] for end in ends]
        over_one.fill_between(at, low, high, color=line.color, alpha=0.10, linewidth=0)
        over_one.plot(at, [each.speedup_over_one for each in its], **drawn, **edge)  # type: ignore[arg-type]
        over_baseline.plot(at, [each.speedup_over_baseline for each in its], **drawn, **edge)  # type: ignore[arg-type]
    over_one.plot(ranks, ranks, color=style.FAINT, linewidth=1.0, dashes=(1, 1.5), label=IDEAL, zorder=1)
    over_one.fill_between([], [], [], color=style.FAINT, alpha=0.25, linewidth=0, label=BAND)
    for axes in (over_one, over_baseline):
        _rank_axis(axes, ranks)
    if ranks[-1] >= _WIDE * ranks[0]:
        over_one.set_yscale("log", base=2)
        over_one.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    else:
        over_one.set_ylim(bottom=0)
    over_one.set_ylabel("speed-up over one device")
    over_baseline.set_ylabel(f"speed-up over {predictions[0].baseline}")
    _room_around_one(over_baseline)


def _rank_axis(axes: Axes, ranks: Sequence[int]) -> None:
    if ranks[-1] >= _WIDE * ranks[0]:
        axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator([float(count) for count in ranks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("ranks")
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)


def _room_around_one(axes: Axes) -> None:
    """Widen the axis to 4 % around 1 at least: differences below that should look as small as they are."""
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.96), max(high, 1.04))


def _bars(over_one: Axes, over_baseline: Axes, predictions: Sequence[Prediction]) -> None:
    places = list(range(len(predictions)))
    colors = [style.line(index).color for index in places]
    values = [each.speedup_over_one for each in predictions]
    ends = [interval(each) for each in predictions]
    errors = [
        [value - low for value, (low, _) in zip(values, ends, strict=True)],
        [high - value for value, (_, high) in zip(values, ends, strict=True)],
    ]
    over_one.barh(places, values, color=colors, height=0.66)
    halo = [withStroke(linewidth=2.0, foreground="white")]
    over_one.errorbar(
        values, places, xerr=errors, fmt="none", ecolor=style.INK, elinewidth=0.8, capsize=2.5, path_effects=halo
    )
    ratios = [each.speedup_over_baseline for each in predictions]
    over_baseline.barh(places, ratios, color=colors, height=0.66)
    count = predictions[0].ranks
    over_one.axvline(count, color=style.FAINT, linewidth=1.0, dashes=(1, 1.5))
    over_baseline.axvline(1.0, color=style.FAINT, linewidth=1.0, dashes=(1, 1.5))
    over_one.set_yticks(places, [each.schedule for each in predictions])
    over_baseline.set_yticks(places, [])
    for axes, numbers in ((over_one, values), (over_baseline, ratios)):
        axes.set_ylim(len(places) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        for place, number in zip(places, numbers, strict=True):
            axes.annotate(
                f"{number:.2f}",
                (0, place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
                color=style.on(colors[place]),
                fontweight="bold",
            )
    over_one.set_xlabel("speed-up over one device")
    over_baseline.set_xlabel(f"speed-up over {predictions[0].baseline}")
