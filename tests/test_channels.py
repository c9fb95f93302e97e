"""Rings through all ranks: in hosts that differ, by several NICs, and against a linear program over all paths."""

import itertools
from random import Random

import numpy as np
import pytest
from graphs import ONES, cluster, everywhere, flat, joint, link
from hypothesis import given, settings
from scipy.optimize import linprog
from strategies import cases

from simgd import catalogue
from simgd.channels import Channels, channels
from simgd.errors import ClusterError
from simgd.fabrics import fabric, placement, resized
from simgd.rings import Gate, best_rings
from simgd.topology import Cluster
from simgd.wiring import Place, Wiring

#: Every two of four GPUs linked.
FULL = "{0}g0-{0}g1 {0}g0-{0}g2 {0}g0-{0}g3 {0}g1-{0}g2 {0}g1-{0}g3 {0}g2-{0}g3"


def found(of: Cluster, places: list[Place] | None = None) -> tuple[Wiring, Channels]:
    wiring = Wiring(of, places or everywhere(of), ONES, {})
    return wiring, channels(wiring)


def orders(of: Channels) -> list[list[int]]:
    return [order.tolist() for order in of.orders]


def by_nic(of: Wiring, made: Channels) -> dict[str, float]:
    """What part of the bytes of a turn of all rings passes each cable of a NIC, by its name."""
    source = np.concatenate(made.orders)
    target = np.concatenate([np.roll(order, -1) for order in made.orders])
    share = np.repeat(made.shares, [len(order) for order in made.orders])
    routes = of.routes(source, target, hosted=made.hosted)
    carried = np.bincount(routes.resource, routes.weight * share[routes.flow], len(of.capacity))
    used = [resource for resource in np.flatnonzero(carried).tolist() if of.kind(resource) == "infiniband"]
    names = {of.name(resource): float(carried[resource]) for resource in used}
    return {name: part for name, part in names.items() if of.net is None or "its switch" in name}


# --- one host ----------------------------------------------------------------------------------------------------


def test_gpus_without_a_circuit_of_links_go_through_the_host() -> None:
    # DGX-1 P100: of the first five GPUs the last is linked to the first only
    of = catalogue.cluster("dgx1-p100")
    _, made = found(of, list(placement(of, 5)))
    assert (made.inside.kind, made.hosted.tolist(), made.shares) == ("pcie", [0], (1.0,))
    _, made = found(of, list(placement(of, 6)))
    assert (made.inside.kind, made.hosted.tolist()) == ("nvlink", [])


@pytest.mark.parametrize("name", ["dgx1-p100", "dgx1-v100"])
@pytest.mark.parametrize("ranks", [2, 3, 4, 6, 7, 8])
def test_hops_of_a_dgx1s_rings_are_nvlinks(name: str, ranks: int) -> None:
    of = catalogue.cluster(name)
    wiring, made = found(of, list(placement(of, ranks)))
    assert sum(made.shares) == pytest.approx(1.0)
    for order in orders(made):
        assert sorted(order) == list(range(ranks))
        for a, b in zip(order, (*order[1:], order[0]), strict=True):
            way = wiring.inside.direct(of.devices[a], of.devices[b])
            assert way is not None
            assert way.kind == "nvlink"


def test_one_rank_has_one_channel() -> None:
    _, made = found(cluster("g0-p0 g1-p0"), [Place(0, 1)])
    assert (orders(made), made.shares, made.sizes.tolist()) == ([[0]], (1.0,), [1])


def test_ranks_in_any_order_are_visited_host_by_host() -> None:
    of = cluster("g0-p0 g1-p0 n0-p0", interconnect=joint(), nodes=2)
    _, made = found(of, [Place(1, 1), Place(0, 0), Place(1, 0), Place(0, 1)])
    # the host of rank 0 is node 1, with devices 0 and 1 at ranks 2 and 0
    assert made.sizes.tolist() == [2, 2]
    assert {frozenset(order[:2]) for order in orders(made)} == {frozenset((0, 2))}


# --- hosts that differ -------------------------------------------------------------------------------------------


def test_a_host_of_linked_gpus_and_one_of_pcie_cards_are_one_ring() -> None:
    # host A: 4 GPUs linked pairwise, all at the PCIe switch of its NIC; host B: 2 cards without links
    a = FULL.format("A") + " Ag0-Ap0 Ag1-Ap0 Ag2-Ap0 Ag3-Ap0 Ap0-An0 An0-w0"
    both = cluster(a, "Bg0-Bp0 Bg1-Bp0 Bp0-Bn0 Bn0-w0")
    wiring, made = found(both)
    assert made.sizes.tolist() == [4, 2]
    assert (made.inside.kind, made.hosted.tolist()) == ("pcie", [1])
    for order in orders(made):
        assert (sorted(order[:4]), sorted(order[4:])) == ([0, 1, 2, 3], [4, 5])
    # everything is crossed once, by one message's bytes in each direction: also each NIC
    assert by_nic(wiring, made) == {"An0>w0": 1.0, "w0>An0": 1.0, "Bn0>w0": 1.0, "w0>Bn0": 1.0}
    reached = fabric(both, everywhere(both), ONES)
    assert (reached.ring_bytes_per_s, reached.nodes, reached.ranks, reached.most) == (1.0, 2, 6, 4)
    assert reached.hops == (("pcie", 4), ("net", 2))


def test_the_host_that_needs_it_is_passed_through_and_no_other() -> None:
    # A's four linked GPUs are at four PCIe switches; B's cards have half the rate
    a = FULL.format("A") + " " + " ".join(f"Ag{gpu}-Ap{gpu} Ap{gpu}-As0" for gpu in range(4)) + " As0-An0 An0-w0"
    both = cluster(a, link("Bg0-Bs0", 0.5), link("Bg1-Bs0", 0.5), "Bs0-Bn0 Bn0-w0")
    reached = fabric(both, everywhere(both), ONES)
    assert reached.ring_bytes_per_s == 0.5
    inner = {name for name in reached.busy["ring"] if name.startswith("A") and "n" not in name}
    # three hops of NVLink, and a way in and out by the PCIe switches of the first and the last GPU alone
    assert len([name for name in inner if name.count("Ag") == 2]) == 3
    assert len([name for name in inner if name.count("Ag") < 2]) == 4


def test_the_slowest_host_limits_all_rings() -> None:
    # the same with NICs and their PCIe of 4, and links of 1: A's paths carry 3 at most (4 GPUs, three links each), B 1
    a = FULL.format("A") + " Ag0-Ap0 Ag1-Ap0 Ag2-Ap0 Ag3-Ap0"
    wide = (link("Ap0-An0", 4.0), link("Bp0-Bn0", 4.0), link("An0-w0", 4.0), link("Bn0-w0", 4.0))
    both = cluster(a, "Bg0-Bp0 Bg1-Bp0", *wide)
    rates = {"pcie": 4.0, "nvlink": 1.0, "infiniband": 4.0}
    assert fabric(both, everywhere(both), rates).ring_bytes_per_s == 1.0


def test_a_host_of_one_device_joins_the_rings_of_the_other() -> None:
    # A: two NICs, each with two GPUs, so two paths; B: one GPU at a NIC of twice the rate
    a = FULL.format("A") + " Ag0-Ap0 Ag1-Ap0 Ap0-An0 Ag2-Ap1 Ag3-Ap1 Ap1-An1 Ap0-As0 Ap1-As0 An0-w0 An1-w0"
    both = cluster(a, link("Bg0-Bn0", 2.0), link("Bn0-w0", 2.0))
    rates = {"pcie": 2.0, "nvlink": 1.0, "infiniband": 2.0}
    wiring = Wiring(both, everywhere(both), rates, {})
    made = channels(wiring)
    assert made.sizes.tolist() == [4, 1]
    used = by_nic(wiring, made)
    assert [used["An0>w0"], used["An1>w0"], used["Bn0>w0"]] == pytest.approx([0.5, 0.5, 1.0])
    assert fabric(both, everywhere(both), rates).ring_bytes_per_s == pytest.approx(2.0)


def test_a_device_that_reaches_no_nic_is_a_one_line_error_over_hosts() -> None:
    # g1 is linked to g0 alone
    of = cluster("g0-g1 g0-n0", interconnect=joint(), nodes=2)
    with pytest.raises(ClusterError) as error:
        channels(Wiring(of, everywhere(of), ONES, {}))
    assert str(error.value) == "cluster 'lab': no path from g1 to a nic without other devices between"


# --- several NICs ------------------------------------------------------------------------------------------------

SWITCHED = "g0-v0 g1-v0 g2-v0 g3-v0 "


@pytest.mark.parametrize(
    ("links", "paths", "parts"),
    [
        ("g0-n0 g1-n1 g2-n2 g3-n3", 4, [1 / 4] * 4),  # each GPU has its own
        ("g0-p0 g1-p0 n0-p0 n1-p0 g2-p1 g3-p1 n2-p1 n3-p1 p0-s0 p1-s0", 4, [1 / 4] * 4),  # two share two
        ("g0-p0 g1-p0 n0-p0 g2-p1 g3-p1 n1-p1 p0-s0 p1-s0", 2, [1 / 2] * 2),  # two share one
        ("g0-p0 g1-p0 g2-p0 n0-p0 g3-n1", 2, [1 / 2] * 2),  # three share one, and one has its own
        ("g0-n0 g1-p0 g2-p0 n1-p0 g3-n2", 3, [1 / 3] * 3),  # two share one, and two have their own
        ("g0-n0 g0-n1 g1-p0 g2-p0 g3-p0 n2-p0", 2, [1 / 4, 1 / 4, 1 / 2]),  # one has two, for one path
    ],
)
def test_devices_under_nvswitches_enter_and_leave_by_all_nics(links: str, paths: int, parts: list[float]) -> None:
    of = cluster(SWITCHED + links, interconnect=joint(), nodes=2)
    wiring, made = found(of)
    assert made.inside.kind == "nvlink"
    assert len(made.orders) == paths
    used = by_nic(wiring, made)
    for node in range(2):
        for way in ("to", "from"):
            assert [used[f"node{node}/nic{nic} {way} its switch"] for nic in range(len(parts))] == pytest.approx(parts)


@pytest.mark.parametrize(
    "links",
    [
        "g0-p0 g1-p0 n0-p0 g2-p1 g3-p1 n1-p1 p0-s0 p1-s0",
        "g0-p0 g1-p0 n0-p0 g2-p1 g3-p1 n1-p1 p0-s0 p1-s1 s0-s1",
        "g0-p0 g1-p0 n0-p0 n1-p0 g2-p1 g3-p1 n2-p1 n3-p1 p0-s0 p1-s0",
        "g0-n0 g1-n1 g0-s0 g1-s0",
    ],
)
def test_devices_behind_pcie_use_all_nics_alike(links: str) -> None:
    of = cluster(links, interconnect=joint(), nodes=2)
    wiring, made = found(of)
    used = by_nic(wiring, made)
    nics = len(of.nics)
    assert made.hosted.tolist() == [0, 1]
    assert len(used) == 2 * 2 * nics
    assert list(used.values()) == pytest.approx([1 / nics] * len(used))


@pytest.mark.parametrize("name", ["dgx1-p100", "dgx1-v100", "dgx2-v100", "dgx-a100", "dgx-h100", "pcie-box"])
def test_over_nodes_a_shipped_machine_uses_all_its_nics_alike(name: str) -> None:
    of = resized(catalogue.cluster(name), 2)
    wiring, made = found(of)
    used = by_nic(wiring, made)
    nics = len(of.nics)
    assert len(used) == 2 * 2 * nics
    assert list(used.values()) == pytest.approx([1 / nics] * len(used))


# --- laws --------------------------------------------------------------------------------------------------------


@given(cases(flat))
@settings(deadline=None)
def test_every_channel_visits_every_rank_once_and_host_by_host(of: Cluster) -> None:
    wiring, made = found(of)
    ranks = len(of.devices)
    assert len(made.orders) == len(made.shares)
    assert sum(made.shares) == pytest.approx(1.0)
    assert made.sizes.tolist() == np.bincount(wiring.host).tolist()
    for order in made.orders:
        assert sorted(order.tolist()) == list(range(ranks))
        assert wiring.host[order].tolist() == sorted(wiring.host.tolist())
    for groups, _ in made.grouped():
        assert [len(group) for group in groups] == made.sizes.tolist()


def gated(rng: Random) -> tuple[dict[tuple[str, str], float], dict[str, Gate], dict[str, float]]:
    """Directed links between a few devices, and what leaving and entering at each takes of shared NICs."""
    names = "abcde"[: rng.randint(1, 5)]
    capacity = {ends: float(rng.randint(1, 3)) for ends in itertools.permutations(names, 2) if rng.random() < 0.7}
    nics = [f"nic{number}" for number in range(rng.randint(1, 3))]
    shared = {nic + arrow: float(rng.randint(1, 4)) for nic in nics for arrow in "><"} | {"link": 2.0}
    gates = {}
    for name in names:
        near = rng.sample(nics, rng.randint(1, len(nics)))
        out, into = ({nic + arrow: 1 / len(near) for nic in near} for arrow in "><")
        gates[name] = Gate(out | ({"link": 1.0} if rng.random() < 0.3 else {}), into)
    return capacity, gates, shared


def taken(order: tuple[str, ...], gates: dict[str, Gate]) -> dict[object, float]:
    """What a path takes of each link and NIC."""
    hops: dict[object, float] = dict.fromkeys(itertools.pairwise(order), 1.0)
    return hops | dict(gates[order[-1]].out) | dict(gates[order[0]].into)


@given(cases(gated))
@settings(deadline=None)
def test_paths_between_nics_are_as_good_as_a_linear_program_over_all_of_them_says(
    made: tuple[dict[tuple[str, str], float], dict[str, Gate], dict[str, float]],
) -> None:
    capacity, gates, shared = made
    rings = best_rings(tuple(gates), capacity, gates=gates, shared=shared)
    limits: dict[object, float] = dict(capacity.items()) | dict(shared.items())
    load = dict.fromkeys(limits, 0.0)
    for ring in rings:
        assert sorted(ring.devices) == sorted(gates)
        for row, part in taken(ring.devices, gates).items():
            load[row] += part * ring.bytes_per_s
    for row, limit in limits.items():
        assert load[row] <= limit * (1 + 1e-9)
    paths = [
        order for order in itertools.permutations(gates) if all(hop in capacity for hop in itertools.pairwise(order))
    ]
    total = sum(ring.bytes_per_s for ring in rings)
    if not paths:
        assert total == 0
        return
    matrix = [[taken(order, gates).get(row, 0.0) for order in paths] for row in limits]
    best = linprog([-1.0] * len(paths), A_ub=matrix, b_ub=list(limits.values()))
    assert total == pytest.approx(-best.fun, rel=1e-7)
