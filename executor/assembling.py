"""Makes one `Run` of what all ranks measured: iterations of all together, and one trace on rank 0's clock."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from executor import clocks, environment
from executor.interpreter import Interpreter
from executor.rank import Rank
from executor.recording import Row
from simgd.provenance import Host
from simgd.run import Clock, OpTimes, Run, Spread, TracingCost, counted, together_s, warm_up_of
from simgd.trace import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """Provenance that only the caller knows: the launcher, the command."""

    launcher: str = "alone"
    command: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one rank measured; times in seconds but for the rows and the clocks' estimates."""

    iterations_s: list[float]
    begun_ns: int
    compute_before_s: float
    compute_after_s: float
    communication_s: float
    losses: list[float]
    memory: float
    durations: list[tuple[float, float]]
    rows: list[Row]
    events: float
    event_s: float
    before: clocks.Estimate
    after: clocks.Estimate
    boot: str
    host: Host


def assembled(
    rank: Rank,
    interpreter: Interpreter,
    measured: list[Measured],
    left_out: list[int],
    digest: int | None,
    about: About,
) -> Run:
    """Return the run that *measured*, by rank, and the rest amount to.

    *left_out* are the iterations behind a check, *digest* that of the weights at the end.
    """
    plan, backend = rank.plan, rank.backend
    ops = plan.schedule.ops
    warm_up = warm_up_of(plan.steps)
    traced = min(plan.trace_steps, plan.steps)
    its_clocks = [clocks.clock(own.before, own.after, shared=own.boot == measured[0].boot) for own in measured]
    begun = [clocks.onto_rank_0(c, own.before)(own.begun_ns) for c, own in zip(its_clocks, measured, strict=True)]
    begun_s = [(each - min(begun)) * 1e-9 for each in begun]
    slowest = together_s([own.iterations_s for own in measured], begun_s)
    on_device = backend.device == "cuda"
    # On a device the traced iterations have timing events and count for nothing else, if any others are left.
    disturbed = range(plan.steps - traced if on_device and plan.steps - traced > warm_up else plan.steps, plan.steps)
    left_out = [*left_out, *disturbed]
    kept = [slowest[place] for place in counted(plan.steps, warm_up, left_out)]
    iteration = Spread(median=median(kept), p5=percentile(kept, 5), p95=percentile(kept, 95))
    before, after = (max(getattr(own, name) for own in measured) for name in ("compute_before_s", "compute_after_s"))
    compute_s = (before + after) / 2
    communication_s = max(own.communication_s for own in measured)
    exposed = iteration.median - compute_s
    overlap = min(max(1 - exposed / communication_s, 0.0), 1.0) if communication_s > 0 else None
    if backend.name == "loopback":
        # Its ranks take turns: nothing could overlap, and waiting for a turn is no communication.
        overlap = None
    events, event_s = max(own.events for own in measured), max(own.event_s for own in measured)
    return Run(
        schedule=plan.schedule,
        workload=plan.workload,
        backend=backend.name,
        ranks=backend.ranks,
        batch_per_rank=plan.batch,
        tokens=plan.tokens,
        steps=plan.steps,
        seed=plan.seed,
        optimizer=plan.optimizer if plan.compute == "real" else "none",
        compute=plan.compute,
        progress="device" if on_device else str(plan.progress),
        execution=plan.execution,
        iterations_s=[own.iterations_s for own in measured],
        begun_s=begun_s,
        warm_up=warm_up,
        left_out=left_out,
        iteration=iteration,
        samples_per_s=backend.ranks * plan.batch / iteration.median,
        compute_s=compute_s,
        compute_before_s=before,
        compute_after_s=after,
        communication_s=communication_s,
        exposed_communication_s=exposed,
        overlap=overlap,
        staleness={
            ops[k].name: {str(age): count for age, count in sorted(found.items())}
            for k, found in interpreter.ledger.applied.items()
        },
        peak_memory_bytes=[own.memory for own in measured],
        buffer_bytes=float(rank.layout.nbytes),
        losses=[own.losses for own in measured],
        weights_digest=digest,
        ops={
            op.name: OpTimes(
                lane=rank.lane_of_op[k],
                median_s=[own.durations[k][0] * 1e-9 for own in measured],
                p95_s=[own.durations[k][1] * 1e-9 for own in measured],
            )
            for k, op in enumerate(ops)
        },
        clocks=its_clocks,
        tracing=TracingCost(
            events=events,
            event_s=event_s,
            share=events * event_s / iteration.median,
            traced_over_untraced=median(slowest[place] for place in disturbed) / iteration.median if disturbed else 1.0,
        ),
        environment=environment.described(
            [(own.boot, own.host) for own in measured],
            library=backend.library,
            launcher=about.launcher,
            command=about.command,
        ),
        trace=_trace(rank, measured, its_clocks),
    )


def _trace(rank: Rank, measured: list[Measured], its_clocks: list[Clock]) -> Trace:
    """Return the rows of all ranks on rank 0's clock, from the earliest one on, in picoseconds."""
    rows: list[tuple[int, Row, float, float]] = []
    for number, (own, clock) in enumerate(zip(measured, its_clocks, strict=True)):
        convert = clocks.onto_rank_0(clock, own.before)
        rows += [(number, row, convert(row[3]), convert(row[4])) for row in sorted(own.rows, key=lambda row: row[3])]
    zero = min((start for _, _, start, _ in rows), default=0.0)
    lanes = tuple(dict.fromkeys(["host", *rank.lane_of_op]))
    return Trace(
        origin="measured",
        schedule=rank.plan.schedule.name,
        workload=rank.plan.workload.name,
        cluster="",
        ranks=rank.backend.ranks,
        lanes=lanes,
        ops=tuple(op.name for op in rank.plan.schedule.ops),
        rank=[number for number, _, _, _ in rows],
        lane=[lanes.index(row[0]) for _, row, _, _ in rows],
        op=[row[1] for _, row, _, _ in rows],
        iteration=[row[2] for _, row, _, _ in rows],
        start_ps=[round((start - zero) * 1000) for _, _, start, _ in rows],
        end_ps=[round((end - zero) * 1000) for _, _, _, end in rows],
    )


def percentile(values: Sequence[float], share: float) -> float:
    """Return a percentile, linear between neighbours; 0 of nothing."""
    return float(np.percentile(values, share)) if len(values) else 0.0
