"""Studies say today what they said when they were written."""

import importlib.util
import json
from pathlib import Path

import pytest

STUDY = Path(__file__).parent.parent / "studies/googlenet_k80"


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("googlenet_k80_study", STUDY / "study.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_k80_study_recomputes_its_results(study):
    assert study.results() == json.loads((STUDY / "results.json").read_text())


def test_sync_on_the_k80_table_is_compute_plus_one_flat_message(study):
    rows = study.results()["rows"]
    for row in rows:
        if row["schedule"] == "sync":
            assert row["iteration_ms"] == pytest.approx(row["compute_ms"] + row["messages_ms"], abs=0.02)


def test_the_forward_pass_is_the_stated_share_of_the_measured_backward_pass(study):
    # backward 201.533 ms in the table; with ratio 2 forward is half of it; the update of 13.4 M parameters, 20 B each,
    # at 0.9 x 500 GB/s is 0.59 ms
    (row,) = [
        row
        for row in study.results()["rows"]
        if (row["backward_over_forward"], row["ranks"], row["schedule"]) == (2.0, 2, "sync")
    ]
    assert row["compute_ms"] == pytest.approx(201.533 * 1.5 + 0.59, abs=0.05)
