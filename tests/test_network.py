"""What a collective demands: the model, corrected by what was measured."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simgd import fabrics, files
from simgd.collectives import bus_bytes_per_s, bus_share
from simgd.errors import ClusterError, ProfileError
from simgd.network import (
    ASSUMED_STEP_S,
    ASSUMED_UNCERTAINTY,
    LATENCY_DOUBT,
    LEAST_USE,
    MODEL_UNCERTAINTY,
    Call,
    Demand,
    Fidelity,
    Network,
    at_link_rate,
    at_rate,
)
from simgd.profile import CollectiveKind, Curve, Fit, Library, Origin, PointToPoint, Profile, Sample, Segment

PROFILES = Path(__file__).parent.parent / "calibration" / "profiles"
GIB = 2**30


def shipped(name: str) -> Profile:
    return files.read(PROFILES / f"{name}.json", Profile)


def network(name: str, nodes: int | None = None, **changes: object) -> Network:
    profile = msgspec.structs.replace(shipped(name), **changes)
    cluster = profile.cluster if nodes is None else fabrics.resized(profile.cluster, nodes)
    return Network(cluster, profile)


def bus(found: Network, ranks: int, nbytes: int = GIB) -> float:
    return bus_bytes_per_s("all_reduce", ranks, nbytes, found.seconds("all_reduce", nbytes, ranks))


def curve(ranks: int, nodes: int, *points: tuple[float, float], kind: CollectiveKind = "all_reduce") -> Curve:
    return Curve(
        kind=kind, ranks=ranks, nodes=nodes, points=points, origin="measured", source="a test", uncertainty=0.01
    )


def test_one_rank_needs_no_network() -> None:
    demand = network("dgx1-p100").demand(Call("all_reduce", GIB, 1))
    assert (demand.solo_s, demand.latency_s, demand.extrapolated) == (0.0, 0.0, False)


@pytest.mark.parametrize(
    ("ranks", "rate", "path"),
    # the rings of a DGX-1 with P100 at 18 GB/s a link; five GPUs have none, and cross the sockets at 8.75 GB/s
    [(2, 18, "nvlink"), (3, 36, "nvlink"), (4, 54, "nvlink"), (5, 8.75, "pcie"), (6, 36, "nvlink"), (8, 72, "nvlink")],
)
def test_large_messages_move_at_the_rate_of_the_rings(ranks: int, rate: float, path: str) -> None:
    found = network("dgx1-p100")
    assert bus(found, ranks) == pytest.approx(1e9 * rate, rel=0.005)
    demand = found.demand(Call("all_reduce", GIB, ranks))
    assert (demand.path, demand.origin, max(demand.use.values())) == (path, "modelled", pytest.approx(1.0))


def test_a_small_message_costs_the_latency_of_the_steps() -> None:
    # LL in a ring of 8: 3.6 us + 14 steps of 0.4 us (NCCL v2.5.6), and 5 us for a kernel on a P100
    demand = network("dgx1-p100").demand(Call("all_reduce", 8, 8))
    assert demand.algorithm == "ring/LL"
    assert demand.latency_s == pytest.approx(14.2e-6)


def test_a_model_is_doubted_more_where_latency_rules() -> None:
    found = network("dgx1-p100")
    small, large = (found.demand(Call("all_reduce", nbytes, 8)) for nbytes in (8, 8 * GIB))
    assert small.uncertainty == pytest.approx(MODEL_UNCERTAINTY + LATENCY_DOUBT, abs=0.01)
    assert large.uncertainty == pytest.approx(MODEL_UNCERTAINTY, abs=0.01)


def test_a_measured_curve_is_met_at_its_points() -> None:
    profile = shipped("dgx-a100")
    found = Network(profile.cluster, profile)
    for nbytes, seconds in profile.curves[0].points:
        demand = found.demand(Call("all_reduce", int(nbytes), 8))
        assert demand.solo_s == pytest.approx(seconds, rel=1e-12)
        assert (demand.origin, demand.extrapolated, demand.uncertainty) == ("published", False, 0.05)


def test_between_points_time_is_linear_in_bytes_and_the_ratio_to_the_model_is_held_beyond() -> None:
    plain = network("dgx1-p100")
    model = {n: plain.seconds("all_reduce", n, 8) for n in (10**5, 10**6, 10**7, 10**8, 10**9)}
    low_s, high_s = 2 * model[10**6], 4 * model[10**8]
    found = network("dgx1-p100", curves=(curve(8, 1, (10**6, low_s), (10**8, high_s)),))
    times = {n: found.seconds("all_reduce", n, 8) for n in model}
    # 9 MB of the 99 MB between the points: 1/11 of the way
    between_s = low_s + (high_s - low_s) / 11
    assert times == pytest.approx(
        {10**5: 2 * model[10**5], 10**6: low_s, 10**7: between_s, 10**8: high_s, 10**9: 4 * model[10**9]}
    )
    marks = [found.demand(Call("all_reduce", n, 8)).extrapolated for n in model]
    assert marks == [True, False, False, False, True]


def test_the_ratio_multiplies_latency_as_well() -> None:
    plain = network("dgx1-p100").demand(Call("all_reduce", 10**6, 8))
    doubled = network("dgx1-p100", curves=(curve(8, 1, (10**6, 2 * plain.solo_s)),))
    assert doubled.demand(Call("all_reduce", 10**6, 8)).latency_s == pytest.approx(2 * plain.latency_s)


def test_between_numbers_of_ranks_the_ratio_is_linear_in_log_ranks_and_marked() -> None:
    plain = network("dgx1-p100")
    model = {ranks: plain.seconds("all_reduce", 10**8, ranks) for ranks in (2, 4, 6, 8)}
    curves = (curve(2, 1, (10**8, 1.5 * model[2])), curve(8, 1, (10**8, 3.5 * model[8])))
    found = network("dgx1-p100", curves=curves)
    four, six = (found.demand(Call("all_reduce", 10**8, ranks)) for ranks in (4, 6))
    assert four.solo_s == pytest.approx(2.5 * model[4])
    assert six.solo_s == pytest.approx((1.5 + 2 * math.log(6 / 2) / math.log(8 / 2)) * model[6])
    assert (four.origin, four.extrapolated, four.uncertainty) == ("modelled", True, MODEL_UNCERTAINTY)


def test_cpu_nodes_interpolate_between_numbers_of_nodes() -> None:
    plain = network("xeon-edr")
    curves = tuple(
        curve(n, n, (10**6, factor * plain.seconds("all_reduce", 10**6, n))) for n, factor in ((2, 1), (8, 2))
    )
    demand = network("xeon-edr", curves=curves).demand(Call("all_reduce", 10**6, 4))
    assert demand.solo_s == pytest.approx(1.5 * plain.seconds("all_reduce", 10**6, 4))


def straight(ranks: int, origin: Origin) -> Fit:
    segments = (Segment(from_bytes=0.0, latency_s=1e-5, seconds_per_byte=1e-9),)
    return Fit(kind="all_reduce", ranks=ranks, nodes=ranks, segments=segments, origin=origin, source="a test")


def test_a_line_is_met_at_every_size() -> None:
    line = straight(4, "published")
    found = network("xeon-edr", fits=(line,))
    for nbytes in (0, 10**3, 10**9):
        assert found.seconds("all_reduce", nbytes, 4) == pytest.approx(1e-5 + 1e-9 * nbytes)
    assert found.demand(Call("all_reduce", 10**3, 4)).origin == "published"


def test_an_exact_line_is_stronger_than_a_curve_for_other_ranks() -> None:
    line = straight(4, "measured")
    found = network("xeon-edr", fits=(line,), curves=(curve(8, 8, (10**6, 1.0)),))
    assert found.seconds("all_reduce", 10**6, 4) == pytest.approx(1e-5 + 1e-3)


def test_halves_of_an_all_reduce_take_its_ratio_where_they_were_not_measured() -> None:
    plain = network("dgx1-p100")
    tripled = curve(8, 1, (10**6, 3 * plain.seconds("all_reduce", 10**6, 8)))
    found = network("dgx1-p100", curves=(tripled,))
    demand = found.demand(Call("reduce_scatter", 10**6, 8))
    assert demand.solo_s == pytest.approx(3 * plain.seconds("reduce_scatter", 10**6, 8))
    assert (demand.extrapolated, demand.origin) == (True, "modelled")
    assert found.seconds("broadcast", 10**6, 8) == plain.seconds("broadcast", 10**6, 8)


def test_devices_of_a_users_choice_are_modelled_not_measured() -> None:
    plain = network("dgx1-p100")
    found = network("dgx1-p100", curves=(curve(4, 1, (10**8, 1.0)),))
    assert found.seconds("all_reduce", 10**8, 4) == pytest.approx(1.0)
    chosen = Call("all_reduce", 10**8, 4, (0, 1, 4, 5))
    assert found.demand(chosen).solo_s == plain.demand(chosen).solo_s
    assert found.demand(Call("all_reduce", 10**8, 4, (0, 1, 2, 3))).solo_s == pytest.approx(1.0)


def test_without_a_profile_of_the_network_nominal_rates_serve_and_are_called_assumed() -> None:
    found = network("dgx1-p100", links=(), library=None)
    demand = found.demand(Call("all_reduce", GIB, 2))
    assert (demand.origin, demand.uncertainty) == ("assumed", ASSUMED_UNCERTAINTY)
    # 1 GiB over one link at 0.8 of 20 GB/s
    assert demand.solo_s == pytest.approx(GIB / 16e9, rel=0.01)
    cpu = network("xeon-edr", point_to_point=None, library=None).demand(Call("all_reduce", GIB, 2))
    assert cpu.origin == "assumed"
    assert cpu.solo_s == pytest.approx(GIB / 10e9, rel=0.01)  # 0.8 of 100 Gb/s


def test_a_faster_kind_of_link_scales_measured_collectives_by_the_models_ratio() -> None:
    profile = shipped("dgx-a100")
    before, after = Network(profile.cluster, profile), Network(profile.cluster, profile, {"nvlink": 2.0})
    call = Call("all_reduce", 8 * GIB, 8)
    # nearly all of 8 GiB is bandwidth
    assert after.demand(call).solo_s == pytest.approx(before.demand(call).solo_s / 2, rel=0.01)
    assert Network(profile.cluster, profile, {"pcie": 2.0}).demand(call).solo_s == before.demand(call).solo_s


def test_a_faster_network_scales_the_bandwidth_part_of_mpi_messages_only() -> None:
    profile = shipped("xeon-edr")
    call = Call("all_gather", 0, 2)
    before, after = Network(profile.cluster, profile), Network(profile.cluster, profile, {"infiniband": 2.0})
    assert after.demand(call).solo_s == before.demand(call).solo_s
    large = Call("all_gather", GIB, 2)
    assert after.demand(large).solo_s == pytest.approx(before.demand(large).solo_s / 2, rel=1e-3)


def test_a_slower_nic_in_front_of_nvlink_makes_the_network_the_path() -> None:
    found = network("dgx1-p100", 2)
    assert found.demand(Call("all_reduce", GIB, 8)).path == "nvlink"
    assert found.demand(Call("all_reduce", GIB, 16)).path == "infiniband"


def test_calls_that_no_cluster_could_answer_are_errors() -> None:
    found = network("dgx1-p100")
    with pytest.raises(ClusterError, match="9 ranks, but 8 devices"):
        found.demand(Call("all_reduce", 1, 9))
    with pytest.raises(ProfileError, match="-1 bytes"):
        found.demand(Call("all_reduce", -1, 2))
    with pytest.raises(ClusterError, match="must be above 0"):
        Network(found.cluster, found.profile, {"nvlink": 0.0})


NETWORKS = {name: network(name) for name in ("dgx1-p100", "dgx1-v100", "dgx-a100", "dgx-h100", "pcie-box")}


@given(
    st.sampled_from(sorted(NETWORKS)),
    st.sampled_from(["all_reduce", "reduce_scatter", "all_gather", "broadcast"]),
    st.integers(2, 8),
    st.integers(0, 10**10),
    st.sampled_from(["nvlink", "pcie", "socket"]),
)
@settings(deadline=None)
def test_a_faster_link_never_slows_a_collective(
    name: str, kind: CollectiveKind, ranks: int, nbytes: int, link: str
) -> None:
    before = NETWORKS[name]
    after = Network(before.cluster, before.profile, {link: 1.1})
    call = Call(kind, nbytes, ranks)
    assert after.demand(call).solo_s <= before.demand(call).solo_s * (1 + 1e-12)
    assert 0 <= before.demand(call).latency_s <= before.demand(call).solo_s


@given(st.sampled_from(sorted(NETWORKS)), st.integers(2, 8), st.integers(1, 10**10))
@settings(deadline=None)
def test_no_ring_beats_its_bound(name: str, ranks: int, nbytes: int) -> None:
    found = NETWORKS[name]
    demand = found.demand(Call("all_reduce", nbytes, ranks))
    if demand.algorithm != "nvls" and demand.origin == "modelled" and not demand.extrapolated:
        rate = found.fabric(ranks).ring_bytes_per_s
        assert demand.solo_s >= 2 * (ranks - 1) / ranks * nbytes / rate


def test_an_answer_is_kept() -> None:
    found = network("dgx-h100", 128)
    call = Call("all_reduce", 1000, 1024)
    assert found.demand(call) is found.demand(call)


@pytest.mark.parametrize(
    ("first", "last", "low", "high"),
    [(2**29, 2**33, -0.03, -0.01), (2**23, 2**28, -0.34, -0.11), (2**15, 2**20, -0.62, -0.21)],
)
def test_without_its_curve_the_a100_model_errs_as_the_readme_says(
    first: int, last: int, low: float, high: float
) -> None:
    """Published all-reduce times of 8 A100, none of which went into the model."""
    profile = shipped("dgx-a100")
    (curve,) = profile.curves
    model = Network(profile.cluster, msgspec.structs.replace(profile, curves=()))
    errors = [
        model.demand(Call("all_reduce", int(size), 8)).solo_s / seconds - 1
        for size, seconds in curve.points
        if first <= size <= last
    ]
    assert len(errors) >= 3
    assert low < min(errors)
    assert max(errors) < high


# --- fits taken at several rates of the interconnect -------------------------------------------------------------


def over_link(bytes_per_s: float, host_s: float = 10e-6, passes: float = 2.0, uncertainty: float = 0.02) -> Fit:
    """Return a fit of 4 ranks: *host_s* of the host, and each byte *passes* times over the link."""
    segments = (Segment(from_bytes=0.0, latency_s=host_s, seconds_per_byte=passes / bytes_per_s),)
    samples = tuple(Sample(nbytes=size, seconds=host_s + size * passes / bytes_per_s) for size in (1e3, 1e8))
    return Fit(
        kind="all_reduce",
        ranks=4,
        nodes=4,
        segments=segments,
        link_bytes_per_s=bytes_per_s,
        samples=samples,
        origin="measured",
        source="a test",
        uncertainty=uncertainty,
    )


def over(bytes_per_s: float, *fits: Fit, nbytes: int = 10**6, scale: float = 1.0) -> Demand:
    """Return the all-reduce of 4 ranks where *fits* are all that was measured; the profile's own rate is 12.5 GB/s."""
    profile = msgspec.structs.replace(shipped("xeon-edr"), fits=fits, curves=())
    cluster = at_link_rate(profile.cluster, bytes_per_s)
    return Network(cluster, profile, {"infiniband": scale}).demand(Call("all_reduce", nbytes, 4))


def trust(demand: Demand) -> tuple[str, bool, float]:
    return demand.origin, demand.extrapolated, demand.uncertainty


@pytest.mark.parametrize("rate", [5e9, 12.5e9, 25e9])
def test_a_fit_at_the_clusters_own_rate_is_used_as_it_is(rate: float) -> None:
    found = over(rate * 1.0005, over_link(5e9), over_link(12.5e9, passes=3.0), over_link(25e9))
    passes = 3.0 if rate == 12.5e9 else 2.0
    # the cluster's rate may be 0.1 % off; the model's part of the answer cancels to as much
    assert found.solo_s == pytest.approx(10e-6 + passes * 1e6 / rate, rel=1e-3)
    exact = over(rate, over_link(5e9), over_link(12.5e9, passes=3.0), over_link(25e9))
    assert exact.solo_s == pytest.approx(10e-6 + passes * 1e6 / rate, rel=1e-12)
    assert trust(exact) == ("measured", False, 0.02)


def test_a_fit_without_a_rate_was_taken_at_the_profiles_own() -> None:
    unsaid = msgspec.structs.replace(over_link(12.5e9), link_bytes_per_s=0.0)
    found = over(12.5e9, unsaid, over_link(25e9, passes=1.0))
    assert found.solo_s == pytest.approx(10e-6 + 2e6 / 12.5e9, rel=1e-12)
    assert found.origin == "measured"


def test_between_two_rates_time_is_linear_in_one_over_the_rate() -> None:
    # 1 MB: 410 us at 5 GB/s and 90 us at 25 GB/s; 12.5 GB/s are 0.08 ns a byte, 1/4 of the way from 0.04 to 0.2
    found = over(12.5e9, over_link(5e9), over_link(25e9, uncertainty=0.07))
    assert found.solo_s == pytest.approx(90e-6 + 0.25 * 320e-6, rel=1e-12)
    assert trust(found) == ("modelled", False, 0.07)
    # at 6.25 GB/s, 0.16 ns: 3/4 of the way
    assert over(6.25e9, over_link(5e9), over_link(25e9)).solo_s == pytest.approx(90e-6 + 0.75 * 320e-6, rel=1e-12)


def test_of_three_rates_the_nearest_two_count() -> None:
    fits = over_link(5e9), over_link(10e9, host_s=110e-6), over_link(25e9)
    # 1 MB: 410 us at 5 GB/s, 310 us at 10 GB/s, 90 us at 25 GB/s
    assert over(20e9, *fits).solo_s == pytest.approx(90e-6 + (0.05 - 0.04) / (0.1 - 0.04) * 220e-6)
    assert over(8e9, *fits).solo_s == pytest.approx(310e-6 + (0.125 - 0.1) / (0.2 - 0.1) * 100e-6)


def test_beyond_the_rates_the_nearest_two_go_on_and_are_marked() -> None:
    fits = over_link(5e9), over_link(10e9), over_link(25e9)
    for rate in (2.5e9, 50e9):
        found = over(rate, *fits)
        assert found.solo_s == pytest.approx(10e-6 + 2e6 / rate, rel=1e-12)
        assert trust(found) == ("modelled", True, MODEL_UNCERTAINTY)


def test_sizes_that_neither_fit_has_seen_are_marked_between_rates_too() -> None:
    found = over(12.5e9, over_link(5e9), over_link(25e9), nbytes=10**9)
    assert found.solo_s == pytest.approx(10e-6 + 2e9 / 12.5e9, rel=1e-12)
    assert trust(found) == ("modelled", True, MODEL_UNCERTAINTY)


def test_beyond_the_rates_neither_host_nor_link_takes_less_than_nothing() -> None:
    # more than all of the time seems to shrink with the rate: at four times the rate a quarter is left, not less
    assert at_rate((1e9, 5.0), (2e9, 2.0), 8e9) == 2.0 / 4
    # the faster link was slower: at a slower one the time stays, and does not fall
    assert at_rate((1e9, 2.0), (2e9, 2.1), 0.5e9) == 2.0
    assert at_rate((1e9, 2.0), (2e9, 2.1), 4e9) == 2.1


@given(st.floats(1e6, 1e12), st.floats(1.01, 100), st.floats(1e-6, 10), st.floats(1e-6, 10), st.floats(1e5, 1e13))
def test_at_any_rate_a_message_takes_time(low: float, ratio: float, a_s: float, b_s: float, rate: float) -> None:
    found = at_rate((low, a_s), (low * ratio, b_s), rate)
    assert found > 0
    if low <= rate <= low * ratio:
        assert min(a_s, b_s) * (1 - 1e-9) <= found <= max(a_s, b_s) * (1 + 1e-9)


def test_one_fit_at_another_rate_is_scaled_by_the_model_and_marked() -> None:
    plain = msgspec.structs.replace(shipped("xeon-edr"), curves=(), fits=())

    def modelled(rate: float) -> float:
        return Network(at_link_rate(plain.cluster, rate), plain).seconds("all_reduce", 10**6, 4)

    found = over(25e9, over_link(5e9))
    assert found.solo_s == pytest.approx((10e-6 + 2e6 / 5e9) * modelled(25e9) / modelled(5e9))
    assert trust(found) == ("modelled", True, MODEL_UNCERTAINTY)


def test_a_made_up_link_is_interpolated_as_a_real_one_is() -> None:
    fits = over_link(5e9), over_link(25e9)
    assert over(6.25e9, *fits, scale=2.0).solo_s == pytest.approx(over(12.5e9, *fits).solo_s, rel=1e-12)


def test_fits_on_other_numbers_of_ranks_are_interpolated_as_curves_are() -> None:
    plain = network("xeon-edr")
    fits = tuple(
        msgspec.structs.replace(
            over_link(12.5e9),
            ranks=n,
            nodes=n,
            segments=(
                Segment(from_bytes=0.0, latency_s=factor * plain.seconds("all_reduce", 10**6, n), seconds_per_byte=0.0),
            ),
        )
        for n, factor in ((2, 1), (8, 2))
    )
    demand = network("xeon-edr", fits=fits, curves=()).demand(Call("all_reduce", 10**6, 4))
    assert demand.solo_s == pytest.approx(1.5 * plain.seconds("all_reduce", 10**6, 4))
    assert trust(demand) == ("modelled", True, MODEL_UNCERTAINTY)


def test_a_rate_that_the_profile_does_not_say_is_a_share_of_this_clusters() -> None:
    profile = msgspec.structs.replace(shipped("xeon-edr"), links=(), point_to_point=None, library=None)
    slow, fast = (Network(at_link_rate(profile.cluster, rate), profile).fabric(4) for rate in (1e9, 10e9))
    assert slow.ring_bytes_per_s == pytest.approx(0.8e9)
    assert fast.ring_bytes_per_s == pytest.approx(8e9)


def test_noise_of_small_messages_makes_no_time_negative_on_a_slower_link() -> None:
    # 22 us at 8 B and 17 us at 1 KiB: on a link of an eighth of the rate 22 - 8 * 5 us would be below 0
    points = ((8.0, 22e-6), (1024.0, 17e-6), (1e6, 250e-6))
    table = PointToPoint(origin="measured", source="a test", points=points)
    profile = msgspec.structs.replace(shipped("xeon-edr"), point_to_point=table, curves=(), fits=())
    kind = profile.cluster.interconnect.kind
    for factor in (1 / 1024, 0.125, 1.0, 8.0):
        scaled = Network(profile.cluster, profile, {kind: factor})
        times = [scaled.seconds("all_reduce", nbytes, 2) for nbytes in (1, 8, 512, 1024, 2**20)]
        assert times == sorted(times)
        assert times[0] > 0


# --- which links a collective uses ---------------------------------------------------------------------------------

EVERY_KIND: tuple[CollectiveKind, ...] = get_args(CollectiveKind)


def used(found: Network, kind: CollectiveKind, ranks: int, nbytes: int = GIB) -> Mapping[str, float]:
    return found.demand(Call(kind, nbytes, ranks)).use


def test_a_ring_of_direct_links_fills_each_of_them_both_ways() -> None:
    # a DGX-1 with P100: 16 NVLinks, all in rings, and nothing else
    busy = used(network("dgx1-p100"), "all_reduce", 8)
    assert len(busy) == 32
    assert busy == pytest.approx(dict.fromkeys(busy, 1.0))
    assert {"gpu0>gpu1", "gpu1>gpu0"} <= busy.keys()


def test_a_ring_over_nodes_fills_nics_and_what_leads_to_them_in_their_shares() -> None:
    # a DGX H100 of 8 NICs: rings move 384 GB/s over them; each GPU sends on 7/8 of them inside, of a port of 370.8 GB/s
    busy = used(network("dgx-h100", 2), "all_gather", 16)
    assert busy["nic0>network"] == busy["network>nic7"] == pytest.approx(1.0)
    assert busy["gpu0>nvswitch0"] == pytest.approx(384 * 7 / 8 / 370.8)


def test_an_all_to_all_in_a_node_fills_every_port_and_over_nodes_the_ways_to_the_nics() -> None:
    alone, two = used(network("dgx-h100"), "all_to_all", 8), used(network("dgx-h100", 2), "all_to_all", 16)
    assert alone == pytest.approx(dict.fromkeys(alone, 1.0))
    # 8/16 of a buffer over PCIe of 48 GB/s, 7/16 through a port of 370.8 GB/s meanwhile
    assert two["gpu0>pcie0"] == pytest.approx(1.0)
    assert two["gpu0>nvswitch0"] == pytest.approx(7 / 8 * 48 / 370.8)


def test_an_exchange_uses_the_links_between_partners_alone() -> None:
    busy = used(network("dgx1-p100"), "exchange", 8)
    pairs = {f"gpu{a}>gpu{a ^ 1}" for a in range(8)}
    assert busy == pytest.approx(dict.fromkeys(pairs, 1.0))


def test_the_way_to_a_server_is_full_and_that_of_each_worker_has_its_part() -> None:
    pushed, pulled = used(network("dgx-h100"), "push", 8), used(network("dgx-h100"), "pull", 8)
    assert (pushed["nvswitch0>gpu7"], pushed["gpu0>nvswitch0"]) == pytest.approx((1.0, 1 / 7))
    assert (pulled["gpu7>nvswitch0"], pulled["nvswitch0>gpu0"]) == pytest.approx((1.0, 1 / 7))


def test_a_server_on_a_cpu_node_receives_what_four_workers_send() -> None:
    found = network("xeon-edr")
    pushed, pulled = used(found, "push", 5), used(found, "pull", 5)
    assert (pushed["network>nic"], pushed["nic>network"]) == pytest.approx((1.0, 1 / 4))
    assert (pulled["network>nic"], pulled["nic>network"]) == pytest.approx((1 / 4, 1.0))


@pytest.mark.parametrize(("name", "nodes"), [("dgx1-p100", 1), ("dgx-h100", 2), ("pcie-box", 1), ("xeon-edr", 1)])
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_the_busiest_link_of_a_collective_is_full(name: str, nodes: int, kind: CollectiveKind) -> None:
    found = network(name, nodes)
    for ranks in (2, 3, 5, 8):
        busy = used(found, kind, ranks)
        assert max(busy.values()) == pytest.approx(1.0)
        assert min(busy.values()) >= LEAST_USE
    assert used(found, kind, 1) == {"network": 1.0}


# --- kinds that no ring serves ---------------------------------------------------------------------------------------


def test_kinds_that_go_straight_take_the_time_of_their_fullest_link_on_gpus() -> None:
    found = network("dgx-h100")
    # a kernel of 5 us, 8.4 + 3.4 us of NCCL's Simple protocol, and a port of 370.8 GB/s
    shares: dict[CollectiveKind, float] = {"all_to_all": 7 / 8, "exchange": 1.0, "push": 7.0, "pull": 7.0}
    kernel_s = found.profile.memory.kernel if found.profile.memory is not None else 0.0
    for kind, share in shares.items():
        demand = found.demand(Call(kind, 10**9, 8))
        assert demand.algorithm == "direct"
        assert demand.solo_s == pytest.approx(kernel_s + 11.8e-6 + share / 370.8)
        assert demand.latency_s == pytest.approx(kernel_s + 11.8e-6)


def test_kinds_that_go_straight_take_the_rounds_of_mpi_on_cpus() -> None:
    # 1 us and 10 GB/s; sums at 5 GB/s
    points = ((0.0, 1e-6), (1e6, 101e-6))
    table = PointToPoint(origin="measured", source="a test", points=points)
    library = Library(name="mpi", origin="measured", source="a test", reduce_bytes_per_s=5e9)
    found = network("xeon-edr", point_to_point=table, library=library)
    expected: dict[CollectiveKind, tuple[str, float]] = {
        "all_to_all": ("pairwise", 4 * (1e-6 + 20e-6)),  # a fifth of 1 MB to each of four others
        "exchange": ("pairs", 101e-6),
        "push": ("direct", 1e-6 + 4 * 100e-6 + 4 * 200e-6),  # over the server's link, and added there
        "pull": ("direct", 1e-6 + 4 * 100e-6),
    }
    for kind, (algorithm, seconds) in expected.items():
        demand = found.demand(Call(kind, 10**6, 5))
        assert demand.algorithm == algorithm
        assert demand.solo_s == pytest.approx(seconds)


@pytest.mark.parametrize("name", ["dgx-h100", "xeon-edr"])
@pytest.mark.parametrize("kind", EVERY_KIND)
@pytest.mark.parametrize("fidelity", ["collectives", "flows"])
def test_one_rank_takes_no_time_whatever_the_kind(name: str, kind: CollectiveKind, fidelity: Fidelity) -> None:
    profile = shipped(name)
    demand = Network(profile.cluster, profile, fidelity=fidelity).demand(Call(kind, GIB, 1))
    assert (demand.solo_s, demand.latency_s, demand.algorithm) == (0.0, 0.0, "none")


def test_without_a_known_library_messages_that_go_straight_are_modelled_too() -> None:
    found = network("dgx-a100", library=None, curves=())
    demand = found.demand(Call("all_to_all", 10**9, 8))
    assert (demand.algorithm, demand.origin) == ("direct", "assumed")
    assert demand.solo_s == pytest.approx(ASSUMED_STEP_S + 7 / 8 / 240)


# --- large machines --------------------------------------------------------------------------------------------------

LARGE = network("dgx-h100", 2048)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_sixteen_thousand_ranks_are_answered(kind: CollectiveKind) -> None:
    demand = LARGE.demand(Call(kind, GIB, 16384))
    # all ranks send or get this much through a GPU's port at least
    assert demand.solo_s > bus_share(kind, 16384) * GIB / 400e9
    assert max(demand.use.values()) == pytest.approx(1.0)


def test_a_push_of_sixteen_thousand_ranks_waits_for_the_servers_pcie() -> None:
    # 16,376 workers on other nodes, 1 MB each, over 48 GB/s
    assert LARGE.seconds("push", 10**6, 16384) == pytest.approx(16376e6 / 48e9, rel=1e-3)


def test_an_all_to_all_of_sixteen_thousand_ranks_fills_every_nic() -> None:
    # of 1 GiB a rank sends all but the 8 parts of its own node over 48 GB/s
    assert LARGE.seconds("all_to_all", GIB, 16384) == pytest.approx(GIB * 16376 / 16384 / 48e9, rel=5e-3)


def test_too_many_messages_at_once_are_refused_in_one_line() -> None:
    static = Network(msgspec.structs.replace(LARGE.cluster, routing="static"), LARGE.profile)
    with pytest.raises(ClusterError) as error:
        static.demand(Call("all_to_all", GIB, 16384))
    assert str(error.value).startswith("direct all-to-all of 16384 ranks: 268,419,072 transfers at once; at most ")
    assert "\n" not in str(error.value)
