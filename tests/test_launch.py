"""A process finds out from its environment which rank it is, whoever launched it."""

import os
import sys
from pathlib import Path

import pytest

from executor.launch import Launched, detect, first_host, start, torch_environment
from simgd.errors import BackendError

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
HYDRA = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
SRUN = {
    "SLURM_PROCID": "6",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "2",
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",
}


@pytest.mark.parametrize(
    ("environ", "launcher", "numbers"),
    [
        (TORCHRUN, "torchrun", (5, 8, 1)),
        (HYDRA, "mpiexec", (3, 4, 1)),
        (OPEN_MPI, "Open MPI", (2, 4, 0)),
        (SRUN, "srun", (6, 8, 2)),
        (SRUN | TORCHRUN, "torchrun", (5, 8, 1)),
        (SRUN | HYDRA, "mpiexec", (3, 4, 1)),
        (SRUN | OPEN_MPI, "Open MPI", (2, 4, 0)),
        # srun --mpi=pmi2 sets both, and leaves the local rank to SLURM's variable
        (SRUN | {"PMI_RANK": "6", "PMI_SIZE": "8"}, "mpiexec", (6, 8, 2)),
    ],
)
def test_the_innermost_launcher_is_believed(environ, launcher, numbers):
    found = detect(environ)
    assert found is not None
    assert (found.launcher, (found.rank, found.ranks, found.local_rank), found.supervised) == (launcher, numbers, False)


def test_a_rank_knows_that_simgd_started_it():
    found = detect(TORCHRUN | {"SIMGD_SUPERVISED": "1"})
    assert found is not None
    assert found.supervised


@pytest.mark.parametrize(
    "environ",
    [
        pytest.param({}, id="nothing"),
        pytest.param({key: SRUN[key] for key in SRUN if key != "SLURM_STEP_ID"}, id="a batch script"),
        pytest.param(SRUN | {"SLURM_STEP_ID": str(0xFFFFFFFB)}, id="a batch script of newer SLURM"),
        pytest.param(SRUN | {"SLURM_STEP_ID": str(0xFFFFFFFA)}, id="an interactive step"),
        pytest.param(SRUN | {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, id="a shell in a step of one task"),
    ],
)
def test_what_nobody_launched_as_a_rank_is_none(environ):
    assert detect(environ) is None


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RANK": "0"}, "torchrun sets RANK, WORLD_SIZE and LOCAL_RANK; WORLD_SIZE is not set"),
        ({"PMI_SIZE": "4"}, "mpiexec sets PMI_RANK, PMI_SIZE and MPI_LOCALRANKID; PMI_RANK is not set"),
        (
            {"RANK": "0", "WORLD_SIZE": "2"},
            "torchrun sets RANK, WORLD_SIZE and LOCAL_RANK; LOCAL_RANK is not set",
        ),
        (TORCHRUN | {"RANK": "one"}, "RANK is 'one'; it should be a whole number of 0 or more"),
        (HYDRA | {"PMI_RANK": "-1"}, "PMI_RANK is '-1'; it should be a whole number of 0 or more"),
        (SRUN | {"SLURM_STEP_ID": "batch"}, "SLURM_STEP_ID is 'batch'; it should be a whole number of 0 or more"),
        (
            TORCHRUN | {"RANK": "8"},
            "RANK is 8, LOCAL_RANK 1 and WORLD_SIZE 8; ranks count from 0 and stay below the number of ranks",
        ),
    ],
)
def test_variables_that_contradict_each_other_are_an_error(environ, message):
    with pytest.raises(BackendError) as caught:
        detect(environ)
    assert str(caught.value) == message


def meeting(environ: dict[str, str]) -> tuple[str, str]:
    launched = detect(environ)
    assert launched is not None
    found = torch_environment(launched, environ)
    assert [found[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")] == [
        str(number) for number in (launched.rank, launched.ranks, launched.local_rank)
    ]
    return found["MASTER_ADDR"], found["MASTER_PORT"]


def test_an_address_that_is_set_is_taken():
    assert meeting(TORCHRUN | {"MASTER_ADDR": "head", "MASTER_PORT": "29500"}) == ("head", "29500")
    assert meeting(SRUN | {"MASTER_ADDR": "head", "MASTER_PORT": "29500"}) == ("head", "29500")


def test_ranks_of_a_step_meet_on_its_first_node_at_a_port_of_the_step():
    # 20000 + (31 * 1234 + 0) % 10000
    assert meeting(SRUN) == ("node07", "28254")
    assert meeting(SRUN | {"SLURM_STEP_ID": "1"}) == ("node07", "28255")
    assert meeting(SRUN | {"MASTER_PORT": "29500"}) == ("node07", "29500")
    without_nodes = {key: SRUN[key] for key in SRUN if key != "SLURM_STEP_NODELIST"}
    assert meeting(without_nodes) == ("10.0.0.1", "28254")


def test_ranks_of_one_mpiexec_on_one_host_meet_there():
    port = str(20_000 + os.getppid() % 10_000)
    assert meeting(HYDRA) == ("127.0.0.1", port)
    assert meeting(OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}) == ("127.0.0.1", port)


@pytest.mark.parametrize("environ", [OPEN_MPI, HYDRA | {"MPI_LOCALNRANKS": "2"}, TORCHRUN])
def test_where_rank_0_is_unknown_the_error_says_what_to_set(environ):
    with pytest.raises(BackendError, match="set MASTER_ADDR to its host and MASTER_PORT to a free port there"):
        meeting(environ)


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("node3", "node3"),
        ("node[01-03,7]", "node01"),
        ("node[7,01-03]", "node7"),
        ("a1,b[2-3]", "a1"),
        ("rack[2-4]n[10-12]-ib", "rack2n10-ib"),
    ],
)
def test_the_first_host_of_a_list(nodelist, host):
    assert first_host(nodelist) == host


@pytest.mark.parametrize("nodelist", ["", ",a", "node[", "node[]", "node]"])
def test_what_is_no_list_of_hosts_is_an_error(nodelist):
    with pytest.raises(BackendError, match="is no list of hosts; set MASTER_ADDR"):
        first_host(nodelist)


def test_without_mpiexec_there_is_no_mpi(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendError, match="there is no mpiexec"):
        start("mpi", 2, ["true"], tmp_path)


def test_a_command_that_does_not_exist_is_an_error(tmp_path: Path):
    with pytest.raises(BackendError, match="there is no such program"):
        start("gloo", 2, [str(tmp_path / "nothing")], tmp_path)


def test_ranks_that_simgd_starts_are_told_which_they_are(tmp_path, capfd):
    report = "import os; from executor.launch import detect; print(detect(os.environ), os.environ['MASTER_ADDR'])"
    with start("gloo", 2, [sys.executable, "-c", report], tmp_path) as job:
        while not job.over:
            pass
    rank_0 = Launched(launcher="torchrun", rank=0, ranks=2, local_rank=0, supervised=True)
    assert (capfd.readouterr().out, job.errors(0), job.status) == (f"{rank_0} 127.0.0.1\n", "", 0)
