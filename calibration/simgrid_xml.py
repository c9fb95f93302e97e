"""Reads a platform file of SimGrid (XML, versions 4 and 4.1), as a cluster of all its hosts and junctions.

Model
    SimGrid lists for two hosts, or routers, the links between them; a graph has junctions. Each link becomes one edge:
    two neighbours in a route meet at one end of both, and what comes before a link in a route is at its other end than
    what follows. Whatever meets at one place is one junction, a router if it has a name. A file whose routes no such
    graph has is refused, and so is one with full tables of routes where another way is as short as the listed one.
    A link that is SHARED is half duplex, SPLITDUPLEX is full duplex. A FATPIPE that carries each message at the rate of
    any host's link becomes as many cables as all hosts together can fill. The backbone of a flat cluster is crossed by
    every message, which no edge is: one that carries what all hosts send at once is left out but for its latency.
    A host is a device and a NIC; between them lies a link without latency that is as fast as the host's links together.
    A file that simgd wrote says the kinds of its vertices and links, and gives the graph that it was written from.

    A fat tree becomes an interconnect of equal nodes, if that describes it.

What it leaves out
    What hosts compute: a cluster has one device, which is that of a given machine. Traces, which change rates over time,
    properties, disks, loopbacks and actors. Tori, dragonflies, WiFi, peers, Vivaldi's coordinates and bypasses are
    refused.

Files come from others: entities are refused, DTDs are not fetched, and size, depth and number of elements are bounded.
"""

import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args
from xml.etree.ElementTree import Element, ParseError

import defusedxml
from defusedxml.ElementTree import iterparse

from simgd import simgrid
from simgd.errors import ClusterError, FileError, SimgdError
from simgd.interconnects import Net
from simgd.topology import Cluster, Interconnect, Link, LinkKind, VertexKind
from simgd.units import Rate, Seconds

#: Larger files, and more hosts, are none that a graph is searched in; SimGrid's largest examples have 262,145 hosts.
MOST_BYTES, MOST_DEPTH, MOST_ELEMENTS, MOST_HOSTS = 100 * 10**6, 100, 1_000_000, 20_000

_HEAD = re.compile(rb"<(?:!DOCTYPE\s+platform|platform)[\s>]")
_NUMBER = re.compile(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)\s*", re.ASCII)
_SCALES = {"": 1.0} | {letter: 1000.0 ** (power + 1) for power, letter in enumerate("kMGTPE")} | {"K": 1e3}
_SCALES |= {f"{letter}i": 1024.0 ** (power + 1) for power, letter in enumerate("KMGTPE")}
_RATES = {f"{scale}{unit}": by / bits for unit, bits in (("Bps", 1), ("bps", 8)) for scale, by in _SCALES.items()}
_TIMES = {
    "s": 1.0,
    "ms": 1e-3,
    "us": 1e-6,
    "ns": 1e-9,
    "ps": 1e-12,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
    "w": 604800.0,
}
_RADICAL = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", re.ASCII)

_ZONES = ("zone", "AS")
_ROUTES = ("route", "zoneRoute", "ASroute")
_ROUTINGS = ("full", "floyd", "dijkstra", "dijkstracache", "cluster", "none")
_PASSED_OVER = ("config", "prop", "disk", "mount", "storage", "storage_type", "model_prop", "random", "argument")
_LEFT_OUT = ("trace", "trace_connect", "actor", "process")
_REFUSED = ("include", "peer", "bypassRoute", "bypassASroute", "bypassZoneRoute")
_PROFILES = ("speed_file", "availability_file", "state_file", "bandwidth_file", "latency_file")

Network = Literal["infiniband", "ethernet"]


class _Hop(NamedTuple):
    """A link in a route: `way` is "UP" or "DOWN" for a link of two directions, else empty."""

    link: str
    way: str


class _Route(NamedTuple):
    """Links from one host or router to another; `only` where no other way may be as short."""

    source: str
    target: str
    hops: tuple[_Hop, ...]
    only: bool

    def told(self) -> str:
        """Return what errors call it."""
        return f"route from {self.source[:40]!r} to {self.target[:40]!r}"


@dataclass(slots=True, kw_only=True)
class _Wire:
    """A link of the file; `kind` and `count` where simgd wrote them."""

    bytes_per_s: float
    latency_s: float
    policy: str
    kind: str = ""
    count: int = 1


@dataclass(slots=True, kw_only=True)
class _Zone:
    """A zone that is being read: its routing, and the hub of one with cluster routing."""

    name: str
    routing: str
    hub: str = ""
    backbone: tuple[float, float] | None = None
    hosts: list[str] = field(default_factory=list)
    linked: dict[str, str] = field(default_factory=dict)
    routers: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class _Platform:
    """What the file says, with clusters written out."""

    points: dict[str, str] = field(default_factory=dict)
    wires: dict[str, _Wire] = field(default_factory=dict)
    routes: list[_Route] = field(default_factory=list)
    edges: list[tuple[str, str, str]] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)
    tree: dict[str, str] | None = None
    left_out: dict[str, int] = field(default_factory=dict)


def recognises(content: bytes) -> bool:
    """Say whether *content* is a platform file of SimGrid."""
    return content[:3].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") and _HEAD.search(content[:65536]) is not None


def parse(content: bytes, where: str) -> _Platform:
    """Return the platform that a file describes; *where* names it in errors.

    Raises FileError with the element that is wrong.
    """
    reader = _Reader(where)
    stack: list[Element] = []
    try:
        for event, element in _events(content, where):
            if event == "start":
                reader.start(str(element.tag), dict(element.attrib))
                stack.append(element)
                continue
            reader.end(str(element.tag))
            stack.pop()
            if stack:
                # what has been read is dropped
                stack[-1].clear()
    except ClusterError as error:
        raise FileError(f"{where}: {error}") from None
    return reader.platform


def _events(content: bytes, where: str) -> Iterator[tuple[str, Element]]:
    if len(content) > MOST_BYTES:
        raise FileError(f"{where}: is larger than {MOST_BYTES // 10**6} MB; no platform that can be read here is")
    depth = count = 0
    try:
        events: Iterator[tuple[str, Element]] = iterparse(
            io.BytesIO(content), ("start", "end"), forbid_dtd=False, forbid_entities=True, forbid_external=True
        )
        for event, element in events:
            depth += 1 if event == "start" else -1
            count += event == "start"
            if depth > MOST_DEPTH or count > MOST_ELEMENTS:
                found = f"more than {MOST_DEPTH} deep" if depth > MOST_DEPTH else f"more than {MOST_ELEMENTS}"
                raise FileError(f"{where}: has elements {found}; no platform that can be read here has")
            yield event, element
    except defusedxml.DefusedXmlException:
        raise FileError(f"{where}: holds entities, which platforms do not need; they are refused") from None
    except ParseError as error:
        line, _ = error.position
        raise FileError(f"{where}: line {line}: is not XML: {str(error).partition(':')[0]}") from None
    except SimgdError:
        raise
    except (ValueError, LookupError) as error:
        raise FileError(f"{where}: is not XML: {' '.join(str(error).split())[:80]}") from None


class _Reader:
    """Takes the elements of a file one after the other."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.platform = _Platform()
        self._tags: list[str] = []
        self._zones: list[_Zone] = []
        self._wire: _Wire | None = None
        self._route: tuple[dict[str, str], list[_Hop]] | None = None

    def start(self, tag: str, given: dict[str, str]) -> None:
        """Take the beginning of an element."""
        parent = self._tags[-1] if self._tags else ""
        self._tags.append(tag)
        if not parent:
            self._root(tag, given)
        elif tag in _REFUSED:
            raise FileError(f"{self._told(tag, given)}: is not read; write its links as zones and routes")
        elif tag in _ZONES:
            self._zone(tag, given)
        elif tag == "prop":
            self._property(parent, given)
        elif tag in _LEFT_OUT:
            self._leave_out(f"<{tag}>")
        elif tag == "link_ctn" and self._route is not None:
            self._hop(given)
        elif tag in ("cluster", "cabinet"):
            self._cluster(tag, given)
        elif tag in ("host", "router", "link", "backbone", "host_link", *_ROUTES) and self._zones:
            self._inside(tag, given)
        elif tag not in _PASSED_OVER:
            raise FileError(f"{self.where}: <{tag[:40]}> in <{parent[:40]}> is unknown; SimGrid's platforms have none")
        for attribute in _PROFILES:
            if given.get(attribute):
                self._leave_out(f"profiles ({attribute})")

    def end(self, tag: str) -> None:
        """Take the end of an element."""
        self._tags.pop()
        if tag == "link":
            self._wire = None
        elif tag in _ROUTES and self._route is not None:
            self._end_route(tag, *self._route)
            self._route = None
        elif tag in _ZONES:
            zone = self._zones.pop()
            if zone.routing == "cluster":
                self._star(zone)

    # --- elements ----------------------------------------------------------------------------------------------------

    def _root(self, tag: str, given: Mapping[str, str]) -> None:
        if tag != "platform":
            raise FileError(f"{self.where}: its root is <{tag[:40]}>; a platform of SimGrid has <platform>")
        version = given.get("version", "0")
        if version not in ("4", "4.0", "4.1"):
            raise FileError(
                f"{self.where}: version is {version[:20]!r}; 4 and 4.1 are read, and simgrid_update_xml makes 4.1 of others"
            )

    def _zone(self, tag: str, given: Mapping[str, str]) -> None:
        name, routing = self._needed(tag, given, "id"), self._needed(tag, given, "routing")
        if routing.lower() not in _ROUTINGS:
            raise FileError(
                f"{self._told(tag, given)}: routing {routing[:20]!r} is not read; Full, Floyd and Dijkstra are"
            )
        zone = _Zone(name=name, routing=routing.lower())
        if zone.routing == "cluster":
            zone.hub = self._point(f"{name} hub", "router", given, tag)
        self._zones.append(zone)

    def _property(self, parent: str, given: Mapping[str, str]) -> None:
        name, value = given.get("id", ""), given.get("value", "")
        if parent in _ZONES and name.startswith("vertex:"):
            if value not in get_args(VertexKind):
                raise FileError(f"{self.where}: property {name[:60]!r}: {value[:20]!r} is no kind of vertex")
            self.platform.kinds[name.removeprefix("vertex:")] = value
        elif parent == "link" and self._wire is not None and name == "kind" and value in get_args(LinkKind):
            self._wire.kind = value
        elif parent == "link" and self._wire is not None and name == "count" and re.fullmatch("[1-9][0-9]{0,8}", value):
            self._wire.count = int(value)

    def _inside(self, tag: str, given: dict[str, str]) -> None:
        zone = self._zones[-1]
        if tag in ("host", "router"):
            name = self._point(self._needed(tag, given, "id"), tag, given, tag)
            (zone.hosts if tag == "host" else zone.routers).append(name)
        elif tag == "link":
            self._wire = self._link(given["id"] if "id" in given else self._needed(tag, given, "id"), tag, given)
        elif tag == "backbone":
            zone.backbone = (self._rate(tag, given, "bandwidth"), self._time(tag, given, "latency"))
        elif tag == "host_link":
            self._host_link(zone, tag, given)
        else:
            self._route = (given, [])

    def _link(self, name: str, tag: str, given: Mapping[str, str]) -> _Wire:
        policy = given.get("sharing_policy", "SHARED").replace("FULLDUPLEX", "SPLITDUPLEX")
        if policy not in ("SHARED", "SPLITDUPLEX", "FATPIPE"):
            raise FileError(f"{self._told(tag, given)}: sharing_policy {policy[:20]!r} is not read")
        return self._add_wire(
            name, self._rate(tag, given, "bandwidth"), self._time(tag, given, "latency"), policy, self._told(tag, given)
        )

    def _add_wire(self, name: str, bytes_per_s: float, latency_s: float, policy: str, told: str) -> _Wire:
        if name in self.platform.wires:
            raise FileError(f"{told}: link {name[:40]!r} stands twice")
        wire = self.platform.wires[name] = _Wire(bytes_per_s=bytes_per_s, latency_s=latency_s, policy=policy)
        return wire

    def _hop(self, given: Mapping[str, str]) -> None:
        assert self._route is not None
        name, way = self._needed("link_ctn", given, "id"), given.get("direction", "NONE")
        # the two halves of a link of two directions have names of their own
        for ending in ("_UP", "_DOWN"):
            if name not in self.platform.wires and name.endswith(ending):
                name, way = name.removesuffix(ending), ending[1:]
        if name not in self.platform.wires:
            raise FileError(
                f"{self.where}: {self._crossing()} crosses link {name[:40]!r}, which is not there before it"
            )
        split = self.platform.wires[name].policy == "SPLITDUPLEX"
        if name != simgrid.PAD:
            self._route[1].append(_Hop(name, way if split and way in ("UP", "DOWN") else ""))

    def _crossing(self) -> str:
        assert self._route is not None
        given = self._route[0]
        return f"route from {given.get('src', '')[:40]!r} to {given.get('dst', '')[:40]!r}"

    def _end_route(self, tag: str, given: Mapping[str, str], hops: list[_Hop]) -> None:
        ends = ("src", "dst") if tag == "route" else ("gw_src", "gw_dst")
        source, target = (self._needed(tag, given, end) for end in ends)
        for point in (source, target):
            if point not in self.platform.points:
                raise FileError(f"{self._told(tag, given)}: {point[:60]!r} is no host or router before it")
        if given.get("src") == given.get("dst"):
            self._leave_out("loopback routes")
            return
        names = [hop.link for hop in hops]
        if len(set(names)) < len(names):
            raise FileError(f"{self.where}: {self._crossing()} crosses a link twice")
        self.platform.routes.append(_Route(source, target, tuple(hops), self._zones[-1].routing == "full"))

    # --- clusters ----------------------------------------------------------------------------------------------------

    def _cluster(self, tag: str, given: dict[str, str]) -> None:
        """Write out the hosts of a cluster, or of a cabinet, around a hub."""
        topology = given.get("topology", "FLAT")
        name = self._needed(tag, given, "id")
        if topology == "FAT_TREE" and self.platform.tree is None and not self.platform.points:
            self.platform.tree = given
            self._rate(tag, given, "bw")
            self._time(tag, given, "lat")
            self._radical(tag, given)
            return
        if topology != "FLAT":
            also = "; a fat tree is read where it is the whole platform" if topology == "FAT_TREE" else ""
            raise FileError(f"{self._told(tag, given)}: topology {topology[:20]} is not read{also}")
        if given.get("limiter_link"):
            raise FileError(f"{self._told(tag, given)}: limiter_link is not read; no edge of a graph stands for it")
        prefix, suffix = given.get("prefix", ""), given.get("suffix", "")
        policy = given.get("sharing_policy", "SPLITDUPLEX").replace("FULLDUPLEX", "SPLITDUPLEX")
        rate, latency_s = self._rate(tag, given, "bw"), self._time(tag, given, "lat")
        if tag == "cabinet":
            if not self._zones or self._zones[-1].routing != "cluster":
                raise FileError(f"{self._told(tag, given)}: stands in no zone with routing Cluster")
            zone = self._zones[-1]
        else:
            router = given.get("router_id") or f"{prefix}{name}_router{suffix}"
            zone = _Zone(name=name, routing="cluster", hub=self._point(f"{name} hub", "router", given, tag))
            zone.routers.append(self._point(router, "router", given, tag))
            if given.get("bb_bw"):
                zone.backbone = (self._rate(tag, given, "bb_bw"), self._time(tag, given, "bb_lat"))
                if given.get("bb_sharing_policy") == "FATPIPE":
                    zone.backbone = (math.inf, zone.backbone[1])
        for number in self._radical(tag, given):
            host = self._point(f"{prefix}{number}{suffix}", "host", given, tag)
            zone.hosts.append(host)
            zone.linked[host] = f"{name}_link_{number}"
            self._add_wire(zone.linked[host], rate, latency_s, policy, self._told(tag, given))
        if tag == "cluster":
            self._star(zone)

    def _radical(self, tag: str, given: Mapping[str, str]) -> list[int]:
        found: list[int] = []
        for part in self._needed(tag, given, "radical").split(","):
            match = _RADICAL.fullmatch(part.strip())
            if match is None or int(match[2] or match[1]) < int(match[1]):
                raise FileError(f"{self._told(tag, given)}: radical {part[:20]!r} is none; it must be such as 0-9 or 3")
            first, last = int(match[1]), int(match[2] or match[1])
            if len(found) + last - first >= MOST_HOSTS:
                raise FileError(
                    f"{self._told(tag, given)}: has more than {MOST_HOSTS} hosts; a graph of them is too large"
                )
            found += range(first, last + 1)
        return found

    def _host_link(self, zone: _Zone, tag: str, given: Mapping[str, str]) -> None:
        host, up, down = (self._needed(tag, given, key) for key in ("id", "up", "down"))
        wires = self.platform.wires
        if zone.routing != "cluster" or host not in zone.hosts:
            raise FileError(f"{self._told(tag, given)}: no such host stands before it in a zone with routing Cluster")
        names = [
            up.removesuffix("_UP") if up not in wires else up,
            down.removesuffix("_DOWN") if down not in wires else down,
        ]
        if not all(name in wires for name in names):
            raise FileError(f"{self._told(tag, given)}: {up[:40]!r} or {down[:40]!r} is no link before it")
        first, second = (wires[name] for name in names)
        if names[0] != names[1]:
            if first != second or first.policy != "SHARED":
                raise FileError(f"{self._told(tag, given)}: its links up and down differ, or are shared with others")
            first.policy = "SPLITDUPLEX"
            del wires[names[1]]
        zone.linked[host] = names[0]

    def _star(self, zone: _Zone) -> None:
        """Join the hosts of a zone, each with its link, and its routers behind the backbone, to its hub."""
        wires = self.platform.wires
        lone = [host for host in zone.hosts if host not in zone.linked]
        if lone:
            raise FileError(f"{self.where}: zone {zone.name[:40]!r}: host {lone[0][:40]!r} has no host_link")
        for host, link in zone.linked.items():
            self.platform.edges.append((host, zone.hub, link))
        if zone.backbone is None:
            hubs = [self._joined(zone, router) for router in zone.routers]
            self.platform.edges += [(hub, zone.hub, "") for hub in hubs]
            return
        rate, latency_s = zone.backbone
        # a message is on the way in over one link and on the way out over another
        whole = sum(wires[link].bytes_per_s for link in zone.linked.values())
        if rate < whole and len(zone.hosts) > 1:
            raise FileError(
                f"{self.where}: zone {zone.name[:40]!r}: every message crosses its backbone of {rate:.4g} B/s, and its "
                f"{len(zone.hosts)} hosts send {whole:.4g} B/s at once; no link of a graph is crossed by all, so it must "
                "be as wide"
            )
        for link in zone.linked.values():
            wires[link].latency_s += latency_s / 2
        for place, router in enumerate(zone.routers):
            name = f"{zone.name} backbone {place}"
            self._add_wire(
                name, min(rate, whole or rate), latency_s / 2, "SHARED", f"{self.where}: zone {zone.name[:40]!r}"
            )
            self.platform.edges.append((router, zone.hub, name))

    @staticmethod
    def _joined(zone: _Zone, router: str) -> str:
        return router if router != zone.hub else zone.hub

    # --- attributes --------------------------------------------------------------------------------------------------

    def _point(self, name: str, what: str, given: Mapping[str, str], tag: str) -> str:
        if name in self.platform.points:
            raise FileError(f"{self._told(tag, given)}: {self.platform.points[name]} {name[:60]!r} stands twice")
        if len(self.platform.points) > 4 * MOST_HOSTS:
            raise FileError(
                f"{self.where}: has more than {4 * MOST_HOSTS} hosts and routers; a graph of them is too large"
            )
        self.platform.points[name] = what
        return name

    def _leave_out(self, what: str) -> None:
        self.platform.left_out[what] = self.platform.left_out.get(what, 0) + 1

    def _told(self, tag: str, given: Mapping[str, str]) -> str:
        name = given.get("id", f"{given.get('src', '')} to {given.get('dst', '')}" if "src" in given else "")
        return f"{self.where}: <{tag} {name[:60]!r}>"

    def _needed(self, tag: str, given: Mapping[str, str], key: str) -> str:
        if not given.get(key):
            raise FileError(f"{self._told(tag, given)}: has no {key}")
        return given[key]

    def _rate(self, tag: str, given: Mapping[str, str], key: str) -> float:
        return self._quantity(tag, given, key, _RATES | {"": 1.0}, "a rate such as 125MBps or 1Gbps")

    def _time(self, tag: str, given: Mapping[str, str], key: str) -> float:
        return self._quantity(tag, given, key, _TIMES | {"": 1.0}, "a time such as 50us", default="0")

    def _quantity(
        self, tag: str, given: Mapping[str, str], key: str, units: Mapping[str, float], what: str, default: str = ""
    ) -> float:
        text = given.get(key, default) or default or self._needed(tag, given, key)
        found = _NUMBER.fullmatch(text)
        try:
            if found is None or found[2] not in units:
                raise ValueError
            return float(found[1]) * units[found[2]]
        except ValueError:
            raise FileError(f"{self._told(tag, given)}: {key} {text[:20]!r} is not {what}") from None


# --- from routes to a graph ------------------------------------------------------------------------------------------


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
    """The junctions and edges of a platform: `at` names the place of each host and router, `ends` those of each link."""

    def __init__(self, platform: _Platform, where: str) -> None:
        self.where = where
        self.platform = platform
        self._sides = _Groups()
        self._places = _Groups()
        for route in platform.routes:
            self._orient(route)
        for route in platform.routes:
            self._meet(route)
        for a, b, link in platform.edges:
            if link:
                self._places.join(("point", a), ("end", link, 0))
                self._places.join(("point", b), ("end", link, 1))
            else:
                self._places.join(("point", a), ("point", b))
        self.at: dict[str, str] = {}
        self.ends: dict[str, tuple[str, str]] = {}
        self._name()
        self._check_only()

    def _orient(self, route: _Route) -> None:
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
    def _neighbours(route: _Route, place: int) -> tuple[tuple[str, str], tuple[str, str]]:
        hops = route.hops
        before = ("link", hops[place - 1].link) if place else ("point", route.source)
        after = ("link", hops[place + 1].link) if place + 1 < len(hops) else ("point", route.target)
        return before, after

    def _end(self, link: str, neighbour: tuple[str, str]) -> tuple[str, str, int]:
        """Return the end of *link* at which *neighbour* is."""
        first, parity = self._sides.find((link, neighbour))
        anchor, odd = self._sides.find((link, ""))
        if first != anchor:
            # nothing says how this route and the others before it go through the link: alike
            self._sides.join((link, ""), (link, neighbour))
            return ("end", link, 0)
        return ("end", link, parity ^ odd)

    def _meet(self, route: _Route) -> None:
        """Join the ends that two neighbours in a route have in common."""
        here: Any = ("point", route.source)
        for place, (link, _) in enumerate(route.hops):
            before, after = self._neighbours(route, place)
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
        used = {hop.link for route in self.platform.routes for hop in route.hops}
        used |= {link for _, _, link in self.platform.edges}
        junctions = 0
        pairs: dict[tuple[str, str], str] = {}
        for link in self.platform.wires:
            if link not in used:
                if link != simgrid.PAD:
                    self.platform.left_out["links that no route uses"] = (
                        self.platform.left_out.get("links that no route uses", 0) + 1
                    )
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
            if other != link:
                raise FileError(
                    f"{self.where}: links {other[:40]!r} and {link[:40]!r} both join {a[:40]!r} and {b[:40]!r}; between "
                    "two junctions a graph has one"
                )
            self.ends[link] = (a, b)

    def _check_only(self) -> None:
        """Refuse a full table of routes where another way is as short as a listed one, or shorter."""
        near: dict[str, list[str]] = {}
        for a, b in self.ends.values():
            near.setdefault(a, []).append(b)
            near.setdefault(b, []).append(a)
        wanted: dict[str, list[_Route]] = {}
        for route in self.platform.routes:
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


def to_cluster(platform: _Platform, where: str, machine: Cluster, name: str, network: Network = "ethernet") -> Cluster:
    """Return the cluster that *platform* describes, with the device of *machine*; its links are of the kind *network*
    unless the file says another.

    Raises FileError if no graph has the platform's routes.
    """
    try:
        if platform.tree is not None:
            return _fat_tree(platform, where, machine, name, network)
        if not any(kind == "host" for kind in platform.points.values()):
            raise FileError(f"{where}: holds no host")
        graph = _Graph(platform, where)
        if platform.kinds:
            return _written(platform, graph, where, machine, name, network)
        return _foreign(platform, graph, where, machine, name, network)
    except ClusterError as error:
        raise FileError(f"{where}: {error}") from None


def _source(platform: _Platform, machine: Cluster) -> str:
    left = ", ".join(f"{count} {what}" for what, count in platform.left_out.items())
    return f"platform file of SimGrid; device as of {machine.name}{f'; left out: {left}' if left else ''}"


def _written(platform: _Platform, graph: _Graph, where: str, machine: Cluster, name: str, network: Network) -> Cluster:
    """Return the cluster of a file that says the kinds of vertices."""
    for point in platform.points:
        if point not in platform.kinds:
            raise FileError(f"{where}: no property says which kind of vertex {point[:60]!r} is, but of others")
    vertices: dict[str, VertexKind] = {
        point: kind  # type: ignore[misc]
        for point, kind in platform.kinds.items()
        if point in platform.points
    }
    links = [_plain(platform.wires[link], graph.ends[link], network) for link in graph.ends]
    return _cluster(name, machine, vertices, links, _source(platform, machine))


def _plain(wire: _Wire, ends: tuple[str, str], network: Network, count: int | None = None) -> Link:
    kind: LinkKind = wire.kind or network  # type: ignore[assignment]
    return Link(
        ends=ends,
        kind=kind,
        bandwidth=Rate(wire.bytes_per_s / (1 if count else wire.count)),
        latency=Seconds(wire.latency_s),
        count=count or wire.count,
        duplex="half" if wire.policy == "SHARED" else "full",
    )


def _foreign(platform: _Platform, graph: _Graph, where: str, machine: Cluster, name: str, network: Network) -> Cluster:
    """Return the cluster of a file that knows hosts only: each a device and a NIC."""
    hosts = [point for point, kind in platform.points.items() if kind == "host"]
    reach: dict[str, float] = dict.fromkeys(hosts, 0.0)
    fastest = 0.0
    for link, ends in graph.ends.items():
        wire = platform.wires[link]
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
        wire, count = platform.wires[link], None
        if wire.policy == "FATPIPE":
            if wire.bytes_per_s < fastest:
                raise FileError(
                    f"{where}: link {link[:40]!r} is a FATPIPE of {wire.bytes_per_s:.4g} B/s, which limits each message "
                    f"of a host's link of {fastest:.4g} B/s by itself; no link does"
                )
            count = max(1, math.ceil(whole / wire.bytes_per_s))
        for end in ends:
            if end not in reach:
                vertices.setdefault(end, "switch")
        a, b = ends
        links.append(_plain(wire, (nic.get(a, a), nic.get(b, b)), network, count))
    _prune(vertices, links)
    return _cluster(name, machine, vertices, links, _source(platform, machine))


def _distinct(platform: _Platform, graph: _Graph) -> Callable[[str], str]:
    taken = set(platform.points) | {end for ends in graph.ends.values() for end in ends}

    def name(wish: str) -> str:
        while wish in taken:
            wish += "'"
        taken.add(wish)
        return wish

    return name


def _prune(vertices: dict[str, VertexKind], links: list[Link]) -> None:
    """Drop switches at which the graph ends, again and again: no message between hosts crosses them."""
    while True:
        at = dict.fromkeys(vertices, 0)
        for link in links:
            for end in link.ends:
                at[end] += 1
        loose = {name for name, kind in vertices.items() if kind == "switch" and at[name] < 2}
        if not loose:
            return
        for name in loose:
            del vertices[name]
        links[:] = [link for link in links if not loose & set(link.ends)]


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


def _fat_tree(platform: _Platform, where: str, machine: Cluster, name: str, network: Network) -> Cluster:
    """Return the cluster whose interconnect is a fat tree of SimGrid: levels; switches or hosts below each switch;
    switches above each; parallel cables."""
    given = platform.tree
    assert given is not None
    told = f"{where}: fat tree {given.get('id', '')[:40]!r}"
    if platform.points or platform.routes:
        raise FileError(f"{told}: is read where it is the whole platform; here are other hosts, routers or routes")
    down, up, cables = _parameters(told, given.get("topo_parameters", ""))
    reader = _Reader(where)
    hosts = len(reader._radical("cluster", given))
    if math.prod(down) != hosts:
        raise FileError(f"{told}: has places for {math.prod(down)} hosts, but {hosts} hosts")
    rate, latency = Rate(reader._rate("cluster", given, "bw")), Seconds(reader._time("cluster", given, "lat"))
    leaf_up = up[1] * cables[1] if len(down) > 1 else 0
    ports = down[0] + leaf_up
    even = given.get("sharing_policy", "SPLITDUPLEX") in ("SPLITDUPLEX", "FULLDUPLEX") and up[0] == cables[0] == 1
    if not even or ports < 2 or (leaf_up and down[0] < leaf_up) or len(down) > 3:
        raise FileError(
            f"{told}: is none of equal switches whose hosts have one cable each of two directions, and at least as many "
            "of them below as cables above"
        )
    joint = Interconnect(
        kind=network,
        bandwidth=rate,
        latency=latency,
        ports=ports,
        oversubscription=down[0] / leaf_up if leaf_up else 1.0,
        rails="joined",
        source="topo_parameters of SimGrid",
    )
    net = Net(joint, hosts, 1, "static")
    levels = 1 if net.single else 2 if net.pods == 1 else 3
    fits = levels == len(down)
    if levels > 1:
        fits &= (net.down, net.up) == (down[0], leaf_up)
    if levels == 3:
        fits &= (net.leaves_a_pod, net.pods) == (down[1], down[2]) and net.up * net.core == up[1] * up[2] * cables[2]
    if not fits:
        raise FileError(
            f"{told}: {given['topo_parameters'][:40]!r} is no tree of switches with {ports} ports as an interconnect has"
        )
    return Cluster(
        name=name,
        device=machine.device,
        vertices={"host": "device", "nic": "nic"},
        # SimGrid counts cables, one more than switches; half of it at either host
        links=(Link(ends=("host", "nic"), kind="pcie", bandwidth=rate, latency=Seconds(latency / 2)),),
        interconnect=joint,
        nodes=hosts,
        routing="static",
        description=f"{hosts} {machine.device.name} in a fat tree",
        source=_source(platform, machine),
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
