"""Draws predicted and measured bus bandwidth by size: `python -m studies.nccl_protocols.plot [OUT.png]`."""

import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from simgd.collectives import bus_bytes_per_s
from tests import curves
from tests.curves import KIB, MIB, RUNS

#: The runs drawn: all-reduces of eight GPUs on one node.
DRAWN = {
    "2.17-8-b200-all-reduce": ("8 B200", "#4c78a8"),
    "2.13-8-h100-dgxc": ("8 H100", "#54a24b"),
    "2.13-8-a100-ndv4": ("8 A100", "#e45756"),
    "2.0-8-v100": ("8 V100, one process", "#7f7f7f"),
}
FIRST = 4 * KIB


def draw(path: Path) -> None:
    """Write the figure."""
    figure, axes = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    for run in RUNS:
        if run.name not in DRAWN:
            continue
        name, colour = DRAWN[run.name]
        found = [error for error in curves.errors(run) if error.nbytes >= FIRST]
        sizes = [error.nbytes for error in found]
        seconds = [curves.measured(run)[nbytes] for nbytes in sizes]
        rates = [1e-9 * bus_bytes_per_s(run.kind, run.ranks, *each) for each in zip(sizes, seconds, strict=True)]
        predicted = [rate / (1 + error.relative) for rate, error in zip(rates, found, strict=True)]
        axes.plot(sizes, predicted, color=colour, label=name)
        axes.plot(sizes, rates, "o", color=colour, markersize=4, markerfacecolor="none")
        changes = [place for place, (a, b) in enumerate(pairwise(found), start=1) if a.algorithm != b.algorithm]
        axes.plot(
            [sizes[place] for place in changes], [predicted[place] for place in changes], "|", color=colour, ms=14
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = [4 * KIB, 64 * KIB, MIB, 16 * MIB, 256 * MIB, 4096 * MIB]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([curves.shown_bytes(tick) for tick in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(FixedLocator([0.1, 1, 10, 100, 1000]))
    axes.yaxis.set_major_formatter(FixedFormatter(["0.1", "1", "10", "100", "1000"]))
    axes.set_xlabel("size of the all-reduce")
    axes.set_ylabel("bus bandwidth, GB/s")
    axes.grid(alpha=0.3)
    axes.plot([], [], "o", color="black", markersize=4, markerfacecolor="none", label="measured by others")
    axes.plot([], [], color="black", label="predicted from published constants")
    axes.plot([], [], "|", color="black", markersize=14, label="another algorithm or protocol begins")
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: Sequence[str]) -> None:
    """Write the figure to a file, by default bandwidths.png here."""
    draw(Path(arguments[0]) if arguments else Path(__file__).parent / "bandwidths.png")


if __name__ == "__main__":
    main(sys.argv[1:])
