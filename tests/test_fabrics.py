"""Places of ranks, and the rings that the links of a machine allow."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from simgd import files
from simgd.errors import ClusterError
from simgd.fabrics import Place, fabric, placement, resized
from simgd.rings import best_rings
from simgd.topology import Cluster, Device, Interconnect, Link, VertexKind
from simgd.units import Bytes, FlopRate, Rate, Seconds
from simgd.wiring import NOMINAL_SHARE

CLUSTERS = Path(__file__).parent.parent / "simgd" / "data" / "clusters"

GPU_NAMES = ["dgx1-p100", "dgx1-v100", "dgx2-v100", "dgx-a100", "dgx-h100", "dgx-h200", "pcie-box"]
GPU_NAMES += ["dgx-b200", "gb200-nvl72"]
NAMES = [*GPU_NAMES, "sandybridge-qdr", "sandybridge-fdr", "xeon-edr", "xeon-hdr", "xeon-ndr"]
NAMES += ["xeon-xdr", "xeon-100gbe", "xeon-25gbe"]

#: One unit of bandwidth a cable, so that rates below count links.
ONES = {"nvlink": 1.0, "pcie": 0.5, "socket": 0.4, "infiniband": 0.3}


def shipped(name: str) -> Cluster:
    return files.read(CLUSTERS / f"{name}.toml", Cluster)


def gpus(links: list[tuple[str, str, int]]) -> Cluster:
    """A node of GPUs that also hang on one PCIe switch, with *links* of NVLink between them."""
    names = sorted({end for a, b, _ in links for end in (a, b)})
    every: dict[str, VertexKind] = dict.fromkeys(names, "device")
    every["pcie"] = "pcie_switch"
    devices = [name for name, kind in every.items() if kind == "device"]
    return Cluster(
        name="lab",
        device=Device(name="g", kind="gpu", memory=Bytes(1), memory_rate=Rate(1.0), fp32=FlopRate(1.0)),
        vertices=every,
        links=tuple(Link(ends=(a, b), kind="nvlink", bandwidth=Rate(1.0), count=count) for a, b, count in links)
        + tuple(Link(ends=(name, "pcie"), kind="pcie", bandwidth=Rate(1.0)) for name in devices),
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_cluster_is_read_under_its_own_name_and_says_where_it_comes_from(name: str) -> None:
    cluster = shipped(name)
    assert cluster.name == name
    assert cluster.source
    assert cluster.device.source
    assert cluster.interconnect
    assert cluster.interconnect.source


@pytest.mark.parametrize(
    ("name", "devices", "links"),
    [
        ("dgx1-p100", 8, 4),  # four NVLinks a P100
        ("dgx1-v100", 8, 6),
        ("dgx2-v100", 16, 6),
        ("dgx-a100", 8, 12),
        ("dgx-h100", 8, 18),
        ("dgx-h200", 8, 18),
        ("dgx-b200", 8, 18),
        ("gb200-nvl72", 72, 18),
        ("pcie-box", 8, 0),
    ],
)
def test_every_gpu_has_the_nvlinks_of_its_data_sheet(name: str, devices: int, links: int) -> None:
    cluster = shipped(name)
    assert len(cluster.devices) == devices
    for device in cluster.devices:
        assert sum(link.count for link in cluster.links if link.kind == "nvlink" and device in link.ends) == links


def test_ranks_fill_the_devices_of_a_gpu_node_before_the_next_node() -> None:
    two = resized(shipped("dgx1-p100"), 2)
    assert placement(two, 3) == (Place(0, 0), Place(0, 1), Place(0, 2))
    assert placement(two, 9)[-2:] == (Place(0, 7), Place(1, 0))


def test_a_cpu_cluster_puts_one_rank_on_each_of_as_many_nodes_as_asked() -> None:
    assert placement(shipped("xeon-edr"), 3) == (Place(0, 0), Place(1, 0), Place(2, 0))


def test_listed_devices_are_counted_through_all_nodes() -> None:
    assert placement(resized(shipped("dgx1-p100"), 2), 3, (0, 5, 12)) == (Place(0, 0), Place(0, 5), Place(1, 4))


@pytest.mark.parametrize(
    ("ranks", "devices", "message"),
    [
        (0, None, "cluster 'dgx1-p100': 0 ranks; at least 1 is needed"),
        (9, None, "cluster 'dgx1-p100': 9 ranks, but 8 devices; `--on dgx1-p100:2` has enough nodes"),
        (2, (0, 8), "cluster 'dgx1-p100': device 8 is unknown; they are 0 to 7"),
        (2, (0, -1), "cluster 'dgx1-p100': device -1 is unknown; they are 0 to 7"),
        (2, (3, 3), "cluster 'dgx1-p100': device 3 is listed twice"),
        (3, (0, 1), "cluster 'dgx1-p100': 3 ranks, but 2 devices are listed"),
    ],
)
def test_impossible_places_are_one_line_errors(ranks: int, devices: tuple[int, ...] | None, message: str) -> None:
    with pytest.raises(ClusterError) as error:
        placement(shipped("dgx1-p100"), ranks, devices)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("ranks", "links", "path"),
    [
        (2, 1.0, "nvlink"),  # the one link of the pair
        (3, 2.0, "nvlink"),  # a triangle, once in each direction
        (4, 3.0, "nvlink"),  # 12 directed links / 4 a ring
        (5, 0.4, "pcie"),  # GPU 4 has NVLink to GPU 0 only: no circuit, so PCIe, across the sockets
        (6, 2.0, "nvlink"),  # GPUs 4 and 5 have two links each: one circuit, in both directions
        (7, 3.0, "nvlink"),  # GPUs 4, 5 and 6 have three
        (8, 4.0, "nvlink"),  # four each, all used
    ],
)
def test_rings_of_a_dgx1_with_p100(ranks: int, links: float, path: str) -> None:
    cluster = shipped("dgx1-p100")
    found = fabric(cluster, placement(cluster, ranks), ONES)
    assert found.ring_bytes_per_s == pytest.approx(links, rel=1e-9)
    assert found.path == path
    assert found.hops == ((path, ranks),)


@pytest.mark.parametrize(
    ("ranks", "links"),
    [
        (2, 1.0),  # 0-1 is a single link
        (3, 2.0),  # 0-1 and 0-2 single, 1-2 double: GPU 0 has two out
        (4, 4.0),  # every GPU has 1 + 1 + 2 links
        (5, 0.4),  # GPU 4 reaches GPU 0 only
        (6, 2.0),  # 4-5 is a single link, and both must be crossed between 0 and 1
        (8, 6.0),
    ],
)
def test_rings_of_a_dgx1_with_v100(ranks: int, links: float) -> None:
    cluster = shipped("dgx1-v100")
    found = fabric(cluster, placement(cluster, ranks), ONES)
    assert found.ring_bytes_per_s == pytest.approx(links, rel=1e-9)


def test_four_gpus_linked_pairwise_need_half_links_to_reach_three_rings() -> None:
    # 6 directed circuits of 4 hops; 3 whole ones would have to split K4's 12 directed links, which is impossible
    square = dict.fromkeys(itertools.permutations("abcd", 2), 1.0)
    rings = best_rings("abcd", square)
    assert sum(ring.bytes_per_s for ring in rings) == 3.0
    assert {ring.bytes_per_s for ring in rings} == {0.5}


def test_gpus_under_nvswitches_have_the_rate_of_their_own_links() -> None:
    # 12 links of one unit each into the switches
    cluster = shipped("dgx-a100")
    found = fabric(cluster, placement(cluster, 5), ONES)
    assert found.ring_bytes_per_s == pytest.approx(12)
    assert found.port_bytes_per_s == pytest.approx(12)
    assert found.inside == "nvlink"


def test_devices_without_nvlink_share_the_way_between_the_sockets() -> None:
    cluster = shipped("pcie-box")
    assert fabric(cluster, placement(cluster, 4), ONES).ring_bytes_per_s == 0.5  # all on one PCIe switch
    assert fabric(cluster, placement(cluster, 5), ONES).ring_bytes_per_s == 0.4  # the fifth on the other socket


def test_chosen_devices_can_do_better_than_the_first_ones() -> None:
    # 0-1-5-4 is a square of single links, used in both directions; the first five have no circuit at all
    cluster = shipped("dgx1-p100")
    assert fabric(cluster, placement(cluster, 4, (0, 1, 4, 5)), ONES).ring_bytes_per_s == 2.0


def test_nodes_are_joined_by_the_nics_nearest_to_the_devices() -> None:
    # GPUs 0 and 1 share NIC 0 (0.3); all eight use four NICs (1.2), fed by four PCIe switches; NVLink has more
    cluster = resized(shipped("dgx1-p100"), 2)
    two = fabric(cluster, placement(cluster, 4, (0, 1, 8, 9)), ONES)
    assert two.ring_bytes_per_s == pytest.approx(0.3)
    assert (two.path, two.nodes) == ("infiniband", 2)
    assert two.hops == (("nvlink", 2), ("net", 2))
    assert fabric(cluster, placement(cluster, 16), ONES).ring_bytes_per_s == pytest.approx(1.2)


def test_a_ring_over_nodes_needs_a_path_in_each_node_but_no_circuit() -> None:
    # 4-0-1-2-3 is a path of the first five GPUs; in one node they fall back to PCIe (0.4)
    cluster = resized(shipped("dgx1-p100"), 2)
    both = placement(cluster, 10, (0, 1, 2, 3, 4, 8, 9, 10, 11, 12))
    assert fabric(cluster, both, ONES).inside == "nvlink"


def test_a_larger_fat_tree_has_more_switches_to_cross() -> None:
    # switches of 36 ports: 36 nodes on one, 648 = 2 x 18^2 on two levels (3 switches, so 2 more)
    cluster = shipped("xeon-edr")
    extra = [fabric(cluster, placement(cluster, nodes)).net_extra_s for nodes in (36, 37, 648, 649)]
    assert extra == pytest.approx([0.0, 300e-9, 300e-9, 600e-9])


def test_rates_that_nobody_gave_are_a_share_of_nominal_ones_and_named() -> None:
    cluster = shipped("dgx1-p100")
    found = fabric(cluster, placement(cluster, 2))
    assert found.ring_bytes_per_s == pytest.approx(NOMINAL_SHARE * 20e9)
    assert found.assumed == ("nvlink",)
    assert fabric(cluster, placement(cluster, 2), ONES).assumed == ()


def test_a_link_that_is_not_the_fastest_of_its_kind_reaches_the_same_share_of_its_nominal_rate() -> None:
    lab = gpus([("a", "b", 1)])
    slow = Cluster(
        name="lab",
        device=lab.device,
        vertices={"a": "device", "b": "device", "p": "pcie_switch"},
        links=(
            Link(ends=("a", "p"), kind="pcie", bandwidth=Rate(16.0)),
            Link(ends=("b", "p"), kind="pcie", bandwidth=Rate(8.0)),
        ),
    )
    # "pcie" reaches 12 of 16, so 6 of 8
    assert fabric(slow, placement(slow, 2), {"pcie": 12.0}).ring_bytes_per_s == 6.0


def test_a_half_duplex_link_shares_its_rate_between_directions() -> None:
    lab = gpus([("a", "b", 1)])
    half = Cluster(
        name="lab",
        device=lab.device,
        vertices={"a": "device", "b": "device"},
        links=(Link(ends=("a", "b"), kind="pcie", bandwidth=Rate(1.0), latency=Seconds(0.0), duplex="half"),),
    )
    assert fabric(half, placement(half, 2), {"pcie": 1.0}).ring_bytes_per_s == 0.5


def test_devices_that_only_meet_in_other_devices_are_an_error() -> None:
    lab = gpus([("a", "b", 1)])
    chain = Cluster(
        name="chain",
        device=lab.device,
        vertices={"a": "device", "b": "device", "c": "device"},
        links=tuple(Link(ends=ends, kind="nvlink", bandwidth=Rate(1.0)) for ends in (("a", "b"), ("b", "c"))),
    )
    with pytest.raises(ClusterError, match="no way for a ring through a, c"):
        fabric(chain, placement(chain, 2, (0, 2)), ONES)


def test_nodes_without_nics_cannot_be_joined() -> None:
    lab = gpus([("a", "b", 1)])
    with pytest.raises(ClusterError, match="3 ranks, but 2 devices; no nic joins more"):
        placement(lab, 3)
    with pytest.raises(ClusterError, match="no nic and interconnect"):
        resized(lab, 2)
    joint = Interconnect(kind="infiniband", bandwidth=Rate(1.0), latency=Seconds(0.0))
    with pytest.raises(ClusterError, match="no nic and interconnect"):
        Cluster(name="x", device=lab.device, vertices=lab.vertices, links=lab.links, interconnect=joint, nodes=2)


@st.composite
def machines(draw: st.DrawFn) -> list[tuple[str, str, int]]:
    names = "abcdef"[: draw(st.integers(2, 6))]
    pairs = list(itertools.combinations(names, 2))
    counts = draw(st.lists(st.integers(0, 3), min_size=len(pairs), max_size=len(pairs)))
    return [(a, b, count) for (a, b), count in zip(pairs, counts, strict=True) if count]


def capacities(links: list[tuple[str, str, int]]) -> dict[tuple[str, str], float]:
    return {ends: float(count) for a, b, count in links for ends in ((a, b), (b, a))}


@given(machines())
@settings(deadline=None)
def test_rings_visit_every_device_and_overload_no_directed_link(links: list[tuple[str, str, int]]) -> None:
    names = sorted({end for a, b, _ in links for end in (a, b)})
    load: dict[tuple[str, str], float] = {}
    capacity = capacities(links)
    for ring in best_rings(names, capacity):
        assert sorted(ring.devices) == names
        for ends in zip(ring.devices, (*ring.devices[1:], ring.devices[0]), strict=True):
            load[ends] = load.get(ends, 0.0) + ring.bytes_per_s
    for ends, carried in load.items():
        assert carried <= capacity[ends] * (1 + 1e-9)


@given(machines())
@settings(deadline=None)
def test_rings_are_as_good_as_a_linear_program_says(links: list[tuple[str, str, int]]) -> None:
    names = sorted({end for a, b, _ in links for end in (a, b)})
    capacity = capacities(links)
    orders = [(*names[:1], *order) for order in itertools.permutations(names[1:])]
    tours = [list(zip(order, (*order[1:], *order[:1]), strict=True)) for order in orders]
    circuits = [hops for hops in tours if hops and all(ends in capacity for ends in hops)]
    total = sum(ring.bytes_per_s for ring in best_rings(names, capacity))
    if not circuits:
        assert total == 0
        return
    rows = list(capacity)
    matrix = [[float(ends in hops) for hops in circuits] for ends in rows]
    best = linprog([-1.0] * len(circuits), A_ub=matrix, b_ub=[capacity[ends] for ends in rows])
    assert total == pytest.approx(-best.fun, rel=1e-7)


@given(machines(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_new_names_for_the_devices_change_no_rate(links: list[tuple[str, str, int]], random: object) -> None:
    names = sorted({end for a, b, _ in links for end in (a, b)})
    if len(names) < 2:
        return
    shuffled = list(names)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    new = dict(zip(names, shuffled, strict=True))
    renamed = [(new[a], new[b], count) for a, b, count in links]
    before, after = (
        fabric(made, placement(made, len(names)), ONES).ring_bytes_per_s for made in (gpus(links), gpus(renamed[::-1]))
    )
    assert before == pytest.approx(after, rel=1e-9)


@given(machines(), st.data())
@settings(deadline=None)
def test_another_cable_never_slows_the_rings(links: list[tuple[str, str, int]], data: st.DataObject) -> None:
    if not links:
        return
    names = sorted({end for a, b, _ in links for end in (a, b)})
    more = data.draw(st.integers(0, len(links) - 1))
    wider = [(a, b, count + (at == more)) for at, (a, b, count) in enumerate(links)]
    before, after = (sum(r.bytes_per_s for r in best_rings(names, capacities(made))) for made in (links, wider))
    assert after >= before * (1 - 1e-9)
