"""The cases of this study, and the machine that a calibration makes of the GPUs."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from simgd import catalogue
from simgd.job import Job, job

HERE = Path(__file__).parent

#: What joins the GPUs, and what NCCL is told for it.
PATHS = {"nvlink": {}, "hostmemory": {"NCCL_P2P_DISABLE": "1"}}

WORKLOADS = ("vgg16", "resnet50", "googlenet", "gpt2")

SCHEDULES = ("sync", "bucketed:25MiB", "layerwise", "layerwise:tensor", "async:1")

#: Iterations of a run: the first five are a warm-up, the last two are traced.
STEPS, TRACED = 26, 2


class Case(NamedTuple):
    """One workload under one schedule."""

    job: Job
    schedule: str


def cases() -> Iterator[Case]:
    for name in WORKLOADS:
        found = job(catalogue.workload(name))
        for schedule in SCHEDULES:
            yield Case(found, schedule)
