"""Ranks that are threads of one process and take turns: the backend for tests and for looking at a run.

Model
    One rank runs at a time, the one that holds the baton. It gives the baton away where it must wait (`Pending.wait`
    on what has not ended, `exchange`, `barrier`) and where it asks for what has not ended (`Pending.done`); the next
    rank in number that can go on gets it. The order of events is therefore the same in every run.

    A call is a meeting: of all ranks for a collective, of two for a message, which is never buffered. When the last
    rank has come, data move, at once and for everyone; sums are taken in rank order, in the buffers' type.

    With a seed the order is drawn instead, `done` may give the baton away or say no a few times more, and half of the
    meetings hand each rank its data only when that rank's own call has ended, so that a program that forgets to wait
    reads what was there before. The same seed draws the same run.

What it leaves out
    Time: nothing overlaps, and no interconnect is modelled. A rank has one thread; ranks share what the process has
    (modules, environment), but for the state that `swap` keeps apart.
"""
# ruff: noqa: D102 (the protocol says what a backend's methods do)

import copy
import random
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, Generic, Literal, TypeVar

from executor.backends import part
from executor.backends.protocol import Buffer
from simgd.errors import BackendError
from simgd.run import BackendName

Result = TypeVar("Result")

#: What saves and what restores the state that each rank has for itself.
Swap = tuple[Callable[[], Any], Callable[[Any], None]]

#: From what the ranks brought to what each takes away, piece by piece.
Combine = Callable[[list[Any]], list[list[Any]]]

_NO_SWAP: Swap = (lambda: None, lambda state: None)

# With a seed, an ended call says up to this many times that it has not ended; enough to upset who asks only once.
_MOST_DENIALS = 3


def run(
    ranks: int, target: Callable[["Loopback"], Result], *, seed: int | None = None, swap: Swap | None = None
) -> list[Result]:
    """Run *target* once for each rank and return the results by rank.

    The first exception of a rank ends the others in their next call and is raised again, with the rank as a note.
    Each rank starts with the state that *swap* saves now, which is restored in the end.
    """
    if ranks < 1:
        raise BackendError(f"backend loopback: {ranks} ranks cannot run; 1 is the fewest")
    return _Run(ranks, target, seed=seed, swap=swap).results()


class _Ended(BaseException):
    """Unwinds a rank when the run is over for another reason."""


class _Meeting:
    """One call of several ranks: what they brought, and where each wants what it takes away."""

    def __init__(self, call: str, opener: int, parties: tuple[int, ...], combine: Combine) -> None:
        self.call = call
        self.opener = opener
        self._parties = parties
        self._combine = combine
        self._brought: dict[int, Any] = {}
        self._places: dict[int, list[Any]] = {}
        self._due: dict[int, list[Any]] = {}

    def join(self, rank: int, brought: Any, places: list[Any]) -> None:
        self._brought[rank] = brought
        self._places[rank] = places

    @property
    def complete(self) -> bool:
        return len(self._brought) == len(self._parties)

    @property
    def missing(self) -> list[int]:
        return [rank for rank in self._parties if rank not in self._brought]

    def deliver(self, rank: int) -> None:
        """Put into the places of *rank* what it takes away, unless that was done."""
        if rank not in self._places:
            return
        if not self._due:
            each = self._combine([self._brought[party] for party in self._parties])
            self._due = dict(zip(self._parties, each, strict=True))
        for place, value in zip(self._places.pop(rank), self._due.pop(rank), strict=True):
            place[:] = value

    def deliver_all(self) -> None:
        for rank in self._parties:
            self.deliver(rank)


class _Run(Generic[Result]):
    """The baton, the meetings and the ranks' ends. Only who holds the baton touches them, so nothing needs a lock."""

    def __init__(
        self, ranks: int, target: Callable[["Loopback"], Result], *, seed: int | None, swap: Swap | None
    ) -> None:
        self.ranks = ranks
        self.random = None if seed is None else random.Random(seed)
        self._target = target
        self._results: dict[int, Result] = {}
        self._failure: BaseException | None = None
        self._over = False
        self._ended = [False] * ranks
        self._gone = [threading.Event() for _ in range(ranks)]
        self._waits_in: list[_Meeting | None] = [None] * ranks
        self._open: dict[Hashable, _Meeting] = {}
        self._save, self._restore = swap or _NO_SWAP
        self._start = self._save()
        self._states = [self._start] * ranks
        # A rank gets the baton when another releases its turn.
        self._turns = [threading.Lock() for _ in range(ranks)]
        for turn in self._turns:
            turn.acquire()

    def results(self) -> list[Result]:
        # A rank alone needs no turns; in the caller's thread an interrupt reaches it.
        alone = self.ranks == 1
        for rank in () if alone else range(self.ranks):
            threading.Thread(target=self._live, args=(rank,), daemon=True).start()
        try:
            self._pass_on(self.ranks - 1)
            if alone:
                self._live(0)
            self._wait_for_all()
        except BaseException:
            # Interrupted: the rank that runs ends in its next call, and the others after it.
            self._over = True
            self._wait_for_all()
            raise
        finally:
            self._restore(self._start)
        if self._failure is not None:
            raise self._failure
        return [self._results[rank] for rank in range(self.ranks)]

    def _live(self, rank: int) -> None:
        """Run *rank* from its first turn to its end; the body of its thread."""
        self._turns[rank].acquire()
        try:
            if not self._over:
                self._restore(self._states[rank])
                self._results[rank] = self._target(Loopback(self, rank))
        except _Ended:
            pass
        except BaseException as error:
            if self._failure is None and not self._over:
                error.add_note(f"rank {rank}")
                self._failure = error
            self._over = True
        self._ended[rank] = True
        self._pass_on(rank)
        self._gone[rank].set()

    def _wait_for_all(self) -> None:
        """Return when every rank has ended; unlike joining a thread, that can be tried again after an interrupt."""
        for gone in self._gone:
            gone.wait()

    # The baton

    def _pass_on(self, rank: int) -> None:
        """Give the baton, which *rank* needs no more, to another rank if one is left."""
        if not all(self._ended):
            self._turns[self._successor(rank)].release()

    def give_way(self, rank: int) -> None:
        """Let the others run, and return when *rank* has the baton again."""
        successor = self._successor(rank)
        if successor != rank:
            self._states[rank] = self._save()
            self._turns[successor].release()
            self._turns[rank].acquire()
            if not self._over:
                self._restore(self._states[rank])
        self.check()

    def _successor(self, rank: int) -> int:
        """Return the rank that runs after *rank*; where none can, the run is over, and all get their turn to end."""
        in_turn = [(rank + step) % self.ranks for step in range(1, self.ranks + 1)]
        left = [other for other in in_turn if not self._ended[other]]
        able = [other for other in left if (meeting := self._waits_in[other]) is None or meeting.complete]
        if not able and not self._over:
            self._over = True
            self._failure = BackendError(f"backend loopback: {self._standstill()}; nobody can go on")
        if self._over:
            return left[0]
        return self.random.choice(able) if self.random else able[0]

    def _standstill(self) -> str:
        return ", ".join(
            f"rank {rank} waits in {meeting.call}" if meeting and not self._ended[rank] else f"rank {rank} has ended"
            for rank, meeting in enumerate(self._waits_in)
        )

    def check(self) -> None:
        """End the calling rank if the run is over."""
        if self._over:
            raise _Ended

    # Meetings

    def meet(
        self,
        key: Hashable,
        call: str,
        rank: int,
        parties: tuple[int, ...],
        *,
        brought: Any,
        places: list[Any],
        combine: Combine,
    ) -> _Meeting:
        """Let *rank* come to the meeting *key*, and move data if it is the last and they do not tarry."""
        self.check()
        meeting = self._open.setdefault(key, _Meeting(call, rank, parties, combine))
        if meeting.call != call:
            raise BackendError(
                f"backend loopback: rank {meeting.opener} starts {meeting.call}, rank {rank} starts {call}; "
                "all ranks start the same calls in the same order"
            )
        meeting.join(rank, brought, places)
        if meeting.complete:
            del self._open[key]
            if self.random is None or self.random.random() < 0.5:
                meeting.deliver_all()
        return meeting

    def wait_in(self, meeting: _Meeting, rank: int) -> None:
        """Return when all have come to *meeting* and *rank* has taken away what is due to it."""
        self.check()
        if not meeting.complete:
            self._waits_in[rank] = meeting
            self.give_way(rank)
            self._waits_in[rank] = None
        meeting.deliver(rank)

    def refuse_if_never(self, meeting: _Meeting, rank: int) -> None:
        """Raise if *rank* asks for what can never end."""
        gone = [other for other in meeting.missing if self._ended[other]]
        if gone:
            raise BackendError(
                f"backend loopback: rank {rank} asks for {meeting.call}, rank {gone[0]} has ended without starting it"
            )


class _Pending:
    """A meeting as one of its ranks sees it."""

    def __init__(self, run: _Run[Any], meeting: _Meeting, rank: int) -> None:
        self._run = run
        self._meeting = meeting
        self._rank = rank
        self._denials = run.random.randint(0, _MOST_DENIALS) if run.random else 0

    def done(self) -> bool:
        self._run.check()
        if not self._meeting.complete or (self._run.random and self._run.random.random() < 0.5):
            self._run.give_way(self._rank)
        if not self._meeting.complete:
            self._run.refuse_if_never(self._meeting, self._rank)
            return False
        if self._denials:
            self._denials -= 1
            return False
        self._meeting.deliver(self._rank)
        return True

    def wait(self) -> None:
        self._run.wait_in(self._meeting, self._rank)
        self._denials = 0


class Loopback:
    """One rank; see `protocol.Backend`."""

    name: BackendName = "loopback"
    library: str = "loopback"
    device: Literal["cpu", "cuda"] = "cpu"

    def __init__(self, run: _Run[Any], rank: int) -> None:
        self.rank = rank
        self.ranks = run.ranks
        self._run = run
        self._collectives = 0
        self._messages: dict[tuple[int, int], int] = {}

    def all_reduce(self, buffer: Buffer) -> _Pending:
        return self._collective(
            f"all_reduce of {_described(buffer)}",
            brought=buffer,
            places=[buffer],
            combine=lambda buffers: [[_total(buffers)]] * self.ranks,
        )

    def reduce_scatter(self, buffer: Buffer) -> _Pending:
        def parts_of_the_sum(buffers: list[Any]) -> list[list[Any]]:
            total = _total(buffers)
            return [[part(total, rank, self.ranks)] for rank in range(self.ranks)]

        return self._collective(
            f"reduce_scatter of {_described(buffer)}",
            brought=buffer,
            places=[part(buffer, self.rank, self.ranks)],
            combine=parts_of_the_sum,
        )

    def all_gather(self, buffer: Buffer) -> _Pending:
        return self._collective(
            f"all_gather of {_described(buffer)}",
            brought=part(buffer, self.rank, self.ranks),
            places=[part(buffer, rank, self.ranks) for rank in range(self.ranks)],
            combine=lambda parts: [[_copy(each) for each in parts]] * self.ranks,
        )

    def broadcast(self, buffer: Buffer, root: int) -> _Pending:
        return self._collective(
            f"broadcast of {_described(buffer)} from rank {root}",
            brought=buffer,
            places=[buffer],
            combine=lambda buffers: [[_copy(buffers[root])]] * self.ranks,
        )

    def send(self, buffer: Buffer, to: int) -> _Pending:
        return self._message(self.rank, to, buffer, places=[])

    def receive(self, buffer: Buffer, source: int) -> _Pending:
        return self._message(source, self.rank, buffer, places=[buffer])

    def exchange(self, value: object) -> list[Any]:
        gathered: list[Any] = []
        self._collective(
            "exchange",
            brought=value,
            places=[gathered],
            combine=lambda values: [[copy.deepcopy(values)] for _ in values],
        ).wait()
        return gathered

    def barrier(self) -> None:
        self._collective("barrier", brought=None, places=[], combine=lambda nothing: [[] for _ in nothing]).wait()

    def clock_ns(self) -> int:
        return time.perf_counter_ns()

    def close(self) -> None:
        """Do nothing: the run ends with its ranks."""

    def abort(self, status: int) -> None:
        raise BackendError(f"backend loopback: rank {self.rank} ended the run with status {status}")

    def _collective(self, call: str, *, brought: Any, places: list[Any], combine: Combine) -> _Pending:
        self._collectives += 1
        number = self._collectives
        everyone = tuple(range(self.ranks))
        meeting = self._run.meet(
            number,
            f"collective number {number} ({call})",
            self.rank,
            everyone,
            brought=brought,
            places=places,
            combine=combine,
        )
        return _Pending(self._run, meeting, self.rank)

    def _message(self, source: int, to: int, buffer: Buffer, *, places: list[Any]) -> _Pending:
        if source == to or not (0 <= source < self.ranks and 0 <= to < self.ranks):
            raise BackendError(f"backend loopback: no message goes from rank {source} to rank {to} of {self.ranks}")
        number = self._messages[source, to] = self._messages.get((source, to), 0) + 1
        meeting = self._run.meet(
            (source, to, number),
            f"message number {number} from rank {source} to rank {to} ({_described(buffer)})",
            self.rank,
            (source, to),
            brought=buffer,
            places=places,
            combine=lambda buffers: [[], [_copy(buffers[0])]],
        )
        return _Pending(self._run, meeting, self.rank)


def _total(buffers: list[Any]) -> Any:
    total = buffers[0]
    for buffer in buffers[1:]:
        total = total + buffer
    return total


def _copy(buffer: Any) -> Any:
    """Return a copy that shares nothing; numpy and torch name it differently."""
    return buffer.clone() if hasattr(buffer, "clone") else buffer.copy()


def _described(buffer: Any) -> str:
    return f"{len(buffer)} x {str(buffer.dtype).removeprefix('torch.')}"
