"""Every file can be written and read again; whatever else it holds ends in one line that says where and what."""

import gzip
import json
import os
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from itertools import pairwise
from random import Random
from typing import Any

import pytest
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st

from simgd import catalogue, files, schedules
from simgd.errors import FileError, SimgdError
from simgd.job import job
from simgd.predict import Machine, trace_of
from simgd.profile import (
    Curve,
    Efficiency,
    Execution,
    Interference,
    Jitter,
    LayerTimes,
    LinkRate,
    MemoryOverhead,
    MemoryRate,
    PointToPoint,
    Profile,
    Split,
    StepTime,
)
from simgd.schedule import Schedule
from simgd.topology import Cluster, Device, Interconnect, Link
from simgd.trace import Trace
from simgd.units import Bytes, FlopRate, Rate, Seconds
from simgd.workload import Amount, Layer, Source, Tensor, Work, Workload

KINDS = (Workload, Cluster, Profile, Schedule, Trace)


def one_of_each() -> dict[type, Any]:
    """Return a small valid document of every kind."""
    workload, cluster, profile = (
        catalogue.workload("mlp"),
        catalogue.cluster("dgx1-p100"),
        catalogue.profile("dgx1-p100"),
    )
    study = Machine(cluster, profile).study("layerwise", job(workload), 2)
    found = (workload, cluster, profile, study.schedule, trace_of(study))
    return dict(zip(KINDS, found, strict=True))


DOCUMENTS = one_of_each()
PLAIN = {kind: files.plain(value) for kind, value in DOCUMENTS.items()}


def read_back(value: Any, kind: type, *, toml: bool) -> Any:
    content = files.to_toml(value) if toml else files.to_json(value)
    return files.parse(content, kind, where="again", toml=toml)


def complaint(read: Callable[[], object]) -> str:
    """Return the message of the error of ours that *read* ends with; nothing if it ends well."""
    try:
        read()
    except SimgdError as error:
        return str(error)
    return ""


def check(message: str) -> None:
    assert not message or message.startswith("f: ")
    assert "\n" not in message


def refuses_or_reads(content: bytes, kind: type, *, toml: bool) -> None:
    """Parse *content*: a value, or an error of ours in one line that starts with the place."""
    check(complaint(lambda: files.parse(content, kind, where="f", toml=toml)))


# --- values -> file -> values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("toml", [True, False], ids=["toml", "json"])
@pytest.mark.parametrize("name", catalogue.names("workload"))
def test_a_shipped_workload_survives_its_file(name, toml):
    assert read_back(catalogue.workload(name), Workload, toml=toml) == catalogue.workload(name)


@pytest.mark.parametrize("toml", [True, False], ids=["toml", "json"])
@pytest.mark.parametrize("name", catalogue.names("cluster"))
def test_a_shipped_cluster_survives_its_file(name, toml):
    assert read_back(catalogue.cluster(name), Cluster, toml=toml) == catalogue.cluster(name)


@pytest.mark.parametrize("name", catalogue.names("profile"))
def test_a_shipped_profile_survives_its_file(name):
    assert read_back(catalogue.profile(name), Profile, toml=False) == catalogue.profile(name)


def test_a_trace_survives_its_file():
    assert read_back(DOCUMENTS[Trace], Trace, toml=False) == DOCUMENTS[Trace]


@given(strategies.cases(strategies.workload), st.randoms(use_true_random=False))
def test_random_workloads_and_schedules_survive_their_files(workload, rng):
    schedule = strategies.named(rng, workload)
    assert read_back(workload, Workload, toml=True) == workload
    assert read_back(schedule, Schedule, toml=False) == schedule


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
ABOVE_0 = st.floats(min_value=1e-20, max_value=1e20)
SHARE = st.floats(min_value=0, max_value=0.99)
FROM_0 = st.just(0.0) | ABOVE_0
FACTOR = st.floats(min_value=1, max_value=100)
ABOUT = {
    "origin": st.sampled_from(["measured", "published", "modelled", "assumed"]),
    "source": NAMES,
    "uncertainty": SHARE,
}
POINTS = st.lists(st.integers(1, 10**9), min_size=2, max_size=5, unique=True).map(
    lambda sizes: tuple((float(size), size * 1e-9) for size in sorted(sizes))
)
AMOUNTS = st.builds(Amount, fixed=FROM_0, per_sample=FROM_0, per_token=FROM_0)
WORKS = st.builds(Work, flops=AMOUNTS, bytes=AMOUNTS, kernels=st.integers(0, 9))
DEVICES = st.builds(
    Device,
    name=NAMES,
    kind=st.sampled_from(["gpu", "cpu"]),
    memory=st.integers(1, 2**50).map(Bytes),
    memory_rate=ABOVE_0.map(Rate),
    fp32=ABOVE_0.map(FlopRate),
    bf16=st.none() | ABOVE_0.map(FlopRate),
    source=NAMES,
)


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    """Draw devices in a chain, the first with a NIC, on some nodes."""
    number = draw(st.integers(1, 4))
    names = draw(st.lists(NAMES, min_size=number + 1, max_size=number + 1, unique=True))
    links = tuple(
        Link(
            ends=ends,
            kind=draw(st.sampled_from(["nvlink", "pcie"])),
            bandwidth=Rate(draw(ABOVE_0)),
            latency=Seconds(draw(FROM_0)),
            count=draw(st.integers(1, 12)),
        )
        for ends in pairwise(names)
    )
    net = Interconnect(
        kind="infiniband", bandwidth=Rate(draw(ABOVE_0)), latency=Seconds(draw(FROM_0)), source=draw(NAMES)
    )
    return Cluster(
        name=draw(NAMES),
        device=draw(DEVICES),
        vertices={names[0]: "nic"} | dict.fromkeys(names[1:], "device"),
        links=links,
        interconnect=net,
        nodes=draw(st.integers(1, 9)),
        description=draw(st.just("") | NAMES),
    )


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    """Draw a profile with some entries of most kinds."""
    times = st.dictionaries(NAMES, FROM_0, min_size=1, max_size=3)
    dtype, batch = st.sampled_from(["fp32", "tf32", "bf16"]), st.integers(1, 999)
    kind = st.sampled_from(["all_reduce", "broadcast"])
    bound = st.sampled_from(["matrix", "memory"])

    def some(what: st.SearchStrategy[Any]) -> Any:
        return draw(st.lists(what, max_size=2).map(tuple))

    def perhaps(what: type, **fields: st.SearchStrategy[Any]) -> Any:
        return draw(st.none() | st.builds(what, **ABOUT, **fields))

    return Profile(
        name=draw(NAMES),
        cluster=draw(clusters()),
        steps=some(st.builds(StepTime, **ABOUT, workload=NAMES, batch=batch, seconds=ABOVE_0, dtype=dtype)),
        layers=some(
            st.builds(
                LayerTimes,
                **ABOUT,
                workload=NAMES,
                batch=batch,
                direction=st.just("forward"),
                seconds=times,
                dtype=dtype,
            )
        ),
        split=perhaps(Split, backward_plus_update=ABOVE_0),
        efficiency=perhaps(Efficiency, value=ABOVE_0),
        memory=perhaps(MemoryRate, bytes_per_s=ABOVE_0, kernel=FROM_0),
        curves=some(st.builds(Curve, **ABOUT, kind=kind, ranks=batch, nodes=batch, points=POINTS)),
        links=some(st.builds(LinkRate, **ABOUT, kind=NAMES, bytes_per_s=ABOVE_0)),
        point_to_point=perhaps(PointToPoint, points=POINTS),
        interference=some(
            st.builds(
                Interference, **ABOUT, compute=bound, path=NAMES, compute_factor=FACTOR, communication_factor=FACTOR
            )
        ),
        execution=perhaps(Execution, merged=st.booleans(), run_ahead=st.integers(1, 5)),
        jitter=perhaps(Jitter, rank_sigma=SHARE),
        memory_overhead=perhaps(MemoryOverhead, nbytes=FROM_0),
    )


@settings(max_examples=40)
@given(clusters())
def test_any_cluster_survives_its_file(cluster):
    assert read_back(cluster, Cluster, toml=True) == cluster
    assert read_back(cluster, Cluster, toml=False) == cluster


@settings(max_examples=40)
@given(profiles())
def test_any_profile_survives_its_file(profile):
    assert read_back(profile, Profile, toml=False) == profile


@settings(max_examples=40)
@given(
    NAMES,
    NAMES,
    WORKS,
    AMOUNTS,
    st.dictionaries(NAMES, NAMES | st.booleans() | st.integers(-9, 9) | ABOVE_0, max_size=3),
)
def test_any_counted_workload_survives_its_file(name, text, work, amount, arguments):
    layer = Layer(name=name, tensors=(Tensor(text, (3, 4)),), forward=work, backward=work, kept=amount)
    workload = Workload(
        name=text, layers=(layer,), description=name, source=Source(function=name, arguments=arguments), tokens=7
    )
    assert read_back(workload, Workload, toml=True) == workload


@given(profiles(), profiles())
@settings(max_examples=20)
def test_of_two_profiles_the_later_wins_entry_by_entry(first, later):
    both = first.updated(later)
    assert both.cluster == first.cluster
    for lists in ("steps", "layers", "curves", "links", "interference"):
        keys = [entry.key for entry in getattr(both, lists)]
        assert len(keys) == len(set(keys))
        of_later = {entry.key: entry for entry in getattr(later, lists)}
        of_first = {entry.key: entry for entry in getattr(first, lists)}
        assert {entry.key: entry for entry in getattr(both, lists)} == of_first | of_later
    assert both.split == (later.split or first.split)
    assert both.memory == (later.memory or first.memory)


# --- what cannot be read -----------------------------------------------------------------------------------------


@given(st.binary(max_size=200), st.sampled_from(KINDS), st.booleans())
def test_any_bytes_are_read_or_refused_in_one_line(content, kind, toml):
    refuses_or_reads(content, kind, toml=toml)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=8), ANYTHING, max_size=4), st.sampled_from(KINDS))
def test_any_json_with_the_right_header_is_read_or_refused_in_one_line(raw, kind):
    header = {"format": kind.__struct_config__.tag, "version": 1}
    refuses_or_reads(json.dumps(raw | header).encode(), kind, toml=False)
    fields = dict(zip(kind.__struct_fields__, raw.values(), strict=False))
    refuses_or_reads(json.dumps(fields | header).encode(), kind, toml=False)


JUNK = (
    None,
    True,
    -1,
    0,
    1,
    2**63,
    10**30,
    -1e300,
    1e300,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "-3 GB/s",
    [],
    {},
    [[]],
)


def mutated(raw: Any, rng: Random, times: int = 1) -> Any:
    """Return *raw* with a random part of it dropped, doubled, or replaced by junk."""
    raw = deepcopy(raw)
    for _ in range(times):
        at = raw
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(at[key], (dict, list)) and rng.random() < 0.8:
                at = at[key]
                continue
            match rng.randrange(5):
                case 0:
                    del at[key]
                case 1 if isinstance(at, list):
                    at.append(at[key])
                case 2 if isinstance(at, dict):
                    at[rng.choice(["x", "name", "kind"])] = at[key]
                case _:
                    at[key] = rng.choice(JUNK)
            break
    return raw


def as_toml(raw: Any) -> bytes:
    return files.to_toml(_without_none(raw))


def _without_none(raw: Any) -> Any:
    if isinstance(raw, dict):
        return {key: _without_none(value) for key, value in raw.items() if value is not None}
    return [_without_none(value) for value in raw if value is not None] if isinstance(raw, list) else raw


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_with_something_wrong_is_read_or_refused_in_one_line(kind):
    rng = Random(kind.__name__)
    for _ in range(150):
        raw = mutated(PLAIN[kind], rng, rng.choice([1, 1, 2, 5]))
        check(complaint(partial(files.convert, raw, kind, where="f")))


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_short_is_refused(kind):
    content = files.to_json(DOCUMENTS[kind])
    for length in range(0, len(content) - 2, max(1, len(content) // 50)):
        with pytest.raises(FileError, match=r"^f: is not JSON"):
            files.parse(content[:length], kind, where="f", toml=False)


@pytest.mark.parametrize("kind", [Workload, Cluster])
def test_a_toml_file_cut_short_is_read_or_refused_in_one_line(kind):
    content = files.to_toml(DOCUMENTS[kind])
    for length in range(0, len(content) - 2, max(1, len(content) // 50)):
        refuses_or_reads(content[:length], kind, toml=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_a_file_of_another_sort_is_called_by_its_name(kind, other):
    if kind is other:
        return
    with pytest.raises(FileError, match=f"^f: holds '{other.__struct_config__.tag}'; it should start with format = "):
        files.convert(PLAIN[other], kind, where="f")


@pytest.mark.parametrize("version", [0, 2, "1", None, 1e300, "x" * 999])
def test_another_version_is_refused(version):
    with pytest.raises(FileError, match=r"^f: version is .*; this simgd reads version 1$") as caught:
        files.convert(PLAIN[Cluster] | {"version": version}, Cluster, where="f")
    assert len(str(caught.value)) < 100


@pytest.mark.parametrize("toml", [True, False], ids=["toml", "json"])
@pytest.mark.parametrize("opening", ["[", '{"a":', "a = [", 'a = {"b"=', "[[a]]\na.b = ["])
def test_deep_nesting_is_refused(opening, toml):
    with pytest.raises(FileError, match=r"^f: "):
        files.parse((opening * 100_000).encode(), Workload, where="f", toml=toml)


def test_an_error_names_the_place_in_the_file():
    raw = deepcopy(PLAIN[Cluster])
    raw["links"][3]["bandwidth"] = "25 Gps"
    with pytest.raises(FileError) as caught:
        files.convert(raw, Cluster, where="lab.toml")
    assert str(caught.value) == (
        "lab.toml: links[3].bandwidth: '25 Gps' is not a rate; write a number and GB/s, GiB/s or Gb/s"
    )


def test_a_layer_may_have_any_name_in_a_table_of_times():
    """A name such as "error" or "where" must not be taken for an argument of the check."""
    entry = {"origin": "measured", "source": "here", "workload": "w", "batch": 1, "direction": "forward"}
    raw = PLAIN[Profile] | {"layers": [entry | {"seconds": {"error": 1.0, "where": 2.0, "batch": 3.0}}]}
    assert files.convert(raw, Profile, where="f").layers[0].seconds["where"] == 2.0


# --- reading and writing -----------------------------------------------------------------------------------------


def test_a_packed_file_holds_the_same(tmp_path):
    for name in ("p.json", "p.json.gz"):
        files.write(tmp_path / name, DOCUMENTS[Profile])
        assert files.read(tmp_path / name, Profile) == DOCUMENTS[Profile]
    assert gzip.decompress((tmp_path / "p.json.gz").read_bytes()) == (tmp_path / "p.json").read_bytes()


def test_the_same_value_makes_the_same_file(tmp_path):
    files.write(tmp_path / "a.json.gz", DOCUMENTS[Profile])
    files.write(tmp_path / "b.json.gz", DOCUMENTS[Profile])
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()


def test_a_file_is_replaced_as_a_whole_and_readable_by_all(tmp_path):
    path = tmp_path / "w.toml"
    path.write_text("old")
    files.write(path, DOCUMENTS[Workload])
    assert files.read(path, Workload) == DOCUMENTS[Workload]
    assert [found.name for found in tmp_path.iterdir()] == ["w.toml"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("name", ["missing/w.toml", ".", "x" * 300 + ".toml"])
def test_what_cannot_be_written_leaves_nothing_behind(tmp_path, name):
    with pytest.raises(FileError, match="cannot be written"):
        files.write(tmp_path / name, DOCUMENTS[Workload])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("missing.json", None, "there is no such file"),
        ("empty.json", b"", "is not JSON: Input data was truncated"),
        ("text.json.gz", b"hello", "cannot be read: Not a gzipped file"),
        ("cut.json.gz", gzip.compress(b"x" * 999, mtime=0)[:20], "cannot be read: "),
        ("bits.toml", bytes(range(128, 256)), "is not text in UTF-8"),
        ("json.toml", b"{}", "is not TOML: "),
        ("x" * 300 + ".json", None, "cannot be read: File name too long"),
    ],
)
def test_what_cannot_be_read_is_said_once(tmp_path, name, content, reason):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileError) as caught:
        files.read(path, Profile)
    assert str(caught.value).startswith(f"{path}: {reason}")
    assert str(caught.value).count(name) == 1


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(FileError, match="is a folder; name a file"):
        files.read(tmp_path, Profile)


def test_a_file_too_large_is_not_even_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_FILE_BYTES", 1000)
    (tmp_path / "large.json").write_bytes(b" " * 1001)
    (tmp_path / "bomb.json.gz").write_bytes(gzip.compress(b" " * 1_000_000, mtime=0))
    for name in ("large.json", "bomb.json.gz"):
        with pytest.raises(FileError, match=r"(is larger than|unpacks to more than) 1 kB"):
            files.read(tmp_path / name, Profile)


def test_text_of_a_schedule_and_its_file_are_the_same_schedule():
    for name in schedules.DEFAULT_SCHEDULES[:4]:
        schedule = schedules.build(schedules.parse(name), catalogue.workload("mlp"))
        assert read_back(schedule, Schedule, toml=False).digest == schedule.digest
