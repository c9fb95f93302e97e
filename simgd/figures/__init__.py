"""Pictures: speed-ups with timelines, timelines alone, and the graph of a machine; png, pdf or svg by the name.

Importing this package imports matplotlib, so only what draws imports it, inside a function.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simgd.errors import FileError
from simgd.figures import curves, machines, style, timelines
from simgd.figures.strips import Labelled, Strip, strips
from simgd.figures.style import kind_of_file
from simgd.predict import Prediction, Studied
from simgd.profile import Origin, weakest
from simgd.simulator import simulate
from simgd.topology import Cluster
from simgd.trace import Trace

__all__ = [
    "graph",
    "graph_figure",
    "kind_of_file",
    "speedups",
    "speedups_figure",
    "timeline",
    "timeline_figure",
    "traced",
]

#: Iterations of the slowest schedule that a timeline spans; a little more than two, so that the second one's end and
#: what follows it are seen.
WINDOW = 2.08

_ROW_IN = 0.135
_LEFT_IN = 0.72
_RIGHT_IN = 0.98
_TOP_PANELS_IN = 2.15


def speedups(predictions: Sequence[Prediction], traces: Labelled, path: str | Path) -> None:
    """Write the figure of a prediction: speed-ups against ranks, and timelines at the largest number of ranks."""
    kind_of_file(path)
    with style.paper():
        style.save(speedups_figure(predictions, traces), path)


def timeline(traces: Labelled, path: str | Path, *, window: float = WINDOW, rank: int = 0, title: str = "") -> None:
    """Write timelines alone, a strip for each (label, trace); *window* counts iterations of the slowest one."""
    kind_of_file(path)
    with style.paper():
        style.save(timeline_figure(traces, window=window, rank=rank, title=title), path)


def graph(cluster: Cluster, path: str | Path) -> None:
    """Write the drawing of one node of *cluster*: devices, switches, NICs and the links between them."""
    kind_of_file(path)
    with style.paper():
        style.save(graph_figure(cluster), path)


def traced(studies: Sequence[Studied], *, window: float = WINDOW) -> list[tuple[str, Trace]]:
    """Return a trace of each schedule, labelled with its name, long enough for a timeline of steady iterations."""
    slowest_s = max(study.period_s for study in studies)
    found = []
    for study in studies:
        shown = math.ceil(window * slowest_s / study.period_s)
        trace = simulate(
            study.schedule,
            study.derived,
            study.priced.timing,
            iterations=study.steady.warm_up + shown + 2,
            cluster=study.prices.cluster.name,
        )
        found.append((study.schedule.name, trace))
    return found


def speedups_figure(predictions: Sequence[Prediction], traces: Labelled) -> Figure:
    """Return the figure of a prediction; raise FileError if there is none, or they are not of one job and machine."""
    if not predictions:
        raise FileError("figure: there is no prediction to draw")
    names = curves.names_of(predictions)
    found = strips(traces, window=WINDOW) if traces else []
    single = len(curves.ranks_of(predictions)) == 1
    legend_in = 0.0 if single else 0.19 * math.ceil((len(names) + 1) / _LEGEND_COLUMNS)
    panels_in = 0.22 * len(predictions) + 0.12 if single else _TOP_PANELS_IN
    strips_in = timelines.height(found) * _ROW_IN if found else 0.0
    below_in = 0.48 + (strips_in + 0.92 if found else 0.0)
    page = _Page(height_in=0.56 + legend_in + panels_in + below_in)
    _write_titles(page, _title(predictions), _origins(predictions))
    if single:
        name_in = 0.15 + 0.075 * max(map(len, names))
        over_one = page.axes(name_in, 0.52, 0.56 * (page.width_in - name_in - 0.5), panels_in)
        left_in = name_in + 0.56 * (page.width_in - name_in - 0.5) + 0.3
        over_baseline = page.axes(left_in, 0.52, page.width_in - left_in - 0.2, panels_in)
    else:
        over_one = page.axes(0.55, 0.56 + legend_in, 2.85, panels_in)
        over_baseline = page.axes(4.15, 0.56 + legend_in, 2.85, panels_in)
    curves.draw(over_one, over_baseline, predictions)
    if not single:
        handles, labels = over_one.get_legend_handles_labels()
        order = [*range(1, len(labels)), 0]
        page.figure.legend(
            [handles[place] for place in order],
            [labels[place] for place in order],
            loc="upper left",
            bbox_to_anchor=(0.48 / page.width_in, 1 - 0.44 / page.height_in),
            ncols=min(_LEGEND_COLUMNS, len(labels)),
            columnspacing=1.4,
            handlelength=2.0,
        )
    if found:
        colors = [style.line(names.index(strip.label)).color if strip.label in names else style.INK for strip in found]
        _add_strips(page, found, page.height_in - 0.42 - strips_in, strips_in, WINDOW, colors)
    return page.figure


def timeline_figure(traces: Labelled, *, window: float = WINDOW, rank: int = 0, title: str = "") -> Figure:
    """Return timelines alone; raise FileError if there is none."""
    if not traces:
        raise FileError("timeline: there is no trace to draw")
    found = strips(traces, window=window, rank=rank)
    strips_in = timelines.height(found) * _ROW_IN
    above_in = 0.3 + (0.2 if title else 0.0)
    page = _Page(height_in=above_in + strips_in + 0.45)
    if title:
        _write_titles(page, title, "")
    _add_strips(page, found, above_in, strips_in, window, ())
    return page.figure


def graph_figure(cluster: Cluster) -> Figure:
    """Return the drawing of one node of *cluster*."""
    return machines.draw(cluster)


_LEGEND_COLUMNS = 5


class _Page:
    """A figure measured in inches from its upper left corner."""

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

    def text(self, left_in: float, top_in: float, text: str, *, size: float, bold: bool = False) -> None:
        """Write one line."""
        self.figure.text(
            left_in / self.width_in,
            1 - top_in / self.height_in,
            text,
            fontsize=size,
            fontweight="bold" if bold else "normal",
            color=style.INK if bold else style.FAINT,
            va="top",
        )


def _write_titles(page: _Page, title: str, rests_on: str) -> None:
    page.text(0.12, 0.1, title, size=9.5, bold=True)
    page.text(0.12, 0.29, rests_on, size=7.0)


def _add_strips(
    page: _Page, found: Sequence[Strip], top_in: float, height_in: float, window: float, colors: Sequence[str]
) -> None:
    axes = page.axes(_LEFT_IN, top_in, page.width_in - _LEFT_IN - _RIGHT_IN, height_in)
    window_s = window * max(strip.period_s for strip in found)
    timelines.draw(axes, found, window_s=window_s, colors=colors)


def _title(predictions: Sequence[Prediction]) -> str:
    jobs = {(each.workload, each.cluster) for each in predictions}
    if len(jobs) > 1:
        raise FileError(f"figure: shows one workload on one machine; it was given {len(jobs)}")
    ((workload, cluster),) = jobs
    batches = {each.batch_per_rank for each in predictions}
    if len(batches) == 1:
        batch = f"batch {batches.pop()} a rank"
    else:
        batch = f"batch {predictions[0].batch_per_rank * predictions[0].ranks} over all ranks"
    ranks = curves.ranks_of(predictions)
    return f"{workload} on {cluster}, {batch}" + (f", {_count(ranks[0])}" if len(ranks) == 1 else "")


def _count(ranks: int) -> str:
    return "1 rank" if ranks == 1 else f"{ranks} ranks"


def _origins(predictions: Sequence[Prediction]) -> str:
    """Return on what the numbers rest: the parts by their weakest origin over all predictions."""
    parts: dict[str, Origin] = {}
    for each in predictions:
        for part, origin in each.origins.items():
            parts[part] = weakest(origin, parts.get(part, origin))
    said = [
        f"{', '.join(part for part in parts if parts[part] == origin)} {origin}"
        for origin in get_args(Origin)
        if origin in parts.values()
    ]
    profile = predictions[0].profile
    beyond = "; partly extrapolated" if any(each.extrapolated for each in predictions) else ""
    return f"Predicted by simgd; profile {profile}: {'; '.join(said)}{beyond}"
