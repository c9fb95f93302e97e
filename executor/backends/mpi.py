"""MPI through mpi4py: non-blocking collectives on host memory.

Model
    The ranks are those that the launcher started (mpiexec, srun); the communicator is a copy of MPI_COMM_WORLD. Buffers
    are numpy arrays, or torch tensors on the CPU, whose memory MPI is given. `done` is MPI_Test and `wait` MPI_Wait,
    which lets other Python threads run. Most libraries move data only inside such calls.

What it leaves out
    GPU buffers, and types without an MPI type (bfloat16). Some libraries end the process on errors inside a
    collective; then there is no BackendError, but their own message.
"""
# ruff: noqa: D102 (the protocol says what a backend's methods do)

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from executor.backends import part
from executor.backends.protocol import Buffer
from simgd.errors import BackendError
from simgd.run import BackendName

if TYPE_CHECKING:
    from mpi4py import MPI

# Where launchers say how many processes they started; a library that another launcher started sees one rank only.
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


def open_mpi(*, threads: bool = False) -> "Mpi":
    """Start MPI and return this rank's side; *threads* if several threads will call it at the same time."""
    try:
        import mpi4py
    except ImportError:
        raise BackendError(
            "backend mpi needs mpi4py and an MPI library; pip install 'simgd[mpich]' brings both, "
            "or 'simgd[mpi]' beside a cluster's own MPI"
        ) from None
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise BackendError(
            f"backend mpi: mpi4py {mpi4py.__version__} loads no MPI library ({_first_line(error)}); "
            "pip install 'simgd[mpich]' brings one, or load the cluster's MPI module"
        ) from None
    for variable in _SIZES:
        started = os.environ.get(variable, "")
        if started.isdigit() and int(started) != MPI.COMM_WORLD.size:
            raise BackendError(
                f"backend mpi: {variable} says {started} ranks, {_library(MPI)} sees {MPI.COMM_WORLD.size}; "
                "launcher and library are of different MPIs"
            )
    if threads and MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        raise BackendError(
            f"backend mpi: {_library(MPI)} was built without MPI_THREAD_MULTIPLE; "
            "progress by a thread needs it, progress none or poll:n does not"
        )
    return Mpi(MPI)


class Mpi:
    """One rank; see `protocol.Backend`."""

    name: BackendName = "mpi"
    device: Literal["cpu", "cuda"] = "cpu"

    def __init__(self, module: Any) -> None:
        self._module = module
        self._comm: MPI.Intracomm = module.COMM_WORLD.Dup()
        self.rank: int = self._comm.rank
        self.ranks: int = self._comm.size
        self.library: str = _library(module)

    def all_reduce(self, buffer: Buffer) -> "_Pending":
        array = self._array(buffer)
        with self.telling("all_reduce"):
            return _Pending(self, "all_reduce", self._comm.Iallreduce(self._module.IN_PLACE, array))

    def reduce_scatter(self, buffer: Buffer) -> "_Pending":
        array = self._array(buffer)
        mine = part(array, self.rank, self.ranks)
        total = np.empty_like(mine)
        with self.telling("reduce_scatter"):
            request = self._comm.Ireduce_scatter_block(array, total)
        return _Pending(self, "reduce_scatter", request, copy=(mine, total))

    def all_gather(self, buffer: Buffer) -> "_Pending":
        array = self._array(buffer)
        part(array, self.rank, self.ranks)
        with self.telling("all_gather"):
            return _Pending(self, "all_gather", self._comm.Iallgather(self._module.IN_PLACE, array))

    def broadcast(self, buffer: Buffer, root: int) -> "_Pending":
        array = self._array(buffer)
        with self.telling("broadcast"):
            return _Pending(self, "broadcast", self._comm.Ibcast(array, root))

    def send(self, buffer: Buffer, to: int) -> "_Pending":
        array = self._array(buffer)
        with self.telling("send"):
            return _Pending(self, "send", self._comm.Isend(array, to))

    def receive(self, buffer: Buffer, source: int) -> "_Pending":
        array = self._array(buffer)
        with self.telling("receive"):
            return _Pending(self, "receive", self._comm.Irecv(array, source))

    def exchange(self, value: object) -> list[Any]:
        with self.telling("exchange"):
            return self._comm.allgather(value)

    def barrier(self) -> None:
        with self.telling("barrier"):
            self._comm.Barrier()

    def clock_ns(self) -> int:
        return time.perf_counter_ns()

    def close(self) -> None:
        """Free the communicator; mpi4py ends MPI itself when Python ends."""
        with self.telling("close"):
            self._comm.Free()

    def abort(self, status: int) -> None:
        self._comm.Abort(status)

    @contextmanager
    def telling(self, call: str) -> Iterator[None]:
        """Turn MPI's errors into a line that names *call*."""
        try:
            yield
        except self._module.Exception as error:
            raise BackendError(f"backend mpi, rank {self.rank}: {call}: {_first_line(error)}") from None

    def _array(self, buffer: Buffer) -> np.ndarray[Any, Any]:
        """Return *buffer* as an array on the same memory."""
        # MPI sums what it has no type for as bytes, or not at all.
        if "bfloat16" in str(buffer.dtype):
            raise BackendError(
                f"backend mpi, rank {self.rank}: MPI has no bfloat16; send float32, or choose backend gloo or nccl"
            )
        return buffer if isinstance(buffer, np.ndarray) else buffer.detach().numpy()


class _Pending:
    """A request; *copy* is what remains to be done when it has ended: to where, from where."""

    def __init__(
        self,
        backend: Mpi,
        call: str,
        request: "MPI.Request",
        *,
        copy: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None = None,
    ) -> None:
        self._backend = backend
        self._call = call
        self._request = request
        self._copy = copy

    def done(self) -> bool:
        with self._backend.telling(self._call):
            ended = self._request.Test()
        if ended:
            self._finish()
        return ended

    def wait(self) -> None:
        with self._backend.telling(self._call):
            self._request.Wait()
        self._finish()

    def _finish(self) -> None:
        if self._copy is not None:
            to, source = self._copy
            to[:] = source
            self._copy = None


def _library(module: Any) -> str:
    """Return the library's name and version, and the file that was loaded."""
    version = _short(module.Get_library_version())
    try:
        mapped = {Path(line.split()[-1]) for line in Path("/proc/self/maps").read_text().splitlines() if ".so" in line}
    except OSError:
        return version
    # The C library is libmpi.so.12 or libmpich.so.12; libmpi_cxx.so.40 and the like sort after it.
    files = sorted((path.name, str(path)) for path in mapped if path.name.startswith("libmpi"))
    return f"{version} ({files[0][1]})" if files else version


def _short(version: str) -> str:
    r"""Return the name and the number from what MPI_Get_library_version says.

    >>> _short("MPICH Version:      5.0.2\nMPICH Release date: ...")
    'MPICH 5.0.2'
    >>> _short("Open MPI v4.1.6, package: Debian OpenMPI, ident: 4.1.6")
    'Open MPI v4.1.6'
    """
    lines = version.strip("\0\n ").splitlines() or ["unknown MPI"]
    return " ".join(re.sub(r"\bversion:", "", lines[0].split(",")[0], flags=re.IGNORECASE).split())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0].removesuffix(", error stack:")
