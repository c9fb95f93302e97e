"""Matrices of `nvidia-smi topo -m`; where they come from stands in data/SOURCES.md. That of a DGX-2 is constructed."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from links import alike, graph

from calibration import gpus, nvidia_smi
from simgd import catalogue, fabrics
from simgd.errors import FileError, SimgdError
from simgd.topology import Cluster

DATA = Path(__file__).parent / "data"


def text_of(name: str) -> str:
    return (DATA / f"nvidia-smi-topo-{name}.txt").read_text()


def cluster(text: str, gpu: str) -> Cluster:
    return nvidia_smi.to_cluster(nvidia_smi.parse(text, "topo.txt"), gpus.machine("topo.txt", gpu), "here")


def read(name: str, gpu: str) -> Cluster:
    return cluster(text_of(name), gpu)


@pytest.mark.parametrize(
    ("file", "gpu", "shipped"), [("dgx1-v100", "v100", "dgx1-v100"), ("dgx1-p100", "p100", "dgx1-p100")]
)
def test_the_matrix_of_a_dgx_1_gives_the_shipped_machine(file: str, gpu: str, shipped: str) -> None:
    found, known = read(file, gpu), catalogue.cluster(shipped)
    assert alike(graph(found, "nvlink"), graph(known, "nvlink"))
    # and the whole of it: PCIe switches are inferred from the NIC that two GPUs are near to
    every = ("nvlink", "pcie", "socket")
    assert alike(graph(found, *every), graph(known, *every))
    assert found.device == known.device
    assert found.interconnect == known.interconnect


@pytest.mark.parametrize(
    ("file", "gpu", "shipped", "ranks"),
    [
        ("dgx-a100", "a100", "dgx-a100", 8),
        ("4-a100", "a100", "dgx-a100", 4),
        ("8-nv18-ansi", "h200", "dgx-h200", 8),
    ],
)
def test_behind_nvswitches_each_gpu_has_the_same_rate_as_in_the_shipped_machine(
    file: str, gpu: str, shipped: str, ranks: int
) -> None:
    found, known = read(file, gpu), catalogue.cluster(shipped)
    assert found.vertices["nvswitch0"] == "nvswitch"
    here, there = (fabrics.fabric(each, fabrics.placement(each, ranks)) for each in (found, known))
    assert here.port_bytes_per_s == pytest.approx(there.port_bytes_per_s) != 0


def test_four_gpus_whose_links_just_suffice_are_joined_directly() -> None:
    # 3 peers x 6 NVLinks = the 18 of an H100
    found = read("4-h100", "h100")
    assert "nvswitch0" not in found.vertices
    assert sorted(link.count for link in found.links if link.kind == "nvlink") == [6] * 6
    # each GPU stands in a NUMA node of its own, with its NIC below one PCIe switch
    assert sum(kind == "socket" for kind in found.vertices.values()) == 4
    assert sum(kind == "pcie_switch" for kind in found.vertices.values()) == 4


def test_a_gpu_and_a_nic_behind_several_switches_share_one_root_port() -> None:
    # DGX A100: GPU0, GPU1, mlx5_0 and mlx5_1 are PXB to each other; mlx5_4 and mlx5_5 are one card with two ports
    pcie = graph(read("dgx-a100", "a100"), "pcie")
    (switch,) = (name for name in pcie["gpu0"] if pcie.nodes[name]["kind"] == "pcie_switch")
    assert {name for name in pcie[switch] if not name.startswith("socket")} == {"gpu0", "gpu1", "nic0", "nic1"}


def dgx2() -> str:
    """A DGX-2 as NVIDIA's documentation draws it: two GPUs and a NIC on a switch, two of these on a root port."""
    gpu, nic = [f"GPU{n}" for n in range(16)], [f"mlx5_{n}" for n in range(8)]

    def relation(a: int, b: int) -> str:
        """By the switch that each stands on: 8 of them."""
        return "PIX" if a == b else "PXB" if a // 2 == b // 2 else "NODE" if a // 4 == b // 4 else "SYS"

    lines = ["\t" + "\t".join([*gpu, *nic, "CPU Affinity"])]
    for name in (*gpu, *nic):
        mine = int(name[3:]) // 2 if name in gpu else int(name[5:])
        cells = [
            "X" if other == name else "NV6" if name in gpu else relation(mine, n // 2) for n, other in enumerate(gpu)
        ]
        cells += ["X" if other == name else relation(mine, n) for n, other in enumerate(nic)]
        lines.append("\t".join([name, *cells, "0-23" if mine < 4 else "24-47"]))
    return "\n".join(lines)


def test_the_matrix_of_a_dgx_2_has_two_levels_of_pcie_switches() -> None:
    found = cluster(dgx2(), "v100-sxm3")
    assert found.device == catalogue.cluster("dgx2-v100").device
    kinds = list(found.vertices.values())
    # 8 switches of two GPUs and a NIC, and one above each two of them
    assert (kinds.count("device"), kinds.count("nic"), kinds.count("pcie_switch")) == (16, 8, 12)
    assert (kinds.count("nvswitch"), kinds.count("socket")) == (1, 2)
    assert [link.count for link in found.links if link.kind == "nvlink"] == [6] * 16


def test_a_virtual_machine_that_hides_its_pcie_tree_still_gives_a_cluster() -> None:
    rows = [f"GPU{n}\t" + "\t".join("X" if n == m else "PHB" for m in range(2)) + "\t0-3" for n in range(2)]
    found = cluster("\n".join(["\tGPU0\tGPU1\tCPU Affinity", *rows]), "a100-pcie")
    assert [sorted(link.ends) for link in found.links] == [["gpu0", "socket0"], ["gpu1", "socket0"]]
    assert found.interconnect is None


def test_the_gpu_must_be_named_and_known() -> None:
    with pytest.raises(FileError) as error:
        gpus.machine("topo.txt", None)
    assert str(error.value).startswith(
        "topo.txt: does not say which GPU it is of; write topo.txt:gpu=NAME, one of a100"
    )
    with pytest.raises(FileError) as error:
        gpus.machine("topo.txt", "k80")
    assert str(error.value).startswith("topo.txt: gpu 'k80' is unknown; known are a100, a100-sxm4, b200")
    with pytest.raises(FileError, match="GPU0 and GPU1 are NV12, but a NVIDIA V100 SXM2 has 6 NVLinks"):
        read("dgx-a100", "v100")


V100 = text_of("dgx1-v100")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n".join(V100.splitlines()[:6]), "topo.txt: ends before row 'GPU5'; the matrix is cut off"),
        (V100[:170], "topo.txt: line 3: row 'GPU1' has '' after 5 of 12 cells"),
        (V100.replace("GPU5\tSYS", "GPU6\tSYS"), "topo.txt: line 7: 'GPU6"),
        (
            V100.replace("NV2\tSYS\tSYS\tSYS\tPIX", "NV9\tSYS\tSYS\tSYS\tPIX"),
            "topo.txt: GPU0 to GPU4 is NV9, but GPU4 to",
        ),
        (V100.replace("PIX", "P1X"), "topo.txt: line 2: row 'GPU0' has 'P1X"),
        (
            V100.replace("GPU3\tNV2\tNV1\tNV2\t X ", "GPU3\tNV2\tNV1\tNV2\tNV1"),
            "topo.txt: line 5: row 'GPU3' must have its",
        ),
        (V100 + V100, "topo.txt: line 24: a second matrix begins"),
        (V100.replace("\tGPU1\t", "\tGPU0\t", 1), "topo.txt: line 1: must name each GPU and NIC once"),
        ("GPU 0: Tesla V100-SXM2-16GB", "topo.txt: has no line 'GPU0 ... CPU Affinity'"),
    ],
)
def test_what_cannot_be_read_is_one_line(text: str, message: str) -> None:
    with pytest.raises(FileError) as error:
        cluster(text, "v100")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@given(st.lists(st.tuples(st.integers(0, 700), st.text(max_size=6), st.integers(0, 20)), max_size=4))
def test_a_damaged_matrix_is_a_cluster_or_an_error_of_one_line(damage: list[tuple[int, str, int]]) -> None:
    text = V100
    for place, new, gone in damage:
        text = text[:place] + new + text[place + gone :]
    try:
        cluster(text, "v100")
    except SimgdError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
