"""The study of NCCL's protocols says what its record says, and what simgd says today."""

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
STUDY = ROOT / "studies" / "nccl_protocols"
KIB, MIB = 2**10, 2**20


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The study's script; it runs from the root of the repository."""
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("studies.nccl_protocols.tables")


def text() -> str:
    """README.md in one line."""
    return re.sub(r"\s+", " ", (STUDY / "README.md").read_text(encoding="utf-8"))


def test_the_tables_are_those_of_the_record_and_of_today_s_model(tables: ModuleType) -> None:
    """If the model has changed: `python -m studies.nccl_protocols.tables write`, and read the text again."""
    readme = (STUDY / "README.md").read_text(encoding="utf-8")
    assert tables.written(readme) == readme


def test_a_channel_moves_what_the_text_says(tables: ModuleType) -> None:
    one, eight = (
        [tables.channel_bytes_per_s("Ring", protocol, most) for protocol in ("LL", "LL128", "Simple")]
        for most in (1, 8)
    )
    # constants: 141/24, 36.7/2 and 38.7/2 GB/s
    shares = [rate / constant for rate, constant in zip(one, (141e9 / 24, 36.7e9 / 2, 38.7e9 / 2), strict=True)]
    assert [round(share, 2) for share in shares] == [0.89, 0.87, 1.08]
    assert all(0.91 < b / a < 1 for a, b in zip(one, eight, strict=True))
    assert "0.89 of its constant in LL, 0.87 in LL128 and 1.08 in Simple" in text()
    small = tables.forced("Ring", "LL", 1)
    assert round(1e-9 * (MIB - 128 * KIB) / (small[MIB] - small[128 * KIB]), 1) == 7.3


def test_one_channel_leaves_no_time_for_a_last_chunk(tables: ModuleType) -> None:
    times = tables.forced("Ring", "Simple", 1)
    s_per_byte = (times[64 * MIB] - times[32 * MIB]) / (32 * MIB)
    left_s = times[8 * MIB] - 8 * MIB * s_per_byte
    assert [round(1e6 * seconds) for seconds in (times[8 * MIB], 8 * MIB * s_per_byte, left_s)] == [414, 400, 14]
    assert left_s < times[8]
    # a chunk of 2 MiB at 19.35 GB/s
    assert round(2 * MIB / 19.35e3) == 108


def test_large_messages_speed_up_by_a_tenth(tables: ModuleType) -> None:
    times = tables.forced("Ring", "Simple")
    rates = [(b - a) * MIB / (times[b * MIB] - times[a * MIB]) for a, b in ((64, 256), (512, 1024))]
    assert [round(1e-9 * rate) for rate in rates] == [309, 351]
    assert "309 GB/s between 64 and 256 MiB and 351 between 512 MiB and 1 GiB" in text()


def test_the_bus_bandwidths_of_1_gib_are_those_of_the_text(tables: ModuleType) -> None:
    # two ranks: 2(n-1)/n = 1 of an all-reduce, 1/2 of an all-gather and reduce-scatter, 1 of a broadcast
    shares = {"all_gather": 0.5, "reduce_scatter": 0.5, "all_reduce": 1.0, "broadcast": 1.0}
    rates = [round(1e-9 * share * 2**30 / tables.measured(kind)[2**30]) for kind, share in shares.items()]
    assert rates == [266, 273, 324, 366]
    assert "reach 266 and 273 GB/s of bus bandwidth where the all-reduce reaches 324 and a broadcast 366" in text()


def test_the_figure_is_drawn_and_small(tables: ModuleType, tmp_path: Path) -> None:
    plot = importlib.import_module("studies.nccl_protocols.plot")
    plot.draw(tmp_path / "drawn.png")
    for path in (tmp_path / "drawn.png", STUDY / "bandwidths.png"):
        assert 10_000 < path.stat().st_size < 150_000
