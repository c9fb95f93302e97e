"""What a network is to simgd: a module, a maker of inputs and a loss.

The contract for a network of your own, named ``package.module:function``: the function takes keyword arguments
(numbers, text, true or false) and returns either a `Case`, or, in the simple form, two things::

    def my_network(hidden=64):
        module = nn.Sequential(nn.Linear(8, hidden), nn.ReLU(), nn.Linear(hidden, 3))

        def inputs(batch):                      # or inputs(batch, tokens=128) for sequences of 128 tokens
            return torch.randn(batch, 8), torch.randint(3, (batch,))

        return module, inputs

`inputs` returns what the module is called with: a tensor, a tuple (positional arguments) or a dict (keyword
arguments). The loss is what the module returns if that is a scalar tensor, else its attribute `loss` if it has one.
Otherwise the module is called with all inputs but the last, which is the target: class numbers for a cross entropy, or
numbers of the output's shape for a mean squared error.

Both functions run under ``torch.device(...)``, so plain ``torch.randn(...)`` lands on the right device; they should
read no file when that device is "meta".
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from simgd.errors import SimgdError, WorkloadError
from simgd.workload import Scalar

#: Length of a sequence where an `inputs(batch, tokens)` of the simple form names none.
USUAL_TOKENS = 128


#: The layer that stands for the module as a whole, where it holds parameters itself.
ROOT = "(root)"


def layer_module(module: nn.Module, layer: str) -> nn.Module:
    """Return the part of *module* that a workload's layer names."""
    return module if layer == ROOT else module.get_submodule(layer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A network ready to be counted or trained.

    `inputs(batch, tokens)` makes one synthetic batch from torch's generator (seed it first), a tuple that
    `loss(module, inputs)` takes; in the shipped networks its last entry is the target. `tokens` is the usual sequence
    length, 0 if samples have none; `libraries` names the distributions, besides torch, that the module comes from.
    """

    module: nn.Module
    inputs: Callable[[int, int], tuple[Any, ...]]
    loss: Callable[[nn.Module, tuple[Any, ...]], Tensor]
    batch: int = 32
    sample: str = "sample"
    tokens: int = 0
    max_tokens: int = 0
    description: str = ""
    libraries: tuple[str, ...] = ()

    def example(self, batch: int, tokens: int = 0, device: torch.device | str = "cpu") -> tuple[Any, ...]:
        """Return a synthetic batch on *device*; `tokens` 0 means the usual length."""
        with torch.device(device):
            made = self.inputs(batch, tokens or self.tokens)
        return tuple(entry.to(device) if isinstance(entry, Tensor) else entry for entry in made)


def load(spec: str, arguments: Mapping[str, Scalar] | None = None, *, device: torch.device | str = "cpu") -> Case:
    """Return the Case that ``package.module:function`` makes of *arguments*, its module on *device*.

    The current directory is importable. Raises WorkloadError in one line for whatever goes wrong in foreign code.
    """
    function = _imported(spec)
    with _said(f"{spec}: cannot be made"), torch.device(device):
        made = function(**dict(arguments or {}))
    if isinstance(made, Case):
        return made
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module) and callable(made[1]):
        return _simple(spec, made[0], made[1])
    raise WorkloadError(
        f"{spec}: returned {_kind(made)}; it must return an executor.networks.Case, or (module, inputs) with a "
        "torch.nn.Module and a function inputs(batch)"
    )


def cross_entropy(module: nn.Module, inputs: tuple[Any, ...]) -> Tensor:
    """Return the mean cross entropy of the module's output against the last input."""
    *arguments, target = inputs
    return functional.cross_entropy(module(*arguments), target)


def _imported(spec: str) -> Callable[..., object]:
    module_name, colon, function_name = spec.partition(":")
    if not (colon and module_name and function_name):
        raise WorkloadError(f"{spec!r} is not a network; write package.module:function")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    with _said(f"{spec}: module {module_name!r} cannot be imported"):
        module = importlib.import_module(module_name)
    function = getattr(module, function_name, None)
    if not callable(function):
        what = "no function" if function is None else f"{_kind(function)}, not a function,"
        raise WorkloadError(f"{spec}: module {module_name!r} has {what} {function_name!r}")
    return function  # type: ignore[no-any-return]


@contextmanager
def _said(what: str) -> Iterator[None]:
    """Turn whatever the user's code raises into one line that begins with *what*."""
    try:
        yield
    except SimgdError:
        raise
    except (Exception, SystemExit) as error:
        raise WorkloadError(f"{what}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Return the kind and the message of an error from foreign code, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".removesuffix(": ")


def _simple(spec: str, module: nn.Module, make: Callable[..., Any]) -> Case:
    try:
        parameters = list(inspect.signature(make).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    if not 1 <= len(parameters) <= 2:
        raise WorkloadError(f"{spec}: its second value must be a function inputs(batch) or inputs(batch, tokens)")
    tokens = 0
    if len(parameters) == 2:
        default = parameters[1].default
        tokens = default if isinstance(default, int) and default > 0 else USUAL_TOKENS

    def inputs(batch: int, length: int) -> tuple[Any, ...]:
        made = make(batch, length) if tokens else make(batch)
        if isinstance(made, dict):
            return (made,)
        return tuple(made) if isinstance(made, (tuple, list)) else (made,)

    def loss(module: nn.Module, made: tuple[Any, ...]) -> Tensor:
        return _simple_loss(spec, module, made)

    return Case(module=module, inputs=inputs, loss=loss, tokens=tokens)


def _simple_loss(spec: str, module: nn.Module, made: tuple[Any, ...]) -> Tensor:
    if len(made) == 1 and isinstance(made[0], dict):
        found = _scalar(module(**made[0]))
    elif _takes(module, len(made)):
        found = _scalar(module(*made))
    else:
        *arguments, target = made
        output = module(*arguments)
        found = _scalar(output)
        if found is None and isinstance(output, Tensor):
            floating = target.is_floating_point()
            found = functional.mse_loss(output, target) if floating else functional.cross_entropy(output, target)
    if found is None:
        raise WorkloadError(
            f"{spec}: cannot tell the loss; let the module return a scalar tensor, or let `inputs` return its "
            "arguments and one target, or return a Case"
        )
    return found


def _takes(module: nn.Module, count: int) -> bool:
    """Say whether the module can be called with *count* positional arguments."""
    try:
        inspect.signature(module.forward).bind(*range(count))
    except TypeError:
        return False
    return True


def _scalar(output: Any) -> Tensor | None:
    found = getattr(output, "loss", None) if not isinstance(output, Tensor) else output
    return found if isinstance(found, Tensor) and found.ndim == 0 else None


def _kind(value: object) -> str:
    name = type(value).__name__
    return f"an {name}" if name[0] in "AEIOUaeiou" else f"a {name}"
