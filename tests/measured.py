"""Runs made by hand, and profiles that predict them: round numbers, so that errors can be derived in view."""

from collections.abc import Sequence
from statistics import median

from msgspec.structs import replace

from simgd import catalogue, schedules
from simgd.profile import Execution, Fit, Host, LayerTimes, Profile, Segment, UpdateTime
from simgd.provenance import Environment
from simgd.provenance import Host as Machine
from simgd.run import Clock, OpTimes, Run, Spread, TracingCost
from simgd.schedule import Schedule
from simgd.trace import Trace
from simgd.workload import Layer, Tensor, Workload

BY_HAND = {"origin": "measured", "source": "made by hand"}

#: Two layers of 1000 parameters each; what their passes take is in `PROFILE` alone.
WORKLOAD = Workload(
    name="two",
    batch=8,
    layers=(Layer(name="a", tensors=(Tensor("a.w", (1000,)),)), Layer(name="b", tensors=(Tensor("b.w", (1000,)),))),
)

PROCESSOR = "Abacus 9"

ENVIRONMENT = Environment(
    hosts=(Machine(processor=PROCESSOR, cores=2, memory_bytes=1e9, kernel="Linux 6"),),
    host_of_rank=[0, 0],
    library="made by hand",
    launcher="alone",
    versions={},
)

#: Passes of 10, 10, 30 and 30 ms, and 20 ms for every all-reduce of two ranks: `sync` takes 100 ms, of them 80 to
#: compute, and nothing else takes any time.
PROFILE = Profile(
    name="round",
    cluster=catalogue.cluster("xeon-edr"),
    backend="mpi",
    environment=ENVIRONMENT,
    layers=(
        LayerTimes(workload="two", batch=8, direction="forward", seconds={"a": 0.01, "b": 0.01}, **BY_HAND),
        LayerTimes(workload="two", batch=8, direction="backward", seconds={"a": 0.03, "b": 0.03}, **BY_HAND),
    ),
    host=Host(forward_kernel=0, backward_kernel=0, collective=0, update=0, copy=0, wait=0, iteration=0, **BY_HAND),
    fits=(
        Fit(
            kind="all_reduce",
            ranks=2,
            nodes=2,
            segments=(Segment(from_bytes=0, latency_s=0.02, seconds_per_byte=0),),
            **BY_HAND,
        ),
    ),
    updates=(UpdateTime(optimizer="sgd", call_s=0, tensor_s=0, element_s=0, **BY_HAND),),
    execution=Execution(merged=True, wait_blocks_host=True, **BY_HAND),
)

NOTHING = Trace(
    origin="measured",
    schedule="",
    workload="two",
    cluster="",
    ranks=2,
    lanes=("host", "comm"),
    ops=(),
    rank=[],
    lane=[],
    op=[],
    iteration=[],
    start_ps=[],
    end_ps=[],
)


def planned(name: str) -> Schedule:
    return schedules.build(schedules.parse(name), WORKLOAD)


def run(
    *iterations_s: float,
    schedule: str | Schedule = "sync",
    compute_s: float = 0.08,
    rows: Sequence[tuple] = (),
    **changes,
) -> Run:
    """A run of two ranks that both take *iterations_s*; *rows* are (rank, lane, op, iteration, start, end) in ms."""
    chosen = planned(schedule) if isinstance(schedule, str) else schedule
    middle = median(iterations_s)
    ops = tuple(op.name for op in chosen.ops)
    made = Run(
        schedule=chosen,
        workload=WORKLOAD,
        backend="mpi",
        ranks=2,
        batch_per_rank=8,
        tokens=0,
        steps=len(iterations_s),
        seed=0,
        optimizer="sgd",
        compute="real",
        progress="none",
        execution=PROFILE.execution,
        iterations_s=[list(iterations_s)] * 2,
        begun_s=[0.0, 0.0],
        warm_up=0,
        left_out=[],
        iteration=Spread(median=middle, p5=min(iterations_s), p95=max(iterations_s)),
        samples_per_s=16 / middle,
        compute_s=compute_s,
        compute_before_s=compute_s,
        compute_after_s=compute_s,
        communication_s=0.02,
        exposed_communication_s=middle - compute_s,
        overlap=0.0,
        staleness={},
        peak_memory_bytes=[1e6, 1e6],
        buffer_bytes=8000.0,
        losses=[[], []],
        weights_digest=None,
        ops={name: OpTimes(lane="host", median_s=[0.0, 0.0], p95_s=[0.0, 0.0]) for name in ops},
        clocks=[Clock(offset_s=0, drift=0, uncertainty_s=0, estimate_s=0, shared=True)] * 2,
        tracing=TracingCost(events=0, event_s=0, share=0, traced_over_untraced=1),
        environment=ENVIRONMENT,
        trace=traced(rows, ops) if rows else NOTHING,
    )
    return replace(made, **changes)


def traced(rows: Sequence[tuple], ops: Sequence[str], **changes) -> Trace:
    """The trace of *rows* (rank, lane, op, iteration, start, end), times in ms."""
    lanes = tuple(dict.fromkeys(row[1] for row in rows))
    return replace(
        NOTHING,
        lanes=lanes,
        ops=tuple(ops),
        rank=[row[0] for row in rows],
        lane=[lanes.index(row[1]) for row in rows],
        op=[ops.index(row[2]) for row in rows],
        iteration=[row[3] for row in rows],
        start_ps=[round(row[4] * 1e9) for row in rows],
        end_ps=[round(row[5] * 1e9) for row in rows],
        **changes,
    )


def of_its_own_times(made: Run) -> Profile:
    """The profile whose costs are what the ops of *made* took: its layers' passes, and a line for its all-reduces."""
    took = {name: median(times.median_s) for name, times in made.ops.items()}
    layers = tuple(
        LayerTimes(
            workload=made.workload.name,
            batch=made.batch_per_rank,
            direction=direction,
            seconds={layer.name: took[f"{direction} {layer.name}"] for layer in made.workload.layers},
            **BY_HAND,
        )
        for direction in ("forward", "backward")
    )
    bandwidth = Segment(from_bytes=0, latency_s=1e-4, seconds_per_byte=1e-9)
    fit = Fit(kind="all_reduce", ranks=made.ranks, nodes=made.ranks, segments=(bandwidth,), **BY_HAND)
    return replace(PROFILE, layers=layers, fits=(fit,), environment=made.environment, backend=made.backend)
