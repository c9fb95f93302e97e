"""Runs every case of one link on the ranks of one start, in a random order, and keeps the runs in one file.

    mpiexec -n 2 ./shaped_link.sh run python measure.py --backend mpi --link 500mbit --start 0

The same command on each rank (for gloo with RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT); rank 0 writes. Schedules are
those that the committed calibrations plan. Every start is a process of its own; the first one's runs keep their traces.
"""

import argparse
import random
import sys

import numpy as np
from cases import HERE, LINKS, STEPS, Case, cases, machine, op_seconds, studied
from msgspec.structs import replace

from executor import measuring
from executor.assembling import About
from executor.plan import Plan, execution_of, usual_progress
from simgd import files
from simgd.run import Run, Runs

arguments = argparse.ArgumentParser()
arguments.add_argument("--backend", choices=["mpi", "gloo"], required=True)
arguments.add_argument("--compute", choices=["real", "emulated"], default="real")
arguments.add_argument("--link", choices=list(LINKS), required=True)
arguments.add_argument("--start", type=int, required=True)
given = arguments.parse_args()


class Nobody:
    """Takes a rank's notes."""

    def at(self, phase: object, op: int | None = None, iteration: int = 0) -> None: ...


def plan(case: Case) -> Plan:
    found = studied(predicting, case)
    return Plan(
        schedule=found.schedule,
        workload=case.job.workload,
        steps=STEPS,
        batch=case.job.batch,
        tokens=case.job.tokens,
        seed=given.start,
        optimizer="sgd",
        compute=given.compute,
        execution=execution_of(given.backend, None),
        progress=usual_progress(given.backend),
        trace_steps=3,
        op_seconds=op_seconds(found) if given.compute == "emulated" else None,
    )


progress = usual_progress(given.backend)
if given.backend == "mpi":
    from executor.backends.mpi import open_mpi

    backend = open_mpi(threads=progress.thread)
else:
    from executor.backends.distributed import open_distributed

    backend = open_distributed("gloo", timeout_s=60)
if given.compute == "real":
    import torch

    torch.set_num_threads(1)

predicting = machine(given.backend, given.compute, given.link)
order = list(cases())
random.Random(given.start).shuffle(order)
runs: list[Run] = []
about = About(launcher="measure.py", command=" ".join(["measure.py", *sys.argv[1:]]))
for case in order:
    made = measuring.run(plan(case), backend, Nobody(), lambda iteration, seconds: None, about)
    if made is not None:
        if given.start:
            empty = {name: [] for name in ("rank", "lane", "op", "iteration", "start_ps", "end_ps")}
            made = replace(made, trace=replace(made.trace, **empty))
        runs.append(made)
        print(f"{case.job.workload.name:>12} {case.schedule:24} {1e3 * np.median(made.slowest_s):8.2f} ms", flush=True)
if backend.rank == 0:
    out = HERE / "runs" / f"{given.backend}-{given.compute}-{given.link}-{given.start}.json.gz"
    out.parent.mkdir(exist_ok=True)
    files.write(out, Runs(runs=tuple(sorted(runs, key=lambda run: (run.workload.name, run.schedule.name)))))
backend.barrier()
backend.close()
