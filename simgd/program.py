"""A schedule and its costs as arrays by op number: what the simulators of one rank and of many ranks run."""

import math
from collections.abc import Sequence

from simgd.schedule import Communicate, Dep, Schedule, waits_for
from simgd.soundness import Derived
from simgd.timing import ONE, Timing


class Program:
    """A schedule and its costs as arrays by op number; what all ranks share."""

    def __init__(self, schedule: Schedule, derived: Derived, timing: Timing) -> None:
        self.schedule = schedule
        self.timing = timing
        ops = schedule.ops
        number = {op.name: k for k, op in enumerate(ops)}
        self.size = len(ops)
        self.every = [op.every for op in ops]
        self.phase = [op.phase for op in ops]
        self.static = all(every == 1 for every in self.every)
        self.lane = [timing.lane_of(op.lane) for op in ops]
        self.collective = [isinstance(op.work, Communicate) for op in ops]

        def numbered(deps: Sequence[Dep]) -> list[tuple[int, int]]:
            return [(number[dep.op], dep.lag) for dep in deps]

        self.deps = [numbered((*derived.dependencies[op.name], *waits_for(op.work))) for op in ops]
        # An update is skipped while the gradient that it would apply does not exist.
        self.age = [derived.ages.get(op.name, 0) for op in ops]
        self.owed = max(self.age)
        # What the host waits for before it issues an op
        self.blocks = [
            [(dep, lag) for dep, lag in self.deps[k] if self.collective[dep]]
            if timing.wait_blocks_host and self.lane[k] != "host"
            else []
            for k in range(self.size)
        ]
        compute = [k for k, op in enumerate(ops) if op.lane == "compute"]
        # The last that runs in every iteration counts iterations; the host waits for what comes behind it, too.
        self.last_compute = max((k for k in compute if self.every[k] == 1), default=compute[-1])
        self.gate = [(k, timing.run_ahead) for k in reversed(compute) if k >= self.last_compute]
        times = [timing.ops[op.name] for op in ops]
        self.issue = [time.issue_ps for time in times]
        self.run = [time.run_ps for time in times]
        self.latency = [min(time.latency_ps, time.run_ps) for time in times]
        self.use = [time.use for time in times]
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

    def exists(self, k: int, iteration: int, iterations: int) -> bool:
        """Say whether op *k* has an instance in *iteration*: after the last of *iterations* only owed updates do."""
        if iteration % self.every[k] != self.phase[k]:
            return False
        return iteration < iterations or (0 <= iteration - self.age[k] < iterations and self.age[k] > 0)

    def awaited(self, dep: int, lag: int, iteration: int, iterations: int) -> int:
        """Return which instance of *dep* a dependency of *iteration* with *lag* means; below 0 none."""
        wanted = iteration - lag
        if not self.static:
            wanted -= (wanted - self.phase[dep]) % self.every[dep]
        if wanted >= iterations and not self.exists(dep, wanted, iterations):
            return -1
        return wanted
