"""Watching over ranks: what ends one of them ends them all, with one line.

Model
    A job is in trouble when a rank has ended without having finished, has written that it failed, or has stayed at
    one place for the timeout. Then its peers get a moment to say what they saw, `parts.diagnose` turns all of it into
    one line, and every process of the job is ended.

    Under `simgd run --ranks N` the process that started the ranks looks after them (`supervise`). Under somebody
    else's launcher each rank does (`watch`): it sees a peer of its own host vanish, and itself waiting for too long;
    the first to see it speaks for all. A launcher that kills the survivors leaves them no time to: then a `witness`
    has written down which rank vanished first, and `parts.post_mortem` gives the line.

Leaves out
    A rank that dies on another host, where only the timeout of those that wait for it tells.
"""

import functools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Literal, NoReturn

from executor import processes, witness
from executor.launch import GRACE_S, Job, Launched, start
from executor.parts import Part, Phase, State, claim, clear, diagnose, first_lost, note_lost, peek, read
from executor.witness import Ends, Peers
from simgd.errors import FileError, RunError

#: The exit status of a job that went wrong.
STATUS = 2

#: How often ranks are looked at, and how often at most progress is told.
POLL_S = 0.05
PROGRESS_S = 0.25

#: How long the ranks that are left get to say what they saw, if all of them already wait or have failed; the others
#: get the whole grace to come to where they wait.
SETTLED_S = 0.2

#: A rank that has not begun its first op yet is given at least this long: importing torch from a slow disk takes
#: minutes to some, and says nothing about the job.
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
    with start(backend, ranks, command, parts) as job, closing(_Losses(job, parts)) as losses:
        clock, told, told_at = _Clock(ranks, timeout_s), 0, 0.0
        while True:
            states = losses.look()
            stuck_s = clock.stuck_s(states, time.monotonic())
            if losses.lost or stuck_s or any(state.has_failed for state in states):
                raise RunError(_verdict(job, losses, parts, stuck_s, out_name))
            job.relay()
            done = min((state.done for state in states), default=0) if len(states) == ranks else 0
            if progress and done > told and (losses.over or time.monotonic() >= told_at + PROGRESS_S):
                told, told_at = done, time.monotonic()
                progress(done)
            if losses.over:
                return job.status


def watch(
    part: Part,
    launched: Launched,
    *,
    timeout_s: float,
    out_name: str,
    abort: Callable[[int], object] | None = None,
) -> None:
    """Watch over this rank and its peers from a thread of its own, for as long as the process lives.

    The process ends if its parent goes away. Without a supervisor, it also ends, and with it the job, if a peer on
    this host ends without having finished or this rank waits at one place for *timeout_s*; *abort* is what ends the
    ranks on other hosts, such as ``MPI.COMM_WORLD.Abort``. To be called from the main thread when this rank and, as a
    barrier tells, all others have made their `Part`.
    """
    parent, witnesses = os.getppid(), []
    if launched.supervised:
        processes.die_with_parent()
        work = functools.partial(_watch_parent, parent)
    else:
        if launched.local_rank == 0:
            witnesses.append(witness.start(part.folder, part.ranks))
        # the peers are looked up before we return: one that dies in its first iteration is missed as well
        peers = Peers(part.folder, part.ranks, without=part.rank)
        work = functools.partial(_watch_all, parent, witnesses, part, peers, timeout_s, out_name, abort)
    threading.Thread(target=work, name="simgd watch", daemon=True).start()


def give_up(
    part: Part, launched: Launched, message: str, *, out_name: str, abort: Callable[[int], object] | None = None
) -> NoReturn:
    """End this rank, and with it the job, because of an error; without a supervisor also say why, once for all ranks.

    It never returns and runs no exit handlers, since MPI's would wait for the other ranks.
    """
    part.failed(message)
    if not launched.supervised:
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
            started = known is not None and known.phase is not Phase.STARTING
            # Ending takes a library its time as starting does.
            limit_s = self._timeout_s if started and not all_finished else max(self._timeout_s, START_S)
            if now - since > limit_s and (all_finished or known is None or known.phase is not Phase.FINISHED):
                return limit_s
        return None


class _Losses:
    """The ranks of a job that ended without having finished, in the order in which they did."""

    def __init__(self, job: Job, folder: Path) -> None:
        self._job, self._folder = job, folder
        self._ends = Ends()
        self.lost: list[int] = []
        self.over = False

    def look(self) -> tuple[State, ...]:
        """Wait until a rank ends, or for a while, and return the states of all ranks."""
        for rank, process in self._job.appeared().items():
            self._ends.add(rank, process)
        # asked first: once it is over, what is seen after that is all there will be
        self.over = self._job.over
        ended = self._ends.wait(0 if self.over else POLL_S)
        states = peek(self._folder)
        finished = [state.rank for state in states if state.has_finished]
        self.lost += [rank for rank in ended if rank not in finished or "signal" in self._job.how(rank)]
        if self.over and not self.lost:
            # so short-lived that nobody saw them
            self.lost += [rank for rank in range(self._job.ranks) if rank not in finished]
        return states

    def are_settled(self, passed_s: float) -> bool:
        """Say whether, that long after the trouble, the ranks that are left have nothing more to tell."""
        left = [state for state in peek(self._folder) if state.rank not in self.lost]
        quiet = all(state.has_failed or state.phase is Phase.WAITING for state in left)
        return passed_s > (SETTLED_S if quiet else GRACE_S)

    def close(self) -> None:
        """Let go of the processes."""
        self._ends.close()


def _verdict(job: Job, losses: _Losses, folder: Path, stuck_s: float | None, out: str) -> str:
    """End the job and return the line about what went wrong in it."""
    since = time.monotonic()
    while not (stuck_s or losses.over or losses.are_settled(time.monotonic() - since)):
        losses.look()
    states = _read(folder)
    # what ended later, a launcher or the loss of the first may have ended; only the same error is worth a word
    hows = {rank: job.how(rank) for rank in losses.lost}
    first = losses.lost[:1]
    dead = {rank: how for rank, how in hows.items() if rank in first or (how == hows[first[0]] and "raised" in how)}
    if stuck_s and not dead:
        dead = _stopped(states)
    job.end()
    explained = [state.rank for state in states if state.failed]
    # such an end says nothing by itself; what the rank wrote before may
    started = [state.rank for state in states]
    bare = [
        rank for rank, how in dead.items() if how.startswith("ended with") or (how == "died" and rank not in started)
    ]
    sys.stderr.write("".join(dict.fromkeys(job.errors(rank) for rank in bare if rank not in explained)))
    line = diagnose(states, out=out, dead=dead, timeout_s=stuck_s, ranks=job.ranks)
    claim(folder, line)
    return line


def _read(folder: Path) -> tuple[State, ...]:
    try:
        return read(folder)
    except FileError:
        return ()


def _stopped(states: Sequence[State]) -> dict[int, str]:
    """Return the ranks on this host that neither run nor end."""
    here = processes.this_host()
    stopped = [state for state in states if state.process.host == here and processes.is_stopped(state.process)]
    return {state.rank: "is stopped by a signal" for state in stopped}


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(2 * POLL_S)
    _exit()


def _watch_all(
    parent: int,
    witnesses: "list[subprocess.Popen[bytes]]",
    part: Part,
    peers: Peers,
    timeout_s: float,
    out_name: str,
    abort: Callable[[int], object] | None,
) -> None:
    before, since = part.state(), time.monotonic()
    while True:
        lost = peers.lost(2 * POLL_S)
        if os.getppid() != parent:
            _exit()
        if lost:
            note_lost(part.folder, lost[0])
            _end_job(part, None, out_name, abort)
        if (now := part.state()) != before:
            before, since = now, time.monotonic()
        if now.phase is Phase.WAITING and time.monotonic() - since > timeout_s:
            _end_job(part, timeout_s, out_name, abort)


def _end_job(part: Part, timeout_s: float | None, out_name: str, abort: Callable[[int], object] | None) -> NoReturn:
    """Say once for all ranks what happened, and end this one and, where *abort* can, the others."""
    states = _read(part.folder)
    lost = first_lost(part.folder)
    dead = {lost: "died"} if lost is not None else _stopped(states) if timeout_s else {}
    line = diagnose(states, out=out_name, dead=dead, timeout_s=timeout_s, ranks=part.ranks)
    if claim(part.folder, line):
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
