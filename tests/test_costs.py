"""Costs of local work against numbers derived by hand, and what each of them rests on."""

import pytest

from simgd import catalogue, schedules
from simgd.costs import (
    COPY_EFFICIENCY,
    FALLBACK_EFFICIENCY,
    Estimate,
    LayerCosts,
    copy_s,
    intensity,
    peak_memory_bytes,
    roofline_s,
    step_roofline_s,
    update_s,
)
from simgd.errors import ProfileError
from simgd.job import Job, job
from simgd.pricing import Prices
from simgd.profile import Efficiency, Host, LayerTimes, MemoryOverhead, MemoryRate, Profile, Split, StepTime
from simgd.topology import Cluster, Device, Link
from simgd.units import Bytes, FlopRate, Rate
from simgd.workload import Amount, Layer, Tensor, Work, Workload

MS = 1e-3

#: 1 TFLOP/s and 100 GB/s: 1 GFLOP takes 1 ms, 100 MB take 1 ms.
DEVICE = Device(
    name="round",
    kind="gpu",
    memory=Bytes(16 * 10**9),
    memory_rate=Rate(100e9),
    fp32=FlopRate(1e12),
    bf16=FlopRate(4e12),
)
PAIR = Cluster(
    name="pair",
    device=DEVICE,
    vertices={"a": "device", "b": "device"},
    links=(Link(ends=("a", "b"), kind="nvlink", bandwidth=Rate(10e9)),),
)

#: A sample: 1 GFLOP that reads and writes 10 MB, then 20 MB of other operations.
CONV = Work(
    flops=Amount(per_sample=1e9), matrix_bytes=Amount(per_sample=10e6), bytes=Amount(per_sample=30e6), kernels=3
)
#: Twice that.
BACK = Work(
    flops=Amount(per_sample=2e9), matrix_bytes=Amount(per_sample=20e6), bytes=Amount(per_sample=60e6), kernels=5
)
#: A sample: 0.1 GFLOP behind 100 MB.
NORM = Work(
    flops=Amount(per_sample=1e8), matrix_bytes=Amount(per_sample=100e6), bytes=Amount(per_sample=100e6), kernels=1
)

NET = Workload(
    name="net",
    batch=10,
    layers=(
        Layer(
            name="conv",
            tensors=(Tensor("w", (1000, 1000)),),
            forward=CONV,
            backward=BACK,
            kept=Amount(fixed=7, per_sample=1000),
        ),
        Layer(name="norm", tensors=(Tensor("v", (500_000,)),), forward=NORM, backward=NORM),
    ),
)


def costs(profile: Profile, of: Job | None = None) -> LayerCosts:
    return LayerCosts(of or job(NET), profile)


def profile(**entries: object) -> Profile:
    return Profile(name="hand", cluster=PAIR, **entries)  # type: ignore[arg-type]


def times(batch: int, direction: str = "forward", uncertainty: float = 0.02, **seconds: float) -> LayerTimes:
    return LayerTimes(
        origin="measured",
        source="by hand",
        uncertainty=uncertainty,
        workload="net",
        batch=batch,
        direction=direction,  # type: ignore[arg-type]
        seconds=seconds,
    )


def step(workload: str, batch: int, seconds: float, **fields: object) -> StepTime:
    about = {"origin": "published", "source": "a table", "uncertainty": 0.05}
    return StepTime(workload=workload, batch=batch, seconds=seconds, **about | fields)  # type: ignore[arg-type]


# --- the roofline ------------------------------------------------------------------------------------------------


def test_a_layer_bound_by_arithmetic():
    # 10 samples: 10 GFLOP take 10 ms, more than their 100 MB; the other 200 MB take 2 ms more
    assert roofline_s(CONV, job(NET), DEVICE) == pytest.approx(12 * MS)


def test_a_layer_bound_by_memory():
    # 10 samples: 1 GB takes 10 ms, more than 1 GFLOP's 1 ms
    assert roofline_s(NORM, job(NET), DEVICE) == pytest.approx(10 * MS)
    assert costs(profile()).bound(NET.layers[1], "forward") == "memory"
    assert costs(profile()).bound(NET.layers[0], "forward") == "matrix"


def test_16_bits_are_half_the_bytes_at_their_own_rate():
    # 10 GFLOP at 4 TFLOP/s take 2.5 ms, the other 100 MB 1 ms
    assert roofline_s(CONV, job(NET, dtype="bf16"), DEVICE) == pytest.approx(3.5 * MS)


def test_a_step_is_all_layers_both_ways():
    # conv 12 + 24, norm 10 + 10
    assert step_roofline_s(job(NET), DEVICE) == pytest.approx(56 * MS)
    # 10 x (1 + 2 + 0.1 + 0.1) GFLOP over 10 x (30 + 60 + 100 + 100) MB
    assert intensity(job(NET)) == pytest.approx(32e9 / 2.9e9)


def test_a_precision_that_the_device_lacks_is_refused():
    with pytest.raises(ProfileError, match="'round': has no tf32 arithmetic"):
        roofline_s(CONV, job(NET, dtype="tf32"), DEVICE)


# --- from strong to weak -----------------------------------------------------------------------------------------


def test_nothing_known_is_half_the_roofline_and_assumed():
    found = costs(profile()).of("conv", "forward")
    assert FALLBACK_EFFICIENCY == 0.5
    assert found.seconds == pytest.approx(24 * MS)
    assert (found.origin, found.uncertainty, found.extrapolated) == ("assumed", 0.5, False)


@pytest.mark.parametrize(
    ("origin", "weak"), [("measured", "modelled"), ("published", "modelled"), ("assumed", "assumed")]
)
def test_a_stated_efficiency_makes_a_model(origin, weak):
    entry = Efficiency(origin=origin, source="x", uncertainty=0.1, value=0.8)
    found = costs(profile(efficiency=entry)).of("conv", "backward")
    assert found.seconds == pytest.approx(24 * MS / 0.8)
    assert (found.origin, found.uncertainty, found.extrapolated) == (weak, 0.25, False)


def test_the_published_workload_nearest_in_intensity_lends_its_efficiency():
    device = catalogue.profile("dgx1-p100").cluster
    steps = (step("vgg16", 64, 0.4), step("graphsage", 512, 0.02))
    alone = {
        name: LayerCosts(job(catalogue.workload("mlp")), Profile(name="p", cluster=device, steps=(entry,)))
        for name, entry in zip(("vgg16", "graphsage"), steps, strict=True)
    }
    mlp = job(catalogue.workload("mlp"))
    both = LayerCosts(mlp, Profile(name="p", cluster=device, steps=steps))
    far = {name: abs(intensity(job(catalogue.workload(name))) / intensity(mlp)) for name in alone}
    # the network is as memory-bound as graphsage, and far from vgg16
    assert far["graphsage"] < far["vgg16"]
    found = both.of("0", "forward")
    assert found == alone["graphsage"].of("0", "forward")
    assert found.seconds != alone["vgg16"].of("0", "forward").seconds
    assert (found.origin, found.uncertainty, found.extrapolated) == ("modelled", 0.25, False)


def test_a_published_step_of_this_workload_is_shared_out_by_rooflines():
    entry = step("net", 10, 0.1)
    found = costs(profile(steps=(entry,), efficiency=Efficiency(origin="measured", source="x", value=0.9)))
    # 1.5 M parameters x 20 B at 90 GB/s are a third of a millisecond of update; passes have the rest
    update = update_s(1_500_000, 1, job(NET), profile()).seconds
    assert update == pytest.approx(30e6 / 90e9)
    passes = [found.of(layer.name, way).seconds for layer in NET.layers for way in ("forward", "backward")]
    assert sum(passes) + update == pytest.approx(0.1)
    assert passes[1] == pytest.approx(2 * passes[0])
    assert passes == pytest.approx([share / 56 * (0.1 - update) for share in (12, 24, 10, 10)])
    one = found.of("conv", "forward")
    assert (one.origin, one.uncertainty, one.extrapolated) == ("published", 0.05, False)


def test_a_split_says_how_much_of_a_step_is_forward():
    split = Split(origin="published", source="x", backward_plus_update=3)
    found = costs(profile(steps=(step("net", 10, 0.1),), split=split))
    forward = sum(found.of(layer.name, "forward").seconds for layer in NET.layers)
    backward = sum(found.of(layer.name, "backward").seconds for layer in NET.layers)
    assert forward == pytest.approx(0.1 / 4)
    assert forward + backward + update_s(1_500_000, 1, job(NET), profile()).seconds == pytest.approx(0.1)


def test_a_batch_beyond_the_published_ones_is_modelled_and_extrapolated():
    entries = (step("net", 10, 0.1),)
    found = costs(profile(steps=entries), job(NET, batch=20)).of("conv", "forward")
    at_10 = costs(profile(steps=entries)).of("conv", "forward")
    # all of this network's work is in proportion to its samples
    assert found.seconds == pytest.approx(2 * at_10.seconds)
    assert (found.origin, found.uncertainty, found.extrapolated) == ("modelled", 0.25, True)


def test_between_two_published_batches_the_efficiency_is_linear_in_log_batch():
    entries = (step("net", 10, 0.1), step("net", 1000, 50.0))
    # all of this network's work is in proportion to its samples: the time of one at 10, at 1000, and half way at 100
    at = {
        batch: costs(profile(steps=entries), job(NET, batch=batch)).of("conv", "forward") for batch in (10, 100, 1000)
    }
    half_way = (at[10].seconds / 10 + at[1000].seconds / 1000) / 2
    assert at[100].seconds == pytest.approx(100 * half_way)
    assert (at[100].origin, at[100].uncertainty, at[100].extrapolated) == ("modelled", 0.25, False)


@pytest.mark.parametrize("name", ["resnet50", "gpt2", "vit-b16", "bert-large", "alexnet"])
@pytest.mark.parametrize("cluster", ["dgx1-p100", "dgx1-v100", "dgx-h200"])
def test_a_larger_batch_never_takes_less_time(name, cluster):
    shipped, workload = catalogue.profile(cluster), catalogue.workload(name)
    before = 0.0
    for batch in (1, 2, 3, 4, 6, 7, 16, 31, 32, 33, 45, 46, 63, 64, 65, 128, 512, 513):
        trained = Job(workload=workload, batch=batch, tokens=workload.tokens)
        times = LayerCosts(trained, shipped)
        total = sum(
            times.of(layer.name, direction).seconds
            for layer in workload.layers
            for direction in ("forward", "backward")
        )
        assert total > before
        before = total


def test_a_newer_device_of_a_class_is_faster_where_only_the_older_one_was_published():
    for name in ("vgg16", "alexnet", "gpt2", "bert-large", "vit-b16", "googlenet"):
        workload = catalogue.workload(name)
        trained = Job(workload=workload, batch=workload.batch, tokens=workload.tokens)
        old, new = (LayerCosts(trained, catalogue.profile(machine)) for machine in ("dgx1-p100", "dgx1-v100"))
        layers = [layer.name for layer in workload.layers]
        assert sum(new.of(n, "forward").seconds for n in layers) < sum(old.of(n, "forward").seconds for n in layers)


def test_an_assumed_split_gives_its_doubt_to_the_pass_that_follows_from_it():
    split = Split(origin="assumed", source="a guess", uncertainty=0.25, backward_plus_update=2.0)
    measured = LayerTimes(
        origin="measured", source="a run", workload="table", batch=0, direction="backward", seconds={"conv": 0.2}
    )
    table = Workload(name="table", layers=(Layer(name="conv", tensors=(Tensor("conv.w", (3,)),)),))
    found = costs(profile(layers=(measured,), split=split), job(table))
    assert found.of("conv", "forward") == Estimate(seconds=0.1, origin="assumed", uncertainty=0.25)
    assert found.of("conv", "backward") == Estimate(seconds=0.2, origin="measured", uncertainty=0.0)


def test_the_optimizer_is_no_part_of_what_a_step_says_of_its_passes():
    """A published step was trained with SGD: with AdamW its passes stay as long, and its update gets longer."""
    sgd, adamw = (
        costs(profile(steps=(step("net", 10, 0.1),)), job(NET, optimizer=name)).of("conv", "forward")
        for name in ("sgd", "adamw")
    )
    assert sgd == adamw


def test_a_published_step_of_another_sequence_length_is_another_one():
    gpt2, cluster = catalogue.workload("gpt2"), catalogue.cluster("dgx-a100")
    given = Profile(name="p", cluster=cluster, steps=(step("gpt2", 4, 0.5),))
    usual, short = (
        LayerCosts(job(gpt2, tokens=tokens), given).of(gpt2.layers[3].name, "forward") for tokens in (1024, 512)
    )
    assert (usual.origin, usual.extrapolated) == ("published", False)
    assert (short.origin, short.extrapolated) == ("modelled", True)
    assert short.seconds < 0.6 * usual.seconds


def test_a_measured_layer_wins_over_all():
    given = profile(layers=(times(10, conv=5 * MS),), steps=(step("net", 10, 0.1),))
    found = costs(given)
    conv = found.of("conv", "forward")
    assert (conv.seconds, conv.origin, conv.uncertainty, conv.extrapolated) == (5 * MS, "measured", 0.02, False)
    # what was not measured rests on the step as before
    assert found.of("norm", "forward") == costs(profile(steps=given.steps)).of("norm", "forward")
    assert found.of("conv", "backward") == costs(profile(steps=given.steps)).of("conv", "backward")


def test_a_measured_layer_at_another_batch_is_stretched_by_its_roofline():
    found = costs(profile(layers=(times(10, conv=5 * MS),)), job(NET, batch=30)).of("conv", "forward")
    assert found.seconds == pytest.approx(15 * MS)
    assert (found.origin, found.uncertainty, found.extrapolated) == ("modelled", 0.25, True)


def test_of_measurements_at_two_batches_the_nearer_counts():
    given = profile(layers=(times(1, conv=1 * MS), times(32, conv=9 * MS)))
    assert costs(given, job(NET, batch=32)).of("conv", "forward").seconds == 9 * MS
    assert costs(given, job(NET, batch=16)).of("conv", "forward").seconds == pytest.approx(4.5 * MS)


def test_a_measurement_of_unknown_batch_is_taken_as_it_is():
    found = costs(profile(layers=(times(0, conv=5 * MS),)), job(NET, batch=99)).of("conv", "forward")
    assert (found.seconds, found.origin, found.extrapolated) == (5 * MS, "measured", False)


UNCOUNTED = Workload(name="net", batch=8, layers=(Layer(name="conv", tensors=(Tensor("w", (10,)),)),))


def test_work_that_nobody_counted_needs_measured_times():
    with pytest.raises(ProfileError, match="layer 'conv' has no counted work; give a --profile"):
        costs(profile(), job(UNCOUNTED))
    given = profile(layers=(times(8, "backward", conv=6 * MS),))
    with pytest.raises(ProfileError, match="layer 'conv' has no counted work"):
        costs(given, job(UNCOUNTED))


def test_a_split_makes_forward_times_of_backward_ones():
    split = Split(origin="assumed", source="x", backward_plus_update=2)
    found = costs(profile(layers=(times(8, "backward", conv=6 * MS),), split=split), job(UNCOUNTED))
    assert found.of("conv", "backward").seconds == 6 * MS
    assert found.of("conv", "forward").seconds == pytest.approx(3 * MS)
    assert found.of("conv", "forward").origin == "assumed"


def test_uncounted_work_measured_at_another_length_but_any_batch_is_taken_as_it_is():
    given = times(0, "forward", conv=1 * MS), times(0, "backward", conv=1 * MS)
    stretched = tuple(
        LayerTimes(**{name: getattr(entry, name) for name in entry.__struct_fields__} | {"tokens": 5})
        for entry in given
    )
    found = costs(profile(layers=stretched), job(UNCOUNTED)).of("conv", "forward")
    assert found.seconds == pytest.approx(1 * MS)
    assert found.extrapolated


@pytest.mark.parametrize("name", catalogue.names("profile"))
@pytest.mark.parametrize("network", ["resnet50", "gpt2", "mlp"])
def test_whatever_is_modelled_carries_a_quarter(name, network):
    given = catalogue.profile(name)
    found = LayerCosts(job(catalogue.workload(network)), given)
    for layer in catalogue.workload(network).layers:
        for direction in ("forward", "backward"):
            estimate = found.of(layer.name, direction)
            assert estimate.seconds >= 0
            if estimate.origin in ("modelled", "assumed"):
                assert estimate.uncertainty >= 0.25


# --- updates, copies, host, memory -------------------------------------------------------------------------------


def test_an_update_moves_20_bytes_a_parameter_with_sgd_and_28_with_adamw():
    memory = MemoryRate(origin="measured", source="x", uncertainty=0.1, bytes_per_s=50e9, kernel=10e-6)
    given = profile(memory=memory)
    # gradient, momentum and weight read, the last two written: 5 x 4 B; AdamW has a second moment: 7 x 4 B
    assert update_s(5_000_000, 1, job(NET), given).seconds == pytest.approx(2 * MS + 10e-6)
    assert update_s(5_000_000, 1, job(NET, optimizer="adamw"), given).seconds == pytest.approx(2.8 * MS + 10e-6)
    # a copy reads and writes
    assert copy_s(5_000_000, given).seconds == pytest.approx(0.8 * MS + 10e-6)
    assert copy_s(1, given).origin == "measured"


def test_without_a_measured_rate_memory_is_taken_below_its_data_sheet():
    found = copy_s(10_000_000, profile())
    assert found.seconds == pytest.approx(80e6 / (COPY_EFFICIENCY * 100e9))
    assert (found.origin, found.uncertainty) == ("assumed", 0.25)


HOST = Host(
    origin="measured",
    source="x",
    forward_kernel=1e-6,
    backward_kernel=2e-6,
    collective=10e-6,
    update=3e-6,
    copy=4e-6,
    wait=5e-6,
    iteration=100e-6,
)


def test_the_host_pays_for_every_launch():
    schedule = schedules.build(schedules.parse("sync"), NET)
    priced = Prices(job(NET), PAIR, profile(host=HOST), 2).price(schedule)
    issue = {name: time.issue_ps / 1e6 for name, time in priced.timing.ops.items()}
    assert issue == {
        "forward conv": 100 + 3,  # once an iteration, then 3 kernels of 1 us
        "forward norm": 1,
        "backward norm": 2,
        "backward conv": 5 * 2,
        "all_reduce all": 10,
        "update all": 3 + 5,  # and the return of its wait for the collective
    }
    assert priced.origins["host"] == "measured"


def test_one_rank_neither_sends_nor_waits():
    schedule = schedules.build(schedules.parse("sync"), NET)
    priced = Prices(job(NET), PAIR, profile(host=HOST), 1).price(schedule)
    assert priced.timing.ops["all_reduce all"].run_ps == 0
    assert priced.timing.ops["update all"].issue_ps == 3_000_000
    assert "communication" not in priced.origins
    assert "interference" not in priced.origins


def bytes_of(name: str, **fields: object) -> float:
    schedule = schedules.build(schedules.parse(name), NET)
    return peak_memory_bytes(schedule, job(NET, **fields), profile())  # type: ignore[arg-type]


def test_memory_by_hand():
    n = 1_500_000
    kept = 7 + 10 * 1000
    # 4 B each of weight, momentum and gradient
    assert bytes_of("sync") == 12 * n + kept
    # one moment more
    assert bytes_of("sync", optimizer="adamw") == 16 * n + kept
    # activations of a batch twice as large
    assert bytes_of("sync", batch=20) == 12 * n + kept + 10_000
    # activations of half the size; weights and gradients stay at 4 B
    assert bytes_of("sync", dtype="bf16") == 12 * n + kept / 2
    # a second copy of the gradients to send
    assert bytes_of("sync", wire="bf16") == 14 * n + kept
    # d + 1 copies of the gradients
    assert bytes_of("async:2:all") == 20 * n + kept
    # d copies, and the fresh gradient of the largest bucket (v, 500,000, is ready before w, 1,000,000)
    assert bytes_of("async:2:1B") == 16 * n + 4 * 1_000_000 + kept


def test_software_takes_memory_for_itself():
    overhead = MemoryOverhead(origin="assumed", source="x", nbytes=6e8)
    schedule = schedules.build(schedules.parse("sync"), NET)
    more = peak_memory_bytes(schedule, job(NET), profile(memory_overhead=overhead))
    assert more - bytes_of("sync") == 6e8
