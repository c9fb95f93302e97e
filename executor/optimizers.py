"""Torch's own optimizers by name: they are never written anew here."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from executor.networks.case import one_line
from simgd.errors import RunError, unknown
from simgd.units import scalar

MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def optimizer(spec: str) -> MakeOptimizer:
    """Return what makes the optimizer that *spec* names: ``sgd``, ``adamw``, or a class of torch.optim, with arguments.

    >>> optimizer("sgd:lr=0.1")([nn.Parameter(torch.zeros(1))]).defaults["momentum"]
    0.9
    >>> optimizer("Adagrad:lr=0.01")([nn.Parameter(torch.zeros(1))]).defaults["lr"]
    0.01

    Raises RunError for a name that torch.optim has not, or arguments that the class refuses.
    """
    name, _, text = spec.partition(":")
    usual: dict[str, tuple[str, dict[str, Any]]] = {
        "sgd": ("SGD", {"lr": 0.01, "momentum": 0.9}),
        "adamw": ("AdamW", {"lr": 0.001}),
    }
    class_name, arguments = usual.get(name, (name, {}))
    kind = getattr(torch.optim, class_name, None)
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        known = sorted(each for each, found in vars(torch.optim).items() if isinstance(found, type))
        raise unknown("optimizer", name, ["sgd", "adamw", *known], "sgd, adamw or a class of torch.optim")
    for pair in filter(None, text.split(",")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise RunError(f"optimizer {spec!r}: {pair!r} is not NAME=VALUE")
        arguments = arguments | {key: scalar(value)}
    chosen = kind

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        try:
            return chosen(parameters, **arguments)
        except (TypeError, ValueError) as error:
            raise RunError(f"optimizer {spec!r}: {one_line(error)}") from None

    return make
