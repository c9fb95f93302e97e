"""Writes a cluster as a platform file of SimGrid (XML, version 4.1).

Model
    One zone with Floyd routing holds a host for each device (its speed is the fp32 rate), a router for every other
    vertex, and a link for each link: all its cables together, at the nominal rate; both directions share it where it is
    half duplex (SHARED), else each has its own (SPLITDUPLEX). Several nodes are written one by one. The network that
    joins them has one router for each lowest switch, one for the upper switches of a pod or group, and one for the
    core, with links as wide as all cables between them: what adaptive routing sees. A message through s switches pays
    s latencies of the interconnect, half of one on each cable of a NIC.
    Floyd routing takes the fewest links and lets hosts pass messages on. Routes that begin or end at a device or a NIC
    are made longer by a link that limits nothing, where otherwise a message would pass through one; and those into the
    host longer than those into NVSwitches, which come first.

    Kinds of vertices and links and counts of cables stand in properties, so that the file can be read back.

What it leaves out
    Software. Where a message can take several equal ways, SimGrid takes one of them; static routing's choice by the
    destination; bursts.
"""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple
from xml.sax.saxutils import quoteattr

import msgspec
import numpy as np

from simgd.errors import ClusterError
from simgd.interconnects import Net
from simgd.topology import NETWORK_KINDS, Cluster, Link, VertexKind
from simgd.units import Seconds

#: Floyd's algorithm takes the cube of the number of vertices: some seconds and 100 MB for so many.
MOST_VERTICES = 1024

#: The link that makes routes longer.
PAD = "simgd_longer"

#: Links added to a route that begins or ends at a device, beyond it for its way into the host, and at a NIC. A detour
#: through another device adds twice the first, more than it can save inside a node.
_AT_DEVICE, _INTO_HOST, _AT_NIC = 4, 2, 4

#: What XML 1.0 cannot hold.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Graph(NamedTuple):
    """Vertices and links of all nodes, with the network that joins them."""

    vertices: dict[str, VertexKind]
    links: tuple[Link, ...]


def graph(cluster: Cluster) -> Graph:
    """Return the graph of all nodes of *cluster*, with the switches that join them as vertices.

    Raises ClusterError if it has more than `MOST_VERTICES` vertices.
    """
    _check_size(cluster, cluster.nodes * len(cluster.vertices))
    if cluster.nodes == 1:
        return Graph(cluster.vertices, cluster.links)
    vertices: dict[str, VertexKind] = {}
    links: list[Link] = []
    nics: list[str] = []
    for node in range(cluster.nodes):
        vertices |= {f"node{node}/{name}": kind for name, kind in cluster.vertices.items()}
        nics += [f"node{node}/{name}" for name in cluster.nics]
        for link in cluster.links:
            a, b = link.ends
            links.append(msgspec.structs.replace(link, ends=(f"node{node}/{a}", f"node{node}/{b}")))
    for link in _network(cluster, nics):
        vertices |= {name: "switch" for name in link.ends if name not in vertices}
        links.append(link)
    _check_size(cluster, len(vertices))
    return Graph(vertices, tuple(links))


def _check_size(cluster: Cluster, vertices: int) -> None:
    if vertices > MOST_VERTICES:
        raise ClusterError(
            f"cluster {cluster.name!r}: its {cluster.nodes} nodes have {vertices} vertices; a platform for SimGrid is "
            f"written with at most {MOST_VERTICES}"
        )


def _network(cluster: Cluster, nics: list[str]) -> Iterator[Link]:
    """Yield the cables between the *nics* of all nodes, those that adaptive routing uses alike as one link."""
    joint = cluster.interconnect
    assert joint is not None
    net = Net(joint, cluster.nodes, len(cluster.nics), "adaptive")
    leaves = net.leaf(np.arange(len(nics))).tolist()

    def link(a: str, b: str, latencies: float, count: int = 1) -> Link:
        kind = joint.kind
        latency = Seconds(latencies * joint.latency)
        return Link(ends=(a, b), kind=kind, bandwidth=joint.bandwidth, latency=latency, count=count)

    for nic, leaf in zip(nics, leaves, strict=True):
        yield link(nic, f"switch{leaf}", 0.5)
    used = sorted(set(leaves))
    if len(used) == 1:
        return
    for leaf in used:
        yield link(f"switch{leaf}", f"pod{leaf // net.leaves_a_pod}", 1.0, net.up)
    pods = sorted({leaf // net.leaves_a_pod for leaf in used})
    if net.between:
        for place, pod in enumerate(pods):
            for other in pods[place + 1 :]:
                yield link(f"pod{pod}", f"pod{other}", 1.0, net.between)
    elif len(pods) > 1:
        for pod in pods:
            # `net.far` switches on the whole way, of which two lowest and two of pods are counted already
            yield link(f"pod{pod}", "core", (net.far - 3) / 2, net.up * net.core)


def platform(cluster: Cluster) -> str:
    """Return *cluster* as a platform file of SimGrid.

    Raises ClusterError if it is too large, or if a name in it cannot stand in XML.
    """
    vertices, links = graph(cluster)
    for name in (cluster.name, *vertices):
        if _NOT_XML.search(name):
            raise ClusterError(f"cluster {cluster.name!r}: {name!r} holds a character that XML has not")
    _check_pairs(cluster, links)
    told = f"{cluster.size} {cluster.device.name}, {len(links)} links".replace("--", "- -")
    lines = [
        "<?xml version='1.0'?>",
        '<!DOCTYPE platform SYSTEM "https://simgrid.org/simgrid.dtd">',
        '<platform version="4.1">',
        f"  <!-- {_NOT_XML.sub('?', told)} -->",
        f'  <zone id={quoteattr(cluster.name)} routing="Floyd">',
    ]
    lines += [
        f"    <prop id={quoteattr(f'vertex:{name}')} value={quoteattr(kind)}/>" for name, kind in vertices.items()
    ]
    speed = f'speed="{float(cluster.device.fp32)!r}f"'
    lines += [f"    <host id={quoteattr(name)} {speed}/>" for name, kind in vertices.items() if kind == "device"]
    lines += [f"    <router id={quoteattr(name)}/>" for name, kind in vertices.items() if kind != "device"]
    names = _names(links)
    lines += [_link(name, link) for name, link in zip(names, links, strict=True)]
    longer = _longer(vertices, links)
    if any(longer):
        lines.append(f'    <link id="{PAD}" bandwidth="1e21Bps" latency="0s" sharing_policy="FATPIPE"/>')
    for name, link, pads in zip(names, links, longer, strict=True):
        direction = ' direction="UP"' if link.duplex == "full" else ""
        a, b = link.ends
        crossed = f"<link_ctn id={quoteattr(name)}{direction}/>" + pads * f'<link_ctn id="{PAD}"/>'
        lines.append(f"    <route src={quoteattr(a)} dst={quoteattr(b)}>{crossed}</route>")
    return "\n".join([*lines, "  </zone>", "</platform>", ""])


def _check_pairs(cluster: Cluster, links: tuple[Link, ...]) -> None:
    seen: dict[frozenset[str], Link] = {}
    for link in links:
        other = seen.setdefault(frozenset(link.ends), link)
        if other is not link:
            a, b = link.ends
            raise ClusterError(
                f"cluster {cluster.name!r}: {a} and {b} are joined by {other.kind} and by {link.kind}; SimGrid's Floyd "
                "routing uses one link between two vertices"
            )


def _names(links: tuple[Link, ...]) -> list[str]:
    names = [f"{link.ends[0]}-{link.ends[1]}" for link in links]
    alike = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    return [f"{name} {number}" if name in alike else name for number, name in enumerate(names)]


def _link(name: str, link: Link) -> str:
    policy = "SPLITDUPLEX" if link.duplex == "full" else "SHARED"
    rate, latency = f"{float(link.bandwidth) * link.count!r}Bps", f"{float(link.latency)!r}s"
    count = f'<prop id="count" value="{link.count}"/>' if link.count > 1 else ""
    return (
        f'    <link id={quoteattr(name)} bandwidth="{rate}" latency="{latency}" sharing_policy="{policy}">'
        f'<prop id="kind" value="{link.kind}"/>{count}</link>'
    )


def _longer(vertices: Mapping[str, VertexKind], links: tuple[Link, ...]) -> list[int]:
    """Return by how many links the route over each link is made longer: by none where no message could pass through a
    device, or leave its host and come back."""
    at = dict.fromkeys(vertices, 0)
    for link in links:
        for end in link.ends:
            at[end] += 1
    plain = all(at[name] < 2 or kind != "device" for name, kind in vertices.items())
    if plain:
        return [0] * len(links)
    switched = "nvswitch" in vertices.values()
    found = []
    for link in links:
        kinds = [vertices[end] for end in link.ends]
        pads = _AT_DEVICE * kinds.count("device")
        if switched and kinds.count("device") == 1 and "nvswitch" not in kinds:
            pads += _INTO_HOST
        if link.kind in NETWORK_KINDS and "nic" in kinds:
            pads += _AT_NIC
        found.append(pads)
    return found
