"""Fits find the lines, and the sizes at which they switch, that made the data; bad sizes and noise do not fool them."""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration import fits, nccl_tests
from simgd import files
from simgd.errors import ClusterError, ProfileError
from simgd.network import Network, at_link_rate
from simgd.profile import Curve, Fit, Profile, Sample, Segment

DATA = Path(__file__).parent / "data"
PROFILES = Path(__file__).parent.parent / "calibration" / "profiles"
KIB, MIB = 2**10, 2**20

#: 25 sizes from 16 B to 256 MiB, each twice the one before.
SIZES = [16.0 * 2**k for k in range(25)]


def known(nbytes: float, seconds: float, spread: float = 0.0) -> Sample:
    """Return a median of 20 repeats whose 95 % interval is *spread* to both sides."""
    low, high = seconds * (1 - spread), seconds * (1 + spread)
    return Sample(nbytes=nbytes, seconds=seconds, low_s=low, high_s=high, repeats=20)


def fitted(samples: Sequence[Sample]) -> Fit:
    return fits.fit("all_reduce", samples, ranks=8, nodes=1, link_bytes_per_s=0.0, source="a test")


def of_file(name: str) -> Fit:
    measured = nccl_tests.read(DATA / name, "all_reduce")
    times = {row.nbytes: row.out_of_place_s for row in measured.rows}
    return fitted([fits.sample(nbytes, [seconds]) for nbytes, seconds in times.items()])


# --- repeats of one size -----------------------------------------------------------------------------------------


def test_the_interval_of_a_median_lies_between_two_of_the_repeats():
    # of 20 coins at most 5 fall on tails with 2.07 %, at most 6 with 5.77 %: so the 6th and the 15th
    found = fits.sample(64, [1e-6 * k for k in range(20, 0, -1)])
    assert (found.nbytes, found.repeats) == (64.0, 20)
    assert (found.low_s, found.seconds, found.high_s) == pytest.approx((6e-6, 10.5e-6, 15e-6))


def test_of_few_repeats_the_interval_spans_all():
    found = fits.sample(8, [3e-6, 1e-6, 5e-6, 2e-6, 4e-6])
    assert (found.low_s, found.seconds, found.high_s) == (1e-6, 3e-6, 5e-6)


def test_95_of_100_intervals_hold_the_true_median():
    draw = np.random.default_rng(1)
    found = [fits.sample(8, np.exp(0.3 * draw.standard_normal(15)).tolist()) for _ in range(2000)]
    held = sum(each.low_s <= 1.0 <= each.high_s for each in found) / len(found)
    # of 15 the 4th and the 12th hold it with 96.5 %; 2,000 tries tell that to 0.4 %
    assert held == pytest.approx(0.965, abs=0.012)


def test_outliers_are_counted_and_stay():
    usual = [1.00e-6, 1.01e-6, 0.99e-6, 1.02e-6, 0.98e-6, 1.00e-6, 1.01e-6]
    found = fits.sample(8, [*usual, 3e-6])
    assert (found.outliers, found.repeats, found.high_s) == (1, 8, 3e-6)
    assert fits.sample(8, usual).outliers == 0


def test_times_that_a_coarse_clock_makes_equal_leave_no_neighbour_an_outlier():
    assert fits.sample(8, [1e-6] * 9 + [1.02e-6]).outliers == 0
    assert fits.sample(8, [1e-6] * 9 + [1.05e-6]).outliers == 1


def test_a_median_is_settled_within_three_percent_after_five_repeats():
    # half of 0.04 over 1.02 is 2 %, half of 0.08 over 1.02 is 4 %
    assert fits.is_settled([1.00, 1.01, 1.02, 1.03, 1.04])
    assert not fits.is_settled([1.00, 1.01, 1.02, 1.03, 1.08])
    assert fits.is_settled([1.00, 1.01, 1.02, 1.03, 1.08], relative=0.05)
    assert not fits.is_settled([1.0, 1.0, 1.0, 1.0])
    assert not fits.is_settled([])


@pytest.mark.parametrize("times", [[], [0.0], [1e-6, -1e-6], [1e-6, math.nan], [math.inf]])
def test_repeats_that_took_no_time_are_an_error(times):
    with pytest.raises(ProfileError, match="8 B: "):
        fits.sample(8, times)


# --- lines and switches ------------------------------------------------------------------------------------------

latencies = st.floats(1e-6, 1e-3)
rates = st.floats(1e8, 1e12)


@given(latencies, rates, st.lists(st.sampled_from(SIZES), min_size=3, unique=True))
def test_one_line_without_noise_is_one_segment(latency_s, bytes_per_s, sizes):
    found = fitted([known(size, latency_s + size / bytes_per_s) for size in sizes])
    assert len(found.segments) == 1
    for size in SIZES:
        if min(sizes) <= size <= max(sizes):
            assert found.seconds(size) == pytest.approx(latency_s + size / bytes_per_s, rel=1e-6)
    assert found.residual < 1e-6
    assert found.left_out < 1e-6


def noisy_line(seed: int) -> Fit:
    """Return the fit of 20 us + bytes / 10 GB/s with 2 % of normal noise on each size."""
    draw = np.random.default_rng(seed)
    times = [(20e-6 + size / 1e10) * math.exp(0.02 * draw.standard_normal()) for size in SIZES]
    return fitted([known(size, time, 1.96 * 0.02) for size, time in zip(SIZES, times, strict=True)])


def test_a_line_is_recovered_within_its_noise():
    found = [noisy_line(seed) for seed in range(50)]
    off = [[abs(each.seconds(size) / (20e-6 + size / 1e10) - 1) for size in SIZES] for each in found]
    # Some ten sizes tell the latency and ten the rate: 2 % / sqrt(10), times sqrt(pi / 2) since the best line of
    # Laplace's errors is a median, is 0.8 %.
    assert float(np.median(off)) < 0.008
    assert np.max(off) < 0.05


def test_few_noisy_lines_fall_into_two():
    """`SEGMENT_COST` says 2 of 100."""
    assert sum(len(noisy_line(seed).segments) > 1 for seed in range(100)) <= 5


@given(st.integers(3, len(SIZES) - 3), st.floats(1.3, 3.0), st.booleans(), latencies)
def test_a_jump_is_found_between_the_two_sizes_where_it_is(place, factor, up, latency_s):
    after = factor if up else 1 / factor
    times = [latency_s * (after if k >= place else 1.0) for k in range(len(SIZES))]
    found = fitted([known(size, time) for size, time in zip(SIZES, times, strict=True)])
    assert len(found.segments) == 2
    assert SIZES[place - 1] < found.segments[1].from_bytes <= SIZES[place]
    assert [segment.latency_s for segment in found.segments] == pytest.approx([latency_s, latency_s * after])


def test_segments_that_meet_switch_where_they_meet():
    # 10 us, from 64 KiB on 10 us + 1 ns for each byte beyond 64 KiB
    times = [10e-6 + 1e-9 * max(0.0, size - 64 * KIB) for size in SIZES]
    found = fitted([known(size, time) for size, time in zip(SIZES, times, strict=True)])
    assert len(found.segments) == 2
    assert found.segments[1].from_bytes == pytest.approx(64 * KIB)
    assert found.segments[1].latency_s == pytest.approx(10e-6 - 1e-9 * 64 * KIB)


def test_at_a_switch_no_message_is_faster_than_at_both_sizes_beside_it():
    # 60 us up to 64 KiB; then 0.8 ns a byte less 40 us, which is 64.9 us at 128 KiB but 34 us half way, at 92.7 kB
    times = [60e-6 if size <= 64 * KIB else 0.8e-9 * size - 40e-6 for size in SIZES]
    found = fitted([known(size, time) for size, time in zip(SIZES, times, strict=True)])
    assert found.segments[1].from_bytes == pytest.approx(100e-6 / 0.8e-9)
    assert found.seconds(100e3) == pytest.approx(60e-6)


#: Twelve sizes of a quick protocol, thirteen of one with more latency and a higher rate.
TRUE = [10e-6 + size / 1e9 if k < 12 else 60e-6 + size / 1e10 for k, size in enumerate(SIZES)]


@given(st.integers(0, len(SIZES) - 1), st.floats(0.2, 5.0))
def test_one_bad_size_moves_no_other_by_one_percent_and_makes_no_segment(place, factor):
    times = [time * (factor if k == place else 1.0) for k, time in enumerate(TRUE)]
    found = fitted([known(size, time) for size, time in zip(SIZES, times, strict=True)])
    assert len(found.segments) == 2
    for k, (size, time) in enumerate(zip(SIZES, TRUE, strict=True)):
        if k != place:
            assert found.seconds(size) == pytest.approx(time, rel=0.01)
    # beside the switch the other line may be nearer to it
    assert found.residual <= abs(1 / factor - 1) + 0.01


def test_three_bad_sizes_in_a_row_between_unlike_lines_are_a_segment():
    times = [time * (1.5 if 12 <= k < 15 else 1.0) for k, time in enumerate(TRUE)]
    found = fitted([known(size, time) for size, time in zip(SIZES, times, strict=True)])
    assert len(found.segments) == 3
    assert found.residual < 0.01


#: Any times at any sizes, as no machine would have them.
wild = st.lists(
    st.tuples(st.integers(0, 2**34), st.floats(-16.0, 0.0)), min_size=2, max_size=20, unique_by=lambda pair: pair[0]
).map(lambda pairs: [known(float(size), math.exp(log), 0.05) for size, log in sorted(pairs)])


@given(wild)
@settings(deadline=None)
def test_a_fit_takes_time_everywhere_and_never_falls_within_a_segment(samples):
    found = fitted(samples)
    assert 1 <= len(found.segments) <= fits.MOST_SEGMENTS
    least = 3 if len(samples) >= fits.MANY_SIZES else 2
    starts = [segment.from_bytes for segment in found.segments]
    assert starts[0] == 0.0
    for start, end in pairwise([*starts, math.inf]):
        assert sum(start <= each.nbytes < end for each in samples) >= least
    assert all(segment.seconds_per_byte >= 0 for segment in found.segments)
    for size in [0.0, *starts, *(each.nbytes for each in samples), *np.geomspace(1.0, 2.0**36, 100)]:
        assert found.seconds(float(size)) > 0


def cost(samples: Sequence[Sample], segments: Sequence[Segment]) -> float:
    """What `calibration.fits` says that it makes least, written plainly; each sample by the line that holds there."""
    penalty = fits.SEGMENT_COST * math.log(len(samples))
    bad = penalty / 2 if len(samples) >= fits.MANY_SIZES else penalty
    total = penalty * len(segments)
    for each, noise in zip(samples, fits.noise_of(samples), strict=True):
        line = [segment for segment in segments if segment.from_bytes <= each.nbytes][-1]
        error = abs(line.latency_s + each.nbytes * line.seconds_per_byte - each.seconds) / each.seconds
        own = math.sqrt(8) * error / noise
        total += own if own <= bad else bad * (1 + 0.1 * math.log(own / bad))
    return total


@given(st.data())
@settings(deadline=None)
def test_no_lines_that_one_could_draw_are_cheaper(data):
    samples = data.draw(wild)
    found = fitted(samples)
    least = 3 if len(samples) >= fits.MANY_SIZES else 2
    most = min(fits.MOST_SEGMENTS, len(samples) // least)
    count = data.draw(st.integers(1, most))
    spare = len(samples) - least * count
    cuts = sorted(data.draw(st.lists(st.integers(0, spare), min_size=count - 1, max_size=count - 1)))
    firsts = [0, *(least * (k + 1) + cut for k, cut in enumerate(cuts))]
    drawn = []
    floor_s = fits.LEAST_TIME_SHARE * min(each.seconds for each in samples)
    for first, following in pairwise([*firsts, len(samples)]):
        held = samples[first:following]
        near = data.draw(st.sampled_from(held))
        slope = data.draw(st.floats(0.0, 2.0)) * near.seconds / max(near.nbytes, 1.0)
        edge = samples[first - 1].nbytes if first else 0.0
        latency = max(near.seconds * data.draw(st.floats(0.8, 1.25)) - slope * near.nbytes, floor_s - slope * edge)
        start = held[0].nbytes if first else 0.0
        drawn.append(Segment(from_bytes=start, latency_s=latency, seconds_per_byte=slope))
    assert cost(samples, found.segments) <= cost(samples, drawn) * (1 + 1e-9) + 1e-9


@given(wild, st.integers(-10, 10))
@settings(deadline=None)
def test_times_in_another_unit_are_the_same_fit_in_that_unit(samples, power):
    factor = 2.0**power
    scaled = [known(each.nbytes, factor * each.seconds, 0.05) for each in samples]
    one, other = fitted(samples), fitted(scaled)
    assert [each.from_bytes for each in other.segments] == [each.from_bytes for each in one.segments]
    for a, b in zip(one.segments, other.segments, strict=True):
        assert (b.latency_s, b.seconds_per_byte) == (factor * a.latency_s, factor * a.seconds_per_byte)
    assert (other.residual, other.left_out, other.extrapolation) == (one.residual, one.left_out, one.extrapolation)


@given(wild, st.integers(1, 10))
@settings(deadline=None)
def test_sizes_in_another_unit_are_the_same_fit_in_that_unit(samples, power):
    factor = 2.0**power
    one = fitted(samples)
    other = fitted([msgspec.structs.replace(each, nbytes=factor * each.nbytes) for each in samples])
    for a, b in zip(one.segments, other.segments, strict=True):
        assert b.from_bytes == pytest.approx(factor * a.from_bytes)
        assert (b.latency_s, b.seconds_per_byte) == pytest.approx((a.latency_s, a.seconds_per_byte / factor))


def test_the_order_of_the_samples_does_not_matter():
    samples = [known(size, time) for size, time in zip(SIZES, TRUE, strict=True)]
    assert fitted(samples[::-1]) == fitted(samples)


def test_of_very_many_sizes_some_find_the_lines_and_all_are_compared():
    sizes = [1000.0 * k for k in range(1, 1001)]
    samples = [known(size, 1e-5 + size * 1e-10) for size in sizes]
    samples[500] = known(sizes[500], 2 * samples[500].seconds)
    found = fitted(samples)
    assert (len(found.segments), len(found.samples)) == (1, 1000)
    assert found.residual == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "0 sizes were measured; a line needs two or more"),
        ([known(8, 1e-6)], "1 sizes were measured"),
        ([known(8, 1e-6), known(8, 2e-6)], "8 B stands twice"),
        ([known(8, 1e-6), known(16, 0.0)], "16 B took 0.0 s; both must be finite and 0 or more, the time above 0"),
        ([known(8, 1e-6), known(16, math.nan)], "16 B took nan s"),
        ([known(-8, 1e-6), known(16, 1e-6)], "-8 B took"),
    ],
)
def test_what_no_line_can_go_through_is_an_error(samples, message):
    with pytest.raises(ProfileError, match=f"all_reduce of 8 ranks: {message}"):
        fitted(samples)


# --- how far a fit may be trusted --------------------------------------------------------------------------------


def test_a_size_that_is_left_out_is_predicted_from_the_others():
    # 1 us + 1 us a byte, but for 1 % more at 3 B
    found = fitted([known(size, 1e-6 * time) for size, time in ((1, 2.0), (2, 3.0), (3, 4.04), (4, 5.0))])
    assert found.residual == pytest.approx(0.04 / 4.04)
    # without 3 B the line predicts 4; without 2 B it goes through the ends, and predicts 3
    assert found.left_out == pytest.approx(0.04 / 4.04)
    assert found.left_out_median == pytest.approx(0.02 / 4.04)
    # without 4 B it goes through 1 B and 3 B (2 B is 0.02 of 3 off then, else 3 B were 0.04 of 4.04): 2 + 3 * 1.02
    assert found.extrapolation == pytest.approx(0.06 / 5)


def test_of_two_sizes_none_can_be_left_out():
    found = fitted([known(8, 1e-6), known(16, 2e-6)])
    assert (found.left_out, found.left_out_median, found.extrapolation) == (0.0, 0.0, 0.0)


def test_uncertainty_joins_the_intervals_of_the_samples_with_what_the_lines_miss():
    exact = fitted([known(size, 1e-5 + 1e-9 * size, 0.04) for size in SIZES])
    # a 95 % interval of 4 % is a 90 % interval of 4 % * 1.645 / 1.96
    assert exact.uncertainty == pytest.approx(0.04 * 1.645 / 1.96)
    # every second size 3 % low: one of ten errors is above 3 % of 1 / 0.97 or of 1, whichever line is taken
    uneven = fitted([known(s, (1e-5 + 1e-9 * s) * (0.97 if k % 2 else 1.0), 0.04) for k, s in enumerate(SIZES)])
    assert uneven.uncertainty >= math.hypot(0.03, 0.04 * 1.645 / 1.96) * 0.99


def test_sizes_of_one_run_are_known_to_five_percent_at_best():
    found = fitted([fits.sample(size, [1e-5 + 1e-9 * size]) for size in SIZES])
    assert found.uncertainty == pytest.approx(nccl_tests.RUN_UNCERTAINTY, rel=0.02)


def test_twelve_v100_switch_where_the_eye_sees_it():
    """NCCL on 12 GPUs of a DGX-2, 8 B to 8 GiB: 61 us up to some kB; from 1 to 2 MiB 89 us become 143; and 32 MiB
    take 17 % longer than 16 MiB; the last sizes move at 67.4 GB/s."""
    found = of_file("nccl-tests-2.0-12-v100.txt")
    switches = [segment.from_bytes for segment in found.segments[1:]]
    assert any(MIB < nbytes <= 2 * MIB for nbytes in switches)
    assert any(16 * MIB < nbytes <= 32 * MIB for nbytes in switches)
    assert found.segments[0].latency_s == pytest.approx(61e-6, rel=0.01)
    assert 1 / found.segments[-1].seconds_per_byte == pytest.approx(67.4e9, rel=0.01)
    assert found.residual < 0.08
    assert found.left_out_median < 0.01
    # Nothing foretells a switch: without 32 MiB its neighbour's line holds up to 32 MiB and more, and is a third off.
    assert 0.2 < found.left_out < 0.5


def test_four_large_sizes_of_eight_h100_are_one_line():
    """1,119.8, 2,157.5, 4,027.3 and 7,983.5 us at 256 MiB to 2 GiB: by the ends 6,863.7 us for 1.75 GiB."""
    found = of_file("nccl-tests-2.13-8-h100.txt")
    (line,) = found.segments
    assert line.seconds_per_byte == pytest.approx(6863.7e-6 / (1.75 * 2**30))
    # 512 MiB lie a seventh of the way: 1,119.8 + 6,863.7 / 7 = 2,100.3 us
    assert found.residual == pytest.approx(1 - 2100.3 / 2157.5, rel=1e-3)
    assert found.left_out == pytest.approx(found.residual, rel=1e-6)


# --- ranks that are left out -------------------------------------------------------------------------------------


def bare(name: str) -> Profile:
    return msgspec.structs.replace(files.read(PROFILES / f"{name}.json", Profile), curves=(), fits=())


def test_ranks_that_are_left_out_are_predicted_from_the_others():
    profile = bare("xeon-edr")
    model = Network(profile.cluster, profile)

    def curve(ranks: int, factor: float) -> Curve:
        points = tuple((size, factor * model.seconds("all_reduce", int(size), ranks)) for size in SIZES)
        return Curve(kind="all_reduce", ranks=ranks, nodes=ranks, points=points, origin="measured", source="a test")

    measured = msgspec.structs.replace(profile, curves=(curve(2, 1.0), curve(4, 2.0), curve(8, 3.0)))
    found = fits.left_out_ranks(measured, "all_reduce")
    assert [(each.ranks, each.nodes) for each in found] == [(2, 2), (4, 4), (8, 8)]
    # on 4 the ratio to the model is half way in log ranks, 2; beyond the others it is held: 2 instead of 1, 2 of 3
    for each, error in zip(found, (1.0, 0.0, 1 / 3), strict=True):
        assert (each.largest, each.median) == pytest.approx((error, error), abs=1e-9)
    assert fits.left_out_ranks(measured, "broadcast") == ()


def test_a_fit_that_is_left_out_is_asked_for_at_its_own_rate():
    profile = bare("xeon-edr")
    rates = (5e9, 20e9)

    def slower(ranks: int, rate: float) -> Fit:
        """Twice the model at this rate, by its one line in bytes: what it is at 256 MiB, whatever the size."""
        seconds = 2 * Network(at_link_rate(profile.cluster, rate), profile).seconds("all_reduce", 256 * MIB, ranks)
        samples = [known(256 * MIB, seconds), known(512 * MIB, seconds)]
        return fits.fit("all_reduce", samples, ranks=ranks, nodes=ranks, link_bytes_per_s=rate, source="a test")

    measured = msgspec.structs.replace(profile, fits=tuple(slower(n, rate) for n in (2, 4) for rate in rates))
    found = fits.left_out_ranks(measured, "all_reduce")
    assert [(each.ranks, each.link_bytes_per_s) for each in found] == [(n, rate) for n in (2, 4) for rate in rates]
    # At 256 MiB both are twice the model, so each tells the other. At 512 MiB the samples say the same time again, and
    # so does the fit of the other number of ranks: the ratio is 1 on both, but for latencies.
    assert all(each.largest < 0.01 for each in found)


def test_ranks_that_the_cluster_has_no_place_for_are_an_error():
    profile = bare("dgx1-p100")
    measured = Curve(kind="all_reduce", ranks=9, nodes=1, points=((8.0, 1e-6),), origin="measured", source="a test")
    with pytest.raises(ClusterError, match="has no place for 9 ranks on 1 nodes"):
        fits.left_out_ranks(msgspec.structs.replace(profile, curves=(measured,)), "all_reduce")
