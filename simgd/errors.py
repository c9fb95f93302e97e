"""What can go wrong, as few classes with one message each.

Every message is one line that says where, what was found, and what would be right. An exception takes the message
and nothing else, since SimPy, pickle and MPI re-create exceptions from their arguments.
"""

import difflib
from collections.abc import Iterable


class SimgdError(ValueError):
    """Input that simgd cannot use; the command line prints it and ends with status 2.

    It is a ValueError so that msgspec, when a value refuses itself while a file is read, adds the place in the file.
    """


class UnitError(SimgdError):
    """A quantity whose number or unit cannot be read."""


class FileError(SimgdError):
    """A file that cannot be read or written, or that holds something else than it should."""


class UnknownNameError(SimgdError):
    """A name that is not in a closed set of names."""


class WorkloadError(SimgdError):
    """A workload that contradicts itself."""


class ClusterError(SimgdError):
    """A cluster that no machine could be, or that lacks what was asked of it."""


class ProfileError(SimgdError):
    """A profile that lacks a cost, or holds an impossible one."""


class ScheduleError(SimgdError):
    """A schedule that no machine could run to its end, or that would train wrongly."""


class BackendError(SimgdError):
    """A communication library that is missing, does not fit the launcher, or lost a rank."""


class RunError(SimgdError):
    """A run that went wrong on a rank: a loss that is no number, replicas that differ, a gradient that never came."""


def unknown(what: str, name: str, known: Iterable[str], hint: str = "") -> UnknownNameError:
    """Return the error for *name*, with the nearest of the *known* names; *hint* says what shows them all.

    >>> print(unknown("cluster", "dgx3-v100", ["dgx1-p100", "dgx2-v100"]))
    cluster 'dgx3-v100' is unknown; did you mean 'dgx2-v100'?
    >>> print(unknown("optimizer", "x", ["sgd", "adamw"]))
    optimizer 'x' is unknown; it is one of sgd, adamw
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    shown = repr(name if len(name) <= 60 else f"{name[:60]}...")
    if near:
        return UnknownNameError(f"{what} {shown} is unknown; did you mean {near[0]!r}? {hint}".rstrip())
    return UnknownNameError(f"{what} {shown} is unknown; {hint or 'it is one of ' + ', '.join(names)}")
