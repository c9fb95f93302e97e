"""Finds a place for every vertex of a node's graph, in columns and rows.

Model
    The links other than NVLink make a tree below the sockets (below PCIe switches or devices where there are none).
    Each leaf of it has a column of its own and each inner vertex is as wide as its leaves, so the links of the tree
    are upright. From above: NVSwitches, devices, NICs, PCIe switches by their distance from the devices, sockets,
    other switches.

    Where NVLinks join devices directly, the devices below one root stand at different heights: (2k + 1) mod m for the
    k-th one. Four devices then make a tilted square; links within it and level links to the next root's devices pass
    no other device.
"""

from dataclasses import dataclass

from simgd.topology import Cluster

_STEP = 1.25
_TILT = 0.8


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


def places(cluster: Cluster) -> dict[str, Place]:
    """Return the box of each vertex."""
    tree = _tree(cluster)
    spans = _spans(cluster, tree)
    heights = _heights(cluster, tree)
    found = {name: Place(left=left, right=right, y=heights[name]) for name, (left, right) in spans.items()}
    return found | _nvswitches(cluster, found)


def _near(cluster: Cluster, *, nvlink: bool) -> dict[str, list[str]]:
    near: dict[str, list[str]] = {name: [] for name in cluster.vertices}
    for link in cluster.links:
        if (link.kind == "nvlink") == nvlink:
            a, b = link.ends
            near[a].append(b)
            near[b].append(a)
    return near


def _tree(cluster: Cluster) -> dict[str, list[str]]:
    """Return the children of each vertex, roots below ``""``; NVSwitches are left out."""
    near = _near(cluster, nvlink=False)
    names = [name for name, kind in cluster.vertices.items() if kind != "nvswitch"]
    order = ("socket", "pcie_switch", "switch", "device", "nic")
    # Below one parent devices stand first and NICs last, each kind in the order of the file.
    place = {
        name: (("device", "pcie_switch", "socket", "switch", "nic").index(cluster.vertices[name]), at)
        for at, name in enumerate(names)
    }
    children: dict[str, list[str]] = {name: [] for name in ["", *names]}
    reached: set[str] = set()
    for kind in order:
        roots = [name for name in names if cluster.vertices[name] == kind and name not in reached]
        children[""] += roots
        reached.update(roots)
        level = roots
        while level:
            below = []
            for parent in level:
                for child in sorted((name for name in near[parent] if name in place), key=place.__getitem__):
                    if child not in reached:
                        reached.add(child)
                        children[parent].append(child)
                        below.append(child)
            level = below
    return children


def _spans(cluster: Cluster, children: dict[str, list[str]]) -> dict[str, tuple[float, float]]:
    spans: dict[str, tuple[float, float]] = {}
    column = 0.0

    def place(name: str) -> None:
        nonlocal column
        left = column
        for child in children[name]:
            place(child)
        column = max(column, left + 1)
        spans[name] = (left, column)

    for index, root in enumerate(children[""]):
        # Half a column parts the trees.
        column += 0.5 if index else 0.0
        place(root)
    return spans


def _below(name: str, children: dict[str, list[str]]) -> list[str]:
    return [name, *(lower for child in children[name] for lower in _below(child, children))]


def _heights(cluster: Cluster, children: dict[str, list[str]]) -> dict[str, float]:
    kinds = cluster.vertices
    near = _near(cluster, nvlink=True)
    tilted = any(kinds[other] == "device" for name in cluster.devices for other in near[name])
    found: dict[str, float] = {}
    for root in children[""]:
        devices = [name for name in _below(root, children) if kinds[name] == "device"]
        modulus = len(devices) + 1 + len(devices) % 2
        for k, name in enumerate(devices):
            found[name] = _TILT * ((2 * k + 1) % modulus) if tilted and len(devices) > 1 else 0.0
    apart = tilted or any(kinds[child] == "nic" for name in cluster.devices for child in children[name])
    found |= dict.fromkeys(cluster.nics, -_STEP if apart else 0.0)
    lowest = min(found.values(), default=0.0)

    def height(name: str) -> float:
        if name not in found:
            above = [height(child) for child in children[name] if kinds[child] != "socket"]
            found[name] = min(above, default=lowest) - _STEP
        return found[name]

    for kind in ("pcie_switch", "socket", "switch"):
        level = [name for name in kinds if kinds[name] == kind]
        bottom = min((height(name) for name in level), default=0.0)
        if kind != "pcie_switch":
            found |= dict.fromkeys(level, bottom)
    return found


def _nvswitches(cluster: Cluster, found: dict[str, Place]) -> dict[str, Place]:
    """Spread the NVSwitches over the devices, each near those that it joins."""
    near = _near(cluster, nvlink=True)
    switches = [name for name, kind in cluster.vertices.items() if kind == "nvswitch"]
    if not switches:
        return {}

    def middle(name: str) -> float:
        its = [found[other].x for other in near[name] if other in found]
        return sum(its) / len(its) if its else 0.0

    switches.sort(key=middle)
    devices = [found[name] for name in cluster.devices]
    left, right = min(place.left for place in devices), max(place.right for place in devices)
    each = (right - left) / len(switches)
    width = min(each * 0.8, 1.6)
    # Links fan out: the more devices, the more height they need to be followed by eye.
    top = max(place.y for place in devices) + 1.6 + 0.1 * len(devices)
    return {
        name: Place(left=left + (k + 0.5) * each - width / 2, right=left + (k + 0.5) * each + width / 2, y=top)
        for k, name in enumerate(switches)
    }
