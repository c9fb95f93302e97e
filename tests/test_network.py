"""What a collective demands: the model, corrected by what was measured."""

import math
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simgd import fabrics, files
from simgd.collectives import bus_bytes_per_s
from simgd.errors import ClusterError, ProfileError
from simgd.network import ASSUMED_UNCERTAINTY, LATENCY_DOUBT, MODEL_UNCERTAINTY, Call, Network
from simgd.profile import CollectiveKind, Curve, Fit, Origin, Profile, Segment

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
    assert (demand.path, demand.origin, demand.use) == (path, "modelled", {"network": 1.0})


def test_a_small_message_costs_the_latency_of_the_steps() -> None:
    # LL in a ring of 8: 3.6 us + 14 steps of 0.4 us (NCCL v2.5.6)
    demand = network("dgx1-p100").demand(Call("all_reduce", 8, 8))
    assert demand.algorithm == "ring/LL"
    assert demand.latency_s == pytest.approx(9.2e-6)


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


def test_between_points_the_ratio_to_the_model_is_linear_in_log_bytes_and_held_beyond() -> None:
    plain = network("dgx1-p100")
    model = {n: plain.seconds("all_reduce", n, 8) for n in (10**5, 10**6, 10**7, 10**8, 10**9)}
    found = network("dgx1-p100", curves=(curve(8, 1, (10**6, 2 * model[10**6]), (10**8, 4 * model[10**8])),))
    ratios = {n: found.seconds("all_reduce", n, 8) / model[n] for n in model}
    # half way in log bytes: (2 + 4) / 2
    assert ratios == pytest.approx({10**5: 2, 10**6: 2, 10**7: 3, 10**8: 4, 10**9: 4})
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
    [(2**29, 2**33, -0.07, -0.01), (2**23, 2**28, -0.38, -0.16), (2**15, 2**20, -0.69, -0.60)],
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
