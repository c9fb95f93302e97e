"""The tables of README.md: `python -m studies.nccl_protocols.tables` prints them, with `write` it puts them there.

Measured times are those of h200x2.json, medians of captured graphs. "Formula" is NCCL's tuning model with its published
constants and nothing else; "simgd" adds to it what `simgd.nccl` names.
"""

import json
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from simgd import catalogue, nccl
from simgd.network import Network
from simgd.profile import Profile
from tests import curves
from tests.curves import KIB, MIB, Figures, figures, shown_bytes

HERE = Path(__file__).parent
RANKS = 2
FORCED = [(algorithm, protocol) for algorithm in ("Ring", "Tree") for protocol in ("LL", "LL128", "Simple")]
SIZES = (KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB, 1024 * MIB)

#: What the parts of the model add: each is taken away alone, at last all of them, which leaves NCCL's formula on the
#: graph's bandwidths.
PARTS = (
    "channels opened by bytes",
    "the last chunk",
    "channels at all",
    "rounds of NVLS",
    "the kernel",
    "all of these",
)


def measured(kind: str = "all_reduce", **setting: str) -> dict[int, float]:
    """Return median seconds by bytes, of one operation in a captured graph, with these variables of NCCL."""
    (rows,) = [each["rows"] for each in _record() if each["setting"] == setting]
    return {row["bytes"]: row["graph_s"] for row in rows if row["kind"] == kind}


@cache
def _record() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((HERE / "h200x2.json").read_text())
    return found


def forced(algorithm: str, protocol: str, channels: int | None = None) -> dict[int, float]:
    """Return median seconds by bytes of all-reduces with one algorithm and protocol, and so many channels at most."""
    most = {} if channels is None else {"NCCL_MAX_NCHANNELS": str(channels), "NCCL_MIN_NCHANNELS": "1"}
    return measured(NCCL_ALGO=algorithm, NCCL_PROTO=protocol, **most)


@cache
def candidates() -> dict[str, nccl.Candidate]:
    """Return the model's algorithms of an all-reduce of two H200."""
    profile = catalogue.profile("dgx-h200")
    assert profile.library is not None
    assert profile.memory is not None
    fabric = curves.network("dgx-h200").fabric(RANKS)
    found = nccl.candidates("all_reduce", fabric, profile.library, profile.memory.kernel)
    return {each.algorithm: each for each in found}


def candidate(algorithm: str, protocol: str) -> nccl.Candidate:
    """Return the model of a forced algorithm."""
    return candidates()[f"{algorithm.lower()}/{protocol}"]


def mean_errors(algorithm: str, protocol: str) -> tuple[Figures, Figures]:
    """Return the errors of the formula and of simgd, over all sizes."""
    model, times = candidate(algorithm, protocol), forced(algorithm, protocol).items()
    formula = figures(model.estimate_s(nbytes) / seconds - 1 for nbytes, seconds in times)
    return formula, figures(model.seconds(nbytes) / seconds - 1 for nbytes, seconds in times)


def channel_bytes_per_s(algorithm: str, protocol: str, channels: int) -> float:
    """Return what each of so many channels moved of an all-reduce of 64 MiB."""
    return 64 * MIB / forced(algorithm, protocol, channels)[64 * MIB] / channels


def without(profile: Profile, part: str) -> Profile:
    """Return a profile whose model lacks a part."""
    change = msgspec.structs.replace
    library, memory = profile.library, profile.memory
    assert library is not None
    assert memory is not None
    changes: dict[str, dict[str, Any]] = {
        "channels opened by bytes": {"least_bytes": 0.0, "least_bytes_a_rank": 0.0},
        "the last chunk": {"chunk": 0.0},
        "channels at all": {"channel_bytes_per_s": (), "tree_channel_bytes_per_s": ()},
    }
    match part:
        case "rounds of NVLS":
            # so many channels that all bytes pass in one round, of which next to nothing is left
            return change(profile, library=change(library, nvls_channels=10**9))
        case "the kernel":
            return change(profile, memory=change(memory, kernel=0.0))
        case "all of these":
            for each in ("channels at all", "rounds of NVLS", "the kernel"):
                profile = without(profile, each)
            return profile
        case _:
            protocols = tuple(change(protocol, **changes[part]) for protocol in library.protocols)
            return change(profile, library=change(library, protocols=protocols))


def captured_errors(part: str | None, group: str) -> list[curves.Error]:
    """Return the errors of captured runs of a group, with a model that lacks a part."""
    found = []
    for run in curves.RUNS:
        if run.group == group:
            whole = curves.network(run.cluster)
            network = whole if part is None else Network(whole.cluster, without(whole.profile, part))
            found += curves.errors(run, network)
    return found


# --- tables -------------------------------------------------------------------------------------------------------


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _error(predicted_s: float, measured_s: float) -> str:
    """Return the error in per cent; no "-0"."""
    return f"{round(100 * (predicted_s / measured_s - 1)):+d}"


def times() -> list[str]:
    """Return measured microseconds by algorithm and size."""
    rows = [
        [f"{algorithm}, {protocol}", *(f"{1e6 * forced(algorithm, protocol)[nbytes]:.1f}" for nbytes in SIZES)]
        for algorithm, protocol in FORCED
    ]
    rows.append(["NCCL's choice", *(f"{1e6 * measured()[nbytes]:.1f}" for nbytes in SIZES)])
    return _markdown(["µs", *map(shown_bytes, SIZES)], rows)


def model_errors() -> list[str]:
    """Return the errors of the formula and of simgd by algorithm and size, and their means over all sizes."""
    rows = []
    for algorithm, protocol in FORCED:
        model, seconds = candidate(algorithm, protocol), forced(algorithm, protocol)
        formula, simgd = mean_errors(algorithm, protocol)
        cells = [
            " / ".join(_error(says(nbytes), seconds[nbytes]) for says in (model.estimate_s, model.seconds))
            for nbytes in SIZES
        ]
        rows.append([f"{algorithm}, {protocol}", *cells, f"{formula.mean:.0f} / {simgd.mean:.0f}"])
    return _markdown(["formula / simgd, %", *map(shown_bytes, SIZES), "mean of 21 sizes"], rows)


def rates() -> list[str]:
    """Return what a channel moves, measured and published."""
    profile = catalogue.profile("dgx-h200")
    assert profile.library is not None
    published = {each.name: each for each in profile.library.protocols}
    rows = []
    for algorithm, protocol in FORCED:
        each = published[protocol]
        constant = (each.channel_bytes_per_s if algorithm == "Ring" else each.tree_channel_bytes_per_s)[0]
        limits = (1, 2, 4, 8) if algorithm == "Ring" else (1,)
        cells = [f"{1e-9 * channel_bytes_per_s(algorithm, protocol, most):.1f}" for most in limits]
        cells += ["-"] * (4 - len(cells))
        rows.append([f"{algorithm}, {protocol}", *cells, f"{1e-9 * constant:.1f}"])
    return _markdown(["GB/s a channel", "1 channel", "2", "4", "8", "constant"], rows)


def opened() -> list[str]:
    """Return microseconds of small all-reduces in rings, by how many channels there may be."""
    sizes = (8 * KIB, 64 * KIB, 256 * KIB, MIB)
    rows = []
    for protocol in ("LL", "LL128", "Simple"):
        for nbytes in sizes:
            cells = [f"{1e6 * forced('Ring', protocol, most)[nbytes]:.1f}" for most in (1, 2, 4, 8, None)]
            rows.append([f"{protocol}, {shown_bytes(nbytes)}", *cells])
    return _markdown(["µs", "1 channel", "2", "4", "8", "any"], rows)


def kinds() -> list[str]:
    """Return what NCCL takes by its own choice, and simgd's error."""
    network = curves.network("dgx-h200")
    rows = []
    for kind in ("all_reduce", "all_gather", "reduce_scatter", "broadcast"):
        seconds = measured(kind)
        cells = [
            f"{1e6 * seconds[nbytes]:.1f} ({_error(network.seconds(kind, nbytes, RANKS), seconds[nbytes])} %)"
            for nbytes in SIZES
        ]
        rows.append([kind, *cells])
    return _markdown(["µs (simgd's error)", *map(shown_bytes, SIZES)], rows)


def parts() -> list[str]:
    """Return the mean errors of captured runs with the whole model and with each part taken away."""
    groups = ("a process a GPU", "one process", "two nodes", "published")
    rows = []
    for part in (None, *PARTS):
        cells = [
            " / ".join(f"{curves.within(found, range_).mean:.1f}" for range_ in curves.RANGES)
            for found in (captured_errors(part, group) for group in groups)
        ]
        rows.append(["the whole model" if part is None else f"without {part}", *cells])
    return _markdown(["mean error in %, 64 KiB-4 MiB / from 16 MiB", *groups], rows)


def between() -> list[str]:
    """Return the errors at sizes left out of captured curves, by rule and by how many are kept."""
    rows = []
    for gap, kept in ((2, "every second size"), (4, "one of four"), (8, "one of eight")):
        found = [
            figures(error for run in curves.RUNS for error in curves.left_out(run, rule, gap))
            for rule in curves.RULES.values()
        ]
        rows.append([kept, *map(curves.shown, found)])
    return _markdown(["kept", *curves.RULES], rows)


#: The line in README.md that each table stands under.
TABLES: dict[str, Callable[[], list[str]]] = {
    "What the record says: all-reduce on two H200, medians.": times,
    "How far the formula and simgd are from that.": model_errors,
    "What a channel moves: 64 MiB by the time that they take, by the number of channels allowed.": rates,
    "Small messages and the number of channels allowed, rings.": opened,
    "Other collectives, with NCCL's own choice.": kinds,
    "What each part of the model is worth on the captured runs.": parts,
    "Mean / worst error in % at sizes left out.": between,
}


def written(text: str) -> str:
    """Return the text of README.md with its tables made anew."""
    for title, table in TABLES.items():
        before, found, after = text.partition(f"\n{title}\n\n")
        assert found, title
        rest = after[after.index("\n\n") :]
        text = before + found + "\n".join(table()) + rest
    return text


def main(arguments: Sequence[str]) -> None:
    """Print the tables, or write them into README.md."""
    readme = HERE / "README.md"
    if "write" in arguments:
        readme.write_text(written(readme.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        for title, table in TABLES.items():
            print("\n".join([title, "", *table(), ""]))


if __name__ == "__main__":
    main(sys.argv[1:])
