"""The lanes of a rank on host memory: one thread issues and runs everything but communication.

Model
    Host, compute, update and copies are one queue, the thread itself, in the order of the list; so an op need wait for
    nothing but collectives. The comm lane is `comm.CommLane`, which may have a thread of its own.

    The other interpreter of lanes, for streams of a GPU, is `streams`; `Lanes` is what both promise.
"""

from time import perf_counter_ns
from typing import Protocol

from executor.comm import CommLane, Start
from executor.parts import Phase
from executor.recording import Recorder
from simgd.instances import Instances

RUNNING, WAITING = Phase.RUNNING, Phase.WAITING


class Note(Protocol):
    """Told where the rank is; a `parts.Part` is one."""

    def at(self, phase: Phase, op: int | None = None, iteration: int = 0) -> None:
        """Note that the rank runs, or waits for, an op of an iteration."""


class Lanes(Protocol):
    """How ops of one rank are put on lanes, and how they wait for each other.

    `begun_ns` is the host's clock when the run began.
    """

    begun_ns: int

    def start(self, iterations: int) -> None:
        """Begin a run of *iterations* iterations."""

    def begin(self, iteration: int) -> None:
        """Return when *iteration* may be issued."""

    def enter(self, k: int, iteration: int) -> None:
        """Let op *k* wait for its dependencies; what the caller issues next belongs to it."""

    def leave(self, k: int, iteration: int) -> None:
        """Say that all of op *k* was issued."""

    def communicate(self, k: int, iteration: int, start: Start) -> None:
        """Put a collective on the comm lane."""

    def wait(self, k: int, iteration: int) -> None:
        """Let the host itself wait for what op *k*, a `Wait`, waits for."""

    def touch(self) -> None:
        """Say that the host passes by: a chance to poll."""

    def mark(self) -> None:
        """Note the end of an iteration."""

    def settle(self) -> None:
        """Return when every collective that was issued has ended: others may use the library then."""

    def drain(self) -> None:
        """End the run: return when everything has ended."""

    def iterations_s(self) -> list[float]:
        """Return the seconds of each iteration since `start`; known after `drain`."""

    def alone(self, start: Start) -> float:
        """Return the seconds of one collective with nothing beside it."""

    def close(self) -> None:
        """Give back threads."""


class HostLanes:
    """Lanes of a rank whose host computes; *comm* None means that communication is left out and costs nothing."""

    def __init__(self, instances: Instances, recorder: Recorder, note: Note, comm: CommLane | None) -> None:
        self._instances = instances
        self._recorder = recorder
        self._lane = recorder.lanes
        self._at = note.at
        self._comm = comm
        self._needs = [
            [(dep, lag) for dep, lag in instances.deps[k] if instances.collective[dep]] if comm is not None else []
            for k in range(instances.size)
        ]
        self._start_ns = self.begun_ns = 0
        if comm is not None and comm.polls:
            self.touch = comm.touch  # type: ignore[method-assign]

    def start(self, iterations: int) -> None:  # noqa: D102
        self._iterations = iterations
        self.begun_ns = perf_counter_ns()
        self._marks = [self.begun_ns]

    def begin(self, iteration: int) -> None:
        """Return at once: the host has run the iteration before."""
        self._at(RUNNING, None, iteration)

    def enter(self, k: int, iteration: int) -> None:
        """Look at the comm lane if it is polled, and wait for the collectives that op *k* needs."""
        comm = self._comm
        if comm is not None and comm.polls:
            comm.touch()
        for dep, lag in self._needs[k]:
            wanted = self._instances.awaited(dep, lag, iteration, self._iterations)
            if wanted >= 0 and comm is not None and not comm.has_ended(dep, wanted):
                self._at(WAITING, dep, wanted)
                comm.wait(dep, wanted)
        self._at(RUNNING, k, iteration)
        self._start_ns = perf_counter_ns()

    def leave(self, k: int, iteration: int) -> None:  # noqa: D102
        self._recorder.add((self._lane[k], k, iteration, self._start_ns, perf_counter_ns()))

    def communicate(self, k: int, iteration: int, start: Start) -> None:  # noqa: D102
        if self._comm is None:
            return
        self._at(RUNNING, k, iteration)
        begin = perf_counter_ns()
        self._comm.post(k, iteration, start)
        self._recorder.add(("host", k, iteration, begin, perf_counter_ns()))

    def wait(self, k: int, iteration: int) -> None:  # noqa: D102
        self.enter(k, iteration)
        self.leave(k, iteration)

    def touch(self) -> None:
        """Do nothing, unless the comm lane is polled."""

    def mark(self) -> None:  # noqa: D102
        self._marks.append(perf_counter_ns())
        self._recorder.next_iteration()

    def settle(self) -> None:  # noqa: D102
        if self._comm is not None:
            self._comm.settle()

    def drain(self) -> None:  # noqa: D102
        if self._comm is not None:
            self._comm.settle()
            self._comm.restart()
        self._recorder.next_iteration()

    def iterations_s(self) -> list[float]:  # noqa: D102
        return [(end - begin) * 1e-9 for begin, end in zip(self._marks, self._marks[1:], strict=False)]

    def alone(self, start: Start) -> float:  # noqa: D102
        begin = perf_counter_ns()
        start(0).wait()
        return (perf_counter_ns() - begin) * 1e-9

    def close(self) -> None:  # noqa: D102
        if self._comm is not None:
            self._comm.close()
