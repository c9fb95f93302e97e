"""Pictures: speed-ups with timelines, timelines alone, the graph of a machine, times of a profile; png, pdf or svg.

Importing this package imports matplotlib, so only what draws imports it, inside a function.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from simgd.figures import fits, pages, style
from simgd.figures import topology as topologies
from simgd.figures import validation as validations
from simgd.figures.pages import WINDOW
from simgd.figures.strips import Labelled
from simgd.figures.style import kind_of_file
from simgd.predict import MOST_WARM_UP, Prediction, Studied, trace_of
from simgd.profile import Profile
from simgd.topology import Cluster
from simgd.trace import Trace
from simgd.validation import Validation

__all__ = [
    "kind_of_file",
    "profile",
    "profile_figure",
    "speedups",
    "speedups_figure",
    "timeline",
    "timeline_figure",
    "topology",
    "topology_figure",
    "traced",
    "validation",
    "validation_figure",
]


def speedups(predictions: Sequence[Prediction], traces: Labelled, path: str | Path) -> None:
    """Write the figure of a prediction: speed-ups against ranks, and timelines at the largest number of ranks."""
    kind_of_file(path)
    style.save(speedups_figure(predictions, traces), path)


def timeline(traces: Labelled, path: str | Path, *, window: float = WINDOW, rank: int = 0, title: str = "") -> None:
    """Write timelines alone, a strip for each (label, trace); *window* counts iterations of the slowest one."""
    kind_of_file(path)
    style.save(timeline_figure(traces, window=window, rank=rank, title=title), path)


def topology(
    cluster: Cluster, path: str | Path, *, loads: Mapping[tuple[str, str], float] | None = None, title: str = ""
) -> None:
    """Write the drawing of *cluster*: devices, switches, NICs and their links, and the network above equal nodes.

    *loads* colours links by the share of their rate in use, 0 to 1: keys are the names of the vertices that a direction
    leads from and to, (nic, "network") and back for the cable of a NIC.
    """
    kind_of_file(path)
    style.save(topology_figure(cluster, loads=loads, title=title), path)


def profile(found: Profile, path: str | Path) -> None:
    """Write what a profile knows of times: by message size with what was fitted to them, and by layer."""
    kind_of_file(path)
    style.save(profile_figure(found), path)


def speedups_figure(predictions: Sequence[Prediction], traces: Labelled) -> Figure:
    """Return what `speedups` writes; raise FileError if there is nothing, or not one job on one machine."""
    with style.paper():
        return pages.speedups(predictions, traces)


def timeline_figure(traces: Labelled, *, window: float = WINDOW, rank: int = 0, title: str = "") -> Figure:
    """Return what `timeline` writes; raise FileError if there is nothing."""
    with style.paper():
        return pages.timeline(traces, window=window, rank=rank, title=title)


def validation(found: Validation, traces: Labelled, path: str | Path) -> None:
    """Write predicted against measured times; *traces* are those of the worst case, or none."""
    kind_of_file(path)
    style.save(validation_figure(found, traces), path)


def topology_figure(
    cluster: Cluster, *, loads: Mapping[tuple[str, str], float] | None = None, title: str = ""
) -> Figure:
    """Return what `topology` writes."""
    with style.paper():
        return topologies.draw(cluster, loads=loads, title=title)


def validation_figure(found: Validation, traces: Labelled) -> Figure:
    """Return what `validation` writes."""
    with style.paper():
        return validations.draw(found, traces)


def profile_figure(found: Profile) -> Figure:
    """Return what `profile` writes; raise FileError if the profile holds no such times."""
    with style.paper():
        return fits.draw(found)


def traced(studies: Sequence[Studied], *, window: float = WINDOW) -> list[tuple[str, Trace]]:
    """Return a trace of each schedule, labelled with its name, long enough for a timeline of steady iterations.

    A fast schedule needs more iterations than a slow one to fill the same time.
    """
    slowest_s = max((study.period_s for study in studies), default=0.0)
    found = []
    for study in studies:
        shown = math.ceil(window * slowest_s / study.period_s)
        # `trace_of` cuts long warm-ups short, but a strip beside a steady period should show that period.
        late = max(0, study.steady.warm_up - MOST_WARM_UP)
        found.append((study.schedule.name, trace_of(study, iterations=late + shown + 3)))
    return found
