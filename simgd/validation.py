"""Predictions beside measurements: how far apart, whether in the right order, and how often inside the interval.

Model
    A comparison is of one workload under one schedule on one machine; runs of it in several processes count as one,
    whose time is the median of their medians and whose noise is half the spread of these over it. What counts in the
    figures was held out from calibration and repeats to 2 %; the rest is listed. An interval covers single iterations.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from statistics import mean, median
from typing import Literal

import msgspec

from simgd.errors import FileError
from simgd.files import Document, Value
from simgd.profile import Origin

#: Noisier comparisons than this are listed and not counted; they must lie within `NOISY_ERROR` plus their noise.
MOST_NOISE, NOISY_ERROR = 0.02, 0.05

#: Half the width of the interval of a measured time that only one run tells.
ONE_RUN_NOISE = 0.01

#: Exposed communication is compared where it is at least this share of the iteration.
LEAST_EXPOSED = 0.02

#: Iterations from which on an interval of 90 % may be judged by one comparison alone.
ENOUGH_ITERATIONS = 200


What = Literal["run", "wait before", "issue"]


class Residual(Value, frozen=True, kw_only=True, omit_defaults=False):
    """An op of an iteration, the wait before it on its lane, or its issuing by the host: predicted and measured seconds
    on the slowest rank."""

    op: str
    lane: str
    what: What
    predicted_s: float
    measured_s: float


class Comparison(Value, frozen=True, kw_only=True, omit_defaults=False):
    """Predicted and measured seconds of an iteration of one case; see the module's text.

    `covered` is the share of the counted `iterations` inside the predicted interval of one; `exposed_error` that of
    what an iteration takes beyond compute alone.
    """

    workload: str
    schedule: str
    ranks: int
    backend: str
    compute: str
    batch_per_rank: int
    cluster: str
    profile: str
    runs: int
    predicted_s: float
    measured_s: float
    measured_low_s: float
    measured_high_s: float
    relative_error: float
    noise: float | None
    iteration_low_s: float
    iteration_high_s: float
    iterations: int
    covered: float
    compute_predicted_s: float
    compute_measured_s: float
    exposed_predicted_s: float
    exposed_measured_s: float
    exposed_error: float | None
    held_out: bool
    counted: bool
    within: bool
    origin: Origin
    extrapolated: bool
    residuals: tuple[Residual, ...] = ()

    @property
    def severity(self) -> tuple[bool, float]:
        """By which the worst comparison is found: one that counts, then the largest error."""
        return self.counted, abs(self.relative_error)


class Pair(Value, frozen=True, kw_only=True):
    """Two schedules of one workload that were measured in another order than predicted."""

    workload: str
    cluster: str
    backend: str
    faster: str
    slower: str


class Validation(Document, frozen=True, kw_only=True, tag="simgd validated", omit_defaults=False):
    """All comparisons, and what they amount to; None where nothing counts.

    `coverage_90` is the share of the `iterations` inside their intervals, `coverage_90_of_long` the same of those
    `enough_iterations` comparisons alone that have `ENOUGH_ITERATIONS` or more.
    """

    comparisons: tuple[Comparison, ...]
    mean_abs_error: float | None
    median_abs_error: float | None
    max_abs_error: float | None
    rank_agreement: float | None
    coverage_90: float | None
    coverage_90_of_long: float | None
    mean_abs_exposed_error: float | None
    pairs: int
    wrong_pairs: tuple[Pair, ...]
    counted: int
    noisy: int
    noisy_within: int
    iterations: int
    enough_iterations: int

    @property
    def worst(self) -> Comparison | None:
        """The comparison with the largest error of those that say what was mispredicted."""
        told = (each for each in self.comparisons if each.residuals)
        return max(told, key=lambda each: each.severity, default=None)


def validated(comparisons: Sequence[Comparison]) -> Validation:
    """Return the figures of *comparisons*; raise FileError where there are none."""
    if not comparisons:
        raise FileError("validate: there are no runs to compare")
    counted = [each for each in comparisons if each.counted]
    errors = [abs(each.relative_error) for each in counted]
    exposed = [abs(each.exposed_error) for each in counted if each.exposed_error is not None]
    noisy = [each for each in comparisons if each.held_out and not each.counted]
    long = [each for each in counted if each.iterations >= ENOUGH_ITERATIONS]
    pairs = list(_pairs(counted))
    wrong = tuple(
        Pair(workload=a.workload, cluster=a.cluster, backend=a.backend, faster=a.schedule, slower=b.schedule)
        for a, b in pairs
        if a.predicted_s >= b.predicted_s
    )
    return Validation(
        comparisons=tuple(comparisons),
        mean_abs_error=mean(errors) if errors else None,
        median_abs_error=median(errors) if errors else None,
        max_abs_error=max(errors) if errors else None,
        rank_agreement=1 - len(wrong) / len(pairs) if pairs else None,
        coverage_90=_coverage(counted),
        coverage_90_of_long=_coverage(long),
        mean_abs_exposed_error=mean(exposed) if exposed else None,
        pairs=len(pairs),
        wrong_pairs=wrong,
        counted=len(counted),
        noisy=len(noisy),
        noisy_within=sum(each.within for each in noisy),
        iterations=sum(each.iterations for each in counted),
        enough_iterations=len(long),
    )


def _coverage(comparisons: Sequence[Comparison]) -> float | None:
    """Return the share of all their iterations that lie inside the interval, each iteration counted once."""
    iterations = sum(each.iterations for each in comparisons)
    return sum(each.covered * each.iterations for each in comparisons) / iterations if iterations else None


def _pairs(comparisons: Sequence[Comparison]) -> Iterator[tuple[Comparison, Comparison]]:
    """Yield pairs of schedules, the one that was measured faster first, whose measured intervals do not overlap."""
    by_case: dict[tuple[object, ...], list[Comparison]] = {}
    for each in comparisons:
        case = (each.workload, each.batch_per_rank, each.cluster, each.profile, each.backend, each.compute, each.ranks)
        by_case.setdefault(case, []).append(each)
    for alike in by_case.values():
        for a, b in combinations(alike, 2):
            if _interval(a)[1] < _interval(b)[0]:
                yield a, b
            elif _interval(b)[1] < _interval(a)[0]:
                yield b, a


def _interval(each: Comparison) -> tuple[float, float]:
    if each.noise is not None:
        return each.measured_low_s, each.measured_high_s
    return each.measured_s * (1 - ONE_RUN_NOISE), each.measured_s * (1 + ONE_RUN_NOISE)


def with_residuals(comparison: Comparison, residuals: Sequence[Residual]) -> Comparison:
    """Return the comparison with what was mispredicted in it."""
    return msgspec.structs.replace(comparison, residuals=tuple(residuals))
