"""What each rank of a schedule would do, told without hardware: buffers, and the ops of the iterations that differ.

Model
    The text comes from what the interpreter itself runs by: `Instances` says which ops exist and what they wait for,
    `Layout` which buffers they touch. All ranks do the same, so it is told once, whatever their number. Shown are the
    first iterations, in which delayed updates are skipped, one that stands for all others, and what is still owed
    after the last.
"""

from collections.abc import Iterator

from executor.layout import ELEMENT_BYTES, Layout, check_issue_order
from simgd.instances import Instances
from simgd.profile import Execution
from simgd.schedule import Communicate, Map, Schedule, Update, placed
from simgd.soundness import derive
from simgd.units import show_bytes
from simgd.workload import Workload


def told(schedule: Schedule, workload: Workload, ranks: int, steps: int, execution: Execution) -> str:
    """Return the text; raise ScheduleError for a schedule that the executor would not run."""
    instances = Instances(schedule, derive(schedule, workload))
    check_issue_order(schedule, instances)
    return "\n".join(_lines(schedule, instances, Layout(schedule, ranks), ranks, steps, execution))


def _lines(
    schedule: Schedule, instances: Instances, layout: Layout, ranks: int, steps: int, execution: Execution
) -> Iterator[str]:
    who = "rank 0" if ranks == 1 else f"ranks 0-{ranks - 1}, each"
    yield f"{schedule.name} for {schedule.workload}, {steps} iterations, {schedule.digest[:12]}"
    yield f"{who}: {len(schedule.ops)} ops, {show_bytes(layout.nbytes)} of buffers"
    for kind, stores in (("gradients", layout.gradients), ("weights", layout.weights)):
        for store in stores.values():
            fresh = ", filled by a copy" if store.fresh else ""
            padding = (
                f", {store.padded - store.bucket.elements} of padding" if store.padded > store.bucket.elements else ""
            )
            yield (
                f"  {kind} {store.bucket.name}: {store.bucket.elements} elements{padding}, "
                f"{show_bytes(ELEMENT_BYTES * store.padded)} x {store.copies}{fresh}"
            )
    first = min(instances.owed, steps)
    for iteration in range(min(first + 1, steps)):
        last = iteration == first and steps - 1 > iteration
        yield f"iteration {iteration}" + (f" (and all up to {steps - 1})" if last else "")
        yield from _iteration(schedule, instances, layout, iteration, steps, execution)
    for iteration in range(steps, steps + instances.owed):
        yield f"after the last iteration, owed ({iteration})"
        yield from _iteration(schedule, instances, layout, iteration, steps, execution)


def _iteration(
    schedule: Schedule, instances: Instances, layout: Layout, iteration: int, steps: int, execution: Execution
) -> Iterator[str]:
    for k, op in enumerate(schedule.ops):
        if not instances.exists(k, iteration, steps):
            continue
        lane = placed(op.lane, merged=execution.merged, update_on_compute=execution.update_on_compute)
        waits = []
        for dep, lag in instances.deps[k]:
            wanted = instances.awaited(dep, lag, iteration, steps)
            if wanted >= 0:
                of = f" of {wanted}" if wanted != iteration else ""
                waits.append(f"{schedule.ops[dep].name}{of}")
        what = op.name
        skipped = iteration < instances.age[k]
        match op.work:
            case Communicate(bucket=bucket, value="gradient"):
                what += _buffer(layout, bucket, iteration)
            case Map(bucket=bucket):
                what += _buffer(layout, bucket, iteration)
            case Update() if instances.age[k] and not skipped:
                what += f" with the gradient of {iteration - instances.age[k]}"
            case _:
                pass
        if skipped:
            yield f"  {lane:8} {what}: skipped, its gradient would be older than the first"
        else:
            yield f"  {lane:8} {what}" + (f", after {', '.join(waits)}" if waits else "")


def _buffer(layout: Layout, bucket: str, iteration: int) -> str:
    copies = layout.gradients[bucket].copies
    return f" (buffer {iteration % copies})" if copies > 1 else ""
