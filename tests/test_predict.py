"""Predictions against closed forms, and laws that hold for every machine and schedule."""

import json

import msgspec
import pytest

from simgd import catalogue, cli, files, schedules
from simgd.errors import FileError, SimgdError
from simgd.job import Job, job
from simgd.predict import Machine, Prediction, predict, trace_of
from simgd.pricing import WhatIf
from simgd.profile import ORIGINS, Fit, Jitter, LayerTimes, MemoryRate, Profile, Segment
from simgd.schedules import DEFAULT_SCHEDULES
from simgd.topology import Cluster, Device, Link
from simgd.units import Bytes, FlopRate, Rate
from simgd.workload import Layer, Tensor, Workload

MS = 1e-3

PAIR = Cluster(
    name="pair",
    device=Device(name="d", kind="gpu", memory=Bytes(10**9), memory_rate=Rate(1e11), fp32=FlopRate(1e12)),
    vertices={"a": "device", "b": "device"},
    links=(Link(ends=("a", "b"), kind="nvlink", bandwidth=Rate(10e9)),),
)

#: Two layers of 1,000,000 parameters; the last one's gradient is ready first.
NET = Workload(
    name="net",
    batch=8,
    layers=tuple(Layer(name=name, tensors=(Tensor(f"{name}.w", (1_000_000,)),)) for name in ("front", "back")),
)


def hand(**entries: object) -> Profile:
    """Return costs in round numbers, all measured and exact.

    Forward 1 ms a layer, backward 2 ms a layer; 8 MB are reduced in 5 ms, 4 MB in 3 ms; updates move 20 B a parameter
    at 40 GB/s: 0.5 ms a layer.
    """
    about = {"origin": "measured", "source": "by hand"}

    def passes(direction: str, seconds: float) -> LayerTimes:
        times = {"front": seconds, "back": seconds}
        return LayerTimes(**about, workload="net", batch=8, direction=direction, seconds=times)  # type: ignore[arg-type]

    segments = (Segment(from_bytes=0.0, latency_s=1 * MS, seconds_per_byte=0.5e-9),)
    line = Fit(**about, kind="all_reduce", ranks=2, nodes=1, segments=segments)  # type: ignore[arg-type]
    given = {
        "layers": (passes("forward", 1 * MS), passes("backward", 2 * MS)),
        "fits": (line,),
        "memory": MemoryRate(**about, bytes_per_s=40e9, kernel=0.0),  # type: ignore[arg-type]
    }
    return Profile(name="hand", cluster=PAIR, **given | entries)  # type: ignore[arg-type]


def by_hand(schedule: str, ranks: int = 2, **entries: object) -> Prediction:
    machine = Machine(PAIR, hand(**entries))
    return predict(machine, job(NET), [ranks], [schedule], baseline="sync")[0]


def test_sync_is_the_sum_of_its_parts():
    # forward 2, backward 4, one all-reduce of 8 MB 5, update 1
    found = by_hand("sync")
    assert found.iteration_s == pytest.approx(12 * MS, rel=1e-9)
    assert found.compute_s == pytest.approx(7 * MS, rel=1e-9)
    assert found.communication_s == pytest.approx(5 * MS, rel=1e-9)
    assert found.exposed_communication_s == pytest.approx(5 * MS, rel=1e-9)
    assert found.samples_per_s == pytest.approx(2 * 8 / (12 * MS), rel=1e-9)
    # one rank takes 7 ms for 8 samples
    assert found.speedup_over_one == pytest.approx(2 * 7 / 12, rel=1e-9)
    assert found.efficiency == pytest.approx(7 / 12, rel=1e-9)
    assert found.bound_by == "compute"


def test_layerwise_hides_what_fits_behind_backward_and_update():
    # forward 0-2, backward of back until 4, of front until 6; its gradients travel 4-7 and 7-10; updates beside other
    # messages: of back 7-7.5, of front 10-10.5, then the next forward
    found = by_hand("layerwise")
    assert found.iteration_s == pytest.approx(10.5 * MS, rel=1e-9)
    assert found.communication_s == pytest.approx(6 * MS, rel=1e-9)
    assert found.speedup_over_sync == pytest.approx(12 / 10.5, rel=1e-9)
    assert found.staleness == 0


def test_a_delay_of_1_hides_all_that_compute_covers():
    # compute with its updates 7 ms, one message 5 ms: max(C, R)
    found = by_hand("async:1:all")
    assert found.iteration_s == pytest.approx(7 * MS, rel=1e-9)
    assert found.exposed_communication_s == pytest.approx(0, abs=1e-12)
    assert found.staleness == 1


def test_exact_measured_costs_make_a_measured_prediction_without_an_interval():
    found = by_hand("sync")
    assert found.iteration_low_s == found.iteration_high_s == pytest.approx(found.iteration_s)
    assert found.origins["forward"] == found.origins["communication"] == "measured"


def test_costs_that_are_uncertain_together_move_the_iteration_by_as_much():
    about = {"origin": "measured", "source": "x", "uncertainty": 0.1}

    def passes(direction: str, seconds: float) -> LayerTimes:
        times = {"front": seconds, "back": seconds}
        return LayerTimes(**about, workload="net", batch=8, direction=direction, seconds=times)  # type: ignore[arg-type]

    segments = (Segment(from_bytes=0.0, latency_s=1 * MS, seconds_per_byte=0.5e-9),)
    line = Fit(**about, kind="all_reduce", ranks=2, nodes=1, segments=segments)  # type: ignore[arg-type]
    found = by_hand(
        "layerwise",
        layers=(passes("forward", 1 * MS), passes("backward", 2 * MS)),
        fits=(line,),
        memory=MemoryRate(**about, bytes_per_s=40e9, kernel=0.0),  # type: ignore[arg-type]
    )
    assert found.iteration_low_s == pytest.approx(0.9 * found.iteration_s, rel=1e-6)
    assert found.iteration_high_s == pytest.approx(1.1 * found.iteration_s, rel=1e-6)


def test_jitter_widens_the_interval_and_moves_nothing_else():
    still = by_hand("sync", ranks=1)
    found = by_hand(
        "sync", ranks=1, jitter=Jitter(origin="measured", source="x", iteration_sigma=0.03, rank_sigma=0.04)
    )
    assert found.iteration_s == still.iteration_s
    # both together 0.05; the 95 % quantile of a normal variable is 1.645 sigma
    assert found.iteration_high_s / found.iteration_s == pytest.approx(2.718281828 ** (1.645 * 0.05), rel=1e-4)
    assert found.median_high_s < found.iteration_high_s


# --- laws --------------------------------------------------------------------------------------------------------


def shipped(name: str, **changes: object) -> Machine:
    profile = catalogue.profile(name.partition(":")[0])
    return Machine(catalogue.cluster(name), msgspec.structs.replace(profile, **changes))


def resnet(**fields: object) -> Job:
    return job(catalogue.workload("resnet50"), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["dgx1-p100", "dgx-h100", "pcie-box", "xeon-edr"])
def test_one_rank_has_nobody_to_talk_to(name):
    for found in predict(shipped(name), resnet(), [1], DEFAULT_SCHEDULES):
        assert found.communication_s == 0
        assert found.exposed_communication_s == 0
        assert found.compute_s == found.iteration_s
        assert found.algorithms == ()
        assert "communication" not in found.origins
        if found.schedule == "sync":
            assert found.efficiency == found.speedup_over_one == 1


@pytest.mark.parametrize("name", ["dgx1-p100", "pcie-box:2", "sandybridge-qdr:4"])
@pytest.mark.parametrize("network", ["mlp", "alexnet", "googlenet"])
def test_the_values_of_every_prediction_fit_together(name, network):
    for found in predict(shipped(name), job(catalogue.workload(network)), [1, 4], DEFAULT_SCHEDULES):
        assert found.iteration_low_s <= found.iteration_s <= found.iteration_high_s
        assert found.samples_per_s * found.iteration_s == pytest.approx(found.ranks * found.batch_per_rank)
        assert found.efficiency * found.ranks == pytest.approx(found.speedup_over_one)
        assert found.compute_s + found.exposed_communication_s == pytest.approx(found.iteration_s)
        assert found.exposed_communication_s >= -1e-12
        assert found.origin == max(found.origins.values(), key=ORIGINS.index)
        assert found.staleness == {"async:1": 1}.get(found.schedule, found.staleness)


@pytest.mark.parametrize("schedule", DEFAULT_SCHEDULES[:4])
@pytest.mark.parametrize("name", ["dgx1-p100", "pcie-box", "dgx-a100"])
def test_a_faster_link_never_hurts_without_interference(name, schedule):
    study = shipped(name, interference=()).study(schedule, job(catalogue.workload("alexnet")), 8)
    kinds = {link.kind for link in study.prices.cluster.links}
    for factor in (1.01, 1.5, 4.0):
        for kind in kinds:
            assert study.period_if(WhatIf(links={kind: factor})) <= study.period_s


@pytest.mark.parametrize("schedule", DEFAULT_SCHEDULES[:4])
def test_a_faster_device_or_host_never_hurts_without_interference(schedule):
    study = shipped("dgx1-p100", interference=()).study(schedule, job(catalogue.workload("digits-cnn")), 8)
    assert study.period_if(WhatIf(device=1.1)) <= study.period_s
    for kind in ("forward_kernel", "backward_kernel", "collective", "update", "wait", "iteration"):
        assert study.period_if(WhatIf(host={kind: 1.1})) <= study.period_s


@pytest.mark.parametrize("schedule", DEFAULT_SCHEDULES)
def test_interference_only_ever_slows(schedule):
    args = (schedule, job(catalogue.workload("vgg16")), 8)
    assert shipped("pcie-box").study(*args).period_s >= shipped("pcie-box", interference=()).study(*args).period_s


def test_two_predictions_are_identical():
    first, second = (predict(shipped("dgx1-p100"), resnet(), [2, 8], DEFAULT_SCHEDULES) for _ in range(2))
    assert first == second
    machine = shipped("dgx1-p100")
    assert predict(machine, resnet(), [8], DEFAULT_SCHEDULES) == predict(machine, resnet(), [8], DEFAULT_SCHEDULES)


def test_a_prediction_does_not_depend_on_what_was_asked_beside_it():
    together = predict(shipped("pcie-box"), resnet(), [2, 4, 8], DEFAULT_SCHEDULES)
    for found in together:
        assert (found,) == predict(shipped("pcie-box"), resnet(), [found.ranks], [found.schedule])


def test_1024_alike_ranks_are_predicted_at_once():
    found = predict(shipped("dgx-a100:128"), resnet(), [1024], ["layerwise:tensor"])[0]
    assert found.ranks == 1024
    assert found.repeats
    assert 0 < found.efficiency <= 1.1


def test_more_samples_take_longer_and_are_done_faster():
    rows = [predict(shipped("dgx1-p100"), resnet(batch=batch), [8], ["sync"])[0] for batch in (8, 32, 128)]
    assert [row.iteration_s for row in rows] == sorted(row.iteration_s for row in rows)
    assert [row.samples_per_s for row in rows] == sorted(row.samples_per_s for row in rows)


def test_a_delay_costs_gradient_copies():
    rows = predict(shipped("dgx1-p100"), resnet(), [8], ["sync", "async:1:all", "async:3:all"])
    n = 4 * catalogue.workload("resnet50").parameters
    assert [row.staleness for row in rows] == [0, 1, 3]
    assert [row.peak_memory_bytes - rows[0].peak_memory_bytes for row in rows] == [0, n, 3 * n]


def test_what_does_not_fit_is_said():
    found = predict(shipped("dgx1-p100"), resnet(batch=512), [8], ["sync"])[0]
    assert not found.memory_fits
    assert found.peak_memory_bytes > 16e9


def test_a_schedule_for_another_workload_is_refused():
    schedule = schedules.build(schedules.parse("sync"), catalogue.workload("mlp"))
    with pytest.raises(SimgdError, match="is for workload 'mlp', found 'resnet50'"):
        predict(shipped("dgx1-p100"), resnet(), [8], [schedule])


def test_a_trace_shows_every_op_of_every_shown_rank():
    study = shipped("dgx2-v100").study("layerwise", job(catalogue.workload("mlp")), 16)
    trace = trace_of(study, iterations=2)
    assert trace.ranks == 8
    ran = {(event.rank, event.op) for event in trace if event.lane != "host"}
    assert ran == {(rank, op.name) for rank in range(8) for op in study.schedule.ops}


def test_predictions_are_read_back_from_what_json_prints(capsys):
    assert cli.run(["predict", "mlp", "--on", "dgx1-p100", "--ranks", "1,2", "--json"]) == 0
    raw = json.loads(capsys.readouterr().out)["predictions"]
    found = files.convert(raw, tuple[Prediction, ...], where="predictions")
    assert json.loads(files.to_json(found)) == raw


def test_a_prediction_outside_its_own_interval_is_refused(capsys):
    assert cli.run(["predict", "mlp", "--on", "dgx1-p100", "--ranks", "2", "--schedules", "sync", "--json"]) == 0
    (raw,) = json.loads(capsys.readouterr().out)["predictions"]
    with pytest.raises(FileError, match=r"iteration_s is 1\.0, outside its interval"):
        files.convert(raw | {"iteration_s": 1.0}, Prediction, where="predictions")
