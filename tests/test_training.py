"""The weights after training by a schedule, on real ranks, are those of a serial emulation, bit for bit.

``python tests/test_training.py`` prints how far AdamW drifts without rounding, and which tensors drift most: it divides
by the root of a mean square, so that where a gradient is rounding noise its whole step is.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
import serial
import torch
import training_cases
from groups import run_ranks
from training_cases import SEED, Trained

from calibration.counting import from_spec
from executor.backends import loopback
from executor.networks.case import Case, load
from executor.shards import shard_seed
from simgd import files, schedules
from simgd.schedule import ROLE, Bucket, Communicate, Dep, Op, Schedule, Update
from simgd.soundness import derive
from simgd.workload import Workload

STEPS = 20
RANKS = (2, 3, 4)
NETWORKS = ("convolutional", "attention")

#: Which networks so many ranks train: both are tried in each way, but not everything twice on every size.
ON = {2: NETWORKS, 3: ("convolutional",), 4: ("attention",)}
OPTIMIZERS = {"sgd": "sgd:lr=0.05", "adamw": "adamw:lr=0.003"}

#: Of the gradients' elements that are not 0, fewer than this share may round to 0.
MOST_VANISHED = 0.2

NAMED = (
    "sync",
    "bucketed:1kB",
    "layerwise",
    "layerwise:tensor",
    "layerwise:join",
    "layerwise:400B",
    "async:1:1kB",
    "async:2:1kB",
    "async:1:all",
    "async:2:all",
    "async_layerwise:1",
    "async_layerwise:2",
)

ALL = (*NAMED, "delays by layer", "sharded", "scattered")


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def workload(network: str) -> Workload:
    return from_spec(f"tiny:{network}")


def schedule(name: str, network: str) -> Schedule:
    """Return a named schedule, or one that a file could hold."""
    work = workload(network)
    if name in NAMED:
        return schedules.build(schedules.parse(name), work)
    layerwise = schedules.build(schedules.parse("layerwise"), work)
    if name == "delays by layer":
        # As `auto` plans it: the layers in front, whose gradients come last, are delayed, here by 0, 0, 1, 2, ...
        delays = {bucket.name: max(0, place - 1) for place, bucket in enumerate(layerwise.buckets)}
        return schedules.build(schedules.parse("async_layerwise:auto"), work, delays=delays)
    ops: list[Op] = []
    for op in layerwise.ops:
        match op.work:
            case Communicate(bucket=bucket):
                scatter = Communicate(collective="reduce_scatter", bucket=bucket)
                ops.append(msgspec.structs.replace(op, name=f"scatter {bucket}", work=scatter))
                if name == "scattered":
                    gather = Communicate(collective="all_gather", bucket=bucket)
                    ops.append(Op(name=f"gather {bucket}", lane="comm", work=gather, after=op.after))
            case Update(bucket=bucket) if name == "sharded":
                # ZeRO-1: each rank updates its part of the weights, which are gathered before the next forward
                mine = Update(bucket=bucket, part="mine")
                ops.append(msgspec.structs.replace(op, work=mine, after=(Dep(f"scatter {bucket}"),)))
                gather = Communicate(collective="all_gather", bucket=bucket, value="weight")
                ops.append(Op(name=f"gather {bucket}", lane="comm", work=gather, after=(Dep(op.name),)))
            case Update(bucket=bucket):
                ops.append(msgspec.structs.replace(op, after=(Dep(f"gather {bucket}"),)))
            case _:
                waits = tuple(
                    Dep(dep.op.replace("update", "gather"), dep.lag) if name == "sharded" else dep for dep in op.after
                )
                ops.append(msgspec.structs.replace(op, after=waits))
    return msgspec.structs.replace(layerwise, name=name, roles={ROLE: tuple(ops)})


def delays(made: Schedule, network: str) -> dict[str, int]:
    """Return the delay of each parameter, from the schedule's own declaration."""
    staleness = derive(made, workload(network)).staleness
    of_bucket: Mapping[str, Bucket] = {bucket.name: bucket for bucket in made.buckets}
    return {part.tensor: age for name, age in staleness.items() for part in of_bucket[name].slices}


def case(network: str, device: str = "cpu") -> Case:
    torch.manual_seed(SEED)
    with torch.device("cpu"):
        made = load(f"tiny:{network}")
    made.module.to(device)
    return made


#: The same optimizers as in `OPTIMIZERS`, made by hand.
BY_HAND = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.003),
}


def serially(
    network: str,
    ages: tuple[tuple[str, int], ...],
    kind: str,
    ranks: int,
    grid: float | None,
    *,
    steps: int = STEPS,
    device: str = "cpu",
) -> serial.Result:
    """Train in one process, with the delay of each parameter."""
    work = workload(network)
    with torch.device(device):
        return serial.train(
            lambda: case(network, device),
            BY_HAND[kind],
            dict(ages),
            ranks=ranks,
            steps=steps,
            batch=work.batch,
            tokens=work.tokens,
            shard=lambda rank, iteration: torch.manual_seed(shard_seed(SEED, rank, iteration)),
            grid=grid,
        )


@cache
def emulated(network: str, ages: tuple[tuple[str, int], ...], kind: str, ranks: int, rounded: bool, device: str) -> Any:
    """Train in one process; return what it gives and the grid of its gradients."""
    if device == "cuda":
        training_cases.be_deterministic()

    def train(grid: float | None) -> serial.Result:
        return serially(network, ages, kind, ranks, grid, device=device)

    free = train(None)
    if not rounded:
        return free, None
    coarse = serial.exact_grid(free.largest, ranks)
    # The finest on which sums stay exact: the emulator refuses a finer one.
    try:
        return train(coarse / 2), coarse / 2
    except AssertionError:
        return train(coarse), coarse


def reference(name: str, network: str, kind: str, ranks: int, *, rounded: bool = True, device: str = "cpu") -> Any:
    ages = delays(schedule(name, network), network)
    return emulated(network, tuple(sorted(ages.items())), kind, ranks, rounded, device)


def trained(
    name: str,
    network: str,
    kind: str,
    ranks: int,
    *,
    rounded: bool = True,
    prefix: str = "",
    device: str = "cpu",
    **more: Any,
) -> Trained:
    grid = reference(name, network, kind, ranks, device=device)[1] if rounded else None
    return Trained(
        name=f"{prefix}{name} {network} {kind}{'' if rounded else ' unrounded'}",
        schedule=files.plain(schedule(name, network)),
        workload=files.plain(workload(network)),
        optimizer=OPTIMIZERS[kind],
        steps=STEPS,
        grid=grid,
        **more,
    )


def cases(backend: str, ranks: int) -> list[Trained]:
    """Return everything that one group of ranks trains."""
    progress = {"gloo": "thread", "mpi": "poll:1"}.get(backend, "none")
    device = device_of(backend)
    found = [
        trained(name, network, kind, ranks, progress=progress, device=device)
        for name in ALL
        for network in ON[ranks]
        for kind in OPTIMIZERS
    ]
    found += [trained(name, network, "sgd", ranks, rounded=False) for name in ALL for network in ON[ranks]]
    # Other ways of progress, several messages in flight, and lanes and ranks that are slow at random
    for place, name in enumerate(("layerwise:tensor", "async:2:1kB", "delays by layer", "sharded")):
        for other in ("none", "poll:3", "thread") if backend in ("mpi", "gloo") else ("none",):
            given = {"progress": other, "in_flight": 1 + place % 2, "delays_seed": place, "device": device}
            found.append(trained(name, "convolutional", "adamw", ranks, prefix=f"slowed, {other}, ", **given))
    if backend in ("gloo", "nccl"):
        found += [
            trained(name, "convolutional", "sgd", ranks, rounded=False, prefix="ddp ", progress=progress)
            for name in ("sync", "bucketed:1kB", "layerwise")
        ]
    return found


def device_of(backend: str) -> str:
    return "cuda" if backend == "nccl" else "cpu"


@cache
def weights(backend: str, ranks: int) -> dict[str, dict[str, torch.Tensor]]:
    """Train all cases of one group, once."""
    return train_on(backend, ranks, cases(backend, ranks))


def train_on(backend: str, ranks: int, given: list[Trained]) -> dict[str, dict[str, torch.Tensor]]:
    """Train the *given* cases on real ranks, or on emulated ones."""
    if backend == "loopback":
        swap = (torch.get_rng_state, torch.set_rng_state)
        return loopback.run(ranks, lambda each: training_cases.train_all(given, each), swap=swap)[0]
    with TemporaryDirectory() as folder:
        put, out = Path(folder) / "cases.json", Path(folder) / "weights.pt"
        put.write_bytes(msgspec.json.encode(given))
        said = run_ranks(backend, ranks, [training_cases.__file__, backend, str(put), str(out)], limit_s=400)
        assert out.exists(), said
        return torch.load(out)


GPUS = torch.cuda.device_count()

GROUPS = [
    *((backend, ranks) for backend in ("loopback", "mpi", "gloo") for ranks in RANKS),
    *(("nccl", ranks) for ranks in RANKS if ranks <= GPUS),
]

TRAINED = [(backend, ranks, network) for backend, ranks in GROUPS for network in ON[ranks]]


def distance(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """Return ||one - other|| / ||other|| over all parameters."""
    a = torch.cat([one[name].flatten().double() for name in sorted(one)])
    b = torch.cat([other[name].cpu().flatten().double() for name in sorted(one)])
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize(("backend", "ranks", "network"), TRAINED, ids=lambda value: str(value))
def test_weights_equal_the_emulation_bit_for_bit(backend, ranks, network, kind, name):
    result, grid = reference(name, network, kind, ranks, device=device_of(backend))
    assert result.vanished_total < MOST_VANISHED
    assert ranks * result.largest < 2**24 * grid
    found = weights(backend, ranks)[f"{name} {network} {kind}"]
    assert found.keys() == result.weights.keys()
    assert [each for each in found if not torch.equal(found[each], result.weights[each].cpu())] == []


@pytest.mark.parametrize(("backend", "ranks", "network"), TRAINED, ids=lambda value: str(value))
def test_without_rounding_momentum_sgd_stays_within_rounding_errors(backend, ranks, network):
    """A wrong delay shows as 1.7e-3 or more; other orders of summing as 1e-5 or less."""
    far = {}
    for name in ALL:
        result, _ = reference(name, network, "sgd", ranks, rounded=False, device=device_of(backend))
        far[name] = distance(weights(backend, ranks)[f"{name} {network} sgd unrounded"], result.weights)
    assert {name: value for name, value in far.items() if value > 1e-5} == {}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_wrong_delay_shows_as_far_more_than_rounding(network, kind):
    names = ("sync", "async:1:1kB", "async:2:1kB", "delays by layer")
    results = [reference(name, network, kind, 2)[0].weights for name in names]
    for place, one in enumerate(results):
        for other in results[:place]:
            assert distance(one, other) > 1e-3


@pytest.mark.parametrize(("backend", "ranks"), GROUPS, ids=lambda value: str(value))
def test_random_delays_on_lanes_and_ranks_change_nothing(backend, ranks):
    slowed = [name for name in weights(backend, ranks) if name.startswith("slowed")]
    assert len(slowed) == (12 if backend in ("mpi", "gloo") else 4)
    for full in slowed:
        name = full.split(", ")[2].removesuffix(" convolutional adamw")
        result, _ = reference(name, "convolutional", "adamw", ranks, device=device_of(backend))
        found = weights(backend, ranks)[full]
        assert [each for each in found if not torch.equal(found[each], result.weights[each].cpu())] == [], full


@pytest.mark.parametrize("name", ["sync", "bucketed:1kB", "layerwise"])
@pytest.mark.parametrize(("backend", "ranks"), [group for group in GROUPS if group[0] in ("gloo", "nccl")])
def test_schedules_without_delay_equal_distributed_data_parallel(backend, ranks, name):
    """With 2 ranks a sum has one order, and halving is exact; with more, DDP divides before it sums."""
    full = f"ddp {name} convolutional sgd unrounded"
    found = weights(backend, ranks)
    ours, theirs = found[full], found[f"theirs {full}"]
    if ranks == 2:
        assert [each for each in ours if not torch.equal(ours[each], theirs[each])] == []
    assert distance(ours, theirs) <= 1e-5


def main() -> None:
    torch.set_num_threads(1)
    for network in NETWORKS:
        for backend, ranks in (("mpi", 3), ("mpi", 4), ("gloo", 3), ("gloo", 4)):
            given = [trained(name, network, "adamw", ranks, rounded=False) for name in ALL]
            found = train_on(backend, ranks, given)
            drifts = {}
            for case_, name in zip(given, ALL, strict=True):
                exact = reference(name, network, "adamw", ranks, rounded=False)[0].weights
                drifts[name] = {each: distance({each: found[case_.name][each]}, exact) for each in exact}
                drifts[name]["all"] = distance(found[case_.name], exact)
            worst = max(drifts, key=lambda name: drifts[name]["all"])
            tensors = sorted(drifts[worst].items(), key=lambda item: -item[1])
            most = ", ".join(f"{name} {value:.1e}" for name, value in tensors[:4] if name != "all")
            overall = [drifts[name]["all"] for name in drifts]
            print(f"{network}, {backend}, {ranks} ranks: {min(overall):.1e} to {max(overall):.1e} ({worst}: {most})")


if __name__ == "__main__":
    main()
