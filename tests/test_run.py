"""`simgd run`: what a user types, on real ranks, and what comes out."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from groups import MPIEXEC, ROOT, eventually

from calibration.counting import from_spec
from executor import processes
from executor.parts import State, peek
from simgd import catalogue, files, schedules
from simgd.run import Run, counted, warm_up_of
from simgd.schedule import Schedule

TESTS = Path(__file__).parent
SIMGD = [sys.executable, "-m", "simgd"]

#: Keys that scripts rely on.
KEYS = {
    "schedule",
    "workload",
    "backend",
    "ranks",
    "iterations_s",
    "iteration",
    "compute_s",
    "communication_s",
    "exposed_communication_s",
    "overlap",
    "samples_per_s",
    "staleness",
    "peak_memory_bytes",
    "ops",
    "clocks",
    "tracing",
    "environment",
    "trace",
}


def typed(line: str, folder: Path, *, before: list[str] | None = None, **variables: str) -> subprocess.CompletedProcess:
    """Run ``simgd LINE`` in a process of its own, in *folder*, behind a launcher's words if given."""
    words = [*(before or []), *SIMGD, *line.split()]
    path = os.pathsep.join([str(ROOT), str(TESTS)])
    return subprocess.run(
        words,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def check_whole(made: Run, *, ranks: int, steps: int, traced: int = 3) -> None:
    """Check what must hold of every run."""
    assert (made.ranks, made.steps) == (ranks, steps)
    assert [len(own) for own in made.iterations_s] == [steps] * ranks
    kept = sorted(made.slowest_s[place] for place in counted(steps, made.warm_up, made.left_out))
    assert made.iteration.p5 <= made.iteration.median <= made.iteration.p95
    assert kept[0] <= made.iteration.median <= kept[-1]
    assert made.samples_per_s == pytest.approx(ranks * made.batch_per_rank / made.iteration.median)
    assert made.exposed_communication_s == pytest.approx(made.iteration.median - made.compute_s)
    assert made.compute_s > 0
    assert made.ops.keys() == {op.name for op in made.schedule.ops}
    assert made.trace.origin == "measured"
    assert {event.rank for event in made.trace} == set(range(ranks))
    shown = {event.iteration for event in made.trace}
    assert set(range(steps - traced, steps)) <= shown
    assert min(shown) == steps - traced
    assert len(made.clocks) == ranks
    assert all(clock.shared for clock in made.clocks)
    assert 0 < made.tracing.share < 0.05


# --- one process -------------------------------------------------------------------------------------------------


def test_loopback_runs_a_schedule_and_writes_everything(simgd, tmp_path):
    ran = simgd(
        "run layerwise --workload digits-cnn --backend loopback --ranks 4 --steps 20 --out run.json --trace t.json"
    )
    assert ran.status == 0, ran.err
    made = files.read(tmp_path / "run.json", Run)
    check_whole(made, ranks=4, steps=20)
    assert json.loads((tmp_path / "run.json").read_text()).keys() >= KEYS
    assert made.warm_up == warm_up_of(20) == 4
    assert {len(losses) for losses in made.losses} == {20}
    assert "iteration of all ranks" in ran.out
    assert "exposed communication" in ran.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json", "t.json"]


def test_the_timeline_has_the_names_that_the_simulator_uses(simgd, tmp_path):
    assert simgd("run layerwise --workload mlp --ranks 2 --steps 3 --trace measured.json").status == 0
    assert simgd("predict mlp --on xeon-edr --ranks 2 --schedules layerwise --trace predicted.json").status == 0

    def names(path: str) -> set[tuple[str, str]]:
        events = json.loads((tmp_path / path).read_text())["traceEvents"]
        return {(event["cat"], event["name"]) for event in events if event["ph"] == "X"}

    assert names("measured.json") == names("predicted.json")


def test_a_schedule_file_runs_as_its_name_does(simgd, tmp_path):
    assert simgd("schedule async:1:all --workload mlp --out s.json").status == 0
    assert simgd("run s.json --workload mlp --ranks 2 --steps 4 --out by_file.json").status == 0
    assert simgd("run async:1:all --workload mlp --ranks 2 --steps 4 --out by_name.json").status == 0
    by_file, by_name = (files.read(tmp_path / name, Run) for name in ("by_file.json", "by_name.json"))
    assert by_file.weights_digest == by_name.weights_digest
    assert by_file.losses == by_name.losses


def test_the_same_seed_gives_the_same_losses_and_another_one_others(simgd):
    runs = [simgd(f"run sync --workload mlp --ranks 2 --steps 3 --seed {seed} --json").json for seed in (1, 1, 2)]
    assert runs[0]["losses"] == runs[1]["losses"] != runs[2]["losses"]
    assert runs[0]["weights_digest"] == runs[1]["weights_digest"] != runs[2]["weights_digest"]


def test_ranks_see_data_of_their_own(simgd):
    one, other = simgd("run sync --workload mlp --ranks 2 --steps 1 --json").json["losses"]
    assert one != other


def test_json_prints_the_file(simgd, tmp_path):
    printed = simgd("run sync --workload mlp --steps 2 --json").json
    assert printed == json.loads((tmp_path / "run.json").read_text())


def test_show_shows_a_run(simgd):
    ran = simgd("run sync --workload mlp --ranks 2 --steps 2")
    assert simgd("show run.json").out in ran.out


def test_a_delay_is_seen_in_what_was_applied(simgd):
    made = simgd("run async:2:all --workload mlp --ranks 2 --steps 6 --json").json
    assert made["staleness"] == {"update all": {"0": 1, "1": 1, "2": 4}}


def test_any_class_of_torch_optim_updates(simgd):
    for spec in ("adamw", "Adagrad:lr=0.05", "sgd:lr=0.1,nesterov=true"):
        made = simgd(f"run layerwise --workload mlp --ranks 2 --steps 8 --optimizer {spec} --json").json
        assert made["optimizer"] == spec


def test_checks_in_between_are_left_out_of_the_figures(simgd):
    made = simgd("run sync --workload mlp --ranks 2 --steps 120 --batch 2 --json").json
    assert made["left_out"] == [50, 100]
    assert counted(120, made["warm_up"], made["left_out"]) == [n for n in range(5, 120) if n not in (50, 100)]


def test_half_precision_messages_train_on_a_library_that_sums_them(simgd, tmp_path):
    work = catalogue.workload("mlp")
    files.write(tmp_path / "s.json", schedules.build(schedules.parse("layerwise"), work, wire="bfloat16"))
    half = simgd("run s.json --workload mlp --ranks 2 --steps 4 --json").json
    full = simgd("run layerwise --workload mlp --ranks 2 --steps 4 --json").json
    assert half["weights_digest"] != full["weights_digest"]
    # 8 bits of significand: gradients differ by 2^-9 of themselves, losses by much less
    assert half["losses"][0] == pytest.approx(full["losses"][0], rel=1e-2)


# --- a dry run ---------------------------------------------------------------------------------------------------


def test_dry_says_what_each_of_a_thousand_ranks_would_do_and_runs_nothing(simgd, tmp_path):
    ran = simgd("run async:1 --workload digits-cnn --backend nccl --ranks 1024 --steps 10 --dry")
    assert ran.status == 0
    lines = ran.out.splitlines()
    assert lines[1] == "ranks 0-1023, each: 11 ops, 605 kB of buffers"
    assert "  compute  update bucket0: skipped, its gradient would be older than the first" in lines
    assert "iteration 1 (and all up to 9)" in lines
    owed = lines.index("after the last iteration, owed (10)")
    assert lines[owed + 1].startswith("  compute  update bucket0 with the gradient of 9, after all_reduce bucket0 of 9")
    assert lines[owed + 2 :] == []
    assert list(tmp_path.iterdir()) == []


def test_dry_follows_delays_through_their_buffers(simgd):
    lines = simgd("run async:2:all --workload mlp --ranks 2 --steps 9 --dry").out.splitlines()
    sent = [line.strip() for line in lines if "all_reduce all (" in line]
    # 3 copies: iterations 0, 1 and 2 (which stands for all others) write buffers 0, 1, 2
    assert [line.partition(", after")[0] for line in sent] == [
        f"comm     all_reduce all (buffer {n})" for n in range(3)
    ]


# --- emulated compute --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compute", ["emulated", "emulated:busy"])
def test_emulated_compute_needs_no_torch(tmp_path, compute):
    code = f"""
import sys
from simgd import cli
status = cli.run("run layerwise --workload mlp --compute {compute} --profile xeon-edr --ranks 2 --steps 5".split())
sys.exit(status or ("torch" in sys.modules))
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    check_whole(files.read(tmp_path / "run.json", Run), ranks=2, steps=5)


def test_emulated_compute_takes_the_time_that_the_profile_says(simgd):
    """Alone, an iteration cannot be shorter than the sum of its ops, which the prediction without communication is."""
    predicted = simgd("predict mlp --on xeon-edr --ranks 1 --batch 4096 --schedules sync --json").json["predictions"][0]
    line = "run sync --workload mlp --compute emulated --profile xeon-edr --ranks 1 --steps 8 --batch 4096 --json"
    made = simgd(line).json
    host = 0.0002  # the profile's host costs are not spent
    assert made["compute_s"] >= predicted["compute_s"] - host


def test_emulated_compute_over_mpi_needs_no_torch(tmp_path):
    line = (
        "run bucketed:100kB --workload char-transformer --compute emulated --profile xeon-edr --backend mpi --steps 5"
    )
    ran = typed(line, tmp_path, before=[str(MPIEXEC), "-n", "2"])
    assert ran.returncode == 0, ran.stderr
    made = files.read(tmp_path / "run.json", Run)
    check_whole(made, ranks=2, steps=5)
    assert "intra-op threads" not in made.environment.settings  # which torch would have said


# --- real ranks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "progress"), [("mpi", ""), ("mpi", "--progress thread"), ("mpi", "--progress none"), ("gloo", "")]
)
def test_simgd_starts_the_ranks_and_the_weights_do_not_depend_on_the_backend(tmp_path, backend, progress):
    line = f"run async:1 --workload digits-cnn --backend {backend} --ranks 2 --steps 6 --out run.json {progress}"
    ran = typed(line, tmp_path)
    assert ran.returncode == 0, ran.stderr
    made = files.read(tmp_path / "run.json", Run)
    check_whole(made, ranks=2, steps=6)
    # What is printed names the library's file with its folders, what is kept without.
    assert re.sub(r"/\S*/", "", ran.stdout.splitlines()[0]) == f"simgd: 2 ranks; {made.environment.library}"
    assert made.progress == (progress.partition(" ")[2] or "poll:1")
    alone = typed("run async:1 --workload digits-cnn --ranks 2 --steps 6 --out loopback.json", tmp_path)
    assert alone.returncode == 0, alone.stderr
    # With 2 ranks every library's sum is the same to the bit.
    assert made.weights_digest == files.read(tmp_path / "loopback.json", Run).weights_digest


@pytest.mark.parametrize("launcher", ["mpiexec", "torchrun"])
def test_ranks_under_a_launcher_of_ones_own(tmp_path, launcher):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python"]
    before = [str(MPIEXEC), "-n", "2"] if launcher == "mpiexec" else torchrun
    backend = "mpi" if launcher == "mpiexec" else "gloo"
    ran = typed(f"run layerwise --workload digits-cnn --backend {backend} --steps 5", tmp_path, before=before)
    assert ran.returncode == 0, ran.stderr
    made = files.read(tmp_path / "run.json", Run)
    check_whole(made, ranks=2, steps=5)
    assert made.environment.launcher == launcher
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_gloo_runs_under_mpiexec_too(tmp_path):
    ran = typed("run sync --workload mlp --backend gloo --steps 3", tmp_path, before=[str(MPIEXEC), "-n", "2"])
    assert ran.returncode == 0, ran.stderr
    assert files.read(tmp_path / "run.json", Run).ranks == 2


# --- a rank that dies in the middle of a real run --------------------------------------------------------------


def long_run(backend: str, folder: Path, *, before: list[str] | None = None) -> subprocess.Popen:
    """Start a run that would take minutes."""
    ranks = [] if before else ["--ranks", "2"]
    line = f"run layerwise --workload digits-cnn --backend {backend} --steps 100000 --timeout 60"
    return subprocess.Popen(
        [*(before or []), *SIMGD, *line.split(), *ranks],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_rank_1(folder: Path) -> list[State]:
    """Kill rank 1 by SIGKILL once it trains, and return what the ranks were then."""
    parts = folder / "run.json.parts"
    eventually(lambda: [state.rank for state in peek(parts) if state.done >= 3] == [0, 1], "the ranks never trained")
    states = list(peek(parts))
    os.kill(states[1].process.pid, signal.SIGKILL)
    return states


def end(states: list[State]) -> None:
    """Wait until the ranks' processes have ended."""
    eventually(lambda: not any(processes.is_alive(state.process) for state in states), "processes are left", limit_s=20)


@pytest.mark.parametrize(("backend", "how"), [("mpi", "died"), ("gloo", "was killed by signal 9")])
def test_a_killed_rank_ends_the_run_with_one_line_that_show_repeats(tmp_path, simgd, backend, how):
    running = long_run(backend, tmp_path)
    states = kill_rank_1(tmp_path)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 2
    # Rank 0 waits, unless it was told of the loss before it came to wait.
    line = (
        rf"simgd: rank 1 {how} in (op '[a-z_]+ \w+' of )?iteration \d+; "
        r"(rank 0 waits in op '[a-z_]+ \w+' of iteration \d+; )?run\.json holds \d+ iterations\n"
    )
    assert re.fullmatch(line, said), said
    end(states)
    assert simgd("show run.json").out.strip() == said.removeprefix("simgd: ").strip()
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize("options", [[], ["-disable-auto-cleanup"]], ids=["auto cleanup", "no auto cleanup"])
def test_after_a_kill_under_mpiexec_show_tells_from_the_parts(tmp_path, simgd, options):
    running = long_run("mpi", tmp_path, before=[str(MPIEXEC), *options, "-n", "2"])
    states = kill_rank_1(tmp_path)
    running.communicate(timeout=60)
    assert running.returncode != 0
    end(states)
    shown = simgd("show run.json").out
    # Which of the two the launcher's kill reached first is not always to be told (see `executor.witness`).
    found = re.match(
        r"rank ([01]) died in (?:op '[a-z_]+ \w+' of )?iteration \d+; "
        r"(?:rank ([01]) waits in op '.*' of iteration \d+; )?run\.json holds \d+ iterations",
        shown,
    )
    assert found, shown
    assert found[1] != found[2]


# --- what goes wrong: one line, status 2 -------------------------------------------------------------------------


def refused(ran: subprocess.CompletedProcess) -> str:
    """Return the one line of a run that ended with status 2."""
    assert ran.returncode == 2, (ran.stdout, ran.stderr)
    lines = [line for line in ran.stderr.splitlines() if line.startswith("simgd: ")]
    assert len(lines) == 1, ran.stderr
    assert "Traceback" not in ran.stderr
    return lines[0].removeprefix("simgd: ")


def test_a_loss_that_is_no_number_ends_the_run(simgd, tmp_path):
    ran = simgd("run sync --workload mlp --ranks 2 --steps 40 --optimizer sgd:lr=1e30")
    assert ran.status == 2
    assert "the loss is nan in iteration" in ran.err
    assert ran.err.count("\n") == 1
    assert not (tmp_path / "run.json").exists()


def test_a_parameter_that_one_rank_never_uses_is_named(tmp_path):
    files.write(tmp_path / "f.toml", from_spec("tiny:forgetful"))
    ran = typed("run sync --workload f.toml --backend gloo --ranks 2 --steps 3", tmp_path, FORGETFUL="1")
    line = refused(ran)
    assert line.startswith("rank 1: parameter 'second.bias' got no gradient in iteration 0")
    assert "leave it out, or freeze it" in line
    assert [path.name for path in tmp_path.iterdir()] == ["f.toml"]


@pytest.mark.parametrize(
    ("one", "other", "what"),
    [
        ("--seed 1", "--seed 2", "rank 1 was started with seed 2, rank 0 with 1"),
        ("--batch 8", "--batch 9", "rank 1 was started with batch 9, rank 0 with 8"),
    ],
)
def test_ranks_that_were_started_with_different_things_stop_at_once(tmp_path, one, other, what):
    common = [*SIMGD, "run", "sync", "--workload", "mlp", "--backend", "mpi", "--steps", "3"]
    words = [str(MPIEXEC), "-n", "1", *common, *one.split(), ":", "-n", "1", *common, *other.split()]
    ran = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode != 0
    assert what in ran.stderr
    assert ran.stderr.count("simgd: ") == 1
    assert "Traceback" not in ran.stderr


def test_a_launcher_that_does_not_fit_the_library_is_named(tmp_path):
    ran = typed("run sync --workload mlp --backend mpi --steps 3", tmp_path, RANK="0", WORLD_SIZE="2", LOCAL_RANK="0")
    line = refused(ran)
    assert line.startswith("rank 0: torchrun says rank 0 of 2, but the library says rank 0 of 1: MPICH")


def test_half_precision_over_mpi_is_refused_before_anything_is_sent(tmp_path):
    work = catalogue.workload("mlp")
    made: Schedule = schedules.build(schedules.parse("sync"), work, wire="bfloat16")
    files.write(tmp_path / "s.json", made)
    ran = typed("run s.json --workload mlp --backend mpi --ranks 2 --steps 3", tmp_path)
    assert "op 'all_reduce all' sends bfloat16, but MPI has no sum of it; send float32" in refused(ran)


def test_an_error_of_the_network_itself_is_one_line_with_its_place(simgd, tmp_path):
    """7 iterations without communication come first: 2 of warm-up and 5 that count; the 11th call is iteration 3."""
    files.write(tmp_path / "s.toml", from_spec("tiny:stumbling"))
    ran = simgd("run sync --workload s.toml --ranks 1 --steps 8")
    assert ran.status == 2
    assert ran.err == "simgd: rank 0 raised ArithmeticError in iteration 3: it went wrong\n"


def test_a_healthy_run_may_take_longer_to_start_and_to_end_than_its_timeout(tmp_path):
    ran = typed("run sync --workload mlp --backend gloo --ranks 2 --steps 3 --timeout 1", tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_rank_0_without_a_place_to_write_ends_the_others_too(tmp_path):
    line = "run sync --workload mlp --backend mpi --steps 3 --out /proc/run.json"
    ran = typed(line, tmp_path, before=[str(MPIEXEC), "-n", "2"])
    assert ran.returncode != 0
    assert ran.stderr.count("simgd: rank 0: /proc/run.json.parts: cannot be written") == 1
    assert "Traceback" not in ran.stderr


def test_ctrl_c_ends_a_run_in_this_process(tmp_path):
    parts = tmp_path / "run.json.parts"
    for ranks in (1, 2):
        line = f"run layerwise --workload digits-cnn --ranks {ranks} --steps 100000"
        running = subprocess.Popen(
            [*SIMGD, *line.split()], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        eventually(lambda: any(state.done for state in peek(parts)), "it never trained")
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=30)
        assert running.returncode == 130
        shutil.rmtree(parts)


def test_training_without_torch_says_what_to_install(simgd, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    ran = simgd("run sync --workload mlp --ranks 2 --steps 3")
    assert (ran.status, ran.err.count("\n")) == (2, 1)
    assert "training a network needs torch; pip install 'simgd[torch]', or take --compute emulated" in ran.err


def test_gpus_that_are_not_there_are_said_in_one_line(tmp_path):
    import torch

    if torch.cuda.device_count() >= 2:
        pytest.skip("this host has the GPUs")
    ran = typed("run sync --workload mlp --backend nccl --ranks 2 --steps 3", tmp_path)
    assert "nccl" in refused(ran).lower()
