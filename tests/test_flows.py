"""Flows that share links: rates and ends derived by hand, the laws of max-min fairness, and an exact reference."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simgd import flows as engine
from simgd.errors import ClusterError
from simgd.flows import Flow, ends, fair_rates

#: Lists for every number of flows, or arrays.
FEW = {"lists": 10**9, "arrays": 0}


@contextmanager
def solving_with(few: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "FEW", few)
        yield


@pytest.fixture(params=FEW, name="both")
def _both(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run a test twice: ends that are derived by hand hold for lists and for arrays."""
    with solving_with(FEW[request.param]):
        yield


# Rates


def test_nothing_has_no_rates_and_no_ends():
    assert fair_rates([], [1.0]).tolist() == []
    assert ends([], []) == []


def test_flows_on_one_link_get_equal_parts():
    assert fair_rates([(0,)] * 4, [8.0]).tolist() == [2.0] * 4


def test_a_long_flow_and_a_short_one_on_each_of_its_links_get_half():
    # Maximal throughput would leave nothing to the long flow; max-min gives 1/2 of each link to everyone.
    assert fair_rates([(0, 1), (0,), (1,)], [1.0, 1.0]).tolist() == [0.5, 0.5, 0.5]


def test_what_a_flow_cannot_use_because_it_is_slower_elsewhere_goes_to_the_others():
    # Link 1 holds the long flow at 2/2 = 1, so the one beside it on link 0 gets 10 - 1, not 10/2.
    assert fair_rates([(0, 1), (0,), (1,)], [10.0, 2.0]).tolist() == [1.0, 9.0, 1.0]


def test_each_full_link_leaves_more_to_the_next():
    # Link 0: 3/3 = 1. Link 1: (6 - 1)/2 = 2.5 for two. Link 2: 10 - 1 - 2.5 = 6.5 for the last.
    assert fair_rates([(0,), (0,), (0, 1, 2), (1,), (1, 2), (2,)], [3.0, 6.0, 10.0]).tolist() == [
        *[1.0] * 3,
        *[2.5] * 2,
        6.5,
    ]


def test_a_flow_with_a_limit_of_its_own_leaves_the_rest():
    # 1 for the first; (10 - 1)/2 for each of the others, and a limit of 6 does not bind.
    assert fair_rates([(0,)] * 3, [10.0], limits=[1.0, inf, 6.0]).tolist() == [1.0, 4.5, 4.5]


def test_a_flow_that_writes_twice_for_each_byte_counts_twice():
    # 2 r + r = 9
    assert fair_rates([(0,), (0,)], [9.0], weights=[(2.0,), ()]).tolist() == [3.0, 3.0]
    assert fair_rates([(0, 0), (0,)], [9.0]).tolist() == [3.0, 3.0]


def test_a_weight_of_zero_and_a_link_without_limit_hold_nobody():
    assert fair_rates([(0, 1), (0,), (2,)], [8.0, 2.0, inf], weights=[(0.0, 1.0), (1.0,), (1.0,)]).tolist() == [
        2.0,
        8.0,
        inf,
    ]


# Ends


@pytest.mark.usefixtures("both")
def test_a_flow_alone_takes_its_latency_and_its_bytes_at_the_rate_of_the_slowest_link():
    # 0.5 s + 20/5 s
    assert ends([Flow(route=(0, 1), nbytes=20.0, latency_s=0.5)], [10.0, 5.0]) == [4.5]


@pytest.mark.usefixtures("both")
def test_shorter_flows_end_first_and_leave_their_part_to_the_others():
    # 10 bytes/s. Thirds until each has moved 10: 3 s. Then halves until 10 more: 2 s. Then 10 bytes alone: 1 s.
    assert ends([Flow(route=(0,), nbytes=nbytes) for nbytes in (10.0, 20.0, 30.0)], [10.0]) == pytest.approx([3, 5, 6])


@pytest.mark.usefixtures("both")
def test_a_late_flow_slows_an_early_one_only_while_they_overlap():
    # early: 50 bytes alone (5 s), 25 at half the rate (5 s), 25 alone (2.5 s)
    early = Flow(route=(0,), nbytes=100.0)
    late = Flow(route=(0,), nbytes=25.0, start_s=5.0)
    assert ends([early, late], [10.0]) == [12.5, 10.0]


@pytest.mark.usefixtures("both")
def test_latency_claims_no_bandwidth():
    # The second flow claims its part from 1 + 4 = 5 s on; till then the first has the link alone.
    flows = [Flow(route=(0,), nbytes=50.0), Flow(route=(0,), nbytes=10.0, start_s=1.0, latency_s=4.0)]
    assert ends(flows, [10.0]) == [5.0, 6.0]


@pytest.mark.usefixtures("both")
def test_a_chain_pays_latency_and_bytes_of_each_in_turn():
    # 1 + 10/10 = 2; 2 + 1 + 1 = 4; the third may not start before 7: 7 + 1 + 1 = 9
    link = Flow(route=(0,), nbytes=10.0, latency_s=1.0)
    chain = [replace(link, after=(1,), start_s=7.0), replace(link, after=(2,)), link]
    assert ends(chain, [10.0]) == [9.0, 4.0, 2.0]


@pytest.mark.usefixtures("both")
def test_a_flow_waits_for_the_last_of_those_before_it():
    first, second = Flow(route=(0,), nbytes=10.0), Flow(route=(1,), nbytes=30.0)
    assert ends([first, second, Flow(route=(0,), nbytes=10.0, after=(0, 1))], [10.0, 10.0]) == [1.0, 3.0, 4.0]


@pytest.mark.usefixtures("both")
def test_both_directions_of_a_half_duplex_link_share_it_and_those_of_a_full_duplex_link_do_not():
    there, back = Flow(route=(0,), nbytes=10.0), Flow(route=(1,), nbytes=10.0)
    assert ends([there, back], [10.0, 10.0]) == [1.0, 1.0]
    assert ends([there, there], [10.0]) == [2.0, 2.0]


@pytest.mark.usefixtures("both")
def test_the_rest_of_a_link_goes_to_others_until_the_slow_flow_ends():
    # Link 1 holds the first flow at 2 for 5 s; meanwhile the other moves 8 x 5 = 40, and then 10 alone in 1 s.
    assert ends([Flow(route=(0, 1), nbytes=10.0), Flow(route=(0,), nbytes=50.0)], [10.0, 2.0]) == [5.0, 6.0]


@pytest.mark.usefixtures("both")
def test_a_limit_holds_a_flow_that_is_alone_and_one_without_a_route():
    assert ends([Flow(route=(0,), nbytes=10.0, limit_bytes_per_s=2.0)], [10.0]) == [5.0]
    assert ends([Flow(route=(), nbytes=10.0, limit_bytes_per_s=2.0)], [10.0]) == [5.0]


@pytest.mark.usefixtures("both")
def test_weights_count_on_their_own_resource_only():
    # 10 bytes as 15 on link 0 of 30 bytes/s (0.5 s) and as 40 on link 1 of 20 bytes/s (2 s)
    assert ends([Flow(route=(0, 1), nbytes=10.0, weights=(1.5, 4.0))], [30.0, 20.0]) == [2.0]
    # While both flow: 4 r + r = 20, so r = 4 for 2.5 s; the other has 10 of 20 left, at 20 bytes/s.
    flows = [Flow(route=(0, 1), nbytes=10.0, weights=(1.5, 4.0)), Flow(route=(1,), nbytes=20.0)]
    assert ends(flows, [30.0, 20.0]) == [2.5, 3.0]


@pytest.mark.usefixtures("both")
def test_a_flow_without_bytes_or_without_a_route_takes_its_latency_and_slows_nobody():
    flows = [
        Flow(route=(0,), nbytes=0.0, latency_s=1.0),
        Flow(route=(), nbytes=1e9, latency_s=2.0, after=(0,)),
        Flow(route=(0,), nbytes=0.0, after=(1,)),
        Flow(route=(0,), nbytes=10.0, after=(2,)),
        Flow(route=(0,), nbytes=50.0),
    ]
    # The last one is alone for 3 s, has half the link until 5 s, then 10 bytes left.
    assert ends(flows, [10.0]) == [1.0, 3.0, 3.0, 5.0, 6.0]


@pytest.mark.usefixtures("both")
def test_flows_that_end_together_are_replaced_in_the_same_instant():
    # A ring of 4, 3 steps: each flow waits for the one that its sender received; 3 x (0.5 + 1) s.
    flows = [
        Flow(route=(rank, 4 + (rank + 1) % 4), nbytes=10.0, latency_s=0.5, after=(4 * step - 4 + (rank - 1) % 4,))
        if step
        else Flow(route=(rank, 4 + (rank + 1) % 4), nbytes=10.0, latency_s=0.5)
        for step in range(3)
        for rank in range(4)
    ]
    assert ends(flows, [10.0] * 8) == [1.5] * 4 + [3.0] * 4 + [4.5] * 4


@pytest.mark.usefixtures("both")
def test_a_long_row_of_flows_is_one_group():
    # Flow i crosses links i and i + 1: two on each link but the outer ones, so all have 1/2. If the first ends after
    # 1 s, the second is still held at 1/2 by the third: nobody is faster.
    count = 300
    row = [Flow(route=(place, place + 1), nbytes=5.0) for place in range(count)]
    assert ends(row, [1.0] * (count + 1)) == [10.0] * count
    assert ends([replace(row[0], nbytes=0.5), *row[1:]], [1.0] * (count + 1)) == [1.0] + [10.0] * (count - 1)


def test_more_bandwidth_for_one_can_make_the_last_end_later():
    """Max-min fairness is not monotone: what a flow gains at once another may not be able to make good later."""
    first = Flow(route=(0, 1), nbytes=5.0)
    second = Flow(route=(1,), nbytes=45.0, limit_bytes_per_s=9.0)
    # Link 0 holds the first at 1; the second has 9 of the 10 of link 1: both take 5 s.
    assert ends([first, second], [1.0, 10.0]) == [5.0, 5.0]
    # Now each has half of link 1. After 1 s the first has ended, and the second has 40 bytes left, but cannot pass 9.
    assert ends([first, second], [10.0, 10.0]) == pytest.approx([1, 1 + 40 / 9])


@pytest.fixture(name="solved")
def _solved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect how many flows each event has solved."""
    found: list[int] = []
    solve_few = engine._Run.solve_few

    def counted(run: engine._Run, flows: list[int], left: list[float], now_s: float) -> None:
        found.append(len(flows))
        solve_few(run, flows, left, now_s)

    monkeypatch.setattr(engine._Run, "solve_few", counted)
    return found


def test_an_event_solves_only_the_flows_that_it_touches(solved: list[int]):
    # Three to a link, on 20 links; all start and end at times of their own. On each link 1, 2, 3 flows are solved when
    # one starts, and 2, 1 when one ends and others stay.
    ends(
        [
            Flow(route=(link,), nbytes=100.0 + 10 * place, start_s=place + link / 100)
            for link in range(20)
            for place in range(3)
        ],
        [1.0] * 20,
    )
    assert sorted(solved) == [1] * 40 + [2] * 40 + [3] * 20


def test_a_group_that_falls_apart_is_no_longer_solved_as_one(solved: list[int]):
    # The long flow links two and two others. All five start at once; when the long one ends, the four others are
    # touched; then an end touches the one flow that is left on its link.
    pairs = [Flow(route=(link,), nbytes=nbytes) for link, nbytes in ((0, 40.0), (0, 50.0), (1, 60.0), (1, 70.0))]
    ends([Flow(route=(0, 1), nbytes=10.0), *pairs], [1.0, 1.0])
    assert solved == [5, 4, 1, 1]


def test_starts_that_differ_by_rounding_alone_are_one_instant(solved: list[int]):
    tenth = Flow(route=(), nbytes=0.0, latency_s=0.1)
    assert 0.1 + 0.1 + 0.1 != 0.3
    # 0.3 s, and 2 s for both
    flows = [tenth, replace(tenth, after=(0,)), Flow(route=(0,), nbytes=1.0, latency_s=0.1, after=(1,))]
    assert ends([*flows, Flow(route=(0,), nbytes=1.0, start_s=0.3)], [1.0])[2:] == [2.3, 2.3]
    assert solved == [2]


def test_a_barrier_lets_all_go_when_the_last_has_come():
    # Halves of link 0 until 2 s; the third flow takes 5 s on link 1. Then three on link 0 for 3 s.
    before = (0, 1, 2)
    flows = [*[Flow(route=(0,), nbytes=1.0)] * 2, Flow(route=(1,), nbytes=5.0)]
    assert ends([*flows, *[Flow(route=(0,), nbytes=1.0, after=before)] * 3], [1.0, 1.0]) == [2.0, 2.0, 5.0, *[8.0] * 3]


# Bad input


@pytest.mark.parametrize(
    ("flow", "said"),
    [
        (Flow(route=(0,), nbytes=-1.0), "flow 1: -1 bytes; it must be 0 or more, and finite"),
        (Flow(route=(0,), nbytes=float("nan")), "flow 1: nan bytes; it must be 0 or more, and finite"),
        (Flow(route=(0,), nbytes=inf), "flow 1: inf bytes; it must be 0 or more, and finite"),
        (Flow(route=(0,), nbytes=1.0, latency_s=-1.0), "flow 1: -1 s of latency; it must be 0 or more, and finite"),
        (Flow(route=(0,), nbytes=1.0, start_s=-1.0), "flow 1: -1 s as its start; it must be 0 or more, and finite"),
        (
            Flow(route=(0,), nbytes=1.0, limit_bytes_per_s=0.0),
            "flow 1: 0 bytes per second as its limit; it must be above 0",
        ),
        (Flow(route=(0, 5), nbytes=1.0), "flow 1: crosses resource 5; there are 2, from 0 on"),
        (Flow(route=(-1,), nbytes=1.0), "flow 1: crosses resource -1; there are 2, from 0 on"),
        (Flow(route=(0, 1), nbytes=1.0, weights=(1.0,)), "flow 1: 1 weights for a route over 2 resources"),
        (Flow(route=(0,), nbytes=1.0, weights=(-1.0,)), "flow 1: weight -1; it must be 0 or more, and finite"),
        (Flow(route=(0,), nbytes=1.0, after=(2,)), "flow 1: waits for flow 2; there are 2, from 0 on"),
        (Flow(route=(0,), nbytes=1.0, after=(-1,)), "flow 1: waits for flow -1; there are 2, from 0 on"),
        (Flow(route=(0,), nbytes=1.0, after=(1,)), "flow 1: waits for itself; it would never start"),
    ],
)
def test_a_flow_that_cannot_be_is_refused_in_one_line(flow: Flow, said: str):
    with pytest.raises(ClusterError) as caught:
        ends([Flow(route=(0,), nbytes=1.0), flow], [1.0, 1.0])
    assert str(caught.value) == said


def test_flows_that_wait_for_one_another_are_refused():
    ring = [Flow(route=(0,), nbytes=1.0, after=(after,)) for after in (1, 2, 3, 1)]
    with pytest.raises(ClusterError, match=r"^flow 1: waits for itself, by way of flow 3; it would never start$"):
        ends(ring, [1.0])


@pytest.mark.parametrize("capacity", [0.0, -1.0, float("nan")])
def test_a_resource_without_capacity_is_refused(capacity: float):
    with pytest.raises(ClusterError, match=f"^resource 1: {capacity:g} bytes per second; it must be above 0$"):
        ends([Flow(route=(0,), nbytes=1.0)], [1.0, capacity])


# Laws

RESOURCES = 5
CAPACITY = st.lists(st.integers(1, 12).map(float), min_size=RESOURCES, max_size=RESOURCES)
LIMIT = st.sampled_from([inf, inf, 1.0, 2.5])
WEIGHT = st.sampled_from([0.0, 0.5, 1.0, 1.0, 3.0])


@st.composite
def all_flows(draw: st.DrawFn, most: int = 8) -> list[Flow]:
    """Draw flows with everything that a flow can have; they wait only for those before them."""
    found: list[Flow] = []
    for number in range(draw(st.integers(1, most))):
        route = tuple(draw(st.lists(st.integers(0, RESOURCES - 1), max_size=3)))
        weighted = draw(st.booleans())
        found.append(
            Flow(
                route=route,
                nbytes=float(draw(st.integers(0, 30))),
                latency_s=draw(st.sampled_from([0.0, 0.25, 1.0])),
                start_s=draw(st.sampled_from([0.0, 0.0, 0.5, 2.0])),
                after=tuple(draw(st.lists(st.integers(0, number - 1), max_size=2))) if number else (),
                limit_bytes_per_s=draw(LIMIT),
                weights=tuple(draw(st.lists(WEIGHT, min_size=len(route), max_size=len(route)))) if weighted else (),
            )
        )
    return found


def use(flow: Flow) -> dict[int, Fraction]:
    """Return the bytes on each resource for a byte of the flow."""
    found: dict[int, Fraction] = {}
    for name, weight in zip(flow.route, flow.weights or (1.0,) * len(flow.route), strict=True):
        found[name] = found.get(name, Fraction(0)) + Fraction(weight)
    return {name: weight for name, weight in found.items() if weight}


def exact_rates(flows: Sequence[Flow], capacity: Sequence[float]) -> list[Fraction | None]:
    """Fill all flows step by step; None stands for a rate that nothing limits."""
    uses = [use(flow) for flow in flows]
    rates: list[Fraction | None] = [None] * len(flows)
    level = Fraction(0)
    room = [Fraction(each) for each in capacity]
    growing = [number for number, flow in enumerate(flows) if uses[number] or flow.limit_bytes_per_s < inf]
    while growing:
        loads = [
            sum((uses[number].get(name, Fraction(0)) for number in growing), Fraction(0)) for name in range(len(room))
        ]
        steps = [each / load for each, load in zip(room, loads, strict=True) if load]
        steps += [Fraction(limit) - level for n in growing if (limit := flows[n].limit_bytes_per_s) < inf]
        level += min(steps)
        room = [each - load * min(steps) for each, load in zip(room, loads, strict=True)]
        for number in growing:
            if flows[number].limit_bytes_per_s == level or any(not room[name] for name in uses[number]):
                rates[number] = level
        growing = [number for number in growing if rates[number] is None]
    return rates


def exact_ends(flows: Sequence[Flow], capacity: Sequence[float]) -> list[Fraction]:
    """Solve all flows anew at every event, in fractions."""
    end: dict[int, Fraction] = {}
    left = {number: Fraction(flow.nbytes) for number, flow in enumerate(flows)}
    now = Fraction(0)
    while len(end) < len(flows):
        ready = {
            number: max([Fraction(flows[number].start_s), *(end[other] for other in flows[number].after)])
            + Fraction(flows[number].latency_s)
            for number in left
            if all(other in end for other in flows[number].after)
        }
        moving = [number for number in ready if ready[number] <= now]
        rates = dict(zip(moving, exact_rates([flows[number] for number in moving], capacity), strict=True))
        over = [number for number in moving if not left[number] or rates[number] is None]
        if over:
            for number in over:
                end[number] = now
                del left[number]
            continue
        times = [at - now for at in ready.values() if at > now]
        times += [left[number] / rate for number, rate in rates.items() if rate is not None]
        for number, rate in rates.items():
            assert rate is not None
            left[number] -= rate * min(times)
        now += min(times)
    return [end[number] for number in range(len(flows))]


def close(values: Sequence[float | Fraction]) -> object:
    return pytest.approx([float(value) for value in values], rel=1e-9, abs=1e-12)


def rates_of(flows: Sequence[Flow], capacity: Sequence[float]) -> list[float]:
    found = fair_rates(
        [flow.route for flow in flows],
        capacity,
        [flow.limit_bytes_per_s for flow in flows],
        [flow.weights for flow in flows],
    )
    return [float(rate) for rate in found]


@settings(max_examples=150)
@given(all_flows(), CAPACITY)
def test_rates_are_those_of_an_exact_filling(flows: list[Flow], capacity: list[float]):
    assert rates_of(flows, capacity) == close([inf if rate is None else rate for rate in exact_rates(flows, capacity)])


@settings(max_examples=150)
@given(all_flows(), CAPACITY)
def test_no_resource_carries_more_than_it_can_and_every_flow_has_its_limit_or_a_full_resource_with_nobody_faster(
    flows: list[Flow], capacity: list[float]
):
    """The certificate of max-min fairness: there is one solution, and it looks like this."""
    rates = rates_of(flows, capacity)
    uses = [use(flow) for flow in flows]
    carried = [
        sum(rate * float(each[name]) for rate, each in zip(rates, uses, strict=True) if name in each)
        for name in range(RESOURCES)
    ]
    assert all(bytes_per_s <= room * (1 + 1e-9) for bytes_per_s, room in zip(carried, capacity, strict=True))
    for flow, rate, each in zip(flows, rates, uses, strict=True):
        assert rate == flow.limit_bytes_per_s or any(
            carried[name] >= capacity[name] * (1 - 1e-9)
            and all(other <= rate * (1 + 1e-9) for other, there in zip(rates, uses, strict=True) if name in there)
            for name in each
        )


@pytest.mark.parametrize("few", FEW.values(), ids=FEW)
def test_ends_are_those_of_a_slow_exact_reference(few: int):
    @settings(max_examples=150)
    @given(all_flows(), CAPACITY)
    def check(flows: list[Flow], capacity: list[float]) -> None:
        assert ends(flows, capacity) == close(exact_ends(flows, capacity))

    with solving_with(few):
        check()


@settings(max_examples=100)
@given(all_flows(), CAPACITY)
def test_every_flow_has_moved_its_bytes_when_it_ends(flows: list[Flow], capacity: list[float]):
    """Rates between events, taken from the plain solver, add up to the bytes."""
    end_s = ends(flows, capacity)
    begin_s = [max([flow.start_s, *(end_s[other] for other in flow.after)]) + flow.latency_s for flow in flows]
    moved = [0.0] * len(flows)
    times = sorted({*begin_s, *end_s})
    for start, stop in pairwise(times):
        now = [number for number in range(len(flows)) if begin_s[number] <= start and end_s[number] >= stop]
        for number, rate in zip(now, rates_of([flows[number] for number in now], capacity), strict=True):
            moved[number] += rate * (stop - start)
    for flow, nbytes in zip(flows, moved, strict=True):
        if use(flow) or flow.limit_bytes_per_s < inf:
            assert nbytes == pytest.approx(flow.nbytes, rel=1e-9, abs=1e-9)


@settings(max_examples=100)
@given(all_flows(), CAPACITY, st.permutations(range(RESOURCES)), st.randoms(use_true_random=False))
def test_names_of_resources_and_the_order_of_flows_do_not_matter(
    flows: list[Flow], capacity: list[float], names: list[int], rng: random.Random
):
    # Flow n becomes number place[n]; resource r becomes names[r].
    place = list(range(len(flows)))
    rng.shuffle(place)
    renamed: list[Flow] = [flows[0]] * len(flows)
    for number, flow in enumerate(flows):
        renamed[place[number]] = replace(
            flow, route=tuple(names[name] for name in flow.route), after=tuple(place[other] for other in flow.after)
        )
    moved = [0.0] * RESOURCES
    for name, each in enumerate(capacity):
        moved[names[name]] = each
    again = ends(renamed, moved)
    assert [again[place[number]] for number in range(len(flows))] == close(ends(flows, capacity))


@given(st.lists(st.tuples(st.integers(1, 30), LIMIT), min_size=1, max_size=6), st.integers(1, 9), st.integers(0, 9))
def test_a_faster_link_never_makes_flows_that_start_together_on_it_end_later(
    those: list[tuple[int, float]], slow: int, more: int
):
    flows = [Flow(route=(0,), nbytes=float(nbytes), limit_bytes_per_s=limit) for nbytes, limit in those]
    before, after = ends(flows, [float(slow)]), ends(flows, [float(slow + more)])
    assert all(late <= early * (1 + 1e-9) for early, late in zip(before, after, strict=True))
    assert max(after) <= max(before) * (1 + 1e-9)


def fat_tree(rng: random.Random, count: int) -> list[Flow]:
    """Draw flows between 40 hosts under 5 switches; up and down links of hosts, then those of switches."""
    found = []
    for number in range(count):
        source, target = rng.sample(range(40), 2)
        up = () if source // 8 == target // 8 else (80 + source // 8, 85 + target // 8)
        after = (number - 60,) if number >= 60 and rng.random() < 0.8 else ()
        found.append(Flow(route=(source, *up, 40 + target), nbytes=rng.uniform(1, 100), latency_s=0.01, after=after))
    return found


def shuffled_ring(rng: random.Random, count: int) -> list[Flow]:
    """Draw a ring in both directions whose hosts are numbered at random: one long group of links with two flows."""
    order = rng.sample(range(45), 45)
    pairs = [*zip(order, [*order[1:], order[0]], strict=True)] * (count // 90 + 1)
    both = [pair for a, b in pairs for pair in ((a, b), (b, a))]
    return [Flow(route=(a, 45 + b), nbytes=rng.uniform(1, 100), start_s=rng.uniform(0, 50)) for a, b in both[:count]]


@pytest.mark.parametrize("draw", [fat_tree, shuffled_ring])
def test_lists_arrays_and_both_by_turns_give_the_same_ends(draw: Callable[[random.Random, int], list[Flow]]):
    flows = draw(random.Random(0), 300)
    capacity = [float(10 + number % 3) for number in range(90)]
    found = []
    for few in (10**9, 0, 20):
        with solving_with(few):
            found.append(ends(flows, capacity))
            assert ends(flows, capacity) == found[-1]
    assert found[0] == close(found[1])
    assert found[0] == close(found[2])
