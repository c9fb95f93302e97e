"""How iterations spread when compute times jitter: in closed form, or simulated with drawn noise.

Model
    A profile's jitter is two log-normal factors on a rank's compute, each with median 1: one drawn for every iteration
    and one for a whole run. In closed form an iteration is as slow as the slowest of p ranks, as if all of it were
    compute: the slowest of p factors lies below x with probability F(x)**p; runs' medians spread around its middle
    only as far as ranks differ. Simulated, the factors are drawn from a seeded generator, and slack hides what it
    really hides.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

from simgd.profile import Jitter
from simgd.schedule import Schedule
from simgd.soundness import Derived
from simgd.timing import Timing

#: A simulated spread: so many runs, each of so many iterations after the warm-up.
RUNS, ITERATIONS, WARM_UP = 8, 12, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Factors on the noiseless period: 5 % and 95 % quantiles of one iteration, and of a run's median."""

    low: float = 1.0
    high: float = 1.0
    median_low: float = 1.0
    median_high: float = 1.0


def closed_form(jitter: Jitter | None, ranks: int) -> Spread:
    """Return the spread of the slowest of *ranks* ranks.

    >>> closed_form(None, 8)
    Spread(low=1.0, high=1.0, median_low=1.0, median_high=1.0)
    """
    if jitter is None:
        return Spread()
    low, middle, high = _slowest(math.hypot(jitter.iteration_sigma, jitter.rank_sigma), ranks)
    run_low, run_middle, run_high = _slowest(jitter.rank_sigma, ranks)
    return Spread(
        low=low, high=high, median_low=middle * run_low / run_middle, median_high=middle * run_high / run_middle
    )


def _slowest(sigma: float, ranks: int) -> tuple[float, float, float]:
    """Return the 5 %, 50 % and 95 % quantiles of the slowest of *ranks* factors."""
    low, middle, high = (math.exp(sigma * NormalDist().inv_cdf(part ** (1 / ranks))) for part in (0.05, 0.5, 0.95))
    return low, middle, high


def simulated(
    schedule: Schedule,
    derived: Derived,
    timing: Timing,
    jitter: Jitter | None,
    *,
    ranks: int,
    period_ps: float,
    seed: int,
) -> Spread:
    """Return the spread over `RUNS` runs whose noise is drawn from the generator of *seed*.

    Raises ScheduleError if several collectives may be in flight.
    """
    if jitter is None:
        return Spread()
    import numpy as np

    from simgd.ensemble import ensemble

    generator = np.random.default_rng(seed)
    times, medians = [], []
    for _ in range(RUNS):
        each_run = generator.normal(0.0, jitter.rank_sigma, (1, ranks))
        each_iteration = generator.normal(0.0, jitter.iteration_sigma, (WARM_UP + ITERATIONS, ranks))
        found = ensemble(schedule, derived, timing, slowdowns=np.exp(each_run + each_iteration))
        ends = found.iteration_ends_ps.max(axis=1)[WARM_UP - 1 :]
        factors = np.diff(ends) / period_ps
        times.append(factors)
        medians.append(np.median(factors))
    low, high = np.quantile(np.concatenate(times), (0.05, 0.95))
    median_low, median_high = np.quantile(medians, (0.05, 0.95))
    return Spread(low=float(low), high=float(high), median_low=float(median_low), median_high=float(median_high))
