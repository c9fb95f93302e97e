"""Describes the machine at hand as a cluster: one CPU rank as one device, joined by whatever joins the ranks.

What a data sheet would say is measured: the rate of a matrix product and of copying memory, on the cores that the rank
has. The interconnect's nominal rate is what the largest messages reached; `--on CLUSTER` says it where it is known.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Literal

import numpy as np

from simgd.provenance import Host
from simgd.topology import Cluster, Device, Interconnect, Link
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


def _median_s(call: Callable[[], object]) -> float:
    call()
    found = []
    for _ in range(7):
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    return median(found)
