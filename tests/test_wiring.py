"""All links of a cluster that ranks use, and what messages between ranks load them with."""

from pathlib import Path
from random import Random

import msgspec
import numpy as np
import pytest
from graphs import ONES, cluster, everywhere, flat, joint, link
from hypothesis import given, settings
from strategies import cases

from simgd import files
from simgd.errors import ClusterError
from simgd.fabrics import resized
from simgd.topology import Cluster
from simgd.units import Rate
from simgd.wiring import NOMINAL_SHARE, Place, Wiring

CLUSTERS = Path(__file__).parent.parent / "simgd" / "data" / "clusters"


def shipped(name: str, nodes: int = 1) -> Cluster:
    return resized(files.read(CLUSTERS / f"{name}.toml", Cluster), nodes)


def wired(of: Cluster, places: list[Place] | None = None) -> Wiring:
    return Wiring(of, places or everywhere(of), ONES, {})


def loads(of: Wiring, *messages: tuple[int, int, float], hosted: tuple[int, ...] = ()) -> dict[str, float]:
    """How long each link is busy with messages (source, target, bytes), by name."""
    source, target, nbytes = zip(*messages, strict=True)
    routes = of.routes(np.array(source), np.array(target), hosted=np.array(hosted, np.int64))
    seconds = of.load_s(routes, np.array(nbytes, float))
    return {of.name(resource): float(seconds[resource]) for resource in np.flatnonzero(seconds).tolist()}


#: A node of two devices, each at its own NIC.
TWO_NICS = "g0-n0 g1-n1 g0-g1"


def test_resources_are_those_of_each_node_and_then_those_of_the_network() -> None:
    of = wired(cluster("g0-n0", interconnect=joint(), nodes=2))
    assert [of.name(resource) for resource in range(len(of.capacity))] == [
        "node0/g0>n0",
        "node0/n0>g0",
        "node1/g0>n0",
        "node1/n0>g0",
        "node0/nic0 to its switch",
        "node1/nic0 to its switch",
        "node0/nic0 from its switch",
        "node1/nic0 from its switch",
    ]
    assert [of.kind(resource) for resource in range(len(of.capacity))] == ["pcie"] * 4 + ["infiniband"] * 4
    assert of.capacity.tolist() == [1.0] * 8


def test_each_hop_of_a_ring_keeps_its_link_busy_for_its_bytes() -> None:
    # links of 1, 2 and 4 bytes a second, 8 bytes a hop
    node = cluster(link("g0-g1", 1.0), link("g1-g2", 2.0), link("g0-g2", 4.0))
    of = Wiring(node, everywhere(node), {"nvlink": 4.0}, {})
    assert loads(of, (0, 1, 8.0), (1, 2, 8.0), (2, 0, 8.0)) == {"g0>g1": 8.0, "g1>g2": 4.0, "g2>g0": 2.0}
    # messages that share a link in one direction add up, those in the other do not
    assert loads(of, (0, 1, 8.0), (0, 1, 1.0), (1, 0, 3.0)) == {"g0>g1": 9.0, "g1>g0": 3.0}


def test_both_directions_of_a_half_duplex_link_add_up() -> None:
    of = wired(cluster(link("g0-p0", duplex="half"), link("g1-p0", duplex="half")))
    assert loads(of, (0, 1, 2.0), (1, 0, 3.0)) == {"g0-p0": 5.0, "g1-p0": 5.0}


def test_a_message_to_another_node_crosses_its_nics_cables_and_the_switches_between() -> None:
    # switches of 4 ports with 2 nodes below each, 2 cables up: node 0 to node 5 crosses three of them
    of = wired(cluster("g0-n0", interconnect=joint(ports=4), nodes=6))
    assert loads(of, (0, 5, 6.0)) == {
        "node0/g0>n0": 6.0,
        "node5/n0>g0": 6.0,
        "node0/nic0 to its switch": 6.0,
        "node5/nic0 from its switch": 6.0,
        "switch0 up": 3.0,
        "switch2 down": 3.0,
    }
    source = np.array([0, 0, 0])
    assert of.switches(source, np.array([0, 1, 5])).tolist() == [0, 1, 3]


def test_a_message_stays_on_its_rail_or_changes_it_in_the_network() -> None:
    # 4 ports: rails of nodes 0 and 1 below switches 0 and 1; device 1 is at NIC 1
    of = wired(cluster(TWO_NICS, interconnect=joint(ports=4), nodes=3))
    assert "switch0 up" not in loads(of, (0, 2, 1.0))
    assert loads(of, (0, 3, 4.0)) == {
        "node0/g0>n0": 4.0,
        "node1/n1>g1": 4.0,
        "node0/nic0 to its switch": 4.0,
        "node1/nic1 from its switch": 4.0,
        "switch0 up": 2.0,
        "switch1 down": 2.0,
    }
    assert of.switches(np.array([0, 0, 1]), np.array([2, 3, 3])).tolist() == [1, 3, 1]


def test_nics_that_are_equally_near_carry_a_message_together() -> None:
    # g0 is at n0 and n1, g1 at n2: to g0 of the other node a message stays on two rails, to g1 both end at n2
    node = cluster("g0-n0 g0-n1 g1-n2 g0-g1", interconnect=joint(ports=8), nodes=2)
    found = loads(wired(node), (0, 2, 4.0))
    assert {name: seconds for name, seconds in found.items() if "nic" in name} == {
        "node0/nic0 to its switch": 2.0,
        "node0/nic1 to its switch": 2.0,
        "node1/nic0 from its switch": 2.0,
        "node1/nic1 from its switch": 2.0,
    }
    found = loads(wired(node), (0, 3, 4.0))
    assert {name: seconds for name, seconds in found.items() if "nic" in name} == {
        "node0/nic0 to its switch": 2.0,
        "node0/nic1 to its switch": 2.0,
        "node1/nic2 from its switch": 4.0,
    }


def test_a_participant_that_is_no_rank_is_the_nvswitches_of_the_other_end() -> None:
    # a DGX H100: 18 links of 25 GB/s from each GPU, 5 of them into NVSwitch 0
    of = Wiring(shipped("dgx-h100", 2), everywhere(shipped("dgx-h100", 2)), {"nvlink": 25e9}, {})
    ranks = 16
    found = loads(of, (9, ranks, 18 * 25e9))
    assert found == pytest.approx({f"node1/gpu1>nvswitch{number}": 1.0 for number in range(4)})
    found = loads(of, (ranks, 9, 18 * 25e9), (ranks + 1, 0, 18 * 25e9))
    both = {f"node{node}/nvswitch{number}>gpu{node}" for node in range(2) for number in range(4)}
    assert found == pytest.approx(dict.fromkeys(both, 1.0))


def test_hosted_messages_pass_through_the_host_whatever_else_joins_their_ends() -> None:
    of = wired(cluster("g0-g1 g0-p0 g1-p0 g2-p0"))
    assert loads(of, (0, 1, 1.0), hosted=(0,)) == {"g0>p0": 1.0, "p0>g1": 1.0}
    assert loads(of, (0, 1, 1.0)) == {"g0>g1": 1.0}
    # where there is no way through the host, the other is taken
    assert loads(wired(cluster("g0-g1")), (0, 1, 1.0), hosted=(0,)) == {"g0>g1": 1.0}
    # of two nodes only the second is hosted
    two = wired(cluster("g0-g1 g0-p0 g1-p0 n0-p0", interconnect=joint(), nodes=2))
    found = loads(two, (0, 1, 1.0), (2, 3, 1.0), hosted=(1,))
    assert found == {"node0/g0>g1": 1.0, "node1/g0>p0": 1.0, "node1/p0>g1": 1.0}


def test_a_message_to_itself_loads_nothing() -> None:
    of = wired(cluster("g0-g1"))
    routes = of.routes(np.array([0, 1]), np.array([0, 1]))
    assert [len(array) for array in routes] == [0, 0, 0]
    assert of.load_s(routes, np.ones(2)).tolist() == [0.0, 0.0]


def test_rates_that_nobody_gave_are_a_share_of_nominal_ones() -> None:
    node = cluster(link("g0-n0", 10.0), interconnect=joint(bandwidth=Rate(20.0)), nodes=2)
    assert (
        Wiring(node, everywhere(node), {}, {}).capacity.tolist() == [10 * NOMINAL_SHARE] * 4 + [20 * NOMINAL_SHARE] * 4
    )
    scaled = Wiring(node, everywhere(node), {"infiniband": 15.0, "pcie": 8.0}, {"infiniband": 2.0})
    assert scaled.capacity.tolist() == [8.0] * 4 + [30.0] * 4


def test_hosts_are_numbered_in_the_order_of_ranks() -> None:
    flat_one = cluster("Ag0-An0 Ag1-An0 An0-w0 Bg0-Bn0 Bg1-Bn0 Bn0-w0")
    of = Wiring(flat_one, [Place(0, 2), Place(0, 0), Place(0, 3), Place(0, 1)], ONES, {})
    assert (of.host.tolist(), of.hosts) == ([0, 1, 0, 1], 2)
    nodes = cluster("g0-n0 g1-n0 g0-g1", interconnect=joint(), nodes=8)
    of = Wiring(nodes, [Place(7, 0), Place(2, 1), Place(7, 1)], ONES, {})
    assert (of.host.tolist(), of.nodes.tolist()) == ([0, 1, 0], [2, 7])
    assert list(loads(of, (0, 1, 1.0)))[:2] == ["node2/n0>g1", "node7/g0>n0"]


def test_ranks_on_several_nodes_need_something_that_joins_these() -> None:
    with pytest.raises(ClusterError) as error:
        Wiring(cluster("g0-g1"), [Place(0, 0), Place(1, 0)], ONES, {})
    assert str(error.value) == "cluster 'lab': has no nic and interconnect to join its nodes"


def test_the_busiest_of_all_nodes_stands_for_a_link() -> None:
    of = wired(cluster(TWO_NICS, interconnect=joint(ports=4), nodes=3))
    routes = of.routes(np.array([0, 2]), np.array([3, 5]))
    # 4 bytes leave node 0 and 1 byte node 1, both by NIC 0; they end at NIC 1 of nodes 1 and 2
    found = of.folded(of.load_s(routes, np.array([4.0, 1.0])))
    ends = {"g0>n0": 4.0, "n1>g1": 4.0, "n0>network": 4.0, "network>n1": 4.0}
    # switch 0 has both messages' 5 bytes on 2 cables up; switch 1 has 4 down, switch 3 has 1
    assert found == ends | {"switch>spine": 2.5, "spine>switch": 2.0}


def test_of_links_of_unlike_kinds_between_two_vertices_the_busier_is_named() -> None:
    of = wired(cluster(link("g0-g1", kind="nvlink"), link("g0-g1", kind="pcie")))
    assert of.folded(np.array([0.75, 0.0, 0.25, 0.5])) == {"g0>g1": 0.75, "g1>g0": 0.5}


def test_two_thousand_nodes_need_few_megabytes() -> None:
    of = shipped("dgx1-v100", 2048)
    wiring = Wiring(of, everywhere(of), {}, {})
    # a node's 16 pairs of NVLink, 8 GPUs, 4 uplinks, 4 NICs and the sockets, in two directions; in the network 2 cables
    # of each NIC, and less than one resource for each of those above
    links = 2 * (16 + 8 + 4 + 4 + 1)
    assert links == 2 * len(of.links)
    assert 2048 * (links + 8) < len(wiring.capacity) < 2048 * (links + 9)
    assert wiring.capacity.nbytes < 2e6
    ranks = len(wiring.device)
    routes = wiring.routes(np.arange(ranks), np.roll(np.arange(ranks), -1))
    # 7 of 8 hops cross one NVLink, or 5 links through the host; those between nodes 6 links and at most 6 cables
    assert len(routes.flow) < 10 * ranks
    assert sum(array.nbytes for array in routes) < 4e6
    assert wiring.load_s(routes, np.ones(ranks)).shape == wiring.capacity.shape


def test_only_nodes_in_use_have_resources_inside() -> None:
    of = shipped("dgx1-v100", 2048)
    wiring = Wiring(of, [Place(0, 0), Place(2047, 0)], {}, {})
    assert wiring.net is not None
    assert len(wiring.capacity) - len(wiring.net.cables) == 2 * 2 * len(of.links)


def node(rng: Random) -> Cluster:
    """Several nodes of devices and NICs in a random tree of PCIe switches."""
    made = [f"p{rng.randrange(at)}-p{at}" for at in range(1, rng.randint(2, 5))]
    switches = len(made) + 1
    made += [f"g{device}-p{rng.randrange(switches)}" for device in range(rng.randint(1, 4))]
    made += [f"n{nic}-p{rng.randrange(switches)}" for nic in range(rng.randint(1, 4))]
    net = joint(
        ports=rng.randint(2, 8),
        rails=rng.choice(["joined", "optimised"]),
        oversubscription=rng.choice([1.0, 1.5]),
    )
    return cluster(
        " ".join(made), interconnect=net, nodes=rng.randint(2, 9), routing=rng.choice(["static", "adaptive"])
    )


@given(cases(lambda rng: (node(rng), rng)))
@settings(deadline=None)
def test_every_message_leaves_and_comes_in_once_whatever_nics_it_uses(made: tuple[Cluster, Random]) -> None:
    of, rng = made
    wiring = wired(of)
    ranks = len(wiring.device)
    target = list(range(ranks))
    rng.shuffle(target)
    source, ends = np.arange(ranks), np.array(target)
    routes = wiring.routes(source, ends)
    away = wiring.node[source] != wiring.node[ends]
    assert wiring.net is not None
    first = len(wiring.nodes) * wiring.size + wiring.net.first
    for sort in (0, 1):
        cables = (routes.resource >= first[sort]) & (routes.resource < first[sort + 1])
        passed = np.bincount(routes.flow[cables], routes.weight[cables], ranks)
        assert passed == pytest.approx(away.astype(float))
    # what leaves a device's links, what comes in at them
    names = [wiring.inside.names[resource] for resource in range(wiring.size)]
    inside = routes.resource < len(wiring.nodes) * wiring.size
    link_of = routes.resource[inside] % wiring.size
    for end in (0, 1):
        at_device = np.array([name[end].startswith("g") for name in names])[link_of]
        passed = np.bincount(routes.flow[inside][at_device], routes.weight[inside][at_device], ranks)
        assert passed == pytest.approx((source != ends).astype(float))


@given(cases(lambda rng: (rng.choice([node, flat])(rng), rng)))
@settings(deadline=None)
def test_loads_of_messages_add_up(made: tuple[Cluster, Random]) -> None:
    of, rng = made
    wiring = wired(of)
    ranks = len(wiring.device)
    source, target = (np.array([rng.randrange(ranks) for _ in range(6)]) for _ in range(2))
    nbytes = np.array([float(rng.randint(0, 9)) for _ in range(6)])
    whole = wiring.load_s(wiring.routes(source, target), nbytes)
    parts = [
        wiring.load_s(wiring.routes(source[some], target[some]), nbytes[some]) for some in (slice(0, 2), slice(2, 6))
    ]
    assert whole == pytest.approx(sum(parts))
    assert len(wiring.capacity) == len({wiring.name(resource) for resource in range(len(wiring.capacity))})


# --- all pairs at once -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "nodes", "network"),
    [
        ("dgx1-p100", 1, {}),
        ("dgx-a100", 3, {}),
        ("pcie-box", 2, {}),
        ("dgx1-v100", 24, {"ports": 8}),
        ("dgx1-v100", 24, {"ports": 8, "oversubscription": 3.0}),
        ("dgx1-v100", 24, {"ports": 8, "rails": "joined"}),
        ("dgx1-v100", 24, {"ports": 8, "topology": "dragonfly"}),
        ("dgx1-v100", 24, {"ports": 8, "topology": "dragonfly", "group": 8, "rails": "joined"}),
        ("dgx-h100", 9, {"ports": 4}),
    ],
)
def test_all_pairs_load_every_link_as_their_messages_one_by_one_do(
    name: str, nodes: int, network: dict[str, object]
) -> None:
    one = shipped(name, nodes)
    assert one.interconnect is not None
    of = wired(msgspec.structs.replace(one, interconnect=msgspec.structs.replace(one.interconnect, **network)))
    ranks = len(of.device)
    source, target = np.divmod(np.arange(ranks**2), ranks)
    other = source != target
    messages = of.routes(source[other], target[other])
    assert of.is_even
    np.testing.assert_allclose(of.all_pairs_s(), of.load_s(messages, np.ones(other.sum())), rtol=1e-9, atol=1e-18)


def test_nodes_are_even_only_with_the_same_devices_and_messages_that_spread() -> None:
    two = shipped("dgx-a100", 2)
    assert wired(two).is_even
    assert wired(two, [Place(0, 1), Place(1, 1)]).is_even
    assert not wired(two, [Place(0, 1), Place(1, 2)]).is_even
    assert not wired(two, [Place(0, 1), Place(0, 2), Place(1, 1)]).is_even
    assert not wired(msgspec.structs.replace(two, routing="static")).is_even
