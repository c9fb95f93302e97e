"""Watching over ranks: what ends one of them ends them all, with one line.

Model
    A job is in trouble when a rank has ended without having finished, has written that it failed, or has stayed at
    one place for the timeout. Then its peers get a moment to say what they saw, `parts.diagnose` turns all of it into
    one line, and every process of the job is ended.

    Under `simgd run --ranks N` the process that started the ranks looks after them (`supervise`). Under somebody
    else's launcher each rank does (`watch`): it sees a peer of its own host vanish, and itself waiting for too long;
    the first to see it speaks for all. In both cases a rank writes down which peer it saw vanish, at once, since a
    launcher that kills the survivors leaves them a few milliseconds.

Leaves out
    A rank that dies on another host, where only the timeout of those that wait for it tells.
"""

import os
import select
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NoReturn

from executor import processes
from executor.launch import GRACE_S, Job, start
from executor.parts import Part, Phase, State, claim, clear, diagnose, first_lost, peek, read
from simgd.errors import FileError, RunError

#: The exit status of a job that went wrong.
STATUS = 2

#: How often ranks are looked at, and how often at most progress is told.
POLL_S = 0.05
PROGRESS_S = 0.25

#: A rank that has not made its `Part` yet is given at least this long: importing torch from a slow disk takes minutes
#: to some, and says nothing about the job.
START_S = 60.0


def supervise(
    backend: Literal["mpi", "gloo", "nccl"],
    ranks: int,
    command: Sequence[str],
    *,
    parts: Path,
    timeout_s: float,
    out_name: str,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Run *command* as *ranks* ranks on this host and return its exit status once all have finished.

    *parts* is emptied first. *progress* is told how many iterations the slowest rank has finished, if that changed.
    Raises RunError, with the one line about it, if a rank died, failed or stayed at one place for *timeout_s*; no
    process of the job is left then, nor when anything else, such as Ctrl-C, interrupts it.
    """
    clear(parts)
    with start(backend, ranks, command, parts) as job:
        clock, told, told_at = _Clock(ranks, timeout_s), 0, 0.0
        while True:
            over = job.over
            dead, states = _look(job, parts)
            stuck_s = clock.stuck_s(states, time.monotonic())
            if dead or stuck_s or any(state.has_failed for state in states):
                raise RunError(_verdict(job, parts, dead, stuck_s, out_name))
            done = min((state.done for state in states), default=0) if len(states) == ranks else 0
            if progress and done > told and (over or time.monotonic() >= told_at + PROGRESS_S):
                told, told_at = done, time.monotonic()
                progress(done)
            if over:
                return job.status
            time.sleep(POLL_S)


def watch(
    part: Part, *, supervised: bool, timeout_s: float, out_name: str, abort: Callable[[int], object] | None = None
) -> None:
    """Watch over this rank and its peers from a thread of its own, for as long as the process lives.

    The process ends if its parent goes away. Without a supervisor, it also ends, and with it the job, if a peer on
    this host ends without having finished or this rank waits at one place for *timeout_s*; *abort* is what ends the
    ranks on other hosts, such as ``MPI.COMM_WORLD.Abort``. To be called from the main thread when this rank
    and, as a barrier tells, all others have made their `Part`.
    """
    if supervised:
        processes.die_with_parent()
    # the peers are looked up before we return: one that dies in its first iteration is missed as well
    work = (part, os.getppid(), _Peers(part), supervised, timeout_s, out_name, abort)
    threading.Thread(target=_watch, args=work, name="simgd watch", daemon=True).start()


def give_up(
    part: Part, message: str, *, supervised: bool, out_name: str, abort: Callable[[int], object] | None = None
) -> NoReturn:
    """End this rank, and with it the job, because of an error; without a supervisor also say why, once for all ranks.

    It never returns and runs no exit handlers, since MPI's would wait for the other ranks.
    """
    part.failed(message)
    if not supervised:
        # if a peer's death is behind the error, it is about to be seen
        time.sleep(2 * POLL_S)
        _end_job(part, None, out_name, abort)
    _exit()


class _Clock:
    """Since when each rank is where it is; by our own clock, since other hosts' clocks differ and wall clocks jump."""

    def __init__(self, ranks: int, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._places: dict[int, tuple[State | None, float]] = dict.fromkeys(range(ranks), (None, time.monotonic()))

    def stuck_s(self, states: Sequence[State], now: float) -> float | None:
        """Return the timeout that a rank has passed at one place; one that has finished may wait for the others."""
        for state in states:
            if self._places[state.rank][0] != state:
                self._places[state.rank] = state, now
        all_finished = all(known and known.phase is Phase.FINISHED for known, _ in self._places.values())
        for known, since in self._places.values():
            limit_s = self._timeout_s if known else max(self._timeout_s, START_S)
            if now - since > limit_s and (all_finished or known is None or known.phase is not Phase.FINISHED):
                return limit_s
        return None


def _look(job: Job, folder: Path) -> tuple[dict[int, str], tuple[State, ...]]:
    """Return how ranks ended that had not finished, and the states of all."""
    # in this order: a rank may finish and end between two looks
    ended = job.ended(peek(folder))
    states = peek(folder)
    finished = {state.rank for state in states if state.phase is Phase.FINISHED and not state.has_failed}
    return {rank: how for rank, how in ended.items() if rank not in finished or "signal" in how}, states


def _verdict(job: Job, folder: Path, dead: dict[int, str], timeout_s: float | None, out: str) -> str:
    """End the job and return the line about what went wrong in it."""
    deadline = time.monotonic() + (GRACE_S if timeout_s is None else 0)
    while time.monotonic() < deadline and not job.over:
        time.sleep(POLL_S)
    try:
        states = read(folder)
    except FileError:
        states = ()
    lost = first_lost(states)
    if lost is not None:
        # what ended later, a launcher or the loss of this one may have ended
        dead = {lost: job.ended(states).get(lost, "died")}
    if timeout_s is not None and not dead:
        here = processes.this_host()
        dead = {
            state.rank: "is stopped by a signal"
            for state in states
            if state.process.host == here and processes.is_stopped(state.process)
        }
    job.end()
    line = diagnose(states, out=out, dead=dead, timeout_s=timeout_s, ranks=job.ranks)
    known = {state.rank: state for state in states}
    unexplained = [
        job.errors(rank)
        for rank, how in dead.items()
        if (how == "died" and rank not in known)
        or (how.startswith("ended with") and (rank not in known or known[rank].failed is None))
    ]
    sys.stderr.write("".join(dict.fromkeys(unexplained)))
    return line


def _watch(
    part: Part,
    parent: int,
    peers: "_Peers",
    supervised: bool,
    timeout_s: float,
    out_name: str,
    abort: Callable[[int], object] | None,
) -> None:
    before, since = part.state(), time.monotonic()
    while True:
        lost = peers.lost(POLL_S * 2)
        if os.getppid() != parent:
            _exit()
        for peer in lost:
            part.gone(peer)
        if supervised:
            continue
        if lost:
            _end_job(part, None, out_name, abort)
        if (now := part.state()) != before:
            before, since = now, time.monotonic()
        if now.phase is Phase.WAITING and time.monotonic() - since > timeout_s:
            _end_job(part, timeout_s, out_name, abort)


class _Peers:
    """The ranks on this host; one counts as lost only if it was seen alive, since an older run's files may be there."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._here = processes.this_host()
        self._handles: dict[int, State] = {}
        self._without_handle: list[State] = []
        self._known = {part.rank}
        self._poll = select.poll()
        self._find()

    def lost(self, timeout_s: float) -> list[int]:
        """Wait for at most *timeout_s*; return the ranks that ended without having finished."""
        if len(self._known) < self._part.ranks:
            self._find()
        ended = []
        for handle, _ in self._poll.poll(timeout_s * 1000):
            self._poll.unregister(handle)
            os.close(handle)
            ended.append(self._handles.pop(handle).rank)
        for state in [state for state in self._without_handle if not processes.is_alive(state.process)]:
            self._without_handle.remove(state)
            ended.append(state.rank)
        if not ended:
            return []
        now = [state for state in peek(self._part.folder) if state.rank in ended]
        lost = [state for state in now if state.phase is not Phase.FINISHED or state.has_failed]
        # where several are found gone at once, one that says why may have ended for the loss of one that does not
        return [state.rank for state in sorted(lost, key=lambda state: state.has_failed)]

    def _find(self) -> None:
        for state in peek(self._part.folder):
            if state.rank in self._known:
                continue
            if state.process.host != self._here:
                self._known.add(state.rank)
            elif processes.is_alive(state.process):
                self._known.add(state.rank)
                try:
                    # it becomes readable when the process ends: seen at once, where looking would take a while
                    handle = os.pidfd_open(state.process.pid)
                except OSError:
                    # before Linux 5.3
                    self._without_handle.append(state)
                    continue
                self._handles[handle] = state
                self._poll.register(handle, select.POLLIN)


def _end_job(part: Part, timeout_s: float | None, out_name: str, abort: Callable[[int], object] | None) -> NoReturn:
    """Say once for all ranks what happened, and end this one and, where *abort* can, the others."""
    states = read(part.folder)
    lost = first_lost(states)
    dead = {} if lost is None else {lost: "died"}
    line = diagnose(states, out=out_name, dead=dead, timeout_s=timeout_s, ranks=part.ranks)
    if claim(part.folder):
        print(f"simgd: {line}", file=sys.stderr, flush=True)
    # a library that lost a rank may not even be able to abort
    fallback = threading.Timer(GRACE_S, os._exit, [STATUS])
    fallback.daemon = True
    fallback.start()
    if abort is not None:
        abort(STATUS)
    _exit()


def _exit() -> NoReturn:
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(STATUS)
