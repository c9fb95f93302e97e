"""The comm lane of a rank whose library works on host memory: collectives in order, so many in flight.

Model
    Collectives are posted in the order of the list and start in that order, at most `in_flight` at a time; later ones
    are held back. One ends when somebody notices: a thread that waits for the oldest one (`thread`), a look at it
    every n-th time that the rank passes by (`poll:n`), or only the op that needs it (`none`). Whoever notices starts
    the next one. So what overlaps depends on the progress that was chosen, and the run says which it was.

Known not to hold
    Without a thread a collective may have ended before it is noticed; its row in the trace ends when it is.
"""

import threading
from collections import deque
from collections.abc import Callable
from time import perf_counter_ns
from typing import NamedTuple

from executor.backends.protocol import Pending
from executor.recording import Recorder
from simgd.errors import BackendError, unknown
from simgd.instances import Instances

#: Starts one collective of the given iteration.
Start = Callable[[int], Pending]


class Progress(NamedTuple):
    """Who makes collectives progress: a `thread`, a look `every` so many passes, or nobody before they are needed."""

    thread: bool = False
    every: int = 0

    def __str__(self) -> str:
        return "thread" if self.thread else f"poll:{self.every}" if self.every else "none"


def progress(text: str) -> Progress:
    """Return what *text* asks for.

    >>> progress("poll:16")
    Progress(thread=False, every=16)
    >>> progress("poll:0")
    Traceback (most recent call last):
    simgd.errors.BackendError: --progress 'poll:0': poll every 1 to 1000000 passes, such as poll:16
    """
    kind, colon, count = text.partition(":")
    if kind == "poll" and colon:
        if not (count.isascii() and count.isdecimal() and 1 <= int(count[:8]) <= 1_000_000):
            raise BackendError(f"--progress {text[:40]!r}: poll every 1 to 1000000 passes, such as poll:16")
        return Progress(every=int(count))
    if text not in ("none", "thread"):
        raise unknown("progress", text, ["none", "poll:16", "thread"])
    return Progress(thread=text == "thread")


class _Flight(NamedTuple):
    """A collective that was started: op number, iteration, when, and the library's handle."""

    k: int
    iteration: int
    start_ns: int
    pending: Pending


class CommLane:
    """Starts collectives in order and notes when they end."""

    def __init__(self, instances: Instances, recorder: Recorder, *, in_flight: int, progress: Progress) -> None:
        numbers = [k for k in range(instances.size) if instances.collective[k]]
        self._place = {k: place for place, k in enumerate(numbers)}
        self._each = len(numbers)
        # With several in flight one may have to wait for another; in order and alone it never has.
        self._after = {
            k: [(dep, lag) for dep, lag in instances.deps[k] if instances.collective[dep]] if in_flight > 1 else []
            for k in numbers
        }
        self._recorder = recorder
        self._in_flight = in_flight
        self._progress = progress
        self.polls = progress.every > 0
        self._passes = 0
        self._held: deque[tuple[int, int, Start]] = deque()
        self._flying: deque[_Flight] = deque()
        self._ended = 0
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._closing = False
        self._thread: threading.Thread | None = None
        if progress.thread:
            self._thread = threading.Thread(target=self._follow, name="comm lane", daemon=True)
            self._thread.start()

    def post(self, k: int, iteration: int, start: Start) -> None:
        """Take the collective of op *k*; it starts now if the lane is free."""
        if self._thread is None:
            self._held.append((k, iteration, start))
            self._fill()
            return
        with self._changed:
            self._held.append((k, iteration, start))
            self._fill()
            self._changed.notify_all()

    def touch(self) -> None:
        """Say that the rank passes by: every n-th time the lane looks for collectives that have ended."""
        self._passes += 1
        if self._passes >= self._progress.every:
            self._passes = 0
            while self._flying and self._flying[0].pending.done():
                self._land()
                self._fill()

    def has_ended(self, k: int, iteration: int) -> bool:
        """Say whether the collective of op *k* is known to have ended."""
        return self._ended > iteration * self._each + self._place[k]

    def wait(self, k: int, iteration: int) -> None:
        """Return when the collective of op *k* has ended."""
        number = iteration * self._each + self._place[k]
        if self._thread is not None:
            self._until(lambda: self._ended > number)
            return
        while self._ended <= number:
            self._end_oldest()

    def settle(self) -> None:
        """Return when everything that was posted has ended."""
        if self._thread is not None:
            self._until(lambda: not self._flying)
        while self._flying:
            self._end_oldest()

    def restart(self) -> None:
        """Count iterations anew: a new run begins."""
        self._ended = 0

    def close(self) -> None:
        """End the thread, if there is one."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None and self._error is None:
            # It may wait for a rank that is gone: then it goes with the process.
            self._thread.join(timeout=5)

    def _until(self, reached: Callable[[], bool]) -> None:
        """Wait for the thread; raise what it met."""
        with self._changed:
            self._changed.wait_for(lambda: reached() or self._error is not None)
        if self._error is not None:
            raise self._error

    def _fill(self) -> None:
        """Start held collectives while there is room."""
        while self._held and len(self._flying) < self._in_flight:
            k, iteration, start = self._held[0]
            if any(iteration >= lag and not self.has_ended(dep, iteration - lag) for dep, lag in self._after[k]):
                return
            self._held.popleft()
            now = perf_counter_ns()
            self._flying.append(_Flight(k, iteration, now, start(iteration)))

    def _end_oldest(self) -> None:
        """Wait for the oldest one in flight, and start what was held back for it."""
        self._flying[0].pending.wait()
        self._land()
        self._fill()

    def _land(self) -> None:
        """Note that the oldest one in flight has ended."""
        flight = self._flying.popleft()
        self._recorder.add(("comm", flight.k, flight.iteration, flight.start_ns, perf_counter_ns()))
        self._ended += 1

    def _follow(self) -> None:
        """Wait for one collective after the other: the thread's own loop."""
        while True:
            with self._changed:
                while not self._flying and not self._closing:
                    self._changed.wait()
                if self._closing:
                    return
                pending = self._flying[0].pending
            try:
                pending.wait()
                with self._changed:
                    self._land()
                    self._fill()
                    self._changed.notify_all()
            except BaseException as error:
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
