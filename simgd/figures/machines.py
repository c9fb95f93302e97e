"""Draws one node of a machine: devices, switches, sockets and NICs as boxes, the links between them by kind and count.

Known not to hold
    The network between nodes is not drawn: a line of text states its rate.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from simgd import units
from simgd.figures import style
from simgd.figures.layout import Place, places
from simgd.topology import Cluster, Link, LinkKind, VertexKind

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

_BOX = 0.5
_ROW_IN = 0.52
_MARGIN_IN = 0.15

#: How far level links bend over the boxes between them, relative to their length.
_BEND = 0.2

#: Free room on each side of a box, in columns.
_SIDE = 0.08

#: Width of a bold letter, relative to the size of the text.
_LETTER = 0.74


def pen(link: Link, cluster: Cluster) -> float:
    """Return the width of a link's line in points: it grows with the number of cables, up to 2.4 for the most."""
    return 0.4 + 2.0 * link.count / max(2, *(other.count for other in cluster.links), link.count)


def draw(cluster: Cluster) -> Figure:
    """Return the drawing of one node of *cluster*."""
    boxes = places(cluster)
    columns = max(place.right for place in boxes.values())
    top = max(place.y for place in boxes.values()) + _BOX
    bottom = min(place.y for place in boxes.values()) - _BOX
    width_in = max(4.8, min(style.WIDTH_IN, 0.5 * columns + 0.3), 0.36 * columns + 0.3)
    column_in = min(0.9, (width_in - 2 * _MARGIN_IN) / columns)
    top = max([top, *(_arc_top(link, boxes, column_in) + _BOX for link in cluster.links)])
    legend = _legend(cluster)
    above_in, below_in = 0.52, 0.22 + 0.18 * -(-len(legend) // 3)
    height_in = above_in + (top - bottom) * _ROW_IN + below_in
    figure = Figure(figsize=(width_in, height_in))
    axes = figure.add_axes(
        (
            0.5 - columns * column_in / width_in / 2,
            below_in / height_in,
            columns * column_in / width_in,
            (top - bottom) * _ROW_IN / height_in,
        )
    )
    axes.set_axis_off()
    axes.set_xlim(0, columns)
    axes.set_ylim(bottom, top)
    for link in cluster.links:
        _draw_link(axes, link, cluster, boxes)
    sizes = _text_sizes(cluster, boxes, column_in)
    for name, place in boxes.items():
        kind = cluster.vertices[name]
        _draw_box(axes, name, kind, place, size=sizes[kind], room=_room_points(place, column_in))
    _write_titles(figure, cluster)
    figure.legend(
        handles=legend,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.0),
        ncols=min(3, len(legend)),
        fontsize=7.5,
        handlelength=2.2,
        columnspacing=1.6,
    )
    return figure


def _room_points(place: Place, column_in: float) -> float:
    return (place.right - place.left - 2 * _SIDE) * column_in * 72


def _text_sizes(cluster: Cluster, boxes: dict[str, Place], column_in: float) -> dict[VertexKind, float]:
    """Return the size of the names of each kind: that of the one with the least room, in bounds."""
    sizes: dict[VertexKind, float] = {}
    for name, place in boxes.items():
        kind = cluster.vertices[name]
        sizes[kind] = min(sizes.get(kind, 7.5), _room_points(place, column_in) / (_LETTER * len(name)))
    return {kind: max(size, 4.5) for kind, size in sizes.items()}


def shortened(name: str, letters: int) -> str:
    """Return *name* in so many letters: the middle is left out, as a number at the end tells names apart.

    >>> shortened("accelerator12", 8), shortened("gpu0", 8)
    ('accel…12', 'gpu0')
    """
    return name if len(name) <= letters else f"{name[: max(1, letters - 3)]}…{name[-2:]}"


def _draw_box(axes: Axes, name: str, kind: VertexKind, place: Place, *, size: float, room: float) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (place.left + _SIDE, place.y - _BOX / 2),
            place.right - place.left - 2 * _SIDE,
            _BOX,
            boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=BOXES[kind],
            edgecolor="white",
            linewidth=0.8,
            zorder=3,
            gid=name,
        )
    )
    text = shortened(name, int(room / (_LETTER * size) + 1e-9))
    look = {"color": "white", "fontsize": size, "fontweight": "bold", "zorder": 4}
    axes.text(place.x, place.y, text, ha="center", va="center", **look)  # type: ignore[arg-type]


def _draw_link(axes: Axes, link: Link, cluster: Cluster, boxes: dict[str, Place]) -> None:
    a, b = boxes[link.ends[0]], boxes[link.ends[1]]
    look = {"color": LINKS[link.kind], "linewidth": pen(link, cluster), "zorder": 2 if link.kind == "nvlink" else 1}
    label = "-".join(link.ends)
    if _is_arc(a, b, boxes):
        first, last = sorted((a, b), key=lambda place: place.x)
        axes.add_patch(
            FancyArrowPatch(
                (first.x, first.y + _BOX / 2),
                (last.x, last.y + _BOX / 2),
                connectionstyle=f"arc3,rad={-_BEND}",
                arrowstyle="-",
                label=label,
                **look,  # type: ignore[arg-type]
            )
        )
        return
    (x_a, y_a), (x_b, y_b) = _ends(a, b, fans=any(cluster.vertices[end] == "nvswitch" for end in link.ends))
    axes.plot([x_a, x_b], [y_a, y_b], label=label, solid_capstyle="butt", **look)  # type: ignore[arg-type]


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
    if a.y != b.y and wide.left <= narrow.x <= wide.right:
        return narrow.x
    return None


def _is_arc(a: Place, b: Place, boxes: dict[str, Place]) -> bool:
    """Say whether another box stands between two that are level."""
    low, high = sorted((a.x, b.x))
    return a.y == b.y and any(place.y == a.y and low < place.x < high for place in boxes.values())


def _arc_top(link: Link, boxes: dict[str, Place], column_in: float) -> float:
    """Return the height of the top of a link, in rows."""
    a, b = boxes[link.ends[0]], boxes[link.ends[1]]
    rise_in = _BEND * abs(a.x - b.x) * column_in / 2 if _is_arc(a, b, boxes) else 0.0
    return max(a.y, b.y) + rise_in / _ROW_IN


def _legend(cluster: Cluster) -> list[Line2D]:
    """Return a line for each kind and number of cables, with the rate of one direction of all of them."""
    rates: dict[tuple[LinkKind, int], list[float]] = {}
    widths: dict[tuple[LinkKind, int], float] = {}
    for link in cluster.links:
        rates.setdefault((link.kind, link.count), []).append(link.bandwidth)
        widths[link.kind, link.count] = pen(link, cluster)
    order = sorted(rates, key=lambda key: (list(LINKS).index(key[0]), key[1]))
    return [
        Line2D(
            [],
            [],
            color=LINKS[kind],
            linewidth=widths[kind, count],
            label=f"{_TITLES[kind]}, {times(count)}{_rates(rates[kind, count])}",
        )
        for kind, count in order
    ]


def times(count: int) -> str:
    """Return a count to stand before a thing, nothing for a single one."""
    return f"{count} \u00d7 " if count > 1 else ""


def _rates(found: Sequence[float]) -> str:
    low, high = min(found), max(found)
    return units.show_rate(low) if low == high else f"{units.show_rate(low)} to {units.show_rate(high)}"


def _write_titles(figure: Figure, cluster: Cluster) -> None:
    width_in, height_in = figure.get_size_inches()
    left = _MARGIN_IN / width_in
    figure.text(left, 1 - 0.08 / height_in, cluster.name, fontsize=9.5, fontweight="bold", va="top")
    figure.text(left, 1 - 0.29 / height_in, summary(cluster), fontsize=7.0, color=style.FAINT, va="top")


def summary(cluster: Cluster) -> str:
    """Return what a node holds and what joins nodes, in one line."""
    node = "a node" if cluster.nodes == 1 else f"one of {cluster.nodes} equal nodes"
    said = f"{node}: {times(len(cluster.devices))}{cluster.device.name}"
    if cluster.interconnect is None or not cluster.nics:
        return said
    kind = {"infiniband": "InfiniBand", "ethernet": "Ethernet"}[cluster.interconnect.kind]
    return f"{said}; {kind} of {units.show_rate(cluster.interconnect.bandwidth)} a NIC to other nodes"
