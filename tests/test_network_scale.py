"""What is found once serves every network of a machine, and what is found does not depend on how it was gathered."""

import numpy as np
import pytest

from simgd import algorithms, catalogue, fabrics
from simgd.job import Job
from simgd.network import Network
from simgd.predict import Machine
from simgd.wiring import Wiring

DGX = catalogue.cluster("dgx-h100:2")
PROFILE = catalogue.profile_for("dgx-h100:2", DGX, [])


def test_all_ranks_and_schedules_of_a_machine_ask_one_network() -> None:
    machine = Machine(DGX, PROFILE)
    assert machine.network() is machine.network()
    job = Job(workload=catalogue.workload("alexnet"), batch=8, tokens=0)
    assert machine.prices(job, 16).network is machine.prices(job, 8).network is machine.network()


def test_a_what_if_has_a_network_of_its_own_and_everybody_who_asks_for_it_the_same() -> None:
    plain = Network(DGX, PROFILE)
    faster = plain.scaled({"nvlink": 2.0})
    assert plain.scaled({}) is plain
    assert plain.scaled({"nvlink": 2.0}) is faster
    assert faster.fabric(8).ring_bytes_per_s == pytest.approx(2 * plain.fabric(8).ring_bytes_per_s)
    # factors multiply
    assert faster.scaled({"nvlink": 3.0}).fabric(8).ring_bytes_per_s == pytest.approx(
        6 * plain.fabric(8).ring_bytes_per_s
    )


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
