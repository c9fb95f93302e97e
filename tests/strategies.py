"""Random workloads, schedules and costs, for laws that must hold for all of them.

Every generator takes a `random.Random`: a seeded loop runs thousands of cases in seconds, and `cases` hands the same
generators to Hypothesis, which shrinks what fails.
"""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from random import Random
from typing import TypeVar

from hypothesis import strategies as st
from oracle import delay_of

from simgd import schedules
from simgd.schedule import (
    LANES,
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
    Slice,
    Update,
    Wait,
    Work,
)
from simgd.schedules.core import compose
from simgd.soundness import Derived, derive
from simgd.timing import OpTime, Timing
from simgd.workload import Layer, Tensor, Workload

T = TypeVar("T")

FACTORS = (Fraction(1), Fraction(5, 4), Fraction(3, 2), Fraction(4, 3), Fraction(2))


def cases(draw: Callable[[Random], T]) -> st.SearchStrategy[T]:
    """Return the Hypothesis strategy of what *draw* makes of a source of random numbers."""
    return st.randoms(use_true_random=False).map(draw)


def small_workload(*sizes: int) -> Workload:
    """Return layers l0, l1, ... with one tensor each, of these many elements."""
    layers = tuple(Layer(name=f"l{k}", tensors=(Tensor(f"w{k}", (size,)),)) for k, size in enumerate(sizes))
    return Workload(name="small", layers=layers)


def workload(rng: Random, most: int = 4) -> Workload:
    """Return one to *most* layers with tensors of a few elements, some without any, some tied, in some order."""
    layers: list[Layer] = []
    owned: list[str] = []
    for k in range(rng.randint(1, most)):
        number = rng.randint(0 if owned else 1, 2)
        tensors = tuple(Tensor(f"w{k}.{j}", (rng.randint(1, 9),)) for j in range(number))
        tied = (rng.choice(owned),) if owned and rng.random() < 0.2 else ()
        layers.append(Layer(name=f"l{k}", tensors=tensors, shared=tied))
        owned += [tensor.name for tensor in tensors]
    order = [layer.name for layer in layers]
    rng.shuffle(order)
    return Workload(name="random", layers=tuple(layers), backward_order=tuple(order) if rng.random() < 0.2 else ())


def name(rng: Random) -> str:
    """Return the name of a schedule of any family; sizes suit the workloads here."""
    size, delay = f"{rng.randint(1, 60)}B", rng.randint(1, 3)
    names = ["sync", f"bucketed:{size}", "layerwise", "layerwise:tensor", f"layerwise:{size}", "layerwise:join"]
    names += [f"async:{delay}", f"async:{delay}:{size}", f"async:{delay}:all", f"async_layerwise:{delay}"]
    return rng.choice([*names, "async_layerwise:auto"])


def named(rng: Random, of: Workload) -> Schedule:
    """Return a named schedule of *of*; what `auto` plans is random here."""
    choice = schedules.parse(name(rng))
    delays = {layer.name: rng.randint(0, 2) for layer in of.layers} if choice.needs_delays else None
    return schedules.build(choice, of, delays=delays)


def sound(rng: Random, of: Workload) -> Schedule:
    """Return a schedule that trains rightly and that no name stands for.

    Tensors are cut into slices, messages group them at random, each bucket has its own delay; then copies are moved
    to their own lane, and waits of the host and dependencies that are not needed are added.
    """
    slices: list[Slice] = []
    for _, tensor in of.arrivals:
        cut = rng.randint(0, tensor.elements - 1)
        slices += [
            Slice(tensor.name, first, last) for first, last in ((0, cut), (cut, tensor.elements)) if first < last
        ]
    groups: list[list[Slice]] = [[]]
    for part in slices:
        if groups[-1] and rng.random() < 0.5:
            groups.append([])
        groups[-1].append(part)
    buckets = tuple(Bucket(name=f"b{k}", slices=tuple(group)) for k, group in enumerate(groups))
    delays = {bucket.name: rng.choice([0, 0, 1, 2, 3]) for bucket in buckets}
    base = compose(
        "random",
        of,
        buckets,
        updates=rng.choice(["together", "each"]),
        delays=delays,
        join=rng.random() < 0.3,
    )
    ops: list[Op] = []
    for op in base.ops:
        if isinstance(op.work, Map) and rng.random() < 0.3:
            op = with_(op, lane=rng.choice(["copy_out", "copy_in"]))
        if rng.random() < 0.15:
            other = rng.choice(base.ops)
            # Who waits for an op that writes the gradient says by the lag which gradient it means.
            reads = isinstance(op.work, (Communicate, Map, Update))
            if not (reads and isinstance(other.work, (Backward, Communicate, Map))):
                op = with_(op, after=(*op.after, Dep(other.name, rng.randint(1, 3))))
        if ops and rng.random() < 0.1:
            ops.append(Op(name=f"wait {len(ops)}", lane="host", work=Wait(op=rng.choice(ops).name)))
        ops.append(op)
    return Schedule(name="random", workload=of.name, buckets=base.buckets, roles={ROLE: tuple(ops)})


def with_(
    op: Op, *, lane: Lane | None = None, after: tuple[Dep, ...] | None = None, every: int = 1, phase: int = 0
) -> Op:
    """Return *op* with something changed."""
    after = op.after if after is None else after
    return Op(name=op.name, lane=lane or op.lane, work=op.work, after=after, every=every, phase=phase)


def build(name_: str, of: Workload, delays: Mapping[str, int] | None = None) -> tuple[Schedule, Derived]:
    """Return the schedule of this name, and what follows from it."""
    schedule = schedules.build(schedules.parse(name_), of, delays=delays)
    return schedule, derive(schedule, of)


def timed(
    of: Schedule,
    run_ps: Mapping[str, int | OpTime],
    *,
    issue_ps: int = 0,
    merged: bool = False,
    wait_blocks_host: bool = False,
    in_flight: int = 1,
    run_ahead: int = 1,
) -> Timing:
    """Return costs by the name of an op or else by its first word ("forward"); what is not named costs nothing."""
    ops = {}
    for op in of.ops:
        cost = run_ps.get(op.name, run_ps.get(op.name.split()[0], 0))
        ops[op.name] = cost if isinstance(cost, OpTime) else OpTime(issue_ps=issue_ps, run_ps=cost)
    return Timing(ops=ops, merged=merged, wait_blocks_host=wait_blocks_host, in_flight=in_flight, run_ahead=run_ahead)


def ring(rng: Random) -> tuple[Schedule, Derived]:
    """Return ops on lanes of their own, each behind the one before it, the first behind the last some iterations ago.

    Where no lane is the slowest, the loop is: then the period is a fraction of its length.
    """
    every: tuple[Lane, ...] = ("copy_out", "comm", "copy_in", "update")
    lanes = every[: rng.randint(2, 4)]
    ops = [
        Op(name="o0", lane="compute", work=Forward(layers=("l0",)), after=(Dep(f"o{len(lanes)}", rng.randint(2, 3)),))
    ]
    for k, lane in enumerate(lanes, start=1):
        send = Communicate(collective="all_reduce", bucket="b")
        work: Work = send if lane == "comm" else Update(bucket="b")
        ops.append(Op(name=f"o{k}", lane=lane, work=work, after=(Dep(f"o{k - 1}"),)))
    return loose(ops)


def loose(ops: Sequence[Op]) -> tuple[Schedule, Derived]:
    """Return the schedule of *ops* with the dependencies that they state, whether or not it trains anything."""
    bucket = Bucket(name="b", slices=(Slice("w0", 0, 1),))
    schedule = Schedule(name="loose", workload="small", buckets=(bucket,), roles={ROLE: tuple(ops)})
    ages = {op.name: delay_of(op, schedule) for op in ops}
    return schedule, Derived(dependencies={op.name: op.after for op in ops}, ages=ages, staleness={})


def graph(rng: Random, most: int = 7, *, rare: bool = False, stuck: bool = False) -> tuple[Schedule, Derived]:
    """Return ops on any lane with any dependencies: it need not train anything, only come to its end.

    Without lag an op waits only for ops before it in the list, unless it may be *stuck*; with a lag for any.
    """
    lanes: list[Lane] = ["compute", *(rng.choice(LANES) for _ in range(rng.randint(1, most - 1)))]
    rng.shuffle(lanes)
    ops: list[Op] = []
    for k, lane in enumerate(lanes):
        after: dict[Dep, None] = {}
        for _ in range(rng.choice([0, 1, 1, 2])):
            anywhere = stuck and rng.random() < 0.3
            earlier = rng.random() < 0.6 and k > 0
            if anywhere or earlier:
                after[Dep(f"o{rng.randrange(len(lanes) if anywhere else k)}")] = None
            else:
                after[Dep(f"o{rng.randrange(len(lanes))}", rng.randint(1, 3))] = None
        work: Work
        match lane:
            case "compute":
                passes: list[Work] = [Forward(layers=("l0",)), Backward(layers=("l0",)), Update(bucket="b")]
                work = rng.choice(passes)
            case "comm":
                work = Communicate(collective="all_reduce", bucket="b")
            case "host":
                work = Wait(op=f"o{rng.randrange(k)}") if k else Wait(op=f"o{rng.randrange(len(lanes))}", lag=1)
            case _:
                work = Update(bucket="b")
        # The passes themselves are in every iteration.
        every = rng.choice([1, 1, 2, 3]) if rare and not isinstance(work, (Forward, Backward)) else 1
        phase = rng.randrange(every)
        ops.append(Op(name=f"o{k}", lane=lane, work=work, after=tuple(after), every=every, phase=phase))
    return loose(ops)


def timing(rng: Random, of: Schedule, *, largest: int = 40, interferes: bool = False, in_flight: int = 1) -> Timing:
    """Return costs of every op, some 0, and a way of running them."""
    host_bound = rng.random() < 0.3
    times = {}
    for op in of.ops:
        factor = rng.choice(FACTORS) if interferes else Fraction(1)
        run = rng.choice([0, rng.randint(1, largest), rng.randint(1, largest)])
        issue = rng.randint(0, largest if host_bound else 3)
        if isinstance(op.work, Communicate):
            use = {"net": rng.choice([0.25, 0.5, 1.0, 1.0])}
            times[op.name] = OpTime(issue_ps=issue, run_ps=run, latency_ps=rng.randint(0, run), use=use)
        elif isinstance(op.work, Wait):
            times[op.name] = OpTime(issue_ps=issue)
        else:
            slows = rng.choice(FACTORS) if interferes else Fraction(1)
            times[op.name] = OpTime(issue_ps=issue, run_ps=run, slowed=factor, slows=slows)
    return Timing(
        ops=times,
        merged=rng.random() < 0.4,
        wait_blocks_host=rng.random() < 0.4,
        in_flight=in_flight,
        run_ahead=rng.randint(1, 4),
    )
