"""Reads what nccl-tests prints, as a curve for a profile or to lay beside a prediction.

Formats
    One table a file: a header with `# nThread .. nGpus ..`, `#  Rank ..` lines, a line of column names, rows, and
    `# Out of bounds values`. The column names say which columns a row has, so that all versions are read: before 2.13
    (`error`, no `Group`, `root` only where there is one), since then (`#wrong`), since 2.17 (the collective's name).
    mpirun's and srun's tags before each line, NCCL's own messages and other talk before the table are passed over.

"size" counts the whole buffer: what each rank gives to an all-reduce or reduce-scatter, or receives from an all-gather
or broadcast; so does simgd. Times are means over the iterations that nccl-tests made, and hold no spread.
"""

import math
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, get_args

from simgd import files
from simgd.errors import ClusterError, FileError
from simgd.network import Call, Demand, Network
from simgd.profile import CollectiveKind, Curve

#: 90 % interval of a curve from one run: single measurements over NVLink and host memory repeated to 1 %, over sockets
#: to 3-7 % (half-spread of 3, four H200).
RUN_UNCERTAINTY = 0.05

_KINDS: tuple[CollectiveKind, ...] = get_args(CollectiveKind)
_TAG = re.compile(r"\s*(?:\[\d+,\d+\]<std(?:out|err)>:|\d+:)\s?")
_RANK = re.compile(r"#\s*Rank\s+(\d+)\s+(?:Group\s+(\d+)\s+)?Pid\s+\d+\s+on\s+(\S*?)\s*device\s+(\d+)", re.ASCII)
_SHAPE = re.compile(r"#\s*nThread\s+(\d+)\s+nGpus\s+(\d+)\s", re.ASCII)
_NAME = re.compile(r"\b([a-z]+(?:_[a-z]+)*)_perf")
#: What nccl-tests calls otherwise: `sendrecv` sends to the next rank and receives from the one before.
_CALLED = {"alltoall": "all_to_all", "sendrecv": "exchange"}
_COLUMNS = re.compile(r"#\s*size\s+count\s+type\s")
_WRONG = re.compile(r"#\s*Out of bounds values\s*:\s*(\d+)\s*(\S*)", re.ASCII)
_TALK = re.compile(r"NCCL (INFO|WARN|version)|^\S+:\d+:\d+ ")


class Row(NamedTuple):
    """Times of one message size; None where the test did not run in place."""

    nbytes: int
    out_of_place_s: float
    in_place_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one run of nccl-tests found: rows in the order of the file, without messages of 0 bytes."""

    where: str
    kind: CollectiveKind
    ranks: int
    nodes: int
    rows: tuple[Row, ...]


class Comparison(NamedTuple):
    """A measured time beside the predicted demand; `relative_error` is (predicted - measured) / measured."""

    nbytes: int
    measured_s: float
    predicted: Demand
    relative_error: float


def read(path: str | Path, kind: CollectiveKind | None = None) -> Measurement:
    """Return the measurement in a file of nccl-tests' output; see `parse`."""
    try:
        text = files.read_bytes(path).decode()
    except UnicodeDecodeError:
        raise FileError(f"{path}: is not text in UTF-8") from None
    return parse(text, str(path), kind)


def parse(
    text: str, where: str, kind: CollectiveKind | None = None, ranks: int | None = None, nodes: int | None = None
) -> Measurement:
    """Return the measurement that *text* holds; *where* names it in errors.

    The collective is what the text says; older versions do not, hence *kind*. *ranks* and *nodes* are needed only if
    the text has no `# Rank` lines. Raises FileError with the number of a line that cannot be read, or with what is
    missing.
    """
    columns: list[str] | None = None
    rows: list[Row] = []
    hosts: dict[int, str] = {}
    groups: set[str] = set()
    per_process = 0
    ended = False
    for number, raw in enumerate(text.splitlines(), start=1):
        tag = _TAG.match(raw)
        line = raw[tag.end() if tag else 0 :].strip()
        at = f"{where}: line {number}"
        if found := _RANK.match(line):
            rank = int(found[1])
            if rank in hosts and columns is None:
                raise FileError(f"{at}: rank {rank} stands twice; a file holds the output of one run")
            hosts[rank] = found[3]
            groups.add(found[2] or "0")
        elif found := _SHAPE.match(line):
            per_process = int(found[1]) * int(found[2])
        elif _COLUMNS.match(line):
            if columns is not None:
                raise FileError(f"{at}: a second table begins; a file holds the output of one run")
            columns = _columns(line, at)
        elif found := _WRONG.match(line):
            ended = True
            if int(found[1]):
                raise FileError(f"{at}: the test found {found[1][:20]} wrong values; its times mean nothing")
        elif line and not line.startswith("#") and columns is not None and not ended and not _TALK.search(line):
            row = _row(line, columns, at)
            if row.nbytes:
                rows.append(row)
    if columns is None:
        raise FileError(f"{where}: has no line of columns ('# size count type ...'); it is no output of nccl-tests")
    if not rows:
        raise FileError(f"{where}: has no rows; the run ended before its first result")
    ranks, nodes = _places(where, hosts, groups, per_process, ranks, nodes)
    return Measurement(where=where, kind=_kind(where, text, kind), ranks=ranks, nodes=nodes, rows=tuple(rows))


def _columns(line: str, at: str) -> list[str]:
    names = line.lstrip("#").split()
    if "time" not in names or names.count("time") > 2:
        raise FileError(f"{at}: columns are {' '.join(names)[:80]!r}; one or two must be called 'time'")
    return names


def _row(line: str, columns: list[str], at: str) -> Row:
    fields = line.split()
    if len(fields) != len(columns):
        raise FileError(f"{at}: {line[:60]!r} has {len(fields)} fields; the columns are {len(columns)}")
    if not fields[0].isascii() or not fields[0].isdigit() or len(fields[0]) > 18:
        raise FileError(f"{at}: size {fields[0][:40]!r} is not a number of bytes")
    nbytes = int(fields[0])
    times: list[float | None] = []
    for name, field in zip(columns, fields, strict=True):
        if name == "time":
            times.append(None if field == "N/A" else _seconds(field, at))
    if times[0] is None:
        raise FileError(f"{at}: has no out-of-place time")
    return Row(nbytes, times[0], times[1] if len(times) > 1 else None)


def _seconds(field: str, at: str) -> float:
    try:
        found = 1e-6 * float(field)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise FileError(f"{at}: time {field[:40]!r} is not a number of microseconds above 0")
    return found


def _places(
    where: str, hosts: dict[int, str], groups: set[str], per_process: int, ranks: int | None, nodes: int | None
) -> tuple[int, int]:
    """Return the number of ranks and nodes, from the `# Rank` lines or, for a single process, its threads and GPUs."""
    if len(groups) > 1:
        raise FileError(f"{where}: has {len(groups)} groups of ranks; run nccl-tests without splitting them")
    if hosts:
        for rank in range(len(hosts)):
            if rank not in hosts:
                raise FileError(f"{where}: has no line '# Rank {rank}', but {len(hosts)} others")
        if ranks not in (None, len(hosts)):
            raise FileError(f"{where}: names {len(hosts)} ranks, not {ranks}")
        return len(hosts), len(set(hosts.values()))
    if ranks is None and per_process > 1:
        ranks = per_process
    if ranks is None:
        raise FileError(f"{where}: has no '# Rank' lines; say how many ranks ran")
    nodes = 1 if nodes is None else nodes
    if ranks < 1 or nodes < 1 or nodes > ranks:
        raise FileError(f"{where}: {ranks} ranks on {nodes} nodes are impossible")
    return ranks, nodes


def _kind(where: str, text: str, kind: CollectiveKind | None) -> CollectiveKind:
    said = list(dict.fromkeys(_CALLED.get(name, name) for name in _NAME.findall(text)))
    known = f"it must be one of {', '.join(_KINDS)}"
    if len(said) > 1:
        raise FileError(
            f"{where}: names several collectives ({', '.join(said)[:60]}); a file holds the output of one run"
        )
    if not said:
        if kind is None:
            raise FileError(f"{where}: does not say which collective was measured; {known}")
        return kind
    for candidate in _KINDS:
        if candidate == said[0]:
            if kind not in (None, candidate):
                raise FileError(f"{where}: measures {candidate}, not {kind}")
            return candidate
    raise FileError(f"{where}: measures {said[0][:40]!r}; {known}")


def to_curve(measurement: Measurement, source: str) -> Curve:
    """Return the out-of-place times as a curve for a profile; of several rows of one size the median."""
    times: dict[int, list[float]] = {}
    for row in measurement.rows:
        times.setdefault(row.nbytes, []).append(row.out_of_place_s)
    return Curve(
        kind=measurement.kind,
        ranks=measurement.ranks,
        nodes=measurement.nodes,
        points=tuple((float(size), statistics.median(times[size])) for size in sorted(times)),
        origin="measured",
        source=source,
        uncertainty=RUN_UNCERTAINTY,
    )


def compare(measurement: Measurement, network: Network) -> tuple[Comparison, ...]:
    """Return what *network* predicts beside each measured row.

    Raises ClusterError if the network's cluster cannot hold the ranks as they were dealt out to nodes.
    """
    ranks, nodes = measurement.ranks, measurement.nodes
    devices = network.spread(ranks, nodes)
    if devices is None:
        cluster = network.cluster
        raise ClusterError(
            f"{measurement.where}: was measured with {ranks} ranks on {_nodes(nodes)}; cluster {cluster.name!r} has "
            f"{_nodes(cluster.nodes)} of {len(cluster.devices)} devices"
        )
    rows = []
    for row in measurement.rows:
        demand = network.demand(Call(measurement.kind, row.nbytes, ranks, devices))
        error = (demand.solo_s - row.out_of_place_s) / row.out_of_place_s
        rows.append(Comparison(row.nbytes, row.out_of_place_s, demand, error))
    return tuple(rows)


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"
