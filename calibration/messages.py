"""Times collectives and messages between two ranks by their size, with nothing beside them.

Model
    Sizes and kinds are visited in a random order that is drawn anew each round, so that a slow phase of the machine
    falls on all of them alike. A visit repeats one operation back to back; a repeat takes as long as on its slowest
    rank. Rounds go on until the confidence interval of every median is under 3 %, or the time that was granted is over.
    What is called once before a visit's repeats is not counted: it finds other buffers in the caches.

    A link that is shaped by a token bucket lets what it has saved up while idle pass at once. How much that is shows
    in how much faster a message is after a pause than in a row; before each visit a message empties the bucket, so
    times by size are those at the link's rate.

What it leaves out
    Subsets of the ranks; messages between other ranks than 0 and 1.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import NamedTuple, Protocol

import numpy as np

from calibration import fits
from executor.backends.protocol import Backend, Buffer, Pending
from executor.lanes import WAITING, Note
from simgd.profile import Fit, Operation, PointToPoint, ScheduledKind

#: Repeats of one visit, and rounds after which a size is given up as it is.
REPEATS, MOST_ROUNDS = 5, 12

#: Seconds that are granted to all sizes.
GRANTED_S = 60.0

#: Spreads of collectives count from this size on; below it the clock and the scheduler rule.
SPREAD_BYTES = 2**16

#: Operations are timed on slices of so much memory, one after the other, as buckets of a model are.
POOL_BYTES = 64 * 2**20

#: A burst is looked for with messages of these sizes, and believed where both show the same one.
BURST_SIZES = (2**20, 2**21)

#: Sizes that pass at once where the link saves up anything worth the name.
RESTED_SIZES = (2**12, 2**15, 2**16)

#: After so long an idle link has saved up whatever it may.
PAUSE_S = 0.15

#: Told of a step that is done: its name and the seconds it took.
Tick = Callable[[str, float], None]


class Key(NamedTuple):
    """One operation at one size."""

    kind: Operation
    nbytes: int


def start(backend: Backend, kind: Operation, buffer: Buffer) -> Pending:
    """Start one collective."""
    match kind:
        case "all_reduce":
            return backend.all_reduce(buffer)
        case "reduce_scatter":
            return backend.reduce_scatter(buffer)
        case "all_gather":
            return backend.all_gather(buffer)
        case _:
            return backend.broadcast(buffer, 0)


def there_and_back(backend: Backend, buffer: Buffer) -> None:
    """Send *buffer* from rank 0 to rank 1 and back."""
    if backend.rank == 0:
        backend.send(buffer, 1).wait()
        backend.receive(buffer, 1).wait()
    elif backend.rank == 1:
        backend.receive(buffer, 0).wait()
        backend.send(buffer, 0).wait()


class Messages:
    """Operations of one backend on buffers of its host; *divides* says that sums are divided by the ranks after it."""

    def __init__(self, backend: Backend, note: Note, *, divides: bool) -> None:
        self.backend = backend
        self._note = note
        self._pool = np.zeros(POOL_BYTES // 4, np.float32)
        self._at = 0
        self._divides = divides

    def buffer(self, nbytes: int) -> Buffer:
        """Return the next slice of *nbytes*, a whole number of elements for each rank."""
        ranks = self.backend.ranks
        elements = -(-max(nbytes // 4, 1) // ranks) * ranks
        if elements > len(self._pool):
            self._pool = np.zeros(elements, np.float32)
        if self._at + elements > len(self._pool):
            self._at = 0
        found = self._pool[self._at : self._at + elements]
        # to a cache line, so that slices do not share one
        self._at += -(-elements // 16) * 16
        return found

    def once_s(self, key: Key) -> float:
        """Return the seconds of one operation on this rank; of a message between two ranks, half of there and back."""
        buffer = self.buffer(key.nbytes)
        begin = time.perf_counter()
        if key.kind == "point_to_point":
            there_and_back(self.backend, buffer)
            return (time.perf_counter() - begin) / 2
        start(self.backend, key.kind, buffer).wait()
        if self._divides and key.kind == "all_reduce":
            buffer *= 1 / self.backend.ranks
        return time.perf_counter() - begin

    def visit(self, key: Key, repeats: int, empty: int) -> list[float]:
        """Return the seconds of *repeats* operations in a row, after *empty* bytes that empty the link's savings."""
        self._note.at(WAITING)
        self.backend.barrier()
        if empty:
            self.once_s(Key("all_reduce", empty))
        self.once_s(key)
        return [self.once_s(key) for _ in range(repeats)]

    def burst_s(self) -> float:
        """Return the time by which an idle link lets the next message pass sooner; 0 where none is to be seen."""
        found = []
        for nbytes in BURST_SIZES:
            key = Key("all_reduce", nbytes)
            self.visit(key, 2, 0)
            in_a_row = median(slowest(self.backend, [self.once_s(key) for _ in range(REPEATS)]))
            rested = []
            for _ in range(REPEATS):
                time.sleep(PAUSE_S)
                self.backend.barrier()
                rested.append(self.once_s(key))
            found.append((in_a_row - median(slowest(self.backend, rested)), in_a_row))
        saved = [each for each, _ in found]
        # Waking up from a pause costs time as well, so nothing that small is a burst.
        if min(saved) < 0.02 * found[0][1] or max(saved) > 1.25 * min(saved):
            return 0.0
        return sum(saved) / len(saved)

    def rested(self) -> tuple[float, float]:
        """Return what an all-reduce takes on a rested link that lets it pass at once: seconds a call and a byte."""
        found = []
        for nbytes in RESTED_SIZES:
            own = []
            for _ in range(REPEATS):
                time.sleep(PAUSE_S / 3)
                self.backend.barrier()
                own.append(self.once_s(Key("all_reduce", nbytes)))
            found.append(median(slowest(self.backend, own)))
        slope = max(0.0, (found[-1] - found[0]) / (RESTED_SIZES[-1] - RESTED_SIZES[0]))
        return max(0.0, found[0] - slope * RESTED_SIZES[0]), slope


class Probe(Protocol):
    """Repeats operations on this rank; see `Messages`, and `captured.DeviceMessages` for those between GPUs."""

    backend: Backend

    def visit(self, key: Key, repeats: int, empty: int) -> list[float]:
        """Return the seconds of *repeats* operations in a row, after *empty* bytes that empty the link's savings."""


def slowest(backend: Backend, own: list[float]) -> list[float]:
    """Return each repeat's seconds on its slowest rank; the same on every rank."""
    return [max(times) for times in zip(*backend.exchange(own), strict=True)]


def measure(
    probe: Probe, keys: Sequence[Key], *, empty: int, seed: int, tick: Tick, granted_s: float = GRANTED_S
) -> dict[Key, list[float]]:
    """Return the seconds of every repeat of each of *keys*; the same on every rank."""
    draw = random.Random(seed)
    times: dict[Key, list[float]] = {key: [] for key in keys}
    begin = time.perf_counter()
    for number in range(MOST_ROUNDS):
        left = [key for key in keys if not fits.is_settled(times[key])]
        # One clock decides for all, or they would part.
        spent = probe.backend.exchange(time.perf_counter() - begin)[0]
        if not left or (number and spent > granted_s):
            break
        for key in draw.sample(left, len(left)):
            visited = time.perf_counter()
            times[key] += slowest(probe.backend, probe.visit(key, REPEATS, empty))
            tick(f"{key.kind} of {key.nbytes} B", time.perf_counter() - visited)
    return times


def fitted(
    times: Mapping[Key, Sequence[float]], *, ranks: int, nodes: int, link_bytes_per_s: float, source: str
) -> tuple[Fit, ...]:
    """Return a fit of each collective."""
    by_kind: dict[ScheduledKind, list[Key]] = {}
    for key in sorted(times):
        if key.kind != "point_to_point":
            by_kind.setdefault(key.kind, []).append(key)
    return tuple(
        fits.fit(
            kind,
            [fits.sample(key.nbytes, times[key]) for key in keys],
            ranks=ranks,
            nodes=nodes,
            link_bytes_per_s=link_bytes_per_s,
            source=source,
        )
        for kind, keys in by_kind.items()
    )


def point_to_point(times: Mapping[Key, Sequence[float]]) -> PointToPoint:
    """Return the times of messages between two ranks."""
    points = sorted((float(key.nbytes), median(s)) for key, s in times.items() if key.kind == "point_to_point")
    return PointToPoint(origin="measured", source="half of there and back, ranks 0 and 1", points=tuple(points))


def sizes(least: int, most: int) -> Iterator[int]:
    """Yield powers of two, from *least* to *most* bytes.

    >>> list(sizes(4, 64))
    [4, 8, 16, 32, 64]
    """
    nbytes = least
    while nbytes <= most:
        yield nbytes
        nbytes *= 2


def spread_s(times: Mapping[Key, Sequence[float]]) -> list[float]:
    """Return each repeat's time less the median of its size, of all-reduces of `SPREAD_BYTES` and more.

    Other kinds scatter otherwise (a broadcast ends at its root before it ends at the others), and gradients are summed.
    """
    found = []
    for key, seconds in times.items():
        if key.kind == "all_reduce" and key.nbytes >= SPREAD_BYTES and seconds:
            middle = median(seconds)
            found += [each - middle for each in seconds]
    return found
