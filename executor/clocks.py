"""Lays the clocks of ranks on each other, so that one trace holds them all.

Model
    A rank sends a message to rank 0, which answers with its time; that time is the middle of the round trip, and the
    shortest of several round trips counts, with half of it as the uncertainty. Two such estimates, before and after
    the run, give offset and drift. Ranks of one host read the same clock: nothing is corrected there, and the estimate
    only shows what the method is worth.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from executor.backends.protocol import Backend
from simgd.run import Clock

ROUNDS = 16


class Estimate(NamedTuple):
    """Rank 0's clock minus this one's, in nanoseconds, at `at_ns` of this one, give or take `uncertainty_ns`."""

    offset_ns: float
    uncertainty_ns: float
    at_ns: int


def estimate(backend: Backend) -> Estimate:
    """Return this rank's clock against rank 0's; every rank calls it."""
    if backend.rank == 0:
        for other in range(1, backend.ranks):
            _answer(backend, other)
        return Estimate(0.0, 0.0, backend.clock_ns())
    message = np.zeros(1, np.int64)
    found: list[Estimate] = []
    for _ in range(ROUNDS):
        sent = backend.clock_ns()
        backend.send(message, 0).wait()
        backend.receive(message, 0).wait()
        came = backend.clock_ns()
        found.append(Estimate(int(message[0]) - (sent + came) / 2, (came - sent) / 2, came))
    return min(found, key=lambda each: each.uncertainty_ns)


def _answer(backend: Backend, other: int) -> None:
    message = np.zeros(1, np.int64)
    for _ in range(ROUNDS):
        backend.receive(message, other).wait()
        message[0] = backend.clock_ns()
        backend.send(message, other).wait()


def clock(before: Estimate, after: Estimate, *, shared: bool) -> Clock:
    """Return how a clock lies on rank 0's, from estimates before and after a run.

    >>> clock(Estimate(1000.0, 50.0, 0), Estimate(3000.0, 80.0, 10**9), shared=False).drift
    2e-06
    """
    elapsed = after.at_ns - before.at_ns
    drift = (after.offset_ns - before.offset_ns) / elapsed if elapsed > 0 else 0.0
    return Clock(
        offset_s=0.0 if shared else before.offset_ns * 1e-9,
        drift=0.0 if shared else drift,
        uncertainty_s=max(before.uncertainty_ns, after.uncertainty_ns) * 1e-9,
        estimate_s=before.offset_ns * 1e-9,
        shared=shared,
    )


def onto_rank_0(own: Clock, before: Estimate) -> Callable[[int], float]:
    """Return what turns this rank's time into rank 0's, both in nanoseconds."""

    def convert(time_ns: int) -> float:
        return time_ns + own.offset_s * 1e9 + own.drift * (time_ns - before.at_ns)

    return convert
