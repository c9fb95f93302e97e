"""Describes what a rank runs on: hardware, kernel, versions; never a host's name."""

import importlib.metadata
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from simgd import __version__
from simgd.provenance import Environment, Host

_PACKAGES = ("numpy", "torch", "mpi4py")


def host() -> Host:
    """Return what this machine is."""
    return Host(
        processor=_first("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=float((_first("/proc/meminfo", "MemTotal") or "0").split()[0]) * 1024,
        kernel=f"{platform.system()} {platform.release()}",
        gpus=_gpus(),
    )


def described(ranks: Sequence[tuple[str, Host]], *, library: str, launcher: str, command: str) -> Environment:
    """Return on what *ranks*, each with its boot and its host, measure here and now.

    Ranks of one boot share a host. Of a library's file its name is kept, not the folders.
    """
    hosts: dict[str, Host] = {}
    for boot, host_of_boot in ranks:
        hosts.setdefault(boot, host_of_boot)
    boots = list(hosts)
    return Environment(
        hosts=tuple(hosts.values()),
        host_of_rank=[boots.index(boot) for boot, _ in ranks],
        library=re.sub(r"/\S*/", "", library),
        launcher=launcher,
        versions=versions(),
        settings=settings(),
        command=command,
        commit=commit(),
        date=time.strftime("%Y-%m-%d"),
    )


def versions() -> dict[str, str]:
    """Return the versions of Python, simgd and the libraries below it that are installed."""
    found = {"python": platform.python_version(), "simgd": __version__}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def settings() -> dict[str, str]:
    """Return what changes speed and arithmetic: threads, and TF32 on a GPU."""
    found = {
        name: os.environ[name]
        for name in ("OMP_NUM_THREADS", "NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE")
        if name in os.environ
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        found["intra-op threads"] = str(torch.get_num_threads())
        if torch.cuda.is_available():
            found["tf32 convolutions"] = str(torch.backends.cudnn.allow_tf32)
            found["tf32 products"] = str(torch.backends.cuda.matmul.allow_tf32)
    return found


def peak_memory_bytes(device: str) -> float:
    """Return the most memory that this process has held: of its GPU if it computes there, else of the process."""
    torch = sys.modules.get("torch")
    if device == "cuda" and torch is not None:
        return float(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def forget_peak_memory(device: str) -> None:
    """Let the peak of a GPU's memory be that of what follows."""
    torch = sys.modules.get("torch")
    if device == "cuda" and torch is not None:
        torch.cuda.reset_peak_memory_stats()


def commit() -> str:
    """Return the commit of a checkout of simgd, with "+" if files differ from it; "" where it is no checkout."""
    head = _git("rev-parse", "HEAD")
    return head[:12] + ("+" if head and _git("status", "--porcelain", "-uno") else "")


def _git(*arguments: str) -> str:
    """Return what git says of the folder that this file lies in; "" where it says nothing."""
    try:
        ran = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return ran.stdout.strip()


def _gpus() -> tuple[str, ...]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return ()
    return tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))


def _first(path: str, key: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
