"""Emulated ranks take turns: the same run each time, and an error where real ranks would hang or read too early."""

import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from executor.backends import loopback
from executor.backends.loopback import Loopback
from simgd.errors import BackendError

SEEDS = range(20)


def ones(length: int = 4) -> np.ndarray:
    return np.ones(length, "float32")


def raised(target: Callable[[Loopback], Any], *, ranks: int = 2, seed: int | None = None) -> str:
    with pytest.raises(BackendError) as caught:
        loopback.run(ranks, target, seed=seed)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The order of events


def events(seed: int | None, *, ranks: int = 3) -> list[tuple[int, str]]:
    """Return what happened in which order in a run in which ranks wait, poll, exchange and end at different times."""
    happened: list[tuple[int, str]] = []

    def target(backend: Loopback) -> None:
        buffers = [ones() for _ in range(4)]
        pending = [backend.all_reduce(buffer) for buffer in buffers]
        for number, each in enumerate(pending):
            happened.append((backend.rank, f"before {number}"))
            while number == backend.rank and not each.done():
                happened.append((backend.rank, "asked"))
            each.wait()
            happened.append((backend.rank, f"after {number}"))
        backend.exchange(backend.rank)
        happened.append((backend.rank, "exchanged"))

    loopback.run(ranks, target, seed=seed)
    return happened


def test_two_runs_are_the_same_event_by_event():
    assert events(None) == events(None)


def test_ranks_take_turns_in_their_order_and_only_where_they_must_wait():
    happened: list[str] = []

    def target(backend: Loopback) -> None:
        happened.append(f"{backend.rank} starts")
        pending = backend.all_reduce(ones())
        happened.append(f"{backend.rank} goes on")
        pending.wait()
        happened.append(f"{backend.rank} has it")
        backend.barrier()
        happened.append(f"{backend.rank} ends")

    loopback.run(3, target)
    assert happened == [
        *("0 starts", "0 goes on", "1 starts", "1 goes on", "2 starts", "2 goes on"),
        # rank 2 came last, so it need not wait for the sum, only for the others at the barrier
        *("2 has it", "0 has it", "1 has it"),
        # ... where rank 1 comes last
        *("1 ends", "2 ends", "0 ends"),
    ]


@pytest.mark.parametrize("seed", SEEDS[:3])
def test_a_seed_draws_the_same_run_again(seed: int):
    assert events(seed) == events(seed)


def test_seeds_draw_different_runs():
    assert len({tuple(events(seed)) for seed in SEEDS}) > len(SEEDS) // 2


def test_results_come_back_by_rank():
    assert loopback.run(4, lambda backend: (backend.rank, backend.ranks)) == [(0, 4), (1, 4), (2, 4), (3, 4)]


@pytest.mark.parametrize("ranks", [0, -1])
def test_a_run_needs_a_rank(ranks: int):
    with pytest.raises(BackendError, match=f"{ranks} ranks cannot run; 1 is the fewest"):
        loopback.run(ranks, lambda backend: None)


# The data


def test_sums_are_taken_in_rank_order():
    # 2^24 is where float32 counts in twos: 2^24 + 1 is 2^24, but 1 + 1 + 2^24 is 2^24 + 2
    def target(values: tuple[float, ...]) -> Callable[[Loopback], float]:
        def run(backend: Loopback) -> float:
            buffer = np.array([values[backend.rank]], "float32")
            backend.all_reduce(buffer).wait()
            return float(buffer[0])

        return run

    assert loopback.run(3, target((2.0**24, 1, 1))) == [2.0**24] * 3
    assert loopback.run(3, target((1, 1, 2.0**24))) == [2.0**24 + 2] * 3


@pytest.mark.parametrize("seed", [None, *SEEDS])
def test_a_program_that_waits_gets_the_sum_in_every_order(seed: int | None):
    def target(backend: Loopback) -> float:
        for _ in range(3):
            buffer = ones()
            backend.all_reduce(buffer).wait()
            assert buffer.tolist() == [3.0] * 4
            # a sender may use its buffer again once its call has ended, whoever has yet to take the data
            buffer[:] = backend.rank
            backend.broadcast(buffer, 1).wait()
            assert buffer.tolist() == [1.0] * 4
            buffer[:] = -1
        return float(buffer[0])

    assert loopback.run(3, target, seed=seed) == [-1.0] * 3


def test_a_program_that_forgets_to_wait_reads_old_values_under_some_seed():
    """Without a seed the last rank to start finds the sum at once: chance would hide the mistake there."""

    def forgets(backend: Loopback) -> list[float]:
        buffer = ones()
        pending = backend.all_reduce(buffer)
        backend.barrier()
        seen = buffer.tolist()
        pending.wait()
        assert buffer.tolist() == [2.0] * 4
        return seen

    assert loopback.run(2, forgets) == [[2.0] * 4] * 2
    seen = [loopback.run(2, forgets, seed=seed) for seed in SEEDS]
    assert [[1.0] * 4] * 2 in seen
    assert [[2.0] * 4] * 2 in seen


def test_a_program_that_asks_only_once_is_answered_no_under_some_seed():
    def asks_once(backend: Loopback) -> bool:
        pending = backend.all_reduce(ones())
        backend.barrier()
        answer = pending.done()
        pending.wait()
        assert pending.done()
        return answer

    assert loopback.run(2, asks_once) == [True, True]
    assert len({tuple(loopback.run(2, asks_once, seed=seed)) for seed in SEEDS}) > 1


def test_a_program_that_writes_too_early_is_caught_under_some_seed():
    def writes_early(backend: Loopback) -> float:
        buffer = ones()
        pending = backend.all_reduce(buffer)
        backend.barrier()
        buffer[:] = 100
        pending.wait()
        return float(buffer[0])

    assert {2.0} != {value for seed in SEEDS for value in loopback.run(2, writes_early, seed=seed)}


def test_what_is_exchanged_belongs_to_who_gets_it():
    def target(backend: Loopback) -> list[Any]:
        mine = [backend.rank]
        everyone = backend.exchange(mine)
        everyone[0].append("changed by one")
        backend.barrier()
        assert mine == [backend.rank]
        return everyone

    assert loopback.run(2, target) == [[[0, "changed by one"], [1]]] * 2


# Random state


@pytest.mark.parametrize("seed", [None, *SEEDS[:5]])
def test_each_rank_draws_its_own_random_numbers(seed: int | None):
    """What a rank draws does not depend on what the others draw, nor on the order in which they run."""

    def target(backend: Loopback) -> list[float]:
        drawn = []
        for _ in range(3):
            drawn += [random.random() for _ in range(backend.rank + 1)]
            backend.barrier()
        return drawn

    random.seed(7)
    before = random.getstate()
    alone = [random.random() for _ in range(9)]
    random.setstate(before)
    drawn = loopback.run(3, target, seed=seed, swap=(random.getstate, random.setstate))
    # rank r draws 3 (r + 1) numbers, all ranks from the same start
    assert drawn == [alone[: 3 * (rank + 1)] for rank in range(3)]
    assert random.getstate() == before


# Errors


def test_a_rank_that_waits_for_one_that_has_ended_is_an_error():
    def target(backend: Loopback) -> None:
        for _ in range(2 if backend.rank else 3):
            backend.all_reduce(ones()).wait()

    assert raised(target) == (
        "backend loopback: rank 0 waits in collective number 3 (all_reduce of 4 x float32), rank 1 has ended; "
        "nobody can go on"
    )


@pytest.mark.parametrize("seed", [None, *SEEDS[:5]])
def test_ranks_that_wait_for_each_other_are_an_error(seed: int | None):
    def target(backend: Loopback) -> None:
        other = 1 - backend.rank
        # each waits for the other to take its message before it takes the other's
        backend.send(ones(), other).wait()
        backend.receive(ones(), other).wait()

    assert raised(target, seed=seed) == (
        "backend loopback: rank 0 waits in message number 1 from rank 0 to rank 1 (4 x float32), "
        "rank 1 waits in message number 1 from rank 1 to rank 0 (4 x float32); nobody can go on"
    )


def test_asking_for_what_never_comes_is_an_error():
    def target(backend: Loopback) -> None:
        if backend.rank == 0:
            pending = backend.all_reduce(ones())
            while not pending.done():
                pass

    assert raised(target) == (
        "backend loopback: rank 0 asks for collective number 1 (all_reduce of 4 x float32), "
        "rank 1 has ended without starting it"
    )


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (lambda backend: backend.all_gather(ones()), "all_gather of 4 x float32"),
        (lambda backend: backend.all_reduce(ones(6)), "all_reduce of 6 x float32"),
        (lambda backend: backend.all_reduce(np.ones(4)), "all_reduce of 4 x float64"),
        (lambda backend: backend.broadcast(ones(), 0), "broadcast of 4 x float32 from rank 0"),
        (lambda backend: backend.barrier(), "barrier"),
    ],
    ids=["kind", "length", "type", "broadcast", "barrier"],
)
def test_ranks_that_start_different_collectives_are_an_error(second: Callable[[Loopback], Any], said: str):
    def target(backend: Loopback) -> None:
        backend.barrier()
        if backend.rank == 1:
            backend.all_reduce(ones()).wait()
        else:
            second(backend)
            backend.barrier()

    # rank 1 is the last at the barrier, so it goes on first
    assert raised(target) == (
        "backend loopback: rank 1 starts collective number 2 (all_reduce of 4 x float32), "
        f"rank 0 starts collective number 2 ({said}); all ranks start the same calls in the same order"
    )


@pytest.mark.parametrize("to", [0, 2, -1])
def test_a_message_needs_another_rank(to: int):
    assert raised(lambda backend: backend.send(ones(), to)) == (
        f"backend loopback: no message goes from rank 0 to rank {to} of 2"
    )


@pytest.mark.parametrize("seed", [None, *SEEDS[:5]])
def test_the_first_error_ends_the_others_and_is_raised_as_it_was(seed: int | None):
    first = KeyError("lost")
    unwound: list[int] = []

    def target(backend: Loopback) -> None:
        try:
            backend.barrier()
            if backend.rank == 1:
                raise first
            backend.barrier()
        finally:
            unwound.append(backend.rank)
            if backend.rank != 1:
                backend.barrier()

    with pytest.raises(KeyError) as caught:
        loopback.run(3, target, seed=seed)
    assert caught.value is first
    assert first.__notes__ == ["rank 1"]
    assert sorted(unwound) == [0, 1, 2]


def test_an_error_before_others_began_keeps_them_from_beginning():
    began: list[int] = []

    def target(backend: Loopback) -> None:
        began.append(backend.rank)
        raise RuntimeError("at once")

    with pytest.raises(RuntimeError, match="at once"):
        loopback.run(3, target)
    assert began == [0]


def test_a_later_error_of_a_rank_that_is_ended_changes_nothing():
    def target(backend: Loopback) -> None:
        try:
            if backend.rank == 1:
                raise RuntimeError("first")
            backend.barrier()
        finally:
            if backend.rank == 0:
                raise RuntimeError("second")

    with pytest.raises(RuntimeError, match="first"):
        loopback.run(2, target)


def test_abort_ends_the_run():
    def target(backend: Loopback) -> None:
        if backend.rank == 1:
            backend.abort(3)
        backend.barrier()

    assert raised(target) == "backend loopback: rank 1 ended the run with status 3"


def test_an_interrupt_ends_all_ranks_and_reaches_the_caller():
    """In a process of its own, where the signal comes to the main thread."""
    code = """
import os, signal
from executor.backends import loopback

def target(backend):
    try:
        while True:
            backend.barrier()
            if backend.rank == 1:
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        print("ended")

try:
    loopback.run(3, target)
except KeyboardInterrupt:
    print("interrupted")
"""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert (ran.stdout.splitlines(), ran.stderr) == (["ended"] * 3 + ["interrupted"], "")
