"""Predictions beside runs: errors, noise, intervals, order; all by numbers made by hand."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from measured import BY_HAND, ENVIRONMENT, NOTHING, PROFILE, WORKLOAD, of_its_own_times, planned, run
from msgspec.structs import replace

from calibration.validation import Case, Measured, cases, check, job_of, read_runs, validate, worst_traces
from simgd import files
from simgd.errors import FileError, ProfileError, RunError
from simgd.predict import Machine
from simgd.profile import Jitter
from simgd.provenance import Host
from simgd.run import Run, Runs, Spread
from simgd.validation import Comparison, Validation, validated

#: What the command line promises of a comparison and of the whole.
COMPARISON_KEYS = {
    "workload",
    "schedule",
    "ranks",
    "backend",
    "compute",
    "batch_per_rank",
    "cluster",
    "profile",
    "runs",
    "predicted_s",
    "measured_s",
    "relative_error",
    "noise",
    "iteration_low_s",
    "iteration_high_s",
    "covered",
    "iterations",
    "held_out",
    "counted",
    "within",
    "origin",
    "extrapolated",
    "residuals",
}
SUMMARY_KEYS = {
    "comparisons",
    "mean_abs_error",
    "median_abs_error",
    "max_abs_error",
    "rank_agreement",
    "coverage_90",
    "mean_abs_exposed_error",
}

#: `PROFILE` predicts 100 ms of `sync` and of `layerwise`, and 80 ms of this one, which hides its all-reduce.
DELAYED = "async:1:all"


#: The same costs, known to 10 %: 90 to 110 ms, and 72 to 88.
UNSURE = replace(
    PROFILE,
    layers=tuple(replace(entry, uncertainty=0.1) for entry in PROFILE.layers),
    fits=tuple(replace(entry, uncertainty=0.1) for entry in PROFILE.fits),
)


def compared(*runs: Run, profile=PROFILE, **about) -> list[Comparison]:
    machine = Machine(profile.cluster, profile)
    named = [(f"{place}.json", each) for place, each in enumerate(runs)]
    return [each.comparison for each in cases([Measured(runs=named, machine=machine, profile="p", **about)])]


# --- one comparison ----------------------------------------------------------------------------------------------


def test_runs_of_one_case_are_one_comparison_whose_noise_is_half_their_spread():
    (found,) = compared(run(0.100), run(0.104), run(0.101))
    assert found.runs == 3
    assert found.measured_s == 0.101  # the median of the medians
    assert (found.measured_low_s, found.measured_high_s) == (0.100, 0.104)
    assert found.noise == pytest.approx(0.002 / 0.101)
    assert found.predicted_s == 0.1
    assert found.relative_error == pytest.approx(0.100 / 0.101 - 1)


def test_one_run_tells_no_noise():
    (found,) = compared(run(0.1))
    assert found.noise is None
    assert found.counted


def test_what_is_exposed_is_compared_beyond_the_compute_that_was_measured_alone():
    # predicted: 100 ms, of them 80 compute; measured: 90 ms, of them 65
    (found,) = compared(run(0.090, compute_s=0.065))
    assert found.compute_predicted_s == pytest.approx(0.080)
    assert found.compute_measured_s == 0.065
    assert found.exposed_predicted_s == pytest.approx(0.020)
    assert found.exposed_measured_s == pytest.approx(0.025)
    assert found.exposed_error == pytest.approx(-0.2)


def test_communication_that_is_hidden_but_for_2_percent_is_not_compared():
    assert compared(run(0.1, compute_s=0.097))[0].exposed_error is not None
    assert compared(run(0.1, compute_s=0.099))[0].exposed_error is None
    assert compared(run(0.1, compute_s=0.101))[0].exposed_error is None


def test_the_interval_is_held_against_single_iterations():
    (found,) = compared(run(0.100, 0.120, 0.095), run(0.080, 0.101), profile=UNSURE)
    assert (found.iteration_low_s, found.iteration_high_s) == (pytest.approx(0.09), pytest.approx(0.11))
    assert found.iterations == 5
    assert found.covered == 3 / 5


def test_an_interval_is_not_judged_by_the_warm_up_or_by_disturbed_iterations():
    (found,) = compared(run(9.0, 0.1, 8.0, 0.1, warm_up=1, left_out=[2]), profile=UNSURE)
    assert (found.iterations, found.covered) == (2, 1.0)


def test_the_slowest_rank_makes_an_iteration():
    slow = run(0.1, 0.1, iterations_s=[[0.1, 0.1], [0.1, 0.3]])
    (found,) = compared(slow, profile=UNSURE)
    assert (found.iterations, found.covered) == (2, 0.5)


def test_a_noisy_comparison_is_listed_and_judged_by_5_percent_and_its_noise():
    # noise 10 ms of 110: 9.1 %; predicted 100: 9.1 % off, within 14.1 %
    (within,) = compared(run(0.100), run(0.120))
    assert (within.counted, within.within) == (False, True)
    # noise 5 ms of 125: 4 %; predicted 100: 20 % off
    (outside,) = compared(run(0.120), run(0.130))
    assert (outside.counted, outside.within) == (False, False)


def test_noise_of_2_percent_still_counts():
    assert compared(run(0.098), run(0.102))[0].counted
    assert not compared(run(0.0979), run(0.1021))[0].counted


def test_what_calibration_has_seen_does_not_count():
    seen, other = compared(run(0.1), run(0.08, schedule=DELAYED), seen=frozenset({"sync"}))
    assert (seen.schedule, seen.held_out, seen.counted) == ("sync", False, False)
    assert (other.schedule, other.held_out, other.counted) == (DELAYED, True, True)
    assert not any(each.counted for each in compared(run(0.1), held_out=False))


@pytest.mark.parametrize(
    "change",
    [
        {"schedule": planned("layerwise")},
        {"backend": "gloo"},
        {"compute": "emulated"},
        {"optimizer": "adamw"},
    ],
)
def test_another_case_is_another_comparison(change):
    anywhere = replace(PROFILE, backend="", updates=(*PROFILE.updates, replace(PROFILE.updates[0], optimizer="adamw")))
    assert [each.runs for each in compared(run(0.1), run(0.1, **change), profile=anywhere)] == [1, 1]


def test_schedules_of_one_name_that_differ_are_two_cases():
    other = replace(planned("layerwise"), name="sync")
    assert [each.runs for each in compared(run(0.1), run(0.1, schedule=other))] == [1, 1]


def test_the_schedule_of_the_run_is_simulated_whatever_its_name():
    renamed = replace(planned(DELAYED), name="mine")
    assert compared(run(0.08, schedule=renamed))[0].predicted_s == pytest.approx(0.08)


def test_own_compute_predicts_with_local_work_as_long_as_the_run_took_alone():
    # 80 ms of compute take 160 on that day; the all-reduce stays at 20
    (found,) = compared(run(0.180, compute_s=0.160), own_compute=True)
    assert found.predicted_s == pytest.approx(0.180)
    assert found.compute_predicted_s == pytest.approx(0.160)


def test_intervals_are_drawn_with_a_seed_or_closed_forms():
    jittery = replace(PROFILE, jitter=Jitter(iteration_sigma=0.1, **BY_HAND))
    measured = Measured(runs=[("r", run(0.1))], machine=Machine(PROFILE.cluster, jittery), profile="p")
    (drawn,), (again,), (other,), (closed,) = (cases([measured], seed=seed) for seed in (0, 0, 1, None))
    assert drawn == again
    assert len({each.comparison.iteration_high_s for each in (drawn, other, closed)}) == 3
    assert drawn == cases([measured])[0]


@given(st.permutations([0.097, 0.103, 0.099, 0.101]))
def test_the_order_of_runs_does_not_matter(medians):
    (found,) = compared(*(run(each) for each in medians))
    (ordered,) = compared(*(run(each) for each in sorted(medians)))
    assert found == ordered


# --- which job a run was -----------------------------------------------------------------------------------------


def test_an_optimizer_without_costs_is_priced_as_sgd():
    assert job_of(run(0.1, optimizer="adamw:lr=0.1"), PROFILE).optimizer == "adamw"
    assert job_of(run(0.1, optimizer="Adagrad:lr=0.1"), PROFILE).optimizer == "sgd"
    assert job_of(run(0.1, optimizer="none"), PROFILE).optimizer == "sgd"


def test_a_run_has_the_precision_of_the_profiles_times_or_of_torch():
    tf32 = replace(ENVIRONMENT, settings={"tf32 convolutions": "True"})
    half, single = (
        replace(PROFILE, layers=tuple(replace(entry, dtype=dtype) for entry in PROFILE.layers))
        for dtype in ("bf16", "tf32")
    )
    assert job_of(run(0.1), single).dtype == "tf32"
    # the executor computes in 32 bits, whatever else the profile has times of
    assert job_of(run(0.1), half).dtype == "fp32"
    assert job_of(run(0.1, environment=tf32), half).dtype == "tf32"


# --- all comparisons ---------------------------------------------------------------------------------------------


def summary(*runs: Run, **about) -> Validation:
    return validated(compared(*runs, **about))


def test_the_figures_are_of_what_counts():
    # sync: 100 predicted, 80 measured: +25 %; delayed: 80 predicted, 100 measured: -20 %
    found = summary(
        run(0.080), run(0.100, schedule=DELAYED), run(0.5, schedule="layerwise"), seen=frozenset({"layerwise"})
    )
    assert found.mean_abs_error == pytest.approx(0.225)
    assert found.median_abs_error == pytest.approx(0.225)
    assert found.max_abs_error == pytest.approx(0.25)
    assert (found.counted, len(found.comparisons)) == (2, 3)


def test_noisy_comparisons_are_told_apart_from_seen_ones():
    found = summary(run(0.100), run(0.120), run(0.12, schedule=DELAYED), run(0.13, schedule=DELAYED))
    assert (found.counted, found.noisy, found.noisy_within) == (0, 2, 1)
    assert found.mean_abs_error is None
    assert found.coverage_90 is None
    assert found.rank_agreement is None


def test_a_pair_in_the_predicted_order_agrees():
    found = summary(run(0.100), run(0.090, schedule=DELAYED))
    assert (found.rank_agreement, found.pairs, found.wrong_pairs) == (1.0, 1, ())


def test_a_pair_in_the_other_order_is_named():
    found = summary(run(0.090), run(0.100, schedule=DELAYED))
    assert found.rank_agreement == 0.0
    (wrong,) = found.wrong_pairs
    assert (wrong.faster, wrong.slower) == ("sync", DELAYED)


def test_equal_predictions_put_nothing_in_order():
    found = summary(run(0.090), run(0.100, schedule="layerwise"))
    assert (found.rank_agreement, found.pairs) == (0.0, 1)


def test_single_runs_within_1_percent_of_each_other_are_in_no_order():
    # 100 and 101.5 ms, each +-1 %, overlap; 100 and 102.1 do not
    assert summary(run(0.100), run(0.1015, schedule=DELAYED)).pairs == 0
    assert summary(run(0.100), run(0.1021, schedule=DELAYED)).pairs == 1


def test_runs_that_overlap_are_in_no_order():
    sync, delayed = (run(0.100), run(0.103)), (run(0.102, schedule=DELAYED), run(0.105, schedule=DELAYED))
    assert summary(*sync, *delayed).pairs == 0
    assert summary(*sync, delayed[1], run(0.1031, schedule=DELAYED)).pairs == 1


def test_only_what_counts_is_put_in_order():
    assert summary(run(0.100), run(0.090, schedule=DELAYED), seen=frozenset({"sync"})).pairs == 0


def test_coverage_counts_each_iteration_once():
    # 3 of 4 iterations of sync lie near the predicted 100 ms, 1 of 2 of the delayed near 80
    found = summary(run(0.1, 0.1, 0.1, 0.3), run(0.08, 0.3, schedule=DELAYED), profile=UNSURE)
    assert found.iterations == 6
    assert found.coverage_90 == pytest.approx(4 / 6)
    assert found.coverage_90_of_long is None


def test_coverage_of_long_runs_stands_apart():
    found = summary(run(*[0.1] * 150, *[0.3] * 50), run(*[0.08] * 99, schedule=DELAYED), profile=UNSURE)
    assert (found.enough_iterations, found.coverage_90_of_long) == (1, pytest.approx(0.75))
    assert found.coverage_90 == pytest.approx(249 / 299)


def test_nothing_to_compare_is_refused():
    with pytest.raises(FileError, match="there are no runs to compare"):
        validate([])


TIMES = st.lists(st.floats(0.05, 0.2), min_size=1, max_size=5)


@given(sync=TIMES, delayed=TIMES, factor=st.sampled_from([0.25, 0.5, 2.0, 8.0]))
def test_errors_have_no_scale(sync, delayed, factor):
    # powers of two, so that nothing is rounded and no pair changes sides
    runs = compared(run(*sync), run(*delayed, schedule=DELAYED))
    scaled = [
        replace(each, **{name: getattr(each, name) * factor for name in each.__struct_fields__ if name.endswith("_s")})
        for each in runs
    ]
    once, again = validated(runs), validated(scaled)
    for name in once.__struct_fields__:
        if name != "comparisons":
            assert getattr(once, name) == getattr(again, name)


@given(st.lists(TIMES, min_size=1, max_size=4))
def test_shares_lie_between_0_and_1_and_the_mean_error_below_the_largest(times):
    schedules = ("sync", DELAYED, "layerwise", "layerwise")
    found = summary(*(run(*each, schedule=name) for each, name in zip(times, schedules, strict=False)))
    for share in (found.coverage_90, found.rank_agreement):
        assert share is None or 0 <= share <= 1
    if found.counted:
        assert min(abs(each.relative_error) for each in found.comparisons if each.counted) <= found.median_abs_error
        assert found.mean_abs_error <= found.max_abs_error * (1 + 1e-12)


# --- what cannot be compared -------------------------------------------------------------------------------------


def test_a_run_over_another_library_is_refused():
    with pytest.raises(ProfileError, match=r"r\.json: ran on gloo, but profile 'round' was measured on mpi"):
        check("r.json", run(0.1, backend="gloo"), PROFILE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"processor": "Slide Rule 3"}, "ran on processors Slide Rule 3, but profile 'round' was measured on Abacus 9"),
        ({"gpus": ("H100",)}, "ran on GPUs H100, but profile 'round' was measured on none"),
    ],
)
def test_a_run_on_other_hardware_is_refused(change, message):
    elsewhere = replace(ENVIRONMENT, hosts=(replace(ENVIRONMENT.hosts[0], **change),))
    with pytest.raises(ProfileError, match=message):
        check("r.json", run(0.1, environment=elsewhere), PROFILE)


def test_a_profile_that_does_not_know_where_it_is_from_takes_every_run():
    elsewhere = replace(ENVIRONMENT, hosts=(Host(processor="x", cores=1, memory_bytes=1.0, kernel="y"),))
    for environment in (None, replace(ENVIRONMENT, hosts=())):
        profile = replace(PROFILE, backend="", environment=environment)
        check("r.json", run(0.1, backend="gloo", environment=elsewhere), profile)
    check("r.json", run(0.1, environment=replace(ENVIRONMENT, hosts=())), PROFILE)


def test_a_run_that_cannot_be_right_is_refused():
    with pytest.raises(RunError, match=r"r\.json: iteration\.median is 0"):
        check("r.json", run(0.1, iteration=Spread(median=0.0, p5=0.0, p95=0.0)), PROFILE)
    with pytest.raises(RunError, match=r"r\.json: compute_s is -1"):
        check("r.json", run(0.1, compute_s=-1.0), PROFILE)
    with pytest.raises(RunError, match=r"r\.json: trace: its lane 'fast lane' is none of the schedule's"):
        check("r.json", run(0.1, trace=replace(NOTHING, lanes=("fast lane",))), PROFILE)
    with pytest.raises(RunError, match=r"r\.json: trace: its op 'rest' is none of the schedule's"):
        check("r.json", run(0.1, trace=replace(NOTHING, ops=("rest",))), PROFILE)


def test_two_workloads_of_one_name_are_refused():
    wider = replace(WORKLOAD, layers=(replace(WORKLOAD.layers[0], kept=WORKLOAD.layers[0].kept), *WORKLOAD.layers[1:]))
    assert len(compared(run(0.1), run(0.1, workload=wider))) == 1
    other = replace(WORKLOAD, description="another")
    with pytest.raises(FileError, match=r"1\.json: its workload 'two' is not the one of 0\.json"):
        compared(run(0.1), run(0.1, workload=other))


# --- files -------------------------------------------------------------------------------------------------------


def test_runs_are_read_from_files_of_one_and_of_many(tmp_path):
    one, many = tmp_path / "one.json", tmp_path / "many.json.gz"
    files.write(one, run(0.1))
    files.write(many, Runs(runs=(run(0.1), run(0.2)), note="two"))
    assert [each for _, each in read_runs(str(one))] == [run(0.1)]
    assert read_runs(str(many)) == [(f"{many}: runs[0]", run(0.1)), (f"{many}: runs[1]", run(0.2))]


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "w.json"
    files.write(path, WORKLOAD)
    with pytest.raises(
        FileError, match=r"w\.json: holds 'simgd workload'; validate reads what `simgd run --out` writes"
    ):
        read_runs(str(path))
    files.write(path, Runs(runs=()))
    with pytest.raises(FileError, match=r"w\.json: holds no runs"):
        read_runs(str(path))
    path.write_text("[]")
    with pytest.raises(FileError, match=r"w\.json: "):
        read_runs(str(path))


def test_a_run_that_did_not_end_says_so(tmp_path):
    (tmp_path / "run.json.parts").mkdir()
    with pytest.raises(
        FileError, match=r"run\.json: its run did not end; `simgd show .*run\.json` says how far it came"
    ):
        read_runs(str(tmp_path / "run.json"))


# --- the command -------------------------------------------------------------------------------------------------


@pytest.fixture
def validating(simgd, tmp_path):
    """Run `simgd validate` on three runs of 100, 102 and 101 ms, of which 100 are predicted, with *options*."""
    for place, seconds in enumerate((0.100, 0.102, 0.101)):
        files.write(tmp_path / f"{place}.json", run(seconds))
    files.write(tmp_path / "p.json", PROFILE)
    return lambda options: simgd(f"validate 0.json 1.json 2.json {options}")


def test_the_command_prints_every_key_of_the_contract(validating):
    found = validating("--profile p.json --json").json
    assert set(found) >= SUMMARY_KEYS
    (comparison,) = found["comparisons"]
    assert set(comparison) >= COMPARISON_KEYS
    assert comparison["profile"] == "p.json"
    assert comparison["held_out"]
    assert found["mean_abs_error"] == pytest.approx(1 / 101)


def test_the_command_prints_a_table_and_what_it_amounts_to(validating):
    ran = validating("--profile p.json")
    assert ran.status == 0
    assert "xeon-edr, 2 ranks" in ran.out
    assert "-1.0%" in ran.out
    assert "1 of 1 count: held out, and noise up to 2%" in ran.out


@pytest.mark.parametrize(("limit", "status"), [("0.02", 0), ("0.0099", 1), ("0", 1)])
def test_an_error_above_the_limit_ends_with_status_1(validating, limit, status):
    ran = validating(f"--profile p.json --max-error {limit} --json")
    assert ran.status == status
    # what was found stands there all the same
    assert json.loads(ran.out)["counted"] == 1
    if status:
        assert ran.err == f"simgd: validate: mean_abs_error is 0.0099, above {limit}\n"


def test_runs_without_a_profile_are_refused(validating):
    ran = validating("")
    assert (ran.status, ran.out) == (2, "")
    assert (
        ran.err == "simgd: validate: give the --profile that is to predict the runs, as `simgd calibrate` writes it\n"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--profile nothing.json", "nothing.json: there is no such file"),
        ("none.json --profile p.json", "none.json: there is no such file"),
        ("p.json --profile p.json", "p.json: holds 'simgd profile'; validate reads"),
        ("study.toml", "study.toml: says itself which runs and profiles belong together; give it alone"),
        ("--profile dgx1-p10", "profile 'dgx1-p10' is unknown"),
        ("--profile p.json --plot v.gif", "v.gif: '.gif' is no picture"),
        ("--profile p.json --max-error x", "--max-error"),
        ("--profile p.json --max-error nan", "--max-error"),
    ],
)
def test_bad_input_ends_in_one_line_and_status_2(validating, options, message):
    ran = validating(options)
    assert (ran.status, ran.out) == (2, "")
    assert message in ran.err
    assert ran.err.count("\n") == 1


def test_a_truncated_run_ends_in_one_line(validating, tmp_path):
    whole = (tmp_path / "1.json").read_bytes()
    (tmp_path / "1.json").write_bytes(whole[: len(whole) // 2])
    ran = validating("--profile p.json")
    assert ran.status == 2
    assert ran.err.startswith("simgd: 1.json: is not JSON: ")
    assert ran.err.count("\n") == 1


def test_a_run_without_a_trace_is_drawn_without_timelines(validating, tmp_path):
    assert validating("--profile p.json --plot v.svg").status == 0
    drawn = (tmp_path / "v.svg").read_text()
    assert "predicted, ms" in drawn
    assert "The worst" not in drawn


# --- a real run --------------------------------------------------------------------------------------------------


def test_a_real_run_is_compared_with_what_its_own_times_predict(simgd, tmp_path):
    assert simgd("run layerwise --workload mlp --batch 4 --steps 4 --out run.json --json").status == 0
    made = files.read("run.json", Run)
    assert made.ranks == 1
    files.write("own.json", of_its_own_times(made))
    ran = simgd("validate run.json --profile own.json --json --plot v.svg").json
    (found,) = ran["comparisons"]
    assert (found["workload"], found["schedule"], found["backend"]) == ("mlp", "layerwise", "loopback")
    assert (found["iterations"], found["runs"], found["noise"]) == (4, 1, None)
    assert found["measured_s"] == made.iteration.median
    # each pass takes what it took: the sum of their medians
    passes = sum(times.median_s[0] for name, times in made.ops.items() if name.split()[0] in ("forward", "backward"))
    assert found["compute_predicted_s"] == pytest.approx(passes, rel=1e-6)
    assert 0 < len(found["residuals"]) <= 10
    assert {each["op"] for each in found["residuals"]} <= set(made.ops)
    drawn = (tmp_path / "v.svg").read_text()
    assert "The worst with a trace: mlp, layerwise, 1 rank of xeon-edr, loopback" in drawn


def test_the_traces_of_the_worst_case_are_of_that_case():
    rows = [(0, "host", "forward a", iteration, 100 * iteration, 100 * iteration + 10) for iteration in range(3)]
    machine = Machine(PROFILE.cluster, PROFILE)
    runs = [
        run(0.11, rows=rows),
        run(0.2, schedule="layerwise", rows=rows),
        # worse, but without a trace, or with one iteration of it
        run(0.3, schedule=DELAYED),
        run(0.4, schedule="layerwise:join", rows=rows[:1]),
    ]
    found = cases([Measured(runs=[("r", each) for each in runs], machine=machine, profile="p")])
    (_, measured), (_, predicted) = worst_traces(found)
    assert measured == runs[1].trace
    assert predicted.schedule == "layerwise"
    assert validate(found).worst.schedule == "layerwise"
    assert worst_traces([Case(comparison=found[2].comparison)]) == ()


def test_profiles_of_their_own_origin_are_named():
    weaker = replace(PROFILE, fits=(replace(PROFILE.fits[0], **(BY_HAND | {"origin": "assumed"})),))
    assert compared(run(0.1), profile=weaker)[0].origin == "assumed"
    assert compared(run(0.1))[0].origin == "measured"
