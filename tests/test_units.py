"""Units are parsed at the edge and printed at the edge; between them everything is SI."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simgd import units
from simgd.errors import UnitError

READERS = (units.rate, units.seconds, units.nbytes, units.flop_rate)
PLAIN = st.floats(min_value=1e-3, max_value=1e6)


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [
        ("25 GB/s", 25e9),
        ("400 Gb/s", 50e9),
        ("1 GiB/s", 2**30),
        ("8kb/s", 1000),
        ("0.5 TB/s", 5e11),
        (" 25  GB/s ", 25e9),
        ("2.5e1 GB/s", 25e9),
        ("1_000 MB/s", 1e9),
    ],
)
def test_a_rate_is_bytes_per_second(text, bytes_per_s):
    assert units.rate(text) == bytes_per_s


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1.5 us", 1.5e-6), ("3ms", 3e-3), ("20 ns", 2e-8), ("1 ps", 1e-12), ("2 µs", 2e-6), ("7 s", 7)],
)
def test_a_time_is_seconds(text, seconds):
    assert units.seconds(text) == seconds


@pytest.mark.parametrize(
    ("text", "count"),
    [("25MB", 25_000_000), ("25MiB", 25 * 2**20), ("8", 8), ("8B", 8), ("1.5 kB", 1500), ("16 GB", 16e9)],
)
def test_a_size_is_whole_bytes(text, count):
    found = units.nbytes(text)
    assert found == count
    assert isinstance(found, int)


def test_tenths_are_exact():
    # 0.3 * 1e-6 is 3.0000000000000004e-07 or less in floats; the unit is applied to the decimal number.
    assert units.seconds("0.3 us") == 3e-7
    assert units.rate("31.5 GB/s") == 31_500_000_000


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "GB/s",
        "25 Gps",
        "25 gb/s",
        "1,5 us",
        "-1 GB/s",
        "nan GB/s",
        "inf s",
        "1e999 s",
        "1e300 PB/s",
        "½ s",
        "0x10 B",
        "1 2 s",
        "1 B/s/s",
        "٣ B",
        "1" * 50 + " s",
        "--1 s",
        "1..2 s",
        "1e s",
        "5 furlongs",
    ],
)
def test_what_cannot_be_read_is_shown_with_the_units_that_can(read, text):
    with pytest.raises(UnitError, match="write a number and"):
        read(text)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("value", [True, None, [], {}, math.nan, math.inf, -1, -0.5, 10**400])
def test_no_value_but_a_number_of_0_or_more(read, value):
    with pytest.raises(UnitError, match="write a number and"):
        read(value)


def test_half_a_byte_is_refused():
    with pytest.raises(UnitError, match="whole number of bytes"):
        units.nbytes("16.5 B")


@given(st.text(max_size=30) | st.from_regex(r"[+-]?[0-9._]{0,6}(e[+-]?[0-9]{1,4})? ?[kMGTPiBbs/unmpFLO]{0,7}"))
def test_any_text_is_a_quantity_or_one_error(text):
    for read in READERS:
        try:
            found = read(text)
        except UnitError:
            continue
        assert 0 <= found < math.inf


@given(PLAIN, st.sampled_from(["B", "kB", "MB", "GB", "TB"]))
def test_1_byte_is_8_bits_whatever_the_prefix(value, unit):
    bits = unit.replace("B", "b")
    assert units.rate(f"{value!r} {unit}/s") == pytest.approx(8 * units.rate(f"{value!r} {bits}/s"), rel=1e-12)


@given(PLAIN)
def test_1000_of_a_unit_are_1_of_the_next(value):
    for small, large in (("ps", "ns"), ("ns", "us"), ("us", "ms"), ("ms", "s")):
        assert units.seconds(f"{value!r} {large}") == pytest.approx(1000 * units.seconds(f"{value!r} {small}"))
    for small, large in (("GFLOP/s", "TFLOP/s"), ("MFLOP/s", "GFLOP/s")):
        assert units.flop_rate(f"{value!r} {large}") == pytest.approx(1000 * units.flop_rate(f"{value!r} {small}"))


@given(st.integers(0, 2**40))
def test_binary_sizes_are_exact(count):
    assert units.nbytes(f"{count} KiB") == 1024 * count


@given(st.floats(min_value=1e-9, max_value=1e4))
def test_a_printed_time_can_be_read_and_is_right_to_three_digits(value_s):
    assert units.seconds(units.show_seconds(value_s)) == pytest.approx(value_s, rel=5e-3)


@given(st.floats(min_value=1, max_value=1e15))
def test_a_printed_rate_or_size_can_be_read_and_is_right_to_three_digits(value):
    assert units.rate(units.show_rate(value)) == pytest.approx(value, rel=5e-3)
    assert units.rate(f"{units.show_bytes(value)}/s") == pytest.approx(value, rel=5e-3)


@pytest.mark.parametrize(
    ("value_s", "text"), [(0.0, "0 s"), (0.9996e-3, "1 ms"), (1.0, "1 s"), (123.4, "123 s"), (4567.0, "4567 s")]
)
def test_times_are_printed_in_the_largest_unit_that_keeps_them_above_1(value_s, text):
    assert units.show_seconds(value_s) == text


def test_the_clock_counts_whole_picoseconds():
    assert units.picoseconds(1.5e-12) == 2
    assert units.picoseconds(100e-6) == 100_000_000


@pytest.mark.parametrize("value_s", [math.inf, math.nan, 1e300])
def test_no_clock_counts_forever(value_s):
    with pytest.raises(UnitError, match="more than any clock"):
        units.picoseconds(value_s)


@given(st.integers(1, 10**6), st.integers(1, 1000), st.floats(min_value=1.1, max_value=64))
def test_a_span_of_sizes_grows_from_its_first_and_stays_below_its_last(first, times, factor):
    found = units.sizes(f"{first}B:{first * times}B:x{factor!r}")
    assert found[0] == first
    assert found == sorted(set(found))
    assert found[-1] <= first * times + 1


@pytest.mark.parametrize(
    "text", ["8B:4B:x2", "0B:8B:x2", "8B:64B:x1", "8B:64B:xnan", "8B:64B", "8B:64B:2", "1B:1GB:x1.00001"]
)
def test_a_span_that_leads_nowhere_is_refused(text):
    with pytest.raises(UnitError, match="such as 64KiB,1MiB"):
        units.sizes(text)


@given(st.lists(st.integers(0, 999_999_999), min_size=1, max_size=8))
def test_counts_are_read_as_they_are_written(numbers):
    assert units.counts(",".join(map(str, numbers)), "--ranks") == tuple(numbers)


@pytest.mark.parametrize("text", ["", ",", "1,,2", "-1", "1.5", "1e3", "x", "٣", "9" * 12])
def test_counts_are_whole_numbers(text):
    with pytest.raises(UnitError, match="is not a whole number of 0 or more"):
        units.counts(text, "--ranks")
