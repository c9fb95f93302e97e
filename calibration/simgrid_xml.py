"""Reads a platform file of SimGrid (XML, versions 4 and 4.1): hosts, routers, links and routes, clusters written out.

Model
    A flat cluster is a hub with a link to each host. Its backbone is crossed by every message, which no link of a graph
    is: one that carries what all hosts send at once is left out inside the cluster but for its latency, of which each
    host's link takes one half; others are refused unless their limit is to be left out. `simgrid_graph` makes a cluster
    of it all.

What it leaves out
    Traces, which change rates over time, properties, disks, loopbacks and actors, most of them counted. Tori,
    dragonflies, WiFi, peers, Vivaldi's coordinates and bypasses are refused.

Files come from others: entities are refused, DTDs are not fetched, and size, depth and number of elements are bounded.
"""

import io
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple, get_args
from xml.etree.ElementTree import Element, ParseError

import defusedxml
from defusedxml.ElementTree import iterparse

from simgd import simgrid
from simgd.errors import FileError, SimgdError
from simgd.files import LARGEST
from simgd.topology import LinkKind, VertexKind
from simgd.units import show_rate

#: Larger files, and more hosts, are none that a graph is searched in; SimGrid's largest examples have 262,145 hosts.
MOST_BYTES, MOST_DEPTH, MOST_ELEMENTS, MOST_HOSTS = 100 * 10**6, 100, 1_000_000, 20_000

_COMMENT = re.compile(rb"<!--.*?-->", re.DOTALL)
_HEAD = re.compile(rb"<(?:!DOCTYPE\s+platform|platform)[\s>]")
_NUMBER = re.compile(r"\s*([0-9]{1,40}(?:\.[0-9]{0,40})?(?:[eE][+-]?[0-9]{1,3})?)\s*([A-Za-z]*)\s*", re.ASCII)
_SCALES = {"": 1} | {letter: 1000 ** (power + 1) for power, letter in enumerate("kMGTPE")} | {"K": 1000}
_SCALES |= {f"{letter}i": 1024 ** (power + 1) for power, letter in enumerate("KMGTPE")}
_RATES = {
    f"{scale}{unit}": Fraction(by, bits) for unit, bits in (("Bps", 1), ("bps", 8)) for scale, by in _SCALES.items()
}
_TIMES = {unit: Fraction(seconds) for unit, seconds in (("s", 1), ("m", 60), ("h", 3600), ("d", 86400), ("w", 604800))}
_TIMES |= {unit: Fraction(1, 1000**power) for power, unit in enumerate(("ms", "us", "ns", "ps"), start=1)}
_RADICAL = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", re.ASCII)

_ZONES = ("zone", "AS")
_ROUTES = ("route", "zoneRoute", "ASroute")
_ROUTINGS = ("full", "floyd", "dijkstra", "dijkstracache", "cluster", "none")
_PASSED_OVER = ("config", "prop", "disk", "mount", "storage", "storage_type", "model_prop", "random", "argument")
_LEFT_OUT = ("trace", "trace_connect", "actor", "process")
_REFUSED = ("include", "peer", "bypassRoute", "bypassASroute", "bypassZoneRoute")
_PROFILES = ("speed_file", "availability_file", "state_file", "bandwidth_file", "latency_file")


class Hop(NamedTuple):
    """A link in a route: `way` is "UP" or "DOWN" for a link of two directions, else empty."""

    link: str
    way: str


class Route(NamedTuple):
    """Links from one host or router to another; `only` where no other way may be as short."""

    source: str
    target: str
    hops: tuple[Hop, ...]
    only: bool

    def told(self) -> str:
        """Return what errors call it."""
        return f"route from {self.source[:40]!r} to {self.target[:40]!r}"


@dataclass(slots=True, kw_only=True)
class Wire:
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


class Tree(NamedTuple):
    """A fat tree of SimGrid: `told` names it in errors, `levels` is its topo_parameters."""

    told: str
    levels: str
    hosts: int
    bytes_per_s: float
    latency_s: float
    policy: str


@dataclass(slots=True, kw_only=True)
class Platform:
    """What the file says: `points` are hosts and routers by name, `edges` links with known ends (an empty name: two
    points at one place), `kinds` those of vertices where simgd wrote them, `left_out` how often what was.
    """

    points: dict[str, str] = field(default_factory=dict)
    wires: dict[str, Wire] = field(default_factory=dict)
    routes: list[Route] = field(default_factory=list)
    edges: list[tuple[str, str, str]] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)
    tree: Tree | None = None
    left_out: dict[str, int] = field(default_factory=dict)


def recognises(content: bytes) -> bool:
    """Say whether *content* is a platform file of SimGrid."""
    return content[:3].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") and _HEAD.search(content[:65536]) is not None


def parse(content: bytes, where: str, *, wide: bool = False) -> Platform:
    """Return the platform that a file describes; *where* names it in errors, *wide* leaves out the limits of backbones.

    Raises FileError with the element that is wrong.
    """
    reader = _Reader(where, wide)
    stack: list[Element] = []
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
    return reader.platform


def _events(content: bytes, where: str) -> Iterator[tuple[str, Element]]:
    if len(content) > MOST_BYTES:
        raise FileError(f"{where}: is larger than {MOST_BYTES // 10**6} MB; no platform that can be read here is")
    depth = count = 0
    try:
        events: Iterator[tuple[str, Element]] = iterparse(
            # SimGrid allows -- in comments, XML does not
            io.BytesIO(_COMMENT.sub(lambda found: b"\n" * found[0].count(b"\n"), content)),
            ("start", "end"),
            forbid_dtd=False,
            forbid_entities=True,
            forbid_external=True,
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

    def __init__(self, where: str, wide: bool) -> None:
        self.where = where
        self.wide = wide
        self.platform = Platform()
        self._tags: list[str] = []
        self._zones: list[_Zone] = []
        self._wire: Wire | None = None
        self._route: tuple[dict[str, str], list[Hop]] | None = None

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
            found = f"version is {version[:20]!r}; 4 and 4.1 are read"
            raise FileError(f"{self.where}: {found}, and simgrid_update_xml makes 4.1 of older ones")

    def _zone(self, tag: str, given: Mapping[str, str]) -> None:
        name, routing = self._needed(tag, given, "id"), self._needed(tag, given, "routing")
        if routing.lower() not in _ROUTINGS:
            raise FileError(
                f"{self._told(tag, given)}: routing {routing[:20]!r} is not read; Full, Floyd, Dijkstra and Cluster are"
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
            self._wire = self._link(self._needed(tag, given, "id"), tag, given)
        elif tag == "backbone":
            zone.backbone = (self._rate(tag, given, "bandwidth"), self._time(tag, given, "latency"))
        elif tag == "host_link":
            self._host_link(zone, tag, given)
        else:
            self._route = (given, [])

    def _link(self, name: str, tag: str, given: Mapping[str, str]) -> Wire:
        policy = _policy(given, "SHARED")
        if policy not in ("SHARED", "SPLITDUPLEX", "FATPIPE"):
            raise FileError(f"{self._told(tag, given)}: sharing_policy {policy[:20]!r} is not read")
        return self._add_wire(
            name, self._rate(tag, given, "bandwidth"), self._time(tag, given, "latency"), policy, self._told(tag, given)
        )

    def _add_wire(self, name: str, bytes_per_s: float, latency_s: float, policy: str, told: str) -> Wire:
        if name in self.platform.wires:
            raise FileError(f"{told}: link {name[:40]!r} stands twice")
        wire = self.platform.wires[name] = Wire(bytes_per_s=bytes_per_s, latency_s=latency_s, policy=policy)
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
            self._route[1].append(Hop(name, way if split and way in ("UP", "DOWN") else ""))

    def _crossing(self) -> str:
        assert self._route is not None
        given = self._route[0]
        return f"route from {given.get('src', '')[:40]!r} to {given.get('dst', '')[:40]!r}"

    def _end_route(self, tag: str, given: Mapping[str, str], hops: list[Hop]) -> None:
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
        self.platform.routes.append(Route(source, target, tuple(hops), self._zones[-1].routing == "full"))

    # --- clusters ----------------------------------------------------------------------------------------------------

    def _cluster(self, tag: str, given: dict[str, str]) -> None:
        """Write out the hosts of a cluster, or of a cabinet, around a hub."""
        topology = given.get("topology", "FLAT")
        name = self._needed(tag, given, "id")
        if topology == "FAT_TREE" and self.platform.tree is None and not self.platform.points:
            self.platform.tree = Tree(
                told=f"{self.where}: fat tree {name[:40]!r}",
                levels=self._needed(tag, given, "topo_parameters"),
                hosts=len(self._radical(tag, given)),
                bytes_per_s=self._rate(tag, given, "bw"),
                latency_s=self._time(tag, given, "lat"),
                policy=_policy(given, "SPLITDUPLEX"),
            )
            return
        if topology != "FLAT":
            also = "; a fat tree is read where it is the whole platform" if topology == "FAT_TREE" else ""
            raise FileError(f"{self._told(tag, given)}: topology {topology[:20]} is not read{also}")
        if given.get("limiter_link"):
            raise FileError(f"{self._told(tag, given)}: limiter_link is not read; no edge of a graph stands for it")
        prefix, suffix = given.get("prefix", ""), given.get("suffix", "")
        policy = _policy(given, "SPLITDUPLEX")
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
            self.platform.edges += [(router, zone.hub, "") for router in zone.routers]
            return
        rate, latency_s = zone.backbone
        told = f"{self.where}: zone {zone.name[:40]!r}"
        whole = sum(wires[link].bytes_per_s for link in zone.linked.values())
        if rate < whole and len(zone.hosts) > 1:
            if not self.wide:
                raise FileError(
                    f"{told}: its {len(zone.hosts)} hosts send {show_rate(whole)} at once over one backbone of "
                    f"{show_rate(rate)}; no link of a graph is crossed by all; backbone=wide leaves that limit out"
                )
            self._leave_out("limits of backbones")
        # a message crosses the links of two hosts
        for link in zone.linked.values():
            wires[link].latency_s += latency_s / 2
        for place, router in enumerate(zone.routers):
            name = f"{zone.name} backbone {place}"
            self._add_wire(name, rate if rate <= LARGEST else 2 * whole, latency_s / 2, "SHARED", told)
            self.platform.edges.append((router, zone.hub, name))

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
        found = self._quantity(tag, given, key, _RATES | {"": Fraction(1)}, "a rate such as 125MBps or 1Gbps")
        if not found > 0:
            raise FileError(f"{self._told(tag, given)}: {key} is 0; it must be above 0")
        return found

    def _time(self, tag: str, given: Mapping[str, str], key: str) -> float:
        if not given.get(key):
            return 0.0
        return self._quantity(tag, given, key, _TIMES | {"": Fraction(1)}, "a time such as 50us")

    def _quantity(
        self, tag: str, given: Mapping[str, str], key: str, units: Mapping[str, Fraction], what: str
    ) -> float:
        text = self._needed(tag, given, key)
        found = _NUMBER.fullmatch(text)
        if found is not None and found[2] in units and (value := Fraction(found[1]) * units[found[2]]) <= LARGEST:
            return float(value)
        raise FileError(f"{self._told(tag, given)}: {key} {text[:20]!r} is not {what}")


def _policy(given: Mapping[str, str], usual: str) -> str:
    """Return a sharing policy by its newer name."""
    found = given.get("sharing_policy", usual)
    return "SPLITDUPLEX" if found == "FULLDUPLEX" else found
