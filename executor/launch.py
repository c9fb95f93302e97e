"""Who started this process as which rank, and how ranks are started and ended.

Model
    A launcher tells a process its rank by environment variables: torchrun and simgd itself by `RANK`, MPICH and
    Intel MPI (Hydra) by `PMI_RANK`, Open MPI by `OMPI_COMM_WORLD_RANK`, srun by `SLURM_PROCID`. `detect` believes the
    innermost: a launcher inside a SLURM job leaves that job's variables standing.

    `start` starts all ranks of a job on this host: under mpiexec for MPI, else one process each. Every process of the
    job carries the job's mark, is killed by the kernel when simgd dies, and is gone when the `Job` has ended.

Leaves out
    Hosts other than this one: an mpiexec that was told to use some ends their ranks, not we.
"""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, TypeAlias

from executor import processes
from executor.processes import Identity
from simgd.errors import BackendError

Launcher: TypeAlias = Literal["torchrun", "mpiexec", "Open MPI", "srun"]

#: Set in the environment of ranks that simgd itself started.
SUPERVISED = "SIMGD_SUPERVISED"

#: How long ranks, and then their launcher, may take to end when asked to.
GRACE_S = 1.0

#: The variables of each launcher: rank, ranks, and, whichever is set, the rank on this host.
_VARIABLES: dict[Launcher, tuple[str, str, tuple[str, ...]]] = {
    "torchrun": ("RANK", "WORLD_SIZE", ("LOCAL_RANK",)),
    "mpiexec": ("PMI_RANK", "PMI_SIZE", ("MPI_LOCALRANKID", "PMI_LOCAL_RANK", "SLURM_LOCALID")),
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", ("OMPI_COMM_WORLD_LOCAL_RANK",)),
    "srun": ("SLURM_PROCID", "SLURM_NTASKS", ("SLURM_LOCALID",)),
}

#: Steps from this number on are no srun steps: the batch script, an interactive shell, what SLURM itself runs.
_FIRST_SPECIAL_STEP = 0xFFFFFFF0

#: Ports below those that the kernel gives to outgoing connections.
_FIRST_PORT, _PORTS = 20_000, 10_000

_LAUNCHER_ERRORS = "launcher.stderr"

#: Runs in the new process: whoever starts a rank may die by SIGKILL, and the rank must not survive it.
_TRAMPOLINE = """
import os, sys
sys.path.insert(0, sys.argv[2])
from executor.processes import die_with_parent
die_with_parent()
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execvp(sys.argv[3], sys.argv[3:])
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A rank as its launcher describes it; `supervised` if simgd itself watches over it."""

    launcher: Launcher
    rank: int
    ranks: int
    local_rank: int
    supervised: bool


def detect(environ: Mapping[str, str]) -> Launched | None:
    """Return what the launcher says about this process, or None if nothing started it as a rank.

    Raises BackendError for variables that contradict each other.
    """
    for launcher, (rank_name, ranks_name, local_names) in _VARIABLES.items():
        if launcher == "srun" and not _is_srun_step(environ):
            continue
        rank, ranks, local = _number(environ, rank_name), _number(environ, ranks_name), _number(environ, *local_names)
        if rank is None and (ranks is None or launcher == "srun"):
            continue
        if rank is None or ranks is None or local is None:
            missing = rank_name if rank is None else ranks_name if ranks is None else local_names[0]
            raise BackendError(f"{launcher} sets {rank_name}, {ranks_name} and {local_names[0]}; {missing} is not set")
        if max(rank, local) >= ranks:
            raise BackendError(
                f"{rank_name} is {rank}, {local_names[0]} {local} and {ranks_name} {ranks};"
                " ranks count from 0 and stay below the number of ranks"
            )
        return Launched(launcher=launcher, rank=rank, ranks=ranks, local_rank=local, supervised=SUPERVISED in environ)
    return None


def torch_environment(launched: Launched, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables by which the ranks of torch.distributed find each other, whichever launcher it was.

    Raises BackendError if the address of rank 0 cannot be told.
    """
    found = {
        "RANK": str(launched.rank),
        "WORLD_SIZE": str(launched.ranks),
        "LOCAL_RANK": str(launched.local_rank),
        "MASTER_ADDR": environ.get("MASTER_ADDR", ""),
        "MASTER_PORT": environ.get("MASTER_PORT", ""),
    }
    if not (found["MASTER_ADDR"] and found["MASTER_PORT"]):
        meeting = _meeting(launched, environ)
        if meeting is None:
            raise BackendError(
                f"{launched.launcher} does not say where rank 0 of torch.distributed is; set MASTER_ADDR to its host"
                " and MASTER_PORT to a free port there"
            )
        found["MASTER_ADDR"] = found["MASTER_ADDR"] or meeting[0]
        found["MASTER_PORT"] = found["MASTER_PORT"] or str(_FIRST_PORT + meeting[1] % _PORTS)
    return found


def first_host(nodelist: str) -> str:
    """Return the first host of a SLURM list of hosts.

    >>> first_host("node[01-03,7],login"), first_host("rack[2,4]n[10-12]"), first_host("a,b")
    ('node01', 'rack2n10', 'a')
    """
    host = re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", nodelist).split(",")[0]
    if not host or not host.isascii() or "[" in host or "]" in host:
        raise BackendError(f"SLURM_STEP_NODELIST {nodelist[:60]!r} is no list of hosts; set MASTER_ADDR")
    return host


def _meeting(launched: Launched, environ: Mapping[str, str]) -> tuple[str, int] | None:
    """Return the host of rank 0 and a number that all ranks of this job share, and other jobs hardly."""
    if _number(environ, "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE") == launched.ranks:
        # all ranks are on this host, children of the same launcher
        return "127.0.0.1", os.getppid()
    job, step = _number(environ, "SLURM_JOB_ID"), _number(environ, "SLURM_STEP_ID")
    if job is None or step is None:
        return None
    # srun may have been called on a login node, so the nodes that the step runs on come first
    nodes = environ.get("SLURM_STEP_NODELIST")
    host = first_host(nodes) if nodes else environ.get("SLURM_LAUNCH_NODE_IPADDR")
    return (host, job * 31 + step) if host else None


def _is_srun_step(environ: Mapping[str, str]) -> bool:
    """Say whether this is one task of several that srun started; a shell in a step of one task is no rank."""
    step = _number(environ, "SLURM_STEP_ID")
    return step is not None and step < _FIRST_SPECIAL_STEP and environ.get("SLURM_NTASKS", "1") != "1"


def _number(environ: Mapping[str, str], *names: str) -> int | None:
    """Return the first of these variables that is set."""
    name = next((name for name in names if name in environ), None)
    if name is None:
        return None
    text = environ[name]
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise BackendError(f"{name} is {text[:40]!r}; it should be a whole number of 0 or more")
    return int(text)


def start(backend: Literal["mpi", "gloo", "nccl"], ranks: int, command: Sequence[str], folder: Path) -> "Job":
    """Start *ranks* processes of *command* on this host; the standard output of rank 0 is ours.

    Under MPI the launcher joins the standard output of all ranks, so that the others should print nothing.
    Raises BackendError if there is nothing to start them with.
    """
    return _Mpi(ranks, command, folder) if backend == "mpi" else _Direct(ranks, command, folder)


class Job:
    """Ranks that were started on this host; leaving it as a context ends them all.

    Their standard error goes to files in the folder, since what went wrong is to be said once.
    """

    #: The variables that hold the rank in the environment of a process; those without are launchers.
    rank_variables: tuple[str, ...]

    def __init__(self, ranks: int, folder: Path) -> None:
        self.ranks, self.folder = ranks, folder.resolve()
        self._mark = secrets.token_hex(8)
        self._children: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def over(self) -> bool:
        """Whether every process that we started has ended."""
        return None not in [child.poll() for child in self._children]

    @property
    def status(self) -> int:
        """The highest exit status so far, with 128 + N for signal N as shells have it."""
        codes = [child.returncode or 0 for child in self._children]
        return max(128 - code if code < 0 else code for code in codes)

    def appeared(self) -> dict[int, Identity]:
        """Return the processes of the ranks that were not returned before."""
        raise NotImplementedError

    def how(self, rank: int) -> str:
        """Return how *rank*, which has ended, did, as the end of a sentence."""
        raise NotImplementedError

    def errors(self, rank: int) -> str:
        """Return what *rank* wrote to standard error, or all ranks where that is not known apart."""
        file = self.folder / f"rank-{rank}.stderr"
        file = file if file.exists() else self.folder / _LAUNCHER_ERRORS
        return file.read_text(errors="replace") if file.exists() else ""

    def relay(self) -> None:
        """Pass on what the ranks have written to standard output, where that does not go there by itself."""

    def end(self) -> None:
        """End every process of this job: first the ranks, so that launchers collect theirs, then what is left."""
        for ranks_only in (True, False):
            # a stopped process takes a signal to end when it goes on
            for numbers in ((signal.SIGTERM, signal.SIGCONT), (signal.SIGKILL,)):
                for pid in self._living(ranks_only=ranks_only):
                    processes.send(pid, *numbers)
                self._wait_for_end(ranks_only=ranks_only)
            self._wait_for_end(ranks_only=False)

    def _wait_for_end(self, *, ranks_only: bool) -> None:
        """Return when the ranks, or all processes, have ended, or the grace is over."""
        deadline = time.monotonic() + GRACE_S
        while self._living(ranks_only=ranks_only) or not (ranks_only or self.over):
            if time.monotonic() > deadline:
                return
            time.sleep(0.01)

    def _living(self, *, ranks_only: bool) -> dict[int, int | None]:
        """Return the rank of each living process of this job, None for launchers, by process number."""
        found = {pid: _number(environ, *self.rank_variables) for pid, environ in processes.marked(self._mark).items()}
        return {pid: rank for pid, rank in found.items() if rank is not None or not ranks_only}

    def _start(
        self, command: Sequence[str], environ: Mapping[str, str], *, errors: str, out: int | None = None
    ) -> None:
        if shutil.which(command[0]) is None:
            raise BackendError(f"cannot start {command[0]}: there is no such program")
        package = str(Path(__file__).parent.parent)
        with (self.folder / errors).open("wb") as file:
            child = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _TRAMPOLINE, str(os.getpid()), package, *command],
                env={**environ, SUPERVISED: "1", processes.MARK: self._mark},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=file,
                start_new_session=True,
            )
        self._children.append(child)


class _Direct(Job):
    """A process for each rank, with the variables of torch.distributed."""

    rank_variables = ("RANK",)

    def __init__(self, ranks: int, command: Sequence[str], folder: Path) -> None:
        super().__init__(ranks, folder)
        environ = os.environ | {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        try:
            for rank in range(ranks):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                out = subprocess.DEVNULL if rank else None
                self._start(command, environ | own, errors=f"rank-{rank}.stderr", out=out)
        except BaseException:
            self.end()
            raise
        self._new = {rank: processes.identity(child.pid) for rank, child in enumerate(self._children)}

    def appeared(self) -> dict[int, Identity]:
        """See `Job.appeared`; they are our children."""
        found, self._new = self._new, {}
        return found

    def how(self, rank: int) -> str:
        """See `Job.how`; a parent knows all of it."""
        code = self._children[rank].wait()
        if code < 0:
            return f"was killed by signal {-code}"
        return _raised(self.errors(rank)) or f"ended with status {code}"


class _Mpi(Job):
    """All ranks under one mpiexec, which is told to leave the survivors of a dead rank to us, where it can be."""

    rank_variables = ("PMI_RANK", "OMPI_COMM_WORLD_RANK")

    def __init__(self, ranks: int, command: Sequence[str], folder: Path) -> None:
        super().__init__(ranks, folder)
        self._missing = list(range(ranks))
        mpiexec = _mpiexec()
        version = subprocess.run([mpiexec, "--version"], capture_output=True, text=True, check=False).stdout
        options: list[str] = []
        if "Open MPI" in version or "OpenRTE" in version:
            options = ["--allow-run-as-root", "--oversubscribe", "-x", SUPERVISED, "-x", processes.MARK]
        elif "HYDRA" in version or "Intel(R) MPI" in version:
            options = ["-disable-auto-cleanup", f"-errfile-pattern={self.folder}/rank-%r.stderr"]
        # a cluster that sets these for every process would make each of our ranks the same one
        environ = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        # what launchers themselves say about a dead rank goes to standard output too, but comes after the rank's end,
        # when nothing is passed on any more
        reading, written = os.pipe()
        os.set_blocking(reading, False)
        self._out = open(reading, "rb", buffering=0)  # noqa: SIM115  (closed by `end`)
        try:
            self._start([mpiexec, *options, "-n", str(ranks), *command], environ, errors=_LAUNCHER_ERRORS, out=written)
        finally:
            os.close(written)

    def relay(self) -> None:
        """See `Job.relay`; mpiexec joins the output of all ranks."""
        while chunk := self._out.read(1 << 16):
            sys.stdout.write(chunk.decode(errors="replace"))
        sys.stdout.flush()

    def end(self) -> None:
        """See `Job.end`."""
        super().end()
        self._out.close()

    def appeared(self) -> dict[int, Identity]:
        """See `Job.appeared`; the launcher starts them, and the first process that is told its rank is that rank."""
        found: dict[int, Identity] = {}
        for pid, rank in sorted(self._living(ranks_only=True).items()) if self._missing else ():
            if rank in self._missing:
                self._missing.remove(rank)
                found[rank] = processes.identity(pid)
        return found

    def how(self, rank: int) -> str:
        """See `Job.how`; only their parent, the launcher, knows by which signal."""
        return _raised(self.errors(rank)) or "died"


def _mpiexec() -> str:
    """Return the launcher of the MPI library that mpi4py loads: one installed beside Python comes before the site's."""
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        raise BackendError("there is no mpiexec to start MPI ranks with; install the site's MPI or `pip install mpich`")
    return found


def _raised(errors: str) -> str | None:
    r"""Return "raised " and the last line of the last traceback in *errors*, if there is one.

    >>> _raised("Traceback (most recent call last):\n  File ...\nValueError: no\nbye")
    'raised ValueError: no'
    """
    _, header, rest = errors.rpartition("Traceback (most recent call last):\n")
    last = next((line for line in rest.splitlines() if not line.startswith(" ")), None)
    return f"raised {last}" if header and last else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
