"""Which instances of ops a run of so many iterations has, and which one a dependency means; ops are numbers here.

Model
    Instance i of an op exists where its stride says so. An update whose gradient would come from before the first
    iteration is skipped; after the last iteration only the updates that are still owed exist.
"""

from collections.abc import Sequence

from simgd.schedule import Communicate, Dep, Schedule, waits_for
from simgd.soundness import Derived


class Instances:
    """A schedule by op number: strides, dependencies, ages of gradients; what every interpreter needs of it."""

    def __init__(self, schedule: Schedule, derived: Derived) -> None:
        self.schedule = schedule
        ops = schedule.ops
        number = {op.name: k for k, op in enumerate(ops)}
        self.size = len(ops)
        self.every = [op.every for op in ops]
        self.phase = [op.phase for op in ops]
        self.static = all(every == 1 for every in self.every)
        self.collective = [isinstance(op.work, Communicate) for op in ops]

        def numbered(deps: Sequence[Dep]) -> list[tuple[int, int]]:
            return [(number[dep.op], dep.lag) for dep in deps]

        self.deps = [numbered((*derived.dependencies[op.name], *waits_for(op.work))) for op in ops]
        # An update is skipped while the gradient that it would apply does not exist.
        self.age = [derived.ages.get(op.name, 0) for op in ops]
        self.owed = max(self.age)
        compute = [k for k, op in enumerate(ops) if op.lane == "compute"]
        # The last that runs in every iteration counts iterations; the host waits for what comes behind it, too.
        self.last_compute = max((k for k in compute if self.every[k] == 1), default=compute[-1])

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
