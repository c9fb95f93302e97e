"""The cases of this study, and the machine that the committed calibrations make of each link."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from simgd import catalogue
from simgd.job import Job, job
from simgd.predict import Machine, Studied
from simgd.units import PS_PER_S

HERE = Path(__file__).parent

LINKS = ("100mbit", "500mbit", "2gbit")

#: Links on which communication was probed; the one between them was not.
CALIBRATED = ("100mbit", "2gbit")

#: Small messages, or all schedules with buckets would equal `sync` on workloads of this size.
SCHEDULES = ("sync", "bucketed:256KiB", "layerwise", "async:1:256KiB", "async_layerwise:auto")

#: Sized so that an iteration takes 10 to 100 ms; each file says the batch.
WORKLOADS = ("convolution", "attention", "perceptron")

#: Iterations of a run, of which the first five are a warm-up: three starts give 210 to judge an interval by.
STEPS = 75

#: What is predicted and measured: backend, compute.
KINDS = (("mpi", "emulated"), ("mpi", "real"), ("gloo", "emulated"), ("gloo", "real"))


class Case(NamedTuple):
    """One workload under one schedule."""

    job: Job
    schedule: str


def cases() -> Iterator[Case]:
    for name in WORKLOADS:
        found = job(catalogue.workload(str(HERE / f"{name}.toml")))
        for schedule in SCHEDULES:
            yield Case(found, schedule)


def profiles(backend: str, compute: str) -> list[str]:
    """Return the calibrations that a prediction may use: those of the two links, local work measured with real ones."""
    found = [f"{backend}-real-{link}" for link in CALIBRATED]
    if compute == "emulated":
        found += [f"{backend}-emulated-{link}" for link in CALIBRATED]
    return [str(HERE / "profiles" / f"{name}.json") for name in found]


def machine(backend: str, compute: str, link: str) -> Machine:
    cluster = catalogue.cluster(str(HERE / f"link-{link}.toml"))
    return Machine(cluster, catalogue.profile_for("", cluster, profiles(backend, compute)))


def studied(machine: Machine, case: Case) -> Studied:
    return machine.study(case.schedule, case.job, 2)


def op_seconds(found: Studied) -> dict[str, float]:
    """Return what an emulated run spends on each op, as `simgd run --compute emulated` does."""
    seconds = {name: time.run_ps / PS_PER_S for name, time in found.priced.timing.ops.items()}
    seconds[found.schedule.ops[0].name] += found.prices.layers.rest_s
    return seconds
