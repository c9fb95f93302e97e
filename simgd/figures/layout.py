"""Finds a place for every vertex of a node's graph, in columns and rows.

Model
    The links inside hosts other than NVLink make a tree below the sockets (below PCIe switches or devices where there
    are none). Each leaf of it has a column of its own and each inner vertex is as wide as its leaves, so the links of
    the tree are upright. From above: network switches by their distance from the NICs, NVSwitches, devices, NICs, PCIe
    switches by their distance from the devices, sockets. Nothing but NVSwitches stands above a NIC, so its cable goes
    straight up; they too keep out of its way where there is room.

    Where NVLinks join devices directly, the devices below one root stand at different heights: (2k + 1) mod m for the
    k-th one. Four devices then make a tilted square; links within it and level links to the next root's devices pass
    no other device.

    Of more than `MOST` vertices, trees that are alike are folded: the first two and the last are drawn.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from simgd.topology import NETWORK_KINDS, Cluster, Link, components

_STEP = 1.25
_TILT = 0.8

#: More vertices than this are folded where parts are alike.
MOST = 120

#: Width in columns of the gap that folded trees leave.
GAP = 2.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A box: from `left` to `right` in columns, centred at `y` in rows."""

    left: float
    right: float
    y: float

    @property
    def x(self) -> float:
        """The middle of the box."""
        return (self.left + self.right) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Folded:
    """What is drawn of a cluster: *count* parts like the others are left out before the vertices *after*."""

    cluster: Cluster
    count: int = 0
    after: tuple[str, ...] = ()


def folded(cluster: Cluster) -> Folded:
    """Return the cluster without the middle ones of its parts that are alike, if it is a large one."""
    if len(cluster.vertices) <= MOST:
        return Folded(cluster=cluster)
    parts = _parts(cluster)
    alike: dict[tuple[tuple[str, int], ...], list[tuple[str, ...]]] = {}
    for part in parts:
        kinds = [cluster.vertices[name] for name in part]
        alike.setdefault(tuple((kind, kinds.count(kind)) for kind in dict.fromkeys(kinds)), []).append(part)
    most = max(alike.values(), key=len, default=[])
    if len(most) < 4:
        return Folded(cluster=cluster)
    gone = {name for part in most[2:-1] for name in part}
    fewer = msgspec.structs.replace(
        cluster,
        vertices={name: kind for name, kind in cluster.vertices.items() if name not in gone},
        links=tuple(link for link in cluster.links if not gone.intersection(link.ends)),
    )
    return Folded(cluster=fewer, count=len(most) - 3, after=most[-1])


def _parts(cluster: Cluster) -> list[tuple[str, ...]]:
    """Return the parts that only NVSwitches and the network join, each with its vertices in the file's order."""
    names = [name for name, kind in cluster.vertices.items() if kind not in ("nvswitch", "switch")]
    number = components(names, _inner(cluster))
    found: dict[int, list[str]] = {}
    for name in names:
        found.setdefault(number[name], []).append(name)
    return [tuple(part) for part in found.values()]


def _inner(cluster: Cluster) -> list[Link]:
    """Return the links that make the trees: no NVLinks and none of the network."""
    kinds = cluster.vertices
    return [
        link
        for link in cluster.links
        if link.kind not in (*NETWORK_KINDS, "nvlink")
        and not any(kinds[end] in ("nvswitch", "switch") for end in link.ends)
    ]


def places(cluster: Cluster, *, gap_before: Iterable[str] = ()) -> dict[str, Place]:
    """Return the box of each vertex; a gap is left before the first tree that holds one of *gap_before*."""
    tree = _tree(cluster)
    spans = _spans(tree, gap_before=tuple(gap_before))
    heights = _heights(cluster, tree)
    found = {name: Place(left=left, right=right, y=heights[name]) for name, (left, right) in spans.items()}
    found |= _nvswitches(cluster, found)
    return found | _switches(cluster, found)


def _near(names: Iterable[str], links: Iterable[Link]) -> dict[str, list[str]]:
    near: dict[str, list[str]] = {name: [] for name in names}
    for link in links:
        a, b = link.ends
        near[a].append(b)
        near[b].append(a)
    return near


def _nvlinked(cluster: Cluster) -> dict[str, list[str]]:
    return _near(cluster.vertices, [link for link in cluster.links if link.kind == "nvlink"])


def _tree(cluster: Cluster) -> dict[str, list[str]]:
    """Return the children of each vertex, roots below ``""``; NVSwitches and network switches are left out."""
    near = _near(cluster.vertices, _inner(cluster))
    names = [name for name, kind in cluster.vertices.items() if kind not in ("nvswitch", "switch")]
    # Below one parent devices stand first and NICs last, each kind in the order of the file.
    place = {
        name: (("device", "pcie_switch", "socket", "nic").index(cluster.vertices[name]), at)
        for at, name in enumerate(names)
    }
    children: dict[str, list[str]] = {name: [] for name in ["", *names]}
    reached: set[str] = set()
    for kind in ("socket", "pcie_switch", "device", "nic"):
        roots = [name for name in names if cluster.vertices[name] == kind and name not in reached]
        children[""] += roots
        reached.update(roots)
        level = roots
        while level:
            below = []
            for parent in level:
                for child in sorted(near[parent], key=place.__getitem__):
                    if child not in reached:
                        reached.add(child)
                        children[parent].append(child)
                        below.append(child)
            level = below
    # Trees stand in the order of their parts: what one host holds stays together.
    part = {name: number for number, its in enumerate(_parts(cluster)) for name in its}
    children[""].sort(key=lambda root: part[root])
    return children


def _spans(children: dict[str, list[str]], *, gap_before: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    spans: dict[str, tuple[float, float]] = {}
    column = 0.0

    def place(name: str) -> None:
        nonlocal column
        left = column
        for child in children[name]:
            place(child)
        column = max(column, left + 1)
        spans[name] = (left, column)

    open_gap = bool(gap_before)
    for index, root in enumerate(children[""]):
        # Half a column parts the trees.
        column += 0.5 if index else 0.0
        if open_gap and set(_below(root, children)).intersection(gap_before):
            open_gap = False
            column += GAP - 0.5
        place(root)
    return spans


def _below(name: str, children: dict[str, list[str]]) -> list[str]:
    return [name, *(lower for child in children[name] for lower in _below(child, children))]


def _heights(cluster: Cluster, children: dict[str, list[str]]) -> dict[str, float]:
    kinds = cluster.vertices
    near = _nvlinked(cluster)
    tilted = any(kinds[other] == "device" for name in cluster.devices for other in near[name])
    found: dict[str, float] = {}
    for root in children[""]:
        devices = [name for name in _below(root, children) if kinds[name] == "device"]
        modulus = len(devices) + 1 + len(devices) % 2
        for k, name in enumerate(devices):
            found[name] = _TILT * ((2 * k + 1) % modulus) if tilted and len(devices) > 1 else 0.0
    found |= dict.fromkeys(cluster.nics, -_STEP if tilted else 0.0)
    # A NIC that hangs on a device itself shares its columns, so it stands above.
    found |= {
        child: found[name] + _STEP for name in cluster.devices for child in children[name] if kinds[child] == "nic"
    }
    lowest = min(found.values())

    def height(name: str) -> float:
        if name not in found:
            above = [height(child) for child in children[name] if kinds[child] != "socket"]
            found[name] = min(above, default=lowest) - _STEP
        return found[name]

    for kind in ("pcie_switch", "socket"):
        level = [name for name in kinds if kinds[name] == kind]
        bottom = min((height(name) for name in level), default=0.0)
        if kind != "pcie_switch":
            found |= dict.fromkeys(level, bottom)
    return found


def _nvswitches(cluster: Cluster, found: dict[str, Place]) -> dict[str, Place]:
    """Spread the NVSwitches over the devices that NVLinks join, each near those that it joins."""
    near = _nvlinked(cluster)
    switches = [name for name, kind in cluster.vertices.items() if kind == "nvswitch"]
    if not switches:
        return {}
    part = components(near, [link for link in cluster.links if link.kind == "nvlink"])
    shared = max(sum(1 for name in cluster.devices if part[name] == number) for number in part.values())
    # Links fan out: the more devices, the more height they need to be followed by eye.
    top = max(found[name].y for name in (*cluster.devices, *cluster.nics)) + 1.6 + 0.1 * shared
    placed: dict[str, Place] = {}
    for number in dict.fromkeys(part[name] for name in switches):
        some = [name for name in switches if part[name] == number]
        some.sort(key=lambda name: _middle([found[other].x for other in near[name] if other in found]))
        devices = [found[name] for name in cluster.devices if part[name] == number] or list(found.values())
        left, right = min(place.left for place in devices), max(place.right for place in devices)
        nics = [found[name].x for name in cluster.nics if left < found[name].x < right]
        slots = _slots(left, right, len(some), nics)
        width = min(1.6, *(0.8 * (end - start) for start, end in slots))
        for name, (start, end) in zip(some, slots, strict=True):
            middle = (start + end) / 2
            placed[name] = Place(left=middle - width / 2, right=middle + width / 2, y=top)
    return placed


def _slots(left: float, right: float, count: int, nics: list[float]) -> list[tuple[float, float]]:
    """Return room for *count* boxes from *left* to *right*: between the columns of NICs, if that is wide enough.

    >>> _slots(0, 4, 2, [])
    [(0.0, 2.0), (2.0, 4.0)]
    >>> _slots(0, 8, 3, [2.5, 5.5])
    [(0.0, 2.0), (3.0, 5.0), (6.0, 8.0)]
    """
    edges = [left, *(edge for x in sorted(nics) for edge in (x - 0.5, x + 0.5)), right]
    free = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > 0.5]
    total = sum(b - a for a, b in free)
    # Each piece of room gets its share of the boxes; halves are carried on to the next piece.
    ends = [round(count * sum(b - a for a, b in free[: at + 1]) / total) for at in range(len(free))]
    inside = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    found = [
        (a + k * (b - a) / n, a + (k + 1) * (b - a) / n)
        for (a, b), n in zip(free, inside, strict=True)
        for k in range(n)
    ]
    if not nics or min((b - a for a, b in found), default=0.0) < 0.9:
        each = (right - left) / count
        return [(left + k * each, left + (k + 1) * each) for k in range(count)]
    return found


def _middle(xs: list[float]) -> float:
    return sum(xs) / len(xs) if xs else 0.0


def levels(cluster: Cluster) -> dict[str, int]:
    """Return the level of each network switch: its distance from what is no switch."""
    near = _near(cluster.vertices, cluster.links)
    switches = [name for name, kind in cluster.vertices.items() if kind == "switch"]
    found: dict[str, int] = {}
    level, at = [name for name in cluster.vertices if cluster.vertices[name] != "switch"], 0
    while level:
        at += 1
        reached = dict.fromkeys(
            other for name in level for other in near[name] if other in switches and other not in found
        )
        found |= dict.fromkeys(reached, at)
        level = list(reached)
    return found


def _switches(cluster: Cluster, found: Mapping[str, Place]) -> dict[str, Place]:
    """Spread the network's switches level by level over the whole width, each near those below it."""
    near = _near(cluster.vertices, cluster.links)
    placed: dict[str, Place] = {}
    level_of = levels(cluster)
    top = max((place.y for place in found.values()), default=0.0)
    left, right = min(place.left for place in found.values()), max(place.right for place in found.values())
    for level in sorted(set(level_of.values())):
        every = {**found, **placed}
        names = [name for name, its in level_of.items() if its == level]
        names.sort(key=lambda name: _middle([every[other].x for other in near[name] if other in every]))
        fan = sum(1 for name in names for other in near[name] if other in every)
        top += 1.5 + min(1.5, 0.04 * fan)
        each = (right - left) / len(names)
        width = min(0.8 * each, 2.4)
        for k, name in enumerate(names):
            middle = left + (k + 0.5) * each
            placed[name] = Place(left=middle - width / 2, right=middle + width / 2, y=top)
    return placed
