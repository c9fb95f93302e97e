"""Topology files of NCCL; where they come from stands in data/SOURCES.md. Those of a DGX-1 are constructed."""

from pathlib import Path

import pytest
from links import alike, graph

from calibration import gpus, nccl_xml
from simgd import catalogue, fabrics
from simgd.errors import FileError
from simgd.topology import Cluster

DATA = Path(__file__).parent / "data"


def cluster(content: bytes, gpu: str) -> Cluster:
    return nccl_xml.to_cluster(nccl_xml.tree(content, "topo.xml"), "topo.xml", gpus.machine("topo.xml", gpu), "here")


def read(name: str, gpu: str) -> Cluster:
    return cluster((DATA / name).read_bytes(), gpu)


def test_nvlinks_into_four_nvswitches_are_those_of_the_shipped_machine() -> None:
    found, known = read("nccl-2.22.3-topology-8-h100-vm.xml", "h100"), catalogue.cluster("dgx-h100")
    # which switch has five links of a GPU and which four differs, so rates are compared, not graphs
    here, there = (fabrics.fabric(each, fabrics.placement(each, 8)) for each in (found, known))
    assert here.port_bytes_per_s == pytest.approx(there.port_bytes_per_s)
    assert sum(kind == "nvswitch" for kind in found.vertices.values()) == 4


def test_slots_give_pcie_rates_and_nets_the_interconnect() -> None:
    found = read("nccl-topology-3-h200.xml", "h200")
    rates = {link.ends: link.bandwidth for link in found.links}
    # 32 GT/s x 16 lanes x 128/130 / 8 = 63.0 GB/s
    assert rates["gpu0", "pcie0"] == rates["pcie0", "socket0"] == pytest.approx(63.015e9, rel=1e-4)
    assert found.interconnect is not None
    assert found.interconnect.bandwidth == 50e9  # 400,000 Mb/s
    assert (found.interconnect.kind, len(found.nics)) == ("infiniband", 3)


def test_a_width_of_0_means_16_lanes_and_a_slow_bridge_stays_slow() -> None:
    found = read("nccl-2.22.3-topology-8-h100-vm.xml", "h100")
    rates = {link.ends: link.bandwidth for link in found.links}
    assert rates["gpu0", "pcie0"] == pytest.approx(63.015e9, rel=1e-4)
    # 2.5 GT/s on one lane with 8b/10b encoding
    assert rates["pcie0", "socket0"] == pytest.approx(0.25e9)


#: Bus ids of a DGX-1's GPUs, and where they stand: two on a PCIe switch with a NIC, two switches on a processor.
BUS = ("06", "07", "0a", "0b", "85", "86", "89", "8a")
TWO = [(0, 3), (0, 4), (1, 2), (1, 5), (2, 3), (4, 7), (5, 6), (6, 7)]
ONE = [(0, 1), (0, 2), (1, 3), (2, 6), (3, 7), (4, 5), (4, 6), (5, 7)]
PAIRS = dict.fromkeys(TWO, 2) | dict.fromkeys(ONE, 1)


def dgx1(gpus_used: int = 8) -> str:
    """A DGX-1 V100 in NCCL's format, of a run on the first so many GPUs."""
    lines = ['<system version="1">']
    for cpu in range(2):
        lines.append(f'<cpu numaid="{cpu}" affinity="0" arch="x86_64" vendor="GenuineIntel" familyid="6" modelid="79">')
        for switch in range(2 * cpu, 2 * cpu + 2):
            slot = 'link_speed="8 GT/s" link_width="16"'
            lines.append(f'<pci busid="0000:{switch + 16:x}:00.0" class="0x060400" {slot}>')
            for gpu in range(2 * switch, min(2 * switch + 2, gpus_used)):
                lines.append(f'<pci busid="0000:{BUS[gpu]}:00.0" class="0x030200" {slot}>')
                lines.append(f'<gpu dev="{gpu}" sm="70" rank="{gpu}" gdr="1">')
                for pair, count in PAIRS.items():
                    if gpu in pair:
                        (other,) = set(pair) - {gpu}
                        lines.append(f'<nvlink target="0000:{BUS[other]}:00.0" count="{count}" tclass="0x030200"/>')
                lines.append("</gpu></pci>")
            lines.append(f'<pci busid="0000:{switch + 32:x}:00.0" class="0x020700" {slot}><nic>')
            lines.append(f'<net name="mlx5_{switch}" dev="{switch}" speed="100000" port="1" gdr="1"/>')
            lines.append("</nic></pci></pci>")
        lines.append("</cpu>")
    return "\n".join([*lines, "</system>"])


def test_a_dgx_1_gives_the_shipped_machine() -> None:
    found, known = cluster(dgx1().encode(), "v100"), catalogue.cluster("dgx1-v100")
    assert alike(graph(found, "nvlink"), graph(known, "nvlink"))
    here, there = (fabrics.fabric(each, fabrics.placement(each, 8)) for each in (found, known))
    assert here.ring_bytes_per_s == pytest.approx(there.ring_bytes_per_s)
    assert found.interconnect is not None
    assert known.interconnect is not None
    assert found.interconnect.bandwidth == known.interconnect.bandwidth


def test_nvlinks_to_gpus_that_did_not_take_part_are_left_out_and_counted() -> None:
    found = cluster(dgx1(gpus_used=4).encode(), "v100")
    assert len(found.devices) == 4
    # 0-4, 1-5: two links each; 2-6, 3-7: one each
    assert found.source.endswith("left out: 6 NVLinks to GPUs that are not in the file")


def test_slower_nics_are_left_out_and_counted() -> None:
    text = dgx1().replace('name="mlx5_3" dev="3" speed="100000"', 'name="eth0" dev="3" speed="10000"')
    found = cluster(text.encode(), "v100")
    assert len(found.nics) == 3
    assert found.source.endswith("left out: 1 slower NICs")


BOMB = '<?xml version="1.0"?><!DOCTYPE s [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><system version="1">&b;</system>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "topo.xml: holds a DTD or entities"),
        ('<!DOCTYPE s SYSTEM "file:///etc/passwd"><system version="1"/>', "topo.xml: holds a DTD or entities"),
        ("<a>" * 10_000, "topo.xml: has elements more than 64 deep"),
        (
            '<system version="1">' + "<cpu/>" * 200_000 + "</system>",
            "topo.xml: has elements more than 64 deep, or more than",
        ),
        ('<system version="1">' + "x" * 2**24, "topo.xml: is larger than 16 MiB"),
        (dgx1()[:900], "topo.xml: line "),
        ("", "topo.xml: line 1: is not XML"),
        ("<graphs version='1'/>", "topo.xml: its root is <graphs>; what NCCL_TOPO_DUMP_FILE writes has <system>"),
        (dgx1().replace('version="1"', 'version="9"'), "topo.xml: version is '9'"),
        ('<system version="1"><cpu/></system>', "topo.xml: holds no <gpu>"),
        (dgx1().replace('dev="3" sm', 'dev="2" sm'), "topo.xml: <gpu dev='2'> stands twice"),
        (dgx1().replace('sm="70"', 'sm="80"'), "topo.xml: <gpu dev='0'>: sm is 80; that of V100 is 70"),
        (
            dgx1().replace('count="2"', 'count="two"'),
            "topo.xml: <nvlink dev=''>: count is 'two'; it must be a whole number",
        ),
        (dgx1().replace('count="2"', 'count="20"'), "topo.xml: gpu0 has 42 NVLinks; a NVIDIA V100 SXM2 has 6"),
        (
            dgx1().replace('0b:00.0" count="2"', '0b:00.0" count="1"', 1),
            "topo.xml: gpu0 has 1 NVLinks to gpu3, but gpu3",
        ),
        (
            dgx1()
            .replace('tclass="0x030200"', 'tclass="0x010000"')
            .replace('0000:85:00.0" class', '0000:84:00.0" class'),
            "topo.xml: <gpu dev='0'>: <nvlink>: target '0000:85:00.0', class '0x010000', count 2 leads to no GPU",
        ),
        (
            dgx1().replace("8 GT/s", "999 GT/s"),
            "topo.xml: <pci busid='0000:10:00.0'>: 999 GT/s on 16 lanes is no PCIe link",
        ),
        (dgx1().replace('speed="100000"', 'speed="fast"'), "topo.xml: <net dev='0'>: speed is 'fast'"),
        (dgx1().replace("<nvlink", "<xgmi"), "topo.xml: is of AMD GPUs"),
        (
            dgx1().replace('numaid="0"', 'host_hash="1"'),
            "topo.xml: describes 2 hosts; a cluster file describes one node",
        ),
    ],
)
def test_what_cannot_be_read_is_one_line(text: str, message: str) -> None:
    with pytest.raises(FileError) as error:
        cluster(text.encode(), "v100")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
