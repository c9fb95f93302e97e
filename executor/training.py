"""The local work of a rank that trains a torch module: passes with hooks, gradients in buffers, torch's optimizers.

Model
    `hooks` say where the passes are. Autograd leaves each gradient in memory of its own, from where one call a layer
    moves them into the flat buffer that is communicated, when the layer's backward op is done; so nothing is zeroed,
    and a delayed schedule needs no second buffer.

    A summed gradient is divided once by the number of ranks, on the comm lane. An update takes a step of its own torch
    optimizer, over parameters that share memory with the module's and have the flat buffer's views as their gradients.
    So any optimizer works per bucket, and a fresh gradient and an old one never meet.

Known not to hold
    Weights and gradients are 32 bits; mixed precision is the module's own affair.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from executor.backends import part
from executor.backends.protocol import Buffer
from executor.hooks import Hooks
from executor.interpreter import Passes
from executor.layout import Layout, Piece, Store
from executor.networks.case import Case
from executor.optimizers import MakeOptimizer
from executor.shards import shard_seed
from simgd.errors import WorkloadError
from simgd.instances import Instances
from simgd.schedule import Backward, Communicate, Map, Schedule, Update
from simgd.workload import Workload


class Training:
    """A module on one rank, trained by the passes and updates of a schedule."""

    def __init__(
        self,
        case: Case,
        workload: Workload,
        schedule: Schedule,
        instances: Instances,
        layout: Layout,
        make_optimizer: MakeOptimizer,
        *,
        rank: int,
        batch: int,
        tokens: int,
        seed: int,
        device: torch.device | None = None,
    ) -> None:
        self.case = case
        self._device = device or torch.device("cpu")
        case.module.to(self._device)
        self._instances = instances
        self._layout = layout
        self._rank = rank
        self.batch, self._tokens, self._seed = batch, tokens, seed
        self.parameters = {name: p for name, p in case.module.named_parameters() if p.requires_grad}
        _check_same(self.parameters, workload)
        self._stores = {
            name: [torch.zeros(store.padded, device=self._device) for _ in range(store.copies)]
            for name, store in layout.gradients.items()
        }
        self._weights = {name: self._flat_weights(store) for name, store in layout.weights.items()}
        self._buffers: dict[int, list[Tensor]] = {}
        self._narrow: dict[int, Tensor] = {}
        self._scattered: set[int] = set()
        self._moves: dict[int, _Moves] = {}
        self._optimizers: dict[int, torch.optim.Optimizer] = {}
        self._applied: dict[int, _Applied] = {}
        for k, op in enumerate(schedule.ops):
            match op.work:
                case Communicate(bucket=bucket, value=value, wire=wire, collective=collective):
                    self._buffers[k] = self._stores[bucket] if value == "gradient" else [self._weights[bucket]]
                    if collective == "reduce_scatter":
                        self._scattered.add(k)
                    if wire == "bfloat16":
                        self._narrow[k] = torch.zeros_like(self._buffers[k][0], dtype=torch.bfloat16)
                case Update(bucket=bucket, part=which):
                    self._applied[k] = self._shadowed(layout.updates[k], bucket, which)
                    self._optimizers[k] = make_optimizer(self._applied[k].parameters)
                case Map(bucket=bucket):
                    self._prepare_moves(k, layout.pieces(bucket))
                case Backward(layers=layers):
                    owned = {layer.name: layer.tensors for layer in workload.layers}
                    pieces = [
                        piece
                        for layer in layers
                        for tensor in owned[layer]
                        for piece in layout.of_tensor(tensor.name)
                        if not layout.gradients[piece.store].fresh
                    ]
                    self._prepare_moves(k, pieces)
                case _:
                    pass
        self._hooks = Hooks(case.module, self.parameters, workload, schedule)
        self._losses: list[Tensor] = []

    # --- the local work of the interpreter ---------------------------------------------------------------------

    def passes(self, iteration: int, reach: Passes) -> None:
        """Make the shard of *iteration*, run forward and backward on it."""
        self._hooks.begin(reach)
        torch.manual_seed(shard_seed(self._seed, self._rank, iteration))
        inputs = self.case.example(self.batch, self._tokens, self._device)
        loss = self.case.loss(self.case.module, inputs)
        self._hooks.forward_is_done()
        self._losses.append(loss.detach())
        # A failure inside of a hook keeps its own message.
        loss.backward()  # type: ignore[no-untyped-call]
        self._hooks.backward_is_done(iteration)

    def collect(self, k: int, iteration: int) -> None:
        """Move the gradients of op *k* into the buffers of *iteration*."""
        moves = self._moves.get(k)
        if moves is not None:
            into = moves.into
            torch._foreach_copy_(into[iteration % len(into)], moves.fresh())
            for parameter in moves.parameters:
                parameter.grad = None

    copy = collect

    def update(self, k: int, iteration: int) -> None:
        """Step the optimizer of op *k* with the gradient that it applies."""
        self._applied[k].point(iteration - self._instances.age[k])
        self._optimizers[k].step()

    def buffer(self, k: int, iteration: int) -> Buffer:
        """Return the flat buffer that op *k* communicates in *iteration*."""
        buffers = self._buffers[k]
        return buffers[iteration % len(buffers)]

    def summed(self, k: int, iteration: int) -> None:
        """Divide a sum of gradients by the number of ranks; of one that was scattered, this rank's part."""
        buffer = self.buffer(k, iteration)
        (self._mine(buffer) if k in self._scattered else buffer).div_(self._layout.ranks)

    def narrow(self, k: int) -> Buffer | None:
        """Return the 16-bit buffer of op *k*, if it sends such numbers."""
        return self._narrow.get(k)

    # --- what a run asks besides -------------------------------------------------------------------------------

    def losses(self) -> list[float]:
        """Return the loss of each iteration since the last call; waits for a GPU."""
        found = torch.stack(self._losses).tolist() if self._losses else []
        self._losses.clear()
        return [float(loss) for loss in found]

    def digest(self) -> int:
        """Return a number that all replicas must share: a sum over the bits of all weights, tensor by tensor."""
        sums = [p.detach().reshape(-1).view(torch.int32).sum(dtype=torch.int64) for p in self.parameters.values()]
        return sum(place * int(found) for place, found in enumerate(torch.stack(sums).tolist(), start=1)) % 2**63

    def saved(self) -> Callable[[], None]:
        """Return what puts weights, buffers of the module and optimizers back as they are now."""
        state = {name: value.detach().clone() for name, value in self.case.module.state_dict().items()}
        # Copies: some optimizers have their state from the start, and a state_dict only refers to it.
        optimizers = {k: copy.deepcopy(optimizer.state_dict()) for k, optimizer in self._optimizers.items()}

        def restore() -> None:
            with torch.no_grad():
                for name, value in self.case.module.state_dict().items():
                    value.copy_(state[name])
            for k, optimizer in self._optimizers.items():
                optimizer.state.clear()
                optimizer.load_state_dict(optimizers[k])
            self._losses.clear()

        return restore

    def close(self) -> None:
        """Take the hooks off the module."""
        self._hooks.remove()

    # --- setting up --------------------------------------------------------------------------------------------

    def _flat_weights(self, store: Store) -> Tensor:
        """Move the weights of a bucket into one flat buffer, which the parameters then share."""
        flat = torch.zeros(store.padded, device=self._device)
        at = 0
        for piece in store.bucket.slices:
            parameter = self.parameters[piece.tensor]
            if (piece.first, piece.last) != (0, parameter.numel()):
                raise WorkloadError(
                    f"bucket {store.bucket.name!r}: holds a part of {piece.tensor!r}; weights that are gathered need "
                    "buckets of whole tensors"
                )
            view = flat[at : at + parameter.numel()].view(parameter.shape)
            view.copy_(parameter.detach())
            parameter.data = view
            at += parameter.numel()
        return flat

    def _prepare_moves(self, k: int, pieces: Sequence[Piece]) -> None:
        """Prepare moving gradients of *pieces* into their stores, for each copy that is written in turn."""
        if not pieces:
            return
        self._moves[k] = _Moves([self.parameters[piece.tensor] for piece in pieces], pieces, self._views(pieces))

    def _views(self, pieces: Sequence[Piece]) -> list[list[Tensor]]:
        """Return where *pieces* of gradients lie, by iteration until the buffers come round again."""
        period = math.lcm(*(self._layout.gradients[piece.store].copies for piece in pieces))
        return [[self._view(piece, copy) for piece in pieces] for copy in range(period)]

    def _view(self, piece: Piece, copy: int) -> Tensor:
        """Return where a gradient's piece lies in one of its store's buffers, in the shape of its tensor if whole."""
        flats = self._stores[piece.store]
        flat = flats[copy % len(flats)][piece.offset : piece.offset + piece.last - piece.first]
        parameter = self.parameters[piece.tensor]
        return flat.view(parameter.shape) if piece.last - piece.first == parameter.numel() else flat

    def _shadowed(self, pieces: Sequence[Piece], bucket: str, which: str) -> "_Applied":
        """Return the parameters that an update steps: they share memory with the module's."""
        if which == "mine":
            gradients = [[self._mine(flat)] for flat in self._stores[bucket]]
            return _Applied([nn.Parameter(self._mine(self._weights[bucket]))], gradients)
        shadows = []
        for piece in pieces:
            parameter = self.parameters[piece.tensor].detach()
            whole = piece.last - piece.first == parameter.numel()
            shadows.append(nn.Parameter(parameter if whole else parameter.view(-1)[piece.first : piece.last]))
        return _Applied(shadows, self._views(pieces))

    def _mine(self, flat: Tensor) -> Tensor:
        """Return this rank's part of a scattered buffer."""
        mine: Tensor = part(flat, self._rank, self._layout.ranks)
        return mine


class _Moves:
    """Gradients that go from where the backward pass left them to `into`, by copy of the buffers."""

    def __init__(self, parameters: list[nn.Parameter], pieces: Sequence[Piece], into: list[list[Tensor]]) -> None:
        self.parameters = parameters
        self.into = into
        parts = [(piece.first, piece.last) for piece in pieces]
        whole = all((first, last) == (0, p.numel()) for (first, last), p in zip(parts, parameters, strict=True))
        self._parts = None if whole else parts

    def fresh(self) -> list[Tensor]:
        """Return the fresh gradients, of tensors that lie in several buckets the parts."""
        # Every one of them has arrived, or the op would not have ended.
        gradients: list[Any] = [parameter.grad for parameter in self.parameters]
        if self._parts is None:
            return gradients
        return [
            gradient if last - first == gradient.numel() else gradient.reshape(-1)[first:last]
            for gradient, (first, last) in zip(gradients, self._parts, strict=True)
        ]


class _Applied:
    """The parameters of one update, and by copy of the buffers their gradients."""

    def __init__(self, parameters: list[nn.Parameter], gradients: list[list[Tensor]]) -> None:
        self.parameters = parameters
        self._gradients = gradients
        self._at = -1

    def point(self, iteration: int) -> None:
        """Let the parameters' gradients be those of *iteration*."""
        copy = iteration % len(self._gradients)
        if copy != self._at:
            self._at = copy
            for parameter, gradient in zip(self.parameters, self._gradients[copy], strict=True):
                parameter.grad = gradient


def _check_same(parameters: dict[str, nn.Parameter], workload: Workload) -> None:
    """Raise WorkloadError if the module is not the one that the workload counts."""
    counted = {tensor.name: tensor.shape for layer in workload.layers for tensor in layer.tensors}
    for name, shape in counted.items():
        if name not in parameters:
            raise WorkloadError(f"workload {workload.name!r}: its tensor {name!r} is not in the module")
        if tuple(parameters[name].shape) != shape:
            raise WorkloadError(
                f"workload {workload.name!r}: tensor {name!r} has shape {list(shape)}, but the module's has "
                f"{list(parameters[name].shape)}; count it again with the same arguments"
            )
        if parameters[name].dtype != torch.float32:
            raise WorkloadError(f"parameter {name!r} is {parameters[name].dtype}; the executor trains 32-bit weights")
    for name in parameters:
        if name not in counted:
            raise WorkloadError(
                f"workload {workload.name!r}: does not know parameter {name!r} of the module; count it again, or "
                "freeze it with requires_grad_(False)"
            )
