"""How fast ranks that differ are simulated: run `python tests/benchmarks/bench_ensemble.py`.

Prints the median wall time of `RUNS` runs of ResNet-50, one message a tensor, on dgx-h100:128, with slow-downs drawn
log-normally; and beside it the SimPy engine, once, on fewer ranks: it pays per event, so its time is carried over in
proportion to the ranks. Memory is the peak of the process so far.
"""

import resource
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from simgd import catalogue
from simgd.ensemble import ensemble
from simgd.job import job
from simgd.predict import Machine
from simgd.simulator import simulate

RUNS = 5

RANKS, FEWER_RANKS, ITERATIONS = 1024, 32, 10

SIGMA = 0.05


def wall_s(work: Callable[[], object]) -> float:
    """Return how long *work* takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    cluster = catalogue.cluster("dgx-h100:128")
    machine = Machine(cluster, catalogue.profile_for("dgx-h100:128", cluster, []))
    study = machine.study("layerwise:tensor", job(catalogue.workload("resnet50")), RANKS)
    slowdowns = np.random.default_rng(1).lognormal(0, SIGMA, (ITERATIONS, RANKS))
    beside = study.priced.timing
    print(f"{len(study.schedule.ops)} ops, {ITERATIONS} iterations, sigma {SIGMA}; ensemble: median of {RUNS}")
    print(f"{'engine':10} {'interference':12} {'ranks':>6} {'wall':>9} {'at 1024':>9} {'peak memory':>12}")

    def row(engine: str, timing: object, ranks: int, seconds: float) -> None:
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        which = "with" if timing is beside else "without"
        whole = seconds * RANKS / ranks
        print(f"{engine:10} {which:12} {ranks:6} {seconds:7.2f} s {whole:7.2f} s {peak_mib:8.0f} MiB")

    costs = (beside.without_interference(), beside)
    for timing in costs:
        work = partial(ensemble, study.schedule, study.derived, timing, slowdowns=slowdowns)
        row("ensemble", timing, RANKS, statistics.median(wall_s(work) for _ in range(RUNS)))
    fewer = partial(simulate, ranks=FEWER_RANKS, slowdowns=slowdowns[:, :FEWER_RANKS].tolist(), iterations=ITERATIONS)
    for timing in costs:
        row("simulator", timing, FEWER_RANKS, wall_s(partial(fewer, study.schedule, study.derived, timing)))


if __name__ == "__main__":
    main()
