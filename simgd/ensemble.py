"""Simulates many ranks that differ, all at once: an op of one iteration is one array operation over ranks.

Model
    The semantics are those of `simgd.simulator`, to the picosecond, for one collective in flight.

    Nodes are what `simgd.steady_state` has, the issue of an op by the host and its run on a lane. Each lane is a queue
    of nodes; a node starts at the largest end among its sources: what it waits for, and the node before it in its
    queue. Collectives are the only thing that couples ranks: data move from the last rank's start, and at the same
    time on all ranks, so that one list of intervals (`_Moves`) says all that a rank must know of the others. Given the
    list, the end of a local op is a formula.

    The list grows by one collective at a time. What a collective waits for has ended when its data begin to move, so
    every interval that matters to it is known. How long the data move depends on what runs meanwhile: look ahead, as
    if the data moved for as long as they can at most, and take that time if an op that slows the data most is found
    to run throughout; else integrate the rate over what was found. Then what was found is kept where it ended before
    the data did, and taken back where it may still meet the next collective (`_Found.exact_after`).

Known not to hold
    Several collectives in flight are refused. Times must fit 64 bits even when multiplied by the numerator of a
    slow-down factor: 2**63 ps are 106 days, with 6/5 still 17. It is fast because an op that slows the data most runs
    on some rank nearly always; where such ops are rare (updates alone, say), each collective looks ahead from the
    slowest rank to the fastest: that took 10 to 60 times as long.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from simgd.errors import ScheduleError
from simgd.program import Program
from simgd.schedule import Schedule
from simgd.soundness import Derived
from simgd.timing import Timing

#: Picoseconds, by rank.
Times: TypeAlias = npt.NDArray[np.int64]

#: A node in an iteration: iteration, number of the node.
Instance: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ensemble:
    """When every rank ended every iteration: the last op of its compute lane, ``iteration_ends_ps[iteration, rank]``.

    ``op_ends_ps[iteration, op, rank]``, where asked for, goes on to the iterations in which updates are still owed, and
    is -1 where an op does not run.
    """

    iteration_ends_ps: Times
    op_ends_ps: Times | None = None


def ensemble(
    schedule: Schedule,
    derived: Derived,
    timing: Timing,
    *,
    slowdowns: npt.NDArray[np.float64],
    stretches: npt.NDArray[np.float64] | None = None,
    keep_ops: bool = False,
) -> Ensemble:
    """Return when the iterations end from a cold start; ``slowdowns[iteration, rank]`` multiplies local work, and
    ``stretches[iteration, op]`` the time alone of collectives.

    Raises ScheduleError if several collectives may be in flight, or if an op can never start; ValueError for slow-downs
    of another shape, below 0, or so large that times might not fit 64 bits.
    """
    if slowdowns.ndim != 2 or not slowdowns.size:
        raise ValueError(f"slowdowns have shape {slowdowns.shape}; they need (iterations, ranks), none of them 0")
    if timing.burst_ps or timing.cold_ps or any(time.looks or time.post_ps for time in timing.ops.values()):
        raise ScheduleError(
            f"schedule {schedule.name!r}: collectives that need the host's looks, or links that save up a burst, are "
            "simulated rank by rank only"
        )
    if timing.in_flight != 1:
        raise ScheduleError(
            f"schedule {schedule.name!r}: {timing.in_flight} collectives in flight share bandwidth; "
            "ranks that differ are simulated at once only with one"
        )
    program = Program(schedule, derived, timing)
    smallest, largest = float(slowdowns.min()), float(slowdowns.max())
    if stretches is not None:
        smallest, largest = min(smallest, float(stretches.min())), max(largest, float(stretches.max()))
    if not (smallest >= 0 and _longest(program, largest) * len(slowdowns) < 2**63):
        raise ValueError(
            f"slowdowns are from {smallest:g} to {largest:g}; they must be 0 or more, and times fit 64 bits"
        )
    return _Ranks(program, slowdowns, stretches, keep_ops).run()


def _longest(program: Program, factor: float) -> float:
    """Return a bound on an iteration in which every op is disturbed and runs alone, times the largest numerator."""
    disturbed = program.unit / min(program.pace) * max(program.slowed)
    numerator = max(slowed.numerator for slowed in program.slowed)
    return (sum(program.issue) + sum(program.run) * max(factor, 1.0)) * disturbed * numerator


class _Found(NamedTuple):
    """The end of a node, exact if all moves of data are known that begin before `exact_after`."""

    end: Times
    exact_after: int


class _Run(NamedTuple):
    """When a local op ran, and the level by which it slows the data (see `Program.pace`)."""

    level: int
    start: Times
    end: Times


class _Moves:
    """When data moved: intervals in order, and for how long they had moved before each."""

    def __init__(self, most: int) -> None:
        # An empty one at 0, so that each time has one that began before it
        self._begins, self._ends, self._before = np.zeros((3, most + 1), np.int64)
        self._count = 1

    def add(self, begin: int, end: int) -> None:
        """Add an interval after all others."""
        at, last = self._count, self._count - 1
        self._before[at] = self._before[last] + self._ends[last] - self._begins[last]
        self._begins[at], self._ends[at] = begin, end
        self._count += 1

    def correct(self, end: int) -> None:
        """Change the end of the last interval."""
        self._ends[self._count - 1] = end

    def end(self, start: Times, work: Times | int, slowed: Fraction) -> Times:
        """Return when *work* ends that runs *slowed* times slower while data move.

        In parts, of which it does n in a picosecond and d while data move, *slowed* being n/d, what it could have done
        from 0 to t is n t - (n - d) (time for which data moved before t).
        """
        first = int(start.min())
        if slowed == 1 or self._ends[self._count - 1] <= first:
            return start + work
        recent = slice(int(self._begins[: self._count].searchsorted(first, "right")) - 1, self._count)
        begins, ends, before = self._begins[recent], self._ends[recent], self._before[recent]
        n, d = slowed.numerator, slowed.denominator
        at_begin = n * begins - (n - d) * before
        at_end = at_begin + d * (ends - begins)
        last = begins.searchsorted(start, "right") - 1
        moved = before[last] + np.minimum(start, ends[last]) - begins[last]
        goal = n * (start + work) - (n - d) * moved
        last = at_begin.searchsorted(goal, "right") - 1
        while_moving = begins[last] - (at_begin[last] - goal) // d
        afterwards = ends[last] - (at_end[last] - goal) // n
        return np.where(goal <= at_end[last], while_moving, afterwards)


class _Ranks:
    """All ranks, and how far each lane of them is known."""

    def __init__(
        self,
        program: Program,
        slowdowns: npt.NDArray[np.float64],
        stretches: npt.NDArray[np.float64] | None,
        keep_ops: bool,
    ) -> None:
        self.program = program
        self.slowdowns = slowdowns
        self.stretches = stretches
        self.iterations, self.ranks = slowdowns.shape
        # Nodes: the run of op k, its issue (size + k), and the begin of an iteration's issuing
        self.size, self.begin = program.size, 2 * program.size
        self.total = self.iterations + program.owed
        self.queues: dict[str, list[Instance]] = {lane: [] for lane in ["host", *program.lanes]}
        for iteration in range(self.total):
            self.queues["host"].append((iteration, self.begin))
            for k in range(self.size):
                if program.exists(k, iteration, self.iterations):
                    self.queues["host"].append((iteration, self.size + k))
                    self.queues[program.lane[k]].append((iteration, k))
        self.heads = dict.fromkeys(self.queues, 0)
        self.local = [lane for lane in self.queues if lane != "comm"]
        self.stuck_at = {"comm"}
        self.found: defaultdict[int, dict[int, _Found]] = defaultdict(dict)
        self.moves = _Moves(len(self.queues.get("comm", ())))
        self.most = max(program.level)
        lags = [lag for deps in program.deps for _, lag in deps]
        self.reach = max([program.timing.run_ahead, *lags]) + max(program.every)
        self.oldest = 0
        self.iteration_ends = np.zeros((self.iterations, self.ranks), np.int64)
        self.op_ends = np.full((self.total, self.size, self.ranks), -1, np.int64) if keep_ops else None

    def run(self) -> Ensemble:
        """Settle one collective after the other, then all that is left."""
        for iteration, k in self.queues.get("comm", ()):
            self.settle(iteration, k)
            self.forget()
        for iteration in range(self.total):
            for lane in self.local:
                queue = self.queues[lane]
                while self.heads[lane] < len(queue) and queue[self.heads[lane]][0] == iteration:
                    self.advance(lane)
            self.forget()
        return Ensemble(iteration_ends_ps=self.iteration_ends, op_ends_ps=self.op_ends)

    # --- nodes -------------------------------------------------------------------------------------------------

    def sources(self, lane: str) -> list[Instance]:
        """Return what the next node of *lane* waits for."""
        program, place = self.program, self.heads[lane]
        iteration, node = self.queues[lane][place]
        if node == self.begin:
            deps = [(program.last_compute, program.timing.run_ahead)]
        else:
            deps = program.deps[node] if node < self.size else program.blocks[node - self.size]
        found = [(program.awaited(dep, lag, iteration, self.iterations), dep) for dep, lag in deps]
        found = [source for source in found if source[0] >= 0]
        if node < self.size:
            found.append((iteration, self.size + node))
        if place:
            found.append(self.queues[lane][place - 1])
        return found

    def require(self, iteration: int, node: int) -> None:
        """Find a node's end, and of all before it in its queue."""
        lane = self.program.lane[node] if node < self.size else "host"
        while node not in self.found[iteration]:
            self.advance(lane)

    def start(self, lane: str) -> _Found:
        """Find the start of the next node of *lane*."""
        start, exact_after = np.zeros(self.ranks, np.int64), 0
        for iteration, node in self.sources(lane):
            self.require(iteration, node)
            source = self.found[iteration][node]
            start = np.maximum(start, source.end)
            exact_after = max(exact_after, source.exact_after)
        return _Found(start, exact_after)

    def advance(self, lane: str) -> _Run:
        """Find the end of the next node of a *lane* other than that of collectives."""
        program = self.program
        iteration, node = self.queues[lane][self.heads[lane]]
        if lane in self.stuck_at:
            name = program.schedule.ops[node % self.size].name
            raise ScheduleError(f"schedule {program.schedule.name!r}: stuck: {lane} at {name!r}")
        self.stuck_at.add(lane)
        start, exact_after = self.start(lane)
        self.stuck_at.remove(lane)
        level, end = 0, start
        if node < self.size:
            level, slowed = program.level[node], program.slowed[node]
            end = self.moves.end(start, self.work(iteration, node), slowed)
            if level or slowed != 1:
                exact_after = int(end.max())
        elif node < self.begin and iteration >= program.age[node - self.size]:
            end = start + program.issue[node - self.size]
        self.found[iteration][node] = _Found(end, exact_after)
        self.heads[lane] += 1
        return _Run(level, start, end)

    def work(self, iteration: int, k: int) -> Times | int:
        """Return the work of local op *k*."""
        if iteration < self.program.age[k]:
            return 0
        run = self.program.run[k]
        if iteration >= self.iterations:
            return run
        work: Times = np.rint(run * self.slowdowns[iteration]).astype(np.int64)
        return work

    # --- collectives -------------------------------------------------------------------------------------------

    def settle(self, iteration: int, k: int) -> None:
        """Find when collective *k* ends; everything before it in the comm lane has been settled."""
        program = self.program
        latency, work = program.latency[k], program.run[k] - program.latency[k]
        if self.stretches is not None and iteration < self.iterations:
            factor = float(self.stretches[iteration, k])
            latency, work = round(latency * factor), round(work * factor)
        begin = int(self.start("comm").end.max()) + latency
        end = begin + work
        if work:
            latest = begin - (-work * program.unit // program.pace[self.most])
            self.moves.add(begin, latest)
            if self.most:
                end = self.landing(begin, work, latest)
                self.moves.correct(end)
                self.take_back(end)
        self.found[iteration][k] = _Found(np.full(self.ranks, end), end)
        self.heads["comm"] += 1

    def landing(self, begin: int, work: int, latest: int) -> int:
        """Return when the data of a collective have moved; the list of moves says that it is *latest*."""
        program = self.program
        runs: list[_Run] = []
        for run in self.ahead(latest):
            if run.level == self.most and np.any((run.start <= begin) & (run.end >= latest)):
                return latest
            if run.level:
                runs.append(run)
        return _landing(begin, work * program.unit, program.pace, runs)

    def ahead(self, latest: int) -> Iterator[_Run]:
        """Advance every lane as far as it may start something before *latest* without any further collective."""
        moved = True
        while moved:
            moved = False
            for lane in self.local:
                while self.may_start(lane, latest):
                    moved = True
                    yield self.advance(lane)

    def may_start(self, lane: str, latest: int) -> bool:
        """Say whether what the next node of *lane* waits for is known, and its lane may be free before *latest*."""
        queue, place = self.queues[lane], self.heads[lane]
        if place == len(queue) or not all(node in self.found[iteration] for iteration, node in self.sources(lane)):
            return False
        if not place:
            return True
        iteration, node = queue[place - 1]
        return bool(self.found[iteration][node].end.min() < latest)

    def take_back(self, until: int) -> None:
        """Forget the ends that may change with data that move after *until*."""
        for lane in self.local:
            queue = self.queues[lane]
            while self.heads[lane]:
                iteration, node = queue[self.heads[lane] - 1]
                if self.found[iteration][node].exact_after <= until:
                    break
                del self.found[iteration][node]
                self.heads[lane] -= 1

    def forget(self) -> None:
        """Note the results of iterations that all lanes have left, and drop what nothing refers to any more."""
        left = [queue[self.heads[lane]][0] for lane, queue in self.queues.items() if self.heads[lane] < len(queue)]
        oldest = min(left, default=self.total + self.reach) - self.reach
        for iteration in range(self.oldest, oldest):
            found = self.found.pop(iteration, {})
            if iteration < self.iterations:
                last = found.get(self.program.last_compute)
                # Where that op is not run in every iteration, the one before has the end.
                self.iteration_ends[iteration] = last.end if last else self.iteration_ends[max(iteration - 1, 0)]
            if self.op_ends is not None:
                for node, (end, _) in found.items():
                    if node < self.size:
                        self.op_ends[iteration, node] = end
        self.oldest = max(self.oldest, oldest)


def _landing(begin: int, parts: int, pace: list[int], runs: list[_Run]) -> int:
    """Return when *parts* have moved, in each picosecond the *pace* of the highest level that runs on any rank."""
    levels = sorted({run.level for run in runs}, reverse=True)
    busy = [(level, _union(begin, [run for run in runs if run.level == level])) for level in levels]
    now = begin
    for until in sorted({cut for _, cuts in busy for cut in cuts}):
        speed = pace[next((level for level, cuts in busy if bisect_right(cuts, now) % 2), 0)]
        if parts <= (until - now) * speed:
            return now - (-parts // speed)
        parts -= (until - now) * speed
        now = until
    return now - (-parts // pace[0])


def _union(begin: int, runs: list[_Run]) -> list[int]:
    """Return the begin, end, begin, end ... of the times from *begin* on at which any of the ops runs on any rank."""
    starts = np.maximum(np.concatenate([run.start for run in runs]), begin)
    ends = np.concatenate([run.end for run in runs])
    some = ends > starts
    order = np.argsort(starts[some], kind="stable")
    starts, ends = starts[some][order], np.maximum.accumulate(ends[some][order])
    if not starts.size:
        return []
    apart = starts[1:] > ends[:-1]
    firsts, lasts = starts[np.append(True, apart)], ends[np.append(apart, True)]
    cuts: list[int] = np.stack([firsts, lasts], axis=1).ravel().tolist()
    return cuts
