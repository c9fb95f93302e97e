"""Flows on links as plain data, for two simulators that share nothing: `simgd.flows` and SimGrid.

Model
    A case lists the capacity of each resource and the flows that cross them, field by field what `simgd.flows.Flow`
    takes. Collectives are point-to-point rounds: a rank sends in a round once its own send and what it receives in the
    round before have ended.
    `duplex` pairs the two directions of a link, so that SimGrid can build a link of two directions; a resource in no
    pair is one link that every direction shares (a bus, half duplex).
    `latency` says who pays the latency of a route. "route": SimGrid does, on the route; all latencies of the case are
    equal. "waited": the sender waits before it sends over a route of no latency. SimGrid weighs competing flows by the
    inverse of their latency, so unequal ones are no longer max-min fair (`unequal_latencies`).

Left out
    Messages of no bytes and routes of no links, which load nothing; windows, factors and acknowledgements of TCP.

It needs only the standard library, since SimGrid may belong to another Python than the tests.
"""

import hashlib
import json
import random
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

DGX1 = Path(__file__).parents[2] / "simgd" / "data" / "clusters" / "dgx1-p100.toml"

GB = 1e9
MB = 10**6
KB = 10**3
US = 1e-6


@dataclass(frozen=True, kw_only=True)
class Case:
    """One list of flows and the links they share; see the module for `duplex` and `latency`."""

    name: str
    kind: str
    latency: Literal["route", "waited"]
    capacity: list[float]
    duplex: list[tuple[int, int]]
    flows: list[dict[str, Any]]


@dataclass(kw_only=True)
class Fabric:
    """Links between hosts: the capacity of each resource, and the route and its latency between two hosts."""

    name: str
    hosts: int
    capacity: list[float] = field(default_factory=list)
    duplex: list[tuple[int, int]] = field(default_factory=list)
    route: Callable[[int, int], tuple[list[int], float]]

    def two_way(self, bytes_per_s: float) -> tuple[int, int]:
        """Add a link of two directions, and return the numbers of both."""
        first = len(self.capacity)
        self.capacity += [bytes_per_s, bytes_per_s]
        self.duplex.append((first, first + 1))
        return first, first + 1

    def one_way(self, bytes_per_s: float) -> int:
        """Add a link that all directions share, and return its number."""
        self.capacity.append(bytes_per_s)
        return len(self.capacity) - 1


def _nowhere(source: int, target: int) -> tuple[list[int], float]:
    raise NotImplementedError(f"route from {source} to {target}")


def star(hosts: int, bytes_per_s: float = 12.5 * GB, latency_s: float = 1 * US) -> Fabric:
    """Return hosts around one switch; *latency_s* is that of each of the two links of a route."""
    made = Fabric(name=f"star of {hosts}", hosts=hosts, route=_nowhere)
    links = [made.two_way(bytes_per_s) for _ in range(hosts)]
    made.route = lambda source, target: ([links[source][0], links[target][1]], 2 * latency_s)
    return made


def uneven_star(hosts: int, seed: int) -> Fabric:
    """Return a star whose links have 1 to 25 GB/s."""
    rng = random.Random(seed)
    made = Fabric(name=f"uneven star of {hosts}", hosts=hosts, route=_nowhere)
    links = [made.two_way(rng.randint(1, 25) * GB) for _ in range(hosts)]
    made.route = lambda source, target: ([links[source][0], links[target][1]], 2 * US)
    return made


def fat_tree(leaves: int, down: int, up: int, uplink_bytes_per_s: float = 12.5 * GB) -> Fabric:
    """Return two levels of switches, *down* hosts and *up* spines a leaf; a route takes the spine of its target."""
    made = Fabric(name=f"fat tree {leaves}x{down} up {up}", hosts=leaves * down, route=_nowhere)
    links = [made.two_way(12.5 * GB) for _ in range(leaves * down)]
    uplinks = [[made.two_way(uplink_bytes_per_s) for _ in range(up)] for _ in range(leaves)]

    def route(source: int, target: int) -> tuple[list[int], float]:
        ends = [links[source][0], links[target][1]]
        if source // down == target // down:
            return ends, 2 * US
        spine = target % up
        between = [uplinks[source // down][spine][0], uplinks[target // down][spine][1]]
        return [ends[0], *between, ends[1]], 4 * US

    made.route = route
    return made


def dgx1() -> Fabric:
    """Return the GPUs of the DGX-1 with P100: NVLink where a pair has one, else the shortest way over PCIe."""
    with DGX1.open("rb") as file:
        links = tomllib.load(file)["links"]
    made = Fabric(name="DGX-1", hosts=8, route=_nowhere)
    nvlink: dict[tuple[str, str], tuple[int, float]] = {}
    pcie: dict[str, list[tuple[str, int, float]]] = {}
    for link in links:
        one, other = link["ends"]
        there, back = made.two_way(round(float(link["bandwidth"].removesuffix(" GB/s")) * GB))
        latency_s = float(link["latency"].removesuffix(" ns")) * 1e-9
        if link["kind"] == "nvlink":
            nvlink[one, other] = (there, latency_s)
            nvlink[other, one] = (back, latency_s)
        else:
            pcie.setdefault(one, []).append((other, there, latency_s))
            pcie.setdefault(other, []).append((one, back, latency_s))

    def route(source: int, target: int) -> tuple[list[int], float]:
        one, other = f"gpu{source}", f"gpu{target}"
        if (one, other) in nvlink:
            number, latency_s = nvlink[one, other]
            return [number], latency_s
        return _shortest(pcie, one, other)

    made.route = route
    return made


def _shortest(near: dict[str, list[tuple[str, int, float]]], source: str, target: str) -> tuple[list[int], float]:
    """Return the route of the fewest links by breadth-first search."""
    ways: dict[str, tuple[list[int], float]] = {source: ([], 0.0)}
    line = [source]
    for here in line:
        for there, number, latency_s in near[here]:
            if there not in ways:
                numbers, sum_s = ways[here]
                ways[there] = ([*numbers, number], sum_s + latency_s)
                line.append(there)
    return ways[target]


def bus(hosts: int, bytes_per_s: float = 10 * GB, port_bytes_per_s: float | None = None) -> Fabric:
    """Return hosts on one shared bus, each behind a half-duplex port of its own if *port_bytes_per_s* is given."""
    made = Fabric(name=f"bus of {hosts}", hosts=hosts, route=_nowhere)
    shared = made.one_way(bytes_per_s)
    if port_bytes_per_s is None:
        made.route = lambda source, target: ([shared], 1 * US)
        return made
    ports = [made.one_way(port_bytes_per_s) for _ in range(hosts)]
    made.name = f"bus of {hosts} with ports"
    made.route = lambda source, target: ([ports[source], shared, ports[target]], 1 * US)
    return made


def random_graph(vertices: int, degree: int, seed: int, *, half_duplex: bool = False) -> Fabric:
    """Return a connected graph with links of 1 to 25 GB/s and 0.1 to 3 us, and a random simple path for each pair."""
    rng = random.Random(seed)
    words = "half-duplex graph" if half_duplex else "graph"
    made = Fabric(name=f"{words} {vertices} seed {seed}", hosts=vertices, route=_nowhere)
    pairs = [(rng.randrange(vertex), vertex) for vertex in range(1, vertices)]
    while len(pairs) < vertices * degree // 2:
        one, other = rng.sample(range(vertices), 2)
        if (one, other) not in pairs and (other, one) not in pairs:
            pairs.append((one, other))
    near: dict[int, list[tuple[int, int, float]]] = {vertex: [] for vertex in range(vertices)}
    for one, other in pairs:
        rate = rng.randint(1, 25) * GB
        there, back = (made.one_way(rate),) * 2 if half_duplex else made.two_way(rate)
        latency_s = rng.randint(1, 30) * 1e-7
        near[one].append((other, there, latency_s))
        near[other].append((one, back, latency_s))
    chosen: dict[tuple[int, int], tuple[list[int], float]] = {}

    def walk(here: int, target: int, seen: frozenset[int]) -> tuple[list[int], float] | None:
        """Return a path by depth-first search that tries the links of each vertex in random order."""
        if here == target:
            return [], 0.0
        for there, number, latency_s in rng.sample(near[here], len(near[here])):
            rest = None if there in seen else walk(there, target, seen | {there})
            if rest is not None:
                return [number, *rest[0]], latency_s + rest[1]
        return None

    for source in range(vertices):
        for target in range(vertices):
            if source != target:
                found = walk(source, target, frozenset([source]))
                assert found is not None
                chosen[source, target] = found
    made.route = lambda source, target: chosen[source, target]
    return made


@dataclass(frozen=True, kw_only=True)
class Send:
    """One message of an algorithm between two ranks, after the messages of these numbers."""

    source: int
    target: int
    nbytes: int
    after: tuple[int, ...] = ()


Rounds = list[list[tuple[int, int, int]]]


def in_rounds(rounds: Rounds) -> list[Send]:
    """Return the sends of rounds of (source, target, nbytes).

    A send waits for all that its source sent or received in the last round in which it took part.
    """
    sends: list[Send] = []
    last: dict[int, tuple[int, ...]] = {}
    for pairs in rounds:
        took: dict[int, list[int]] = {}
        for source, target, nbytes in pairs:
            took.setdefault(source, []).append(len(sends))
            took.setdefault(target, []).append(len(sends))
            sends.append(Send(source=source, target=target, nbytes=nbytes, after=last.get(source, ())))
        last |= {rank: tuple(numbers) for rank, numbers in took.items()}
    return sends


def ring(ranks: int, nbytes: int, steps: int | None = None) -> list[Send]:
    """Return an all-reduce in a ring: 2(n-1) steps of nbytes/n, or as many as *steps* says."""
    every = [(rank, (rank + 1) % ranks, nbytes // ranks) for rank in range(ranks)]
    return in_rounds([every] * (2 * (ranks - 1) if steps is None else steps))


def tree(ranks: int, nbytes: int) -> list[Send]:
    """Return a reduction up a binomial tree, then a broadcast down the same tree."""
    down: Rounds = []
    span = 1
    while span < ranks:
        down.append([(rank, rank + span, nbytes) for rank in range(min(span, ranks - span))])
        span *= 2
    up = [[(target, source, size) for source, target, size in pairs] for pairs in reversed(down)]
    return in_rounds(up + down)


def doubling(ranks: int, nbytes: int) -> list[Send]:
    """Return an all-reduce by recursive doubling: all bytes to the partner of each bit."""
    bits = range(ranks.bit_length() - 1)
    return in_rounds([[(rank, rank ^ 1 << bit, nbytes) for rank in range(ranks)] for bit in bits])


def halving(ranks: int, nbytes: int) -> list[Send]:
    """Return an all-reduce by halving (reduce-scatter, farthest partner first), then doubling."""
    bits = list(reversed(range(ranks.bit_length() - 1)))
    first = [[(rank, rank ^ 1 << bit, nbytes * 2**bit // ranks) for rank in range(ranks)] for bit in bits]
    return in_rounds(first + first[::-1])


def pairwise(ranks: int, nbytes: int) -> list[Send]:
    """Return an all-to-all in which each rank sends nbytes/n to the next but k in round k."""
    steps = range(1, ranks)
    return in_rounds([[(rank, (rank + step) % ranks, nbytes // ranks) for rank in range(ranks)] for step in steps])


def all_at_once(ranks: int, nbytes: int) -> list[Send]:
    """Return an all-to-all without rounds, every message at time 0."""
    return in_rounds(
        [[(one, other, nbytes // ranks) for one in range(ranks) for other in range(ranks) if one != other]]
    )


def gather(ranks: int, nbytes: int) -> list[Send]:
    """Return nbytes/n from every rank to rank 0 at once."""
    return in_rounds([[(rank, 0, nbytes // ranks) for rank in range(1, ranks)]])


def pipeline(ranks: int, nbytes: int, segments: int = 8) -> list[Send]:
    """Return a broadcast along a chain in segments; a rank passes one on while it receives the next."""
    sends: list[Send] = []
    hops = ranks - 1
    for segment in range(segments):
        for hop in range(hops):
            after = [len(sends) - 1] if hop else []
            after += [len(sends) - hops] if segment else []
            sends.append(Send(source=hop, target=hop + 1, nbytes=nbytes // segments, after=tuple(after)))
    return sends


ALGORITHMS: dict[str, Callable[[int, int], list[Send]]] = {
    "ring": ring,
    "binomial tree": tree,
    "recursive doubling": doubling,
    "halving-doubling": halving,
    "pairwise all-to-all": pairwise,
    "all-to-all at once": all_at_once,
    "gather": gather,
    "pipeline": pipeline,
}


def placed(
    fabric: Fabric,
    algorithm: str,
    ranks: int,
    nbytes: int,
    *,
    places: Sequence[int] | None = None,
    latency: Literal["route", "waited"] = "waited",
    late_s: Iterable[float] = (),
    words: str = "",
) -> Case:
    """Return the case of an algorithm whose rank r runs on host places[r] and starts no earlier than late_s[r]."""
    on = list(range(ranks)) if places is None else places
    starts = dict(enumerate(late_s))
    flows = []
    for send in ALGORITHMS[algorithm](ranks, nbytes):
        route, latency_s = fabric.route(on[send.source], on[send.target])
        flows.append(flow(route, send.nbytes, latency_s, starts.get(send.source, 0.0), send.after))
    name = f"{algorithm}, {ranks} ranks, {fabric.name}{words}"
    return case(fabric, name, algorithm, flows, latency=latency)


def flow(
    route: Iterable[int],
    nbytes: int,
    latency_s: float = 0.0,
    start_s: float = 0.0,
    after: Iterable[int] = (),
    limit_bytes_per_s: float | None = None,
) -> dict[str, Any]:
    """Return one flow as plain data; no limit is None, since JSON has no infinity."""
    return {
        "route": list(route),
        "nbytes": nbytes,
        "latency_s": latency_s,
        "start_s": start_s,
        "after": list(after),
        "limit_bytes_per_s": limit_bytes_per_s,
    }


def case(
    fabric: Fabric,
    name: str,
    kind: str,
    flows: list[dict[str, Any]],
    *,
    latency: Literal["route", "waited"] = "waited",
) -> Case:
    """Return flows on the links of *fabric*."""
    assert latency == "waited" or len({each["latency_s"] for each in flows}) == 1, name
    return Case(
        name=name, kind=kind, latency=latency, capacity=list(fabric.capacity), duplex=list(fabric.duplex), flows=flows
    )


def links(*bytes_per_s: float) -> Fabric:
    """Return links that all directions share, to be crossed by flows that name them."""
    return Fabric(name="links", hosts=0, capacity=list(bytes_per_s), route=_nowhere)


def by_hand() -> list[Case]:
    """Return small cases that a reader can work out."""
    one, two, three = links(1 * GB), links(1 * GB, 2 * GB), links(1 * GB, 2 * GB, 4 * GB)
    made = [
        ("three flows end one after another", one, [flow([0], size * MB) for size in (1, 2, 4)]),
        ("long flow over two links, a short one on each", two, [flow(r, 10 * MB) for r in ([0, 1], [0], [1])]),
        # capacity by count would give the last flow 1 GB/s of link 1, whose neighbour can use only 0.5
        ("rest of a flow limited elsewhere", two, [flow(r, 10 * MB) for r in ([0], [0, 1], [1])]),
        ("long over three, two shorts on each", three, [flow(r, 7 * MB) for r in ([0, 1, 2], [0], [1], [1], [2], [2])]),
        ("late flow slows an early one", one, [flow([0], 3 * MB), flow([0], 1 * MB, 0.0, 1e-3)]),
        ("both directions of half duplex", one, [flow([0], 4 * MB, 1 * US), flow([0], 2 * MB, 1 * US)]),
        ("latency claims nothing", one, [flow([0], 2 * MB), flow([0], 1 * MB, 1e-3)]),
        ("chain", one, [flow([0], 1 * MB, 5 * US, 0.0, [number - 1] if number else []) for number in range(6)]),
        ("limit leaves the rest", one, [flow([0], 1 * MB, 0.0, 0.0, [], rate) for rate in (0.2 * GB, None, None)]),
        ("limits above the fair share", one, [flow([0], 1 * MB, 0.0, 0.0, [], rate) for rate in (0.9 * GB, 0.8 * GB)]),
        ("limits below a free link", one, [flow([0], 1 * MB, 0.0, 0.0, [], rate) for rate in (0.1 * GB, 0.2 * GB)]),
        (
            "limited long flow, shorts take what it leaves",
            two,
            [flow([0, 1], 5 * MB, 0.0, 0.0, [], 0.1 * GB), flow([0], 9 * MB), flow([1], 9 * MB), flow([1], 1 * MB)],
        ),
    ]
    return [case(fabric, name, "by hand", flows) for name, fabric, flows in made]


def random_flows(fabric: Fabric, count: int, seed: int, *, spread_s: float, limited: float, chained: float) -> Case:
    """Return messages of random sizes between random hosts, some late, some with a limit, some after others."""
    rng = random.Random(seed)
    flows = []
    for number in range(count):
        route, latency_s = fabric.route(*rng.sample(range(fabric.hosts), 2))
        size = rng.randint(100 * KB, 20 * MB)
        limit = rng.randint(1, 60) * 0.1 * GB if rng.random() < limited else None
        after = rng.sample(range(number), min(number, rng.randint(1, 2))) if rng.random() < chained else []
        flows.append(flow(route, size, latency_s, round(rng.uniform(0, spread_s), 7), sorted(after), limit))
    words = [f"{count} flows"]
    words += ["starts spread"] if spread_s else []
    words += ["limits"] if limited else []
    words += ["chains"] if chained else []
    return case(fabric, f"{', '.join(words)}, {fabric.name}", "random flows", flows)


def random_routes(resources: int, count: int, seed: int) -> Case:
    """Return flows over random sets of links, which need be no paths of any graph."""
    rng = random.Random(seed)
    fabric = links(*(rng.randint(1, 40) * 0.5 * GB for _ in range(resources)))
    flows = []
    for _ in range(count):
        route = rng.sample(range(resources), rng.randint(1, min(6, resources)))
        flows.append(flow(route, rng.randint(1 * MB, 50 * MB), 0.0, rng.choice([0.0, 0.0, 1e-3, 2e-3])))
    return case(fabric, f"{count} flows over sets of {resources} links seed {seed}", "random routes", flows)


def shuffled(hosts: int, ranks: int, seed: int) -> list[int]:
    """Return a random host for each rank."""
    return random.Random(seed).sample(range(hosts), ranks)


def collectives() -> list[Case]:
    """Return the rounds of algorithms on every fabric, with links of their own and shared."""
    made = [
        placed(star(16), name, 16, size, latency="route")
        for name, size in [
            ("ring", 16 * MB),
            ("binomial tree", 4 * MB),
            ("recursive doubling", 64 * KB),
            ("halving-doubling", 16 * MB),
            ("pairwise all-to-all", 16 * MB),
            ("all-to-all at once", 16 * MB),
            ("gather", 16 * MB),
            ("pipeline", 8 * MB),
        ]
    ]
    narrow = fat_tree(4, 4, 1)
    for name in ("ring", "binomial tree", "recursive doubling", "halving-doubling", "pairwise all-to-all"):
        made.append(placed(uneven_star(8, 11), name, 8, 8 * MB, latency="route"))
        made.append(placed(fat_tree(4, 4, 4), name, 16, 4 * MB, places=shuffled(16, 16, 1), words=", shuffled"))
        made.append(placed(narrow, name, 16, 4 * MB, places=shuffled(16, 16, 2), words=", shuffled"))
        made.append(placed(dgx1(), name, 8, 32 * MB, places=shuffled(8, 8, 3), words=", shuffled"))
        made.append(placed(random_graph(12, 3, 4), name, 8, 4 * MB, places=shuffled(12, 8, 5), words=", shuffled"))
        made.append(placed(bus(8), name, 8, 1 * MB, latency="route"))
    late = [round(random.Random(6).uniform(0, 2e-3), 7) for _ in range(16)]
    slow = fat_tree(4, 8, 2, 6.25 * GB)
    made += [
        placed(slow, "ring", 32, 32 * MB, places=range(32), words=", in order"),
        placed(slow, "all-to-all at once", 16, 16 * MB, places=shuffled(32, 16, 7), words=", shuffled"),
        placed(narrow, "ring", 16, 16 * MB, places=shuffled(16, 16, 8), late_s=late, words=", ranks late"),
        placed(narrow, "halving-doubling", 16, 16 * MB, places=range(16), late_s=late, words=", ranks late"),
        placed(star(16), "recursive doubling", 16, 16 * MB, late_s=late, latency="route", words=", ranks late"),
        placed(dgx1(), "all-to-all at once", 8, 32 * MB),
        placed(dgx1(), "gather", 8, 32 * MB),
        placed(bus(6, port_bytes_per_s=4 * GB), "ring", 6, 6 * MB, latency="route"),
        placed(bus(6, port_bytes_per_s=4 * GB), "gather", 6, 6 * MB, latency="route"),
        placed(random_graph(10, 3, 9, half_duplex=True), "pairwise all-to-all", 8, 8 * MB),
        placed(random_graph(10, 3, 9, half_duplex=True), "ring", 10, 10 * MB),
    ]
    return made


def mixtures() -> list[Case]:
    """Return random messages: together or spread over time, limited or not, after one another or not."""
    tree_of_hosts, graph = fat_tree(4, 4, 2), random_graph(16, 4, 21)
    return [
        random_flows(star(12), 60, 31, spread_s=0, limited=0, chained=0),
        random_flows(tree_of_hosts, 80, 32, spread_s=0, limited=0, chained=0),
        random_flows(tree_of_hosts, 80, 33, spread_s=5e-3, limited=0, chained=0),
        random_flows(tree_of_hosts, 80, 34, spread_s=5e-3, limited=0.5, chained=0),
        random_flows(dgx1(), 60, 35, spread_s=3e-3, limited=0, chained=0.5),
        random_flows(dgx1(), 60, 36, spread_s=0, limited=0.5, chained=0),
        random_flows(graph, 100, 37, spread_s=0, limited=0, chained=0),
        random_flows(graph, 100, 38, spread_s=20e-3, limited=0.3, chained=0.3),
        random_flows(random_graph(12, 3, 22, half_duplex=True), 60, 39, spread_s=10e-3, limited=0.3, chained=0),
        random_flows(bus(6, port_bytes_per_s=4 * GB), 30, 40, spread_s=5e-3, limited=0.3, chained=0.3),
        random_routes(4, 12, 41),
        random_routes(10, 40, 42),
        random_routes(40, 120, 43),
    ]


def all_cases() -> list[Case]:
    """Return every case; names are unique."""
    made = by_hand() + collectives() + mixtures()
    assert len({each.name for each in made}) == len(made)
    return made


def unequal_latencies() -> Case:
    """Return two flows on one link whose latencies on the route are 1 and 3 ms: not fair in SimGrid, and not judged."""
    shared = links(1 * GB)
    flows = [flow([0], 5 * MB, 1e-3), flow([0], 2 * MB, 3e-3)]
    name = "latencies of 1 and 3 ms on the route"
    return Case(name=name, kind="difference", latency="route", capacity=shared.capacity, duplex=[], flows=flows)


def sha256(one: Case) -> str:
    """Return the hash of the case's data, by which an answer knows its question."""
    return hashlib.sha256(json.dumps(asdict(one), sort_keys=True).encode()).hexdigest()
