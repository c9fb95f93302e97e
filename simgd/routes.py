"""Ways through one node's graph: from device to device, from a device to the network and back.

Model
    A message between two devices takes, of these, the first that exists: links that join them directly; NVSwitches;
    the host (PCIe switches, sockets), by the fewest hops and, of several such ways, the widest. Devices and NICs pass
    nothing on. A message to another host leaves by the nearest NIC, by several equally near ones alike, and comes in by
    that NIC near its target to which the way is shortest; only where no such NICs are joined it takes the fewest hops
    whatever NICs these pass. Between NVSwitches and in a network of explicit switches it spreads over all shortest ways
    by their width, or in a network with static routing takes one of the widest by the number of its target.
    NVLink is preferred to other direct links between two devices.
"""

import itertools
from collections.abc import Mapping, Sequence
from math import inf
from typing import NamedTuple

from simgd.errors import ClusterError
from simgd.topology import NETWORK_KINDS, Cluster


class Way(NamedTuple):
    """A route: which resources a message crosses and what share of its bytes each carries.

    `kind` is that of its links, "net" between hosts; `nics` the numbers of the NICs where it leaves or enters a node,
    with their shares; `switches` how many explicit switches of a network it crosses.
    """

    resources: tuple[int, ...]
    weights: tuple[float, ...]
    kind: str
    nics: tuple[tuple[int, float], ...] = ()
    switches: int = 0


class _Edge(NamedTuple):
    end: str
    resource: int
    rate: float
    kind: str


class NodeRoutes:
    """The directed links of one node of *cluster* as resources, and the ways over them.

    *usable* is the rate of each link of the cluster in one direction, all its cables together. `names[r]` are the two
    vertices of resource r; the two directions of a half-duplex link are one resource.
    """

    def __init__(self, cluster: Cluster, usable: Sequence[float]) -> None:
        self.cluster = cluster
        self.kinds = cluster.vertices
        self.hosts = cluster.hosts
        self.names: list[tuple[str, str]] = []
        self.capacity: list[float] = []
        self.link_kinds: list[str] = []
        self._full: list[bool] = []
        self._near: dict[str, list[_Edge]] = {name: [] for name in cluster.vertices}
        for link, rate in zip(cluster.links, usable, strict=True):
            a, b = link.ends
            for start, end in ((a, b), (b, a)):
                if start == a or link.duplex == "full":
                    self.names.append((start, end))
                    self.capacity.append(rate)
                    self.link_kinds.append(link.kind)
                    self._full.append(link.duplex == "full")
                self._near[start].append(_Edge(end, len(self.names) - 1, rate, link.kind))
        self._number = {name: number for number, name in enumerate(cluster.devices)}
        self._nic = {name: number for number, name in enumerate(cluster.nics)}
        self._ways: dict[tuple[str, str], Way] = {}
        self._nets: dict[tuple[str, str, int | None], Way | None] = {}

    def between(self, a: str, b: str) -> Way:
        """Return the way from device *a* to device *b* of the same node.

        Raises ClusterError if there is none.
        """
        way = self._ways.get((a, b))
        if way is None:
            way = self._between(a, b)
            # each byte crosses one cable more than switches
            parts = zip(way.resources, way.weights, strict=True)
            cables = sum(weight for resource, weight in parts if self.link_kinds[resource] in NETWORK_KINDS)
            way = self._ways[a, b] = way._replace(switches=max(0, round(cables) - 1))
        return way

    def direct(self, a: str, b: str) -> Way | None:
        """Return the way over links that join two devices without anything between them, if there are any."""
        edges = [edge for edge in self._near[a] if edge.end == b]
        edges = [edge for edge in edges if edge.kind == "nvlink"] or edges
        if not edges:
            return None
        whole = sum(edge.rate for edge in edges)
        kind = "net" if edges[0].kind in NETWORK_KINDS else edges[0].kind
        return Way(tuple(edge.resource for edge in edges), tuple(edge.rate / whole for edge in edges), kind)

    def switched(self, a: str, b: str) -> Way | None:
        """Return the way over NVSwitches, if there is one."""
        return self._spread(a, b, ("nvswitch",))

    def hosted(self, a: str, b: str) -> Way | None:
        """Return the way through the host, if there is one."""
        return self._spread(a, b, ("pcie_switch", "socket"), number=0)

    def _between(self, a: str, b: str) -> Way:
        way = self.direct(a, b) or self.switched(a, b)
        if way is None and self.hosts[a] == self.hosts[b]:
            way = self.hosted(a, b)
        if way is None and self.hosts[a] != self.hosts[b]:
            way = self._networked(a, b)
        if way is None:
            raise ClusterError(f"cluster {self.cluster.name!r}: no route from {a} to {b} without other devices between")
        return way

    def _networked(self, a: str, b: str) -> Way | None:
        """Return the way between devices of two hosts, if there is one."""
        number = None if self.cluster.routing == "adaptive" else self._number[b]
        pairs: list[list[tuple[Way, Way, Way]]] = []
        for nic in self.nearest_nics(a):
            ways = [
                (self._to_nic(a, nic), way, self._to_nic(other, b))
                for other in self.nearest_nics(b)
                if (way := self._net(nic, other, number)) is not None
            ]
            # the weights of one hop have the sum 1
            hops = [round(sum(way.weights)) for _, way, _ in ways]
            pairs.append([parts for parts, count in zip(ways, hops, strict=True) if count == min(hops)])
        pairs = [ways for ways in pairs if ways]
        if not pairs:
            return self._spread(a, b, ("pcie_switch", "socket", "nic", "switch"), number=number)
        weight: dict[int, float] = {}
        for ways in pairs:
            for part in itertools.chain(*ways):
                for resource, share in zip(part.resources, part.weights, strict=True):
                    weight[resource] = weight.get(resource, 0.0) + share / len(pairs) / len(ways)
        return Way(tuple(weight), tuple(weight.values()), "net")

    def _net(self, start: str, end: str, number: int | None) -> Way | None:
        """Return the way between two NICs, if there is one."""
        key = (start, end, number)
        if key not in self._nets:
            self._nets[key] = self.direct(start, end) or self._spread(start, end, ("switch",), number=number)
        return self._nets[key]

    def _to_nic(self, start: str, end: str) -> Way:
        """Return the way between a device and a NIC near to it, in either direction."""
        way = self.direct(start, end) or self.hosted(start, end)
        assert way is not None
        return way

    def out(self, device: str) -> Way:
        """Return the way from *device* to the NICs nearest to it; `into` is the way back.

        Raises ClusterError if it reaches no NIC.
        """
        return self._gate(device, back=False)

    def into(self, device: str) -> Way:
        """Return the way from the NICs nearest to *device* to it."""
        return self._gate(device, back=True)

    def port(self, device: str, *, back: bool) -> Way:
        """Return the links from *device* to the NVSwitches (*back*: from them), each used by its width."""
        edges = [edge for edge in self._near[device] if self.kinds[edge.end] == "nvswitch"]
        if back:
            edges = [next(e for e in self._near[edge.end] if e.end == device) for edge in edges]
        whole = sum(edge.rate for edge in edges)
        return Way(tuple(edge.resource for edge in edges), tuple(edge.rate / whole for edge in edges), "nvlink")

    def kind_at(self, device: str) -> str:
        """Return the kind of link that a device has: NVLink before PCIe before others, "memory" for none."""
        kinds = [edge.kind for edge in self._near[device]]
        return next((kind for kind in ("nvlink", "pcie", *kinds) if kind in kinds), "memory")

    def memory(self, device: str, *, back: bool) -> Way:
        """Return the way from *device* to the nearest socket, beside which the host's memory is; *back*: from there.

        Raises ClusterError if there is none.
        """
        sockets = [name for name, kind in self.kinds.items() if kind == "socket"]
        ways = [
            way
            for name in sockets
            for ends in [(name, device) if back else (device, name)]
            if (way := self.direct(*ends) or self.hosted(*ends)) is not None
        ]
        if not ways:
            raise ClusterError(f"cluster {self.cluster.name!r}: {device} reaches no socket, and so no host's memory")
        return min(ways, key=lambda way: len(way.resources))

    def is_full_duplex(self, resource: int) -> bool:
        """Say whether a resource is one direction of a link, and not both."""
        return self._full[resource]

    def nic_bytes_per_s(self, nic: int, *, back: bool) -> float:
        """Return the rate of a NIC's links into a network of explicit switches (*back*: out of it)."""
        name = self.cluster.nics[nic]
        ends = [edge.end for edge in self._near[name] if edge.kind in NETWORK_KINDS]
        edges = [e for end in ends for e in self._near[end] if e.end == name] if back else self._near[name]
        return sum(edge.rate for edge in edges if edge.kind in NETWORK_KINDS)

    def depth_first(self, devices: Sequence[str]) -> tuple[str, ...]:
        """Return those of *devices* that the host's graph joins with the first one, in depth-first order."""
        wanted, found = set(devices), []
        seen, left = {devices[0]}, [devices[0]]
        while left:
            name = left.pop()
            if name in wanted:
                found.append(name)
            if self.kinds[name] == "device" and name != devices[0]:
                continue
            edges = [e for e in self._near[name] if self.kinds[e.end] in ("device", "pcie_switch", "socket")]
            if self.kinds[name] == "device":
                edges = [edge for edge in edges if self.kinds[edge.end] != "device"]
            # wide links last, so that they are followed first
            for edge in sorted(edges, key=lambda edge: (self.kinds[edge.end] == "device", edge.rate)):
                if edge.end not in seen:
                    seen.add(edge.end)
                    left.append(edge.end)
        return tuple(found)

    def nearest_nics(self, device: str) -> tuple[str, ...]:
        """Return the NICs with the fewest hops from *device*, passing no device and no NVSwitch."""
        reached, front = {device}, [device]
        while front:
            found = tuple(name for name in front if name in self._nic)
            if found:
                return found
            following = []
            for name in front:
                for edge in self._near[name]:
                    passes = self.kinds[edge.end] in ("pcie_switch", "socket", "nic")
                    if passes and edge.end not in reached:
                        reached.add(edge.end)
                        following.append(edge.end)
            front = following
        return ()

    def _gate(self, device: str, *, back: bool) -> Way:
        key = ("", device) if back else (device, "")
        way = self._ways.get(key)
        if way is None:
            nics = self.nearest_nics(device)
            if not nics:
                raise ClusterError(
                    f"cluster {self.cluster.name!r}: no path from {device} to a nic without other devices between"
                )
            weight: dict[int, float] = {}
            for nic in nics:
                ends = (nic, device) if back else (device, nic)
                part = self._to_nic(*ends)
                for resource, share in zip(part.resources, part.weights, strict=True):
                    weight[resource] = weight.get(resource, 0.0) + share / len(nics)
            shares = tuple((self._nic[nic], 1 / len(nics)) for nic in nics)
            way = self._ways[key] = Way(tuple(weight), tuple(weight.values()), "net", shares)
        return way

    def _spread(self, a: str, b: str, passed: tuple[str, ...], *, number: int | None = None) -> Way | None:
        """Return the shortest ways from *a* to *b* through one or more vertices of the kinds *passed*: all of them by
        their width, or with a *number* one of the widest by that number."""
        distance = {b: 0}
        front = [b]
        while front and a not in distance:
            following = []
            for name in front:
                for edge in self._near[name]:
                    passes = self.kinds[edge.end] in passed or (edge.end == a and name != b)
                    if edge.end not in distance and passes:
                        distance[edge.end] = distance[name] + 1
                        following.append(edge.end)
            front = following
        if a not in distance:
            return None
        #: What the widest of the shortest ways from a vertex to *b* carries.
        width = {b: inf}
        for name in list(distance)[1:] if number is not None else ():
            nearer = [edge for edge in self._near[name] if distance.get(edge.end) == distance[name] - 1]
            width[name] = max(min(edge.rate, width[edge.end]) for edge in nearer)
        flow: dict[str, float] = {a: 1.0}
        weight: dict[int, float] = {}
        kinds: list[str] = []
        while flow and b not in flow:
            following_flow: dict[str, float] = {}
            for name, share in flow.items():
                edges = [e for e in self._near[name] if distance.get(e.end) == distance[name] - 1]
                if number is not None:
                    alike = [edge for edge in edges if min(edge.rate, width[edge.end]) == width[name]]
                    number, chosen = divmod(number, len(alike))
                    edges = [alike[chosen]]
                whole = sum(edge.rate for edge in edges)
                for edge in edges:
                    part = share * edge.rate / whole
                    weight[edge.resource] = weight.get(edge.resource, 0.0) + part
                    following_flow[edge.end] = following_flow.get(edge.end, 0.0) + part
                    kinds.append(edge.kind)
            flow = following_flow
        return Way(tuple(weight), tuple(weight.values()), _kind(kinds))


def _kind(kinds: Sequence[str]) -> str:
    """Return the kind of link that names a way: "net" between hosts, else PCIe before sockets."""
    if any(kind in NETWORK_KINDS for kind in kinds):
        return "net"
    return next((kind for kind in ("nvlink", "pcie") if kind in kinds), kinds[0])


def usable_rates(
    cluster: Cluster, rates: Mapping[str, float], scale: Mapping[str, float], share: float
) -> tuple[float, ...]:
    """Return the usable rate of each link: all its cables, in one direction; what both directions of a half-duplex link
    share.

    *rates* holds what the fastest cable of each kind reaches, and others reach the same share of their nominal rate;
    kinds that are absent reach *share*. *scale* multiplies the rates of kinds of links.
    """
    fastest: dict[str, float] = {}
    for link in cluster.links:
        fastest[link.kind] = max(fastest.get(link.kind, 0.0), link.bandwidth)
    reached = {
        kind: (rates[kind] / nominal if kind in rates else share) * scale.get(kind, 1.0)
        for kind, nominal in fastest.items()
    }
    return tuple(float(link.bandwidth) * link.count * reached[link.kind] for link in cluster.links)
