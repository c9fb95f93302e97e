"""A rank that dies, raises or hangs ends the job on all ranks, with one line, and leaves no process behind."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from groups import MPIEXEC, eventually

from executor.parts import Phase, State, peek, post_mortem
from executor.processes import Identity, identity
from executor.supervise import _Clock, supervise
from executor.witness import Ends
from simgd.errors import RunError

LOOP = Path(__file__).parent / "programs" / "rank_loop.py"

#: Only a job that hangs is to meet it: on a busy machine a healthy rank may pause for long.
TIMEOUT_S = 2

PLACE = "in op 'backward fc' of iteration 7"
REST = "rank 0 waits in op 'all_reduce fc' of iteration 7; run.json holds 6 iterations"
HANGS = (
    f"rank 1 left op 'all_reduce fc' of iteration 7 unanswered for {TIMEOUT_S} s; rank 0 waits there;"
    f" rank 1 is {PLACE}; run.json holds 6 iterations"
)


def left_behind(folder: Path) -> list[str]:
    """Return the living processes of the job whose environment names *folder*."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                if f"SIMGD_TEST={folder}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "run.json.parts"
    monkeypatch.setenv("SIMGD_TEST", str(folder))
    yield folder
    # a witness needs a moment to see that all is over
    eventually(lambda: not left_behind(folder), "processes are left behind")


def command(library: str, folder: Path, fate: str) -> list[str]:
    return [sys.executable, str(LOOP), library, str(folder), "10", str(timeout_s(fate)), fate]


def timeout_s(fate: str) -> float:
    return TIMEOUT_S if fate in ("hang", "stop") else 60


# Under simgd


def run(library: str, folder: Path, fate: str, progress: Callable[[int], None] | None = None) -> int:
    return supervise(
        "mpi" if library == "mpi" else "gloo",
        2,
        command(library, folder, fate),
        parts=folder,
        timeout_s=timeout_s(fate),
        out_name="run.json",
        progress=progress,
    )


@pytest.mark.parametrize(
    ("library", "fate", "line"),
    [
        ("mpi", "kill", f"rank 1 died {PLACE}; {REST}"),
        ("gloo", "kill", f"rank 1 was killed by signal 9 {PLACE}; {REST}"),
        ("plain", "kill", f"rank 1 was killed by signal 9 {PLACE}; {REST}"),
        ("mpi", "raise", f"rank 1: the loss is no number, {PLACE}; {REST}"),
        ("plain", "raise", f"rank 1: the loss is no number, {PLACE}; {REST}"),
        ("plain", "crash", f"rank 1 raised Uncaught: nobody expected this {PLACE}; {REST}"),
        ("plain", "exit", f"rank 1 ended with status 3 {PLACE}; {REST}"),
        ("mpi", "hang", HANGS),
        ("plain", "hang", HANGS),
        ("mpi", "stop", f"rank 1 is stopped by a signal {PLACE}; {REST}"),
        ("mpi", "import", "rank 1 raised ImportError: no such library before starting; run.json holds 0 iterations"),
    ],
)
def test_a_supervised_job_ends_with_one_line_and_no_process(library, fate, line, folder, capfd):
    with pytest.raises(RunError) as caught:
        run(library, folder, fate)
    assert str(caught.value) == line
    assert left_behind(folder) == []
    assert capfd.readouterr() == ("", "")
    # who was not there can read it later
    if fate != "import":
        assert post_mortem(folder, "run.json") == line


@pytest.mark.parametrize("library", ["mpi", "plain"])
def test_a_job_without_a_fault_ends_well(library, folder, capfd):
    told: list[int] = []
    assert run(library, folder, "none", told.append) == 0
    assert told[-1] == 10
    assert told == sorted(told)
    assert capfd.readouterr() == ("done\n", "")
    assert left_behind(folder) == []
    assert post_mortem(folder, "run.json") == "ranks 0-1 finished; run.json holds 10 iterations"


def test_the_exit_status_of_ranks_that_finished_is_the_jobs(folder):
    assert run("plain", folder, "status") == 1


def test_what_an_unexplained_rank_wrote_is_shown(folder, capfd):
    with pytest.raises(RunError, match="rank 0 ended with status 1 before starting"):
        supervise(
            "gloo",
            1,
            [sys.executable, "-c", "import sys; sys.exit('no such device')"],
            parts=folder,
            timeout_s=60,
            out_name="run.json",
        )
    assert capfd.readouterr() == ("", "no such device\n")


SUPERVISOR = """
import sys
from pathlib import Path
from executor.supervise import supervise
supervise(sys.argv[1], 2, sys.argv[3:], parts=Path(sys.argv[2]), timeout_s=600, out_name="run.json")
"""


def supervisor(library: str, folder: Path, fate: str) -> "subprocess.Popen[bytes]":
    """Start a supervisor in a process of its own, and return when rank 0 waits for rank 1."""
    backend = "mpi" if library == "mpi" else "gloo"
    arguments = [sys.executable, "-c", SUPERVISOR, backend, str(folder), *command(library, folder, fate)]
    started = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
    eventually(
        lambda: [(state.phase, state.iteration) for state in peek(folder) if state.rank == 0] == [(Phase.WAITING, 7)],
        "rank 0 never waited",
    )
    return started


@pytest.mark.parametrize("library", ["mpi", "plain"])
@pytest.mark.parametrize("fate", ["hang", "stop"])
def test_ranks_do_not_outlive_a_supervisor_that_is_killed(library, fate, folder):
    with supervisor(library, folder, fate) as process:
        process.kill()
    eventually(lambda: not left_behind(folder), f"left: {left_behind(folder)}")


def test_ctrl_c_ends_the_ranks(folder):
    with supervisor("plain", folder, "hang") as process:
        process.send_signal(signal.SIGINT)
    assert process.returncode == -signal.SIGINT
    assert left_behind(folder) == []


# Under somebody else's launcher


def launch(folder: Path, fate: str, *options: str) -> tuple[int, list[str]]:
    """Return the exit status of the user's own mpiexec and the lines that our ranks wrote to standard error."""
    arguments = [str(MPIEXEC), *options, "-n", "2", *command("mpi", folder, fate)]
    ran = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=60)
    assert "Traceback" not in ran.stderr
    return ran.returncode, re.findall(r"(?m)^simgd: (.*)$", ran.stderr)


def test_a_job_without_a_fault_says_nothing(folder):
    assert launch(folder, "none") == (0, [])
    assert not folder.exists()


@pytest.mark.parametrize("options", [[], ["-disable-auto-cleanup"]], ids=" ".join)
def test_where_mpiexec_kills_the_survivors_the_parts_tell(options, folder):
    """With either option: when a connection to a rank breaks, MPICH 5.0.2's launcher kills the others within 1 ms."""
    found = []
    # the witness says how rarely it errs on busy cores
    while len(found) < 3 and f"rank 1 died {PLACE}; {REST}" not in found:
        status, lines = launch(folder, "kill", *options)
        assert status != 0
        assert lines in ([], [f"rank 1 died {PLACE}; {REST}"])
        eventually(lambda: not left_behind(folder), "processes are left behind")
        found.append(post_mortem(folder, "run.json"))
    assert found[-1] == f"rank 1 died {PLACE}; {REST}"


@pytest.mark.parametrize(
    ("fate", "line"),
    [
        ("raise", f"rank 1: the loss is no number, {PLACE}; {REST}"),
        ("hang", HANGS),
        ("stop", f"rank 1 is stopped by a signal {PLACE}; {REST}"),
    ],
)
def test_ranks_without_a_supervisor_end_the_job_and_one_tells(fate, line, folder):
    status, lines = launch(folder, fate)
    assert status != 0
    assert lines == [line]
    assert post_mortem(folder, "run.json") == line


@pytest.mark.parametrize(("fate", "line"), [("kill", f"rank 1 died {PLACE}; {REST}"), ("hang", HANGS)])
def test_where_a_launcher_leaves_the_survivors_they_end_themselves(fate, line, folder):
    ranks = [
        subprocess.Popen(
            command("plain", folder, fate),
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
        )
        for rank in range(2)
    ]
    errors = ranks[0].communicate(timeout=60)[1]
    ranks[1].kill()
    ranks[1].communicate()
    assert ranks[0].returncode == 2
    assert errors == f"simgd: {line}\n"
    assert post_mortem(folder, "run.json") == line


# Who ended first


@pytest.mark.parametrize("has_handles", [True, False])
def test_ends_are_told_in_their_order_however_late_one_asks(has_handles, monkeypatch):
    if not has_handles:
        monkeypatch.setattr(os, "pidfd_open", lambda pid: os.open("/nothing", os.O_RDONLY))
    sleepers = [subprocess.Popen(["sleep", "600"]) for _ in range(3)]
    with closing(Ends()) as ends:
        for rank, sleeper in enumerate(sleepers):
            ends.add(rank, identity(sleeper.pid))
        assert ends.wait(0.01) == []
        for rank in (2, 0, 1) if has_handles else (0, 1, 2):
            sleepers[rank].kill()
            sleepers[rank].wait()
        assert ends.are_left
        assert ends.wait(60) == ([2, 0, 1] if has_handles else [0, 1, 2])
        assert not ends.are_left


# When a rank hangs


def at(rank: int, phase: Phase, changed_ns: int = 0) -> State:
    nobody = Identity(host=1, pid=2, born=3)
    return State(
        rank=rank, ranks=2, process=nobody, phase=phase, op=0, iteration=1, changed_ns=changed_ns
    )  # fmt: skip


def test_a_rank_hangs_that_stays_at_one_place_for_the_timeout():
    clock = _Clock(2, 5.0)
    start = time.monotonic()
    assert clock.stuck_s([at(0, Phase.RUNNING), at(1, Phase.RUNNING)], start) is None
    assert clock.stuck_s([at(0, Phase.RUNNING, 1), at(1, Phase.RUNNING)], start + 5) is None
    assert clock.stuck_s([at(0, Phase.RUNNING, 2), at(1, Phase.RUNNING)], start + 6) == 5.0
    assert clock.stuck_s([at(0, Phase.RUNNING, 2), at(1, Phase.RUNNING, 1)], start + 7) is None


def test_a_rank_that_has_finished_may_wait_for_the_others_but_not_all_for_none():
    clock = _Clock(2, 5.0)
    start = time.monotonic()
    assert clock.stuck_s([at(0, Phase.FINISHED), at(1, Phase.RUNNING)], start) is None
    assert clock.stuck_s([at(0, Phase.FINISHED), at(1, Phase.RUNNING, 1)], start + 9) is None
    assert clock.stuck_s([at(0, Phase.FINISHED), at(1, Phase.FINISHED)], start + 10) is None
    assert clock.stuck_s([at(0, Phase.FINISHED), at(1, Phase.FINISHED)], start + 61) == 60.0


def test_a_rank_is_given_a_minute_to_start():
    clock = _Clock(2, 5.0)
    start = time.monotonic()
    assert clock.stuck_s([], start + 59) is None
    assert clock.stuck_s([], start + 61) == 60.0
