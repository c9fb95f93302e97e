"""What ranks leave behind says who is to blame, wherever they were when it went wrong."""

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.parts import (
    Failed,
    Iteration,
    Part,
    Phase,
    State,
    claim,
    clear,
    diagnose,
    first_lost,
    iterations,
    note_lost,
    peek,
    post_mortem,
    rank_list,
    read,
)
from executor.processes import Identity
from simgd.errors import FileError

OPS = ("forward conv1", "backward conv1", "all_reduce conv1", "update conv1")
FORWARD, BACKWARD, REDUCE, UPDATE = range(4)
NOBODY = Identity(host=1, pid=2, born=3)


def state(rank: int, phase: Phase, op: int | None = None, iteration: int = 0, **more: Any) -> State:
    return State(**({"ranks": 2, "process": NOBODY, "ops": OPS, "done": max(iteration - 1, 0)} | more),
                 rank=rank, phase=phase, op=op, iteration=iteration)  # fmt: skip


def runs(rank: int, op: int, iteration: int, **more: Any) -> State:
    return state(rank, Phase.RUNNING, op, iteration, **more)


def waits(rank: int, op: int, iteration: int, **more: Any) -> State:
    return state(rank, Phase.WAITING, op, iteration, **more)


def failed(message: str, at_ns: int = 1) -> dict[str, Any]:
    return {"has_failed": True, "failed": Failed(message=message, at_ns=at_ns)}


@pytest.fixture
def part(tmp_path: Path) -> Iterator[Part]:
    part = Part(tmp_path, 1, 3, OPS, {"schedule": "layerwise"})
    yield part
    part.close()


# The files


@given(
    phase=st.sampled_from([Phase.RUNNING, Phase.WAITING]),
    op=st.none() | st.integers(0, 2**24 - 2),
    iteration=st.integers(0, 2**36 - 1),
)
def test_a_place_is_read_as_it_was_noted(phase, op, iteration):
    with tempfile.TemporaryDirectory() as folder:
        part = Part(Path(folder), 1, 3, OPS)
        part.at(phase, op, iteration)
        (found,) = peek(Path(folder))
        assert (found.phase, found.op, found.iteration, found.has_failed) == (phase, op, iteration, False)
        assert found == part.state()
        part.close()


def test_a_part_says_which_process_writes_it(part, tmp_path):
    (found,) = read(tmp_path)
    assert (found.rank, found.ranks, found.process.pid, found.phase) == (1, 3, os.getpid(), Phase.STARTING)
    assert (found.ops, found.names) == (OPS, {"schedule": "layerwise"})


def test_finished_iterations_are_counted_and_kept(part, tmp_path):
    part.iteration(1, 0.5, 2.25)
    part.iteration(2, 0.25)
    assert peek(tmp_path)[0].done == 2
    first, second = Iteration(number=1, seconds=0.5, loss=2.25), Iteration(number=2, seconds=0.25, loss=None)
    assert iterations(tmp_path) == {1: (first, second)}


def test_a_rank_that_fails_stays_where_it_was(part, tmp_path):
    part.at(Phase.WAITING, REDUCE, 5)
    part.failed("gloo: connection\n  closed")
    (found,) = read(tmp_path)
    assert (found.phase, found.op, found.iteration, found.has_failed) == (Phase.WAITING, REDUCE, 5, True)
    assert found.failed is not None
    assert found.failed.message == "gloo: connection closed"


@pytest.mark.parametrize("rest", [b'{"type":"Iterati', b"\xff\xfe\n", b"[]\n", b'{"type":"Other"}\n', b"\n\n"])
def test_a_line_that_cannot_be_read_does_not_count(part, tmp_path, rest):
    part.iteration(1, 0.5)
    with (tmp_path / "rank-1.jsonl").open("ab") as file:
        file.write(rest)
    assert [found.number for found in read(tmp_path)[0].iterations] == [1]


def test_a_rank_without_lines_still_has_a_place(part, tmp_path):
    part.at(Phase.WAITING, REDUCE, 5)
    (tmp_path / "rank-1.jsonl").unlink()
    assert read(tmp_path)[0].place == "in op 2 of iteration 5"


@pytest.mark.parametrize("content", [b"", b"x", bytes(72), b"simgd" * 30])
def test_a_state_that_is_none_does_not_count(part, tmp_path, content):
    (tmp_path / "rank-0.state").write_bytes(content)
    assert [found.rank for found in read(tmp_path)] == [1]


def test_a_folder_without_parts_is_an_error_of_one_line(tmp_path):
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(FileError, match=r"^[^\n]*: holds no state of any rank; [^\n]*$"):
            read(folder)


def test_a_folder_that_cannot_be_written_is_an_error_of_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"^[^\n]*: cannot be written: [^\n]*$"):
        Part(tmp_path / "file", 0, 1, OPS)
    with pytest.raises(FileError, match=r"^[^\n]*: cannot be written: [^\n]*$"):
        clear(tmp_path / "file")


def test_clearing_removes_what_ranks_left_and_nothing_else(part, tmp_path):
    note_lost(tmp_path, 1)
    claim(tmp_path, "rank 1 died")
    (tmp_path / "notes.txt").write_text("mine")
    clear(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_only_the_first_to_tell_what_happened_tells_it(tmp_path):
    assert claim(tmp_path, "rank 1 died")
    assert not claim(tmp_path, "rank 0 died")


def test_the_first_that_was_seen_to_vanish_counts(tmp_path):
    assert first_lost(tmp_path) is None
    note_lost(tmp_path, 12)
    note_lost(tmp_path, 0)
    assert first_lost(tmp_path) == 12


# What they amount to

REDUCE_7 = "op 'all_reduce conv1' of iteration 7"
BACKWARD_7 = "op 'backward conv1' of iteration 7"
HOLDS_6 = "run.json holds 6 iterations"


@pytest.mark.parametrize(
    ("states", "dead", "line"),
    [
        pytest.param(
            [waits(0, REDUCE, 7), runs(1, BACKWARD, 7)],
            {1: "was killed by signal 9"},
            f"rank 1 was killed by signal 9 in {BACKWARD_7}; rank 0 waits in {REDUCE_7}; {HOLDS_6}",
            id="a dead rank",
        ),
        pytest.param(
            [waits(0, REDUCE, 7, **failed("connection closed by peer")), runs(1, BACKWARD, 7)],
            {1: "was killed by signal 9"},
            f"rank 1 was killed by signal 9 in {BACKWARD_7}; rank 0 waits in {REDUCE_7}; {HOLDS_6}",
            id="a dead rank, of whose loss another complains",
        ),
        pytest.param(
            [waits(0, REDUCE, 7), runs(1, BACKWARD, 7, **failed("out of memory"))],
            {1: "ended with status 2"},
            f"rank 1: out of memory, in {BACKWARD_7}; rank 0 waits in {REDUCE_7}; {HOLDS_6}",
            id="a rank that says why it ends",
        ),
        pytest.param(
            [waits(0, REDUCE, 7, **failed("connection closed", 2)), runs(1, BACKWARD, 7, **failed("out of memory", 1))],
            {},
            f"rank 1: out of memory, in {BACKWARD_7}; rank 0 waits in {REDUCE_7}; {HOLDS_6}",
            id="the earliest message",
        ),
        pytest.param(
            [waits(0, REDUCE, 7), runs(1, UPDATE, 7, **failed("the loss of rank 1 in iteration 7 is nan"))],
            {},
            f"the loss of rank 1 in iteration 7 is nan; rank 0 waits in {REDUCE_7}; {HOLDS_6}",
            id="a message that names rank and iteration",
        ),
        pytest.param(
            [state(rank, Phase.STARTING, **failed("there is no GPU")) for rank in (0, 1)],
            {},
            "there is no GPU",
            id="the same message on all ranks",
        ),
        pytest.param(
            [],
            {0: "raised ImportError: no torch", 1: "raised ImportError: no torch"},
            "ranks 0-1 raised ImportError: no torch before starting; run.json holds 0 iterations",
            id="none even started",
        ),
        pytest.param(
            [state(0, Phase.STARTING), state(1, Phase.STARTING)],
            {1: "died"},
            "rank 1 died while starting; run.json holds 0 iterations",
            id="dead while starting",
        ),
        pytest.param(
            [state(0, Phase.FINISHED, done=7), state(1, Phase.FINISHED, done=7)],
            {1: "was killed by signal 11"},
            "rank 1 was killed by signal 11 after its last iteration; run.json holds 7 iterations",
            id="dead after its work",
        ),
        pytest.param(
            [waits(0, REDUCE, 2), runs(1, BACKWARD, 2)],
            {1: "is stopped by a signal"},
            "rank 1 is stopped by a signal in op 'backward conv1' of iteration 2; rank 0 waits in op 'all_reduce conv1'"
            " of iteration 2; run.json holds 1 iteration",
            id="one iteration is singular",
        ),
    ],
)  # fmt: skip
def test_a_rank_that_ended_is_named_with_its_place_and_those_that_wait(states, dead, line):
    assert diagnose(states, out="run.json", dead=dead) == line


@pytest.mark.parametrize(
    ("states", "line"),
    [
        pytest.param(
            [*(waits(rank, REDUCE, 41, ranks=4) for rank in range(3)), runs(3, BACKWARD, 41, ranks=4)],
            "rank 3 left op 'all_reduce conv1' of iteration 41 unanswered for 30 s; ranks 0-2 wait there;"
            " rank 3 is in op 'backward conv1' of iteration 41; run.json holds 40 iterations",
            id="one does not wait",
        ),
        pytest.param(
            [waits(0, REDUCE, 7), waits(1, REDUCE, 6, done=6)],
            f"rank 1 left {REDUCE_7} unanswered for 30 s; rank 0 waits there;"
            f" rank 1 is in op 'all_reduce conv1' of iteration 6; {HOLDS_6}",
            id="one waits at an earlier op",
        ),
        pytest.param(
            [waits(0, REDUCE, 7), waits(1, REDUCE, 7)],
            f"ranks 0-1 all wait in {REDUCE_7} for 30 s; {HOLDS_6}",
            id="none is behind",
        ),
        pytest.param(
            [waits(0, REDUCE, 7), state(1, Phase.FINISHED, done=6)],
            f"rank 1 left {REDUCE_7} unanswered for 30 s; rank 0 waits there; rank 1 is after its last iteration;"
            f" {HOLDS_6}",
            id="one has gone home",
        ),
        pytest.param(
            [waits(0, REDUCE, 1)],
            "rank 1 left op 'all_reduce conv1' of iteration 1 unanswered for 30 s; rank 0 waits there;"
            " rank 1 is before starting; run.json holds 0 iterations",
            id="one never came",
        ),
        pytest.param(
            [state(0, Phase.FINISHED, done=6), runs(1, BACKWARD, 7)],
            f"rank 1 stayed for 30 s in {BACKWARD_7}; {HOLDS_6}",
            id="nobody waits",
        ),
        pytest.param(
            [
                runs(0, BACKWARD, 7, ranks=4),
                waits(1, REDUCE, 7, ranks=4),
                waits(2, UPDATE, 7, ranks=4),
                runs(3, FORWARD, 7, ranks=4),
            ],
            f"ranks 0, 3 left {REDUCE_7} unanswered for 30 s; rank 1 waits there; rank 0 is in {BACKWARD_7};"
            f" rank 3 is in op 'forward conv1' of iteration 7; rank 2 waits in op 'update conv1' of iteration 7;"
            f" {HOLDS_6}",
            id="all over the place",
        ),
        pytest.param(
            [state(rank, Phase.FINISHED, done=6) for rank in range(2)],
            f"ranks 0-1 finished but did not end for 30 s; {HOLDS_6}",
            id="all finished",
        ),
    ],
)
def test_a_job_that_hangs_is_put_down_to_whoever_is_behind(states, line):
    assert diagnose(states, out="run.json", timeout_s=30) == line
    assert diagnose(states, out="run.json") == line.replace(" for 30 s", "")


PLACES = st.tuples(st.sampled_from(Phase), st.none() | st.integers(0, 5), st.integers(0, 9), st.booleans())


@given(places=st.lists(st.none() | PLACES, min_size=1, max_size=6), dead=st.lists(st.integers(0, 5)))
def test_whatever_ranks_left_it_amounts_to_one_line_that_names_ranks(places, dead):
    ranks = len(places)
    states = [
        state(rank, phase, op, iteration, ranks=ranks, **(failed(f"error {rank % 2}", rank) if fails else {}))
        for rank, place in enumerate(places)
        if place is not None
        for phase, op, iteration, fails in [place]
    ]
    how = {rank: "died" for rank in dead if rank < ranks}
    line = diagnose(states, out="run.json", dead=how, timeout_s=30, ranks=ranks)
    assert "\n" not in line
    if line not in ("error 0", "error 1"):
        assert re.match(r"ranks? \d", line)
        assert re.search(r"run\.json holds \d+ iterations?$", line)
    silent = [rank for rank in how if rank not in [found.rank for found in states if found.failed]]
    if silent:
        assert re.match(rf"ranks? {min(silent)}\b", line)


@given(st.sets(st.integers(0, 99), min_size=1))
def test_a_list_of_ranks_names_each_once(ranks):
    named = []
    for span in rank_list(ranks).removeprefix("ranks ").removeprefix("rank ").split(", "):
        first, _, last = span.partition("-")
        named += range(int(first), int(last or first) + 1)
    assert named == sorted(ranks)


# Afterwards


def test_a_job_of_which_only_parts_are_left_is_put_down_to_the_first_that_vanished(tmp_path, monkeypatch):
    for rank, (phase, op) in enumerate([(Phase.WAITING, REDUCE), (Phase.WAITING, REDUCE)]):
        part = Part(tmp_path, rank, 2, OPS)
        part.at(phase, op, 7)
        part.close()
    assert post_mortem(tmp_path, "run.json") == "ranks 0-1 still run; run.json holds 0 iterations"
    monkeypatch.setattr("executor.processes.is_alive", lambda process: False)
    assert post_mortem(tmp_path, "run.json") == f"ranks 0-1 all wait in {REDUCE_7}; run.json holds 0 iterations"
    note_lost(tmp_path, 1)
    line = f"rank 1 died in {REDUCE_7}; rank 0 waits in {REDUCE_7}; run.json holds 0 iterations"
    assert post_mortem(tmp_path, "run.json") == line
    claim(tmp_path, "rank 1 was killed by signal 9")
    assert post_mortem(tmp_path, "run.json") == "rank 1 was killed by signal 9"


def test_a_job_that_ended_well_says_so(tmp_path, monkeypatch):
    part = Part(tmp_path, 0, 1, OPS)
    part.iteration(1, 0.5)
    part.at(Phase.FINISHED)
    part.close()
    monkeypatch.setattr("executor.processes.is_alive", lambda process: False)
    assert post_mortem(tmp_path, "run.json") == "rank 0 finished; run.json holds 1 iteration"
