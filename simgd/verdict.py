"""The sentence under the table: what to run, and above or below which link rate that changes.

Schedules of staleness 0 give the same result as `sync`; a stale one is worth it only if it needs fewer iterations more
than it saves, which nobody here predicts: so the verdict states that break-even.
"""

from collections.abc import Sequence

from simgd.explain import binding_links
from simgd.job import Job
from simgd.predict import Machine, Prediction
from simgd.pricing import WhatIf
from simgd.schedule import Schedule
from simgd.schedules import parse
from simgd.units import show_rate

#: Two schedules count as equally fast within this share.
SAME = 0.005

#: The crossing point is looked for up to these factors on the link rate, and narrowed to this ratio.
_LEAST, _MOST = 1 / 8, 8.0
_NARROW = 1.05

_LINKS = {"nvlink": "NVLink", "pcie": "PCIe link"}


def verdict(
    predictions: Sequence[Prediction],
    machine: Machine,
    job: Job,
    schedules: Sequence[str | Schedule],
) -> str:
    """Return the verdict for the largest number of ranks among *predictions*."""
    most = max(prediction.ranks for prediction in predictions)
    rows = [prediction for prediction in predictions if prediction.ranks == most]
    base = rows[0].baseline
    parts = []
    exact = _of_same_result(rows)
    if exact is not None:
        itself = exact.schedule == base
        parts.append(
            f"same result: {exact.schedule}" + ("" if itself else f", {_over(exact.speedup_over_baseline, base)}")
        )
    for staleness in sorted({row.staleness for row in rows} - {0}):
        best = min((row for row in rows if row.staleness == staleness), key=lambda row: row.iteration_s)
        gain = exact.iteration_s / best.iteration_s if exact is not None else best.speedup_over_baseline
        text = f"staleness {staleness}: {best.schedule}, {_over(best.speedup_over_baseline, base)}"
        if exact is not None:
            text += ("" if exact.schedule == base else f", {_over(gain, exact.schedule)}") + (
                f": worth it if it needs fewer than {gain:.2f}x the iterations" if gain > 1 + SAME else ": not worth it"
            )
        parts.append(text)
    fastest = min(rows, key=lambda row: row.iteration_s)
    chosen = exact if exact is not None and exact.iteration_s <= fastest.iteration_s * (1 + SAME) else fastest
    parts.append(_crossing(rows, chosen, machine, job, schedules))
    unfit = [row.schedule for row in rows if not row.memory_fits]
    if unfit:
        parts.append(f"too large for the device's memory: {', '.join(unfit)}")
    return "; ".join(part for part in parts if part)


def _of_same_result(rows: Sequence[Prediction]) -> Prediction | None:
    """Return the fastest row without staleness; what people run anyway, unless something is really faster."""
    fresh = [row for row in rows if row.staleness == 0]
    if not fresh:
        return None
    fastest = min(fresh, key=lambda row: row.iteration_s)
    usual = (row for row in fresh if row.schedule == row.baseline)
    return next((row for row in usual if row.iteration_s <= fastest.iteration_s * (1 + SAME)), fastest)


def _over(gain: float, base: str) -> str:
    return f"{gain:.2f}x over {base}"


def _crossing(
    rows: Sequence[Prediction], now: Prediction, machine: Machine, job: Job, schedules: Sequence[str | Schedule]
) -> str:
    """Return the rate of the binding kind of link from which on another schedule than *now* is the fastest."""
    ranks = rows[0].ranks
    if ranks == 1 or len(schedules) < 2:
        return ""
    studies = {row.schedule: machine.study(schedule, job, ranks) for row, schedule in zip(rows, schedules, strict=True)}
    kind = binding_links(studies[rows[0].schedule])
    by_name = dict(zip(studies, schedules, strict=True))

    def period(name: str, factor: float) -> float:
        schedule, what_if = by_name[name], WhatIf(links={kind: factor})
        if isinstance(schedule, str) and parse(schedule).needs_delays:
            return machine.study(schedule, job, ranks, what_if).period_s
        return studies[name].period_if(what_if)

    for end in (_LEAST, _MOST):
        periods = {name: period(name, end) for name in studies}
        other = min(periods, key=lambda name: periods[name])
        if periods[other] > periods[now.schedule] * (1 - SAME):
            continue
        same, changed = 1.0, end
        while max(same / changed, changed / same) > _NARROW:
            middle = (same * changed) ** 0.5
            if period(other, middle) < period(now.schedule, middle) * (1 - SAME):
                changed = middle
            else:
                same = middle
        side = "above" if end > 1 else "below"
        return f"the order changes {side} {_rate(machine, kind, changed)}: then {other} is the fastest"
    return f"{now.schedule} stays the one to take from 1/8 to 8 times today's {_rate(machine, kind, 1.0)}"


def _rate(machine: Machine, kind: str, factor: float) -> str:
    """Return the nominal rate of one link of *kind*, *factor* times as fast."""
    interconnect = machine.cluster.interconnect
    if interconnect is not None and kind == interconnect.kind:
        return f"{8e-9 * interconnect.bandwidth * factor:.0f} Gb/s per NIC"
    rates = [float(link.bandwidth) for link in machine.cluster.links if link.kind == kind]
    return f"{show_rate(max(rates, default=0.0) * factor)} per {_LINKS.get(kind, f'{kind} link')}"
