"""Figures show the numbers that they were given: lines, bars, strips and boxes are compared with the values."""

import subprocess
import sys
from fractions import Fraction

import msgspec
import pytest
from matplotlib.colors import to_rgb

from simgd import catalogue, figures
from simgd.errors import SimgdError
from simgd.figures import curves, pages, style, timelines
from simgd.figures.strips import strips
from simgd.job import job
from simgd.predict import MOST_WARM_UP, Machine, predict, trace_of
from simgd.trace import Trace

SCHEDULES = ("sync", "bucketed:25MiB", "layerwise", "async:1")

MS = 10**9


@pytest.fixture(scope="module")
def machine():
    cluster = catalogue.cluster("dgx1-p100")
    return Machine(cluster, catalogue.profile_for("dgx1-p100", cluster, []))


@pytest.fixture(scope="module")
def small_job():
    return job(catalogue.workload("alexnet"), batch=16)


@pytest.fixture(scope="module")
def predictions(machine, small_job):
    return predict(machine, small_job, [1, 2, 4, 8], SCHEDULES)


@pytest.fixture(scope="module")
def traces(machine, small_job):
    return figures.traced([machine.study(name, small_job, 8) for name in SCHEDULES])


def _trace(rows, *, name="s"):
    """Return a trace of one rank from (lane, op, iteration, start, end) in milliseconds."""
    lanes, ops = tuple(dict.fromkeys(row[0] for row in rows)), tuple(dict.fromkeys(row[1] for row in rows))
    return Trace(
        origin="simulated",
        schedule=name,
        workload="w",
        cluster="c",
        ranks=1,
        lanes=lanes,
        ops=ops,
        rank=[0] * len(rows),
        lane=[lanes.index(row[0]) for row in rows],
        op=[ops.index(row[1]) for row in rows],
        iteration=[row[2] for row in rows],
        start_ps=[row[3] * MS for row in rows],
        end_ps=[row[4] * MS for row in rows],
    )


def _sync(period, iterations=6):
    """Half of each period computes, the other half communicates."""
    half = period // 2
    rows = []
    for i in range(iterations):
        at = i * period
        rows += [("host", "forward a", i, at, at + 1), ("compute", "forward a", i, at, at + half)]
        rows += [("comm", "all_reduce a", i, at + half, at + period)]
    return _trace(rows)


def _texts(figure):
    return [text.get_text() for holder in (figure, *figure.axes) for text in holder.texts]


# --- speed-ups ---------------------------------------------------------------------------------------------------


def test_each_schedule_has_a_line_of_its_speed_ups_in_both_panels(predictions, traces):
    over_one, over_baseline, _ = figures.speedups_figure(predictions, traces).axes
    for axes, value in ((over_one, "speedup_over_one"), (over_baseline, "speedup_over_baseline")):
        lines = {line.get_label(): line for line in axes.lines}
        for name in SCHEDULES:
            its = [each for each in predictions if each.schedule == name]
            assert list(lines[name].get_xdata()) == [1, 2, 4, 8]
            assert list(lines[name].get_ydata()) == [getattr(each, value) for each in its]


def test_the_ideal_line_is_the_number_of_ranks(predictions, traces):
    over_one = figures.speedups_figure(predictions, traces).axes[0]
    (ideal,) = [line for line in over_one.lines if line.get_label() == "ideal"]
    assert list(ideal.get_xdata()) == list(ideal.get_ydata()) == [1, 2, 4, 8]


def test_the_band_holds_ninety_percent_of_speed_ups_over_one_device(predictions):
    last = predictions[-1]
    assert curves.interval(last) == (last.speedup_over_one_low, last.speedup_over_one_high)
    assert last.speedup_over_one_low < last.speedup_over_one < last.speedup_over_one_high <= 1.01 * last.ranks
    over_one = figures.speedups_figure(predictions, []).axes[0]
    bands = [band for band in over_one.collections if band.get_label() != curves.BAND]
    assert len(bands) == len(SCHEDULES)
    corners = bands[SCHEDULES.index("async:1")].get_paths()[0].vertices
    at_eight = sorted({y for x, y in corners if x == 8})
    assert at_eight == pytest.approx(curves.interval(last))


def test_axes_say_what_they_show_and_title_and_small_print_what_it_rests_on(predictions, traces):
    figure = figures.speedups_figure(predictions, traces)
    over_one, over_baseline, strip = figure.axes
    assert over_one.get_ylabel() == "speed-up over one device"
    assert over_baseline.get_ylabel() == "speed-up over bucketed:25MiB"
    assert over_one.get_xlabel() == over_baseline.get_xlabel() == "ranks"
    assert strip.get_xlabel() == "time on rank 0 of 8 since the start of an iteration (ms)"
    assert "alexnet on dgx1-p100, batch 16 a rank" in _texts(figure)
    said = pages.rests_on(predictions)
    assert " ".join(said.split()) in " ".join(_texts(figure))
    for part in ("forward", "communication", "profile dgx1-p100"):
        assert part in said


def test_one_number_of_ranks_gives_bars_as_long_as_the_numbers_printed_on_them(predictions):
    eight = [each for each in predictions if each.ranks == 8]
    over_one, over_baseline = figures.speedups_figure(eight, []).axes
    for axes, value in ((over_one, "speedup_over_one"), (over_baseline, "speedup_over_baseline")):
        numbers = [getattr(each, value) for each in eight]
        assert [bar.get_width() for bar in axes.patches] == numbers
        assert [text.get_text() for text in axes.texts] == [f"{number:.2f}" for number in numbers]
    assert [label.get_text() for label in over_one.get_yticklabels()] == list(SCHEDULES)


def test_many_ranks_are_drawn_on_logarithmic_axes_with_plain_numbers(predictions):
    wide = [msgspec.structs.replace(each, ranks=each.ranks**4) for each in predictions if each.schedule == "sync"]
    figure = figures.speedups_figure(wide, [])
    over_one = figure.axes[0]
    assert (over_one.get_xscale(), over_one.get_yscale()) == ("log", "log")
    figure.draw_without_rendering()
    assert [label.get_text() for label in over_one.get_xticklabels()] == ["1", "16", "256", "4096"]


def test_a_global_batch_is_said_to_be_one(machine, small_job):
    rows = predict(machine, small_job, [1, 2], ["sync"], global_batch=32)
    assert pages.title_of(rows) == "alexnet on dgx1-p100, batch 32 in all"


def test_predictions_of_two_machines_are_refused(predictions):
    other = msgspec.structs.replace(predictions[0], cluster="dgx1-v100")
    with pytest.raises(SimgdError, match="shows one workload on one machine, but was given 2"):
        figures.speedups_figure([*predictions, other], [])


@pytest.mark.parametrize("names", [("sync",), (*SCHEDULES, "layerwise:tensor", "layerwise:join", "async:1:all")])
@pytest.mark.parametrize("ranks", [[8], [1, 2, 4, 8]])
def test_no_text_overlaps_another_or_leaves_the_page(machine, small_job, names, ranks):
    rows = predict(machine, small_job, ranks, names)
    with style.paper():
        figure = pages.speedups(rows, figures.traced([machine.study(name, small_job, 8) for name in names]))
        figure.set_dpi(200)
        renderer = figure.canvas.get_renderer() if hasattr(figure.canvas, "get_renderer") else _renderer(figure)
        figure.draw(renderer)
        assert _collisions(figure, renderer) == []


def _renderer(figure):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    return FigureCanvasAgg(figure).get_renderer()


def _collisions(figure, renderer):
    page = figure.bbox
    texts = list(figure.texts) + [text for legend in figure.legends for text in legend.get_texts()]
    for axes in figure.axes:
        texts += [*axes.texts, axes.xaxis.label, axes.yaxis.label]
        for axis, (first, last) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, sorted(axes.get_ylim()))):
            # matplotlib keeps ticks beyond the ends, which it does not draw
            texts += [tick.label1 for tick in axis.get_major_ticks() if first <= tick.get_loc() <= last]
        texts += axes.get_legend().get_texts() if axes.get_legend() else []
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts if text.get_text().strip()]
    found = [name for name, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > page.x1 or box.y1 > page.y1]
    for index, (name, box) in enumerate(boxes):
        # a pixel of margin: extents are rounded up
        found += [(name, other) for other, its in boxes[index + 1 :] if box.padded(-1.5).overlaps(its.padded(-1.5))]
    return found


# --- strips ------------------------------------------------------------------------------------------------------


def test_strips_share_one_time_axis_of_so_many_iterations_of_the_slowest():
    figure = figures.timeline_figure([("slow", _sync(20)), ("fast", _sync(10))], window=2.0)
    (axes,) = figure.axes
    assert axes.get_xlim()[1] == pytest.approx(40.0)
    assert axes.get_xlabel() == "time on rank 0 since the start of an iteration (ms)"
    slow, fast = strips([("slow", _sync(20)), ("fast", _sync(10))], window=2.0)
    assert slow.starts_s == pytest.approx((0.0, 0.02, 0.04))
    assert fast.starts_s == pytest.approx((0.0, 0.01, 0.02, 0.03, 0.04))


def test_a_strip_states_its_period_and_how_long_compute_runs():
    (strip,) = strips([("half", _sync(20))], window=2.0)
    # 10 ms of each 20 ms compute
    assert strip.period_s == pytest.approx(0.020)
    assert strip.busy == 0.5
    texts = _texts(figures.timeline_figure([("half", _sync(20))]))
    assert "half" in texts
    assert "20.0 ms" in texts
    assert "compute busy 50 %" in texts


def test_issuing_on_the_host_is_told_from_work_that_the_host_runs():
    issued = strips([("gpu", _sync(20))], window=1.0)[0]
    assert {(bar.lane, bar.kind) for bar in issued.bars} == {
        ("host", "host issue"),
        ("compute", "forward"),
        ("comm", "communication"),
    }
    rows = [("host", "forward a", i, 10 * i, 10 * i + 8) for i in range(4)]
    (merged,) = strips([("cpu", _trace(rows))], window=2.0)
    assert {bar.kind for bar in merged.bars} == {"forward"}
    assert merged.lanes == ("host",)
    assert merged.busy == pytest.approx(0.8)


def test_messages_of_an_earlier_iteration_are_numbered_as_such():
    rows = []
    for i in range(6):
        rows += [
            ("compute", "forward a", i, 10 * i, 10 * i + 10),
            ("comm", "all_reduce a", i, 10 * i + 10, 10 * i + 18),
        ]
    (strip,) = strips([("late", _trace(rows))], window=2.0)
    # while iteration 0 of the strip computes, the message of the one before it travels
    first = min((bar for bar in strip.bars if bar.lane == "comm"), key=lambda bar: bar.start_s)
    assert (first.iteration, first.start_s) == (-1, 0.0)
    assert "\u22121" in _texts(figures.timeline_figure([("late", _trace(rows))]))


def test_a_strip_is_taken_from_the_end_of_its_trace_where_iterations_are_steady():
    rows = [("compute", "forward a", 0, 0, 90)]
    rows += [("compute", "forward a", i, 100 + 10 * i, 106 + 10 * i) for i in range(1, 8)]
    (strip,) = strips([("warm", _trace(rows))], window=2.0)
    assert strip.period_s == pytest.approx(0.010)
    assert strip.starts_s == pytest.approx((0.0, 0.010, 0.020))


def test_updates_owed_after_the_last_iteration_begin_no_iteration():
    rows = [("compute", "forward a", i, 10 * i, 10 * i + 9) for i in range(3)] + [("compute", "update a", 3, 30, 31)]
    (strip,) = strips([("drained", _trace(rows))], window=2.0)
    assert len(strip.starts_s) == 3


def test_the_strips_of_a_prediction_have_its_periods(predictions, traces, machine, small_job):
    for strip in strips(traces, window=2.0):
        study = machine.study(strip.label, small_job, 8)
        assert strip.period_s == pytest.approx(float(study.steady.period_ps / Fraction(10**12)))


def test_traced_fills_the_window_of_every_schedule(traces):
    found = strips(traces, window=pages.WINDOW)
    window = pages.WINDOW * max(strip.period_s for strip in found)
    for strip in found:
        assert max(bar.end_s for bar in strip.bars) >= 0.97 * window


def test_every_drawn_bar_lies_in_the_row_of_its_lane(traces):
    axes = figures.timeline_figure(traces).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    rows = dict(zip(axes.get_yticks(), names, strict=True))
    for drawn in axes.collections:
        for path in drawn.get_paths():
            middle = (path.vertices[:, 1].min() + path.vertices[:, 1].max()) / 2
            lane = rows[min(rows, key=lambda tick: abs(tick - middle))]
            assert (lane == "comm") == (drawn.get_label() == "communication")
            assert (lane == "host") == (drawn.get_label() == "host issue")


def test_a_trace_of_one_iteration_is_refused():
    with pytest.raises(SimgdError, match=r"timeline of 'one': its trace holds 1 iterations; two or more are needed"):
        figures.timeline_figure([("one", _sync(20, iterations=1))])


def test_work_on_one_lane_is_told_apart_in_grey_too():
    def lightness(color):
        red, green, blue = to_rgb(color)
        return 0.30 * red + 0.59 * green + 0.11 * blue

    forward, backward, update = (lightness(timelines.COLORS[kind]) for kind in ("forward", "backward", "update"))
    assert forward - backward > 0.2
    assert backward - update > 0.2


# --- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ending", "first"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_the_ending_decides_the_kind_of_file_and_the_same_figure_is_the_same_bytes(ending, first, tmp_path):
    cluster = catalogue.cluster("dgx1-p100")
    for name in ("a", "b"):
        figures.topology(cluster, tmp_path / f"{name}.{ending}")
    one, other = ((tmp_path / f"{name}.{ending}").read_bytes() for name in ("a", "b"))
    assert one.startswith(first)
    assert one == other
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("name", "said"), [("p.gif", r"p\.gif: '\.gif' is no picture"), ("p", "p: its name has no ending")]
)
def test_another_ending_is_refused_with_what_would_be_right(name, said, tmp_path):
    with pytest.raises(SimgdError, match=said + r"; end the name in \.png, \.pdf or \.svg"):
        figures.topology(catalogue.cluster("pcie-box"), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_the_three_figures_are_written(predictions, traces, tmp_path):
    figures.speedups(predictions, traces, tmp_path / "speedups.png")
    figures.timeline(traces, tmp_path / "timeline.png", title="predicted")
    figures.topology(catalogue.cluster("dgx-a100"), tmp_path / "graph.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graph.png", "speedups.png", "timeline.png"]


def test_a_prediction_without_a_plot_imports_no_matplotlib():
    code = (
        "import sys; from simgd.cli import main\n"
        "sys.argv = ['simgd', 'predict', 'mlp', '--on', 'dgx1-p100', '--ranks', '2']\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert 'matplotlib' not in sys.modules and 'simgd.figures' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_trace_as_the_command_line_makes_it_can_be_drawn(machine, small_job, tmp_path):
    figures.timeline([("sync", trace_of(machine.study("sync", small_job, 8)))], tmp_path / "t.svg")
    assert "compute busy" in (tmp_path / "t.svg").read_text()


def test_a_long_warm_up_is_run_through_before_a_strip_begins(machine, small_job):
    study = machine.study("async_layerwise:2", small_job, 8)
    assert study.steady.warm_up > MOST_WARM_UP
    (strip,) = strips(figures.traced([study]), window=2.0)
    assert strip.period_s == pytest.approx(study.period_s)
