"""A table of measured layers becomes a workload and a profile, or one line that says what is wrong with it."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.tables import parse_table, read_table, robust_curve
from simgd import files
from simgd.errors import SimgdError
from simgd.profile import Profile
from simgd.topology import Cluster
from simgd.workload import Tensor, Workload

K80 = Path(__file__).parent / "data" / "googlenet_k80_caffe_layers.csv"

SMALL = """\
# Two layers,
# measured by hand.
layer,weight_elements,bias_elements,forward_ms,backward_us,allreduce_2_weight_us,allreduce_2_bias_us
conv,1000,10,1.5,3000,40,20
1,2000,,0.5,1000,80,
"""


def small(text: str = SMALL, **options: Cluster) -> tuple[Workload, Profile]:
    return parse_table(text, where="small.csv", name="small", **options)


def test_rows_are_layers_and_columns_their_tensors():
    workload, _ = small()
    assert [layer.name for layer in workload.layers] == ["conv", "layer1"]
    assert workload.layers[0].tensors == (Tensor("conv.weight", (1000,)), Tensor("conv.bias", (10,)))
    assert workload.layers[1].tensors == (Tensor("layer1.weight", (2000,)),)
    assert workload.description == "Two layers, measured by hand."


def test_a_table_has_no_flops():
    workload, _ = small()
    assert not workload.counted()


def test_times_are_read_in_their_units():
    _, profile = small()
    forward, backward = profile.layers
    assert (forward.direction, forward.seconds) == ("forward", {"conv": 1.5e-3, "layer1": 0.5e-3})
    assert (backward.direction, backward.seconds) == ("backward", {"conv": 3000 * 1e-6, "layer1": 1000 * 1e-6})
    assert forward.workload == backward.workload == "small"
    assert forward.batch == backward.batch == 0
    assert forward.source == "Two layers, measured by hand."


def test_all_reduce_times_become_a_curve_over_bytes():
    _, profile = small()
    (curve,) = profile.curves
    assert (curve.kind, curve.ranks, curve.nodes) == ("all_reduce", 2, 2)
    assert curve.points == ((40.0, 20 * 1e-6), (4000.0, 40 * 1e-6), (8000.0, 80 * 1e-6))
    assert curve.uncertainty == 0


def test_an_unknown_machine_is_called_a_placeholder():
    _, profile = small()
    assert profile.cluster.size == 2
    assert "placeholder" in profile.cluster.source
    assert "placeholder" in profile.cluster.device.source


def test_the_callers_cluster_is_taken():
    _, profile = small()
    lab = Cluster(name="lab", device=profile.cluster.device, vertices={"gpu": "device"})
    _, profile = small(cluster=lab)
    assert profile.cluster is lab


def test_a_table_without_times_is_a_workload_alone():
    workload, profile = small("layer,w_elements\na,3\nb,4\n")
    assert workload.parameters == 7
    assert profile.layers == ()
    assert profile.curves == ()


def test_what_was_read_can_be_written_and_read():
    workload, profile = small()
    assert files.parse(files.to_toml(workload), Workload, where="", toml=True) == workload
    assert files.parse(files.to_json(profile), Profile, where="", toml=False) == profile


@pytest.mark.parametrize("ending", ["\r\n", "\n\n"])
def test_line_ends_blank_lines_and_a_byte_order_mark_do_not_matter(ending):
    assert small("\ufeff" + SMALL.replace("\n", ending)) == small()


# The published table


def test_the_published_table_is_googlenet_with_its_measured_backward_pass():
    workload, profile = read_table(K80)
    assert workload.name == profile.name == "googlenet_k80_caffe_layers"
    assert len(workload.layers) == 64
    assert workload.parameters == 13_379_136  # 13,378,280, each bias padded to a multiple of 64
    assert workload.backward[0].name == "layer63"
    (backward,) = profile.layers
    assert backward.direction == "backward"
    assert backward.seconds["layer0"] == pytest.approx(14_744e-6)
    assert sum(backward.seconds.values()) == pytest.approx(0.201533)
    assert [curve.ranks for curve in profile.curves] == [2, 4]
    assert profile.cluster.size == 4
    assert "MG-WFBP" in backward.source


def test_outliers_of_the_published_table_do_not_bend_its_curves():
    _, profile = read_table(K80)
    for curve in profile.curves:
        times = dict(curve.points)
        assert all(a <= b for (_, a), (_, b) in pairwise(curve.points))
        # Two samples of 8 MiB say the top; 4 nodes' 8,346 us for 512 bytes must not raise the bottom above 1 ms.
        assert times[512.0] < 1e-3
    two, four = profile.curves
    assert dict(two.points)[8388608.0] == pytest.approx((14_441e-6 + 14_563e-6) / 2)
    assert dict(four.points)[8388608.0] == pytest.approx((27_557e-6 + 24_758e-6) / 2)


def test_the_study_holds_the_same_table():
    assert (Path(__file__).parents[1] / "studies" / "googlenet_k80" / "layers.csv").read_bytes() == K80.read_bytes()


# The curve


def test_one_outlier_among_three_samples_changes_nothing():
    assert robust_curve([(1000, 5.0), (1000, 900.0), (1000, 4.0)]) == ((1000.0, 5.0),)


def test_where_a_larger_message_seems_faster_both_take_their_weighted_mean():
    # three samples of 4 us, then one of 2 us: (3 x 4 + 2) / 4
    samples = [(100, 4.0), (100, 4.0), (100, 4.0), (200, 2.0), (400, 6.0)]
    assert robust_curve(samples) == ((100.0, 3.5), (200.0, 3.5), (400.0, 6.0))


@given(st.lists(st.tuples(st.integers(4, 2**40), st.floats(1e-7, 1e3)), min_size=1, max_size=60))
def test_a_curve_rises_with_size_and_stays_within_its_samples(samples):
    points = robust_curve(samples)
    assert all(a < b for (a, _), (b, _) in pairwise(points))
    assert all(a <= b for (_, a), (_, b) in pairwise(points))
    slack = 1e-9
    low, high = min(time for _, time in samples), max(time for _, time in samples)
    assert all(low * (1 - slack) <= time <= high * (1 + slack) for _, time in points)


@given(st.lists(st.tuples(st.integers(4, 2**40), st.floats(1e-7, 1e3)), min_size=1, max_size=60), st.randoms())
def test_the_order_of_the_samples_does_not_matter(samples, random):
    shuffled = list(samples)
    random.shuffle(shuffled)
    assert robust_curve(shuffled) == robust_curve(samples)


# Tables that are refused


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "layer,weight",
            "name,weight",
            r"small\.csv: line 3: column 'name' is unknown; the columns are layer, TENSOR_el",
        ),
        ("layer,", "", r"line 3: there is no column 'layer'"),
        ("bias_elements,", "biases,", r"line 3: column 'biases' is unknown"),
        ("bias_elements,", "weight_elements,", r"line 3: column 'weight_elements' stands twice"),
        ("forward_ms", "backward_ms", r"line 3: column 'backward_us' says again what another column says"),
        ("allreduce_2_bias", "allreduce_2_gain", r"line 3: all-reduce times of 'gain' need a column 'gain_elements'"),
        ("allreduce_2_bias", "allreduce_1_bias", r"line 3: column 'allreduce_1_bias_us': an all-reduce takes 2 ranks"),
        (",40,20", ",40", r"line 4: has 6 cells where the header has 7; is the line cut off\?"),
        ("3000", "-3000", r"line 4: backward time: '-3000' is not a number of 0 or more"),
        ("3000", "nan", r"line 4: backward time: 'nan' is not a number of 0 or more"),
        ("3000", "inf", r"line 4: backward time: 'inf' is not a number of 0 or more"),
        ("3000", "", r"line 4: backward time: '' is not a number of 0 or more"),
        (",40,20", ",0,20", r"line 4: all-reduce of 'weight' on 2 ranks: takes 0; it must be above 0"),
        ("conv,1000", "conv,10.5", r"line 4: weight_elements: '10\.5' is not a whole number above 0"),
        ("conv,1000", "conv,0", r"line 4: weight_elements: '0' is not a whole number above 0"),
        ("conv,1000", "conv,1e30", r"line 4: weight_elements: '1e30' is not a whole number above 0"),
        ("\n1,", "\nconv,", r"line 5: layer 'conv' stands twice"),
        ("\n1,", "\n,", r"line 5: the layer '' is not a name"),
        (",80,\n", ",80,9\n", r"line 5: all-reduce of 'bias' on 2 ranks: has a time, but the layer has no such tensor"),
        ("conv,", '"conv,', r"line 4: is not CSV"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(old, new, message):
    assert SMALL.count(old) >= 1
    with pytest.raises(SimgdError, match=message):
        small(SMALL.replace(old, new, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"small\.csv: has no header; it must name the columns layer"),
        ("# only a comment\n", r"small\.csv: has no header"),
        ("layer,w_elements\n", r"small\.csv: has no rows"),
        ("layer,backward_us\na,3\n", r"small\.csv: line 1: there is no column TENSOR_elements"),
        ("layer,w_elements\na,\n", r"small\.csv: workload 'small': has no parameters"),
    ],
)
def test_an_empty_table_is_refused(text, message):
    with pytest.raises(SimgdError, match=message):
        small(text)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SimgdError, match=r"t\.csv: is not text in UTF-8"):
        read_table(tmp_path / "t.csv")
    with pytest.raises(SimgdError, match=r"none\.csv: there is no such file"):
        read_table(tmp_path / "none.csv")


CELLS = st.one_of(
    st.text(max_size=8),
    st.integers(-3, 10**20).map(str),
    st.floats().map(str),
    st.sampled_from(
        [
            "layer",
            "w_elements",
            "b_elements",
            "forward_s",
            "backward_us",
            "allreduce_2_w_us",
            "allreduce_04_b_ms",
            "#",
            '"',
        ]
    ),
)
TABLES = st.lists(st.lists(CELLS, max_size=5).map(",".join), max_size=6).map("\n".join)


def changed(table: str, place: int, size: int, text: str) -> str:
    at = place % len(table)
    return table[:at] + text + table[at + size :]


@given(
    st.one_of(
        st.text(),
        TABLES,
        st.builds(changed, st.just(SMALL), st.integers(0), st.integers(0, 30), st.text(max_size=6) | CELLS),
        TABLES.map(lambda rows: "layer,w_elements,backward_us,allreduce_2_w_us\n" + rows),
    )
)
def test_any_text_is_read_or_refused_in_one_line(text):
    try:
        workload, profile = small(text)
    except SimgdError as error:
        assert "small.csv" in str(error)  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert files.parse(files.to_toml(workload), Workload, where="", toml=True) == workload
        assert files.parse(files.to_json(profile), Profile, where="", toml=False) == profile
