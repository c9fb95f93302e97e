"""The network between nodes: which cables messages cross in fat trees and dragonflies whose cables are counted here."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simgd.errors import ClusterError
from simgd.interconnects import Net
from simgd.topology import Interconnect
from simgd.units import Bytes, Rate, Seconds


def net(nodes: int, nics: int = 1, routing: str = "adaptive", **fields: object) -> Net:
    joint = Interconnect(kind="infiniband", bandwidth=Rate(1.0), latency=Seconds(0.0), **fields)  # type: ignore[arg-type]
    return Net(joint, nodes, nics, routing)


def crossed(of: Net, source: int, target: int) -> list[str]:
    """The names of what one message crosses."""
    routes = of.routes(np.array([source]), np.array([target]))
    assert routes.weight.tolist() == [1.0] * len(routes.weight)
    return [of.name(resource) for resource in routes.resource.tolist()]


def switches(of: Net, source: int, target: int) -> int:
    return int(of.switches(np.array([source]), np.array([target]))[0])


def loads(of: Net, pairs: dict[int, int]) -> dict[str, float]:
    """How many messages of each cable of a NIC's rate share it, by name, while all *pairs* send at once."""
    routes = of.routes(np.array(list(pairs), np.int64), np.array(list(pairs.values()), np.int64))
    carried = np.bincount(routes.resource, routes.weight, len(of.cables)) / of.cables
    return {of.name(resource): float(carried[resource]) for resource in np.flatnonzero(carried).tolist()}


def test_nics_that_fit_one_switch_cross_only_that() -> None:
    one = net(4, ports=4)
    assert one.cables.tolist() == [1.0] * (4 + 4)
    assert crossed(one, 0, 3) == ["node0/nic0 to its switch", "node3/nic0 from its switch"]
    assert switches(one, 0, 3) == 1


def test_a_tree_of_two_levels_has_every_lowest_switch_below_every_upper_one() -> None:
    # switches of 4 ports: 2 nodes below each lowest one, so 4 of these, and 2 cables up from each
    two = net(8, ports=4)
    assert two.cables.tolist() == [1.0] * 16 + [2.0] * (4 + 4)
    assert (crossed(two, 0, 1), switches(two, 0, 1)) == (["node0/nic0 to its switch", "node1/nic0 from its switch"], 1)
    assert crossed(two, 0, 7)[2:] == ["switch0 up", "switch3 down"]
    assert switches(two, 0, 7) == 3


def test_a_tree_of_three_levels_joins_pods_by_a_core() -> None:
    # k = 4: k^3/4 = 16 nodes, 8 lowest switches, 4 pods of 2, each with 2 upper switches of 2 cables to the core
    three = net(16, ports=4)
    assert three.cables.tolist() == [1.0] * 32 + [2.0] * (8 + 8) + [4.0] * (4 + 4)
    assert (crossed(three, 0, 3)[2:], switches(three, 0, 3)) == (["switch0 up", "switch1 down"], 3)
    assert crossed(three, 0, 15)[2:] == ["switch0 up", "switch7 down", "pod0 up", "pod3 down"]
    assert switches(three, 0, 15) == 5


def test_levels_beyond_three_only_add_switches() -> None:
    # k = 4: three levels join 16 nodes, four 32, so the 33rd needs a fifth: 9 switches there and back
    assert [switches(net(nodes, ports=4), 0, nodes - 1) for nodes in (16, 17, 32, 33)] == [5, 7, 7, 9]


@pytest.mark.parametrize(("oversubscription", "below", "load"), [(1, 3, 1.0), (2, 4, 2.0), (5, 5, 5.0)])
def test_oversubscription_divides_what_the_nodes_of_a_switch_reach_together(
    oversubscription: float, below: int, load: float
) -> None:
    # 6 ports: 3 down and 3 up, 4 and 2, or 5 and 1
    tree = net(12, ports=6, oversubscription=oversubscription)
    away = loads(tree, {node: node + below for node in range(below)})
    assert away["switch0 up"] == away["switch1 down"] == load
    assert max(loads(tree, {0: 1, 1: 0}).values()) == 1.0  # below one switch nothing is shared


def test_an_oversubscription_that_ports_do_not_allow_is_never_exceeded() -> None:
    # 36 ports, 1.5 times as many down as up: 21.6, so 21 down and 15 up (22 and 14 would be 1.57 times)
    tree = net(648, oversubscription=1.5)
    assert (tree.down, tree.up) == (21, 15)


def test_static_routes_can_collide_where_adaptive_ones_spread() -> None:
    # 4 ports, so two cables up: 0 sends to 4 and 1 to 6, both even, so both by cable 0
    pairs = {0: 4, 1: 6}
    static, adaptive = (loads(net(8, routing=routing, ports=4), pairs) for routing in ("static", "adaptive"))
    assert static["switch0 up, cable 0"] == 2.0
    assert "switch0 up, cable 1" not in static
    assert adaptive["switch0 up"] == 1.0
    # 0 to 4 and 1 to 7 part
    assert max(loads(net(8, routing="static", ports=4), {0: 4, 1: 7}).values()) == 1.0


@pytest.mark.parametrize(("nodes", "fields"), [(8, {"ports": 4}), (16, {"ports": 4}), (54, {"ports": 6})])
def test_static_routes_of_a_shift_never_collide_in_a_full_tree(nodes: int, fields: dict[str, int]) -> None:
    # neighbours send to neighbours, so the numbers d below a switch are all different modulo the cables up
    tree = net(nodes, routing="static", **fields)
    for shift in range(1, nodes):
        assert max(loads(tree, {node: (node + shift) % nodes for node in range(nodes)}).values()) == 1.0


def test_static_routes_of_a_shift_never_collide_on_rails() -> None:
    # 4 rails of 8 nodes, 4 below each of a rail's 2 switches (8 ports): as many nodes as cables up
    tree = net(8, 4, routing="static", ports=8)
    for shift in range(1, 8):
        pairs = {4 * node + rail: 4 * ((node + shift) % 8) + rail for node in range(8) for rail in range(4)}
        assert max(loads(tree, pairs).values()) == 1.0


def test_joined_rails_put_all_nics_of_a_node_below_one_switch() -> None:
    # 8 ports, 4 down: one node of 3 NICs, or two of 2
    assert net(4, 3, ports=8, rails="joined").leaf(np.arange(12)).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert net(5, 2, ports=8, rails="joined").leaf(np.arange(10)).tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    # more NICs than cables down: as few switches as hold them
    assert net(2, 3, ports=4, rails="joined").leaf(np.arange(6)).tolist() == [0, 0, 1, 1, 2, 2]


def test_optimised_rails_put_equal_nics_of_several_nodes_below_one_switch() -> None:
    # 4 ports, 2 down: NIC r of nodes 0 and 1 below switch r, of nodes 2 and 3 below switch 2 + r
    rails = net(4, 2, ports=4)
    assert rails.leaf(np.arange(8)).tolist() == [0, 1, 0, 1, 2, 3, 2, 3]
    assert switches(rails, 0 * 2 + 1, 1 * 2 + 1) == 1
    assert switches(rails, 0 * 2 + 0, 1 * 2 + 1) == 3
    # joined, node 1 is below another switch; both, where all NICs fit one
    assert switches(net(4, 2, ports=4, rails="joined"), 1, 3) == 3
    assert switches(net(2, 2, ports=4), 0, 3) == 1


def test_groups_of_a_dragonfly_share_all_their_cables_out_among_the_others() -> None:
    # 8 ports: a group is 4 lowest switches of 4 nodes and 4 upper ones with 4 cables away, 16 in all; with 3 groups
    # half of them go to either other group
    flies = net(48, ports=8, topology="dragonfly")
    assert flies.cables.tolist() == [1.0] * 96 + [4.0] * (12 + 12) + [8.0] * 9
    assert crossed(flies, 0, 47)[2:] == ["switch0 up", "switch11 down", "group0 to group2"]
    assert (switches(flies, 0, 47), switches(flies, 0, 15), switches(flies, 0, 3)) == (4, 3, 1)
    # 16 nodes that all send to the same group have 8 cables
    assert loads(flies, {node: node + 16 for node in range(16)})["group0 to group1"] == 2.0


def test_smaller_groups_of_a_dragonfly_have_more_cables_away() -> None:
    # 8 ports, groups of 8 nodes: 2 lowest switches, so 6 cables away from each of 4 upper ones: 24 for 5 others
    flies = net(48, ports=8, topology="dragonfly", group=8)
    assert (flies.pods, flies.between) == (6, 24 // 5)


def test_groups_of_a_dragonfly_that_cannot_be_joined_are_an_error() -> None:
    # 16 cables away from each group of 16, so 17 groups, 272 nodes
    assert net(272, ports=8, topology="dragonfly").between == 1
    with pytest.raises(ClusterError) as error:
        net(273, ports=8, topology="dragonfly")
    assert str(error.value) == (
        "interconnect: 18 groups of 16 nics, but switches of 8 ports join a group with 16 others at most; give larger "
        "groups or more ports"
    )
    # 8 lowest switches fill the 8 ports of the upper ones: a group for itself, and none to join with others
    assert net(32, ports=8, topology="dragonfly", group=32).pods == 1
    with pytest.raises(ClusterError, match="2 groups of 32 nics, but switches of 8 ports join a group with 0 others"):
        net(33, ports=8, topology="dragonfly", group=32)
    with pytest.raises(ClusterError) as error:
        net(33, ports=8, topology="dragonfly", group=1000)
    assert str(error.value) == (
        "interconnect: groups of 1000 nics, but two levels of switches of 8 ports join 32 at most; give smaller groups "
        "or more ports"
    )


def test_the_fullest_cable_stands_for_its_sort() -> None:
    tree = net(4, 2, ports=4)
    values = np.zeros(len(tree.cables))
    values[[0, 2, 3]] = 0.25, 0.5, 0.125  # what nodes 0 and 1 send by NICs 0, 0 and 1
    values[8 + 1] = 1.0
    values[16 + 3] = 2.0
    assert tree.folded(values, ["a", "b"]) == {
        "a>network": 0.5,
        "b>network": 0.125,
        "network>b": 1.0,
        "switch>spine": 2.0,
    }


RANGE = "it must be from 1 to below the 36 ports of a switch"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ports": 1}, "switches of 1 ports join nothing; at least 2 are needed"),
        ({"ports": 0}, "ports is 0; it must be above 0"),
        ({"oversubscription": 0.5}, f"oversubscription 0.5; {RANGE}"),
        ({"oversubscription": 36}, f"oversubscription 36; {RANGE}"),
        ({"oversubscription": float("nan")}, f"oversubscription nan; {RANGE}"),
        ({"bandwidth": Rate(0.0)}, "bandwidth is 0.0; it must be above 0"),
        ({"bandwidth": Rate(-1.0)}, "bandwidth is -1.0; it must be above 0"),
        ({"latency": Seconds(-1.0)}, "latency is -1.0; it must be 0 or more"),
        ({"group": -1}, "group is -1; it must be 0 or more"),
        ({"burst": Bytes(-1)}, "burst is -1; it must be 0 or more"),
    ],
)
def test_an_impossible_interconnect_is_a_one_line_error(fields: dict[str, object], message: str) -> None:
    right = {"kind": "infiniband", "bandwidth": Rate(1.0), "latency": Seconds(0.0)}
    with pytest.raises(ClusterError) as error:
        Interconnect(**right | fields)  # type: ignore[arg-type]
    assert str(error.value) == f"interconnect: {message}"


@st.composite
def nets(draw: st.DrawFn) -> tuple[Net, int]:
    """A network and its number of NICs."""
    ports = draw(st.integers(2, 10))
    nodes, nics = draw(st.integers(2, 40)), draw(st.integers(1, 4))
    over = draw(st.floats(1.0, ports - 0.5))
    rails = draw(st.sampled_from(["joined", "optimised"]))
    routing = draw(st.sampled_from(["static", "adaptive"]))
    found = net(nodes, nics, routing, ports=ports, oversubscription=over, rails=rails)
    if draw(st.booleans()):
        group = draw(st.integers(0, 60))
        try:
            fields = {"topology": "dragonfly", "group": group, "oversubscription": over, "rails": rails}
            found = net(nodes, nics, routing, ports=ports, **fields)
        except ClusterError:
            pass
    return found, nodes * nics


@given(nets(), st.data())
@settings(deadline=None)
def test_a_message_goes_up_once_from_its_source_and_down_once_to_its_target(
    made: tuple[Net, int], data: st.DataObject
) -> None:
    tree, size = made
    source = data.draw(st.integers(0, size - 1))
    target = data.draw(st.integers(0, size - 1).filter(lambda nic: nic != source))
    names = crossed(tree, source, target)
    start, end = divmod(source, tree.nics), divmod(target, tree.nics)
    assert names[:2] == ["node{}/nic{} to its switch".format(*start), "node{}/nic{} from its switch".format(*end)]
    a, b = (int(leaf) for leaf in tree.leaf(np.array([source, target])))
    p, q = a // tree.leaves_a_pod, b // tree.leaves_a_pod
    inner = [name.partition(",")[0] for name in names[2:]]
    # the same switches and pods above, in the order of the way up and down: what comes in at each of them goes out
    within = [] if a == b else [f"switch{a} up", f"switch{b} down"]
    if p == q:
        assert inner == within
    else:
        assert inner == within + ([f"group{p} to group{q}"] if tree.between else [f"pod{p} up", f"pod{q} down"])
    # a chain of cables has a switch between every two; levels beyond three count as switches only
    found = switches(tree, source, target)
    assert found == len(names) - 1 or (found > 5 and p != q)


@given(nets(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_every_byte_that_is_sent_passes_each_level_once(made: tuple[Net, int], random: object) -> None:
    tree, size = made
    target = list(range(size))
    random.shuffle(target)  # type: ignore[attr-defined]
    pairs = np.array([(a, b) for a, b in enumerate(target) if a != b], np.int64).reshape(-1, 2)
    routes = tree.routes(*pairs.T)
    carried = np.bincount(routes.resource, routes.weight, len(tree.cables))
    by_sort = [carried[first:end].sum() for first, end in zip(tree.first, tree.first[1:], strict=False)]
    leaf = tree.leaf(pairs)
    away = int((leaf[:, 0] != leaf[:, 1]).sum())
    far = int((leaf[:, 0] // tree.leaves_a_pod != leaf[:, 1] // tree.leaves_a_pod).sum())
    assert by_sort == [len(pairs)] * 2 + ([away] * 2 + [far] * 2)[: len(by_sort) - 2]
    # what a NIC sends and gets is all on its cable
    assert carried[: 2 * size].tolist() == [float(a != b) for a, b in enumerate(target)] + [
        float(target[b] != b) for b in range(size)
    ]


@given(nets())
@settings(deadline=None)
def test_every_resource_has_cables_and_a_name_of_its_own(made: tuple[Net, int]) -> None:
    tree, size = made
    names = [tree.name(resource) for resource in range(len(tree.cables))]
    assert len(set(names)) == len(names) == tree.first[-1]
    assert (tree.cables >= 1).all()
    assert int(tree.leaf(np.arange(size)).max()) < max(1, tree.first[3] - tree.first[2] if len(tree.first) > 3 else 1)


@given(st.sampled_from([(4, 16, 1), (6, 54, 1), (6, 24, 2)]), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_new_numbers_for_nodes_that_keep_their_place_in_the_tree_change_no_adaptive_load(
    shape: tuple[int, int, int], random: object
) -> None:
    ports, nodes, over = shape
    tree = net(nodes, ports=ports, oversubscription=over)
    # nodes change places below their switch, switches in their pod, pods with each other
    below = [list(range(first, first + tree.down)) for first in range(0, nodes, tree.down)]
    pods = [below[first : first + tree.leaves_a_pod] for first in range(0, len(below), tree.leaves_a_pod)]
    for group in (*below, *pods, pods):
        random.shuffle(group)  # type: ignore[attr-defined]
    new = [node for pod in pods for leaf in pod for node in leaf]
    target = list(range(nodes))
    random.shuffle(target)  # type: ignore[attr-defined]
    before = loads(tree, {a: b for a, b in enumerate(target) if a != b})
    after = loads(tree, {new[a]: new[b] for a, b in enumerate(target) if a != b})
    assert Counter(before.values()) == Counter(after.values())
