"""Where a module's passes are, told by hooks.

Model
    A forward-pre hook on each layer's module says that its forward op begins; a hook on each parameter says that its
    gradient is complete. A backward op is done when the gradients of the tensors that its layers own have arrived, and
    ops end in the order of the list. A layer that owns no tensor (a tied head) ends its backward op when the gradient
    of the next layer's output is there, or at the latest with the op behind it.

Known not to hold
    Modules that run twice in a pass, or in another order than the workload's, are refused.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from executor.interpreter import Passes
from executor.networks.case import layer_module
from simgd.errors import RunError, ScheduleError
from simgd.schedule import Backward, Forward, Schedule
from simgd.workload import Workload


class Hooks:
    """Tells a `Passes` where the module's passes are."""

    def __init__(
        self, module: nn.Module, parameters: dict[str, nn.Parameter], workload: Workload, schedule: Schedule
    ) -> None:
        self._ops = schedule.ops
        self._parameters = parameters
        self._handles: list[Any] = []
        forward, backward = (
            {layer: k for k, op in enumerate(schedule.ops) if isinstance(op.work, kind) for layer in op.work.layers}
            for kind in (Forward, Backward)
        )
        self._forward = sorted(set(forward.values()))
        self._backward = sorted(set(backward.values()))
        self._found: dict[int, list[int]] = {}
        self._uncalled: dict[int, list[int]] | None = None
        for layer, k in forward.items():
            self._handles.append(layer_module(module, layer).register_forward_pre_hook(self._forward_hook(k)))
        self._owners = {tensor.name: backward[layer.name] for layer in workload.layers for tensor in layer.tensors}
        for name, k in self._owners.items():
            hook = self._gradient_hook(k)
            self._handles.append(parameters[name].register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]
        self._expected = {k: sum(owner == k for owner in self._owners.values()) for k in self._backward}
        order = [layer.name for layer in workload.backward]
        for layer, following in pairwise(order):
            if not self._expected[backward[layer]]:
                module_hook = self._output_hook(backward[layer])
                self._handles.append(layer_module(module, following).register_forward_hook(module_hook))

    def begin(self, reach: Passes) -> None:
        """Expect a forward pass."""
        self._reach = reach
        self._now = -1
        self._left = dict(self._expected)
        self._done: set[int] = set()
        self._place = 0

    def _forward_hook(self, k: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object) -> None:
            self._reach.touch()
            if k == self._now:
                return
            if k < self._now:
                raise ScheduleError(
                    f"the network runs {self._ops[k].name!r} after {self._ops[self._now].name!r}, before which it "
                    "stands; the workload was counted from another network"
                )
            if self._uncalled is None:
                self._group(k)
            self._pass_to(k)
            for other in (self._uncalled or {}).get(k, ()):
                self._pass_to(other)

        return hook

    def _group(self, k: int) -> None:
        """In the first pass: note the ops between the last one and *k*, whose modules nobody calls.

        A module such as attention may use its part's weights itself. These are needed when the module is called, so
        from the second pass on such an op begins there; in the first pass no update can be under way.
        """
        between = [other for other in self._forward if self._now < other < k]
        self._found[self._now] = between
        for other in between:
            self._pass_to(other)

    def _pass_to(self, k: int) -> None:
        if self._now >= 0:
            self._reach.leave(self._now)
        self._now = k
        self._reach.enter(k)

    def forward_is_done(self) -> None:
        """Expect a backward pass; its first op may begin."""
        if self._uncalled is None:
            self._group(self._backward[0])
            self._uncalled = self._found
        self._pass_to(self._backward[0])

    def _gradient_hook(self, k: int) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            self._reach.touch()
            self._left[k] -= 1
            if self._left[k] == 0:
                self._complete(k)

        return hook

    def _output_hook(self, k: int) -> Callable[..., None]:
        """Return a forward hook whose output's gradient says that op *k*, before it in the backward pass, is done."""

        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.requires_grad:
                output.register_hook(lambda gradient: self._complete(k))  # type: ignore[no-untyped-call]

        return hook

    def _complete(self, k: int) -> None:
        """Let backward ops end in the order of the list, as far as their gradients are there."""
        self._done.add(k)
        while self._place < len(self._backward):
            now = self._backward[self._place]
            # One that owns no tensor has ended at the latest when a later one has.
            if now not in self._done and (self._expected[now] or k <= now):
                return
            self._reach.leave(now)
            self._place += 1
            if self._place < len(self._backward):
                self._now = self._backward[self._place]
                self._reach.enter(self._now)

    def backward_is_done(self, iteration: int) -> None:
        """Check that every gradient has come."""
        for name, k in self._owners.items():
            # Of an op that has not ended, what has come is still in place.
            if self._left[k] == 0 or self._parameters[name].grad is not None:
                continue
            raise RunError(
                f"parameter {name!r} got no gradient in iteration {iteration}; every rank must use every parameter in "
                "every iteration: leave it out, or freeze it with requires_grad_(False)"
            )
        # Only ops without tensors of their own can be left, at the end of the list.
        while self._place < len(self._backward):
            self._complete(self._backward[self._place])

    def remove(self) -> None:
        """Take all hooks off."""
        for handle in self._handles:
            handle.remove()
