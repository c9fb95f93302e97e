"""Collectives by message size, as nccl-tests tabulates them, predicted, beside a measurement, and beside others."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

from rich.table import Table

from simgd.collectives import bus_bytes_per_s
from simgd.errors import ClusterError
from simgd.files import Value
from simgd.network import Call, Demand, Fidelity, Network
from simgd.profile import CollectiveKind, Origin
from simgd.texttable import table as empty_table
from simgd.topology import Cluster
from simgd.transfers import Copy
from simgd.units import show_bytes, show_rate, show_seconds

KINDS: tuple[CollectiveKind, ...] = get_args(CollectiveKind)
FIDELITIES: tuple[Fidelity, ...] = get_args(Fidelity)

#: What runs at the same time: the same collective on these devices, or a copy of as many bytes to each device.
Job = tuple[int, ...] | Literal["copies"]


class Row(Value, frozen=True, kw_only=True, omit_defaults=False):
    """One collective of one size; the measured fields are None without a measurement. Bus bandwidth is nccl-tests'.

    `beside_s` is its time while others run beside it, None without them.
    """

    kind: CollectiveKind
    cluster: str
    ranks: int
    bytes: int
    algorithm: str
    time_s: float
    bus_bytes_per_s: float
    origin: Origin
    uncertainty: float
    extrapolated: bool
    beside_s: float | None = None
    measured_s: float | None = None
    relative_error: float | None = None


def predicted(
    network: Network,
    kind: CollectiveKind,
    ranks: Iterable[int],
    sizes: Sequence[int],
    devices: tuple[int, ...] | None,
    jobs: Sequence[Job] = (),
) -> tuple[Row, ...]:
    """Return a row for each number of ranks and size; *devices* are the ones to use, in order, while *jobs* run."""
    rows = []
    for count in ranks:
        chosen = devices[:count] if devices is not None else None
        for size in sizes:
            call = Call(kind, size, count, chosen)
            demand = network.demand(call)
            beside_s = _beside_s(network, call, jobs) if jobs else None
            rows.append(_row(network.cluster, kind, count, size, demand, beside_s=beside_s))
    return tuple(rows)


def _beside_s(network: Network, call: Call, jobs: Sequence[Job]) -> float:
    taken = set(call.devices if call.devices is not None else range(call.ranks))
    for job in jobs:
        if job != "copies":
            if both := sorted(taken & set(job)):
                raise ClusterError(f"--beside: device {both[0]} is of two jobs; each needs devices of its own")
            taken |= set(job)
    others = [Call(call.kind, call.nbytes, len(job), job) for job in jobs if job != "copies"]
    copies = [
        Copy(device, call.nbytes)
        for job in jobs
        if job == "copies"
        for device in (call.devices if call.devices is not None else range(call.ranks))
    ]
    return network.together([call, *others], copies)[0]


def compared(network: Network, comparisons: Iterable[Any], kind: CollectiveKind, ranks: int) -> tuple[Row, ...]:
    """Return a row for each measured size, with the error of the prediction."""
    return tuple(
        _row(
            network.cluster,
            kind,
            ranks,
            found.nbytes,
            found.predicted,
            measured_s=found.measured_s,
            relative_error=found.relative_error,
        )
        for found in comparisons
    )


def _row(
    cluster: Cluster,
    kind: CollectiveKind,
    ranks: int,
    nbytes: int,
    demand: Demand,
    *,
    beside_s: float | None = None,
    measured_s: float | None = None,
    relative_error: float | None = None,
) -> Row:
    return Row(
        kind=kind,
        cluster=cluster.name,
        ranks=ranks,
        bytes=nbytes,
        algorithm=demand.algorithm,
        time_s=demand.solo_s,
        bus_bytes_per_s=bus_bytes_per_s(kind, ranks, nbytes, demand.solo_s),
        origin=demand.origin,
        uncertainty=demand.uncertainty,
        extrapolated=demand.extrapolated,
        beside_s=beside_s,
        measured_s=measured_s,
        relative_error=relative_error,
    )


def table(rows: Sequence[Row]) -> Table:
    """Return the rows as a table; ~ marks what rests on less than published costs."""
    beside = any(row.beside_s is not None for row in rows)
    measured = any(row.measured_s is not None for row in rows)
    columns = ["ranks", "bytes", "size", "time", "bus bandwidth", "+-", "origin", "algorithm"]
    columns += ["beside others", "slower by"] if beside else []
    made = empty_table(*columns, *(["measured", "error"] if measured else []), left=0)
    for row in rows:
        mark = "~" if row.origin in ("modelled", "assumed") else ""
        cells = [
            str(row.ranks),
            str(row.bytes),
            show_bytes(row.bytes),
            f"{mark}{show_seconds(row.time_s)}",
            show_rate(row.bus_bytes_per_s),
            f"{100 * row.uncertainty:.0f} %",
            row.origin + (" (extrapolated)" if row.extrapolated else ""),
            row.algorithm,
        ]
        if row.beside_s is not None:
            slower = f"{100 * (row.beside_s / row.time_s - 1):+.1f} %" if row.time_s else "-"
            cells += [show_seconds(row.beside_s), slower]
        if row.measured_s is not None and row.relative_error is not None:
            cells += [show_seconds(row.measured_s), f"{100 * row.relative_error:+.1f} %"]
        made.add_row(*cells)
    return made
