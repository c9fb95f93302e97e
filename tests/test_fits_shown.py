"""What a profile holds is shown whole: in tables, and as a picture whose lines and dots are the profile's numbers."""

import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calibration import fits
from simgd import catalogue, figures, files, profilereport, showing
from simgd.errors import FileError
from simgd.network import Call, Network
from simgd.profile import Curve, Fit, Interference, LayerTimes, Profile, Sample
from simgd.provenance import Environment, Host

ABOUT = {"origin": "measured", "source": "a test on two benches"}

#: 16 B to 256 MiB: 10 us at first, from 64 KiB on 60 us and ten times the rate; 16 kB are half as long again.
SIZES = [16.0 * 2**k for k in range(25)]
TIMES = [(10e-6 + s / 1e9 if s < 2**16 else 60e-6 + s / 1e10) * (1.5 if s == 2**14 else 1.0) for s in SIZES]


def a_fit(kind: str = "all_reduce", ranks: int = 8) -> Fit:
    samples = [
        Sample(nbytes=size, seconds=time, low_s=0.98 * time, high_s=1.02 * time, repeats=20, outliers=k % 2)
        for k, (size, time) in enumerate(zip(SIZES, TIMES, strict=True))
    ]
    return fits.fit(kind, samples, ranks=ranks, nodes=1, link_bytes_per_s=0.0, source="back to back")  # type: ignore[arg-type]


def a_profile(**changes: object) -> Profile:
    profile = msgspec.structs.replace(
        catalogue.profile("dgx1-p100"),
        name="bench",
        backend="nccl",
        fits=(a_fit(),),
        curves=(),
        interference=(
            Interference(compute="matrix", path="nvlink", compute_factor=1.2, communication_factor=1.6, **ABOUT),
        ),
        layers=tuple(
            LayerTimes(workload="net", batch=4, direction=direction, seconds={"a": s, "b": 2 * s}, **ABOUT)  # type: ignore[arg-type]
            for direction, s in (("forward", 1e-3), ("backward", 2e-3))
        ),
        environment=Environment(
            hosts=(Host(processor="Fast 9000", cores=8, memory_bytes=32e9, kernel="Linux 6", gpus=("P100",) * 8),),
            host_of_rank=[0] * 8,
            library="NCCL 2.5.6",
            launcher="torchrun",
            versions={"torch": "2.11"},
            command="simgd calibrate --backend nccl",
            commit="abc123",
            date="2026-11-25",
        ),
    )
    return msgspec.structs.replace(profile, **changes)


# --- tables ------------------------------------------------------------------------------------------------------


@pytest.fixture
def shown(simgd):
    def show(profile: Profile) -> list[str]:
        files.write("p.json", profile)
        ran = simgd("show p.json")
        assert ran.status == 0
        return [" ".join(line.split()) for line in ran.out.splitlines()]

    return show


def test_a_profile_says_on_what_it_was_measured_and_how_to_measure_it_again(shown):
    lines = shown(a_profile())
    assert lines[0].startswith("profile bench: ")
    assert lines[1:6] == [
        "8 ranks on Fast 9000, 8 cores, 32 GB, Linux 6, 8 x P100",
        "nccl: NCCL 2.5.6, started by torchrun",
        "torch 2.11",
        "2026-11-25; commit abc123",
        "simgd calibrate --backend nccl",
    ]


def test_a_fit_is_a_line_with_its_range_errors_repeats_and_source(shown):
    lines = shown(a_profile())
    (line,) = [line for line in lines if line.startswith("all-reduce") and "25, 16 B" in line]
    # the one bad size is 1/3 too long; without it, or any other, nothing changes but at the switch: 64 KiB would be
    # 75.5 us of the first line or 66.6 us of the second
    assert line.startswith("all-reduce 8 on 1 node 25, 16 B .. 268 MB 2 33.3 % ")
    # 20 repeats of each of 25 sizes, of which every second has an outlier
    assert re.search(r" 500 12 \d+ % measured \[1\]$", line)
    assert "[1] back to back" in lines


def test_the_lines_of_a_fit_are_shown_with_the_sizes_at_which_they_switch(shown):
    lines = shown(a_profile())
    at = lines.index("lines ranks from latency then")
    assert lines[at + 1] == "all-reduce 8 on 1 node 0 B 10 us 1 GB/s"
    start = a_fit().segments[1].from_bytes
    assert 2**15 < start <= 2**16
    assert lines[at + 2] == f"{profilereport.show_bytes(start)} 60 us 10 GB/s"


def test_where_nothing_could_be_left_out_no_error_is_claimed(shown):
    two = fits.fit(
        "broadcast", [fits.sample(8, [1e-6]), fits.sample(16, [2e-6])], ranks=2, nodes=1, link_bytes_per_s=0, source="x"
    )
    (line,) = [line for line in shown(a_profile(fits=(two,))) if line.startswith("broadcast 2 on 1 node 2, ")]
    assert " 0.0 % - - - 2 0 " in line


def test_layers_are_summed_and_curves_and_other_entries_have_units(shown):
    curve = Curve(kind="broadcast", ranks=4, nodes=1, points=((1e3, 2e-6), (1e6, 3e-3)), uncertainty=0.05, **ABOUT)
    lines = shown(a_profile(curves=(curve,)))
    # 1 + 2 ms and 2 + 4 ms
    assert any(line.startswith("net 4 fp32 forward 2 3 ms - - measured") for line in lines)
    assert any(line.startswith("net 4 fp32 backward 2 6 ms - - measured") for line in lines)
    assert any(line.startswith("broadcast 4 on 1 node 2, 1 kB .. 1 MB 2 us .. 3 ms 5 % measured") for line in lines)
    assert any(line.startswith("LinkRate kind nvlink, bytes_per_s 18 GB/s 5 % published") for line in lines)
    assert lines.count("[2] a test on two benches") == 1


@pytest.mark.parametrize("name", catalogue.names("profile"))
def test_every_source_of_a_shipped_profile_stands_once_under_the_number_that_cites_it(shown, name):
    profile = catalogue.profile(name)
    lines = shown(profile)
    for entry in profilereport.entries(profile):
        (cited,) = [
            line for line in lines if re.fullmatch(rf"\[\d+\] {re.escape(' '.join(entry.source.split()))}", line)
        ]
        number = cited.partition(" ")[0]
        assert any(line.endswith(number) for line in lines)


# --- pictures ----------------------------------------------------------------------------------------------------


def drawn(profile: Profile) -> Figure:
    return figures.profile_figure(profile)


def of(axes: Axes, name: str) -> list[tuple[np.ndarray, np.ndarray]]:
    lines = [line for line in axes.lines if line.get_gid() == name]
    return [(np.asarray(line.get_xdata()), np.asarray(line.get_ydata())) for line in lines]


def texts(figure: Figure) -> list[str]:
    held = [text.get_text() for axes in figure.axes for text in (*axes.texts, axes._left_title)]
    return [text.get_text() for text in figure.texts] + held


def test_dots_bars_and_lines_are_the_samples_and_the_fit():
    profile = a_profile()
    (fit,) = profile.fits
    upper = drawn(profile).axes[0]
    ((sizes, times),) = of(upper, "samples")
    assert (sizes.tolist(), times.tolist()) == (SIZES, TIMES)
    bars = of(upper, "bar")
    assert len(bars) == 25
    assert bars[3][1].tolist() == pytest.approx([0.98 * TIMES[3], 1.02 * TIMES[3]])
    ((start, _),) = of(upper, "switch 1")
    assert set(start) == {fit.segments[1].from_bytes}
    for index, segment in enumerate(fit.segments):
        ((at, line),) = of(upper, f"line {index}")
        assert line == pytest.approx(segment.latency_s + at * segment.seconds_per_byte)
    ((first, _),) = of(upper, "line 0")
    ((second, _),) = of(upper, "line 1")
    assert (first[0], second[-1]) == pytest.approx((SIZES[0], SIZES[-1]))
    assert first[-1] == pytest.approx(second[0])


def test_the_model_beside_a_fit_knows_nothing_of_it():
    profile = a_profile()
    bare = Network(profile.cluster, msgspec.structs.replace(profile, fits=(), curves=()))
    ((sizes, times),) = of(drawn(profile).axes[0], "model")
    for size, seconds in zip(sizes, times, strict=True):
        assert seconds == bare.demand(Call("all_reduce", round(size), 8)).solo_s


def test_residuals_are_percent_of_the_sample_and_what_lies_beyond_the_axis_is_marked():
    lower = drawn(a_profile()).axes[1]
    low, high = lower.get_ylim()
    # all sizes are met but one, which is 1.5 times the line: the fit is a third too low there
    ((sizes, off),) = of(lower, "samples")
    assert sizes.tolist() == [size for size in SIZES if size != 2**14]
    assert off == pytest.approx(np.zeros(24), abs=1e-6)
    ((beyond, edge),) = of(lower, "beyond")
    assert beyond[0] == 2**14
    assert low <= edge[0] < 0
    assert high < 33
    assert "-33 %" in texts(drawn(a_profile()))
    # an interval of 2 % to both sides of a time is one of 1 / 0.98 and 1 / 1.02 of what is off
    assert of(lower, "bar")[0][1] == pytest.approx([100 / 1.02 - 100, 100 / 0.98 - 100])


def test_a_curve_is_laid_beside_the_model():
    profile = a_profile(fits=(), layers=(), curves=())
    model = Network(profile.cluster, profile)
    points = tuple((s, 1.25 * model.seconds("all_reduce", int(s), 8)) for s in (1e4, 1e6, 1e8))
    curve = Curve(kind="all_reduce", ranks=8, nodes=1, points=points, **ABOUT)
    upper, lower = drawn(a_profile(fits=(), layers=(), curves=(curve,))).axes
    ((sizes, times),) = of(upper, "curve")
    assert list(zip(sizes, times, strict=True)) == list(points)
    ((_, off),) = of(lower, "samples")
    assert off == pytest.approx([-20.0] * 3)  # 1 / 1.25


def test_messages_between_nodes_have_no_model_and_no_residuals():
    profile = catalogue.profile("xeon-edr")
    (axes,) = drawn(msgspec.structs.replace(profile, fits=(), curves=(), layers=())).axes
    ((sizes, _),) = of(axes, "samples")
    assert profile.point_to_point is not None
    # 0 bytes have no place on a logarithmic axis
    assert sizes.tolist() == [size for size, _ in profile.point_to_point.points if size > 0]


def test_bars_are_the_layers_of_the_longest_workload_in_both_directions():
    short = LayerTimes(workload="short", batch=1, direction="forward", seconds={"x": 1e-6}, **ABOUT)
    figure = drawn(a_profile(layers=(short, *a_profile().layers)))
    axes = figure.axes[-1]
    forward, backward = axes.containers
    assert [bar.get_height() for bar in forward] == pytest.approx([1.0, 2.0])  # ms
    assert [bar.get_height() for bar in backward] == pytest.approx([2.0, 4.0])
    assert [text.get_text() for text in axes.get_xticklabels()] == ["a", "b"]
    assert "net, batch 4: time of each layer" in texts(figure)


def test_twelve_panels_are_drawn_and_the_others_counted():
    many = tuple(msgspec.structs.replace(a_fit(), ranks=ranks) for ranks in range(2, 17))
    figure = drawn(a_profile(fits=many, layers=()))
    assert sum(bool(of(axes, "line 0")) for axes in figure.axes) == 12
    assert "3 more fits and curves are not shown" in texts(figure)
    for text in figure.findobj(lambda artist: hasattr(artist, "get_text")):
        assert "nan" not in text.get_text()


def test_the_small_print_tells_errors_outliers_interference_and_provenance():
    figure = drawn(a_profile())
    said = "\n".join(texts(figure))
    for part in (
        "profile bench: ",
        "NCCL 2.5.6; 2026-11-25; commit abc123",
        "8 ranks on 1 node",
        "residual 33 %",
        "12 of 500 repeats are outliers",
        "matrix-bound over nvlink 1.2x and 1.6x (measured)",
    ):
        assert part in said


def test_no_words_of_one_panel_run_into_another_or_off_the_page():
    many = tuple(
        msgspec.structs.replace(a_fit(), kind=kind, ranks=ranks, link_bytes_per_s=12.5e6)
        for kind in ("reduce_scatter", "point_to_point")
        for ranks in (2, 16, 128)
    )
    figure = drawn(a_profile(fits=many, layers=()))
    figure.draw_without_rendering()
    page = figure.bbox
    for axes in figure.axes:
        room = axes.get_position().transformed(figure.transFigure)
        for text in (*axes.texts, axes._left_title):
            box = text.get_window_extent()
            assert page.x0 <= box.x0
            assert box.x1 <= min(page.x1, room.x1 + 0.66 * figure.dpi), text.get_text()


def test_a_profile_without_times_has_no_picture_of_its_own():
    nothing = a_profile(fits=(), curves=(), layers=(), point_to_point=None)
    with pytest.raises(FileError, match="profile 'bench' holds no times by size or by layer"):
        drawn(nothing)
    assert showing.drawn("p", (nothing,)) == nothing.cluster


def test_a_file_of_a_profile_draws_its_times_and_a_name_the_machine(simgd):
    files.write("p.json", a_profile())
    assert simgd("show p.json --plot p.svg").status == 0
    assert "all-reduce" in Path("p.svg").read_text()
    assert simgd("show dgx1-p100 --plot m.svg").status == 0
    assert "all-reduce" not in Path("m.svg").read_text()
    assert simgd("show mlp --plot w.svg").status == 2


def test_one_picture_is_the_same_bytes_twice(tmp_path):
    for name in ("a.svg", "b.svg"):
        figures.profile(a_profile(), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
