"""One training step on the meta device, and what each of its operations reads, writes and computes.

Model
    The step runs forward, loss and backward once, without memory and without values. Each operation belongs to a
    layer: in the forward pass the layer that was entered last, or whose parameter was used last; in the backward pass
    the layer of the operation whose gradient it computes (by the sequence number of the autograd node); adding up the
    gradients of a value that was used twice belongs to the layer whose backward was last. Work before the first layer
    belongs to the first, work behind the last one (the loss) to the last.

    A view costs nothing. Every other operation counts as one kernel, which reads its arguments and writes its results
    once; what a broadcast repeats is read once, and a lookup (embedding, index) reads what it returns. Bytes are those
    of the dtype: 4 for a float, 1 for a mask, 8 for an index.

    Dropout and attention are those of a GPU: one fused kernel each, which keeps a mask of bytes, or no matrix of
    tokens by tokens.

Known not to hold
    Libraries split some operations into several kernels (a convolution's backward) and merge others; workspaces are
    not counted. A module that asks for values gets an answer only for all (true) and any (false): regular inputs.
"""

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from executor.networks.case import ROOT, Case, one_line
from simgd.errors import WorkloadError

aten = torch.ops.aten

Direction = Literal["forward", "backward"]

#: They give memory and launch nothing.
_FREE = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided, aten._unsafe_view}

#: These overwrite, or only look like, their first argument: they do not read it.
_OVERWRITE = {
    *(aten.copy_, aten.fill_, aten.zero_, aten.bernoulli_, aten.normal_, aten.uniform_, aten.random_),
    *(aten.ones_like, aten.zeros_like, aten.full_like, aten.rand_like, aten.randn_like),
    *(aten.new_ones, aten.new_zeros, aten.new_full),
}

#: These read of the argument at this place only as much as they return.
_LOOKUP = {aten.embedding: 0, aten.index_select: 0, aten.index: 0, aten.gather: 0, aten.nll_loss_forward: 0}

#: These take the argument at this place for its shape alone.
_SHAPE_ONLY = {aten.nll_loss_backward: 1}


@dataclass(slots=True)
class Tally:
    """The work of one layer in one direction, in numbers."""

    flops: int = 0
    matrix_bytes: int = 0
    bytes: int = 0
    kernels: int = 0


@dataclass(slots=True)
class Step:
    """What one step did. Layers are names of modules and stand in the order of their first forward.

    `uses` lists the parameters that each layer reads, in the order of their first use; `arrived` the parameters in the
    order in which their gradients were complete; `ended` the layers in the order in which their last backward work was
    done.
    """

    layers: list[str] = field(default_factory=list)
    uses: dict[str, list[str]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    arrived: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    work: dict[tuple[str, Direction], Tally] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)


def trace(case: Case, *, batch: int, tokens: int, layers: list[str] | None = None, where: str) -> Step:
    """Return what one step of a *case* on the meta device does; *where* names it in errors.

    *layers* are the modules that use parameters, as an earlier trace found them; without them the `work` and `kept` of
    the result are of no use.
    """
    recorder = _Recorder(case.module, layers or [], where)
    case.module.train()
    case.module.zero_grad(set_to_none=True)
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.device("meta"))
            inputs = case.example(batch, tokens, "meta")
            stack.enter_context(recorder.watching())
            stack.enter_context(_as_on_gpu())
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(recorder.keep, lambda tensor: tensor))
            stack.enter_context(recorder)
            loss = case.loss(case.module, inputs)
            if not isinstance(loss, Tensor) or loss.ndim != 0 or loss.grad_fn is None:
                raise WorkloadError(f"{where}: the loss must be a scalar tensor that depends on the parameters")
            recorder.direction = "backward"
            loss.backward()  # type: ignore[no-untyped-call]
    except WorkloadError:
        raise
    except Exception as error:
        if isinstance(error, NotImplementedError) and "data-independent" in str(error):
            raise _depends_on_data(where) from error  # nonzero and the like: nobody knows how large the result is
        shape = f"batch {batch}" + (f", {tokens} tokens" if tokens else "")
        raise WorkloadError(f"{where}: a step on the meta device failed ({shape}): {one_line(error)}") from error
    finally:
        case.module.zero_grad(set_to_none=True)
    return recorder.step


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation below autograd, and adds it to the layer that it belongs to."""

    def __init__(self, module: nn.Module, layers: list[str], where: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.step = Step()
        self.direction: Direction = "forward"
        self._module, self._where = module, where
        self._is_layer = dict.fromkeys(layers, True)
        self._stack = [ROOT]  # names of the modules that run, innermost last
        self._current = layers[0] if layers else ROOT
        # A node of the autograd graph with number n belongs to the last layer whose start is at most n.
        self._starts, self._started = [-1], [self._current]
        self._parameters = {_storage(parameter): name for name, parameter in module.named_parameters()}
        self._constants = self._parameters | {_storage(buffer): name for name, buffer in module.named_buffers()}
        self._kept: dict[int, Tensor] = {}
        self._answers: dict[int, tuple[Tensor, bool]] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Follow which module runs, and which gradients arrive."""
        hooks: list[Any] = []
        for name, module in self._module.named_modules():
            if name:
                hooks.append(module.register_forward_pre_hook(lambda *_, name=name: self._enter(name)))
                hooks.append(module.register_forward_hook(lambda *_: self._leave(), always_call=True))
        for name, parameter in self._module.named_parameters():
            if parameter.requires_grad:
                # torch's stubs leave this one untyped
                register: Any = parameter.register_post_accumulate_grad_hook
                hooks.append(register(lambda _, name=name: self.step.arrived.append(name)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def keep(self, tensor: Tensor) -> Tensor:
        """Note a tensor that autograd saves for the backward pass; each storage counts once, parameters do not."""
        key = _storage(tensor)
        if key not in self._constants and key not in self._kept:
            self._kept[key] = tensor  # alive until the end, or another storage could get its address
            nbytes = tensor.untyped_storage().nbytes()
            self.step.kept[self._current] = self.step.kept.get(self._current, 0) + nbytes
        return tensor.detach()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default:
            return self._answer(args[0])
        self._find_layer(args)
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet in (aten.all, aten.any):
            self._answers[id(out)] = (out, packet is aten.all)
        if not func.is_view and packet not in _FREE and any(isinstance(found, Tensor) for found in tree_iter(out)):
            self._add(func, args, kwargs, out)
        return out

    def _enter(self, name: str) -> None:
        self._stack.append(name)
        self.step.calls[name] = self.step.calls.get(name, 0) + 1
        if name not in self.step.layers:
            self.step.layers.append(name)
        if name in self._is_layer:
            self._start(name, torch._C._autograd._get_sequence_nr())

    def _leave(self) -> None:
        self._stack.pop()

    def _start(self, name: str, sequence: int) -> None:
        if name != self._current:
            self._current = name
            self._starts.append(sequence)
            self._started.append(name)

    def _find_layer(self, args: tuple[Any, ...]) -> None:
        if self.direction == "backward":
            node = torch._C._current_autograd_node()
            # Nodes that gather the gradients of leaves have the largest number there is: they keep the layer.
            if node is not None and (number := node._sequence_nr()) < 2**63:
                self._current = self._started[bisect_right(self._starts, number) - 1]
            return
        for tensor in tree_iter(args):
            if isinstance(tensor, Tensor) and (name := self._parameters.get(_storage(tensor))) is not None:
                user = self._stack[-1]
                used = self.step.uses.setdefault(user, [])
                if name not in used:
                    used.append(name)
                if user in self._is_layer:
                    # Autograd made the node of this operation just before, if it needs one.
                    self._start(user, torch._C._autograd._get_sequence_nr() - 1)

    def _add(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        packet = func._overloadpacket
        written = sum(_nbytes(found) for found in tree_iter(out) if isinstance(found, Tensor))
        read = 0
        for place, argument in enumerate(chain(args, kwargs.values())):
            if (place == 0 and packet in _OVERWRITE) or _SHAPE_ONLY.get(packet) == place:
                continue
            found = sum(_nbytes(tensor) for tensor in tree_iter(argument) if isinstance(tensor, Tensor))
            read += _looked_up(packet, args, written) if _LOOKUP.get(packet) == place else found
        tally = self.step.work.setdefault((self._current, self.direction), Tally())
        tally.kernels += 1
        tally.bytes += read + written
        if packet in flop_registry:
            tally.flops += flop_registry[packet](*args, **kwargs, out_val=out)
            tally.matrix_bytes += read + written
        if self.direction == "backward" and self.step.ended[-1:] != [self._current]:
            if self._current in self.step.ended:
                self.step.ended.remove(self._current)
            self.step.ended.append(self._current)

    def _answer(self, tensor: Tensor) -> bool:
        if id(tensor) not in self._answers:
            raise _depends_on_data(self._where)
        return self._answers[id(tensor)][1]


def _depends_on_data(where: str) -> WorkloadError:
    return WorkloadError(f"{where}: the module asks for a value of its data; its work must not depend on it")


@contextmanager
def _as_on_gpu() -> Iterator[None]:
    """Let dropout and attention take the kernels that they take on a GPU; the meta device would take a CPU's."""
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("dropout", _dropout, "AutogradMeta")
        library.impl("scaled_dot_product_attention", _attention, "AutogradMeta")
        yield


def _dropout(x: Tensor, p: float, train: bool) -> Tensor:
    return torch.native_dropout(x, p, True)[0] if train and p > 0 else x


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:
        k, v = (tensor.repeat_interleave(q.shape[-3] // tensor.shape[-3], -3) for tensor in (k, v))
    # (batch, heads, tokens, width) is what the kernel takes
    heads = [tensor.reshape(-1, *([1] * (3 - tensor.ndim)), *tensor.shape[-3:]) for tensor in (q, k, v)]
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill(~attn_mask, float("-inf"))
        attn_mask = attn_mask.expand(*q.shape[:-1], k.shape[-2]).reshape(*heads[0].shape[:3], k.shape[-2])
    out: Tensor = aten._scaled_dot_product_efficient_attention(
        *heads, attn_mask, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale
    )[0]
    return out.reshape(*q.shape[:-1], v.shape[-1])


def _looked_up(packet: Any, args: tuple[Any, ...], written: int) -> int:
    # The loss picks one logit for each target, and returns their mean.
    return 4 * args[1].numel() if packet is aten.nll_loss_forward else written


def _nbytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor's distinct elements: those that a broadcast repeats count once."""
    elements = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= size if stride or size == 0 else 1
    return elements * tensor.element_size()


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
