"""Fits times of operations by message size: straight lines, with the sizes at which a library switches between them.

Model
    Between two switches (eager and rendezvous, protocols, algorithms) an operation takes ``latency_s + nbytes *
    seconds_per_byte``. At a switch the time may jump, up or down.
    Errors are relative. A size costs what an error of its noise costs (of Laplace's distribution, whose best line goes
    through two of the sizes: all such lines are tried), but little more than half of what one more segment costs: so a
    bad size bends no line, and makes none. Of few sizes a single one may be all that shows a segment: there it costs
    twice that. A segment costs ``SEGMENT_COST * log(sizes)``: Schwarz's criterion for its latency, its slope and its
    place. The cheapest segmentation of all is found by dynamic programming.

    The noise of a size is the largest of three: what its repeats say of their median; what sizes miss the line between
    their neighbours by; and a floor, since medians of two sizes differ by more than their repeats know (alignment,
    slices, a slow minute).

What it leaves out
    Where between two sizes a switch lies nobody measured: it is put where both lines meet if they meet there, else in
    the middle, by factors, or so much later that no message takes less than it does at both sizes.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr

from simgd.errors import ClusterError, ProfileError
from simgd.network import Call, Network, at_link_rate
from simgd.profile import CollectiveKind, Curve, Fit, Operation, Origin, Profile, Sample, Segment

#: A repeat is an outlier beyond this many (modified) standard deviations of log time: Iglewicz and Hoaglin, 1993.
OUTLIER_SCORE = 3.5

#: Median absolute deviations of log time below this are taken as this, or repeats that a coarse clock makes equal would
#: leave every other one an outlier; nothing within 2.6 % of the median is one.
LEAST_DEVIATION = 0.005

#: Repeats without which no median is settled: the least and the largest of five hold the median 94 times in 100.
LEAST_REPEATS = 5

#: Relative noise (sigma) below which no size is believed; where nothing tells the spread of the repeats, that of one
#: run (`nccl_tests.RUN_UNCERTAINTY` is its 90 % interval).
LEAST_NOISE, ONE_RUN_NOISE = 0.01, 0.03

#: Cost of one more segment over log(sizes): Schwarz's criterion, with 1 each for its latency and its slope, and 3 for
#: where it begins, since that was searched for (Ninomiya, 2005). Of lines with normal noise 2 in 100 fall in two then,
#: with 3 instead of 5 it would be 20.
SEGMENT_COST = 5.0

MOST_SEGMENTS = 6

#: From so many sizes on a segment has three of them, else two; a bad size may be told from a segment; and the line
#: between neighbours tells the noise: three switches spoil six of the 13 sizes in between.
MANY_SIZES = 15

#: More sizes than these are thinned before lines are sought among them: time grows with the fifth power.
MOST_SIZES = 64

#: What no message is faster than, as a share of the fastest one that was measured: a line may not fall to 0.
LEAST_TIME_SHARE = 1e-9

_Numbers = NDArray[np.float64]


def sample(nbytes: float, seconds: Sequence[float]) -> Sample:
    """Return the median of *seconds*, its 95 % confidence interval, and how many of them are outliers.

    The interval lies between two of the repeats (order statistics, which assume nothing of their distribution); below
    six repeats it spans them all, which is less than 95 %. Outliers are counted, and kept: a median bears them.

    >>> sample(8, [3e-6, 1e-6, 2e-6])
    Sample(nbytes=8.0, seconds=2e-06, low_s=1e-06, high_s=3e-06, repeats=3, outliers=0)
    """
    times = _times(f"{nbytes:.0f} B", seconds)
    low, middle, high = _median(times)
    apart = np.abs(np.log(times / middle))
    deviation = max(float(np.median(apart)), LEAST_DEVIATION)
    # 0.6745 deviations of a normal distribution are half of it
    outliers = int(np.count_nonzero(0.6745 * apart > OUTLIER_SCORE * deviation))
    return Sample(nbytes=float(nbytes), seconds=middle, low_s=low, high_s=high, repeats=len(times), outliers=outliers)


def is_settled(seconds: Sequence[float], *, relative: float = 0.03) -> bool:
    """Say whether the confidence interval of the median of *seconds* is within *relative* of it, to both sides."""
    if len(seconds) < LEAST_REPEATS:
        return False
    low, middle, high = _median(_times("repeats", seconds))
    return high - low < 2 * relative * middle


def _times(where: str, seconds: Sequence[float]) -> _Numbers:
    times = np.sort(np.asarray(seconds, np.float64))
    if not times.size:
        raise ProfileError(f"{where}: has no times; one repeat or more is needed")
    for time in (float(times[0]), float(times[-1])):
        if not 0 < time < math.inf:
            raise ProfileError(f"{where}: a repeat took {time} s; it must be above 0 and finite")
    return times


def _median(ordered: _Numbers) -> tuple[float, float, float]:
    """Return the median between the ends of its 95 % confidence interval.

    The k-th of n times is above the true median if fewer than k of n fair coins fall on their tails.
    """
    n = len(ordered)
    below = int(np.searchsorted(bdtr(np.arange(n), n, 0.5), 0.025))
    low, high = (float(ordered[max(below - 1, 0)]), float(ordered[n - max(below, 1)]))
    return low, float(np.median(ordered)), high


def fit(
    kind: Operation,
    samples: Sequence[Sample],
    *,
    ranks: int,
    nodes: int,
    link_bytes_per_s: float,
    source: str,
    origin: Origin = "measured",
) -> Fit:
    """Return lines through *samples*, with how far they miss them, and sizes that they have not seen.

    `residual` is the largest relative error at a sample, `left_out` and `left_out_median` the largest and the median
    error at sizes that are left out in turn (of those between others), `extrapolation` the larger error at the
    smallest and the largest size, each predicted from the others. With two samples nothing can be left out: then these
    three are 0. The `uncertainty` joins the 90 % interval of the samples with the residual that 9 of 10 sizes keep, or
    the median error of those left out where that is more.

    Raises ProfileError if there are fewer than two sizes, or if one stands twice.
    """
    where = f"{kind} of {ranks} ranks"
    ordered = tuple(sorted(samples, key=lambda each: each.nbytes))
    _check(where, ordered)
    noise = noise_of(ordered)
    thinned = _thinned(len(ordered))
    sizes = np.array([ordered[at].nbytes for at in thinned])
    times = np.array([ordered[at].seconds for at in thinned])
    search = _Search(sizes, times, noise[thinned])
    segments = search.segments()
    errors = [abs(_at(segments, each.nbytes) / each.seconds - 1) for each in ordered]
    left_out: list[float] = []
    extrapolated: list[float] = []
    if len(sizes) > 2:
        for k in range(len(sizes)):
            error = abs(_at(search.segments_without(k), float(sizes[k])) / float(times[k]) - 1)
            (left_out if 0 < k < len(sizes) - 1 else extrapolated).append(error)
    unseen = float(np.median(left_out)) if left_out else 0.0
    spread = max(float(np.quantile(errors, 0.9)), unseen)
    return Fit(
        kind=kind,
        ranks=ranks,
        nodes=nodes,
        segments=segments,
        link_bytes_per_s=link_bytes_per_s,
        samples=ordered,
        residual=max(errors),
        left_out=max(left_out, default=0.0),
        left_out_median=unseen,
        extrapolation=max(extrapolated, default=0.0),
        origin=origin,
        source=source,
        uncertainty=min(0.99, math.hypot(spread, 1.645 * float(np.median(_own_noise(ordered, ONE_RUN_NOISE))))),
    )


def _check(where: str, ordered: Sequence[Sample]) -> None:
    if len(ordered) < 2:
        raise ProfileError(f"{where}: {len(ordered)} sizes were measured; a line needs two or more")
    for each, following in pairwise(ordered):
        if each.nbytes == following.nbytes:
            raise ProfileError(f"{where}: {each.nbytes:.0f} B stands twice; put its repeats into one sample")
    for each in ordered:
        if not (0 <= each.nbytes < math.inf and 0 < each.seconds < math.inf):
            took = f"{each.nbytes:.0f} B took {each.seconds} s"
            raise ProfileError(f"{where}: {took}; both must be finite and 0 or more, the time above 0")


def _own_noise(samples: Sequence[Sample], unknown: float) -> _Numbers:
    """Return the relative noise (sigma) of each median that its own repeats tell."""
    return np.array(
        [
            max(LEAST_NOISE, (each.high_s - each.low_s) / (2 * 1.96 * each.seconds))
            if each.repeats >= LEAST_REPEATS
            else unknown
            for each in samples
        ]
    )


def noise_of(samples: Sequence[Sample]) -> _Numbers:
    """Return the relative noise (sigma) of each of *samples*, which are in the order of their sizes; see above.

    A switch moves only the two sizes beside it off the line between their neighbours, so the median over all sizes
    knows little of switches.
    """
    if len(samples) < MANY_SIZES:
        return _own_noise(samples, ONE_RUN_NOISE)
    sizes = np.array([each.nbytes for each in samples])
    times = np.array([each.seconds for each in samples])
    share = (sizes[1:-1] - sizes[:-2]) / (sizes[2:] - sizes[:-2])
    missed = times[1:-1] - (1 - share) * times[:-2] - share * times[2:]
    alike = np.sqrt(times[1:-1] ** 2 + ((1 - share) * times[:-2]) ** 2 + (share * times[2:]) ** 2)
    return np.maximum(_own_noise(samples, LEAST_NOISE), float(np.median(np.abs(missed / alike))) / 0.6745)


def _thinned(count: int) -> list[int]:
    """Return the places of at most `MOST_SIZES` of *count* sizes, spread evenly, with both ends."""
    return [round(at) for at in np.linspace(0, count - 1, min(count, MOST_SIZES))]


class _Lines(NamedTuple):
    """The cheapest line of every segment, from a first place (row) to a last one (column)."""

    cost: _Numbers
    latency_s: _Numbers
    seconds_per_byte: _Numbers


class _Search:
    """Finds the cheapest segments of some sizes, and of all but one of them."""

    def __init__(self, sizes: _Numbers, times: _Numbers, noise: _Numbers) -> None:
        self.sizes, self.times, self.noise = sizes, times, noise
        count = len(sizes)
        many = count >= MANY_SIZES
        self.penalty = SEGMENT_COST * math.log(count)
        self.bad = self.penalty * (0.5 if many else 1.0)
        self.least = 3 if many else 2
        self.floor_s = LEAST_TIME_SHARE * float(times.min())
        first, second = np.triu_indices(count)
        apart = sizes[second] - sizes[first]
        slope = (times[second] - times[first]) / np.where(apart > 0, apart, 1.0)  # 0: flat, through one size
        rising = slope >= 0
        # those through late sizes come first: a segment that starts late needs no others
        order = np.argsort(-first[rising], kind="stable")
        self.first, self.slope = first[rising][order], slope[rising][order]
        self.latency = times[self.first] - self.slope * sizes[self.first]
        self.costs = self._costs(self.latency, self.slope)
        self.sums = [np.cumsum(self.costs[start:, : self._through(start)], axis=0) for start in range(count)]
        self.whole = _Lines(*(np.full((count, count), math.inf) for _ in range(3)))
        for start, edge in enumerate([0.0, *sizes[:-1]]):
            self._put(self.whole, start, start, edge, None)

    def segments(self) -> tuple[Segment, ...]:
        """Return the cheapest segments of all sizes."""
        return self._joined(np.arange(len(self.sizes)), self.whole)

    def segments_without(self, place: int) -> tuple[Segment, ...]:
        """Return the cheapest segments of all sizes but the one at *place*.

        It costs nothing then; lines through it still compete, but the cheapest one goes through two sizes that count.
        """
        kept = np.delete(np.arange(len(self.sizes)), place)
        lines = _Lines(*(found.copy() for found in self.whole))
        for start, edge in zip(range(place), [0.0, *self.sizes], strict=False):
            self._put(lines, start, place, edge, place)
        if place + 1 < len(self.sizes):
            self._put(lines, place + 1, place + 1, float(self.sizes[place - 1]) if place else 0.0, None)
        return self._joined(kept, lines)

    def _through(self, start: int) -> int:
        """Return how many of the lines go through sizes from *start* on only: they come first."""
        return int(np.searchsorted(-self.first, -start, side="right"))

    def _costs(self, latency: _Numbers, slope: _Numbers) -> _Numbers:
        """Return what each line (column) costs at each size (row): -2 log likelihood, and little more for a bad size.

        Costs are concave in the error, so that the best line goes through two of the sizes, or along a bound.
        """
        errors = (latency + slope * self.sizes[:, None]) / self.times[:, None] - 1
        cost = math.sqrt(8) * np.abs(errors) / self.noise[:, None]
        # It grows a little, lest all lines that miss a size by far be alike.
        return np.where(cost > self.bad, self.bad * (1 + 0.1 * np.log(np.maximum(cost / self.bad, 1.0))), cost)

    def _put(self, lines: _Lines, start: int, first: int, edge: float, without: int | None) -> None:
        """Put into *lines* those of the segments that begin at *start* and end at *first* or later.

        They hold from *edge* on, the size before them, and the size at place *without* costs them nothing.
        """
        through = self._through(start)
        latency, slope = self.latency[:through], self.slope[:through]
        sums = self.sums[start][first - start :]
        if without is not None:
            sums = sums - self.costs[without, :through]
        best = sums.argmin(axis=1)
        low = latency + slope * edge < self.floor_s
        if low[best].any():
            # Then the best one of those above the floor may be one that meets it at the edge.
            later = np.arange(start, len(self.sizes))[self.sizes[start:] > edge]
            steep = (self.times[later] - self.floor_s) / (self.sizes[later] - edge)
            latency, slope = np.append(latency, self.floor_s - steep * edge), np.append(slope, steep)
            bound = self._costs(latency[through:], steep)
            if without is not None:
                bound[without] = 0.0
            more = np.cumsum(bound[start:], axis=0)[first - start :]
            sums = np.concatenate([np.where(low, math.inf, sums), more], axis=1)
            best = sums.argmin(axis=1)
        lines.cost[start, first:] = sums[np.arange(len(best)), best]
        lines.latency_s[start, first:] = latency[best]
        lines.seconds_per_byte[start, first:] = slope[best]

    def _joined(self, kept: NDArray[np.intp], lines: _Lines) -> tuple[Segment, ...]:
        """Return the cheapest way to cover the sizes at places *kept* with segments."""
        count = len(kept)
        cost = np.full((count + 1, count + 1), math.inf)  # from a first place up to, but without, an end
        cost[:count, 1:] = lines.cost[np.ix_(kept, kept)]
        length = np.arange(count + 1) - np.arange(count + 1)[:, None]
        cost[length < self.least] = math.inf
        covered, total = np.full(count + 1, math.inf), []
        covered[0] = 0.0
        starts = []
        for _ in range(MOST_SEGMENTS):
            joined = covered[:, None] + cost
            starts.append(joined.argmin(axis=0))
            covered = joined.min(axis=0)
            total.append(covered[-1] + self.penalty * len(starts))
        found: list[tuple[int, int]] = []
        end = count
        for row in reversed(starts[: int(np.argmin(total)) + 1]):
            found.insert(0, (int(row[end]), end - 1))
            end = int(row[end])
        places = [(int(kept[first]), int(kept[last])) for first, last in found]
        those = [
            Segment(
                from_bytes=0.0, latency_s=float(lines.latency_s[at]), seconds_per_byte=float(lines.seconds_per_byte[at])
            )
            for at in places
        ]
        made = those[:1]
        for (_, last), (first, _), line, following in zip(places, places[1:], those, those[1:], strict=False):
            switch = _switch(line, following, float(self.sizes[last]), float(self.sizes[first]))
            made.append(msgspec.structs.replace(following, from_bytes=switch))
        return tuple(made)


class LeftOut(NamedTuple):
    """How far the network is off on a number of ranks that its profile says nothing of: relative errors by size."""

    ranks: int
    nodes: int
    link_bytes_per_s: float
    largest: float
    median: float


def left_out_ranks(profile: Profile, kind: CollectiveKind) -> tuple[LeftOut, ...]:
    """Return the errors on each number of ranks whose curves and fits of *kind* are left out of *profile*.

    A fit is asked for at its own rate of the interconnect (0: the cluster's). Where the profile has no other number of
    ranks, the model alone is asked.

    Raises ClusterError if the profile's cluster has no place for ranks that were measured.
    """
    found = []
    entries: list[Curve | Fit] = [*profile.curves, *profile.fits]
    for entry in sorted(entries, key=lambda entry: (entry.ranks, entry.nodes)):
        if entry.kind != kind or entry.ranks == 1:
            continue
        about = (kind, entry.ranks, entry.nodes)
        others = msgspec.structs.replace(
            profile,
            curves=tuple(each for each in profile.curves if (each.kind, each.ranks, each.nodes) != about),
            fits=tuple(each for each in profile.fits if (each.kind, each.ranks, each.nodes) != about),
        )
        rate = entry.link_bytes_per_s if isinstance(entry, Fit) else 0.0
        network = Network(at_link_rate(profile.cluster, rate), others)
        devices = network.spread(entry.ranks, entry.nodes)
        if devices is None:
            where = f"cluster {profile.cluster.name!r}: has no place for {entry.ranks} ranks on {entry.nodes} nodes"
            raise ClusterError(f"{where}, for which the profile has times")
        points = entry.points if isinstance(entry, Curve) else [(each.nbytes, each.seconds) for each in entry.samples]
        errors = [
            abs(network.demand(Call(kind, round(nbytes), entry.ranks, devices)).solo_s / seconds - 1)
            for nbytes, seconds in points
        ]
        if errors:
            found.append(LeftOut(entry.ranks, entry.nodes, rate, max(errors), float(np.median(errors))))
    return tuple(found)


def _switch(line: Segment, following: Segment, last: float, first: float) -> float:
    """Return the size from which *following* holds, between the *last* size of *line* and its own *first* one."""
    steeper = following.seconds_per_byte - line.seconds_per_byte
    if steeper:
        meet = (line.latency_s - following.latency_s) / steeper
        if last * (1 - 1e-9) <= meet <= first:
            return max(meet, math.nextafter(last, first))
    middle = math.sqrt(last * first) if last else first
    beside_s = min(_of_line(line, last), _of_line(following, first))
    if _of_line(following, middle) < beside_s:
        return min(first, (beside_s - following.latency_s) / following.seconds_per_byte)
    return middle


def _of_line(line: Segment, nbytes: float) -> float:
    return line.latency_s + nbytes * line.seconds_per_byte


def _at(segments: Sequence[Segment], nbytes: float) -> float:
    return _of_line([each for each in segments if each.from_bytes <= nbytes][-1], nbytes)


def least_costs(rows: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """Return what one of each column costs, none below 0: least squares of the seconds that the rows take."""
    from scipy.optimize import nnls

    columns, target = np.array(rows), np.array(seconds)
    scale = columns.max(axis=0)
    scale[scale == 0] = 1.0
    found, _ = nnls(columns / scale, target)
    return [float(each) for each in found / scale]


def quantiles(factors: Sequence[float]) -> tuple[float, ...]:
    """Return the quantiles at 0, 0.5 .. 100 %, to five digits: fine enough that one outlier is no tail of 5 %."""
    if not factors:
        return ()
    return tuple(float(f"{each:.5g}") for each in np.quantile(factors, np.linspace(0, 1, 201)))
