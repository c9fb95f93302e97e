"""Traces of torch.profiler. Those of a CPU were captured for this project; that of a GPU's backward operation by
others (see data/SOURCES.md). No whole trace of a GPU is at hand: `on_gpu` adds launches and kernels, in the form of the
captured ones, to operations that a CPU ran.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from calibration import kineto
from calibration.kineto import Measurement
from simgd import catalogue, files
from simgd.errors import FileError
from simgd.workload import Layer, Tensor, Workload

DATA = Path(__file__).parent / "data"
Event = dict[str, Any]


def events_of(name: str) -> list[Event]:
    found: list[Event] = json.loads(files.read_bytes(DATA / f"kineto-{name}"))["traceEvents"]
    return found


def read(events: list[Event], workload: str | Workload = "digits-cnn", batch: int = 0) -> Measurement:
    known = catalogue.workload(workload) if isinstance(workload, str) else workload
    return kineto.parse(json.dumps({"traceEvents": events}).encode(), "trace.json", known, batch)


CNN = events_of("torch-2.13-cpu-digits-cnn.json.gz")
TEXT = events_of("torch-2.13-cpu-char-transformer-annotated.json.gz")


def named(event: Event, *parts: str) -> bool:
    return any(part in event["name"] for part in parts)


def without(events: list[Event], *arguments: str) -> list[Event]:
    return [
        event | {"args": {name: value for name, value in event["args"].items() if name not in arguments}}
        for event in events
    ]


def outermost(events: list[Event]) -> list[Event]:
    """Operations inside no other."""
    ops = [event for event in events if event["cat"] == "cpu_op"]
    ends: float = -1.0
    found = []
    for op in sorted(ops, key=lambda op: (op["ts"], -op["dur"])):
        if op["ts"] >= ends:
            found.append(op)
            ends = op["ts"] + op["dur"]
    return found


def test_each_layer_gets_the_operations_between_its_own_and_the_next_ones() -> None:
    found = read(CNN)
    assert list(found.forward) == list(found.backward) == ["conv1", "conv2", "fc1", "fc2"]
    assert (found.iterations, found.batch, found.dtype) == (2, 8, "fp32")
    # conv1: conv2d and relu; medians of two iterations are their mean
    convolutions = [e["dur"] for e in outermost(CNN) if e["name"] == "aten::conv2d"]
    relus = [e["dur"] for e in outermost(CNN) if e["name"] == "aten::relu"]
    assert len(convolutions) == 4
    assert len(relus) == 6
    conv1_us = (convolutions[0] + relus[0] + convolutions[2] + relus[3]) / 2
    assert found.forward["conv1"] == pytest.approx(1e-6 * conv1_us)


def test_backward_operations_belong_to_the_layer_of_their_forward_operation() -> None:
    found = read(CNN)
    steps = [e for e in outermost(CNN) if e["name"].startswith("autograd::engine::evaluate_function")]
    assert len(steps) % 2 == 0
    first = [e["name"].partition(": ")[2] for e in steps[: len(steps) // 2]]
    # fc2, the last layer, comes first; its loss before it; with its gradients accumulated up to the relu of fc1
    end = first.index("ReluBackward0")
    assert [n for n in first[:end] if "Accumulate" not in n] == [
        "NllLossBackward0",
        "LogSoftmaxBackward0",
        "AddmmBackward0",
        "TBackward0",
    ]
    assert sum("Accumulate" in n for n in first[:end]) == 2
    fc2_us = sum(e["dur"] for e in (*steps[:end], *steps[len(first) : len(first) + end])) / 2
    assert found.backward["fc2"] == pytest.approx(1e-6 * fc2_us)


@pytest.mark.parametrize(("events", "workload"), [(CNN, "digits-cnn"), (TEXT, "char-transformer")])
def test_all_time_of_a_trace_is_in_layers_or_told(events: list[Event], workload: str) -> None:
    found = read(events, workload)
    total_s = 1e-6 * sum(op["dur"] for op in outermost(events))
    assert found.attributed_s + sum(found.rest_s.values()) == pytest.approx(total_s)
    assert found.rest_s["unknown"] == 0
    assert 0 < found.rest_s["optimizer"] < 0.1 * total_s
    share = 100 * (1 - found.attributed_s / total_s)
    assert f"{share:.1f} % in none (optimizer" in found.tool


def test_shapes_tell_layers_apart_as_annotations_do() -> None:
    # 4 equal blocks: every shape but those of embeddings and head stands four times
    annotated = read(TEXT, "char-transformer")
    by_shape = read([e for e in TEXT if e["cat"] == "cpu_op" or named(e, "Optimizer")], "char-transformer")
    assert by_shape == annotated
    assert len(annotated.forward) == 28
    assert (annotated.batch, annotated.tokens) == (1, 128)


def test_annotations_need_no_shapes_but_every_layer() -> None:
    bare = read(without(TEXT, "Input Dims"), "char-transformer")
    assert bare.forward == read(TEXT, "char-transformer").forward
    assert bare.batch == 0
    with pytest.raises(FileError, match=r"layers are annotated, but not 'blocks.2.up'; annotate each or none"):
        read([e for e in TEXT if e["name"] != "blocks.2.up"], "char-transformer")


def test_autograd_may_run_on_a_thread_of_its_own() -> None:
    ends = [(e["ts"], e["ts"] + e["dur"]) for e in CNN if named(e, "autograd::engine")]
    moved = [
        e | ({"tid": 2} if any(start <= e["ts"] < end for start, end in ends) and e["cat"] == "cpu_op" else {})
        for e in CNN
    ]
    assert {e["tid"] for e in moved} == {1, 2}
    assert read(moved) == read(CNN)


def on_gpu(events: list[Event], kernels_us: dict[str, float]) -> list[Event]:
    """Add a launch and a kernel of so many us to each outermost operation whose name ends so."""
    added: list[Event] = []
    for number, op in enumerate(outermost(events)):
        for name, us in kernels_us.items():
            if op["name"].endswith(name):
                launch = {"correlation": number, "cbid": 211}
                kernel = {"correlation": number, "device": 0, "stream": 7}
                common = {"ph": "X", "ts": op["ts"] + op["dur"] / 2}
                added.append(common | {"cat": "cuda_runtime", "name": "cudaLaunchKernel", "pid": 1, "tid": op["tid"],
                                       "dur": 5, "args": launch})  # fmt: skip
                added.append(common | {"cat": "kernel", "name": "gemm", "pid": 0, "tid": 7, "ts": op["ts"] + 1e6,
                                       "dur": us, "args": kernel})  # fmt: skip
    return events + added


KERNELS = {"conv2d": 10.0, "linear": 20.0, "ConvolutionBackward0": 30.0, "AddmmBackward0": 40.0, "_foreach_add_": 5.0}


def test_on_a_gpu_kernels_count_by_the_operation_that_launched_them_whenever_they_ran() -> None:
    found = read(on_gpu(CNN, KERNELS))
    assert found.device == "kernels of the GPU"
    assert found.forward == pytest.approx({"conv1": 10e-6, "conv2": 10e-6, "fc1": 20e-6, "fc2": 20e-6})
    assert found.backward == pytest.approx({"conv1": 30e-6, "conv2": 30e-6, "fc1": 40e-6, "fc2": 40e-6})
    # two iterations of 2x10 + 2x20 + 2x30 + 2x40 us
    assert found.attributed_s == pytest.approx(400e-6)


def test_kernels_of_collectives_and_such_that_nobody_launched_are_told() -> None:
    kernel = {"ph": "X", "cat": "kernel", "pid": 0, "tid": 7, "ts": 1.0}
    extra = [
        kernel | {"name": "ncclDevKernel_AllReduce_Sum_f32_RING_LL", "dur": 60, "args": {"correlation": 900_001}},
        kernel | {"name": "lost", "dur": 40, "args": {"correlation": 900_002}},
    ]
    found = read(on_gpu(CNN, KERNELS) + extra)
    assert found.rest_s["communication"] == pytest.approx(60e-6)
    assert found.rest_s["unknown"] == pytest.approx(40e-6)
    assert "communication 12.0 %" in found.tool  # of 400 + 100 us


def test_a_captured_kernel_is_joined_to_its_layer_through_launch_and_sequence_number() -> None:
    captured = events_of("gpu-addmm-backward.json")
    start = captured[0]["ts"] - 1000
    # the forward operation that the captured one answers, with a kernel joined by External id alone
    forward = [
        {"ph": "X", "cat": "cpu_op", "name": "aten::linear", "pid": 3914, "tid": 3914, "ts": start, "dur": 90,
         "args": {"External id": 5, "Sequence number": 714649, "Input Dims": [[2048, 256], [2048, 256]]}},
        {"ph": "X", "cat": "kernel", "name": "forward", "pid": 0, "tid": 7, "ts": start, "dur": 20,
         "args": {"External id": 5}},
    ]  # fmt: skip
    workload = Workload(name="one", layers=(Layer(name="linear", tensors=(Tensor("linear.weight", (2048, 256)),)),))
    found = read(forward + captured, workload)
    assert found.backward == pytest.approx({"linear": 45e-6})  # the captured kernel's time
    assert found.forward == pytest.approx({"linear": 20e-6})


def test_a_cut_iteration_does_not_count_but_is_told() -> None:
    # the trace ends within the second forward pass
    second = [e["ts"] for e in CNN if e["name"] == "aten::conv2d"][2]
    layers = ("aten::conv2d", "aten::linear", "aten::relu", "aten::max_pool2d")
    started = [e for e in CNN if e["ts"] < second or e["name"] in layers]
    found = read(started)
    assert found.iterations == 1
    assert found.rest_s["other work"] > read(CNN).rest_s["other work"]


def bf16(event: Event) -> Event:
    types = event["args"].get("Input type", [])
    return event | {"args": event["args"] | {"Input type": ["c10::BFloat16" if t == "float" else t for t in types]}}


def test_the_type_of_the_inputs_tells_the_precision() -> None:
    assert read([bf16(event) for event in CNN]).dtype == "bf16"
    halves = json.loads(json.dumps([bf16(event) for event in CNN]).replace("c10::BFloat16", "c10::Half"))
    with pytest.raises(FileError, match=r"takes 16-bit floats \(half\); profile in bf16 or fp32"):
        read(halves)


def test_the_batch_is_what_the_first_input_says() -> None:
    with pytest.raises(FileError, match="batch=4: its first input says 8 itself; leave batch out"):
        read(CNN, batch=4)
    bare = without(TEXT, "Input Dims")
    assert read(bare, "char-transformer", batch=4).batch == 4


def test_entries_hold_both_directions() -> None:
    workload = catalogue.workload("digits-cnn")
    forward, backward = kineto.to_layer_times(read(CNN), "a test", workload)
    assert (forward.direction, backward.direction) == ("forward", "backward")
    assert (forward.workload, forward.batch, forward.origin) == ("digits-cnn", 8, "measured")
    assert forward.seconds == read(CNN).forward


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([], "trace.json: holds no operations (category cpu_op)"),
        ([e for e in CNN if e["cat"] != "cpu_op"], "trace.json: holds no operations"),
        (without(CNN, "Input Dims"), "trace.json: operations have no input shapes, so layers cannot be told apart"),
        (without(CNN, "Sequence number"), "trace.json: no operation is recorded for autograd; profile training"),
        ([e for e in CNN if not named(e, "autograd", "Backward")], "trace.json: holds no backward pass of workload"),
        (
            [e for e in CNN if not named(e, "linear", "addmm", "aten::t")],
            "trace.json: no operation takes the 128x1024 of layer 'fc1'; is it",
        ),
        (TEXT, "trace.json: no operation takes the "),
        (
            [e for e in CNN if not named(e, "ConvolutionBackward0")],
            "trace.json: layer 'conv1' has no backward operation",
        ),
        ([CNN[0] | {"dur": -1}], "trace.json: event 'aten::randn' has ts "),
        ([CNN[0] | {"ts": "soon"}], "trace.json: event 'aten::randn' has ts soon"),
        ([CNN[0] | {"args": {"Sequence number": "x"}}], "trace.json: event 'aten::randn': Expected `int | null`"),
    ],
)
def test_a_trace_that_does_not_tell_layers_is_refused_in_one_line(events: list[Event], message: str) -> None:
    with pytest.raises(FileError) as error:
        read(events)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b'{"traceEvents": [{"ph": "X"', b'{"traceEvents": 3}', b"[" * 100_000])
def test_a_damaged_file_is_refused_in_one_line(content: bytes) -> None:
    with pytest.raises(FileError, match=r"^trace\.json: is no trace of torch\.profiler: [^\n]*$"):
        kineto.parse(content, "trace.json", catalogue.workload("digits-cnn"))
