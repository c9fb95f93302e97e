"""Turns a schedule's name into a schedule for one job on one machine; only `auto` delays need the costs."""

from collections.abc import Mapping

from simgd.pricing import Prices
from simgd.schedule import Schedule
from simgd.schedules import Choice, build, parse
from simgd.schedules.named import buckets_of
from simgd.workload import Workload

WIRE = {"fp32": "float32", "bf16": "bfloat16"}


def plan(name: str, workload: Workload, prices: Prices | None = None) -> Schedule:
    """Return the schedule called *name*.

    Raises ScheduleError if its delays depend on costs and *prices* are not given.
    """
    choice = parse(name)
    wire = WIRE[prices.job.wire] if prices is not None else "float32"
    delays = _delays(choice, prices) if choice.needs_delays and prices is not None else None
    return build(choice, workload, wire=wire, delays=delays)  # type: ignore[arg-type]


def _delays(choice: Choice, prices: Prices) -> Mapping[str, int]:
    """Return, for each bucket, the smallest delay that hides its communication.

    In the steady state of a machine that is never held up, compute repeats after the period T = max(C, R): compute of
    an iteration, or all its collectives one after the other. Reductions run in order of arrival. A bucket needs no
    delay if its reduction and update end before the next iteration's forward pass of its layer begins; a delay of d
    if the reduction has ended when the backward pass of its layer ends d iterations later.
    """
    workload = prices.job.workload
    buckets = buckets_of(choice, workload)
    priced = prices.price(build(choice, workload, delays=dict.fromkeys([bucket.name for bucket in buckets], 1)))
    times = {name: time.run_ps for name, time in priced.timing.ops.items()}
    at, forward, backward = 0, {}, {}
    for layer in workload.layers:
        forward[layer.name] = at
        at += times[f"forward {layer.name}"]
    for layer in workload.backward:
        at += times[f"backward {layer.name}"]
        backward[layer.name] = at
    reduces = {bucket.name: times[f"all_reduce {bucket.name}"] for bucket in buckets}
    updates = {bucket.name: times[f"update {bucket.name}"] for bucket in buckets}
    period = max(at + sum(updates.values()), sum(reduces.values()))
    users = workload.users()
    found: dict[str, int] = {}
    # The second round starts with the comm lane as the first one leaves it: its steady state.
    free = 0
    for _ in range(2):
        free -= period
        for bucket in buckets:
            layers = [user for part in bucket.slices for user in users[part.tensor]]
            ready = max(backward[layer] for layer in layers)
            needed = min(forward[layer] for layer in layers)
            free = max(free, ready) + reduces[bucket.name]
            late = free - ready
            on_time = free + updates[bucket.name] <= period + needed
            found[bucket.name] = 0 if on_time else max(1, -(-late // period))
    return found
