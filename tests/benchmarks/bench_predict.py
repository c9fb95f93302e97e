"""How fast predictions are: run `python tests/benchmarks/bench_predict.py`.

Prints the median of `RUNS` runs of each, beside its target. Wall times of a shared machine are noisy; the last column
is the ratio to a fixed piece of Python work timed in the same run, which travels better between machines.
"""

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from simgd import catalogue, fabrics
from simgd.job import job
from simgd.network import Call, Network
from simgd.predict import Machine, predict
from simgd.steady_state import EventGraph

RUNS = 7

COMMAND = "predict googlenet --on dgx1-p100 --ranks 1,2,4,8 --schedules sync,layerwise,async:1"


def median_s(work: Callable[[], object], runs: int = RUNS, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the median time of *work* by *clock* after one run that is not counted."""
    work()
    times = []
    for _ in range(runs):
        start = clock()
        work()
        times.append(clock() - start)
    return statistics.median(times)


def command(arguments: str) -> Callable[[], object]:
    """Return a run of the command line in a process of its own."""
    words = [sys.executable, "-m", "simgd", *arguments.split()]
    return lambda: subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def one_prediction(cluster: str, ranks: int) -> Callable[[], object]:
    """Return one prediction of ResNet-50, one message a tensor: plan, check, price, simulate, interval, memory."""
    workload = job(catalogue.workload("resnet50"))
    described = catalogue.cluster(cluster)
    profile = catalogue.profile_for(cluster, described, [])

    def work() -> object:
        machine = Machine(described, profile)
        return predict(machine, workload, [ranks], ["layerwise:tensor"], baseline="sync")

    return work


def cycle_ratio() -> Callable[[], object]:
    """Return the exact period of the same schedule without simulating."""
    described = catalogue.cluster("dgx1-p100")
    machine = Machine(described, catalogue.profile_for("dgx1-p100", described, []))
    study = machine.study("layerwise:tensor", job(catalogue.workload("resnet50")), 8)
    return lambda: EventGraph(study.schedule, study.derived, study.priced.timing).critical_cycle()


def rings() -> object:
    """Search the rings through the 8 GPUs of a DGX-1, each time with another rate of its links."""
    cluster = catalogue.cluster("dgx1-v100")
    return fabrics.fabric(cluster, fabrics.placement(cluster, 8), {"nvlink": 1e9 + time.perf_counter()})


def demands() -> object:
    """Ask for the time of 1,000 all-reduces of different sizes on 1,024 GPUs."""
    described = catalogue.cluster("dgx-h100:128")
    network = Network(described, catalogue.profile_for("dgx-h100:128", described, []))
    return [network.demand(Call("all_reduce", 1000 * size, 1024)) for size in range(1, 1001)]


def yardstick() -> object:
    """Spend a fixed amount of pure Python."""
    return sum(place * place for place in range(1_000_000))


def main() -> None:
    """Print the table."""
    unit_s = median_s(yardstick)
    rows = [
        ("simgd --help, a process", median_s(command("--help")), 0.3),
        (f"simgd {COMMAND}, a process", median_s(command(COMMAND)), 1.0),
        ("ResNet-50 layerwise:tensor, 8 devices, in process", median_s(one_prediction("dgx1-p100", 8)), 0.05),
        ("the same, 1,024 devices, ranks alike", median_s(one_prediction("dgx-h100:128", 1024)), 1.0),
        ("cycle ratio of the same, 8 devices", median_s(cycle_ratio()), None),
        ("ring search, 8 GPUs of a DGX-1 V100", median_s(rings), None),
        ("1,000 message sizes priced on 1,024 GPUs", median_s(demands), None),
        ("1,000,000 squares summed (yardstick)", unit_s, None),
    ]
    print(f"{'median of ' + str(RUNS):100} {'wall':>10} {'target':>8} {'x yardstick':>12}")
    for name, seconds, target in rows:
        goal = f"{target:g} s" if target else ""
        print(f"{name:100} {seconds * 1e3:7.1f} ms {goal:>8} {seconds / unit_s:12.2f}")
    print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
