"""Output of nccl-tests as it is found in the wild: captured text, published by others.

`2.0`: a DGX-2, before the collective's name was printed, whole; `2.0-failed`: another run there, of which only the last
rows and two of the ranks are kept; `2.12`: two nodes under mpirun (documentation of AWS EKS blueprints), most rows and
messages left out; `2.13`: eight H100, whole; `2.18.3`: two nodes with four GPUs each (documentation of NRIS, Olivia),
most rows left out. Versions before 2.17 do not print theirs; the names of those files tell it from the format.
"""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from calibration import published
from calibration.nccl_tests import Row, compare, parse, read, to_curve
from simgd.errors import ClusterError, FileError, SimgdError
from simgd.network import Network
from simgd.profile import Profile

DATA = Path(__file__).parent / "data"
PROFILES = published.profiles()
H100 = (DATA / "nccl-tests-2.13-8-h100.txt").read_text()


def found(profile: Profile) -> Network:
    return Network(profile.cluster, profile)


def test_a_table_without_root_and_group_is_read() -> None:
    measured = read(DATA / "nccl-tests-2.0-12-v100.txt", "all_reduce")
    assert (measured.kind, measured.ranks, measured.nodes, len(measured.rows)) == ("all_reduce", 12, 1, 31)
    assert measured.rows[17] == Row(1048576, 89.15 * 1e-6, 88.14 * 1e-6)


def test_a_table_of_one_process_with_eight_gpus_is_read() -> None:
    measured = read(DATA / "nccl-tests-2.13-8-h100.txt", "all_reduce")
    assert (measured.ranks, measured.nodes) == (8, 1)
    assert [row.nbytes for row in measured.rows] == [2**28, 2**29, 2**30, 2**31]


def test_tags_of_mpirun_and_nccls_messages_are_passed_over_and_empty_messages_left_out() -> None:
    measured = read(DATA / "nccl-tests-2.12-mpirun-2-nodes.txt", "all_reduce")
    assert (measured.ranks, measured.nodes) == (2, 2)
    assert [row.nbytes for row in measured.rows] == [4, 1024, 2**20, 2**30]


def test_newer_versions_name_the_collective_and_hosts_make_the_nodes() -> None:
    measured = read(DATA / "nccl-tests-2.18.3-2x4-gh200.txt")
    assert (measured.kind, measured.ranks, measured.nodes) == ("all_reduce", 8, 2)
    assert measured.rows[-1].out_of_place_s == pytest.approx(2309.49e-6)


def test_a_run_with_wrong_values_is_refused() -> None:
    with pytest.raises(FileError, match="line 13: the test found 4 wrong values"):
        read(DATA / "nccl-tests-2.0-failed.txt", "all_gather")


def test_a_measurement_becomes_a_curve_that_a_prediction_then_meets() -> None:
    measured = read(DATA / "nccl-tests-2.13-8-h100.txt", "all_reduce")
    curve = to_curve(measured, "a test")
    assert curve.points[2] == (2**30, 4027.3 * 1e-6)
    profile = PROFILES["dgx-h100"]
    later = Profile(name="measured", cluster=profile.cluster, curves=(curve,))
    for row in compare(measured, found(profile.updated(later))):
        assert abs(row.relative_error) < 1e-12
        assert row.predicted.origin == "measured"


def test_several_rows_of_one_size_become_their_median() -> None:
    lines = H100.splitlines()
    twice = "\n".join(
        [*lines[:-3], lines[15].replace("1119.8", "1219.8"), lines[15].replace("1119.8", "9119.8"), *lines[-3:]]
    )
    curve = to_curve(parse(twice, "x", "all_reduce"), "a test")
    assert curve.points[0] == (2**28, 1219.8 * 1e-6)


def test_large_messages_of_machines_that_no_profile_was_made_from_are_predicted() -> None:
    # a check of the mechanism (rings on NVLink, in-switch reduction): from 32 MiB, or 256 MiB, on
    v100 = compare(read(DATA / "nccl-tests-2.0-12-v100.txt", "all_reduce"), found(PROFILES["dgx2-v100"]))
    assert max(abs(row.relative_error) for row in v100 if row.nbytes >= 2**25) < 0.14
    assert max(abs(row.relative_error) for row in v100 if row.nbytes >= 2**27) < 0.065
    h100 = compare(read(DATA / "nccl-tests-2.13-8-h100.txt", "all_reduce"), found(PROFILES["dgx-h100"]))
    assert max(abs(row.relative_error) for row in h100) < 0.13


def test_ranks_that_a_cluster_cannot_hold_are_an_error() -> None:
    measured = read(DATA / "nccl-tests-2.18.3-2x4-gh200.txt")
    with pytest.raises(ClusterError) as error:
        compare(measured, found(PROFILES["dgx-h100"]))
    assert str(error.value).endswith("was measured with 8 ranks on 2 nodes; cluster 'dgx-h100' has 1 node of 8 devices")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("1119.8", "1119,8"), "x: line 16: time '1119,8' is not a number of microseconds above 0"),
        (("1119.8", "nan"), "x: line 16: time 'nan' is not a number of microseconds above 0"),
        (
            ("   268435456      ", "   268435456 7 "),
            "x: line 16: '268435456 7 67108864     float     sum      -1   1119.8",
        ),
        (("   268435456      ", "   many      "), "x: line 16: size 'many' is not a number of bytes"),
        (("Rank  3", "Rank  9"), "x: has no line '# Rank 3', but 8 others"),
        (("Rank  3", "Rank  2"), "x: line 7: rank 2 stands twice; a file holds the output of one run"),
        (("Rank  3 Group  0", "Rank  3 Group  1"), "x: has 2 groups of ranks; run nccl-tests without splitting them"),
        (("#       size ", "#      sizes "), "x: has no line of columns"),
        (
            ("# nThread", "# Collective test starting: gather_perf\n# nThread"),
            "x: measures 'gather'; it must be one of",
        ),
        (
            ("# nThread", "# Collective test starting: all_gather_perf\n# nThread"),
            "x: measures all_gather, not all_reduce",
        ),
    ],
)
def test_what_cannot_be_read_is_one_line_with_its_number(change: tuple[str, str], message: str) -> None:
    with pytest.raises(FileError) as error:
        parse(H100.replace(*change), "x", "all_reduce")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_missing_facts_are_named() -> None:
    with pytest.raises(FileError, match="does not say which collective was measured; it must be one of all_reduce, "):
        parse(H100, "x")
    bare = "\n".join(line for line in H100.splitlines() if "Rank" not in line)
    assert parse(bare, "x", "all_reduce").ranks == 8  # one process with 8 GPUs
    with pytest.raises(FileError, match="has no '# Rank' lines; say how many ranks ran"):
        parse(bare.replace("nGpus 8", "nGpus 1"), "x", "all_reduce")
    told = parse(bare.replace("nGpus 8", "nGpus 1"), "x", "all_reduce", ranks=16, nodes=2)
    assert (told.ranks, told.nodes) == (16, 2)
    with pytest.raises(FileError, match="has no rows"):
        parse("\n".join(H100.splitlines()[:15]), "x", "all_reduce")
    with pytest.raises(FileError, match="there is no such file"):
        read(DATA / "no-such-file.txt")


def complaint(text: str) -> str:
    """What is wrong with *text*, empty if it is a measurement; any error but ours ends the test."""
    try:
        to_curve(parse(text, "x", "all_reduce"), "a test")
    except SimgdError as error:
        return str(error)
    return ""


@given(st.text())
@example("# size count type time\n")
@example("# size count type time\n1 1 float 1e400\n")
@example("# size count type time\n\u0661 1 float 1\n")
def test_any_text_is_a_measurement_or_an_error_of_one_line(text: str) -> None:
    assert len(complaint(text).splitlines()) <= 1


@given(st.lists(st.tuples(st.integers(0, len(H100)), st.text(max_size=8), st.integers(0, 40)), max_size=4))
def test_damaged_output_is_a_measurement_or_an_error_of_one_line(damage: list[tuple[int, str, int]]) -> None:
    text = H100
    for place, new, gone in damage:
        text = text[:place] + new + text[place + gone :]
    assert len(complaint(text).splitlines()) <= 1
