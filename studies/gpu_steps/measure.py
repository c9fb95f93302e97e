"""Runs every case on the GPUs of one start, in a random order, and keeps the runs in one file.

    torchrun --nproc-per-node 2 studies/gpu_steps/measure.py nvlink 0 FOLDER

The first start's runs keep their traces.
"""

import argparse
import os
import random
import sys
import time
from pathlib import Path

from cases import PATHS, STEPS, TRACED, cases
from msgspec.structs import replace

arguments = argparse.ArgumentParser()
arguments.add_argument("path", choices=list(PATHS))
arguments.add_argument("start", type=int)
arguments.add_argument("out", type=Path)
arguments.add_argument("only", nargs="*", help="workloads")
given = arguments.parse_args()
os.environ.update(PATHS[given.path])

from executor import measuring  # noqa: E402
from executor.assembling import About  # noqa: E402
from executor.backends.distributed import open_distributed  # noqa: E402
from executor.comm import Progress  # noqa: E402
from executor.plan import Plan, execution_of  # noqa: E402
from simgd import files  # noqa: E402
from simgd.run import Run, Runs  # noqa: E402
from simgd.schedules import build, parse  # noqa: E402


class Nobody:
    """Takes a rank's notes."""

    def at(self, phase: object, op: int | None = None, iteration: int = 0) -> None: ...


backend = open_distributed("nccl", timeout_s=120)
order = [case for case in cases() if not given.only or case.job.workload.name in given.only]
random.Random(given.start).shuffle(order)
about = About(launcher="torchrun", command=" ".join(["measure.py", *sys.argv[1:]]))
runs: list[Run] = []
for case in order:
    workload = case.job.workload
    begin = time.perf_counter()
    plan = Plan(
        schedule=build(parse(case.schedule), workload),
        workload=workload,
        steps=STEPS,
        batch=case.job.batch,
        tokens=case.job.tokens,
        seed=given.start,
        optimizer=case.job.optimizer,
        compute="real",
        execution=execution_of("nccl", None),
        progress=Progress(),
        trace_steps=TRACED,
    )
    made = measuring.run(plan, backend, Nobody(), lambda iteration, seconds: None, about)
    if made is not None:
        took = time.perf_counter() - begin
        if given.start:
            empty = {name: [] for name in ("rank", "lane", "op", "iteration", "start_ps", "end_ps")}
            made = replace(made, trace=replace(made.trace, **empty))
        runs.append(made)
        ms = 1e3 * made.iteration.median
        print(f"{workload.name:>10} {case.schedule:18} {ms:8.2f} ms, alone {1e3 * made.compute_s:8.2f}  [{took:.0f} s]")
if backend.rank == 0:
    out = given.out / f"{given.path}-{given.start}.json.gz"
    files.write(out, Runs(runs=tuple(sorted(runs, key=lambda run: (run.workload.name, run.schedule.name)))))
backend.barrier()
backend.close()
sys.stdout.flush()
os._exit(0)
