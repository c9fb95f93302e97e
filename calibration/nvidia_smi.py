"""Reads what `nvidia-smi topo -m` prints, as a cluster of one node.

Model
    GPUs and NICs below one PCIe switch are PIX to each other; below several switches of one root port PXB; below one
    NUMA node PHB or NODE; else SYS (SOC in old versions). NVn between two GPUs is n NVLinks, and hides how they stand
    in the PCIe tree, so this is inferred from the NICs that both are near to, and their NUMA node from the affinity
    columns. Where one GPU's counts add up to more links than it has, or each pair shares all of them, they lead into
    NVSwitches, drawn as one vertex.

    Rates, latencies and the NICs' network are those of the shipped machine with this GPU; the matrix says none.

What it leaves out
    GPUs whose PCIe switch nothing tells are joined to their NUMA node directly. NUMA nodes are drawn as sockets, each
    joined with each. Columns such as `GPU NUMA ID` and the legends are passed over.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from calibration import gpus
from simgd.errors import ClusterError, FileError
from simgd.topology import Cluster, Link, VertexKind

#: A node with more GPUs and NICs than this is no machine that is built.
MOST_COLUMNS = 512

_ESCAPE = re.compile(r"\x1b?\[[0-9;]*m")
_NAME = re.compile(r"(GPU[0-9]+|NIC[0-9]+)", re.ASCII)
_CELL = re.compile(r"\s*(X|NV[0-9]{1,3}|NODE|PIX|PXB|PHB|SYS|SOC)", re.ASCII)
_NODE = ("PIX", "PXB", "PHB", "NODE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """What the matrix says: the relation of each ordered pair of GPUs and NICs, and the affinity of each GPU."""

    where: str
    gpus: tuple[str, ...]
    nics: tuple[str, ...]
    relations: dict[tuple[str, str], str]
    affinity: dict[str, str]

    def nvlinks(self, a: str, b: str) -> int:
        """Return how many NVLinks join *a* and *b*."""
        relation = self.relations[a, b]
        return int(relation[2:]) if relation.startswith("NV") else 0


def recognises(text: str) -> bool:
    """Say whether *text* holds such a matrix."""
    return any(_is_header(_ESCAPE.sub("", line)) for line in text.splitlines())


def _is_header(line: str) -> bool:
    return line.lstrip().startswith("GPU0") and "CPU Affinity" in line


def parse(text: str, where: str) -> Matrix:
    """Return the matrix that *text* holds; *where* names it in errors.

    Raises FileError with the number of a line that cannot be read, or with what is missing.
    """
    columns: list[str] | None = None
    numa = False
    relations: dict[tuple[str, str], str] = {}
    affinity: dict[str, str] = {}
    read = 0
    for number, raw in enumerate(text.splitlines(), start=1):
        line, at = _ESCAPE.sub("", raw).strip(), f"{where}: line {number}"
        if _is_header(line):
            if columns is not None:
                raise FileError(f"{at}: a second matrix begins; a file holds that of one node")
            columns, numa = _columns(line, at), "NUMA Affinity" in line
        elif columns is not None and line and read < len(columns):
            name = columns[read]
            cells, rest = _row(line, name, len(columns), at)
            if cells[read] != "X" or cells.count("X") > 1:
                raise FileError(f"{at}: row {name!r} must have its one X in column {name!r}")
            relations |= {(name, other): cell for other, cell in zip(columns, cells, strict=True) if other != name}
            words = rest.split()
            affinity[name] = words[1] if numa and len(words) > 1 else words[0] if words else ""
            read += 1
    if columns is None:
        raise FileError(f"{where}: has no line 'GPU0 ... CPU Affinity'; it is no output of nvidia-smi topo -m")
    if read < len(columns):
        raise FileError(f"{where}: ends before row {columns[read]!r}; the matrix is cut off")
    for (a, b), cell in relations.items():
        if relations[b, a] != cell:
            raise FileError(f"{where}: {a} to {b} is {cell}, but {b} to {a} is {relations[b, a]}")
    devices = tuple(name for name in columns if name.startswith("GPU"))
    nics = tuple(name for name in columns if name not in devices)
    return Matrix(where=where, gpus=devices, nics=nics, relations=relations, affinity=affinity)


def _columns(line: str, at: str) -> list[str]:
    # Some versions lose the tabs between these names.
    names = _NAME.sub(r" \1 ", line.partition("CPU Affinity")[0]).split()
    if len(set(names)) < len(names) or len(names) > MOST_COLUMNS:
        raise FileError(f"{at}: must name each GPU and NIC once, and at most {MOST_COLUMNS} of them")
    return names


def _row(line: str, name: str, count: int, at: str) -> tuple[list[str], str]:
    if not re.match(rf"{re.escape(name)}(?![0-9])", line):
        raise FileError(f"{at}: {line[:40]!r} stands where row {name!r} should")
    cells: list[str] = []
    place = len(name)
    while len(cells) < count:
        found = _CELL.match(line, place)
        if found is None:
            raise FileError(
                f"{at}: row {name!r} has {line[place : place + 12].strip()!r} after {len(cells)} of {count} cells; it "
                "must be X, NVn, PIX, PXB, PHB, NODE or SYS"
            )
        cells.append("SYS" if found[1] == "SOC" else found[1])
        place = found.end()
    return cells, line[place:]


def to_cluster(matrix: Matrix, machine: Cluster, name: str) -> Cluster:
    """Return the node that *matrix* describes, with the device and the link rates of the shipped *machine*."""
    vertices: dict[str, VertexKind] = {}
    called: dict[str, str] = {}
    for kind, prefix, printed in (("device", "gpu", matrix.gpus), ("nic", "nic", matrix.nics)):
        for place, each in enumerate(printed):
            called[each] = f"{prefix}{place}"
            vertices[called[each]] = kind  # type: ignore[assignment]
    links = _nvlinks(matrix, machine, called)
    if any("nvswitch0" in each.ends for each in links):
        vertices["nvswitch0"] = "nvswitch"
    switches = 0

    def hang(members: Sequence[str], below: str) -> None:
        """Join *members*, who share a root port or a switch, to the vertex *below* which they stand."""
        nonlocal switches
        if len(members) > 1:
            switch = f"pcie{switches}"
            switches += 1
            vertices[switch] = "pcie_switch"
            links.append(gpus.link(machine, "pcie", switch, below))
            below = switch
        for group in _groups(members, lambda a, b: matrix.relations[a, b] == "PIX"):
            if 1 < len(group) < len(members):
                hang(group, below)
            else:
                links.extend(gpus.link(machine, "pcie", called[each], below) for each in group)

    sockets = _numa_nodes(matrix)
    for number, members in enumerate(sockets):
        vertices[f"socket{number}"] = "socket"
        links += [gpus.link(machine, "socket", f"socket{other}", f"socket{number}") for other in range(number)]
        for group in _groups(members, lambda a, b: matrix.relations[a, b] in ("PIX", "PXB")):
            hang(group, f"socket{number}")
    try:
        return Cluster(
            name=name,
            device=machine.device,
            vertices=vertices,
            links=tuple(links),
            interconnect=machine.interconnect if matrix.nics else None,
            description=f"{len(matrix.gpus)} {machine.device.name} in one node",
            source=f"`nvidia-smi topo -m`; rates, latencies and the NICs' network as of {machine.name}",
        )
    except ClusterError as error:
        raise FileError(f"{matrix.where}: {error}") from None


def _nvlinks(matrix: Matrix, machine: Cluster, called: dict[str, str]) -> list[Link]:
    names = matrix.gpus
    pairs = [(a, b, matrix.nvlinks(a, b)) for at, a in enumerate(names) for b in names[at + 1 :]]
    most = max((count for _, _, count in pairs), default=0)
    if not most:
        return []
    has = gpus.nvlinks(machine)
    for a, b, count in pairs:
        if count > has:
            raise FileError(f"{matrix.where}: {a} and {b} are NV{count}, but a {machine.device.name} has {has} NVLinks")
    sums = {a: sum(matrix.nvlinks(a, b) for b in names if b != a) for a in names}
    if most < has and max(sums.values()) <= has:
        return [gpus.link(machine, "nvlink", called[a], called[b], count) for a, b, count in pairs if count]
    if any(count != most for _, _, count in pairs):
        worst = max(names, key=lambda each: sums[each])
        raise FileError(
            f"{matrix.where}: {worst} has {sums[worst]} NVLinks to others and not the same to each; a "
            f"{machine.device.name} has {has}"
        )
    return [gpus.link(machine, "nvlink", called[a], "nvswitch0", most) for a in names]


def _numa_nodes(matrix: Matrix) -> list[list[str]]:
    """Return the members of each NUMA node: those near to each other, and GPUs of one affinity unless they are SYS."""
    near = _groups([*matrix.gpus, *matrix.nics], lambda a, b: matrix.relations[a, b] in _NODE)
    nodes: list[list[str]] = []
    for group in near:
        home = next((node for node in nodes if _same_node(matrix, node, group)), None)
        if home is None:
            nodes.append(list(group))
        else:
            home.extend(group)
    return nodes


def _same_node(matrix: Matrix, a: Sequence[str], b: Sequence[str]) -> bool:
    told = [{matrix.affinity[name] for name in group if name in matrix.gpus} - {"", "N/A"} for group in (a, b)]
    if not told[0] & told[1]:
        return False
    return all(matrix.relations[one, other] != "SYS" for one in a for other in b)


def _groups(names: Sequence[str], joined: Callable[[str, str], bool]) -> list[list[str]]:
    """Return the groups of *names* that are *joined* directly or through others, in the order of their first name."""
    groups: list[list[str]] = []
    for name in names:
        mine = [group for group in groups if any(joined(name, other) for other in group)]
        merged = [other for group in mine for other in group] + [name]
        if mine:
            groups[groups.index(mine[0])] = merged
            groups = [group for group in groups if group not in mine[1:]]
        else:
            groups.append(merged)
    return groups
