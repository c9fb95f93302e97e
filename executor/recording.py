"""What happened when on one rank: rows as they come, and the durations of every op over the whole run.

Model
    A row is (lane, op number, iteration, start, end) on the rank's own clock, in nanoseconds; a row on the host lane
    of an op that another lane runs is its issuing. Rows of the last iterations are kept, of older ones only the
    durations. Adding a row is one append; `cost_s` measures what that and reading the clock take.
"""

from collections import deque
from collections.abc import Sequence
from statistics import median
from time import perf_counter_ns

from simgd.schedule import Lane

Row = tuple[Lane, int, int, int, int]


class Recorder:
    """The rows of one rank; *lanes* names the lane of each op, *kept* says how many of the last iterations stay.

    `durations_ns` holds (iteration, duration) by op, `count` the number of rows.
    """

    def __init__(self, lanes: Sequence[Lane], kept: int) -> None:
        self.lanes = list(lanes)
        self.durations_ns: list[list[tuple[int, int]]] = [[] for _ in lanes]
        self.count = 0
        self._kept: deque[list[Row]] = deque(maxlen=max(kept, 1))
        self._rows: list[Row] = []
        self.add = self._rows.append

    def next_iteration(self) -> None:
        """Close the rows of an iteration, and note how long its ops took; issuing is not counted."""
        self.count += len(self._rows)
        for lane, k, iteration, start, end in self._rows:
            if lane == self.lanes[k]:
                self.durations_ns[k].append((iteration, end - start))
        self._kept.append(self._rows)
        self._rows = []
        self.add = self._rows.append

    def last(self, first_iteration: int) -> list[Row]:
        """Return the rows of *first_iteration* and of later ones."""
        return [row for rows in (*self._kept, self._rows) for row in rows if row[2] >= first_iteration]


def cost_s(events: int = 2000) -> float:
    """Return the seconds that recording one row takes, two readings of the clock included: a median of 5."""
    found = []
    for _ in range(5):
        recorder = Recorder(["host"], 1)
        begin = perf_counter_ns()
        for iteration in range(events):
            start = perf_counter_ns()
            recorder.add(("host", 0, iteration, start, perf_counter_ns()))
        found.append((perf_counter_ns() - begin) / events * 1e-9)
    return median(found)
