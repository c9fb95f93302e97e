"""What an algorithm is made of: steps of transfers, compact enough for tens of thousands of ranks."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simgd.errors import ClusterError
from simgd.profile import CollectiveKind

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Group = Sequence[int] | Ints
Numbers = Sequence[int] | Ints

#: One step with more transfers is refused: four numbers of 8 bytes each would be more than 128 MiB.
MOST_TRANSFERS = 2**22


class Step(NamedTuple):
    """Transfers at once: each `source` sends `count` blocks from `first` on to its `target`, wrapping around.

    Blocks keep their numbers. The k-th of `repeat` times, from 0, moves `first` on by k * shift.
    """

    source: Ints
    target: Ints
    first: Ints
    count: Ints  # type: ignore[assignment]  # hides tuple.count
    reduce: bool  #: the target adds what it gets to its own; else it overwrites
    repeat: int = 1
    shift: int = 0
    pipelined: bool = False
    hops: int = 1  #: on the longest way of a pipelined step
    wrap: int = 0  #: the blocks stay in the segment of so many blocks that `first` is in (0: one segment of all)
    run: int = 0  #: the blocks come in runs of so many, with as many left out between runs (0: one run)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Steps:
    """A whole algorithm for so many ranks; the package says what each kind starts and ends with.

    `nbytes` means the whole buffer: what a rank gives to an all-reduce, reduce-scatter, all-to-all, exchange or push,
    or receives from an all-gather, broadcast or pull. `steps` may be made only when they are read.
    """

    algorithm: str
    kind: CollectiveKind
    ranks: int
    participants: int  #: the ranks, then NVSwitches or servers
    blocks: int
    steps: Sequence[Step]
    own: Ints  #: for each rank, the number of the block that is its part

    @property
    def block_share(self) -> float:
        """Return the bytes of one block as a share of nbytes."""
        return 1 / self.blocks


class Pattern(NamedTuple):
    """Transfers at once, which happen `repeat` times in all, with the bytes of each as a share of nbytes."""

    source: Ints
    target: Ints
    bytes_share: Floats
    repeat: int
    hops: int
    pipelined: bool


def volume(algorithm: Steps) -> tuple[Floats, Floats]:
    """Return what each participant sends, and receives, in all, as shares of nbytes.

    >>> from simgd.algorithms import all_reduce
    >>> volume(all_reduce.ring(4))[0].tolist()
    [1.5, 1.5, 1.5, 1.5]
    """
    sent, received = np.zeros(algorithm.participants), np.zeros(algorithm.participants)
    for step in algorithm.steps:
        blocks = step.count * float(step.repeat)
        sent += np.bincount(step.source, blocks, algorithm.participants)
        received += np.bincount(step.target, blocks, algorithm.participants)
    return sent / algorithm.blocks, received / algorithm.blocks


def patterns(algorithm: Steps) -> Iterator[Pattern]:
    """Yield the patterns of transfers, equal ones once, with how often they happen.

    Consecutive pipelined steps are one pattern: their hops add up, their bytes are all on the way at once. Steps that
    are made when read are all unlike, and are yielded one by one.
    """
    if not isinstance(algorithm.steps, tuple):
        yield from (_pattern(step, algorithm.blocks) for step in algorithm.steps)
        return
    found: dict[tuple[Any, ...], Pattern] = {}
    for step in _pipelines(algorithm.steps, algorithm.participants):
        key = (*(array.tobytes() for array in (step.source, step.target, step.count)), step.hops, step.pipelined)
        before = found[key].repeat if key in found else 0
        found[key] = _pattern(step._replace(repeat=before + step.repeat), algorithm.blocks)
    yield from found.values()


def _pattern(step: Step, blocks: int) -> Pattern:
    return Pattern(step.source, step.target, step.count / blocks, step.repeat, step.hops, step.pipelined)


def _pipelines(steps: Iterable[Step], participants: int) -> Iterator[Step]:
    """Yield the steps with each run of pipelined ones joined: one transfer for each pair, with all its blocks."""
    joined: list[Step] = []
    for step in (*steps, None):
        if step is not None and step.pipelined:
            joined.append(step)
            continue
        if joined:
            source, target, count = (np.concatenate([part[field] for part in joined]) for field in (0, 1, 3))
            pairs, where = np.unique(source * participants + target, return_inverse=True)
            source, target = np.divmod(pairs, participants)
            blocks = np.bincount(where, count).astype(np.int64)
            hops = sum(part.hops for part in joined)
            yield send(source, target, 0, blocks, pipelined=True, hops=hops)
            joined = []
        if step is not None:
            yield step


class Made(Sequence[Step]):
    """Steps that are made when read: ranks - 1 unlike steps of as many transfers are too many to keep."""

    def __init__(self, length: int, make: Callable[[int], Step]) -> None:
        self._numbers, self._make = range(length), make

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, at: int) -> Step: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Step, ...]: ...
    def __getitem__(self, at: int | slice) -> Step | tuple[Step, ...]:
        if isinstance(at, slice):
            return tuple(self._make(number) for number in self._numbers[at])
        return self._make(self._numbers[at])


def send(
    source: Ints, target: Ints, first: ArrayLike = 0, count: ArrayLike = 1, *, reduce: bool = False, **how: Any
) -> Step:
    """Return a step whose arrays are read-only and of one length; single numbers take no memory."""

    def each(value: ArrayLike) -> Ints:
        return np.broadcast_to(np.asarray(value, dtype=np.int64), np.shape(source))

    return Step(each(source), each(target), each(first), each(count), reduce, **how)


def whole(
    algorithm: str,
    kind: CollectiveKind,
    ranks: int,
    blocks: int,
    steps: Iterable[Step],
    *,
    others: int = 0,
    own: Ints | None = None,
) -> Steps:
    """Return the algorithm without empty steps; a rank alone has nothing to do, except with servers.

    *others* take part beyond the ranks.
    """
    if not isinstance(steps, Made):
        alone = ranks == 1 and kind not in ("push", "pull")
        steps = () if alone else tuple(step for step in steps if step.source.size and step.repeat)
    return Steps(
        algorithm=algorithm,
        kind=kind,
        ranks=ranks,
        participants=ranks + others,
        blocks=blocks,
        steps=steps,
        own=numbers(ranks) if own is None else own,
    )


def numbers(ranks: int) -> Ints:
    """Return the numbers of all ranks, of which there must be one."""
    if ranks < 1:
        raise ClusterError(f"collective of {ranks} ranks: there must be at least 1")
    return np.arange(ranks, dtype=np.int64)


def ordered(ranks: int, order: Numbers | None) -> Ints:
    """Return *order*, which must name each rank once; None stands for the order of numbers."""
    return numbers(ranks) if order is None else _each_once("order", [order], ranks)


def grouped(groups: Sequence[Group]) -> tuple[Ints, Ints]:
    """Return the ranks of all groups, one after another, and the size of each group."""
    sizes = np.array([len(group) for group in groups], dtype=np.int64)
    if not sizes.all():
        raise ClusterError(f"groups: group {int(np.argmin(sizes))} is empty; each must have a rank")
    return _each_once("groups", groups, int(sizes.sum())), sizes


def _each_once(what: str, parts: Sequence[Group], ranks: int) -> Ints:
    """Return all numbers in *parts*, which must be those of the ranks, each once."""
    ranks = numbers(ranks).size
    named = np.concatenate([np.asarray(part) for part in parts])
    if named.size and named.dtype.kind not in "iu":
        raise ClusterError(f"{what}: ranks must be whole numbers")
    if (outside := named[(named < 0) | (named >= ranks)]).size:
        raise ClusterError(f"{what}: names rank {outside[0]}; ranks are 0 to {ranks - 1}")
    named = named.astype(np.int64)
    times = np.bincount(named, minlength=ranks)
    if (times != 1).any():
        rank = int(np.argmax(times != 1))
        raise ClusterError(f"{what}: names rank {rank} {times[rank]} times; it must name each of {ranks} ranks once")
    return named


def check_transfers(what: str, transfers: int) -> None:
    """Refuse a step that would fill memory."""
    if transfers > MOST_TRANSFERS:
        raise ClusterError(f"{what}: {transfers:,} transfers at once; at most {MOST_TRANSFERS:,} can be held")


def powers(below: int) -> list[int]:
    """Return 1, 2, 4, ... below a number."""
    return [1 << bit for bit in range((below - 1).bit_length())]


def folded(ranks: int) -> tuple[Ints, Ints, Ints]:
    """Return a power of two of ranks that do the work, the others, each folded into its successor, and parts.

    Worker number v stands for the parts of its own rank and of the rank folded into it, parts[v] up to parts[v + 1].

    >>> [found.tolist() for found in folded(6)]
    [[1, 3, 4, 5], [0, 2], [0, 2, 4, 5, 6]]
    """
    power = 1 << (numbers(ranks).size.bit_length() - 1)
    surplus = ranks - power
    parts = np.arange(power + 1) + np.minimum(np.arange(power + 1), surplus)
    return parts[1:] - 1, np.arange(0, 2 * surplus, 2), parts


def binomial(ranks: int) -> list[tuple[Ints, Ints, int]]:
    """Return parents, children and their distance in a binomial tree, from rank 0 and the largest distance on."""
    found = []
    for distance in reversed(powers(ranks)):
        child = numbers(ranks)[distance :: 2 * distance]
        found.append((child - distance, child, distance))
    return found
