"""Platform files of SimGrid, read and written; where files come from stands in data/SOURCES.md."""

import json
import subprocess
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
from conftest import Ran
from hypothesis import given
from strategies import cases

from calibration import simgrid_graph, simgrid_xml
from calibration.importing import imported
from simgd import catalogue, files, simgrid
from simgd.errors import ClusterError, FileError
from simgd.profile import Profile
from simgd.routes import NodeRoutes, Way
from simgd.topology import Cluster, Interconnect, Link, VertexKind
from simgd.units import Rate, Seconds

DATA = Path(__file__).parent / "data"

Simgd = Callable[[str], Ran]


def read(text: str | bytes, *, wide: bool = False) -> Cluster:
    content = text if isinstance(text, bytes) else text.encode()
    platform = simgrid_xml.parse(content, "p.xml", wide=wide)
    return simgrid_graph.to_cluster(platform, "p.xml", catalogue.cluster("xeon-edr"), "here")


def zone(*lines: str, routing: str = "Full") -> str:
    return f'<platform version="4.1"><zone id="z" routing="{routing}">{"".join(lines)}</zone></platform>'


def hosts(*names: str) -> str:
    return "".join(f'<host id="{name}" speed="1Gf"/>' for name in names)


def links(*names: str, policy: str = "SHARED") -> str:
    return "".join(
        f'<link id="{name}" bandwidth="1GBps" latency="1us" sharing_policy="{policy}"/>' for name in names
    )  # fmt: skip


def route(a: str, b: str, *crossed: str) -> str:
    return f'<route src="{a}" dst="{b}">{"".join(f"<link_ctn id={name!r}/>" for name in crossed)}</route>'


def ways(of: Cluster) -> NodeRoutes:
    return NodeRoutes(of, [link.bandwidth * link.count for link in of.links])


def crossed(of: Cluster, routes: NodeRoutes, way: Way) -> list[Link]:
    """The links of a way, without those between devices and their NICs."""
    by_ends = {frozenset(link.ends): link for link in of.links}
    found = [by_ends[frozenset(routes.names[resource])] for resource in way.resources]
    return [link for link in found if link.kind != "pcie"]


def link(of: Cluster, a: str, b: str) -> Link:
    (found,) = [each for each in of.links if set(each.ends) == {a, b}]
    return found


# --- reading -----------------------------------------------------------------------------------------------------


def test_a_full_table_of_routes_gives_the_graph_that_has_them() -> None:
    found = read((DATA / "simgrid-small-platform.xml").read_bytes())
    assert found.devices == ("Tremblay", "Jupiter", "Fafard", "Ginette", "Bourassa")
    # a tree: five hosts, ten links, so six junctions besides
    assert sum(kind == "switch" for kind in found.vertices.values()) == 6
    assert len([link for link in found.links if link.kind == "ethernet"]) == 10
    routes = ways(found)
    way = crossed(found, routes, routes.between("Ginette", "Bourassa"))
    # links 5, 2, 0, 1, 6 and 7 of the file, in MB/s
    assert [link.bandwidth for link in way] == [27946250, 118682500, 41279125, 34285625, 41279125, 11618875]
    assert {link.duplex for link in way} == {"half"}
    assert found.source.endswith("left out: 5 loopback routes, 1 links that no route uses")


def test_a_link_that_all_messages_share_in_one_table_is_an_edge_where_hosts_are_on_two_sides() -> None:
    table = [("S1", "C1", "1", "2", "3"), ("S2", "C2", "4", "2", "5"), ("S1", "C2", "1", "2", "5")]
    table += [("S2", "C1", "4", "2", "3"), ("S1", "S2", "1", "4"), ("C1", "C2", "3", "5")]
    found = read(zone(hosts("S1", "S2", "C1", "C2"), links(*"12345"), *(route(*each) for each in table)))
    assert sum(kind == "switch" for kind in found.vertices.values()) == 2
    assert len(found.links) == 5 + 4


def test_short_routes_say_where_long_ones_go_whatever_their_order() -> None:
    # the middle link is listed backwards, and one by one
    table = [("A", "B", "a", "m", "b"), ("R2", "R1", "m"), ("R1", "A", "a"), ("B", "R2", "b")]
    for routing in ("Full", "Floyd", "Dijkstra"):
        text = zone(hosts("A", "B"), '<router id="R1"/><router id="R2"/>', links(*"abm"), *(route(*r) for r in table),
                    routing=routing)  # fmt: skip
        found = read(text)
        assert {frozenset(link.ends) for link in found.links if link.kind == "ethernet"} == {
            frozenset(("A/nic", "R1")),
            frozenset(("R1", "R2")),
            frozenset(("R2", "B/nic")),
        }


def test_directions_of_links_say_which_way_they_lie() -> None:
    up_down = (
        '<route src="a" dst="b"><link_ctn id="x" direction="UP"/><link_ctn id="y" direction="DOWN"/></route>'
        '<route src="c" dst="b"><link_ctn id="z_UP"/><link_ctn id="y_DOWN"/></route>'
        '<route src="a" dst="c"><link_ctn id="x" direction="UP"/><link_ctn id="z" direction="DOWN"/></route>'
    )
    found = read(zone(hosts("a", "b", "c"), links("x", "y", "z", policy="SPLITDUPLEX"), up_down))
    assert {link.duplex for link in found.links} == {"full"}
    assert {frozenset(link.ends) for link in found.links if link.kind == "ethernet"} == {
        frozenset((f"{host}/nic", "junction0")) for host in "abc"
    }


def test_clusters_joined_over_a_pipe_that_nobody_shares() -> None:
    found = read((DATA / "simgrid-cluster-multi.xml").read_bytes())
    assert len(found.devices) == 24
    # the pipe is three links, one for each pair of clusters; 24 hosts of 125 MB/s fill 3 GB/s, three times 1.25
    pipes = [link for link in found.links if link.bandwidth == 1.25e9]
    assert [(link.count, link.latency) for link in pipes] == [(3, 500e-6)] * 3
    # a backbone of 2.25 GB/s never limits 8 hosts: its latency stays, half of it at each of them
    assert link(found, "node-3.2cores.org/nic", "backboned hub").latency == pytest.approx(50e-6 + 250e-6)
    assert link(found, "node-3.4cores.org/nic", "halfduplex hub").duplex == "half"


def test_a_star_with_links_up_and_down_is_full_duplex() -> None:
    lines = [hosts("a", "b", "c")]
    for name in "abc":
        lines += [links(f"{name}up", f"{name}down"), f'<host_link id="{name}" up="{name}up" down="{name}down"/>']
    found = read(zone(*lines, '<router id="r"/>', routing="Cluster"))
    assert {link.duplex for link in found.links} == {"full"}
    assert sum(kind == "switch" for kind in found.vertices.values()) == 1
    # with a backbone that carries all three, its latency is split
    found = read(zone(*lines, '<backbone id="bb" bandwidth="3GBps" latency="2us"/>', routing="Cluster"))
    assert found.links[-1].latency == pytest.approx(2e-6)


def test_a_backbone_that_limits_is_left_out_only_when_asked_to() -> None:
    text = zone('<cluster id="c" prefix="h" suffix="" radical="0-9" speed="1Gf" bw="1GBps" lat="1us" bb_bw="4GBps"/>')
    with pytest.raises(FileError) as error:
        read(text)
    assert str(error.value) == (
        "p.xml: zone 'c': its 10 hosts send 10 GB/s at once over one backbone of 4 GB/s; no link of a graph is crossed "
        "by all; backbone=wide leaves that limit out"
    )
    assert "1 limits of backbones" in read(text, wide=True).source


def test_a_fat_tree_becomes_an_interconnect() -> None:
    found = read((DATA / "simgrid-cluster-fat-tree.xml").read_bytes())
    # four lowest switches of four hosts, each with two cables to each of two upper ones
    assert found.interconnect == Interconnect(
        kind="ethernet",
        bandwidth=Rate(125e6),
        latency=Seconds(50e-6),
        ports=8,
        rails="joined",
        source="topo_parameters of SimGrid",
    )
    assert (found.nodes, found.routing) == (16, "static")


@pytest.mark.parametrize(
    ("parameters", "count", "ports", "oversubscription"),
    [
        ("1;16;1;1", 16, 16, 1.0),  # one switch
        ("2;6,8;1,2;1,1", 48, 8, 3.0),  # six hosts below, two cables up
        ("3;4,4,4;1,4,4;1,1,1", 64, 8, 1.0),  # k = 8 with four of its eight pods
    ],
)
def test_fat_trees_of_other_shapes(parameters: str, count: int, ports: int, oversubscription: float) -> None:
    tree = f'topology="FAT_TREE" topo_parameters="{parameters}"'
    found = read(zone(f'<cluster id="c" prefix="h" suffix="" radical="0-{count - 1}" bw="1GBps" lat="1us" {tree}/>'))
    assert found.interconnect is not None
    assert (found.nodes, found.interconnect.ports) == (count, ports)
    assert found.interconnect.oversubscription == oversubscription


@pytest.mark.parametrize(
    ("bandwidth", "bytes_per_s"),
    [("1Gbps", 125e6), ("10kBps", 10e3), ("1MiBps", 2**20), ("8Kibps", 1024), ("1e9", 1e9), ("2.5GBps", 2.5e9)],
)
def test_units_are_powers_of_1000_or_1024_bytes_or_bits(bandwidth: str, bytes_per_s: float) -> None:
    wire = f'<link id="x" bandwidth="{bandwidth}" latency="3ns"/>'
    found = link(read(zone(hosts("a", "b"), wire, route("a", "b", "x"))), "a/nic", "b/nic")
    assert (found.bandwidth, found.latency) == (bytes_per_s, 3e-9)


def tree(rng: Random) -> tuple[str, dict[tuple[str, str], list[float]]]:
    """A random tree with a host at each of its leaves, as a full table; each link by its bandwidth."""
    size = rng.randint(2, 12)
    above = {place: rng.randrange(place) for place in range(1, size)}
    leaves = [place for place in range(size) if place not in above.values() or (place == 0 and size == 2)]

    def path(place: int) -> list[int]:
        return [place, *(path(above[place]) if place in above else [])]

    table = {}
    for a in leaves:
        for b in leaves:
            if a < b:
                up, down = path(a), path(b)
                way = [x for x in up if x not in down] + [x for x in reversed(down) if x not in up]
                table[a, b] = way
    used = sorted({link for way in table.values() for link in way})
    wires = [f'<link id="l{k}" bandwidth="{k}MBps" latency="1us" sharing_policy="SPLITDUPLEX"/>' for k in used]
    rng.shuffle(wires)
    lines = [route(f"h{a}", f"h{b}", *(f"l{k}" for k in way)) for (a, b), way in table.items()]
    lines += [route(f"h{b}", f"h{a}", *(f"l{k}" for k in reversed(way))) for (a, b), way in table.items()]
    rng.shuffle(lines)
    wanted = {(f"h{a}", f"h{b}"): [k * 1e6 for k in way] for (a, b), way in table.items()}
    return zone(hosts(*(f"h{leaf}" for leaf in leaves)), *wires, *lines), wanted


@given(cases(tree))
def test_routes_through_any_tree_are_found_again(made: tuple[str, dict[tuple[str, str], list[float]]]) -> None:
    text, wanted = made
    found = read(text)
    routes = ways(found)
    for (a, b), rates in wanted.items():
        assert [link.bandwidth for link in crossed(found, routes, routes.between(a, b))] == rates
        assert [link.bandwidth for link in crossed(found, routes, routes.between(b, a))] == rates[::-1]


# --- reading what is wrong ---------------------------------------------------------------------------------------

AB = hosts("a", "b") + links("x")
CLUSTER = '<cluster id="c" prefix="h" suffix="" radical="0-3" speed="1Gf" bw="1GBps" lat="1us" {}/>'
FAT_TREE = CLUSTER.format('topology="FAT_TREE" topo_parameters="{}"')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<platform version='4'>", "line 1: is not XML: no element found"),
        (zone(AB, route("a", "b", "x"))[:-30], "line 1: is not XML: "),
        ("<!DOCTYPE platform [<!ENTITY a 'b'>]><platform version='4'>&a;</platform>", "holds entities, which"),
        ("<platform version='4'>" + '<zone id="z" routing="Full">' * 200, "has elements more than 100 deep; no"),
        ("<platform version='3'/>", "version is '3'; 4 and 4.1 are read, and simgrid_update_xml makes 4.1 of"),
        ("<platforms version='4'/>", "its root is <platforms>; a platform of SimGrid has <platform>"),
        (zone("<gpu/>"), "<gpu> in <zone> is unknown; SimGrid's platforms have none"),
        (zone("<peer id='p' speed='1Gf' bw_in='1' bw_out='1'/>"), "<peer 'p'>: is not read; write its links as"),
        (zone(AB, '<bypassRoute src="a" dst="b"/>'), "<bypassRoute 'a to b'>: is not read"),
        (zone(routing="Vivaldi"), "<zone 'z'>: routing 'Vivaldi' is not read; Full, Floyd, Dijkstra and Cluster are"),
        (zone(), "holds no host"),
        (zone(AB, links("x")), "<link 'x'>: link 'x' stands twice"),
        (zone(AB, hosts("a")), "<host 'a'>: host 'a' stands twice"),
        (zone('<link id="x" bandwidth="0GBps"/>'), "<link 'x'>: bandwidth is 0; it must be above 0"),
        (zone('<link id="x" bandwidth="1GB"/>'), "<link 'x'>: bandwidth '1GB' is not a rate such as 125MBps or 1Gbps"),
        (zone('<link id="x" bandwidth="1e999"/>'), "<link 'x'>: bandwidth '1e999' is not a rate such as 125MBps"),
        (zone('<link id="x" bandwidth="1" latency="-1us"/>'), "<link 'x'>: latency '-1us' is not a time such as 50us"),
        (zone('<link id="x" bandwidth="1" sharing_policy="WIFI"/>'), "<link 'x'>: sharing_policy 'WIFI' is not read"),
        (zone('<link id="x"/>'), "<link 'x'>: has no bandwidth"),
        (zone(AB, route("a", "b", "y")), "route from 'a' to 'b' crosses link 'y', which is not there before it"),
        (zone(AB, route("a", "c", "x")), "<route 'a to c'>: 'c' is no host or router before it"),
        (zone(AB, route("a", "b", "x", "x")), "route from 'a' to 'b' crosses a link twice"),
        (zone(AB, hosts("c"), route("a", "b", "x")), "no route leads to host 'c'"),
        (zone(AB, hosts("c", "d"), links("y"), route("a", "b", "x"), route("c", "d", "y")),
         "cluster 'here': no path from 'a' to 'c'; every vertex must be linked"),
        (zone(AB, hosts("c"), route("a", "b", "x"), route("a", "c", "x")), "hosts 'b' and 'c' are at one place"),
        (zone(AB, route("a", "b")), "hosts 'a' and 'b' are at one place"),
        (zone(hosts("a", "b", "c"), links("x", "y", "z", "bb"), route("a", "b", "x", "bb", "y"),
              route("a", "c", "x", "bb", "z"), route("b", "c", "y", "bb", "z")),
         "route from 'b' to 'c' crosses link 'bb' otherwise than an earlier one; no link between two junctions is"),
        (zone(hosts("a", "b", "c"), links("x", "y", "z"), route("a", "b", "x"), route("b", "c", "y"),
              route("a", "c", "x", "y"), route("c", "a", "z")),
         "route from 'a' to 'c' crosses 2 links, but 1 are enough in the graph of all routes"),
        (zone(hosts("a", "b"), links("x", "y"), route("a", "b", "x"), route("b", "a", "y")),
         "links 'x' and 'y' both join 'b' and 'a'; a graph has one between two junctions"),
        (zone(hosts("a", "b"), links("x", policy="FATPIPE"), route("a", "b", "x")),
         "link 'x 0' of host 'a' is a FATPIPE, which no link is"),
        (zone(CLUSTER.format('topology="TORUS" topo_parameters="2,2"')), "<cluster 'c'>: topology TORUS is not read"),
        (zone(CLUSTER.format('limiter_link="1GBps"')), "<cluster 'c'>: limiter_link is not read; no edge of a graph"),
        (zone(CLUSTER.replace("0-3", "3-0").format("")), "<cluster 'c'>: radical '3-0' is none; it must be such as"),
        (zone(CLUSTER.replace("0-3", "0-999999999").format("")), "<cluster 'c'>: has more than 20000 hosts; a"),
        (zone(FAT_TREE.format("2;2,2;1,1")), "fat tree 'c': topo_parameters '2;2,2;1,1' is not levels;down;up;cables"),
        (zone(FAT_TREE.format("2;4,4;1,2;1,2")), "fat tree 'c': has places for 16 hosts, but 4 hosts"),
        (zone(FAT_TREE.format("2;2,2;1,3;1,1")), "fat tree 'c': is no tree of at most 3 levels whose hosts have one"),
        (zone(FAT_TREE.format("2;2,2;1,1;1,2")), "fat tree 'c': '2;2,2;1,1;1,2' is no tree of switches with 4 ports"),
        (zone(FAT_TREE.format("1;4;1;1"), CLUSTER.replace('"h"', '"g"').format("")), "fat tree 'c': is read where it"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line(text: str, message: str) -> None:
    with pytest.raises(FileError) as error:
        read(text)
    assert str(error.value).startswith(f"p.xml: {message}")
    assert "\n" not in str(error.value)


def test_a_full_table_that_leaves_another_way_open_is_refused() -> None:
    # a square of four hosts: two ways between opposite corners, of which the table names one
    sides = [
        ("a", "b", "w"),
        ("b", "c", "x"),
        ("c", "d", "y"),
        ("d", "a", "z"),
        ("a", "c", "w", "x"),
        ("b", "d", "x", "y"),
    ]
    lines = [hosts(*"abcd"), links(*"wxyz"), *(route(*side) for side in sides)]
    with pytest.raises(FileError, match=r"route from 'a' to 'c' crosses 2 links, and another way .* as many"):
        read(zone(*lines))
    # Floyd's routing takes any shortest way
    assert len(read(zone(*lines, routing="Floyd")).links) == 4 + 4


def test_a_file_that_is_too_large_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simgrid_xml, "MOST_BYTES", 10**6)
    with pytest.raises(FileError, match=r"p.xml: is larger than 1 MB; no platform that can be read here is"):
        read(b"<platform version='4'>" + b" " * 10**6)
    monkeypatch.setattr(simgrid_xml, "MOST_ELEMENTS", 100)
    with pytest.raises(FileError, match=r"p.xml: has elements more than 100; no platform that can be read here has"):
        read(zone(hosts(*(f"h{k}" for k in range(200)))))


# --- writing -----------------------------------------------------------------------------------------------------

SHIPPED = [name for name in catalogue.names("cluster") if catalogue.cluster(name).size > 1]
SEVERAL = ["dgx1-v100:3", "dgx2-v100:2", "xeon-edr:100", "xeon-25gbe:70", "pcie-box:5"]


@pytest.mark.parametrize("name", [*SHIPPED, *SEVERAL])
def test_a_written_platform_is_read_back_as_the_same_graph(name: str) -> None:
    cluster = catalogue.cluster(name)
    found, graph = read(simgrid.platform(cluster)), simgrid.graph(cluster)
    assert list(found.vertices.items()) == list(graph.vertices.items())
    assert found.links == graph.links


def network(rng: Random) -> Cluster:
    """A random connected graph of hosts with NICs, switches and links of all sorts."""
    vertices: dict[str, VertexKind] = {}
    found: list[Link] = []
    kinds: list[VertexKind] = ["device", "nic", "switch", "nvswitch", "socket", "pcie_switch"]
    for place in range(rng.randint(1, 12)):
        name = f'{place} "<&>é' if rng.random() < 0.2 else f"v{place}"
        others = list(vertices)
        vertices[name] = "device" if place == 0 else rng.choice(kinds)
        for other in rng.sample(others, min(len(others), rng.randint(1, 3))):
            found.append(
                Link(
                    ends=(name, other) if rng.random() < 0.5 else (other, name),
                    kind=rng.choice(["nvlink", "pcie", "socket", "infiniband", "ethernet", "memory"]),
                    bandwidth=Rate(rng.randint(1, 10**12)),
                    latency=Seconds(rng.choice([0.0, 1e-6, rng.random()])),
                    count=rng.randint(1, 20),
                    duplex=rng.choice(["full", "half"]),
                )
            )
    device = catalogue.cluster("xeon-edr").device
    return Cluster(name="any <thing>", device=device, vertices=vertices, links=tuple(found))


@given(cases(network))
def test_any_graph_is_read_back_as_it_was_written(cluster: Cluster) -> None:
    found = read(simgrid.platform(cluster))
    assert list(found.vertices.items()) == list(cluster.vertices.items())
    for one, other in zip(found.links, cluster.links, strict=True):
        assert one.bandwidth == pytest.approx(other.bandwidth, rel=1e-15)
        assert (one.ends, one.kind, one.latency, one.count, one.duplex) == (
            other.ends,
            other.kind,
            other.latency,
            other.count,
            other.duplex,
        )


def test_nodes_are_joined_by_lowest_switches_with_wide_links_up() -> None:
    cluster = catalogue.cluster("xeon-edr:40")
    graph = simgrid.graph(cluster)
    # switches of 36 ports: 18 NICs and 18 cables up, so three of them below one wide switch
    names = [name for name, kind in graph.vertices.items() if kind == "switch"]
    assert names == ["switch0", "switch1", "switch2", "pod0"]
    up = next(link for link in graph.links if link.ends == ("switch1", "pod0"))
    assert (up.count, up.bandwidth, up.latency) == (18, 12.5e9, 150e-9)
    # three switches on the way: three latencies, of which the cables of the NICs have one together
    nic = next(link for link in graph.links if link.ends == ("node39/nic", "switch2"))
    assert nic.latency == pytest.approx(75e-9)


def test_groups_of_a_dragonfly_are_joined_pairwise() -> None:
    joint = catalogue.cluster("xeon-edr").interconnect
    assert joint is not None
    fields = {name: getattr(joint, name) for name in joint.__struct_fields__}
    dragonfly = Interconnect(**fields | {"topology": "dragonfly", "ports": 16, "group": 16})
    base = catalogue.cluster("xeon-edr:48")
    cluster = Cluster(**{n: getattr(base, n) for n in base.__struct_fields__} | {"interconnect": dragonfly})
    pairs = {link.ends for link in simgrid.graph(cluster).links if link.ends[0].startswith("pod")}
    assert pairs == {("pod0", "pod1"), ("pod0", "pod2"), ("pod1", "pod2")}
    assert simgrid.graph(read(simgrid.platform(cluster))).links == simgrid.graph(cluster).links


def test_what_cannot_be_written_is_one_line() -> None:
    with pytest.raises(ClusterError, match="its 1000 nodes have 2000 vertices; a platform for SimGrid is written with"):
        simgrid.platform(catalogue.cluster("xeon-edr:1000"))
    device = catalogue.cluster("xeon-edr").device
    with pytest.raises(ClusterError, match=r"'a\\x00' holds a character that XML has not"):
        simgrid.platform(Cluster(name="c", device=device, vertices={"a\0": "device"}))
    pair = [Link(ends=("a", "b"), kind=kind, bandwidth=Rate(1.0)) for kind in ("pcie", "nvlink")]
    twice = Cluster(name="c", device=device, vertices={"a": "device", "b": "device"}, links=tuple(pair))
    with pytest.raises(
        ClusterError, match="a and b are joined by pcie and by nvlink; SimGrid's Floyd routing uses one"
    ):
        simgrid.platform(twice)


# --- the command line --------------------------------------------------------------------------------------------


def test_a_cluster_is_shown_as_a_platform_that_is_imported_again(simgd: Simgd) -> None:
    shown = simgd("show dgx1-v100 --simgrid")
    assert shown.out.startswith("<?xml version='1.0'?>")
    Path("p.xml").write_text(shown.out)
    told = simgd("calibrate import p.xml:device=dgx1-v100 --out lab.json")
    assert "machine: 8 NVIDIA V100 SXM2, 4 NICs" in told.out
    made = imported(["p.xml:device=v100"], "lab")
    assert made.cluster.links == catalogue.cluster("dgx1-v100").links
    assert simgd("show lab.json --simgrid").out == shown.out.replace('"dgx1-v100"', '"lab"')


def test_a_platform_predicts_after_import(simgd: Simgd) -> None:
    spec = f"{DATA}/simgrid-cluster-fat-tree.xml:device=xeon-edr,link=infiniband"
    told = simgd(f"calibrate import {spec} --out lab.json")
    assert "machine: 16 nodes of 1 2x Intel Xeon Gold 6148, 1 NIC" in told.out
    (row,) = simgd("collective all_reduce --on lab.json --sizes 1MiB --json").json["collectives"]
    # every rank sends 2 (n-1)/n of the buffer at no more than 125 MB/s
    assert row["ranks"] == 16
    assert row["time_s"] > 2 * 15 / 16 * 2**20 / 125e6
    found = files.read("lab.json", Profile).cluster
    assert found.interconnect is not None
    assert found.interconnect.kind == "infiniband"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("show mlp --simgrid", "mlp: only a cluster or a profile is a platform for SimGrid"),
        ("show dgx1-v100 --toml --simgrid", "--toml and --simgrid both print a file; give one of them"),
        (f"calibrate import {DATA}/simgrid-small-platform.xml", "does not say what its hosts are"),
        (f"calibrate import {DATA}/simgrid-small-platform.xml:device=v100,link=pcie", "link=pcie: must be ethernet or"),
        (f"calibrate import {DATA}/simgrid-small-platform.xml:device=v100,backbone=no", "backbone=no: must be wide"),
        (f"calibrate import {DATA}/simgrid-small-platform.xml:gpu=v100", "'gpu' is no fact about such a file"),
    ],
)
def test_a_wrong_command_is_one_line(simgd: Simgd, line: str, message: str) -> None:
    told = simgd(line)
    assert told.status == 2
    assert message in told.err
    assert told.err.count("\n") == 1


# --- SimGrid itself ----------------------------------------------------------------------------------------------

#: Prints hosts, links and routes of a platform as SimGrid sees them.
SCRIPT = """
import json, sys, simgrid
engine = simgrid.Engine(["routes", "--log=root.thres:critical"])
engine.load_platform(sys.argv[1])
engine.netzone_root.seal()
routes = []
for a in engine.all_hosts:
    for b in engine.all_hosts:
        if a.name != b.name:
            links, latency = a.route_to(b)
            routes.append((a.name, b.name, [link.name for link in links], latency))
links = {link.name: link.bandwidth for link in engine.all_links}
print(json.dumps({"speeds": {host.name: host.speed for host in engine.all_hosts}, "links": links, "routes": routes}))
"""

PYTHON = "/usr/bin/python3"


@lru_cache
def why_not() -> str:
    """Say why SimGrid cannot be asked, or nothing."""
    if not Path(PYTHON).exists():
        return f"there is no {PYTHON}"
    tried = subprocess.run([PYTHON, "-c", "import simgrid"], capture_output=True, check=False)
    return "" if tried.returncode == 0 else f"{PYTHON} cannot import simgrid (apt-get install python3-simgrid)"


@pytest.fixture
def ask(tmp_path: Path) -> Callable[[str], Any]:
    if why_not():
        pytest.skip(why_not())

    def run(text: str) -> Any:
        (tmp_path / "p.xml").write_text(text)
        (tmp_path / "routes.py").write_text(SCRIPT)
        command = [PYTHON, str(tmp_path / "routes.py"), str(tmp_path / "p.xml")]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        assert told.returncode == 0, told.stderr
        return json.loads(told.stdout)

    return run


@pytest.mark.parametrize(
    "name", ["dgx1-p100", "dgx1-v100:3", "dgx2-v100", "dgx-h100:2", "pcie-box:5", "xeon-edr:40", "gb200-nvl72"]
)
def test_simgrid_takes_the_ways_that_we_take(ask: Callable[[str], Any], name: str) -> None:
    cluster = catalogue.cluster(name)
    graph = simgrid.graph(cluster)
    told = ask(simgrid.platform(cluster))
    assert set(told["speeds"].values()) == {cluster.device.fp32}
    flat = Cluster(name="flat", device=cluster.device, vertices=graph.vertices, links=graph.links)
    routes = ways(flat)
    latency = {frozenset(link.ends): link.latency for link in graph.links}
    for a, b, names, latency_s in told["routes"]:
        ours = [routes.names[resource] for resource in routes.between(a, b).resources]
        theirs = [name.rpartition("_")[0].split("-") for name in names if name != simgrid.PAD]
        # where we spread over several equal ways, SimGrid takes one of them
        assert {frozenset(ends) for ends in theirs} <= {frozenset(ends) for ends in ours}
        assert latency_s == pytest.approx(sum(latency[frozenset(ends)] for ends in theirs))
    for link in graph.links:
        assert told["links"][f"{link.ends[0]}-{link.ends[1]}_UP"] == pytest.approx(link.bandwidth * link.count)


@pytest.mark.parametrize("name", ["small-platform", "cluster-multi"])
def test_simgrids_own_platforms_have_the_same_routes_here(ask: Callable[[str], Any], name: str) -> None:
    text = (DATA / f"simgrid-{name}.xml").read_text()
    told, found = ask(text), read(text)
    routes = ways(found)
    for a, b, names, latency_s in told["routes"]:
        way = crossed(found, routes, routes.between(a, b))
        assert sum(link.latency for link in way) == pytest.approx(latency_s)
        assert min(link.bandwidth for link in way) == pytest.approx(min(told["links"][name] for name in names))


def test_simgrids_fat_tree_pays_the_latencies_of_ours(ask: Callable[[str], Any]) -> None:
    told = ask((DATA / "simgrid-cluster-fat-tree.xml").read_text())
    found = read((DATA / "simgrid-cluster-fat-tree.xml").read_bytes())
    assert found.interconnect is not None
    slot = float(found.links[0].latency)
    for a, b, _, latency_s in told["routes"]:
        one, other = (int(name.partition(".")[0].removeprefix("node-")) for name in (a, b))
        switches = 1 if one // 4 == other // 4 else 3
        assert latency_s == pytest.approx(2 * slot + switches * found.interconnect.latency)
