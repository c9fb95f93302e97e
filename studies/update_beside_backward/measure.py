"""Time a backward pass and an update alone, one after the other, and on two streams; write a record as JSON.

Run on a machine with a CUDA GPU, from the repository's root: `python studies/update_beside_backward/measure.py OUT`.
Each is captured as a CUDA graph and replayed, so that the host plays no part; medians of `RUNS` replays, interleaved.
"""

import json
import platform
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from executor.networks import load

RUNS = 30
CASES = (("resnet50", 32), ("resnet50", 128), ("vgg16", 32), ("alexnet", 128))


def captured(work: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """Return *work* as a graph, captured on the stream that warmed it up."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        work()
    return graph


def seconds(graph: torch.cuda.CUDAGraph) -> float:
    """Return the device time of one replay."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e-3


def case(name: str, batch: int) -> dict[str, object]:
    """Return the medians of one network; the update works on copies of the weights, so that nothing waits for data."""
    made = load(f"executor.networks:{name}", device="cuda")
    inputs = made.example(batch, device="cuda")
    weights = [p.detach().clone() for p in made.module.parameters()]
    momenta = [torch.zeros_like(p) for p in weights]
    gradients = [torch.randn_like(p) for p in weights]
    side = torch.cuda.Stream()

    def passes() -> None:
        made.module.zero_grad(set_to_none=True)
        made.loss(made.module, inputs).backward()

    def update() -> None:
        torch._foreach_mul_(momenta, 0.9)
        torch._foreach_add_(momenta, gradients)
        torch._foreach_add_(weights, momenta, alpha=-1e-6)

    def in_turn() -> None:
        passes()
        update()

    def beside() -> None:
        main = torch.cuda.current_stream()
        side.wait_stream(main)
        with torch.cuda.stream(side):
            update()
        passes()
        main.wait_stream(side)

    graphs = {work.__name__: captured(work) for work in (passes, update, in_turn, beside)}
    times: dict[str, list[float]] = {work: [] for work in graphs}
    for _ in range(RUNS):
        for work, graph in graphs.items():
            times[work].append(seconds(graph))
    found = {work: statistics.median(values) for work, values in times.items()}
    spread = max((max(v) - min(v)) / 2 / statistics.median(v) for v in times.values())
    return {
        "network": name,
        "batch": batch,
        **{f"{work}_ms": round(value * 1e3, 4) for work, value in found.items()},
        "beside_over_in_turn": round(found["beside"] / found["in_turn"], 4),
        "largest_half_spread": round(spread, 4),
    }


def main(out: str) -> None:
    """Measure all cases and write the record."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    record = {
        "command": "python studies/update_beside_backward/measure.py OUT",
        "host": f"{torch.cuda.get_device_name()}, {platform.processor() or platform.machine()}, {platform.release()}",
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version()},
        "runs": RUNS,
        "cases": [case(name, batch) for name, batch in CASES],
    }
    Path(out).write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
