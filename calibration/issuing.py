"""Times what a host spends on issuing ops to a GPU, in a loop that waits for nothing else.

Model
    A schedule runs with a small batch, so that the device is done before the host and never makes it wait. From where
    the host begins an iteration to where it has issued all of it is what an iteration takes; of that each op has its
    part. Schedules take turns, since a host is faster at one time than at another; medians over all turns' iterations,
    on all ranks at once; of the ranks the one counts that takes longest.

    What a collective takes is the difference of a schedule's iterations with and without them: it also makes the ops
    around it slower (on an H100's host a backward pass by 50 us, beside 120 us for the call itself).

What it leaves out
    Another batch may choose other kernels, which take about as long to launch.
"""

from statistics import median
from time import perf_counter_ns
from typing import NamedTuple

import torch

from executor.lanes import WAITING, Note
from executor.rank import Rank
from executor.recording import Recorder
from executor.streams import StreamLanes

#: Iterations that are timed in one turn, and those before them; turns.
STEPS, WARM_UP, TURNS = 8, 3, 4

#: Samples a rank.
BATCH = 2

#: How often an empty kernel is waited for.
ROUNDS = 200


class Issued(NamedTuple):
    """Seconds of the host: for each op (0: it was not issued), for an iteration from begin to end, and from its begin
    to that of its first op."""

    ops: list[float]
    iteration: float
    start: float


class _Clocked(StreamLanes):
    """Notes how long the host takes for each iteration, from where it may begin it."""

    def start(self, iterations: int) -> None:
        super().start(iterations)
        self.took_ns: list[int] = []
        self.first_ns: list[int] = []

    def begin(self, iteration: int) -> None:
        super().begin(iteration)
        self._is_first = True
        self._begin_ns = perf_counter_ns()

    def enter(self, k: int, iteration: int) -> None:
        if self._is_first:
            self._is_first = False
            self.first_ns.append(perf_counter_ns() - self._begin_ns)
        super().enter(k, iteration)

    def mark(self) -> None:
        super().mark()
        self.took_ns.append(perf_counter_ns() - self._begin_ns)


class Turns:
    """One schedule on one rank, with or without its collectives."""

    def __init__(self, rank: Rank, note: Note, *, communicating: bool) -> None:
        assert rank.training is not None
        self.rank = rank
        self._training = rank.training
        self._note = note
        self._communicating = communicating
        self._ops: list[list[float]] = [[] for _ in range(rank.instances.size)]
        self._took_ns: list[int] = []
        self._first_ns: list[int] = []

    def run(self) -> None:
        """Run one turn."""
        rank, training = self.rank, self._training
        usual, training.batch = training.batch, min(BATCH, training.batch)
        recorder = Recorder(rank.lane_of_op, STEPS + rank.instances.owed + 1)
        lanes = _Clocked(
            rank.instances,
            recorder,
            self._note,
            run_ahead=rank.plan.execution.run_ahead,
            traced=STEPS,
            communicating=self._communicating,
            events=False,
        )
        self._note.at(WAITING)
        rank.backend.barrier()
        rank.interpreter(lanes).run(WARM_UP + STEPS, lambda iteration: None)
        training.losses()
        training.batch = usual
        for _, k, _, begin_ns, end_ns in recorder.last(WARM_UP):
            self._ops[k].append((end_ns - begin_ns) * 1e-9)
        self._took_ns += lanes.took_ns[WARM_UP:]
        self._first_ns += lanes.first_ns[WARM_UP : WARM_UP + STEPS]

    def issued(self) -> Issued:
        """Return what the host of the slowest rank takes; the same on every rank."""
        ops = [median(s) if s else 0.0 for s in self._ops]
        own = Issued(ops, median(self._took_ns) * 1e-9, median(self._first_ns) * 1e-9)
        self._note.at(WAITING)
        found: list[Issued] = self.rank.backend.exchange(own)
        return max(found, key=lambda each: each.iteration)


def round_trip_s() -> float:
    """Return what passes until a host that waits for the device knows that it is done, beyond what that computes.

    An empty kernel takes next to nothing: what is left is its way to the device and the word of its end.
    """
    nothing = torch.zeros(1, device="cuda")
    end = torch.cuda.Event()  # type: ignore[no-untyped-call]
    found = []
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        begin_ns = perf_counter_ns()
        nothing.zero_()
        end.record()
        end.synchronize()
        found.append((perf_counter_ns() - begin_ns) * 1e-9)
    return median(found)
