"""Draws a machine: devices, switches, sockets and NICs of a node as boxes, links by kind and number, the network above.

A graph of several hosts is drawn whole, each host in a frame. Of more than a hundred vertices, parts that are alike are
left out (`layout.folded`). With loads, each half of a link has the colour of what leaves the vertex next to it.

Known not to hold
    Of the network between equal nodes one row stands for all switches of a level; only the cables of this node's NICs
    are drawn, and how many cables a level has is written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch

from simgd import units
from simgd.figures import style
from simgd.figures.layout import GAP, Folded, Place, folded, levels, places
from simgd.interconnects import Net
from simgd.topology import Cluster, Interconnect, Link, LinkKind, VertexKind

Loads = Mapping[tuple[str, str], float]
Points = list[tuple[float, float]]

#: In loads, the other end of the cable of a NIC that leaves the node.
NETWORK = "network"

#: Fill of the boxes; white text on the dark ones.
BOXES: dict[VertexKind, str] = {
    "device": "#0072B2",
    "nvswitch": "#00664b",
    "pcie_switch": "#6b6b6b",
    "socket": "#a34d83",
    "nic": "#c25400",
    "switch": "#222222",
}

LINKS: dict[LinkKind, str] = {
    "nvlink": "#1fa37c",
    "pcie": "#9a9a9a",
    "socket": "#CC79A7",
    "infiniband": "#D55E00",
    "ethernet": "#E69F00",
    "memory": "#56B4E9",
}

_TITLES: dict[LinkKind, str] = {
    "nvlink": "NVLink",
    "pcie": "PCIe",
    "socket": "between sockets",
    "infiniband": "InfiniBand",
    "ethernet": "Ethernet",
    "memory": "memory",
}

#: From idle to full, dark enough to be seen on white at every share.
LOADED = LinearSegmentedColormap.from_list("loaded", ["#cfcfcf", "#f0b73c", "#d9480f", "#6a040f"])

#: Links that no load is given for.
_UNKNOWN = "#e6e6e6"

_BOX = 0.5
_ROW_IN = 0.52
_MARGIN_IN = 0.15

#: How far level links bend over the boxes between them, relative to their length.
_BEND = 0.2

#: Free room on each side of a box, in columns.
_SIDE = 0.08

#: Width of a letter, bold or not, relative to the size of the text.
_LETTER, _LIGHT = 0.74, 0.56

#: A drawing is at least so wide, so that its titles and the words of the network fit.
_LEAST_IN = 4.8

#: Rows between the node and the lowest switches, and between levels of switches.
_RISE = 1.3

#: More lines than this that fan out are drawn thinner.
_MANY = 60


def pen(link: Link, cluster: Cluster) -> float:
    """Return the width of a link's line in points: it grows with the number of cables, up to 2.4 for the most."""
    fans = sum(1 for other in cluster.links if other.kind == link.kind)
    thin = min(1.0, (_MANY / fans) ** 0.5) if fans > _MANY else 1.0
    return thin * (0.4 + 2.0 * link.count / max(2, *(other.count for other in cluster.links), link.count))


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A row of the network above a node: its boxes (name and place), and from where cables come to each."""

    boxes: tuple[tuple[str, Place], ...]
    cables: tuple[tuple[float, float, float], ...]
    dashed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Canvas:
    """The axes in columns and rows, with what is drawn in them."""

    axes: Axes
    cluster: Cluster
    boxes: Mapping[str, Place]
    loads: Loads | None

    def link(self, points: Points, ends: tuple[str, str], *, kind: LinkKind, width: float) -> None:
        """Draw one link by its kind, or in two halves by their loads."""
        zorder = 2 if kind == "nvlink" else 1
        if self.loads is None:
            self._line(points, "-".join(ends), color=LINKS[kind], width=width, zorder=zorder)
            return
        a, b = ends
        for start, end, half in ((a, b, _half(points)), (b, a, _half(points[::-1]))):
            load = self.loads.get((start, end))
            color = _UNKNOWN if load is None else LOADED(min(1.0, max(0.0, load)))
            above = zorder if load is None else 2.0 + min(1.0, load) / 2
            self._line(half, f"{start}-{end}", color=color, width=width + 0.3, zorder=above)

    def _line(self, points: Points, label: str, *, color: object, width: float, zorder: float) -> None:
        look = {"color": color, "linewidth": width, "zorder": zorder, "solid_capstyle": "butt"}
        self.axes.plot([x for x, _ in points], [y for _, y in points], label=label, **look)  # type: ignore[arg-type]


def draw(cluster: Cluster, *, loads: Loads | None = None, title: str = "") -> Figure:
    """Return the drawing of *cluster*.

    *loads* are shares of the rates of directed links by the names of their vertices, from 0 to 1; a NIC's cable to the
    network is (nic, "network"), and back.
    """
    part = folded(cluster)
    shown = part.cluster
    boxes = places(shown, gap_before=part.after)
    columns = max(place.right for place in boxes.values())
    top = max(place.y for place in boxes.values()) + _BOX
    bottom = min(place.y for place in boxes.values()) - _BOX
    width_in = max(_LEAST_IN, min(style.WIDTH_IN, 0.5 * columns + 0.3), 0.36 * columns + 0.3)
    column_in = min(0.9, (width_in - 2 * _MARGIN_IN) / columns)
    top = max([top, *(_arc_top(link, boxes, column_in) + _BOX for link in shown.links)])
    hosts = _frames(shown, boxes)
    # The network's words need room that a node of one device has not.
    left = min(0.0, (columns - (width_in - 2 * _MARGIN_IN) / column_in) / 2)
    right = columns - left
    above = network(cluster, shown, boxes, base=top, left=left, right=right)
    if above:
        top = max(place.y for level in above for _, place in level.boxes) + _BOX
    if hosts:
        bottom -= 0.45
    foot_in = 0.62 if loads is not None else 0.22 + 0.18 * -(-len(_legend(shown)) // 3)
    head_in = 0.52
    height_in = head_in + (top - bottom) * _ROW_IN + foot_in
    figure = Figure(figsize=(width_in, height_in))
    axes = figure.add_axes(
        (
            0.5 - (right - left) * column_in / width_in / 2,
            foot_in / height_in,
            (right - left) * column_in / width_in,
            (top - bottom) * _ROW_IN / height_in,
        )
    )
    axes.set_axis_off()
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    canvas = _Canvas(axes=axes, cluster=shown, boxes=boxes, loads=loads)
    _draw_frames(axes, hosts, copies=cluster.nodes > 1)
    for link in shown.links:
        canvas.link(_curve(link, shown, boxes), link.ends, kind=link.kind, width=pen(link, shown))
    sizes = _text_sizes(shown, boxes, column_in)
    for name, place in boxes.items():
        kind = shown.vertices[name]
        room = _room_points(place, column_in)
        _draw_box(axes, name, place, color=BOXES[kind], size=sizes[kind], room=room, gid=name)
    _draw_network(canvas, above, column_in)
    _write_gap(axes, part, boxes, loads)
    _write_titles(figure, cluster, title)
    if loads is None:
        _write_legend(figure, shown)
    else:
        _write_colors(figure, height_in)
    return figure


# --- boxes -------------------------------------------------------------------------------------------------------


def _room_points(place: Place, column_in: float) -> float:
    return (place.right - place.left - 2 * _SIDE) * column_in * 72


def _text_sizes(cluster: Cluster, boxes: Mapping[str, Place], column_in: float) -> dict[VertexKind, float]:
    """Return the size of the names of each kind: that of the one with the least room, in bounds."""
    sizes: dict[VertexKind, float] = {}
    for name, place in boxes.items():
        kind = cluster.vertices[name]
        sizes[kind] = min(sizes.get(kind, 7.5), _room_points(place, column_in) / (_LETTER * len(name)))
    return {kind: max(size, 4.5) for kind, size in sizes.items()}


def shortened(name: str, letters: int) -> str:
    """Return *name* in so many letters: the middle is left out, as a number at the end tells names apart.

    >>> shortened("accelerator12", 8), shortened("nvswitch0", 6), shortened("gpu0", 8)
    ('accel…12', 'nvsw…0', 'gpu0')
    """
    if len(name) <= letters:
        return name
    number = name[len(name.rstrip("0123456789")) :] or name[-2:]
    return f"{name[: max(1, letters - 1 - len(number))]}…{number}"


def _draw_box(axes: Axes, name: str, place: Place, *, color: str, size: float, room: float, gid: str | None) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (place.left + _SIDE, place.y - _BOX / 2),
            place.right - place.left - 2 * _SIDE,
            _BOX,
            boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=color,
            edgecolor="white",
            linewidth=0.8,
            zorder=3,
            gid=gid,
        )
    )
    text = shortened(name, int(room / (_LETTER * size) + 1e-9))
    axes.text(place.x, place.y, text, ha="center", va="center", **_bold(size))  # type: ignore[arg-type]


def _bold(size: float) -> dict[str, object]:
    return {"color": "white", "fontsize": size, "fontweight": "bold", "zorder": 4}


def _frames(cluster: Cluster, boxes: Mapping[str, Place]) -> list[tuple[str, Place, float]]:
    """Return name, box and height of each host's frame: of several hosts, or of one of several equal nodes."""
    host_of = cluster.hosts
    numbers = list(dict.fromkeys(host_of[name] for name in cluster.devices))
    if len(numbers) == 1 and cluster.nodes == 1:
        return []
    found = []
    for at, number in enumerate(numbers):
        its = [place for name, place in boxes.items() if host_of[name] == number]
        low, high = min(place.y for place in its), max(place.y for place in its)
        frame = Place(left=min(p.left for p in its), right=max(p.right for p in its), y=(low + high) / 2)
        found.append((f"host {at}" if len(numbers) > 1 else "node 0", frame, high - low + _BOX + 0.3))
    return found


def _draw_frames(axes: Axes, frames: Sequence[tuple[str, Place, float]], *, copies: bool) -> None:
    for name, frame, height in frames:
        for shift in (2, 1, 0) if copies else (0,):
            corner = (frame.left - 0.02 + 0.07 * shift, frame.y - height / 2 - 0.07 * shift)
            axes.add_patch(
                FancyBboxPatch(
                    corner,
                    frame.right - frame.left + 0.04,
                    height,
                    boxstyle="round,pad=0,rounding_size=0.12",
                    facecolor="#f7f7f7" if shift == 0 else "white",
                    edgecolor="#bdbdbd",
                    linewidth=0.6,
                    zorder=0.5 - 0.1 * shift,
                    clip_on=False,
                )
            )
        at = (frame.left + 0.05, frame.y - height / 2 - (0.2 if copies else 0.05))
        axes.text(*at, name, ha="left", va="top", fontsize=6.5, color=style.FAINT)


# --- links -------------------------------------------------------------------------------------------------------


def _half(points: Points) -> Points:
    """Return the first half of a line."""
    if len(points) == 2:
        (x_a, y_a), (x_b, y_b) = points
        return [(x_a, y_a), ((x_a + x_b) / 2, (y_a + y_b) / 2)]
    return points[: len(points) // 2 + 1]


def _curve(link: Link, cluster: Cluster, boxes: Mapping[str, Place]) -> Points:
    """Return the line of a link from its first end: straight, or an arc over the boxes between."""
    a, b = boxes[link.ends[0]], boxes[link.ends[1]]
    kinds = [cluster.vertices[end] for end in link.ends]
    if not _is_arc(a, b, boxes):
        found = list(_ends(a, b, fans="nvswitch" in kinds or "switch" in kinds))
        if kinds.count("switch") != 1:
            return found
        # Inside its host a cable stays in the column of its NIC, out of the way of other boxes.
        low = a if b.y > a.y else b
        roof = max(place.y for name, place in boxes.items() if cluster.vertices[name] != "switch") + _BOX / 2 + 0.2
        straight = [(low.x, low.y + _BOX / 2), (low.x, roof)]
        return [*straight, found[1]] if low is a else [found[0], *reversed(straight)]
    rise = 2 * _rise(a, b)
    steps = np.linspace(0.0, 1.0, 25)
    return [(a.x + t * (b.x - a.x), a.y + _BOX / 2 + 2 * t * (1 - t) * rise) for t in (float(each) for each in steps)]


def _rise(a: Place, b: Place) -> float:
    """Return how high an arc rises over its ends, in rows."""
    return 0.35 + _BEND * abs(a.x - b.x) / 2


def _ends(a: Place, b: Place, *, fans: bool) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return where a straight link meets the two boxes: at their middles, or, if it is one of many that fan out, at
    their edges."""
    x = _upright(a, b)
    if x is not None:
        return (x, a.y), (x, b.y)
    if not fans or a.y == b.y:
        return (a.x, a.y), (b.x, b.y)
    low, high = sorted((a, b), key=lambda place: place.y)
    # Links that come from far below spread over the lower edge of the box, so that they can be told apart.
    lean = max(-1.0, min(1.0, (low.x - high.x) / 8)) * 0.4 * (high.right - high.left)
    ends = {low: (low.x, low.y + _BOX / 2), high: (high.x + lean, high.y - _BOX / 2)}
    return ends[a], ends[b]


def _upright(a: Place, b: Place) -> float | None:
    """Return where an upright line joins a box and a wider one above or below it."""
    narrow, wide = sorted((a, b), key=lambda place: place.right - place.left)
    if a.y != b.y and wide.left + 2 * _SIDE <= narrow.x <= wide.right - 2 * _SIDE:
        return narrow.x
    return None


def _is_arc(a: Place, b: Place, boxes: Mapping[str, Place]) -> bool:
    """Say whether another box stands between two that are level."""
    low, high = sorted((a.x, b.x))
    return a.y == b.y and any(place.y == a.y and low < place.x < high for place in boxes.values())


def _arc_top(link: Link, boxes: Mapping[str, Place], column_in: float) -> float:
    """Return the height of the top of a link, in rows."""
    a, b = boxes[link.ends[0]], boxes[link.ends[1]]
    return max(a.y, b.y) + (_rise(a, b) if _is_arc(a, b, boxes) else 0.0)


# --- the network above the nodes ---------------------------------------------------------------------------------


def network(
    cluster: Cluster, shown: Cluster, boxes: Mapping[str, Place], *, base: float, left: float, right: float
) -> list[Level]:
    """Return the rows of the network above a node, from the lowest: none if nothing joins nodes."""
    net = cluster.interconnect
    if net is None or not cluster.nics or net.kind == "memory":
        return []
    nics = [boxes[name] for name in shown.nics]
    ups = tuple((place.x, place.y + _BOX / 2, place.x) for place in nics)
    whole = Place(left=left, right=right, y=base + _RISE - 0.4)
    if cluster.nodes == 1:
        return [Level(boxes=((_planned(net, cluster), whole),), cables=ups, dashed=True)]
    its = Net(net, cluster.nodes, len(cluster.nics), cluster.routing)
    if its.single:
        return [Level(boxes=((f"one switch of {net.ports} ports joins {cluster.nodes} nodes", whole),), cables=ups)]
    leaves = int(its.leaf(np.arange(cluster.nodes * len(cluster.nics))).max()) + 1
    lowest = f"{leaves} lowest switches of {net.ports} ports: {its.down} cables down, {its.up} up each"
    if its.rails == len(cluster.nics) > 1:
        rails = [Place(left=place.x - 0.5, right=place.x + 0.5, y=whole.y) for place in nics]
        names = [f"rail {cluster.nics.index(name)}" for name in shown.nics]
        found = [Level(boxes=tuple(zip(names, rails, strict=True)), cables=ups)]
        carried = tuple((place.x, place.y + _BOX / 2, place.x) for place in rails)
    else:
        found = [Level(boxes=((lowest, whole),), cables=ups)]
        carried = ((whole.x, whole.y + _BOX / 2, whole.x),)
    second = f"{its.pods * its.up} upper switches" + (f" in {its.pods} pods" if its.pods > 1 else "")
    if its.rails == len(cluster.nics) > 1:
        second = f"{second}; {lowest}"
    at = whole.y + _RISE
    found.append(Level(boxes=((second, Place(left=left, right=right, y=at)),), cables=carried))
    if its.pods > 1:
        last = f"core: {its.up * its.core} cables from each of {its.pods} pods"
        if its.between:
            last = f"{its.pods} groups of such: {its.between} cables between every two"
        top = Place(left=left, right=right, y=at + _RISE)
        found.append(Level(boxes=((last, top),), cables=((top.x, at + _BOX / 2, top.x),)))
    return found


def _planned(net: Interconnect, cluster: Cluster) -> str:
    """Return what would join more nodes than the one that the cluster has."""
    kind = "fat tree" if net.topology == "fat_tree" else "dragonfly+"
    over = f", {net.oversubscription:g} times as much down as up" if net.oversubscription > 1 else ""
    rails = "; each NIC to its own switch (rails)" if net.rails == "optimised" and len(cluster.nics) > 1 else ""
    return f"to other nodes: {kind} of switches with {net.ports} ports{over}{rails}"


def _draw_network(canvas: _Canvas, above: Sequence[Level], column_in: float) -> None:
    net = canvas.cluster.interconnect
    if net is None:
        return
    for row, level in enumerate(above):
        y = level.boxes[0][1].y
        for at, (x, low, high_x) in enumerate(level.cables):
            ends = (canvas.cluster.nics[at], NETWORK) if row == 0 else (f"level {row}", f"{at}")
            canvas.link([(x, low), (high_x, y - _BOX / 2)], ends, kind=net.kind, width=1.2 if row == 0 else 2.2)
        rooms = [_room_points(place, column_in) for _, place in level.boxes]
        size = min([7.0, *(room / (_LIGHT * len(name)) for (name, _), room in zip(level.boxes, rooms, strict=True))])
        for name, place in level.boxes:
            canvas.axes.add_patch(
                FancyBboxPatch(
                    (place.left + _SIDE, place.y - _BOX / 2),
                    place.right - place.left - 2 * _SIDE,
                    _BOX,
                    boxstyle="round,pad=0,rounding_size=0.08",
                    facecolor="white" if level.dashed else BOXES["switch"],
                    edgecolor=style.FAINT if level.dashed else "white",
                    linestyle="--" if level.dashed else "-",
                    linewidth=0.8,
                    zorder=3,
                )
            )
            color = style.INK if level.dashed else "white"
            look = {"color": color, "fontsize": max(4.0, size), "zorder": 4}
            canvas.axes.text(place.x, place.y, name, ha="center", va="center", **look)  # type: ignore[arg-type]


# --- words -------------------------------------------------------------------------------------------------------


def _write_gap(axes: Axes, part: Folded, boxes: Mapping[str, Place], loads: Loads | None) -> None:
    """Write how many parts are left out, and how loaded the fullest of their links is."""
    if not part.count:
        return
    right = min(boxes[name].left for name in part.after)
    y = boxes[part.cluster.devices[-1]].y
    x = right - GAP / 2
    axes.text(x, y, "\u2022 \u2022 \u2022", ha="center", va="center", fontsize=9, color=style.FAINT)
    said = f"{part.count} more\nlike these"
    if loads is not None:
        gone = [load for ends, load in loads.items() if not all(end in boxes or end == NETWORK for end in ends)]
        said += f",\nup to {max(gone):.0%}" if gone else ""
    axes.text(x, y - 0.35, said, ha="center", va="top", fontsize=6.5, color=style.FAINT)


def _legend(cluster: Cluster) -> list[Line2D]:
    """Return a line for each kind and number of cables, with the rate of one direction of all of them."""
    rates: dict[tuple[LinkKind, int, str], list[float]] = {}
    widths: dict[tuple[LinkKind, int, str], float] = {}
    for link in cluster.links:
        to_gpu = link.kind == "socket" and "device" in (cluster.vertices[end] for end in link.ends)
        key = (link.kind, link.count, "CPU to GPU" if to_gpu else _TITLES[link.kind])
        rates.setdefault(key, []).append(link.bandwidth)
        widths[key] = pen(link, cluster)
    net = cluster.interconnect
    if net is not None and cluster.nics and net.kind != "memory":
        rates.setdefault((net.kind, 1, _TITLES[net.kind]), []).append(net.bandwidth)
        widths.setdefault((net.kind, 1, _TITLES[net.kind]), 1.2)
    order = sorted(rates, key=lambda key: (list(LINKS).index(key[0]), *key[1:]))
    return [
        Line2D(
            [],
            [],
            color=LINKS[key[0]],
            linewidth=widths[key],
            label=f"{key[2]}, {times(key[1])}{_rates(rates[key])}",
        )
        for key in order
    ]


def _write_legend(figure: Figure, cluster: Cluster) -> None:
    handles = _legend(cluster)
    figure.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.0),
        ncols=min(3, len(handles)),
        fontsize=7.5,
        handlelength=2.2,
        columnspacing=1.6,
    )


def _write_colors(figure: Figure, height_in: float) -> None:
    axes = figure.add_axes((0.2, 0.34 / height_in, 0.6, 0.09 / height_in))
    colors = ScalarMappable(norm=Normalize(0, 100), cmap=LOADED)
    bar = figure.colorbar(colors, cax=axes, orientation="horizontal")
    bar.outline.set_visible(False)
    axes.tick_params(labelsize=6.5, length=2, pad=1)
    axes.set_xlabel(
        "load of a link, % of its rate: each half what leaves the vertex next to it", fontsize=7, labelpad=1
    )


def times(count: int) -> str:
    """Return a count to stand before a thing, nothing for a single one."""
    return f"{count} \u00d7 " if count > 1 else ""


def _rates(found: Sequence[float]) -> str:
    low, high = min(found), max(found)
    return units.show_rate(low) if low == high else f"{units.show_rate(low)} to {units.show_rate(high)}"


def _write_titles(figure: Figure, cluster: Cluster, title: str) -> None:
    width_in, height_in = figure.get_size_inches()
    left = _MARGIN_IN / width_in
    figure.text(left, 1 - 0.08 / height_in, title or cluster.name, fontsize=9.5, fontweight="bold", va="top")
    figure.text(left, 1 - 0.29 / height_in, summary(cluster), fontsize=7.0, color=style.FAINT, va="top")


def summary(cluster: Cluster) -> str:
    """Return what a node holds and what joins nodes, in one line."""
    hosts = len({cluster.hosts[name] for name in cluster.devices})
    node = "a node" if cluster.nodes == 1 else f"one of {cluster.nodes} equal nodes"
    if hosts > 1:
        switches = len(levels(cluster))
        node = f"{hosts} hosts" + (f" under {switches} switch{'es' if switches > 1 else ''}" if switches else "")
    said = f"{node}: {times(len(cluster.devices))}{cluster.device.name}"
    if cluster.interconnect is None or not cluster.nics:
        return said
    rate = units.show_rate(cluster.interconnect.bandwidth)
    if cluster.interconnect.kind == "memory":
        return f"{said}; ranks share memory of {rate}"
    return f"{said}; {_TITLES[cluster.interconnect.kind]} of {rate} a NIC to other nodes"
