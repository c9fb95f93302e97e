"""The independent answer: the same schedule as a timed event graph, solved without simulating.

Model
    With in-order lanes, one collective in flight, fixed costs and no interference, the end of every op is the largest,
    over its predecessors, of (end of the predecessor `lag` iterations earlier) plus its own cost. So
    (a) the ends of the first n iterations are longest paths in the graph unrolled n times, and
    (b) the steady period is the largest ratio, over all cycles, of the sum of costs to the sum of lags: an exact
        fraction. That cycle is the critical one: only what lies on it limits the speed.

    Nodes are the end of each op's issue by the host and the end of each op. Nothing here is shared with the simulator
    but the schedule, its derived dependencies and the costs.

Known not to hold
    Interference only ever adds time, so with it the ratio is a lower bound. Ops that do not run in every iteration are
    beyond (b).
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from simgd.errors import ScheduleError
from simgd.schedule import Communicate, Dep, Op, Schedule, waits_for
from simgd.soundness import Derived
from simgd.timing import Timing


class Node(NamedTuple):
    """The end of an op's issue, or of the op: its cost and what must come before, with lags in iterations."""

    op: str
    issue: bool
    cost_ps: int
    before: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One node of the critical cycle, with the lag of the edge that leads to it."""

    op: str
    issue: bool
    cost_ps: int
    lag: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cycle:
    """The critical cycle: `period_ps` is the sum of its costs over the sum of its lags; `places` are its nodes."""

    period_ps: Fraction
    steps: tuple[Step, ...]
    places: tuple[int, ...]


class EventGraph:
    """The timed event graph of a schedule with its costs; nodes stand in an order that respects edges of lag 0."""

    def __init__(self, schedule: Schedule, derived: Derived, timing: Timing) -> None:
        if timing.in_flight != 1:
            raise ScheduleError(
                f"schedule {schedule.name!r}: {timing.in_flight} collectives in flight share bandwidth; "
                "the cycle ratio needs one"
            )
        self._schedule = schedule
        self.nodes, self.end = _ordered(*_graph(schedule, derived, timing))
        self._costs = [node.cost_ps for node in self.nodes]
        self._before = [node.before for node in self.nodes]
        self._rare = {op.name: (op.every, op.phase) for op in schedule.ops if op.every > 1}
        self._age = derived.ages

    def longest_paths(self, iterations: int) -> list[list[int | None]]:
        """Return ``ends[iteration][node]`` of the first *iterations*, from a cold start, in picoseconds.

        An end is None where the op does not run in that iteration.
        """
        ends: list[list[int | None]] = []
        for iteration in range(iterations):
            row: list[int | None] = []
            ends.append(row)
            for node in self.nodes:
                if not self._exists(node, iteration):
                    row.append(None)
                    continue
                start = 0
                for before, lag in node.before:
                    end = self._end(ends, before, iteration - lag)
                    if end is not None and end > start:
                        start = end
                skipped = iteration < self._age.get(node.op, 0)
                row.append(start if skipped else start + node.cost_ps)
        return ends

    def _exists(self, node: Node, iteration: int) -> bool:
        every, phase = self._rare.get(node.op, (1, 0))
        return iteration % every == phase

    def _end(self, ends: list[list[int | None]], place: int, iteration: int) -> int | None:
        """Return the end of the latest instance at or before *iteration*; None before the first."""
        every, phase = self._rare.get(self.nodes[place].op, (1, 0))
        iteration -= (iteration - phase) % every
        return ends[iteration][place] if iteration >= 0 else None

    def op_ends(self, iterations: int) -> dict[tuple[str, int], int]:
        """Return the end of every op of the first *iterations*, by op and iteration."""
        ends = self.longest_paths(iterations)
        return {
            (op, iteration): end
            for iteration in range(iterations)
            for op, place in self.end.items()
            if (end := ends[iteration][place]) is not None
        }

    def period_of(self, costs: Sequence[int], near: Cycle) -> Fraction:
        """Return the period with other costs of the nodes, in their order; the first guess is *near*, critical here."""
        guess = Fraction(sum(costs[place] for place in near.places), sum(step.lag for step in near.steps))
        return self._largest(costs, guess)[0]

    def critical_cycle(self) -> Cycle:
        """Return the cycle with the largest ratio of costs to lags.

        From a first guess, the longest paths under costs ``cost - guess * lag`` are relaxed; a cycle among the
        predecessors has a larger ratio, which becomes the guess; none is left when the guess is the largest.
        """
        if self._rare:
            raise ScheduleError(
                f"schedule {self._schedule.name!r}: op {next(iter(self._rare))!r} does not run in every iteration; "
                "the cycle ratio needs that"
            )
        period, best = self._largest(self._costs, Fraction(-1))
        steps = tuple(
            Step(op=node.op, issue=node.issue, cost_ps=node.cost_ps, lag=lag)
            for node, lag in ((self.nodes[place], lag) for place, lag in best)
        )
        return Cycle(period_ps=period, steps=steps, places=tuple(place for place, _ in best))

    def _largest(self, costs: Sequence[int], guess: Fraction) -> tuple[Fraction, list[tuple[int, int]]]:
        """Return the largest ratio, and its cycle unless *guess* was the largest already."""
        best: list[tuple[int, int]] = []
        while (cycle := self._better_cycle(costs, guess)) is not None:
            best = cycle
            guess = Fraction(sum(costs[place] for place, _ in cycle), sum(lag for _, lag in cycle))
        return guess, best

    def _better_cycle(self, costs: Sequence[int], guess: Fraction) -> list[tuple[int, int]] | None:
        """Return a cycle with a ratio above *guess*, as (node, lag of the edge to it), or None."""
        p, q = guess.numerator, guess.denominator
        scaled = [cost * q for cost in costs]
        value = [0] * len(costs)
        chosen: list[tuple[int, int] | None] = [None] * len(costs)
        look = True
        while True:
            changed = False
            for place, edges in enumerate(self._before):
                top, pick = value[place] - scaled[place], None
                for edge in edges:
                    reached = value[edge[0]] - p * edge[1] if edge[1] else value[edge[0]]
                    if reached > top:
                        top, pick = reached, edge
                if pick is not None:
                    value[place], chosen[place] = top + scaled[place], pick
                    changed = True
            if not changed:
                return None
            # Most guesses are right, and then the second pass ends it: look for a cycle only after that.
            look = not look
            if look and (cycle := _cycle(chosen)) is not None:
                return cycle


def _cycle(chosen: list[tuple[int, int] | None]) -> list[tuple[int, int]] | None:
    """Return a cycle among the chosen predecessors, in the direction of time, or None."""
    colour = [0] * len(chosen)
    for root in range(len(chosen)):
        path, place = [], root
        while colour[place] == 0 and (edge := chosen[place]) is not None:
            colour[place] = root + 1
            path.append(place)
            place = edge[0]
        if colour[place] == root + 1 and path and place in path:
            on_cycle = path[path.index(place) :]
            found = [(node, edge[1]) for node in on_cycle if (edge := chosen[node]) is not None]
            return list(reversed(found))
        colour[place] = colour[place] or root + 1
    return None


def _graph(schedule: Schedule, derived: Derived, timing: Timing) -> tuple[list[Node], dict[str, int]]:
    """Return the nodes in list order (issue, then end, of each op) and the place of each op's end."""
    ops = schedule.ops
    issue = {op.name: 2 * place for place, op in enumerate(ops)}
    end = {op.name: 2 * place + 1 for place, op in enumerate(ops)}
    lanes = {op.name: timing.lane_of(op.lane) for op in ops}
    everywhere = list(range(len(ops)))
    of_lane: dict[str, list[int]] = {}
    for place, op in enumerate(ops):
        of_lane.setdefault(lanes[op.name], []).append(place)
    compute = [place for place, op in enumerate(ops) if op.lane == "compute"]
    by_host = {name for name, lane in lanes.items() if lane == "host"}
    collectives = {op.name for op in ops if isinstance(op.work, Communicate)}

    def ends(deps: Iterable[Dep]) -> list[tuple[int, int]]:
        return [(end[dep.op], dep.lag) for dep in deps]

    def chain_end(op: Op) -> int:
        return end[op.name] if op.name in by_host else issue[op.name]

    def behind(place: int, lag: int, chosen: Sequence[int]) -> Iterator[tuple[Op, int]]:
        """Yield the ops at the *chosen* places before *place*, with their lag, back to one that runs every iteration.

        Of those that do not, the latest instance may be long past: whichever of them ended last is the one before.
        """
        at = bisect_left(chosen, place)
        for k in range(at - 1, at - 1 - len(chosen), -1):
            op = ops[chosen[k]]
            yield op, lag if k >= 0 else lag + 1
            if op.every == 1:
                return

    # The ops that may be the first of an iteration wait until the host may run that far ahead.
    first = next((place for place, op in enumerate(ops) if op.every == 1), len(ops))
    nodes: list[Node] = []
    for place, op in enumerate(ops):
        time = timing.ops[op.name]
        deps = (*derived.dependencies[op.name], *waits_for(op.work))
        before = [(chain_end(other), lag) for other, lag in behind(place, 0, everywhere)]
        if place <= first:
            before += [(end[other.name], lag) for other, lag in behind(len(ops), timing.run_ahead, compute)]
        if timing.wait_blocks_host and op.name not in by_host:
            before += ends(dep for dep in deps if dep.op in collectives)
        nodes.append(Node(op=op.name, issue=True, cost_ps=time.issue_ps + time.post_ps, before=tuple(before)))
        before = [(issue[op.name], 0), *ends(deps)]
        if op.name not in by_host:
            same = behind(place, 0, of_lane[lanes[op.name]])
            before += [(end[other.name], lag) for other, lag in same]
        nodes.append(Node(op=op.name, issue=False, cost_ps=time.run_ps, before=tuple(before)))
    return nodes, end


def _ordered(nodes: list[Node], end: dict[str, int]) -> tuple[list[Node], dict[str, int]]:
    """Put the nodes in an order that respects edges of lag 0 (a list may name an op before one that it waits for)."""
    waiting = [sum(1 for _, lag in node.before if lag == 0) for node in nodes]
    after: list[list[int]] = [[] for _ in nodes]
    for place, node in enumerate(nodes):
        for before, lag in node.before:
            if lag == 0:
                after[before].append(place)
    free = [place for place, count in enumerate(waiting) if count == 0]
    order: list[int] = []
    while free:
        place = free.pop()
        order.append(place)
        for follower in after[place]:
            waiting[follower] -= 1
            if waiting[follower] == 0:
                free.append(follower)
    if len(order) < len(nodes):
        stuck = next(node.op for place, node in enumerate(nodes) if waiting[place])
        raise ScheduleError(f"op {stuck!r} waits for itself: a cycle of dependencies has no lag")
    at = {old: new for new, old in enumerate(order)}
    renamed = [
        nodes[old]._replace(before=tuple([(at[before], lag) for before, lag in nodes[old].before])) for old in order
    ]
    return renamed, {op: at[place] for op, place in end.items()}
