"""How iterations spread when compute times jitter: in closed form, or simulated with drawn noise.

Model
    Compute of a rank takes a factor, drawn for every iteration and once for a whole run; a collective takes so much
    longer or shorter. Factors have median 1: log-normal ones, or quantiles as they were measured. In closed form an
    iteration is as slow as the slowest of p ranks, as if all of it were compute: the slowest of p factors lies below x
    with probability F(x)**p; runs' medians spread around its middle only as far as ranks differ. Simulated, the factors
    are drawn from a seeded generator, and slack hides what it really hides.

What it leaves out
    Slow phases: factors of one run are independent of each other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

from simgd.profile import Jitter
from simgd.schedule import Schedule
from simgd.soundness import Derived
from simgd.timing import Timing
from simgd.units import PS_PER_S

if TYPE_CHECKING:
    import numpy.typing as npt

#: A simulated spread: so many runs, each of so many iterations after the warm-up.
RUNS, ITERATIONS, WARM_UP = 8, 16, 3

#: A collective that is short of its usual time by more than it takes keeps this share of it.
LEAST_STRETCH = 0.1

#: What an interval of 90 % and its middle are.
PARTS = (0.05, 0.5, 0.95)

#: Up to so many ranks each is simulated by itself; more of them as arrays.
FEW_RANKS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Factors on the noiseless period: 5 %, 50 % and 95 % quantiles of one iteration; 5 and 95 % of a run's median."""

    middle: float = 1.0
    low: float = 1.0
    high: float = 1.0
    median_low: float = 1.0
    median_high: float = 1.0


def closed_form(jitter: Jitter | None, ranks: int) -> Spread:
    """Return the spread of the slowest of *ranks* ranks.

    >>> closed_form(None, 8)
    Spread(middle=1.0, low=1.0, high=1.0, median_low=1.0, median_high=1.0)
    """
    if jitter is None:
        return Spread()
    run_low, run_middle, run_high = (math.exp(jitter.rank_sigma * z) for z in _slowest_normal(ranks))
    if jitter.iteration:
        chances = [part ** (1 / ranks) for part in PARTS]
        low, middle, high = (run_middle * _quantile(jitter.iteration, chance) for chance in chances)
    else:
        sigma = math.hypot(jitter.iteration_sigma, jitter.rank_sigma)
        low, middle, high = (math.exp(sigma * z) for z in _slowest_normal(ranks))
    return Spread(
        middle=middle,
        low=low,
        high=high,
        median_low=middle * run_low / run_middle,
        median_high=middle * run_high / run_middle,
    )


def _slowest_normal(ranks: int) -> list[float]:
    """Return the 5 %, 50 % and 95 % quantiles of the largest of *ranks* standard normal numbers."""
    return [NormalDist().inv_cdf(part ** (1 / ranks)) for part in PARTS]


def _quantile(quantiles: Sequence[float], chance: float) -> float:
    """Return the quantile at *chance* of those at equal steps from 0 to 1, linear between them.

    >>> _quantile([1.0, 2.0, 4.0], 0.75)
    3.0
    """
    at = chance * (len(quantiles) - 1)
    below = min(int(at), len(quantiles) - 2)
    return quantiles[below] + (at - below) * (quantiles[below + 1] - quantiles[below])


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

    Raises ScheduleError if several collectives of more than `FEW_RANKS` ranks may be in flight.
    """
    if jitter is None:
        return Spread()
    import numpy as np

    generator = np.random.default_rng(seed)
    iterations, ops = WARM_UP + ITERATIONS, len(schedule.ops)

    def drawn(quantiles: Sequence[float], sigma: float, shape: tuple[int, int]) -> "npt.NDArray[np.float64]":
        if not quantiles:
            return np.exp(generator.normal(0.0, sigma, shape))
        return np.interp(generator.random(shape), np.linspace(0, 1, len(quantiles)), quantiles)

    def drawn_s(shape: tuple[int, int]) -> "npt.NDArray[np.float64]":
        quantiles = jitter.communication_s
        return drawn(quantiles, 0.0, shape) if quantiles else np.zeros(shape)

    # What takes no time is stretched by nothing.
    run_s = np.array([timing.ops[op.name].run_ps / PS_PER_S or math.inf for op in schedule.ops])
    times, medians = [], []
    for _ in range(RUNS):
        slowdowns = drawn((), jitter.rank_sigma, (1, ranks)) * drawn(
            jitter.iteration, jitter.iteration_sigma, (iterations, ranks)
        )
        stretches = np.maximum(1 + drawn_s((iterations, ops)) / run_s, LEAST_STRETCH)
        if ranks > FEW_RANKS:
            from simgd.ensemble import ensemble

            found = ensemble(schedule, derived, timing, slowdowns=slowdowns, stretches=stretches).iteration_ends_ps
        else:
            from simgd.simulator import iteration_ends_ps

            ends = iteration_ends_ps(
                schedule, derived, timing, slowdowns=slowdowns.tolist(), stretches=stretches.tolist()
            )
            found = np.array(ends)
        factors = np.diff(found[WARM_UP - 1 :].max(axis=1)) / period_ps
        times.append(factors)
        medians.append(np.median(factors))
    low, middle, high = np.quantile(np.concatenate(times), PARTS)
    median_low, median_high = np.quantile(medians, (0.05, 0.95))
    return Spread(
        middle=float(middle),
        low=float(low),
        high=float(high),
        median_low=float(median_low),
        median_high=float(median_high),
    )
