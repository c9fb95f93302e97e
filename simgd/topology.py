"""Where the work is done: devices, switches and the links between them, as a graph; no software.

A `Cluster` is one node's graph, repeated, with its NICs joined by a network. Rates are nominal ones, as data sheets
state them; what a library reaches on them belongs to a profile. A link is listed once for a cable and stands for its
two directions, each with the full bandwidth, unless `duplex` says "half".
"""

from collections.abc import Iterable
from typing import Literal

from simgd.errors import ClusterError
from simgd.files import Document, Value, check_distinct, check_not_negative, check_positive
from simgd.units import Bytes, FlopRate, Rate, Seconds

VertexKind = Literal["device", "nvswitch", "pcie_switch", "socket", "nic", "switch"]

#: More devices, or ranks, than this are a slip of the pen, and every rank has a place in memory.
MOST_DEVICES = 2**20

LinkKind = Literal["nvlink", "pcie", "socket", "infiniband", "ethernet", "memory"]

#: Links of these kinds join hosts.
NETWORK_KINDS = ("infiniband", "ethernet")


class Device(Value, frozen=True, kw_only=True):
    """A GPU or a CPU node as one device: peak arithmetic rates (dense), memory size and bandwidth, by its data sheet.

    A missing rate is one that the device does not have (a P100 has no TF32).
    """

    name: str
    kind: Literal["gpu", "cpu"]
    memory: Bytes
    memory_rate: Rate
    fp32: FlopRate
    tf32: FlopRate | None = None
    bf16: FlopRate | None = None
    source: str = ""

    def __post_init__(self) -> None:
        rates = {name: rate for name in ("fp32", "tf32", "bf16") if (rate := getattr(self, name)) is not None}
        check_positive(ClusterError, f"device {self.name!r}", memory=self.memory, memory_rate=self.memory_rate, **rates)


class Link(Value, frozen=True, kw_only=True):
    """`count` cables of one kind between two vertices: bandwidth of one cable in one direction, and its latency."""

    ends: tuple[str, str]
    kind: LinkKind
    bandwidth: Rate
    latency: Seconds = Seconds(0.0)
    count: int = 1
    duplex: Literal["full", "half"] = "full"

    def __post_init__(self) -> None:
        where = f"link {self.ends[0]}-{self.ends[1]}"
        check_positive(ClusterError, where, bandwidth=self.bandwidth, count=self.count)
        check_not_negative(ClusterError, where, latency=self.latency)
        if self.ends[0] == self.ends[1]:
            raise ClusterError(f"{where}: joins a vertex with itself")


class Interconnect(Value, frozen=True, kw_only=True):
    """What joins the NICs of all nodes: a fat tree, or a dragonfly+, of switches with `ports` ports.

    "memory" joins ranks that share one host.

    `bandwidth` is that of one NIC's cable in one direction; `latency` that of one cable with the switch behind it.
    A fat tree has as many levels as it needs; its lowest switches have `oversubscription` times as many cables down
    as up. A dragonfly+ has groups of `group` NICs (0: as many as a group can hold), each a fat tree of two levels, and
    every two groups are joined by as many cables as the ports of the upper switches allow.
    `rails` says where the NICs of one node go: all to one switch ("joined"), or each to the switch of its number, under
    which the equal NICs of other nodes are ("optimised").
    A NIC that is shaped by a token bucket saves up to `burst` bytes while it is idle, which then pass at once.
    """

    kind: Literal["infiniband", "ethernet", "memory"]
    bandwidth: Rate
    latency: Seconds
    ports: int = 36
    topology: Literal["fat_tree", "dragonfly"] = "fat_tree"
    oversubscription: float = 1.0
    rails: Literal["joined", "optimised"] = "optimised"
    group: int = 0
    burst: Bytes = Bytes(0)
    source: str = ""

    def __post_init__(self) -> None:
        check_positive(ClusterError, "interconnect", bandwidth=self.bandwidth, ports=self.ports)
        check_not_negative(ClusterError, "interconnect", latency=self.latency, burst=self.burst, group=self.group)
        if self.ports < 2:
            raise ClusterError(f"interconnect: switches of {self.ports} ports join nothing; at least 2 are needed")
        if not 1 <= self.oversubscription < self.ports:
            found = f"oversubscription {self.oversubscription:g}"
            raise ClusterError(f"interconnect: {found}; it must be from 1 to below the {self.ports} ports of a switch")


class Cluster(Document, frozen=True, kw_only=True, tag="simgd cluster"):
    """`nodes` equal nodes; `vertices` names what stands in a node, devices in the order of their numbers.

    A cluster of CPU nodes has one device a node, and as many nodes as ranks are asked for.

    Machines whose nodes differ, or whose network is no regular tree, are one node here: its graph holds every host's
    devices and NICs, and the network's switches ("switch"). Devices that only links of the kinds "infiniband" and
    "ethernet" join are on different hosts. Where several shortest routes exist, `routing` uses one of them by its
    destination ("static"), or all of them alike ("adaptive").
    """

    name: str
    device: Device
    vertices: dict[str, VertexKind]
    links: tuple[Link, ...] = ()
    interconnect: Interconnect | None = None
    nodes: int = 1
    routing: Literal["static", "adaptive"] = "adaptive"
    description: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        where = f"cluster {self.name!r}"
        check_positive(ClusterError, where, nodes=self.nodes)
        if not self.devices:
            raise ClusterError(f"{where}: has no vertex of kind 'device'")
        if self.size > MOST_DEVICES:
            there = f"{self.nodes} nodes of {len(self.devices)} devices"
            raise ClusterError(f"{where}: has {there}; at most {MOST_DEVICES} devices can be predicted")
        seen: list[str] = []
        for link in self.links:
            for end in link.ends:
                if end not in self.vertices:
                    raise ClusterError(f"{where}: link {link.ends[0]}-{link.ends[1]}: {end!r} is not a vertex")
            seen.append(f"{link.kind} {'-'.join(sorted(link.ends))}")
        check_distinct(ClusterError, where, "link", seen)
        self._check_connected(where)
        if self.nodes > 1 and (self.interconnect is None or not self.nics):
            raise ClusterError(f"{where}: has {self.nodes} nodes, but no nic and interconnect to join them")

    def _check_connected(self, where: str) -> None:
        part = components(self.vertices, self.links)
        first = self.devices[0]
        for name in self.vertices:
            if part[name] != part[first]:
                raise ClusterError(f"{where}: no path from {first!r} to {name!r}; every vertex must be linked")

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices of one node, in the order of their numbers."""
        return tuple(name for name, kind in self.vertices.items() if kind == "device")

    @property
    def nics(self) -> tuple[str, ...]:
        """The NICs of one node."""
        return tuple(name for name, kind in self.vertices.items() if kind == "nic")

    @property
    def size(self) -> int:
        """Number of devices in all nodes."""
        return self.nodes * len(self.devices)

    @property
    def switch_latency_s(self) -> float:
        """The latency of one more switch of the network with its cable; 0 without a network."""
        if self.interconnect is not None:
            return float(self.interconnect.latency)
        return max((float(link.latency) for link in self.links if link.kind in NETWORK_KINDS), default=0.0)

    @property
    def hosts(self) -> dict[str, int]:
        """The number of the host that each vertex of a node stands in: what is joined without network links."""
        return components(self.vertices, [link for link in self.links if link.kind not in NETWORK_KINDS])


def components(vertices: Iterable[str], links: Iterable[Link]) -> dict[str, int]:
    """Return for each vertex the number of its connected part, counted in the order of *vertices*."""
    near: dict[str, list[str]] = {name: [] for name in vertices}
    for link in links:
        a, b = link.ends
        near[a].append(b)
        near[b].append(a)
    part: dict[str, int] = {}
    parts = 0
    for first in near:
        if first in part:
            continue
        part[first], left = parts, [first]
        while left:
            for name in near[left.pop()]:
                if name not in part:
                    part[name] = parts
                    left.append(name)
        parts += 1
    return part
