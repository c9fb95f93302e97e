"""What a calibration of GPUs measures, in the simulator: derived by hand from the pair of `test_predict`."""

from itertools import pairwise

import msgspec
import pytest
from test_predict import MS, NET, PAIR, hand

from calibration import local
from calibration.wanted import APART, Wanted
from executor.comm import Progress
from simgd import catalogue, costs
from simgd.errors import ProfileError
from simgd.job import job
from simgd.predict import Machine, Studied, predict
from simgd.pricing import WhatIf
from simgd.profile import Host, Interference, Jitter, LayerTimes, UpdateTime

ABOUT = {"origin": "measured", "source": "by hand"}

NO_HOST = dict.fromkeys(("forward_kernel", "backward_kernel", "collective", "update", "copy", "wait", "iteration"), 0.0)


def passes(**more: dict[str, float]) -> tuple[LayerTimes, ...]:
    """Forward 1 ms a layer, backward 2 ms, as in `hand`."""
    return tuple(
        LayerTimes(
            **ABOUT,  # type: ignore[arg-type]
            workload="net",
            batch=8,
            direction=direction,  # type: ignore[arg-type]
            seconds={"front": seconds, "back": seconds},
            **more,  # type: ignore[arg-type]
        )
        for direction, seconds in (("forward", 1 * MS), ("backward", 2 * MS))
    )


def studied(schedule: str, **entries: object) -> Studied:
    return Machine(PAIR, hand(**entries)).study(schedule, job(NET), 2)


def test_a_host_that_issues_slower_than_the_device_computes_makes_the_iteration():
    # four passes of 10 ms to issue each; then the last one runs 2 ms, its gradients travel 5, the update takes 1
    found = studied("sync", layers=passes(issue={"front": 10 * MS, "back": 10 * MS}))
    assert found.period_s == pytest.approx((40 + 2 + 5 + 1) * MS, rel=1e-9)
    # twice as fast at forward kernels: two passes of 5 ms less
    assert found.period_if(WhatIf(host={"forward_kernel": 2.0})) == pytest.approx(38 * MS, rel=1e-9)


def test_a_pass_has_the_factor_that_was_measured_of_it_before_that_of_its_kind():
    generic = Interference(**ABOUT, compute="matrix", path="nvlink", compute_factor=1.2, communication_factor=1.6)  # type: ignore[arg-type]
    ops = studied("sync", layers=passes(beside={"front": 1.5}), interference=(generic,)).priced.timing.ops
    assert [float(ops[name].slowed) for name in ("forward front", "forward back")] == [1.5, 1.2]
    assert [float(ops[name].slows) for name in ("forward front", "forward back")] == [1.6, 1.6]


def test_interference_of_the_workload_itself_goes_before_that_of_any():
    generic = Interference(**ABOUT, compute="matrix", path="nvlink", compute_factor=1.2, communication_factor=1.6)  # type: ignore[arg-type]
    own = msgspec.structs.replace(generic, workload="net", compute_factor=1.1)
    profile = hand(interference=(generic, own))
    factors = [
        entry.compute_factor if (entry := costs.interference_entry(profile, "matrix", path, name)) else None
        for path, name in (("nvlink", "net"), ("nvlink", "other"), ("pcie", "net"))
    ]
    assert factors == [1.1, 1.2, None]


def test_a_factor_below_1_is_refused():
    with pytest.raises(ProfileError, match=r"beside: factor 0.5 of 'front' must be from 1 to 100"):
        passes(beside={"front": 0.5})


def test_issuing_an_update_or_a_copy_takes_more_with_more_tensors():
    # of the two tensors of the net, each 0.5 ms on top of 1 ms; a copy of one 0.25 on top of 2
    host = Host(
        **ABOUT,  # type: ignore[arg-type]
        **NO_HOST | {"update": 1 * MS, "copy": 2 * MS},
        update_tensor=0.5 * MS,
        copy_tensor=0.25 * MS,
    )
    assert studied("sync", host=host).priced.timing.ops["update all"].issue_ps == 2_000_000_000
    ops = studied("async_layerwise:1", host=host).priced.timing.ops
    assert [ops[name].issue_ps for name in ("copy back", "copy front")] == [2_250_000_000] * 2


@pytest.mark.parametrize(("late_ms", "expected_ms"), [(1.0, 13.0), (-1.0, 11.0), (-100.0, 7.5)])
def test_noise_of_a_collective_is_seconds_and_leaves_a_tenth_of_it(late_ms, expected_ms):
    # sync takes 12 ms, 5 of them the all-reduce
    jitter = Jitter(**ABOUT, communication_s=(late_ms * MS, late_ms * MS))  # type: ignore[arg-type]
    (found,) = predict(Machine(PAIR, hand(jitter=jitter)), job(NET), [2], ["sync"], baseline="sync", seed=0)
    assert found.median_s == pytest.approx(expected_ms * MS, rel=1e-6)
    # and the interval reaches to the iteration without noise
    ends = sorted((expected_ms * MS, 12 * MS))
    assert [found.iteration_low_s, found.iteration_high_s] == pytest.approx(ends, rel=1e-6)


def test_an_update_curve_goes_through_its_rows_and_adds_what_more_tensors_take():
    # one tensor: 10 us up to 100 elements, then 20 us to 1,000; eleven tensors of 1,000 elements in all: 10 us more
    rows = [
        local.Row(1.0, 1, 100, 10e-6),
        local.Row(1.0, 2, 1000, 20e-6),
        local.Row(1.0, 1, 500, 22e-6),
        local.Row(1.0, 11, 1000, 32e-6),
    ]
    found = local.update_curve(rows, "sgd", 2)
    assert isinstance(found, UpdateTime)
    # 1,000 elements cannot take less than 500
    assert found.points == ((100, 10e-6), (500, 22e-6), (1000, 22e-6))
    assert found.tensor_s == pytest.approx(1e-6)
    assert found.seconds(1000, 11) == pytest.approx(32e-6)
    assert found.seconds(2000, 1) == pytest.approx(44e-6)


def test_sizes_of_all_reduces_are_powers_of_two_and_the_workloads_own_where_those_tell_something_new():
    workload = catalogue.workload("resnet50")
    wanted = Wanted(
        name="x",
        backend="nccl",
        workloads=[(workload, 32, 0)],
        optimizer="sgd",
        asleep=False,
        progress=Progress(),
        cluster=None,
        largest_bytes=2**30,
        seed=0,
    )
    sizes = [key.nbytes for key in wanted.keys(2) if key.kind == "all_reduce"]
    assert {2**power for power in range(3, 31)} <= set(sizes)
    assert 4 * workload.parameters in sizes
    assert all(later > APART * sooner for sooner, later in pairwise(sizes))
