"""Many ranks at once, against the simulator's ends to the picosecond, and against numbers derived by hand."""

from fractions import Fraction
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from strategies import build, graph, loose, named, small_workload, sound, timed, timing, workload

from simgd import catalogue
from simgd.ensemble import ensemble
from simgd.errors import ScheduleError
from simgd.job import job
from simgd.predict import Machine
from simgd.program import Program
from simgd.schedule import Backward, Communicate, Dep, Forward, Op, Schedule
from simgd.simulator import simulate
from simgd.soundness import Derived, derive
from simgd.timing import OpTime, Timing

Case = tuple[Schedule, Derived, Timing]

Factors = npt.NDArray[np.float64]


def case(rng: Random, *, interferes: bool) -> Case:
    """Return a random schedule with its costs, long or short beside the picosecond to which ends round up."""
    kind = rng.randrange(4)
    if kind < 2:
        schedule, derived = graph(rng, 9, rare=kind == 1)
    else:
        of = workload(rng)
        schedule = named(rng, of) if kind == 2 else sound(rng, of)
        derived = derive(schedule, of)
    return schedule, derived, timing(rng, schedule, largest=rng.choice([4, 40, 4000]), interferes=interferes)


def draws(rng: Random) -> Factors:
    """Return slow-downs of 1 to 5 iterations of 1 to 5 ranks; ties and halves, which round to even, among them."""
    ranks = rng.randint(1, 5)
    rows = [[rng.choice([1, 1.5, rng.lognormvariate(0, 0.3)]) for _ in range(ranks)] for _ in range(rng.randint(1, 5))]
    return np.array(rows, np.float64)


def simulated(found: Case, slowdowns: Factors) -> npt.NDArray[np.int64]:
    """Return every op's end by iteration, op and rank as the simulator has it, -1 where it did not run."""
    schedule, derived, costs = found
    iterations, ranks = slowdowns.shape
    number = {op.name: k for k, op in enumerate(schedule.ops)}
    owed = Program(schedule, derived, costs).owed
    ends = np.full((iterations + owed, len(number), ranks), -1, np.int64)
    trace = simulate(schedule, derived, costs, iterations=iterations, ranks=ranks, slowdowns=slowdowns.tolist())
    # Where the host runs an op itself, that is the op's only row; else its row on the host lane comes first.
    for row in trace:
        ends[row.iteration, number[row.op], row.rank] = row.end_ps
    return ends


def at_once(found: Case, slowdowns: Factors) -> npt.NDArray[np.int64]:
    schedule, derived, costs = found
    ends = ensemble(schedule, derived, costs, slowdowns=slowdowns, keep_ops=True).op_ends_ps
    assert ends is not None
    return ends


@pytest.mark.parametrize("interferes", [False, True])
def test_every_op_of_every_rank_ends_when_the_simulator_says(interferes: bool) -> None:
    for seed in range(300):
        rng = Random(seed)
        found, slowdowns = case(rng, interferes=interferes), draws(rng)
        assert np.array_equal(at_once(found, slowdowns), simulated(found, slowdowns)), f"seed {seed}"


@pytest.mark.parametrize("cluster", ["dgx-h100:2", "xeon-hdr:16"])
@pytest.mark.parametrize("schedule", ["layerwise:tensor", "async_layerwise:2", "bucketed:25MiB"])
def test_a_shipped_workload_ends_when_the_simulator_says(cluster: str, schedule: str) -> None:
    described = catalogue.cluster(cluster)
    machine = Machine(described, catalogue.profile_for(cluster, described, []))
    study = machine.study(schedule, job(catalogue.workload("resnet50")), 16)
    found = study.schedule, study.derived, study.priced.timing
    assert study.priced.timing.interferes
    slowdowns = np.random.default_rng(1).lognormal(0, 0.05, (3, 4))
    assert np.array_equal(at_once(found, slowdowns), simulated(found, slowdowns))


def test_ranks_with_factors_1_are_one_rank_alone() -> None:
    for seed in range(100):
        found = case(Random(seed), interferes=True)
        alone = simulated(found, np.ones((4, 1)))
        assert np.array_equal(at_once(found, np.ones((4, 3))), np.repeat(alone, 3, axis=2)), f"seed {seed}"


def test_one_rank_that_is_slow_once_delays_all() -> None:
    schedule, derived = build("sync", small_workload(1, 1))
    costs = timed(schedule, {"forward": 100, "backward": 200, "all_reduce": 50, "update": 10})
    slowdowns = np.array([[1, 1, 1], [1, 1.5, 1], [1, 1, 1]])
    found = ensemble(schedule, derived, costs, slowdowns=slowdowns)
    assert found.op_ends_ps is None
    assert found.iteration_ends_ps.tolist() == [
        # 2 forwards, 2 backwards, all-reduce, update: 200 + 400 + 50 + 10
        [660, 660, 660],
        # The slow one's passes take 900, until 1,560; the all-reduce ends at 1,610 for all; updates take 10 and 15
        [1620, 1625, 1620],
        # The last to begin is the last to come to the all-reduce: 1,625 + 600 + 50, and its update now takes 10 again
        [2285, 2285, 2285],
    ]


def one_message(slows: Fraction) -> Case:
    """Return a forward of 100 ps, then 100 ps of data in motion beside a backward of 150 ps, slowed 6/5."""
    schedule, derived = loose(
        [
            Op(name="forward", lane="compute", work=Forward(layers=("l0",))),
            Op(
                name="message",
                lane="comm",
                work=Communicate(collective="all_reduce", bucket="b"),
                after=(Dep("forward"),),
            ),
            Op(name="backward", lane="compute", work=Backward(layers=("l0",))),
        ]
    )
    beside = OpTime(run_ps=150, slowed=Fraction(6, 5), slows=slows)
    return schedule, derived, timed(schedule, {"forward": 100, "message": 100, "backward": beside})


def test_data_and_work_slow_each_other_on_every_rank_by_what_is_left() -> None:
    _, message, backward = at_once(one_message(Fraction(2)), np.array([[1, 2]]))[0].tolist()
    # Data move from 200, when the slow rank's forward ends, at half speed while a backward runs on any rank: its own
    # runs to the end of the data.
    assert message == [400, 400]
    # The fast rank's backward runs from 100; at 200 its last 50 take 60. The slow rank's 300 run from 200; 200 ps at
    # 5/6 leave 300 - 166 2/3 = 133 1/3 at 400, which end at the next whole picosecond.
    assert backward == [260, 534]


def test_data_move_at_full_speed_again_once_no_rank_works_beside() -> None:
    _, message, backward = at_once(one_message(Fraction(3)), np.array([[1, 1, 0.5]]))[0].tolist()
    # Data move from 100. Two backwards of 150 take 180 while they do, until 280: 60 of 100 moved at a third of the
    # speed, 40 are left. The fast rank's 75 run from 50; at 100 there are 25 left, which take 30.
    assert message == [320, 320, 320]
    assert backward == [280, 280, 130]


def test_a_slower_rank_never_ends_an_iteration_earlier_without_interference() -> None:
    for seed in range(100):
        rng = Random(seed)
        schedule, derived, costs = case(rng, interferes=False)
        slowdowns = draws(rng)
        more = slowdowns.copy()
        more[rng.randrange(len(more)), rng.randrange(more.shape[1])] *= 1.3
        before, after = (
            ensemble(schedule, derived, costs, slowdowns=each).iteration_ends_ps for each in (slowdowns, more)
        )
        assert np.all(after >= before), f"seed {seed}"


def test_several_collectives_in_flight_are_refused() -> None:
    schedule, derived = build("sync", small_workload(1))
    with pytest.raises(ScheduleError, match="schedule 'sync': 2 collectives in flight share bandwidth"):
        ensemble(schedule, derived, timed(schedule, {}, in_flight=2), slowdowns=np.ones((1, 1)))


@pytest.mark.parametrize(
    ("slowdowns", "message"),
    [
        (np.ones(3), r"slowdowns have shape \(3,\); they need \(iterations, ranks\), none of them 0"),
        (np.ones((0, 2)), r"slowdowns have shape \(0, 2\)"),
        (np.array([[1.0, -0.5]]), r"slowdowns are from -0.5 to 1; they must be 0 or more"),
        (np.array([[1.0, np.nan]]), r"slowdowns are from nan to nan"),
        # 660 ps times 10**17 are more than 2**63
        (np.array([[1.0, 1e17]]), r"slowdowns are from 1 to 1e\+17; .* times fit 64 bits"),
    ],
)
def test_slowdowns_that_mean_nothing_are_refused(slowdowns: Factors, message: str) -> None:
    schedule, derived = build("sync", small_workload(1, 1))
    costs = timed(schedule, {"forward": 100, "backward": 200, "all_reduce": 50, "update": 10})
    with pytest.raises(ValueError, match=message):
        ensemble(schedule, derived, costs, slowdowns=slowdowns)


def test_ops_that_wait_for_each_other_are_named() -> None:
    found = loose(
        [
            Op(name="a", lane="compute", work=Forward(layers=("l0",)), after=(Dep("b"),)),
            Op(name="b", lane="comm", work=Communicate(collective="all_reduce", bucket="b"), after=(Dep("a"),)),
        ]
    )
    with pytest.raises(ScheduleError, match="schedule 'loose': stuck: comm at 'b'"):
        ensemble(*found, timed(found[0], {}), slowdowns=np.ones((1, 2)))
