"""The named schedules: what their names mean, what they send, and that each dependency they state is needed."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import build, cases, name, named, small_workload, with_, workload

from simgd.errors import ScheduleError, SimgdError
from simgd.schedule import ROLE, Bucket, Communicate, Dep, Op, Schedule, Update
from simgd.schedules import DEFAULT_SCHEDULES, NAMES, parse
from simgd.schedules.grouping import by_bytes, by_layer, by_tensor, whole
from simgd.soundness import Order, derive, dry_run
from simgd.units import MIB
from simgd.workload import Layer, Tensor, Workload

#: Sent in the order w2, w1, w0: 12, 8 and 16 bytes.
THREE = small_workload(4, 2, 3)

#: One name of every row of the table of schedules.
FAMILIES = (
    "sync", "bucketed:1B", "bucketed:16B", "layerwise", "layerwise:tensor", "layerwise:16B", "layerwise:join",
    "async:1", "async:2:1B", "async:1:all", "async:3:all", "async_layerwise:1", "async_layerwise:3",
)  # fmt: skip


def elements(buckets: tuple[Bucket, ...]) -> list[tuple[str, int]]:
    return [(part.tensor, k) for bucket in buckets for part in bucket.slices for k in range(part.first, part.last)]


# --- what is sent ---------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(cases(lambda rng: (of := workload(rng), named(rng, of))))
def test_every_gradient_is_sent_once_and_applied_once_in_each_iteration(found: tuple[Workload, Schedule]):
    of, schedule = found
    buckets = {bucket.name: bucket for bucket in schedule.buckets}
    expected = sorted(elements(whole(of)))
    assert len(expected) == of.parameters
    for kind in (Communicate, Update):
        used = tuple(buckets[op.work.bucket] for op in schedule.ops if isinstance(op.work, kind))
        assert sorted(elements(used)) == expected
        # 4 bytes an element
        assert sum(4 * bucket.elements for bucket in used) == 4 * of.parameters


@settings(max_examples=150, deadline=None)
@given(cases(lambda rng: (of := workload(rng), named(rng, of))))
def test_every_named_schedule_of_every_workload_is_sound(found: tuple[Workload, Schedule]):
    of, schedule = found
    staleness = derive(schedule, of).staleness
    delay = parse(schedule.name).delay
    assert delay is None or set(staleness.values()) == {delay}


@settings(max_examples=100, deadline=None)
@given(cases(lambda rng: (of := workload(rng), named(rng, of))))
def test_messages_leave_in_the_order_in_which_gradients_arrive(found: tuple[Workload, Schedule]):
    of, schedule = found
    order = [op.name for op in schedule.ops]
    backward = [f"backward {layer.name}" for layer in of.backward]
    assert [each for each in order if each.startswith("backward ")] == backward
    # Every message stands behind the backward passes of all layers that use one of its tensors.
    users = of.users()
    buckets = {bucket.name: bucket for bucket in schedule.buckets}
    for op in schedule.ops:
        if isinstance(op.work, Communicate):
            for part in buckets[op.work.bucket].slices:
                assert all(order.index(f"backward {user}") < order.index(op.name) for user in users[part.tensor])


def sizes(buckets: tuple[Bucket, ...]) -> list[int]:
    return [4 * bucket.elements for bucket in buckets]


def test_groups_of_one_message_a_layer_a_tensor_or_in_all():
    two = Layer(name="l", tensors=(Tensor("w", (2, 3)), Tensor("b", (3,))))
    of = Workload(name="x", layers=(two, Layer(name="none"), Layer(name="m", tensors=(Tensor("v", (5,)),))))
    assert [bucket.name for bucket in by_layer(of)] == ["m", "l"]
    assert sizes(by_layer(of)) == [20, 36]
    assert [bucket.name for bucket in by_tensor(of)] == ["v", "w", "b"]
    assert sizes(by_tensor(of)) == [20, 24, 12]
    assert sizes(whole(of)) == [56]


def test_a_bucket_is_closed_as_soon_as_it_holds_enough_and_never_splits_a_tensor():
    # 12, 8, 16 bytes in the order of arrival
    assert sizes(by_bytes(THREE, 12)) == [12, 24]
    assert sizes(by_bytes(THREE, 13)) == [20, 16]
    assert sizes(by_bytes(THREE, 1)) == [12, 8, 16]
    assert sizes(by_bytes(THREE, 37)) == [36]
    # the first one earlier than the others
    assert sizes(by_bytes(THREE, 20, first=1)) == [12, 24]


def test_the_first_bucket_of_ddp_closes_at_1_mib_so_that_communication_starts_early():
    of = small_workload(*[MIB // 4] * 5)
    schedule, _ = build("bucketed:2MiB", of)
    assert [size // MIB for size in sizes(schedule.buckets[:-1])] == [1, 2, 2]
    assert [size // MIB for size in sizes(build("layerwise:2MiB", of)[0].buckets)] == [2, 2, 1]


def test_async_by_one_looks_like_this():
    schedule, _ = build("async:1:1B", small_workload(4, 6))
    lines = [(op.name, op.lane, op.after) for op in schedule.ops]
    assert lines == [
        ("forward l0", "compute", ()),
        ("forward l1", "compute", ()),
        ("backward l1", "compute", ()),
        ("update bucket0", "compute", (Dep("all_reduce bucket0", 1), Dep("backward l1"))),
        ("copy bucket0", "compute", (Dep("backward l1"),)),
        ("all_reduce bucket0", "comm", (Dep("copy bucket0"),)),
        ("backward l0", "compute", ()),
        ("update bucket1", "compute", (Dep("all_reduce bucket1", 1), Dep("backward l0"))),
        ("copy bucket1", "compute", (Dep("backward l0"),)),
        ("all_reduce bucket1", "comm", (Dep("copy bucket1"),)),
    ]


def test_a_tied_tensor_is_sent_when_its_first_layer_has_added_its_part():
    tied = Layer(name="head", shared=("w0",), tensors=(Tensor("v", (1,)),))
    of = Workload(name="tied", layers=(*small_workload(4, 6).layers, tied))
    schedule, _ = build("layerwise", of)
    after = {op.name: op.after for op in schedule.ops}
    assert after["all_reduce l0"] == (Dep("backward l0"),)
    # Both layers that read the tensor wait for its update.
    assert Dep("update l0", 1) in after["forward l0"]
    assert Dep("update l0", 1) in after["forward head"]


# --- every dependency is needed -------------------------------------------------------------------------------------


def without(schedule: Schedule, op: Op, dep: Dep) -> Schedule:
    after = tuple(each for each in op.after if each != dep)
    ops = tuple(with_(each, after=after) if each is op else each for each in schedule.ops)
    return Schedule(name=schedule.name, workload=schedule.workload, buckets=schedule.buckets, roles={ROLE: ops})


def relation(schedule: Schedule, of: Workload) -> dict[tuple[str, str, int], bool]:
    deps = derive(schedule, of).dependencies
    order = Order(schedule, deps, dry_run(schedule, deps))
    names = [op.name for op in schedule.ops]
    return {(a, b, lag): order.precedes(a, b, lag) for a in names for b in names for lag in range(6)}


def implied(of: Workload, which: str) -> list[str]:
    """Return the stated dependencies that can go without any change; every other one must be an error."""
    schedule, _ = build(which, of)
    full = relation(schedule, of)
    found = []
    for op in schedule.ops:
        for dep in op.after:
            try:
                left = relation(without(schedule, op, dep), of)
            except ScheduleError:
                continue
            assert left == full, f"{op.name} may start before {dep.op} [{dep.lag}] has ended, and nobody says so"
            found.append(f"{op.name} after {dep.op} [{dep.lag}]")
    return found


def test_of_sync_every_dependency_is_needed():
    assert implied(THREE, "sync") == []


def test_layerwise_would_wait_for_the_front_layers_update_if_it_did_not_wait_for_each():
    # Updates are in order on their lane and the front layer's is the last: who comes behind forward l0 on the compute
    # lane comes behind all of them.
    assert implied(THREE, "layerwise") == ["forward l1 after update l1 [1]", "forward l2 after update l2 [1]"]
    assert implied(THREE, "layerwise:tensor") == ["forward l1 after update w1 [1]", "forward l2 after update w2 [1]"]
    assert implied(THREE, "layerwise:16B") == [
        "forward l1 after update bucket0 [1]",
        "forward l2 after update bucket0 [1]",
    ]


def test_bucketed_waits_for_the_last_message_and_the_comm_lane_brings_the_others():
    assert implied(THREE, "bucketed:1B") == [
        "update all after all_reduce bucket0 [0]",
        "update all after all_reduce bucket1 [0]",
    ]


def test_join_waits_for_the_last_update_and_the_update_lane_brings_the_others():
    assert implied(THREE, "layerwise:join") == [
        "forward l0 after update l2 [1]",
        "forward l0 after update l1 [1]",
        "forward l1 after update l1 [1]",
        "forward l2 after update l2 [1]",
    ]


@pytest.mark.parametrize("which", ["async:1:1B", "async:2:1B", "async_layerwise:1", "async_layerwise:3"])
def test_a_delayed_update_stands_behind_its_backward_on_the_compute_lane_anyway(which: str):
    schedule, _ = build(which, THREE)
    assert implied(THREE, which) == [
        f"{op.name} after {dep.op} [0]"
        for op in schedule.ops
        for dep in op.after
        if op.name.split()[0] in ("update", "copy") and dep.op.startswith("backward ")
    ]


@pytest.mark.parametrize("which", ["async:1:all", "async:3:all"])
def test_of_one_flat_delayed_message_every_dependency_is_needed(which: str):
    assert implied(THREE, which) == []


def test_in_random_workloads_too_every_dropped_dependency_is_an_error_or_implied():
    for seed in range(60):
        rng = Random(seed)
        of = workload(rng, 3)
        which = name(rng)
        if parse(which).delay is not None:
            implied(of, which)


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [*FAMILIES, *DEFAULT_SCHEDULES])
def test_a_schedule_bears_the_name_that_it_was_asked_by(which: str):
    assert parse(which).name == which
    if not parse(which).needs_delays:
        assert build(which, THREE)[0].name == which


def test_every_name_of_the_table_can_be_read_with_numbers_in_it():
    for which in NAMES:
        read = parse(which.replace("BYTES", "25MiB").replace("D", "2"))
        assert (read.nbytes == 25 * MIB) == ("BYTES" in which or which == "async:D")
        assert read.delay == (None if which.endswith("auto") else 2 if "D" in which else 0)


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("layerwize", "schedule 'layerwize' is unknown; did you mean 'layerwise'? `simgd list schedules` shows all"),
        ("async:0", "schedule 'async:0': delay '0' is not a whole number from 1 to 64"),
        ("async:65", "schedule 'async:65': delay '65' is not a whole number from 1 to 64"),
        ("async:-1:all", "schedule 'async:-1:all': delay '-1' is not a whole number from 1 to 64"),
        ("async:\u0662", "schedule 'async:\u0662': delay '\u0662' is not a whole number from 1 to 64"),
        ("bucketed:0B", "schedule 'bucketed:0B': a message of '0B' would be empty"),
    ],
)
def test_a_wrong_name_says_what_would_be_right(which: str, message: str):
    with pytest.raises(SimgdError) as caught:
        parse(which)
    assert str(caught.value) == message


def test_a_wrong_size_says_what_would_be_right():
    with pytest.raises(ScheduleError, match=r"^schedule 'bucketed:25MiBs': .*'25MiBs'"):
        parse("bucketed:25MiBs")


def test_delays_that_depend_on_costs_are_asked_for():
    with pytest.raises(ScheduleError, match="its delays depend on costs: plan it for a cluster"):
        build("async_layerwise:auto", THREE)


WORDS = [
    "sync",
    "bucketed",
    "layerwise",
    "async",
    "async_layerwise",
    "all",
    "join",
    "tensor",
    "auto",
    ":",
    "1",
    "25MiB",
]


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.text(max_size=30),
        st.lists(st.sampled_from(WORDS), max_size=6).map(":".join),
        st.lists(st.sampled_from(WORDS), max_size=6).map("".join),
    )
)
def test_any_text_is_a_schedule_or_one_line_of_what_is_wrong(text: str):
    try:
        read = parse(text)
    except SimgdError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
    else:
        assert read.name == text
