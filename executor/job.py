"""A task of all ranks from its command to its file: in this process, as one rank, or as the one that starts them.

Model
    `loopback` runs all ranks in this process. Otherwise a process that a launcher started is one rank, and one that
    nobody started starts the ranks, each with the very command line that it was given, and looks after them. Whoever
    is rank 0 writes the file; `OUT.parts/`, in which every rank leaves its progress, goes when the file is there.
"""

import importlib.util
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from executor import launch, measuring
from executor.assembling import About
from executor.backends.protocol import Backend
from executor.launch import Launched
from executor.parts import Part, Phase, clear, iterations
from executor.plan import Plan
from executor.supervise import give_up, supervise, watch
from simgd import files, perfetto
from simgd.errors import BackendError, FileError, RunError, SimgdError
from simgd.files import Document
from simgd.run import BackendName, Run

#: Told how many iterations, or other steps of the task, have ended.
Bar = Callable[[int], None]

#: What every rank does: given its side of the library, its note, whom to tell of each step and its seconds, and
#: provenance; the document on rank 0, None on the others.
Measure = Callable[[Backend, Part, Callable[[int, float], None], About], "Document | None"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What the ranks do together, and what rank 0 writes in the end.

    `ops` are the names by which a rank says where it is, `names` what a post mortem calls the whole. `threads` says
    that two threads of a rank may call the library at once, `torch` that the ranks compute with torch.
    """

    measure: Measure
    kind: type[Document]
    ops: Sequence[str]
    names: Mapping[str, str]
    threads: bool
    torch: bool


def training(plan: Plan) -> Task:
    """Return the task of running *plan*."""
    return Task(
        measure=lambda backend, part, finished, about: measuring.run(plan, backend, part, finished, about),
        kind=Run,
        ops=[op.name for op in plan.schedule.ops],
        names={"schedule": plan.schedule.name, "workload": plan.workload.name},
        threads=plan.progress.thread,
        torch=plan.compute == "real",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Where to run and what to write; `ranks` None leaves the number to the launcher. `say` prints a line."""

    backend: BackendName
    ranks: int | None
    out: Path
    trace: Path | None
    timeout_s: float
    arguments: Sequence[str]
    say: Callable[[str], None]
    bar: Bar

    @property
    def parts(self) -> Path:
        """The folder in which ranks leave their progress."""
        return self.out.with_name(self.out.name + ".parts")

    @property
    def about(self) -> About:
        """Where the numbers come from, without folders."""
        return About(
            command=" ".join(
                ["simgd", *(Path(each).name if Path(each).is_absolute() else each for each in self.arguments)]
            )
        )


def launched(order: Order) -> Launched | None:
    """Return what the launcher says; raise BackendError where it contradicts ``--ranks``."""
    if order.backend == "loopback":
        return None
    found = launch.detect(os.environ)
    if found is not None and order.ranks not in (None, found.ranks):
        raise BackendError(f"--ranks {order.ranks}: but {found.launcher} started {found.ranks} ranks; leave it out")
    return found


def run(task: Task, order: Order, found: Launched | None) -> Document | None:
    """Carry out *task* and return its document; None on ranks other than 0. Raises a SimgdError in one line."""
    if task.torch and importlib.util.find_spec("torch") is None:
        raise BackendError("training a network needs torch; pip install 'simgd[torch]', or take --compute emulated")
    if order.backend == "loopback":
        with _cleared(task, order):
            return _turns(task, order, order.ranks or 1)
    if found is not None:
        return _one_rank(task, order, found)
    if order.ranks is None:
        raise BackendError(f"backend {order.backend}: nobody started this process as a rank; give --ranks N")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // order.ranks)))
    command = [sys.executable, "-m", "simgd", *order.arguments]
    with _cleared(task, order):
        supervise(
            order.backend,
            order.ranks,
            command,
            parts=order.parts,
            timeout_s=order.timeout_s,
            out_name=order.out.name,
            progress=order.bar,
        )
    return files.read(order.out, task.kind)


@contextmanager
def _cleared(task: Task, order: Order) -> Iterator[None]:
    """Remove the parts in the end, unless a run failed and they hold iterations that nothing else does."""
    try:
        yield
    except (SimgdError, KeyboardInterrupt):
        if task.kind is not Run or not _hold_iterations(order.parts):
            shutil.rmtree(order.parts, ignore_errors=True)
        raise
    shutil.rmtree(order.parts, ignore_errors=True)


def _hold_iterations(parts: Path) -> bool:
    try:
        return any(iterations(parts).values())
    except FileError:
        return False


def _part(task: Task, order: Order, number: int, ranks: int) -> Part:
    return Part(order.parts, number, ranks, task.ops, task.names)


def _turns(task: Task, order: Order, ranks: int) -> Document:
    """Run all ranks in this process."""
    from executor.backends import loopback

    clear(order.parts)
    parts = [_part(task, order, number, ranks) for number in range(ranks)]
    swap = None
    if task.torch:
        import torch

        swap = (torch.get_rng_state, torch.set_rng_state)
        if ranks > 1 and "OMP_NUM_THREADS" not in os.environ:
            # Each rank's thread would have a pool of its own, and all of them spin on the same cores.
            torch.set_num_threads(1)

    def target(backend: Backend) -> Document | None:
        part = parts[backend.rank]

        def finished(iteration: int, seconds: float) -> None:
            part.iteration(iteration, seconds)
            if backend.rank == 0:
                order.bar(iteration + 1)

        try:
            made = task.measure(backend, part, finished, order.about)
        except SimgdError:
            raise
        except Exception as error:
            raise RunError(_raised(backend.rank, part, error)) from error
        part.at(Phase.FINISHED)
        return made

    made = loopback.run(ranks, target, swap=swap)[0]
    assert made is not None
    _write(made, order)
    if ranks > 1:
        order.say(f"loopback: {ranks} ranks take turns in this process; their times show no overlap")
    return made


def _one_rank(task: Task, order: Order, found: Launched) -> Document | None:
    part: Part | None = None
    backend: Backend | None = None
    try:
        if found.supervised:
            # What goes wrong while the library starts is told through the part.
            part = _part(task, order, found.rank, found.ranks)
        backend = _opened(order.backend, found, order.timeout_s, threads=task.threads)
        if backend.rank == 0:
            order.say(f"{_by(found)}: {backend.ranks} ranks; {backend.library}")
        if part is None:
            if backend.rank == 0:
                clear(order.parts)
            backend.barrier()
            part = _part(task, order, backend.rank, backend.ranks)
        backend.barrier()
        own, library = part, backend
        watch(own, found, timeout_s=order.timeout_s, out_name=order.out.name, abort=library.abort)

        def finished(iteration: int, seconds: float) -> None:
            own.iteration(iteration, seconds)
            if library.rank == 0 and not found.supervised:
                order.bar(iteration + 1)

        about = About(launcher=_by(found), command=order.about.command)
        made = task.measure(library, own, finished, about)
        if made is not None:
            _write(made, order)
        own.at(Phase.WAITING)
        library.barrier()
        own.at(Phase.FINISHED)
        library.close()
        if made is not None and not found.supervised:
            shutil.rmtree(order.parts, ignore_errors=True)
        return made
    except SimgdError as error:
        message = str(error)
    except Exception as error:
        message = _raised(found.rank, part, error)
    if part is None:
        message = f"rank {found.rank}: {message}"
        if backend is not None:
            # The others wait for this rank, and so would the library's own way out.
            print(f"simgd: {message}", file=sys.stderr, flush=True)
            backend.abort(2)
        raise BackendError(message)
    abort = backend.abort if backend is not None else None
    return give_up(part, found, message, out_name=order.out.name, abort=abort)


def _raised(number: int, part: Part | None, error: Exception) -> str:
    """Return one line about an error of the network or of a library; the whole of it goes into the parts."""
    place = "while starting"
    if part is not None:
        place = part.state().place
        (part.folder / f"rank-{number}.traceback").write_text(traceback.format_exc())
    return f"rank {number} raised {type(error).__name__} {place}: {' '.join(str(error).split())[:300]}"


def _by(found: Launched) -> str:
    """Name who started the ranks."""
    return "simgd" if found.supervised else found.launcher


def _opened(name: BackendName, found: Launched, timeout_s: float, *, threads: bool) -> Backend:
    """Return this rank's side of the library *name*; raise BackendError where launcher and library disagree."""
    if name == "mpi":
        from executor.backends.mpi import open_mpi

        backend: Backend = open_mpi(threads=threads)
    else:
        from executor.backends.distributed import open_distributed

        assert name != "loopback"
        os.environ.update(launch.torch_environment(found, os.environ))
        backend = open_distributed(name, timeout_s=timeout_s, device_index=found.local_rank)
    if (backend.rank, backend.ranks) != (found.rank, found.ranks):
        raise BackendError(
            f"{found.launcher} says rank {found.rank} of {found.ranks}, but the library says rank {backend.rank} of "
            f"{backend.ranks}: {backend.library}; start the ranks with the mpiexec of that library"
        )
    return backend


def _write(made: Document, order: Order) -> None:
    files.write(order.out, made)
    if order.trace is not None and isinstance(made, Run):
        perfetto.write(made.trace, order.trace)
