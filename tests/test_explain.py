"""An explanation names the exact critical cycle, and what each resource made 10 % better would change."""

import graphs
import msgspec
import pytest

from simgd import catalogue
from simgd.explain import BETTER, LinkUse, binding_links, directed, explain
from simgd.job import job
from simgd.predict import Machine, predict
from simgd.profile import Host

CASES = [("dgx1-p100", "mlp", 8), ("pcie-box", "alexnet", 8), ("xeon-edr", "resnet50", 4), ("dgx-a100:2", "gpt2", 16)]


def explained(cluster: str, network: str, ranks: int, schedule: str):
    machine = Machine(catalogue.cluster(cluster), catalogue.profile(cluster.partition(":")[0]))
    return explain(machine.study(schedule, job(catalogue.workload(network)), ranks))


@pytest.mark.parametrize("schedule", ["sync", "layerwise", "async:1"])
@pytest.mark.parametrize(("cluster", "network", "ranks"), CASES)
def test_an_explanation_accounts_for_the_whole_iteration(cluster, network, ranks, schedule):
    found = explained(cluster, network, ranks, schedule)
    assert found.critical_cycle_s + found.interference_s == pytest.approx(found.iteration_s)
    assert found.interference_s >= -1e-12
    assert sum(found.shares.values()) == pytest.approx(found.critical_cycle_s, rel=1e-9)
    lags = sum(step.lag for step in found.cycle)
    assert lags >= 1
    assert sum(step.seconds for step in found.cycle) / lags == pytest.approx(found.critical_cycle_s, rel=1e-9)
    assert set(found.shares) <= set(found.origins)
    assert {step.what for step in found.cycle} <= {"issue", "run"}


@pytest.mark.parametrize(("cluster", "network", "ranks"), CASES)
def test_it_speaks_of_the_same_iteration_as_the_prediction(cluster, network, ranks):
    machine = Machine(catalogue.cluster(cluster), catalogue.profile(cluster.partition(":")[0]))
    (row,) = predict(machine, job(catalogue.workload(network)), [ranks], ["layerwise"])
    found = explained(cluster, network, ranks, "layerwise")
    assert found.iteration_s == row.iteration_s
    assert (found.schedule, found.ranks, found.algorithms) == (row.schedule, row.ranks, row.algorithms)


@pytest.mark.parametrize(("cluster", "network", "ranks"), CASES)
def test_every_resource_is_tried_and_the_best_comes_first(cluster, network, ranks):
    found = explained(cluster, network, ranks, "bucketed:25MiB")
    resources = [change.resource for change in found.changes]
    machine = catalogue.cluster(cluster)
    assert len(set(resources)) == len(resources)
    assert {f"{link.kind} links" for link in machine.links} <= set(resources)
    assert f"device ({machine.device.name})" in resources
    assert any(resource.startswith("host") for resource in resources)
    times = [change.iteration_s for change in found.changes]
    assert times == sorted(times)
    for change in found.changes:
        assert change.gain == pytest.approx(found.iteration_s / change.iteration_s - 1)
        assert change.gain <= BETTER - 1 + 1e-9


def test_nics_are_tried_where_nodes_are_joined():
    for cluster, ranks in (("dgx-a100:2", 16), ("xeon-edr", 4)):
        found = explained(cluster, "mlp", ranks, "sync")
        assert "infiniband links" in [change.resource for change in found.changes]
    assert "infiniband links" not in [change.resource for change in explained("dgx-a100", "mlp", 8, "sync").changes]


def test_alone_a_device_that_is_10_percent_better_makes_nearly_all_of_it():
    found = explained("dgx1-p100", "resnet50", 1, "sync")
    assert found.changes[0].resource.startswith("device")
    assert found.changes[0].gain == pytest.approx(0.1, rel=0.02)
    links = [change for change in found.changes if change.resource.endswith("links")]
    assert all(change.gain == 0 for change in links)


def test_a_network_of_small_kernels_is_moved_by_the_host():
    found = explained("dgx-h100", "char-transformer", 8, "layerwise")
    assert max(found.shares, key=lambda part: found.shares[part]) == "host"
    assert found.changes[0].resource.startswith("host")
    assert any(step.what == "issue" for step in found.cycle)


@pytest.mark.parametrize(("cluster", "kind"), [("pcie-box", "socket"), ("dgx1-p100", "nvlink")])
def test_the_links_that_bind_are_those_whose_speed_counts(cluster, kind):
    """A ring through a PCIe box waits for the link between its sockets, although most of its hops are PCIe."""
    machine = Machine(catalogue.cluster(cluster), catalogue.profile(cluster.partition(":")[0]))
    study = machine.study("sync", job(catalogue.workload("vgg16")), machine.cluster.size)
    assert binding_links(study) == kind
    gain = {change.resource: change.gain for change in explain(study).changes}
    assert gain[f"{kind} links"] > 0
    assert all(gain[f"{kind} links"] >= found for name, found in gain.items() if name.endswith("links"))


def test_between_nodes_the_network_binds_where_nics_are_slow():
    machine = Machine(catalogue.cluster("dgx1-p100:2"), catalogue.profile("dgx1-p100"))
    study = machine.study("sync", job(catalogue.workload("vgg16")), 16)
    assert binding_links(study) == "infiniband"


def test_without_host_costs_no_host_is_tried_or_it_changes_nothing():
    cluster = catalogue.cluster("dgx1-p100")
    profile = catalogue.profile("dgx1-p100")
    free = dict.fromkeys(
        ("forward_kernel", "backward_kernel", "collective", "update", "copy", "wait", "iteration"), 0.0
    )
    host = Host(origin="measured", source="none", **free)
    fields = {name: getattr(profile, name) for name in profile.__struct_fields__}
    machine = Machine(cluster, type(profile)(**fields | {"host": host}))
    found = explain(machine.study("layerwise", job(catalogue.workload("mlp")), 8))
    assert all(change.gain == 0 for change in found.changes if change.resource.startswith("host"))
    assert "host" not in found.shares or found.shares["host"] == 0


def test_busy_links_are_given_by_their_ends_whatever_dashes_are_in_their_names():
    ends = ("pod-1/gpu", "pod-1/pcie-0")
    lab = graphs.cluster("g0-p0")
    lab = msgspec.structs.replace(
        lab,
        vertices={ends[0]: "device", ends[1]: "pcie_switch"},
        links=(msgspec.structs.replace(lab.links[0], ends=ends, duplex="half"),),
    )
    both = LinkUse(link="-".join(ends), busy=0.1, busy_in_collectives=0.5)
    out = LinkUse(link="nic-0>network", busy=0.1, busy_in_collectives=0.25)
    assert directed([both, out], lab) == {ends: 0.5, ends[::-1]: 0.5, ("nic-0", "network"): 0.25}


def test_rings_keep_all_32_directions_of_a_dgx1s_nvlinks_alike_busy_and_nothing_else():
    found = explained("dgx1-p100", "alexnet", 8, "sync").links
    assert len(found) == 32
    assert all(use.link.startswith("gpu") and ">gpu" in use.link for use in found)
    busiest = found[0]
    assert all(use.busy == pytest.approx(busiest.busy) for use in found)
    assert 0 < busiest.busy < busiest.busy_in_collectives < 1
    assert explained("dgx1-p100", "alexnet", 1, "sync").links == ()
