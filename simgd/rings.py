"""The best directed rings through some devices whose links are given: an exact search for small graphs.

Model
    A ring is a directed Hamiltonian circuit; each of its hops takes its rate from one directed link. The best set of
    rings is the one with the largest sum of rates that overloads no directed link, a linear program over all circuits:
    a ring may take any part of a link, as libraries split links into halves and quarters. Four GPUs that are linked
    pairwise have 12 directed links, a ring takes 4, so three rings' worth fit, and six rings of half a link reach it.

What it leaves out
    How a library comes by its rings: NCCL tries a falling list of rates and stops after a while, and may find less.
    Beyond `MOST_CIRCUITS` circuits (9 devices linked pairwise) the rings found may not be the best.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

#: Circuits that the search lists; dense graphs without a switch have (n-1)!, of which 8 devices have 5,040.
MOST_CIRCUITS = 6000

#: Steps of the walk that looks for circuits, so that a graph with few of them ends soon as well.
MOST_STEPS = 200_000

_EXACT = 1e-9

#: The point that a ring passes where it leaves the node.
_OUTSIDE = "\0outside"

#: A row of the linear program: a directed link, or a shared resource.
_Name = tuple[str, str] | str

#: What one hop or circuit takes of rows of the linear program: (row, bytes each byte).
_Taken = tuple[tuple[int, float], ...]


class Ring(NamedTuple):
    """One directed ring: the devices of a node by name, in order, and the bytes a second that it carries."""

    devices: tuple[str, ...]
    bytes_per_s: float


class Gate(NamedTuple):
    """What leaving a node at a device, or entering it there, takes of shared resources, by name: bytes each byte."""

    out: Mapping[str, float]
    into: Mapping[str, float]


def best_rings(
    devices: Sequence[str],
    capacity: Mapping[tuple[str, str], float],
    *,
    gates: Mapping[str, Gate] | None = None,
    shared: Mapping[str, float] | None = None,
    enough: float = float("inf"),
) -> tuple[Ring, ...]:
    """Return the directed rings through all *devices* with the largest sum of rates.

    *capacity* gives each directed link's bytes per second. With *gates* a ring leaves at one device and enters at
    another (by NICs): paths instead of circuits, which take of the *shared* resources, given by name and rate. The
    search ends early at *enough*. No ring at all is an empty answer.

    >>> square = {(a, b): 1.0 for a in "wxyz" for b in "wxyz" if a != b}
    >>> sum(ring.bytes_per_s for ring in best_rings("wxyz", square))
    3.0
    """
    points = list(devices)
    rows: dict[_Name, float] = {
        edge: rate for edge, rate in capacity.items() if rate > 0 and edge[0] in devices and edge[1] in devices
    }
    takes: dict[tuple[str, str], dict[_Name, float]] = {edge: {edge: 1.0} for edge in capacity if edge in rows}
    if gates is not None:
        points.append(_OUTSIDE)
        rows.update(shared or {})
        for device in devices:
            takes[device, _OUTSIDE] = dict(gates[device].out.items())
            takes[_OUTSIDE, device] = dict(gates[device].into.items())
    top = max(rows.values(), default=0.0)
    if top <= 0 or len(points) < 2:
        return ()
    index = {name: number for number, name in enumerate(points)}
    row = {name: number for number, name in enumerate(rows)}
    limits = [rate / top for rate in rows.values()]
    hops = {
        (index[a], index[b]): tuple((row[name], weight) for name, weight in taken.items())
        for (a, b), taken in takes.items()
    }
    widths = {hop: min((limits[at] / weight for at, weight in taken), default=1.0) for hop, taken in hops.items()}
    # what leaves and enters the scarcest device bounds all rings
    bound = min(
        min(sum(width for hop, width in widths.items() if hop[end] == at) for end in (0, 1))
        for at in range(len(points))
    )
    goal = min(bound, enough / top)
    circuits = _peeled(len(points), hops, limits)
    shares = _pack([_column(found, hops) for found in circuits], limits, goal)
    if sum(share for _, share in shares) < goal * (1 - _EXACT):
        circuits = list(dict.fromkeys([*circuits, *_circuits(len(points), hops)]))
        shares = _pack([_column(found, hops) for found in circuits], limits, goal)
    rings = []
    for column, share in shares:
        names = tuple(points[at] for at in circuits[column])
        if gates is not None:
            start = names.index(_OUTSIDE)
            names = names[start + 1 :] + names[:start]
        rings.append(Ring(names, float(f"{share * top:.12g}")))
    return tuple(rings)


def _column(circuit: tuple[int, ...], hops: Mapping[tuple[int, int], _Taken]) -> _Taken:
    """Return what a circuit takes of each row, all its hops together."""
    taken: dict[int, float] = {}
    for hop in zip(circuit, (*circuit[1:], circuit[0]), strict=True):
        for row, weight in hops[hop]:
            taken[row] = taken.get(row, 0.0) + weight
    return tuple(taken.items())


def _circuits(
    points: int, edges: Iterable[tuple[int, int]], most: int = MOST_CIRCUITS, steps: int = MOST_STEPS
) -> list[tuple[int, ...]]:
    """Return the directed Hamiltonian circuits from point 0, at most *most*, found in at most *steps*."""
    near: list[list[int]] = [[] for _ in range(points)]
    for a, b in edges:
        near[a].append(b)
    found: list[tuple[int, ...]] = []
    path, visited = [0], 1
    choices = [iter(near[0])]
    while choices and steps > 0 and len(found) < most:
        steps -= 1
        following = next(choices[-1], None)
        if following is None:
            choices.pop()
            visited &= ~(1 << path.pop())
        elif not visited >> following & 1:
            if len(path) == points - 1:
                if 0 in near[following]:
                    found.append((*path, following))
            else:
                path.append(following)
                visited |= 1 << following
                choices.append(iter(near[following]))
    return found


def _peeled(points: int, hops: Mapping[tuple[int, int], _Taken], limits: Sequence[float]) -> list[tuple[int, ...]]:
    """Return circuits found one after another, each along the links with most left: few, but unlike each other.

    They often suffice, and serve where there are more circuits than can be listed.
    """
    left = list(limits)
    part = min(limits) / 2
    found: list[tuple[int, ...]] = []
    for _ in range(8 * points):
        width = {hop: min((left[row] / weight for row, weight in taken), default=1.0) for hop, taken in hops.items()}
        wide = sorted((hop for hop, most in width.items() if most > _EXACT), key=lambda hop: (-width[hop], hop))
        circuits = _circuits(points, wide, most=1, steps=40 * points)
        if not circuits:
            break
        found += circuits
        for row, weight in _column(circuits[0], hops):
            left[row] -= part * weight
    return found


def _pack(columns: Sequence[_Taken], limits: Sequence[float], enough: float) -> list[tuple[int, float]]:
    """Return the columns, with their shares, whose shares have the largest sum: a linear program.

    maximise sum x_c, with the sum of what the x_c take of row r at most limits[r], x >= 0: the revised simplex method,
    since there are few rows and many columns of few entries. Starts from all slack; Bland's rule ends cycles.
    """
    rows = len(limits)
    inverse = [[1.0 if row == at else 0.0 for at in range(rows)] for row in range(rows)]
    basis: list[int] = [-1 - row for row in range(rows)]  # -1-r is the slack of row r
    value = list(limits)
    duals = [0.0] * rows
    for step in range(20 * rows + 200):
        if sum(x for name, x in zip(basis, value, strict=True) if name >= 0) >= enough * (1 - 1e-12):
            break
        entering, column = _entering(columns, duals, bland=step > 10 * rows)
        if column is None:
            break
        direction = [sum(line[row] * weight for row, weight in column) for line in inverse]
        leaving, least = -1, float("inf")
        for row in range(rows):
            if direction[row] > _EXACT:
                ratio = value[row] / direction[row]
                if ratio < least - 1e-12 or (ratio <= least + 1e-12 and (leaving < 0 or basis[row] < basis[leaving])):
                    leaving, least = row, min(ratio, least)
        if leaving < 0:
            break
        least = max(0.0, value[leaving] / direction[leaving])
        pivot = inverse[leaving]
        scale = 1.0 / direction[leaving]
        pivot = inverse[leaving] = [entry * scale for entry in pivot]
        for row in range(rows):
            factor = direction[row]
            if row != leaving and factor:
                inverse[row] = [a - factor * b for a, b in zip(inverse[row], pivot, strict=True)]
                value[row] = max(0.0, value[row] - factor * least)
        value[leaving] = least
        basis[leaving] = entering
        duals = [sum(inverse[row][at] for row in range(rows) if basis[row] >= 0) for at in range(rows)]
    return [(name, x) for name, x in sorted(zip(basis, value, strict=True)) if name >= 0 and x > _EXACT]


def _entering(columns: Sequence[_Taken], duals: Sequence[float], *, bland: bool) -> tuple[int, _Taken | None]:
    """Return the column (or slack) whose share should grow, with its rows; None if none does."""
    best, chosen = _EXACT, None
    for row, dual in enumerate(duals):
        if -dual > best:
            best, chosen = -dual, -1 - row
            if bland:
                return chosen, ((row, 1.0),)
    for name, column in enumerate(columns):
        gain = 1.0
        for row, weight in column:
            gain -= duals[row] * weight
        if gain > best:
            best, chosen = gain, name
            if bland or gain > 0.5:
                break
    if chosen is None:
        return 0, None
    return chosen, columns[chosen] if chosen >= 0 else ((-1 - chosen, 1.0),)
