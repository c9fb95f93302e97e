"""All links that the ranks of a collective can use, and what each of many messages between ranks crosses.

Every used node has the resources of `routes.NodeRoutes`, and the network between nodes those of `interconnects.Net`;
one array holds what each carries, in bytes a second. A message is a source and a target rank; its bytes spread over
resources by weights. Both levels of detail stand on this: the load of a step's links (`load_s`), and flows one by one.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from simgd.errors import ClusterError
from simgd.interconnects import Net, Numbers, Routes
from simgd.routes import NodeRoutes, Way, usable_rates
from simgd.topology import Cluster

Reals = npt.NDArray[np.float64]

#: A library's share of a link's nominal rate where no profile says it. NCCL's own tables (src/graph/topo.h) hold
#: 18 of 20 GB/s (Pascal), 20 of 25 (Ampere), 20.6 of 25 (Hopper), 12 of 15.75 (PCIe 3) and 12 of 12.5 (100 Gb/s).
NOMINAL_SHARE = 0.8


class Place(NamedTuple):
    """Where a rank runs: the number of its node, and of its device there."""

    node: int
    device: int


class Wiring:
    """The links of *cluster* that ranks at *places* can use.

    *rates* holds, by kind of link, what a library reaches in one direction of one cable, in bytes a second; of
    cables of one kind with unlike nominal rates it speaks of the fastest, and the others reach the same share. Kinds
    that are absent reach `NOMINAL_SHARE` of their nominal rate. *scale* multiplies the rates of kinds of links.

    Raises ClusterError if the places are on several nodes and nothing joins these.
    """

    def __init__(
        self, cluster: Cluster, places: Sequence[Place], rates: Mapping[str, float], scale: Mapping[str, float]
    ) -> None:
        self.cluster = cluster
        self.inside = NodeRoutes(cluster, usable_rates(cluster, rates, scale, NOMINAL_SHARE))
        devices = cluster.devices
        node = np.array([place.node for place in places], np.int64)
        self.device = np.array([place.device for place in places], np.int64)
        #: The nodes in use, and each rank's place among them.
        self.nodes, self.node = np.unique(node, return_inverse=True)
        host = np.array([self.inside.hosts[name] for name in devices], np.int64)
        #: Each rank's host, numbered from 0 in the order of ranks.
        codes = node * (int(host.max()) + 1) + host[self.device]
        _, first, found = np.unique(codes, return_index=True, return_inverse=True)
        rank_of = np.argsort(np.argsort(first))
        self.host = rank_of[found]
        self.hosts = len(first)
        self.size = len(self.inside.capacity)
        self.net: Net | None = None
        #: What a cable between a NIC and its switch carries.
        self.cable_bytes_per_s = 0.0
        capacity = [np.tile(np.array(self.inside.capacity, float), len(self.nodes))]
        joint = cluster.interconnect
        if len(self.nodes) > 1:
            if joint is None or not cluster.nics:
                raise ClusterError(f"cluster {cluster.name!r}: has no nic and interconnect to join its nodes")
            self.net = Net(joint, max(cluster.nodes, int(node.max()) + 1), len(cluster.nics), cluster.routing)
            self.cable_bytes_per_s = rates.get(joint.kind, NOMINAL_SHARE * joint.bandwidth) * scale.get(joint.kind, 1.0)
            capacity.append(self.net.cables * self.cable_bytes_per_s)
        self.capacity: Reals = np.concatenate(capacity)

    def routes(self, source: Numbers, target: Numbers, *, hosted: Numbers | None = None) -> Routes:
        """Return what messages from ranks *source* to ranks *target* cross.

        A number of a rank or more is the NVSwitches of the other end's node. Messages between devices of one of the
        hosts of the numbers *hosted* pass through that, whatever else joins them.
        """
        found: list[Routes] = []
        many = len(self.cluster.devices)
        ranks = len(self.device)
        for ends, others, back in ((target, source, False), (source, target, True)):
            which = np.flatnonzero(ends >= ranks)
            for device in np.unique(self.device[others[which]]):
                those = which[self.device[others[which]] == device]
                way = self.inside.port(self.cluster.devices[device], back=back)
                found.append(self._inside(way, those, self.node[others[those]]))
        between = np.flatnonzero((source < ranks) & (target < ranks))
        source, target = source[between], target[between]
        near = self.node[source] == self.node[target]
        through = np.isin(self.host[source], () if hosted is None else hosted)
        through &= self.host[source] == self.host[target]
        pair = self.device[source] * many + self.device[target]
        for code, those in _alike(pair, np.flatnonzero(near)):
            a, b = divmod(code, many)
            if a != b:
                one, other = self.cluster.devices[a], self.cluster.devices[b]
                for which, inner in ((those[through[those]], True), (those[~through[those]], False)):
                    if len(which):
                        way = (self.inside.hosted(one, other) if inner else None) or self.inside.between(one, other)
                        found.append(self._inside(way, between[which], self.node[source[which]]))
        for code, which in _alike(pair, np.flatnonzero(~near)):
            found += self._across(*divmod(code, many), between[which], source[which], target[which])
        if not found:
            return Routes(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
        return Routes(*(np.concatenate(parts) for parts in zip(*found, strict=True)))

    def _inside(self, way: Way, which: Numbers, node: Numbers) -> Routes:
        """Return what messages *which* cross that take *way*, each in its *node*."""
        resource = node[:, None] * self.size + np.array(way.resources, np.int64)
        weight = np.broadcast_to(np.array(way.weights), resource.shape)
        return Routes(np.repeat(which, resource.shape[1]), resource.ravel(), weight.ravel())

    def _across(self, a: int, b: int, which: Numbers, source: Numbers, target: Numbers) -> list[Routes]:
        assert self.net is not None
        devices = self.cluster.devices
        out, into = self.inside.out(devices[a]), self.inside.into(devices[b])
        found = [
            self._inside(out, which, self.node[source]),
            self._inside(into, which, self.node[target]),
        ]
        base = len(self.nodes) * self.size
        nics = self.net.nics
        for one, other, share in _gates(out, into):
            crossed = self.net.routes(
                self.nodes[self.node[source]] * nics + one, self.nodes[self.node[target]] * nics + other
            )
            found.append(Routes(which[crossed.flow], base + crossed.resource, share * crossed.weight))
        return found

    @property
    def is_even(self) -> bool:
        """Say whether every node holds the same devices, and the network between them spreads messages."""
        devices = self.device[np.lexsort((self.device, self.node))]
        many, rest = divmod(len(devices), len(self.nodes))
        alike = (
            not rest and (np.bincount(self.node) == many).all() and (devices.reshape(-1, many) == devices[:many]).all()
        )
        return bool(alike) and (self.net is None or self.net.spread)

    def all_pairs_s(self) -> Reals:
        """Return how long each resource is busy when every rank sends one byte to every other, where nodes are even."""
        nodes, devices = len(self.nodes), [self.cluster.devices[at] for at in np.unique(self.device)]
        carried = np.zeros(self.size)
        for a in devices:
            ways = [(self.inside.between(a, b), 1) for b in devices if b != a]
            if nodes > 1:
                far = (nodes - 1) * len(devices)
                ways += [(self.inside.out(a), far), (self.inside.into(a), far)]
            for way, nbytes in ways:
                carried[list(way.resources)] += nbytes * np.array(way.weights)
        found = np.tile(carried, nodes)
        if self.net is not None:
            traffic = np.zeros((self.net.nics, self.net.nics))
            for a in devices:
                for b in devices:
                    for one, other, share in _gates(self.inside.out(a), self.inside.into(b)):
                        traffic[one, other] += share
            found = np.concatenate([found, self.net.exchanged(self.nodes, traffic)])
        return found / self.capacity

    def switches(self, source: Numbers, target: Numbers) -> Numbers:
        """Return how many switches of the network the messages cross, 0 inside a node."""
        crossed = np.zeros(len(source), np.int64)
        between = np.flatnonzero((self.node[source] == self.node[target]) & (self.host[source] != self.host[target]))
        for at in between.tolist():
            ends = (self.cluster.devices[self.device[side[at]]] for side in (source, target))
            crossed[at] = self.inside.between(*ends).switches
        if self.net is not None:
            far = np.flatnonzero(self.node[source] != self.node[target])
            nics = self.net.nics
            used = set(self.device.tolist())
            gate = np.array(
                [
                    self.inside.out(name).nics[0][0] if place in used else 0
                    for place, name in enumerate(self.cluster.devices)
                ]
            )
            gates = [
                self.nodes[self.node[side[far]]] * nics + gate[self.device[side[far]]] for side in (source, target)
            ]
            crossed[far] = self.net.switches(*gates)
        return crossed

    def load_s(self, routes: Routes, nbytes: Reals) -> Reals:
        """Return how long each resource is busy with messages of *nbytes* each, in seconds."""
        carried = np.bincount(routes.resource, routes.weight * nbytes[routes.flow], len(self.capacity))
        return carried / self.capacity

    def folded(self, values: Reals) -> dict[str, float]:
        """Return the largest of *values*, one for each resource, over all nodes alike, by name; zeros are left out."""
        inside = len(self.nodes) * self.size
        links = values[:inside].reshape(len(self.nodes), self.size).max(axis=0, initial=0.0)
        found: dict[str, float] = {}
        for link in np.flatnonzero(links).tolist():
            # links of unlike kinds may join the same two vertices
            name = self.link_name(link)
            found[name] = max(found.get(name, 0.0), float(links[link]))
        if self.net is not None:
            found |= self.net.folded(values[inside:], self.cluster.nics)
        return found

    def link_name(self, link: int) -> str:
        """Return what a resource of a node is called: two vertices."""
        a, b = self.inside.names[link]
        return f"{a}>{b}" if self.inside.is_full_duplex(link) else f"{a}-{b}"

    def name(self, resource: int) -> str:
        """Return what a resource is called in reports: two vertices, with the node if there are several."""
        inside = len(self.nodes) * self.size
        if resource >= inside:
            assert self.net is not None
            return self.net.name(resource - inside)
        node, link = divmod(resource, self.size)
        where = f"node{self.nodes[node]}/" if len(self.nodes) > 1 else ""
        return f"{where}{self.link_name(link)}"

    def kind(self, resource: int) -> str:
        """Return the kind of link that a resource is."""
        if resource >= len(self.nodes) * self.size:
            assert self.cluster.interconnect is not None
            return self.cluster.interconnect.kind
        return self.inside.link_kinds[resource % self.size]


def _alike(codes: Numbers, which: Numbers) -> Iterator[tuple[int, Numbers]]:
    """Yield each code that stands at the places *which*, and those of them where it does."""
    order = which[np.argsort(codes[which], kind="stable")]
    found, starts = np.unique(codes[order], return_index=True)
    yield from zip(found.tolist(), np.split(order, starts[1:]), strict=False)


def _gates(out: Way, into: Way) -> list[tuple[int, int, float]]:
    """Return the NICs by which messages leave and enter, with shares: on one rail where both sides have it as near."""
    if dict(out.nics).keys() == dict(into.nics).keys():
        return [(nic, nic, share) for nic, share in out.nics]
    return [(one, other, share * part) for one, share in out.nics for other, part in into.nics]
