"""One rank of a run, from the checks at the start to what it measured.

Model
    Before and after the run proper the same schedule runs a few iterations with communication left out, which costs
    `compute_s`; weights, optimizers and batch norms are put back in between, so these iterations leave no trace in the
    training. After the run each collective is timed alone. Rank 0 makes one `Run` of what all ranks measured.

    Ranks compare what they were started with, their weights before the first iteration, every `CHECK_EVERY`
    iterations and at the end, and look for losses that are no number; iterations behind such a check are left out of
    the figures.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from executor import clocks, environment
from executor.backends.protocol import Backend
from executor.comm import CommLane, Progress
from executor.emulated import Emulated
from executor.interpreter import Interpreter
from executor.lanes import HostLanes, Lanes, Note
from executor.layout import Layout, check_issue_order
from executor.recording import Recorder, Row, cost_s
from simgd.errors import BackendError, RunError, ScheduleError
from simgd.instances import Instances
from simgd.profile import Execution
from simgd.run import (
    ComputeKind,
    Environment,
    OpTimes,
    Run,
    Spread,
    TracingCost,
    counted,
    warm_up_of,
)
from simgd.schedule import Communicate, Schedule, placed
from simgd.soundness import derive
from simgd.trace import Trace
from simgd.workload import Workload

if TYPE_CHECKING:
    from executor.training import Training

#: Weights are compared after so many iterations, losses looked at after so many.
CHECK_EVERY = 50
LOSS_EVERY = 10

#: Iterations without communication, before and after the run.
LOCAL_STEPS = 5

#: Each collective is timed alone so often.
ALONE = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run; the same on every rank. `op_seconds` are those of each op's own work, for emulated compute."""

    schedule: Schedule
    workload: Workload
    steps: int
    batch: int
    tokens: int
    seed: int
    optimizer: str
    compute: ComputeKind
    execution: Execution
    progress: Progress
    trace_steps: int
    op_seconds: Mapping[str, float] | None = None

    def agreed(self, ranks: int) -> dict[str, object]:
        """Return what all ranks must have been started with."""
        return {
            "ranks": ranks,
            "schedule": self.schedule.digest[:12],
            "workload": self.workload.name,
            "steps": self.steps,
            "batch": self.batch,
            "tokens": self.tokens,
            "seed": self.seed,
            "optimizer": self.optimizer,
            "compute": self.compute,
            "progress": str(self.progress),
            "trace steps": self.trace_steps,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """Provenance that only the caller knows: the launcher, the command."""

    launcher: str = "alone"
    command: str = ""


def execution_of(backend: str, measured: Execution | None) -> Execution:
    """Return how ranks of *backend* run a schedule: as in a profile, with the lanes that the backend has.

    On host memory one thread is host, compute and update. On a GPU updates stand on the compute lane unless the
    profile says otherwise: beside a pass they would hide a fifth of themselves (studies/update_beside_backward).
    """
    if measured is None:
        measured = Execution(origin="assumed", source="the executor's usual lanes", update_on_compute=backend == "nccl")
    on_host = backend != "nccl"
    return replace(
        measured,
        merged=on_host,
        wait_blocks_host=on_host,
        update_on_compute=measured.update_on_compute and not on_host,
    )


def usual_progress(backend: str, compute: ComputeKind) -> Progress:
    """Return who lets collectives progress unless somebody asks.

    A rank that sleeps passes by nowhere, so a thread waits for it. One that computes looks at each layer and gradient:
    a thread of Python's would have to be woken for each message, and take its turns from the computing one.
    """
    if backend not in ("mpi", "gloo"):
        return Progress()
    return Progress(thread=True) if compute == "emulated" else Progress(every=1)


class Rank:
    """The schedule of a plan, ready to run on one rank."""

    def __init__(self, plan: Plan, backend: Backend, note: Note, local: "Training | None" = None) -> None:
        self.plan = plan
        self.backend = backend
        self._note = note
        schedule, workload = plan.schedule, plan.workload
        self.derived = derive(schedule, workload)
        self.instances = Instances(schedule, self.derived)
        check_issue_order(schedule, self.instances)
        _check_wire(plan, backend)
        self.layout = Layout(schedule, backend.ranks)
        execution = plan.execution
        self._lanes = [
            placed(op.lane, merged=execution.merged, update_on_compute=execution.update_on_compute)
            for op in schedule.ops
        ]
        self.training = local if local is not None or plan.compute != "real" else self._training()
        if self.training is not None:
            self.local: Training | Emulated = self.training
        else:
            seconds = plan.op_seconds or {}
            busy = plan.compute == "emulated:busy"
            self.local = Emulated(schedule, self.layout, [seconds.get(op.name, 0.0) for op in schedule.ops], busy=busy)

    def _training(self) -> "Training":
        import torch

        from executor.networks.case import load
        from executor.training import Training, optimizer

        plan = self.plan
        if plan.workload.source is None:
            raise RunError(
                f"workload {plan.workload.name!r}: names no network to run, only layers; take --compute emulated with "
                "a --profile of its times"
            )
        torch.manual_seed(plan.seed)
        case = load(plan.workload.source.function, plan.workload.source.arguments)
        device = torch.device(self.backend.device)
        return Training(
            case,
            plan.workload,
            plan.schedule,
            self.instances,
            self.layout,
            optimizer(plan.optimizer),
            rank=self.backend.rank,
            batch=plan.batch,
            tokens=plan.tokens,
            seed=plan.seed,
            device=device,
        )

    def lanes(self, recorder: Recorder, *, traced: int, communicating: bool = True) -> Lanes:
        """Return the lanes of this rank's device."""
        execution = self.plan.execution
        if self.backend.device == "cuda":
            from executor.streams import StreamLanes

            return StreamLanes(
                self.instances,
                recorder,
                self._note,
                run_ahead=execution.run_ahead,
                traced=traced,
                communicating=communicating,
            )
        comm = None
        if communicating and self.backend.ranks > 1:
            comm = CommLane(self.instances, recorder, in_flight=execution.in_flight, progress=self.plan.progress)
        return HostLanes(self.instances, recorder, self._note, comm)

    def recorder(self, kept: int) -> Recorder:
        """Return a recorder for the ops of the schedule."""
        return Recorder(self._lanes, kept)

    def interpreter(self, lanes: Lanes) -> Interpreter:
        """Return an interpreter that runs on *lanes*."""
        plan = self.plan
        return Interpreter(
            plan.schedule,
            self.instances,
            self.layout,
            plan.workload,
            local=self.local,
            lanes=lanes,
            backend=self.backend,
        )

    def local_s(self) -> float:
        """Return the seconds of an iteration with communication left out; weights change."""
        steps = min(LOCAL_STEPS, max(2, self.plan.steps))
        lanes = self.lanes(self.recorder(1), traced=0, communicating=False)
        self.interpreter(lanes).run(steps, lambda iteration: None)
        if self.training is not None:
            self.training.losses()
        return median(lanes.iterations_s()[1:])


def _check_wire(plan: Plan, backend: Backend) -> None:
    """Raise ScheduleError where nobody could sum what the schedule sends, before anything is sent."""
    for op in plan.schedule.ops:
        if isinstance(op.work, Communicate) and op.work.wire != "float32":
            if backend.name == "mpi":
                why = "MPI has no sum of it"
            elif plan.compute != "real":
                why = "emulated compute has no such type"
            else:
                continue
            raise ScheduleError(
                f"schedule {plan.schedule.name!r}: op {op.name!r} sends {op.work.wire}, but {why}; send float32"
            )


def run(plan: Plan, backend: Backend, note: Note, finished: Callable[[int, float], None], about: About) -> Run | None:
    """Run *plan* on this rank; return the run on rank 0, None on the others.

    *finished* is called with each iteration and its seconds. Raises a SimgdError for whatever goes wrong.
    """
    _agree(plan, backend)
    rank = Rank(plan, backend, note)
    training = rank.training
    _compare_weights(rank, "before the first iteration")
    before = clocks.estimate(backend)
    restore = training.saved() if training is not None else lambda: None
    compute_before = rank.local_s()
    restore()

    traced = min(plan.trace_steps, plan.steps)
    recorder = rank.recorder(traced + rank.instances.owed + 1)
    lanes = rank.lanes(recorder, traced=traced)
    interpreter = rank.interpreter(lanes)
    losses: list[float] = []
    left_out: list[int] = []
    last = [time.perf_counter()]

    def after(iteration: int) -> None:
        now = time.perf_counter()
        finished(iteration, now - last[0])
        last[0] = now
        done = iteration + 1
        if training is not None and done % LOSS_EVERY == 0 and done < plan.steps:
            _look_at(training, losses, backend.rank)
        if training is not None and done % CHECK_EVERY == 0 and done < plan.steps and backend.ranks > 1:
            lanes.settle()
            _compare_weights(rank, f"after iteration {iteration}")
            left_out.append(done)
            last[0] = time.perf_counter()

    backend.barrier()
    last[0] = time.perf_counter()
    try:
        interpreter.run(plan.steps, after)
    finally:
        lanes.close()
    if training is not None:
        _look_at(training, losses, backend.rank)
    digest = _compare_weights(rank, "at the end")
    memory = environment.peak_memory_bytes(backend.device)
    seconds = lanes.iterations_s()
    after_run = clocks.estimate(backend)
    compute_after = rank.local_s()
    alone = _alone(rank, interpreter, lanes)
    rows = recorder.last(plan.steps - traced)
    own = _Measured(
        iterations_s=seconds,
        compute_before_s=compute_before,
        compute_after_s=compute_after,
        communication_s=alone,
        losses=losses,
        memory=memory,
        durations=[(_percentile(each, 50), _percentile(each, 95)) for each in recorder.durations_ns],
        rows=rows,
        events=len(rows) / max(traced, 1),
        event_s=cost_s(),
        before=before,
        after=after_run,
        boot=clocks.boot(),
        host=environment.host(),
    )
    all_of_them = backend.exchange(own)
    if backend.rank:
        return None
    return _assembled(rank, interpreter, all_of_them, left_out, digest, about)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """What one rank measured; times in seconds but for the rows and the clocks' estimates."""

    iterations_s: list[float]
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
    host: Any


def _agree(plan: Plan, backend: Backend) -> None:
    """Raise BackendError if ranks were started with different things."""
    mine = plan.agreed(backend.ranks)
    everyone = backend.exchange(mine)
    for rank, theirs in enumerate(everyone):
        for what, value in everyone[0].items():
            if theirs[what] != value:
                raise BackendError(f"rank {rank} was started with {what} {theirs[what]}, rank 0 with {value}")


def _look_at(training: "Training", losses: list[float], rank: int) -> None:
    """Take the losses that have come; raise RunError at one that is no number."""
    for loss in training.losses():
        if not math.isfinite(loss):
            raise RunError(f"rank {rank}: the loss is {loss} in iteration {len(losses)}; take a smaller learning rate")
        losses.append(loss)


def _compare_weights(rank: Rank, when: str) -> int | None:
    """Return the digest of the weights; raise RunError if ranks differ."""
    if rank.training is None:
        return None
    digests = rank.backend.exchange(rank.training.digest())
    for other, digest in enumerate(digests):
        if digest != digests[0]:
            raise RunError(f"rank {other} has other weights than rank 0 {when}; replicas must stay equal")
    return int(digests[0])


def _alone(rank: Rank, interpreter: Interpreter, lanes: Lanes) -> float:
    """Return the sum of the schedule's collectives, each with nothing beside it: medians of several."""
    if rank.backend.ranks == 1:
        return 0.0
    times: dict[int, list[float]] = {}
    for _ in range(ALONE):
        for k, start in interpreter.communication().items():
            times.setdefault(k, []).append(lanes.alone(start))
    return sum(median(found) for found in times.values())


def _assembled(
    rank: Rank,
    interpreter: Interpreter,
    measured: list[_Measured],
    left_out: list[int],
    digest: int | None,
    about: About,
) -> Run:
    plan, backend = rank.plan, rank.backend
    ops = plan.schedule.ops
    warm_up = warm_up_of(plan.steps)
    traced = min(plan.trace_steps, plan.steps)
    slowest = [max(own.iterations_s[place] for own in measured) for place in range(plan.steps)]
    on_device = backend.device == "cuda"
    # On a device the traced iterations have timing events and count for nothing else, if any others are left.
    untraced = plan.steps - traced if on_device and plan.steps - traced > warm_up else plan.steps
    kept = [slowest[place] for place in counted(untraced, warm_up, left_out)]
    iteration = Spread(median=median(kept), p5=_percentile(kept, 5), p95=_percentile(kept, 95))
    before, after = (max(getattr(own, name) for own in measured) for name in ("compute_before_s", "compute_after_s"))
    compute_s = (before + after) / 2
    communication_s = max(own.communication_s for own in measured)
    exposed = iteration.median - compute_s
    overlap = min(max(1 - exposed / communication_s, 0.0), 1.0) if communication_s > 0 else None
    its_clocks = [clocks.clock(own.before, own.after, shared=own.boot == measured[0].boot) for own in measured]
    hosts: dict[str, Any] = {}
    for own in measured:
        hosts.setdefault(own.boot, own.host)
    numbers = {boot: place for place, boot in enumerate(hosts)}
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
                lane=rank.recorder(1).lanes[k],
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
            traced_over_untraced=median(slowest[untraced:]) / iteration.median if untraced < plan.steps else 1.0,
        ),
        environment=Environment(
            hosts=tuple(hosts.values()),
            host_of_rank=[numbers[own.boot] for own in measured],
            library=backend.library,
            launcher=about.launcher,
            versions=environment.versions(),
            settings=environment.settings(),
            command=about.command,
            commit=environment.commit(),
            date=time.strftime("%Y-%m-%d"),
        ),
        trace=_trace(rank, measured, its_clocks),
    )


def _trace(rank: Rank, measured: list[_Measured], its_clocks: list[Any]) -> Trace:
    """Return the rows of all ranks on rank 0's clock, from the earliest one on, in picoseconds."""
    rows: list[tuple[int, Row, float, float]] = []
    for number, (own, clock) in enumerate(zip(measured, its_clocks, strict=True)):
        convert = clocks.onto_rank_0(clock, own.before)
        rows += [(number, row, convert(row[3]), convert(row[4])) for row in sorted(own.rows, key=lambda row: row[3])]
    zero = min((start for _, _, start, _ in rows), default=0.0)
    lanes = tuple(dict.fromkeys(["host", *rank.recorder(1).lanes]))
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


def _percentile(values: list[Any], share: float) -> float:
    """Return a percentile, linear between neighbours; 0 of nothing."""
    import numpy as np

    return float(np.percentile(values, share)) if len(values) else 0.0
