"""`simgd calibrate import`: other tools' output as a profile that predictions use."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Ran

from calibration.importing import imported
from simgd import catalogue, files
from simgd.errors import ClusterError, FileError, ProfileError, SimgdError
from simgd.network import Network
from simgd.profile import Profile

DATA = Path(__file__).parent / "data"
NCCL, NCCL_2_NODES = f"{DATA}/nccl-tests-2.13-8-h100.txt", f"{DATA}/nccl-tests-2.18.3-2x4-gh200.txt"
OSU = f"{DATA}/osu-micro-benchmarks-5.6.2"
H100_XML, V100 = f"{DATA}/nccl-2.22.3-topology-8-h100-vm.xml:gpu=h100", f"{DATA}/nvidia-smi-topo-dgx1-v100.txt:gpu=v100"
TRACE = f"{DATA}/kineto-torch-2.13-cpu-digits-cnn.json.gz"

Simgd = Callable[[str], Ran]


def test_curves_and_a_topology_become_a_profile_that_meets_each_measured_time() -> None:
    made = imported([f"{NCCL}:kind=all_reduce", H100_XML], "lab")
    (curve,) = made.curves
    assert (curve.kind, curve.ranks, curve.nodes, curve.origin) == ("all_reduce", 8, 1, "measured")
    assert curve.source == "nccl-tests-2.13-8-h100.txt: nccl-tests of unknown version"
    assert (made.name, made.cluster.name, made.cluster.size) == ("lab", "lab", 8)
    network = Network(made.cluster, made)
    for nbytes, seconds in curve.points:
        assert network.seconds("all_reduce", int(nbytes), 8) == pytest.approx(seconds)


def test_the_command_writes_a_profile_that_collective_and_predict_take(simgd: Simgd) -> None:
    told = simgd(f"calibrate import {NCCL}:kind=all_reduce {H100_XML} --out lab.json")
    assert told.status == 0, told.err
    lines = told.out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "file",
        "nccl-tests-2.13-8-h100.txt",
        "nccl-2.22.3-topology-8-h100-vm.xml",
        "lab.json; predict with --on lab.json",
    ]
    assert "all_reduce" in lines[1]
    assert "268 MB to 2.15 GB, 4 sizes" in lines[1]
    assert "machine: 8 NVIDIA H100 SXM5, 8 NICs" in lines[2]
    (row,) = simgd("collective all_reduce --on lab.json --sizes 1GiB --json").json["collectives"]
    # the row of 1 GiB: 4027.3 us out of place
    assert (row["ranks"], row["origin"], row["time_s"]) == (8, "measured", pytest.approx(4027.3e-6))
    rows = simgd("predict resnet50 --on lab.json --ranks 8 --schedules sync --json").json["predictions"]
    assert rows[0]["cluster"] == "lab"


def test_the_same_files_give_the_same_bytes(simgd: Simgd) -> None:
    for out in ("a.json", "b.json"):
        simgd(f"calibrate import {NCCL}:kind=all_reduce {H100_XML} --out {out}")
    assert Path("a.json").read_bytes().replace(b'"a"', b'"b"') == Path("b.json").read_bytes()
    assert str(DATA).encode() not in Path("a.json").read_bytes()


def test_osu_and_a_trace_on_a_named_cluster_of_cpus(simgd: Simgd) -> None:
    files_ = (
        f"{OSU}-allreduce-64.txt:ranks=64 {OSU}-latency.txt {OSU}-bw.txt:link=infiniband {TRACE}:workload=digits-cnn"
    )
    made = simgd(f"calibrate import {files_} --on xeon-edr --out cpu.json --json").json
    # nobody said on how many nodes: a cluster of CPUs puts one rank on each
    assert [(curve["ranks"], curve["nodes"]) for curve in made["curves"]] == [(64, 64)]
    assert made["links"][0]["bytes_per_s"] == pytest.approx(10865.8e6)
    assert len(made["point_to_point"]["points"]) == 24
    assert [(entry["direction"], entry["batch"]) for entry in made["layers"]] == [("forward", 8), ("backward", 8)]
    assert made["layers"][0]["source"].startswith(
        "kineto-torch-2.13-cpu-digits-cnn.json.gz: trace of torch.profiler, operations of the CPU, 2 iterations; "
    )
    rows = simgd("predict digits-cnn --on cpu.json --ranks 64 --batch 8 --schedules sync --json").json["predictions"]
    layers_s = sum(sum(entry["seconds"].values()) for entry in made["layers"])
    # the update is taken from the data sheet, and takes less than a twentieth
    assert layers_s < rows[0]["compute_s"] < 1.05 * layers_s


def test_a_curve_of_several_nodes_gives_the_cluster_of_a_topology_as_many(tmp_path: Path) -> None:
    topology = tmp_path / "topo.txt"
    topology.write_text((DATA / "nvidia-smi-topo-4-h100.txt").read_text())
    made = imported([NCCL_2_NODES, f"{topology}:gpu=h100"], "two")
    assert (made.cluster.nodes, made.cluster.size) == (2, 8)
    assert made.curves[0].source.endswith("nccl-tests 2.18.3")
    bare = "\n".join("\t".join([f"GPU{n}", *("X" if m == n else "SYS" for m in range(4)), "0"]) for n in range(4))
    topology.write_text("\tGPU0\tGPU1\tGPU2\tGPU3\tCPU Affinity\n" + bare)
    with pytest.raises(ClusterError, match=r"topo.txt: shows no NIC, but another file was measured on 2 nodes"):
        imported([NCCL_2_NODES, f"{topology}:gpu=h100"], "two")


def test_files_are_recognised_by_their_content_not_by_their_name(tmp_path: Path) -> None:
    odd = tmp_path / "a:b=c.log"
    shutil.copy(NCCL, odd)
    trace = tmp_path / "trace"
    trace.write_bytes(gzip.decompress(Path(TRACE).read_bytes()))
    text = tmp_path / "machine.json"
    shutil.copy(DATA / "nvidia-smi-topo-dgx1-v100.txt", text)
    made = imported([f"{odd}:kind=all_reduce", f"{trace}:workload=digits-cnn", f"{text}:gpu=v100"], "x")
    assert (len(made.curves), len(made.layers), len(made.cluster.devices)) == (1, 2, 8)


def test_the_shipped_profile_is_completed_by_what_was_imported(tmp_path: Path) -> None:
    made = imported([f"{DATA}/osu-micro-benchmarks-7.0-cuda-allreduce-4.txt:ranks=4", V100], "mine")
    whole = catalogue.profile("dgx1-v100").updated(made)
    assert whole.library == catalogue.profile("dgx1-v100").library
    assert Network(whole.cluster, whole).seconds("all_reduce", 2**24, 4) == pytest.approx(8630.58e-6)


@pytest.mark.parametrize(
    ("specs", "on", "kind", "message"),
    [
        (
            [f"{OSU}-allreduce-64.txt", V100],
            None,
            FileError,
            "osu-micro-benchmarks-5.6.2-allreduce-64.txt: does not say how many ranks it ran on; write",
        ),
        (
            [f"{OSU}-bw.txt", V100],
            None,
            FileError,
            "bw.txt: does not say which kind of link it crossed (nvlink, pcie, ",
        ),
        (
            [f"{OSU}-bw.txt:link=string", V100],
            None,
            FileError,
            "bw.txt: link=string: must be one of nvlink, pcie, socket",
        ),
        (
            [f"{OSU}-latency.txt:ranks=2", V100],
            None,
            FileError,
            "latency.txt: 'ranks' is no fact about such a file; it takes none",
        ),
        (
            [f"{OSU}-allreduce-64.txt:rank=8", V100],
            None,
            FileError,
            "'rank' is no fact about such a file; it takes ranks, n",
        ),
        ([f"{OSU}-allreduce-64.txt:ranks=-8", V100], None, FileError, "ranks=-8: must be a whole number above 0"),
        ([f"{OSU}-allreduce-64.txt:ranks=8,ranks=8", V100], None, FileError, "'ranks=8' is no fact, or stands twice"),
        ([f"{OSU}-allreduce-64.txt:ranks=", V100], None, FileError, "'ranks=' is no fact, or stands twice"),
        (
            [NCCL, V100],
            None,
            FileError,
            "does not say which collective was measured; it must be one of all_reduce, reduce_",
        ),
        ([f"{NCCL}:kind=all_for_one", V100], None, FileError, "kind=all_for_one: must be one of all_reduce"),
        (
            [f"{NCCL}:kind=all_reduce,ranks=8", V100],
            None,
            FileError,
            "ranks=8: the file itself says 8; leave ranks out",
        ),
        (
            [f"{NCCL}:kind=all_reduce,nodes=1", V100],
            None,
            FileError,
            "nodes=1: the file itself says 1; leave nodes out",
        ),
        (
            [f"{NCCL_2_NODES}:kind=all_reduce", V100],
            None,
            FileError,
            "kind=all_reduce: the file itself says all_reduce; ",
        ),
        ([TRACE], "xeon-edr", FileError, "digits-cnn.json.gz: does not say which workload it is of; write"),
        ([f"{TRACE}:workload=alexnet"], "xeon-edr", FileError, "no operation takes the 64x3x11x11 of layer "),
        ([V100.removesuffix(":gpu=v100")], None, FileError, "does not say which GPU it is of; write"),
        (
            [H100_XML, V100],
            None,
            FileError,
            "nccl-2.22.3-topology-8-h100-vm.xml and nvidia-smi-topo-dgx1-v100.txt both ",
        ),
        (
            [V100],
            "dgx1-v100",
            FileError,
            "nvidia-smi-topo-dgx1-v100.txt describes the machine; leave --on dgx1-v100 out",
        ),
        (
            [f"{NCCL}:kind=all_reduce"],
            None,
            FileError,
            "no file describes the machine; add a topology (nvidia-smi topo -m), or name it with --on",
        ),
        (
            [f"{NCCL}:kind=all_reduce", f"{DATA}/osu-micro-benchmarks-7.5-allreduce-576.txt:ranks=8"],
            "dgx-h100",
            FileError,
            "osu-micro-benchmarks-7.5-allreduce-576.txt both hold all_reduce on 8 ranks of 1 nodes; give one of them",
        ),
        (
            [f"{OSU}-allreduce-64.txt:ranks=64,nodes=2"],
            "xeon-edr",
            ClusterError,
            "64 ranks on 2 nodes, dealt out evenly; cluster 'xeon-edr' has any number of nodes of 1 device",
        ),
        (
            [f"{DATA}/googlenet_k80_caffe_layers.csv"],
            "dgx1-v100",
            FileError,
            "googlenet_k80_caffe_layers.csv: begins with ",
        ),
        ([f"{DATA}/nobody.txt"], "dgx1-v100", FileError, "nobody.txt: there is no such file"),
        ([str(DATA)], "dgx1-v100", FileError, "data: is a folder; name a file"),
    ],
)
def test_what_cannot_be_imported_is_one_line_that_says_what_to_write(
    specs: list[str], on: str | None, kind: type[SimgdError], message: str
) -> None:
    with pytest.raises(kind) as error:
        imported(specs, "x", on)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x.txt: is empty; it must be output of nccl-tests, OSU micro-benchmarks, nvidia-smi topo -m"),
        (b"\xff\xfe\x00", "x.txt: is not text in UTF-8"),
        (
            b"Intel(R) MPI Benchmarks 2019\n#bytes t_avg\n",
            "x.txt: begins with 'Intel(R) MPI Benchmarks 2019'; it must be",
        ),
        (gzip.compress(b"# OSU MPI Latency Test v5"), "x.txt: is packed by gzip; let its name end in .gz"),
        (b"<html><body/></html>", "x.txt: its root is <html>"),
        (b'{"format": "simgd run"}', 'x.txt: begins with \'{"format": "simgd run"}\'; it must be output of'),
        (b"#" * (2**24 + 1), "x.txt: is larger than 16 MiB, and no trace of torch.profiler"),
        (
            (DATA / "nvidia-smi-topo-dgx1-v100.txt").read_bytes() + Path(NCCL).read_bytes(),
            "x.txt: holds output of nvidia-smi topo -m and of nccl-tests; keep one in a file",
        ),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_a_file_of_another_tool_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(FileError) as error:
        imported([str(tmp_path / "x.txt")], "x", "dgx1-v100")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_command_ends_with_one_line_and_writes_nothing(simgd: Simgd) -> None:
    told = simgd(f"calibrate import {OSU}-allreduce-64.txt --on xeon-edr --out x.json")
    assert (told.status, told.out) == (2, "")
    assert told.err.startswith("simgd: ")
    assert told.err.count("\n") == 1
    assert not Path("x.json").exists()
    assert simgd(f"calibrate import {V100} --out x.toml").err.startswith(
        "simgd: x.toml: a profile is written as JSON; "
    )


def test_what_was_written_is_read_back(simgd: Simgd) -> None:
    simgd(f"calibrate import {NCCL}:kind=all_reduce {H100_XML} --out lab.json.gz")
    assert files.read("lab.json.gz", Profile) == imported([f"{NCCL}:kind=all_reduce", H100_XML], "lab")
    assert json.loads(gzip.decompress(Path("lab.json.gz").read_bytes()))["format"] == "simgd profile"


def test_a_profile_needs_something_to_import() -> None:
    with pytest.raises((FileError, ProfileError), match="no file describes the machine"):
        imported([], "x")
