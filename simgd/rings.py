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


class Ring(NamedTuple):
    """One directed ring: the devices of a node by name, in order, and the bytes a second that it carries."""

    devices: tuple[str, ...]
    bytes_per_s: float


def best_rings(
    devices: Sequence[str],
    capacity: Mapping[tuple[str, str], float],
    *,
    through: bool = False,
    enough: float = float("inf"),
) -> tuple[Ring, ...]:
    """Return the directed rings through all *devices* with the largest sum of rates.

    *capacity* gives each directed link's bytes per second. With *through* a ring may leave and enter anywhere (by a
    NIC): paths instead of circuits. The search ends early at *enough*. No ring at all is an empty answer.

    >>> square = {(a, b): 1.0 for a in "wxyz" for b in "wxyz" if a != b}
    >>> sum(ring.bytes_per_s for ring in best_rings("wxyz", square))
    3.0
    """
    points = list(devices)
    edges = dict(capacity)
    if through:
        outside = "\0outside"
        points.append(outside)
        wide = sum(capacity.values())
        for device in devices:
            edges[device, outside] = edges[outside, device] = wide
    index = {name: number for number, name in enumerate(points)}
    top = max(capacity.values(), default=0.0)
    if top <= 0 or len(points) < 2:
        return ()
    rows = [edge for edge, rate in edges.items() if rate > 0 and edge[0] in index and edge[1] in index]
    number = {(index[a], index[b]): row for row, (a, b) in enumerate(rows)}
    limits = [edges[edge] / top for edge in rows]
    # what leaves and enters the scarcest device bounds all rings
    bound = min(
        min(
            sum(limit for (a, _), limit in zip(rows, limits, strict=True) if a == name),
            sum(limit for (_, b), limit in zip(rows, limits, strict=True) if b == name),
        )
        for name in points
    )
    goal = min(bound, enough / top)
    circuits = _peeled(len(points), number, limits)
    shares = _pack(_hops(circuits, number), limits, goal)
    if sum(share for _, share in shares) < goal * (1 - _EXACT):
        circuits = list(dict.fromkeys([*circuits, *_circuits(len(points), number)]))
        shares = _pack(_hops(circuits, number), limits, goal)
    rings = []
    for column, share in shares:
        names = tuple(points[at] for at in circuits[column])
        if through:
            start = names.index("\0outside")
            names = names[start + 1 :] + names[:start]
        rings.append(Ring(names, float(f"{share * top:.12g}")))
    return tuple(rings)


def _hops(circuits: Sequence[tuple[int, ...]], number: Mapping[tuple[int, int], int]) -> list[tuple[int, ...]]:
    """Return the numbers of the directed links that each circuit takes."""
    return [tuple(number[hop] for hop in zip(found, (*found[1:], found[0]), strict=True)) for found in circuits]


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


def _peeled(points: int, number: Mapping[tuple[int, int], int], limits: Sequence[float]) -> list[tuple[int, ...]]:
    """Return circuits found one after another, each along the links with most left: few, but unlike each other.

    They often suffice, and serve where there are more circuits than can be listed.
    """
    left = {edge: limits[row] for edge, row in number.items()}
    part = min(left.values()) / 2
    found: list[tuple[int, ...]] = []
    for _ in range(8 * points):
        wide = sorted((edge for edge, rate in left.items() if rate > _EXACT), key=lambda edge: (-left[edge], edge))
        circuits = _circuits(points, wide, most=1, steps=40 * points)
        if not circuits:
            break
        found += circuits
        for edge in zip(circuits[0], (*circuits[0][1:], 0), strict=True):
            left[edge] -= part
    return found


def _pack(columns: Sequence[tuple[int, ...]], limits: Sequence[float], enough: float) -> list[tuple[int, float]]:
    """Return the columns, with their shares, whose shares have the largest sum: a linear program.

    maximise sum x_c, with the sum of x_c over the columns through row r at most limits[r], x >= 0: the revised simplex
    method, since there are few rows and many columns of few entries. Starts from all slack; Bland's rule ends cycles.
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
        direction = [sum(line[row] for row in column) if entering >= 0 else line[column[0]] for line in inverse]
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


def _entering(
    columns: Sequence[tuple[int, ...]], duals: Sequence[float], *, bland: bool
) -> tuple[int, tuple[int, ...] | None]:
    """Return the column (or slack) whose share should grow, with its rows; None if none does."""
    best, chosen = _EXACT, None
    for row, dual in enumerate(duals):
        if -dual > best:
            best, chosen = -dual, -1 - row
            if bland:
                return chosen, (row,)
    for name, column in enumerate(columns):
        gain = 1.0
        for row in column:
            gain -= duals[row]
        if gain > best:
            best, chosen = gain, name
            if bland or gain > 0.5:
                break
    if chosen is None:
        return 0, None
    return chosen, columns[chosen] if chosen >= 0 else (-1 - chosen,)
