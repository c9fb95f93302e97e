"""The verdict under the table: what to run, what staleness must save, and where the order changes."""

import re

import msgspec
import pytest

from simgd import catalogue
from simgd.explain import binding_links
from simgd.job import job
from simgd.predict import Machine, Prediction, predict
from simgd.pricing import WhatIf
from simgd.schedules import DEFAULT_SCHEDULES
from simgd.verdict import verdict


def said(
    cluster: str, network: str, ranks: int, schedules: tuple[str, ...] = DEFAULT_SCHEDULES, **changes: object
) -> tuple[str, dict[str, Prediction]]:
    """Return the verdict, and what it speaks of by schedule; *changes* alter each prediction."""
    machine = Machine(catalogue.cluster(cluster), catalogue.profile(cluster))
    task = job(catalogue.workload(network))
    rows = [msgspec.structs.replace(row, **changes) for row in predict(machine, task, [ranks], schedules)]
    return verdict(rows, machine, task, schedules), {row.schedule: row for row in rows}


def test_the_best_of_the_schedules_with_the_same_result_comes_first():
    text, rows = said("pcie-box", "alexnet", 8)
    exact = min((row for row in rows.values() if row.staleness == 0), key=lambda row: row.iteration_s)
    gain = rows["bucketed:25MiB"].iteration_s / exact.iteration_s
    assert text.startswith(f"same result: {exact.schedule}, {gain:.2f}x over bucketed:25MiB; ")


def test_a_stale_schedule_must_need_fewer_iterations_than_it_saves():
    text, rows = said("pcie-box", "bert-large", 8, ("sync", "async:1"))
    gain = rows["sync"].iteration_s / rows["async:1"].iteration_s
    assert gain > 1.2
    assert f"{gain:.2f}x over sync: worth it if it needs fewer than {gain:.2f}x the iterations" in text


def test_a_stale_schedule_that_gains_nothing_is_not_worth_it():
    text, _ = said("dgx-h100", "resnet50", 8, ("layerwise", "async:1"))
    assert "staleness 1: async:1" in text
    assert "not worth it" in text


def test_every_staleness_has_its_own_best():
    text, _ = said("pcie-box", "alexnet", 8, ("sync", "async:1", "async:1:all", "async:2"))
    assert text.count("staleness 1: ") == text.count("staleness 2: ") == 1


def test_the_baseline_is_not_compared_with_itself():
    text, _ = said("pcie-box", "alexnet", 8, ("bucketed:25MiB", "async:1"))
    assert text.startswith("same result: bucketed:25MiB; ")
    assert text.count("over bucketed:25MiB") == 1


def test_stale_schedules_alone_are_compared_with_the_baseline():
    text, rows = said("pcie-box", "alexnet", 8, ("async:1", "async:2"))
    assert "same result" not in text
    assert f"async:1, {rows['async:1'].speedup_over_baseline:.2f}x over bucketed:25MiB" in text


@pytest.mark.parametrize(("ranks", "schedules"), [(1, DEFAULT_SCHEDULES), (8, ("sync",))])
def test_where_there_is_nothing_to_choose_no_link_rate_is_named(ranks, schedules):
    text, _ = said("pcie-box", "alexnet", ranks, schedules)
    assert "link" not in text


def test_what_does_not_fit_is_named():
    text, _ = said("pcie-box", "mlp", 8, ("sync", "layerwise"), memory_fits=False)
    assert text.endswith("; too large for the device's memory: sync, layerwise")


@pytest.mark.parametrize(
    ("cluster", "network", "schedules"),
    [
        ("pcie-box", "digits-cnn", ("sync", "layerwise")),
        ("dgx1-p100", "mlp", ("sync", "layerwise")),
        ("pcie-box", "char-transformer", ("bucketed:25MiB", "layerwise", "sync")),
        ("dgx1-p100", "googlenet", ("layerwise", "bucketed:25MiB")),
        ("pcie-box", "vgg16", ("sync", "bucketed:25MiB", "async:1")),
    ],
)
def test_the_order_changes_where_the_verdict_says_so(cluster, network, schedules):
    """Just beyond the named rate the named schedule wins; at today's rate another one does."""
    text, rows = said(cluster, network, 8, schedules)
    fastest = min(rows.values(), key=lambda row: row.iteration_s).schedule
    machine = Machine(catalogue.cluster(cluster), catalogue.profile(cluster))
    studies = {name: machine.study(name, job(catalogue.workload(network)), 8) for name in schedules}
    kind = binding_links(studies[fastest])
    today = max(float(link.bandwidth) for link in machine.cluster.links if link.kind == kind)

    def periods(factor: float) -> dict[str, float]:
        return {name: study.period_if(WhatIf(links={kind: factor})) for name, study in studies.items()}

    found = re.search(r"the order changes (above|below) ([\d.]+) GB/s per .*: then (\S+) is the fastest", text)
    if found is None:
        assert f"{fastest} stays the one to take from 1/8 to 8 times today's" in text
        for factor in (1 / 8, 8):
            there = periods(factor)
            assert there[fastest] <= 1.01 * min(there.values())
        return
    side, rate, winner = found.groups()
    factor = float(rate) * 1e9 / today
    assert (factor > 1) == (side == "above")
    beyond = periods(factor * (1.05 if side == "above" else 0.95))
    assert winner != fastest
    assert beyond[winner] < beyond[fastest]
