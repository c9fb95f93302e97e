"""Makes a profile of what other tools measured: curves, point-to-point costs, layer times, and the machine.

Model
    Each file is recognised by its content. What a file does not say stands beside it, after the last colon:
    `osu.txt:ranks=16,nodes=2`; a fact that it says itself is refused, so that the two cannot differ. The cluster is
    that of the topology file, with as many nodes as the curves have, else the one that `on` names. Each entry is
    "measured", and its source names the file, the tool and its version. Two entries about the same thing are an error.

What it leaves out
    Everything that no file tells: such costs are modelled or assumed where the profile is used. Give it after another
    profile of the same device (`--profile dgx1-v100 --profile mine.json`) to replace only what was measured.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

from rich.table import Table

from calibration import gpus, ibnetdiscover, kineto, nccl_tests, nccl_xml, nvidia_smi, osu, simgrid_graph, simgrid_xml
from simgd import catalogue, fabrics, files
from simgd.errors import ClusterError, FileError, SimgdError, unknown
from simgd.network import Network
from simgd.profile import CollectiveKind, Curve, Entry, LayerTimes, LinkRate, PointToPoint, Profile
from simgd.texttable import table as empty_table
from simgd.topology import Cluster, LinkKind
from simgd.units import MIB, show_bytes, show_rate, show_seconds

#: Text that a tool prints about one run is far smaller.
MOST_TEXT_BYTES = 16 * MIB

KNOWN = (
    "nccl-tests, OSU micro-benchmarks, nvidia-smi topo -m, NCCL's topology file, ibnetdiscover or torch.profiler, or a "
    "platform file of SimGrid"
)

_NCCL_TESTS = re.compile(r"^[^\n]*#\s*(nThread\s+\d|size\s+count\s+type\s)", re.MULTILINE)
_NCCL_VERSION = re.compile(r"nccl-tests version (\S{1,40})")
_FACT = re.compile(r"([a-z]+)=([^=,]+)")


class Part(NamedTuple):
    """What one file was, and what it gave: entries for a profile, or a cluster."""

    file: str
    what: str
    entries: tuple[Entry, ...] = ()
    cluster: Cluster | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """A file with the facts beside it."""

    path: str
    content: bytes
    facts: Mapping[str, str]

    @property
    def file(self) -> str:
        """The name that goes into sources, without folders."""
        return Path(self.path).name

    def fact(self, name: str, why: str, example: str) -> str:
        """Return a fact that must be given."""
        if name not in self.facts:
            raise FileError(f"{self.path}: does not say {why}; write {self.path}:{name}={example}")
        return self.facts[name]

    def count(self, name: str) -> int | None:
        """Return a fact that is a whole number above 0."""
        text = self.facts.get(name)
        if text is None:
            return None
        if not (text.isascii() and text.isdecimal() and len(text) < 8 and int(text) > 0):
            raise FileError(f"{self.path}: {name}={text[:20]}: must be a whole number above 0")
        return int(text)

    def only(self, *names: str) -> None:
        """Refuse facts besides these."""
        for name in self.facts:
            if name not in names:
                takes = f"it takes {', '.join(names)}" if names else "it takes none"
                raise FileError(f"{self.path}: {name!r} is no fact about such a file; {takes}")


def imported(specs: Sequence[str], name: str, on: str | None = None) -> Profile:
    """Return the profile called *name* of the files that *specs* name; *on* is their cluster if none is a topology."""
    return merged(name, *parts(specs, name, on))


def parts(specs: Sequence[str], name: str, on: str | None = None) -> tuple[Cluster, tuple[Part, ...]]:
    """Return the cluster, and what each file gave; see `imported`."""
    given = [_read(spec) for spec in specs]
    kinds = [_kind(each) for each in given]
    clusters = [
        Part(each.file, kind.what, (), kind.topology(each, name))
        for each, kind in zip(given, kinds, strict=True)
        if kind.topology is not None
    ]
    if len(clusters) > 1:
        raise FileError(f"{clusters[0].file} and {clusters[1].file} both describe the machine; give one of them")
    if clusters and on is not None:
        raise FileError(f"{clusters[0].file} describes the machine; leave --on {on} out")
    if clusters:
        cluster = clusters[0].cluster
        assert cluster is not None
    elif on is not None:
        cluster = catalogue.cluster(on)
    else:
        raise FileError("no file describes the machine; add a topology (nvidia-smi topo -m), or name it with --on")
    found = [
        clusters[0] if kind.topology is not None else kind.measured(each, cluster)
        for each, kind in zip(given, kinds, strict=True)
    ]
    curves = [(part.file, entry) for part in found for entry in part.entries if isinstance(entry, Curve)]
    most = max((curve.nodes for _, curve in curves), default=1)
    if clusters and most > cluster.nodes:
        if cluster.interconnect is None and len(set(cluster.hosts.values())) > 1:
            what = f"{clusters[0].file}: is a network of unlike hosts; curves between its hosts are not placed on it"
            raise ClusterError(f"{what}, import them with --on")
        if not cluster.nics:
            raise ClusterError(f"{clusters[0].file}: shows no NIC, but another file was measured on {most} nodes")
        cluster = fabrics.resized(cluster, most)
    for file, curve in curves:
        _check_places(file, curve, cluster)
    return cluster, tuple(found)


def merged(name: str, cluster: Cluster, found: Sequence[Part]) -> Profile:
    """Return the profile of all entries. Raises FileError if two files speak of the same thing."""
    owners: dict[tuple[object, ...], str] = {}
    entries: dict[type[Entry], list[Any]] = {Curve: [], LayerTimes: [], LinkRate: [], PointToPoint: []}
    for part in found:
        for entry in part.entries:
            if entry.key in owners:
                what, ranks, nodes, _ = _told(entry)
                about = f"{what} on {_number_of(int(ranks), 'rank')}" + (f" of {nodes} nodes" if nodes else "")
                raise FileError(f"{owners[entry.key]} and {part.file} both hold {about}; give one of them")
            owners[entry.key] = part.file
            entries[type(entry)].append(entry)
    return Profile(
        name=name,
        cluster=cluster,
        description=f"Imported from {', '.join(part.file for part in found)}",
        curves=tuple(entries[Curve]),
        layers=tuple(entries[LayerTimes]),
        links=tuple(entries[LinkRate]),
        point_to_point=next(iter(entries[PointToPoint]), None),
    )


def table(found: Sequence[Part]) -> Table:
    """Return what each file was and gave."""
    made = empty_table("file", "what it is", "gave", "ranks", "nodes", "range", left=3)
    for part in found:
        if part.cluster is not None:
            node = part.cluster
            nodes = f"{node.nodes} nodes of " if node.nodes > 1 else ""
            gave = f"machine: {nodes}{len(node.devices)} {node.device.name}, {_number_of(len(node.nics), 'NIC')}"
            made.add_row(part.file, part.what, gave, "", "", "")
        for entry in part.entries:
            made.add_row(part.file, part.what.partition(",")[0], *_told(entry))
    return made


def _told(entry: Entry) -> tuple[str, str, str, str]:
    if isinstance(entry, Curve):
        return entry.kind, str(entry.ranks), str(entry.nodes), _sizes(entry.points)
    if isinstance(entry, PointToPoint):
        return "point to point", "2", "", _sizes(entry.points)
    if isinstance(entry, LinkRate):
        return f"rate of {entry.kind}", "2", "", show_rate(entry.bytes_per_s)
    assert isinstance(entry, LayerTimes)
    what = f"{entry.direction} of {entry.workload}, batch {entry.batch or 'unknown'}"
    return what, "1", "", f"{_number_of(len(entry.seconds), 'layer')}, {show_seconds(sum(entry.seconds.values()))}"


def _sizes(points: Sequence[tuple[float, float]]) -> str:
    return f"{show_bytes(points[0][0])} to {show_bytes(points[-1][0])}, {_number_of(len(points), 'size')}"


def _number_of(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


# --- files and facts ---------------------------------------------------------------------------------------------


def _read(spec: str) -> _Given:
    path, facts = _split(spec)
    content = files.read_bytes(path)
    if content.startswith(b"\x1f\x8b"):
        raise FileError(f"{path}: is packed by gzip; let its name end in .gz")
    return _Given(path=path, content=content, facts=facts)


def _split(spec: str) -> tuple[str, dict[str, str]]:
    """Split ``FILE:FACTS``; a colon that belongs to the file's name splits nothing."""
    path, colon, tail = spec.rpartition(":")
    if not colon or "=" not in tail or Path(spec).is_file():
        return spec, {}
    facts: dict[str, str] = {}
    for pair in tail.split(","):
        found = _FACT.fullmatch(pair.strip())
        if found is None or found[1] in facts:
            raise FileError(f"{path}: {pair[:40]!r} is no fact, or stands twice; write {path}:name=value,name=value")
        facts[found[1]] = found[2]
    return path, facts


class _Kind(NamedTuple):
    """A sort of file: what it is called, and how to read it, as a machine or as measurements on a given one."""

    what: str
    topology: Callable[[_Given, str], Cluster] | None = None
    measured: Callable[[_Given, Cluster], Part] = lambda given, cluster: Part(given.file, "")


def _kind(given: _Given) -> _Kind:
    if kineto.recognises(given.content):
        return _KINETO
    if simgrid_xml.recognises(given.content):
        return _SIMGRID
    if len(given.content) > MOST_TEXT_BYTES:
        raise FileError(f"{given.path}: is larger than {MOST_TEXT_BYTES // MIB} MiB, and no trace of torch.profiler")
    text = _text(given)
    if nccl_xml.recognises(text):
        return _NCCL_XML
    tests = (
        (_OSU, osu.recognises(text)),
        (_NVIDIA_SMI, nvidia_smi.recognises(text)),
        (_IBNETDISCOVER, ibnetdiscover.recognises(text)),
        (_NCCL, _NCCL_TESTS.search(text) is not None),
    )
    fits = [kind for kind, fit in tests if fit]
    if len(fits) > 1:
        raise FileError(f"{given.path}: holds output of {fits[0].what} and of {fits[1].what}; keep one in a file")
    if not fits:
        found = "is empty" if not text.strip() else f"begins with {text.strip().splitlines()[0][:40]!r}"
        raise FileError(f"{given.path}: {found}; it must be output of {KNOWN}")
    return fits[0]


def _text(given: _Given) -> str:
    try:
        return given.content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise FileError(f"{given.path}: is not text in UTF-8; it must be output of {KNOWN}") from None


# --- one sort of file after the other ----------------------------------------------------------------------------


def _from_nccl_tests(given: _Given, cluster: Cluster) -> Part:
    given.only("kind", "ranks", "nodes")
    text = _text(given)
    facts: dict[str, Any] = {name: given.count(name) for name in ("ranks", "nodes") if name in given.facts}
    if "kind" in given.facts:
        known = get_args(CollectiveKind)
        if given.facts["kind"] not in known:
            raise FileError(f"{given.path}: kind={given.facts['kind'][:40]}: must be one of {', '.join(known)}")
        facts["kind"] = given.facts["kind"]
    for name in facts:
        _refuse_if_said(given, text, name, {other: value for other, value in facts.items() if other != name})
    try:
        measurement = nccl_tests.parse(text, given.path, **facts)
    except FileError as error:
        if "does not say which collective" in str(error):
            raise FileError(f"{error}; write {given.path}:kind=NAME") from None
        raise
    version = _NCCL_VERSION.search(text)
    tool = f"nccl-tests {version[1] if version else 'of unknown version'}"
    return Part(given.file, tool, (nccl_tests.to_curve(measurement, f"{given.file}: {tool}"),))


def _refuse_if_said(given: _Given, text: str, name: str, others: dict[str, Any]) -> None:
    """Refuse the fact *name* if the file can be read without it, and says it itself."""
    try:
        measurement = nccl_tests.parse(text, given.path, **others)
    except SimgdError:
        return
    said = getattr(measurement, name)
    # A file without `# Rank` lines does not say how many nodes there were: one is taken.
    if name != "nodes" or re.search(r"#\s*Rank\s", text):
        raise FileError(f"{given.path}: {name}={given.facts[name]}: the file itself says {said}; leave {name} out")


def _from_osu(given: _Given, cluster: Cluster) -> Part:
    measurement = osu.parse(_text(given), given.path)
    source = f"{given.file}: {measurement.tool}"
    if measurement.kind == "latency":
        given.only()
        return Part(given.file, measurement.tool, (osu.to_point_to_point(measurement, source),))
    if measurement.kind == "bandwidth":
        given.only("link")
        kinds = get_args(LinkKind)
        link = given.fact("link", f"which kind of link it crossed ({', '.join(kinds)})", "KIND")
        if link not in kinds:
            raise FileError(f"{given.path}: link={link[:40]}: must be one of {', '.join(kinds)}")
        return Part(given.file, measurement.tool, (osu.to_rate(measurement, source, link),))  # type: ignore[arg-type]
    given.only("ranks", "nodes")
    given.fact("ranks", "how many ranks it ran on", "N")
    ranks = given.count("ranks") or 0
    # Without a word, ranks fill nodes: one on each node of CPUs.
    nodes = given.count("nodes") or -(-ranks // len(cluster.devices))
    return Part(given.file, measurement.tool, (osu.to_curve(measurement, source, ranks, nodes),))


def _from_kineto(given: _Given, cluster: Cluster) -> Part:
    given.only("workload", "batch")
    name = given.fact("workload", "which workload it is of", "NAME")
    workload = catalogue.workload(name)
    measurement = kineto.parse(given.content, given.path, workload, given.count("batch") or 0)
    source = f"{given.file}: {measurement.tool}"
    return Part(given.file, measurement.tool, kineto.to_layer_times(measurement, source, workload))


def _matrix(given: _Given, name: str) -> Cluster:
    given.only("gpu")
    matrix = nvidia_smi.parse(_text(given), given.path)
    return nvidia_smi.to_cluster(matrix, gpus.machine(given.path, given.facts.get("gpu")), name)


def _xml(given: _Given, name: str) -> Cluster:
    given.only("gpu")
    root = nccl_xml.tree(given.content, given.path)
    return nccl_xml.to_cluster(root, given.path, gpus.machine(given.path, given.facts.get("gpu")), name)


def _subnet(given: _Given, name: str) -> Cluster:
    given.only("device", "hosts", "routing")
    fabric = ibnetdiscover.parse(_text(given), given.path)
    machine = _host(given)
    hosts, routing = given.facts.get("hosts", "*"), _one_of(given, "routing", ("adaptive", "static"))
    return ibnetdiscover.to_cluster(fabric, machine, name, hosts=hosts, routing=routing)


def _platform(given: _Given, name: str) -> Cluster:
    given.only("device", "link", "backbone")
    wide = _one_of(given, "backbone", ("", "wide")) == "wide"
    platform = simgrid_xml.parse(given.content, given.path, wide=wide)
    link = _one_of(given, "link", ("ethernet", "infiniband"))
    return simgrid_graph.to_cluster(platform, given.path, _host(given), name, link)


def _one_of(given: _Given, name: str, known: Sequence[str]) -> Any:
    """Return a fact that is one of *known* names, the first of them unless it is given."""
    found = given.facts.get(name, known[0])
    if name in given.facts and found not in known:
        raise FileError(f"{given.path}: {name}={found[:40]}: must be {' or '.join(filter(None, known))}")
    return found


def _host(given: _Given) -> Cluster:
    """Return the machine that each host of a network is like: a cluster by its name, or by that of its GPU."""
    name = given.fact("device", "what its hosts are (a cluster of `simgd list clusters`, or a GPU)", "NAME")
    machines = gpus.known()
    if name.lower() in machines:
        return machines[name.lower()]
    if catalogue.is_file(name) or name in catalogue.names("cluster"):
        return catalogue.cluster(name)
    known = [*catalogue.names("cluster"), *machines]
    raise FileError(str(unknown(f"{given.path}: device", name, known, "`simgd list clusters` shows all")))


_NCCL = _Kind("nccl-tests", measured=_from_nccl_tests)
_OSU = _Kind("OSU micro-benchmarks", measured=_from_osu)
_KINETO = _Kind("trace of torch.profiler", measured=_from_kineto)
_NVIDIA_SMI = _Kind("nvidia-smi topo -m", topology=_matrix)
_NCCL_XML = _Kind("NCCL's topology file", topology=_xml)
_IBNETDISCOVER = _Kind("ibnetdiscover", topology=_subnet)
_SIMGRID = _Kind("platform file of SimGrid", topology=_platform)


def _check_places(file: str, curve: Curve, cluster: Cluster) -> None:
    """Refuse a curve of ranks that the cluster has no places for: no prediction could use it."""
    if Network(cluster, Profile(name="", cluster=cluster)).spread(curve.ranks, curve.nodes) is None:
        many = "any number of nodes" if cluster.device.kind == "cpu" else _number_of(cluster.nodes, "node")
        raise ClusterError(
            f"{file}: was measured with {curve.ranks} ranks on {_number_of(curve.nodes, 'node')}, dealt out evenly; "
            f"cluster {cluster.name!r} has {many} of {_number_of(len(cluster.devices), 'device')}"
        )
