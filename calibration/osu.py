"""Reads what the OSU micro-benchmarks print: collectives as curves, osu_latency and osu_bw as point-to-point costs.

Formats
    A title (`# OSU MPI Allreduce Latency Test v7.5`; `MPI-CUDA` and the like on GPU buffers), a line of column names,
    rows. The column names say what a row has, so that versions 5 to 7 are read, with and without `-f`. What launchers
    and libraries say before the table, and after its last row, is passed over.

What is taken
    Of a collective the average over ranks; of a non-blocking one its pure communication time, measured alone: how much
    of it was hidden behind the benchmark's dummy compute goes into the entry's source, and is used nowhere, since
    simgd predicts overlap from its own costs. Of osu_latency one-way seconds by size. Of osu_bw the largest rate, as
    what one cable reaches: smaller messages are bound by latency, which osu_latency tells.

    "Size" counts what simgd counts, the whole buffer, except for an all-gather: there it is one rank's share.

What it leaves out
    The columns of minima and maxima: they are over ranks, not over repeats. The file does not say how many ranks ran.
"""

import math
import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

from calibration.nccl_tests import RUN_UNCERTAINTY
from simgd.errors import FileError, SimgdError
from simgd.profile import CollectiveKind, Curve, LinkRate, PointToPoint
from simgd.topology import LinkKind

Kind = CollectiveKind | Literal["latency", "bandwidth"]

#: What titles call the benchmarks that are read.
_KINDS: dict[str, Kind] = {
    "allreduce": "all_reduce",
    "reduce_scatter": "reduce_scatter",
    "allgather": "all_gather",
    "broadcast": "broadcast",
    "": "latency",
    "bandwidth": "bandwidth",
}

_TITLE = re.compile(r"#\s*OSU MPI(?:-\w+)? (Non-[Bb]locking )?(.*?)\s*(?:Latency )?Test v(\S+)")
_HEADER = re.compile(r"#\s*Size\s{2,}")
_SIZE = re.compile(r"[0-9]{1,18}", re.ASCII)
_TIMES = ("avg latency", "latency", "pure comm")


class Row(NamedTuple):
    """One message size with its seconds (bytes a second for osu_bw), and the share that was hidden if it was told."""

    nbytes: int
    value: float
    overlap: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one run of a benchmark found; sizes as simgd counts them, but for an all-gather (see the module's text)."""

    where: str
    kind: Kind
    blocking: bool
    version: str
    rows: tuple[Row, ...]

    @property
    def tool(self) -> str:
        """The benchmark and its version, with what was told of overlap."""
        named = {"latency": "osu_latency", "bandwidth": "osu_bw", "broadcast": "osu_bcast"}
        name = named.get(self.kind, f"osu_{self.kind.replace('all_', 'all')}")
        told = f"{name if self.blocking else name.replace('osu_', 'osu_i')} of OSU micro-benchmarks {self.version}"
        overlaps = [row.overlap for row in self.rows if row.overlap is not None]
        if overlaps:
            told += f", pure communication (overlap {min(overlaps):.0f}-{max(overlaps):.0f} %, not used)"
        return told


def recognises(text: str) -> bool:
    """Say whether *text* is output of an OSU benchmark."""
    return re.search(r"#\s*OSU (MPI|OpenSHMEM|UPC|NCCL)", text) is not None


def parse(text: str, where: str) -> Measurement:
    """Return the measurement that *text* holds; *where* names it in errors.

    Raises FileError with the number of a line that cannot be read, or with what is missing.
    """
    title: re.Match[str] | None = None
    columns: list[str] | None = None
    rows: list[Row] = []
    ended = False
    for number, line in enumerate(text.splitlines(), start=1):
        at, line = f"{where}: line {number}", line.strip()
        if found := _TITLE.match(line):
            if title is not None:
                raise FileError(f"{at}: a second benchmark begins; a file holds the output of one run")
            title = found
        elif _HEADER.match(line):
            if columns is not None:
                raise FileError(f"{at}: a second table begins; a file holds the output of one run")
            columns = [name.lower() for name in re.split(r"\s{2,}", line.lstrip("# "))]
        elif columns is not None and line and not line.startswith("#"):
            if not line[0].isdigit():
                ended = ended or bool(rows)
                continue
            if ended:
                raise FileError(f"{at}: a row stands after other output; a file holds the output of one run")
            row = _row(line, columns, at)
            if rows and row.nbytes <= rows[-1].nbytes:
                raise FileError(f"{at}: size {row.nbytes} stands after {rows[-1].nbytes}; sizes must grow")
            rows.append(row)
    if title is None:
        raise FileError(f"{where}: has no title ('# OSU MPI ... Test v...'); it is no output of OSU micro-benchmarks")
    kind = _kind(title, where)
    if columns is None:
        raise FileError(f"{where}: has no line of columns ('# Size ...'); the run ended before its first result")
    if (kind == "bandwidth") != any(name.startswith("bandwidth") for name in columns):
        raise FileError(f"{where}: columns are {', '.join(columns)[:80]!r}, which {title[0][2:60]!r} does not print")
    rows = [row for row in rows if row.nbytes or kind == "latency"]
    if not rows:
        raise FileError(f"{where}: has no rows; the run ended before its first result")
    return Measurement(where=where, kind=kind, blocking=title[1] is None, version=title[3], rows=tuple(rows))


def _kind(title: re.Match[str], where: str) -> Kind:
    kind = _KINDS.get(title[2].lower())
    if kind is None or (title[1] and kind in ("latency", "bandwidth")):
        known = ", ".join(name or "latency" for name in _KINDS)
        raise FileError(f"{where}: measures {title[2][:40]!r}; it must be one of {known}")
    return kind


def _row(line: str, columns: list[str], at: str) -> Row:
    fields = line.split()
    if len(fields) != len(columns):
        raise FileError(f"{at}: {line[:60]!r} has {len(fields)} fields; the columns are {len(columns)}")
    if not _SIZE.fullmatch(fields[0]):
        raise FileError(f"{at}: size {fields[0][:40]!r} is not a number of bytes")
    value = overlap = None
    for name, field in zip(columns, fields, strict=True):
        if value is None and name.startswith(_TIMES):
            value = 1e-6 * _number(field, f"{at}: time", "microseconds")
        elif value is None and name.startswith("bandwidth"):
            value = 1e6 * _number(field, f"{at}: bandwidth", "MB/s")
        elif name.startswith("overlap"):
            overlap = _number(field, f"{at}: overlap", "percent", least=0.0)
    if value is None:
        raise FileError(f"{at}: no column is a latency, a pure communication time or a bandwidth")
    return Row(int(fields[0]), value, overlap)


def _number(field: str, what: str, unit: str, least: float = 1e-12) -> float:
    try:
        found = float(field)
    except ValueError:
        found = math.nan
    if not least <= found < 1e15:
        raise FileError(f"{what} {field[:40]!r} is not a number of {unit} above 0")
    return found


def to_curve(measurement: Measurement, source: str, ranks: int, nodes: int) -> Curve:
    """Return a collective's times as a curve for a profile. Raises FileError for one of point-to-point messages."""
    if measurement.kind == "latency" or measurement.kind == "bandwidth":
        raise FileError(f"{measurement.where}: measures {measurement.kind} between two ranks, no collective")
    share = ranks if measurement.kind == "all_gather" else 1
    try:
        return Curve(
            kind=measurement.kind,
            ranks=ranks,
            nodes=nodes,
            points=tuple((float(row.nbytes * share), row.value) for row in measurement.rows),
            origin="measured",
            source=source,
            uncertainty=RUN_UNCERTAINTY,
        )
    except SimgdError as error:
        raise FileError(f"{measurement.where}: {error}") from None


def to_point_to_point(measurement: Measurement, source: str) -> PointToPoint:
    """Return osu_latency's one-way seconds by size. Raises FileError if there are fewer than two sizes."""
    try:
        return PointToPoint(
            points=tuple((float(row.nbytes), row.value) for row in measurement.rows),
            origin="measured",
            source=source,
            uncertainty=RUN_UNCERTAINTY,
        )
    except SimgdError as error:
        raise FileError(f"{measurement.where}: {error}") from None


def to_rate(measurement: Measurement, source: str, kind: LinkKind) -> LinkRate:
    """Return osu_bw's largest rate as what one cable of a *kind* of link reaches."""
    return LinkRate(
        kind=kind,
        bytes_per_s=max(row.value for row in measurement.rows),
        origin="measured",
        source=source,
        uncertainty=RUN_UNCERTAINTY,
    )
