"""Names stand for what is shipped, paths for files; what is shipped is whole."""

import pytest

from simgd import catalogue, files, showing
from simgd.errors import ClusterError, FileError, UnknownNameError
from simgd.network import Network
from simgd.profile import ORIGINS, Entry, Profile
from simgd.profilereport import entries
from simgd.topology import Cluster

WORKLOADS = [
    "alexnet",
    "vgg16",
    "googlenet",
    "googlenet-heads",
    "resnet50",
    "bert-large",
    "gpt2",
    "vit-b16",
    "graphsage",
    "digits-cnn",
    "mlp",
]
CLUSTERS = [
    "dgx1-p100",
    "dgx1-v100",
    "dgx2-v100",
    "dgx-a100",
    "dgx-h100",
    "dgx-h200",
    "dgx-b200",
    "gb200-nvl72",
    "pcie-box",
    "sandybridge-qdr",
    "sandybridge-fdr",
    "xeon-edr",
    "xeon-hdr",
    "xeon-ndr",
    "xeon-xdr",
    "xeon-100gbe",
    "xeon-25gbe",
]


def test_the_names_that_scripts_use_are_there():
    assert set(catalogue.names("workload")) == {*WORKLOADS, "char-transformer"}
    assert set(catalogue.names("cluster")) == set(CLUSTERS)
    assert set(catalogue.names("profile")) == set(CLUSTERS)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("alexnet", 61_100_840),
        ("vgg16", 138_357_544),
        ("googlenet", 6_624_904),
        ("googlenet-heads", 13_378_280),
        ("resnet50", 25_557_032),
        ("bert-large", 335_174_458),
        ("gpt2", 124_439_808),
    ],
)
def test_a_shipped_network_has_its_published_number_of_parameters(name, parameters):
    assert catalogue.workload(name).parameters == parameters


@pytest.mark.parametrize("name", catalogue.names("workload"))
def test_a_shipped_workload_was_counted_and_says_from_what(name):
    workload = catalogue.workload(name)
    assert workload.name == name
    assert workload.description
    assert workload.counted()
    assert workload.source is not None
    assert workload.source.function.startswith("executor.networks:")
    assert "torch" in workload.source.versions


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_shipped_cluster_and_its_profile_speak_of_the_same_machine(name):
    cluster, profile = catalogue.cluster(name), catalogue.profile(name)
    assert cluster.name == profile.name == name
    assert profile.cluster == cluster
    assert cluster.source
    assert cluster.device.source


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_shipped_number_has_a_source_and_what_is_not_measured_an_interval(name):
    for entry in entries(catalogue.profile(name)):
        assert isinstance(entry, Entry)
        assert len(entry.source) > 10
        assert entry.origin in ORIGINS
        if entry.origin in ("modelled", "assumed"):
            assert entry.uncertainty >= 0.25


@pytest.mark.parametrize("name", CLUSTERS)
def test_collectives_cost_something_on_every_shipped_machine(name):
    ranks = 8 if catalogue.cluster(name).device.kind == "cpu" else catalogue.cluster(name).size
    network = Network(catalogue.cluster(name), catalogue.profile(name))
    small, large = (network.seconds("all_reduce", size, ranks) for size in (8, 2**30))
    assert 0 < small < large


def test_nodes_are_joined_by_their_nics():
    cluster = catalogue.cluster("dgx1-p100:4")
    assert (cluster.nodes, cluster.size) == (4, 32)
    assert catalogue.cluster("dgx1-p100:1") == catalogue.cluster("dgx1-p100")


@pytest.mark.parametrize("name", ["dgx1-p100:0", "dgx1-p100:-1", "dgx1-p100:x", "dgx1-p100:", "dgx1-p100:1:2"])
def test_a_number_of_nodes_is_a_number_above_0(name):
    with pytest.raises(ClusterError, match="is not a number of nodes; write dgx1-p100:4"):
        catalogue.cluster(name)


@pytest.mark.parametrize("find", [catalogue.workload, catalogue.cluster, catalogue.profile])
def test_an_unknown_name_is_answered_with_where_to_look(find):
    with pytest.raises(UnknownNameError, match="shows all"):
        find("nothing like it")


@pytest.mark.parametrize("name", ["a.toml", "a.json", "a.json.gz", "a.csv", "./a", "/a", "b/a"])
def test_a_path_is_a_file(name):
    assert catalogue.is_file(name)
    with pytest.raises(FileError, match="there is no such file"):
        catalogue.cluster(name)


@pytest.mark.parametrize("name", [*WORKLOADS, *CLUSTERS, "dgx1-p100:2"])
def test_a_name_is_no_file(name):
    assert not catalogue.is_file(name)


def test_a_shipped_profile_serves_any_number_of_nodes():
    cluster = catalogue.cluster("dgx1-v100:4")
    assert catalogue.profile_for("dgx1-v100:4", cluster, []) == catalogue.profile("dgx1-v100")


def test_a_machine_nobody_measured_has_an_empty_profile(tmp_path):
    raw = files.plain(catalogue.cluster("dgx1-p100")) | {"name": "lab"}
    raw["device"]["name"] = "P200"
    cluster = files.convert(raw, Cluster, where="lab")
    files.write(tmp_path / "lab.toml", cluster)
    found = catalogue.profile_for(str(tmp_path / "lab.toml"), cluster, [])
    assert found == Profile(name="nominal lab", cluster=cluster)


def test_another_machine_with_a_known_device_gets_its_costs_but_not_its_curves(tmp_path):
    shipped = catalogue.profile("dgx-a100")
    assert shipped.curves
    cluster = files.convert(files.plain(shipped.cluster) | {"name": "lab"}, Cluster, where="lab")
    files.write(tmp_path / "lab.toml", cluster)
    found = catalogue.profile_for(str(tmp_path / "lab.toml"), cluster, [])
    assert (found.host, found.library, found.links) == (shipped.host, shipped.library, shipped.links)
    assert found.curves == ()
    # rates are those of the machine that they were found on; the network scales them to this one's nominal rates
    assert found.cluster == shipped.cluster


def test_a_profile_of_another_device_is_refused():
    with pytest.raises(FileError, match=r"speaks of NVIDIA V100.*, but cluster 'dgx1-p100' has NVIDIA P100"):
        catalogue.profile_for("dgx1-p100", catalogue.cluster("dgx1-p100"), ["dgx1-v100"])


@pytest.mark.parametrize("name", ["dgx1-p100", "mlp"])
def test_toml_to_start_from_keeps_the_units_and_comments_of_the_shipped_file(name):
    text = showing.as_file(name, showing.find(name))
    what = "cluster" if name in CLUSTERS else "workload"
    assert text == catalogue.text(what, name)


def test_toml_of_joined_nodes_has_as_many_nodes():
    text = showing.as_file("dgx1-p100:3", showing.find("dgx1-p100:3"))
    found = files.parse(text.encode(), Cluster, where="", toml=True)
    assert found == catalogue.cluster("dgx1-p100:3")
