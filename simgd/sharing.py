"""Fair shares of resources among those who use them at the same time (max-min, by progressive filling).

Model
    All rates grow together; the first resource that is full fixes the rates of all that use it, and the others go on.
    Nobody is faster than when alone.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction


def fair_rates(uses: Sequence[Mapping[str, float]]) -> list[Fraction]:
    """Return, for each user, the share of its own speed that it gets.

    *uses* gives for each user the share of each resource that it takes when alone.

    >>> fair_rates([{"nic": 1.0}, {"nic": 1.0}, {"nvlink": 0.5}])
    [Fraction(1, 2), Fraction(1, 2), Fraction(1, 1)]
    """
    shares = [{name: Fraction(share).limit_denominator(1000) for name, share in use.items()} for use in uses]
    rates = [Fraction(0)] * len(uses)
    growing = list(range(len(uses)))
    while growing:
        room: dict[str, Fraction] = {}
        for name in dict.fromkeys(name for i in growing for name, share in shares[i].items() if share):
            used = sum((rates[i] * shares[i].get(name, 0) for i in range(len(uses))), start=Fraction(0))
            load = sum((shares[i].get(name, Fraction(0)) for i in growing), start=Fraction(0))
            room[name] = (1 - used) / load
        step = min([*room.values(), *(1 - rates[i] for i in growing)])
        for i in growing:
            rates[i] += step
        full = {name for name, left in room.items() if left == step}
        growing = [i for i in growing if rates[i] < 1 and not any(shares[i].get(name) for name in full)]
    return rates
