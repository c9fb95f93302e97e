"""Counts the work of a network: a workload out of a torch module, on the meta device, within seconds.

Model
    A training step is traced (see `tracing`) at two batches and, for sequences, at three lengths. Each amount is then
    the polynomial through these counts, exact because counts are whole numbers; one more batch and length must come
    out exactly as well, or the network is refused. What comes out in one trace and out of order in another is
    refused too.

``python -m calibration.counting`` counts every shipped workload again.
"""

import argparse
import importlib.metadata
import sys
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import torch

from calibration.tracing import Direction, Step, Tally, trace
from executor.networks import NETWORKS
from executor.networks.case import ROOT, Case, load
from simgd import files
from simgd.errors import SimgdError, WorkloadError, unknown
from simgd.workload import Amount, Layer, Scalar, Source, Tensor, Work, Workload

#: Where the shipped workloads lie.
SHIPPED = Path(files.__file__).parent / "data" / "workloads"

#: Batches whose counts give the polynomial, and the one that checks it. Not 1, which libraries treat apart.
BATCHES, CHECKED_BATCH = (2, 3), 5

#: Lengths are multiples of this where the network allows: attention kernels pad what they keep to 32 tokens.
TOKEN_STEP = 32


def from_spec(spec: str, arguments: Mapping[str, Scalar] | None = None, *, name: str | None = None) -> Workload:
    """Return the workload that ``package.module:function`` makes with *arguments*; see `executor.networks.case`.

    The current directory is importable. The workload is called *name*, else like the function.
    """
    case = load(spec, arguments, device="meta")
    source = Source(function=spec, arguments=dict(arguments or {}), versions=_versions(case))
    return count(case, name=name or spec.rpartition(":")[2].replace("_", "-"), source=source)


def count(case: Case, *, name: str, source: Source | None = None) -> Workload:
    """Return the workload of a *case* whose module lies on the meta device."""
    where = f"workload {name!r}"
    for parameter_name, parameter in case.module.named_parameters():
        if parameter.device.type != "meta":
            raise WorkloadError(f"{where}: parameter {parameter_name!r} must lie on the meta device to be counted")
    first = trace(case, batch=BATCHES[0], tokens=_lengths(case)[0], where=where)
    layers = _layers(case, first, where)

    def step(batch: int, tokens: int) -> Step:
        found = trace(case, batch=batch, tokens=tokens, layers=layers, where=where)
        if (found.arrived, found.uses) != (first.arrived, first.uses):
            raise WorkloadError(f"{where}: the order of its work changes with the size of the inputs")
        return found

    *lengths, checked = _lengths(case)
    steps = {(batch, tokens): step(batch, tokens) for batch in BATCHES for tokens in lengths}
    steps[CHECKED_BATCH, checked] = step(CHECKED_BATCH, checked)
    fit = _Fit(steps, lengths, where)

    owner: dict[str, str] = {}
    for layer in layers:
        for tensor in first.uses[layer]:
            owner.setdefault(tensor, layer)
    arrival = {tensor: place for place, tensor in enumerate(first.arrived)}
    shapes = {tensor: tuple(parameter.shape) for tensor, parameter in case.module.named_parameters()}
    counted = tuple(
        Layer(
            name=layer,
            tensors=tuple(
                Tensor(tensor, shapes[tensor])
                for tensor in sorted(first.uses[layer], key=lambda tensor: arrival.get(tensor, -1))
                if owner[tensor] == layer and tensor in arrival
            ),
            shared=tuple(tensor for tensor in first.uses[layer] if owner[tensor] != layer and tensor in arrival),
            forward=fit.work(layer, "forward"),
            backward=fit.work(layer, "backward"),
            kept=fit.kept(layer),
        )
        for layer in layers
    )
    order = _backward_order(counted, steps[BATCHES[0], lengths[0]])
    return Workload(
        name=name,
        description=case.description,
        source=source,
        sample=case.sample,
        batch=case.batch,
        tokens=case.tokens,
        max_tokens=case.max_tokens,
        layers=counted,
        backward_order=() if order == tuple(reversed(layers)) else order,
    )


def shipped(name: str) -> Workload:
    """Return the shipped workload *name*, counted anew."""
    return from_spec(f"executor.networks:{NETWORKS[name].__name__}", name=name)


def _versions(case: Case) -> dict[str, str]:
    versions = {"torch": torch.__version__.split("+")[0]}
    return versions | {library: importlib.metadata.version(library) for library in case.libraries}


def _lengths(case: Case) -> tuple[int, ...]:
    """Return three lengths that give the polynomial and one that checks it, or one 0 each without sequences."""
    if not case.tokens:
        return (0, 0)
    step = min(TOKEN_STEP, (case.max_tokens or 4 * TOKEN_STEP) // 4)
    if not step:
        raise WorkloadError(f"sequences of {case.max_tokens} tokens are too short to count; allow 4 or more")
    return (step, 2 * step, 3 * step, 4 * step)


def _layers(case: Case, step: Step, where: str) -> list[str]:
    """Return the modules that use parameters, in the order of their first forward."""
    trained = [name for name, parameter in case.module.named_parameters() if parameter.requires_grad]
    for name in trained:
        if name not in step.arrived:
            raise WorkloadError(
                f"{where}: parameter {name!r} gets no gradient; leave it out, or freeze it with requires_grad_(False)"
            )
    if len(step.arrived) != len(set(step.arrived)):
        raise WorkloadError(f"{where}: a gradient arrives twice in one backward pass")
    layers = [layer for layer in [ROOT, *step.layers] if any(name in step.arrived for name in step.uses.get(layer, []))]
    for layer in layers:
        if step.calls.get(layer, 1) > 1:
            raise WorkloadError(
                f"{where}: module {layer!r} runs {step.calls[layer]} times in one forward pass; "
                "a workload has one place for each layer: give each run a module of its own, or tie their parameters"
            )
    return layers


def _backward_order(layers: Sequence[Layer], step: Step) -> tuple[str, ...]:
    """Return the layers in the order in which their own gradients are complete.

    A layer without tensors of its own stands where its last backward work is done.
    """
    arrival = {tensor: place for place, tensor in enumerate(step.arrived)}
    last = {layer.name: max((arrival[tensor.name] for tensor in layer.tensors), default=-1) for layer in layers}
    order = sorted((layer.name for layer in layers if layer.tensors), key=last.__getitem__)
    for layer in layers:
        if not layer.tensors:
            before = step.ended[: step.ended.index(layer.name)]
            place = max((order.index(name) + 1 for name in before if name in order), default=0)
            order.insert(place, layer.name)
    return tuple(order)


class _Fit:
    """Polynomials through the counts of several steps."""

    def __init__(self, steps: Mapping[tuple[int, int], Step], lengths: Sequence[int], where: str) -> None:
        self._steps, self._lengths, self._where = steps, lengths, where

    def work(self, layer: str, direction: Direction) -> Work:
        """Return the work of a layer."""

        def tally(step: Step) -> Tally:
            return step.work.get((layer, direction), Tally())

        kernels = {tally(step).kernels for step in self._steps.values()}
        if len(kernels) > 1:
            raise WorkloadError(
                f"{self._where}: layer {layer!r} launches {min(kernels)} to {max(kernels)} kernels {direction}, "
                "by the size of the inputs; the number must not depend on it"
            )
        what = f"{direction} of {layer!r}"
        amounts = {
            "flops": self.amount(f"FLOPs {what}", lambda step: tally(step).flops),
            "matrix_bytes": self.amount(f"bytes of products {what}", lambda step: tally(step).matrix_bytes),
            "bytes": self.amount(f"bytes {what}", lambda step: tally(step).bytes),
        }
        return Work(**{name: found for name, found in amounts.items() if found != Amount()}, kernels=kernels.pop())

    def kept(self, layer: str) -> Amount:
        """Return the bytes that a layer keeps for its backward pass."""
        return self.amount(f"bytes kept by {layer!r}", lambda step: step.kept.get(layer, 0))

    def amount(self, what: str, of: Callable[[Step], int]) -> Amount:
        """Return the polynomial through ``of(step)`` of every step; *what* names it in errors."""
        low, high = BATCHES
        slopes, intercepts = [], []
        for tokens in self._lengths:
            at_low, at_high = of(self._steps[low, tokens]), of(self._steps[high, tokens])
            slopes.append(Fraction(at_high - at_low, high - low))
            intercepts.append(at_low - low * slopes[-1])
        fixed, per_sample = _parabola(self._lengths, intercepts), _parabola(self._lengths, slopes)
        names = ("fixed", "fixed_per_token", "fixed_per_token2", "per_sample", "per_token", "per_token2")
        # Only what is not 0, so that files stay short: msgspec leaves a default out only if it is the very object.
        found = Amount(**{name: float(value) for name, value in zip(names, fixed + per_sample, strict=True) if value})
        for (batch, tokens), step in self._steps.items():
            if abs(found.at(batch, tokens) - of(step)) > 1e-9 * abs(of(step)):
                at = f"batch {batch}" + (f" and {tokens} tokens" if tokens else "")
                raise WorkloadError(
                    f"{self._where}: {what} are {of(step)} at {at}, where a polynomial through smaller sizes has "
                    f"{found.at(batch, tokens):.0f}: work must grow with the batch and at most the square of the length"
                )
        return found


def _parabola(lengths: Sequence[int], values: Sequence[Fraction]) -> tuple[Fraction, Fraction, Fraction]:
    """Return c, b, a of ``c + b*s + a*s*s`` through three points at equal distances, or c through one."""
    if len(lengths) == 1:
        return values[0], Fraction(0), Fraction(0)
    (x0, x1, _), (y0, y1, y2) = lengths, values
    step = x1 - x0
    square = (y2 - 2 * y1 + y0) / (2 * step * step)
    slope = (y1 - y0) / step - square * (x0 + x1)
    return y0 - slope * x0 - square * x0 * x0, slope, square


def main(arguments: Sequence[str] | None = None) -> int:
    """Count shipped workloads again and write them; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m calibration.counting", description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which ones (default: all)")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="folder of the files (default: the package's own)")
    options = parser.parse_args(arguments)
    try:
        for name in options.names or NETWORKS:
            if name not in NETWORKS:
                raise unknown("network", name, NETWORKS)
            files.write(options.out / f"{name}.toml", shipped(name))
    except SimgdError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
