"""Times communication beside compute, and compute beside communication, on ranks that share a core with their library.

Model
    A rank starts an all-reduce and computes in short pieces, looking at the collective after so many of them, until it
    has ended; then it computes the same once more, alone. What it took longer beside the collective is the library's
    own work on the core: so much a call and so much a byte.

    A library that progresses only when it is looked at needs a number of looks that grows with the message; rare looks,
    each later than the time of the whole message alone, show how many. A library with a thread needs none, but its
    collectives may be slower beside compute than alone: the share of their speed that they keep is their progress.

    A rank that sleeps instead of computing loses nothing. Where it has to look it naps: then each look comes late, by
    so much on the average, that collectives take longer than alone.

What it leaves out
    Compute that is bound by memory is slowed by the library's copies more than by its time on the core.
"""

import threading
import time
from collections.abc import Callable
from statistics import median
from typing import Literal, NamedTuple

import numpy as np

from calibration.fits import least_costs
from calibration.messages import Key, Messages, Tick, start
from executor.backends.protocol import Backend
from executor.comm import Progress
from executor.emulated import NAP_NS
from executor.lanes import WAITING, Note
from simgd.timing import COOL_PS

#: Sizes of the all-reduces, and repeats of each case.
SIZES = (2**15, 2**17, 2**18, 2**19, 2**20)
REPEATS = 7

#: And sizes at which only looks are counted; all at which they are, and how often.
SMALL_SIZES = (2**8, 2**10, 2**12, 2**16)
COUNTED, COUNTS = (*SMALL_SIZES, *SIZES), 3

#: Seconds of compute, or sleep, before a collective whose start is timed: the caches still hold it, or not.
PAUSES_S = (2e-4, COOL_PS * 1e-12)

#: Seconds of compute between two looks where the work on the core is measured.
GAP_S = 0.5e-3


Mode = Literal["none", "poll", "thread"]


class Beside(NamedTuple):
    """What was found: ``call_s + nbytes * s_per_byte`` of the core for each collective; how many `looks` one of
    so many bytes needs (none: empty), each `look_s` late; the share of its speed that a collective keeps; and
    what it takes to start one soon after another, and how much more after a pause."""

    call_s: float
    s_per_byte: float
    looks: tuple[tuple[float, float], ...]
    look_s: float
    share: float
    post_s: float
    cold_s: float


class _Case(NamedTuple):
    """One collective beside compute: its seconds, what the compute took longer than alone, how often one looked."""

    seconds: float
    stolen_s: float
    looks: int


class Neighbours:
    """Runs all-reduces beside compute on one rank; *asleep* ranks leave their core idle."""

    def __init__(self, backend: Backend, note: Note, messages: Messages, progress: Progress, *, asleep: bool) -> None:
        self._backend = backend
        self._note = note
        self._messages = messages
        self._progress = progress
        self._asleep = asleep
        self._left = np.ones((64, 64), np.float32)
        self._right = np.ones((64, 64), np.float32)
        self._into = np.empty((64, 64), np.float32)

    def measure(self, alone_s: dict[int, float], empty: int, tick: Tick) -> Beside:
        """Return what was found, the same on every rank; *alone_s* are the seconds of each of `SIZES` alone."""
        polled = self._progress.every > 0
        gap_s = NAP_NS * 1e-9 if polled and self._asleep else GAP_S
        cases: dict[int, list[_Case]] = {nbytes: [] for nbytes in SIZES}
        counts: dict[int, list[int]] = {nbytes: [] for nbytes in COUNTED}
        for _ in range(REPEATS):
            for nbytes in SIZES:
                begin = time.perf_counter()
                cases[nbytes].append(self._slowest(self._beside(nbytes, gap_s, empty)))
                tick(f"all_reduce of {nbytes} B beside compute", time.perf_counter() - begin)
        if polled:
            for _ in range(COUNTS):
                for nbytes in COUNTED:
                    begin = time.perf_counter()
                    gap = max(1.2 * alone_s.get(nbytes, 0.0), 4 * GAP_S)
                    counts[nbytes].append(self._slowest(self._beside(nbytes, gap, empty)).looks)
                    tick(f"looks at all_reduce of {nbytes} B", time.perf_counter() - begin)
        call_s, s_per_byte = (0.0, 0.0) if self._asleep else _line(_stolen(cases))
        looks = _growing({nbytes: float(median(found)) for nbytes, found in counts.items() if found})
        share, look_s = 1.0, 0.0
        if looks and self._asleep:
            needed = dict(looks)
            late = [
                (median(case.seconds for case in cases[nbytes]) - alone_s[nbytes]) / needed[nbytes] for nbytes in SIZES
            ]
            look_s = max(0.0, median(late))
        if not polled:
            kept = [alone_s[nbytes] / median(case.seconds for case in cases[nbytes]) for nbytes in SIZES[1:]]
            share = min(1.0, median(kept))
        soon_s, late_s = (self._posts_s(pause_s) for pause_s in PAUSES_S)
        return Beside(call_s, s_per_byte, looks, look_s, share, soon_s, max(0.0, late_s - soon_s))

    def hidden(self, mode: Mode, nbytes: int, alone_s: float, empty: int) -> float:
        """Return the share of an all-reduce of *nbytes* that is done behind compute of *alone_s*; a median."""
        found = []
        for _ in range(REPEATS):
            self._note.at(WAITING)
            pieces = self._pieces_of(GAP_S)
            slices = max(1, round(alone_s / GAP_S))
            self._backend.barrier()
            if empty:
                self._messages.once_s(Key("all_reduce", empty))
            began = time.perf_counter()
            self._slices(slices, pieces, lambda: None)
            computed_s = time.perf_counter() - began
            self._backend.barrier()
            began = time.perf_counter()
            pending = start(self._backend, "all_reduce", self._messages.buffer(nbytes))
            waiter = None
            if mode == "thread":
                waiter = threading.Thread(target=pending.wait, daemon=True)
                waiter.start()
            self._slices(slices, pieces, pending.done if mode == "poll" else lambda: None)
            if waiter is not None:
                waiter.join()
            pending.wait()
            exposed_s = time.perf_counter() - began - computed_s
            found.append(max(self._backend.exchange(exposed_s)))
        exposed: float = median(found)
        return min(1.0, max(0.0, 1 - exposed / alone_s))

    def _slices(self, count: int, pieces: int, between: Callable[[], object]) -> None:
        """Compute, or sleep, *count* times `GAP_S`, and do something after each."""
        for _ in range(count):
            self._spend(GAP_S, pieces)
            between()

    def _slowest(self, own: _Case) -> _Case:
        found: list[_Case] = [_Case(*each) for each in self._backend.exchange(tuple(own))]
        return max(found, key=lambda case: case.seconds)

    def _spend(self, seconds: float, pieces: int) -> None:
        """Sleep so many *seconds*, or compute so many *pieces*."""
        if self._asleep:
            time.sleep(seconds)
        else:
            self._compute(pieces)

    def _compute(self, pieces: int) -> None:
        for _ in range(pieces):
            np.matmul(self._left, self._right, out=self._into)

    def _pieces_of(self, seconds: float) -> int:
        """Return how many pieces take about so long; a rank that sleeps computes none."""
        if self._asleep:
            return 0
        begin = time.perf_counter()
        self._compute(50)
        return max(1, round(seconds / (time.perf_counter() - begin) * 50))

    def _posts_s(self, pause_s: float) -> float:
        """Return what starting a collective takes after compute, or sleep, of *pause_s*: the median of all sizes."""
        posts = [self._post_s(nbytes, pause_s) for nbytes in SIZES for _ in range(REPEATS)]
        seconds: float = median(max(own) for own in zip(*self._backend.exchange(posts), strict=True))
        return seconds

    def _post_s(self, nbytes: int, pause_s: float) -> float:
        self._note.at(WAITING)
        pieces = self._pieces_of(pause_s)
        self._backend.barrier()
        self._messages.once_s(Key("all_reduce", nbytes))
        self._spend(pause_s, pieces)
        begin = time.perf_counter()
        pending = start(self._backend, "all_reduce", self._messages.buffer(nbytes))
        started = time.perf_counter()
        pending.wait()
        return started - begin

    def _beside(self, nbytes: int, gap_s: float, empty: int) -> _Case:
        self._note.at(WAITING)
        pieces = self._pieces_of(gap_s)
        self._backend.barrier()
        if empty:
            self._messages.once_s(Key("all_reduce", empty))
        self._messages.once_s(Key("all_reduce", nbytes))
        begin = time.perf_counter()
        pending = start(self._backend, "all_reduce", self._messages.buffer(nbytes))
        ended: list[float] = []
        waiter = None
        if self._progress.thread:

            def wait() -> None:
                pending.wait()
                ended.append(time.perf_counter())

            waiter = threading.Thread(target=wait, daemon=True)
            waiter.start()
        looks, has_ended = 0, False
        while not has_ended:
            self._spend(gap_s, pieces)
            looks += 1
            has_ended = pending.done() if waiter is None else not waiter.is_alive()
        seen = time.perf_counter()
        pending.wait()
        stolen_s = 0.0
        if not self._asleep:
            # Nobody else communicates now, or their library would still take this core.
            self._backend.barrier()
            again = time.perf_counter()
            self._compute(looks * pieces)
            stolen_s = (seen - begin) - (time.perf_counter() - again)
        return _Case((ended[0] if ended else seen) - begin, stolen_s, looks)


def _growing(counts: dict[int, float]) -> tuple[tuple[float, float], ...]:
    """Return (bytes, looks) in order, none below the one before: more data never need fewer looks."""
    found: list[tuple[float, float]] = []
    for nbytes, looks in sorted(counts.items()):
        found.append((float(nbytes), max(looks, found[-1][1] if found else 1.0)))
    return tuple(found)


def _stolen(cases: dict[int, list[_Case]]) -> dict[int, float]:
    return {nbytes: max(0.0, median(case.stolen_s for case in found)) for nbytes, found in cases.items()}


def _line(values: dict[int, float]) -> tuple[float, float]:
    """Return intercept and slope by size, neither below 0, that suit the relative errors of *values* best."""
    most = max(values.values())
    if not most:
        return 0.0, 0.0
    # What is small beside the largest is mostly noise: it weighs no more than 5 % of that would.
    errors = {nbytes: max(value, 0.05 * most) for nbytes, value in values.items()}
    rows = [(1 / errors[nbytes], nbytes / errors[nbytes]) for nbytes in values]
    first, slope = least_costs(rows, [value / errors[nbytes] for nbytes, value in values.items()])
    return first, slope
