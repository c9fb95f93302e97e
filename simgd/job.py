"""What is trained, and how: a workload with the batch, precision, optimizer and inputs of one rank."""

from typing import Literal

from simgd.errors import WorkloadError, unknown
from simgd.files import Value
from simgd.profile import Dtype
from simgd.workload import Workload

#: By optimizer: (bytes that an update reads and writes for each parameter, bytes of state for each parameter), at 4
#: bytes a number. SGD with momentum reads gradient, momentum and weight and writes the last two; AdamW has two moments.
OPTIMIZERS: dict[str, tuple[int, int]] = {"sgd": (20, 4), "adamw": (28, 8)}

#: Bytes of one element of an activation. `bf16` keeps weights, gradients and updates in 32 bits (autocast).
ACTIVATION_BYTES: dict[Dtype, int] = {"fp32": 4, "tf32": 4, "bf16": 2}


class Job(Value, frozen=True, kw_only=True):
    """One training iteration of one rank: `batch` samples, of `tokens` tokens where the workload has a sequence."""

    workload: Workload
    batch: int
    tokens: int
    dtype: Dtype = "fp32"
    wire: Literal["fp32", "bf16"] = "fp32"
    optimizer: str = "sgd"

    def __post_init__(self) -> None:
        name = self.workload.name
        if self.batch < 1:
            raise WorkloadError(f"workload {name!r}: a batch of {self.batch} is none; it must be 1 or more")
        if self.workload.tokens == 0 and self.tokens:
            raise WorkloadError(f"workload {name!r}: has no sequence; leave --seq-len out")
        if self.workload.tokens and self.tokens < 1:
            raise WorkloadError(f"workload {name!r}: a sequence of {self.tokens} tokens is none")
        if self.workload.max_tokens and self.tokens > self.workload.max_tokens:
            raise WorkloadError(f"workload {name!r}: {self.tokens} tokens are more than its {self.workload.max_tokens}")
        if self.optimizer not in OPTIMIZERS:
            raise unknown("optimizer", self.optimizer, OPTIMIZERS)


def job(
    workload: Workload,
    *,
    batch: int | None = None,
    tokens: int | None = None,
    dtype: Dtype = "fp32",
    wire: Literal["fp32", "bf16"] = "fp32",
    optimizer: str = "sgd",
) -> Job:
    """Return the job, with the workload's usual batch and sequence length where none is given."""
    return Job(
        workload=workload,
        batch=workload.batch if batch is None else batch,
        tokens=workload.tokens if tokens is None else tokens,
        dtype=dtype,
        wire=wire,
        optimizer=optimizer,
    )
