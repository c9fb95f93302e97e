"""What is true of a schedule before anything runs, and what a wrong one is told."""

from random import Random

import pytest
from hypothesis import given, settings
from oracle import Play, StuckError
from strategies import build, cases, graph, named, small_workload, sound, timing, workload

from simgd.errors import ScheduleError
from simgd.schedule import Access, Backward, Dep, Forward, Map, Schedule, Update, accesses, from_text, to_text
from simgd.soundness import Derived, Order, derive, dry_run
from simgd.timing import Timing
from simgd.workload import Workload

TWO = small_workload(4, 6)


def text(name: str) -> str:
    """Return the text form of a schedule of two layers, to be spoilt."""
    return to_text(build(name, TWO)[0])


def spoilt(whole: str, *changes: tuple[str, str]) -> Schedule:
    for old, new in changes:
        assert whole.count(old) == 1, (old, whole)
        whole = whole.replace(old, new)
    return from_text(whole)


def line(whole: str, start: str) -> str:
    (found,) = (each for each in whole.splitlines(keepends=True) if each.startswith(start))
    return found


def refused(schedule: Schedule) -> str:
    """Return what `derive` says of a schedule that is wrong."""
    with pytest.raises(ScheduleError) as caught:
        derive(schedule, TWO)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"schedule {schedule.name!r}: ")
    return message.removeprefix(f"schedule {schedule.name!r}: ")


# --- staleness ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "staleness"),
    [
        ("sync", {"all": 0}),
        ("bucketed:1B", {"all": 0}),
        ("bucketed:1GB", {"bucket0": 0}),
        ("layerwise", {"l1": 0, "l0": 0}),
        ("layerwise:tensor", {"w1": 0, "w0": 0}),
        ("layerwise:24B", {"bucket0": 0, "bucket1": 0}),
        ("layerwise:join", {"l1": 0, "l0": 0}),
        ("async:1", {"bucket0": 1}),
        ("async:3:1B", {"bucket0": 3, "bucket1": 3}),
        ("async:2:all", {"all": 2}),
        ("async_layerwise:2", {"l1": 2, "l0": 2}),
    ],
)
def test_staleness_is_that_of_the_definition(name: str, staleness: dict[str, int]):
    assert build(name, TWO)[1].staleness == staleness


def test_each_layer_is_as_stale_as_its_own_delay():
    assert build("async_layerwise:auto", TWO, {"l1": 0, "l0": 2})[1].staleness == {"l1": 0, "l0": 2}


# --- each kind of error ---------------------------------------------------------------------------------------------


def test_ops_that_wait_for_each_other_are_a_deadlock_that_names_them():
    found = refused(
        spoilt(
            text("sync"),
            ("forward l0 | compute | forward | l0 |", "forward l0 | compute | forward | l0 | update all [0]"),
        )
    )
    assert found == (
        "deadlock: op 'forward l0' on lane compute waits for 'update all', which can never end before it; "
        "stuck lanes: compute at 'forward l0', comm at 'all_reduce all'"
    )


def test_a_lane_in_the_wrong_order_is_a_deadlock():
    whole = text("bucketed:1B")
    last = line(whole, "update all")
    found = refused(spoilt(whole, (last, ""), ("backward l0 |", last + "backward l0 |")))
    assert found.startswith("deadlock: op 'update all' on lane compute waits for 'all_reduce bucket1'")


def test_a_host_that_waits_for_what_it_has_not_issued_is_a_deadlock():
    whole = text("sync")
    found = refused(spoilt(whole, ("backward l1 |", "wait | host | wait | all_reduce all, 0 |\nbackward l1 |")))
    assert found.startswith("deadlock: ")
    assert "host at 'wait'" in found


def test_a_wait_that_depends_on_what_the_host_has_not_issued_is_a_deadlock():
    wait = "wait | host | wait | backward l1, 1 | all_reduce all [0]\nbackward l1 |"
    found = refused(spoilt(text("sync"), ("backward l1 |", wait)))
    assert found.startswith("deadlock: ")
    assert "host at 'wait'" in found


def test_a_lost_bucket_is_named_by_what_it_would_have_covered():
    whole = text("layerwise")
    found = refused(spoilt(whole, (line(whole, "all_reduce l0"), ""), ("all_reduce l0 [0]", "backward l0 [0]")))
    assert found == (
        "all_reduce of gradients must cover tensor 'w0' once, elements 0 to 4; "
        "from element 0 on it is missing or stands twice"
    )
    found = refused(spoilt(whole, (line(whole, "update l1"), ""), ("update l1 [1]", "")))
    assert found.startswith("update must cover tensor 'w1' once, elements 0 to 6; from element 0 on it is missing")


def test_an_element_that_is_sent_twice_or_not_at_all_is_named():
    found = refused(spoilt(text("layerwise"), ("w1[0:6]", "w1[0:6], w0[2:4]")))
    assert found.startswith("update must cover tensor 'w0' once, elements 0 to 4; from element 2 on")
    found = refused(spoilt(text("layerwise"), ("w1[0:6]", "w1[0:5]")))
    assert found.startswith("update must cover tensor 'w1' once, elements 0 to 6; from element 5 on")
    found = refused(spoilt(text("layerwise"), ("w1[0:6]", "w1[0:2], w1[3:6]")))
    assert found.startswith("update must cover tensor 'w1' once, elements 0 to 6; from element 2 on")
    found = refused(spoilt(text("layerwise"), ("w1[0:6]", "w1[0:7]")))
    assert "elements 0 to 6; from element 7 on" in found


def test_a_bucket_of_an_unknown_tensor_is_named():
    found = refused(spoilt(text("layerwise"), ("w1[0:6]", "w1[0:6], w9[0:1]")))
    assert found == "bucket 'l1' names tensor 'w9', which workload 'small' does not have"


def test_a_race_on_weights_names_both_ops():
    found = refused(spoilt(text("layerwise"), ("forward | l0 | update l0 [1]", "forward | l0 |")))
    assert found == (
        "race on the weight of bucket 'l0': nothing makes 'forward l0' wait for 'update l0' in the iteration before"
    )
    found = refused(spoilt(text("layerwise"), ("l1, gradient, float32 | backward l1 [0]", "l1, gradient, float32 |")))
    assert found.startswith("race on the gradient of bucket 'l1': nothing makes 'all_reduce l1' wait for 'backward l1'")


def test_a_race_on_a_gradient_names_both_ops():
    found = refused(
        spoilt(text("layerwise"), ("update | l0, all | all_reduce l0 [0]", "update | l0, all | backward l0 [0]"))
    )
    assert found == (
        "race on the gradient of bucket 'l0': nothing makes 'update l0' wait for 'all_reduce l0' in the same iteration"
    )


def test_a_copy_that_does_not_wait_for_its_backward_is_a_race():
    copy = "copy bucket1 | compute | map | copy, bucket1, fresh, gradient | backward l0 [0]"
    free = "copy bucket1 | copy_out | map | copy, bucket1, fresh, gradient |"
    # With 2 copies it writes where update bucket1 has just read, hence behind it: that is derived, and enough.
    assert derive(spoilt(text("async:2:1B"), (copy, free)), TWO).staleness == {"bucket0": 2, "bucket1": 2}
    # With 3 copies the update that it waits for is that of the iteration before.
    found = refused(spoilt(text("async:2:1B"), (copy, free), ("bucket bucket1 | 2", "bucket bucket1 | 3")))
    assert found == (
        "race on the fresh of bucket 'bucket1': nothing makes 'copy bucket1' wait for 'backward l0' "
        "in the same iteration"
    )


def test_a_gradient_read_after_its_copies_are_overwritten_is_named():
    found = refused(spoilt(text("async:2:1B"), ("bucket bucket1 | 2", "bucket bucket1 | 1")))
    assert found == (
        "op 'update bucket1' reads the gradient of bucket 'bucket1' of 2 iterations ago, "
        "but its 1 copies are overwritten by then"
    )


def test_one_flat_message_with_d_copies_only_can_never_begin():
    # Backward of i would have to wait for the update of i, which stands behind it.
    found = refused(spoilt(text("async:2:all"), ("bucket all | 3", "bucket all | 2")))
    assert found.startswith("deadlock: op 'backward l1' on lane compute waits for 'update all'")


def test_an_unknown_layer_and_one_that_is_missing_or_stands_twice_are_named():
    found = refused(spoilt(text("sync"), ("forward | l0 |", "forward | l9 |")))
    assert found == "forward of layer 'l0' stands 0 times; it must stand once"
    found = refused(spoilt(text("sync"), ("forward | l0 |", "forward | l0, l9 |")))
    assert found == "layer 'l9' is not in workload 'small'"
    found = refused(spoilt(text("sync"), ("backward | l0 |", "backward | l0, l1 |")))
    assert found == "backward of layer 'l1' stands 2 times; it must stand once"


def test_a_schedule_of_another_workload_is_refused():
    found = refused(spoilt(text("sync"), ("schedule sync | small", "schedule sync | other")))
    assert found == "is for workload 'other', found 'small'"


def test_an_update_of_gradients_of_different_ages_is_refused():
    # It is skipped in iteration 0, when the older gradient does not exist yet; the younger one is then never applied.
    refused(
        spoilt(
            text("bucketed:1B"),
            ("all_reduce bucket0 [0]; all_reduce bucket1 [0]", "all_reduce bucket0 [0]; all_reduce bucket1 [1]"),
            ("bucket bucket1 | 1", "bucket bucket1 | 2"),
        )
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("all_reduce, all, gradient", "reduce_scatter, all, gradient"),
        ("all_reduce, all, gradient", "broadcast, all, gradient"),
        ("update | all, all", "update | all, mine"),
        ("backward l0 [0]\n", "backward l0 [0] | 2, 0\n"),
        ("all_reduce all [0]\n", "all_reduce all [0] | 2, 0\n"),
    ],
)
def test_a_schedule_that_would_let_ranks_drift_apart_is_refused(old: str, new: str):
    refused(spoilt(text("sync"), (old, new)))


# --- laws -----------------------------------------------------------------------------------------------------------


def prepared(rng: Random) -> tuple[Workload, Schedule, Derived, Timing]:
    of = workload(rng, 3)
    schedule = named(rng, of) if rng.random() < 0.4 else sound(rng, of)
    return of, schedule, derive(schedule, of), timing(rng, schedule)


@settings(max_examples=150, deadline=None)
@given(cases(prepared))
def test_no_costs_make_a_sound_schedule_read_or_write_at_the_wrong_time(
    found: tuple[Workload, Schedule, Derived, Timing],
):
    """The data themselves, followed through a play: every gradient is complete, reduced, applied once, then gone."""
    of, schedule, derived, costs = found
    iterations = 5
    play = Play(schedule, derived.dependencies, costs, iterations)
    start = {(op, i): x.start for (_, op, i), x in play.all.items()}
    end = {(op, i): x.end for (_, op, i), x in play.all.items()}
    touched = accesses(schedule, of)
    copies = {bucket.name: bucket.copies for bucket in schedule.buckets}
    sent = [op for op in schedule.ops if op.lane == "comm"]
    for update in (op for op in schedule.ops if isinstance(op.work, Update)):
        assert isinstance(update.work, Update)
        age = derived.staleness[update.work.bucket]
        for part in (access.bucket for access in touched[update.name][1]):
            gradient, fresh = Access("gradient", part), Access("fresh", part)
            (reduce,) = (op.name for op in sent if gradient in touched[op.name][1])
            makers = [
                op.name
                for op in schedule.ops
                if isinstance(op.work, (Backward, Map)) and gradient in touched[op.name][1]
            ]
            backward = [
                op.name for op in schedule.ops if isinstance(op.work, Backward) and fresh in touched[op.name][1]
            ]
            for i in range(age, iterations + age):
                # It applies the gradient of i - age, which all makers had finished when it was sent, and it was sent.
                assert end[reduce, i - age] <= start[update.name, i]
                for maker in makers:
                    assert end[maker, i - age] <= start[reduce, i - age]
                    # Nobody has begun to write over it.
                    if i - age + copies[part] < iterations:
                        assert end[update.name, i] <= start[maker, i - age + copies[part]]
            for i in range(iterations):
                for maker in makers if backward else []:
                    # The copy is taken when all passes have added to the fresh gradient, and before the next ones do.
                    assert max(end[each, i] for each in backward) <= start[maker, i]
                    assert i + 1 == iterations or end[maker, i] <= min(start[each, i + 1] for each in backward)
            weight = Access("weight", part)
            readers = [
                op.name
                for op in schedule.ops
                if isinstance(op.work, (Forward, Backward)) and weight in touched[op.name][0]
            ]
            for reader in readers:
                for i in range(iterations):
                    assert end[reader, i] <= start[update.name, i]
                    assert i == 0 or end[update.name, i - 1] <= start[reader, i]


@settings(max_examples=100, deadline=None)
@given(cases(prepared))
def test_what_precedes_by_the_order_alone_does_so_whatever_the_costs(found: tuple[Workload, Schedule, Derived, Timing]):
    _, schedule, derived, costs = found
    order = Order(schedule, derived.dependencies, dry_run(schedule, derived.dependencies))
    play = Play(schedule, derived.dependencies, costs, 4)
    for first in schedule.ops:
        for second in schedule.ops:
            for lag in range(3):
                if order.precedes(first.name, second.name, lag):
                    for i in range(4 - lag):
                        ended, started = play.ends[0, first.name, i], play.starts[0, second.name, i + lag]
                        assert ended is not None
                        assert started is not None
                        assert ended <= started, (first.name, second.name, lag)


def test_the_dry_run_finds_a_deadlock_exactly_where_the_oracle_gets_stuck():
    stuck = 0
    for seed in range(600):
        rng = Random(seed)
        schedule, derived = graph(rng, stuck=True)
        costs = Timing(ops=timing(rng, schedule).ops)
        try:
            Play(schedule, derived.dependencies, costs, 2)
        except StuckError:
            stuck += 1
            with pytest.raises(ScheduleError, match="deadlock: op 'o"):
                dry_run(schedule, derived.dependencies)
        else:
            assert sorted(dry_run(schedule, derived.dependencies)) == sorted(op.name for op in schedule.ops), seed
    assert stuck > 50


@settings(max_examples=60, deadline=None)
@given(cases(prepared))
def test_derived_dependencies_keep_all_that_are_stated(found: tuple[Workload, Schedule, Derived, Timing]):
    _, schedule, derived, _ = found
    for op in schedule.ops:
        assert derived.dependencies[op.name][: len(set(op.after))] == tuple(dict.fromkeys(op.after))


def test_the_edge_that_keeps_a_buffer_from_being_reused_is_derived():
    # async by 2 with a copy: the copy of i writes where the gradient of i - 2 stood, which update i has just applied;
    # backward of i writes the one fresh gradient, which the copy of i - 1 has read.
    _, derived = build("async:2:1B", TWO)
    assert Dep("update bucket0", 0) in derived.dependencies["copy bucket0"]
    assert Dep("all_reduce bucket0", 2) in derived.dependencies["copy bucket0"]
    assert Dep("copy bucket0", 1) in derived.dependencies["backward l1"]
    # flat, 3 copies, applied 2 iterations late: backward of i waits for the update of i - 1
    _, flat = build("async:2:all", TWO)
    assert Dep("update all", 1) in flat.dependencies["backward l1"]
    assert Dep("all_reduce all", 3) in flat.dependencies["backward l1"]
