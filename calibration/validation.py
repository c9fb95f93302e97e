"""Compares measured runs with what a profile predicts of them.

Model
    A prediction takes from a run its schedule, workload, batch, optimizer and number of ranks, and none of its times;
    the interval comes from replicas whose noise is drawn from the profile. The predicted time is their median.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, median
from typing import Any

import msgspec

from calibration.residuals import residuals
from simgd import files
from simgd.errors import FileError, ProfileError
from simgd.files import read_bytes
from simgd.job import OPTIMIZERS, Job, job
from simgd.predict import Machine, Prediction, predict, trace_of
from simgd.profile import Dtype, LayerTimes, Profile, StepTime
from simgd.run import Run, Runs, counted
from simgd.trace import Trace
from simgd.validation import (
    LEAST_EXPOSED,
    MOST_NOISE,
    NOISY_ERROR,
    Comparison,
    Validation,
    validated,
    with_residuals,
)

#: Noise of the predicted intervals is drawn with this seed.
SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Runs, the machine that is to predict them, and which schedules of them calibration has seen.

    `own_compute` says that local work is predicted to take, all in all, what it took alone before and after each run:
    for machines whose compute is faster at one time than at another.
    """

    runs: Sequence[tuple[str, Run]]
    machine: Machine
    profile: str
    held_out: bool = True
    own_compute: bool = False
    seen: frozenset[str] = field(default_factory=frozenset)


def read_runs(path: str) -> list[tuple[str, Run]]:
    """Return the runs in a file, each with its place in words; raise FileError for a file of something else."""
    raw = files.parse(read_bytes(path), dict, where=path, toml=False)
    match raw.get("format"):
        case "simgd run":
            return [(path, files.convert(raw, Run, where=path))]
        case "simgd runs":
            return [(path, run) for run in files.convert(raw, Runs, where=path).runs]
        case other:
            found = f"holds {str(other)[:60]!r}" if other else "has no `format`"
            raise FileError(f"{path}: {found}; validate reads what `simgd run --out` writes")


def validate(measured: Iterable[Measured]) -> Validation:
    """Return the comparisons of all runs; raise a SimgdError where a profile cannot speak of a run."""
    return validated([comparison for each in measured for comparison in _compared(each)])


def _compared(measured: Measured) -> list[Comparison]:
    by_job: dict[tuple[object, ...], dict[str, list[Run]]] = {}
    for where, run in measured.runs:
        check(where, run, measured.machine.profile)
        about = (run.workload.name, run.batch_per_rank, run.tokens, run.optimizer, run.ranks, run.backend, run.compute)
        by_job.setdefault(about, {}).setdefault(run.schedule.digest, []).append(run)
    found = []
    for schedules in by_job.values():
        groups = list(schedules.values())
        predictions = _predicted(measured.machine, [group[0] for group in groups])
        for group, prediction in zip(groups, predictions, strict=True):
            here = measured
            if measured.own_compute:
                factor = mean(run.compute_s for run in group) / prediction.compute_s
                here = replace(measured, machine=_slower(measured.machine, factor))
                (prediction,) = _predicted(here.machine, group[:1])
            found.append(_comparison(here, group, prediction))
    return found


def _predicted(machine: Machine, runs: Sequence[Run]) -> tuple[Prediction, ...]:
    """Return what *machine* predicts of *runs*, which differ in their schedules only."""
    first = runs[0]
    schedules = [run.schedule for run in runs]
    return predict(machine, job_of(first, machine.profile), [first.ranks], schedules, baseline="sync", seed=SEED)


def _slower(machine: Machine, factor: float) -> Machine:
    """Return the machine with local work that takes *factor* times as long."""
    profile = machine.profile
    scaled: dict[str, Any] = {
        "layers": tuple(
            msgspec.structs.replace(
                entry,
                seconds={name: seconds * factor for name, seconds in entry.seconds.items()},
                rest_s=entry.rest_s * factor,
            )
            for entry in profile.layers
        ),
        "updates": tuple(
            msgspec.structs.replace(
                entry,
                call_s=entry.call_s * factor,
                tensor_s=entry.tensor_s * factor,
                element_s=entry.element_s * factor,
            )
            for entry in profile.updates
        ),
    }
    if profile.host is not None:
        changes = {"op": profile.host.op * factor, "iteration": profile.host.iteration * factor}
        scaled["host"] = msgspec.structs.replace(profile.host, **changes)
    if profile.memory is not None:
        rate, kernel = profile.memory.bytes_per_s / factor, profile.memory.kernel * factor
        scaled["memory"] = msgspec.structs.replace(profile.memory, bytes_per_s=rate, kernel=kernel)
    return Machine(machine.cluster, msgspec.structs.replace(profile, **scaled))


def check(where: str, run: Run, profile: Profile) -> None:
    """Raise ProfileError if *profile* was measured over another library or on another processor than *run*."""
    if profile.backend and profile.backend != run.backend:
        raise ProfileError(
            f"{where}: ran on {run.backend}, but profile {profile.name!r} was measured on {profile.backend}"
        )
    if profile.environment is None:
        return
    for what, ours, theirs in (
        ("processor", run.environment.hosts[0].processor, profile.environment.hosts[0].processor),
        ("GPU", _gpu(run.environment.hosts[0].gpus), _gpu(profile.environment.hosts[0].gpus)),
    ):
        if ours != theirs:
            raise ProfileError(
                f"{where}: has the {what} {ours!r}, but profile {profile.name!r} was measured on {theirs!r}"
            )


def _gpu(gpus: Sequence[str]) -> str:
    return gpus[0] if gpus else ""


def job_of(run: Run, profile: Profile) -> Job:
    """Return the job of *run*, in the precision of the profile's times of its workload."""
    optimizer = run.optimizer.partition(":")[0]
    entries: tuple[LayerTimes | StepTime, ...] = (*profile.layers, *profile.steps)
    dtype: Dtype = next((entry.dtype for entry in entries if entry.workload == run.workload.name), "fp32")
    return job(
        run.workload,
        batch=run.batch_per_rank,
        tokens=run.tokens,
        dtype=dtype,
        optimizer=optimizer if optimizer in OPTIMIZERS else "sgd",
    )


def _comparison(measured: Measured, runs: Sequence[Run], prediction: Prediction) -> Comparison:
    first = runs[0]
    medians = [run.iteration.median for run in runs]
    middle = median(medians)
    noise = (max(medians) - min(medians)) / 2 / middle if len(runs) > 1 else None
    single = [run.slowest_s[place] for run in runs for place in counted(run.steps, run.warm_up, run.left_out)]
    low, high = prediction.iteration_low_s, prediction.iteration_high_s
    error = prediction.median_s / middle - 1
    compute_s = mean(run.compute_s for run in runs)
    exposed_s = mean(run.exposed_communication_s for run in runs)
    predicted_exposed_s = prediction.median_s - prediction.compute_s
    held_out = measured.held_out and first.schedule.name not in measured.seen
    made = Comparison(
        workload=first.workload.name,
        schedule=first.schedule.name,
        ranks=first.ranks,
        backend=first.backend,
        compute=first.compute,
        batch_per_rank=first.batch_per_rank,
        cluster=measured.machine.cluster.name,
        profile=measured.profile,
        runs=len(runs),
        predicted_s=prediction.median_s,
        measured_s=middle,
        measured_low_s=min(medians),
        measured_high_s=max(medians),
        relative_error=error,
        noise=noise,
        iteration_low_s=low,
        iteration_high_s=high,
        iterations=len(single),
        covered=sum(low <= seconds <= high for seconds in single) / len(single),
        compute_predicted_s=prediction.compute_s,
        compute_measured_s=compute_s,
        exposed_predicted_s=predicted_exposed_s,
        exposed_measured_s=exposed_s,
        exposed_error=predicted_exposed_s / exposed_s - 1 if exposed_s >= LEAST_EXPOSED * middle else None,
        held_out=held_out,
        counted=held_out and (noise is None or noise <= MOST_NOISE),
        within=abs(error) <= NOISY_ERROR + (noise or 0.0),
        origin=prediction.origin,
        extrapolated=prediction.extrapolated,
    )
    traced = next((run for run in runs if run.trace.rank), None)
    if traced is None:
        return made
    study = measured.machine.study(first.schedule, job_of(first, measured.machine.profile), first.ranks)
    return with_residuals(made, residuals(trace_of(study), traced.trace, first.schedule))


def worst_traces(measured: Sequence[Measured], found: Validation) -> tuple[str, list[tuple[str, Trace]]]:
    """Return a title and the traces, measured and predicted, of the comparison with the largest error that has any."""
    with_traces = [each for each in found.comparisons if each.residuals]
    if not with_traces:
        return "", []
    worst = max(with_traces, key=lambda each: (each.counted, abs(each.relative_error)))
    for each in measured:
        for _, run in each.runs:
            same = (run.workload.name, run.schedule.name, run.backend, run.compute, each.machine.cluster.name)
            if run.trace.rank and same == (
                worst.workload,
                worst.schedule,
                worst.backend,
                worst.compute,
                worst.cluster,
            ):
                study = each.machine.study(run.schedule, job_of(run, each.machine.profile), run.ranks)
                title = (
                    f"{worst.workload}, {worst.schedule}, {worst.cluster}, {worst.backend}: {worst.relative_error:+.1%}"
                )
                return title, [("measured", run.trace), ("predicted", trace_of(study))]
    raise AssertionError("a comparison is of one of the runs")
