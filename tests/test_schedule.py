"""Schedules as plain data: a text form and files that read back, a digest, and what no schedule can be."""

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import build, cases, graph, named, small_workload, sound, with_, workload

from simgd import files
from simgd.errors import ScheduleError, SimgdError
from simgd.schedule import (
    LANES,
    ROLE,
    Access,
    Bucket,
    Communicate,
    Dep,
    Forward,
    Op,
    Schedule,
    Slice,
    Update,
    Wait,
    accesses,
    data_lag,
    from_text,
    to_text,
)
from simgd.schedules import NAMES

TWO = small_workload(4, 6)

FORWARD = Op(name="f", lane="compute", work=Forward(layers=("l0",)))

BUCKET = Bucket(name="b", slices=(Slice("w0", 0, 4),))


def made(*ops: Op, buckets: tuple[Bucket, ...] = (BUCKET,)) -> Schedule:
    return Schedule(name="s", workload="small", buckets=buckets, roles={ROLE: ops})


def anything(rng: Random) -> Schedule:
    """Return a named schedule, a sound one without a name, or one that trains nothing."""
    of = workload(rng, 3)
    return rng.choice([lambda: named(rng, of), lambda: sound(rng, of), lambda: graph(rng, rare=True)[0]])()


# --- forms that read back -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [name.replace("BYTES", "8B").replace("D", "2") for name in NAMES])
def test_the_text_form_of_every_named_schedule_reads_back(which: str):
    schedule, _ = build(which, TWO, {"l0": 1, "l1": 2} if which.endswith("auto") else None)
    assert from_text(to_text(schedule)) == schedule


@settings(max_examples=200, deadline=None)
@given(cases(anything))
def test_the_text_form_of_any_schedule_reads_back(schedule: Schedule):
    assert from_text(to_text(schedule)) == schedule


@settings(max_examples=100, deadline=None)
@given(cases(anything))
def test_any_schedule_reads_back_from_json_and_toml(schedule: Schedule):
    assert files.parse(files.to_json(schedule), Schedule, where="x", toml=False) == schedule
    assert files.parse(files.to_toml(schedule), Schedule, where="x", toml=True) == schedule


def test_the_text_form_has_one_line_for_each_op():
    assert to_text(build("async:1:all", TWO)[0]) == (
        "schedule async:1:all | small\n"
        "bucket all | 2 | w1[0:6], w0[0:4]\n"
        "role worker\n"
        "forward l0 | compute | forward | l0 |\n"
        "forward l1 | compute | forward | l1 |\n"
        "backward l1 | compute | backward | l1 |\n"
        "backward l0 | compute | backward | l0 |\n"
        "all_reduce all | comm | communicate | all_reduce, all, gradient, float32 | backward l0 [0]\n"
        "update all | compute | update | all, all | all_reduce all [1]\n"
    )


def with_names(op: str, tensor: str, bucket: str, layer: str) -> Schedule:
    return Schedule(
        name=op,
        workload=layer,
        buckets=(Bucket(name=bucket, slices=(Slice(tensor, 0, 1),)),),
        roles={
            ROLE: (
                Op(name=op, lane="compute", work=Forward(layers=(layer,)), after=(Dep(op, 1),)),
                Op(name=f"{op} u", lane="update", work=Update(bucket=bucket), after=(Dep(op),)),
            )
        },
    )


NAME = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters="|;,[]"), min_size=1, max_size=20)


@settings(max_examples=150, deadline=None)
@given(NAME, NAME, NAME, NAME)
@example("l 0", "t x", "b", "s")
def test_names_in_any_script_survive_the_text_form(op: str, tensor: str, bucket: str, layer: str):
    schedule = with_names(op, tensor, bucket, layer)
    assert from_text(to_text(schedule)) == schedule


@pytest.mark.parametrize(
    "names",
    [
        ("o", "w[0:1]", "b", "l"),
        ("o", "w", "b|", "l"),
        ("o", "w", "b", "l, m"),
        ("o", "w", "b", ""),
        ("a\u2028b", "w", "b", "l"),
    ],
)
def test_names_that_the_text_form_could_not_hold_are_refused(names: tuple[str, str, str, str]):
    with pytest.raises(ScheduleError):
        with_names(*names)


def test_a_name_that_reads_like_two_is_refused_or_two_schedules_would_have_one_digest():
    with pytest.raises(ScheduleError, match="layer 'l0, l1': a name has"):
        made(Op(name="f", lane="compute", work=Forward(layers=("l0, l1",))))
    assert made(Op(name="f", lane="compute", work=Forward(layers=("l0", "l1")))).digest


# --- the digest -----------------------------------------------------------------------------------------------------

CHANGES: dict[str, tuple[str, str]] = {
    "name": ("schedule async:2:1B", "schedule x"),
    "workload": ("| small", "| other"),
    "a bucket's copies": ("bucket bucket0 | 2", "bucket bucket0 | 3"),
    "a slice": ("w1[0:6]", "w1[0:5], w1[5:6]"),
    "a lane": ("copy bucket0 | compute", "copy bucket0 | copy_out"),
    "a dependency's lag": ("all_reduce bucket0 [2]", "all_reduce bucket0 [1]"),
    "a dependency": ("copy bucket1 [0]", "copy bucket0 [0]"),
    "no dependency": ("copy bucket1 [0]", ""),
    "the wire": ("bucket1, gradient, float32", "bucket1, gradient, bfloat16"),
    "the collective": ("all_reduce, bucket1", "reduce_scatter, bucket1"),
    "the value": ("bucket1, gradient, float32", "bucket1, weight, float32"),
    "the part": ("update | bucket1, all", "update | bucket1, mine"),
    "what is copied": ("bucket1, fresh, gradient", "bucket1, gradient, fresh"),
    "a layer": ("forward | l0", "forward | l0, l9"),
    "how often": ("copy bucket1 [0]\n", "copy bucket1 [0] | 2, 1\n"),
    "an op's name": ("forward l1 |", "forward x |"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_digest_changes_with_anything_that_changes(what: str):
    schedule, _ = build("async:2:1B", TWO)
    text = to_text(schedule)
    old, new = CHANGES[what]
    assert old in text
    assert from_text(text.replace(old, new, 1)).digest != schedule.digest


def test_the_digest_changes_with_the_order_and_not_from_run_to_run():
    schedule, _ = build("layerwise", TWO)
    ops = schedule.ops
    swapped = Schedule(name="layerwise", workload="small", buckets=schedule.buckets, roles={ROLE: (*ops[1:], ops[0])})
    assert swapped.digest != schedule.digest
    # sha256 of the text form, so the same on every rank and machine
    assert schedule.digest == from_text(to_text(schedule)).digest
    assert build("sync", TWO)[0].digest == "47ae7c70d3088d3d6b1565b568251be83604701967d60dc0f746b82ff8508e78"


# --- what no schedule can be ----------------------------------------------------------------------------------------

WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "a wrong lane": (
        lambda: Op(name="r", lane="compute", work=Communicate(collective="all_reduce", bucket="b")),
        "op 'r': lane 'compute' cannot run it; it belongs on comm",
    ),
    "a pass that is not on the compute lane": (
        lambda: with_(FORWARD, lane="update"),
        "op 'f': lane 'update' cannot run it; it belongs on compute",
    ),
    "a wait that is not on the host": (
        lambda: Op(name="w", lane="compute", work=Wait(op="f")),
        "op 'w': lane 'compute' cannot run it; it belongs on host",
    ),
    "a lag into the future": (
        lambda: Dep("f", -1),
        "dependency on 'f': lag -1 points into the future",
    ),
    "a phase that never comes": (
        lambda: with_(FORWARD, every=2, phase=2),
        "op 'f': phase 2 must be from 0 up to every = 2",
    ),
    "a name that the text form could not hold": (
        lambda: Op(name="a;b", lane="compute", work=Forward(layers=("l0",))),
        "op 'a;b': a name has 1 to 200 printable characters and none of | ; , [ ]",
    ),
    "an empty slice": (lambda: Slice("w0", 3, 3), "slice w0[3:3] holds no elements"),
    "an empty bucket": (
        lambda: Bucket(name="b", slices=()),
        "bucket 'b': needs at least one slice and one gradient copy",
    ),
    "two roles": (
        lambda: Schedule(name="s", workload="w", buckets=(), roles={ROLE: (FORWARD,), "server": (FORWARD,)}),
        "schedule 's': has roles worker, server; the only role is 'worker'",
    ),
    "no role": (
        lambda: Schedule(name="s", workload="w", buckets=(), roles={}),
        "schedule 's': has roles none; the only role is 'worker'",
    ),
    "two ops of one name": (lambda: made(FORWARD, FORWARD), "schedule 's': op 'f' stands twice"),
    "two buckets of one name": (
        lambda: made(FORWARD, buckets=(BUCKET, BUCKET)),
        "schedule 's': bucket 'b' stands twice",
    ),
    "an unknown op that is waited for": (
        lambda: made(with_(FORWARD, after=(Dep("g"),))),
        "schedule 's': op 'f' waits for 'g', which is no op",
    ),
    "an unknown op that the host waits for": (
        lambda: made(FORWARD, Op(name="w", lane="host", work=Wait(op="g"))),
        "schedule 's': op 'w' waits for 'g', which is no op",
    ),
    "an unknown bucket": (
        lambda: made(FORWARD, Op(name="u", lane="update", work=Update(bucket="c"))),
        "schedule 's': op 'u' names bucket 'c', which is not there",
    ),
    "nothing to compute": (
        lambda: made(Op(name="u", lane="update", work=Update(bucket="b"))),
        "schedule 's': has no op on the compute lane",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_no_schedule_can_be_says_so_when_it_is_made(what: str):
    make, message = WRONG[what]
    with pytest.raises(ScheduleError) as caught:
        make()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("spoil", "number"),
    [
        (lambda lines: ["nonsense", *lines], 1),
        (lambda lines: [*lines[:3], "f | compute", *lines[3:]], 4),
        (lambda lines: [*lines, "f | compute | dance | l0 |"], 10),
        (lambda lines: [*lines, "f | compute | forward | l0 | forward l0 [x]"], 10),
        (lambda lines: [*lines, "f | compute | forward | l0 | forward l0"], 10),
        (lambda lines: [*lines, "bucket c | 1 | w0[0:4]"], 10),
        (lambda lines: [lines[0], lines[1].replace("[0:6]", "[0:six]"), *lines[2:]], 2),
        (lambda lines: [*lines, "u | update | update | all |"], 10),
    ],
)
def test_a_line_that_cannot_be_read_is_named_by_its_number(spoil: Callable[[list[str]], list[str]], number: int):
    lines = to_text(build("sync", TWO)[0]).splitlines()
    with pytest.raises(SimgdError, match=rf"^here, line {number}: "):
        from_text("\n".join(spoil(lines)), where="here")


def test_a_lane_that_does_not_exist_is_named_with_its_place():
    with pytest.raises(SimgdError, match=r"roles.*lane.*'gpu'|'gpu'.*lane"):
        from_text(to_text(build("sync", TWO)[0]).replace("forward l0 | compute", "forward l0 | gpu"), where="here")


PIECES = [
    "schedule s | w",
    "bucket b | 1 | w0[0:4]",
    "role worker",
    "f | compute | forward | l0 |",
    "| 2, 1",
    "[0]",
    "\n",
]


@settings(max_examples=400, deadline=None)
@given(
    st.one_of(
        st.text(max_size=80), st.lists(st.sampled_from([*PIECES, " | ", ";", "-1", "0"]), max_size=12).map("".join)
    )
)
def test_any_text_is_a_schedule_or_a_simgd_error(text: str):
    try:
        from_text(text)
    except SimgdError as error:
        assert "\n" not in str(error)  # noqa: PT017


@settings(max_examples=400, deadline=None)
@given(cases(anything), st.data())
def test_any_spoilt_text_form_is_a_schedule_or_a_simgd_error(schedule: Schedule, data: st.DataObject):
    text = to_text(schedule)
    first = data.draw(st.integers(0, len(text)))
    last = data.draw(st.integers(first, min(len(text), first + 20)))
    try:
        from_text(text[:first] + data.draw(st.text(max_size=5)) + text[last:])
    except SimgdError as error:
        assert "\n" not in str(error)  # noqa: PT017


# --- what ops read and write ----------------------------------------------------------------------------------------


def test_what_ops_read_and_write_follows_from_their_work():
    schedule, _ = build("async:1:1B", TWO)
    touched = accesses(schedule, TWO)
    weight, fresh, gradient = (Access(value, "bucket0") for value in ("weight", "fresh", "gradient"))
    assert touched["forward l1"] == ((weight,), ())
    # Backward leaves the gradient in its own place where a copy takes it from there.
    assert touched["backward l1"] == ((weight,), (fresh,))
    assert touched["copy bucket0"] == ((fresh,), (gradient,))
    assert touched["all_reduce bucket0"] == ((gradient,), (gradient,))
    assert touched["update bucket0"] == ((gradient,), (weight,))


def test_one_update_of_many_buckets_touches_each_of_them():
    schedule, _ = build("bucketed:1B", TWO)
    touched = accesses(schedule, TWO)
    assert touched["update all"][1] == (Access("weight", "bucket0"), Access("weight", "bucket1"))


def test_a_slice_shared_by_two_buckets_belongs_to_both():
    # A layer whose tensor is cut in two touches both halves.
    slices = (("first", Slice("w1", 0, 2)), ("second", Slice("w1", 2, 6)), ("third", Slice("w0", 0, 4)))
    buckets = tuple(Bucket(name=name, slices=(part,)) for name, part in slices)
    ops = [
        Op(name=f"r {name}", lane="comm", work=Communicate(collective="all_reduce", bucket=name)) for name, _ in slices
    ]
    touched = accesses(made(with_(FORWARD), *ops, buckets=buckets), TWO)
    assert touched["f"][0] == (Access("weight", "third"),)
    both = made(Op(name="f", lane="compute", work=Forward(layers=("l1",))), *ops, buckets=buckets)
    assert accesses(both, TWO)["f"][0] == (Access("weight", "first"), Access("weight", "second"))


def test_the_age_of_what_an_op_reads_is_the_lag_on_who_wrote_it():
    schedule, _ = build("async:2:1B", TWO)
    touched = accesses(schedule, TWO)
    ops = {op.name: op for op in schedule.ops}
    assert data_lag(ops["update bucket0"], Access("gradient", "bucket0"), touched) == 2
    assert data_lag(ops["all_reduce bucket0"], Access("gradient", "bucket0"), touched) == 0


def test_there_are_six_lanes():
    assert LANES == ("host", "compute", "update", "copy_out", "copy_in", "comm")
