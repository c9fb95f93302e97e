"""Ways through one node's graph, and through flat graphs of several hosts whose network's switches are written out."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from graphs import cluster, flat, link, links, vertex_kind
from hypothesis import given, settings
from strategies import cases

from simgd import files
from simgd.errors import ClusterError
from simgd.fabrics import fabric, placement
from simgd.routes import NodeRoutes, Way, usable_rates
from simgd.topology import Cluster
from simgd.units import Rate

CLUSTERS = Path(__file__).parent.parent / "simgd" / "data" / "clusters"


def shipped(name: str) -> Cluster:
    return files.read(CLUSTERS / f"{name}.toml", Cluster)


def routes(of: Cluster) -> NodeRoutes:
    return NodeRoutes(of, [float(each.bandwidth) * each.count for each in of.links])


def crossed(of: NodeRoutes, way: Way | None) -> dict[str, float]:
    """What part of a message each link carries, by name."""
    assert way is not None
    return {"{}>{}".format(*of.names[at]): share for at, share in zip(way.resources, way.weights, strict=True)}


# --- inside a host -----------------------------------------------------------------------------------------------


def test_a_direct_link_comes_before_nvswitches_and_these_before_the_host() -> None:
    found = routes(cluster("g0-g1 g0-v0 g1-v0 g2-v0 g0-p0 g1-p0 g2-p0 g3-p0"))
    assert crossed(found, found.between("g0", "g1")) == {"g0>g1": 1.0}
    assert crossed(found, found.between("g0", "g2")) == {"g0>v0": 1.0, "v0>g2": 1.0}
    assert crossed(found, found.between("g0", "g3")) == {"g0>p0": 1.0, "p0>g3": 1.0}
    assert [found.between("g0", other).kind for other in ("g1", "g2", "g3")] == ["nvlink", "nvlink", "pcie"]


def test_nvlink_is_preferred_to_another_direct_link() -> None:
    found = routes(cluster(link("g0-g1", 9.0, "pcie"), link("g0-g1", 1.0, "nvlink")))
    way = found.between("g0", "g1")
    assert (way.kind, [found.capacity[resource] for resource in way.resources]) == ("nvlink", [1.0])


def test_devices_pass_nothing_on() -> None:
    # g0 and g2 each have a link to g1, and the host between them
    found = routes(cluster("g0-g1 g1-g2 g0-s0 g2-s0"))
    assert crossed(found, found.between("g0", "g2")) == {"g0>s0": 1.0, "s0>g2": 1.0}


def test_a_way_through_the_host_rises_only_as_far_as_it_must() -> None:
    # DGX-1: GPUs 0 and 1 on one PCIe switch, 2 on another of the same socket
    found = routes(shipped("dgx1-p100"))
    assert crossed(found, found.hosted("gpu0", "gpu1")) == {"gpu0>pcie0": 1.0, "pcie0>gpu1": 1.0}
    below = ["gpu0>pcie0", "pcie0>socket0", "socket0>pcie1", "pcie1>gpu2"]
    assert list(crossed(found, found.hosted("gpu0", "gpu2"))) == below


def test_a_pair_without_a_link_of_its_own_goes_through_the_host() -> None:
    # DGX-1: GPU 0 is linked to GPUs 1 to 4; 5 is on the other socket
    found = routes(shipped("dgx1-p100"))
    way = found.between("gpu0", "gpu5")
    between = ["gpu0>pcie0", "pcie0>socket0", "socket0>socket1", "socket1>pcie2", "pcie2>gpu5"]
    assert (list(crossed(found, way)), way.kind) == (between, "pcie")
    assert found.between("gpu0", "gpu4").kind == "nvlink"


def test_of_ways_with_as_few_hops_the_host_takes_the_widest() -> None:
    # by p0 the second hop has 1; by p1 both have 8
    found = routes(cluster(link("g0-p0", 16.0), link("p0-g1", 1.0), links("g0-p1 p1-g1", 8.0)))
    assert crossed(found, found.between("g0", "g1")) == {"g0>p1": 1.0, "p1>g1": 1.0}
    assert crossed(found, found.between("g1", "g0")) == {"g1>p1": 1.0, "p1>g0": 1.0}


def test_both_directions_of_a_half_duplex_link_are_one_resource() -> None:
    # two half-duplex links of unlike kinds, written the one from g0 and the other from g1
    half = (link("g0-g1", 1.0, "nvlink", duplex="half"), link("g1-g0", 1.0, "pcie", duplex="half"))
    found = routes(cluster(*half))
    assert found.between("g0", "g1").resources == found.between("g1", "g0").resources == (0,)
    assert [found.is_full_duplex(resource) for resource in range(2)] == [False, False]
    full = routes(cluster("g0-g1"))
    assert full.between("g0", "g1").resources != full.between("g1", "g0").resources
    assert full.is_full_duplex(0)


def test_boards_of_a_dgx2_are_joined_by_the_trunks_of_their_nvswitches() -> None:
    found = routes(shipped("dgx2-v100"))
    # six NVLinks into the board's six switches, eight links from each of them to its counterpart
    near, far = found.between("gpu0", "gpu7"), found.between("gpu0", "gpu8")
    assert near.weights == pytest.approx([1 / 6] * 12)
    assert far.weights == pytest.approx([1 / 6] * 18)
    trunks = {name for name in crossed(found, far) if name.count("nvswitch") == 2}
    assert trunks == {f"nvswitch{board}>nvswitch{board + 6}" for board in range(6)}
    trunk = found.names.index(("nvswitch0", "nvswitch6"))
    assert found.capacity[trunk] == 8 * 25e9


def test_gpus_of_an_nvl72_reach_each_other_over_all_nvswitches_whatever_their_tray() -> None:
    found = routes(shipped("gb200-nvl72"))
    for other in ("gpu1", "gpu71"):
        way = found.between("gpu0", other)
        assert (way.kind, len(way.resources)) == ("nvlink", 2 * 18)
        assert way.weights == pytest.approx([1 / 18] * 36)


def test_links_into_nvswitches_are_used_by_their_width() -> None:
    # DGX H100: 5, 4, 4 and 5 of 18 links
    found = routes(shipped("dgx-h100"))
    out, back = found.port("gpu3", back=False), found.port("gpu3", back=True)
    assert out.weights == back.weights == pytest.approx([5 / 18, 4 / 18, 4 / 18, 5 / 18])
    assert [found.names[at] for at in out.resources] == [found.names[at][::-1] for at in back.resources]


def test_a_device_reaches_the_memory_of_its_own_socket() -> None:
    found = routes(shipped("dgx1-p100"))
    assert list(crossed(found, found.memory("gpu5", back=False))) == ["gpu5>pcie2", "pcie2>socket1"]
    assert list(crossed(found, found.memory("gpu5", back=True))) == ["socket1>pcie2", "pcie2>gpu5"]
    with pytest.raises(ClusterError, match="g0 reaches no socket, and so no host's memory"):
        routes(cluster("g0-p0 g1-p0")).memory("g0", back=False)


def test_rates_of_a_kind_speak_of_one_cable_of_its_fastest_link() -> None:
    # "pcie" reaches 12 of 16, so 6 of 8, with two cables 12; twice as fast; nobody said what sockets reach: half
    of = cluster(link("g0-p0", 16.0), link("p0-s0", 8.0, count=2), link("s0-s1", 10.0))
    assert usable_rates(of, {"pcie": 12.0}, {}, 0.5) == (12.0, 12.0, 5.0)
    assert usable_rates(of, {"pcie": 12.0}, {"pcie": 2.0}, 0.5) == (24.0, 24.0, 5.0)


# --- to the network ----------------------------------------------------------------------------------------------


def test_a_message_leaves_by_the_nearest_nics_alike() -> None:
    # n0 and n1 are at g0's PCIe switch, n2 at the socket
    found = routes(cluster("g0-p0 n0-p0 n1-p0 p0-s0 n2-s0 g1-s0"))
    out = found.out("g0")
    assert out.nics == ((0, 0.5), (1, 0.5))
    assert crossed(found, out) == {"g0>p0": 1.0, "p0>n0": 0.5, "p0>n1": 0.5}
    assert crossed(found, found.into("g0")) == {"p0>g0": 1.0, "n0>p0": 0.5, "n1>p0": 0.5}
    assert found.out("g1").nics == ((2, 1.0),)


def test_a_device_that_reaches_nics_only_through_others_is_an_error() -> None:
    found = routes(cluster("g0-g1 g1-n0"))
    with pytest.raises(ClusterError) as error:
        found.out("g0")
    assert str(error.value) == "cluster 'lab': no path from g0 to a nic without other devices between"


TWO_HOSTS = """
format = "simgd cluster"
version = 1
name = "two"
links = [
    {ends = ["a", "a/nic"], kind = "pcie", bandwidth = "32 GB/s"},
    {ends = ["a/nic", "leaf0"], kind = "ethernet", bandwidth = "100 Gb/s"},
    {ends = ["leaf0", "spine0"], kind = "ethernet", bandwidth = "100 Gb/s", count = 1},
    {ends = ["leaf0", "spine1"], kind = "ethernet", bandwidth = "100 Gb/s", count = 3},
    {ends = ["leaf1", "spine0"], kind = "ethernet", bandwidth = "100 Gb/s", count = 3},
    {ends = ["leaf1", "spine1"], kind = "ethernet", bandwidth = "100 Gb/s", count = 3},
    {ends = ["leaf1", "b/nic"], kind = "ethernet", bandwidth = "100 Gb/s"},
    {ends = ["b/nic", "b"], kind = "pcie", bandwidth = "32 GB/s"},
]

[device]
name = "one"
kind = "gpu"
memory = "1 GB"
memory_rate = "1 GB/s"
fp32 = "1 TFLOP/s"

[vertices]
a = "device"
"a/nic" = "nic"
b = "device"
"b/nic" = "nic"
leaf0 = "switch"
leaf1 = "switch"
spine0 = "switch"
spine1 = "switch"
"""


def test_messages_spread_over_equally_short_ways_by_their_width() -> None:
    of = files.parse(TWO_HOSTS.encode(), Cluster, where="two.toml", toml=True)
    found = routes(of)
    way = found.between("a", "b")
    # one cable of leaf0's four goes to spine0
    assert crossed(found, way) == {
        "a>a/nic": 1.0,
        "a/nic>leaf0": 1.0,
        "leaf0>spine0": 0.25,
        "leaf0>spine1": 0.75,
        "spine0>leaf1": 0.25,
        "spine1>leaf1": 0.75,
        "leaf1>b/nic": 1.0,
        "b/nic>b": 1.0,
    }
    assert way.kind == "net"


#: Two hosts of two devices, two lowest switches, two spines.
ECMP = "Ag0-An0 Ag1-An0 An0-w0 w0-w8 w0-w9 w8-w1 w9-w1 w1-Bn0 Bn0-Bg0 Bn0-Bg1"


def test_static_routing_takes_one_way_by_the_number_of_its_target() -> None:
    # devices are Ag0, Ag1, Bg0 and Bg1, whatever stands between them: targets 2 and 3 take spines 0 and 1
    for of in (cluster(ECMP, routing="static"), shuffled(cluster(ECMP, routing="static"))):
        found = routes(of)
        spines = {
            target: [name for name in crossed(found, found.between("Ag0", target)) if name.startswith("w0>")]
            for target in ("Bg0", "Bg1")
        }
        assert spines == {"Bg0": ["w0>w8"], "Bg1": ["w0>w9"]}
        assert set(found.between("Ag0", "Bg0").weights) == {1.0}


def shuffled(of: Cluster) -> Cluster:
    """The same with each device before a vertex of another kind."""
    others = [name for name in of.vertices if name not in of.devices]
    names = [name for pair in zip(of.devices, others, strict=False) for name in pair] + others[len(of.devices) :]
    fields = {name: getattr(of, name) for name in of.__struct_fields__}
    return Cluster(**fields | {"vertices": {name: of.vertices[name] for name in names}})


def test_static_routing_uses_every_way_where_there_are_several_choices_one_after_another() -> None:
    # w0 chooses w1 or w2, each of these one of two, all meet in w7: four ways for four targets
    hosts = "Ag0-An0 An0-w0 Bg0-Bn0 Bg1-Bn0 Bg2-Bn0 Bg3-Bn0 Bn0-w7"
    tree = "w0-w1 w0-w2 w1-w3 w1-w4 w2-w5 w2-w6 w3-w7 w4-w7 w5-w7 w6-w7"
    found = routes(cluster(hosts, tree, routing="static"))
    last = {
        name
        for target in range(4)
        for name in crossed(found, found.between("Ag0", f"Bg{target}"))
        if name.endswith(">w7")
    }
    assert last == {"w3>w7", "w4>w7", "w5>w7", "w6>w7"}


def test_several_near_nics_share_a_message_under_either_routing() -> None:
    for routing in ("adaptive", "static"):
        found = routes(cluster("Ag0-Ap0 Ap0-An0 Ap0-An1 An0-w0 An1-w0 w0-Bn0 Bn0-Bg0", routing=routing))
        way = crossed(found, found.between("Ag0", "Bg0"))
        assert (way["An0>w0"], way["An1>w0"], way["w0>Bn0"]) == (0.5, 0.5, 1.0)
        back = crossed(found, found.between("Bg0", "Ag0"))
        assert (back["w0>An0"], back["w0>An1"], back["Ap0>Ag0"]) == (0.5, 0.5, 1.0)


def test_the_nearest_nic_is_used_although_another_has_a_shorter_way_to_the_target() -> None:
    # by n0 three switches, by n1, behind the socket, one
    found = routes(cluster("Ag0-Ap0 Ap0-An0 Ap0-As0 As0-An1 An0-w0 w0-w9 w9-w1 An1-w1 w1-Bn0 Bn0-Bg0"))
    way = crossed(found, found.between("Ag0", "Bg0"))
    assert list(way) == ["Ag0>Ap0", "Ap0>An0", "An0>w0", "w0>w9", "w9>w1", "w1>Bn0", "Bn0>Bg0"]


def test_a_message_stays_on_its_rail() -> None:
    # both hosts have a NIC at each of two switches, which a third joins
    found = routes(cluster("Ag0-An0 Ag0-An1 An0-w0 An1-w1 w0-w9 w1-w9 Bn0-w0 Bn1-w1 Bn0-Bg0 Bn1-Bg0"))
    way = crossed(found, found.between("Ag0", "Bg0"))
    assert set(way.values()) == {0.5}
    assert not any("w9" in name for name in way)


def test_a_nic_that_does_not_lead_to_the_target_is_left_out() -> None:
    # n1 leads to host C only
    found = routes(cluster("Ag0-An0 Ag0-An1 An0-w0 An1-w1 Bn0-w0 Bn0-Bg0 Cn0-w1 Cn0-Cg0"))
    assert list(crossed(found, found.between("Ag0", "Bg0"))) == ["Ag0>An0", "An0>w0", "w0>Bn0", "Bn0>Bg0"]
    # n0, the nearest, has no cable at all
    found = routes(cluster("Ag0-Ap0 Ap0-An0 Ap0-As0 As0-An1 An1-w0 Bn0-w0 Bn0-Bg0"))
    assert "As0>An1" in crossed(found, found.between("Ag0", "Bg0"))


def test_hosts_can_be_joined_without_switches_or_nics() -> None:
    found = routes(cluster("Ag0-An0 An0-Bn0 Bn0-Bg0"))
    assert list(crossed(found, found.between("Ag0", "Bg0"))) == ["Ag0>An0", "An0>Bn0", "Bn0>Bg0"]
    found = routes(cluster("Ag0-Bg0"))
    assert (crossed(found, found.between("Ag0", "Bg0")), found.between("Ag0", "Bg0").kind) == ({"Ag0>Bg0": 1.0}, "net")
    found = routes(cluster("Ag0-w0 w0-Bg0"))
    assert list(crossed(found, found.between("Ag0", "Bg0"))) == ["Ag0>w0", "w0>Bg0"]


def test_hosts_that_only_another_host_joins_are_a_one_line_error() -> None:
    found = routes(cluster("Ag0-Bg0 Bg0-Cg0"))
    with pytest.raises(ClusterError) as error:
        found.between("Ag0", "Cg0")
    assert str(error.value) == "cluster 'lab': no route from Ag0 to Cg0 without other devices between"
    # B has a NIC at each of two networks, and passes nothing on
    found = routes(cluster("Ag0-An0 An0-w0 Bn0-w0 Bn0-Bg0 Bn1-Bg0 Bn1-w1 Cn0-w1 Cg0-Cn0"))
    with pytest.raises(ClusterError, match="no route from Ag0 to Cg0"):
        found.between("Ag0", "Cg0")


def test_hosts_that_no_network_joins_are_a_one_line_error() -> None:
    with pytest.raises(ClusterError) as error:
        cluster("Ag0-An0 An0-w0 Bg0-Bn0 Bn0-w1")
    assert str(error.value) == "cluster 'lab': no path from 'Ag0' to 'Bg0'; every vertex must be linked"


def test_the_cables_of_a_nic_into_explicit_switches_add_up() -> None:
    of = cluster("Ag0-An0 w0-Bn0 Bn0-Bg0", link("An0-w0", 2.0), link("An0-w1", 3.0), "w1-w0")
    assert [routes(of).nic_bytes_per_s(0, back=back) for back in (False, True)] == [5.0, 5.0]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda: link("g0-p0", 0.0), "link g0-p0: bandwidth is 0.0; it must be above 0"),
        (lambda: link("g0-p0", -2.0), "link g0-p0: bandwidth is -2.0; it must be above 0"),
        (lambda: link("g0-p0", float("nan")), "link g0-p0: bandwidth is nan; it must be above 0"),
        (lambda: link("g0-p0", count=0), "link g0-p0: count is 0; it must be above 0"),
        (lambda: cluster("g0-p0 p0-g0"), "cluster 'lab': link 'pcie g0-p0' stands twice"),
        (lambda: cluster("p0-s0"), "cluster 'lab': has no vertex of kind 'device'"),
    ],
)
def test_impossible_links_are_one_line_errors(bad: Callable[[], object], message: str) -> None:
    with pytest.raises(ClusterError) as error:
        bad()
    assert str(error.value) == message


# --- laws --------------------------------------------------------------------------------------------------------


@given(cases(flat))
@settings(deadline=None)
def test_what_flows_into_a_vertex_flows_out_of_it_and_devices_pass_nothing_on(of: Cluster) -> None:
    found = routes(of)
    for a in of.devices:
        for b in of.devices:
            if a == b:
                continue
            into: dict[str, float] = defaultdict(float)
            out: dict[str, float] = defaultdict(float)
            way = found.between(a, b)
            for resource, share in zip(way.resources, way.weights, strict=True):
                start, end = found.names[resource]
                out[start] += share
                into[end] += share
            assert len(set(way.resources)) == len(way.resources)
            assert [out[a], into[b]] == pytest.approx([1.0, 1.0])
            assert into[a] == out[b] == 0.0
            for name in {*into, *out} - {a, b}:
                assert vertex_kind(name) != "device"
                assert into[name] == pytest.approx(out[name])
            assert way.kind == ("pcie" if found.hosts[a] == found.hosts[b] else "net")


@given(cases(flat))
@settings(deadline=None)
def test_a_message_to_another_host_uses_no_more_hops_in_it_than_its_nearest_nic_needs(of: Cluster) -> None:
    found = routes(of)
    for a in of.devices:
        near = found.nearest_nics(a)
        for b in of.devices:
            if found.hosts[a] != found.hosts[b]:
                used = {found.names[resource] for resource in found.between(a, b).resources}
                left = {start for start, end in used if vertex_kind(start) == "nic" and vertex_kind(end) == "switch"}
                assert left == set(near)  # every NIC is joined to all switches here


def tree(rng: Random) -> Cluster:
    """A host whose devices hang in a random tree of PCIe switches."""
    made = [f"p{rng.randrange(at)}-p{at}" for at in range(1, rng.randint(2, 7))]
    made += [f"g{device}-p{rng.randrange(len(made) + 1)}" for device in range(rng.randint(2, 8))]
    return cluster(*(link(ends, rng.choice([1.0, 2.0])) for ends in made))


@given(cases(tree))
@settings(deadline=None)
def test_visited_depth_first_devices_cross_each_link_of_a_tree_at_most_once_each_way(of: Cluster) -> None:
    found = routes(of)
    order = found.depth_first(of.devices)
    assert sorted(order) == sorted(of.devices)
    used = [
        resource
        for a, b in zip(order, (*order[1:], order[0]), strict=True)
        for resource in found.between(a, b).resources
    ]
    assert len(set(used)) == len(used)


@given(cases(flat))
@settings(deadline=None)
def test_one_rate_belongs_to_each_direction_of_a_link(of: Cluster) -> None:
    found = routes(of)
    assert len(found.names) == len(found.capacity) == len(found.link_kinds) == 2 * len(of.links)
    rates = {each.ends: Rate(each.bandwidth) for each in of.links}
    for (a, b), rate in zip(found.names, found.capacity, strict=True):
        assert rate == rates.get((a, b), rates.get((b, a)))


def test_explicit_switches_are_counted_and_each_beyond_the_first_adds_its_latency() -> None:
    own = files.read(Path(__file__).parent / "data" / "own-machine.toml", Cluster)
    found = routes(own)
    crossed_by = {(a, b): found.between(a, b).switches for a in own.devices for b in own.devices if a != b}
    assert crossed_by["big/gpu0", "big/gpu3"] == 0
    assert crossed_by["big/gpu0", "pair/gpu1"] == 1  # leaf0
    assert crossed_by["pair/gpu0", "cards/gpu1"] == 3  # leaf0, a spine, leaf1
    # every cable of this network has 200 ns
    assert fabric(own, placement(own, own.size)).net_extra_s == pytest.approx(2 * 200e-9)
