"""The meaning of a schedule, played out as plainly as possible: the answer that the fast ones are held against.

Model
    Written from the design of schedules alone, before the simulator was read. Every instance of every op of every rank
    is unrolled first. Then a clock of whole picoseconds jumps to the next instant at which anything ends; at each
    instant all that may start or end does, until nothing moves. Work left is a fraction; an op ends at the first whole
    picosecond at which none is left.

    Where the design leaves a choice open, the simulator's was taken: a skipped update keeps its place in its lane but
    costs nothing; an op that the host runs itself is issued before it waits; during its latency a collective slows
    nobody and is not slowed; an op never overlaps itself, however many collectives are in flight.

Known not to hold
    It is slow: each instant looks at every lane of every rank.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil

from simgd.schedule import Communicate, Dep, Op, Schedule, Update, Wait
from simgd.sharing import fair_rates
from simgd.timing import OpTime, Timing


class StuckError(Exception):
    """Nothing can move any more, and not everything has ended."""


@dataclass(eq=False)
class Instance:
    """One op in one iteration of one rank: what it needs, what is left to do, and when things happened."""

    rank: int
    op: Op
    i: int
    time: OpTime
    latency: Fraction
    work: Fraction
    lane: str
    needs: list["Instance"] = field(default_factory=list)
    needed_to_issue: list["Instance"] = field(default_factory=list)
    peers: list["Instance"] = field(default_factory=list)
    issue_start: int | None = None
    issued: int | None = None
    start: int | None = None
    moving: bool = False
    end: int | None = None

    @property
    def flies(self) -> bool:
        """Say whether it is a collective."""
        return isinstance(self.op.work, Communicate)


def delay_of(op: Op, schedule: Schedule) -> int:
    """Return how many iterations old the reduced gradient is that an update applies."""
    sent = {each.name for each in schedule.ops if isinstance(each.work, Communicate)}
    return max((dep.lag for dep in op.after if dep.op in sent), default=0) if isinstance(op.work, Update) else 0


class Play:
    """The whole play: `ends`, `starts` and `issues` give times by (rank, op, iteration)."""

    def __init__(
        self,
        schedule: Schedule,
        deps: Mapping[str, tuple[Dep, ...]],
        timing: Timing,
        iterations: int,
        *,
        ranks: int = 1,
        slowdowns: Sequence[Sequence[float]] | None = None,
    ) -> None:
        self.timing, self.now = timing, 0
        self.ops = {op.name: op for op in schedule.ops}
        delay = {op.name: delay_of(op, schedule) for op in schedule.ops}
        self.all: dict[tuple[int, str, int], Instance] = {}
        for rank in range(ranks):
            for i in range(iterations + max(delay.values())):
                for op in schedule.ops:
                    if i % op.every != op.phase or (i >= iterations and not 0 <= i - delay[op.name] < iterations):
                        continue  # a rare op, or after the end one that is not owed
                    time = timing.ops[op.name] if i >= delay[op.name] else OpTime()
                    factor = Fraction(1)
                    if slowdowns and i < iterations and not isinstance(op.work, Communicate):
                        factor = Fraction(slowdowns[i][rank])
                    latency = Fraction(min(time.latency_ps, time.run_ps) if isinstance(op.work, Communicate) else 0)
                    lane = "host" if timing.merged and op.lane in ("compute", "update") else op.lane
                    work = time.run_ps * factor - latency
                    self.all[rank, op.name, i] = Instance(rank, op, i, time, latency, work, lane)
        for (rank, name, i), x in self.all.items():
            waited = [Dep(x.op.work.op, x.op.work.lag)] if isinstance(x.op.work, Wait) else []
            x.needs = [y for dep in [*deps[name], *waited] if (y := self.latest(rank, dep.op, i - dep.lag))]
            if timing.wait_blocks_host and x.lane != "host":
                x.needed_to_issue = [y for y in x.needs if y.flies]
            x.needed_to_issue += self.last_compute(rank, i - timing.run_ahead, iterations)
            x.peers = [self.all[other, name, i] for other in range(ranks)] if x.flies else [x]
        self.host = [[x for x in self.all.values() if x.rank == rank] for rank in range(ranks)]
        self.queues: dict[tuple[int, str], list[Instance]] = {}
        for x in self.all.values():
            self.queues.setdefault((x.rank, x.lane), []).append(x)
        self.busy: list[Instance] = []
        while self.settle() or any(x.end is None for x in self.all.values()):
            self.advance()
        self.ends = {key: x.end for key, x in self.all.items()}
        self.starts = {key: x.start for key, x in self.all.items()}
        self.issues = {key: (x.issue_start, x.issued) for key, x in self.all.items()}

    def latest(self, rank: int, name: str, i: int) -> Instance | None:
        """Return the latest instance of an op at or before iteration i; of a rare op that may lie further back."""
        while i >= 0 and i % self.ops[name].every != self.ops[name].phase:
            i -= 1
        return self.all.get((rank, name, i))

    def last_compute(self, rank: int, i: int, iterations: int) -> list[Instance]:
        """Return the last op of iteration i on the compute lane, which later issuing waits for."""
        compute = [op.name for op in self.ops.values() if op.lane == "compute"]
        if i >= iterations:  # owed updates: only if the list ends in one
            compute = compute[-1:]
        return [self.all[rank, name, i] for name in compute if (rank, name, i) in self.all][-1:]

    def settle(self) -> bool:
        """Do all that can be done at this instant; say whether something is still running."""
        moved = True
        while moved:
            moved = False
            for host in self.host:
                x = host[0] if host else None
                if x is None:
                    continue
                if x.issue_start is None and all(y.end is not None for y in x.needed_to_issue):
                    x.issue_start, moved = self.now, True
                if x.issue_start is not None and x.issued is None and x.issue_start + x.time.issue_ps == self.now:
                    x.issued, moved = self.now, True
                # What the host runs itself keeps it until that has ended.
                if x.issued is not None and (x.lane != "host" or x.end is not None):
                    host.pop(0)
                    moved = True
            for (rank, lane), queue in self.queues.items():
                busy = [x for x in self.busy if (x.rank, x.lane) == (rank, lane)]
                room = len(busy) < (self.timing.in_flight if lane == "comm" else 1)
                if not queue or not room or queue[0].issued is None or queue[0].op in [x.op for x in busy]:
                    continue
                if all(y.end is not None for y in queue[0].needs):
                    queue[0].start, moved = self.now, True
                    self.busy.append(queue.pop(0))
            for x in list(self.busy):
                if not x.moving and all(peer.start is not None for peer in x.peers):
                    x.moving = moved = True
                if x.moving and x.latency <= 0 and x.work <= 0:
                    x.end, moved = self.now, True
                    self.busy.remove(x)
        return bool(self.busy)

    def rates(self) -> dict[Instance, Fraction]:
        """Return how fast each op runs: slowed by what is busy on the other lanes; collectives share fairly."""
        running = [x for x in self.busy if x.moving]
        local = [x for x in running if not x.flies]
        data = [x for x in running if x.flies and x.latency <= 0]
        flights = [x for x in data if x.rank == 0]
        shares = fair_rates([x.time.use for x in flights])
        share = {(x.op.name, x.i): part for x, part in zip(flights, shares, strict=True)}
        found = {x: Fraction(1) for x in running}
        for x in local:
            if any(y.rank == x.rank for y in data):
                found[x] = 1 / x.time.slowed
        for x in data:
            beside = [[y.time.slows for y in local if y.rank == peer.rank] for peer in x.peers]
            # All local work is one kind of lane to a collective; its slowest rank holds back all of it.
            found[x] = share[x.op.name, x.i] / max(max(factors, default=Fraction(1)) for factors in beside)
        return found

    def advance(self) -> None:
        """Jump to the next instant at which something ends."""
        rates = self.rates()
        steps = [ceil((x.latency if x.latency > 0 else x.work) / rate) for x, rate in rates.items()]
        steps += [
            host[0].issue_start + host[0].time.issue_ps - self.now
            for host in self.host
            if host and host[0].issue_start is not None and host[0].issued is None
        ]
        if not steps:
            raise StuckError(f"at {self.now} ps")
        for x, rate in rates.items():
            if x.latency > 0:
                x.latency -= min(steps) * rate
            else:
                x.work -= min(steps) * rate
        self.now += min(steps)
