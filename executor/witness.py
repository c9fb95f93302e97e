"""Which rank of this host ended first.

Model
    The kernel tells of the end of a process through a handle on it, in the order of the ends. A launcher that kills
    the survivors of a dead rank needs a moment, and they need one to die: a process of its own has seen the first by
    then, where a thread of a survivor dies with it. `start` gives the ranks of a foreign launcher such a process. It
    sleeps until a rank ends, writes down which, and ends.

Leaves out
    Ranks on other hosts, and ends before the ranks have made their parts. A launcher reacts when the connection to a
    rank breaks, just before the rank has ended: where busy ranks have fewer cores than they are, the survivor that it
    kills is through first at times, and is taken for the first (2 of 300 kills of one of 2 ranks on 2 busy cores, under
    MPICH 5.0.2).
"""

import os
import select
import subprocess
import sys
from pathlib import Path

from executor import processes
from executor.parts import note_lost, peek
from executor.processes import Identity

#: How often to look for ranks without a handle, and for ranks that have not made their part yet.
POLL_S = 0.1


class Ends:
    """Processes of ranks, and the order in which they end."""

    def __init__(self) -> None:
        self._by_handle: dict[int, int] = {}
        self._by_looking: dict[int, Identity] = {}
        # unlike poll, epoll lists what happened since the last call in the order in which it did
        self._epoll = select.epoll()

    @property
    def are_left(self) -> bool:
        """Whether any process has not ended yet."""
        return bool(self._by_handle or self._by_looking)

    def add(self, rank: int, process: Identity) -> None:
        """Wait for a process of this host, too."""
        try:
            handle = os.pidfd_open(process.pid)
        except OSError:
            # it ended just now, or Linux is older than 5.3
            self._by_looking[rank] = process
            return
        self._by_handle[handle] = rank
        self._epoll.register(handle, select.EPOLLIN)

    def wait(self, timeout_s: float | None) -> list[int]:
        """Return the ranks whose processes ended, in that order, as soon as there are some, or after *timeout_s*."""
        if self._by_looking:
            timeout_s = min(POLL_S, timeout_s or POLL_S)
        ended = [rank for rank, process in self._by_looking.items() if not processes.is_alive(process)]
        for rank in ended:
            del self._by_looking[rank]
        for handle, _ in self._epoll.poll(0 if ended else timeout_s):
            ended.append(self._by_handle[handle])
            self._forget(handle)
        return ended

    def close(self) -> None:
        """Let go of all handles."""
        for handle in list(self._by_handle):
            self._forget(handle)
        self._epoll.close()

    def _forget(self, handle: int) -> None:
        self._epoll.unregister(handle)
        os.close(handle)
        del self._by_handle[handle]


class Peers:
    """The ranks on this host that have made their part, but for the one *without*."""

    def __init__(self, folder: Path, ranks: int, *, without: int | None = None) -> None:
        self._folder, self._here = folder, processes.this_host()
        self._unknown = [rank for rank in range(ranks) if rank != without]
        self._ends = Ends()
        self._find()

    @property
    def are_left(self) -> bool:
        """Whether any rank has not ended yet, of those that have made their part."""
        return self._ends.are_left

    def lost(self, timeout_s: float | None) -> list[int]:
        """Wait for ranks that end without having finished and return them, in the order in which they did.

        Returns an empty list after *timeout_s*, or once a rank ended as it should.
        """
        if self._unknown:
            self._find()
            timeout_s = min(POLL_S, timeout_s or POLL_S)
        ended = self._ends.wait(timeout_s)
        # rank 0 removes the parts of a job that ended well: a rank without one has not been lost
        unfinished = [state.rank for state in peek(self._folder) if not state.has_finished] if ended else []
        return [rank for rank in ended if rank in unfinished]

    def _find(self) -> None:
        for state in peek(self._folder):
            if state.rank in self._unknown:
                self._unknown.remove(state.rank)
                if state.process.host == self._here:
                    self._ends.add(state.rank, state.process)


def start(folder: Path, ranks: int) -> "subprocess.Popen[bytes]":
    """Start a witness of the ranks on this host, whose parts are in *folder*; return when it sees them."""
    witness = subprocess.Popen(
        [sys.executable, "-m", "executor.witness", str(folder), str(ranks)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # launchers kill by session
        start_new_session=True,
    )
    assert witness.stdout is not None
    with witness.stdout as ready:
        ready.read(1)
    return witness


def main(folder: Path, ranks: int) -> None:
    """Write down which rank was lost first, if one is."""
    peers = Peers(folder, ranks)
    os.write(1, b".")
    while peers.are_left:
        if lost := peers.lost(None):
            note_lost(folder, lost[0])
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
    # Python's own way out takes longer than the launcher's, after whom nothing should be left
    os._exit(0)
