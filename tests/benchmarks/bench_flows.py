"""How fast flows are simulated: run `python tests/benchmarks/bench_flows.py`.

Prints the median processor time of `RUNS` runs of each, the flows that end in a second, and the target where there is
one. Reading the `Flow` values is part of it, and stands beside it as a share. Then the same events solved with lists
and with arrays, from which `simgd.flows.FEW` is taken. One thread does it all, so what else runs on a shared machine
counts little.
"""

import random
import time
from collections.abc import Callable, Sequence

import bench_predict

from simgd import flows as engine
from simgd.flows import Flow, ends, fair_rates

RUNS = 5

Case = tuple[Sequence[Flow], Sequence[float]]

#: Cables, and those between the switches of 8 hosts each, in bytes per second.
CABLE, TRUNK = 50e9, 100e9


def median_s(work: Callable[[], object]) -> float:
    """Return the median processor time of *work* after one run that is not counted."""
    return bench_predict.median_s(work, RUNS, time.process_time)


def steps(hosts: int, count: int) -> Case:
    """Return steps in which every host sends to another, some over shared trunks, after all of the step before."""
    switches = -(-hosts // 8)
    found = []
    for step in range(count):
        before = tuple(range((step - 1) * hosts, step * hosts)) if step else ()
        for source in range(hosts):
            target = (source + 1 + step % (hosts - 1)) % hosts
            trunks = (2 * hosts + source // 8, 2 * hosts + switches + target // 8)
            route = (source, *(trunks if source // 8 != target // 8 else ()), hosts + target)
            found.append(Flow(route=route, nbytes=1e6, latency_s=1e-6, after=before))
    return found, [CABLE] * 2 * hosts + [TRUNK] * 2 * switches


def all_to_all(hosts: int) -> Case:
    """Return a flow from every host to every other, at once: one group."""
    pairs = [(a, b) for a in range(hosts) for b in range(hosts) if a != b]
    return [Flow(route=(a, hosts + b), nbytes=1e6) for a, b in pairs], [CABLE] * 2 * hosts


def apart(count: int) -> Case:
    """Return flows that share nothing: as many groups as flows."""
    return [Flow(route=(number, count + number), nbytes=1e6) for number in range(count)], [CABLE] * 2 * count


def incast(at_once: int, count: int) -> Case:
    """Return flows of random sizes on one link, *at_once* at a time: one ends, another starts."""
    rng = random.Random(0)
    sizes = [rng.uniform(1e6, 2e6) for _ in range(count)]
    return [Flow(route=(0,), nbytes=size, after=chain(number, at_once)) for number, size in enumerate(sizes)], [CABLE]


def lone(at_once: int, count: int, latency_s: float = 0.0) -> Case:
    """Return flows of random sizes on 3 of 2 n random links, *at_once* at a time: one ends, and another starts.

    With a latency these are two events; nearly all flows are linked, and solved at each.
    """
    rng = random.Random(0)
    found = [
        Flow(
            route=tuple(rng.sample(range(2 * at_once), 3)),
            nbytes=rng.uniform(1e6, 2e6),
            after=chain(number, at_once),
            latency_s=latency_s * rng.random(),
        )
        for number in range(count)
    ]
    return found, [rng.uniform(1.0, 2.0) * CABLE for _ in range(2 * at_once)]


def chain(number: int, at_once: int) -> tuple[int, ...]:
    """Return the flow that number waits for, so that *at_once* are on their way."""
    return (number - at_once,) if number >= at_once else ()


def with_few(few: int, case: Case) -> float:
    """Return the median time of a case solved with lists up to *few* flows."""
    usual, engine.FEW = engine.FEW, few
    try:
        return median_s(lambda: ends(*case))
    finally:
        engine.FEW = usual


def main() -> None:
    """Print the tables."""
    cases: list[tuple[str, Case, int | None]] = [
        ("100 steps of 100 flows", steps(100, 100), 100_000),
        ("10 steps of 1,000 flows", steps(1000, 10), 100_000),
        ("2 steps of 16,384 flows", steps(16384, 2), 100_000),
        ("all-to-all of 100 hosts at once", all_to_all(100), 100_000),
        ("20,000 flows that share nothing, at once", apart(20000), 100_000),
        ("lone events, 8 flows touched, ends and starts together", lone(8, 4000), 10_000),
        ("lone events, 16 flows touched, ends and starts together", lone(16, 4000), 10_000),
        ("lone events, 32 flows touched, ends and starts together", lone(32, 4000), 10_000),
        ("lone events, 32 flows touched, ends and starts apart", lone(32, 4000, 1e-6), 10_000),
        ("lone events, 32 flows touched, all on one link", incast(32, 4000), 10_000),
        ("lone events, 1,000 flows touched", lone(1000, 2000), None),
    ]
    print(f"{'median of ' + str(RUNS):60} {'flows':>7} {'time':>10} {'ends/s':>10} {'target':>8} {'reading':>8}")
    for name, (flows, capacity), target in cases:
        seconds = median_s(lambda flows=flows, capacity=capacity: ends(flows, capacity))  # type: ignore[misc]
        reading = median_s(lambda flows=flows, capacity=capacity: engine._Run(flows, capacity))  # type: ignore[misc]
        goal = f"{target:,}" if target else ""
        print(
            f"{name:60} {len(flows):7,} {seconds * 1e3:7.1f} ms {len(flows) / seconds:10,.0f} {goal:>8} "
            f"{reading / seconds:8.0%}"
        )
    flows, capacity = all_to_all(100)
    routes = [flow.route for flow in flows]
    print(f"fair_rates of {len(routes):,} routes: {median_s(lambda: fair_rates(routes, capacity)) * 1e3:.1f} ms")
    print()
    print(f"{'a lone event that touches':28} {'lists':>10} {'arrays':>10}")
    for at_once in (8, 16, 32, 64, 96, 128, 192, 256):
        case = lone(at_once, 600)
        lists, arrays = (with_few(few, case) / len(case[0]) * 1e6 for few in (10**9, 0))
        print(f"{f'{at_once} flows on {2 * at_once} links':28} {lists:7.0f} us {arrays:7.0f} us")


if __name__ == "__main__":
    main()
