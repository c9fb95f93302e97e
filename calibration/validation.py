"""Compares measured runs with what a profile predicts of them.

Model
    A prediction takes from a run its schedule, workload, batch, optimizer and number of ranks, and none of its times;
    the interval comes from replicas whose noise is drawn from the profile. The predicted time is their median.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import msgspec

from calibration.residuals import residuals, whole_iterations
from simgd import files
from simgd.errors import FileError, ProfileError, RunError
from simgd.explain import host_kinds
from simgd.files import check_positive, read_bytes
from simgd.job import OPTIMIZERS, Job, job
from simgd.predict import Machine, Prediction, predict, trace_of
from simgd.profile import Dtype, LayerTimes, Profile, StepTime
from simgd.provenance import Host
from simgd.run import Run, Runs, counted
from simgd.schedule import LANES
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
from simgd.workload import Workload

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A comparison, and a measured and the predicted trace of it, labelled; none where no run kept two iterations."""

    comparison: Comparison
    traces: tuple[tuple[str, Trace], ...] = ()


def read_runs(path: str) -> list[tuple[str, Run]]:
    """Return the runs in a file, each with its place in words; raise FileError for a file of something else."""
    if not Path(path).is_file() and Path(path + ".parts").is_dir():
        raise FileError(f"{path}: its run did not end; `simgd show {path}` says how far it came")
    raw = files.parse(read_bytes(path), dict, where=path, toml=False)
    match raw.get("format"):
        case "simgd run":
            return [(path, files.convert(raw, Run, where=path))]
        case "simgd runs":
            found = files.convert(raw, Runs, where=path).runs
            if not found:
                raise FileError(f"{path}: holds no runs")
            return [(f"{path}: runs[{place}]", run) for place, run in enumerate(found)]
        case other:
            holds = f"holds {str(other)[:60]!r}" if other else "has no `format`"
            raise FileError(f"{path}: {holds}; validate reads what `simgd run --out` writes")


def cases(measured: Iterable[Measured], *, seed: int | None = SEED) -> list[Case]:
    """Return the comparisons of all runs; raise a SimgdError where a profile cannot speak of a run.

    With *seed* None the intervals are closed forms, which takes a fiftieth of the time; see `noise`.
    """
    return [case for each in measured for case in _cases(each, seed)]


def validate(found: Sequence[Case]) -> Validation:
    """Return what the cases amount to; raise FileError where there are none."""
    return validated([each.comparison for each in found])


def worst_traces(found: Sequence[Case]) -> tuple[tuple[str, Trace], ...]:
    """Return the traces, measured and predicted, of the worst case that has any; see `Validation.worst`."""
    traced = (each for each in found if each.traces)
    return max(traced, key=lambda each: each.comparison.severity, default=Case(comparison=found[0].comparison)).traces


def _cases(measured: Measured, seed: int | None) -> list[Case]:
    by_job: dict[tuple[object, ...], dict[str, list[Run]]] = {}
    workloads: dict[str, tuple[str, Workload]] = {}
    for where, run in measured.runs:
        check(where, run, measured.machine.profile)
        first, known = workloads.setdefault(run.workload.name, (where, run.workload))
        if known != run.workload:
            raise FileError(f"{where}: its workload {known.name!r} is not the one of {first}; compare it apart")
        about = (run.workload.name, run.batch_per_rank, run.tokens, run.optimizer, run.ranks, run.backend, run.compute)
        by_job.setdefault(about, {}).setdefault(run.schedule.digest, []).append(run)
    found = []
    for schedules in by_job.values():
        groups = list(schedules.values())
        firsts = [group[0] for group in groups]
        # Noise changes no compute, which is all that `own_compute` needs of this machine.
        predictions = _predicted(measured.machine, firsts, None if measured.own_compute else seed)
        for group, prediction in zip(groups, predictions, strict=True):
            here = measured
            if measured.own_compute:
                if not prediction.compute_s:
                    name = measured.machine.profile.name
                    raise ProfileError(f"profile {name!r}: compute takes no time; `own_compute` cannot scale it")
                factor = mean(run.compute_s for run in group) / prediction.compute_s
                here = replace(measured, machine=_slower(measured.machine, factor))
                (prediction,) = _predicted(here.machine, group[:1], seed)
            found.append(_case(here, group, prediction))
    return found


def _predicted(machine: Machine, runs: Sequence[Run], seed: int | None) -> tuple[Prediction, ...]:
    """Return what *machine* predicts of *runs*, which differ in their schedules only."""
    first = runs[0]
    schedules = [run.schedule for run in runs]
    return predict(machine, job_of(first, machine.profile), [first.ranks], schedules, baseline="sync", seed=seed)


def _slower(machine: Machine, factor: float) -> Machine:
    """Return the machine with local work that takes *factor* times as long."""
    profile = machine.profile
    scaled: dict[str, Any] = {
        "layers": tuple(
            msgspec.structs.replace(
                entry,
                seconds={name: seconds * factor for name, seconds in entry.seconds.items()},
                rest_s=entry.rest_s * factor,
                issue={name: seconds * factor for name, seconds in entry.issue.items()},
            )
            for entry in profile.layers
        ),
        "updates": tuple(
            msgspec.structs.replace(
                entry,
                call_s=entry.call_s * factor,
                tensor_s=entry.tensor_s * factor,
                element_s=entry.element_s * factor,
                points=tuple((elements, seconds * factor) for elements, seconds in entry.points),
            )
            for entry in profile.updates
        ),
    }
    if profile.host is not None:
        on_host = profile.execution is not None and profile.execution.merged
        # A host that only issues is as much slower at that; of one that computes what it posts is no local work.
        kinds = ("op", "iteration") if on_host else host_kinds(profile.host)
        changes = {kind: getattr(profile.host, kind) * factor for kind in kinds}
        scaled["host"] = msgspec.structs.replace(profile.host, **changes)
    if profile.memory is not None:
        rate, kernel = profile.memory.bytes_per_s / factor, profile.memory.kernel * factor
        scaled["memory"] = msgspec.structs.replace(profile.memory, bytes_per_s=rate, kernel=kernel)
    return Machine(machine.cluster, msgspec.structs.replace(profile, **scaled))


def check(where: str, run: Run, profile: Profile) -> None:
    """Raise ProfileError if *profile* was measured over another library or on another processor than *run*, and
    RunError if *run* cannot be right."""
    check_positive(RunError, where, **{"iteration.median": run.iteration.median, "compute_s": run.compute_s})
    ops = {op.name for op in run.schedule.ops}
    for what, names, known in (("lane", run.trace.lanes, set(LANES)), ("op", run.trace.ops, ops)):
        for name in names:
            if name not in known:
                raise RunError(f"{where}: trace: its {what} {name[:60]!r} is none of the schedule's")
    if profile.backend and profile.backend != run.backend:
        raise ProfileError(
            f"{where}: ran on {run.backend}, but profile {profile.name!r} was measured on {profile.backend}"
        )
    if profile.environment is None or not profile.environment.hosts:
        return
    hosts = (run.environment.hosts, profile.environment.hosts)
    for what, (ours, theirs) in (("processors", map(_processors, hosts)), ("GPUs", map(_gpus, hosts))):
        if not set(ours) <= set(theirs):
            raise ProfileError(
                f"{where}: ran on {what} {', '.join(ours)}, but profile {profile.name!r} was measured on "
                f"{', '.join(theirs) or 'none'}"
            )


def _processors(hosts: Sequence[Host]) -> list[str]:
    return list(dict.fromkeys(host.processor for host in hosts))


def _gpus(hosts: Sequence[Host]) -> list[str]:
    return list(dict.fromkeys(gpu for host in hosts for gpu in host.gpus))


def job_of(run: Run, profile: Profile) -> Job:
    """Return the job of *run*, in the precision of the profile's times of its workload.

    The executor computes in 32 bits; where the profile has no times, torch's settings say whether through TF32.
    """
    optimizer = run.optimizer.partition(":")[0]
    entries: tuple[LayerTimes | StepTime, ...] = (*profile.layers, *profile.steps)
    ours = [entry.dtype for entry in entries if entry.workload == run.workload.name and entry.dtype != "bf16"]
    said: Dtype = "tf32" if run.environment.settings.get("tf32 convolutions") == "True" else "fp32"
    dtype = ours[0] if ours else said
    return job(
        run.workload,
        batch=run.batch_per_rank,
        tokens=run.tokens,
        dtype=dtype,
        optimizer=optimizer if optimizer in OPTIMIZERS else "sgd",
    )


def _counted_s(run: Run) -> list[float]:
    """Return the seconds of the single iterations of *run* that count."""
    slowest_s = run.slowest_s
    return [slowest_s[place] for place in counted(run.steps, run.warm_up, run.left_out)]


def _case(measured: Measured, runs: Sequence[Run], prediction: Prediction) -> Case:
    first = runs[0]
    medians = [run.iteration.median for run in runs]
    middle = median(medians)
    noise = (max(medians) - min(medians)) / 2 / middle if len(runs) > 1 else None
    single = [seconds for run in runs for seconds in _counted_s(run)]
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
    traced = next((run for run in runs if len(whole_iterations(run.trace, run.schedule)) > 1), None)
    if traced is None:
        return Case(comparison=made)
    study = measured.machine.study(first.schedule, job_of(first, measured.machine.profile), first.ranks)
    predicted = trace_of(study)
    made = with_residuals(made, residuals(predicted, traced.trace, first.schedule))
    return Case(comparison=made, traces=(("measured", traced.trace), ("predicted", predicted)))
