"""Flows that share links by max-min fairness, from one start or end of a flow to the next.

Model
    A flow crosses resources: directed links, buses, whatever has a capacity. All rates grow together; a resource that
    is full fixes the rates of all flows on it, and the others go on (progressive filling; Bertsekas and Gallager, Data
    Networks, 1992, 6.5.2). Between two starts or ends rates are constant. A half-duplex link is one resource that both
    directions cross. A flow pays its latency before it claims bandwidth.

    Flows that share resources, directly or by way of others, form a group. A start or an end changes the rates of its
    group only, so a group is what is solved anew, with all that starts or ends at that instant.

Known not to hold
    Congestion control takes time to find the fair rates, and favours short round trips; packets, their headers and
    head-of-line blocking are left out. A profile's measured bandwidth stands for them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace
from itertools import chain, pairwise
from math import inf
from operator import mul

import numpy as np
from numpy.typing import NDArray

from simgd.errors import ClusterError

Floats = NDArray[np.float64]
Numbers = NDArray[np.intp]

#: Times that differ by less than this share are one instant, and rates one rate: sums in another order end elsewhere.
SAME = 1e-12

# Up to so many flows lists are faster than arrays. A lone event of n flows, each over 3 of 2 n random links, took with
# lists / arrays, in us of processor time: n = 8: 17 / 92, 32: 50 / 134, 64: 94 / 157, 96: 130 / 178, 128: 162 / 182,
# 192: 234 / 210, 256: 283 / 210 (`python tests/benchmarks/bench_flows.py`; 2 cores, CPython 3.11, NumPy 2.4).
FEW = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """Bytes that move over a route, once some other flows have ended.

    Nothing is checked here but by `ends`, for all flows at once: there are many.
    """

    #: Numbers of the resources that it crosses; twice the same one counts twice.
    route: tuple[int, ...]
    nbytes: float
    #: Paid before it claims bandwidth.
    latency_s: float = 0.0
    start_s: float = 0.0
    #: Numbers, in the list that `ends` is given, of the flows that it waits for; its latency follows.
    after: tuple[int, ...] = ()
    #: Its own highest rate: a protocol's, or what a message of its size reaches.
    limit_bytes_per_s: float = inf
    #: Bytes on each resource of the route for each byte of the flow; () stands for 1 on each.
    weights: tuple[float, ...] = ()


def fair_rates(
    routes: Sequence[Sequence[int]],
    capacity: Sequence[float],
    limits: Sequence[float] | None = None,
    weights: Sequence[Sequence[float]] | None = None,
) -> Floats:
    """Return the max-min fair rate of each route, in the unit of *capacity*; one that nothing limits has rate inf.

    A flow on resource 0 that resource 1 holds at 2 leaves 8 of 10 to the other:

    >>> fair_rates([(0,), (0, 1)], [10.0, 2.0]).tolist()
    [8.0, 2.0]
    """
    tables = _Tables(routes, capacity, limits, weights)
    rates = tables.limits.copy()
    there = np.flatnonzero(np.diff(tables.first))
    rates[there] = tables.part(there).rates()
    return rates


def ends(flows: Sequence[Flow], capacity: Sequence[float]) -> list[float]:
    """Return the second at which each flow ends; *capacity* gives the bytes per second of each resource.

    The second flow joins after 1 s, when 10 of 20 bytes are left; both go at half the rate:

    >>> ends([Flow(route=(0,), nbytes=20.0), Flow(route=(0,), nbytes=10.0, start_s=1.0)], [10.0])
    [3.0, 3.0]
    """
    return _Run(flows, capacity).ends()


class _Tables:
    """Who uses what, flow by flow: the uses of flow f are those from `first[f]` up to `first[f + 1]`.

    A use of no bytes, or of a resource without limit, is left out.
    """

    def __init__(
        self,
        routes: Sequence[Sequence[int]],
        capacity: Sequence[float],
        limits: Sequence[float] | None,
        weights: Sequence[Sequence[float]] | None,
    ) -> None:
        count = len(routes)
        self.capacity = np.array(capacity, dtype=float)
        _check("resource", self.capacity, self.capacity > 0, "bytes per second; it must be above 0")
        self.limits = np.full(count, inf) if limits is None else np.array(limits, dtype=float)
        _check("flow", self.limits, self.limits > 0, "bytes per second as its limit; it must be above 0")
        lengths = np.fromiter(map(len, routes), dtype=np.intp, count=count)
        self.uses: Numbers = np.fromiter(chain.from_iterable(routes), dtype=np.intp, count=int(lengths.sum()))
        owner = np.repeat(np.arange(count), lengths)
        bad = np.flatnonzero((self.uses < 0) | (self.uses >= self.capacity.size))
        if bad.size:
            raise ClusterError(
                f"flow {owner[bad[0]]}: crosses resource {self.uses[bad[0]]}; there are {self.capacity.size}, from 0 on"
            )
        self.weights: Floats | None = None
        left_out = ~np.isfinite(self.capacity)[self.uses]
        if weights is not None and any(weights):
            for flow, (given, length) in enumerate(zip(weights, lengths.tolist(), strict=True)):
                if given and len(given) != length:
                    raise ClusterError(f"flow {flow}: {len(given)} weights for a route over {length} resources")
            each = (given or (1.0,) * length for given, length in zip(weights, lengths.tolist(), strict=True))
            self.weights = np.fromiter(chain.from_iterable(each), dtype=float, count=self.uses.size)
            bad = np.flatnonzero(~((self.weights >= 0) & (self.weights < inf)))
            if bad.size:
                raise ClusterError(
                    f"flow {owner[bad[0]]}: weight {self.weights[bad[0]]:g}; it must be 0 or more, and finite"
                )
            left_out |= self.weights == 0
        if left_out.any():
            self.uses = self.uses[~left_out]
            self.weights = None if self.weights is None else self.weights[~left_out]
            lengths = np.bincount(owner[~left_out], minlength=count)
        self.first: Numbers = np.concatenate(([0], np.cumsum(lengths)))

    def lists(self) -> tuple[list[list[int]], list[list[float]]]:
        """Return for each flow the resources that it uses, and their weights; no weights at all if all are 1."""
        cuts = list(pairwise(self.first.tolist()))
        uses, weights = self.uses.tolist(), [] if self.weights is None else self.weights.tolist()
        routes = [uses[begin:end] for begin, end in cuts]
        return routes, [weights[begin:end] for begin, end in cuts] if weights else []

    def part(self, flows: Numbers) -> "_Part":
        """Return the uses of some flows, each of which has some, with the resources among them numbered anew."""
        begin = self.first[flows]
        lengths = self.first[flows + 1] - begin
        place = _starts(lengths)
        which = np.repeat(begin - place, lengths) + np.arange(lengths.sum())
        uses = self.uses[which]
        # One use of each resource, the last, stands for it: this needs no sorting.
        stands = np.empty(self.capacity.size, dtype=np.intp)
        stands[uses] = np.arange(uses.size)
        number = np.zeros(uses.size, dtype=np.intp)
        number[stands[uses]] = 1
        chosen = np.flatnonzero(number)
        number[chosen] = np.arange(chosen.size)
        resources = uses[chosen]
        return _Part(
            lengths=lengths,
            uses=number[stands[uses]],
            weights=None if self.weights is None else self.weights[which],
            limits=self.limits[flows],
            resources=resources,
            capacity=self.capacity[resources],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Some flows with their uses, one flow after the other; `resources` are the old numbers of those used."""

    lengths: Numbers
    uses: Numbers
    weights: Floats | None
    limits: Floats
    resources: Numbers
    capacity: Floats

    def rates(self) -> Floats:
        """Return the fair rates, by progressive filling of all resources at once.

        The share of a resource never falls while flows that are slower elsewhere get their rates. So a resource whose
        flows all have their smallest share there can fix them now, whatever is smaller far away: the rounds are as many
        as the longest chain of resources that wait for one another, not as the different rates.
        """
        lengths, uses, weights, limits = self.lengths, self.uses, self.weights, self.limits
        count = self.capacity.size
        rates = limits.copy()
        growing = np.arange(limits.size)
        room = self.capacity.copy()
        share = np.zeros(count)
        while growing.size:
            load = np.bincount(uses, weights, count)
            # Noise of the subtractions must not take from a share, or leave a flow with nothing.
            with np.errstate(divide="ignore", invalid="ignore"):
                share = np.fmax(share, room / load)
            shares = share[uses]
            smallest = np.minimum.reduceat(shares, _starts(lengths))
            level = np.minimum(smallest, limits)
            levels = np.repeat(level, lengths)
            slower_elsewhere = np.bincount(uses[shares > levels * (1 + SAME)], minlength=count)
            stop = np.logical_or.reduceat((slower_elsewhere == 0)[uses], _starts(lengths)) | (limits <= smallest)
            rates[growing[stop]] = level[stop]
            if stop.all():
                break
            stopped = np.repeat(stop, lengths)
            taken = levels[stopped] if weights is None else (levels * weights)[stopped]
            room -= np.bincount(uses[stopped], taken, count)
            growing, limits, lengths = growing[~stop], limits[~stop], lengths[~stop]
            uses = uses[~stopped]
            weights = None if weights is None else weights[~stopped]
        return rates

    def groups(self) -> Numbers:
        """Return for each flow the smallest place of a flow that it is linked with.

        Every flow points to one at or before it; pointers are hooked on smaller neighbours and halved, so that even a
        long row of flows needs few rounds (after Zhang, Azad and Buluc, FastSV, 2020).
        """
        starts = _starts(self.lengths)
        towards = np.arange(self.lengths.size)
        beyond = towards
        while True:
            smallest = np.full(self.resources.size, towards.size)
            np.minimum.at(smallest, self.uses, np.repeat(beyond, self.lengths))
            near = np.minimum.reduceat(smallest[self.uses], starts)
            hooked = np.minimum(towards, near)
            np.minimum.at(hooked, towards, near)
            towards = np.minimum(hooked, beyond)
            further = towards[towards]
            if np.array_equal(further, beyond):
                return further
            beyond = further


def _fill(
    users: dict[int, list[int]], weights: dict[int, list[float]], capacity: Sequence[float], limits: Sequence[float]
) -> list[float]:
    """Return the fair rates of few flows: *users* gives for each resource the places of its flows, *weights* theirs.

    No weights at all stand for 1 everywhere. A resource waits with the share that it had when it was last looked at.
    Shares only rise, so the smallest one, if it still holds, is the next to be full.
    """
    loads = [sum(each) for each in weights.values()] or map(len, users.values())
    waiting = [(capacity[name] / load, name) for name, load in zip(users, loads, strict=True)]
    waiting += [(limit, -1 - place) for place, limit in enumerate(limits) if limit < inf]
    heapify(waiting)
    rates = [0.0] * len(limits)
    growing = len(limits)
    while growing:
        level, name = waiting[0]
        if name < 0:
            heappop(waiting)
            if not rates[-1 - name]:
                rates[-1 - name] = level
                growing -= 1
            continue
        places = users[name]
        theirs = [rates[place] for place in places]
        load: float = theirs.count(0.0)
        if load and load < len(places):
            if weights:
                load = sum([weight for weight, rate in zip(weights[name], theirs, strict=True) if not rate])
                theirs = list(map(mul, weights[name], theirs))
            share = (capacity[name] - sum(theirs)) / load
            if share > level:
                heapreplace(waiting, (share, name))
                continue
        heappop(waiting)
        if load:
            for place in places:
                if not rates[place]:
                    rates[place] = level
                    growing -= 1
    return rates


class _Few:
    """A group of few flows, in lists: their rates, and the bytes that each had left at `since_s`."""

    __slots__ = ("flows", "left", "rates", "since_s", "solved")

    def __init__(self, flows: list[int], left: list[float], rates: list[float], since_s: float) -> None:
        self.flows = flows
        self.left = left
        self.rates = rates
        self.since_s = since_s
        #: Becomes False when one of its flows starts or ends: other groups take its place.
        self.solved = True

    def next_s(self) -> float:
        """Return when the first of its flows ends."""
        return self.since_s + min([left / rate for left, rate in zip(self.left, self.rates, strict=True)])

    def split(self, now_s: float, until_s: float, on_way: "list[_OnWay]") -> list[int]:
        """Return the flows that end by *until_s*; add the others, with their bytes left at *now_s*, to *on_way*."""
        self.solved = False
        since_s, gone_s = self.since_s, now_s - self.since_s
        ended, flows, lefts = [], [], []
        for flow, left, rate in zip(self.flows, self.left, self.rates, strict=True):
            if since_s + left / rate <= until_s:
                ended.append(flow)
            else:
                flows.append(flow)
                lefts.append(left - rate * gone_s)
        if flows:
            on_way.append((flows, lefts))
        return ended


class _Many:
    """The same of many flows, in arrays."""

    __slots__ = ("flows", "left", "rates", "since_s", "solved")

    def __init__(self, flows: Numbers, left: Floats, rates: Floats, since_s: float) -> None:
        self.flows = flows
        self.left = left
        self.rates = rates
        self.since_s = since_s
        self.solved = True

    def split(self, now_s: float, until_s: float, on_way: "list[_OnWay]") -> list[int]:
        """Return the flows that end by *until_s*; add the others, with their bytes left at *now_s*, to *on_way*."""
        self.solved = False
        done = self.since_s + self.left / self.rates <= until_s
        on = ~done
        if on.any():
            on_way.append((self.flows[on], self.left[on] - self.rates[on] * (now_s - self.since_s)))
        ended: list[int] = self.flows[done].tolist()
        return ended


#: Some flows that go on, and the bytes that each has left.
_OnWay = tuple[list[int], list[float]] | tuple[Numbers, Floats]


class _Run:
    """The flows on their way: what waits for what, which group holds which resource, and a heap of what comes next."""

    def __init__(self, flows: Sequence[Flow], capacity: Sequence[float]) -> None:
        weights = [flow.weights for flow in flows]
        self.tables = _Tables(
            [flow.route for flow in flows],
            capacity,
            [flow.limit_bytes_per_s for flow in flows],
            weights if any(weights) else None,
        )
        self.routes, self.weights = self.tables.lists()
        self.capacity = self.tables.capacity.tolist()
        self.limits = self.tables.limits.tolist()
        nbytes = np.array([flow.nbytes for flow in flows], dtype=float)
        latency_s = np.array([flow.latency_s for flow in flows], dtype=float)
        start_s = np.array([flow.start_s for flow in flows], dtype=float)
        for values, unit in ((nbytes, "bytes"), (latency_s, "s of latency"), (start_s, "s as its start")):
            _check("flow", values, (values >= 0) & (values < inf), f"{unit}; it must be 0 or more, and finite")
        self.nbytes = nbytes.tolist()
        self.latency_s = latency_s.tolist()
        self.start_s = start_s.tolist()
        self.instant = ((nbytes == 0) | ((np.diff(self.tables.first) == 0) & (self.tables.limits == inf))).tolist()
        self.after = [flow.after for flow in flows]
        # Flows that wait for the same ones share a gate, or a barrier of n flows for n others would cost n x n. A tuple
        # that several flows share is hashed once.
        gates: dict[tuple[int, ...], list[int]] = {}
        seen: dict[int, list[int]] = {}
        for number, after in enumerate(self.after):
            if after:
                behind = seen.get(id(after))
                if behind is None:
                    behind = seen[id(after)] = gates.setdefault(after, [])
                behind.append(number)
        self.behind = list(gates.values())
        self.closed_by = [len(after) for after in gates]
        self.gates_of: dict[int, list[int]] = {}
        for gate, (after, (first, *_)) in enumerate(gates.items()):
            for other in after:
                if not 0 <= other < len(flows):
                    raise ClusterError(f"flow {first}: waits for flow {other}; there are {len(flows)}, from 0 on")
                self.gates_of.setdefault(other, []).append(gate)
        self.end_s = [-1.0] * len(flows)
        self.holder: list[_Few | _Many | None] = [None] * len(self.capacity)
        # A group's next end, or the flows that claim bandwidth then. The second number makes entries differ.
        self.heap: list[tuple[float, int, _Few | _Many | list[int]]] = []
        self.entries = 0
        free = [number for number, after in enumerate(self.after) if not after]
        self.later(free, (start_s + latency_s)[free])

    def later(self, flows: list[int], at_s: Floats) -> None:
        """Note when flows have paid their latency, as one entry for each instant."""
        if len(flows) == 1:
            return self.push(float(at_s[0]), flows)
        order = np.argsort(at_s, kind="stable")
        times = at_s[order]
        cuts = (np.flatnonzero(np.diff(times)) + 1).tolist()
        ordered = np.asarray(flows, dtype=np.intp)[order].tolist()
        for begin, end in pairwise([0, *cuts, len(flows)]):
            if end > begin:
                self.push(float(times[begin]), ordered[begin:end])
        return None

    def push(self, at_s: float, what: _Few | _Many | list[int]) -> None:
        self.entries += 1
        heappush(self.heap, (at_s, self.entries, what))

    def ends(self) -> list[float]:
        """Go from instant to instant until nothing moves any more."""
        heap = self.heap
        while heap:
            now_s, _, what = heap[0]
            if not isinstance(what, list) and not what.solved:
                heappop(heap)
                continue
            until_s = now_s * (1 + SAME)
            ended: list[int] = []
            arrived: list[int] = []
            on_way: list[_OnWay] = []
            while heap and heap[0][0] <= until_s:
                what = heappop(heap)[2]
                if isinstance(what, list):
                    arrived += what
                elif what.solved:
                    ended += what.split(now_s, until_s, on_way)
            # Flows that take no time may end and let others go, all in this instant.
            entering: list[int] = []
            while ended or arrived:
                for flow in arrived:
                    (ended if self.instant[flow] else entering).append(flow)
                arrived = self.let_go(ended, now_s, until_s)
                ended = []
            sharing = []
            for flow in entering:
                if not self.routes[flow]:
                    alone = _Few([flow], [self.nbytes[flow]], [self.limits[flow]], now_s)
                    self.keep(alone, (), alone.next_s())
                    continue
                sharing.append(flow)
                for name in self.routes[flow]:
                    group = self.holder[name]
                    if group is not None and group.solved:
                        group.split(now_s, until_s, on_way)
            if on_way or sharing:
                self.solve(on_way, sharing, now_s)
        self.check_all_ended()
        return self.end_s

    def let_go(self, ended: list[int], now_s: float, until_s: float) -> list[int]:
        """End flows; return those that waited for them and can claim bandwidth now, and note the others for later."""
        at_once, later, times = [], [], []
        for flow in ended:
            self.end_s[flow] = now_s
            for gate in self.gates_of.get(flow, ()):
                self.closed_by[gate] -= 1
                for waiting in () if self.closed_by[gate] else self.behind[gate]:
                    at_s = max(now_s, self.start_s[waiting]) + self.latency_s[waiting]
                    if at_s <= until_s:
                        at_once.append(waiting)
                    else:
                        later.append(waiting)
                        times.append(at_s)
        if later:
            self.later(later, np.array(times))
        return at_once

    def solve(self, on_way: list[_OnWay], entering: list[int], now_s: float) -> None:
        """Give flows their rates and put them into groups: those of groups that changed, and those that enter."""
        if sum([len(flows) for flows, _ in on_way]) + len(entering) > FEW:
            entered = np.array(entering, dtype=np.intp), np.array([self.nbytes[flow] for flow in entering])
            numbers, nbytes = zip(*on_way, entered, strict=True)
            self.solve_many(np.concatenate(numbers), np.concatenate(nbytes), now_s)
            return
        few: list[int] = []
        left: list[float] = []
        for flows, lefts in on_way:
            few += flows if isinstance(flows, list) else flows.tolist()
            left += lefts if isinstance(lefts, list) else lefts.tolist()
        few += entering
        left += [self.nbytes[flow] for flow in entering]
        self.solve_few(few, left, now_s)

    def solve_few(self, flows: list[int], left: list[float], now_s: float) -> None:
        """Solve with lists."""
        users: dict[int, list[int]] = {}
        for place, flow in enumerate(flows):
            for name in self.routes[flow]:
                if name in users:
                    users[name].append(place)
                else:
                    users[name] = [place]
        weights: dict[int, list[float]] = {}
        if self.weights:
            weights = {name: [] for name in users}
            for flow in flows:
                for name, weight in zip(self.routes[flow], self.weights[flow], strict=True):
                    weights[name].append(weight)
        rates = _fill(users, weights, self.capacity, [self.limits[flow] for flow in flows])
        if max(map(len, users.values())) == len(flows):
            group = _Few(flows, left, rates, now_s)
            self.keep(group, users, group.next_s())
            return
        new = [True] * len(flows)
        for place in range(len(flows)):
            if new[place]:
                new[place] = False
                members = [place]
                names: dict[int, None] = {}
                for member in members:
                    for name in self.routes[flows[member]]:
                        if name not in names:
                            names[name] = None
                            for other in users[name]:
                                if new[other]:
                                    new[other] = False
                                    members.append(other)
                group = _Few(
                    [flows[m] for m in members], [left[m] for m in members], [rates[m] for m in members], now_s
                )
                self.keep(group, names, group.next_s())

    def solve_many(self, flows: Numbers, left: Floats, now_s: float) -> None:
        """Solve with arrays."""
        part = self.tables.part(flows)
        rates = part.rates()
        label = part.groups()
        label_of_resource = np.empty(part.resources.size, dtype=np.intp)
        label_of_resource[part.uses] = np.repeat(label, part.lengths)
        names, by_name = _by_label(label_of_resource, part.resources)
        places, by_label = _by_label(label, np.arange(flows.size))
        flows, left, rates = flows[places], left[places], rates[places]
        numbers, nbytes, speeds = flows.tolist(), left.tolist(), rates.tolist()
        next_s = (now_s + np.minimum.reduceat(left / rates, by_label[:-1])).tolist()
        cuts = zip(pairwise(by_label), pairwise(by_name), next_s, strict=True)
        for (begin, end), (name_begin, name_end), at_s in cuts:
            group: _Few | _Many
            if end - begin > FEW:
                group = _Many(flows[begin:end], left[begin:end], rates[begin:end], now_s)
            else:
                group = _Few(numbers[begin:end], nbytes[begin:end], speeds[begin:end], now_s)
            self.keep(group, names[name_begin:name_end], at_s)

    def keep(self, group: _Few | _Many, names: Iterable[int], next_s: float) -> None:
        """Let a group hold its resources, and wait for the first of its ends."""
        for name in names:
            self.holder[name] = group
        self.push(next_s, group)

    def check_all_ended(self) -> None:
        """Raise if flows wait for one another."""
        stuck = next((number for number, end_s in enumerate(self.end_s) if end_s < 0), None)
        if stuck is None:
            return
        seen: dict[int, None] = {}
        while stuck not in seen:
            seen[stuck] = None
            stuck = next(other for other in self.after[stuck] if self.end_s[other] < 0)
        last = next(reversed(seen))
        way = f", by way of flow {last}" if last != stuck else ""
        raise ClusterError(f"flow {stuck}: waits for itself{way}; it would never start")


def _starts(lengths: Numbers) -> Numbers:
    """Return where each of some rows begins, one after the other."""
    starts = np.zeros(lengths.size, dtype=np.intp)
    np.cumsum(lengths[:-1], out=starts[1:])
    return starts


def _by_label(label: Numbers, values: Numbers) -> tuple[list[int], list[int]]:
    """Return *values* with equal labels side by side, in the order of labels, and where each label's begin and end."""
    order = np.argsort(label, kind="stable")
    cuts = np.flatnonzero(np.diff(label[order])) + 1
    return values[order].tolist(), [0, *cuts.tolist(), label.size]


def _check(what: str, values: Floats, good: NDArray[np.bool_], rule: str) -> None:
    """Raise for the first value that is not good."""
    if not good.all():
        number = int(np.argmin(good))
        raise ClusterError(f"{what} {number}: {values[number]:g} {rule}")
