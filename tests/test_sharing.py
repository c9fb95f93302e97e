"""Max-min fair shares: nobody can have more without someone poorer having less."""

from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from simgd.sharing import fair_rates

#: Shares in steps that `fair_rates` keeps exactly.
SHARE = st.integers(0, 8).map(lambda eighths: eighths / 8)

USES = st.lists(st.dictionaries(st.sampled_from(["nic", "nvlink", "pcie"]), SHARE), max_size=5)


def used(uses: list[dict[str, float]], rates: list[Fraction], name: str) -> Fraction:
    return sum((rate * Fraction(use.get(name, 0)) for use, rate in zip(uses, rates, strict=True)), start=Fraction(0))


def test_nobody_shares_alone():
    assert fair_rates([]) == []
    assert fair_rates([{}]) == [1]
    assert fair_rates([{"nic": 0.5}]) == [1]


def test_what_fits_side_by_side_is_as_fast_as_alone():
    assert fair_rates([{"nic": 0.5}, {"nic": 0.5}]) == [1, 1]


def test_equal_users_of_one_resource_get_equal_parts():
    assert fair_rates([{"nic": 1.0}] * 3) == [Fraction(1, 3)] * 3


def test_unequal_users_are_slowed_by_the_same_factor():
    # r x 1 + r x 1/2 = 1
    assert fair_rates([{"nic": 1.0}, {"nic": 0.5}]) == [Fraction(2, 3)] * 2


def test_who_is_held_up_elsewhere_leaves_the_rest_to_others():
    # The two on pcie and the first on nic grow together to 1/2, where pcie is full; the one on nic alone gets the rest:
    # 1 - 1/2 x 1/2 = 3/4
    uses = [{"pcie": 1.0, "nic": 0.5}, {"pcie": 1.0}, {"nic": 1.0}]
    assert fair_rates(uses) == [Fraction(1, 2), Fraction(1, 2), Fraction(3, 4)]


@settings(max_examples=200, deadline=None)
@given(USES)
def test_no_resource_is_used_more_than_it_can_be_and_nobody_is_faster_than_alone(uses: list[dict[str, float]]):
    rates = fair_rates(uses)
    assert all(0 < rate <= 1 for rate in rates)
    assert all(used(uses, rates, name) <= 1 for name in ("nic", "nvlink", "pcie"))


@settings(max_examples=200, deadline=None)
@given(USES)
def test_whoever_is_slowed_uses_a_full_resource_on_which_nobody_is_faster(uses: list[dict[str, float]]):
    """The certificate of max-min fairness: it has one solution, and this is what it looks like."""
    rates = fair_rates(uses)
    for use, rate in zip(uses, rates, strict=True):
        assert rate == 1 or any(
            share > 0
            and used(uses, rates, name) == 1
            and all(other <= rate for each, other in zip(uses, rates, strict=True) if each.get(name, 0) > 0)
            for name, share in use.items()
        )


@settings(max_examples=100, deadline=None)
@given(USES, st.randoms(use_true_random=False))
def test_the_order_of_users_does_not_matter(uses: list[dict[str, float]], rng: object):
    assert fair_rates(uses[::-1]) == fair_rates(uses)[::-1]


@settings(max_examples=100, deadline=None)
@given(USES)
def test_one_user_more_makes_nobody_of_one_resource_faster(uses: list[dict[str, float]]):
    one = [{"nic": use.get("nic", 0.0)} for use in uses]
    alone = fair_rates(one)
    assert all(late <= early for early, late in zip(alone, fair_rates([*one, {"nic": 1.0}]), strict=False))
