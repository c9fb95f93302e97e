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


def pen(link: Link) -> float:
    """Return the width of a link's line in points: it grows with the number of cables."""
    return 0.5 + 0.7 * min(link.count, 8)


def draw(cluster: Cluster) -> Figure:
    """Return the drawing of one node of *cluster*."""
    boxes = places(cluster)
    columns = max(place.right for place in boxes.values())
    top = max(place.y for place in boxes.values()) + _BOX
    bottom = min(place.y for place in boxes.values()) - _BOX
    if _has_arcs(cluster, boxes):
        top += 0.1 * columns
    width_in = max(4.8, min(style.WIDTH_IN, 0.5 * columns + 0.3), 0.36 * columns + 0.3)
    legend = _legend(cluster)
    above_in, below_in = 0.52, 0.22 + 0.18 * -(-len(legend) // 3)
    height_in = above_in + (top - bottom) * _ROW_IN + below_in
    figure = Figure(figsize=(width_in, height_in))
    column_in = min(0.9, (width_in - 2 * _MARGIN_IN) / columns)
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
        _draw_link(axes, link, boxes)
    for name, place in boxes.items():
        _draw_box(axes, name, cluster.vertices[name], place, column_in)
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


def _draw_box(axes: Axes, name: str, kind: VertexKind, place: Place, column_in: float) -> None:
    gap = 0.08
    axes.add_patch(
        FancyBboxPatch(
            (place.left + gap, place.y - _BOX / 2),
            place.right - place.left - 2 * gap,
            _BOX,
            boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=BOXES[kind],
            edgecolor="white",
            linewidth=0.8,
            zorder=3,
            gid=name,
        )
    )
    points = (place.right - place.left - 2 * gap) * column_in * 72
    size = min(7.5, points / (0.66 * len(name)))
    # Names of user files may be long: the middle is left out, the number at the end stays.
    if size < 4.5:
        room = max(3, int(points / (0.66 * 4.5)))
        name, size = f"{name[: room - 3]}…{name[-2:]}", 4.5
    axes.text(
        place.x, place.y, name, ha="center", va="center", color="white", fontsize=size, fontweight="bold", zorder=4
    )


def _draw_link(axes: Axes, link: Link, boxes: dict[str, Place]) -> None:
    a, b = boxes[link.ends[0]], boxes[link.ends[1]]
    look = {"color": LINKS[link.kind], "linewidth": pen(link), "zorder": 2 if link.kind == "nvlink" else 1}
    label = "-".join(link.ends)
    if _is_arc(a, b, boxes):
        first, last = sorted((a, b), key=lambda place: place.x)
        bend = -0.35 if last.x - first.x < 4 else -0.2
        axes.add_patch(
            FancyArrowPatch(
                (first.x, first.y + _BOX / 2),
                (last.x, last.y + _BOX / 2),
                connectionstyle=f"arc3,rad={bend}",
                arrowstyle="-",
                label=label,
                **look,  # type: ignore[arg-type]
            )
        )
        return
    xs = _upright(a, b) or (a.x, b.x)
    axes.plot(xs, [a.y, b.y], label=label, solid_capstyle="butt", **look)  # type: ignore[arg-type]


def _upright(a: Place, b: Place) -> tuple[float, float] | None:
    """Return where an upright line joins a box and a wider one above or below it."""
    narrow, wide = sorted((a, b), key=lambda place: place.right - place.left)
    if a.y != b.y and wide.left <= narrow.x <= wide.right:
        return narrow.x, narrow.x
    return None


def _is_arc(a: Place, b: Place, boxes: dict[str, Place]) -> bool:
    """Say whether another box stands between two that are level."""
    low, high = sorted((a.x, b.x))
    return a.y == b.y and any(place.y == a.y and low < place.x < high for place in boxes.values())


def _has_arcs(cluster: Cluster, boxes: dict[str, Place]) -> bool:
    return any(_is_arc(boxes[link.ends[0]], boxes[link.ends[1]], boxes) for link in cluster.links)


def _legend(cluster: Cluster) -> list[Line2D]:
    """Return a line for each kind and number of cables, with the rate of one direction of all of them."""
    rates: dict[tuple[LinkKind, int], list[float]] = {}
    widths: dict[tuple[LinkKind, int], float] = {}
    for link in cluster.links:
        rates.setdefault((link.kind, link.count), []).append(link.bandwidth)
        widths[link.kind, link.count] = pen(link)
    order = sorted(rates, key=lambda key: (list(LINKS).index(key[0]), key[1]))
    return [
        Line2D(
            [],
            [],
            color=LINKS[kind],
            linewidth=widths[kind, count],
            label=f"{_TITLES[kind]}, {f'{count} × ' if count > 1 else ''}{_rates(rates[kind, count])}",
        )
        for kind, count in order
    ]


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
    count = len(cluster.devices)
    said = (
        f"{'a node' if cluster.nodes == 1 else f'one of {cluster.nodes} equal nodes'}: {count} × {cluster.device.name}"
    )
    if cluster.interconnect is None or not cluster.nics:
        return said
    kind = {"infiniband": "InfiniBand", "ethernet": "Ethernet"}[cluster.interconnect.kind]
    return f"{said}; {kind} of {units.show_rate(cluster.interconnect.bandwidth)} a NIC to other nodes"
