"""Times work of a GPU with the host out of the way: captured as a CUDA graph, and replayed.

Model
    A schedule is captured with communication left out, once as it is, and once with an event where each op begins. A
    replay of the second says what each op takes in place; what an event takes besides follows from the first, which
    has none, and is taken off.

    Operations of the library are captured on the comm lane's stream, several in a row on buffers of their own, with
    the division of a sum behind each, as the executor has it.

Known not to hold
    Events are nodes of the graph: they part kernels that would overlap at their ends.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median
from typing import NamedTuple

import torch

from calibration.messages import Key, start, there_and_back
from executor.backends.protocol import Backend, Buffer
from executor.comm import Start
from executor.lanes import WAITING, Note
from executor.rank import Rank
from executor.shards import shard_seed
from executor.streams import stamp
from simgd.errors import BackendError

#: Replays of a schedule that are timed, after so many that are not.
REPLAYS, WARM_UP = 15, 3

#: Operations of one graph: as many as this memory holds, but within these two.
GRAPH_BYTES, LEAST_OPERATIONS, MOST_OPERATIONS = 2**28, 3, 20

#: Operations take slices of so much memory in turn, which no cache holds.
POOL_BYTES = 2**31

#: All-reduces of one graph beside which a step runs, and how often it does.
SERIES, TOGETHER = 4, 9

#: No op takes less than this: an empty kernel of an H100 or H200 takes as long.
LEAST_S = 1e-6


class CapturedLanes:
    """Lanes of a rank whose ops are being captured on the current stream, in order, without communication.

    With *events* there is one where each op begins; `durations_s` reads them after a replay.
    """

    begun_ns = 0

    def __init__(self, *, events: bool) -> None:
        self._with_events = events
        self._stamps: list[tuple[int, torch.cuda.Event]] = []

    def start(self, iterations: int) -> None:  # noqa: D102
        self._stamp(-1)

    def begin(self, iteration: int) -> None:  # noqa: D102
        pass

    def enter(self, k: int, iteration: int) -> None:  # noqa: D102
        self._stamp(k)

    def leave(self, k: int, iteration: int) -> None:  # noqa: D102
        pass

    def communicate(self, k: int, iteration: int, start: Start) -> None:  # noqa: D102
        pass

    def wait(self, k: int, iteration: int) -> None:  # noqa: D102
        pass

    def touch(self) -> None:  # noqa: D102
        pass

    def mark(self) -> None:  # noqa: D102
        self._stamp(-1)

    def settle(self) -> None:  # noqa: D102
        pass

    def drain(self) -> None:  # noqa: D102
        self._stamp(-1)

    def iterations_s(self) -> list[float]:  # noqa: D102
        return []

    def alone(self, start: Start) -> float:  # noqa: D102
        return 0.0

    def close(self) -> None:  # noqa: D102
        pass

    def durations_s(self) -> list[tuple[int, float]]:
        """Return (op, seconds) in the order of the last replay; op -1 is what lies before the first and behind all."""
        return [(k, begin.elapsed_time(end) * 1e-3) for (k, begin), (_, end) in pairwise(self._stamps)]

    def _stamp(self, k: int) -> None:
        if self._with_events:
            event = torch.cuda.Event(enable_timing=True, external=True)  # type: ignore[no-untyped-call]
            event.record()
            self._stamps.append((k, event))


class Step(NamedTuple):
    """One schedule without communication, captured twice: as it is, and with events."""

    plain: torch.cuda.CUDAGraph
    stamped: torch.cuda.CUDAGraph
    lanes: CapturedLanes
    ops: int


class Durations(NamedTuple):
    """Seconds of each op (0: it does not run on the device), of all before and behind them, of the whole, and of what
    an event takes besides."""

    ops: list[float]
    rest: float
    whole: float
    event: float


def capture(work: Callable[[], object], beside: torch.cuda.CUDAGraph | None = None) -> torch.cuda.CUDAGraph:
    """Return *work*, captured on the current stream, which must not be the default one and must have run it before.

    It shares the memory of the graph *beside*, with which it never runs at once.
    """
    graph = torch.cuda.CUDAGraph()
    pool = beside.pool() if beside is not None else None
    # Threads of the library that look after its collectives go on meanwhile.
    with torch.cuda.graph(graph, pool, torch.cuda.current_stream(), capture_error_mode="thread_local"):
        work()
    return graph


def step(rank: Rank) -> Step:
    """Capture the local work of *rank*, which was made on the current stream."""
    training, seed = rank.training, shard_seed(rank.plan.seed, rank.backend.rank, 0)
    if training is None:
        raise BackendError("calibrate: ranks that do not compute have nothing to capture")

    def run(lanes: CapturedLanes) -> None:
        rank.interpreter(lanes).run(1, lambda iteration: None)

    for _ in range(WARM_UP):
        run(CapturedLanes(events=False))

    def graph(lanes: CapturedLanes, beside: torch.cuda.CUDAGraph | None = None) -> torch.cuda.CUDAGraph:
        training.losses()
        # The seed of the shard is set within; while capturing none may be set but the one that is.
        torch.manual_seed(seed)
        return capture(lambda: run(lanes), beside)

    lanes = CapturedLanes(events=True)
    try:
        plain = graph(CapturedLanes(events=False))
        stamped = graph(lanes, plain)
    except RuntimeError as error:
        why = " ".join(str(error).split())[:200]
        raise BackendError(
            f"workload {rank.plan.workload.name!r}: its step cannot be captured as a CUDA graph, which allows no wait "
            f"for the device (.item(), a copy to the host): {why}"
        ) from None
    return Step(plain, stamped, lanes, rank.instances.size)


def seconds(graph: torch.cuda.CUDAGraph, replays: int) -> list[float]:
    """Return the device time of each of so many replays in a row."""
    stamps = [stamp(torch.cuda.current_stream())]
    for _ in range(replays):
        graph.replay()
        stamps.append(stamp(torch.cuda.current_stream()))
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) * 1e-3 for begin, end in pairwise(stamps)]


def durations(step: Step) -> Durations:
    """Return the medians of replays, in turns with and without events, free of what events take."""
    plain: list[float] = []
    found: list[list[tuple[int, float]]] = []
    for number in range(WARM_UP + REPLAYS):
        took = seconds(step.plain, 1)
        step.stamped.replay()
        torch.cuda.synchronize()
        if number >= WARM_UP:
            plain += took
            found.append(step.lanes.durations_s())
    whole, stamped = median(plain), _medians(found)
    event = max(0.0, sum(s for _, s in stamped) - whole) / len(stamped)
    ops, rest = _by_op(stamped, step.ops, event)
    return Durations(ops, rest, whole, event)


def _medians(found: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float]]:
    return [(each[0][0], median(s for _, s in each)) for each in zip(*found, strict=True)]


def _by_op(stamped: Sequence[tuple[int, float]], size: int, event_s: float) -> tuple[list[float], float]:
    """Return the seconds of each op and of the rest, free of what events take."""
    ops, rest = [0.0] * size, 0.0
    for k, took in stamped:
        if k < 0:
            rest += max(0.0, took - event_s)
        else:
            ops[k] += max(LEAST_S, took - event_s)
    return ops, rest


class DeviceMessages:
    """Operations of one backend between GPUs, on the stream of the comm lane."""

    def __init__(self, backend: Backend, note: Note, largest_bytes: int) -> None:
        self.backend = backend
        self._note = note
        self._pool = torch.randn(max(POOL_BYTES, 2 * largest_bytes) // 4, device="cuda")
        self._at = 0

    def visit(self, key: Key, repeats: int, empty: int) -> list[float]:
        """Return the device seconds of one operation in each of *repeats* graphs of them; there is nothing to empty."""
        count = min(max(GRAPH_BYTES // key.nbytes, LEAST_OPERATIONS), MOST_OPERATIONS)
        graph = self.series(key, count)
        self._note.at(WAITING)
        self.backend.barrier()
        # In the first one ranks wait for each other.
        each = 2 * count if key.kind == "point_to_point" else count
        return [whole / each for whole in seconds(graph, repeats + 1)[1:]]

    def series(self, key: Key, count: int) -> torch.cuda.CUDAGraph:
        """Return so many operations in a row as a graph."""
        self._note.at(WAITING)
        # Connections are made where an operation runs for the first time.
        self._once(key)
        torch.cuda.synchronize()
        return capture(lambda: self._repeat(key, count))

    def _repeat(self, key: Key, count: int) -> None:
        for _ in range(count):
            self._once(key)

    def _once(self, key: Key) -> None:
        buffer, backend = self._buffer(key.nbytes), self.backend
        if key.kind == "point_to_point":
            there_and_back(backend, buffer)
            return
        start(backend, key.kind, buffer).wait()
        if key.kind == "all_reduce":
            buffer.div_(backend.ranks)

    def _buffer(self, nbytes: int) -> Buffer:
        """Return the next slice of *nbytes*, a whole number of elements for each rank."""
        ranks = self.backend.ranks
        elements = -(-max(nbytes // 4, 1) // ranks) * ranks
        if self._at + elements > len(self._pool):
            self._at = 0
        found = self._pool[self._at : self._at + elements]
        self._at += -(-elements // 64) * 64
        return found


class Factors(NamedTuple):
    """How many times as long ops take beside all-reduces, by op, and an all-reduce beside them."""

    ops: list[float]
    communication: float


def beside(step: Step, alone: Durations, messages: DeviceMessages, comm: torch.cuda.Stream, nbytes: int) -> Factors:
    """Return what *step* and all-reduces of *nbytes* on the stream *comm* do to each other; the same step alone before.

    All-reduces begin before the step and go on behind it; those that lie within it count.
    """
    compute = torch.cuda.current_stream()
    with torch.cuda.stream(comm):
        series = messages.series(Key("all_reduce", nbytes), SERIES)
        messages.backend.barrier()
        each_s = median(seconds(series, 6)[1:])
    # On all ranks as many, or some would wait for all-reduces that others never start.
    count = max(messages.backend.exchange(2 + round(3 * alone.whole / each_s)))
    found, series_s = [], []
    for _ in range(TOGETHER):
        messages.backend.barrier()
        torch.cuda.synchronize()
        with torch.cuda.stream(comm):
            stamps = [stamp(torch.cuda.current_stream())]
            for number in range(count):
                series.replay()
                stamps.append(stamp(torch.cuda.current_stream()))
                if not number:
                    compute.wait_stream(comm)
        begin = stamp(torch.cuda.current_stream())
        step.stamped.replay()
        end = stamp(torch.cuda.current_stream())
        torch.cuda.synchronize()
        found.append(step.lanes.durations_s())
        within = [
            first.elapsed_time(last) * 1e-3
            for first, last in pairwise(stamps)
            if begin.elapsed_time(first) >= 0 and last.elapsed_time(end) >= 0
        ]
        series_s += within
    together, _ = _by_op(_medians(found), step.ops, alone.event)
    slower = median(series_s) / each_s if series_s else 1.0
    factors = [max(1.0, s / before) if before else 1.0 for s, before in zip(together, alone.ops, strict=True)]
    return Factors(factors, max(1.0, slower))
