"""Output of the OSU micro-benchmarks; where the files come from stands in data/SOURCES.md."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from calibration.osu import Measurement, Row, parse, to_curve, to_point_to_point, to_rate
from simgd.errors import FileError, SimgdError

DATA = Path(__file__).parent / "data"


def text_of(name: str) -> str:
    return (DATA / f"osu-micro-benchmarks-{name}.txt").read_text()


def read(name: str) -> Measurement:
    return parse(text_of(name), "osu.txt")


ALLREDUCE = text_of("5.6.2-allreduce-64")


@pytest.mark.parametrize(
    ("name", "kind", "version", "rows", "last"),
    [
        ("5.6.2-allreduce-64", "all_reduce", "5.6.2", 19, Row(2**20, 7403.33e-6, None)),
        ("5.6.2-allgather-64", "all_gather", "5.6.2", 21, Row(2**20, 196016.56e-6, None)),
        ("5.6.3-reduce-scatter-2", "reduce_scatter", "5.6.3", 19, Row(2**20, 520.80e-6, None)),
        ("5.9-bcast-2", "broadcast", "5.9", 21, Row(2**20, 179.68e-6, None)),
        ("7.0-cuda-allreduce-4", "all_reduce", "7.0", 1, Row(2**24, 8630.58e-6, None)),
        ("7.5-allreduce-576", "all_reduce", "7.5", 19, Row(2**20, 1064.92e-6, None)),
    ],
)
def test_collectives_of_versions_5_to_7_are_read(name: str, kind: str, version: str, rows: int, last: Row) -> None:
    found = read(name)
    assert (found.kind, found.version, len(found.rows), found.blocking) == (kind, version, rows, True)
    assert found.rows[-1].nbytes == last.nbytes
    assert found.rows[-1].value == pytest.approx(last.value, rel=1e-12)


def test_of_a_non_blocking_collective_the_pure_communication_counts_and_overlap_is_only_told() -> None:
    found = read("5.6.3-iallreduce-2")
    assert (found.kind, found.blocking) == ("all_reduce", False)
    # the row: 4  8.77 overall  5.32 compute  4.43 pure  22.08 %
    assert found.rows[0] == Row(4, pytest.approx(4.43e-6), 22.08)
    assert found.tool == "osu_iallreduce of OSU micro-benchmarks 5.6.3, pure communication (overlap 0-22 %, not used)"


def test_an_all_gathers_sizes_are_one_ranks_share_and_the_curve_counts_the_whole() -> None:
    gathered = to_curve(read("5.6.2-allgather-64"), "a test", ranks=64, nodes=2)
    assert gathered.points[-1] == (64 * 2**20, pytest.approx(0.19601656))
    reduced = to_curve(read("5.6.2-allreduce-64"), "a test", ranks=64, nodes=2)
    assert (reduced.points[0][0], reduced.points[-1][0]) == (4, 2**20)
    assert (reduced.ranks, reduced.nodes, reduced.origin) == (64, 2, "measured")


def test_latency_gives_one_way_seconds_from_0_bytes_on_and_bandwidth_its_largest_rate() -> None:
    latency = to_point_to_point(read("5.6.2-latency"), "a test")
    assert latency.points[0] == (0.0, pytest.approx(1.5e-6))
    assert latency.points[-1] == (2**22, pytest.approx(642.53e-6))
    rate = to_rate(read("5.6.2-bw"), "a test", "infiniband")
    assert rate.bytes_per_s == pytest.approx(10865.80e6)  # at 1 MiB; larger messages were slower again


def test_point_to_point_messages_are_no_collective() -> None:
    with pytest.raises(FileError, match=r"osu\.txt: measures latency between two ranks, no collective"):
        to_curve(read("5.6.2-latency"), "a test", ranks=2, nodes=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("# OSU MPI Allreduce Latency Test", "# OSU MPI Alltoall Latency Test"), "osu.txt: measures 'Alltoall'; it "),
        (("# OSU MPI Allreduce Latency Test v5.6.2", ""), "osu.txt: has no title"),
        (("# Size", "# Sise"), "osu.txt: has no line of columns"),
        (("Avg Latency(us)", "Overall(us)"), "osu.txt: line 4: no column is a latency"),
        (("Avg Latency(us)", "Bandwidth (MB/s)"), "osu.txt: columns are 'size, bandwidth (mb/s)', which 'OSU MPI "),
        (("142.88", "142,88"), "osu.txt: line 16: time '142,88' is not a number of microseconds above 0"),
        (("142.88", "inf"), "osu.txt: line 16: time 'inf' is not a number"),
        (("142.88", "-1"), "osu.txt: line 16: time '-1' is not a number"),
        (("142.88", ""), "osu.txt: line 16: '16384' has 1 fields; the columns are 2"),
        (("16384  ", "8192  "), "osu.txt: line 16: size 8192 stands after 8192; sizes must grow"),
        (("16384  ", "64  "), "osu.txt: line 16: size 64 stands after 8192; sizes must grow"),
        (("16384  ", "1e4  "), "osu.txt: line 16: size '1e4' is not a number of bytes"),
        (("16384  ", "mpirun noticed\n16384  "), "osu.txt: line 17: a row stands after other output"),
        (("16384  ", "# Size       Avg Latency(us)\n16384  "), "osu.txt: line 16: a second table begins"),
        (("16384  ", "# OSU MPI Latency Test v5.6.2\n16384  "), "osu.txt: line 16: a second benchmark begins"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_its_number(change: tuple[str, str], message: str) -> None:
    with pytest.raises(FileError) as error:
        parse(ALLREDUCE.replace(*change), "osu.txt")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_run_that_ended_before_its_first_result_is_an_error() -> None:
    with pytest.raises(FileError, match="has no rows; the run ended before its first result"):
        parse("\n".join(ALLREDUCE.splitlines()[:3]), "osu.txt")


def complaint(text: str) -> str:
    """What is wrong with *text*, empty if it is a curve; any error but ours ends the test."""
    try:
        to_curve(parse(text, "osu.txt"), "a test", ranks=2, nodes=1)
    except SimgdError as error:
        return str(error)
    return ""


@given(st.text())
@example("# OSU MPI Allreduce Latency Test v5\n# Size       Avg Latency(us)\n4 1e400\n")
@example("# OSU MPI Allreduce Latency Test v5\n# Size       Avg Latency(us)\n\u0664 1\n")
def test_any_text_is_a_measurement_or_an_error_of_one_line(text: str) -> None:
    assert len(complaint(text).splitlines()) <= 1


@given(st.lists(st.tuples(st.integers(0, len(ALLREDUCE)), st.text(max_size=8), st.integers(0, 40)), max_size=4))
def test_damaged_output_is_a_measurement_or_an_error_of_one_line(damage: list[tuple[int, str, int]]) -> None:
    text = ALLREDUCE
    for place, new, gone in damage:
        text = text[:place] + new + text[place + gone :]
    assert len(complaint(text).splitlines()) <= 1
