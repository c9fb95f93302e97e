"""Tables of a measured run, for people."""

from statistics import median

from rich.console import Group, RenderableType
from rich.text import Text

from simgd.run import Run, counted
from simgd.texttable import table
from simgd.units import show_bytes, show_seconds

#: Ops that the table shows: those that took longest.
SHOWN_OPS = 12


def run(made: Run) -> RenderableType:
    """Return the tables of a run: the whole iteration, and the ops that take longest."""
    spread = made.iteration
    rows = [
        ("iteration of all ranks", f"{_s(spread.median)}  (p5 {_s(spread.p5)}, p95 {_s(spread.p95)})"),
        ("compute", f"{_s(made.compute_s)}  ({_s(made.compute_before_s)} before, {_s(made.compute_after_s)} after)"),
        ("communication", f"{_s(made.communication_s)}  (each collective alone)"),
        ("exposed communication", _s(made.exposed_communication_s) + _overlap(made)),
        ("throughput", f"{made.samples_per_s:.4g} {made.workload.sample}s/s"),
        (
            "peak memory",
            f"{show_bytes(max(made.peak_memory_bytes))}, of it buffers of messages {show_bytes(made.buffer_bytes)}",
        ),
        ("staleness", _staleness(made)),
        ("loss", _loss(made)),
        ("clocks", _clocks(made)),
        ("tracing", _tracing(made)),
        ("on", _hosts(made)),
        ("library", f"{made.environment.library}, progress {made.progress}"),
    ]
    title = f"{made.schedule.name}, {made.workload.name}, {made.ranks} ranks, {made.backend}"
    figures = table(title, "", left=2)
    for name, text in rows:
        if text:
            figures.add_row(name, text)
    ops = table("op", "lane", "median", "p95", left=2)
    longest = sorted(made.ops.items(), key=lambda item: -max(item[1].median_s))[:SHOWN_OPS]
    for name, times in longest:
        ops.add_row(name, times.lane, _s(max(times.median_s)), _s(max(times.p95_s)))
    kept = counted(made.steps, made.warm_up, made.left_out)
    where = "on the slowest rank" + (", in the traced iterations" if made.progress == "device" else "")
    note = f"figures count {len(kept)} of {made.steps} iterations; the {len(longest)} longest ops, {where}:"
    return Group(figures, Text(), Text(note), ops)


def _s(seconds: float) -> str:
    return show_seconds(seconds)


def _overlap(made: Run) -> str:
    return "" if made.overlap is None else f"  ({made.overlap:.0%} of communication hidden)"


def _staleness(made: Run) -> str:
    ages = {int(age) for found in made.staleness.values() for age in found}
    return f"{max(ages, default=0)}, as applied"


def _loss(made: Run) -> str:
    if not made.losses or not made.losses[0]:
        return ""
    first, last = (median(own[place] for own in made.losses) for place in (0, -1))
    return f"{first:.4g} in the first, {last:.4g} in the last iteration"


def _clocks(made: Run) -> str:
    others = made.clocks[1:]
    if not others:
        return ""
    worst = max(others, key=lambda clock: abs(clock.estimate_s))
    text = f"offsets to rank 0 up to {_s(abs(worst.estimate_s))} +- {_s(worst.uncertainty_s)}"
    if all(clock.shared for clock in others):
        return text + "; one host, one clock: none corrected"
    return f"{text}, drift up to {max(abs(clock.drift) for clock in others) * 1e6:.2g} us/s; corrected between hosts"


def _tracing(made: Run) -> str:
    cost = made.tracing
    text = f"{cost.events:.0f} events of {_s(cost.event_s)} an iteration: {cost.share:.2%} of it"
    if cost.traced_over_untraced != 1:
        text += f"; traced iterations took {cost.traced_over_untraced:.3g} times as long"
    return text


def _hosts(made: Run) -> str:
    hosts = made.environment.hosts
    first = hosts[0]
    gpus = f", {len(first.gpus)} x {first.gpus[0]}" if first.gpus else ""
    count = f"{len(hosts)} host{'s' if len(hosts) > 1 else ''}"
    return f"{count}: {first.processor}, {first.cores} cores{gpus}, {first.kernel}"
