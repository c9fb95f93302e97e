"""Probes and the profile that they make: on real ranks, and their sums on numbers whose truth is known."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration import beside, local, messages
from calibration.messages import Key
from executor.backends import loopback
from simgd import cli, files
from simgd.profile import ORIGINS, Execution, Profile, ScheduledKind

# --- a whole calibration on real ranks ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """Two MPI ranks of this machine, with messages of up to 64 KiB and one small network."""
    out = tmp_path_factory.mktemp("calibrated") / "here.json"
    line = f"calibrate --backend mpi --ranks 2 --workload mlp --batch 8 --largest 64KiB --out {out}"
    assert cli.run(line.split()) == 0
    return out


def test_a_calibration_leaves_one_profile_with_its_origin_and_nothing_else(calibrated):
    assert [path.name for path in calibrated.parent.iterdir()] == ["here.json"]
    found = files.read(calibrated, Profile)
    assert found.backend == "mpi"
    assert found.environment is not None
    assert found.environment.command.startswith("simgd calibrate")
    assert found.environment.versions["simgd"]
    weak = [
        entry for entry in (*found.layers, *found.updates, *found.fits, found.execution) if entry.origin != ORIGINS[0]
    ]
    assert not weak


def test_every_layer_has_a_time_in_both_directions_and_every_kind_a_fit(calibrated):
    found = files.read(calibrated, Profile)
    assert {entry.direction for entry in found.layers} == {"forward", "backward"}
    for entry in found.layers:
        assert list(entry.seconds) == sorted(["0", "2", "4", "6"], reverse=entry.direction == "backward")
        assert min(entry.seconds.values()) > 0
    assert {fit.kind for fit in found.fits} == set(ScheduledKind.__args__)  # type: ignore[attr-defined]
    reduce = next(fit for fit in found.fits if fit.kind == "all_reduce")
    # from 4 bytes of each of two ranks to 64 KiB, and the messages of the network between them
    assert reduce.range == (8, 2**16)
    assert {sample.nbytes for sample in reduce.samples} >= {2.0**k for k in range(3, 17)} | {4 * 2570}
    assert all(sample.repeats >= 5 for sample in reduce.samples)


def test_mpi_needs_looks_and_never_fewer_for_more_data(calibrated):
    looks = files.read(calibrated, Profile).execution.looks
    assert len(looks) == len(beside.SMALL_SIZES) + len(beside.SIZES)
    assert all(n <= m for (_, n), (_, m) in pairwise(looks))
    assert looks[0][1] >= 1


def test_the_profile_predicts_for_the_machine_it_was_measured_on(calibrated, capsys):
    line = f"predict mlp --on {calibrated} --ranks 2 --batch 8 --schedules sync,layerwise,async_layerwise:auto --json"
    assert cli.run(line.split()) == 0
    rows = files.parse(capsys.readouterr().out.encode(), dict, where="stdout", toml=False)["predictions"]
    assert [row["origin"] for row in rows] == ["assumed"] * 3 or {row["origin"] for row in rows} <= {
        "measured",
        "modelled",
    }
    for row in rows:
        assert row["iteration_low_s"] <= row["median_s"] <= row["iteration_high_s"]
    # The largest message, 4 * 150,794 bytes, is beyond the 64 KiB that were measured.
    assert rows[0]["extrapolated"] is True


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("calibrate --backend loopback --out x.json", "backend 'loopback' is unknown"),
        ("calibrate --backend nccl --compute emulated --out x.json", "ranks on GPUs compute"),
        ("calibrate --backend mpi --out x.txt", "a profile is written as JSON"),
        ("calibrate --backend mpi --out nowhere/x.json", "there is no such folder"),
        ("calibrate --backend mpi --compute imagined --out x.json", "compute 'imagined' is unknown"),
        ("calibrate --backend mpi --out x.json", "nobody started this process as a rank; give --ranks N"),
        ("calibrate --backend mpi --ranks 2 --largest 3B --out x.json", "--largest 3B: must be 1KiB or more"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_in_one_line(line, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.run(line.split()) == 2
    told = capsys.readouterr().err
    assert message in told
    assert len(told.splitlines()) == 1


# --- the parts ---------------------------------------------------------------------------------------------------


class Nobody:
    """Takes a rank's notes."""

    def at(self, phase: object, op: int | None = None, iteration: int = 0) -> None:
        """Take one."""


def test_every_rank_gets_the_same_times_and_no_size_is_dropped():
    keys = [Key("all_reduce", 64), Key("broadcast", 64), Key("point_to_point", 64), Key("all_gather", 4096)]

    def target(backend):
        found = messages.Messages(backend, Nobody(), divides=False)
        return messages.measure(found, keys, empty=0, granted_s=0.0, seed=1, tick=lambda step, seconds: None)

    first, second = loopback.run(2, target)
    assert first == second
    assert list(first) == keys
    # one round, since no more time was granted
    assert all(len(times) == messages.REPEATS and min(times) > 0 for times in first.values())


def test_slices_of_the_pool_follow_each_other_and_share_no_cache_line():
    def target(backend):
        found = messages.Messages(backend, Nobody(), divides=False)
        a, b = found.buffer(100), found.buffer(100)
        return len(a), (b.ctypes.data - a.ctypes.data) % 64, b.ctypes.data - a.ctypes.data

    length, line, apart = loopback.run(2, target)[0]
    # 25 elements, rounded up to a whole number for each of 2 ranks; 104 bytes, rounded up to two lines
    assert (length, line, apart) == (26, 0, 128)


@given(st.floats(1e-6, 1e-2), st.floats(1e-12, 1e-8))
def test_the_core_s_share_is_found_again_from_what_it_takes(call_s, per_byte):
    found = beside._line({nbytes: call_s + nbytes * per_byte for nbytes in beside.SIZES})
    total = sum(found[0] + found[1] * nbytes for nbytes in beside.SIZES)
    assert total == pytest.approx(sum(call_s + nbytes * per_byte for nbytes in beside.SIZES), rel=1e-6)


def test_nothing_taken_costs_nothing():
    assert beside._line(dict.fromkeys(beside.SIZES, 0.0)) == (0.0, 0.0)


def test_counts_of_looks_never_fall_with_the_bytes():
    assert beside._growing({8: 2.0, 64: 5.0, 32: 3.0, 128: 4.0}) == ((8.0, 2.0), (32.0, 3.0), (64.0, 5.0), (128.0, 5.0))


def test_looks_are_linear_between_sizes_and_go_on_beyond_the_last():
    execution = Execution(origin="measured", source="by hand", looks=((100.0, 2.0), (300.0, 6.0)))
    assert [execution.looks_at(nbytes) for nbytes in (50, 100, 200, 300, 500)] == [2, 2, 4, 6, 10]


@given(st.floats(1e-6, 1e-3), st.floats(1e-7, 1e-4), st.floats(1e-10, 1e-8))
def test_an_update_s_costs_are_found_again_from_rows_that_they_make(call_s, tensor_s, element_s):
    rows = [
        local.Row(1.0, tensors, elements, call_s + tensors * tensor_s + elements * element_s)
        for tensors, elements in ((1, 100), (2, 100_000), (8, 150_000), (54, 1_000_000), (1, 65_536))
    ]
    found = local.update_time(rows, "sgd", 2)
    for row in rows:
        again = found.call_s + row.tensors * found.tensor_s + row.elements * found.element_s
        assert again == pytest.approx(row.seconds, rel=1e-6)


def test_a_copy_reads_and_writes_each_gradient_once():
    # 1 us a call and 8 bytes an element at 8 GB/s: 1 ns an element
    rows = [local.Row(1.0, 0.0, elements, 1e-6 + elements * 1e-9) for elements in (1_000, 10_000, 1_000_000)]
    found = local.memory_rate(rows, 2)
    assert (found.kernel, found.bytes_per_s) == (pytest.approx(1e-6), pytest.approx(8e9))
