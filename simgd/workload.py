"""How much work one training iteration is: layers, tensors, FLOPs, bytes; never a duration.

Model
    A *layer* is a module that holds parameters directly; work without parameters (activations, pooling, attention
    products) belongs to the layer before it. Layers stand in the order of their first forward; gradients arrive in
    `backward_order`, and within a layer in the order in which its tensors stand. A tensor that two layers use is one
    tensor, of the layer that uses it first; the other names it under `shared`. Its gradient is complete after the
    backward of its owner, which comes last.

    Every amount of work is a polynomial of the batch and of the sequence length, see `Amount`. Bytes count 4 bytes an
    element; `costs` halves them for 16-bit types.

Known not to hold
    FLOPs are those of matrix products and convolutions only; the other arithmetic is taken to hide behind the bytes
    that it moves. Work that depends on the values of the data (early exits, mixtures of experts) cannot be said.
"""

from math import prod

import msgspec

from simgd.errors import WorkloadError
from simgd.files import LARGEST, Document, Value, check_distinct, check_not_negative, check_positive

Scalar = str | int | float | bool


class Amount(Value, frozen=True, kw_only=True):
    """``fixed + fixed_per_token*s + fixed_per_token2*s*s + b*(per_sample + per_token*s + per_token2*s*s)``.

    b is the number of samples, s that of tokens in each; a causal mask that all samples share grows as s*s alone.

    >>> Amount(fixed=10, per_sample=3).at(batch=4)
    22.0
    """

    fixed: float = 0.0
    fixed_per_token: float = 0.0
    fixed_per_token2: float = 0.0
    per_sample: float = 0.0
    per_token: float = 0.0
    per_token2: float = 0.0

    def __post_init__(self) -> None:
        # A single coefficient may be negative (a fit through exact counts can need it); the amount may not be.
        for name in self.__struct_fields__:
            if not abs(getattr(self, name)) <= LARGEST:
                raise WorkloadError(f"{name} is {getattr(self, name)}; it must be a number up to {LARGEST}")

    def at(self, batch: float, tokens: float = 0.0) -> float:
        """Return the amount for *batch* samples of *tokens* tokens each."""
        once = self.fixed + self.fixed_per_token * tokens + self.fixed_per_token2 * tokens * tokens
        return once + batch * (self.per_sample + self.per_token * tokens + self.per_token2 * tokens * tokens)


class Work(Value, frozen=True, kw_only=True):
    """The work of one pass through one layer.

    `flops` are those of matrix products and convolutions (a multiplication and an addition are 2), `matrix_bytes` what
    these operations read and write, `bytes` what all operations read and write, each at 4 bytes an element; `kernels`
    counts the operations launched.
    """

    flops: Amount = Amount()
    matrix_bytes: Amount = Amount()
    bytes: Amount = Amount()
    kernels: int = 0

    def __post_init__(self) -> None:
        check_not_negative(WorkloadError, "work", kernels=self.kernels)


class Tensor(Value, frozen=True, array_like=True):
    """A parameter tensor; written ``[name, shape]``."""

    name: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if any(size <= 0 for size in self.shape) or self.elements > 2**50:
            raise WorkloadError(f"tensor {self.name!r}: shape {list(self.shape)} is not that of a tensor")

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)


class Layer(Value, frozen=True, kw_only=True):
    """One module that holds parameters, with the work of its forward and its backward pass.

    `forward` and `backward` are None where nobody counted them (a table of measured times); such a workload can be
    predicted only with a profile that holds its times. `kept` are the bytes kept from forward for backward.
    """

    name: str
    tensors: tuple[Tensor, ...] = ()
    shared: tuple[str, ...] = ()
    forward: Work | None = None
    backward: Work | None = None
    kept: Amount = Amount()

    @property
    def elements(self) -> int:
        """Number of parameters that the layer owns."""
        return sum(tensor.elements for tensor in self.tensors)


class Source(Value, frozen=True, kw_only=True):
    """Where a workload was counted: enough to count it again."""

    function: str
    arguments: dict[str, Scalar] = msgspec.field(default_factory=dict)
    versions: dict[str, str] = msgspec.field(default_factory=dict)


class Workload(Document, frozen=True, kw_only=True, tag="simgd workload"):
    """The model being trained, and the inputs of one training step.

    `sample` names what the batch counts (image, sequence, node); `batch` is the usual batch of one rank; `tokens` the
    usual sequence length, 0 for inputs that have none.
    """

    name: str
    layers: tuple[Layer, ...]
    description: str = ""
    source: Source | None = None
    sample: str = "sample"
    batch: int = 32
    tokens: int = 0
    max_tokens: int = 0
    backward_order: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        where = f"workload {self.name!r}"
        if not self.layers:
            raise WorkloadError(f"{where}: has no layers")
        check_positive(WorkloadError, where, batch=self.batch)
        check_not_negative(WorkloadError, where, tokens=self.tokens, max_tokens=self.max_tokens)
        check_distinct(WorkloadError, where, "layer", [layer.name for layer in self.layers])
        owned: list[str] = []
        for layer in self.layers:
            for name in layer.shared:
                if name not in owned:
                    raise WorkloadError(f"{where}: layer {layer.name!r} shares {name!r}, which no layer before it owns")
            owned += [tensor.name for tensor in layer.tensors]
        check_distinct(WorkloadError, where, "tensor", owned)
        if not owned:
            raise WorkloadError(f"{where}: has no parameters")
        if self.backward_order and sorted(self.backward_order) != sorted(layer.name for layer in self.layers):
            raise WorkloadError(f"{where}: backward_order must name every layer once")
        for layer in self.layers:
            self.check_amounts(layer, self.batch, self.tokens)

    def check_amounts(self, layer: Layer, batch: int, tokens: int) -> None:
        """Raise WorkloadError if *layer* has less than no work: a fit that was stretched too far."""
        amounts = {"kept": layer.kept}
        for direction, work in (("forward", layer.forward), ("backward", layer.backward)):
            if work is not None:
                amounts |= {f"{direction}.{name}": getattr(work, name) for name in ("flops", "matrix_bytes", "bytes")}
        for name, amount in amounts.items():
            found = amount.at(batch, tokens)
            if found < 0:
                size = f"{batch} samples" + (f" of {tokens} tokens" if tokens else "")
                raise WorkloadError(
                    f"workload {self.name!r}: layer {layer.name!r}: {name} is {found:.4g} for {size}; it must be 0 or "
                    "more"
                )

    @property
    def parameters(self) -> int:
        """Number of parameters; a tied tensor counts once."""
        return sum(layer.elements for layer in self.layers)

    @property
    def backward(self) -> tuple[Layer, ...]:
        """The layers in the order in which their backward passes end."""
        if not self.backward_order:
            return tuple(reversed(self.layers))
        by_name = {layer.name: layer for layer in self.layers}
        return tuple(by_name[name] for name in self.backward_order)

    @property
    def arrivals(self) -> tuple[tuple[Layer, Tensor], ...]:
        """Every tensor with its owner, in the order in which gradients are complete."""
        return tuple((layer, tensor) for layer in self.backward for tensor in layer.tensors)

    def users(self) -> dict[str, tuple[str, ...]]:
        """Return, for each tensor, the layers whose passes read it."""
        found: dict[str, list[str]] = {}
        for layer in self.layers:
            for name in [tensor.name for tensor in layer.tensors] + list(layer.shared):
                found.setdefault(name, []).append(layer.name)
        return {name: tuple(layers) for name, layers in found.items()}

    def counted(self) -> bool:
        """Say whether the work of every layer is known."""
        return all(layer.forward is not None and layer.backward is not None for layer in self.layers)
