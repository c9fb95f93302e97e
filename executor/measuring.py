"""A run on one rank, from the checks at the start to what it measured.

Model
    Before and after the run proper the same schedule runs a few iterations with communication left out, which costs
    `compute_s`; weights, optimizers and batch norms are put back in between, so these iterations leave no trace in the
    training. After the run each collective is timed alone. Rank 0 makes one `Run` of what all ranks measured.

    Ranks compare what they were started with, and their weights before the first iteration, every `CHECK_EVERY`
    iterations and at the end; iterations behind such a comparison are left out of the figures. Losses stay on the
    device and are looked at every `LOSS_EVERY` iterations.

    Wherever a rank may have to wait for the others, its note says so: whoever looks after it tells waiting from work.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from executor import clocks, environment, processes
from executor.assembling import About, Measured, assembled, percentile
from executor.backends.protocol import Backend
from executor.interpreter import Interpreter
from executor.lanes import WAITING, Lanes, Note
from executor.plan import Plan
from executor.rank import Rank
from executor.recording import cost_s
from simgd.errors import BackendError, RunError
from simgd.run import Run, counted, warm_up_of

if TYPE_CHECKING:
    from executor.training import Training

#: Weights are compared after so many iterations, losses looked at after so many.
CHECK_EVERY = 50
LOSS_EVERY = 10

#: Each collective is timed alone so often.
ALONE = 5


def run(plan: Plan, backend: Backend, note: Note, finished: Callable[[int, float], None], about: About) -> Run | None:
    """Run *plan* on this rank; return the run on rank 0, None on the others.

    *finished* is called with each iteration and its seconds. Raises a SimgdError for whatever goes wrong.
    """
    agree(plan.agreed(backend.ranks), backend)
    rank = Rank(plan, backend, note)
    training = rank.training
    note.at(WAITING)
    _compare_weights(rank, "before the first iteration")
    before = clocks.estimate(backend)
    compute_before = _without_trace(rank)
    environment.forget_peak_memory(backend.device)

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
            note.at(WAITING, None, iteration)
            lanes.settle()
            _compare_weights(rank, f"after iteration {iteration}")
            left_out.append(done)
            last[0] = time.perf_counter()

    note.at(WAITING)
    backend.barrier()
    last[0] = time.perf_counter()
    try:
        interpreter.run(plan.steps, after)
    finally:
        lanes.close()
    if training is not None:
        _look_at(training, losses, backend.rank)
    note.at(WAITING, None, plan.steps)
    digest = _compare_weights(rank, "at the end")
    memory = environment.peak_memory_bytes(backend.device)
    seconds = lanes.iterations_s()
    after_run = clocks.estimate(backend)
    compute_after = rank.local_s()
    alone = _alone(rank, interpreter, lanes, note)
    note.at(WAITING, None, plan.steps)
    # Of a device only the traced iterations have times of ops.
    on_device = backend.device == "cuda"
    chosen = range(plan.steps) if on_device else counted(plan.steps, warm_up_of(plan.steps), left_out)
    own = Measured(
        iterations_s=seconds,
        begun_ns=lanes.begun_ns,
        compute_before_s=compute_before,
        compute_after_s=compute_after,
        communication_s=alone,
        losses=losses,
        memory=memory,
        durations=[_spread(each, set(chosen)) for each in recorder.durations_ns],
        rows=recorder.last(plan.steps - traced) if traced else [],
        events=recorder.count / (traced or 1 if on_device else plan.steps),
        event_s=cost_s(),
        before=before,
        after=after_run,
        boot=processes.boot(),
        host=environment.host(),
    )
    all_of_them = backend.exchange(own)
    if backend.rank:
        return None
    return assembled(rank, interpreter, all_of_them, left_out, digest, about)


def _spread(durations: Sequence[tuple[int, int]], chosen: set[int]) -> tuple[float, float]:
    """Return median and 95th percentile over the *chosen* iterations; over all where none of them has the op."""
    kept = [each for iteration, each in durations if iteration in chosen] or [each for _, each in durations]
    return percentile(kept, 50), percentile(kept, 95)


def agree(mine: Mapping[str, object], backend: Backend) -> None:
    """Raise BackendError if ranks were started with different things; *mine* are this rank's."""
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


def _without_trace(rank: Rank) -> float:
    """Return the seconds of an iteration without communication, and put back what it changed."""
    restore = rank.training.saved() if rank.training is not None else lambda: None
    seconds = rank.local_s()
    restore()
    return seconds


def _alone(rank: Rank, interpreter: Interpreter, lanes: Lanes, note: Note) -> float:
    """Return the sum of the schedule's collectives, each with nothing beside it: medians of several."""
    if rank.backend.ranks == 1:
        return 0.0
    times: dict[int, list[float]] = {}
    starts = interpreter.communication()
    for _ in range(ALONE):
        for k, start in starts.items():
            note.at(WAITING, k, rank.plan.steps)
            times.setdefault(k, []).append(lanes.alone(start))
    return sum(median(found) for found in times.values())
