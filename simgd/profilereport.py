"""Tables of a profile, for people: what was fitted to what, how far it is off, and where each number comes from.

A source that many entries name stands once, below, under its number.
"""

from collections.abc import Iterable
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from simgd.files import plain
from simgd.profile import Curve, Entry, Fit, Host, LayerTimes, Profile, UpdateTime
from simgd.texttable import Fitting, table
from simgd.units import show_bytes, show_rate, show_seconds

#: The lines of more fits than these are left to the file.
SHOWN_FITS = 12


def profile(value: Profile) -> RenderableType:
    """Return what a profile knows, each number with its origin and source, and on what it was measured."""
    sources: dict[str, int] = {}
    tables = [_fits(value, sources), _lines(value), _curves(value, sources)]
    tables += [_layers(value, sources), _others(value, sources)]
    head = f"profile {value.name}: {value.description}" if value.description else f"profile {value.name}"
    spaced = [part for each in tables if each is not None for part in (Text(), each)]
    cited = [Text(f"[{number}] {source}") for source, number in sources.items()]
    return Group(Text(head, style="bold"), *_environment(value), *spaced, Text(), *cited)


def _environment(value: Profile) -> Iterable[Text]:
    made = value.environment
    if made is None:
        return
    hosts: dict[str, int] = {}
    for host in made.hosts:
        gpus = f", {len(host.gpus)} x {host.gpus[0]}" if host.gpus else ""
        what = f"{host.processor}, {_count(host.cores, 'core')}, {show_bytes(host.memory_bytes)}, {host.kernel}{gpus}"
        hosts[what] = hosts.get(what, 0) + 1
    ranks = _count(len(made.host_of_rank), "rank")
    yield Text(f"{ranks} on " + "; ".join(f"{count} x {what}" if count > 1 else what for what, count in hosts.items()))
    yield Text(f"{value.backend or 'library'}: {made.library}, started by {made.launcher}")
    yield Text(", ".join(f"{name} {text}" for name, text in (made.versions | made.settings).items()))
    taken = [made.date, f"commit {made.commit}" if made.commit else ""]
    for line in ("; ".join(text for text in taken if text), made.command):
        if line:
            yield Text(line)


def _cite(entry: Entry, sources: dict[str, int]) -> tuple[str, str, str]:
    """Return an entry's interval, origin and number of its source, which is put into *sources*."""
    number = sources.setdefault(entry.source, len(sources) + 1)
    return f"{100 * entry.uncertainty:.0f} %" if entry.uncertainty else "-", entry.origin, f"[{number}]"


def _fits(value: Profile, sources: dict[str, int]) -> RenderableType | None:
    made = table(
        "fits",
        "ranks",
        "link",
        "sizes",
        "segments",
        "residual",
        "left out",
        "median",
        "ends",
        "repeats",
        "outliers",
        "+-",
        "origin",
        "source",
        left=4,
    )
    for fit in value.fits:
        least, most = fit.range
        unseen = [f"{100 * share:.1f} %" for share in (fit.left_out, fit.left_out_median, fit.extrapolation)]
        made.add_row(
            _kind(fit),
            _ranks(fit),
            show_rate(fit.link_bytes_per_s) if fit.link_bytes_per_s else "",
            f"{len(fit.samples)}, {show_bytes(least)} .. {show_bytes(most)}" if fit.samples else "all",
            str(len(fit.segments)),
            f"{100 * fit.residual:.1f} %" if fit.samples else "-",
            *(unseen if len(fit.samples) > 2 else ["-"] * 3),
            str(sum(each.repeats for each in fit.samples)),
            str(sum(each.outliers for each in fit.samples)),
            *_cite(fit, sources),
        )
    if not value.fits:
        return None
    note = (
        "residual: the largest error at a size; left out: the largest (and the median) at sizes between others that "
        "the fit had not seen; ends: likewise at the smallest and the largest size"
    )
    return Group(Fitting(made, ("ends", "repeats", "link", "outliers", "median", "segments")), Text(note))


def _lines(value: Profile) -> RenderableType | None:
    """Return the segments of all fits, of which a fit has six at most."""
    made = table("lines", "ranks", "from", "latency", "then", left=2)
    for fit in value.fits[:SHOWN_FITS]:
        for place, segment in enumerate(fit.segments):
            per_byte = segment.seconds_per_byte
            made.add_row(
                _kind(fit) if place == 0 else "",
                _ranks(fit) if place == 0 else "",
                show_bytes(segment.from_bytes),
                ("-" if segment.latency_s < 0 else "") + show_seconds(abs(segment.latency_s)),
                show_rate(1 / per_byte) if per_byte else "flat",
            )
    if not value.fits:
        return None
    more = len(value.fits) - SHOWN_FITS
    return Group(made, Text(f"and those of {_count(more, 'more fit')}")) if more > 0 else made


def _curves(value: Profile, sources: dict[str, int]) -> RenderableType | None:
    made = table("curves", "ranks", "sizes", "times", "+-", "origin", "source", left=4)
    for curve in value.curves:
        (least, first), (most, last) = curve.points[0], curve.points[-1]
        sizes = f"{len(curve.points)}, {show_bytes(least)} .. {show_bytes(most)}"
        times = f"{show_seconds(first)} .. {show_seconds(last)}"
        made.add_row(_kind(curve), _ranks(curve), sizes, times, *_cite(curve, sources))
    return made if value.curves else None


def _kind(entry: Fit | Curve) -> str:
    return entry.kind.replace("_", "-")


def _ranks(entry: Fit | Curve) -> str:
    return f"{entry.ranks} on {_count(entry.nodes, 'node')}"


def _layers(value: Profile, sources: dict[str, int]) -> RenderableType | None:
    made = table("layers", "batch", "pass", "layers", "in all", "rest of the loop", "+-", "origin", "source", left=3)
    for each in value.layers:
        made.add_row(
            each.workload + (f", {each.tokens} tokens" if each.tokens else ""),
            f"{each.batch or 'unknown'} {each.dtype}",
            each.direction,
            str(len(each.seconds)),
            show_seconds(sum(each.seconds.values())),
            show_seconds(each.rest_s) if each.rest_s else "-",
            *_cite(each, sources),
        )
    return made if value.layers else None


def _others(value: Profile, sources: dict[str, int]) -> RenderableType | None:
    made = table("entries", "value", "+-", "origin", "source", left=2)
    made.columns[1].no_wrap = False
    made.columns[1].max_width = 96
    for entry in entries(value):
        if not isinstance(entry, (Fit, Curve, LayerTimes)):
            made.add_row(type(entry).__name__, _short(entry), *_cite(entry, sources))
    return made if made.rows else None


def entries(value: Profile) -> Iterable[Entry]:
    """Yield all entries of a profile."""
    for name in value.__struct_fields__:
        found = getattr(value, name)
        if isinstance(found, Entry):
            yield found
        elif isinstance(found, tuple):
            yield from (entry for entry in found if isinstance(entry, Entry))


def _short(entry: Entry) -> str:
    """Return what an entry says, with units by the names of its fields; what is 0 goes unsaid, as it costs nothing."""
    said = {key: item for key, item in plain(entry).items() if key not in Entry.__struct_fields__}
    parts = [f"{key} {_unit(entry, key, item)}" for key, item in said.items() if item != 0]
    return ", ".join(parts) or "nothing"


def _unit(entry: Entry, key: str, item: Any) -> str:
    match item:
        case bool() | str() | int():
            return str(item)
        case float() if key.endswith("bytes_per_s"):
            return show_rate(item)
        case float() if key.endswith("bytes"):
            return show_bytes(item)
        case float() if key.endswith(("_s", "seconds", "kernel", "_per_byte")) or isinstance(entry, Host):
            return show_seconds(item)
        case float():
            return f"{item:.4g}"
        case [[float() | int() as size, *_], *_] if key == "points":
            last = item[-1]
            ends = [
                f"{each:.4g} elements" if isinstance(entry, UpdateTime) else show_bytes(each)
                for each in (size, last[0])
            ]
            return f"{len(item)}, {' .. '.join(ends)} in {show_seconds(last[1])}"
        case [float() | int() as first, *_] if len(item) > 2 and key.endswith("_s"):
            return f"{len(item)} quantiles, {_signed(first)} .. {_signed(item[-1])}"
        case [float() | int() as first, *_] if len(item) > 2:
            return f"{len(item)} quantiles, {first:.3g} .. {item[-1]:.3g}"
        case [[float() | int(), float() | int()], *_]:
            return ", ".join(f"{count:g} at {show_bytes(nbytes)}" for nbytes, count in item)
        case [{"name": _}, *_]:
            return ", ".join(str(each["name"]) for each in item)
        case list() | tuple() | dict():
            return f"{len(item)} values"
        case _:
            return str(item)


def _signed(seconds: float) -> str:
    return f"{'-' if seconds < 0 else ''}{show_seconds(abs(seconds))}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
