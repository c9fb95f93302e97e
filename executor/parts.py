"""What the ranks of a run leave behind in `OUT.parts/` while they run, and the one line that it amounts to.

Model
    Each rank owns two files. `rank-R.state` is a few numbers in shared memory: who the rank is (host, process), where
    it is (phase, op, iteration), since when, and how many iterations it has finished. A rank updates it by a single
    store, so that whatever kills the rank, the last place stays. `rank-R.jsonl` holds a header with the names of the
    ops, a line for each finished iteration, and the error that ended the rank. `lost` holds which ranks were seen to
    vanish, in that order. A reader takes whatever is there; a half-written last line does not count.

    `diagnose` is a function of what was read: which rank is to blame, where it is, and who waits for it where.

Leaves out
    Folders that are not of one machine: a shared file system may show another host's state late, so that a place
    read there is the last one known, and nothing is concluded from the process numbers of another host.
"""

import mmap
import os
import re
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from enum import IntEnum
from pathlib import Path

import msgspec

from executor import processes
from executor.processes import Identity
from simgd.errors import FileError

#: magic, host, pid, start of the process, rank, ranks; place, time of the last change in ns; finished iterations
_STATE = struct.Struct("@9Q")
_PLACE = struct.Struct("@QQ")
_DONE = struct.Struct("@Q")
_PLACE_AT, _DONE_AT = 6 * 8, 8 * 8
_MAGIC = int.from_bytes(b"simgd\x00\x00\x01", "big")

# A place is one word, hence one store: iteration, op + 1, phase, and whether the rank has failed there.
_OP_BITS, _ITERATION_BITS = 24, 36
_PHASE_AT = _ITERATION_BITS + _OP_BITS
_FAILED = 1 << 63

_SAID, _LOST = "said", "lost"


class Phase(IntEnum):
    """What a rank does; `WAITING` is waiting for other ranks."""

    STARTING = 0
    RUNNING = 1
    WAITING = 2
    FINISHED = 3


#: The bits of each phase, kept since shifting an enumeration's member is slow and `Part.at` is called twice an op.
_BITS = [phase << _PHASE_AT for phase in Phase]


class Iteration(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A finished iteration."""

    number: int
    seconds: float
    loss: float | None = None


class Header(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The first line of a rank: its ops in the order of their numbers, and names of what runs."""

    rank: int
    ranks: int
    ops: tuple[str, ...]
    names: dict[str, str] = {}


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The error that ended a rank."""

    message: str
    at_ns: int


_LINE = msgspec.json.Decoder(Header | Iteration | Failed)


class State(msgspec.Struct, frozen=True, kw_only=True):
    """One rank as its files show it; what follows `done` is known to `read` only."""

    rank: int
    ranks: int
    process: Identity
    phase: Phase
    op: int | None
    iteration: int
    has_failed: bool = False
    changed_ns: int = 0
    done: int = 0
    ops: tuple[str, ...] = ()
    names: dict[str, str] = {}
    iterations: tuple[Iteration, ...] = ()
    failed: Failed | None = None

    @property
    def has_finished(self) -> bool:
        """Whether the rank has done all that it had to."""
        return self.phase is Phase.FINISHED and not self.has_failed

    @property
    def place(self) -> str:
        """Say where the rank is, as the end of a sentence.

        >>> me = Identity(host=0, pid=1, born=0)
        >>> State(rank=1, ranks=2, process=me, phase=Phase.WAITING, op=0, iteration=7, ops=("all_reduce fc6",)).place
        "in op 'all_reduce fc6' of iteration 7"
        """
        if self.phase is Phase.STARTING:
            return "while starting"
        if self.phase is Phase.FINISHED:
            return "after its last iteration"
        return f"in {self.op_name}iteration {self.iteration}"

    @property
    def order(self) -> tuple[int, int]:
        """Return where the rank is, as what can be compared: ranks do the same ops in the same order."""
        return self.iteration, -1 if self.op is None else self.op

    @property
    def op_name(self) -> str:
        """Return "op 'NAME' of ", or nothing between ops."""
        if self.op is None:
            return ""
        return f"op {self.ops[self.op]!r} of " if self.op < len(self.ops) else f"op {self.op} of "


class Part:
    """The writer of one rank's files; it replaces what an earlier run left under the same rank.

    *ops* are the names of the rank's ops; `at` takes their numbers in it.
    """

    def __init__(
        self, folder: Path, rank: int, ranks: int, ops: Sequence[str], names: Mapping[str, str] | None = None
    ) -> None:
        self.folder, self.rank, self.ranks = folder, rank, ranks
        state, lines = folder / f"rank-{rank}.state", folder / f"rank-{rank}.jsonl"
        content = _STATE.pack(
            _MAGIC, *processes.identity(os.getpid()), rank, ranks, _BITS[Phase.STARTING], time.time_ns(), 0
        )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lines = os.open(lines, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
            self._write(Header(rank=rank, ranks=ranks, ops=tuple(ops), names=dict(names or {})))
            # under another name until it is whole: readers may look at any time
            fresh = folder / f".rank-{rank}.state"
            fresh.write_bytes(content)
            with fresh.open("r+b") as file:
                self._state = mmap.mmap(file.fileno(), len(content))
            fresh.replace(state)
        except OSError as error:
            raise FileError(f"{folder}: cannot be written: {error.strerror or error}") from None
        self._now = _BITS[Phase.STARTING]

    def at(self, phase: Phase, op: int | None = None, iteration: int = 0) -> None:
        """Note where the rank is: it does, or waits for, the op of that number (None: no op) of that iteration."""
        self._now = _BITS[phase] | (0 if op is None else op + 1) << _ITERATION_BITS | iteration
        _PLACE.pack_into(self._state, _PLACE_AT, self._now, time.time_ns())

    def iteration(self, number: int, seconds: float, loss: float | None = None) -> None:
        """Append a finished iteration."""
        self._write(Iteration(number=number, seconds=seconds, loss=loss))
        _DONE.pack_into(self._state, _DONE_AT, _DONE.unpack_from(self._state, _DONE_AT)[0] + 1)

    def failed(self, message: str) -> None:
        """Append the error that ends this rank, made one line; the rank stays where it was."""
        self._write(Failed(message=" ".join(message.split()), at_ns=time.time_ns()))
        _PLACE.pack_into(self._state, _PLACE_AT, self._now | _FAILED, time.time_ns())

    def state(self) -> State:
        """Return where this rank is, as a reader would see it."""
        found = _state(self._state[:])
        assert found is not None
        return found

    def close(self) -> None:
        """Close the files; they stay."""
        self._state.close()
        os.close(self._lines)

    def _write(self, line: Header | Iteration | Failed) -> None:
        # one call of the system for a line: two threads' lines do not mix, and the kernel has it when we are killed
        os.write(self._lines, msgspec.json.encode(line) + b"\n")


def clear(folder: Path) -> None:
    """Remove what an earlier run left in *folder*, and make it if there is none.

    To be called before any rank of the new run makes its `Part`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in [*folder.glob("rank-*"), *folder.glob(".rank-*"), folder / _SAID, folder / _LOST]:
            file.unlink(missing_ok=True)
    except OSError as error:
        raise FileError(f"{folder}: cannot be written: {error.strerror or error}") from None


def claim(folder: Path, line: str) -> bool:
    """Keep *line* as what happened, and say whether the caller is the first to tell, and so the one to print it."""
    try:
        with (folder / _SAID).open("x") as file:
            file.write(line)
    except OSError:
        return False
    return True


def peek(folder: Path) -> tuple[State, ...]:
    """Return where each rank is, in the order of the ranks, without reading what they wrote; cheap enough to poll."""
    states = []
    for file in folder.glob("rank-*.state"):
        try:
            state = _state(file.read_bytes())
        except OSError:
            continue
        if state is not None and file.name == f"rank-{state.rank}.state":
            states.append(state)
    return tuple(sorted(states, key=lambda state: state.rank))


def read(folder: Path) -> tuple[State, ...]:
    """Return all that the ranks left in *folder*, in the order of the ranks; ranks may be missing.

    Raises FileError if nothing usable is there.
    """
    states = tuple(_with_lines(folder, state) for state in peek(folder))
    if not states:
        raise FileError(f"{folder}: holds no state of any rank; ranks of a run leave rank-0.state there")
    return states


def iterations(folder: Path) -> dict[int, tuple[Iteration, ...]]:
    """Return the finished iterations of each rank that left a part; of a killed job, some ranks may hold more."""
    return {state.rank: state.iterations for state in read(folder)}


def note_lost(folder: Path, rank: int) -> None:
    """Write down that *rank* was seen to vanish."""
    with suppress(OSError), (folder / _LOST).open("a") as file:
        file.write(f"{rank}\n")


def first_lost(folder: Path) -> int | None:
    """Return the rank that was seen to vanish before any other, if one was: a launcher may have killed the others."""
    try:
        first = (folder / _LOST).read_text().partition("\n")[0]
    except (OSError, UnicodeDecodeError):
        return None
    return int(first) if first.isdecimal() else None


def post_mortem(folder: Path, out: str) -> str:
    """Return the line for a job that left nothing but its parts: what was said when it ended, or what they amount to.

    Raises FileError if they hold nothing usable.
    """
    states = read(folder)
    with suppress(OSError, UnicodeDecodeError):
        if line := (folder / _SAID).read_text():
            return line
    here = processes.this_host()
    running = [state.rank for state in states if state.process.host == here and processes.is_alive(state.process)]
    if running:
        return f"{_do(running, 'still runs', 'still run')}; {_holds(states, states[0].ranks, out)}"
    if all(state.has_finished for state in states) and len(states) == states[0].ranks:
        return f"{rank_list(state.rank for state in states)} finished; {_holds(states, len(states), out)}"
    lost = first_lost(folder)
    return diagnose(states, out=out, dead={} if lost is None else {lost: "died"})


def diagnose(
    states: Sequence[State],
    *,
    out: str,
    dead: Mapping[int, str] | None = None,
    timeout_s: float | None = None,
    ranks: int | None = None,
) -> str:
    """Return one line: which rank is to blame and where it is, who waits for it where, and what *out* holds.

    *dead* says how ranks ended that others then had to miss, such as "was killed by signal 9". One of those that left
    no message of its own is to blame first, since its peers' messages only tell of its loss; else the earliest
    message is what happened; else the job hangs, for *timeout_s* where that is known, and a rank that does not wait,
    or waits at an earlier op than all others, is to blame. *ranks* is for a job of which no state is left.
    """
    world = ranks or max([state.ranks for state in states], default=0) or max(dead or [0]) + 1
    known = {state.rank: state for state in states}
    silent = {rank: how for rank, how in (dead or {}).items() if rank not in known or known[rank].failed is None}
    failures = [state.failed for state in states if state.failed]
    if silent:
        blamed, what = _silent(known, silent)
    elif failures:
        message = min(failures, key=lambda failed: failed.at_ns).message
        blamed = [state.rank for state in states if state.failed and state.failed.message == message]
        if len(blamed) == world:
            return message
        what = message if re.search(r"\branks? \d", message) else f"{rank_list(blamed)}: {message}"
        if "iteration" not in message:
            what += f", {known[blamed[0]].place}"
    else:
        return f"{_hang(known, world, timeout_s)}; {_holds(states, world, out)}"
    return "; ".join([what, *_waiters(known, blamed), _holds(states, world, out)])


def rank_list(ranks: Iterable[int]) -> str:
    """Return ranks as text.

    >>> rank_list([3]), rank_list([0, 1, 2, 5])
    ('rank 3', 'ranks 0-2, 5')
    """
    spans: list[list[int]] = []
    for rank in sorted(ranks):
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
    return f"rank {text}" if text.isdecimal() else f"ranks {text}"


def _silent(known: Mapping[int, State], silent: Mapping[int, str]) -> tuple[list[int], str]:
    """Return the ranks that ended as the first of the *silent* did, and that in words."""
    ends = {rank: f"{silent[rank]} {_place(known.get(rank))}" for rank in sorted(silent)}
    first = next(iter(ends.values()))
    blamed = [rank for rank, end in ends.items() if end == first]
    return blamed, f"{rank_list(blamed)} {first if len(blamed) == 1 else first.replace('was ', 'were ', 1)}"


def _hang(known: Mapping[int, State], world: int, timeout_s: float | None) -> str:
    """Say who keeps whom waiting, all ranks being alive or nobody knowing which died."""
    lasting = "" if timeout_s is None else f" for {timeout_s:g} s"
    finished = [rank for rank, state in known.items() if state.phase is Phase.FINISHED]
    waiting = [rank for rank, state in known.items() if state.phase is Phase.WAITING]
    late = [rank for rank in range(world) if rank not in known or known[rank].phase < Phase.WAITING]
    if len(finished) == world:
        return f"{rank_list(finished)} finished but did not end{lasting}"
    if not waiting:
        return "; ".join(f"{rank_list(ranks)} stayed{lasting} {place}" for place, ranks in _places(known, late).items())
    last = min(waiting, key=lambda rank: known[rank].order)
    blamed = late or [rank for rank in waiting if known[rank].order == known[last].order]
    if len(blamed) == len(waiting) and not late:
        # nobody is behind: those that went home are to blame, or nobody
        blamed = finished
    left = min((rank for rank in waiting if rank not in blamed), key=lambda rank: known[rank].order)
    there = [rank for rank in waiting if known[rank].order == known[left].order]
    where = f"{known[left].op_name}iteration {known[left].iteration}"
    if not blamed:
        return f"{_do(there, 'waits', 'all wait')} in {where}{lasting}"
    return "; ".join(
        [
            f"{rank_list(blamed)} left {where} unanswered{lasting}",
            f"{_do(there, 'waits', 'wait')} there",
            *(f"{_do(ranks, 'is', 'are')} {place}" for place, ranks in _places(known, blamed).items()),
            *_waiters(known, [*blamed, *there]),
        ]
    )


def _waiters(known: Mapping[int, State], other_than: Sequence[int]) -> list[str]:
    """Say where ranks wait, ranks at one place together."""
    waiting = [rank for rank, state in known.items() if state.phase is Phase.WAITING and rank not in other_than]
    return [f"{_do(ranks, 'waits', 'wait')} {place}" for place, ranks in _places(known, waiting).items()]


def _places(known: Mapping[int, State], ranks: Iterable[int]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for rank in ranks:
        places.setdefault(_place(known.get(rank)), []).append(rank)
    return places


def _place(state: State | None) -> str:
    return "before starting" if state is None else state.place


def _do(ranks: Sequence[int], one: str, several: str) -> str:
    return f"{rank_list(ranks)} {one if len(ranks) == 1 else several}"


def _holds(states: Sequence[State], world: int, out: str) -> str:
    done = min((state.done for state in states), default=0) if len(states) == world else 0
    return f"{out} holds {done} iteration{'' if done == 1 else 's'}"


def _state(content: bytes) -> State | None:
    """Return the state that a file holds, or None for a file that is not one."""
    if len(content) != _STATE.size:
        return None
    magic, host, pid, born, rank, ranks, place, changed_ns, done = _STATE.unpack(content)
    if magic != _MAGIC:
        return None
    op = place >> _ITERATION_BITS & (1 << _OP_BITS) - 1
    return State(
        rank=rank,
        ranks=ranks,
        process=Identity(host=host, pid=pid, born=born),
        phase=Phase(place >> _PHASE_AT & 3),
        op=op - 1 if op else None,
        iteration=place & (1 << _ITERATION_BITS) - 1,
        has_failed=bool(place & _FAILED),
        changed_ns=changed_ns,
        done=done,
    )


def _with_lines(folder: Path, state: State) -> State:
    """Return *state* with what the rank wrote; lines that cannot be read do not count."""
    try:
        lines = (folder / f"rank-{state.rank}.jsonl").read_bytes().split(b"\n")
    except OSError:
        return state
    found: list[Header | Iteration | Failed] = []
    for line in lines:
        with suppress(msgspec.DecodeError, UnicodeDecodeError):
            found.append(_LINE.decode(line))
    header = next((line for line in found if isinstance(line, Header)), None)
    return msgspec.structs.replace(
        state,
        ops=header.ops if header else (),
        names=header.names if header else {},
        iterations=tuple(line for line in found if isinstance(line, Iteration)),
        failed=next((line for line in found if isinstance(line, Failed)), None),
    )
