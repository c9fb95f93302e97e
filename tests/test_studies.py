"""Studies say today what they said when they were written."""

import importlib.util
import json
from pathlib import Path
from statistics import mean

import pytest

from calibration import campaign, validation
from simgd import catalogue
from simgd.costs import LayerCosts
from simgd.job import job
from simgd.validation import Validation

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


RUNS = {name: json.loads((STUDY.parent / f"run_on_gpus/{name}.json").read_text()) for name in ("h100", "h200")}


@pytest.mark.parametrize(("name", "count"), [("h100", 24), ("h200", 12)])
def test_the_runs_on_gpus_are_those_of_the_table_and_fit_together(name, count):
    table = (STUDY.parent / "run_on_gpus/README.md").read_text()
    assert len(RUNS[name]["cases"]) == count
    for case in RUNS[name]["cases"]:
        median_s = case["iteration"]["median"]
        assert f"| {median_s * 1e3:.1f} (" in table
        assert case["exposed_communication_s"] == pytest.approx(median_s - case["compute_s"])
        assert case["samples_per_s"] == pytest.approx(2 * case["batch_per_rank"] / median_s)


def test_on_two_gpus_all_schedules_of_one_delay_left_the_same_weights():
    """Where kernels are deterministic: the sum of two has one order, and halving it is exact."""
    for network in ("vgg16", "resnet50"):
        cases = [case for record in RUNS.values() for case in record["cases"] if case["workload"] == network]
        delayed = {case["weights_digest"] for case in cases if case["schedule"].startswith("async")}
        prompt = {case["weights_digest"] for case in cases if not case["schedule"].startswith("async")}
        assert (len(delayed), len(prompt), len(delayed | prompt)) == (1, 1, 2)


# --- validations: what the READMEs of the studies, and the main one, say ------------------------------------------


def validated(name: str) -> Validation:
    return validation.validate(validation.cases(campaign.read(str(STUDY.parent / name / "validation.toml"))))


def errors(found: Validation, **about: str) -> tuple[int, float, float]:
    """Return of the cases that count, how many there are, and their mean and largest error in per cent, to a tenth."""
    kept = [
        100 * abs(each.relative_error)
        for each in found.comparisons
        if each.counted and all(getattr(each, key) == value for key, value in about.items())
    ]
    return len(kept), round(mean(kept), 1), round(max(kept), 1)


def test_the_shaped_link_s_figures_are_those_of_its_committed_runs():
    found = validated("shaped_link")
    assert len(found.comparisons) == 180
    assert (found.counted, found.iterations) == (113, 23646)
    assert errors(found) == (113, 1.9, 16.9)
    assert errors(found, backend="mpi", compute="emulated") == (40, 2.2, 7.5)
    assert errors(found, backend="mpi", compute="real") == (16, 0.6, 3.8)
    assert errors(found, backend="gloo", compute="emulated") == (45, 2.4, 16.9)
    assert errors(found, backend="gloo", compute="real") == (12, 0.8, 4.1)
    # held out as a link too
    assert errors(found, backend="mpi", compute="emulated", cluster="link-500mbit") == (13, 2.1, 4.5)
    assert (found.noisy_within, found.noisy) == (50, 67)
    assert (found.pairs, len(found.wrong_pairs)) == (156, 13)
    assert found.coverage_90 == pytest.approx(0.967, abs=5e-4)


def test_the_shaped_link_s_predictions_are_those_that_were_committed_before_its_runs():
    """Emulated compute is predicted from the profiles alone; real compute takes besides what it took alone."""
    said = json.loads((STUDY.parent / "shaped_link/predicted.json").read_text())["predictions"]
    before = {
        (row["backend"], row["link"], row["prediction"]["workload"], row["prediction"]["schedule"]): row["prediction"]
        for row in said
        if row["compute"] == "emulated"
    }
    measured = campaign.read(str(STUDY.parent / "shaped_link/validation.toml"))
    now = validation.validate(validation.cases([each for each in measured if not each.own_compute], seed=None))
    assert len(before) == len(now.comparisons) == 90
    for each in now.comparisons:
        told = before[each.backend, each.cluster.removeprefix("link-"), each.workload, each.schedule]
        assert each.predicted_s == pytest.approx(told["iteration_s"], rel=0.03)


def test_the_gpus_figures_are_those_of_their_committed_runs():
    found = validated("gpu_steps")
    assert len(found.comparisons) == 40

    def figures(cluster: str, *workloads: str) -> tuple[float, float]:
        kept = [
            100 * abs(each.relative_error)
            for each in found.comparisons
            if each.cluster == cluster and each.workload in workloads
        ]
        assert len(kept) == 10
        return round(mean(kept), 1), round(max(kept), 1)

    assert figures("nvlink", "vgg16", "gpt2") == (0.8, 2.1)
    assert figures("hostmemory", "vgg16", "gpt2") == (1.3, 4.0)
    assert figures("nvlink", "resnet50", "googlenet") == (2.9, 8.1)
    assert figures("hostmemory", "resnet50", "googlenet") == (6.9, 34.4)
    assert (found.pairs, found.wrong_pairs) == (52, ())
