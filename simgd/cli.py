"""The command line: arguments in, library calls, text out. The one place where simgd, executor and calibration meet.

Whatever is slow to import is imported by the command that needs it. Bad input ends with one line and status 2.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args

import typer

from simgd.errors import BackendError, FileError, ProfileError, ScheduleError, SimgdError, unknown

app = typer.Typer(
    help="Predict which schedule of gradient descent is fastest on a machine, by how much, and at what cost.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# What typer raises for bad arguments; it carries click under another name from some version on.
_BadArguments: type[typer.BadParameter] = next(
    base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException"
)

#: The arguments of this process, with which it starts the ranks of a run.
_given: list[str] = []

#: Without a terminal lines are as long as they need, so that a script finds each whole.
_WIDTH = 2000

On = Annotated[str, typer.Option("--on", help="cluster: a name, NAME:NODES, a TOML file, or a profile")]
Profiles = Annotated[list[str] | None, typer.Option("--profile", help="costs; of several the later wins")]
AsJson = Annotated[bool, typer.Option("--json", help="print the values as JSON")]
Schedules = Annotated[str | None, typer.Option("--schedules", "--schedule", help="names or JSON files, by commas")]
Ranks = Annotated[str | None, typer.Option("--ranks", help="numbers of ranks, by commas; default: every device")]
Devices = Annotated[str | None, typer.Option("--devices", help="device numbers, by commas; default: the first ones")]
Batch = Annotated[int | None, typer.Option("--batch", help="samples a rank")]
Tokens = Annotated[int | None, typer.Option("--seq-len", help="tokens a sample")]
OptimizerName = Annotated[str, typer.Option("--optimizer", help="sgd (with momentum) or adamw")]
Dtype = Annotated[str, typer.Option("--dtype", help="fp32, tf32 or bf16")]
Wire = Annotated[str, typer.Option("--wire", help="gradients travel in fp32 or bf16")]
Plot = Annotated[Path | None, typer.Option("--plot", help="draw to this .png, .pdf or .svg")]


@app.command()
def predict(
    workload: str,
    on: On,
    ranks: Ranks = None,
    schedules: Schedules = None,
    batch: Batch = None,
    global_batch: Annotated[int | None, typer.Option(help="samples of all ranks together")] = None,
    seq_len: Tokens = None,
    optimizer: OptimizerName = "sgd",
    dtype: Dtype = "fp32",
    wire: Wire = "fp32",
    devices: Devices = None,
    baseline: Annotated[
        str, typer.Option(help="schedule that speed-ups are stated over, beside sync")
    ] = "bucketed:25MiB",
    profile: Profiles = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="draw the profile's noise with this seed and simulate it (slower)")
    ] = None,
    json: AsJson = False,
    trace: Annotated[Path | None, typer.Option(help="write a timeline for Perfetto")] = None,
    plot: Plot = None,
) -> None:
    """Predict the iteration of each schedule, and say which to run."""
    from simgd import predict as library
    from simgd.verdict import verdict

    if batch is not None and global_batch is not None:
        raise ProfileError("--batch and --global-batch: give one of them")
    _check_outputs(trace=trace, plot=plot)
    machine, counts = _machine(on, profile, ranks, devices)
    job = _job(workload, batch, seq_len, optimizer, dtype, wire)
    chosen = _schedules(schedules)
    rows = library.predict(
        machine, job, counts, chosen, baseline=_schedule(baseline), global_batch=global_batch, seed=seed
    )
    here = library.with_global_batch(job, global_batch, max(counts))
    sentence = verdict(rows, machine, here, chosen)
    if trace is not None or plot is not None:
        studies = [machine.study(schedule, here, max(counts)) for schedule in chosen]
        if trace is not None:
            from simgd import perfetto

            perfetto.write([(study.schedule.name, library.trace_of(study)) for study in studies], trace)
        if plot is not None:
            from simgd import figures

            figures.speedups(rows, figures.traced(studies), plot)
    if json:
        _print_json({"predictions": rows, "verdict": sentence})
    else:
        from simgd import report

        _print(report.predictions(rows, sentence))


@app.command()
def explain(
    workload: str,
    on: On,
    schedule: Annotated[
        str, typer.Option("--schedule", "--schedules", help="a name or a JSON file")
    ] = "bucketed:25MiB",
    ranks: Ranks = None,
    batch: Batch = None,
    seq_len: Tokens = None,
    optimizer: OptimizerName = "sgd",
    dtype: Dtype = "fp32",
    wire: Wire = "fp32",
    devices: Devices = None,
    profile: Profiles = None,
    plot: Annotated[Path | None, typer.Option(help="picture of the machine with how busy its links are")] = None,
    json: AsJson = False,
) -> None:
    """Name what bounds one schedule, and what would move it.

    The links that its collectives keep busiest stand at the end; --plot draws the machine with them.
    """
    from simgd import explain as library

    machine, counts = _machine(on, profile, ranks, devices)
    job = _job(workload, batch, seq_len, optimizer, dtype, wire)
    found = [library.explain(machine.study(_schedule(schedule), job, count)) for count in counts]
    if plot is not None:
        from simgd import figures

        last = found[-1]
        title = f"{last.workload}, {last.schedule}, {last.ranks} ranks of {last.cluster}: links while collectives run"
        figures.topology(machine.cluster, plot, loads=library.directed(last.links, machine.cluster), title=title)
    if json:
        _print_json({"explanations": found})
    else:
        from simgd import report

        for explanation in found:
            _print(report.explanation(explanation))


@app.command()
def collective(
    kind: str,
    on: On,
    ranks: Ranks = None,
    sizes: Annotated[str, typer.Option(help="64KiB,1MiB or 8B:1GiB:x2")] = "8B:1GiB:x8",
    measured: Annotated[Path | None, typer.Option(help="output of nccl-tests to compare with")] = None,
    devices: Devices = None,
    fidelity: Annotated[
        str, typer.Option(help="collectives: one cost each by its steps; flows: each message by itself")
    ] = "collectives",
    algorithm: Annotated[str, typer.Option(help="the only one to use, as the table names them")] = "",
    beside: Annotated[
        list[str] | None,
        typer.Option(help="at the same time: the same collective on other devices (4,5,6,7), or copies to each device"),
    ] = None,
    profile: Profiles = None,
    json: AsJson = False,
) -> None:
    """Predict one collective by message size, as nccl-tests does."""
    from simgd import collective as library
    from simgd.units import sizes as read_sizes

    if kind not in library.KINDS:
        raise unknown("collective", kind, library.KINDS)
    if fidelity not in library.FIDELITIES:
        raise unknown("fidelity", fidelity, library.FIDELITIES)
    if measured is not None:
        from calibration import nccl_tests

        found = nccl_tests.read(measured, kind)
        if ranks not in (None, str(found.ranks)) or devices is not None:
            raise ProfileError(f"{measured}: says which {found.ranks} ranks it ran on; leave --ranks and --devices out")
        machine, _ = _machine(on, profile, str(found.ranks), None)
        network = machine.network(fidelity, algorithm)
        rows = library.compared(network, nccl_tests.compare(found, network), found.kind, found.ranks)
    else:
        machine, counts = _machine(on, profile, ranks, devices)
        jobs = [_beside(text) for text in beside or ()]
        network = machine.network("flows" if jobs else fidelity, algorithm)
        rows = library.predicted(network, kind, counts, read_sizes(sizes), machine.devices, jobs)
    if json:
        _print_json({"collectives": rows})
    else:
        _print(library.table(rows))


@app.command()
def schedule(
    name: str,
    workload: Annotated[str, typer.Option(help="a name or a TOML file")],
    out: Annotated[Path, typer.Option(help="JSON file to write")],
    on: Annotated[str | None, typer.Option(help="cluster, for schedules that depend on costs")] = None,
    ranks: Ranks = None,
    batch: Batch = None,
    seq_len: Tokens = None,
    optimizer: OptimizerName = "sgd",
    dtype: Dtype = "fp32",
    wire: Wire = "fp32",
    profile: Profiles = None,
) -> None:
    """Write a schedule as a file that the others read."""
    from simgd import catalogue, files
    from simgd.plan import plan
    from simgd.soundness import derive

    _check_suffix(out, (".json", ".json.gz"), "a schedule is written as JSON")
    found = catalogue.workload(workload)
    prices = None
    if on is not None:
        machine, counts = _machine(on, profile, ranks, None)
        prices = machine.prices(_job(workload, batch, seq_len, optimizer, dtype, wire), max(counts))
    elif (batch, seq_len, optimizer, dtype, wire) != (None, None, "sgd", "fp32", "fp32"):
        raise ScheduleError("--batch, --seq-len, --optimizer, --dtype and --wire count only with a machine: give --on")
    planned = plan(name, found, prices)
    derived = derive(planned, found)
    files.write(out, planned)
    stale = max(derived.staleness.values(), default=0)
    _print(f"{out}: {planned.name} for {found.name}, {len(planned.ops)} ops, staleness {stale}, {planned.digest[:12]}")


@app.command()
def workload(
    source: Annotated[str, typer.Argument(help="MODULE:FUNCTION, or TABLE.csv of layers with measured times")],
    out: Annotated[Path, typer.Option(help="TOML file to write; a table's times go into NAME.profile.json beside it")],
    argument: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for the function")] = None,
) -> None:
    """Count a network of your own, or read a table of layers."""
    from simgd import files

    _check_suffix(out, (".toml",), "a workload is written as TOML")
    if source.endswith(".csv"):
        from calibration.tables import read_table

        counted, costs = read_table(source, name=out.stem)
        beside = out.with_suffix(".profile.json")
        files.write(out, counted)
        files.write(beside, costs)
        _print(f"{out}: {counted.parameters:,} parameters in {len(counted.layers)} layers; its times: {beside}")
        return
    try:
        from calibration.counting import from_spec
    except ImportError as error:
        raise SimgdError(f"counting a network needs {error.name}; pip install 'simgd[torch]'") from None
    counted = from_spec(source, _arguments(argument or []), name=out.stem)
    files.write(out, counted)
    _print(f"{out}: {counted.parameters:,} parameters in {len(counted.layers)} layers")


@app.command(name="list")
def list_(what: Annotated[str, typer.Argument(help="workloads, clusters, schedules or profiles")]) -> None:
    """List workloads, clusters, schedules or profiles."""
    from simgd import catalogue
    from simgd.schedules import NAMES
    from simgd.texttable import table

    lines: list[tuple[str, str]]
    match what:
        case "schedules":
            lines = list(NAMES.items())
        case "workloads":
            lines = [(name, catalogue.workload(name).description) for name in catalogue.names("workload")]
        case "clusters":
            lines = [(name, catalogue.cluster(name).description) for name in catalogue.names("cluster")]
        case "profiles":
            lines = [(name, catalogue.profile(name).description) for name in catalogue.names("profile")]
        case _:
            raise unknown("list", what, ["workloads", "clusters", "schedules", "profiles"])
    made = table("name", "what it is", left=2)
    for name, text in lines:
        made.add_row(name, text)
    _print(made)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="a name from `simgd list`, or a file")],
    toml: Annotated[bool, typer.Option("--toml", help="print it as a file to start from")] = False,
    simgrid: Annotated[bool, typer.Option("--simgrid", help="print a cluster as a platform file of SimGrid")] = False,
    plot: Plot = None,
) -> None:
    """Show a workload, cluster, schedule or profile."""
    from simgd import showing

    if toml and simgrid:
        raise SimgdError("--toml and --simgrid both print a file; give one of them")
    _check_outputs(plot=plot)
    parts = Path(name + ".parts")
    if parts.is_dir():
        from executor.parts import post_mortem

        _print(post_mortem(parts, Path(name).name))
        return
    values = showing.find(name)
    text = showing.as_file(name, values) if toml else showing.as_platform(name, values) if simgrid else None
    if plot is not None:
        from simgd import figures
        from simgd.profile import Profile

        drawn = showing.drawn(name, values)
        if isinstance(drawn, Profile):
            figures.profile(drawn, plot)
        else:
            figures.topology(drawn, plot)
    if text is not None:
        sys.stdout.write(text)
    else:
        for value in values:
            _print(showing.table(value, values))


@app.command(name="run")
def run_(
    schedule: Annotated[str, typer.Argument(help="a name or a JSON file")],
    workload: Annotated[str, typer.Option(help="a name or a TOML file")],
    steps: Annotated[int, typer.Option(min=1, help="iterations")],
    backend: Annotated[str, typer.Option(help="loopback, mpi, gloo or nccl")] = "loopback",
    ranks: Annotated[int | None, typer.Option(min=1, help="start and supervise so many ranks")] = None,
    out: Annotated[Path, typer.Option(help="JSON file to write")] = Path("run.json"),
    batch: Batch = None,
    seq_len: Tokens = None,
    optimizer: Annotated[str, typer.Option(help="sgd, adamw, or a class of torch.optim, NAME:lr=0.1,...")] = "sgd",
    compute: Annotated[str, typer.Option(help="real; emulated (asleep) or emulated:busy, by a profile")] = "real",
    profile: Profiles = None,
    progress: Annotated[str | None, typer.Option(help="who lets collectives progress: none, poll:N or thread")] = None,
    trace: Annotated[Path | None, typer.Option(help="write a timeline for Perfetto")] = None,
    trace_steps: Annotated[int, typer.Option(min=0, help="how many of the last iterations are traced")] = 3,
    timeout: Annotated[float, typer.Option(min=0.1, help="seconds without progress that end the job")] = 60.0,
    seed: Annotated[int, typer.Option(min=0, help="of the weights and of every rank's data")] = 0,
    dry: Annotated[bool, typer.Option("--dry", help="print what each rank would do, and run nothing")] = False,
    json: AsJson = False,
) -> None:
    """Run a schedule on real ranks, and say where the time goes."""
    from executor import dry as dry_run
    from executor import job as execution
    from simgd.run import BackendName, ComputeKind

    for what, value, known in (
        ("backend", backend, get_args(BackendName)),
        ("compute", compute, get_args(ComputeKind)),
    ):
        if value not in known:
            raise unknown(what, value, known)
    _check_suffix(out, (".json", ".json.gz"), "a run is written as JSON")
    _check_outputs(trace=trace)
    if not out.parent.is_dir():
        raise FileError(f"{out}: there is no folder {str(out.parent)!r}")
    for path in (out, trace):
        if path is not None and path.is_dir():
            raise FileError(f"{path}: is a folder; name a file")
    if trace is not None and trace.absolute() == out.absolute():
        raise FileError(f"{out}: --out and --trace name the same file")
    bar = _Bar(steps)
    order = _order(backend, ranks, out, trace, timeout, bar, quiet=json)
    found = None if dry else execution.launched(order)
    count = found.ranks if found is not None else ranks or 1
    plan = _plan(
        schedule,
        workload,
        ranks=count,
        steps=steps,
        backend=backend,
        batch=batch,
        tokens=seq_len,
        optimizer=optimizer,
        compute=compute,
        profiles=profile,
        progress=progress,
        trace_steps=trace_steps,
        seed=seed,
    )
    if dry:
        print(dry_run.told(plan.schedule, plan.workload, count, steps, plan.execution))
        return
    made = _carried_out(execution.training(plan), order, found, bar)
    if made is None:
        return
    if json:
        _print_json(made)
    else:
        from simgd import runreport

        _print(runreport.run(made))
        _print(f"{out}" + (f"; timeline: {trace} (open it at ui.perfetto.dev)" if trace else ""))


@app.command()
def validate(
    sources: Annotated[list[str], typer.Argument(help="runs, or a study's validation.toml")],
    profile: Profiles = None,
    on: Annotated[str | None, typer.Option("--on", help="cluster of the runs, if not the profile's")] = None,
    max_error: Annotated[float | None, typer.Option(min=0, help="exit 1 where the mean error is larger: 0.05")] = None,
    json: AsJson = False,
    plot: Plot = None,
) -> None:
    """Compare runs with their predictions, op by op."""
    from calibration import campaign
    from calibration import validation as library

    _check_outputs(plot=plot)
    tables = [source for source in sources if source.endswith(".toml")]
    if tables and (len(sources) > 1 or profile or on):
        raise FileError(f"{tables[0]}: says itself which runs and profiles belong together; give it alone")
    if tables:
        measured = campaign.read(tables[0])
    elif not profile:
        raise ProfileError("validate: give the --profile that is to predict the runs, as `simgd calibrate` writes it")
    else:
        runs = [run for source in sources for run in library.read_runs(source)]
        names = ", ".join(Path(name).name for name in profile)
        measured = [library.Measured(runs=runs, machine=campaign.machine_of(profile, on), profile=names)]
    cases = library.cases(measured)
    found = library.validate(cases)
    if plot is not None:
        from simgd import figures

        figures.validation(found, library.worst_traces(cases), plot)
    if json:
        _print_json(found)
    else:
        from simgd import validationreport

        _print(validationreport.validation(found))
    if max_error is not None and found.mean_abs_error is not None and found.mean_abs_error > max_error:
        raise typer.Exit(_fail(f"validate: mean_abs_error is {found.mean_abs_error:.4f}, above {max_error:g}", 1))


calibrate_app = typer.Typer(invoke_without_command=True)
app.add_typer(calibrate_app, name="calibrate")


@calibrate_app.callback()
def calibrate(
    context: typer.Context,
    backend: Annotated[str, typer.Option(help="mpi, gloo or nccl")] = "mpi",
    workload: Annotated[
        list[str] | None, typer.Option(help="names or TOML files; each with --batch, --seq-len")
    ] = None,
    out: Annotated[Path, typer.Option(help="JSON file to write")] = Path("profile.json"),
    ranks: Annotated[int | None, typer.Option(min=2, help="start and supervise so many ranks")] = None,
    batch: Batch = None,
    seq_len: Tokens = None,
    optimizer: OptimizerName = "sgd",
    on: Annotated[str | None, typer.Option("--on", help="the cluster that this is; default: as measured")] = None,
    compute: Annotated[
        str, typer.Option(help="what ranks do beside communication: real, or emulated (asleep)")
    ] = "real",
    progress: Annotated[str | None, typer.Option(help="who lets collectives progress: none, poll:N or thread")] = None,
    largest: Annotated[
        str | None, typer.Option(help="largest message; default: 16MiB, between GPUs 1GiB", show_default=False)
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="seconds without progress that end the job")] = 60.0,
    seed: Annotated[int, typer.Option(min=0, help="of the order of measurements")] = 0,
    json: AsJson = False,
) -> None:
    """Measure this machine, and write a profile of it."""
    if context.invoked_subcommand is not None:
        return
    from calibration import calibrate as library
    from calibration.wanted import Wanted
    from executor import job as execution
    from executor.comm import progress as read_progress
    from executor.plan import usual_progress
    from simgd import catalogue
    from simgd.units import KIB, nbytes

    if backend not in ("mpi", "gloo", "nccl"):
        raise unknown("backend", backend, ["mpi", "gloo", "nccl"])
    if compute not in ("real", "emulated"):
        raise unknown("compute", compute, ["real", "emulated"])
    if backend == "nccl" and compute != "real":
        raise ProfileError("--compute emulated: ranks on GPUs compute; take --backend mpi or gloo, or --compute real")
    _check_suffix(out, (".json", ".json.gz"), "a profile is written as JSON")
    if not out.parent.is_dir() or out.is_dir():
        raise FileError(f"{out}: is a folder; name a file" if out.is_dir() else f"{out}: there is no such folder")
    largest = largest or ("1GiB" if backend == "nccl" else "16MiB")
    if nbytes(largest) < KIB:
        raise ProfileError(f"--largest {largest}: must be 1KiB or more")
    jobs = [_job(name, batch, seq_len, optimizer, "fp32", "fp32") for name in workload or []]
    wanted = Wanted(
        name=out.name.partition(".")[0],
        backend=backend,  # type: ignore[arg-type]
        workloads=[(job.workload, job.batch, job.tokens) for job in jobs],
        optimizer=optimizer,
        asleep=compute == "emulated",
        progress=read_progress(progress) if progress is not None else usual_progress(backend),
        cluster=catalogue.cluster(on) if on is not None else None,
        largest_bytes=nbytes(largest),
        seed=seed,
    )
    bar = _Bar(library.steps(wanted), "measurements")
    order = _order(backend, ranks, out, None, timeout, bar, quiet=json)
    found = execution.launched(order)
    made = _carried_out(library.task(wanted), order, found, bar)
    if made is None:
        return
    if json:
        _print_json(made)
    else:
        from simgd import showing

        _print(showing.table(made))
        _print(f"{out}; predict with --on {out}")


@calibrate_app.command("import")
def import_(
    file: Annotated[
        list[str], typer.Argument(help="FILE, or FILE:name=value,name=value with what it does not say itself")
    ],
    out: Annotated[Path, typer.Option(help="JSON file to write")] = Path("profile.json"),
    on: Annotated[str | None, typer.Option("--on", help="the cluster, if no file describes it")] = None,
    json: AsJson = False,
) -> None:
    """Make a profile of output of nccl-tests, OSU benchmarks, nvidia-smi topo -m, NCCL, ibnetdiscover and
    torch.profiler, or of a platform file of SimGrid."""
    from calibration import importing
    from simgd import files

    _check_suffix(out, (".json", ".json.gz"), "a profile is written as JSON")
    name = out.name.partition(".")[0]
    cluster, parts = importing.parts(file, name, on)
    made = importing.merged(name, cluster, parts)
    files.write(out, made)
    if json:
        _print_json(made)
    else:
        _print(importing.table(parts))
        _print(f"{out}; predict with --on {out}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder for the picture and the timeline")] = Path("demo"),
) -> None:
    """Predict a DGX-1, then measure and check this machine."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{out}: cannot be made: {error.strerror}") from None
    picture, timeline = out / "alexnet.png", out / "alexnet.trace.json"
    predict("alexnet", on="dgx1-p100", ranks="1,2,4,8", batch=32, plot=picture, trace=timeline)
    _print("")
    explain("alexnet", on="dgx1-p100", schedule="layerwise", ranks="8", batch=32)
    _print(f"\npicture: {picture}\ntimeline: {timeline} (open it at ui.perfetto.dev)")
    backend = _library_here()
    if backend is None:
        _print("\nCalibrating and running on this machine needs MPI or torch: pip install 'simgd[mpich]' brings one.")
        return
    _loop(out, backend)


def _library_here() -> str | None:
    """Return a library over which ranks of this machine can talk, if one is installed."""
    import shutil
    from importlib.util import find_spec

    beside = Path(sys.executable).parent / "mpiexec"
    if find_spec("mpi4py") is not None and (beside.exists() or shutil.which("mpiexec")):
        return "mpi"
    return "gloo" if find_spec("torch") is not None else None


#: What the demo runs on this machine: small enough for two ranks on two cores.
_DEMO_WORKLOAD, _DEMO_SCHEDULES = "digits-cnn", ("sync", "layerwise", "async:1")


def _loop(out: Path, backend: str) -> None:
    """Calibrate two ranks of this machine, predict what they will take, run them and compare."""
    import contextlib
    import io
    from importlib.util import find_spec

    def step(told: str, line: str, *, quiet: bool = True) -> None:
        _print(f"\n{told}\n$ simgd {line}")
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown) if quiet else contextlib.nullcontext():
            status = run(line.split())
        if status:
            raise typer.Exit(status)

    real = find_spec("torch") is not None
    here, picture = out / "here.json", out / "validation.png"
    ranks = f"--backend {backend} --ranks 2"
    compute = "real" if real else "emulated"
    step(
        "This machine: two ranks, measured",
        f"calibrate {ranks} --workload {_DEMO_WORKLOAD} --compute {compute} --largest 1MiB --out {here}",
    )
    names = ",".join(_DEMO_SCHEDULES)
    step(
        "What two ranks will take",
        f"predict {_DEMO_WORKLOAD} --on {here} --ranks 2 --schedules {names} --baseline sync",
        quiet=False,
    )
    runs = []
    for name in _DEMO_SCHEDULES:
        runs.append(out / f"{name.replace(':', '-')}.json")
        costs = "" if real else f" --compute emulated --profile {here}"
        step(
            "And what they do take",
            f"run {name} --workload {_DEMO_WORKLOAD} {ranks} --steps 60 --out {runs[-1]}{costs}",
        )
    files = " ".join(map(str, runs))
    step("How far apart", f"validate {files} --profile {here} --plot {picture}", quiet=False)
    _print(f"\npicture: {picture}\nprofile: {here} (simgd show {here})")


# --- from arguments to values ------------------------------------------------------------------------------------


def _check_outputs(*, trace: Path | None = None, plot: Path | None = None) -> None:
    """Refuse names that nothing could be written under, before anything is computed or written."""
    if trace is not None:
        _check_suffix(trace, (".json", ".json.gz"), "a timeline for Perfetto is JSON")
    if plot is not None:
        from simgd.figures import kind_of_file

        kind_of_file(plot)
    for path in (trace, plot):
        if path is not None and not path.parent.is_dir():
            raise FileError(f"{path}: there is no folder {str(path.parent)!r}")


def _check_suffix(path: Path, right: tuple[str, ...], why: str) -> None:
    if not path.name.endswith(right):
        raise FileError(f"{path}: {why}; end the name in {' or '.join(right)}")


def _beside(text: str) -> Any:
    """Return a job that runs at the same time: "copies", or the devices of another collective."""
    from simgd.units import counts as listed

    return text if text == "copies" else listed(text, "--beside")


def _machine(
    on: str, profiles: list[str] | None, ranks: str | None, devices: str | None
) -> tuple[Any, tuple[int, ...]]:
    """Return the machine, and the numbers of ranks asked for."""
    from simgd import catalogue, fabrics
    from simgd.predict import Machine
    from simgd.topology import MOST_DEVICES
    from simgd.units import counts as listed

    cluster = catalogue.cluster(on)
    chosen = listed(devices, "--devices") if devices is not None else None
    if ranks is not None:
        counts = listed(ranks, "--ranks")
    elif chosen is not None:
        counts = (len(chosen),)
    elif cluster.device.kind == "cpu" and cluster.size == 1:
        raise ProfileError(f"cluster {cluster.name!r}: has as many CPU nodes as asked for; give --ranks")
    else:
        counts = (cluster.size,)
    if max(counts) > MOST_DEVICES:
        raise ProfileError(f"--ranks {max(counts)}: at most {MOST_DEVICES} ranks can be predicted")
    if len(set(counts)) < len(counts):
        raise ProfileError(f"--ranks {ranks}: names a number twice")
    for count in counts:
        fabrics.placement(cluster, count, chosen[:count] if chosen is not None else None)
    profile = catalogue.profile_for(on, cluster, profiles or [])
    return Machine(cluster, profile, devices=chosen), counts


def _job(name: str, batch: int | None, tokens: int | None, optimizer: str, dtype: str, wire: str) -> Any:
    from simgd import catalogue
    from simgd.job import job

    for what, value, known in (("dtype", dtype, ("fp32", "tf32", "bf16")), ("wire", wire, ("fp32", "bf16"))):
        if value not in known:
            raise unknown(what, value, known)
    return job(
        catalogue.workload(name),
        batch=batch,
        tokens=tokens,
        dtype=dtype,  # type: ignore[arg-type]
        wire=wire,  # type: ignore[arg-type]
        optimizer=optimizer,
    )


def _schedules(names: str | None) -> list[Any]:
    from simgd.schedules import DEFAULT_SCHEDULES

    listed = [name.strip() for name in names.split(",")] if names is not None else list(DEFAULT_SCHEDULES)
    if len(set(listed)) < len(listed) or "" in listed:
        raise ScheduleError(f"--schedules {names!r}: names a schedule twice, or none between commas")
    chosen = [_schedule(name) for name in listed]
    called = [each if isinstance(each, str) else each.name for each in chosen]
    for name in called:
        if called.count(name) > 1:
            raise ScheduleError(f"--schedules {names}: two are called {name!r}; give the file's another `name`")
    return chosen


def _schedule(name: str) -> Any:
    """Return a schedule's name, checked, or the schedule that a JSON file holds."""
    from simgd import catalogue, files
    from simgd.schedule import Schedule
    from simgd.schedules import parse

    if catalogue.is_file(name):
        return files.read(name, Schedule)
    parse(name)
    return name


def _plan(
    schedule: str,
    workload: str,
    *,
    ranks: int,
    steps: int,
    backend: str,
    batch: int | None,
    tokens: int | None,
    optimizer: str,
    compute: str,
    profiles: list[str] | None,
    progress: str | None,
    trace_steps: int,
    seed: int,
) -> Any:
    """Return what every rank is to run, with the costs looked up that emulated compute spends."""
    from executor.comm import progress as read_progress
    from executor.plan import Plan, execution_of, usual_progress
    from simgd.job import OPTIMIZERS
    from simgd.schedules import build, parse
    from simgd.units import PS_PER_S

    # Others than these are priced as SGD.
    name = optimizer.partition(":")[0]
    job = _job(workload, batch, tokens, name if name in OPTIMIZERS else "sgd", "fp32", "fp32")
    chosen = _schedule(schedule)
    machine: Any = None
    prices: Any = None
    if profiles:
        machine, _ = _machine(profiles[0], profiles, str(ranks), None)
        prices = machine.prices(job, ranks)
    elif compute != "real":
        raise ProfileError("--compute emulated: spends the times of a profile; give --profile")
    if progress is not None and backend in ("nccl", "loopback"):
        raise BackendError(f"--progress {progress}: {backend} makes progress by itself; leave it out")
    if isinstance(chosen, str):
        if parse(chosen).needs_delays:
            from simgd.plan import plan

            if prices is None:
                raise ScheduleError(f"schedule {chosen!r}: its delays depend on costs; give --profile")
            chosen = plan(chosen, job.workload, prices)
        else:
            chosen = build(parse(chosen), job.workload)
    seconds = None
    if compute != "real":
        times = prices.price(chosen).timing.ops
        seconds = {name: time.run_ps / PS_PER_S for name, time in times.items()}
        # What a real iteration does besides its ops is spent as well.
        seconds[chosen.ops[0].name] += prices.layers.rest_s
    return Plan(
        schedule=chosen,
        workload=job.workload,
        steps=steps,
        batch=job.batch,
        tokens=job.tokens,
        seed=seed,
        optimizer=optimizer,
        compute=compute,  # type: ignore[arg-type]
        execution=execution_of(backend, machine.profile.execution if machine is not None else None),
        progress=read_progress(progress) if progress is not None else usual_progress(backend),
        trace_steps=trace_steps,
        op_seconds=seconds,
    )


def _order(
    backend: str, ranks: int | None, out: Path, trace: Path | None, timeout_s: float, bar: "_Bar", *, quiet: bool
) -> Any:
    """Return where the ranks are to run, what they write, and whom they tell."""
    from executor.job import Order

    return Order(
        backend=backend,  # type: ignore[arg-type]
        ranks=ranks,
        out=out,
        trace=trace,
        timeout_s=timeout_s,
        arguments=_given,
        say=lambda line: None if quiet else print(line, flush=True),
        bar=bar,
    )


def _carried_out(task: Any, order: Any, found: Any, bar: "_Bar") -> Any:
    """Let the ranks carry out *task*; return its document where this process is the one that shows it, else None."""
    from executor.job import run as carry_out

    try:
        made = carry_out(task, order, found)
    finally:
        bar.stop()
    return None if found is not None and found.supervised else made


class _Bar:
    """Shows how many of *steps* iterations, or whatever *what* says, are done: a progress bar, on a terminal only."""

    def __init__(self, steps: int, what: str = "iterations") -> None:
        self._steps = steps
        self._what = what
        self._shown: Any = None

    def __call__(self, done: int) -> None:
        """Show that *done* iterations are."""
        if self._shown is None and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

            columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
            self._shown = Progress(*columns, console=Console(stderr=True), transient=True)
            self._shown.add_task(self._what, total=self._steps)
            self._shown.start()
        if self._shown is not None:
            self._shown.update(self._shown.task_ids[0], completed=done)

    def stop(self) -> None:
        """Take the bar away."""
        if self._shown is not None:
            self._shown.stop()


def _arguments(pairs: list[str]) -> dict[str, str | int | float | bool]:
    from simgd.units import scalar

    found: dict[str, str | int | float | bool] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise FileError(f"--argument {pair!r}: write NAME=VALUE")
        found[name] = scalar(text)
    return found


# --- output and errors -------------------------------------------------------------------------------------------


def _print(what: Any) -> None:
    from rich.console import Console

    # Names come from files: nothing in them is markup.
    console = Console(
        width=None if sys.stdout.isatty() else _WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=isinstance(what, str),
    )
    console.print(what)


def _print_json(value: Any) -> None:
    from simgd import files

    sys.stdout.write(files.to_json(value).decode())


def _check_packages() -> None:
    """Refuse to run with somebody else's `executor` or `calibration` in the way."""
    import calibration
    import executor

    for package in (executor, calibration):
        if getattr(package, "DISTRIBUTION", None) != "simgd":
            raise SimgdError(
                f"package {package.__name__!r} is not simgd's but {package.__file__}; uninstall that distribution, or "
                "use a virtual environment of its own"
            )


def run(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status."""
    try:
        _check_packages()
        given = sys.argv[1:] if arguments is None else arguments
        _given[:] = given
        status = app(args=given or ["--help"], standalone_mode=False)
        return status if isinstance(status, int) else 0
    except SimgdError as error:
        return _fail(str(error))
    except _BadArguments as error:
        return _fail(error.format_message())
    except (typer.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)
    except BrokenPipeError:
        sys.stderr.close()
        return 0


def _fail(message: str, status: int = 2) -> int:
    print(f"simgd: {' '.join(message.split())}", file=sys.stderr)
    return status


def main() -> NoReturn:
    """Run the command of the process's arguments."""
    status = run()
    if "executor.backends.distributed" in sys.modules:
        # A thread of gloo's that still lets go of the last tensor asks for the interpreter; one that is ending kills
        # it in the middle of a destructor, and with it the process (SIGABRT, one of 60 jobs on two busy cores).
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
