"""Why an iteration takes as long as it does: the critical cycle, and what would move it.

The critical cycle is exact without interference; the new periods of the what-ifs are simulated with it.
"""

from collections.abc import Sequence

from simgd import units
from simgd.costs import host
from simgd.files import Value
from simgd.predict import Studied, shares
from simgd.pricing import Part, WhatIf
from simgd.profile import Entry, Host, Origin
from simgd.topology import Cluster

#: How much better each what-if makes its resource.
BETTER = 1.1


class CycleStep(Value, frozen=True, kw_only=True, omit_defaults=False):
    """One op on the critical cycle: `what` is "issue" (host time) or "run"; `lag` counts the iterations it waits."""

    op: str
    what: str
    seconds: float
    lag: int


class Change(Value, frozen=True, kw_only=True, omit_defaults=False):
    """A resource made 10 % better, and the period then."""

    resource: str
    iteration_s: float
    gain: float


class LinkUse(Value, frozen=True, kw_only=True, omit_defaults=False):
    """How busy a directed link is, "a>b" ("a-b": both directions of a half-duplex one).

    As a share of the iteration, and of the time that the collectives take, each alone. Equal nodes' links are one; a
    NIC's cable leads to "network".
    """

    link: str
    busy: float
    busy_in_collectives: float


class Explanation(Value, frozen=True, kw_only=True, omit_defaults=False):
    """Times in seconds; `critical_cycle_s` is the period without interference, a lower bound of `iteration_s`."""

    workload: str
    cluster: str
    ranks: int
    schedule: str
    iteration_s: float
    critical_cycle_s: float
    interference_s: float
    shares: dict[Part, float]
    cycle: tuple[CycleStep, ...]
    changes: tuple[Change, ...]
    path: str
    algorithms: tuple[str, ...]
    links: tuple[LinkUse, ...]
    origins: dict[Part, Origin]
    repeats: bool
    steady_iterations: int
    warm_up_iterations: int


def link_kinds(cluster: Cluster) -> tuple[str, ...]:
    """Return the kinds of links that a collective on *cluster* could cross."""
    kinds = dict.fromkeys([str(link.kind) for link in cluster.links])
    if cluster.interconnect is not None and (cluster.nodes > 1 or cluster.device.kind == "cpu"):
        kinds[cluster.interconnect.kind] = None
    return tuple(kinds)


def binding_links(study: Studied) -> str:
    """Return the kind of links that the collectives wait for: they differ most between slower and faster ones."""

    def swing(kind: str) -> float:
        slow, fast = (
            study.prices.price(study.schedule, WhatIf(links={kind: factor})).collective_s
            for factor in (1 / BETTER, BETTER)
        )
        return slow - fast

    # Of several that bind alike the one that the network names as its path.
    kinds = sorted(link_kinds(study.prices.cluster), key=lambda kind: kind != study.priced.path)
    return max(kinds, key=swing, default=study.priced.path)


def link_uses(study: Studied) -> tuple[LinkUse, ...]:
    """Return how busy the collectives of *study* keep each link, the busiest first."""
    busy_s: dict[str, float] = {}
    whole_s = 0.0
    for time in study.priced.timing.ops.values():
        if time.use:
            whole_s += time.run_ps / units.PS_PER_S
            moving_s = (time.run_ps - time.latency_ps) / units.PS_PER_S
            for link, share in time.use.items():
                busy_s[link] = busy_s.get(link, 0.0) + share * moving_s
    if not whole_s:
        return ()
    return tuple(
        LinkUse(link=link, busy=seconds / study.period_s, busy_in_collectives=seconds / whole_s)
        for link, seconds in sorted(busy_s.items(), key=lambda item: -item[1])
    )


def directed(links: Sequence[LinkUse], cluster: Cluster) -> dict[tuple[str, str], float]:
    """Return how busy each direction of each link of *cluster* is while collectives run, by its ends."""
    # a vertex may have a dash in its name
    both_ways = {"-".join(link.ends): link.ends for link in cluster.links}
    found: dict[tuple[str, str], float] = {}
    for use in links:
        a, arrow, b = use.link.partition(">")
        if not arrow:
            a, b = both_ways[use.link]
            found[b, a] = use.busy_in_collectives
        found[a, b] = use.busy_in_collectives
    return found


def host_kinds(costs: Host) -> tuple[str, ...]:
    """Return the kinds of host work that cost anything."""
    fields = [name for name in Host.__struct_fields__ if name not in Entry.__struct_fields__]
    return tuple(name for name in fields if getattr(costs, name))


def explain(study: Studied) -> Explanation:
    """Return what binds *study*, and the period with each kind of link, the device and each host cost 10 % better."""
    cycle = study.graph().critical_cycle()
    bound = float(cycle.period_ps) / units.PS_PER_S
    cluster = study.prices.cluster
    resources = {f"{kind} links": WhatIf(links={kind: BETTER}) for kind in link_kinds(cluster)} | {
        f"device ({cluster.device.name})": WhatIf(device=BETTER)
    }
    resources |= {
        f"host: {kind.replace('_', ' ')}": WhatIf(host={kind: BETTER})
        for kind in host_kinds(host(study.prices.profile))
    }
    changes = []
    for resource, what_if in resources.items():
        period = study.period_if(what_if)
        changes.append(Change(resource=resource, iteration_s=period, gain=study.period_s / period - 1))
    changes.sort(key=lambda change: change.iteration_s)
    return Explanation(
        workload=study.prices.job.workload.name,
        cluster=cluster.name,
        ranks=study.prices.ranks,
        schedule=study.schedule.name,
        iteration_s=study.period_s,
        critical_cycle_s=bound,
        interference_s=study.period_s - bound,
        shares=shares(study, cycle),
        cycle=tuple(
            CycleStep(
                op=step.op,
                what="issue" if step.issue else "run",
                seconds=step.cost_ps / units.PS_PER_S,
                lag=step.lag,
            )
            for step in cycle.steps
            if step.cost_ps or step.lag
        ),
        changes=tuple(changes),
        path=study.priced.path,
        algorithms=study.priced.algorithms,
        links=link_uses(study),
        origins=dict(study.priced.origins),
        repeats=study.steady.repeats,
        steady_iterations=study.steady.iterations,
        warm_up_iterations=study.steady.warm_up,
    )
