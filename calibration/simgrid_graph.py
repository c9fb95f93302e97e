"""Makes a cluster of a platform of SimGrid: finds the graph whose shortest ways are the routes of the file.

Model
    SimGrid lists for two hosts, or routers, the links between them; a graph has junctions. Each link becomes one edge:
    two neighbours in a route meet at one end of both, and what comes before a link in a route is at its other end than
    what follows. Whatever meets at one place is one junction, a router if it has a name. A file whose routes no such
    graph has is refused, and so is one with full tables of routes where another way is as short as the listed one.
    A link that is SHARED is half duplex, SPLITDUPLEX is full duplex. A FATPIPE that carries each message at the rate of
    any host's link becomes as many cables as all hosts together can fill.
    A host is a device and a NIC; between them lies a link without latency that is as fast as the host's links together.
    A file that simgd wrote says the kinds of its vertices and links, and gives the graph that it was written from.
    A fat tree becomes an interconnect of equal nodes, if that describes it.

What it leaves out
    What hosts compute: a cluster has one device, which is that of a given machine.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from calibration.simgrid_xml import Hop, Platform, Route, Tree, Wire
from simgd import simgrid
from simgd.errors import ClusterError, FileError
from simgd.interconnects import Net
from simgd.topology import Cluster, Interconnect, Link, LinkKind, VertexKind
from simgd.units import Rate, Seconds, show_rate

Network = Literal["infiniband", "ethernet"]


class _Groups:
    """Things that turn out to be the same, each with a parity: 0 or 1 against the first of its group (union-find)."""

    def __init__(self) -> None:
        self._above: dict[Any, tuple[Any, int]] = {}

    def find(self, thing: Any) -> tuple[Any, int]:
        """Return the first thing of the group of *thing*, and the parity against it."""
        path, parity = [], 0
        while thing in self._above:
            path.append(thing)
            thing, odd = self._above[thing]
            parity ^= odd
        left = parity
        for each in path:
            odd = self._above[each][1]
            self._above[each] = (thing, left)
            left ^= odd
        return thing, parity

    def join(self, one: Any, other: Any, odd: int = 0) -> bool:
        """Join two groups; return False if the two things are of one group already, with another parity."""
        (a, first), (b, second) = self.find(one), self.find(other)
        if a == b:
            return first ^ second == odd
        self._above[b] = (a, first ^ second ^ odd)
        return True


class _Graph:
    """The junctions and edges of a platform: `at` names the place of each host and router, `ends` both of each link."""

    def __init__(self, platform: Platform, where: str) -> None:
        self.where = where
        self.platform = platform
        self._sides = _Groups()
        self._places = _Groups()
        self.wires = {link: wire for link, wire in platform.wires.items() if wire.policy != "FATPIPE"}
        self.routes = [self._apart(route) for route in platform.routes]
        for route in self.routes:
            self._orient(route)
        # short routes first: they say where links end
        for route in sorted(self.routes, key=lambda route: len(route.hops)):
            self._meet(route)
        for a, b, link in platform.edges:
            if link:
                self._places.join(("point", a), ("end", link, 0))
                self._places.join(("point", b), ("end", link, 1))
            else:
                self._places.join(("point", a), ("point", b))
        self.at: dict[str, str] = {}
        self.ends: dict[str, tuple[str, str]] = {}
        self.unused = 0
        self._name()
        self._check_only()

    def _apart(self, route: Route) -> Route:
        """Return *route* with FATPIPEs of its own: messages do not share them, so that each use is another link."""
        hops = []
        for link, way in route.hops:
            wire, own = self.platform.wires[link], link
            if wire.policy == "FATPIPE":
                own = f"{link} {len(self.wires)}"
                while own in self.wires:
                    own += "'"
                self.wires[own] = wire
            hops.append(Hop(own, way))
        return route._replace(hops=tuple(hops))

    def _orient(self, route: Route) -> None:
        """Note that what comes before a link in a route is at its other end than what follows."""
        for place, (link, way) in enumerate(route.hops):
            before, after = self._neighbours(route, place)
            fits = self._sides.join((link, before), (link, after), 1)
            if way:
                fits = fits and self._sides.join((link, ""), (link, before), 0 if way == "UP" else 1)
            if not fits:
                raise FileError(
                    f"{self.where}: {route.told()} crosses link {link[:40]!r} otherwise than an earlier one; no link "
                    "between two junctions is crossed so"
                )

    @staticmethod
    def _neighbours(route: Route, place: int) -> tuple[tuple[str, str], tuple[str, str]]:
        hops = route.hops
        before = ("link", hops[place - 1].link) if place else ("point", route.source)
        after = ("link", hops[place + 1].link) if place + 1 < len(hops) else ("point", route.target)
        return before, after

    def _end(self, link: str, neighbour: tuple[str, str]) -> tuple[str, str, int]:
        """Return the end of *link* at which *neighbour* is."""
        first, parity = self._sides.find((link, neighbour))
        anchor, odd = self._sides.find((link, ""))
        assert first == anchor
        return ("end", link, parity ^ odd)

    def _settle(self, link: str, here: Any, before: tuple[str, str], after: tuple[str, str]) -> None:
        """Decide through which end a route enters a link if no other route says so: through that where it already is,
        else as the first route did."""
        if self._sides.find((link, before))[0] == self._sides.find((link, ""))[0]:
            return
        places = [self._places.find(("end", link, side))[0] for side in (0, 1)]
        back = self._places.find(here)[0] == places[1]
        if after[0] == "point":
            back = back or self._places.find(after)[0] == places[0]
        self._sides.join((link, ""), (link, before), int(back))

    def _meet(self, route: Route) -> None:
        """Join the ends that two neighbours in a route have in common."""
        here: Any = ("point", route.source)
        for place, (link, _) in enumerate(route.hops):
            before, after = self._neighbours(route, place)
            self._settle(link, here, before, after)
            self._places.join(here, self._end(link, before))
            here = self._end(link, after)
        self._places.join(here, ("point", route.target))

    def _name(self) -> None:
        names: dict[Any, str] = {}
        for what in ("host", "router"):
            for point, kind in self.platform.points.items():
                if kind != what:
                    continue
                place = self._places.find(("point", point))[0]
                if what == "host" and place in names:
                    raise FileError(f"{self.where}: hosts {names[place][:40]!r} and {point[:40]!r} are at one place")
                if self.platform.kinds and place in names:
                    raise FileError(f"{self.where}: {names[place][:40]!r} and {point[:40]!r} are at one place")
                self.at[point] = names.setdefault(place, point)
        used = {hop.link for route in self.routes for hop in route.hops}
        used |= {link for _, _, link in self.platform.edges}
        junctions = 0
        pairs: dict[tuple[str, str], str] = {}
        crossed = {hop.link for route in self.platform.routes for hop in route.hops} | used
        self.unused = sum(link not in crossed and link != simgrid.PAD for link in self.platform.wires)
        for link in self.wires:
            if link not in used:
                continue
            found = []
            for side in (0, 1):
                place = self._places.find(("end", link, side))[0]
                if place not in names:
                    names[place] = f"junction{junctions}"
                    junctions += 1
                found.append(names[place])
            a, b = found
            if a == b:
                raise FileError(f"{self.where}: link {link[:40]!r} begins and ends at {a[:40]!r}")
            other = pairs.setdefault((min(a, b), max(a, b)), link)
            if other != link and self.wires[other].policy == self.wires[link].policy == "FATPIPE":
                continue
            if other != link:
                raise FileError(
                    f"{self.where}: links {other[:40]!r} and {link[:40]!r} both join {a[:40]!r} and {b[:40]!r}; a "
                    "graph has one between two junctions"
                )
            self.ends[link] = (a, b)

    def _check_only(self) -> None:
        """Refuse a full table of routes where another way is as short as a listed one, or shorter."""
        near: dict[str, list[str]] = {}
        for a, b in self.ends.values():
            near.setdefault(a, []).append(b)
            near.setdefault(b, []).append(a)
        wanted: dict[str, list[Route]] = {}
        for route in self.routes:
            if route.only:
                wanted.setdefault(self.at[route.source], []).append(route)
        for source, routes in wanted.items():
            distance, ways = _ways(near, source)
            for route in routes:
                target = self.at[route.target]
                hops = len(route.hops)
                if distance.get(target, hops) < hops:
                    more = f"{hops} links, but {distance[target]} are enough in the graph of all routes"
                    raise FileError(f"{self.where}: {route.told()} crosses {more}")
                if ways.get(target, 1) > 1:
                    more = f"{hops} links, and another way in the graph of all routes as many"
                    raise FileError(f"{self.where}: {route.told()} crosses {more}")


def _ways(near: Mapping[str, list[str]], source: str) -> tuple[dict[str, int], dict[str, int]]:
    """Return how far each place is from *source*, and how many shortest ways lead there."""
    distance, ways, front = {source: 0}, {source: 1}, [source]
    while front:
        following: list[str] = []
        for name in front:
            for other in near.get(name, ()):
                if other not in distance:
                    distance[other], ways[other] = distance[name] + 1, 0
                    following.append(other)
                if distance[other] == distance[name] + 1:
                    ways[other] += ways[name]
        front = following
    return distance, ways


# --- from a graph to a cluster ---------------------------------------------------------------------------------------


def to_cluster(platform: Platform, where: str, machine: Cluster, name: str, network: Network = "ethernet") -> Cluster:
    """Return the cluster that *platform* describes, with the device of *machine*; its links are of the kind *network*
    unless the file says another.

    Raises FileError if no graph has the platform's routes.
    """
    try:
        if platform.tree is not None:
            return _fat_tree(platform.tree, platform, machine, name, network)
        if not any(kind == "host" for kind in platform.points.values()):
            raise FileError(f"{where}: holds no host")
        graph = _Graph(platform, where)
        if platform.kinds:
            return _written(platform, graph, where, machine, name, network)
        return _foreign(platform, graph, where, machine, name, network)
    except ClusterError as error:
        raise FileError(f"{where}: {error}") from None


def _source(platform: Platform, graph: _Graph | None, machine: Cluster) -> str:
    counts = platform.left_out | ({"links that no route uses": graph.unused} if graph and graph.unused else {})
    left = ", ".join(f"{count} {what}" for what, count in counts.items())
    return f"platform file of SimGrid; device as of {machine.name}{f'; left out: {left}' if left else ''}"


def _written(platform: Platform, graph: _Graph, where: str, machine: Cluster, name: str, network: Network) -> Cluster:
    """Return the cluster of a file that says the kinds of vertices."""
    for point in platform.points:
        if point not in platform.kinds:
            raise FileError(f"{where}: no property says which kind of vertex {point[:60]!r} is, but of others")
    vertices: dict[str, VertexKind] = {
        point: kind  # type: ignore[misc]
        for point, kind in platform.kinds.items()
        if point in platform.points
    }
    links = [_plain(graph.wires[link], graph.ends[link], network) for link in graph.ends]
    return _cluster(name, machine, vertices, links, _source(platform, graph, machine))


def _plain(wire: Wire, ends: tuple[str, str], network: Network, count: int | None = None) -> Link:
    kind: LinkKind = wire.kind or network  # type: ignore[assignment]
    return Link(
        ends=ends,
        kind=kind,
        bandwidth=Rate(wire.bytes_per_s / (1 if count else wire.count)),
        latency=Seconds(wire.latency_s),
        count=count or wire.count,
        duplex="half" if wire.policy == "SHARED" else "full",
    )


def _foreign(platform: Platform, graph: _Graph, where: str, machine: Cluster, name: str, network: Network) -> Cluster:
    """Return the cluster of a file that knows hosts only: each a device and a NIC."""
    hosts = [point for point, kind in platform.points.items() if kind == "host"]
    reach: dict[str, float] = dict.fromkeys(hosts, 0.0)
    fastest = 0.0
    for link, ends in graph.ends.items():
        wire = graph.wires[link]
        for end in ends:
            if end in reach:
                if wire.policy == "FATPIPE":
                    raise FileError(f"{where}: link {link[:40]!r} of host {end[:40]!r} is a FATPIPE, which no link is")
                reach[end] += wire.bytes_per_s * wire.count
                fastest = max(fastest, wire.bytes_per_s)
    whole = sum(reach.values())
    alone = [host for host in hosts if not reach[host]]
    if alone and len(hosts) > 1:
        raise FileError(f"{where}: no route leads to host {alone[0][:60]!r}")
    vertices: dict[str, VertexKind] = dict.fromkeys(hosts, "device")
    taken = _distinct(platform, graph)
    nic = {host: taken(f"{host}/nic") for host in hosts if reach[host]}
    vertices |= dict.fromkeys(nic.values(), "nic")
    links: list[Link] = [Link(ends=(host, nic[host]), kind="pcie", bandwidth=Rate(reach[host])) for host in nic]
    for link, ends in graph.ends.items():
        wire, count = graph.wires[link], None
        if wire.policy == "FATPIPE":
            if wire.bytes_per_s < fastest:
                raise FileError(
                    f"{where}: link {link[:40]!r} is a FATPIPE of {show_rate(wire.bytes_per_s)}, which limits each "
                    f"message by itself where a host's link has {show_rate(fastest)}; no link of a graph does"
                )
            count = max(1, math.ceil(whole / wire.bytes_per_s))
        for end in ends:
            if end not in reach:
                vertices.setdefault(end, "switch")
        a, b = ends
        links.append(_plain(wire, (nic.get(a, a), nic.get(b, b)), network, count))
    _prune(vertices, links)
    return _cluster(name, machine, vertices, links, _source(platform, graph, machine))


def _distinct(platform: Platform, graph: _Graph) -> Callable[[str], str]:
    taken = set(platform.points) | {end for ends in graph.ends.values() for end in ends}

    def name(wish: str) -> str:
        while wish in taken:
            wish += "'"
        taken.add(wish)
        return wish

    return name


def _prune(vertices: dict[str, VertexKind], links: list[Link]) -> None:
    """Drop switches at which the graph ends, again and again: no message between hosts crosses them."""
    near: dict[str, set[str]] = {name: set() for name in vertices}
    for link in links:
        a, b = link.ends
        near[a].add(b)
        near[b].add(a)
    loose = [name for name, kind in vertices.items() if kind == "switch" and len(near[name]) < 2]
    while loose:
        name = loose.pop()
        del vertices[name]
        for other in near.pop(name):
            near[other].discard(name)
            if vertices[other] == "switch" and len(near[other]) == 1:
                loose.append(other)
    links[:] = [link for link in links if link.ends[0] in vertices and link.ends[1] in vertices]


def _cluster(
    name: str, machine: Cluster, vertices: dict[str, VertexKind], links: Iterable[Link], source: str
) -> Cluster:
    devices = sum(kind == "device" for kind in vertices.values())
    return Cluster(
        name=name,
        device=machine.device,
        vertices=vertices,
        links=tuple(links),
        description=f"{devices} {machine.device.name} and what joins them",
        source=source,
    )


def _fat_tree(tree: Tree, platform: Platform, machine: Cluster, name: str, network: Network) -> Cluster:
    """Return the cluster whose interconnect is a fat tree of SimGrid: levels; switches or hosts below each switch;
    switches above each; parallel cables."""
    told = tree.told
    if platform.points or platform.routes:
        raise FileError(f"{told}: is read where it is the whole platform; here are other hosts, routers or routes")
    down, up, cables = _parameters(told, tree.levels)
    if math.prod(down) != tree.hosts:
        raise FileError(f"{told}: has places for {math.prod(down)} hosts, but {tree.hosts} hosts")
    leaf_up = up[1] * cables[1] if len(down) > 1 else 0
    ports = down[0] + leaf_up
    even = tree.policy == "SPLITDUPLEX" and up[0] == cables[0] == 1
    if not even or ports < 2 or (leaf_up and down[0] < leaf_up) or len(down) > 3:
        raise FileError(
            f"{told}: is no tree of at most 3 levels whose hosts have one cable each of two directions, and whose "
            "lowest switches as many hosts as cables up, or more"
        )
    rate, latency = Rate(tree.bytes_per_s), Seconds(tree.latency_s)
    joint = Interconnect(
        kind=network,
        bandwidth=rate,
        latency=latency,
        ports=ports,
        oversubscription=down[0] / leaf_up if leaf_up else 1.0,
        rails="joined",
        source="topo_parameters of SimGrid",
    )
    net = Net(joint, tree.hosts, 1, "static")
    levels = 1 if net.single else 2 if net.pods == 1 else 3
    fits = levels == len(down)
    if levels > 1:
        fits &= (net.down, net.up) == (down[0], leaf_up)
    if levels == 3:
        fits = fits and (net.leaves_a_pod, net.pods) == (down[1], down[2])
        fits = fits and net.up * net.core == up[1] * up[2] * cables[2]
    if not fits:
        raise FileError(
            f"{told}: {tree.levels[:40]!r} is no tree of switches with {ports} ports as an interconnect has"
        )
    return Cluster(
        name=name,
        device=machine.device,
        vertices={"host": "device", "nic": "nic"},
        # SimGrid counts cables, one more than switches: half of that one at either host
        links=(Link(ends=("host", "nic"), kind="pcie", bandwidth=rate, latency=Seconds(latency / 2)),),
        interconnect=joint,
        nodes=tree.hosts,
        routing="static",
        description=f"{tree.hosts} {machine.device.name} in a fat tree",
        source=_source(platform, None, machine),
    )


def _parameters(told: str, text: str) -> tuple[list[int], list[int], list[int]]:
    """Return what `levels;down,...;up,...;cables,...` says."""
    parts = [part.split(",") for part in text.split(";")]
    try:
        numbers = [[int(number) for number in part if len(number) < 9] for part in parts]
        (levels,), down, up, cables = numbers
    except ValueError:
        levels, down, up, cables = 0, [], [], []
    if levels < 1 or not len(down) == len(up) == len(cables) == levels or min(*down, *up, *cables) < 1:
        raise FileError(f"{told}: topo_parameters {text[:40]!r} is not levels;down;up;cables, such as 2;4,4;1,2;1,2")
    return down, up, cables
