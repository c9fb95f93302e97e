"""What the executor asks of a communication library: collectives and messages that are started and waited for.

Model
    A buffer is a one-dimensional numpy array or torch tensor that its owner neither moves nor frees while the call is
    pending. Every rank starts the same collectives in the same order. Starting returns at once; the buffer may be
    touched again when the `Pending` has ended. `wait` returns when it has: on the host for libraries that work on host
    memory, on the current stream (which then waits, not the host) for those that work on a GPU.

    `exchange` and `barrier` are for starting and ending a run, not for its iterations.
"""

from typing import Any, Literal, Protocol, TypeAlias

from simgd.run import BackendName

#: A one-dimensional numpy array or torch tensor.
Buffer: TypeAlias = Any


class Pending(Protocol):
    """A call that was started."""

    def done(self) -> bool:
        """Say whether it has ended, without waiting; libraries without threads of their own progress in here."""

    def wait(self) -> None:
        """Return when it has ended."""


class Backend(Protocol):
    """One rank's side of a communication library.

    `library` names it with its version and, where it is loaded from a file, that file; `device` is where its buffers
    lie. Calls raise `simgd.errors.BackendError` in one line where the library fails or a peer is gone.
    """

    name: BackendName
    rank: int
    ranks: int
    library: str
    device: Literal["cpu", "cuda"]

    def all_reduce(self, buffer: Buffer) -> Pending:
        """Replace *buffer* by its sum over all ranks."""

    def reduce_scatter(self, buffer: Buffer) -> Pending:
        """Leave the sum over all ranks of the rank-th of `ranks` equal parts in place; the other parts are then
        undefined. The length is a multiple of `ranks`."""

    def all_gather(self, buffer: Buffer) -> Pending:
        """Fill each of `ranks` equal parts of *buffer* with what the rank of that number holds there."""

    def broadcast(self, buffer: Buffer, root: int) -> Pending:
        """Replace *buffer* by that of rank *root*."""

    def send(self, buffer: Buffer, to: int) -> Pending:
        """Send *buffer* to rank *to*; messages between two ranks arrive in the order in which they were sent."""

    def receive(self, buffer: Buffer, source: int) -> Pending:
        """Fill *buffer* with the next message from rank *source*, which has the same length."""

    def exchange(self, value: object) -> list[Any]:
        """Return what every rank gave, by rank; *value* is whatever pickle takes."""

    def barrier(self) -> None:
        """Return when every rank has come here."""

    def clock_ns(self) -> int:
        """Return this rank's monotonic clock in nanoseconds; clocks of different hosts have nothing in common."""

    def close(self) -> None:
        """Leave the library in order; every rank calls it."""

    def abort(self, status: int) -> None:
        """End this process, and the others where the library can, without waiting for anyone."""
