"""Every edge of every schedule matters: change one, and the checks or the oracle notice, or another edge says the same.

``python tests/test_edges.py`` prints how many mutants each way catches.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

import msgspec
import pytest
import serial
import test_training as oracle
import torch
import training_cases
from training_cases import Trained

from executor import rank
from executor.backends import loopback
from executor.layout import Layout, check_issue_order
from simgd import files
from simgd.errors import ScheduleError, SimgdError
from simgd.instances import Instances
from simgd.schedule import ROLE, Communicate, Dep, Op, Schedule, Update, accesses, data_lag, dependencies
from simgd.soundness import Derived, Order, derive, dry_run
from simgd.workload import Workload

NETWORK = "attention"
RANKS, STEPS = 2, 5

#: Orders of events that the emulated ranks draw: the data of a collective may move as late as it is waited for.
SEEDS = range(2)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Mutant(msgspec.Struct):
    """A schedule with one edge changed: what was changed, where, and the schedule (a pair of swapped edges has two)."""

    what: str
    edges: list[tuple[str, Dep]]
    schedule: Schedule


def with_ops(schedule: Schedule, ops: list[Op]) -> Schedule:
    return msgspec.structs.replace(schedule, roles={ROLE: tuple(ops)})


def mutants(schedule: Schedule) -> Iterator[Mutant]:
    """Yield the schedule with each edge removed, with a lag of one more and one less, and with its ends swapped."""
    ops = list(schedule.ops)
    for k, op in enumerate(ops):
        for place, dep in enumerate(op.after):
            rest = (op.after[:place], op.after[place + 1 :])
            for what, new in (
                ("removed", ()),
                ("lag + 1", (Dep(dep.op, dep.lag + 1),)),
                *([("lag - 1", (Dep(dep.op, dep.lag - 1),))] if dep.lag else []),
            ):
                changed = msgspec.structs.replace(op, after=(*rest[0], *new, *rest[1]))
                yield Mutant(what, [(op.name, dep)], with_ops(schedule, [*ops[:k], changed, *ops[k + 1 :]]))
            for other in range(k + 1, len(ops)):
                # The same kind of op with the same kind of edge: the likeliest slip
                if type(ops[other].work) is type(op.work) and len(ops[other].after) > place:
                    theirs = ops[other].after[place]
                    if theirs == dep:
                        continue
                    mine = msgspec.structs.replace(op, after=(*rest[0], theirs, *rest[1]))
                    after = (*ops[other].after[:place], dep, *ops[other].after[place + 1 :])
                    its = msgspec.structs.replace(ops[other], after=after)
                    swapped = [*ops[:k], mine, *ops[k + 1 : other], its, *ops[other + 1 :]]
                    edges = [(op.name, dep), (ops[other].name, theirs)]
                    yield Mutant("swapped", edges, with_ops(schedule, swapped))
                    break


def implied(mutant: Mutant) -> bool:
    """Say whether other edges and the one thread of a rank on host memory still order what was ordered.

    That thread runs everything but communication, in list order, and posts collectives as it passes them.
    """
    lanes = [
        op if isinstance(op.work, Communicate) else msgspec.structs.replace(op, lane="compute")
        for op in mutant.schedule.ops
    ]
    posted: list[Op] = []
    before = None
    for op in lanes:
        # A collective is posted when the thread has run what stands before it.
        if isinstance(op.work, Communicate) and before is not None:
            op = msgspec.structs.replace(op, after=(*op.after, Dep(before)))
        else:
            before = op.name
        posted.append(op)
    merged = with_ops(mutant.schedule, posted)
    touched = accesses(mutant.schedule, oracle.workload(NETWORK))
    deps = dependencies(merged, touched)
    order = Order(merged, deps, dry_run(merged, deps))
    return all(order.precedes(dep.op, op, dep.lag) for op, dep in mutant.edges)


def refused(schedule: Schedule) -> bool:
    """Say whether the checks before a run refuse it, in a message that names an op, a bucket or a layer."""
    try:
        _prepared(schedule, derive(schedule, oracle.workload(NETWORK)))
    except ScheduleError as error:
        return "'" in str(error).replace(repr(schedule.name), "")
    return False


def _prepared(schedule: Schedule, derived: Derived) -> None:
    check_issue_order(schedule, Instances(schedule, derived))
    Layout(schedule, RANKS)


def unchecked(schedule: Schedule, workload: Workload) -> Derived:
    """Return what the edges alone say, with no look for races; raise ScheduleError where nothing could even run."""
    touched = accesses(schedule, workload)
    deps = dependencies(schedule, touched)
    dry_run(schedule, deps)
    ages = {
        op.name: max(data_lag(op, access, touched) for access in touched[op.name][0])
        for op in schedule.ops
        if isinstance(op.work, Update)
    }
    return Derived(dependencies=deps, ages=ages, staleness={})


@cache
def expected(ages: tuple[tuple[str, int], ...]) -> tuple[dict[str, torch.Tensor], float]:
    free = oracle.serially(NETWORK, ages, "sgd", RANKS, None, steps=STEPS)
    grid = serial.exact_grid(free.largest, RANKS)
    return oracle.serially(NETWORK, ages, "sgd", RANKS, grid, steps=STEPS).weights, grid


def caught(schedule: Schedule, original: Schedule, *, lose_owed: bool = False) -> bool:
    """Say whether the ledger or the oracle notices, under one of the orders of events at least."""
    weights, grid = expected(tuple(sorted(oracle.delays(original, NETWORK).items())))
    case = Trained(
        name="mutant",
        schedule=files.plain(schedule),
        workload=files.plain(oracle.workload(NETWORK)),
        optimizer=oracle.OPTIMIZERS["sgd"],
        steps=STEPS,
        grid=grid,
    )
    swap = (torch.get_rng_state, torch.set_rng_state)
    for seed in SEEDS:
        try:
            with losing(lose_owed):
                found = loopback.run(RANKS, lambda each: training_cases.train(case, each), seed=seed, swap=swap)[0]
        except (SimgdError, AssertionError):
            return True
        if any(not torch.equal(found[name], weights[name]) for name in weights):
            return True
    return False


@contextlib.contextmanager
def losing(owed: bool) -> Iterator[None]:
    """Forget the updates that are owed after the last iteration, as some public optimizers do."""
    if not owed:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        exists = Instances.exists
        patch.setattr(Instances, "exists", lambda self, k, i, n: i < n and exists(self, k, i, n))
        yield


def fate(mutant: Mutant, original: Schedule, *, checked: bool) -> str:
    """Return what becomes of a mutant, with the checks before a run or without them."""
    if checked and refused(mutant.schedule):
        return "refused"
    with pytest.MonkeyPatch.context() as patch:
        if not checked:
            patch.setattr(rank, "derive", unchecked)
            try:
                _prepared(mutant.schedule, unchecked(mutant.schedule, oracle.workload(NETWORK)))
            except ScheduleError:
                return "cannot run"
        # What says the same must also do the same, which is tried once, with the checks on.
        same = mutant.what == "removed" and implied(mutant)
        if same and not checked:
            return "says the same"
        if caught(mutant.schedule, original):
            return "caught"
    return "says the same" if implied(mutant) else "survives"


@cache
def fates(name: str, *, checked: bool = True) -> dict[str, list[Any]]:
    original = oracle.schedule(name, NETWORK)
    found: dict[str, list[Any]] = {}
    for mutant in mutants(original):
        found.setdefault(fate(mutant, original, checked=checked), []).append((mutant.what, mutant.edges))
    return found


@pytest.mark.parametrize("name", oracle.ALL)
def test_no_mutant_of_an_edge_survives_unexplained(name):
    found = fates(name)
    assert found.get("survives", []) == []
    assert len(found["refused"]) > 0


@pytest.mark.parametrize("name", oracle.ALL)
def test_with_the_checks_off_the_oracle_catches_what_nothing_else_orders(name):
    found = fates(name, checked=False)
    assert found.get("survives", []) == []
    assert len(found["caught"]) > 0


@pytest.mark.parametrize("name", [name for name in oracle.ALL if name.startswith(("async", "delays"))])
def test_a_lost_last_update_is_noticed(name):
    original = oracle.schedule(name, NETWORK)
    assert not caught(original, original)
    assert caught(original, original, lose_owed=True)


@pytest.mark.parametrize("name", ["async:1:1kB", "async:2:1kB", "async_layerwise:1"])
def test_a_delay_of_one_more_or_less_is_noticed(name):
    original = oracle.schedule(name, NETWORK)
    family, delay, *rest = name.split(":")
    for other in (int(delay) + 1, int(delay) - 1):
        renamed = ":".join([family, str(other), *rest]) if other else "layerwise"
        from simgd import schedules

        wrong = schedules.build(schedules.parse(renamed), oracle.workload(NETWORK))
        assert caught(wrong, original)


def main() -> None:
    torch.set_num_threads(1)
    for checked in (True, False):
        total: Counter[str] = Counter()
        for name in oracle.ALL:
            total += Counter({how: len(each) for how, each in fates(name, checked=checked).items()})
        shares = {how: f"{count} ({count / total.total():.0%})" for how, count in total.items()}
        print(f"checks {'on' if checked else 'off'}: {total.total()} mutants: {shares}")


if __name__ == "__main__":
    main()
