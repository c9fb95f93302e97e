"""What the ops of a schedule cost on one machine: plain numbers, the last step before time is simulated.

Durations are whole picoseconds and slow-down factors are fractions, so that ties are exact and a simulation gives the
same result on any machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction

from simgd.schedule import Lane, placed

ONE = Fraction(1)

#: Time without communication after which its code and data have left the caches: posting a message took 14-38 us after
#: a pause of 0.1 ms, 44-91 after 4 ms, 102-174 after 20 ms (MPICH over TCP on a shaped link, AMD EPYC, ranks asleep).
COOL_PS = 10_000_000_000

#: Looks in a row, from the hooks of a layer's tensors and the begin of the next op, come within so long: one look took
#: 20-60 us of the host (MPICH over TCP, AMD EPYC).
LOOKS_SPAN_PS = 100_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class OpTime:
    """Cost of one op: `issue_ps` of host time, then `run_ps` on its lane when nothing disturbs it.

    `slowed` is how many times slower a local op runs while a collective moves data, `slows` how many times slower
    collectives move data while this op runs. Of a collective, the first `latency_ps` claim no bandwidth; `use` is the
    share of each resource that it takes when alone. It needs the host to look `looks` times before it has ended, each
    time after an equal part of its data has moved (0: it needs nobody). Where the link has saved up a burst, it takes
    `least_ps` at least. To start it takes the host `post_ps` of its time, if the lane is free when it is issued; else
    whoever frees the lane does that as well.
    """

    issue_ps: int = 0
    run_ps: int = 0
    slowed: Fraction = ONE
    slows: Fraction = ONE
    latency_ps: int = 0
    use: Mapping[str, float] = field(default_factory=dict)
    looks: int = 0
    least_ps: int = 0
    post_ps: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Costs of all ops by name, and how the software runs them; see `simgd.profile.Execution`.

    `burst_ps` is what an idle link saves up at most: so much less than alone the next collective takes. A collective
    takes up to `cold_ps` more, and so does posting it, if there was none before it for `COOL_PS` or longer.
    """

    ops: Mapping[str, OpTime]
    merged: bool = False
    update_on_compute: bool = False
    wait_blocks_host: bool = False
    in_flight: int = 1
    run_ahead: int = 1
    burst_ps: int = 0
    cold_ps: int = 0

    def lane_of(self, lane: Lane) -> Lane:
        """Return the lane on which the software runs what a schedule puts on *lane*."""
        return placed(lane, merged=self.merged, update_on_compute=self.update_on_compute)

    @property
    def interferes(self) -> bool:
        """Say whether some op slows another one down."""
        return any(time.slowed != 1 or time.slows != 1 for time in self.ops.values())

    def without_interference(self) -> "Timing":
        """Return the same costs, each op as fast as when alone."""
        return replace(self, ops={name: replace(time, slowed=ONE, slows=ONE) for name, time in self.ops.items()})
