"""SimGrid as judge: when each flow of `cases` ends, by a simulator that shares no code with `simgd`.

    apt-get install python3-simgrid                       # Debian 12: SimGrid 3.32, for Debian's own Python
    /usr/bin/python3 tests/simgrid/judge.py --write       # all cases into golden.json
    /usr/bin/python3 tests/simgrid/judge.py --name NAME   # the answers of some cases, as JSON on standard output

Method
    Each flow is an actor on a pair of hosts of its own, whose route is the flow's links. The actor joins the flows that
    must have ended, sleeps until the flow's start, and sends; its receiver waits from time 0 on. A pair of resources of
    `duplex` is one split-duplex link, any other resource one SHARED link. A latency of kind "route" sits on a link of
    its own that nothing else crosses. SimGrid holds one platform in a process, so each case has a process of its own.

SimGrid is imported only when a case runs; without it this file can be imported and `--help` works.
"""

import argparse
import importlib
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cases

GOLDEN = Path(__file__).parent / "golden.json"

# CM02 with neither factors nor TCP's window nor acknowledgements is plain max-min sharing.
PLAIN = (
    "network/model:CM02",
    "network/crosstraffic:0",
    "network/TCP-gamma:0",
    "network/bandwidth-factor:1",
    "network/latency-factor:1",
    "network/weight-S:0",
)

# Both precisions are finer than SimGrid's own (1e-9 s, 1e-5 bytes/s): a message of 60 kB on 12.5 GB/s takes 5e-6 s.
OPTIONS = (*PLAIN, "surf/precision:1e-12", "maxmin/precision:1e-9")

# An answer keeps 12 digits; the tests ask for 0.5 %.
DIGITS = 12

# A case takes less than a second; a simulation that never ends must not hold up a test.
CASE_LIMIT_S = 60

# A link that carries only a latency: far above any rate here, so it never limits.
FREE_BYTES_PER_S = 1e15


def run(case: dict[str, Any]) -> list[float]:
    """Return the seconds at which each flow of *case* (a `cases.Case` as a dict) ends; one call in a process."""
    sg = importlib.import_module("simgrid")
    engine = sg.Engine(["judge", *(f"--cfg={option}" for option in OPTIONS), "--log=root.thres:warning"])
    zone = sg.NetZone.create_full_zone("zone")
    through = _links(sg, zone, case)
    pairs = []
    for number, flow in enumerate(case["flows"]):
        source, target = (zone.create_host(f"{end} {number}", "1Gf") for end in ("from", "to"))
        on_route = [through[resource] for resource in flow["route"]]
        if case["latency"] == "route":
            wire = zone.create_link(f"latency {number}", FREE_BYTES_PER_S)
            on_route.append(sg.LinkInRoute(wire.set_latency(flow["latency_s"]).seal()))
        zone.add_route(source.netpoint, target.netpoint, None, None, on_route, False)
        pairs.append((source, target))
    zone.seal()

    actors: list[Any] = []
    ends_s = [-1.0] * len(case["flows"])

    def actor(number: int) -> Callable[[], None]:
        def send() -> None:
            flow = case["flows"][number]
            for earlier in flow["after"]:
                actors[earlier].join()
            sg.this_actor.sleep_until(flow["start_s"])
            if case["latency"] == "waited" and flow["latency_s"] > 0:
                sg.this_actor.sleep_for(flow["latency_s"])
            comm = sg.Mailbox.by_name(f"flow {number}").put_init(number, flow["nbytes"])
            if flow["limit_bytes_per_s"] is not None:
                comm.set_rate(flow["limit_bytes_per_s"])
            comm.wait()
            ends_s[number] = sg.Engine.clock

        return send

    for number, (source, target) in enumerate(pairs):
        actors.append(sg.Actor.create(f"flow {number}", source, actor(number)))
        mailbox = sg.Mailbox.by_name(f"flow {number}")
        sg.Actor.create(f"receive {number}", target, mailbox.get)
    engine.run()
    assert min(ends_s) > 0, f"{case['name']}: a flow never ended"
    return [float(f"{end_s:.{DIGITS}g}") for end_s in ends_s]


def _links(sg: Any, zone: Any, case: dict[str, Any]) -> dict[int, Any]:
    """Return how a route crosses each resource of *case*."""
    through: dict[int, Any] = {}
    for up, down in case["duplex"]:
        assert case["capacity"][up] == case["capacity"][down]
        link = zone.create_split_duplex_link(f"link {up}", case["capacity"][up]).seal()
        through[up] = sg.LinkInRoute(link, sg.LinkInRoute.UP)
        through[down] = sg.LinkInRoute(link, sg.LinkInRoute.DOWN)
    for number, bytes_per_s in enumerate(case["capacity"]):
        if number not in through:
            # SimGrid's own default for a link is SHARED: one capacity for all directions
            through[number] = sg.LinkInRoute(zone.create_link(f"link {number}", bytes_per_s).seal())
    return through


def answers(asked: Sequence[cases.Case]) -> list[list[float]]:
    """Return SimGrid's ends of every flow of each case, each case in a fresh process."""
    return [_answer(case) for case in asked]


def _answer(case: cases.Case) -> list[float]:
    ran = subprocess.run(
        [sys.executable, __file__, "--stdin"],
        input=json.dumps(asdict(case)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=CASE_LIMIT_S,
    )
    ends_s: list[float] = json.loads(ran.stdout)
    return ends_s


def version() -> str:
    """Return the version of the SimGrid that this Python imports."""
    return str(importlib.import_module("simgrid").simgrid_version)


def provenance() -> dict[str, Any]:
    """Return enough to ask SimGrid again."""
    return {
        "simgrid": version(),
        "package": "python3-simgrid of Debian 12",
        "python": platform.python_version(),
        "options": list(OPTIONS),
        "command": "/usr/bin/python3 tests/simgrid/judge.py --write",
    }


def write() -> None:
    """Ask SimGrid for every case and write the answers, a case a line."""
    asked = [*cases.all_cases(), cases.unequal_latencies()]
    lines = [
        f"{json.dumps(case.name)}: {json.dumps({'sha256': cases.sha256(case), 'ends_s': ends_s})}"
        for case, ends_s in zip(asked, answers(asked), strict=True)
    ]
    body = ",\n".join(lines)
    GOLDEN.write_text(f'{{\n"provenance": {json.dumps(provenance())},\n"cases": {{\n{body}\n}}\n}}\n')


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(description="Ask SimGrid when the flows of the cases end.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--name", action="append", help="a case to answer on standard output; may be repeated")
    what.add_argument("--stdin", action="store_true", help="answer one case, given as JSON on standard input")
    what.add_argument("--write", action="store_true", help=f"answer every case into {GOLDEN.name}")
    options = parser.parse_args(arguments)
    try:
        version()
    except ImportError:
        print(f"judge: {sys.executable} has no SimGrid; on Debian 12 apt-get install python3-simgrid", file=sys.stderr)
        return 2
    if options.stdin:
        print(json.dumps(run(json.load(sys.stdin))))
        return 0
    if options.write:
        write()
        return 0
    known = {case.name: case for case in [*cases.all_cases(), cases.unequal_latencies()]}
    missing = [name for name in options.name if name not in known]
    if missing:
        parser.error(f"no case is named {missing[0]!r}")
    asked = [known[name] for name in options.name]
    print(json.dumps(dict(zip(options.name, answers(asked), strict=True))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
