"""Starts a program as the ranks of a real backend, and ends it in any case."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[1]
MPIEXEC = Path(sys.executable).parent / "mpiexec"


def eventually(condition: Callable[[], Any], what: str, *, limit_s: float = 60) -> None:
    """Return once *condition* holds; the deadline only bounds a test that fails."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def run_ranks(backend: str, ranks: int, program: Sequence[str], *, limit_s: float = 60, warnings: str = "error") -> str:
    """Run the Python *program* with its arguments as *ranks* ranks of "mpi", "gloo" or "nccl"; return its output."""
    line = [sys.executable, "-W", warnings, *program]
    if backend == "mpi":
        return _run_together([([str(MPIEXEC), "-n", str(ranks), *line], {})], limit_s)
    shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    each = [(line, shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(ranks)]
    return _run_together(each, limit_s)


def _run_together(commands: Sequence[tuple[Sequence[str], Mapping[str, str]]], limit_s: float) -> str:
    """Run *commands*, each with its additions to the environment, and return their output; kill them at the limit."""
    with TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
        with log.open("w") as out:
            running = [
                subprocess.Popen(
                    command,
                    env=os.environ | {"PYTHONPATH": path} | more,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                for command, more in commands
            ]
        deadline = time.monotonic() + limit_s
        killed = ""
        for process in running:
            try:
                process.wait(max(0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                killed = f"killed after {limit_s} s; "
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return killed + log.read_text()[-3000:]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
