"""Which processes live, told from Linux's /proc and without being their parent.

Model
    A process is its number, the tick at which it started and the host on which that number counts (boot and
    process-number space), so that a number used again, or one of another machine, is never taken for it. A process
    that has ended but was not collected by its parent is gone. What `mark` put into the environment of a first
    process stands in that of all its descendants, whatever groups and sessions they moved to: that finds what a
    launcher started.

Leaves out
    Systems without /proc, where every process seems gone; processes of other users, whose environment is not shown.
"""

import ctypes
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

#: The variable that holds a job's mark.
MARK = "SIMGD_JOB"

_PR_SET_PDEATHSIG = 1


class Identity(NamedTuple):
    """One process of one host, as three numbers."""

    host: int
    pid: int
    born: int


def boot() -> str:
    """Return what all processes of one host share, and with it the monotonic clock: the identity of its boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return os.uname().nodename


def this_host() -> int:
    """Return a number that two processes share if their process numbers mean the same."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return int.from_bytes(blake2b((boot() + space).encode(), digest_size=8).digest(), "big")


def identity(pid: int) -> Identity:
    """Return the identity of a process of this host; one that is gone already is never alive."""
    return Identity(this_host(), pid, _stat(pid)[1])


def is_alive(process: Identity) -> bool:
    """Say whether *process*, of this host, still runs."""
    state, born = _stat(process.pid)
    return born == process.born and state not in "ZX"


def is_stopped(process: Identity) -> bool:
    """Say whether *process*, of this host, was stopped by a signal and not continued."""
    state, born = _stat(process.pid)
    return born == process.born and state in "Tt"


def marked(mark: str) -> dict[int, Mapping[str, str]]:
    """Return the environments of the living processes that carry *mark*, by process number."""
    wanted = f"{MARK}={mark}".encode()
    found: dict[int, Mapping[str, str]] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc") else []:
        if name.isdecimal():
            try:
                words = Path("/proc", name, "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if wanted in words:
                pairs = (word.decode(errors="replace").partition("=") for word in words)
                found[int(name)] = {key: value for key, _, value in pairs}
    return found


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends, even by SIGKILL."""
    if hasattr(libc := ctypes.CDLL(None), "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def send(pid: int, *numbers: signal.Signals) -> None:
    """Send signals to a process, which may be gone."""
    with suppress(ProcessLookupError):
        for number in numbers:
            os.kill(pid, number)


def _stat(pid: int) -> tuple[str, int]:
    """Return the state letter of a process and the tick of its start; "X", -1 for one that is gone."""
    try:
        # the name in brackets may hold anything; the fields after it are state, parent, ... and as the 20th the start
        fields = Path("/proc", str(pid), "stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, IndexError):
        return "X", -1
