"""Communication libraries behind one protocol (`protocol.Backend`): emulated ranks, MPI, and torch's gloo and NCCL.

Importing this package imports none of them; `loopback.run`, `mpi.open_mpi` and `distributed.open_distributed` do.
"""

from typing import Any

from simgd.errors import BackendError


def part(buffer: Any, rank: int, ranks: int) -> Any:
    """Return the view of the *rank*-th of *ranks* equal parts of *buffer*.

    >>> import numpy as np
    >>> part(np.arange(6), 1, 3)
    array([2, 3])
    """
    length, left = divmod(len(buffer), ranks)
    if left:
        raise BackendError(f"a buffer of {len(buffer)} elements has no {ranks} equal parts")
    return buffer[rank * length : (rank + 1) * length]
