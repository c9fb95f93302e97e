"""Runs a schedule: the interpreter of ops on one rank, as `simgd.simulator` is the one that predicts.

Model
    Ops are issued in the order of the list. The passes are the caller's: `Local.passes` runs forward and backward and
    says when a pass op is reached and done (`enter`, `leave`); what stands before it in the list is issued then. So
    a collective starts while the backward pass goes on, and a forward pass waits in the middle for an update.

    After the last iteration the updates that are still owed run in order, each from the gradient that it would have
    applied; nothing else does.

    A ledger of versions goes along: each gradient carries the number of updates that its weights had seen, and each
    update compares it with its own number. The difference is the staleness, and must be what the schedule declares.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Protocol, assert_never

from executor.backends.protocol import Backend, Buffer, Pending
from executor.comm import Start
from executor.lanes import Lanes
from executor.layout import Layout, Piece
from simgd.errors import RunError, ScheduleError
from simgd.instances import Instances
from simgd.schedule import Backward, Communicate, Forward, Map, Op, Schedule, Update, Wait
from simgd.workload import Workload


class Passes(Protocol):
    """Told by the passes where they are."""

    def enter(self, k: int) -> None:
        """Op *k*, a pass, is about to begin; returns when it may."""

    def leave(self, k: int) -> None:
        """Op *k* is done."""

    def touch(self) -> None:
        """Say that the passes go on: a chance to poll."""


class Local(Protocol):
    """The work that a rank does by itself: on a torch module, or only in time."""

    def passes(self, iteration: int, reach: Passes) -> None:
        """Run forward and backward of *iteration*."""

    def collect(self, k: int, iteration: int) -> None:
        """Put the gradients of op *k*, a backward pass, where they are communicated from."""

    def copy(self, k: int, iteration: int) -> None:
        """Copy fresh gradients into place."""

    def update(self, k: int, iteration: int) -> None:
        """Apply the gradient of op *k*, an update, that is as old as the schedule says."""

    def buffer(self, k: int, iteration: int) -> Buffer:
        """Return what op *k*, a collective, communicates."""

    def summed(self, k: int, iteration: int) -> None:
        """Divide what op *k*, a reduction of gradients, has summed by the number of ranks: once, and here alone."""

    def narrow(self, k: int) -> Buffer | None:
        """Return the 16-bit buffer through which op *k*, a collective, sends; None where it sends all bits."""


class _Followed:
    """A collective that has something done to its buffer when it has ended, before anybody knows that it has."""

    def __init__(self, pending: Pending, after: Callable[[], None]) -> None:
        self._pending: Pending | None = pending
        self._after = after

    def done(self) -> bool:
        if self._pending is not None and self._pending.done():
            self.wait()
        return self._pending is None

    def wait(self) -> None:
        if self._pending is not None:
            self._pending.wait()
            self._after()
            self._pending = None


class Ledger:
    """Which weights each gradient was computed from, and how old each applied one was, counted by update.

    A *tag* is the version of the weights, for each buffer of a store and each update that applies a part of it.
    """

    def __init__(self, schedule: Schedule, instances: Instances, layout: Layout, workload: Workload) -> None:
        self._ops = schedule.ops
        self._age = instances.age
        self._versions = [0] * instances.size
        self._seen = [0] * instances.size
        self.applied: dict[int, Counter[int]] = {k: Counter() for k in layout.updates}
        updates_of: dict[str, dict[int, None]] = {}
        for k, pieces in layout.updates.items():
            for piece in pieces:
                updates_of.setdefault(piece.tensor, {})[k] = None
        tags: dict[tuple[str, int], list[int | None]] = {}

        def tagged(pieces: Iterable[Piece]) -> list[tuple[list[int | None], int]]:
            found = {(piece.store, update): None for piece in pieces for update in updates_of[piece.tensor]}
            return [
                (tags.setdefault((store, update), [None] * layout.gradients[store].copies), update)
                for store, update in found
            ]

        self._applies = {
            k: [found for found, update in tagged(pieces) if update == k] for k, pieces in layout.updates.items()
        }
        layers = {layer.name: layer for layer in workload.layers}
        self._reads: list[list[int]] = [[] for _ in schedule.ops]
        self._fills: list[list[tuple[list[int | None], int]]] = [[] for _ in schedule.ops]
        self._forward = [isinstance(op.work, Forward) for op in schedule.ops]
        for k, op in enumerate(schedule.ops):
            if isinstance(op.work, (Forward, Backward)):
                tensors = [
                    tensor
                    for layer in op.work.layers
                    for tensor in [*(each.name for each in layers[layer].tensors), *layers[layer].shared]
                ]
                self._reads[k] = list({update: None for tensor in tensors for update in updates_of[tensor]})
            if isinstance(op.work, Backward):
                owned = [tensor.name for layer in op.work.layers for tensor in layers[layer].tensors]
                made = [piece for tensor in owned for piece in layout.of_tensor(tensor)]
                self._fills[k] = tagged(piece for piece in made if not layout.gradients[piece.store].fresh)
            elif isinstance(op.work, Map):
                self._fills[k] = tagged(layout.pieces(op.work.bucket))

    def read(self, k: int, iteration: int) -> None:
        """Note which weights op *k*, a pass, reads; both passes of an iteration must read the same."""
        versions, seen = self._versions, self._seen
        if self._forward[k]:
            for update in self._reads[k]:
                seen[update] = versions[update]
            return
        for update in self._reads[k]:
            if seen[update] != versions[update]:
                raise RunError(
                    f"op {self._ops[k].name!r} of iteration {iteration}: {self._ops[update].name!r} changed its "
                    "weights between forward and backward"
                )

    def fill(self, k: int, iteration: int) -> None:
        """Note from which weights the gradients that op *k*, a backward pass or a copy, put in place were computed."""
        for tags, update in self._fills[k]:
            tags[iteration % len(tags)] = self._seen[update]

    def apply(self, k: int, iteration: int) -> None:
        """Note that op *k* applies its gradient; raise RunError if that is not as old as the schedule declares."""
        made = iteration - self._age[k]
        version = self._versions[k]
        # While the first gradients are on their way, nothing was applied yet: they are younger.
        declared = min(self._age[k], made)
        for tags in self._applies[k]:
            tag = tags[made % len(tags)]
            if tag is None or version - tag != declared:
                what = "that nobody computed" if tag is None else f"whose weights are {version - tag} updates old"
                raise RunError(
                    f"op {self._ops[k].name!r} of iteration {iteration}: applies a gradient {what}; the schedule says "
                    f"{declared}"
                )
        self.applied[k][declared] += 1
        self._versions[k] = version + 1


class Interpreter:
    """Runs the ops of one rank; a `Passes` for its own local work."""

    def __init__(
        self,
        schedule: Schedule,
        instances: Instances,
        layout: Layout,
        workload: Workload,
        *,
        local: Local,
        lanes: Lanes,
        backend: Backend,
    ) -> None:
        self._instances = instances
        self._local = local
        self._lanes = lanes
        self._backend = backend
        self._where = f"schedule {schedule.name!r}"
        self._ops = schedule.ops
        self._issue = [self._issuer(k, op) for k, op in enumerate(schedule.ops)]
        self._has_buffer = [isinstance(op.work, Backward) for op in schedule.ops]
        self.ledger = Ledger(schedule, instances, layout, workload)
        self.touch = lanes.touch
        self._iteration = 0
        self._next = 0

    def run(self, iterations: int, after: Callable[[int], None]) -> None:
        """Run *iterations* iterations and the updates owed behind them; *after* is called at the end of each."""
        instances, lanes = self._instances, self._lanes
        lanes.start(iterations)
        for iteration in range(iterations):
            lanes.begin(iteration)
            self._iteration, self._next = iteration, 0
            self._local.passes(iteration, self)
            self._reach(instances.size)
            lanes.mark()
            after(iteration)
        for iteration in range(iterations, iterations + instances.owed):
            for k, issue in enumerate(self._issue):
                if issue is not None and instances.exists(k, iteration, iterations):
                    issue(iteration)
        lanes.drain()

    def enter(self, k: int) -> None:
        """Issue what stands before op *k*, a pass, and let it wait for its dependencies."""
        if self._next != k:
            self._reach(k)
        self._lanes.enter(k, self._iteration)
        self.ledger.read(k, self._iteration)

    def leave(self, k: int) -> None:
        """Note that op *k*, a pass, is done; its gradients are then in place."""
        if self._has_buffer[k]:
            self._local.collect(k, self._iteration)
            self.ledger.fill(k, self._iteration)
        self._lanes.leave(k, self._iteration)
        self._next = k + 1

    def communication(self) -> dict[int, Start]:
        """Return what starts each collective, for timing them alone."""
        return {k: self._starter(op.work, k) for k, op in enumerate(self._ops) if isinstance(op.work, Communicate)}

    def _reach(self, k: int) -> None:
        """Issue every op from the last one on up to and without op *k*."""
        iteration = self._iteration
        for place in range(self._next, k):
            issue = self._issue[place]
            if issue is None:
                found = f"{self._ops[k].name!r} was reached" if k < len(self._ops) else "the passes ended"
                raise ScheduleError(
                    f"{self._where}: {found} before {self._ops[place].name!r}, which stands before it; the network "
                    "runs its layers in another order than the workload says"
                )
            if self._instances.every[place] == 1 or self._instances.exists(place, iteration, iteration + 1):
                issue(iteration)
        self._next = max(k, self._next)

    def _issuer(self, k: int, op: Op) -> Callable[[int], None] | None:
        """Return what issues op *k* of an iteration; None for a pass, which the local work runs."""
        lanes = self._lanes
        match op.work:
            case Forward() | Backward():
                return None
            case Communicate():
                start = self._starter(op.work, k)
                return lambda iteration: lanes.communicate(k, iteration, start)
            case Update():
                return lambda iteration: self._update(k, iteration)
            case Map():
                return lambda iteration: self._copy(k, iteration)
            case Wait():
                return lambda iteration: lanes.wait(k, iteration)
            case _ as never:
                assert_never(never)

    def _starter(self, work: Communicate, k: int) -> Start:
        """Return what starts the collective of op *k*; what follows it on its buffer is part of it.

        That is the division of a sum, and casts to the wire's type and back. Both are on the comm lane, where they
        hide as communication does.
        """
        local, send, narrow = self._local, self._sender(work), self._local.narrow(k)
        reduces = work.value == "gradient" and work.collective in ("all_reduce", "reduce_scatter")
        if not reduces and narrow is None:
            return lambda iteration: send(local.buffer(k, iteration))

        def start(iteration: int) -> Pending:
            buffer = local.buffer(k, iteration)
            if narrow is None:
                return _Followed(send(buffer), lambda: local.summed(k, iteration))
            narrow[:] = buffer

            def widen() -> None:
                buffer[:] = narrow
                if reduces:
                    local.summed(k, iteration)

            return _Followed(send(narrow), widen)

        return start

    def _sender(self, work: Communicate) -> Callable[[Buffer], Pending]:
        match work.collective:
            case "all_reduce":
                return self._backend.all_reduce
            case "reduce_scatter":
                return self._backend.reduce_scatter
            case "all_gather":
                return self._backend.all_gather
            case "broadcast":
                return lambda buffer: self._backend.broadcast(buffer, 0)
            case _ as never:
                assert_never(never)

    def _update(self, k: int, iteration: int) -> None:
        if iteration < self._instances.age[k]:
            return
        self._lanes.enter(k, iteration)
        self.ledger.apply(k, iteration)
        self._local.update(k, iteration)
        self._lanes.leave(k, iteration)

    def _copy(self, k: int, iteration: int) -> None:
        self._lanes.enter(k, iteration)
        self._local.copy(k, iteration)
        self.ledger.fill(k, iteration)
        self._lanes.leave(k, iteration)
