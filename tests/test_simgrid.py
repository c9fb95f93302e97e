"""Flows against SimGrid: an independent simulator ends every flow of every case at the same time.

SimGrid 3.32 with its plain max-min model answered the cases once (`simgrid/judge.py`), and its answers are kept in
`simgrid/golden.json`; only the last test asks it again, where it is installed.
"""

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from simgd.flows import Flow, ends

HERE = Path(__file__).parent / "simgrid"
sys.path.insert(0, str(HERE))

import cases  # noqa: E402

# The worst difference found was 5e-12, from the 12 digits of an answer; half a percent is what the model must keep.
TOLERANCE = 0.005
ROUNDING = 1e-9

# SimGrid of the package comes with the system's own Python, not with that of a virtual environment.
SYSTEM_PYTHON = Path("/usr/bin/python3")

CASES = cases.all_cases()
GOLDEN = json.loads((HERE / "golden.json").read_text())


def flows_of(case: cases.Case) -> list[Flow]:
    """Return the flows of a case as those of `simgd.flows`."""
    return [
        Flow(
            route=tuple(flow["route"]),
            nbytes=flow["nbytes"],
            latency_s=flow["latency_s"],
            start_s=flow["start_s"],
            after=tuple(flow["after"]),
            limit_bytes_per_s=math.inf if flow["limit_bytes_per_s"] is None else flow["limit_bytes_per_s"],
        )
        for flow in case.flows
    ]


def worst(name: str, found_s: list[float], judged_s: list[float]) -> tuple[float, str]:
    """Return the largest relative difference, and which flow it is in words."""
    pairs = list(enumerate(zip(found_s, judged_s, strict=True)))
    number, (found, judged) = max(pairs, key=lambda each: abs(each[1][0] / each[1][1] - 1))
    difference = abs(found / judged - 1)
    return difference, f"{name}: flow {number} ends at {found:.9g} s, SimGrid says {judged:.9g} s: {difference:.2%} off"


def answer(case: cases.Case) -> list[float]:
    """Return SimGrid's ends of a case, if it is this case that was answered."""
    golden = GOLDEN["cases"].get(case.name)
    known = golden is not None and golden["sha256"] == cases.sha256(case)
    assert known, f"{case.name}: changed since SimGrid answered; run {GOLDEN['provenance']['command']}"
    judged_s: list[float] = golden["ends_s"]
    return judged_s


def test_there_are_cases_of_every_kind() -> None:
    kinds = Counter(case.kind for case in CASES)
    assert len(CASES) >= 48
    assert set(kinds) == {"by hand", "random flows", "random routes", *cases.ALGORITHMS}


def test_every_answer_has_a_case() -> None:
    assert sorted(GOLDEN["cases"]) == sorted(case.name for case in [*CASES, cases.unequal_latencies()])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_flow_ends_when_simgrid_says(case: cases.Case) -> None:
    difference, words = worst(case.name, ends(flows_of(case), case.capacity), answer(case))
    assert difference < TOLERANCE, words


def test_the_worst_difference_of_all_cases_is_rounding() -> None:
    found = [worst(case.name, ends(flows_of(case), case.capacity), answer(case)) for case in CASES]
    difference, words = max(found)
    assert difference < ROUNDING, words


def test_sharing_each_link_by_count_would_be_noticed() -> None:
    """The classic error, capacity over the number of flows on each link, is off in 37 of 74 cases: they tell."""
    noticed = [case for case in CASES if worst(case.name, by_count(case), answer(case))[0] > TOLERANCE]
    assert len(noticed) > len(CASES) // 3


def by_count(case: cases.Case) -> list[float]:
    """Return ends where a flow gets the smallest of capacity over flows of its links, and its limit."""
    flows = flows_of(case)
    left = [float(flow.nbytes) for flow in flows]
    ends_s: dict[int, float] = {}
    ready_s: dict[int, float] = {}
    now_s = 0.0
    while len(ends_s) < len(flows):
        for number, flow in enumerate(flows):
            if number not in ready_s and all(earlier in ends_s for earlier in flow.after):
                last_s = max([flow.start_s, *(ends_s[earlier] for earlier in flow.after)])
                ready_s[number] = last_s + flow.latency_s
        moving = [number for number, ready in ready_s.items() if ready <= now_s and number not in ends_s]
        count = Counter(resource for number in moving for resource in flows[number].route)
        rates = {
            number: min(
                flows[number].limit_bytes_per_s,
                *(case.capacity[resource] / count[resource] for resource in flows[number].route),
            )
            for number in moving
        }
        finish_s = {number: now_s + left[number] / rate for number, rate in rates.items()}
        next_s = min([*finish_s.values(), *(ready for ready in ready_s.values() if ready > now_s)])
        for number, rate in rates.items():
            left[number] -= rate * (next_s - now_s)
            # times within rounding of each other are one instant
            if finish_s[number] <= next_s * (1 + 1e-12):
                ends_s[number] = next_s
        now_s = next_s
    return [ends_s[number] for number in range(len(flows))]


def test_simgrid_is_not_fair_where_latencies_on_the_route_differ() -> None:
    """SimGrid weighs flows by the inverse of their latency; that is why the other cases wait it out beforehand."""
    case = cases.unequal_latencies()
    # 1 GB/s; 5 MB start to move at 1 ms, 2 MB at 3 ms, when 3 of the 5 MB are left.
    # weights 3 : 1: 3 MB at 0.75 GB/s end at 7 ms; the other has sent 1 MB by then, and its last takes 1 ms alone
    assert answer(case) == pytest.approx([7e-3, 8e-3])
    # fair: 2 MB at 0.5 GB/s end at 7 ms; the other has sent 2 of its 3 MB by then, and its last takes 1 ms alone
    assert ends(flows_of(case), case.capacity) == pytest.approx([8e-3, 7e-3])


def installed() -> str | None:
    """Return the version of SimGrid that the system's Python imports, if any."""
    if not SYSTEM_PYTHON.exists():
        return None
    line = [str(SYSTEM_PYTHON), "-I", "-c", "import simgrid; print(simgrid.simgrid_version)"]
    ran = subprocess.run(line, capture_output=True, text=True, check=False, cwd="/")
    return ran.stdout.strip() if ran.returncode == 0 else None


def test_simgrid_still_says_what_it_said() -> None:
    found, asked = installed(), GOLDEN["provenance"]["simgrid"]
    if found != asked:
        pytest.skip(f"{SYSTEM_PYTHON} imports SimGrid {found}, the answers are those of {asked}")
    # the first case of each kind, and the last of all
    chosen = {case.kind: case for case in reversed(CASES)} | {"last": CASES[-1]}
    names = [word for case in chosen.values() for word in ("--name", case.name)]
    ran = subprocess.run(
        [str(SYSTEM_PYTHON), str(HERE / "judge.py"), *names], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    again: dict[str, Any] = json.loads(ran.stdout)
    for case in chosen.values():
        difference, words = worst(case.name, again[case.name], answer(case))
        assert difference < ROUNDING, words
