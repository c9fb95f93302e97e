"""What happened when: the ops that ran, by rank, lane and iteration; simulated and measured ones look the same.

Columns of equal length instead of a list of events: a trace of a thousand ranks has millions of rows. Times are whole
picoseconds since the start of the run.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import msgspec

from simgd.errors import FileError
from simgd.files import Document


class Event(NamedTuple):
    """One row of a trace."""

    rank: int
    lane: str
    op: str
    iteration: int
    start_ps: int
    end_ps: int


class Trace(Document, frozen=True, kw_only=True, tag="simgd trace"):
    """Rows of (rank, lane, op, iteration, start, end); `lane` and `op` are places in `lanes` and `ops`.

    Rows on the host lane are the issuing of the op they name, or the op itself where the host runs it.
    """

    origin: Literal["simulated", "measured"]
    schedule: str
    workload: str
    cluster: str
    ranks: int
    lanes: tuple[str, ...]
    ops: tuple[str, ...]
    rank: list[int]
    lane: list[int]
    op: list[int]
    iteration: list[int]
    start_ps: list[int]
    end_ps: list[int]

    def __post_init__(self) -> None:
        columns = (self.lane, self.op, self.iteration, self.start_ps, self.end_ps)
        if any(len(column) != len(self.rank) for column in columns):
            raise FileError("trace: its columns differ in length")
        for name, column, limit in (("lane", self.lane, len(self.lanes)), ("op", self.op, len(self.ops))):
            if column and not (min(column) >= 0 and max(column) < limit):
                raise FileError(f"trace: column {name!r} points outside its list of {limit} names")
        if any(end < start for start, end in zip(self.start_ps, self.end_ps, strict=True)):
            raise FileError("trace: an event ends before it starts")

    def __iter__(self) -> Iterator[Event]:
        """Yield the rows, by rank and in the order in which they were recorded."""
        for rank, lane, op, iteration, start, end in zip(
            self.rank, self.lane, self.op, self.iteration, self.start_ps, self.end_ps, strict=True
        ):
            yield Event(rank, self.lanes[lane], self.ops[op], iteration, start, end)

    def repeated(self, ranks: int) -> "Trace":
        """Return the trace of *ranks* ranks that all do what rank 0 does here."""
        rows = [place for place, rank in enumerate(self.rank) if rank == 0]

        def column(values: list[int]) -> list[int]:
            return [values[place] for place in rows] * ranks

        return msgspec.structs.replace(
            self,
            ranks=ranks,
            rank=[rank for rank in range(ranks) for _ in rows],
            lane=column(self.lane),
            op=column(self.op),
            iteration=column(self.iteration),
            start_ps=column(self.start_ps),
            end_ps=column(self.end_ps),
        )
