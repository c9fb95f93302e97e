"""Describes the machine at hand as a cluster: a CPU rank or a GPU as one device, joined by whatever joins the ranks.

What a data sheet would say is measured: the rate of a matrix product and of copying memory, on the cores that the rank
has or on its GPU. The nominal rate of what joins them is what the largest messages reached; `--on CLUSTER` says it
where it is known.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Literal

import numpy as np

from simgd.provenance import Host
from simgd.topology import Cluster, Device, Interconnect, Link, VertexKind
from simgd.units import Bytes, FlopRate, Rate, Seconds


def cpu(host: Host) -> Device:
    """Return one rank's share of *host*, with rates measured just now; takes a tenth of a second."""
    size = 384
    a, b = np.ones((size, size), np.float32), np.ones((size, size), np.float32)
    product_s = _median_s(lambda: a @ b)
    source = np.ones(2**22, np.float32)
    target = np.empty_like(source)
    copy_s = _median_s(lambda: np.copyto(target, source))
    return Device(
        name=host.processor,
        kind="cpu",
        memory=Bytes(host.memory_bytes),
        memory_rate=Rate(2 * source.nbytes / copy_s),
        fp32=FlopRate(2 * size**3 / product_s),
        source="a matrix product and a copy by numpy on the rank's own cores",
    )


def cluster(
    name: str, device: Device, *, bytes_per_s: float, latency_s: float, kind: Literal["ethernet", "memory"]
) -> Cluster:
    """Return nodes of one such device, joined at so many bytes a second in each direction."""
    return Cluster(
        name=name,
        device=device,
        vertices={"cpu": "device", "nic": "nic"},
        links=(Link(ends=("cpu", "nic"), kind="memory", bandwidth=Rate(device.memory_rate)),),
        interconnect=Interconnect(
            kind=kind,
            bandwidth=Rate(bytes_per_s),
            latency=Seconds(latency_s),
            source="what the largest and the smallest messages of the calibration reached",
        ),
        description=f"{device.name}, one rank a device",
        source="measured by simgd calibrate",
    )


def gpu() -> Device:
    """Return the current GPU, with rates measured just now; takes a tenth of a second."""
    import torch

    about = torch.cuda.get_device_properties(torch.cuda.current_device())
    size = 8192

    def product(dtype: torch.dtype, precision: str) -> FlopRate:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
        seconds = _device_s(lambda: a @ b)
        torch.set_float32_matmul_precision(before)
        return FlopRate(2 * size**3 / seconds)

    source = torch.randn(2**27, device="cuda")
    target = torch.empty_like(source)
    copy_s = _device_s(lambda: target.copy_(source))
    return Device(
        name=about.name,
        kind="gpu",
        memory=Bytes(about.total_memory),
        memory_rate=Rate(2 * source.nbytes / copy_s),
        fp32=product(torch.float32, "highest"),
        tf32=product(torch.float32, "high"),
        bf16=product(torch.bfloat16, "highest"),
        source="a matrix product and a copy by torch",
    )


def gpus(name: str, device: Device, count: int, *, bytes_per_s: float, kind: Literal["nvlink", "pcie"]) -> Cluster:
    """Return one node of *count* such GPUs, each linked at so many bytes a second with one switch that never blocks."""
    middle: VertexKind = "nvswitch" if kind == "nvlink" else "socket"
    numbers = [f"gpu{number}" for number in range(count)]
    vertices: dict[str, VertexKind] = {**dict.fromkeys(numbers, "device"), middle: middle}
    return Cluster(
        name=name,
        device=device,
        vertices=vertices,
        links=tuple(Link(ends=(each, middle), kind=kind, bandwidth=Rate(bytes_per_s)) for each in numbers),
        description=f"{count} {device.name}; how they are linked was not looked at",
        source="measured by simgd calibrate",
    )


def _device_s(call: Callable[[], object]) -> float:
    import torch

    def timed_s() -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e-3

    timed_s()
    return median(timed_s() for _ in range(7))


def _median_s(call: Callable[[], object]) -> float:
    call()
    found = []
    for _ in range(7):
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    return median(found)
