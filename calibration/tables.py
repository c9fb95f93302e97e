"""A table of layers with measured times (CSV): a workload without FLOPs, and a profile with the times.

Model
    The columns are `layer` (its name; a bare number n becomes `layern`), `<tensor>_elements` for each tensor that a
    layer may have (an empty cell: this layer has none), and, where measured, `forward_us`, `backward_us` and
    `allreduce_<ranks>_<tensor>_us`; `_ms` and `_s` are read as well. The first row is nearest the input. Lines that
    start with ``#`` say where the numbers come from. An element is 4 bytes.

    Times of one all-reduce are noisy, and large outliers are common on a shared network. For each number of ranks, the
    samples of all tensors are put into classes, each a factor of 2 wide in bytes; a class becomes one point, the
    median size with the median time; where a larger size would then be faster, neighbouring points take their weighted
    mean (isotonic regression). The uncertainty of a curve is the median deviation of the samples from it.

Known not to hold
    Each rank is taken to stand in a node of its own. The batch is unknown (0). What the table does not say of the
    machine is a placeholder, and is called so, unless the caller brings the cluster. Without forward times the forward
    pass is assumed to take half of the backward pass.
"""

import csv
import math
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

from simgd import files
from simgd.errors import FileError, SimgdError
from simgd.profile import Curve, LayerTimes, Profile, Split
from simgd.topology import Cluster, Device, Interconnect, Link
from simgd.units import Bytes, FlopRate, Rate, Seconds
from simgd.workload import Layer, Tensor, Workload

BYTES_PER_ELEMENT = 4

Direction = Literal["forward", "backward"]

#: Where only backward times were measured.
_ASSUMED_SPLIT = Split(
    origin="assumed",
    source="the table has no forward times: a layer's backward pass makes two products of the size of its forward pass",
    uncertainty=0.25,
    backward_plus_update=2.0,
)

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_ELEMENTS = re.compile(r"(\w+)_elements", re.ASCII)
_PASS = re.compile(r"(forward|backward)_(us|ms|s)", re.ASCII)
_ALLREDUCE = re.compile(r"allreduce_([0-9]{1,6})_(\w+)_(us|ms|s)", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,18}(\.[0-9]{0,18})?([eE][+-]?[0-9]{1,2})?", re.ASCII)
_COLUMNS = "layer, TENSOR_elements, forward_us, backward_us, allreduce_RANKS_TENSOR_us (or _ms, _s)"


def read_table(path: str | Path, *, name: str = "", cluster: Cluster | None = None) -> tuple[Workload, Profile]:
    """Return the workload and the profile that the table at *path* holds.

    They are called *name*, else like the file; *cluster* is the machine that the times were measured on.
    """
    try:
        text = files.read_bytes(path).decode()
    except UnicodeDecodeError:
        raise FileError(f"{path}: is not text in UTF-8") from None
    return parse_table(text, where=str(path), name=name or Path(path).stem, cluster=cluster)


def parse_table(text: str, *, where: str, name: str, cluster: Cluster | None = None) -> tuple[Workload, Profile]:
    """Return the workload and the profile that the *text* of a table holds; *where* names it in errors."""
    table = _read(text, where)
    source = " ".join(table.comments) or f"table {name}"
    try:
        workload = Workload(
            name=name, description=source, layers=tuple(table.layers), batch=1, sample="iteration (unknown batch)"
        )
        times = [
            LayerTimes(origin="measured", source=source, workload=name, batch=0, direction=direction, seconds=seconds)
            for direction, seconds in table.passes.items()
            if seconds
        ]
        curves = [_curve(ranks, samples, source) for ranks, samples in sorted(table.samples.items()) if samples]
        profile = Profile(
            name=name,
            description=source,
            cluster=cluster or _placeholder(name, nodes=max(table.samples, default=1)),
            layers=tuple(times),
            split=None if table.passes.get("forward") or not times else _ASSUMED_SPLIT,
            curves=tuple(curves),
        )
    except SimgdError as error:
        raise type(error)(f"{where}: {error}") from None
    return workload, profile


@dataclass(slots=True)
class _Table:
    """What the rows say, in seconds; `samples` holds (bytes, seconds) for each number of ranks."""

    comments: list[str] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    passes: dict[Direction, dict[str, float]] = field(default_factory=lambda: {"forward": {}, "backward": {}})
    samples: dict[int, list[tuple[float, float]]] = field(default_factory=dict)


@dataclass(slots=True)
class _Columns:
    """Which cell of a row holds what; times with the factor that makes them seconds."""

    layer: int = -1
    elements: dict[str, int] = field(default_factory=dict)
    passes: dict[Direction, tuple[int, float]] = field(default_factory=dict)
    allreduce: dict[tuple[int, str], tuple[int, float]] = field(default_factory=dict)


def _read(text: str, where: str) -> _Table:
    table = _Table()
    columns: _Columns | None = None
    width = 0
    for place, cells in _lines(text, where, table.comments):
        if columns is None:
            columns, width = _header(cells, place), len(cells)
            table.samples = {ranks: [] for ranks, _ in columns.allreduce}
        elif len(cells) != width:
            raise FileError(
                f"{place}: has {_number_of(len(cells), 'cell')} where the header has {width}; is the line cut off?"
            )
        else:
            _add_row(table, columns, cells, place)
    if columns is None:
        raise FileError(f"{where}: has no header; it must name the columns {_COLUMNS}")
    if not table.layers:
        raise FileError(f"{where}: has no rows; each layer needs one")
    return table


def _lines(text: str, where: str, comments: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each line's place and cells, and gather the comments."""
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        line = line.removesuffix("\r")
        if line.lstrip().startswith("#"):
            comments.append(line.strip().lstrip("# "))
        elif line.strip():
            try:
                cells = next(csv.reader([line], strict=True))
            except (csv.Error, StopIteration) as error:
                raise FileError(f"{where}: line {number}: is not CSV: {error}") from None
            yield f"{where}: line {number}", [cell.strip() for cell in cells]


def _header(names: Sequence[str], place: str) -> _Columns:
    columns = _Columns()
    files.check_distinct(FileError, place, "column", names)
    for cell, name in enumerate(names):
        if name == "layer":
            columns.layer = cell
        elif match := _ELEMENTS.fullmatch(name):
            columns.elements[match[1]] = cell
        elif match := _PASS.fullmatch(name):
            direction: Direction = "forward" if match[1] == "forward" else "backward"
            _only_once(columns.passes, direction, name, place)
            columns.passes[direction] = cell, _UNITS[match[2]]
        elif match := _ALLREDUCE.fullmatch(name):
            key = int(match[1]), match[2]
            _only_once(columns.allreduce, key, name, place)
            if key[0] < 2:
                raise FileError(f"{place}: column {name!r}: an all-reduce takes 2 ranks or more")
            columns.allreduce[key] = cell, _UNITS[match[3]]
        else:
            raise FileError(f"{place}: column {name[:60]!r} is unknown; the columns are {_COLUMNS}")
    if columns.layer < 0:
        raise FileError(f"{place}: there is no column 'layer'; the columns are {_COLUMNS}")
    if not columns.elements:
        raise FileError(f"{place}: there is no column TENSOR_elements, such as 'weight_elements'")
    for _, tensor in columns.allreduce:
        if tensor not in columns.elements:
            raise FileError(f"{place}: all-reduce times of {tensor!r} need a column '{tensor}_elements'")
    return columns


def _only_once(found: Mapping[Any, object], key: object, name: str, place: str) -> None:
    if key in found:
        raise FileError(f"{place}: column {name!r} says again what another column says")


def _add_row(table: _Table, columns: _Columns, cells: Sequence[str], place: str) -> None:
    layer = cells[columns.layer]
    if not layer or not layer.isprintable():
        raise FileError(f"{place}: the layer {layer[:60]!r} is not a name")
    if layer.isdecimal():
        layer = f"layer{layer}"
    if any(layer == other.name for other in table.layers):
        raise FileError(f"{place}: layer {layer!r} stands twice")
    elements = {
        tensor: _whole(cells[cell], f"{place}: {tensor}_elements")
        for tensor, cell in columns.elements.items()
        if cells[cell]
    }
    table.layers.append(
        Layer(name=layer, tensors=tuple(Tensor(f"{layer}.{tensor}", (size,)) for tensor, size in elements.items()))
    )
    for direction, (cell, unit) in columns.passes.items():
        table.passes[direction][layer] = unit * _number(cells[cell], f"{place}: {direction} time")
    for (ranks, tensor), (cell, unit) in columns.allreduce.items():
        if not cells[cell]:
            continue
        where = f"{place}: all-reduce of {tensor!r} on {ranks} ranks"
        if tensor not in elements:
            raise FileError(f"{where}: has a time, but the layer has no such tensor")
        seconds = unit * _number(cells[cell], where)
        if seconds <= 0:
            raise FileError(f"{where}: takes {cells[cell]}; it must be above 0")
        table.samples[ranks].append((float(BYTES_PER_ELEMENT * elements[tensor]), seconds))


def _number(cell: str, where: str) -> float:
    if not _NUMBER.fullmatch(cell):
        raise FileError(f"{where}: {cell[:40]!r} is not a number of 0 or more")
    return float(cell)


def _whole(cell: str, where: str) -> int:
    found = _number(cell, where)
    if found != int(found) or not 0 < found < 2**50:
        raise FileError(f"{where}: {cell[:40]!r} is not a whole number above 0")
    return int(found)


def _number_of(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def _curve(ranks: int, samples: Sequence[tuple[float, float]], source: str) -> Curve:
    points = robust_curve(samples)
    deviations = [abs(seconds / _at(points, nbytes) - 1) for nbytes, seconds in samples]
    return Curve(
        origin="measured",
        source=f"{source} Medians of {len(samples)} samples by size, made monotone.",
        uncertainty=round(min(median(deviations), 0.99), 3),
        kind="all_reduce",
        ranks=ranks,
        nodes=ranks,
        points=points,
    )


def robust_curve(samples: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Return (bytes, seconds) points of a curve that never falls, from noisy *samples*; see the module's text.

    >>> robust_curve([(256, 3.0), (300, 1.0), (280, 2.0), (1024, 1.5), (8192, 9.0)])
    ((280.0, 1.875), (1024.0, 1.875), (8192.0, 9.0))
    """
    classes: dict[int, list[tuple[float, float]]] = {}
    for nbytes, seconds in samples:
        classes.setdefault(math.floor(math.log2(nbytes)), []).append((nbytes, seconds))
    # Each pool: its sizes, the mean of their times, and its weight in samples.
    pools: list[tuple[list[float], float, int]] = []
    for _, members in sorted(classes.items()):
        sizes, time = [float(median(size for size, _ in members))], median(seconds for _, seconds in members)
        weight = len(members)
        while pools and pools[-1][1] >= time:
            earlier, faster, more = pools.pop()
            time = (faster * more + time * weight) / (more + weight)
            sizes, weight = earlier + sizes, more + weight
        pools.append((sizes, time, weight))
    return tuple((size, time) for sizes, time, _ in pools for size in sizes)


def _at(points: Sequence[tuple[float, float]], nbytes: float) -> float:
    """Return the curve's time at a size, by straight lines between its points and flat beyond its ends."""
    after = bisect_left(points, (nbytes, 0.0))
    if after == 0:
        return points[0][1]
    if after == len(points):
        return points[-1][1]
    (low, first), (high, second) = points[after - 1], points[after]
    return first + (second - first) * (nbytes - low) / (high - low)


def _placeholder(name: str, *, nodes: int) -> Cluster:
    """Return a cluster of *nodes* nodes with one device each, of which nothing else is known."""
    unknown = "placeholder: the table does not say; measured times and curves override it"
    return Cluster(
        name=name,
        description=f"Unknown machine of table {name}: one device a node",
        source=unknown,
        device=Device(
            name="unknown device",
            kind="gpu",
            memory=Bytes(16 * 10**9),
            memory_rate=Rate(500e9),
            fp32=FlopRate(10e12),
            source=unknown,
        ),
        vertices={"gpu0": "device", "nic0": "nic"},
        links=(Link(ends=("gpu0", "nic0"), kind="pcie", bandwidth=Rate(12e9), latency=Seconds(1e-6)),),
        interconnect=Interconnect(kind="ethernet", bandwidth=Rate(1.25e9), latency=Seconds(50e-6), source=unknown),
        nodes=nodes,
    )
