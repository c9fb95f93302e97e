"""Where gradients and weights lie: the buffers of a schedule, owned for the whole run, and what each op touches.

Model
    A *store* is the flat memory of one bucket that is communicated: of gradients in `copies` buffers, as the schedule
    says, of weights in one. Iteration i fills gradient buffer i mod copies, and an update that applies the gradient of
    k iterations ago reads buffer (i - k) mod copies. A store that is scattered or gathered is padded to a multiple of
    the ranks. An update touches *pieces*: the parts of tensors that lie in one store.

    A bucket whose gradient is copied into place (``fresh`` to ``gradient``) needs no buffer for the fresh one: the
    backward pass leaves it in memory of its own, which the copy gives back.

Known not to hold
    An update of 1/p of a bucket works on the flat weights, so it suits optimizers that treat every element alike.
"""

from typing import NamedTuple

from simgd.errors import ScheduleError
from simgd.instances import Instances
from simgd.schedule import Bucket, Communicate, Map, Schedule, Slice, Update

#: Gradients and weights lie in 32 bits.
ELEMENT_BYTES = 4


class Store(NamedTuple):
    """The flat memory of one bucket: `elements`, `padded` to a multiple of the ranks, in `copies` buffers.

    `fresh` says that its gradients are copied into place instead of being left there by the backward pass.
    """

    bucket: Bucket
    padded: int
    copies: int
    fresh: bool

    @property
    def nbytes(self) -> int:
        """Bytes of all copies."""
        return ELEMENT_BYTES * self.padded * self.copies


class Piece(NamedTuple):
    """Elements `first` to `last` of a tensor, which lie in `store` from `offset` on."""

    tensor: str
    first: int
    last: int
    store: str
    offset: int


class Layout:
    """The stores of a schedule on so many ranks, and the pieces of each update."""

    def __init__(self, schedule: Schedule, ranks: int) -> None:
        self.ranks = ranks
        self._where = f"schedule {schedule.name!r}"
        self._buckets = {bucket.name: bucket for bucket in schedule.buckets}
        sent = [op.work for op in schedule.ops if isinstance(op.work, Communicate)]
        parted = {work.bucket for work in sent if work.collective in ("reduce_scatter", "all_gather")}
        copied = {op.work.bucket for op in schedule.ops if isinstance(op.work, Map)}
        for op in schedule.ops:
            if isinstance(op.work, Map) and (op.work.reads, op.work.writes) != ("fresh", "gradient"):
                raise ScheduleError(
                    f"{self._where}: op {op.name!r} copies {op.work.reads} to {op.work.writes}; the executor copies "
                    "fresh gradients into place only"
                )

        def stores(value: str) -> dict[str, Store]:
            names = dict.fromkeys(work.bucket for work in sent if work.value == value)
            return {
                name: Store(
                    bucket=self._buckets[name],
                    padded=_padded(self._buckets[name].elements, ranks if name in parted else 1),
                    copies=self._buckets[name].copies if value == "gradient" else 1,
                    fresh=name in copied,
                )
                for name in names
            }

        self.gradients = stores("gradient")
        self.weights = stores("weight")
        for name in copied - self.gradients.keys():
            raise ScheduleError(f"{self._where}: bucket {name!r} is copied but never sent; copy the buckets that are")
        self._by_tensor: dict[str, list[Piece]] = {}
        for name, store in self.gradients.items():
            for part, offset in _offsets(store.bucket.slices):
                piece = Piece(part.tensor, part.first, part.last, name, offset)
                self._by_tensor.setdefault(part.tensor, []).append(piece)
        self.updates: dict[int, tuple[Piece, ...]] = {}
        for k, op in enumerate(schedule.ops):
            if isinstance(op.work, Update):
                if op.work.part == "mine" and not (op.work.bucket in self.gradients and op.work.bucket in self.weights):
                    raise ScheduleError(
                        f"{self._where}: op {op.name!r} updates this rank's part of bucket {op.work.bucket!r}; the "
                        "gradients of that very bucket must be scattered and its weights gathered"
                    )
                self.updates[k] = self.pieces(op.work.bucket)

    @property
    def nbytes(self) -> int:
        """Bytes of all stores."""
        return sum(store.nbytes for store in (*self.gradients.values(), *self.weights.values()))

    def pieces(self, bucket: str) -> tuple[Piece, ...]:
        """Return the parts of the gradient stores that *bucket* covers, in its own order."""
        return tuple(
            Piece(
                tensor=part.tensor,
                first=max(part.first, piece.first),
                last=min(part.last, piece.last),
                store=piece.store,
                offset=piece.offset + max(part.first - piece.first, 0),
            )
            for part in self._buckets[bucket].slices
            for piece in self._by_tensor[part.tensor]
            if piece.first < part.last and part.first < piece.last
        )

    def of_tensor(self, tensor: str) -> list[Piece]:
        """Return where the gradient of *tensor* lies."""
        return self._by_tensor[tensor]


def check_issue_order(schedule: Schedule, instances: Instances) -> None:
    """Raise ScheduleError if an op waits for one of its own iteration that stands after it in the list.

    The host issues in list order, and a stream can only wait for what was issued before.
    """
    for k, op in enumerate(schedule.ops):
        for dep, lag in instances.deps[k]:
            if lag == 0 and dep >= k:
                raise ScheduleError(
                    f"schedule {schedule.name!r}: op {op.name!r} waits for {schedule.ops[dep].name!r}, which stands "
                    "after it; the executor issues in list order: put it before"
                )


def _padded(elements: int, parts: int) -> int:
    return -(-elements // parts) * parts


def _offsets(slices: tuple[Slice, ...]) -> list[tuple[Slice, int]]:
    found, at = [], 0
    for part in slices:
        found.append((part, at))
        at += part.last - part.first
    return found
