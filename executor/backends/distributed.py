"""torch.distributed: gloo on host memory, NCCL on GPUs.

Model
    The ranks are those whose environment says so (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT, LOCAL_RANK, as torchrun
    sets them). Under "nccl" there are two libraries: buffers on the GPU go through NCCL; buffers on the host,
    `exchange` and `barrier` go through gloo. Both have threads of their own: communication progresses without being
    asked.

What it leaves out
    Messages between GPUs in both directions at once: NCCL runs what two ranks send each other one after another, so
    every rank must start a pair's messages in the same order.
"""
# ruff: noqa: D102 (the protocol says what a backend's methods do)

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal, TypeAlias

import numpy as np

from executor.backends import part
from executor.backends.protocol import Buffer
from simgd.errors import BackendError
from simgd.run import BackendName

try:
    import torch
    import torch.distributed as dist
except ImportError:
    raise BackendError("backends gloo and nccl need torch; pip install 'simgd[torch]' brings it") from None

Name: TypeAlias = Literal["gloo", "nccl"]

# torch 2.13 renamed these two and warns where the old names are used; 2.11 has the old ones only.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def open_distributed(name: Name, *, timeout_s: float, device_index: int | None = None) -> "Distributed":
    """Join the other ranks and return this rank's side; *device_index* is its GPU, LOCAL_RANK where not given."""
    missing = [key for key in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if key not in os.environ]
    if missing:
        raise BackendError(
            f"backend {name}: {', '.join(missing)} not in the environment; start under torchrun, or with --ranks"
        )
    if name == "gloo":
        if not dist.is_gloo_available():
            raise BackendError(f"backend gloo: torch {torch.__version__} was built without gloo; install another build")
        backend, device, library = "gloo", None, f"gloo of torch {torch.__version__}"
    else:
        backend, device = "cpu:gloo,cuda:nccl", _gpu(device_index)
        number = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
        capability = "".join(map(str, torch.cuda.get_device_capability(device)))
        library = (
            f"NCCL {number} of torch {torch.__version__} (sm_{capability} of {torch.cuda.get_device_name(device)})"
        )
    with _telling(f"backend {name}, rank {os.environ['RANK']}: start"):
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s), device_id=device)
    return Distributed(name, library)


class Distributed:
    """One rank; see `protocol.Backend`."""

    def __init__(self, name: Name, library: str) -> None:
        self.name: BackendName = name
        self.device: Literal["cpu", "cuda"] = "cuda" if name == "nccl" else "cpu"
        self.rank = dist.get_rank()
        self.ranks = dist.get_world_size()
        self.library = library

    def all_reduce(self, buffer: Buffer) -> "_Collective":
        with self._call("all_reduce") as place:
            return _Collective(place, dist.all_reduce(_tensor(buffer), async_op=True))

    def reduce_scatter(self, buffer: Buffer) -> "_Collective":
        tensor = _tensor(buffer)
        mine = part(tensor, self.rank, self.ranks)
        with self._call("reduce_scatter") as place:
            return _Collective(place, _reduce_scatter(mine, tensor, async_op=True))

    def all_gather(self, buffer: Buffer) -> "_Collective":
        tensor = _tensor(buffer)
        mine = part(tensor, self.rank, self.ranks)
        with self._call("all_gather") as place:
            return _Collective(place, _all_gather(tensor, mine, async_op=True))

    def broadcast(self, buffer: Buffer, root: int) -> "_Collective":
        with self._call("broadcast") as place:
            return _Collective(place, dist.broadcast(_tensor(buffer), root, async_op=True))

    def send(self, buffer: Buffer, to: int) -> "_Collective | _HostMessage":
        tensor = _tensor(buffer)
        with self._call("send") as place:
            return _message(place, tensor, dist.isend(tensor, to))

    def receive(self, buffer: Buffer, source: int) -> "_Collective | _HostMessage":
        tensor = _tensor(buffer)
        with self._call("receive") as place:
            return _message(place, tensor, dist.irecv(tensor, source))

    def exchange(self, value: object) -> list[Any]:
        values: list[Any] = [None] * self.ranks
        with self._call("exchange"):
            dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        # torch's own would go through NCCL and make the host wait for all work on the GPU.
        with self._call("barrier"):
            dist.all_reduce(torch.zeros(1))

    def clock_ns(self) -> int:
        return time.perf_counter_ns()

    def close(self) -> None:
        with self._call("close"):
            dist.destroy_process_group()

    def abort(self, status: int) -> None:
        os._exit(status)

    @contextmanager
    def _call(self, call: str) -> Iterator[str]:
        place = f"backend {self.name}, rank {self.rank}: {call}"
        with _telling(place):
            yield place


class _Collective:
    """A collective, or a message between GPUs."""

    def __init__(self, place: str, work: Any) -> None:
        self._place = place
        self._work = work

    def done(self) -> bool:
        ended: bool = self._work.is_completed()
        if ended:
            self.wait()  # returns at once, and raises what went wrong
        return ended

    def wait(self) -> None:
        with _telling(self._place):
            self._work.wait()


class _HostMessage:
    """A message through gloo, which knows that it has ended only where somebody waits: here a thread, if asked."""

    def __init__(self, place: str, work: Any) -> None:
        self._place = place
        self._work = work
        self._waiter: threading.Thread | None = None
        self._error: BackendError | None = None

    def done(self) -> bool:
        if self._waiter is None:
            self._waiter = threading.Thread(target=self._wait_here, daemon=True)
            self._waiter.start()
        if self._waiter.is_alive():
            return False
        self.wait()
        return True

    def wait(self) -> None:
        if self._waiter is None:
            self._wait_here()
        else:
            self._waiter.join()
        if self._error is not None:
            raise self._error

    def _wait_here(self) -> None:
        try:
            with _telling(self._place):
                self._work.wait()
        except BackendError as error:
            self._error = error


def _message(place: str, tensor: torch.Tensor, work: Any) -> _Collective | _HostMessage:
    return _HostMessage(place, work) if tensor.device.type == "cpu" else _Collective(place, work)


def _tensor(buffer: Buffer) -> torch.Tensor:
    """Return *buffer* as a tensor on the same memory."""
    return torch.from_numpy(buffer) if isinstance(buffer, np.ndarray) else buffer.detach()


def _gpu(index: int | None) -> torch.device:
    """Return the GPU of this rank, made the current one, or say why there is none."""
    build = f"backend nccl: torch {torch.__version__}"
    if not dist.is_nccl_available():
        raise BackendError(f"{build} was built without NCCL; install a CUDA build, or choose backend gloo")
    if not torch.cuda.is_available():
        raise BackendError(f"{build} finds no CUDA GPU here; choose backend gloo or mpi")
    if index is None:
        if "LOCAL_RANK" not in os.environ:
            raise BackendError("backend nccl: LOCAL_RANK not in the environment; start under torchrun, or with --ranks")
        index = int(os.environ["LOCAL_RANK"])
    found = torch.cuda.device_count()
    if not 0 <= index < found:
        raise BackendError(f"backend nccl: GPU {index} is wanted, this host has {found}; each rank needs its own")
    capability = torch.cuda.get_device_capability(index)
    architectures = torch.cuda.get_arch_list()
    if not runs_on(capability, architectures):
        raise BackendError(
            f"{build} has code for {', '.join(architectures)}, none that runs on GPU {index}, "
            f"{torch.cuda.get_device_name(index)} (sm_{capability[0]}{capability[1]}); install a build that has"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def runs_on(capability: tuple[int, int], architectures: list[str]) -> bool:
    """Say whether code for one of *architectures* runs on a GPU of this *capability*.

    Machine code (sm) runs on GPUs of the same major and no smaller minor number, intermediate code (compute) on all
    that are no older; a letter ties it to its very number.

    >>> runs_on((7, 0), ["sm_75", "sm_80", "sm_90"]), runs_on((8, 9), ["sm_75", "sm_80", "sm_90"])
    (False, True)
    >>> runs_on((12, 0), ["sm_90", "compute_90"]), runs_on((10, 0), ["sm_90a", "compute_90a"])
    (True, False)
    """
    for architecture in architectures:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", architecture)
        if not match:
            continue
        kind, major, minor, letter = match[1], int(match[2]), int(match[3]), match[4]
        if (major, minor) == capability:
            return True
        if not letter and (major, minor) < capability and (kind == "compute" or major == capability[0]):
            return True
    return False


@contextmanager
def _telling(place: str) -> Iterator[None]:
    """Turn torch's errors into a line that begins with *place*."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError) as error:
        raise BackendError(f"{place}: {first_sentence(str(error))}") from None


def first_sentence(message: str) -> str:
    r"""Return the first sentence of an error of torch, without the places in its source.

    >>> first_sentence("[/x/gloo/tcp/pair.cc:537] Read error [127.0.0.1]:20: Connection reset by peer. This is often")
    'Read error [127.0.0.1]:20: Connection reset by peer'
    >>> first_sentence("NCCL error in: /x/NCCLUtils.hpp:94, unhandled system error, NCCL version 2.28.3\nLast error:")
    'NCCL error in: unhandled system error, NCCL version 2.28.3'
    """
    line = next((line.strip() for line in message.splitlines() if line.strip()), "no message")
    line = re.sub(r"\[?(?:enforce fail at )?/\S+\.(?:cc|cpp|h|hpp|cu|cuh):\d+\]?,?\s*", "", line)
    sentence = re.split(r"\.\s+(?=[A-Z])", line)[0].strip().removesuffix(".")
    return sentence if len(sentence) <= 200 else f"{sentence[:197]}..."
