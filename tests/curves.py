"""Curves of NCCL's collectives that others published, beside predictions from the graph and published constants alone.

`python -m tests.curves` prints the table by run, `python -m tests.curves sizes` each size with its error and algorithm,
`python -m tests.curves left-out` how well sizes left out of a curve are met by several rules. Of each size the smaller
of the times in place and out of place counts, since outliers are slow.

Not here: machines that are not shipped (T4 over sockets, GH200, V100 and A100 on PCIe boards of unknown wiring).
"""

import math
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import Literal, NamedTuple

import msgspec

from calibration import nccl_tests
from simgd import catalogue
from simgd.network import Call, Demand, Network
from simgd.profile import CollectiveKind, Curve

DATA = Path(__file__).parent / "data"
KIB, MIB = 2**10, 2**20

#: What rules the time: a process for each GPU of a node; one process that launches all of them, one after another (up
#: to 64 KiB that is the time); two nodes; sends and receives; a curve that a shipped profile holds, of unknown layout.
Group = Literal["a process a GPU", "one process", "two nodes", "sendrecv", "published"]

#: Ranges of sizes, first and last bytes.
RANGES: dict[str, tuple[float, float]] = {"64 KiB-4 MiB": (64 * KIB, 4 * MIB), "from 16 MiB": (16 * MIB, math.inf)}


@dataclass(frozen=True, slots=True)
class Run:
    """A captured run: its file's name without `nccl-tests-`, and sizes in `doubt`.

    In doubt are those that tests/data/SOURCES.md names, if the faster of the two columns stands out as well.
    """

    name: str
    cluster: str
    ranks: int
    group: Group
    kind: CollectiveKind = "all_reduce"
    doubt: tuple[int, ...] = ()

    @property
    def nodes(self) -> int:
        """Return the number of nodes."""
        return 2 if self.group == "two nodes" else 1


RUNS = (
    Run("2.13-8-a100-ndv4", "dgx-a100", 8, "a process a GPU"),
    Run("2.13-8-h100-dgxc", "dgx-h100", 8, "a process a GPU"),
    Run("2.13-mpirun-8-h100-p5", "dgx-h100", 8, "a process a GPU"),
    Run("2.17-8-b200-all-reduce", "dgx-b200", 8, "a process a GPU"),
    Run("2.17-8-b200-all-gather", "dgx-b200", 8, "a process a GPU", "all_gather"),
    Run("2.17-8-b200-reduce-scatter", "dgx-b200", 8, "a process a GPU", "reduce_scatter"),
    Run("2.0-8-a100-all-reduce", "dgx-a100", 8, "one process"),
    Run("2.0-8-a100-all-gather", "dgx-a100", 8, "one process", "all_gather"),
    Run("2.0-8-a100-reduce-scatter", "dgx-a100", 8, "one process", "reduce_scatter"),
    Run("2.0-8-a100-broadcast", "dgx-a100", 8, "one process", "broadcast"),
    Run("2.13-4-h100", "dgx-h100", 4, "one process"),
    Run("2.13-8-h100", "dgx-h100", 8, "one process"),
    Run("2.0-8-v100", "dgx1-v100", 8, "one process"),
    Run("2.0-12-v100", "dgx2-v100", 12, "one process"),
    Run("2.13-2x8-a100-ndv4", "dgx-a100:2", 16, "two nodes"),
    Run("2.13-2x2-h100", "dgx-h100:2", 4, "two nodes", doubt=(64 * KIB, 128 * KIB, 256 * KIB)),
    Run("2.18.3-2x8-h200", "dgx-h200:2", 16, "two nodes"),
    Run("2.13-2x1-h200", "dgx-h200:2", 2, "two nodes"),
    Run("2.17.6-2x8-b200", "dgx-b200:2", 16, "two nodes", doubt=(512 * KIB,)),
    Run("2.17-8-b200-sendrecv", "dgx-b200", 8, "sendrecv", "exchange"),
    Run("8 A100, published", "dgx-a100", 8, "published"),
)


class Error(NamedTuple):
    """The prediction for one size: (predicted - measured) / measured, and the algorithm."""

    nbytes: int
    relative: float
    algorithm: str


class Figures(NamedTuple):
    """Mean and worst of |error| in per cent, and of how many sizes; 0 of none."""

    mean: float
    worst: float
    sizes: int


def figures(errors: Iterable[float]) -> Figures:
    """Return the figures of relative errors."""
    found = [100 * abs(error) for error in errors]
    return Figures(mean(found), max(found), len(found)) if found else Figures(0.0, 0.0, 0)


@cache
def measured(run: Run) -> Mapping[int, float]:
    """Return seconds by bytes: the smaller of both columns."""
    if run.group == "published":
        (curve,) = catalogue.profile(run.cluster).curves
        return {int(size): seconds for size, seconds in curve.points}
    path = DATA / f"nccl-tests-{run.name}.txt"
    found = nccl_tests.parse(path.read_text(encoding="utf-8"), path.name, run.kind, run.ranks, run.nodes)
    assert (found.ranks, found.nodes) == (run.ranks, run.nodes)
    return {row.nbytes: min(row.out_of_place_s, row.in_place_s or row.out_of_place_s) for row in found.rows}


@cache
def network(cluster: str, algorithm: str = "", curve: Curve | None = None) -> Network:
    """Return a shipped cluster's network with nothing measured of collectives but *curve*."""
    profile = catalogue.profile(cluster.partition(":")[0])
    curves = () if curve is None else (curve,)
    profile = msgspec.structs.replace(profile, curves=curves, fits=())
    return Network(catalogue.cluster(cluster), profile, algorithm=algorithm)


def demand(run: Run, nbytes: int, algorithm: str = "", curve: Curve | None = None) -> Demand:
    """Return what the collective of *run* is predicted to demand."""
    found = network(run.cluster, algorithm, curve)
    return found.demand(Call(run.kind, nbytes, run.ranks, found.spread(run.ranks, run.nodes)))


def errors(run: Run, model: Network | None = None) -> list[Error]:
    """Return the errors by size of the shipped cluster's network, or of another *model*."""
    model = model or network(run.cluster)
    devices = model.spread(run.ranks, run.nodes)
    found = []
    for nbytes, seconds in measured(run).items():
        predicted = model.demand(Call(run.kind, nbytes, run.ranks, devices))
        found.append(Error(nbytes, predicted.solo_s / seconds - 1, predicted.algorithm))
    return found


def within(found: Iterable[Error], range_: str) -> Figures:
    """Return the figures of the sizes in a range of RANGES."""
    least, most = RANGES[range_]
    return figures(error.relative for error in found if least <= error.nbytes <= most)


# --- sizes left out of a measured curve -----------------------------------------------------------------------------

Points = Sequence[tuple[int, float]]


class Between(NamedTuple):
    """A size between two points of a curve: their bytes and seconds."""

    low: int
    low_s: float
    high: int
    high_s: float

    def log_share(self, nbytes: int) -> float:
        """Return the share of the way in log bytes."""
        return math.log(nbytes / self.low) / math.log(self.high / self.low)


def by_line(run: Run, at: Between, nbytes: int) -> float:
    """Return a time linear in bytes: a latency and a rate."""
    return at.low_s + (nbytes - at.low) / (at.high - at.low) * (at.high_s - at.low_s)


def by_logarithms(run: Run, at: Between, nbytes: int) -> float:
    """Return a time whose logarithm is linear in log bytes."""
    return at.low_s * math.exp(at.log_share(nbytes) * math.log(at.high_s / at.low_s))


def by_ratio(run: Run, at: Between, nbytes: int, algorithm: str = "") -> float:
    """Return the model's time times measured / modelled, which is linear in log bytes."""
    low, here, high = (demand(run, size, algorithm).solo_s for size in (at.low, nbytes, at.high))
    return here * (at.low_s / low + at.log_share(nbytes) * (at.high_s / high - at.low_s / low))


def by_ratio_of_one_algorithm(run: Run, at: Between, nbytes: int) -> float:
    """Return `by_ratio` with the algorithm that the model chooses in between for both points as well."""
    return by_ratio(run, at, nbytes, demand(run, nbytes).algorithm)


Rule = Callable[[Run, Between, int], float]

RULES: dict[str, Rule] = {
    "time linear in bytes": by_line,
    "log time linear in log bytes": by_logarithms,
    "ratio to the model linear in log bytes": by_ratio,
    "the same, algorithm held": by_ratio_of_one_algorithm,
}


def thinned(run: Run, gap: int = 2) -> list[tuple[Points, Points]]:
    """Return each *gap*-th size of a run as a curve, and those between them; once for each size to begin with.

    Without sizes in doubt; empty for runs of less than 10 sizes.
    """
    points = [(size, seconds) for size, seconds in measured(run).items() if size not in run.doubt]
    if len(points) < 10:
        return []
    curves = [points[first::gap] for first in range(gap)]
    return [(kept, [each for each in points if kept[0] < each < kept[-1] and each not in kept]) for kept in curves]


def as_curve(run: Run, points: Points) -> Curve:
    """Return points of a run as a curve for a profile."""
    return Curve(
        kind=run.kind,
        ranks=run.ranks,
        nodes=run.nodes,
        points=tuple((float(size), seconds) for size, seconds in points),
        origin="measured",
        source=run.name,
        uncertainty=nccl_tests.RUN_UNCERTAINTY,
    )


def left_out(run: Run, rule: Rule | None = None, gap: int = 2) -> list[float]:
    """Return the relative errors at sizes left out of the curve, by *rule*, or by a network that has the curve."""
    found = []
    for kept, others in thinned(run, gap):
        curve = as_curve(run, kept)
        for nbytes, seconds in others:
            place = bisect_right(kept, nbytes, key=lambda point: point[0])
            between = Between(*kept[place - 1], *kept[place])
            said = demand(run, nbytes, curve=curve).solo_s if rule is None else rule(run, between, nbytes)
            found.append(said / seconds - 1)
    return found


# --- tables -------------------------------------------------------------------------------------------------------


def shown_bytes(nbytes: int) -> str:
    """Return bytes in the largest unit that divides them."""
    for unit, name in ((2**30, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if nbytes % unit == 0:
            return f"{nbytes // unit} {name}"
    return f"{nbytes} B"


def shown(found: Figures) -> str:
    """Return mean and worst."""
    return f"{found.mean:.1f} / {found.worst:.0f}" if found.sizes else "-"


def switches(found: Sequence[Error]) -> str:
    """Return the algorithms in the order of sizes, each with the size that it begins at."""
    runs = [(algorithm, next(each).nbytes) for algorithm, each in groupby(found, key=lambda error: error.algorithm)]
    (first, _), *others = runs
    return ", ".join([first, *(f"{algorithm} from {shown_bytes(nbytes)}" for algorithm, nbytes in others)])


def table() -> list[str]:
    """Return the table by run, and by group, in Markdown."""
    lines = [f"| run | {' | '.join(f'{name}, mean / worst %' for name in RANGES)} | algorithms |", "|---|---|---|---|"]
    for group, runs in groupby(RUNS, key=lambda run: run.group):
        every: list[Error] = []
        for run in runs:
            found = errors(run)
            every += found
            cells = [shown(within(found, name)) for name in RANGES]
            lines.append(f"| {run.name}, {run.kind} | {' | '.join(cells)} | {switches(found)} |")
        lines.append(f"| **{group}** | {' | '.join(f'**{shown(within(every, name))}**' for name in RANGES)} | |")
    return lines


def left_out_table() -> list[str]:
    """Return how well each rule meets sizes left out, by run, in Markdown."""
    lines = [f"| run | {' | '.join(RULES)} |", f"|---|{'---|' * len(RULES)}"]
    every: dict[str, list[float]] = {name: [] for name in RULES}
    for run in RUNS:
        if not thinned(run):
            continue
        found = {name: left_out(run, rule) for name, rule in RULES.items()}
        lines.append(f"| {run.name}, {run.kind} | {' | '.join(shown(figures(each)) for each in found.values())} |")
        for name, each in found.items():
            every[name] += each
    lines.append(f"| **all** | {' | '.join(f'**{shown(figures(each))}**' for each in every.values())} |")
    for gap in (4, 8):
        found = {name: [error for run in RUNS for error in left_out(run, rule, gap)] for name, rule in RULES.items()}
        lines.append(f"| all, one size of {gap} kept | {' | '.join(shown(figures(each)) for each in found.values())} |")
    return lines


def main(arguments: Sequence[str]) -> None:
    """Print a table."""
    if "left-out" in arguments:
        print("\n".join(left_out_table()))
    elif "sizes" in arguments:
        for run in RUNS:
            print(run.name, run.kind)
            for nbytes, relative, algorithm in errors(run):
                print(f"{shown_bytes(nbytes):>10} {1e6 * measured(run)[nbytes]:12.1f} us {relative:+7.1%} {algorithm}")
    else:
        print("\n".join(table()))


if __name__ == "__main__":
    main(sys.argv[1:])
