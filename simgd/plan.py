"""Turns a schedule's name into a schedule for one job on one machine; only `auto` delays need the costs.

Model
    Messages travel in the order in which gradients arrive, and the layers in front, whose gradients come last, are
    needed first. So the layers to delay are the last ones to arrive: `auto` looks for the fewest of them with which
    the simulated iteration is as fast, within `AS_FAST`, as with any number that was tried.
"""

from collections.abc import Mapping

from simgd.pricing import AS_IT_IS, Prices, WhatIf
from simgd.schedule import Schedule, Wire
from simgd.schedules import Choice, build, parse
from simgd.schedules.named import buckets_of
from simgd.simulator import steady
from simgd.soundness import derive
from simgd.workload import Workload

WIRE: dict[str, Wire] = {"fp32": "float32", "bf16": "bfloat16"}

#: A delay that gains less than this share is not worth its staleness.
AS_FAST = 0.002


def plan(name: str, workload: Workload, prices: Prices | None = None, what_if: WhatIf = AS_IT_IS) -> Schedule:
    """Return the schedule called *name*; *what_if* is the machine that its delays are chosen for.

    Raises ScheduleError if its delays depend on costs and *prices* are not given.
    """
    choice = parse(name)
    wire: Wire = WIRE[prices.job.wire] if prices is not None else "float32"
    delays = _delays(choice, prices, wire, what_if) if choice.needs_delays and prices is not None else None
    return build(choice, workload, wire=wire, delays=delays)


def _delays(choice: Choice, prices: Prices, wire: Wire, what_if: WhatIf) -> Mapping[str, int]:
    """Return the delay of each bucket: 0, or for the last ones to arrive what hides their own communication.

    A delayed bucket is applied right behind its backward pass, so the iteration cannot be shorter than (reduction +
    update + copy) / delay; the delay is the smallest with which that is no longer than compute or all messages.
    """
    workload = prices.job.workload
    names = [bucket.name for bucket in buckets_of(choice, workload)]
    timing = prices.price(build(choice, workload, wire=wire, delays=dict.fromkeys(names, 1)), what_if).timing
    messages = {name: timing.ops[f"all_reduce {name}"].run_ps for name in names}
    applied = {name: timing.ops[f"update {name}"].run_ps + timing.ops[f"copy {name}"].run_ps for name in names}
    compute = sum(time.run_ps for op, time in timing.ops.items() if not op.startswith("all_reduce "))
    period = max(compute, sum(messages.values()), 1)
    needed = {name: max(1, -(-(messages[name] + applied[name]) // period)) for name in names}

    def with_delayed(count: int) -> dict[str, int]:
        late = names[len(names) - count :]
        return {name: needed[name] if name in late else 0 for name in names}

    found: dict[int, float] = {}

    def period_with(count: int) -> float:
        if count not in found:
            planned = build(choice, workload, wire=wire, delays=with_delayed(count))
            priced = prices.price(planned, what_if)
            found[count] = float(steady(planned, derive(planned, workload), priced.timing).period_ps)
        return found[count]

    def fast(count: int) -> bool:
        return period_with(count) <= min(found.values()) * (1 + AS_FAST)

    too_few, enough = 0, len(names)
    period_with(enough)
    while not fast(0) and enough - too_few > 1:
        middle = (too_few + enough) // 2
        if fast(middle):
            enough = middle
        else:
            too_few = middle
    return with_delayed(min(count for count in found if fast(count)))
