"""The command line is a contract that scripts rely on: commands, options, defaults and keys."""

import gzip
import io
import json
import re
from pathlib import Path

import pytest

from simgd import catalogue, files, schedules
from simgd.profile import Profile, StepTime
from simgd.schedule import Schedule
from simgd.topology import Cluster
from simgd.workload import Workload

DATA = Path(__file__).parent / "data"

PREDICTION_KEYS = [
    "workload",
    "cluster",
    "profile",
    "ranks",
    "schedule",
    "batch_per_rank",
    "iteration_s",
    "iteration_low_s",
    "iteration_high_s",
    "median_low_s",
    "median_high_s",
    "samples_per_s",
    "speedup_over_sync",
    "speedup_over_baseline",
    "speedup_over_one",
    "efficiency",
    "compute_s",
    "communication_s",
    "exposed_communication_s",
    "host_stall_s",
    "staleness",
    "peak_memory_bytes",
    "memory_fits",
    "bound_by",
    "origin",
    "extrapolated",
]

COLLECTIVE_KEYS = ["kind", "cluster", "ranks", "bytes", "algorithm", "time_s", "bus_bytes_per_s", "origin"]

MLP = "predict mlp --on dgx1-p100 --json"


def predictions(ran):
    return ran.json["predictions"]


# --- predict -----------------------------------------------------------------------------------------------------


def test_predict_has_every_key_of_the_contract(simgd):
    found = simgd(MLP).json
    assert set(found) == {"predictions", "verdict"}
    for row in found["predictions"]:
        assert set(PREDICTION_KEYS) <= set(row)


def test_the_values_of_a_prediction_fit_together(simgd):
    rows = predictions(simgd("predict googlenet --on dgx1-p100 --ranks 1,2,8 --json"))
    one = next(row for row in rows if (row["ranks"], row["schedule"]) == (1, "sync"))
    for row in rows:
        of_ranks = {other["schedule"]: other for other in rows if other["ranks"] == row["ranks"]}
        rate = row["samples_per_s"]
        assert rate == pytest.approx(row["ranks"] * row["batch_per_rank"] / row["iteration_s"])
        assert row["speedup_over_sync"] == pytest.approx(rate / of_ranks["sync"]["samples_per_s"])
        assert row["speedup_over_baseline"] == pytest.approx(rate / of_ranks["bucketed:25MiB"]["samples_per_s"])
        assert row["speedup_over_one"] == pytest.approx(rate / one["samples_per_s"])
        assert row["efficiency"] == pytest.approx(row["speedup_over_one"] / row["ranks"])
        exposed = row["iteration_s"] - row["compute_s"]
        assert row["exposed_communication_s"] == pytest.approx(exposed, abs=1e-12)
        assert row["iteration_low_s"] <= row["iteration_s"] <= row["iteration_high_s"]
        assert row["median_low_s"] <= row["median_high_s"]
        assert 0 <= row["host_stall_s"] <= row["iteration_s"]
        assert row["origin"] in ("measured", "published", "modelled", "assumed")


def test_schedules_default_to_the_five_of_the_contract(simgd):
    names = [row["schedule"] for row in predictions(simgd(MLP))]
    assert names == ["sync", "bucketed:25MiB", "layerwise", "async:1", "async_layerwise:auto"]


def test_ranks_default_to_every_device(simgd):
    assert {row["ranks"] for row in predictions(simgd(MLP))} == {8}
    assert {row["ranks"] for row in predictions(simgd("predict mlp --on dgx2-v100 --json"))} == {16}
    two_nodes = predictions(simgd("predict mlp --on dgx1-p100:2 --schedules sync --json"))
    assert {row["ranks"] for row in two_nodes} == {16}


def test_ranks_default_to_the_listed_devices(simgd):
    assert {row["ranks"] for row in predictions(simgd(f"{MLP} --devices 0,1,4,5"))} == {4}


def test_a_cpu_cluster_has_as_many_nodes_as_ranks_are_asked_for(simgd):
    rows = predictions(simgd("predict mlp --on xeon-edr --ranks 1,64 --schedules sync --json"))
    assert [row["ranks"] for row in rows] == [1, 64]
    refused = simgd("predict mlp --on xeon-edr --json")
    assert refused.status == 2
    assert "--ranks" in refused.err


@pytest.mark.parametrize("option", ["--schedule", "--schedules"])
@pytest.mark.parametrize("command", ["predict", "explain"])
def test_schedule_and_schedules_are_synonyms(simgd, command, option):
    assert simgd(f"{command} mlp --on dgx1-p100 {option} layerwise --json").status == 0


def test_rows_stand_by_ranks_then_by_schedule(simgd):
    rows = predictions(simgd(f"{MLP} --ranks 8,2 --schedules layerwise,sync"))
    assert [(row["ranks"], row["schedule"]) for row in rows] == [
        (8, "layerwise"),
        (8, "sync"),
        (2, "layerwise"),
        (2, "sync"),
    ]


def test_the_usual_batch_is_that_of_the_workload(simgd):
    assert {row["batch_per_rank"] for row in predictions(simgd(MLP))} == {catalogue.workload("mlp").batch}
    assert {row["batch_per_rank"] for row in predictions(simgd(f"{MLP} --batch 7"))} == {7}


def test_a_global_batch_is_shared_out(simgd):
    rows = predictions(simgd(f"{MLP} --global-batch 64 --ranks 1,2,8 --schedules sync"))
    assert [row["batch_per_rank"] for row in rows] == [64, 32, 8]
    for row in rows:
        assert row["speedup_over_one"] == pytest.approx(rows[0]["iteration_s"] / row["iteration_s"])


def test_longer_sequences_take_longer(simgd):
    short, long = (
        predictions(simgd(f"predict gpt2 --on dgx-h100 --seq-len {length} --schedules sync --json"))[0]
        for length in (128, 1024)
    )
    assert short["compute_s"] < long["compute_s"] / 4


def test_adamw_moves_and_keeps_more_than_sgd(simgd):
    sgd, adamw = (
        predictions(simgd(f"predict vgg16 --on dgx1-p100 --batch 64 --optimizer {name} --schedules sync --json"))[0]
        for name in ("sgd", "adamw")
    )
    parameters = catalogue.workload("vgg16").parameters
    assert adamw["peak_memory_bytes"] - sgd["peak_memory_bytes"] == 4 * parameters
    assert adamw["compute_s"] > sgd["compute_s"]


def test_half_the_bytes_travel_with_a_wire_of_16_bits(simgd):
    full, half = (
        predictions(simgd(f"predict vgg16 --on pcie-box --wire {wire} --schedules sync --json"))[0]
        for wire in ("fp32", "bf16")
    )
    assert half["communication_s"] == pytest.approx(full["communication_s"] / 2, rel=0.01)


def test_a_device_computes_faster_with_fewer_bits(simgd):
    fp32, tf32, bf16 = (
        predictions(simgd(f"predict vgg16 --on dgx-a100 --dtype {dtype} --schedules sync --json"))[0]["compute_s"]
        for dtype in ("fp32", "tf32", "bf16")
    )
    assert bf16 < tf32 < fp32


def test_devices_choose_the_links(simgd):
    # GPUs 0 and 1 share an NVLink of a DGX-1, 0 and 5 do not: their ring goes through the host.
    near, far = (
        predictions(simgd(f"predict vgg16 --on dgx1-p100 --devices {pair} --schedules sync --json"))[0][
            "communication_s"
        ]
        for pair in ("0,1", "0,5")
    )
    assert far > 1.2 * near


def test_the_baseline_can_be_another_one(simgd):
    rows = predictions(simgd(f"{MLP} --baseline sync"))
    assert all(row["speedup_over_baseline"] == row["speedup_over_sync"] for row in rows)
    assert "over sync" in simgd(f"{MLP} --baseline sync").json["verdict"]


def test_the_table_holds_what_json_holds(simgd):
    table = simgd(MLP.replace("--json", "")).out
    found = simgd(MLP).json
    for row in found["predictions"]:
        assert row["schedule"] in table
        assert f"{row['speedup_over_sync']:.3f}x" in table
    assert f"verdict: {found['verdict']}" in table
    assert "over bucketed:25MiB" in table


def test_a_row_that_rests_on_less_than_published_costs_is_marked(simgd):
    rows = predictions(simgd(MLP))
    assert {row["origin"] for row in rows} <= {"modelled", "assumed"}
    assert simgd(MLP.replace("--json", "")).out.count(" ~") >= len(rows)


def test_two_runs_print_the_same(simgd):
    line = "predict resnet50 --on dgx1-p100 --ranks 1,8 --json"
    assert simgd(line).out == simgd(line).out


def test_a_seed_draws_the_noise_and_the_same_one_the_same_noise(simgd):
    line = f"{MLP} --schedules sync --seed"
    assert simgd(f"{line} 1").out == simgd(f"{line} 1").out
    drawn, other = (predictions(simgd(f"{line} {seed}"))[0] for seed in (1, 2))
    assert drawn["iteration_s"] == other["iteration_s"]
    assert drawn["iteration_high_s"] != other["iteration_high_s"]


# --- files in place of names -------------------------------------------------------------------------------------


def test_a_workload_may_be_a_file(simgd):
    Path("net.toml").write_text(simgd("show mlp --toml").out)
    assert predictions(simgd("predict net.toml --on dgx1-p100 --json")) == predictions(simgd(MLP))


def test_a_cluster_may_be_a_file(simgd):
    Path("lab.toml").write_text(simgd("show dgx1-p100 --toml").out)
    assert predictions(simgd("predict mlp --on lab.toml --json")) == predictions(simgd(MLP))


def test_a_cluster_of_ones_own_costs_what_its_data_sheet_says(simgd):
    text = simgd("show dgx1-p100 --toml").out.replace('name = "dgx1-p100"', 'name = "lab"')
    Path("lab.toml").write_text(text)
    row = predictions(simgd("predict mlp --on lab.toml --json"))[0]
    assert (row["cluster"], row["profile"]) == ("lab", "dgx1-p100, costs of its device")
    Path("lab.toml").write_text(text.replace('"NVIDIA P100 SXM2"', '"P200"'))
    row = predictions(simgd("predict mlp --on lab.toml --json"))[0]
    assert (row["cluster"], row["profile"], row["origin"]) == ("lab", "nominal lab", "assumed")


@pytest.mark.parametrize("change", [('"NVIDIA P100 SXM2"', '"P200"'), ('"10.6 TFLOP/s"', '"21 TFLOP/s"')])
def test_another_device_under_a_shipped_name_does_not_get_the_shipped_costs(simgd, change):
    text = simgd("show dgx1-p100 --toml").out
    Path("lab.toml").write_text(text.replace(*change))
    refused = simgd("predict mlp --on lab.toml")
    assert refused.status == 2
    assert "lab.toml: is called 'dgx1-p100' but has another device" in refused.err


def test_a_profile_stands_for_its_cluster(simgd):
    files.write("p.json.gz", catalogue.profile("dgx1-p100"))
    assert predictions(simgd("predict mlp --on p.json.gz --json")) == predictions(simgd(MLP))


def test_of_several_profiles_the_later_wins_entry_by_entry(simgd):
    cluster = catalogue.cluster("dgx1-p100")

    def profile(name: str, **batches: float) -> None:
        steps = tuple(
            StepTime(origin="measured", source="here", workload="resnet50", batch=int(batch[1:]), seconds=seconds)
            for batch, seconds in batches.items()
        )
        files.write(f"{name}.json", Profile(name=name, cluster=cluster, steps=steps))

    profile("first", b8=1.0, b16=2.0)
    profile("second", b16=3.0)

    def compute_s(batch: int, *names: str) -> float:
        given = " ".join(f"--profile {name}.json" for name in names)
        line = f"predict resnet50 --on dgx1-p100 --batch {batch} --ranks 1 --schedules sync --json {given}"
        return predictions(simgd(line))[0]["compute_s"]

    assert compute_s(8, "first", "second") == compute_s(8, "first") == pytest.approx(1.0, rel=0.01)
    assert compute_s(16, "first") == pytest.approx(2.0, rel=0.01)
    assert compute_s(16, "first", "second") == compute_s(16, "second") == pytest.approx(3.0, rel=0.01)
    assert compute_s(16, "second", "first") == pytest.approx(2.0, rel=0.01)


def test_a_schedule_may_be_a_file_for_every_number_of_ranks(simgd):
    assert simgd("schedule layerwise --workload mlp --out s.json").status == 0
    by_file = predictions(simgd(f"{MLP} --schedules s.json --ranks 2,8"))
    assert by_file == predictions(simgd(f"{MLP} --schedules layerwise --ranks 2,8"))


def test_a_file_is_believed_whatever_its_schedule_is_called(simgd):
    """A file whose schedule is called "sync" must not be taken for the schedule of that name."""
    built = schedules.build(schedules.parse("layerwise"), catalogue.workload("vgg16"))
    raw = files.plain(built) | {"name": "sync"}
    Path("s.json").write_text(json.dumps(raw))
    line = "predict vgg16 --on pcie-box --json --schedules"
    (by_file,), (by_name,) = (predictions(simgd(f"{line} {name}")) for name in ("s.json", "layerwise"))
    assert by_file["iteration_s"] == by_name["iteration_s"]
    refused = simgd(f"{line} s.json,sync")
    assert refused.status == 2
    assert "two are called 'sync'" in refused.err


def test_a_table_of_measured_layers_is_a_workload_and_a_profile(simgd):
    table = DATA / "googlenet_k80_caffe_layers.csv"
    assert simgd(f"workload {table} --out k80.toml").status == 0
    assert Path("k80.profile.json").exists()
    rows = predictions(simgd("predict k80.toml --on k80.profile.json --ranks 2,4 --schedules sync,layerwise --json"))
    assert all(row["speedup_over_sync"] >= 1 for row in rows)
    refused = simgd("predict k80.toml --on dgx1-p100")
    assert refused.status == 2
    assert "--profile" in refused.err


# --- outputs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t.json", "t.json.gz"])
def test_a_timeline_has_a_track_for_each_rank_and_lane(simgd, name):
    assert simgd(f"predict mlp --on dgx1-p100 --schedules layerwise --trace {name}").status == 0
    content = Path(name).read_bytes()
    events = json.loads(gzip.decompress(content) if name.endswith(".gz") else content)["traceEvents"]
    ran = [event for event in events if event["ph"] == "X"]
    assert len({event["pid"] for event in ran}) == 8
    assert any("backward" in event["name"] for event in ran)
    assert all(event["dur"] >= 0 for event in ran)


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a.svg", b"<?xml")])
def test_a_picture_is_what_its_name_says(simgd, name, start):
    assert simgd(f"predict mlp --on dgx1-p100 --schedules sync,layerwise --ranks 1,2 --plot {name}").status == 0
    assert Path(name).read_bytes().startswith(start)


def test_a_machine_can_be_drawn(simgd):
    assert simgd("show dgx1-p100 --plot m.svg").status == 0
    assert b"svg" in Path("m.svg").read_bytes()[:300]


def test_the_demo_does_the_whole_loop_on_this_machine_and_ends_with_the_paths_of_its_files(simgd):
    ran = simgd("demo --out d")
    assert ran.status == 0
    assert ran.out.count("verdict: ") == 2
    steps = re.findall(r"^\$ simgd (\w+)", ran.out, re.MULTILINE)
    assert steps == ["calibrate", "predict", "run", "run", "run", "validate"]
    named = re.findall(r"^(?:picture|timeline|profile): (d/\S+)", ran.out, re.MULTILINE)
    assert named == ["d/alexnet.png", "d/alexnet.trace.json", "d/validation.png", "d/here.json"]
    assert all(Path(name).stat().st_size > 1000 for name in named)
    # three schedules, each compared once
    assert len(re.findall(r"^digits-cnn .* here, 2 ranks .*%", ran.out, re.MULTILINE)) == 3


# --- explain, collective, schedule, workload, list, show ---------------------------------------------------------


def test_explain_names_the_cycle_and_what_would_move_it(simgd):
    (found,) = simgd("explain resnet50 --on dgx1-p100 --ranks 8 --schedule layerwise --json").json["explanations"]
    (row,) = predictions(simgd("predict resnet50 --on dgx1-p100 --schedules layerwise --json"))
    assert found["iteration_s"] == row["iteration_s"]
    assert found["critical_cycle_s"] <= found["iteration_s"]
    assert sum(found["shares"].values()) == pytest.approx(found["critical_cycle_s"], rel=1e-9)
    resources = {change["resource"] for change in found["changes"]}
    assert {"nvlink links", "pcie links", "device (NVIDIA P100 SXM2)"} <= resources
    assert any(resource.startswith("host") for resource in resources)


def test_explain_defaults_to_what_people_run_on_every_device(simgd):
    (found,) = simgd("explain mlp --on dgx1-p100 --json").json["explanations"]
    assert (found["schedule"], found["ranks"]) == ("bucketed:25MiB", 8)


def test_explain_takes_several_numbers_of_ranks(simgd):
    found = simgd("explain mlp --on dgx1-p100 --ranks 2,4 --json").json["explanations"]
    assert [each["ranks"] for each in found] == [2, 4]


def test_collectives_have_every_key_of_the_contract(simgd):
    rows = simgd("collective all_reduce --on dgx1-p100 --ranks 2,8 --sizes 64KiB,1MiB --json").json["collectives"]
    assert [(row["ranks"], row["bytes"]) for row in rows] == [(2, 65536), (2, 2**20), (8, 65536), (8, 2**20)]
    for row in rows:
        assert set(COLLECTIVE_KEYS) <= set(row)
        # nccl-tests: an all-reduce of p ranks moves 2 (p-1)/p of its bytes over each link
        bus = row["bytes"] / row["time_s"] * 2 * (row["ranks"] - 1) / row["ranks"]
        assert row["bus_bytes_per_s"] == pytest.approx(bus)


def test_sizes_can_span_and_default_from_8_b_to_1_gib(simgd):
    rows = simgd("collective all_gather --on dgx1-p100 --sizes 8B:1KiB:x2 --json").json["collectives"]
    assert [row["bytes"] for row in rows] == [8, 16, 32, 64, 128, 256, 512, 1024]
    default = [row["bytes"] for row in simgd("collective all_gather --on dgx1-p100 --json").json["collectives"]]
    assert (default[0], default[-1]) == (8, 2**30)


def test_a_measurement_is_laid_beside_the_prediction(simgd):
    ran = simgd(f"collective all_reduce --on dgx-h100 --measured {DATA / 'nccl-tests-2.13-8-h100.txt'} --json")
    for row in ran.json["collectives"]:
        assert row["ranks"] == 8
        assert row["relative_error"] == pytest.approx(row["time_s"] / row["measured_s"] - 1)


@pytest.mark.parametrize("name", ["sync", "bucketed:1MiB", "layerwise", "layerwise:tensor", "async:2", "async:1:all"])
def test_a_written_schedule_is_the_one_of_that_name(simgd, name):
    ran = simgd(f"schedule {name} --workload mlp --out s.json.gz")
    expected = schedules.build(schedules.parse(name), catalogue.workload("mlp"))
    assert files.read("s.json.gz", Schedule) == expected
    assert expected.digest[:12] in ran.out
    assert expected.digest in simgd("show s.json.gz").out


def test_a_schedule_that_depends_on_costs_needs_a_cluster(simgd):
    assert "plan it for a cluster" in simgd("schedule async_layerwise:auto --workload mlp --out s.json").err
    line = "schedule async_layerwise:auto --workload mlp --on xeon-edr --ranks 4 --out s.json"
    assert simgd(line).status == 0
    assert files.read("s.json", Schedule).name == "async_layerwise:auto"


@pytest.mark.parametrize("what", ["workloads", "clusters", "profiles"])
def test_what_is_listed_can_be_shown(simgd, what):
    listed = [line.split()[0] for line in simgd(f"list {what}").out.splitlines()[1:]]
    assert listed == list(catalogue.names(what.removesuffix("s")))
    for name in listed:
        shown = simgd(f"show {name}")
        assert shown.status == 0
        assert name in shown.out


def test_every_listed_schedule_can_be_shown(simgd):
    for line in simgd("list schedules").out.splitlines()[1:]:
        name = line.split()[0].replace("BYTES", "1MiB").replace("D", "1")
        assert simgd(f"show {name}").status == 0
        assert simgd(f"show {name.partition(':')[0]}").status == 0


@pytest.mark.parametrize("name", catalogue.names("cluster"))
def test_a_cluster_as_toml_is_the_same_cluster(simgd, name):
    found = files.parse(simgd(f"show {name} --toml").out.encode(), Cluster, where="", toml=True)
    assert found == catalogue.cluster(name)


@pytest.mark.parametrize("name", catalogue.names("workload"))
def test_a_workload_as_toml_is_the_same_workload(simgd, name):
    found = files.parse(simgd(f"show {name} --toml").out.encode(), Workload, where="", toml=True)
    assert found == catalogue.workload(name)


def test_names_from_files_are_no_markup(simgd):
    text = simgd("show mlp --toml").out.replace('name = "2"', 'name = "[/b] :bomb: [red]"')
    Path("w.toml").write_text(text)
    assert "[/b] :bomb: [red]" in simgd("show w.toml").out
    Path("c.toml").write_text(simgd("show dgx1-p100 --toml").out.replace('name = "dgx1-p100"', 'name = "[/b]"'))
    assert "mlp on [/b]" in simgd("predict mlp --on c.toml").out


def test_help_names_every_command_and_needs_no_argument(simgd):
    for line in ("", "--help"):
        ran = simgd(line)
        assert ran.status == 0
        for command in [
            "predict",
            "explain",
            "collective",
            "schedule",
            "workload",
            "list",
            "show",
            "calibrate",
            "validate",
            "demo",
        ]:
            assert f"  {command} " in ran.out
        assert "..." not in ran.out.replace("[ARGS]...", "")


PREDICT_OPTIONS = """
    --on --ranks --schedules --schedule --batch --global-batch --seq-len --optimizer --dtype --wire --devices --baseline
    --profile --seed --json --trace --plot
"""


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("predict", PREDICT_OPTIONS),
        ("explain", "--on --ranks --schedule --json"),
        ("collective", "--on --ranks --sizes --measured --json"),
        ("schedule", "--workload --on --ranks --profile --out"),
        ("workload", "--out"),
        ("show", "--toml --plot"),
    ],
)
def test_help_names_every_option_of_the_contract(simgd, command, options):
    text = simgd(f"{command} --help").out
    for option in options.split():
        assert re.search(rf"{option}\b", text), option


@pytest.mark.parametrize("columns", [60, 80, 100, 140, 200])
def test_a_narrow_terminal_loses_whole_columns_and_says_which(columns):
    from rich.console import Console

    from simgd import report
    from simgd.job import job
    from simgd.predict import Machine, predict

    machine = Machine(catalogue.cluster("dgx1-p100"), catalogue.profile("dgx1-p100"))
    rows = predict(machine, job(catalogue.workload("mlp")), [8], schedules.DEFAULT_SCHEDULES)
    console = Console(width=columns, record=True, markup=False, file=io.StringIO())
    console.print(report.predictions(rows, "none"))
    text = console.export_text()
    assert "…" not in text
    for row in rows:
        assert row.schedule in text
    assert "iteration" in text
    assert ("left out" in text) == (columns < 180)
