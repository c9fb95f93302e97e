"""Bad input ends in one line on standard error, status 2, nothing written: where, what was found, what is right."""

import gzip
import json
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import pytest

from simgd import catalogue, files, schedules
from simgd.errors import SimgdError
from simgd.job import job
from simgd.predict import Machine, predict
from simgd.profile import Profile
from simgd.schedule import Schedule
from simgd.topology import Cluster
from simgd.workload import Workload

ON = "--on dgx1-p100"
RUN = "run sync --steps 2"

MLP = files.plain(catalogue.workload("mlp"))
DGX1 = files.plain(catalogue.cluster("dgx1-p100"))
COSTS = files.plain(catalogue.profile("dgx1-p100"))
LAYERWISE = files.plain(schedules.build(schedules.parse("layerwise"), catalogue.workload("mlp")))
DELAYED = files.plain(schedules.build(schedules.parse("async:1:all"), catalogue.workload("mlp")))


@pytest.fixture
def refused(simgd, tmp_path) -> Callable[[str], str]:
    """Run a command that must be refused, and return what it says."""

    def run(line: str) -> str:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        ran = simgd(line)
        assert ran.status == 2
        assert ran.err.startswith("simgd: ")
        assert ran.err.count("\n") == 1
        assert ran.err.endswith("\n")
        assert len(ran.err) < 600
        assert ran.out == ""
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
        return ran.err.removeprefix("simgd: ").rstrip("\n")

    return run


# --- arguments ---------------------------------------------------------------------------------------------------

ARGUMENTS = {
    # names, with the nearest
    f"predict resnet5 {ON}": "workload 'resnet5' is unknown; did you mean 'resnet50'? `simgd list workloads` shows all",
    "predict mlp --on dgx3-v100": "cluster 'dgx3-v100' is unknown; did you mean 'dgx2-v100'?",
    "predict mlp --on nothing": "cluster 'nothing' is unknown; `simgd list clusters` shows all",
    f"predict mlp {ON} --schedules layerwize": "schedule 'layerwize' is unknown; did you mean 'layerwise'?",
    f"predict mlp {ON} --baseline buckets": "schedule 'buckets' is unknown; `simgd list schedules` shows all",
    f"predict mlp {ON} --profile dgx1-p10": "profile 'dgx1-p10' is unknown; did you mean 'dgx1-p100'?",
    f"predict mlp {ON} --optimizer adam": "optimizer 'adam' is unknown; did you mean 'adamw'?",
    f"predict mlp {ON} --dtype fp16": "dtype 'fp16' is unknown; did you mean",
    f"predict mlp {ON} --wire fp8": "wire 'fp8' is unknown",
    f"collective all_reduc {ON}": "collective 'all_reduc' is unknown; did you mean 'all_reduce'?",
    "list workload": "list 'workload' is unknown; did you mean 'workloads'?",
    "show dgx-a10": "name 'dgx-a10' is unknown; did you mean 'dgx-a100'?",
    f"predict {'x' * 5000} {ON}": "is unknown",
    f"predict mlp {ON} --nosuch": "No such option: --nosuch",
    "frobnicate": "No such command 'frobnicate'",
    "predict": "Missing argument 'workload'",
    "predict mlp": "Missing option '--on'",
    # ranks and devices
    f"predict mlp {ON} --ranks 0": "0 ranks; at least 1 is needed",
    f"predict mlp {ON} --ranks -1": "'-1' is not a whole number of 0 or more",
    f"predict mlp {ON} --ranks 1,,2": "is not a whole number of 0 or more; write 1,2,4,8",
    f"predict mlp {ON} --ranks 2,2": "--ranks 2,2: names a number twice",
    f"predict mlp {ON} --ranks 9": "9 ranks, but 8 devices; `--on dgx1-p100:2` has enough nodes",
    f"predict mlp {ON} --ranks 999999999": "at most 1048576 ranks",
    "predict mlp --on xeon-edr --ranks 999999999": "at most 1048576 ranks",
    "predict mlp --on xeon-edr": "has as many CPU nodes as asked for; give --ranks",
    "predict mlp --on dgx1-p100:9999999": "at most 1048576 devices",
    "predict mlp --on dgx1-p100:0": "'0' is not a number of nodes; write dgx1-p100:4",
    "predict mlp --on dgx1-p100:x": "'x' is not a number of nodes",
    f"predict mlp {ON} --devices 0,8": "device 8 is unknown; they are 0 to 7",
    f"predict mlp {ON} --devices 0,0": "device 0 is listed twice",
    f"predict mlp {ON} --devices 0,1 --ranks 4": "4 ranks, but 2 devices are listed",
    # the job
    f"predict mlp {ON} --batch 0": "a batch of 0 is none; it must be 1 or more",
    f"predict mlp {ON} --batch many": "--batch",
    f"predict mlp {ON} --batch 8 --global-batch 64": "--batch and --global-batch: give one of them",
    f"predict mlp {ON} --global-batch 10": "--global-batch 10: is not a multiple of 8 ranks",
    f"predict mlp {ON} --global-batch 0": "a batch of 0 is none",
    f"predict mlp {ON} --global-batch -8": "a batch of -8 is none",
    f"predict mlp {ON} --seed -1": "--seed",
    f"predict mlp {ON} --seq-len 5": "has no sequence; leave --seq-len out",
    f"predict gpt2 {ON} --seq-len 5000": "5000 tokens are more than its 1024",
    f"predict gpt2 {ON} --seq-len 0": "a sequence of 0 tokens is none",
    f"predict mlp {ON} --dtype bf16": "'NVIDIA P100 SXM2': has no bf16 arithmetic; take --dtype fp32",
    # schedules
    f"predict mlp {ON} --schedules sync,sync": "names a schedule twice",
    f"predict mlp {ON} --schedules sync,": "none between commas",
    f"predict mlp {ON} --schedules async:0": "delay '0' is not a whole number from 1 to 64",
    f"predict mlp {ON} --schedules async:65": "delay '65' is not a whole number from 1 to 64",
    f"predict mlp {ON} --schedules bucketed:0B": "a message of '0B' would be empty",
    f"predict mlp {ON} --schedules bucketed:25Mb": "'25Mb' is not a size; write a number and B, kB, MB",
    "schedule async_layerwise:auto --workload mlp --out s.json": "plan it for a cluster",
    # a run
    f"{RUN} --workload ml": "workload 'ml' is unknown; did you mean 'mlp'?",
    "run layerwize --workload mlp --steps 2": "schedule 'layerwize' is unknown; did you mean 'layerwise'?",
    f"{RUN} --workload mlp --backend glo": "backend 'glo' is unknown; did you mean 'gloo'?",
    f"{RUN} --workload mlp --compute fake": "compute 'fake' is unknown; it is one of real, emulated, emulated:busy",
    f"{RUN} --workload mlp --compute emulated": "spends the times of a profile; give --profile",
    f"{RUN} --workload mlp --progress poll:1": "loopback makes progress by itself; leave it out",
    f"{RUN} --workload mlp --backend mpi --progress poll:0": "poll every 1 to 1000000 passes, such as poll:16",
    f"{RUN} --workload mlp --backend mpi --progress maybe": "progress 'maybe' is unknown",
    f"{RUN} --workload mlp --backend mpi": "nobody started this process as a rank; give --ranks N",
    f"{RUN} --workload mlp --out r.txt": "a run is written as JSON; end the name in .json",
    f"{RUN} --workload mlp --out missing/r.json": "missing/r.json: there is no folder 'missing'",
    f"{RUN} --workload mlp --trace t.txt": "end the name in .json",
    f"{RUN} --workload mlp --trace r.json --out r.json": "r.json: --out and --trace name the same file",
    f"{RUN} --workload mlp --ranks 0": "--ranks",
    f"{RUN} --workload mlp --timeout 0": "--timeout",
    f"{RUN} --workload mlp --batch 0": "a batch of 0 is none",
    f"{RUN} --workload mlp --seq-len 3": "has no sequence; leave --seq-len out",
    f"{RUN} --workload mlp --optimizer sdg": "optimizer 'sdg' is unknown; did you mean 'sgd'?",
    f"{RUN} --workload mlp --optimizer sgd:lr": "optimizer 'sgd:lr': 'lr' is not NAME=VALUE",
    f"{RUN} --workload mlp --optimizer sgd:rate=1": "optimizer 'sgd:rate=1': TypeError: ",
    f"{RUN} --workload mlp --optimizer sgd:lr=-1": "optimizer 'sgd:lr=-1': ValueError: Invalid learning rate: -1",
    "run sync --workload mlp": "Missing option '--steps'",
    "run sync --workload mlp --steps 0": "--steps",
    "run async_layerwise:auto --workload mlp --steps 2": "its delays depend on costs; give --profile",
    # sizes
    f"collective all_reduce {ON} --sizes 8Q": "'8Q' is not a size",
    f"collective all_reduce {ON} --algorithm rung": "algorithm of all_reduce 'rung' is unknown; it is one of ",
    f"collective all_reduce {ON} --fidelity flow": "fidelity 'flow' is unknown; did you mean 'flows'?",
    "collective all_reduce --on dgx1-p100 --devices 0,1 --beside 1,2": "--beside: device 1 is of two jobs",
    "collective all_reduce --on dgx1-p100 --devices 0,1 --beside 2,2": "device 2 is listed twice",
    "collective all_reduce --on dgx1-p100 --devices 0,1 --beside 2,8": "device 8 is unknown; they are 0 to 7",
    "collective all_reduce --on dgx1-p100 --devices 0,1 --beside x": "--beside 'x': 'x' is not a whole number",
    f"collective all_reduce {ON} --sizes 8B:4B:x2": "does not grow from a size above 0",
    f"collective all_reduce {ON} --sizes 1B:1GB:x1.0000001": "has more than 10000 sizes",
    # outputs
    f"predict mlp {ON} --trace t.txt": "end the name in .json",
    f"predict mlp {ON} --plot p.doc": "end the name in .png, .pdf or .svg",
    f"predict mlp {ON} --plot p.doc --trace t.json": "p.doc",
    f"predict mlp {ON} --plot p.png --trace t.txt": "t.txt",
    f"predict mlp {ON} --plot missing/p.png --trace t.json": "missing/p.png: there is no folder 'missing'",
    f"predict mlp {ON} --trace missing/t.json --plot p.png": "missing/t.json: there is no folder 'missing'",
    "schedule sync --workload mlp --out s.toml": "a schedule is written as JSON; end the name in .json",
    "schedule sync --workload mlp --out missing/s.json": "missing/s.json: cannot be written: No such file or directory",
    "workload executor.networks:mlp --out w.json": "a workload is written as TOML; end the name in .toml",
    "demo --out /dev/null": "/dev/null: cannot be made",
    "show mlp --plot p.png": "only a cluster or a profile can be drawn",
    "show sync --toml": "only workloads and clusters are TOML files",
    "show dgx1-p100 --plot p": "end the name in .png, .pdf or .svg",
    # sources
    "workload nowhere --out w.toml": "'nowhere' is not a network; write package.module:function",
    "workload nowhere:f --out w.toml": "module 'nowhere' cannot be imported",
    "workload executor.networks:f --out w.toml": "has no function 'f'",
    "workload executor.networks:mlp --argument x --out w.toml": "--argument 'x': write NAME=VALUE",
    "workload missing.csv --out w.toml": "missing.csv: there is no such file",
    f"collective all_reduce {ON} --measured missing.txt": "missing.txt: there is no such file",
}


@pytest.mark.parametrize("line", ARGUMENTS)
def test_a_wrong_argument(refused, line):
    assert ARGUMENTS[line] in refused(line)


# --- files -------------------------------------------------------------------------------------------------------

#: How each sort of file is given to a command.
USES = {
    "predict {} --on dgx1-p100": ".toml",
    "predict mlp --on {}": ".toml",
    "predict mlp --on {} ": ".json",
    "predict mlp --on dgx1-p100 --profile {}": ".json",
    "predict mlp --on dgx1-p100 --schedules sync,{}": ".json",
    "predict mlp --on dgx1-p100 --baseline {}": ".json.gz",
    "explain mlp --on dgx1-p100 --schedule {}": ".json",
    "collective all_reduce --on dgx1-p100 --profile {}": ".json.gz",
    "collective all_reduce --on dgx1-p100 --measured {}": ".txt",
    "schedule sync --out s.json --workload {}": ".toml",
    "workload {} --out w.toml": ".csv",
    "show {}": ".json",
    "show {} ": ".toml",
}

CONTENTS = {
    "empty": b"",
    "blank": b" \n\n",
    "binary": bytes(range(256)),
    "null bytes": bytes(100),
    "other": b'{"format": "something else", "version": 1}',
    "version": b'{"format": "simgd profile", "version": 99}',
    "list": b"[1, 2]",
    "nested": b"[" * 100_000,
    "prose": b"To be, or not to be: that is the question\n" * 3,
    "long": b"x" * 100_000,
    "latin-1": "name = 'é'".encode("latin-1"),
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("use", USES)
def test_a_file_that_holds_something_else(refused, use, content):
    name = f"given{USES[use]}"
    packed = gzip.compress(CONTENTS[content]) if name.endswith(".gz") else CONTENTS[content]
    Path(name).write_bytes(packed)
    assert refused(use.format(name)).startswith(name)


@pytest.mark.parametrize("use", USES)
def test_a_file_that_is_not_there(refused, use):
    name = f"missing{USES[use]}"
    assert f"{name}: there is no such file" == refused(use.format(name))


@pytest.mark.parametrize("use", USES)
def test_a_folder_instead_of_a_file(refused, use):
    name = f"folder{USES[use]}"
    Path(name).mkdir()
    assert f"{name}: is a folder; name a file" == refused(use.format(name))


def test_a_packed_file_cut_short(refused):
    Path("p.json.gz").write_bytes(gzip.compress(json.dumps(COSTS).encode())[:500])
    assert "p.json.gz: cannot be read: Compressed file ended" in refused(f"predict mlp {ON} --profile p.json.gz")


def changed(raw: Any, *path: Any, to: Any) -> Any:
    """Return *raw* with one value put in the place at *path*."""
    raw = deepcopy(raw)
    at = raw
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = to
    return raw


NVLINK = ("links", 0)

CLUSTERS = {
    "links[0].bandwidth: '25 Gps' is not a rate; write a number and GB/s": (*NVLINK, "bandwidth", "25 Gps"),
    "links[0].bandwidth: '-1' is not a rate of 0 or more": (*NVLINK, "bandwidth", -1),
    "bandwidth is 0.0; it must be above 0": (*NVLINK, "bandwidth", 0),
    "bandwidth is 1e-300; it must be from 1e-24 to 1e+24": (*NVLINK, "bandwidth", 1e-300),
    "links[0].bandwidth: 'nan' is not a rate": (*NVLINK, "bandwidth", float("nan")),
    "links[0].bandwidth: 'inf' is not a rate": (*NVLINK, "bandwidth", float("inf")),
    "links[0].latency: '3 parsec' is not a time; write a number and s, ms, us or ns": (*NVLINK, "latency", "3 parsec"),
    "links[0].ends: Expected `array` of length 2, got 1": (*NVLINK, "ends", ["gpu0"]),
    "link gpu0-gpu0: joins a vertex with itself": (*NVLINK, "ends", ["gpu0", "gpu0"]),
    "link gpu0-gpu9: 'gpu9' is not a vertex": (*NVLINK, "ends", ["gpu0", "gpu9"]),
    "link 'nvlink gpu0-gpu2' stands twice": (*NVLINK, "ends", ["gpu2", "gpu0"]),
    "links[0].count: Expected `int`, got `float`": (*NVLINK, "count", 1.5),
    "count is a number of 401 digits; it must be from": (*NVLINK, "count", 10**400),
    "Invalid enum value 'toaster'": ("vertices", "gpu0", "toaster"),
    "no path from 'gpu0' to 'island'": ("vertices", "island", "switch"),
    "nodes is 0; it must be above 0": ("nodes", 0),
    "at most 1048576 devices": ("nodes", 10**9),
    "device.fp32: '10 GB/s' is not an arithmetic rate": ("device", "fp32", "10 GB/s"),
    "device.memory: '16.5 B' is not a whole number of bytes": ("device", "memory", "16.5 B"),
    "has 2 nodes, but no nic and interconnect to join them": ("nodes", 2),
    "Object contains unknown field `colour`": ("colour", "red"),
    "Object missing required field `device`": ("device",),
}


@pytest.mark.parametrize("message", CLUSTERS)
def test_a_cluster_that_cannot_be(refused, message):
    *path, to = CLUSTERS[message]
    raw = changed(DGX1, *path, to=to) if path else {key: value for key, value in DGX1.items() if key != to}
    if "no nic" in message:
        raw.pop("interconnect")
    Path("lab.toml").write_bytes(files.to_toml(raw).replace(b"null", b"nan"))
    said = refused("predict mlp --on lab.toml")
    assert said.startswith("lab.toml: ")
    assert message in said.replace("'None'", "'nan'") or _no_such_number(message, said)


def _no_such_number(message: str, said: str) -> bool:
    """Our writer has no infinity: it comes out as nan."""
    return "'inf'" in message and "'nan' is not a rate" in said


LAYER = ("layers", 1)

WORKLOADS = {
    "flops: per_sample is nan; it must be a number": (*LAYER, "forward", {"flops": {"per_sample": float("nan")}}),
    "per_sample is 1e+300; it must be a number up to": (*LAYER, "forward", {"flops": {"per_sample": 1e300}}),
    "layer '2': forward.flops is -64 for 64 samples; it must be 0 or more": (
        *LAYER,
        "forward",
        {"flops": {"per_sample": -1}},
    ),
    "layer '2': kept is -64 for 64 samples": (*LAYER, "kept", {"per_sample": -1}),
    "kernels is -1; it must be 0 or more": (*LAYER, "forward", {"kernels": -1}),
    "kernels is a number of 401 digits; it must be at most": (*LAYER, "forward", {"kernels": 10**400}),
    "tensor 'w': shape [0] is not that of a tensor": (*LAYER, "tensors", [["w", [0]]]),
    "tensor 'w': shape [-4] is not that of a tensor": (*LAYER, "tensors", [["w", [-4]]]),
    "layers[1].tensors[0][1][0]: Expected `int`, got `float`": (*LAYER, "tensors", [["w", [1.5]]]),
    "tensor '0.bias' stands twice": (*LAYER, "tensors", [["0.bias", [4]]]),
    "layer '0' stands twice": (*LAYER, "name", "0"),
    "shares 'nothing', which no layer before it owns": (*LAYER, "shared", ["nothing"]),
    "has no layers": ("layers", []),
    "batch is 0; it must be above 0": ("batch", 0),
    "batch is a number of 401 digits": ("batch", 10**400),
    "tokens is -1; it must be 0 or more": ("tokens", -1),
    "backward_order must name every layer once": ("backward_order", ["0"]),
    "layers[1].name: Expected `str`, got `int`": (*LAYER, "name", 5),
    "characters and none of | ; , [ ]": (*LAYER, "name", "a|b"),
}


@pytest.mark.parametrize("message", WORKLOADS)
def test_a_workload_that_cannot_be(refused, message):
    *path, to = WORKLOADS[message]
    Path("net.toml").write_bytes(files.to_toml(changed(MLP, *path, to=to)).replace(b"null", b"nan"))
    assert message in refused(f"predict net.toml {ON}")


MEASURED = {"origin": "measured", "source": "here"}

PROFILES = {
    "step of 'mlp': seconds is 0.0; it must be above 0": (
        "steps",
        [MEASURED | {"workload": "mlp", "batch": 1, "seconds": 0}],
    ),
    "has no bf16 arithmetic": ("steps", [MEASURED | {"workload": "mlp", "batch": 1, "seconds": 1, "dtype": "bf16"}]),
    "step of 'mlp' at batch 1, fp32: workload 'mlp': has no sequence": (
        "steps",
        [MEASURED | {"workload": "mlp", "batch": 1, "seconds": 1, "tokens": 5}],
    ),
    "forward times of 'mlp': 0 is -1.0; it must be 0 or more": (
        "layers",
        [MEASURED | {"workload": "mlp", "batch": 1, "direction": "forward", "seconds": {"0": -1}}],
    ),
    "split: backward_plus_update is -2.0; it must be above 0": ("split", MEASURED | {"backward_plus_update": -2}),
    "efficiency: value is 0.0; it must be above 0": ("efficiency", MEASURED | {"value": 0}),
    "uncertainty is 1.0; it must be from 0 up to 1": (
        "split",
        MEASURED | {"backward_plus_update": 2, "uncertainty": 1},
    ),
    "host: collective is -1.0; it must be 0 or more": ("host", "collective", -1),
    "host: iteration is 1e+300; it must be at most 1e+24": ("host", "iteration", 1e300),
    "memory: bytes_per_s is 0.0; it must be above 0": ("memory", "bytes_per_s", 0),
    "interference: factor 0.5 must be from 1 to 100": ("interference", 0, "compute_factor", 0.5),
    "progress is 1e-09; it must be from 0.01 to 1": ("execution", "progress", 1e-9),
    "execution: run_ahead is 0; it must be above 0": ("execution", "run_ahead", 0),
    "jitter: rank_sigma is -1.0; it must be from 0 to 3": ("jitter", "rank_sigma", -1),
    "jitter: rank_sigma is 1e+300; it must be from 0 to 3": ("jitter", "rank_sigma", 1e300),
    "protocol 'LL': base_ring_us is -1.0; it must be 0 or more": ("library", "protocols", 0, "base_ring_us", -1),
    "efficiency is 0.0; it must be above 0": ("library", "protocols", 0, "efficiency", 0),
    "library 'mpi': reduce_bytes_per_s is -1.0": ("library", MEASURED | {"name": "mpi", "reduce_bytes_per_s": -1}),
    "all_reduce curve of 8 ranks: has no points": (
        "curves",
        [MEASURED | {"kind": "all_reduce", "ranks": 8, "nodes": 1, "points": []}],
    ),
    "sizes are out of order at 8 B": (
        "curves",
        [MEASURED | {"kind": "all_reduce", "ranks": 8, "nodes": 1, "points": [[16, 1], [8, 1]]}],
    ),
    "steps[0]: Object missing required field `origin`": ("steps", [{"workload": "mlp", "batch": 1, "seconds": 1}]),
    "origin: Invalid enum value 'guessed'": ("split", {"origin": "guessed", "source": "", "backward_plus_update": 2}),
    "p.json: speaks of Other, but cluster 'dgx1-p100' has NVIDIA P100 SXM2": ("cluster", "device", "name", "Other"),
    "version is 2; this simgd reads version 1": ("version", 2),
    "holds 'simgd cluster'; it should start with format = 'simgd profile'": ("format", "simgd cluster"),
}


@pytest.mark.parametrize("message", PROFILES)
def test_a_profile_that_cannot_be(refused, message):
    *path, to = PROFILES[message]
    Path("p.json").write_text(json.dumps(changed(COSTS, *path, to=to)))
    assert message in refused(f"predict mlp {ON} --schedules sync --profile p.json")


def test_costs_that_are_all_0_are_no_costs(refused):
    steps = [
        MEASURED | {"workload": "mlp", "batch": 64, "direction": way, "seconds": dict.fromkeys("0246", 0)}
        for way in ("forward", "backward")
    ]
    raw = {key: value for key, value in COSTS.items() if key not in ("host", "steps")}
    raw |= {"layers": steps, "memory": MEASURED | {"bytes_per_s": 1e24, "kernel": 0}}
    Path("p.json").write_text(json.dumps(raw))
    assert "every cost is 0" in refused(f"predict mlp {ON} --profile p.json --ranks 1")


def op(place: int, *rest: Any) -> tuple[Any, ...]:
    return ("roles", "worker", place, *rest)


FIRST, LAST_BACKWARD, FIRST_SENT, LAST = 0, 10, 5, -1

SCHEDULES = {
    # a cycle
    "deadlock: op 'forward 0' on lane compute waits for 'update 6', which can never end before it": op(
        FIRST, "after", [["update 6", 0]]
    ),
    # a lost bucket
    "all_reduce of gradients must cover tensor '0.bias' once": op(FIRST_SENT, "work", "bucket", "0"),
    # races
    "race on the gradient of bucket '6': nothing makes 'all_reduce 6' wait for 'backward 6'": op(
        FIRST_SENT, "after", []
    ),
    "race on the weight of bucket '0': nothing makes 'forward 0' wait for 'update 0' in the iteration before": op(
        FIRST, "after", []
    ),
    "race on the gradient of bucket '0': nothing makes 'update 0' wait for 'all_reduce 0'": op(LAST, "after", []),
    # and what the types refuse
    "op 'forward 0' waits for 'nothing', which is no op": op(FIRST, "after", [["nothing", 1]]),
    "lag -1 points into the future": op(FIRST, "after", [["update 0", -1]]),
    "lag is more than 1000 iterations": op(FIRST, "after", [["update 0", 10**9]]),
    "phase 5 must be from 0 up to every = 1": op(FIRST, "phase", 5),
    "runs once in more than 1000 iterations": op(FIRST, "every", 10**9),
    "lane 'comm' cannot run it; it belongs on compute": op(FIRST, "lane", "comm"),
    "Invalid enum value 'gpu'": op(FIRST, "lane", "gpu"),
    "names bucket 'x', which is not there": op(FIRST_SENT, "work", "bucket", "x"),
    "op 'forward 0' stands twice": op(1, "name", "forward 0"),
    "forward of layer '0' stands 0 times; it must stand once": op(FIRST, "work", "layers", ["x"]),
    "bucket '6': has more than 1000 gradient copies": ("buckets", 0, "copies", 10**400),
    "bucket '6': needs at least one slice and one gradient copy": ("buckets", 0, "copies", 0),
    "names tensor 'x', which workload 'mlp' does not have": ("buckets", 0, "slices", [["x", 0, 5]]),
    "is for workload 'vgg16', found 'mlp'": ("workload", "vgg16"),
    "the only role is 'worker'": ("roles", {"server": []}),
    "Invalid value 'sleep'": op(FIRST, "work", "kind", "sleep"),
}


@pytest.mark.parametrize("message", SCHEDULES)
def test_a_schedule_that_no_machine_could_run(refused, message):
    *path, to = SCHEDULES[message]
    Path("s.json").write_text(json.dumps(changed(LAYERWISE, *path, to=to)))
    assert message in refused(f"predict mlp {ON} --schedules s.json")


def test_a_schedule_with_too_few_gradient_buffers(refused):
    Path("s.json").write_text(json.dumps(changed(DELAYED, "buckets", 0, "copies", to=1)))
    assert "waits for 'update all', which can never end" in refused(f"explain mlp {ON} --schedule s.json")


TABLES = {
    "": "",
    "layer\n": "",
    "layer,w_elements\na,x\n": "'x'",
    "layer,w_elements\na,-3\n": "-3",
    "layer,w_elements\na,3\na,4\n": "a",
    "layer,w_elements,backward_ms\na,3,nan\n": "nan",
    "layer,w_elements,backward_ms\na,3,-1\n": "-1",
    "layer,w_elements,backward_furlongs\na,3,1\n": "furlongs",
    "layer,w_elements\na,3,4,5\n": "",
}


@pytest.mark.parametrize("table", TABLES)
def test_a_table_of_layers_with_a_problem(refused, table):
    Path("t.csv").write_text(table)
    said = refused("workload t.csv --out w.toml")
    assert said.startswith("t.csv")
    assert TABLES[table] in said


# --- anything that parses can be predicted, or is refused ---------------------------------------------------------


EXTREMES = (0, 1, 2, 7, 999, 10**6, 10**15, -1, 0.0, 1e-20, 1e-9, 0.5, 1.0, 99.0, 1e9, 1e20, -1e9)


def numbers(raw: Any) -> list[tuple[Any, Any]]:
    """Return every place of a number in *raw*, as (list or table, key)."""
    found = []
    for key, value in raw.items() if isinstance(raw, dict) else enumerate(raw):
        if isinstance(value, (dict, list)):
            found += numbers(value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and key != "version":
            found.append((raw, key))
    return found


@pytest.mark.parametrize("kind", [Workload, Cluster, Profile, Schedule])
def test_extreme_numbers_are_predicted_or_refused(kind):
    """Put extreme numbers into valid files; where they still parse, predict with them."""
    rng = Random(kind.__name__)
    plain = {Workload: MLP, Cluster: DGX1, Profile: COSTS, Schedule: LAYERWISE}[kind]
    predicted = 0
    for _ in range(150):
        given: dict[type, Any] = {
            Workload: catalogue.workload("mlp"),
            Cluster: catalogue.cluster("dgx1-p100"),
            Profile: catalogue.profile("dgx1-p100"),
            Schedule: "layerwise",
        }
        raw = json.loads(json.dumps(plain))
        for place, key in rng.sample(numbers(raw), rng.choice([1, 1, 2, 4])):
            alike = [number for number in EXTREMES if isinstance(number, type(place[key]))]
            place[key] = rng.choice(alike)
        with suppress(SimgdError):
            given[kind] = files.convert(raw, kind, where="f")
            machine = Machine(given[Cluster], given[Profile])
            predict(machine, job(given[Workload]), [1, 2], [given[Schedule]])
            predicted += 1
    assert predicted > 10
