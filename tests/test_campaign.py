"""A study's `validation.toml`: runs and the profiles that are to predict them, by files beside it."""

import pytest
from measured import NOTHING, PROFILE, run
from msgspec.structs import replace

from calibration import campaign
from simgd import files
from simgd.errors import SimgdError
from simgd.profile import Fit
from simgd.run import Runs

HEAD = 'format = "simgd validation"\nversion = 1\n'


@pytest.fixture
def study(tmp_path):
    """Write a validation.toml with these lines in a folder with runs and profiles, and return its path."""
    (tmp_path / "runs").mkdir()
    files.write(tmp_path / "runs" / "sync.json", run(0.101))
    files.write(
        tmp_path / "runs" / "others.json.gz",
        Runs(runs=(run(0.1, schedule="layerwise"), run(0.08, schedule="async:1:all"))),
    )
    files.write(tmp_path / "p.json", PROFILE)
    files.write(tmp_path / "slow.json", replace(PROFILE, name="slow", fits=(slow_fit(),), layers=()))
    files.write(tmp_path / "fast.toml", replace(PROFILE.cluster, name="fast"))

    def write(lines: str, head: str = HEAD) -> str:
        (tmp_path / "validation.toml").write_text(head + lines)
        return str(tmp_path / "validation.toml")

    return write


def slow_fit() -> Fit:
    """All-reduces of 40 ms instead of 20."""
    (fit,) = PROFILE.fits
    return replace(fit, segments=(replace(fit.segments[0], latency_s=0.04),))


BOTH = """
title = "Round numbers"
[[runs]]
files = ["runs/sync.json", "runs/others.json.gz"]
profile = ["p.json"]
calibrated_on = ["sync"]
"""


def test_files_are_found_beside_the_table_wherever_it_is_read_from(study, tmp_path, monkeypatch):
    path = study(BOTH)
    monkeypatch.chdir("/")
    (found,) = campaign.read(path)
    assert [each.schedule.name for _, each in found.runs] == ["sync", "layerwise", "async:1:all"]
    assert found.runs[0][0] == str(tmp_path / "runs" / "sync.json")
    assert (found.profile, found.seen, found.held_out) == ("p.json", {"sync"}, True)
    assert found.machine.profile == PROFILE


def test_the_command_tells_seen_schedules_apart(study, simgd):
    found = simgd(f"validate {study(BOTH)} --json").json
    assert [(each["schedule"], each["held_out"]) for each in found["comparisons"]] == [
        ("sync", False),
        ("layerwise", True),
        ("async:1:all", True),
    ]
    assert found["counted"] == 2
    assert found["max_abs_error"] == pytest.approx(0, abs=1e-9)
    assert "seen by calibration" in simgd(f"validate {study(BOTH)}").out


def test_of_several_profiles_the_later_wins(study, simgd):
    lines = '[[runs]]\nfiles = ["runs/sync.json"]\nprofile = ["p.json", "slow.json"]\n'
    (found,) = simgd(f"validate {study(lines)} --json").json["comparisons"]
    # 80 ms of passes as before, and 40 ms for the all-reduce
    assert found["predicted_s"] == pytest.approx(0.12)
    assert found["profile"] == "p.json, slow.json"


def test_the_cluster_may_be_another_one_than_the_profiles(study, simgd):
    lines = '[[runs]]\nfiles = ["runs/sync.json"]\nprofile = ["p.json"]\ncluster = "fast.toml"\nheld_out = false\n'
    (found,) = simgd(f"validate {study(lines)} --json").json["comparisons"]
    assert (found["cluster"], found["held_out"], found["counted"]) == ("fast", False, False)


def test_a_limit_holds_for_a_study_too(study, simgd):
    path = study(BOTH.replace('"p.json"', '"p.json", "slow.json"'))
    ran = simgd(f"validate {path} --max-error 0.05")
    # layerwise: 20 + 30 + 40 + 40 for what was 100; the delayed one still hides its 40 ms
    assert ran.status == 1
    assert ran.err == "simgd: validate: mean_abs_error is 0.1500, above 0.05\n"


def test_own_compute_can_be_asked_for(study):
    (found,) = campaign.read(study(BOTH + "own_compute = true\n"))
    assert found.own_compute


SYNC = '[[runs]]\nfiles = ["runs/sync.json"]\n'

BAD = {
    "runs = []\n": "validation: has no [[runs]]",
    "title = 'x'\n": "validation.toml: Object missing required field `runs`",
    '[[runs]]\nfiles = []\nprofile = ["p.json"]\n': "validation.toml: runs[0]: runs: needs at least one file and one",
    SYNC + "profile = []\n": "validation.toml: runs[0]: runs: needs at least one file and one profile",
    SYNC: "validation.toml: runs[0]: Object missing required field `profile`",
    SYNC + 'profile = "p.json"\n': "validation.toml: runs[0].profile: Expected `array`, got `str`",
    SYNC + 'profile = ["q.json"]\n': "q.json: there is no such file",
    SYNC + 'profile = ["dgx1-p10"]\n': "profile 'dgx1-p10' is unknown",
    SYNC + 'profile = ["p.json"]\ncluster = "dgx3-v100"\n': "cluster 'dgx3-v100' is unknown",
    SYNC
    + 'profile = ["p.json"]\ncluster = "dgx1-p100"\n': "speaks of 2x Intel Xeon Gold 6148, but cluster 'dgx1-p100'",
    SYNC + 'profile = ["p.json"]\nsome = 1\n': "validation.toml: runs[0]: Object contains unknown field `some`",
    '[[runs]]\nfiles = ["runs/none.json"]\nprofile = ["p.json"]\n': "runs/none.json: there is no such file",
    '[[runs]]\nfiles = ["runs"]\nprofile = ["p.json"]\n': "runs: is a folder; name a file",
    '[[runs]]\nfiles = ["p.json"]\nprofile = ["p.json"]\n': "p.json: holds 'simgd profile'; validate reads",
    "[[runs]\n": "validation.toml: is not TOML",
}


@pytest.mark.parametrize("lines", BAD)
def test_a_bad_table_ends_in_one_line(study, simgd, lines):
    ran = simgd(f"validate {study(lines)} --json")
    assert (ran.status, ran.out) == (2, "")
    assert BAD[lines] in ran.err
    assert ran.err.startswith("simgd: ")
    assert ran.err.count("\n") == 1


def test_a_table_of_something_else_is_refused(study, simgd):
    ran = simgd(f"validate {study(BOTH, head='')}")
    assert ran.status == 2
    assert "validation.toml: has no `format`; it should start with format = 'simgd validation'" in ran.err


def test_a_run_that_the_profile_cannot_speak_of_names_both(study, simgd, tmp_path):
    files.write(tmp_path / "runs" / "gloo.json", run(0.1, backend="gloo"))
    ran = simgd(f"validate {study(BOTH.replace('sync.json', 'gloo.json'))}")
    assert ran.status == 2
    assert "runs/gloo.json: ran on gloo, but profile 'round' was measured on mpi" in ran.err
    assert ran.err.count("\n") == 1


def test_a_run_of_a_layer_that_the_profile_never_timed_is_refused(study, simgd, tmp_path):
    files.write(tmp_path / "p.json", replace(PROFILE, layers=()))
    ran = simgd(f"validate {study(BOTH)}")
    assert ran.status == 2
    assert "'two'" in ran.err
    assert ran.err.count("\n") == 1


def test_runs_are_stored_without_their_rows(tmp_path):
    path = tmp_path / "small.json.gz"
    files.write(path, Runs(runs=(run(0.1, trace=NOTHING),), note="small"))
    (small,) = files.read(path, Runs).runs
    assert small.trace == NOTHING


def test_errors_of_a_table_are_of_simgd(study):
    for lines in BAD:
        with pytest.raises(SimgdError):
            campaign.read(study(lines))
