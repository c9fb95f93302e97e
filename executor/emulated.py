"""The local work of a rank that only spends time: as many seconds for each op as somebody looked up, no network.

Model
    Each op ends at a deadline, its seconds after it began. A rank that computes on a GPU leaves its CPU idle: it
    sleeps, and spins only through the last 200 us, so that late wake-ups do not add up. Where collectives progress only
    when somebody looks, it naps instead, and passes by the comm lane after each nap. A rank that computes on its CPU
    spins all the time (busy) and passes by at each turn. Buffers are real and so is what is communicated;
    they hold zeros.
"""

from collections.abc import Sequence
from time import perf_counter_ns, sleep

import numpy as np

from executor.backends.protocol import Buffer
from executor.interpreter import Passes
from executor.layout import Layout
from simgd.schedule import Backward, Communicate, Forward, Schedule

#: Sleeping returns 50 to 100 us late; what is left before a deadline is spun through.
SPIN_NS = 200_000

#: A nap; with the kernel's usual slack of its timers it takes twice as long.
NAP_NS = 50_000


class Emulated:
    """Spends time instead of computing; *seconds* are those of each op on its own lane.

    *naps* says that a sleeping rank is to look at its collectives every now and then.
    """

    def __init__(
        self, schedule: Schedule, layout: Layout, seconds: Sequence[float], *, busy: bool, naps: bool = False
    ) -> None:
        self._ns = [round(each * 1e9) for each in seconds]
        self._busy = busy
        self._naps = naps
        self._passes = [k for k, op in enumerate(schedule.ops) if isinstance(op.work, (Forward, Backward))]
        gradients = {
            name: [np.zeros(store.padded, np.float32) for _ in range(store.copies)]
            for name, store in layout.gradients.items()
        }
        weights = {name: [np.zeros(store.padded, np.float32)] for name, store in layout.weights.items()}
        self._buffers = {
            k: (gradients if op.work.value == "gradient" else weights)[op.work.bucket]
            for k, op in enumerate(schedule.ops)
            if isinstance(op.work, Communicate)
        }
        self._reach: Passes | None = None

    def passes(self, iteration: int, reach: Passes) -> None:
        """Spend the time of every pass."""
        self._reach = reach
        for k in self._passes:
            reach.enter(k)
            self._spend(k)
            reach.leave(k)

    def collect(self, k: int, iteration: int) -> None:
        """Do nothing: the pass's time holds it."""

    def copy(self, k: int, iteration: int) -> None:
        """Spend the time of op *k*."""
        self._spend(k)

    update = copy

    def buffer(self, k: int, iteration: int) -> Buffer:
        """Return the flat buffer that op *k* communicates in *iteration*."""
        buffers = self._buffers[k]
        return buffers[iteration % len(buffers)]

    def summed(self, k: int, iteration: int) -> None:
        """Do nothing: the buffers hold zeros."""

    def narrow(self, k: int) -> None:
        """Return None: numpy has no 16-bit float of the wire."""

    def _spend(self, k: int) -> None:
        deadline = perf_counter_ns() + self._ns[k]
        assert self._reach is not None
        touch = self._reach.touch
        if not self._busy:
            while (left := deadline - SPIN_NS - perf_counter_ns()) > 0:
                sleep((min(left, NAP_NS) if self._naps else left) * 1e-9)
                touch()
        while perf_counter_ns() < deadline:
            touch()
