"""Profiles of the shipped clusters, from published numbers: ``python -m calibration.published`` writes them all.

Each number stands here once, beside the text that says where it came from; the JSON files hold nothing else. What
nobody published is marked "modelled" (derived from other numbers, as its source says) or "assumed" (an estimate, or a
number of another machine), with an uncertainty of 0.25 or more. Nothing is fitted to make a prediction come out.

Left out on purpose: MG-WFBP's lines a + b S for 56 Gb/s InfiniBand are of hosts with four GPUs each, and those for
10 GbE of K80 hosts: neither is a machine that is shipped here. Published speeds of InceptionV3, ResNet-152 and VGG-19
are of workloads that are not shipped.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from simgd import files
from simgd.profile import (
    Curve,
    Efficiency,
    Execution,
    Host,
    Interference,
    Jitter,
    Library,
    LinkRate,
    MemoryOverhead,
    MemoryRate,
    Origin,
    PointToPoint,
    Profile,
    Protocol,
    Split,
    StepTime,
)
from simgd.topology import Cluster
from simgd.units import GIB, KIB, MIB

HERE = Path(__file__).parent / "profiles"
CLUSTERS = Path(__file__).parent.parent / "simgd" / "data" / "clusters"

_TF = "TensorFlow benchmarks, May 2017, one P100 of a DGX-1, synthetic data: {rate:g} images/s at batch {batch}"
_MXNET = "MXNet example/image-classification, one V100, synthetic data: {rate:g} images/s at batch {batch}"
_PADDLE = "PaddlePaddle IntelOptimizedPaddle.md, MKL-DNN, 2x Xeon Gold 6148: {rate:g} images/s at batch {batch}"


def _steps(
    text: str, rows: dict[tuple[str, int], float], origin: Origin = "published", uncertainty: float = 0.03
) -> tuple[StepTime, ...]:
    """Return step times from images per second: seconds = batch / rate."""
    return tuple(
        StepTime(
            workload=workload,
            batch=batch,
            seconds=batch / rate,
            origin=origin,
            source=text.format(rate=rate, batch=batch),
            uncertainty=uncertainty,
        )
        for (workload, batch), rate in rows.items()
    )


P100_STEPS = _steps(
    _TF,
    {("resnet50", 32): 195, ("resnet50", 64): 219, ("vgg16", 32): 144, ("vgg16", 64): 154, ("alexnet", 512): 2987},
)
V100_RATES = {("resnet50", 32): 298.5, ("resnet50", 64): 343.2, ("resnet50", 128): 363.7}

#: What nobody published of the V100 here, from the same class of device: P100's rate times what V100 gains over it on
#: ResNet-50 at the same batch (AlexNet: at batch 64).
V100_FROM_P100 = {
    ("vgg16", 32): 144 * 298.5 / 195,
    ("vgg16", 64): 154 * 343.2 / 219,
    ("alexnet", 512): 2987 * 343.2 / 219,
}
_FROM_P100 = (
    "{rate:.4g} images/s at batch {batch}: P100's rate (TensorFlow benchmarks, May 2017) times V100 over P100 on "
    "ResNet-50 (MXNet, TensorFlow)"
)
XEON_RATES: dict[tuple[str, int], float] = {("resnet50", 64): 81.7, ("googlenet", 64): 250.5}

#: Where a profile has no step of the device itself, its efficiency tells: the share of the roofline (`simgd.costs`)
#: that ResNet-50's published step reaches; tests compute it again from the shipped workload.
P100_SHARE, V100_SHARE, XEON_SHARE = 0.67, 0.79, 0.51

#: On H200 one step with one flat all-reduce of VGG-16, batch 32 a GPU, TF32, took 28.4 ms on 4 GPUs (torch 2.11), of
#: which the all-reduce of 553 MB takes 2.2 ms and the update 0.6 ms by this profile: 9.0 ms of roofline in 25.5 ms.
H200_SHARE = 0.35
_VGG16_ON_H200 = (
    "VGG-16, batch 32 a GPU, TF32, torch 2.11 on 4 H200: 28.4 ms a step with one flat all-reduce, less 2.2 ms for it "
    "and 0.6 ms for the update, against a roofline of 9.0 ms"
)


def _share(value: float, source: str, origin: Origin = "modelled", uncertainty: float = 0.3) -> Efficiency:
    return Efficiency(value=value, origin=origin, uncertainty=uncertainty, source=f"share of the roofline: {source}")


# NCCL's own cost model: base latency of rings and trees, latency of a hop (ring, tree), share of the bandwidth.
NCCL_2017 = (
    Protocol(
        name="LL", base_ring_us=3.6, base_tree_us=4.4, efficiency=0.25,
        hop_us={"nvlink": (0.4, 0.5), "pcie": (1.0, 1.0), "net": (0.9, 5.0)},
    ),
    Protocol(
        name="Simple", base_ring_us=8.4, base_tree_us=0.0, efficiency=1.0,
        hop_us={"nvlink": (5.7, 28.0), "pcie": (5.7, 28.0), "net": (6.6, 50.0)},
    ),
)  # fmt: skip
NCCL_VOLTA = (
    NCCL_2017[0],
    Protocol(
        name="LL128", base_ring_us=3.6, base_tree_us=4.4, efficiency=0.94, cap_bytes_per_s=(100e9,),
        hop_us={"nvlink": (2.5, 1.9), "pcie": (2.5, 1.9), "net": (2.5, 7.5)},
    ),
    NCCL_2017[1],
)  # fmt: skip
NCCL_2017_SOURCE = (
    "NCCL v2.5.6 src/graph/tuning.cc: base and hardware latencies; LL 1/4, LL128 0.94 of the bandwidth{more}; "
    "earlier versions of NCCL are taken to cost the same"
)


def _nccl_2026(*, nvls_share: float = 0.0) -> tuple[Protocol, ...]:
    """Return the protocols; *nvls_share* of the links is what NVSwitches that reduce reach, 0 for others."""
    protocols = (
        Protocol(
            name="LL", base_ring_us=6.6, base_tree_us=6.8, efficiency=0.5,
            hop_us={"nvlink": (0.6, 0.6), "pcie": (1.0, 1.0), "net": (2.7, 5.0)},
        ),
        Protocol(
            name="LL128", base_ring_us=14.0, base_tree_us=14.0, efficiency=0.92,
            hop_us={"nvlink": (1.9, 1.25), "pcie": (2.5, 1.9), "net": (4.0, 8.5)},
        ),
        Protocol(
            name="Simple", base_ring_us=8.4, base_tree_us=8.4, efficiency=1.0,
            hop_us={"nvlink": (3.4, 4.0), "pcie": (5.7, 4.0), "net": (14.0, 14.0)},
        ),
    )  # fmt: skip
    if not nvls_share:
        return protocols
    hop_us = {"nvlink": (25.0, 25.0), "net": (20.9, 20.9)}
    return (*protocols, Protocol(name="NVLS", base_ring_us=0.0, base_tree_us=0.0, efficiency=nvls_share, hop_us=hop_us))


NCCL_2026_SOURCE = (
    "NCCL src/graph/tuning.cc as of 2025-2026: base and hardware latencies; LL 1/2 of the bandwidth, LL128 0.92{more}"
)


@dataclass(frozen=True, kw_only=True)
class _Channels:
    """How NCCL opens channels on an architecture; rates in GB/s on one node, on two, on more.

    `ll` is for all channels (llMaxBws: by the GPU on one node, by the host's processor over several: an AMD one beside
    A100s, Intel ones elsewhere); the others are for a channel of the search, of which NCCL opens two, each with
    half of it (perChMaxRingLL128Bws, perChMaxTreeLL128Bws, perChMaxTreeBws). What a ring's Simple channel moves at most
    is in no table: taken to be as in a tree. `thresholds` are the bytes that a channel gets at least with LL, LL128
    and Simple, and with LL in a ring for each rank.
    """

    architecture: str
    opened: int
    ll: tuple[float, ...]
    ring_ll128: tuple[float, ...]
    tree_ll128: tuple[float, ...]
    tree: tuple[float, ...]
    thresholds: tuple[float, float, float, float]
    nvls: int = 16

    @property
    def source(self) -> str:
        return (
            f"; {self.opened} channels ({self.architecture}): llMaxBws, perChMaxRingLL128Bws, perChMaxTreeLL128Bws, "
            "perChMaxTreeBws of tuning.cc, half of it for each of two channels that are opened for one of the search; "
            "bytes a channel by enqueue.cc; chunks: Simple 2 MiB (4 of 8 steps of a buffer of 4 MiB), LL128 560 KiB "
            "and LL 32 KiB of data (one of 8 steps of 4.7 MiB and 512 KiB)"
        )

    def of(self, protocol: Protocol) -> Protocol:
        """Return *protocol* with what its channels move."""
        halves = {
            name: tuple(0.5e9 * rate for rate in rates)
            for name, rates in (("ring", self.ring_ll128), ("tree_ll128", self.tree_ll128), ("tree", self.tree))
        }
        whole = tuple(1e9 * rate for rate in self.ll)
        of_ll = (whole[0] / self.opened,)
        ll, ll128, simple, ll_a_rank = self.thresholds
        match protocol.name:
            case "LL":
                changes = {"cap_bytes_per_s": whole, "channel_bytes_per_s": of_ll, "tree_channel_bytes_per_s": of_ll}
                return replace(protocol, **changes, least_bytes=ll, least_bytes_a_rank=ll_a_rank, chunk=32.0 * KIB)
            case "LL128":
                changes = {"channel_bytes_per_s": halves["ring"], "tree_channel_bytes_per_s": halves["tree_ll128"]}
                return replace(protocol, **changes, least_bytes=ll128, chunk=560.0 * KIB)
            case "Simple":
                changes = {"channel_bytes_per_s": halves["tree"], "tree_channel_bytes_per_s": halves["tree"]}
                return replace(protocol, **changes, least_bytes=simple, chunk=float(2 * MIB))
            case _:
                return protocol


# Until v2.20 a channel is used when each of its 512 threads (LL128: 640) gets 8 bytes (Simple: 64), with LL in a ring
# from each rank; since v2.21 when it gets 16 KiB of traffic, of which an all-reduce makes 2 a byte, and LL 4 times
# that.
_BY_THREADS = (512 * 8.0, 640 * 8.0, 512 * 64.0, 512 * 8.0)
_BY_TRAFFIC = (16 * KIB / 8, 16 * KIB / 2, 16 * KIB / 2, 0.0)

VOLTA = _Channels(
    architecture="Volta", opened=12, ll=(39, 39, 20.4), ring_ll128=(20,), tree_ll128=(20,), tree=(26.5, 18.5, 10),
    thresholds=_BY_THREADS,
)  # fmt: skip
AMPERE = _Channels(
    architecture="Ampere", opened=24, ll=(87.7, 22.5, 19), ring_ll128=(20,), tree_ll128=(20,), tree=(24, 23.6, 17.8),
    thresholds=_BY_THREADS,
)  # fmt: skip
HOPPER = _Channels(
    architecture="Hopper", opened=24, ll=(141, 39, 20.4), ring_ll128=(36.7,), tree_ll128=(36.7, 36.7, 29),
    tree=(38.7, 41.4, 36), thresholds=_BY_TRAFFIC,
)  # fmt: skip
BLACKWELL = _Channels(
    architecture="Blackwell", opened=32, ll=(282, 39, 20.4), ring_ll128=(40,), tree_ll128=(55.6, 31.67, 20),
    tree=(70, 42.8, 24), thresholds=_BY_TRAFFIC, nvls=24,
)  # fmt: skip

# Rates that libraries reach on one cable of a kind, in bytes a second.
_TOPO = "NCCL src/graph/topo.h: {text}"
_TARTAN = "Tartan's raw logs, DGX-1 with P100 (github uuudown/Tartan): {text}"


def _link(kind: str, rate: float, source: str, origin: Origin = "published", uncertainty: float = 0.1) -> LinkRate:
    return LinkRate(kind=kind, bytes_per_s=rate, source=source, origin=origin, uncertainty=uncertainty)


EDR_LINK = _link("infiniband", 12e9, _TOPO.format(text="a 100 Gb/s NIC moves 12 GB/s"))
_BY_PROPORTION = "a 100 Gb/s NIC moves 12 GB/s; {gbit} Gb/s by proportion"
HDR_LINK = _link("infiniband", 24e9, _TOPO.format(text=_BY_PROPORTION.format(gbit=200)), "modelled", 0.25)
NDR_LINK = _link("infiniband", 48e9, _TOPO.format(text=_BY_PROPORTION.format(gbit=400)), "modelled", 0.25)


def _nvlink(rate: float, text: str) -> LinkRate:
    return _link("nvlink", rate, _TOPO.format(text=text), uncertainty=0.05)


def _pcie(generation: int, rate: float) -> LinkRate:
    text = "PCIe gen3 x16 moves 12 GB/s" + (f"; gen{generation} by proportion" if generation > 3 else "")
    return _link("pcie", rate, _TOPO.format(text=text), "published" if generation == 3 else "modelled", 0.25)


def _interference(origin: Origin, where: str) -> tuple[Interference, ...]:
    """Return how compute and communication slow each other, of which one case on one machine was measured."""
    measured = (
        "4 H200 on NVSwitch, NCCL 2.28: an 8192^3 bf16 product ran 1.2x slower beside an all-reduce, "
        "the all-reduce 1.6x slower beside the product"
    )
    slow = (
        f"estimated from: {measured}; over {{path}} the library moves an order of magnitude fewer bytes a second "
        "through the device's memory, so a quarter of the slow-down"
    )
    over_nvlink = f"{measured}{where}"
    rows = []
    for compute in ("matrix", "memory"):
        also = "" if compute == "matrix" else "; taken for memory-bound compute as well"
        rows.append(
            Interference(
                compute=compute, path="nvlink", compute_factor=1.2, communication_factor=1.6,
                origin=origin if compute == "matrix" else "assumed", source=over_nvlink + also,
                uncertainty=0.1 if origin == "measured" and compute == "matrix" else 0.25,
            )
        )  # fmt: skip
        for path in ("pcie", "infiniband"):
            rows.append(
                Interference(
                    compute=compute, path=path, compute_factor=1.05, communication_factor=1.15,
                    origin="assumed", source=slow.format(path=path), uncertainty=0.25,
                )
            )  # fmt: skip
    return tuple(rows)


# A100, 8 GPUs on NVSwitch: microseconds of NCCL's all-reduce.
A100_ALL_REDUCE_US = {
    32 * KIB: 43.8, 64 * KIB: 46.8, 128 * KIB: 51.8, 256 * KIB: 61.4, 512 * KIB: 80.4, MIB: 101.9, 2 * MIB: 101.4,
    4 * MIB: 101.5, 8 * MIB: 133.5, 16 * MIB: 276.6, 32 * MIB: 424.0, 64 * MIB: 684.6, 128 * MIB: 1327.6,
    256 * MIB: 2420.6, 512 * MIB: 4218.4, GIB: 8203.9, 8 * GIB: 64074.0,
}  # fmt: skip

# One-way microseconds of an MPI message between two nodes, by bytes.
_K = KIB
QDR_US = {0: 1.82, _K: 2.80, 16 * _K: 11.90, 64 * _K: 28.92, 256 * _K: 96.93, MIB: 369.4, 4 * MIB: 1456.8}
FDR_US = {0: 1.59, _K: 2.61, 16 * _K: 7.82, 64 * _K: 18.11, 256 * _K: 48.82}
EDR_US = {0: 1.27, _K: 2.77, 16 * _K: 9.93, 64 * _K: 26.64, 256 * _K: 27.79, MIB: 91.58, 4 * MIB: 346.9}
TCP_25GBE_US = {0: 13.55, _K: 15.13, 16 * _K: 32.39, 64 * _K: 90.76, 256 * _K: 169.00, MIB: 426.61, 4 * MIB: 1607.94}
HDR_US = {0: 1.57, _K: 2.52, 16 * _K: 5.24, 64 * _K: 9.18, 256 * _K: 17.30, MIB: 50.00, 4 * MIB: 177.3}


def _table(rows: dict[int, float], source: str, origin: Origin = "published", uncertainty: float = 0.1) -> PointToPoint:
    points = tuple((float(size), round(1e-6 * time_us, 12)) for size, time_us in rows.items())
    return PointToPoint(points=points, origin=origin, source=source, uncertainty=uncertainty)


_ETHERNET = "OSU latency 5.4.3, 25 GbE ConnectX-4 Lx, Intel MPI 2018: notes intel-mpi-rocev2 of February 2019, GitHub"

#: 1.87 us with RoCE v2, 1.46 us with EDR, both for 0 bytes.
ROCE_EXTRA_US = 0.41

TABLES = {
    "sandybridge-qdr": _table(QDR_US, "OSU latency of an MVAPICH2-class library on QDR (known by its bandwidth)"),
    "sandybridge-fdr": _table(FDR_US, "OSU latency on FDR ConnectX-3, OpenHPC issue 207; no size above 256 KiB"),
    "xeon-edr": _table(EDR_US, "OSU latency on EDR, Open MPI: documents of SJTU's HPC centre"),
    "xeon-hdr": _table(HDR_US, "OSU latency in a tutorial of Flux, on HDR (known by its bandwidth)"),
    "xeon-ndr": _table(
        {size: HDR_US[0] + (time - HDR_US[0]) / 2 for size, time in HDR_US.items()},
        "the HDR table of xeon-hdr with the part above its latency halved, as 400 Gb/s is twice 200 Gb/s",
        "modelled",
        0.3,
    ),
    "xeon-xdr": _table(
        {size: HDR_US[0] + (time - HDR_US[0]) / 4 for size, time in HDR_US.items()},
        "the HDR table of xeon-hdr with the part above its latency divided by four, as 800 Gb/s is four times 200 Gb/s",
        "modelled",
        0.4,
    ),
    "xeon-25gbe": _table(
        TCP_25GBE_US,
        f"{_ETHERNET}, over TCP; the hosts have two processors of 18 cores",
    ),
    "xeon-100gbe": _table(
        {size: time + ROCE_EXTRA_US for size, time in EDR_US.items()},
        f"the EDR table of xeon-edr and {ROCE_EXTRA_US:g} us, by which 25 GbE with RoCE v2 was slower than EDR for an "
        f"empty message on one pair of hosts ({_ETHERNET})",
        "modelled",
        0.3,
    ),
}


@dataclass(frozen=True, kw_only=True)
class _Gpu:
    """What differs between the shipped GPU machines."""

    cluster: str
    description: str
    links: tuple[LinkRate, ...]
    library: Library
    host: Host
    efficiency: Efficiency
    interference: tuple[Interference, ...]
    memory_share: float
    smallest_kernel_s: float
    overhead_bytes: float
    steps: tuple[StepTime, ...] = ()
    split: Split | None = None
    curves: tuple[Curve, ...] = ()


def _library(protocols: tuple[Protocol, ...], source: str, channels: _Channels | None = None) -> Library:
    made = Library(name="nccl", protocols=protocols, origin="published", source=source, uncertainty=0.1)
    if channels is None:
        return made
    return replace(
        made,
        protocols=tuple(channels.of(protocol) for protocol in protocols),
        channels=channels.opened,
        nvls_channels=channels.nvls,
        source=source + channels.source,
    )


HOST_2016 = Host(
    forward_kernel=5.5e-6,
    backward_kernel=5.5e-6,
    collective=20e-6,
    update=5.5e-6,
    copy=5.5e-6,
    wait=2e-6,
    iteration=100e-6,
    origin="assumed",
    uncertainty=0.5,
    source="a C++ framework of 2016: 5-6 us for a CUDA kernel launch of that time; a collective is a launch, two "
    "recorded events and a stream's wait; 100 us an iteration to read the loss and feed the data",
)


_EAGER_COLLECTIVE = (
    "collective: 4 H200, torch 2.11, one all-reduce per tensor from hooks against one flat: GoogLeNet (51-24 ms) / 173 "
    "tensors = 156 us, BERT-large (118-53 ms) / 394 = 165 us, so 160 us with its hook and its wait (hence wait 0)"
)

#: Two flat steps say nearly the same of the host, so both are taken to be bound by it.
HOST_H200 = Host(
    forward_kernel=46e-6,
    backward_kernel=46e-6,
    collective=160e-6,
    update=46e-6,
    copy=46e-6,
    wait=0.0,
    iteration=200e-6,
    origin="modelled",
    uncertainty=0.25,
    source=f"{_EAGER_COLLECTIVE}; kernels: on the same virtual machine the flat steps, less all-reduce, update and 0.2 "
    "ms, took (24-0.5 ms) / GoogLeNet's 474 counted kernels = 50 us and (53-7.8 ms) / BERT-large's 1,040 = 43 us; 200 "
    "us an iteration: an estimate",
)

HOST_EAGER = Host(
    forward_kernel=12e-6,
    backward_kernel=12e-6,
    collective=160e-6,
    update=15e-6,
    copy=12e-6,
    wait=0.0,
    iteration=200e-6,
    origin="assumed",
    uncertainty=0.4,
    source=f"{_EAGER_COLLECTIVE}; transferred from H200; issue of eager PyTorch kernels 12 us, optimizer 15 us a call, "
    "200 us an iteration: estimates for a host that is no virtual machine",
)


_TWO_SOCKETS = _TARTAN.format(
    text="17-18 GB/s both ways together between GPUs on two sockets; a ring crosses both ways at once"
)
_QPI_P100 = _link("socket", 8.75e9, _TWO_SOCKETS)
_QPI_V100 = _link(
    "socket", 8.75e9, f"{_TWO_SOCKETS}; taken over for the V100 machine, whose host is the same design", "assumed", 0.25
)
_FROM_H200 = "; transferred to this machine"

_SPLIT_V100 = Split(
    backward_plus_update=2.85,
    origin="assumed",
    uncertainty=0.25,
    source="MXNet on P100, ResNet-50 and InceptionV3: 2.8-2.9 times forward; transferred to V100",
)
_EFFICIENCY_V100 = _share(V100_SHARE, "ResNet-50 at 363.7 images/s (MXNet, V100, batch 128)")

GPUS = (
    _Gpu(
        cluster="dgx1-p100",
        description="DGX-1 with P100, a C++ framework and NCCL as of 2017",
        steps=P100_STEPS,
        split=Split(
            backward_plus_update=2.85,
            origin="published",
            uncertainty=0.05,
            source="MXNet on P100, ResNet-50 and InceptionV3: backward plus update is 2.8-2.9 times forward",
        ),
        efficiency=_share(P100_SHARE, "ResNet-50 at 219 images/s (TensorFlow benchmarks, P100, batch 64)"),
        links=(
            _nvlink(18e9, "Pascal NVLink moves 18 GB/s (nominal 20; Tartan's logs: 18.4)"),
            _pcie(3, 12e9),
            _QPI_P100,
            EDR_LINK,
        ),
        library=_library(NCCL_2017, NCCL_2017_SOURCE.format(more="; no LL128 before Volta")),
        host=HOST_2016,
        interference=_interference("assumed", _FROM_H200),
        memory_share=0.8,
        smallest_kernel_s=5e-6,
        overhead_bytes=0.6e9,
    ),
    _Gpu(
        cluster="dgx1-v100",
        description="DGX-1 with V100 of 16 GB, a C++ framework and NCCL as of 2019",
        steps=_steps(_MXNET, V100_RATES) + _steps(_FROM_P100, V100_FROM_P100, "modelled", 0.25),
        split=_SPLIT_V100,
        efficiency=_EFFICIENCY_V100,
        links=(
            _nvlink(21e9, "Volta NVLink moves 20-22 GB/s by version, 21 in v2.5 and v2.6 (nominal 25)"),
            _pcie(3, 12e9),
            _QPI_V100,
            EDR_LINK,
        ),
        library=_library(NCCL_VOLTA, NCCL_2017_SOURCE.format(more=" and at most 100 GB/s"), VOLTA),
        host=HOST_2016,
        interference=_interference("assumed", _FROM_H200),
        memory_share=0.8,
        smallest_kernel_s=4e-6,
        overhead_bytes=0.6e9,
    ),
    _Gpu(
        cluster="dgx2-v100",
        description="DGX-2 with 16 V100 of 32 GB, a C++ framework and NCCL as of 2019",
        steps=_steps(_MXNET + "; of a V100 SXM2, transferred to SXM3", V100_RATES, "modelled", 0.25)
        + _steps(_FROM_P100, V100_FROM_P100, "modelled", 0.25),
        split=_SPLIT_V100,
        efficiency=_EFFICIENCY_V100,
        links=(
            _nvlink(21e9, "Volta NVLink moves 20-22 GB/s by version, 21 in v2.5 and v2.6 (nominal 25)"),
            _pcie(3, 12e9),
            _link("socket", 9.5e9, _TOPO.format(text="UPI moves 9-10 GB/s")),
            EDR_LINK,
        ),
        library=_library(NCCL_VOLTA, NCCL_2017_SOURCE.format(more=" and at most 100 GB/s"), VOLTA),
        host=HOST_2016,
        interference=_interference("assumed", _FROM_H200),
        memory_share=0.8,
        smallest_kernel_s=4e-6,
        overhead_bytes=0.8e9,
    ),
    _Gpu(
        cluster="dgx-a100",
        description="DGX A100 with eager PyTorch and NCCL as of 2023",
        curves=(
            Curve(
                kind="all_reduce",
                ranks=8,
                nodes=1,
                points=tuple((float(size), round(1e-6 * us, 12)) for size, us in A100_ALL_REDUCE_US.items()),
                origin="published",
                uncertainty=0.05,
                source="github stas00/ml-engineering, network benchmarks: NCCL all-reduce on 8 A100 of one node",
            ),
        ),
        efficiency=_share(H200_SHARE, f"{_VGG16_ON_H200}; transferred to A100", "assumed", 0.4),
        links=(
            _nvlink(20e9, "Ampere NVLink moves 20-22 GB/s by version, 20 in current ones (nominal 25)"),
            _pcie(4, 24e9),
            _link("socket", 9.5e9, _TOPO.format(text="UPI moves 9-10 GB/s; taken for Infinity Fabric"), "assumed", 0.4),
            HDR_LINK,
        ),
        library=_library(_nccl_2026(), NCCL_2026_SOURCE.format(more=""), AMPERE),
        host=HOST_EAGER,
        interference=_interference("assumed", _FROM_H200),
        memory_share=0.9,
        smallest_kernel_s=2.5e-6,
        overhead_bytes=1.5e9,
    ),
    *(
        _Gpu(
            cluster=name,
            description=f"DGX {name[4:].upper()} with eager PyTorch and NCCL as of 2025",
            efficiency=_share(H200_SHARE, _VGG16_ON_H200)
            if name == "dgx-h200"
            else _share(H200_SHARE, f"{_VGG16_ON_H200}; transferred to H100", "assumed", 0.4),
            links=(
                _nvlink(
                    20.6e9,
                    "Hopper NVLink moves 20.6 GB/s (nominal 25); 18 of them agree with the ring's 370 GB/s that "
                    "NCCL's maintainer names in nccl-tests issue 212",
                ),
                _pcie(5, 48e9),
                _link("socket", 9.5e9, _TOPO.format(text="UPI moves 9-10 GB/s"), "assumed", 0.4),
                NDR_LINK,
            ),
            library=_library(
                _nccl_2026(nvls_share=0.85),
                NCCL_2026_SOURCE.format(
                    more="; NVLS 25 us, 20.9 us a hop of its trees over nodes, 0.85 of the links (Hopper)",
                ),
                HOPPER,
            ),
            host=HOST_H200 if name == "dgx-h200" else HOST_EAGER,
            interference=_interference(*(("measured", "") if name == "dgx-h200" else ("assumed", _FROM_H200))),
            memory_share=0.9,
            smallest_kernel_s=2e-6,
            overhead_bytes=1.5e9,
        )
        for name in ("dgx-h100", "dgx-h200")
    ),
    *(
        _Gpu(
            cluster=name,
            description=f"{shown} with eager PyTorch and NCCL as of 2025",
            efficiency=_share(H200_SHARE, f"{_VGG16_ON_H200}; transferred to B200", "assumed", 0.5),
            links=(
                _nvlink(40.1e9, "Blackwell NVLink moves 40.1 GB/s (nominal 50)"),
                _pcie(5, 48e9),
                *others,
            ),
            library=_library(
                _nccl_2026(nvls_share=0.74),
                NCCL_2026_SOURCE.format(
                    more="; NVLS 25 us, 20.9 us a hop of its trees over nodes, 0.74 of the links (Blackwell)",
                ),
                BLACKWELL,
            ),
            host=HOST_EAGER,
            interference=_interference("assumed", _FROM_H200),
            memory_share=0.9,
            smallest_kernel_s=2e-6,
            overhead_bytes=1.5e9,
        )
        for name, shown, others in (
            (
                "dgx-b200",
                "DGX B200",
                (
                    _link("socket", 40e9, _TOPO.format(text="UPI of Emerald Rapids moves 40 GB/s (ERP_QPI_BW)")),
                    NDR_LINK,
                ),
            ),
            (
                "gb200-nvl72",
                "GB200 NVL72",
                (
                    _link(
                        "socket", 360e9, "0.8 of NVLink-C2C's nominal 450 GB/s: nobody published NCCL's", "assumed", 0.4
                    ),
                    NDR_LINK,
                ),
            ),
        )
    ),
    _Gpu(
        cluster="pcie-box",
        description="Eight A100 PCIe cards with eager PyTorch and NCCL as of 2023",
        efficiency=_share(
            round(0.9 * H200_SHARE, 3),
            f"{_VGG16_ON_H200}; transferred to A100, times 0.9, since cards of 250 W run slower than modules of 400 W",
            "assumed",
            0.4,
        ),
        links=(
            _pcie(4, 24e9),
            _link("socket", 9.5e9, _TOPO.format(text="UPI moves 9-10 GB/s")),
            HDR_LINK,
        ),
        library=_library(_nccl_2026(), NCCL_2026_SOURCE.format(more=""), AMPERE),
        host=HOST_EAGER,
        interference=_interference("assumed", _FROM_H200),
        memory_share=0.9,
        smallest_kernel_s=2.5e-6,
        overhead_bytes=1.5e9,
    ),
)


@dataclass(frozen=True, kw_only=True)
class _Cpu:
    """What differs between the shipped CPU clusters."""

    cluster: str
    cores: int
    core_bytes_per_s: float
    core_source: str


CPUS = (
    *(
        _Cpu(
            cluster=name,
            cores=16,
            core_bytes_per_s=10e9,
            core_source="one Sandy Bridge core streams about 10 GB/s",
        )
        for name in ("sandybridge-qdr", "sandybridge-fdr")
    ),
    *(
        _Cpu(cluster=name, cores=40, core_bytes_per_s=12e9, core_source="one Skylake core streams about 12 GB/s")
        for name in ("xeon-edr", "xeon-hdr", "xeon-ndr", "xeon-xdr", "xeon-100gbe", "xeon-25gbe")
    ),
)


def gpu_profile(made: _Gpu, cluster: Cluster) -> Profile:
    """Return the profile of a GPU machine."""
    nominal = float(cluster.device.memory_rate)
    return Profile(
        name=made.cluster,
        cluster=cluster,
        description=made.description,
        steps=made.steps,
        split=made.split,
        efficiency=made.efficiency,
        host=made.host,
        memory=MemoryRate(
            bytes_per_s=made.memory_share * nominal,
            kernel=made.smallest_kernel_s,
            origin="assumed",
            uncertainty=0.25,
            source=f"{made.memory_share:g} of the data sheet's rate: one H200 copies 4.3 of 4.8 TB/s (0.9), older "
            f"memories reach less; smallest kernel {1e6 * made.smallest_kernel_s:g} us, an estimate",
        ),
        curves=made.curves,
        links=made.links,
        library=made.library,
        interference=made.interference,
        execution=Execution(
            origin="assumed",
            uncertainty=0.25,
            update_on_compute=True,
            source="NCCL's calls return at once and wait on the device; the training loop reads the loss each step; an "
            "update shares the device with a pass beside it (one H200: 71-81 % of its time remains, "
            "studies/update_beside_backward), so it is put on the compute lane",
        ),
        jitter=Jitter(
            iteration_sigma=0.01,
            rank_sigma=0.005,
            origin="assumed",
            uncertainty=0.5,
            source="half-spread of repeated steps on 4 H200 over NVLink: 1 %; half of it taken between ranks",
        ),
        memory_overhead=MemoryOverhead(
            nbytes=made.overhead_bytes,
            origin="assumed",
            uncertainty=0.5,
            source="CUDA context, cuDNN handles and NCCL's buffers: an estimate",
        ),
    )


def cpu_profile(made: _Cpu, cluster: Cluster) -> Profile:
    """Return the profile of a CPU cluster with one MPI rank a node."""
    skylake = made.cores == 40
    net = cluster.interconnect.kind if cluster.interconnect is not None else "infiniband"
    hypothetical = made.cluster not in ("xeon-edr", "xeon-hdr", "xeon-100gbe", "xeon-25gbe")
    origin: Origin = "modelled" if hypothetical else "published"
    more = "; taken over for this hypothetical machine" if hypothetical else ""
    shares = "ResNet-50 at 81.7 images/s (PaddlePaddle, 2x Xeon 6148, batch 64)"
    return Profile(
        name=made.cluster,
        cluster=cluster,
        description=f"{cluster.device.name}, one MPI rank a node with a progress thread",
        steps=_steps(_PADDLE + more, XEON_RATES, origin, 0.05 if origin == "published" else 0.25) if skylake else (),
        split=Split(
            backward_plus_update=2.0,
            origin="modelled",
            uncertainty=0.25,
            source="backward computes two products for each of forward's; the update is small beside them",
        ),
        efficiency=_share(XEON_SHARE, shares)
        if skylake
        else _share(XEON_SHARE, f"{shares}; transferred to Sandy Bridge", "assumed", 0.4),
        host=Host(
            forward_kernel=2e-6,
            backward_kernel=2e-6,
            collective=5e-6,
            update=2e-6,
            copy=2e-6,
            wait=2e-6,
            iteration=100e-6,
            origin="assumed",
            uncertainty=0.5,
            source="a C++ framework on the CPU: a call with its parallel region about 2 us; an MPI call o = 1.1 us "
            "(LogGP by netgauge, MVAPICH on QDR, github codes-org/codes) and a hand-over to the progress thread; "
            "100 us an iteration",
        ),
        memory=MemoryRate(
            bytes_per_s=0.8 * float(cluster.device.memory_rate),
            kernel=2e-6,
            origin="assumed",
            uncertainty=0.25,
            source="0.8 of the data sheet's rate, as STREAM reaches on such processors; 2 us for a parallel region",
        ),
        point_to_point=TABLES[made.cluster],
        library=Library(
            name="mpi",
            reduce_bytes_per_s=round(made.core_bytes_per_s / 3),
            origin="assumed",
            uncertainty=0.3,
            source=f"one thread adds buffers: {made.core_source}, and a sum reads two values and writes one",
        ),
        interference=tuple(
            Interference(
                compute=compute,
                path=net,
                compute_factor=made.cores / (made.cores - 1),
                communication_factor=1.0,
                origin="assumed",
                uncertainty=0.25,
                source=f"a progress thread takes one of {made.cores} cores; what the communication loses is `progress`",
            )
            for compute in ("matrix", "memory")
        ),
        execution=Execution(
            merged=True,
            wait_blocks_host=True,
            progress=0.85,
            origin="assumed",
            uncertainty=0.25,
            source="Iallreduce of 35 ms beside 35 ms of compute, MPICH over a shaped Ethernet link: 81-86 % hidden "
            "where someone polls (40-44 % where nobody does); taken for a progress thread on its own core",
        ),
        jitter=Jitter(
            iteration_sigma=0.02,
            rank_sigma=0.01,
            origin="assumed",
            uncertainty=0.5,
            source="CPU nodes spread more than the 1 % of GPUs: twice as much, an estimate",
        ),
        memory_overhead=MemoryOverhead(
            nbytes=0.5e9,
            origin="assumed",
            uncertainty=0.5,
            source="the framework and MPI's buffers: an estimate",
        ),
    )


def profiles() -> dict[str, Profile]:
    """Return all shipped profiles by the name of their cluster."""

    def cluster(name: str) -> Cluster:
        return files.read(CLUSTERS / f"{name}.toml", Cluster)

    made = {gpu.cluster: gpu_profile(gpu, cluster(gpu.cluster)) for gpu in GPUS}
    return made | {cpu.cluster: cpu_profile(cpu, cluster(cpu.cluster)) for cpu in CPUS}


def main() -> int:
    """Write all profiles and return the exit status."""
    for name, profile in profiles().items():
        files.write(HERE / f"{name}.json", profile)
        print(HERE / f"{name}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
