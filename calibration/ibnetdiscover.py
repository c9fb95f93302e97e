"""Reads what `ibnetdiscover` prints, plain or with `-p`, as a cluster of all hosts and switches of a subnet.

Model
    A section begins with a switch or a channel adapter (`Ca`) and lists its ports: where the cable leads, its width and
    its speed. Every cable stands in the sections of both its ends; where these differ the slower one holds. A rate is
    the signalling rate less what the encoding takes. Cables between the same two vertices are one link of that `count`.
    Adapters whose descriptions begin with the same word ("node7 mlx5_0", "node7 HCA-2") are NICs of one host; one
    without such a name is a host by itself.

    What a host holds, and the latency of a cable with the switch behind it, are those of a given machine: its node,
    whose NICs are taken in the order of the adapters' names. A host with fewer adapters has only the first of them, and
    further ones hang where those do.

What it leaves out
    Aggregation nodes inside switches and routers are left out, and counted. The file says neither routes nor which
    hosts compute: those are chosen by name. Unlike cables between the same two vertices are drawn as equal ones of
    their mean rate.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

import msgspec

from simgd.errors import ClusterError, FileError
from simgd.topology import MOST_DEVICES, Cluster, Link, VertexKind
from simgd.units import Rate, Seconds

#: Gb/s of one lane after its encoding, 8b/10b up to QDR and 64b/66b since FDR10; signalling at 2.5, 5, 10, 10.3125,
#: 14.0625 and 25.78125 Gb/s (InfiniBand Trade Association, "InfiniBand Roadmap"); since HDR the rate by name.
LANE_GBIT_PER_S = {
    "SDR": 2.0,
    "DDR": 4.0,
    "QDR": 8.0,
    "FDR10": 10.3125 * 64 / 66,
    "FDR": 14.0625 * 64 / 66,
    "EDR": 25.78125 * 64 / 66,
    "HDR": 50.0,
    "NDR": 100.0,
    "XDR": 200.0,
}
WIDTHS = (1, 2, 4, 8, 12)

_GUID = "[0-9a-f]{1,16}"
_SECTION = re.compile(rf'(Switch|Ca|Rt)\s+([0-9]{{1,4}})\s+"([SHR]-{_GUID})"\s+#\s*"(.*)"', re.ASCII)
_PORT = re.compile(
    rf'\[([0-9]{{1,4}})\](?:\[ext [0-9]+\])?(?:\({_GUID}\))?\s+"([SHR]-{_GUID})"\[([0-9]{{1,4}})\](?:\({_GUID}\))?'
    r"(?:\[ext [0-9]+\])?\s+#(.*)",
    re.ASCII,
)
#: What stands after the description: `lid 5 4xEDR`; a switch's own lines have it at once, an adapter's once more.
_SPEED = re.compile(r'"\s+lid [0-9]+\s+([0-9]{1,2})x([A-Z0-9]+)\b', re.ASCII)
_PEER_NAME = re.compile(r'"(.*)"\s+lid ', re.ASCII)
_REPORT = re.compile(
    rf"(CA|SW|RT)\s+[0-9]+\s+([0-9]{{1,4}})\s+0x({_GUID})\s+([0-9]{{1,2}})x\s+(\S+)\s+-\s+"
    rf"(CA|SW|RT)\s+[0-9]+\s+([0-9]{{1,4}})\s+0x({_GUID})\s+\(\s*'(.*)'\s+-\s+'(.*)'\s*\)",
    re.ASCII,
)
_LOOKS = re.compile(
    rf'^\s*(?:(?:Switch|Ca|Rt)\s+[0-9]+\s+"[SHR]-{_GUID}"|(?:CA|SW|RT)\s+[0-9]+\s+[0-9]+\s+0x{_GUID}\s+[0-9]+x\s)',
    re.MULTILINE | re.ASCII,
)
#: An adapter's description with the name of its host: two words, or more if the last one is a name that drivers give.
_NAMED = re.compile(r"'?(\S+)(?:\s+(\S+))?|'?(\S+)\s.*\s((?:HCA-|mlx|hfi|qib|mthca)\S*)", re.ASCII)
_SWITCH_NAME = re.compile(r"MF0;([^:;]+):.*")


class End(NamedTuple):
    """One end of a cable: a node by its GUID with its kind before it ("S-...", "H-...", "R-..."), and a port."""

    node: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fabric:
    """What the file says: descriptions of nodes by their GUIDs, and the rate of each cable by its two ends."""

    where: str
    names: dict[str, str]
    cables: dict[tuple[End, End], float]
    unlike: int


class _Line(NamedTuple):
    number: int
    here: End
    there: End
    bytes_per_s: float


def recognises(text: str) -> bool:
    """Say whether *text* is output of ibnetdiscover."""
    return _LOOKS.search(text) is not None


def parse(text: str, where: str) -> Fabric:
    """Return the fabric that *text* describes; *where* names it in errors.

    Raises FileError with the number of a line that cannot be read, or whose cable has no other end.
    """
    names: dict[str, str] = {}
    sections: dict[str, int] = {}
    lines: dict[End, _Line] = {}
    for line in _lines(text, where, names, sections):
        if line.here in lines:
            raise FileError(
                f"{where}: line {line.number}: port {line.here.port} of {_told(line.here, names)} stands twice"
            )
        if line.here == line.there:
            raise FileError(f"{where}: line {line.number}: port {line.here.port} leads to itself")
        lines[line.here] = line
    if not lines:
        raise FileError(f"{where}: lists no cable; it must be whole output of ibnetdiscover")
    adapters = any(node.startswith("H-") for node in sections)
    cables: dict[tuple[End, End], float] = {}
    unlike = 0
    for here, line in lines.items():
        back = lines.get(line.there)
        if back is None and (line.there.node in sections or adapters or not line.there.node.startswith("H-")):
            missing = "which is not in the file" if line.there.node not in sections else "which lists no such cable"
            led = f"leads to port {line.there.port} of {_told(line.there, names)}, {missing}; is the file cut off?"
            raise FileError(f"{where}: line {line.number}: {led}")
        if back is not None and back.there != here:
            led = f"leads to port {line.there.port} of {_told(line.there, names)}"
            elsewhere = f"which leads to port {back.there.port} of {_told(back.there, names)}"
            raise FileError(f"{where}: line {line.number}: {led}, {elsewhere}")
        if (line.there, here) in cables:
            continue
        rates = [line.bytes_per_s] + ([back.bytes_per_s] if back is not None else [])
        unlike += len(set(rates)) > 1
        cables[here, line.there] = min(rates)
    return Fabric(where=where, names=names, cables=cables, unlike=unlike)


def _lines(text: str, where: str, names: dict[str, str], sections: dict[str, int]) -> Iterator[_Line]:
    """Yield each line about a port; fill in the *names* of nodes, and the line where the section of each begins."""
    node: str | None = None
    for number, raw in enumerate(text.splitlines(), start=1):
        line, at = raw.strip(), f"{where}: line {number}"
        if (report := _REPORT.match(line)) is not None:
            yield _reported(report, number, at, names, sections)
        elif re.match(r"(Switch|Ca|Rt)\s", line):
            found = _SECTION.match(line)
            if found is None or found[3][0] != {"Switch": "S", "Ca": "H", "Rt": "R"}[found[1]]:
                raise FileError(f"{at}: {line[:60]!r} begins no section; it must be a kind, ports, a GUID and a name")
            node = found[3]
            if node in sections:
                raise FileError(f"{at}: {node} stands twice; it began in line {sections[node]}")
            sections[node] = number
            names[node] = found[4].strip()
        elif line.startswith("["):
            if node is None:
                raise FileError(f"{at}: a port stands before the first switch or adapter")
            yield _port(line, node, number, at, names)


def _port(line: str, node: str, number: int, at: str, names: dict[str, str]) -> _Line:
    found = _PORT.match(line)
    if found is None:
        raise FileError(f'{at}: {line[:60]!r} is no port; it must be [port] "GUID"[port] # and what is there')
    speed = _SPEED.search(found[4])
    if speed is None:
        raise FileError(f"{at}: says no width and speed such as 4xEDR, but {found[4].strip()[-40:]!r}")
    name = _PEER_NAME.search(found[4].partition(" lmc ")[2] or found[4])
    if name is not None:
        names.setdefault(found[2], name[1].strip())
    rate = _rate(speed[1], speed[2], at)
    return _Line(number, End(node, int(found[1])), End(found[2], int(found[3])), rate)


def _reported(found: re.Match[str], number: int, at: str, names: dict[str, str], sections: dict[str, int]) -> _Line:
    """Return a line of the report of ports (`-p`). It has GUIDs of ports, so that adapters are told by their names."""
    ends = []
    for kind, port, guid, name in ((found[1], found[2], found[3], found[9]), (found[6], found[7], found[8], found[10])):
        letter = {"CA": "H", "SW": "S", "RT": "R"}[kind]
        named = letter == "H" and (split := _NAMED.fullmatch(name.strip())) is not None and (split[2] or split[4])
        node = f"{letter}-{name.strip()}" if named else f"{letter}-{guid}"
        names[node] = name.strip()
        ends.append(End(node, int(port)))
    sections.setdefault(ends[0].node, number)
    return _Line(number, ends[0], ends[1], _rate(found[4], found[5], at))


def _rate(width: str, speed: str, at: str) -> float:
    if speed not in LANE_GBIT_PER_S or int(width) not in WIDTHS:
        known = f"widths are {', '.join(f'{each}x' for each in WIDTHS)}, speeds {', '.join(LANE_GBIT_PER_S)}"
        raise FileError(f"{at}: {width}x{speed[:20]} is no known rate; {known}")
    return int(width) * LANE_GBIT_PER_S[speed] * 1e9 / 8


def _told(end: End, names: dict[str, str]) -> str:
    return f"{names.get(end.node) or end.node!r:.60}"


def to_cluster(
    fabric: Fabric,
    machine: Cluster,
    name: str,
    *,
    hosts: str = "*",
    routing: Literal["static", "adaptive"] = "adaptive",
) -> Cluster:
    """Return the cluster of all hosts whose names match the pattern *hosts*, each like a node of *machine*.

    Raises FileError if there is no such host, or if the fabric is in pieces.
    """
    return _Builder(fabric, machine, hosts).cluster(name, routing)


class _Builder:
    """A fabric on its way to a cluster."""

    def __init__(self, fabric: Fabric, machine: Cluster, pattern: str) -> None:
        self.fabric = fabric
        self.machine = machine
        self.left_out: list[str] = []
        if not machine.nics or len(set(machine.hosts.values())) > 1:
            raise FileError(f"{fabric.where}: device {machine.name!r} is no host with a nic, which each host here has")
        self.hosts = self._hosts(pattern)
        if len(self.hosts) * len(machine.devices) > MOST_DEVICES:
            raise FileError(
                f"{fabric.where}: has {len(self.hosts)} hosts; at most {MOST_DEVICES} devices can be predicted"
            )
        #: The vertex of each node of the fabric that is kept.
        self.vertex: dict[str, str] = {}
        self.inner: list[Link] = []
        self.devices: list[str] = []
        self.others: dict[str, VertexKind] = {}
        for host, adapters in self.hosts.items():
            self._add(host, adapters)
        self._add_switches()

    def cluster(self, name: str, routing: Literal["static", "adaptive"]) -> Cluster:
        """Return the cluster."""
        fabric, machine = self.fabric, self.machine
        links = [*self.inner, *self._cables()]
        if fabric.unlike:
            self.left_out.append(f"what the faster end says of {fabric.unlike} cables whose ends differ")
        more = f"; left out: {', '.join(self.left_out)}" if self.left_out else ""
        like = "hosts and latencies" if machine.interconnect is not None else "hosts"
        vertices: dict[str, VertexKind] = dict.fromkeys(self.devices, "device")
        switches = sum(kind == "switch" for kind in self.others.values())
        try:
            return Cluster(
                name=name,
                device=machine.device,
                # devices first, so that static routing spreads consecutive ones
                vertices=vertices | self.others,
                links=tuple(links),
                routing=routing,
                description=f"{len(self.hosts)} hosts of {machine.device.name} and {switches} switches",
                source=f"`ibnetdiscover`; {like} as of {machine.name}{more}",
            )
        except ClusterError as error:
            raise FileError(f"{fabric.where}: {error}") from None

    def _hosts(self, pattern: str) -> dict[str, list[str]]:
        """Return the adapters of each host, both in the order of their names."""
        found: dict[str, dict[str, str]] = {}
        aggregating = unnamed = 0
        routers = sum(node.startswith("R-") for node in self.fabric.names)
        cabled = dict.fromkeys(end.node for cable in self.fabric.cables for end in cable)
        for node in cabled:
            told = self.fabric.names.get(node, "")
            if not node.startswith("H-"):
                continue
            if told.endswith("Aggregation Node"):
                aggregating += 1
                continue
            named = _NAMED.fullmatch(told)
            if named is None:
                unnamed += 1
            host, adapter = (named[1] or named[3], named[2] or named[4] or "") if named else (node, "")
            adapters = found.setdefault(host, {})
            if adapter and adapter in adapters.values():
                raise FileError(
                    f"{self.fabric.where}: two adapters are called {told[:60]!r}; their hosts cannot be told apart, "
                    "give ibnetdiscover a --node-name-map"
                )
            adapters[node] = adapter
        kept = {host: adapters for host, adapters in found.items() if fnmatchcase(host, pattern)}
        if not kept:
            known = f"no host is called like {pattern[:40]!r}; there is {next(iter(found))!r}" if found else "no host"
            raise FileError(f"{self.fabric.where}: has {known}")
        for count, what in (
            (aggregating, "aggregation nodes"),
            (routers, "routers"),
            (len(found) - len(kept), f"hosts not called {pattern}"),
        ):
            if count:
                self.left_out.append(f"{count} {what}")
        if unnamed and pattern == "*":
            self.left_out.append(f"which hosts {unnamed} adapters without a host's name belong to")
        return {
            host: sorted(kept[host], key=lambda node: (_natural(kept[host][node]), node))
            for host in sorted(kept, key=_natural)
        }

    def _add(self, host: str, adapters: list[str]) -> None:
        """Add a copy of the machine's node with as many NICs as the host has adapters."""
        machine, nics = self.machine, self.machine.nics
        copies: dict[str, list[str]] = {}
        for vertex, kind in machine.vertices.items():
            if kind != "nic":
                copies[vertex] = [f"{host}/{vertex}"]
        for place, node in enumerate(adapters):
            like = nics[place % len(nics)]
            called = f"{host}/{like}" if place < len(nics) else f"{host}/{like}.{place // len(nics)}"
            copies.setdefault(like, []).append(called)
            self.vertex[node] = called
        for vertex, kind in machine.vertices.items():
            for called in copies.get(vertex, ()):
                if kind == "device":
                    self.devices.append(called)
                else:
                    self.others[called] = kind
        for link in machine.links:
            a, b = link.ends
            for one in copies.get(a, ()):
                self.inner += [msgspec.structs.replace(link, ends=(one, other)) for other in copies.get(b, ())]

    def _add_switches(self) -> None:
        names = {node: told for node, told in self.fabric.names.items() if node.startswith("S-")}
        short = {node: found[1] if (found := _SWITCH_NAME.fullmatch(told)) else told for node, told in names.items()}
        counts: dict[str, int] = {}
        for told in short.values():
            counts[told] = counts.get(told, 0) + 1
        for node, told in short.items():
            called = told if told and counts[told] == 1 and told not in self.others else node
            self.vertex[node] = called
            self.others[called] = "switch"

    def _cables(self) -> list[Link]:
        """Return one link for all cables between two vertices."""
        rates: dict[tuple[str, str], list[float]] = {}
        for (one, other), rate in self.fabric.cables.items():
            if one.node in self.vertex and other.node in self.vertex:
                a, b = sorted((self.vertex[one.node], self.vertex[other.node]), key=_natural)
                rates.setdefault((a, b), []).append(rate)
        latency = self.machine.interconnect.latency if self.machine.interconnect is not None else Seconds(0.0)
        unlike = sum(len(set(found)) > 1 for found in rates.values())
        if unlike:
            self.left_out.append(f"unlike rates of cables in {unlike} of the bundles")
        try:
            return [
                Link(
                    ends=ends,
                    kind="infiniband",
                    bandwidth=Rate(sum(found) / len(found)),
                    latency=latency,
                    count=len(found),
                )
                for ends, found in rates.items()
            ]
        except ClusterError as error:
            raise FileError(f"{self.fabric.where}: {error}") from None


def _natural(name: str) -> tuple[tuple[int, str], ...]:
    """Return a key that sorts node2 before node10."""
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name))
