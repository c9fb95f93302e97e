"""What a machine's links offer to a collective: places of ranks, and what limits rings and trees through them.

What a ring or tree reaches follows from its steps (`algorithms`) through the channels that a library finds
(`channels`), and from what the links carry in each step (`wiring`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from simgd import algorithms
from simgd.algorithms import Steps
from simgd.channels import Channels, channels
from simgd.errors import ClusterError
from simgd.interconnects import Numbers
from simgd.profile import CollectiveKind
from simgd.rings import Ring
from simgd.topology import NETWORK_KINDS, Cluster
from simgd.wiring import Place, Reals, Wiring

#: So many messages are routed at a time, which bounds the memory of an all-to-all.
MOST_ROUTED = 2**18


class Load(NamedTuple):
    """What a collective's messages ask of the links: seconds for each byte of the buffer, and how busy it keeps the
    links meanwhile, by name (`Wiring.folded`).
    """

    s_per_byte: float
    busy: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fabric:
    """What the links between some places offer to a collective.

    `ring_bytes_per_s` is the sum over all rings of the rate of one hop: the bus bandwidth of an endless message;
    `tree_bytes_per_s` the rate at which an all-reduce's buffer passes its trees; `message_bytes_per_s` what one message
    alone reaches on the slowest hop; `port_bytes_per_s` each device's rate into NVSwitches, 0 without them. `inside` is
    the kind of link inside a node and `path` the kind that limits the whole; `rings` lists the rings (or paths from NIC
    to NIC) of one node; `most` is the ranks of the fullest node.
    `hops` counts the hops of one turn of a ring by kind, "net" for those between nodes; `net_extra_s` is what a hop
    between nodes takes beyond one switch in a network of several levels (of which `net_later_s` is due to longer cables
    than the library's constants speak of), `inside_extra_s` what one inside a node takes beyond these constants, where
    links are `inside_faster` times as fast as those.
    `assumed` names the kinds of links whose usable rate nobody gave. `busy` says how busy links are by algorithm
    ("ring", "tree", "nvls"), `switched` what in-switch reduction asks of the links, by kind and name.
    """

    ranks: int
    nodes: int
    ring_bytes_per_s: float
    tree_bytes_per_s: float
    message_bytes_per_s: float
    port_bytes_per_s: float
    inside: str
    path: str
    rings: tuple[Ring, ...]
    hops: tuple[tuple[str, int], ...]
    net_extra_s: float
    assumed: tuple[str, ...]
    most: int
    wiring: Wiring
    channels: Channels
    inside_faster: float = 1.0
    inside_extra_s: float = 0.0
    net_later_s: float = 0.0
    busy: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    switched: Mapping[tuple[str, str], Load] = field(default_factory=dict)

    def direct(self, kind: CollectiveKind) -> Load:
        """Return what a collective asks of the links whose messages all go straight to where they belong, at once."""
        if self.ranks == 1:
            return Load(0.0, {})
        if kind == "all_to_all" and self.wiring.is_even:
            # each rank has an equal part for every other one: no need to list all pairs
            busy_s = self.wiring.all_pairs_s() / self.ranks
            seconds = float(busy_s.max())
            return Load(seconds, self.wiring.folded(busy_s / seconds))
        return load_of(self.wiring, [(algorithms.at_once(kind, self.ranks), 1.0)])


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
            missing = "no interconnect joins more nodes" if cluster.nics else "no nic joins more"
            more = f"`--on {cluster.name}:{-(-ranks // per_node)}` has enough nodes" if joined else missing
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
    """Return what the links of *cluster* offer to a collective between *places*; *rates*, *scale* as for `Wiring`."""
    if not places:
        raise ClusterError(f"cluster {cluster.name!r}: a collective needs at least one place")
    rates, scale = rates or {}, scale or {}
    wiring = Wiring(cluster, places, rates, scale)
    found = channels(wiring)
    joined = wiring.hosts > 1
    hop = _ring_hops(found)
    routes = wiring.routes(hop.source, hop.target, hosted=found.hosted)
    load = wiring.load_s(routes, hop.share)
    far = wiring.host[hop.source] != wiring.host[hop.target]
    net_s = float(wiring.load_s(routes, np.where(far, hop.share, 0.0)).max()) if joined else 0.0
    near_s = float(wiring.load_s(routes, np.where(far, 0.0, hop.share)).max(initial=0.0))
    slowest = float(load.max(initial=0.0))
    alone_s = float((routes.weight / wiring.capacity[routes.resource]).max(initial=0.0))
    kinds = list(dict.fromkeys(wiring.kind(int(resource)) for resource in _one_node(wiring, routes.resource)))
    path = found.inside.kind
    if joined and net_s >= near_s:
        joint = cluster.interconnect
        networks = [kind for kind in kinds if kind in NETWORK_KINDS]
        path = networks[0] if networks or joint is None else joint.kind
    crossed = int(wiring.switches(hop.source, hop.target).max(initial=1))
    net_extra_s = max(0, crossed - 1) * cluster.switch_latency_s
    ranks = len(places)
    within = ranks - wiring.hosts if joined else ranks if ranks > 1 else 0
    tree = load_of(
        wiring, [(algorithms.all_reduce.tree(order), share) for order, share in found.grouped()], hosted=found.hosted
    )
    busy = {"ring": wiring.folded(load / slowest) if slowest else {}, "tree": tree.busy}
    port = found.inside.port_bytes_per_s
    switched = _switched(wiring, found) if port > 0 and ranks > 1 else {}
    busy |= {name: load.busy for (kind, name), load in switched.items() if kind == "all_reduce"}
    return Fabric(
        ranks=ranks,
        nodes=wiring.hosts,
        ring_bytes_per_s=1 / slowest if slowest else float("inf"),
        tree_bytes_per_s=1 / tree.s_per_byte if tree.s_per_byte else float("inf"),
        message_bytes_per_s=1 / alone_s if alone_s else float("inf"),
        port_bytes_per_s=port,
        inside=found.inside.kind,
        path=path,
        rings=found.inside.rings,
        hops=tuple((kind, n) for kind, n in ((found.inside.kind, within), ("net", wiring.hosts if joined else 0)) if n),
        net_extra_s=net_extra_s,
        assumed=tuple(sorted(kind for kind in kinds if kind not in rates)),
        most=int(np.bincount(wiring.host).max()),
        wiring=wiring,
        channels=found,
        inside_faster=scale.get(found.inside.kind, 1.0),
        busy=busy,
        switched=switched,
    )


def _one_node(wiring: Wiring, resources: Numbers) -> Numbers:
    """Return resources, each once, with those of all nodes taken for those of the first; one stands for the network."""
    inside = len(wiring.nodes) * wiring.size
    # resources of the first node, and one more for the network
    used = np.zeros(wiring.size + 1, bool)
    near = resources < inside
    used[resources[near] % wiring.size] = True
    used[wiring.size] = not near.all()
    found = np.flatnonzero(used)
    return np.where(found < wiring.size, found, inside)


def load_of(wiring: Wiring, parts: Sequence[tuple[Steps, float]], *, hosted: Numbers | None = None) -> Load:
    """Return what algorithms that run at the same time ask of the links, each with its share of the buffer.

    Step by step, all parts' messages at once; a step takes as long as its fullest link. That is what max-min sharing
    gives wherever messages that share the fullest link are of one size.
    """
    seconds = 0.0
    busy = np.zeros(len(wiring.capacity))
    for together in zip(*(algorithms.patterns(steps) for steps, _ in parts), strict=True):
        load = np.zeros(len(wiring.capacity))
        # part by part: the routes of a tree of 16,384 ranks take 7 MB, and there may be eight
        for pattern, (_, share) in zip(together, parts, strict=True):
            for begin in range(0, len(pattern.source), MOST_ROUTED):
                these = slice(begin, begin + MOST_ROUTED)
                routes = wiring.routes(pattern.source[these], pattern.target[these], hosted=hosted)
                load += wiring.load_s(routes, pattern.bytes_share[these] * share)
        load *= together[0].repeat
        seconds += float(load.max(initial=0.0))
        busy += load
    return Load(seconds, wiring.folded(busy / seconds) if seconds else {})


def _switched(wiring: Wiring, found: Channels) -> dict[tuple[str, str], Load]:
    """Return what collectives ask of the links whose sums the NVSwitches make."""
    ranks = len(wiring.device)
    if wiring.hosts == 1:
        made = {kind: known["nvls"](ranks) for kind, known in algorithms.ALGORITHMS.items() if "nvls" in known}
        return {(kind, "nvls"): load_of(wiring, [(steps, 1.0)]) for kind, steps in made.items()}
    if (found.sizes != found.sizes[0]).any():
        return {}
    steps = algorithms.all_reduce.nvls_tree(found.first_groups())
    return {("all_reduce", "nvls tree"): load_of(wiring, [(steps, 1.0)])}


class _Hops(NamedTuple):
    source: Numbers
    target: Numbers
    share: Reals


def _ring_hops(found: Channels) -> _Hops:
    source = np.concatenate(found.orders)
    if len(found.orders[0]) < 2:
        return _Hops(source[:0], source[:0], np.zeros(0))
    target = np.concatenate([np.roll(order, -1) for order in found.orders])
    return _Hops(source, target, np.repeat(found.shares, [len(order) for order in found.orders]))
