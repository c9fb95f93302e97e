"""The shipped profiles: what the script writes, with a source for every number."""

from pathlib import Path

import pytest

from calibration import published
from simgd import catalogue, costs, files
from simgd.job import Job, job
from simgd.network import Call, Network
from simgd.predict import Machine
from simgd.profile import Entry, Profile

HERE = Path(published.__file__).parent / "profiles"
MADE = published.profiles()


def entries(profile: Profile) -> list[Entry]:
    found: list[Entry] = []
    for name in profile.__struct_fields__:
        value = getattr(profile, name)
        found += [entry for entry in (value if isinstance(value, tuple) else (value,)) if isinstance(entry, Entry)]
    return found


def test_every_shipped_cluster_has_a_profile_and_every_profile_a_cluster() -> None:
    clusters = {path.stem for path in published.CLUSTERS.glob("*.toml")}
    assert clusters == set(MADE) == {path.stem for path in HERE.glob("*.json")}


@pytest.mark.parametrize("name", sorted(MADE))
def test_a_committed_profile_is_what_the_script_writes(name: str) -> None:
    assert (HERE / f"{name}.json").read_bytes() == files.to_json(MADE[name])


@pytest.mark.parametrize("name", sorted(MADE))
def test_every_number_has_a_source_and_weak_ones_a_wide_interval(name: str) -> None:
    for entry in entries(MADE[name]):
        assert len(entry.source) > 20, entry
        if entry.origin in ("modelled", "assumed"):
            assert entry.uncertainty >= 0.25, entry
        assert 0 < entry.uncertainty <= 0.5, entry


def test_a_step_takes_its_batch_over_the_published_rate() -> None:
    steps = {(step.workload, step.batch): step.seconds for step in MADE["dgx1-p100"].steps}
    assert steps["resnet50", 64] == 64 / 219
    assert steps["alexnet", 512] == 512 / 2987
    assert {step.workload: step.batch / step.seconds for step in MADE["xeon-edr"].steps} == pytest.approx(
        {"resnet50": 81.7, "googlenet": 250.5}
    )


@pytest.mark.parametrize(("name", "batch"), [("dgx1-p100", 64), ("dgx1-v100", 128), ("xeon-edr", 64)])
def test_a_stated_efficiency_is_the_share_of_the_roofline_that_resnet50_reaches(name: str, batch: int) -> None:
    profile = MADE[name]
    workload = catalogue.workload("resnet50")
    job = Job(workload=workload, batch=batch, tokens=workload.tokens, dtype="fp32")
    step = next(step.seconds for step in profile.steps if (step.workload, step.batch) == ("resnet50", batch))
    passes = step - costs.update_s(workload.parameters, 1, job, profile).seconds
    assert profile.efficiency is not None
    share = costs.step_roofline_s(job, profile.cluster.device) / passes
    assert profile.efficiency.value == pytest.approx(share, abs=0.01)


def test_only_the_machine_that_was_measured_has_measured_interference() -> None:
    measured = {
        name for name, profile in MADE.items() if any(entry.origin == "measured" for entry in profile.interference)
    }
    assert measured == {"dgx-h200"}


def test_pascal_has_no_ll128_and_only_hopper_and_blackwell_reduce_in_their_switches() -> None:
    protocols = {
        name: {protocol.name for protocol in profile.library.protocols}
        for name, profile in MADE.items()
        if profile.library
    }
    assert "LL128" not in protocols["dgx1-p100"]
    assert "LL128" in protocols["dgx1-v100"]
    reducing = {"dgx-h100", "dgx-h200", "dgx-b200", "gb200-nvl72"}
    assert {name for name, found in protocols.items() if "NVLS" in found} == reducing


def test_ndr_messages_are_hdr_messages_with_half_the_time_above_the_latency() -> None:
    hdr, ndr = (MADE[name].point_to_point for name in ("xeon-hdr", "xeon-ndr"))
    assert hdr is not None
    assert ndr is not None
    assert ndr.origin == "modelled"
    start = hdr.points[0][1]
    for (size, slow), (same, fast) in zip(hdr.points, ndr.points, strict=True):
        assert size == same
        assert fast - start == pytest.approx((slow - start) / 2, abs=1e-12)


def test_xdr_messages_are_hdr_messages_with_a_quarter_of_the_time_above_the_latency() -> None:
    hdr, xdr = (MADE[name].point_to_point for name in ("xeon-hdr", "xeon-xdr"))
    assert hdr is not None
    assert xdr is not None
    # 4 MiB over HDR: 177.3 us, of which 1.57 us latency
    assert xdr.points[-1] == (4 * 2**20, pytest.approx(1e-6 * (1.57 + (177.3 - 1.57) / 4), abs=1e-12))


def test_a_message_over_roce_takes_what_it_takes_over_edr_and_the_difference_of_empty_ones() -> None:
    edr, roce, tcp = (MADE[name].point_to_point for name in ("xeon-edr", "xeon-100gbe", "xeon-25gbe"))
    assert edr is not None
    assert roce is not None
    assert tcp is not None
    for (size, fast), (same, slow) in zip(edr.points, roce.points, strict=True):
        assert size == same
        assert slow - fast == pytest.approx(0.41e-6, abs=1e-12)
    # the kernel's TCP takes ten times as long for an empty message, and 25 Gb/s a quarter of the rate
    assert tcp.points[0][1] > 8 * roce.points[0][1]
    assert tcp.origin == "published"
    assert roce.origin == "modelled"


@pytest.mark.parametrize("name", sorted(MADE))
def test_every_profile_answers_for_its_whole_machine(name: str) -> None:
    profile = MADE[name]
    ranks = profile.cluster.size if profile.cluster.device.kind == "gpu" else 16
    demand = Network(profile.cluster, profile).demand(Call("all_reduce", 10**8, ranks))
    assert demand.origin in ("published", "modelled")
    paths = {entry.path for entry in profile.interference}
    assert demand.path in paths


def test_the_h200_hosts_kernel_cost_is_what_two_host_bound_steps_say_nearly_alike():
    # 4 H200, TF32, one flat all-reduce. GoogLeNet (64) takes 24 ms, of which 0.5 ms are no kernels' issue; BERT-large
    # (4 x 384) 53 ms, of which 7.8 ms are: 5.3 ms all-reduce, 2.2 ms update, the rest the loop.
    for name, issue_s in (("googlenet", 23.5e-3), ("bert-large", 45.2e-3)):
        kernels = sum(
            work.kernels
            for layer in catalogue.workload(name).layers
            for work in (layer.forward, layer.backward)
            if work is not None
        )
        assert issue_s / kernels == pytest.approx(published.HOST_H200.forward_kernel, rel=0.08)


def test_on_h200_one_message_a_tensor_is_slower_than_one_flat_message_where_the_host_cannot_keep_up():
    machine = Machine(catalogue.cluster("dgx-h200"), catalogue.profile("dgx-h200"))
    # measured on 4 H200, TF32, one update in both: one message a tensor over one flat message, in ms; the first two
    # made the profile's host costs, VGG-16 its efficiency
    for name, batch, ratio in (("googlenet", 64, 51 / 24), ("bert-large", 4, 118 / 53), ("vgg16", 32, 27.6 / 28.4)):
        trained = job(catalogue.workload(name), batch=batch, dtype="tf32")
        flat, tensors = (machine.study(schedule, trained, 4).period_s for schedule in ("sync", "bucketed:1B"))
        assert tensors / flat == pytest.approx(ratio, rel=0.12)
