"""Every backend keeps the same promises: one group of ranks for each backend and size, one test for each promise."""

import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace
from typing import Any, get_args

import backend_contract
import pytest
from backend_contract import CHECKS, Report
from groups import MPIEXEC, run_ranks

from executor.backends import loopback
from executor.backends.mpi import Mpi, open_mpi
from simgd.errors import BackendError
from simgd.run import BackendName

#: Backend, ranks, kinds of buffers. Ranks that need torch spend seconds on its import: only some groups do.
GROUPS = (
    ("loopback", 1, ("numpy",)),
    ("loopback", 2, ("numpy", "torch")),
    ("loopback", 3, ("numpy",)),
    ("loopback", 4, ("numpy",)),
    ("mpi", 1, ("numpy",)),
    ("mpi", 2, ("numpy", "torch")),
    ("mpi", 3, ("numpy",)),
    ("mpi", 4, ("numpy",)),
    ("gloo", 1, ("numpy", "torch")),
    ("gloo", 2, ("numpy", "torch")),
    ("gloo", 3, ("numpy", "torch")),
    ("nccl", 2, ("numpy", "torch")),
)


def why_not(name: str, ranks: int, kinds: Sequence[str]) -> str:
    """Return why this group cannot run here, or nothing."""
    if "torch" in kinds and importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    if name == "mpi" and (importlib.util.find_spec("mpi4py") is None or not MPIEXEC.exists()):
        return f"no mpi4py, or no mpiexec beside {sys.executable}"
    if name == "nccl":
        import torch

        if torch.cuda.device_count() < ranks:
            return f"nccl on {ranks} ranks needs {ranks} GPUs, this host has {torch.cuda.device_count()}"
    return ""


@cache
def reports(name: str, ranks: int, kinds: Sequence[str]) -> list[Report]:
    """Run the group once, whoever asks first, and return what each rank reports."""
    if name == "loopback":
        return loopback.run(ranks, lambda backend: backend_contract.examine(backend, kinds))
    with TemporaryDirectory() as folder:
        output = run_ranks(name, ranks, [backend_contract.__file__, name, folder, *kinds])
        files = [Path(folder) / f"{rank}.json" for rank in range(ranks)]
        return [json.loads(file.read_text()) if file.exists() else {"": f"no report; {output}"} for file in files]


@pytest.mark.parametrize(
    ("group", "check"),
    [
        pytest.param((name, ranks, kinds), f"{check.__name__} {kind}", id=f"{name}-{ranks}-{check.__name__}-{kind}")
        for name, ranks, kinds in GROUPS
        for kind in kinds
        for check in CHECKS
    ],
)
def test_a_backend_keeps_its_promise(group: tuple[str, int, tuple[str, ...]], check: str):
    reason = why_not(*group)
    if reason:
        pytest.skip(reason)
    said = {
        f"rank {rank}": report.get(check) or f"not reached: {report}"
        for rank, report in enumerate(reports(*group))
        if report.get(check) != "ok"
    }
    assert not said


def test_every_backend_is_under_contract():
    assert {name for name, _, _ in GROUPS} == set(get_args(BackendName))


# What is missing is said in one line, before any rank waits for another


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(BackendError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def fake_mpi(**given: object) -> Any:
    """Return what `open_mpi` asks of mpi4py.MPI before it starts; no test's own process starts MPI."""
    return SimpleNamespace(
        **{
            "Get_library_version": lambda: "Some MPI v1.2, package: distribution",
            "COMM_WORLD": SimpleNamespace(size=1),
            "Query_thread": lambda: 2,
            "THREAD_MULTIPLE": 3,
        }
        | given
    )


@pytest.fixture
def mpi4py(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An mpi4py without its MPI."""
    module: Any = ModuleType("mpi4py")
    module.__version__ = "4.1.2"
    monkeypatch.setitem(sys.modules, "mpi4py", module)
    for variable in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        monkeypatch.delenv(variable, raising=False)
    return module


def test_mpi_without_mpi4py_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert refused(open_mpi) == (
        "backend mpi needs mpi4py and an MPI library; pip install 'simgd[mpich]' brings both, "
        "or 'simgd[mpi]' beside a cluster's own MPI"
    )


def test_mpi4py_without_a_library_says_what_to_load(mpi4py: Any):
    def no_library(name: str) -> None:
        # what mpi4py raises, with a second line
        raise RuntimeError("cannot load MPI library\nlibmpi.so: cannot open shared object file")

    mpi4py.__getattr__ = no_library
    assert refused(open_mpi) == (
        "backend mpi: mpi4py 4.1.2 loads no MPI library (cannot load MPI library); "
        "pip install 'simgd[mpich]' brings one, or load the cluster's MPI module"
    )


def test_the_launcher_of_another_mpi_is_recognised(mpi4py: Any, monkeypatch: pytest.MonkeyPatch):
    """Every process would train alone, and report a wonderful speed-up."""
    mpi4py.MPI = fake_mpi()
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    said = refused(open_mpi)
    assert said.startswith("backend mpi: OMPI_COMM_WORLD_SIZE says 4 ranks, Some MPI v1.2")
    assert said.endswith(" sees 1; launcher and library are of different MPIs")


def test_a_library_that_threads_may_not_share_is_refused_to_threads(mpi4py: Any):
    mpi4py.MPI = fake_mpi()
    assert "was built without MPI_THREAD_MULTIPLE" in refused(lambda: open_mpi(threads=True))


def test_mpi_refuses_bfloat16():
    backend = Mpi(fake_mpi(COMM_WORLD=SimpleNamespace(Dup=lambda: SimpleNamespace(rank=3, size=4))))
    assert refused(lambda: backend.all_reduce(SimpleNamespace(dtype="torch.bfloat16"))) == (
        "backend mpi, rank 3: MPI has no bfloat16; send float32, or choose backend gloo or nccl"
    )


@pytest.mark.parametrize("name", ["gloo", "nccl"])
def test_torch_without_a_launcher_says_how_to_start(name: Any, monkeypatch: pytest.MonkeyPatch):
    from executor.backends import distributed

    for variable in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert refused(lambda: distributed.open_distributed(name, timeout_s=1)) == (
        f"backend {name}: RANK, MASTER_ADDR, MASTER_PORT not in the environment; start under torchrun, or with --ranks"
    )


def test_nccl_says_what_this_machine_lacks(monkeypatch: pytest.MonkeyPatch):
    from executor.backends import distributed

    for variable in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(variable, "1")
    cuda, dist = distributed.torch.cuda, distributed.dist

    def said() -> str:
        return refused(lambda: distributed.open_distributed("nccl", timeout_s=1, device_index=2))

    monkeypatch.setattr(dist, "is_nccl_available", lambda: False)
    assert "was built without NCCL; install a CUDA build, or choose backend gloo" in said()
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    monkeypatch.setattr(cuda, "is_available", lambda: False)
    assert "finds no CUDA GPU here; choose backend gloo or mpi" in said()
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "device_count", lambda: 2)
    assert said() == "backend nccl: GPU 2 is wanted, this host has 2; each rank needs its own"
    monkeypatch.setattr(cuda, "device_count", lambda: 8)
    monkeypatch.setattr(cuda, "get_device_capability", lambda index: (6, 0))
    monkeypatch.setattr(cuda, "get_device_name", lambda index: "Tesla P100")
    monkeypatch.setattr(cuda, "get_arch_list", lambda: ["sm_75", "sm_90"])
    assert said().endswith(
        "has code for sm_75, sm_90, none that runs on GPU 2, Tesla P100 (sm_60); install a build that has"
    )
