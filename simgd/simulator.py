"""Runs a schedule on a machine's costs, as SimPy processes: one for each lane of each rank.

Model
    - The host issues the ops of an iteration one after the other, in list order; a lane starts an op when it is
      issued, the op before it on the lane has ended, and its dependencies have. Issuing iteration i + run_ahead
      starts when the last op of iteration i on the compute lane has ended.
    - On a merged rank (a CPU) the host runs compute and updates itself; on a GPU updates may run on the compute lane.
      Where waits block the host, it does not issue an op that needs a collective before that has ended.
    - A collective holds a rank's lane from that rank's start; data move from the last rank's start, and it ends on all
      ranks together. Its latency claims no bandwidth; then, with several in flight, they share resources fairly.
    - Where the library has no thread to start a collective, the host posts it if the comm lane is free, and goes on
      after that; the data move meanwhile. If the lane is not free, whoever frees it starts the next one.
    - A collective that needs the host's looks moves an equal part of its data after each: the host looks whenever it
      begins an op of its own (before a pass several times in a row, see `program`), and without pause while it waits
      for a collective. What a part takes of the host's time is in `slowed`.
    - A collective, and posting it, take up to `cold_ps` more the longer there was none before.
    - An idle link saves up a burst (a token bucket): data that find it take that much less time, but `least_ps`.
    - While data move, local ops run `slowed` times slower, and the data move slower by the largest `slows` of the
      local ops that run on any rank: compute and update are one kind of work beside communication, and the slowest
      rank sets the pace of a collective. Work that is left is exact; ends round up to 1 ps.
    - Ranks that are alike are simulated once. The state of all lanes is noted at the end of each iteration's compute;
      when it comes back, everything after repeats, and the period is exact.
    - After the last iteration the delayed updates that are still owed run in order.

Known not to hold
    Ops of one lane never overlap (two kernels on one stream do, at their ends). A host that waits spins and slows
    nobody. Resources are shared by max-min fairness at once, not by congestion control.
"""

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import simpy

from simgd.errors import ScheduleError
from simgd.program import Program
from simgd.schedule import Schedule
from simgd.sharing import fair_rates
from simgd.soundness import Derived
from simgd.timing import COOL_PS, LOOKS_SPAN_PS, ONE, Timing
from simgd.trace import Trace

#: Slow-down of local compute, by iteration and rank; of collectives, by iteration and op number.
Slowdowns = Sequence[Sequence[float]]

_Steps = Generator[simpy.Event, Any, None]

#: Give up looking for a repeated state after so many iterations.
STEADY_LIMIT = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady:
    """The steady state: `period_ps` is exact if `repeats`, over a cycle of `iterations` that begins after `warm_up`.

    `host_stall_ps` is the part of a period in which the compute lane waits only for the host to issue.
    """

    period_ps: Fraction
    repeats: bool
    iterations: int
    warm_up: int
    host_stall_ps: Fraction


class _Environment(simpy.Environment):
    """SimPy's environment, whose clock here counts whole picoseconds."""

    if TYPE_CHECKING:

        @property
        def now(self) -> int:
            """Picoseconds since the start."""


class _Rank:
    """One rank, or all ranks that are alike: what it has issued and ended."""

    def __init__(self, machine: "_Machine", index: int) -> None:
        program = machine.program
        self.machine = machine
        self.index = index
        self.done = [0] * program.size
        self.waiting: dict[tuple[int, int], simpy.Event] = {}
        self.issued: list[int] = []
        self.unissued: list[simpy.Event] = []
        self.issue_end = 0
        self.place: dict[str, int] = dict.fromkeys(program.lanes, 0)
        self.due: dict[str, int] = {}
        self.running: dict[str, int] = {}
        self.runner: dict[str, simpy.Process] = {}
        self.host_stall_ps = 0
        self.rows: list[tuple[str, int, int, int, int]] = []
        self.in_flight = 0
        self.landed: simpy.Event | None = None
        self.is_blocked = False
        self.unseen: list[simpy.Event] = []
        self.looks_left = self.looked_at = 0
        self.posted = 0
        machine.env.process(self.host())
        for lane in program.lanes:
            machine.env.process(self.follow(lane))

    # --- waiting -----------------------------------------------------------------------------------------------

    def ready(self, deps: Sequence[tuple[int, int]], iteration: int) -> Iterator[simpy.Event]:
        """Yield an event for each dependency that has not ended."""
        machine = self.machine
        for dep, lag in deps:
            wanted = machine.program.awaited(dep, lag, iteration, machine.iterations)
            if self.done[dep] <= wanted:
                yield self.end_of(dep, wanted)

    def end_of(self, k: int, iteration: int) -> simpy.Event:
        """Return the event that op *k* of *iteration* has ended."""
        event = self.waiting.get((k, iteration))
        if event is None:
            event = self.waiting[k, iteration] = self.machine.env.event()
        return event

    def finish(self, k: int, iteration: int, start: int) -> None:
        """Note that op *k* has ended now, and wake who waits for it."""
        machine = self.machine
        self.done[k] = iteration + 1
        machine.ended += 1
        if machine.keep_rows:
            self.rows.append((machine.program.lane[k], k, iteration, start, machine.env.now))
        if machine.program.post[k] and iteration >= machine.program.age[k]:
            self.posted -= 1
        event = self.waiting.pop((k, iteration), None)
        if event is not None:
            event.succeed()
        if k == machine.program.last_compute:
            machine.on_iteration(self, iteration)

    def blocked(self, events: Iterable[simpy.Event]) -> _Steps:
        """Let the host wait for *events*; meanwhile it looks without pause."""
        for event in events:
            self.is_blocked = True
            self.look()
            yield event
        self.is_blocked = False

    def look(self, times: int = 1) -> None:
        """Look *times* times in a row: let the collectives that wait for this host's look go on."""
        self.looks_left = times
        self.looked_at = self.machine.env.now
        for event in self.unseen:
            event.succeed()
        self.unseen.clear()

    def has_looked(self) -> bool:
        """Use one of the looks that the host takes just now, if any is left; one that waits looks without pause."""
        if self.is_blocked:
            return True
        if self.machine.env.now - self.looked_at > LOOKS_SPAN_PS or not self.looks_left:
            return False
        self.looks_left -= 1
        return True

    def published(self, events: Iterable[simpy.Event]) -> Iterator[simpy.Event]:
        """Yield *events*, each after the lanes have seen what is issued."""
        for event in events:
            self.publish()
            yield event

    def publish(self) -> None:
        """Wake the lanes that wait for the host."""
        for event in self.unissued:
            event.succeed()
        self.unissued.clear()

    # --- the host ----------------------------------------------------------------------------------------------

    def host(self) -> _Steps:
        """Issue every op in list order; run those that the host runs itself."""
        machine = self.machine
        env, program = machine.env, machine.program
        now = 0
        for iteration in range(machine.iterations + program.owed):
            yield from self.blocked(self.published(self.ready(program.gate, iteration)))
            now = max(now, env.now)
            for k in range(program.size):
                if not program.exists(k, iteration, machine.iterations):
                    self.issued.append(now)
                    continue
                yield from self.blocked(self.published(self.ready(program.blocks[k], iteration)))
                skipped = iteration < program.age[k]
                begin = max(now, env.now)
                now = begin if skipped else begin + program.issue[k]
                self.issued.append(now)
                if program.post[k] and not skipped:
                    now += program.post[k] + machine.cold(now) if self.posted < program.timing.in_flight else 0
                    self.posted += 1
                self.issue_end = now
                if machine.keep_rows and now > begin and program.lane[k] != "host":
                    self.rows.append(("host", k, iteration, begin, now))
                if program.lane[k] == "host":
                    self.publish()
                    yield from self.blocked(self.ready(program.deps[k], iteration))
                    self.look(program.looks_before[k])
                    if now > env.now:
                        yield env.timeout(now - env.now)
                    start = env.now
                    yield from self.run(k, iteration, "host")
                    self.leave("host")
                    self.finish(k, iteration, start)
                    now = self.issue_end = env.now
            self.publish()

    # --- the lanes ---------------------------------------------------------------------------------------------

    def follow(self, lane: str) -> _Steps:
        """Run the ops of *lane*, one after the other (several at a time on a comm lane with several in flight)."""
        machine = self.machine
        env, program, done, issued = machine.env, machine.program, self.done, self.issued
        several = lane == "comm" and program.timing.in_flight > 1
        is_compute = lane == "compute"
        direct = not (program.interferes or program.stateful or several or (lane == "comm" and machine.ranks_differ))
        for iteration in range(machine.iterations + program.owed):
            base = iteration * program.size
            for k in program.of_lane[lane]:
                if not program.exists(k, iteration, machine.iterations):
                    continue
                self.place[lane] = base + k
                for dep, lag in program.deps[k]:
                    wanted = program.awaited(dep, lag, iteration, machine.iterations)
                    if done[dep] <= wanted:
                        self.leave(lane)
                        yield self.end_of(dep, wanted)
                while len(issued) <= base + k:
                    self.leave(lane)
                    event = env.event()
                    self.unissued.append(event)
                    yield event
                late = issued[base + k] - env.now
                if is_compute and late > 0:
                    self.host_stall_ps += late
                if direct:
                    start = env.now + max(late, 0)
                    work = 0 if iteration < program.age[k] else machine.work(self, k, iteration)
                    end = start + work
                    if end > env.now:
                        self.due[lane] = end
                        yield env.timeout(end - env.now)
                        del self.due[lane]
                    self.finish(k, iteration, start)
                    continue
                if late > 0:
                    self.leave(lane)
                    self.due[lane] = env.now + late
                    yield env.timeout(late)
                    del self.due[lane]
                if several:
                    while self.in_flight >= program.timing.in_flight or done[k] < iteration:
                        self.landed = env.event()
                        yield self.landed
                    self.in_flight += 1
                    env.process(self.fly(k, iteration))
                else:
                    start = env.now
                    yield from self.run(k, iteration, lane)
                    self.finish(k, iteration, start)
            self.leave(lane)

    def fly(self, k: int, iteration: int) -> _Steps:
        """Run one of several collectives in flight."""
        start = self.machine.env.now
        yield from self.run(k, iteration, f"comm {k}")
        self.in_flight -= 1
        self.finish(k, iteration, start)
        if self.landed is not None and not self.landed.triggered:
            self.landed.succeed()

    def run(self, k: int, iteration: int, lane: str) -> _Steps:
        """Spend the work of op *k*, at a rate that changes with what runs beside it."""
        machine = self.machine
        program = machine.program
        if iteration < program.age[k]:
            return
        if program.collective[k]:
            yield from machine.collective(self, k, iteration, lane)
        elif not program.interferes:
            self.due[lane] = machine.env.now + machine.work(self, k, iteration)
            yield machine.env.timeout(machine.work(self, k, iteration))
            del self.due[lane]
        else:
            self.enter(lane, k)
            yield from machine.spend(
                machine.work(self, k, iteration) * program.unit,
                lambda: program.slowed_pace[k] if machine.moving else program.unit,
                (self.index, lane),
                self.runner,
                lane,
            )

    def enter(self, lane: str, k: int) -> None:
        """Note that *lane* runs op *k*; tell the collectives if that changes how fast they move."""
        before = self.running.get(lane)
        self.running[lane] = k
        level = self.machine.program.level
        if (0 if before is None else level[before]) != level[k]:
            self.machine.weigh(self)

    def leave(self, lane: str) -> None:
        """Note that *lane* runs nothing."""
        k = self.running.pop(lane, None)
        if k is not None and self.machine.program.level[k]:
            self.machine.weigh(self)


@dataclass(slots=True)
class _Flight:
    """A collective whose data move; `part` is its share of its own speed."""

    k: int
    process: simpy.Process
    part: Fraction = ONE


class _Machine:
    """All ranks, and what couples them: collectives and interference."""

    def __init__(
        self,
        program: Program,
        iterations: int,
        *,
        ranks: int,
        slowdowns: Slowdowns | None,
        stretches: Slowdowns | None = None,
        keep_rows: bool,
        on_iteration: Callable[["_Rank", int], None],
    ) -> None:
        self.env = _Environment()
        self.program = program
        self.iterations = iterations
        self.ranks_differ = ranks > 1
        self.slowdowns = slowdowns
        self.stretches = stretches
        self.keep_rows = keep_rows
        self.on_iteration = on_iteration
        self.ended = 0
        self.moving: dict[int, _Flight] = {}
        self.met: dict[tuple[int, int], tuple[int, simpy.Event]] = {}
        self.left: dict[tuple[int, str], tuple[int | Fraction, int]] = {}
        self.part: dict[int, int] = {}
        self.unlooked = 0
        self.savings = self.saved_since = self.warm_since = 0
        # How much each rank slows the collectives, how many ranks do so by each level, and the heaviest level
        self.weight = [0] * ranks
        self.weights = [ranks, *(0 for _ in program.pace[1:])]
        self.heaviest = 0
        self.ranks = [_Rank(self, index) for index in range(ranks)]

    def work(self, rank: _Rank, k: int, iteration: int) -> int:
        """Return the work of op *k* on *rank*, in picoseconds."""
        run = self.program.run[k]
        if self.program.collective[k]:
            return run if self.stretches is None else sum(self.stretched(k, iteration))
        if self.slowdowns is None or iteration >= len(self.slowdowns):
            return run
        return round(run * self.slowdowns[iteration][rank.index])

    def spend(
        self,
        parts: int | Fraction,
        rate: Callable[[], int | Fraction],
        key: tuple[int, str],
        runners: dict[str, simpy.Process],
        runner: str,
    ) -> _Steps:
        """Spend *parts* of work at a *rate* of parts each picosecond; an interrupt says that the rate has changed."""
        env = self.env
        process = env.active_process
        assert process is not None
        runners[runner] = process
        ended = parts == 0
        while not ended:
            now, speed = env.now, rate()
            self.left[key] = (parts, now)
            try:
                yield env.timeout(-(-parts // speed))
                ended = True
            except simpy.Interrupt:
                # With nothing left it still waits, for no time, behind every other interrupt of this instant.
                parts = max(0, parts - (env.now - now) * speed)
        self.left.pop(key, None)
        del runners[runner]

    def stretched(self, k: int, iteration: int) -> tuple[int, int]:
        """Return latency and the work behind it of collective *k*, in picoseconds."""
        latency, work = self.program.latency[k], self.program.run[k] - self.program.latency[k]
        if self.stretches is None or iteration >= len(self.stretches):
            return latency, work
        factor = self.stretches[iteration][k]
        return round(latency * factor), round(work * factor)

    # --- collectives -------------------------------------------------------------------------------------------

    def collective(self, rank: _Rank, k: int, iteration: int, lane: str) -> _Steps:
        """Wait for the other ranks; the last one to come moves the data for all."""
        program, env = self.program, self.env
        if self.ranks_differ:
            came, ended = self.met.get((k, iteration)) or (0, env.event())
            self.met[k, iteration] = (came + 1, ended)
            if came + 1 < len(self.ranks):
                yield ended
                return
            del self.met[k, iteration]
        latency, work = self.stretched(k, iteration)
        latency += self.cold(env.now)
        if program.timing.burst_ps:
            self.save(env.now)
        plain = not (program.interferes or program.stateful) and program.timing.in_flight == 1
        if plain:
            latency, work = latency + work, 0
        if latency or plain:
            rank.due[lane] = env.now + latency
            yield env.timeout(latency)
            del rank.due[lane]
        if not plain:
            yield from self.move_all(k, lane, work)
        if self.ranks_differ:
            ended.succeed()

    def move_all(self, k: int, lane: str, work: int) -> _Steps:
        """Move the data of one collective, a part after each look that it needs."""
        program = self.program
        least, looks = program.least[k], program.looks[k]
        parts = max(looks, 1)
        for part in range(parts):
            self.part[k] = part
            share = work * (part + 1) // parts - work * part // parts
            if self.savings:
                taken = min(self.savings, max(share - (0 if looks else least), 0))
                self.savings -= taken
                share -= taken
            if share:
                yield from self.move(k, lane, share)
            self.saved_since = self.env.now
            if looks:
                yield from self.looked(k)
                if program.timing.burst_ps:
                    self.save(self.env.now)
        del self.part[k]
        self.warm_since = self.env.now

    def cold(self, now: int) -> int:
        """Return what a collective takes more because there was none before it for so long."""
        if self.part or not self.program.timing.cold_ps:
            return 0
        return self.program.timing.cold_ps * min(max(now - self.warm_since, 0), COOL_PS) // COOL_PS

    def save(self, now: int) -> None:
        """Let the link save up what it could have sent since it was last used."""
        self.savings = min(self.program.timing.burst_ps, self.savings + now - self.saved_since)
        self.saved_since = now

    def looked(self, k: int) -> _Steps:
        """Return when every rank has looked."""
        self.unlooked += 1
        for rank in self.ranks:
            while not rank.has_looked():
                event = self.env.event()
                rank.unseen.append(event)
                yield event
        self.unlooked -= 1

    def move(self, k: int, lane: str, work: int) -> _Steps:
        """Move the data of *work* picoseconds alone."""
        program = self.program
        process = self.env.active_process
        assert process is not None
        flight = _Flight(k, process)
        self.moving[k] = flight
        self.share(flight)
        if len(self.moving) == 1:
            self.toggle()

        def rate() -> int | Fraction:
            # Shares give fractions, such as 2/3, that no common unit makes whole.
            pace = program.pace[self.heaviest]
            return pace if flight.part is ONE else pace * flight.part

        yield from self.spend(work * program.unit, rate, (-1, lane), {}, lane)
        del self.moving[k]
        self.share(flight)
        if not self.moving:
            self.toggle()

    def share(self, changed: _Flight) -> None:
        """Give each collective in flight its fair part, and tell those whose part has changed."""
        flights = list(self.moving.values())
        if not flights or (len(flights) == 1 and flights[0].part is ONE):
            return
        for flight, part in zip(flights, fair_rates([self.program.use[flight.k] for flight in flights]), strict=True):
            if part != flight.part:
                flight.part = ONE if part == 1 else part
                if flight is not changed:
                    flight.process.interrupt()

    def toggle(self) -> None:
        """Tell the local ops that data have begun or ceased to move."""
        for rank in self.ranks:
            for lane, process in rank.runner.items():
                if self.program.slowed[rank.running[lane]] != 1 and process is not self.env.active_process:
                    process.interrupt()

    def weigh(self, rank: _Rank) -> None:
        """Recompute how much *rank* slows the collectives, and tell them if the largest such factor has changed."""
        level = self.program.level
        old, new = self.weight[rank.index], max((level[k] for k in rank.running.values()), default=0)
        if old == new:
            return
        self.weight[rank.index] = new
        self.weights[old] -= 1
        self.weights[new] += 1
        before = self.heaviest
        self.heaviest = next(place for place in range(len(self.weights) - 1, -1, -1) if self.weights[place])
        if self.heaviest != before:
            for flight in self.moving.values():
                if flight.process is not self.env.active_process:
                    flight.process.interrupt()

    def state(self, iteration: int) -> tuple[object, ...]:
        """Return everything that decides the future, relative to now and to *iteration*."""
        program = self.program
        now, base = self.env.now, iteration * program.size
        found: list[object] = [iteration % math.lcm(*program.every), tuple(k for k in self.moving)]
        for rank in self.ranks:
            found.append(tuple(place - base for place in rank.place.values()))
            found.append(tuple((lane, due - now) for lane, due in sorted(rank.due.items())))
            found.append((len(rank.issued) - base, max(rank.issue_end - now, 0)))
            pending = []
            for issue_end in reversed(rank.issued):
                if issue_end <= now:
                    break
                pending.append(issue_end - now)
            found.append(tuple(pending))
            found.append(tuple(sorted(rank.running.items())))
            found.append(tuple(done - iteration for done in rank.done))
        for key, (parts, since) in sorted(self.left.items()):
            found.append((key, parts, now - since))
        if program.stateful:
            idle = not self.moving
            saved = min(program.timing.burst_ps, self.savings + now - self.saved_since) if idle else self.savings
            found.append(min(now - self.warm_since, COOL_PS) if idle and program.timing.cold_ps else 0)
            found += [(rank.looks_left, min(now - rank.looked_at, LOOKS_SPAN_PS + 1)) for rank in self.ranks]
            found.append((saved, self.unlooked, tuple(self.part.items()), tuple(rank.posted for rank in self.ranks)))
        return tuple(found)

    def check_ended(self) -> None:
        """Raise ScheduleError if a rank is stuck; checked schedules are not."""
        program = self.program
        expected = sum(
            program.exists(k, iteration, self.iterations)
            for iteration in range(self.iterations + program.owed)
            for k in range(program.size)
        )
        if self.ended != expected * len(self.ranks):
            stuck = {
                lane: program.schedule.ops[place % program.size].name for lane, place in self.ranks[0].place.items()
            }
            where = ", ".join(f"{lane} at {name!r}" for lane, name in stuck.items())
            raise ScheduleError(f"schedule {program.schedule.name!r}: stuck: {where}")


def simulate(
    schedule: Schedule,
    derived: Derived,
    timing: Timing,
    *,
    iterations: int,
    ranks: int = 1,
    slowdowns: Slowdowns | None = None,
    workload: str = "",
    cluster: str = "",
) -> Trace:
    """Return the trace of *iterations* iterations from a cold start, with the updates owed at the end.

    *ranks* is how many are simulated apart: 1 where all are alike. *slowdowns* multiplies the local work of each
    iteration (first index) of each rank (second index).
    """
    program = Program(schedule, derived, timing)
    machine = _Machine(
        program, iterations, ranks=ranks, slowdowns=slowdowns, keep_rows=True, on_iteration=lambda rank, i: None
    )
    machine.env.run()
    machine.check_ended()
    return _trace(machine, workload, cluster)


def iteration_ends_ps(
    schedule: Schedule, derived: Derived, timing: Timing, *, slowdowns: Slowdowns, stretches: Slowdowns
) -> list[list[int]]:
    """Return when each rank ended each iteration, ``[iteration][rank]``.

    *slowdowns* are as in `simulate`; *stretches* multiplies the time alone of each collective, ``[iteration][op]``.
    """
    ranks = len(slowdowns[0])
    ends: list[list[int]] = [[0] * ranks for _ in slowdowns]

    def note(rank: _Rank, iteration: int) -> None:
        if iteration < len(ends):
            ends[iteration][rank.index] = machine.env.now

    machine = _Machine(
        Program(schedule, derived, timing),
        len(slowdowns),
        ranks=ranks,
        slowdowns=slowdowns,
        stretches=stretches,
        keep_rows=False,
        on_iteration=note,
    )
    machine.env.run()
    machine.check_ended()
    return ends


def steady(
    schedule: Schedule, derived: Derived, timing: Timing, *, ranks: int = 1, limit: int = STEADY_LIMIT
) -> Steady:
    """Return the steady state: simulate until the state of all lanes comes back.

    If it does not within *limit* iterations, the period is the mean of the last half of them, and `repeats` is False.
    """
    program = Program(schedule, derived, timing)
    seen: dict[tuple[object, ...], int] = {}
    ends: list[tuple[int, int]] = []

    def note(rank: _Rank, iteration: int) -> None:
        if rank.index or found.triggered:
            return
        ends.append((machine.env.now, rank.host_stall_ps))
        if iteration == limit:
            found.succeed(None)
        elif iteration >= program.owed:
            first = seen.setdefault(machine.state(iteration), iteration)
            if first != iteration:
                found.succeed(first)

    # Two iterations more, so that the end of the run is not felt before the limit
    machine = _Machine(program, limit + 2, ranks=ranks, slowdowns=None, keep_rows=False, on_iteration=note)
    found = machine.env.event()
    try:
        first = machine.env.run(until=found)
    except RuntimeError:
        machine.check_ended()
        raise
    repeats = isinstance(first, int)
    last = len(ends) - 1
    begin = first if isinstance(first, int) else last // 2
    cycle = last - begin
    return Steady(
        period_ps=Fraction(ends[last][0] - ends[begin][0], cycle),
        repeats=repeats,
        iterations=cycle,
        warm_up=begin,
        host_stall_ps=Fraction(ends[last][1] - ends[begin][1], cycle),
    )


def _trace(machine: _Machine, workload: str, cluster: str) -> Trace:
    program = machine.program
    lanes: list[str] = list(dict.fromkeys(["host", *(op.lane for op in program.schedule.ops)]))
    number = {lane: index for index, lane in enumerate(lanes)}
    rows = [
        (rank.index, number[lane], k, iteration, start, end)
        for rank in machine.ranks
        for lane, k, iteration, start, end in rank.rows
    ]
    columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(6)]
    return Trace(
        origin="simulated",
        schedule=program.schedule.name,
        workload=workload or program.schedule.workload,
        cluster=cluster,
        ranks=len(machine.ranks),
        lanes=tuple(lanes),
        ops=tuple(op.name for op in program.schedule.ops),
        rank=columns[0],
        lane=columns[1],
        op=columns[2],
        iteration=columns[3],
        start_ps=columns[4],
        end_ps=columns[5],
    )
