"""What every backend promises, as checks that each rank of a run makes together with the others.

Each check gets the backend and a function `buffer(values)` that puts a numpy array where the backend is to find it (an
array, or a tensor on the CPU or GPU). It communicates first and compares then, so that a check that fails on one rank
leaves no other waiting.

Run as a script by each rank of a real library: ``backend_contract.py BACKEND FOLDER KIND...`` leaves FOLDER/RANK.json.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from executor.backends.protocol import Backend, Pending
from simgd.errors import BackendError

Make = Callable[[np.ndarray], Any]

#: Elements of 1 MiB in float32; the other buffers are small enough to think about.
MANY = 2**18

# A library whose progress another process makes may need very many; none needs more unless it never ends.
MOST_POLLS = 20_000_000


def read(buffer: Any) -> np.ndarray:
    return buffer.cpu().numpy() if hasattr(buffer, "cpu") else buffer


def equal(buffer: Any, expected: Any) -> None:
    found, wanted = read(buffer), np.asarray(expected)
    assert found.tobytes() == wanted.astype(found.dtype).tobytes(), f"found {found[:8]}, expected {wanted[:8]}"


def poll(pending: Pending) -> None:
    for _ in range(MOST_POLLS):
        if pending.done():
            return
    raise AssertionError(f"not done after {MOST_POLLS} polls")


def numbers(rank: int, length: int, dtype: str = "float32") -> np.ndarray:
    """Return integers that differ from rank to rank and place to place, small enough for exact sums in float32."""
    return (np.arange(length) % 1000 + 1000 * (rank + 1)).astype(dtype)


def total(ranks: int, length: int) -> np.ndarray:
    return sum(numbers(rank, length, "float64") for rank in range(ranks))


def refusal(call: Callable[[Any], Pending], buffer: Any) -> str:
    """Return what *call* says against *buffer*, or nothing; pytest's own way is not for ranks without pytest."""
    try:
        call(buffer)
    except BackendError as error:
        return str(error)
    return ""


# The checks


def all_reduce_leaves_the_exact_sum_on_every_rank(backend: Backend, make: Make) -> None:
    for length in (1, 7, MANY):
        for dtype in ("float32", "float64"):
            buffer = make(numbers(backend.rank, length, dtype))
            backend.all_reduce(buffer).wait()
            equal(buffer, total(backend.ranks, length))


def all_reduce_adds_whole_numbers_too(backend: Backend, make: Make) -> None:
    for dtype in ("int32", "int64"):
        buffer = make(numbers(backend.rank, 5, dtype))
        backend.all_reduce(buffer).wait()
        equal(buffer, total(backend.ranks, 5))


def the_sum_of_two_has_the_same_bits_everywhere(backend: Backend, make: Make) -> None:
    """Two numbers have one sum, rounded once; from three on the order of addition counts."""
    mine, *others = (
        np.random.default_rng(rank % backend.ranks).standard_normal(MANY).astype("float32")
        for rank in range(backend.rank, backend.rank + backend.ranks)
    )
    buffer = make(mine.copy())
    backend.all_reduce(buffer).wait()
    if backend.ranks <= 2:
        equal(buffer, mine + others[0] if others else mine)
    else:
        np.testing.assert_allclose(read(buffer), sum(others, mine), rtol=1e-5, atol=1e-5)


def a_part_of_a_larger_buffer_is_reduced_in_its_place(backend: Backend, make: Make) -> None:
    whole = make(numbers(backend.rank, 9))
    backend.all_reduce(whole[3:7]).wait()
    expected = numbers(backend.rank, 9)
    expected[3:7] = total(backend.ranks, 9)[3:7]
    equal(whole, expected)


def several_in_flight_end_each_in_its_own_buffer(backend: Backend, make: Make) -> None:
    lengths = (5, MANY, 1, 300, 64)
    buffers = [make(numbers(backend.rank, length)) for length in lengths]
    pending = [backend.all_reduce(buffer) for buffer in buffers]
    for each in pending[::2]:
        each.wait()
    for each in pending[1::2]:
        each.wait()
    for buffer, length in zip(buffers, lengths, strict=True):
        equal(buffer, total(backend.ranks, length))


def collectives_of_all_kinds_may_be_in_flight_together(backend: Backend, make: Make) -> None:
    length = 4 * backend.ranks
    reduced, scattered, gathered, told = (make(numbers(backend.rank, length)) for _ in range(4))
    root = backend.ranks - 1
    pending = [
        backend.all_reduce(reduced),
        backend.reduce_scatter(scattered),
        backend.all_gather(gathered),
        backend.broadcast(told, root),
    ]
    for each in pending:
        each.wait()
    mine = slice(4 * backend.rank, 4 * backend.rank + 4)
    equal(reduced, total(backend.ranks, length))
    equal(scattered[mine], total(backend.ranks, length)[mine])
    equal(gathered, np.concatenate([numbers(rank, length)[4 * rank : 4 * rank + 4] for rank in range(backend.ranks)]))
    equal(told, numbers(root, length))


def reduce_scatter_leaves_the_sum_in_the_part_of_the_rank(backend: Backend, make: Make) -> None:
    for each in (1, 5, MANY):
        length = each * backend.ranks
        buffer = make(numbers(backend.rank, length))
        backend.reduce_scatter(buffer).wait()
        mine = slice(each * backend.rank, each * (backend.rank + 1))
        equal(buffer[mine], total(backend.ranks, length)[mine])


def all_gather_collects_each_ranks_own_part(backend: Backend, make: Make) -> None:
    for each in (1, 5, MANY):
        values = np.full(each * backend.ranks, -1, "float32")
        values[each * backend.rank : each * (backend.rank + 1)] = numbers(backend.rank, each)
        buffer = make(values)
        backend.all_gather(buffer).wait()
        equal(buffer, np.concatenate([numbers(rank, each) for rank in range(backend.ranks)]))


def reduce_scatter_and_all_gather_make_an_all_reduce(backend: Backend, make: Make) -> None:
    length = 6 * backend.ranks
    buffer = make(numbers(backend.rank, length))
    backend.reduce_scatter(buffer).wait()
    backend.all_gather(buffer).wait()
    equal(buffer, total(backend.ranks, length))


def broadcast_gives_everyone_the_roots_values(backend: Backend, make: Make) -> None:
    for length in (1, MANY):
        buffers = [make(numbers(backend.rank, length)) for _ in range(backend.ranks)]
        for root, buffer in enumerate(buffers):
            backend.broadcast(buffer, root).wait()
        for root, buffer in enumerate(buffers):
            equal(buffer, numbers(root, length))


def messages_go_round_a_ring(backend: Backend, make: Make) -> None:
    if backend.ranks == 1:
        return
    for length in (1, MANY):
        outgoing, incoming = make(numbers(backend.rank, length)), make(np.zeros(length, "float32"))
        before, after = (backend.rank - 1) % backend.ranks, (backend.rank + 1) % backend.ranks
        # Rank 0 receives first: a library may send nothing before somebody takes it.
        if backend.rank == 0:
            pending = [backend.receive(incoming, before), backend.send(outgoing, after)]
        else:
            pending = [backend.send(outgoing, after), backend.receive(incoming, before)]
        for each in pending:
            each.wait()
        equal(incoming, numbers(before, length))
        equal(outgoing, numbers(backend.rank, length))


def two_ranks_send_to_each_other_at_once(backend: Backend, make: Make) -> None:
    """Both start what goes from the lower to the higher rank, then what comes back, and wait only then."""
    if backend.ranks == 1 or backend.rank > 1:
        return
    other = 1 - backend.rank
    for length in (1, MANY):
        outgoing, incoming = make(numbers(backend.rank, length)), make(np.zeros(length, "float32"))
        if backend.rank == 0:
            pending = [backend.send(outgoing, other), backend.receive(incoming, other)]
        else:
            pending = [backend.receive(incoming, other), backend.send(outgoing, other)]
        for each in reversed(pending):
            each.wait()
        equal(incoming, numbers(other, length))


def messages_arrive_in_the_order_in_which_they_were_sent(backend: Backend, make: Make) -> None:
    if backend.ranks == 1 or backend.rank > 1:
        return
    buffers = [make(numbers(place if backend.rank == 0 else 99, 3)) for place in range(5)]
    if backend.rank == 0:
        pending = [backend.send(buffer, 1) for buffer in buffers]
    else:
        pending = [backend.receive(buffer, 0) for buffer in buffers]
    for each in pending:
        each.wait()
    for place, buffer in enumerate(buffers):
        equal(buffer, numbers(place, 3))


def polling_alone_brings_a_collective_to_its_end(backend: Backend, make: Make) -> None:
    for length in (1, MANY):
        buffer = make(numbers(backend.rank, length))
        pending = backend.all_reduce(buffer)
        poll(pending)
        assert pending.done()  # it stays so
        pending.wait()
        equal(buffer, total(backend.ranks, length))


def polling_alone_brings_a_message_to_its_end(backend: Backend, make: Make) -> None:
    if backend.ranks == 1 or backend.rank > 1:
        return
    for length in (1, MANY):
        buffer = make(numbers(backend.rank, length))
        pending = backend.send(buffer, 1) if backend.rank == 0 else backend.receive(buffer, 0)
        poll(pending)
        assert pending.done()
        pending.wait()
        equal(buffer, numbers(0, length))


def one_rank_polls_while_another_waits(backend: Backend, make: Make) -> None:
    length = MANY
    buffer = make(numbers(backend.rank, length))
    pending = backend.all_reduce(buffer)
    if backend.rank == 0:
        poll(pending)
    else:
        pending.wait()
    equal(buffer, total(backend.ranks, length))


def exchange_returns_what_every_rank_gave(backend: Backend, make: Make) -> None:
    given = [{"rank": rank, "text": "x" * rank, "list": [1.5, None, True]} for rank in range(backend.ranks)]
    assert backend.exchange(given[backend.rank]) == given
    assert backend.exchange("a" * 100_000 * (backend.rank + 1))[-1] == "a" * 100_000 * backend.ranks


def nobody_passes_a_barrier_before_all_have_come(backend: Backend, make: Make) -> None:
    came = backend.clock_ns()
    backend.barrier()
    left = backend.clock_ns()
    # All ranks are on this host, whose monotonic clock they share.
    clocks = backend.exchange((came, left))
    assert min(left for _, left in clocks) >= max(came for came, _ in clocks), clocks


def a_buffer_without_equal_parts_is_refused(backend: Backend, make: Make) -> None:
    if backend.ranks == 1:
        return
    for call in (backend.reduce_scatter, backend.all_gather):
        said = refusal(call, make(numbers(backend.rank, backend.ranks + 1)))
        assert said == f"a buffer of {backend.ranks + 1} elements has no {backend.ranks} equal parts"


def the_backend_says_what_it_is(backend: Backend, make: Make) -> None:
    assert "\n" not in backend.library
    assert backend.library
    everyone = backend.exchange((backend.rank, backend.ranks))
    assert everyone == [(rank, len(everyone)) for rank in range(len(everyone))]


CHECKS: tuple[Callable[[Backend, Make], None], ...] = (
    the_backend_says_what_it_is,
    all_reduce_leaves_the_exact_sum_on_every_rank,
    all_reduce_adds_whole_numbers_too,
    the_sum_of_two_has_the_same_bits_everywhere,
    a_part_of_a_larger_buffer_is_reduced_in_its_place,
    several_in_flight_end_each_in_its_own_buffer,
    collectives_of_all_kinds_may_be_in_flight_together,
    reduce_scatter_leaves_the_sum_in_the_part_of_the_rank,
    all_gather_collects_each_ranks_own_part,
    reduce_scatter_and_all_gather_make_an_all_reduce,
    broadcast_gives_everyone_the_roots_values,
    messages_go_round_a_ring,
    two_ranks_send_to_each_other_at_once,
    messages_arrive_in_the_order_in_which_they_were_sent,
    polling_alone_brings_a_collective_to_its_end,
    polling_alone_brings_a_message_to_its_end,
    one_rank_polls_while_another_waits,
    exchange_returns_what_every_rank_gave,
    nobody_passes_a_barrier_before_all_have_come,
    a_buffer_without_equal_parts_is_refused,
)

#: By check and kind of buffer: "ok", or what went wrong.
Report = dict[str, str]


def made(kind: str, device: str) -> Make:
    """Return what makes buffers of this *kind*: "numpy", or "torch" on the backend's device."""
    if kind == "numpy":
        return lambda values: values
    import torch

    return lambda values: torch.from_numpy(values).to(device)


def examine(backend: Backend, kinds: Sequence[str]) -> Report:
    """Make all checks on this rank; one that fails in the middle of a call ends them, since ranks are then apart."""
    report: Report = {}
    for kind in kinds:
        make = made(kind, backend.device)
        for check in CHECKS:
            name = f"{check.__name__} {kind}"
            try:
                check(backend, make)
            except AssertionError as error:
                report[name] = str(error) or "is not so"
            except Exception as error:
                report[name] = f"{type(error).__name__}: {error}"
                return report
            else:
                report[name] = "ok"
    return report


def opened(name: str) -> Backend:
    if name == "mpi":
        from executor.backends.mpi import open_mpi

        return open_mpi(threads=True)
    from executor.backends.distributed import open_distributed

    return open_distributed(name, timeout_s=30)


def main(name: str, folder: str, *kinds: str) -> None:
    backend = opened(name)
    report = examine(backend, kinds)
    (Path(folder) / f"{backend.rank}.json").write_text(json.dumps(report))
    if any(said != "ok" for said in report.values()):
        backend.abort(1)
    backend.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
