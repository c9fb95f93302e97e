"""Plans: what a name becomes for one job on one machine."""

import pytest

from simgd import catalogue, files
from simgd.errors import ProfileError, ScheduleError
from simgd.job import job
from simgd.network import Call, Network
from simgd.plan import AS_FAST, plan
from simgd.predict import Machine
from simgd.topology import Cluster


def machine(name: str) -> Machine:
    return Machine(catalogue.cluster(name), catalogue.profile(name))


@pytest.mark.parametrize(
    ("cluster", "ranks", "network", "batch"),
    [
        ("xeon-edr", 16, "alexnet", 64),
        ("pcie-box", 8, "alexnet", 64),
        ("pcie-box", 8, "vgg16", 4),
        ("dgx1-p100", 2, "alexnet", 32),
        ("dgx1-p100", 8, "googlenet", 64),
        ("sandybridge-qdr", 16, "alexnet", 8),
        ("dgx-h200", 8, "resnet50", 8),
    ],
)
def test_auto_is_as_fast_as_no_delay_and_as_one_iteration_of_delay_everywhere(cluster, ranks, network, batch):
    on, trained = machine(cluster), job(catalogue.workload(network), batch=batch)
    auto, none, one = (
        on.study(name, trained, ranks) for name in ("async_layerwise:auto", "layerwise", "async_layerwise:1")
    )
    assert auto.period_s <= min(none.period_s, one.period_s) * (1 + AS_FAST)
    if none.period_s <= one.period_s:
        assert set(auto.derived.staleness.values()) == {0}


def test_auto_chooses_for_the_wire_that_is_used():
    on, trained = machine("dgx1-p100"), job(catalogue.workload("vgg16"), batch=8, wire="bf16")
    auto, none, one = (
        on.study(name, trained, 2) for name in ("async_layerwise:auto", "layerwise", "async_layerwise:1")
    )
    assert auto.period_s <= min(none.period_s, one.period_s) * (1 + AS_FAST)


def test_auto_delays_the_layers_in_front_whose_gradients_come_last_and_are_needed_first():
    workload = catalogue.workload("alexnet")
    on = machine("pcie-box")
    staleness = on.study("async_layerwise:auto", job(workload, batch=64), 8).derived.staleness
    in_order = [staleness[layer.name] for layer in workload.layers]
    assert in_order == sorted(in_order, reverse=True)
    assert set(in_order) == {0, 1}


def test_auto_needs_a_machine():
    with pytest.raises(ScheduleError, match="its delays depend on costs"):
        plan("async_layerwise:auto", catalogue.workload("mlp"))


def test_a_file_that_sends_in_another_type_than_asked_for_is_refused():
    workload = catalogue.workload("mlp")
    trained = job(workload, wire="bf16")
    with pytest.raises(ScheduleError, match="sends float32, but --wire is bf16; give --wire fp32"):
        machine("dgx1-p100").study(plan("layerwise", workload), trained, 8)


def test_sixteen_bits_on_the_wire_halve_the_message_and_cost_a_cast_before_and_after():
    on = machine("dgx1-p100")
    workload = catalogue.workload("alexnet")
    full, half = (on.study("sync", job(workload, wire=wire), 8) for wire in ("fp32", "bf16"))
    message = full.priced.timing.ops["all_reduce all"], half.priced.timing.ops["all_reduce all"]
    memory = on.profile.memory
    # 4 B read and 2 written for each of 61,100,840 parameters, twice, and the smallest kernel's time twice
    casts_s = 2 * (6 * workload.parameters / memory.bytes_per_s + memory.kernel)
    alone_s = on.network().demand(Call("all_reduce", 2 * workload.parameters, 8)).solo_s
    assert message[1].run_ps == pytest.approx((alone_s + casts_s) * 1e12)
    assert message[1].run_ps < message[0].run_ps


def test_mpi_has_no_sixteen_bit_sum():
    with pytest.raises(ProfileError, match="MPI has no bfloat16 to sum; take --wire fp32"):
        machine("sandybridge-qdr").study("sync", job(catalogue.workload("mlp"), wire="bf16"), 4)


def changed(name: str, old: str, new: str) -> Network:
    """Return the network of a shipped machine whose file says *new* instead of *old*, with the shipped profile."""
    text = files.to_toml(catalogue.cluster(name)).decode()
    assert old in text
    cluster = files.parse(text.replace(old, new).encode(), Cluster, where="changed.toml", toml=True)
    return Network(cluster, catalogue.profile(name))


@pytest.mark.parametrize(
    ("name", "old", "new", "least"),
    [
        # four times the NVLink's nominal rate: a model of bandwidth alone would be four times as fast
        ("dgx1-p100", "bandwidth = 20000000000", "bandwidth = 80000000000", 3.0),
        ("dgx-a100", "bandwidth = 25000000000", "bandwidth = 100000000000", 2.5),
        # ten times the InfiniBand: adding the buffers is then most of it
        ("sandybridge-qdr", "bandwidth = 4000000000", "bandwidth = 40000000000", 2.0),
    ],
)
def test_a_machine_with_faster_links_than_its_profile_was_made_on_is_faster(name, old, new, least):
    call = Call("all_reduce", 100_000_000, 8)
    before = Network(catalogue.cluster(name), catalogue.profile(name)).demand(call)
    after = changed(name, old, new).demand(call)
    assert before.solo_s / after.solo_s > least
    assert after.origin == "modelled"
    assert after.uncertainty >= 0.25


def test_a_machine_with_slower_switches_answers_small_messages_later():
    call = Call("all_reduce", 8, 8)
    before = Network(catalogue.cluster("sandybridge-qdr"), catalogue.profile("sandybridge-qdr")).demand(call)
    after = changed("sandybridge-qdr", "latency = 2e-7", "latency = 5e-5").demand(call)
    # three steps of recursive doubling, each over two cables 49.8 us slower
    assert after.solo_s - before.solo_s == pytest.approx(3 * 2 * 49.8e-6)
