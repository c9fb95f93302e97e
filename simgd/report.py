"""Tables for people, from the same values that ``--json`` prints."""

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from simgd.explain import Explanation, LinkUse
from simgd.fabrics import Fabric
from simgd.predict import Prediction
from simgd.texttable import Fitting, table
from simgd.topology import Cluster, Link
from simgd.units import show_bytes, show_rate, show_seconds
from simgd.workload import Workload

#: A critical cycle has hundreds of steps; the table shows the longest ones.
SHOWN_STEPS = 12

#: Of a machine with more links, those that are alike stand in one row.
SHOWN_LINKS = 80

#: What gains less stands in one line under the table.
LEAST_GAIN = 0.0001


def weaker_than_published(prediction: Prediction) -> bool:
    """Say whether a prediction rests on anything weaker than published costs."""
    return prediction.origin in ("modelled", "assumed")


def predictions(rows: Sequence[Prediction], verdict: str) -> RenderableType:
    """Return the table of predictions with its verdict."""
    first = rows[0]
    made = table(
        "ranks",
        "schedule",
        "iteration",
        "90 % interval",
        "over sync",
        f"over {first.baseline}",
        "over one",
        "efficiency",
        "compute",
        "comm alone",
        "exposed",
        "host stall",
        "stale",
        "memory",
        "bound by",
        left=2,
        title=f"{first.workload} on {first.cluster}, batch {first.batch_per_rank} a rank"
        if len({row.batch_per_rank for row in rows}) == 1
        else f"{first.workload} on {first.cluster}",
    )
    last = None
    for row in rows:
        mark = "~" if weaker_than_published(row) else ""
        made.add_row(
            str(row.ranks) if row.ranks != last else "",
            row.schedule,
            f"{mark}{show_seconds(row.iteration_s)}",
            f"{show_seconds(row.iteration_low_s)} .. {show_seconds(row.iteration_high_s)}",
            f"{row.speedup_over_sync:.3f}x",
            f"{row.speedup_over_baseline:.3f}x",
            f"{row.speedup_over_one:.2f}x",
            f"{100 * row.efficiency:.1f} %",
            show_seconds(row.compute_s),
            show_seconds(row.communication_s),
            show_seconds(row.exposed_communication_s),
            show_seconds(row.host_stall_s),
            str(row.staleness),
            ("> " if row.memory_is_least else "")
            + show_bytes(row.peak_memory_bytes)
            + ("" if row.memory_fits else " !"),
            row.bound_by,
            end_section=False,
        )
        last = row.ranks
    spare = ("host stall", "comm alone", "compute", "90 % interval", f"over {first.baseline}", "memory", "efficiency")
    fitting = Fitting(made, (*spare, "bound by", "stale", "exposed"))
    return Group(fitting, *(Text(line) for line in _footnotes(rows)), Text(f"verdict: {verdict}", style="bold"))


def _footnotes(rows: Sequence[Prediction]) -> Iterable[str]:
    most = max(rows, key=lambda row: (row.ranks, len(row.origins)))
    by_origin: dict[str, list[str]] = {}
    for part, origin in most.origins.items():
        by_origin.setdefault(origin, []).append(part)
    rests = "; ".join(f"{origin}: {', '.join(parts)}" for origin, parts in by_origin.items())
    yield f"profile {most.profile}; what the numbers rest on: {rests}" + (
        "  (~: weaker than published)" if any(weaker_than_published(row) for row in rows) else ""
    )
    algorithms = dict.fromkeys(name for row in rows if row.ranks == most.ranks for name in row.algorithms)
    if algorithms:
        yield f"collectives on {most.ranks} ranks: {', '.join(algorithms)}"
    if any(row.extrapolated for row in rows):
        yield "some costs were taken beyond where they were measured or published (extrapolated)"
    unsteady = [row for row in rows if not row.repeats]
    for row in unsteady:
        yield (
            f"{row.schedule} on {row.ranks} ranks: no steady state within the limit; its time is the mean of the last "
            f"{row.steady_iterations} iterations"
        )
    if not unsteady:
        warm = max(row.warm_up_iterations for row in rows)
        cycle = max(row.steady_iterations for row in rows)
        every = "iteration" if cycle == 1 else f"{cycle} iterations"
        yield f"steady state: repeats exactly every {every}, after {_count(warm, 'iteration')}" + (
            " or fewer" if warm and len(rows) > 1 else ""
        )
    if any(not row.memory_fits for row in rows):
        yield "!: more than the device's memory"


def explanation(found: Explanation) -> RenderableType:
    """Return the critical cycle of one schedule, and what would move it."""
    parts = table("on the critical cycle", "time", "share", "rests on", left=1)
    for part, seconds in sorted(found.shares.items(), key=lambda item: -item[1]):
        share = f"{100 * seconds / found.critical_cycle_s:.1f} %" if found.critical_cycle_s else "-"
        parts.add_row(part, show_seconds(seconds), share, found.origins.get(part, "-"))
    if found.interference_s > 0:
        share = f"+{100 * found.interference_s / found.critical_cycle_s:.1f} %"
        parts.add_row("interference", show_seconds(found.interference_s), share, found.origins.get("interference", "-"))
    steps = table(
        "longest steps of the cycle",
        "what",
        "time",
        "iterations later",
        left=2,
        title=f"{len(found.cycle)} steps in all, the {min(SHOWN_STEPS, len(found.cycle))} longest:",
    )
    for step in sorted(found.cycle, key=lambda step: -step.seconds)[:SHOWN_STEPS]:
        steps.add_row(step.op, step.what, show_seconds(step.seconds), str(step.lag) if step.lag else "")
    moves = table("if 10 % better", "iteration", "faster by", left=1)
    moving = [change for change in found.changes if abs(change.gain) >= LEAST_GAIN]
    for change in moving:
        moves.add_row(change.resource, show_seconds(change.iteration_s), f"{100 * change.gain:.2f} %")
    head = (
        f"{found.workload}, {found.schedule}, {_count(found.ranks, 'rank')} of {found.cluster}: "
        f"{show_seconds(found.iteration_s)} an iteration, at least {show_seconds(found.critical_cycle_s)} by the cycle "
        "ratio"
    )
    sections: list[RenderableType] = [Text(head, style="bold"), Text(), parts, Text(), steps, Text(), moves]
    idle = [change.resource for change in found.changes if change not in moving]
    if idle:
        sections.append(Text(f"less than {100 * LEAST_GAIN:g} % from: {', '.join(idle)}"))
    if found.path:
        sections.append(Text(f"collectives cross {found.path}: {', '.join(found.algorithms)}"))
    if found.links:
        sections += [Text(), _links(found.links)]
    return Group(*sections)


def _links(links: Sequence[LinkUse]) -> Table:
    """Return how busy links are, those that are alike in one row."""
    made = table("busiest links", "alike", "busy in the iteration", "while collectives run", left=1)
    alike: dict[tuple[str, str], list[str]] = {}
    for use in links:
        shares = (f"{100 * use.busy:.1f} %", f"{100 * use.busy_in_collectives:.1f} %")
        alike.setdefault(shares, []).append(use.link)
    for shares, names in list(alike.items())[:SHOWN_STEPS]:
        made.add_row(names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}", str(len(names)), *shares)
    return made


def workload(value: Workload) -> RenderableType:
    """Return the layers of a workload."""
    tokens = f", {value.tokens} tokens" if value.tokens else ""
    head = (
        f"{value.name}: {value.parameters:,} parameters in {_count(len(value.layers), 'layer')} and "
        f"{_count(len(value.arrivals), 'tensor')}; usual batch {value.batch} ({value.sample}){tokens}"
    )
    made = table("layer", "parameters", "forward", "backward", "kept", "kernels", left=1)
    batch, length = value.batch, value.tokens
    for layer in value.layers:
        cells = [f"{layer.elements:,}"]
        for work in (layer.forward, layer.backward):
            cells.append("unknown" if work is None else f"{work.flops.at(batch, length) / 1e9:.3g} GFLOP")
        kernels = [str(work.kernels) if work is not None else "?" for work in (layer.forward, layer.backward)]
        made.add_row(layer.name, *cells, show_bytes(layer.kept.at(batch, length)), " + ".join(kernels))
    source = "no source recorded"
    if value.source is not None:
        arguments = ", ".join(f"{key}={argument}" for key, argument in value.source.arguments.items())
        versions = ", ".join(f"{name} {version}" for name, version in value.source.versions.items())
        source = f"counted from {value.source.function}({arguments})" + (f" with {versions}" if versions else "")
    return Group(Text(head, style="bold"), Text(value.description or ""), made, Text(source))


def cluster(value: Cluster, fabric: Fabric | None) -> RenderableType:
    """Return what a cluster is made of, and what its links offer to a collective among all devices."""
    device = value.device
    rates = ", ".join(
        f"{rate / 1e12:.4g} TFLOP/s {name}"
        for name, rate in (("fp32", device.fp32), ("tf32", device.tf32), ("bf16", device.bf16))
        if rate is not None
    )
    lines = [
        f"{value.nodes} x {len(value.devices)} {device.name}: {rates}, {show_bytes(device.memory)} at "
        f"{show_rate(device.memory_rate)}"
    ]
    if value.interconnect is not None:
        net = value.interconnect
        lines.append(
            f"{len(value.nics)} NICs a node, {net.kind} {8e-9 * net.bandwidth:.0f} Gb/s each, "
            f"{'fat tree' if net.topology == 'fat_tree' else 'dragonfly+'} of {net.ports}-port switches"
            + (f", oversubscription {net.oversubscription:g}" if net.oversubscription != 1 else "")
        )
    if fabric is not None:
        lines.append(
            f"rings through all devices: {show_rate(fabric.ring_bytes_per_s)} in all, limited by {fabric.path}"
        )
    made = table("link", "alike", "kind", "cables", "each way", left=1)
    alike: dict[tuple[object, ...], list[Link]] = {}
    for at, link in enumerate(value.links):
        ends = sorted(value.vertices[end] for end in link.ends)
        key = (*ends, link.kind, link.count, link.bandwidth) if len(value.links) > SHOWN_LINKS else (at,)
        alike.setdefault(key, []).append(link)
    for links in alike.values():
        first, last = ("-".join(link.ends) for link in (links[0], links[-1]))
        made.add_row(
            first if len(links) == 1 else f"{first} ... {last}",
            str(len(links)),
            links[0].kind,
            str(links[0].count),
            show_rate(links[0].bandwidth * links[0].count),
        )
    head = f"{value.name}: {value.description}" if value.description else value.name
    sources = [text for text in (value.source, device.source) if text]
    return Group(
        Text(head, style="bold"), *(Text(line) for line in lines), made, *(Text(f"source: {text}") for text in sources)
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
