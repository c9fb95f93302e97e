"""The interpreter of a schedule on a rank: the order of ops, the ledger of versions, what it refuses."""

from time import perf_counter_ns

import msgspec
import pytest
import test_training as oracle
import torch
from training_cases import SEED, Nobody

from executor.backends import loopback
from executor.comm import Progress
from executor.emulated import Emulated
from executor.interpreter import Ledger
from executor.layout import Layout
from executor.plan import Plan, execution_of
from executor.rank import Rank
from executor.recording import Row
from simgd import catalogue, schedules
from simgd.errors import RunError, ScheduleError
from simgd.instances import Instances
from simgd.schedule import ROLE, Backward, Dep, Forward, Map, Schedule, Update
from simgd.simulator import simulate
from simgd.soundness import derive
from simgd.timing import OpTime, Timing

STEPS = 4
SWAP = (torch.get_rng_state, torch.set_rng_state)


def plan(schedule: Schedule, workload, *, steps: int = STEPS, compute: str = "real", **more) -> Plan:
    given = {
        "schedule": schedule,
        "workload": workload,
        "steps": steps,
        "batch": workload.batch,
        "tokens": workload.tokens,
        "seed": SEED,
        "optimizer": "sgd",
        "compute": compute,
        "execution": execution_of("loopback", None),
        "progress": Progress(),
        "trace_steps": steps,
    }
    return Plan(**given | more)


def measured(made: Plan, ranks: int) -> list[list[Row]]:
    """Return the rows of each rank, in the order in which ops started."""

    def target(backend):
        rank = Rank(made, backend, Nobody())
        recorder = rank.recorder(made.steps + rank.instances.owed + 1)
        lanes = rank.lanes(recorder, traced=0)
        rank.interpreter(lanes).run(made.steps, lambda iteration: None)
        return sorted(recorder.last(0), key=lambda row: row[3])

    return loopback.run(ranks, target, swap=SWAP)


def simulated(schedule: Schedule, workload, ranks: int) -> list[list[Row]]:
    """Return the simulator's rows of each rank, without the updates that are skipped and so did not happen."""
    derived = derive(schedule, workload)
    instances = Instances(schedule, derived)
    # Ranks are one thread and a comm lane; every op takes time, or it would leave no row of its issue.
    costs = {op.name: OpTime(issue_ps=10 + k, run_ps=1000 + 7 * k) for k, op in enumerate(schedule.ops)}
    timing = Timing(ops=costs, merged=True, wait_blocks_host=True)
    trace = simulate(schedule, derived, timing, iterations=STEPS, ranks=ranks)
    number = {op.name: k for k, op in enumerate(schedule.ops)}
    rows: list[list[Row]] = [[] for _ in range(ranks)]
    for event in trace:
        k = number[event.op]
        if event.iteration >= instances.age[k]:
            rows[event.rank].append((event.lane, k, event.iteration, event.start_ps, event.end_ps))
    return rows


def by_lane(rows: list[Row]) -> dict[str, list[tuple[int, int]]]:
    found: dict[str, list[tuple[int, int]]] = {}
    for lane, k, iteration, _, _ in rows:
        found.setdefault(lane, []).append((k, iteration))
    return found


@pytest.mark.parametrize("name", oracle.ALL)
@pytest.mark.parametrize("ranks", [2, 3])
def test_the_measured_trace_has_the_simulated_ops_in_the_same_order_on_every_lane(name, ranks):
    schedule, workload = oracle.schedule(name, "attention"), oracle.workload("attention")
    ours, theirs = measured(plan(schedule, workload), ranks), simulated(schedule, workload, ranks)
    assert [by_lane(rows) for rows in ours] == [by_lane(rows) for rows in theirs]
    assert set(by_lane(ours[0])) == {"host", "comm"}


def test_emulated_compute_runs_the_same_ops_in_the_same_order_as_a_module():
    schedule, workload = oracle.schedule("async:2:1kB", "attention"), oracle.workload("attention")
    seconds = {op.name: 1e-5 for op in schedule.ops}
    real = measured(plan(schedule, workload), 2)
    for compute in ("emulated", "emulated:busy"):
        emulated = measured(plan(schedule, workload, compute=compute, op_seconds=seconds), 2)
        assert [by_lane(rows) for rows in emulated] == [by_lane(rows) for rows in real]


@pytest.mark.parametrize("compute", ["emulated", "emulated:busy"])
def test_emulated_compute_begins_when_what_it_waited_for_is_there(compute):
    """Waits of 100 us before each op of 500 us: nothing of either may be lost."""
    schedule = oracle.schedule("sync", "attention")
    local = Emulated(schedule, Layout(schedule, 2), [5e-4] * len(schedule.ops), busy=compute != "emulated")

    class Waiting:
        ops = 0

        def enter(self, k: int) -> None:
            deadline = perf_counter_ns() + 100_000
            while perf_counter_ns() < deadline:
                pass
            self.ops += 1

        def leave(self, k: int) -> None: ...

        def touch(self) -> None: ...

    waiting = Waiting()
    begin = perf_counter_ns()
    local.passes(0, waiting)
    assert perf_counter_ns() - begin >= waiting.ops * 600_000


@pytest.mark.parametrize("name", oracle.ALL)
def test_the_staleness_of_every_applied_gradient_is_the_declared_one(name):
    """Iteration j's gradient was computed from weights that had seen max(0, j - d) updates and is applied as number
    j, so it is min(j, d) updates old."""
    schedule, workload = oracle.schedule(name, "convolutional"), oracle.workload("convolutional")
    made = plan(schedule, workload)
    ages = derive(schedule, workload).ages

    def target(backend):
        rank = Rank(made, backend, Nobody())
        interpreter = rank.interpreter(rank.lanes(rank.recorder(1), traced=0))
        interpreter.run(STEPS, lambda iteration: None)
        return interpreter.ledger.applied

    for applied in loopback.run(2, target, swap=SWAP):
        assert sum(sum(found.values()) for found in applied.values()) == STEPS * len(ages)
        for k, found in applied.items():
            age = ages[schedule.ops[k].name]
            assert sorted(found.elements()) == sorted(min(j, age) for j in range(STEPS))


def test_the_ledger_refuses_a_gradient_that_is_older_than_declared():
    schedule, workload = oracle.schedule("layerwise", "convolutional"), oracle.workload("convolutional")
    instances = Instances(schedule, derive(schedule, workload))
    ledger = Ledger(schedule, instances, Layout(schedule, 2), workload)
    for k, op in enumerate(schedule.ops):
        if isinstance(op.work, (Forward, Backward)):
            ledger.read(k, 0)
            ledger.fill(k, 0)
    update = next(k for k, op in enumerate(schedule.ops) if op.name == "update hidden")
    ledger.apply(update, 0)
    # Applied once more with no new gradient: its weights are one update old by now, and 0 is declared.
    with pytest.raises(RunError, match=r"'update hidden' of iteration 1: .* are 1 updates old; the schedule says 0"):
        ledger.apply(update, 1)
    backward = next(k for k, op in enumerate(schedule.ops) if op.name == "backward hidden")
    with pytest.raises(RunError, match="'update hidden' changed its weights between forward and backward"):
        ledger.read(backward, 0)


def test_a_second_run_from_the_same_seed_gives_the_same_weights():
    schedule, workload = oracle.schedule("async:1:1kB", "convolutional"), oracle.workload("convolutional")

    def target(backend):
        rank = Rank(plan(schedule, workload), backend, Nobody())
        rank.interpreter(rank.lanes(rank.recorder(1), traced=0)).run(STEPS, lambda iteration: None)
        return rank.training.digest()

    once, twice = (loopback.run(3, target, swap=SWAP) for _ in range(2))
    assert once == twice
    assert len(set(once)) == 1


def test_iterations_without_communication_leave_no_trace_in_the_training():
    schedule, workload = oracle.schedule("layerwise", "convolutional"), oracle.workload("convolutional")

    def digest(local_first: bool) -> list[int]:
        def target(backend):
            rank = Rank(plan(schedule, workload, optimizer="adamw"), backend, Nobody())
            if local_first:
                restore = rank.training.saved()
                assert rank.local_s() > 0
                restore()
            rank.interpreter(rank.lanes(rank.recorder(1), traced=0)).run(STEPS, lambda iteration: None)
            return rank.training.digest()

        return loopback.run(2, target, swap=SWAP)

    assert digest(True) == digest(False)


# --- what it refuses -------------------------------------------------------------------------------------------


def refused(schedule: Schedule, workload) -> str:
    with pytest.raises(ScheduleError) as caught:
        loopback.run(1, lambda backend: Rank(plan(schedule, workload), backend, Nobody()), swap=SWAP)
    return str(caught.value)


def test_an_op_that_waits_for_a_later_one_cannot_be_issued():
    workload = catalogue.workload("mlp")
    made = schedules.build(schedules.parse("layerwise"), workload)
    ops = list(made.ops)
    update = next(op for op in ops if isinstance(op.work, Update))
    moved = [update, *(op for op in ops if op is not update)]
    message = refused(msgspec.structs.replace(made, roles={ROLE: tuple(moved)}), workload)
    assert "stands after it; the executor issues in list order: put it before" in message


def test_only_fresh_gradients_are_copied():
    workload = catalogue.workload("mlp")
    made = schedules.build(schedules.parse("async:1:all"), workload)
    copy = made.ops[-1]
    work = Map(function="copy", bucket="all", reads="gradient", writes="weight")
    extra = msgspec.structs.replace(copy, name="odd", work=work, after=(Dep(copy.name),))
    message = refused(msgspec.structs.replace(made, roles={ROLE: (*made.ops, extra)}), workload)
    assert "op 'odd'" in message


def test_a_workload_of_another_network_is_refused_before_anything_runs():
    workload = oracle.workload("convolutional")
    wrong = msgspec.structs.replace(workload, source=oracle.workload("attention").source)
    schedule = oracle.schedule("sync", "convolutional")
    with pytest.raises(ValueError, match=r"its tensor 'conv\.weight' is not in the module"):
        loopback.run(1, lambda backend: Rank(plan(schedule, wrong), backend, Nobody()), swap=SWAP)
