"""The one core from which every schedule is built: passes, messages, updates, delays.

Model
    `Messages` says which buckets are communicated as soon as they are complete, and after how many iterations each is
    applied. A bucket with delay 0 is updated after the last backward pass (an in-order compute lane would lose all
    overlap otherwise); one with a delay is updated right behind its own backward pass, where the reduction that it
    needs has long begun: wait for the old gradient, apply it, put the fresh one in its place, send that.
"""

from collections.abc import Mapping
from typing import Literal

from simgd.schedule import (
    ROLE,
    Backward,
    Bucket,
    Communicate,
    Dep,
    Forward,
    Lane,
    Map,
    Op,
    Schedule,
    Update,
    Wire,
)
from simgd.workload import Workload


def compose(
    name: str,
    workload: Workload,
    buckets: tuple[Bucket, ...],
    *,
    updates: Literal["together", "each"],
    delays: Mapping[str, int] | None = None,
    join: bool = False,
    wire: Wire = "float32",
) -> Schedule:
    """Return the schedule that sends each of *buckets* when its gradient is complete.

    *updates* says whether one update follows the last message, on the compute lane, or each bucket has its own, on
    the update lane. *delays* gives iterations by bucket name (0 where absent). With *join* the next forward pass waits
    for every update, else each layer only for its own.
    """
    delays = delays or {}
    users = workload.users()
    ready = _ready(workload, buckets, users)
    late = tuple(bucket for bucket in buckets if delays.get(bucket.name, 0))
    prompt = tuple(bucket for bucket in buckets if not delays.get(bucket.name, 0))
    together = updates == "together" and len(prompt) > 1
    applied = {"all": prompt} if together else {bucket.name: (bucket,) for bucket in prompt}
    lane: Lane = "compute" if updates == "together" else "update"

    read_by: dict[str, dict[str, Dep]] = {layer.name: {} for layer in workload.layers}
    if lane == "update":
        for bucket in prompt:
            readers = [user for part in bucket.slices for user in users[part.tensor]]
            for reader in [workload.layers[0].name, *readers] if join else readers:
                read_by[reader][bucket.name] = Dep(_update(bucket), 1)

    ops: list[Op] = []
    for layer in workload.layers:
        after = tuple(read_by[layer.name].values())
        ops.append(Op(name=f"forward {layer.name}", lane="compute", work=Forward(layers=(layer.name,)), after=after))
    for layer in workload.backward:
        last = f"backward {layer.name}"
        ops.append(Op(name=last, lane="compute", work=Backward(layers=(layer.name,))))
        for bucket in ready.get(layer.name, ()):
            sent_after = last
            if bucket in late:
                ops += _delayed_update(bucket, last, delays[bucket.name])
                sent_after = f"copy {bucket.name}"
            work = Communicate(collective="all_reduce", bucket=bucket.name, wire=wire)
            ops.append(Op(name=_reduce(bucket), lane="comm", work=work, after=(Dep(sent_after),)))
    for target, parts in applied.items():
        reduced = tuple(Dep(_reduce(bucket)) for bucket in parts)
        ops.append(Op(name=f"update {target}", lane=lane, work=Update(bucket=target), after=reduced))
    return Schedule(
        name=name,
        workload=workload.name,
        buckets=tuple(
            Bucket(name=bucket.name, slices=bucket.slices, copies=max(1, delays.get(bucket.name, 0)))
            for bucket in buckets
        )
        + ((_union(prompt),) if together else ()),
        roles={ROLE: tuple(ops)},
    )


def delayed_whole(name: str, workload: Workload, bucket: Bucket, delay: int, wire: Wire = "float32") -> Schedule:
    """Return the schedule that sends one flat message after backward and applies the one of *delay* iterations ago.

    It keeps ``delay + 1`` gradient copies: the fresh gradient is written while older ones are still travelling.
    """
    last = f"backward {workload.backward[-1].name}"
    work = Communicate(collective="all_reduce", bucket=bucket.name, wire=wire)
    update = Update(bucket=bucket.name)
    ops = (
        *(
            Op(name=f"forward {layer.name}", lane="compute", work=Forward(layers=(layer.name,)))
            for layer in workload.layers
        ),
        *(
            Op(name=f"backward {layer.name}", lane="compute", work=Backward(layers=(layer.name,)))
            for layer in workload.backward
        ),
        Op(name=_reduce(bucket), lane="comm", work=work, after=(Dep(last),)),
        Op(name=_update(bucket), lane="compute", work=update, after=(Dep(_reduce(bucket), delay),)),
    )
    copies = Bucket(name=bucket.name, slices=bucket.slices, copies=delay + 1)
    return Schedule(name=name, workload=workload.name, buckets=(copies,), roles={ROLE: ops})


def _delayed_update(bucket: Bucket, last: str, delay: int) -> list[Op]:
    update = Op(
        name=_update(bucket),
        lane="compute",
        work=Update(bucket=bucket.name),
        after=(Dep(_reduce(bucket), delay), Dep(last)),
    )
    copy = Op(
        name=f"copy {bucket.name}",
        lane="compute",
        work=Map(function="copy", bucket=bucket.name, reads="fresh", writes="gradient"),
        after=(Dep(last),),
    )
    return [update, copy]


def _reduce(bucket: Bucket) -> str:
    return f"all_reduce {bucket.name}"


def _update(bucket: Bucket) -> str:
    return f"update {bucket.name}"


def _union(buckets: tuple[Bucket, ...]) -> Bucket:
    return Bucket(name="all", slices=tuple(part for bucket in buckets for part in bucket.slices))


def _ready(
    workload: Workload, buckets: tuple[Bucket, ...], users: dict[str, tuple[str, ...]]
) -> dict[str, list[Bucket]]:
    """Return the buckets that are complete after each layer's backward pass."""
    place = {layer.name: index for index, layer in enumerate(workload.backward)}
    found: dict[str, list[Bucket]] = {}
    for bucket in buckets:
        last = max((user for part in bucket.slices for user in users[part.tensor]), key=lambda user: place[user])
        found.setdefault(last, []).append(bucket)
    return found
