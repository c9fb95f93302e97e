"""How fast networks are predicted: run `python tests/benchmarks/bench_network.py`.

Prints the median of `RUNS` runs of each, beside its target. Wall times of a shared machine are noisy; so a ratio stands
beside them: to SimGrid, which simulates the same ring in the same run (`simgrid_all_reduce.py`; left out where it is
not installed, or with `--quick`), and to `bench_predict.yardstick`. `--growth PLOT.png` draws time and memory by the
number of nodes and prints no more.

Each prediction begins with the name of the cluster: networks keep what they found for a `Cluster`, so that a second one
on the same would take less. Peaks of memory are those of processes of their own; none reads less than this one had when
it started them, some 40 MiB.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import bench_flows
import simgrid_all_reduce
from bench_predict import median_s, yardstick

from simgd import catalogue
from simgd.flows import Flow, ends
from simgd.job import job
from simgd.network import Call, Network
from simgd.predict import Machine, predict
from simgd.profile import Library, PointToPoint, Profile
from simgd.schedules import DEFAULT_SCHEDULES
from simgd.topology import Cluster, Device, Interconnect, Link
from simgd.units import Bytes, FlopRate, Rate, Seconds

RUNS = 5

#: The ring: one rank on each node of a star. All parts have as many bytes: what is left over of 4,000,000 goes into a
#: second all-reduce in SimGrid's ring, which takes 4 % more.
RING_RANKS, RING_BYTES, CABLE_BYTES_PER_S, CABLE_S = 1024, 4 * 2**20, 12.5e9, 1e-6

#: Numbers of nodes of 8 GPUs each.
NODES = [2**power for power in range(12)]

#: 8 numbers of ranks, 25 batches and 5 schedules are 1,000 predictions.
RANKS = [2**power for power in range(8)]
BATCHES = [*range(8, 136, 8), *range(144, 257, 14)]

COMMANDS = {
    "--help": 0.3,
    "predict googlenet --on dgx1-p100 --ranks 1,2,4,8 --schedules sync,layerwise,async:1": 1.0,
    "collective all_reduce --on dgx1-p100 --ranks 2,3,4,5,6,7,8 --sizes 8B,64KiB,1MiB,32MiB,1GiB": None,
    "predict resnet50 --on dgx-h100:2048 --schedules sync,layerwise,async:1": None,
    "explain resnet50 --on dgx-h100:2048 --schedule layerwise": None,
    "predict resnet50 --on xeon-edr --ranks 1024 --schedules sync,layerwise,async:1": None,
    "collective all_reduce --on xeon-edr --ranks 1024 --sizes 4MB --algorithm ring --fidelity flows": None,
}


class Ran(NamedTuple):
    """Medians of a piece of work: its time, and the peak of its process's memory where it has one of its own."""

    seconds: float
    peak_mib: float | None = None


def timed(work: Callable[[], object], runs: int = RUNS) -> Ran:
    """Return the median wall time of *work* after one run that is not counted."""
    return Ran(median_s(work, runs))


def process(arguments: Sequence[str]) -> Ran:
    """Return the medians of a process of its own, after one run that is not counted."""
    found = []
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        child = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise subprocess.CalledProcessError(child.returncode, arguments)
        found.append((time.perf_counter() - start, used.ru_maxrss / 1024))
    seconds, peaks = zip(*found[1:], strict=True)
    return Ran(statistics.median(seconds), statistics.median(peaks))


def star(ranks: int) -> tuple[Cluster, Profile]:
    """Return one rank on each of many nodes around one switch, and MPI without software.

    A message pays two cables' latencies and its bytes at their rate, as on the platform that SimGrid is given.
    """
    source = "the model itself"
    cluster = Cluster(
        name="star",
        device=Device(name="any", kind="cpu", memory=Bytes(1e9), memory_rate=Rate(1e12), fp32=FlopRate(1e12)),
        vertices={"cpu": "device", "nic": "nic"},
        links=(Link(ends=("cpu", "nic"), kind="pcie", bandwidth=Rate(1e15), latency=Seconds(0.0)),),
        interconnect=Interconnect(
            kind="infiniband", bandwidth=Rate(CABLE_BYTES_PER_S), latency=Seconds(CABLE_S), ports=ranks
        ),
    )
    points = ((0.0, 2 * CABLE_S), (1e9, 2 * CABLE_S + 1e9 / CABLE_BYTES_PER_S))
    table = PointToPoint(origin="assumed", source=source, points=points)
    library = Library(origin="assumed", source=source, name="mpi")
    return cluster, Profile(name="star", cluster=cluster, point_to_point=table, library=library)


def ring_s(nbytes: int = RING_BYTES, ranks: int = RING_RANKS) -> float:
    """Return the time of an all-reduce in a ring, step by step and flow by flow; equal steps are solved once."""
    cluster, profile = star(ranks)
    network = Network(cluster, profile, fidelity="flows", algorithm="ring")
    return network.demand(Call("all_reduce", nbytes, ranks)).solo_s


def one_step() -> Callable[[], object]:
    """Return a solution of one of the ring's steps: a flow from every rank to the next, over both cables."""
    flows = [
        Flow(
            route=(rank, RING_RANKS + (rank + 1) % RING_RANKS),
            nbytes=RING_BYTES / RING_RANKS,
            latency_s=2 * CABLE_S,
        )
        for rank in range(RING_RANKS)
    ]
    return lambda: ends(flows, [CABLE_BYTES_PER_S] * 2 * RING_RANKS)


def tensors(nodes: int) -> Callable[[], object]:
    """Return a prediction of ResNet-50, one message a tensor (161), on DGX H100: with its baselines."""
    workload = job(catalogue.workload("resnet50"))
    name = f"dgx-h100:{nodes}"

    def work() -> object:
        cluster = catalogue.cluster(name)
        machine = Machine(cluster, catalogue.profile_for(name, cluster, []))
        return predict(machine, workload, [8 * nodes], ["layerwise:tensor"], baseline="sync")

    return work


def tensors_alone(nodes: int) -> Ran:
    """Return the same in a process of its own, which begins with nothing but Python."""
    line = [sys.executable, __file__, "--nodes", str(nodes)]
    ran = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True)
    return Ran(*json.loads(ran.stdout))


def thousand() -> object:
    """Make 1,000 predictions of ResNet-50 on 16 nodes: ranks, batches and the default schedules."""
    cluster = catalogue.cluster("dgx-h100:16")
    machine = Machine(cluster, catalogue.profile_for("dgx-h100:16", cluster, []))
    workload = catalogue.workload("resnet50")
    found = [
        prediction
        for batch in BATCHES
        for prediction in predict(machine, job(workload, batch=batch), RANKS, DEFAULT_SCHEDULES)
    ]
    assert len(found) == 1000
    return found


class Table:
    """Rows of what was timed, printed as they come."""

    def __init__(self) -> None:
        self.unit_s = timed(yardstick).seconds
        print(f"{'median of ' + str(RUNS):100} {'wall':>10} {'target':>8} {'x yardstick':>12} {'peak':>9}")
        self.add("1,000,000 squares summed (yardstick)", Ran(self.unit_s))

    def add(self, name: str, ran: Ran, target_s: float | None = None) -> None:
        """Print a row."""
        goal = f"{target_s:g} s" if target_s else ""
        peak = f"{ran.peak_mib:5.0f} MiB" if ran.peak_mib else ""
        took = f"{ran.seconds * 1e3:7.1f} ms" if ran.seconds < 10 else f"{ran.seconds:7.1f} s "
        print(f"{name:100} {took:>10} {goal:>8} {ran.seconds / self.unit_s:12.2f} {peak:>9}", flush=True)


def against_simgrid(ours: Ran) -> None:
    """Print SimGrid's time of the ring, and both simulated times."""
    if shutil.which("smpirun") is None:
        print("SimGrid: no smpirun here")
        return
    found = [
        simgrid_all_reduce.simulate("lr", RING_RANKS, RING_BYTES, bytes_per_s=CABLE_BYTES_PER_S, latency_s=CABLE_S)
        for _ in range(RUNS)
    ]
    wall_s = statistics.median(wall for wall, _ in found)
    print(
        f"SimGrid, the same ring, median of {RUNS}: {wall_s:.1f} s, {wall_s / ours.seconds:,.0f} times as long; it "
        f"says {found[0][1] * 1e3:.4f} ms, simgd {ring_s() * 1e3:.4f} ms"
    )


def flow_rates() -> None:
    """Print how many flows end in a second."""
    cases: list[tuple[str, bench_flows.Case, int]] = [
        ("10 steps of 1,000 flows", bench_flows.steps(1000, 10), 100_000),
        ("2 steps of 16,384 flows", bench_flows.steps(16384, 2), 100_000),
        ("all-to-all of 100 hosts at once", bench_flows.all_to_all(100), 100_000),
        ("lone events, 8 flows touched", bench_flows.lone(8, 4000), 10_000),
        ("lone events, 32 flows touched", bench_flows.lone(32, 4000), 10_000),
        ("lone events, 32 flows touched, ends and starts apart", bench_flows.lone(32, 4000, 1e-6), 10_000),
    ]
    print(f"{'flows that end, of processor time':60} {'ends/s':>10} {'target':>8}")
    for name, (flows, capacity), target in cases:
        seconds = bench_flows.median_s(lambda flows=flows, capacity=capacity: ends(flows, capacity))  # type: ignore[misc]
        print(f"{name:60} {len(flows) / seconds:10,.0f} {target:8,}", flush=True)


def growth(path: str) -> None:
    """Print and draw time and memory of a prediction by the number of nodes."""
    found = {nodes: tensors_alone(nodes) for nodes in NODES}
    for nodes, ran in found.items():
        print(f"{nodes:5} nodes {8 * nodes:6} GPUs {ran.seconds * 1e3:7.1f} ms {ran.peak_mib:5.0f} MiB")

    # after the processes, whose peaks would hold this one's memory
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    from simgd.figures import style

    with style.paper():
        figure = Figure(figsize=(6.0, 2.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        drawn = style.line(0)
        for axes, values, unit in (
            (left, [ran.seconds * 1e3 for ran in found.values()], "ms"),
            (right, [ran.peak_mib or 0.0 for ran in found.values()], "MiB"),
        ):
            axes.plot(NODES, values, color=drawn.color, marker=drawn.marker, markersize=4)
            # what would double with the nodes, through the last point
            linear = [values[-1] * nodes / NODES[-1] for nodes in NODES]
            shown = [(nodes, value) for nodes, value in zip(NODES, linear, strict=True) if value >= min(values) / 2]
            axes.plot(*zip(*shown, strict=True), color=style.FAINT, linewidth=1.0, dashes=(3, 2))
            axes.annotate("linear", shown[0], color=style.FAINT, xytext=(-2, 2), textcoords="offset points", ha="right")
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            ticks = [
                tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if min(values) / 2 < tick < max(values)
            ]
            axes.set_xticks(NODES[::3], [str(nodes) for nodes in NODES[::3]])
            axes.set_yticks(ticks, [str(tick) for tick in ticks])
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_minor_locator(NullLocator())
            axes.set_xlabel("nodes of 8 GPUs")
            axes.set_ylabel(unit)
        left.set_title("time of one prediction")
        right.set_title("peak memory of its process")
        style.save(figure, path)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Time predictions of networks.")
    parser.add_argument("--quick", action="store_true", help="without SimGrid and the 1,000 predictions")
    parser.add_argument("--growth", metavar="PLOT", help="only draw time and memory by the number of nodes")
    parser.add_argument("--nodes", type=int, help="only time a prediction on so many nodes; prints JSON")
    options = parser.parse_args()
    if options.nodes is not None:
        ran = timed(tensors(options.nodes))
        print(json.dumps([ran.seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
        return
    if options.growth is not None:
        growth(options.growth)
        return
    table = Table()
    for arguments, target_s in COMMANDS.items():
        table.add(f"simgd {arguments}", process(["-m", "simgd", *arguments.split()]), target_s)
    table.add("ResNet-50 layerwise:tensor, 8 GPUs", tensors_alone(1))
    table.add("the same, 1,024 GPUs", tensors_alone(128), 1.0)
    table.add("the same, 16,384 GPUs (and below 1 GiB)", tensors_alone(2048), 3.0)
    if not options.quick:
        table.add("1,000 predictions of ResNet-50 on 1 to 128 GPUs, one process", timed(thousand), 60.0)
    ring = timed(ring_s)
    table.add("ring all-reduce of 4 MiB, 1,024 ranks, flow by flow; its 2,046 equal steps solved once", ring, 0.5)
    table.add("one of these steps, 1,024 flows", timed(one_step()))
    flow_rates()
    if not options.quick:
        against_simgrid(ring)


if __name__ == "__main__":
    main()
