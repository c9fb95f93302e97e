"""Times a step of eager execution on a GPU whose host is so far ahead that it never makes the device wait.

Model
    Each iteration begins with a kernel that does nothing for as long as the host needs to issue the whole of it; from
    its end to that of the iteration's compute the device is on its own. Eager kernels follow each other less closely
    than those of a graph, by a microsecond or so: what a captured step takes less is due to that.

Known not to hold
    A device queues about a thousand launches: with more, the host has to issue the rest while the device works, which
    is fast enough unless it is the slower of the two by far.
"""

from statistics import median
from typing import Any

import torch

from executor.lanes import WAITING, Note
from executor.rank import Rank
from executor.streams import StreamLanes, stamp

#: Iterations that are timed, and those before them.
STEPS, WARM_UP = 8, 3

#: No GPU's clock is faster, in Hz: so many cycles of doing nothing take a second or more.
CLOCK = 2.2e9


class _Ahead(StreamLanes):
    """Lets the device wait at the begin of each iteration for *wait_s*."""

    def __init__(self, *given: Any, wait_s: float, **named: Any) -> None:
        super().__init__(*given, **named)
        self._cycles = round(wait_s * CLOCK)
        self.stamps: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def begin(self, iteration: int) -> None:
        super().begin(iteration)
        torch.cuda._sleep(self._cycles)  # type: ignore[no-untyped-call]
        self._first = stamp(self._compute)

    def mark(self) -> None:
        self.stamps.append((self._first, stamp(self._compute)))
        super().mark()


def step_s(rank: Rank, note: Note, issue_s: float) -> float:
    """Return the device time of an eager iteration without communication, which the host issues in *issue_s*; of the
    slowest rank."""
    assert rank.training is not None
    lanes = _Ahead(
        rank.instances,
        rank.recorder(1),
        note,
        run_ahead=rank.plan.execution.run_ahead,
        traced=0,
        communicating=False,
        wait_s=issue_s,
    )
    note.at(WAITING)
    rank.backend.barrier()
    rank.interpreter(lanes).run(WARM_UP + STEPS, lambda iteration: None)
    rank.training.losses()
    own = median(begin.elapsed_time(end) * 1e-3 for begin, end in lanes.stamps[WARM_UP:])
    return float(max(rank.backend.exchange(own)))
