"""Studies say today what they said when they were written."""

import importlib.util
import json
from pathlib import Path

import pytest

from simgd import catalogue
from simgd.costs import LayerCosts
from simgd.job import job

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


def test_an_update_beside_a_pass_hides_less_than_a_third_of_itself_in_the_committed_record():
    record = json.loads((STUDY.parent / "update_beside_backward/h200.json").read_text())
    assert [(case["network"], case["batch"]) for case in record["cases"]] == [
        ("resnet50", 32),
        ("resnet50", 128),
        ("vgg16", 32),
        ("alexnet", 128),
    ]
    for case in record["cases"]:
        hidden = (case["in_turn_ms"] - case["beside_ms"]) / case["update_ms"]
        assert 0.15 < hidden < 0.30
        assert case["beside_over_in_turn"] == pytest.approx(case["beside_ms"] / case["in_turn_ms"], abs=1e-4)


def test_the_h200_profiles_passes_are_within_their_interval_of_the_committed_record():
    record = json.loads((STUDY.parent / "update_beside_backward/h200.json").read_text())
    profile = catalogue.profile("dgx-h200")
    for case in record["cases"]:
        trained = job(catalogue.workload(case["network"]), batch=case["batch"], dtype="tf32")
        costs = LayerCosts(trained, profile)
        estimates = [
            costs.of(layer.name, direction)
            for layer in trained.workload.layers
            for direction in ("forward", "backward")
        ]
        error = sum(estimate.seconds for estimate in estimates) / (case["passes_ms"] * 1e-3) - 1
        assert abs(error) < max(estimate.uncertainty for estimate in estimates)
