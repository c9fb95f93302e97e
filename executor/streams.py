"""The lanes of a rank on a GPU: a CUDA stream for each, and events for the edges between them.

Model
    The host issues ops in list order and waits for nothing but the iteration that is `run_ahead` behind. An op whose
    dependency runs on another stream makes its own stream wait for that op's event; on one stream order is enough.
    Collectives go through the comm lane's stream: the library's own stream waits for it and it for the library's.

    Iterations are timed by one event each. In the last iterations, the traced ones, the host's time of issuing each op
    is noted, and every op has two timing events more, unless only the host is of interest; before, no op is timed,
    since events can break overlap.

Known not to hold
    Device times are laid on the host's clock by one event whose end the host saw: right to about 10 us.
"""

from time import perf_counter_ns

import torch

from executor.comm import Start
from executor.lanes import RUNNING, WAITING, Note
from executor.recording import Recorder
from simgd.instances import Instances
from simgd.schedule import Lane


class StreamLanes:
    """Lanes of a rank whose GPU computes; without *communicating* collectives are left out and cost nothing.

    Traced iterations are the last *traced* ones; without *events* they hold what the host does, and nothing else.
    """

    def __init__(
        self,
        instances: Instances,
        recorder: Recorder,
        note: Note,
        *,
        run_ahead: int,
        traced: int,
        communicating: bool = True,
        events: bool = True,
    ) -> None:
        self._instances = instances
        self._recorder = recorder
        self._at = note.at
        self._run_ahead = run_ahead
        self._traced = traced
        self._with_events = events
        self._communicating = communicating
        self._lane = recorder.lanes
        self._compute = torch.cuda.current_stream()
        self._streams: dict[Lane, torch.cuda.Stream] = {"compute": self._compute, "host": self._compute}
        for lane in self._lane:
            if lane not in self._streams:
                self._streams[lane] = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._stream = [self._streams[lane] for lane in self._lane]
        silent = set() if communicating else {k for k in range(instances.size) if instances.collective[k]}
        self._needs = [
            [(dep, lag) for dep, lag in instances.deps[k] if self._lane[dep] != self._lane[k] and dep not in silent]
            for k in range(instances.size)
        ]
        longest = [0] * instances.size
        for needs in self._needs:
            for dep, lag in needs:
                longest[dep] = max(longest[dep], lag + 1)
        self._events = [[_event() for _ in range(count)] for count in longest]
        self._ends = [_event() for _ in range(run_ahead + 1)]

    def start(self, iterations: int) -> None:  # noqa: D102
        self._iterations = iterations
        self._trace_from = iterations - self._traced
        self._timed: list[tuple[int, int, torch.cuda.Event, torch.cuda.Event]] = []
        self._begun: dict[int, tuple[int, torch.cuda.Event | None]] = {}
        torch.cuda.synchronize()
        self._base = stamp(self._compute)
        self._base.synchronize()
        self.begun_ns = perf_counter_ns()
        self._marks = [self._base]

    def begin(self, iteration: int) -> None:
        """Return when the compute of the iteration that is `run_ahead` behind has ended."""
        self._at(RUNNING, None, iteration)
        behind = iteration - self._run_ahead
        if behind >= 0:
            self._at(WAITING, self._instances.last_compute, behind)
            self._ends[behind % len(self._ends)].synchronize()

    def enter(self, k: int, iteration: int) -> None:  # noqa: D102
        self._at(RUNNING, k, iteration)
        stream = self._stream[k]
        begin_ns = perf_counter_ns()
        self._await(k, iteration, stream)
        if iteration >= self._trace_from:
            self._begun[k] = (begin_ns, stamp(stream) if self._with_events else None)
        if stream is not self._compute:
            torch.cuda.set_stream(stream)

    def leave(self, k: int, iteration: int) -> None:  # noqa: D102
        stream = self._stream[k]
        self._ended(k, iteration, stream)
        if stream is not self._compute:
            torch.cuda.set_stream(self._compute)

    def communicate(self, k: int, iteration: int, start: Start) -> None:  # noqa: D102
        if not self._communicating:
            return
        self.enter(k, iteration)
        start(iteration).wait()
        self.leave(k, iteration)

    def wait(self, k: int, iteration: int) -> None:  # noqa: D102
        for dep, lag in self._needs[k]:
            wanted = self._instances.awaited(dep, lag, iteration, self._iterations)
            if wanted >= 0:
                self._at(WAITING, dep, wanted)
                self._events[dep][wanted % len(self._events[dep])].synchronize()

    def touch(self) -> None:
        """Do nothing: the device needs no polling."""

    def mark(self) -> None:  # noqa: D102
        self._ends[(len(self._marks) - 1) % len(self._ends)].record(self._compute)
        self._marks.append(stamp(self._compute))

    def settle(self) -> None:  # noqa: D102
        torch.cuda.synchronize()

    def drain(self) -> None:  # noqa: D102
        torch.cuda.synchronize()
        for k, iteration, begin, end in self._timed:
            start_ns = self.begun_ns + round(self._base.elapsed_time(begin) * 1e6)
            end_ns = self.begun_ns + round(self._base.elapsed_time(end) * 1e6)
            self._recorder.add((self._lane[k], k, iteration, start_ns, max(start_ns, end_ns)))
        self._recorder.next_iteration()

    def iterations_s(self) -> list[float]:  # noqa: D102
        return [a.elapsed_time(b) * 1e-3 for a, b in zip(self._marks, self._marks[1:], strict=False)]

    def alone(self, start: Start) -> float:  # noqa: D102
        torch.cuda.synchronize()
        begin = stamp(self._compute)
        start(0).wait()
        end = stamp(self._compute)
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) * 1e-3

    def close(self) -> None:
        """Do nothing: streams go with the process."""

    def _await(self, k: int, iteration: int, stream: torch.cuda.Stream) -> None:
        for dep, lag in self._needs[k]:
            wanted = self._instances.awaited(dep, lag, iteration, self._iterations)
            if wanted >= 0:
                stream.wait_event(self._events[dep][wanted % len(self._events[dep])])

    def _ended(self, k: int, iteration: int, stream: torch.cuda.Stream) -> None:
        events = self._events[k]
        if events:
            events[iteration % len(events)].record(stream)
        if iteration >= self._trace_from:
            begin_ns, begin = self._begun.pop(k)
            if begin is not None:
                self._timed.append((k, iteration, begin, stamp(stream)))
            self._recorder.add(("host", k, iteration, begin_ns, perf_counter_ns()))


def _event(*, timing: bool = False) -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=timing)  # type: ignore[no-untyped-call]


def stamp(stream: torch.cuda.Stream) -> torch.cuda.Event:
    """Return an event with the time at which *stream* comes here."""
    event = _event(timing=True)
    event.record(stream)
    return event
