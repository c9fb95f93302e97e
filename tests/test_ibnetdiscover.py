"""Output of ibnetdiscover; where it comes from stands in data/SOURCES.md. What is written out here is constructed."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Ran

from calibration import ibnetdiscover
from calibration.importing import imported
from simgd import catalogue
from simgd.errors import ClusterError, FileError
from simgd.network import Network
from simgd.routes import NodeRoutes
from simgd.topology import Cluster, Link

DATA = Path(__file__).parent / "data"
EDR, MANUAL = f"{DATA}/ibnetdiscover-6-edr-switches.txt", f"{DATA}/ibnetdiscover-manual-sdr.txt"

Simgd = Callable[[str], Ran]


def cluster(text: str, machine: str = "xeon-edr", hosts: str = "*") -> Cluster:
    return ibnetdiscover.to_cluster(
        ibnetdiscover.parse(text, "net.txt"), catalogue.cluster(machine), "here", hosts=hosts
    )


def link(of: Cluster, a: str, b: str) -> Link:
    (found,) = [each for each in of.links if set(each.ends) == {a, b}]
    return found


def fabric(*cables: tuple[str, str], speed: str = "4xHDR") -> str:
    """Output about cables between nodes "S1:leaf" and "H2:node7 mlx5_0": a letter, a number and a description."""
    ports: dict[str, int] = {}
    sections: dict[str, list[str]] = {}

    def guid(node: str) -> str:
        return f"{node[0]}-{int(node.partition(':')[0][1:]):016x}"

    for a, b in cables:
        here, there = ports.get(a, 0) + 1, ports.get(b, 0) + 1
        ports |= {a: here, b: there}
        for one, port, other, back in ((a, here, b, there), (b, there, a, here)):
            lmc = "lid 1 lmc 0 " if one[0] == "H" else ""
            told = f'{lmc}"{other.partition(":")[2]}" lid 2 {speed}'
            sections.setdefault(one, []).append(f'[{port}]\t"{guid(other)}"[{back}]\t\t# {told}')
    lines = []
    for node, found in sections.items():
        kind = {"S": "Switch", "H": "Ca", "R": "Rt"}[node[0]]
        lines += [f'{kind}\t40 "{guid(node)}"\t\t# "{node.partition(":")[2]}"', *found, ""]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("rate", "gbit_per_s"),
    [
        ("4xSDR", 8),
        ("4xQDR", 32),
        ("4xFDR10", 40),
        ("4xFDR", 54.5454),
        ("4xEDR", 100),
        ("2xHDR", 100),
        ("4xHDR", 200),
        ("4xNDR", 400),
        ("4xXDR", 800),
        ("1xSDR", 2),
    ],
)
def test_a_rate_is_that_of_the_data_after_encoding(rate: str, gbit_per_s: float) -> None:
    found = cluster(fabric(("H1:a mlx5_0", "S1:leaf"), ("H2:b mlx5_0", "S1:leaf"), speed=rate))
    assert link(found, "a/nic", "leaf").bandwidth == pytest.approx(gbit_per_s * 1e9 / 8, rel=1e-5)


def test_a_captured_subnet_gives_hosts_switches_and_bundles_of_cables() -> None:
    found = cluster(Path(EDR).read_text())
    # ten hosts of the capture were kept, below four of its six switches
    assert (len(found.devices), len(found.nics)) == (10, 10)
    assert sum(kind == "switch" for kind in found.vertices.values()) == 6
    assert len(set(found.hosts.values())) == 16  # a switch counts as a host of its own
    assert found.devices[:3] == ("controller/cpu", "gpu001/cpu", "gpu039/cpu")
    bundle = link(found, "S-ec0d9a0300ec81e0", "S-ec0d9a0300ec8240")
    assert (bundle.count, bundle.bandwidth, bundle.kind) == (6, 12.5e9, "infiniband")
    # the latency of a cable and the switch behind it, and the slot of the NIC, are those of the shipped machine
    assert bundle.latency == pytest.approx(150e-9)
    assert link(found, "node018/cpu", "node018/nic").bandwidth == 15.75e9


def test_a_cable_that_fell_back_to_a_lower_speed_makes_its_bundle_slower() -> None:
    found = cluster(Path(EDR).read_text())
    # five of 12.5 GB/s and one of 4 x 0.5 GB/s
    bundle = link(found, "S-ec0d9a0300ec8200", "S-ec0d9a0300ec8480")
    assert (bundle.count, bundle.bandwidth) == (6, pytest.approx((5 * 12.5e9 + 2e9) / 6))
    assert found.source.endswith("left out: unlike rates of cables in 1 of the bundles")


def test_a_message_crosses_the_switches_between_two_hosts() -> None:
    found = cluster(Path(EDR).read_text())
    routes = NodeRoutes(found, [link.bandwidth * link.count for link in found.links])
    near, far = (routes.between("node018/cpu", other) for other in ("gpu001/cpu", "gpu039/cpu"))
    assert [routes.names[resource] for resource in near.resources] == [
        ("node018/cpu", "node018/nic"),
        ("node018/nic", "S-ec0d9a0300ec8240"),
        ("S-ec0d9a0300ec8240", "gpu001/nic"),
        ("gpu001/nic", "gpu001/cpu"),
    ]
    # two upper switches, each with six cables: half of the bytes over either
    assert sorted(far.weights) == [0.5] * 4 + [1.0] * 4


def test_the_manuals_example_has_nodes_without_names_and_a_port_that_is_slower_than_its_peer() -> None:
    found = cluster(Path(MANUAL).read_text())
    assert len(found.devices) == 4
    # two cables, of which one has a port at 1xSDR: 1 GB/s and 0.25 GB/s
    bundle = link(found, "ISR9024 Voltaire", "SW-6IB4 Voltaire")
    assert (bundle.count, bundle.bandwidth) == (2, 0.625e9)
    # an adapter with two ports is one NIC
    assert link(found, "H-0008f10403960558/nic", "ISR9024 Voltaire").count == 2
    assert "which hosts 4 adapters without a host's name belong to" in found.source


RAILS = fabric(
    *((f"H{10 * host + rail}:node{host} mlx5_{rail}", f"S{rail + 1}:MF0;leaf{rail}:MQM9790/U1") for host in (1, 2, 10)
      for rail in range(4)),
    *((f"S{rail + 1}:MF0;leaf{rail}:MQM9790/U1", f"S{9}:spine") for rail in range(4) for _ in range(2)),
    ("H900:Mellanox Technologies Aggregation Node", "S1:MF0;leaf0:MQM9790/U1"),
    speed="4xNDR",
)  # fmt: skip


def test_adapters_of_one_host_are_the_nics_of_a_machine_in_the_order_of_their_names() -> None:
    found = cluster(RAILS, "dgx1-v100")
    machine = catalogue.cluster("dgx1-v100")
    # three DGX-1 whose four NICs go to a switch each
    assert len(found.devices) == 24
    assert found.devices[7:9] == ("node1/gpu7", "node2/gpu0")
    assert found.devices[16] == "node10/gpu0"
    assert len(found.links) == 3 * len(machine.links) + 3 * 4 + 4
    assert [link(found, f"node2/nic{rail}", f"leaf{rail}").bandwidth for rail in range(4)] == [50e9] * 4
    assert link(found, "leaf0", "spine").count == 2
    assert found.source.endswith("left out: 1 aggregation nodes")


def test_more_adapters_than_a_machine_has_hang_where_its_own_do_and_fewer_leave_some_out() -> None:
    found = cluster(RAILS)
    assert [name for name in found.nics if name.startswith("node2/")] == [
        "node2/nic",
        "node2/nic.1",
        "node2/nic.2",
        "node2/nic.3",
    ]
    assert link(found, "node2/cpu", "node2/nic.3").bandwidth == 15.75e9
    one = cluster(fabric(("H1:a HCA-1", "S1:leaf"), ("H2:b HCA-1", "S1:leaf")), "dgx1-v100")
    assert one.nics == ("a/nic0", "b/nic0")


def test_two_hosts_without_a_switch_are_joined_directly() -> None:
    found = cluster(fabric(("H1:a mlx5_0", "H2:b mlx5_0"), speed="4xFDR"))
    assert set(found.vertices.values()) == {"device", "nic"}
    routes = NodeRoutes(found, [1.0] * len(found.links))
    assert len(routes.between("a/cpu", "b/cpu").resources) == 3


def test_hosts_are_chosen_by_name_and_the_others_counted() -> None:
    found = cluster(Path(EDR).read_text(), hosts="node*")
    assert [name.partition("/")[0] for name in found.devices] == ["node018", "node038", "node040", "node041", "node046"]
    assert "5 hosts not called node*" in found.source


def test_the_report_of_ports_gives_the_same_subnet() -> None:
    # ibnetdiscover -p: a line for each port, with GUIDs of ports; the last switch's port has no cable
    lines = ["SW     9  4 0x0000000000000001 4x SDR                                    'leaf'"]
    for host, name in ((1, "a mlx5_0"), (2, "b mlx5_0")):
        switch, adapter = f"9  {host} 0x0000000000000001", f"{host}  1 0x{host + 255:016x}"
        lines += [
            f"SW     {switch} 4x HDR - CA     {adapter} ( 'leaf' - '{name}' )",
            f"CA     {adapter} 4x HDR - SW     {switch} ( '{name}' - 'leaf' )",
        ]
    report = "\n".join(lines)
    assert ibnetdiscover.recognises(report)
    plain = cluster(fabric(("S1:leaf", "H1:a mlx5_0"), ("S1:leaf", "H2:b mlx5_0")))
    found = cluster(report)
    assert (found.vertices, set(found.links)) == (plain.vertices, set(plain.links))


def test_a_file_of_switches_alone_takes_their_word_for_the_hosts() -> None:
    text = fabric(("S1:leaf", "H1:a mlx5_0"), ("S1:leaf", "H2:b mlx5_0"))
    alone = text[: text.index("Ca\t")]
    assert cluster(alone) == cluster(text)


def test_the_command_makes_a_profile_that_predicts(simgd: Simgd) -> None:
    told = simgd(f"calibrate import {EDR}:device=xeon-edr,hosts=node* --out lab.json")
    assert told.status == 0, told.err
    assert "ibnetdiscover" in told.out
    assert "machine: 5 2x Intel Xeon Gold 6148, 5 NICs" in told.out
    (row,) = simgd("collective all_reduce --on lab.json --sizes 1MiB --json").json["collectives"]
    # every rank sends and receives 2 (n-1)/n of the buffer over its NIC, at most 12.5 GB/s
    assert (row["ranks"], row["time_s"] > 2 * 4 / 5 * 2**20 / 12.5e9) == (5, True)
    made = imported([f"{EDR}:device=xeon-edr,routing=static"], "lab")
    assert (made.cluster.routing, made.cluster.name) == ("static", "lab")
    assert Network(made.cluster, made).seconds("all_reduce", 2**20, 4) > 0


def test_facts_that_are_missing_or_wrong_are_one_line(simgd: Simgd) -> None:
    for spec, message in (
        (EDR, "does not say what its hosts are"),
        (f"{EDR}:device=xeon-edz", "device 'xeon-edz' is unknown; did you mean 'xeon-edr'"),
        (f"{EDR}:device=xeon-edr,routing=random", "routing=random: must be adaptive or static"),
        (f"{EDR}:device=xeon-edr,hosts=dgx*", "no host is called like 'dgx*'; there is 'node018'"),
        (f"{EDR}:gpu=v100", "'gpu' is no fact about such a file; it takes device, hosts, routing"),
        (f"{EDR}:device=nowhere.toml", "nowhere.toml: there is no such file"),
    ):
        told = simgd(f"calibrate import '{spec}'")
        assert told.status == 2
        assert message in told.err
        assert told.err.count("\n") == 1


def test_a_curve_between_hosts_is_refused_in_one_line() -> None:
    curve = f"{DATA}/osu-micro-benchmarks-5.6.2-allreduce-64.txt:ranks=8,nodes=8"
    with pytest.raises(
        ClusterError, match="is a network of unlike hosts; curves between its hosts are not placed on it"
    ):
        imported([curve, f"{EDR}:device=xeon-edr"], "lab")


GOOD = fabric(("S1:leaf", "H1:a mlx5_0"), ("S1:leaf", "H2:b mlx5_0"), ("S1:leaf", "S2:spine"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD[: GOOD.rindex("[1]")], "line 4: leads to port 1 of 'spine', which lists no such cable; is"),
        (GOOD[: GOOD.index("Switch", 1)], "line 4: leads to port 1 of 'spine', which is not in the file; is the"),
        (GOOD[: GOOD.rindex('"leaf"') - 20], "line 13: '[1]\\t\"S-0000"),
        (GOOD.replace("4xHDR", "4xABC", 1), "line 2: 4xABC is no known rate; widths are 1x, 2x, 4x, 8x, 12x"),
        (GOOD.replace("4xHDR", "3xHDR", 1), "line 2: 3xHDR is no known rate"),
        (GOOD.replace(" 4xHDR", "", 1), "line 2: says no width and speed such as 4xEDR"),
        (GOOD + GOOD, "line 14: S-0000000000000001 stands twice; it began in line 1"),
        (GOOD.replace("[2]", "[1]", 1), "line 3: port 1 of 'leaf' stands twice"),
        (GOOD.replace('"H-0000000000000002"[1]', '"H-0000000000000001"[1]', 1), "line 3: leads to port 1 of 'a"),
        (GOOD.replace('"H-0000000000000001"[1]', '"S-0000000000000001"[1]', 1), "line 2: port 1 leads to itself"),
        (GOOD.replace("Ca\t40", "Switch\t40", 1), "line 6: 'Switch\\t40 \"H-"),
        ("[1]" + GOOD, "line 1: a port stands before the first switch or adapter"),
        ('Switch\t36 "S-01"\t# "leaf" base port 0', "lists no cable; it must be whole output of ibnetdiscover"),
        (GOOD.replace("b mlx5_0", "a mlx5_0"), "two adapters are called 'a mlx5_0'; their hosts cannot be told"),
        (GOOD + fabric(("H7:c mlx5_0", "H8:d mlx5_0")), "cluster 'here': no path from 'a/cpu' to 'c/cpu'"),
        (fabric(("S1:leaf", "S2:spine")), "has no host"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line(text: str, message: str) -> None:
    assert ibnetdiscover.recognises(text)
    with pytest.raises(FileError) as error:
        cluster(text)
    assert str(error.value).startswith(f"net.txt: {message}")
    assert "\n" not in str(error.value)


def test_a_machine_without_a_nic_is_no_host(tmp_path: Path) -> None:
    path = tmp_path / "bare.toml"
    text = catalogue.text("cluster", "xeon-edr").replace('nic = "nic"', 'nic = "socket"')
    path.write_text(text)
    with pytest.raises(FileError, match="device 'xeon-edr' is no host with a nic, which each host here has"):
        imported([f"{EDR}:device={path}"], "lab")
