"""A schedule and its costs as arrays by op number: what the simulators of one rank and of many ranks run."""

import math
from collections.abc import Sequence

from simgd.instances import Instances
from simgd.schedule import Backward, Communicate, Forward, Schedule, Work
from simgd.soundness import Derived
from simgd.timing import ONE, Timing


class Program(Instances):
    """A schedule and its costs as arrays by op number; what all ranks share."""

    def __init__(self, schedule: Schedule, derived: Derived, timing: Timing) -> None:
        super().__init__(schedule, derived)
        self.timing = timing
        ops = schedule.ops
        self.lane = [timing.lane_of(op.lane) for op in ops]
        # What the host waits for before it issues an op
        self.blocks = [
            [(dep, lag) for dep, lag in self.deps[k] if self.collective[dep]]
            if timing.wait_blocks_host and self.lane[k] != "host"
            else []
            for k in range(self.size)
        ]
        gates = [k for k, op in enumerate(ops) if op.lane == "compute" and k >= self.last_compute]
        self.gate = [(k, timing.run_ahead) for k in reversed(gates)]
        times = [timing.ops[op.name] for op in ops]
        self.issue = [time.issue_ps for time in times]
        self.run = [time.run_ps for time in times]
        self.latency = [min(time.latency_ps, time.run_ps) for time in times]
        self.use = [time.use for time in times]
        self.looks = [time.looks for time in times]
        self.least = [min(time.least_ps, time.run_ps) for time in times]
        self.post = [time.post_ps for time in times]
        # A pass begins with the hook of its module besides; a backward pass ends with those of a layer's two tensors.
        self.looks_before = _looks([op.work for op in ops])
        # Whether a collective's time depends on more than its work and what runs beside it
        self.stateful = any(self.looks) or any(self.post) or timing.burst_ps > 0 or timing.cold_ps > 0
        self.slowed = [time.slowed for time in times]
        # Slow-downs of collectives as levels: small integers compare faster than fractions, and far more often.
        factors = sorted({ONE, *(time.slows for time in times)})
        self.level = [factors.index(time.slows) for time in times]
        self.interferes = timing.interferes
        self.lanes: list[str] = list(dict.fromkeys(lane for lane in self.lane if lane != "host"))
        self.of_lane: dict[str, list[int]] = {
            lane: [k for k in range(self.size) if self.lane[k] == lane] for lane in self.lanes
        }
        # The parts into which a picosecond of work is cut, so that all rates are whole
        self.unit = math.lcm(*(factor.numerator for factor in (*self.slowed, *factors)))
        self.pace = [self.unit * factor.denominator // factor.numerator for factor in factors]
        self.slowed_pace = [self.unit * factor.denominator // factor.numerator for factor in self.slowed]


def _looks(works: Sequence[Work]) -> list[int]:
    """Return how often a host that polls looks at its collectives where each op begins.

    It looks at the begin of each op, in the hook before a module's forward pass, and in that of each tensor's gradient.
    """
    found = []
    local: Work | None = None
    for work in works:
        found.append(1 + isinstance(work, Forward) + 2 * isinstance(local, Backward))
        if not isinstance(work, Communicate):
            local = work
    return found
