"""What a machine's links offer to a collective: places of ranks, rings through them, and what limits those rings.

Model
    Between GPUs that are linked directly rings are found by search (`rings`). GPUs under NVSwitches reach each other
    at the rate of their own links into the switches.
    Without a circuit of direct links the library falls back to one ring through the host (PCIe switches, sockets): in
    a tree, visiting devices depth first crosses each edge once in each direction, and no ring can do with less.
    Across nodes rings enter and leave a node through the NICs nearest to its devices: their rate is the smaller of
    what a path through the node's devices reaches and of what flows from the devices to those NICs.

What it leaves out
    Trunks between NVSwitches and the fat tree between nodes are taken as non-blocking; a ring's entry is not bound to
    the GPU beside its NIC; NVLink hops are not mixed with PCIe hops in one ring (its PCIe hops would limit it all the
    same). Hosts that are joined in more than one way use their widest tree.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from simgd.errors import ClusterError
from simgd.rings import Ring, best_rings
from simgd.topology import Cluster, Link, VertexKind

#: A library's share of a link's nominal rate where no profile says it. NCCL's own tables (src/graph/topo.h) hold
#: 18 of 20 GB/s (Pascal), 20 of 25 (Ampere), 20.6 of 25 (Hopper), 12 of 15.75 (PCIe 3) and 12 of 12.5 (100 Gb/s).
NOMINAL_SHARE = 0.8


class Place(NamedTuple):
    """Where a rank runs: the number of its node, and of its device there."""

    node: int
    device: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fabric:
    """What the links between some places offer to a collective.

    `ring_bytes_per_s` is the sum over all rings of the rate of one hop: the bus bandwidth of an endless message.
    `inside` is the kind of link inside a node and `path` the kind that limits the whole; `rings` lists the rings (or
    paths from NIC to NIC) of one node. `port_bytes_per_s` is each device's rate into NVSwitches, 0 without them.
    `hops` counts the hops of one turn of a ring by kind, "net" for those between nodes; `net_extra_s` is what a hop
    between nodes takes beyond one switch in a fat tree of several levels, `inside_extra_s` what one inside a node takes
    beyond the library's constants. `assumed` names the kinds of links whose usable rate nobody gave.
    """

    ranks: int
    nodes: int
    ring_bytes_per_s: float
    inside_bytes_per_s: float
    net_bytes_per_s: float
    port_bytes_per_s: float
    inside: str
    path: str
    rings: tuple[Ring, ...]
    hops: tuple[tuple[str, int], ...]
    net_extra_s: float
    assumed: tuple[str, ...]
    inside_extra_s: float = 0.0


def resized(cluster: Cluster, nodes: int) -> Cluster:
    """Return *cluster* with another number of nodes.

    Raises ClusterError if the nodes have nothing that joins them, or if *nodes* is not above 0.
    """
    fields = {name: getattr(cluster, name) for name in cluster.__struct_fields__}
    return Cluster(**fields | {"nodes": nodes})


def placement(cluster: Cluster, ranks: int, devices: Sequence[int] | None = None) -> tuple[Place, ...]:
    """Return the place of each rank.

    Ranks fill nodes in the order of device numbers; CPU clusters put one rank on a node and have as many nodes as
    asked. *devices* lists device numbers, counted through all nodes, one for each rank.
    """
    if ranks < 1:
        raise ClusterError(f"cluster {cluster.name!r}: {ranks} ranks; at least 1 is needed")
    per_node = len(cluster.devices)
    grows = cluster.device.kind == "cpu" and cluster.interconnect is not None and bool(cluster.nics)
    if devices is None:
        if grows:
            return tuple(Place(rank, 0) for rank in range(ranks))
        if ranks > cluster.size:
            found = f"{cluster.size} device" + ("s" if cluster.size > 1 else "")
            joined = cluster.interconnect is not None and bool(cluster.nics)
            more = f"`--on {cluster.name}:{-(-ranks // per_node)}` has enough nodes" if joined else "no nic joins more"
            raise ClusterError(f"cluster {cluster.name!r}: {ranks} ranks, but {found}; {more}")
        return tuple(Place(*divmod(rank, per_node)) for rank in range(ranks))
    if len(devices) != ranks:
        raise ClusterError(f"cluster {cluster.name!r}: {ranks} ranks, but {len(devices)} devices are listed")
    seen: set[int] = set()
    for device in devices:
        if device < 0 or (device >= cluster.size and not grows):
            known = f"they are 0 to {cluster.size - 1}"
            raise ClusterError(f"cluster {cluster.name!r}: device {device} is unknown; {known}")
        if device in seen:
            raise ClusterError(f"cluster {cluster.name!r}: device {device} is listed twice")
        seen.add(device)
    return tuple(Place(*divmod(device, per_node)) for device in devices)


def fabric(
    cluster: Cluster,
    places: Sequence[Place],
    rates: Mapping[str, float] | None = None,
    scale: Mapping[str, float] | None = None,
) -> Fabric:
    """Return what the links of *cluster* offer to a collective between *places*.

    *rates* holds, by kind of link, what a library reaches in one direction of one cable, in bytes a second; of
    cables of one kind with unlike nominal rates it speaks of the fastest, and the others reach the same share. Kinds
    that are absent reach `NOMINAL_SHARE` of their nominal rate. *scale* multiplies the rates of kinds of links.
    """
    if not places:
        raise ClusterError(f"cluster {cluster.name!r}: a collective needs at least one place")
    rates, scale = rates or {}, scale or {}
    usable = _usable(cluster, rates, scale)
    nodes: dict[int, list[str]] = {}
    for place in places:
        nodes.setdefault(place.node, []).append(cluster.devices[place.device])
    joined = len(nodes) > 1
    vertices, net, nic, extra = tuple(cluster.vertices.items()), float("inf"), 0.0, 0.0
    if joined:
        if cluster.interconnect is None or not cluster.nics:
            raise ClusterError(f"cluster {cluster.name!r}: has no nic and interconnect to join its nodes")
        kind = cluster.interconnect.kind
        nic = rates.get(kind, NOMINAL_SHARE * cluster.interconnect.bandwidth) * scale.get(kind, 1.0)
        extra = _extra_switches(len(nodes), cluster.interconnect.ports) * float(cluster.interconnect.latency)
    # most nodes hold the same devices: each different set is looked at once
    insides: list[_Inside] = []
    for group in dict.fromkeys(tuple(sorted(group)) for group in nodes.values()):
        gate = _gate(vertices, cluster.links, usable, group, nic) if joined else float("inf")
        net = min(net, gate)
        insides.append(_inside(vertices, cluster.links, usable, group, joined, gate))
    inside = min(insides, key=lambda found: found.bytes_per_s)
    crosses = {inside.kind} if inside.kind == "nvlink" and not joined else {link.kind for link in cluster.links}
    path = inside.kind
    if joined and cluster.interconnect is not None:
        crosses.add(cluster.interconnect.kind)
        path = cluster.interconnect.kind if net <= inside.bytes_per_s else path
    within = len(places) - len(nodes) if joined else len(places) if len(places) > 1 else 0
    return Fabric(
        ranks=len(places),
        nodes=len(nodes),
        ring_bytes_per_s=min(inside.bytes_per_s, net),
        inside_bytes_per_s=inside.bytes_per_s,
        net_bytes_per_s=net,
        port_bytes_per_s=min(found.port_bytes_per_s for found in insides),
        inside=inside.kind,
        path=path,
        rings=inside.rings,
        hops=tuple((kind, n) for kind, n in ((inside.kind, within), ("net", len(nodes) if joined else 0)) if n),
        net_extra_s=extra,
        assumed=tuple(sorted(kind for kind in crosses if kind not in rates)),
    )


def _extra_switches(nodes: int, ports: int) -> int:
    """Return how many switches a message crosses beyond the first, in a fat tree of k levels for *nodes* nodes.

    One switch joins `ports` nodes; a tree of k levels joins 2 (ports/2)^k, over 2k-1 switches.
    """
    levels, room = 1, ports
    while room < nodes and levels < 8:
        levels += 1
        room = 2 * max(2, ports // 2) ** levels
    return 2 * (levels - 1)


def _usable(cluster: Cluster, rates: Mapping[str, float], scale: Mapping[str, float]) -> tuple[float, ...]:
    """Return the usable rate of each link: all its cables, one direction, half of it if both directions share."""
    fastest: dict[str, float] = {}
    for link in cluster.links:
        fastest[link.kind] = max(fastest.get(link.kind, 0.0), link.bandwidth)
    share = {
        kind: (rates[kind] / nominal if kind in rates else NOMINAL_SHARE) * scale.get(kind, 1.0)
        for kind, nominal in fastest.items()
    }
    return tuple(
        float(link.bandwidth) * link.count * share[link.kind] * (0.5 if link.duplex == "half" else 1.0)
        for link in cluster.links
    )


class _Inside(NamedTuple):
    bytes_per_s: float
    kind: str
    rings: tuple[Ring, ...]
    port_bytes_per_s: float


_Vertices = tuple[tuple[str, VertexKind], ...]


@lru_cache(maxsize=512)
def _inside(
    vertices: _Vertices,
    links: tuple[Link, ...],
    usable: tuple[float, ...],
    devices: tuple[str, ...],
    through: bool,
    enough: float,
) -> _Inside:
    """Return what rings reach inside a node, or (*through*) paths that enter and leave it."""
    if len(devices) == 1:
        kinds = [link.kind for link in links if devices[0] in link.ends]
        kind = next((kind for kind in ("nvlink", "pcie", *kinds) if kind in kinds), "memory")
        return _Inside(float("inf"), kind, (), 0.0)
    port = _port_rate(vertices, links, usable, devices)
    capacity: dict[tuple[str, str], float] = {}
    direct_kinds = ["nvlink"] if port > 0 else []
    for link, rate in zip(links, usable, strict=True):
        a, b = link.ends
        if a in devices and b in devices:
            direct_kinds.append(link.kind)
            capacity[a, b] = capacity.get((a, b), 0.0) + rate
            capacity[b, a] = capacity.get((b, a), 0.0) + rate
    rings: tuple[Ring, ...] = ()
    if capacity:
        rings = best_rings(devices, capacity, through=through, enough=max(0.0, enough - port))
    direct = sum(ring.bytes_per_s for ring in rings)
    if port > 0:
        rings = (*rings, Ring(devices, port))
    host, host_kind = _host_rate(vertices, links, usable, devices)
    if direct + port > 0 and ("nvlink" in direct_kinds or direct >= host):
        return _Inside(direct + port, "nvlink" if "nvlink" in direct_kinds else direct_kinds[0], rings, port)
    if host <= 0:
        raise ClusterError(f"no way for a ring through {', '.join(devices)}: some have no path without other devices")
    return _Inside(host, host_kind, (Ring(devices, host),), 0.0)


def _port_rate(
    vertices: _Vertices, links: tuple[Link, ...], usable: tuple[float, ...], devices: tuple[str, ...]
) -> float:
    """Return the least rate of a device into NVSwitches that are joined with each other; 0 if they miss a device."""
    switches = [name for name, kind in vertices if kind == "nvswitch"]
    group = {name: name for name in switches}

    def root(name: str) -> str:
        while group[name] != name:
            name = group[name]
        return name

    ports: dict[tuple[str, str], float] = {}
    for link in links:
        a, b = link.ends
        if a in group and b in group:
            group[root(a)] = root(b)
    for link, rate in zip(links, usable, strict=True):
        for device, switch in (link.ends, link.ends[::-1]):
            if device in devices and switch in group:
                at = (root(switch), device)
                ports[at] = ports.get(at, 0.0) + rate
    return sum(min(ports.get((name, device), 0.0) for device in devices) for name in switches if root(name) == name)


def _host_tree(
    vertices: _Vertices, links: tuple[Link, ...], usable: tuple[float, ...]
) -> dict[str, list[tuple[str, float, str]]]:
    """Return the widest spanning tree of the host's graph: everything but NVSwitches and links between devices.

    Devices do not pass traffic on: they hang in the tree as leaves.
    """
    kinds = dict(vertices)
    group = {name: name for name in kinds}

    def root(name: str) -> str:
        while group[name] != name:
            group[name] = group[group[name]]
            name = group[name]
        return name

    tree: dict[str, list[tuple[str, float, str]]] = {name: [] for name in kinds}
    order = sorted(range(len(links)), key=lambda at: (-usable[at], links[at].latency))
    taken: set[str] = set()
    for leaf in (False, True):  # devices are joined last, each by its widest link, so that none is crossed
        for at in order:
            a, b = links[at].ends
            devices = [end for end in (a, b) if kinds[end] == "device"]
            if len(devices) == 2 or "nvswitch" in (kinds[a], kinds[b]) or bool(devices) != leaf:
                continue
            if leaf and devices[0] in taken:
                continue
            if root(a) != root(b):
                group[root(a)] = root(b)
                taken.update(devices)
                for one, other in ((a, b), (b, a)):
                    tree[one].append((other, usable[at], links[at].kind))
    return tree


def _host_rate(
    vertices: _Vertices, links: tuple[Link, ...], usable: tuple[float, ...], devices: tuple[str, ...]
) -> tuple[float, str]:
    """Return the rate of one ring through the host, and the kind of link that most of it crosses ("pcie").

    Every edge of the tree that has wanted devices on both sides is crossed once in each direction.
    """
    tree = _host_tree(vertices, links, usable)
    least, wanted = float("inf"), set(devices)
    kinds: list[str] = []
    seen: set[str] = set()

    def below(name: str, parent: str) -> int:
        nonlocal least
        seen.add(name)
        count = int(name in wanted)
        for other, rate, kind in tree[name]:
            if other == parent:
                continue
            under = below(other, name)
            if 0 < under < len(wanted):
                least = min(least, rate)
                kinds.append(kind)
            count += under
        return count

    if below(devices[0], "") < len(wanted):
        return 0.0, ""
    kind = "pcie" if "pcie" in kinds else kinds[0]
    return least, kind


@lru_cache(maxsize=512)
def _gate(
    vertices: _Vertices,
    links: tuple[Link, ...],
    usable: tuple[float, ...],
    devices: tuple[str, ...],
    nic_bytes_per_s: float,
) -> float:
    """Return the rate at which *devices* together reach the NICs nearest to them.

    It is the maximum flow from the devices to those NICs through the host's graph.
    """
    kinds = dict(vertices)
    nics = tuple(name for name, kind in vertices if kind == "nic")
    near: dict[str, list[str]] = {name: [] for name in kinds}
    for link in links:
        a, b = link.ends
        if not (kinds[a] == "device" and kinds[b] == "device") and "nvswitch" not in (kinds[a], kinds[b]):
            near[a].append(b)
            near[b].append(a)
    used: dict[str, None] = {}
    for device in devices:
        used.update(dict.fromkeys(_nearest(near, kinds, device, nics)))
    if not used:
        raise ClusterError(f"no path from {', '.join(devices)} to a nic without other devices between")
    import networkx  # here, since only machines of several nodes need it, and it takes a quarter of a second

    flow: networkx.DiGraph[str] = networkx.DiGraph()

    def join(a: str, b: str, rate: float) -> None:
        flow.add_edge(a, b, capacity=rate + (flow.edges[a, b]["capacity"] if flow.has_edge(a, b) else 0.0))

    for link, rate in zip(links, usable, strict=True):
        for a, b in (link.ends, link.ends[::-1]):
            outside = kinds[a] == "device" and a not in devices
            if b in near[a] and not outside and kinds[b] != "device" and kinds[a] != "nic":
                join(a, b, rate)
    for device in devices:
        join("\0from", device, float("inf"))
    for nic in used:
        join(nic, "\0to", nic_bytes_per_s)
    return float(networkx.maximum_flow_value(flow, "\0from", "\0to"))


def _nearest(near: Mapping[str, list[str]], kinds: Mapping[str, str], device: str, nics: tuple[str, ...]) -> list[str]:
    """Return the NICs with the fewest hops from *device*, without passing other devices."""
    reached, front = {device}, [device]
    while front:
        found = [name for name in front if name in nics]
        if found:
            return found
        following: list[str] = []
        for name in front:
            for other in near[name]:
                if other not in reached and kinds[other] != "device":
                    reached.add(other)
                    following.append(other)
        front = following
    return []
