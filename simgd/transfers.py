"""Collectives flow by flow: the reference that one cost for each collective is held against, and several at once.

Model
    Each message of an algorithm's steps is a flow (`flows`) over the links between its ranks (`wiring`). With NCCL a
    rank sends on what it has received, as soon as it has it; with MPI a rank begins a step when it has ended the one
    before, both what it sent and what it received. A pipelined algorithm's flows all begin at once, after its hops.
    A flow pays its hop's latency and moves at most as fast as its protocol's channels, or a message of its size, may.
    Steps of more than `MOST_FLOWS` flows in all are taken one after another, and equal ones are solved once.

Where it parts from one cost for each collective (`nccl`, `mpi`)
    Latencies of unlike hops: a ring over nodes crosses the network as often as the longest way through its steps does.
    Unequal messages that share a link: max-min shares, where the other takes the fullest link's total. Messages too
    small to fill a link: two of them side by side do not hinder each other, where the other stretches them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import NamedTuple

import numpy as np

from simgd import algorithms, nccl
from simgd.algorithms import ALGORITHMS, Pattern, Steps, all_gather, all_reduce, broadcast, reduce_scatter
from simgd.collectives import bus_share
from simgd.errors import ClusterError
from simgd.fabrics import Fabric
from simgd.flows import Flow, ends
from simgd.interconnects import Numbers
from simgd.mpi import Algorithms, Messages, interpolated
from simgd.profile import CollectiveKind
from simgd.wiring import Reals, Wiring

#: More flows than this are not simulated one by one.
MOST_FLOWS = 50_000

#: And more of them in one step are refused: they take half a minute and gigabytes.
MOST_AT_ONCE = 300_000


class Message(NamedTuple):
    """What a flow pays before it moves, and how fast it moves at most, in bytes a second."""

    latency_s: float
    limit_bytes_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """A collective as flows: algorithms at once, each with its share of *nbytes*, which hold a protocol's overhead.

    `ranks` are those of the wiring that take part, in the collective's order. `message` gives what a message of so many
    bytes pays, by whether it leaves its host, the switches that it crosses beyond the first, and whether it is added to
    what is there; `pipeline_s` is the latency of a pipelined algorithm; `before_s` and `after_s` are what comes before
    and after the flows.
    """

    wiring: Wiring
    ranks: Numbers
    parts: tuple[tuple[Steps, float], ...]
    nbytes: float
    message: Callable[[float, bool, int, bool], Message]
    pipeline_s: float = 0.0
    before_s: float = 0.0
    after_s: float = 0.0
    waits_for_sends: bool = False
    hosted: Numbers | None = None

    @property
    def pipelined(self) -> bool:
        """Say whether all flows are under way at once."""
        return all(step.pipelined for steps, _ in self.parts for step in steps.steps)

    def count(self) -> int:
        """Return how many flows there are."""
        return sum(len(step.source) * step.repeat for steps, _ in self.parts for step in steps.steps)

    def flows(self, first: int = 0) -> list[Flow]:
        """Return the flows, of which the first will have the number *first*."""
        found: list[Flow] = []
        for steps, share in self.parts:
            #: What the next message from, or to, each participant waits for, and what it sent in the last step.
            awaited: dict[int, tuple[int, ...]] = {}
            sent: dict[int, tuple[int, ...]] = {}
            for pattern, adds in self._patterns(steps):
                one = self._one(pattern, share, adds)
                ends_of = list(zip(pattern.source.tolist(), pattern.target.tolist(), strict=True))
                for _ in range(pattern.repeat):
                    ended: dict[int, list[int]] = {}
                    left: dict[int, list[int]] = {}
                    for (a, b), flow in zip(ends_of, one, strict=True):
                        if self.waits_for_sends or self.pipelined:
                            after = dict.fromkeys((*awaited.get(a, ()), *awaited.get(b, ())))
                            found.append(replace(flow, after=tuple(after)))
                            if not self.pipelined:
                                ended.setdefault(a, []).append(first + len(found) - 1)
                        else:
                            # Messages leave one after another, and the next may leave while this one is on its way.
                            found.append(replace(flow, latency_s=0.0, after=(*awaited.get(a, ()), *sent.get(a, ()))))
                            moved = first + len(found) - 1
                            left.setdefault(a, []).append(moved)
                            found.append(Flow(route=(), nbytes=0.0, latency_s=flow.latency_s, after=(moved,)))
                        ended.setdefault(b, []).append(first + len(found) - 1)
                    if not self.pipelined:
                        awaited |= {at: tuple(numbers) for at, numbers in ended.items()}
                        sent |= {at: tuple(numbers) for at, numbers in left.items()}
        return found

    def stepwise_s(self) -> float:
        """Return the time of the flows if each step begins when the one before has ended everywhere.

        Where ranks send on what they receive, the hops' latencies add up along the longest way through the steps.

        Raises ClusterError if one step alone is of more than `MOST_AT_ONCE` flows.
        """
        seconds = 0.0
        for together in zip(*(self._patterns(steps) for steps, _ in self.parts), strict=True):
            at_once = sum(len(pattern.source) for pattern, _ in together)
            if at_once > MOST_AT_ONCE:
                raise ClusterError(
                    f"{at_once} flows at once; at most {MOST_AT_ONCE} are simulated; one cost by steps (--fidelity "
                    "collectives) needs none"
                )
            ways = [
                (pattern, [replace(flow, start_s=0.0) for flow in self._one(pattern, share, adds)])
                for (pattern, adds), (_, share) in zip(together, self.parts, strict=True)
            ]
            repeat, capacity = together[0][0].repeat, self.wiring.capacity.tolist()
            if self.waits_for_sends or self.pipelined:
                seconds += repeat * max(ends([flow for _, one in ways for flow in one], capacity), default=0.0)
            else:
                moving = [replace(flow, latency_s=0.0) for _, one in ways for flow in one]
                seconds += repeat * max(ends(moving, capacity), default=0.0)
                seconds += max(_along(pattern, [flow.latency_s for flow in one]) for pattern, one in ways)
        return seconds

    def _patterns(self, steps: Steps) -> Iterable[tuple[Pattern, bool]]:
        if self.pipelined:
            return ((pattern, False) for pattern in algorithms.patterns(steps))
        return (
            (
                Pattern(step.source, step.target, step.count / steps.blocks, step.repeat, 1, False),
                step.reduce,
            )
            for step in steps.steps
        )

    def _one(self, pattern: Pattern, share: float, adds: bool) -> list[Flow]:
        """Return the flows of a pattern, once, which wait for nothing."""
        nbytes = pattern.bytes_share * share * self.nbytes
        pays = self._paid(pattern.source, pattern.target, nbytes, adds)
        return [
            Flow(
                route=route,
                weights=weights,
                nbytes=size,
                latency_s=self.pipeline_s if self.pipelined else paid.latency_s,
                limit_bytes_per_s=share * paid.limit_bytes_per_s,
                start_s=self.before_s,
            )
            for (route, weights), size, paid in zip(
                self._routed(pattern.source, pattern.target), nbytes.tolist(), pays, strict=True
            )
        ]

    def _routed(self, source: Numbers, target: Numbers) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
        """Return resources and weights of each message."""
        routes = self.wiring.routes(self._mapped(source), self._mapped(target), hosted=self.hosted)
        order = np.argsort(routes.flow, kind="stable")
        cuts = np.searchsorted(routes.flow[order], np.arange(1, len(source)))
        resources = np.split(routes.resource[order], cuts)
        weights = np.split(routes.weight[order], cuts)
        return [(tuple(a.tolist()), tuple(b.tolist())) for a, b in zip(resources, weights, strict=True)]

    def _mapped(self, participants: Numbers) -> Numbers:
        beyond = participants >= len(self.ranks)
        return np.where(beyond, len(self.wiring.device), self.ranks[np.where(beyond, 0, participants)])

    def _paid(self, source: Numbers, target: Numbers, nbytes: Reals, adds: bool) -> list[Message]:
        a, b = self._mapped(source), self._mapped(target)
        real = (a < len(self.wiring.device)) & (b < len(self.wiring.device))
        far, switches = np.zeros(len(a), bool), np.ones(len(a), np.int64)
        far[real] = self.wiring.host[a[real]] != self.wiring.host[b[real]]
        switches[real] = self.wiring.switches(a[real], b[real])
        beyond = np.maximum(switches - 1, 0)
        return [
            self.message(float(size), bool(away), int(more), adds)
            for size, away, more in zip(nbytes, far, beyond, strict=True)
        ]


def _along(pattern: Pattern, latencies_s: Sequence[float]) -> float:
    """Return the largest sum of latencies along as many hops in a row as the pattern has repeats.

    >>> ring = Pattern(np.array([0, 1, 2]), np.array([1, 2, 0]), np.ones(3), 2, 1, False)
    >>> _along(ring, [1.0, 1.0, 5.0])
    6.0
    """
    if not len(pattern.source):
        return 0.0
    number = {source: at for at, source in enumerate(pattern.source.tolist())}
    if len(number) < len(pattern.source) or any(target not in number for target in pattern.target.tolist()):
        return pattern.repeat * max(latencies_s)
    # hop by hop, doubling the length of what is known: the sum over so many hops, and the hop after them
    following = np.array([number[target] for target in pattern.target.tolist()])
    sums, whole, at, left = np.array(latencies_s), np.zeros(len(number)), np.arange(len(number)), pattern.repeat
    while left:
        if left % 2:
            whole, at = whole + sums[at], following[at]
        sums, following, left = sums + sums[following], following[following], left // 2
    return float(whole.max())


class Copy(NamedTuple):
    """A copy between a host's memory and a device, by its number through all nodes; *to_device* or from it."""

    device: int
    nbytes: float
    to_device: bool = True


def copied(wiring: Wiring, rank: int, copy: Copy) -> Flow:
    """Return the flow of a copy between the memory beside the nearest socket and the device of *rank* of *wiring*."""
    name = wiring.cluster.devices[int(wiring.device[rank])]
    way = wiring.inside.memory(name, back=copy.to_device)
    first = int(wiring.node[rank]) * wiring.size
    return Flow(route=tuple(first + resource for resource in way.resources), weights=way.weights, nbytes=copy.nbytes)


def nothing(wiring: Wiring) -> Transfer:
    """Return the flows of a collective of one rank."""

    def message(size: float, far: bool, switches: int, adds: bool) -> Message:
        return Message(0.0, inf)

    return Transfer(wiring=wiring, ranks=np.zeros(1, np.int64), parts=(), nbytes=0.0, message=message)


def seconds(transfers: Sequence[Transfer], others: Sequence[Flow] = ()) -> list[float]:
    """Return the time of each of *transfers*, all begun at once on one wiring, while *others* move as well.

    Raises ClusterError if several would be of more than `MOST_FLOWS` flows.
    """
    number = sum(transfer.count() for transfer in transfers)
    if number > MOST_FLOWS:
        if len(transfers) == 1 and not others:
            (alone,) = transfers
            return [alone.before_s + alone.stepwise_s() + alone.after_s]
        raise ClusterError(
            f"{len(transfers)} collectives at once are {number} flows; at most {MOST_FLOWS} are simulated"
        )
    flows: list[Flow] = list(others)
    parts: list[range] = []
    for transfer in transfers:
        made = transfer.flows(len(flows))
        parts.append(range(len(flows), len(flows) + len(made)))
        flows += made
    if not flows:
        return [transfer.before_s + transfer.after_s for transfer in transfers]
    found = ends(flows, transfers[0].wiring.capacity.tolist())
    return [
        max((found[at] for at in part), default=transfer.before_s) + transfer.after_s
        for transfer, part in zip(transfers, parts, strict=True)
    ]


def of_nccl(
    kind: CollectiveKind,
    nbytes: float,
    candidate: nccl.Candidate,
    fabric: Fabric,
    wiring: Wiring | None = None,
    ranks: Numbers | None = None,
) -> Transfer:
    """Return a collective of NCCL by the algorithm of *candidate*, on *ranks* of a larger *wiring* if one is given."""
    name = candidate.algorithm.partition("/")[0]
    moving_s = candidate.volume_s(nbytes)
    alone_s = candidate.steps_s_per_byte * nbytes
    inside_s, net_s = candidate.hops_s
    channels_s = candidate.channels_s(nbytes)
    overhead = moving_s / alone_s if alone_s else 1.0
    # each link of a ring carries this share of the buffer; when the channels in use move all they can, so fast
    carried = bus_share(kind, fabric.ranks) if name == "ring" else 1.0
    limit = overhead * nbytes * carried / channels_s if channels_s else inf

    def message(size: float, far: bool, switches: int, adds: bool) -> Message:
        return Message(net_s if far else inside_s, limit)

    return Transfer(
        wiring=wiring or fabric.wiring,
        ranks=np.arange(fabric.ranks) if ranks is None else ranks,
        parts=_parts(kind, name, fabric),
        nbytes=nbytes * overhead,
        message=message,
        pipeline_s=candidate.latency_s - candidate.base_s,
        before_s=candidate.kernel_s + candidate.base_s,
        after_s=candidate.extra_s(nbytes),
        hosted=fabric.channels.hosted,
    )


def _parts(kind: CollectiveKind, name: str, fabric: Fabric) -> tuple[tuple[Steps, float], ...]:
    """Return the steps of an algorithm of NCCL through each channel, with its share of the bytes."""
    found, ranks = fabric.channels, fabric.ranks
    match name:
        case "ring":
            make = {
                "all_reduce": all_reduce.ring,
                "reduce_scatter": reduce_scatter.ring,
                "all_gather": all_gather.ring,
                "broadcast": broadcast.chain,
            }[kind]
            return tuple((make(ranks, order), share) for order, share in zip(found.orders, found.shares, strict=True))
        case "tree":
            return tuple((all_reduce.tree(groups), share) for groups, share in found.grouped())
        case "nvls":
            return ((ALGORITHMS[kind]["nvls"](ranks), 1.0),)
        case "nvls tree":
            return ((all_reduce.nvls_tree(found.first_groups()), 1.0),)
        case _:
            return ((algorithms.at_once(kind, ranks), 1.0),)


def of_mpi(
    nbytes: float,
    found: Algorithms,
    messages: Messages,
    fabric: Fabric,
    wiring: Wiring | None = None,
    ranks: Numbers | None = None,
) -> Transfer:
    """Return a collective of an MPI library by the algorithm that it chooses; *wiring* and *ranks* as for `of_nccl`."""
    name = found.chosen(messages, nbytes)
    steps = found.steps[name]
    first_s = messages.points[0][1]

    def message(size: float, far: bool, switches: int, adds: bool) -> Message:
        time = interpolated(messages.points, size)
        latency_s = first_s + messages.extra_s + switches * messages.switch_s
        adding_s = size * messages.add_s_per_byte if adds else 0.0
        return Message(latency_s + adding_s, size / (time - first_s) if time > first_s else inf)

    return Transfer(
        wiring=wiring or fabric.wiring,
        ranks=np.arange(fabric.ranks) if ranks is None else ranks,
        parts=((steps, 1.0),),
        nbytes=nbytes,
        message=message,
        waits_for_sends=True,
    )
