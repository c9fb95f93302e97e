"""What is found once serves every network of a machine, and what is found does not depend on how it was gathered."""

import numpy as np
import pytest

from simgd import algorithms, catalogue, fabrics
from simgd.network import Call, Network
from simgd.wiring import Wiring

DGX = catalogue.cluster("dgx-h100:2")
PROFILE = catalogue.profile_for("dgx-h100:2", DGX, [])


def test_networks_of_one_cluster_share_its_fabric():
    assert Network(DGX, PROFILE).fabric(16).wiring is Network(DGX, PROFILE).fabric(16).wiring


def test_networks_of_one_what_if_share_its_fabric_and_it_is_another():
    faster = [Network(DGX, PROFILE, {"nvlink": 2.0}).fabric(16) for _ in range(2)]
    assert faster[0].wiring is faster[1].wiring
    assert faster[0].wiring is not Network(DGX, PROFILE).fabric(16).wiring


def test_a_what_if_is_what_it_is_for_whoever_asks_first():
    # shared by mistake, the second would have the first one's rates
    other = catalogue.cluster("dgx-h100:2")
    doubled, usual = (Network(DGX, PROFILE, scale).fabric(8).ring_bytes_per_s for scale in ({"nvlink": 2.0}, {}))
    again = [Network(other, PROFILE, scale).fabric(8).ring_bytes_per_s for scale in ({}, {"nvlink": 2.0})]
    assert again == [usual, doubled]
    assert doubled == pytest.approx(2 * usual)


def test_networks_of_one_cluster_of_mpi_nodes_share_its_algorithms():
    cluster = catalogue.cluster("xeon-edr")
    profile = catalogue.profile_for("xeon-edr", cluster, [])
    call = Call("all_reduce", 1000, 64)
    named, fastest = (Network(cluster, profile, algorithm=name).demand(call) for name in ("ring", ""))
    assert named.algorithm == "ring"
    assert fastest.algorithm != "ring"
    assert Network(cluster, profile).demand(call) == fastest


def test_the_load_of_trees_at_once_is_the_sum_of_their_loads():
    # four trees, a quarter of the buffer each: gathered tree by tree, or all their messages as one list
    fabric = Network(DGX, PROFILE).fabric(16)
    wiring, quarter = fabric.wiring, 0.25
    trees = [algorithms.all_reduce.tree(groups) for groups, _ in fabric.channels.grouped()[:4]]
    together = fabrics.load_of(wiring, [(tree, quarter) for tree in trees])
    patterns = [next(iter(algorithms.patterns(tree))) for tree in trees]
    at_once = wiring.load_s(
        wiring.routes(
            np.concatenate([pattern.source for pattern in patterns]),
            np.concatenate([pattern.target for pattern in patterns]),
        ),
        quarter * np.concatenate([pattern.bytes_share for pattern in patterns]),
    )
    assert together.s_per_byte == pytest.approx(at_once.max())
    assert together.busy == pytest.approx(wiring.folded(at_once / at_once.max()))


def test_the_first_groups_are_those_of_the_first_channel():
    found = Network(DGX, PROFILE).fabric(16).channels
    (groups, _), *_ = found.grouped()
    assert [group.tolist() for group in found.first_groups()] == [group.tolist() for group in groups]
    assert [len(group) for group in groups] == [8, 8]


def test_kinds_of_links_are_named_once_for_all_nodes_and_the_network():
    # two nodes' links are those of the first; the network, whatever its cable, stands as the first number beyond nodes
    wiring = Wiring(DGX, fabrics.placement(DGX, 16), {}, {})
    inside = 2 * wiring.size
    found = fabrics._one_node(wiring, np.array([3, wiring.size + 3, wiring.size + 1, inside + 5, inside]))
    assert found.tolist() == [1, 3, inside]
    assert fabrics._one_node(wiring, np.array([0, 0])).tolist() == [0]
