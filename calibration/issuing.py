"""Times what a host spends on issuing ops to a GPU, in a loop that waits for nothing else.

Model
    A schedule runs with a small batch, so that the device is done before the host and never makes it wait. From where
    the host begins an iteration to where it has issued all of it is what an iteration takes; of that each op has its
    part. Medians over iterations, on all ranks at once; of the ranks the one counts that takes longest.

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

#: Iterations that are timed, and those before them.
STEPS, WARM_UP = 20, 6

#: Samples a rank.
BATCH = 2

#: How often an empty kernel is waited for.
ROUNDS = 200


class Issued(NamedTuple):
    """Seconds of the host: for each op (0: it was not issued), and for an iteration from begin to end."""

    ops: list[float]
    iteration: float


class _Clocked(StreamLanes):
    """Notes how long the host takes for each iteration, from where it may begin it."""

    def start(self, iterations: int) -> None:
        super().start(iterations)
        self.took_ns: list[int] = []

    def begin(self, iteration: int) -> None:
        super().begin(iteration)
        self._begin_ns = perf_counter_ns()

    def mark(self) -> None:
        super().mark()
        self.took_ns.append(perf_counter_ns() - self._begin_ns)


def issued(rank: Rank, note: Note, *, communicating: bool) -> Issued:
    """Return what the host of the slowest rank takes; the same on every rank."""
    training, backend = rank.training, rank.backend
    assert training is not None
    usual, training.batch = training.batch, min(BATCH, training.batch)
    recorder = Recorder(rank.lane_of_op, STEPS + rank.instances.owed + 1)
    lanes = _Clocked(
        rank.instances,
        recorder,
        note,
        run_ahead=rank.plan.execution.run_ahead,
        traced=STEPS,
        communicating=communicating,
        events=False,
    )
    note.at(WAITING)
    backend.barrier()
    rank.interpreter(lanes).run(WARM_UP + STEPS, lambda iteration: None)
    training.losses()
    training.batch = usual
    ops: list[list[float]] = [[] for _ in range(rank.instances.size)]
    for _, k, _, begin_ns, end_ns in recorder.last(WARM_UP):
        ops[k].append((end_ns - begin_ns) * 1e-9)
    own = Issued([median(s) if s else 0.0 for s in ops], median(lanes.took_ns[WARM_UP:]) * 1e-9)
    note.at(WAITING)
    found: list[Issued] = backend.exchange(own)
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
