"""The network between nodes: which cables a message from one NIC to another crosses, for many messages at once.

Model
    A fat tree of switches with k ports: lowest switches with `oversubscription` times as many cables down as up, each
    joined to as many upper switches as it has cables up; k/2 lowest switches share their upper ones (a pod), and each
    of those has k/2 cables to the core. It has one level while all NICs fit one switch, two while every lowest switch
    fits the upper ones, else three. A dragonfly+ has groups like pods, and cables from every group to every other.
    Static routing picks, going up, the cable by the destination's number (d mod k, as InfiniBand's fat-tree routing
    does), counted through one lowest switch after another, so that the NICs of one are reached over different cables;
    adaptive routing spreads a message over all of them, so that they are one wide cable here.

What it leaves out
    Longer ways around a full cable (a dragonfly's detours), congestion that spreads back, and trees of more than three
    levels: beyond them only the latency grows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from simgd.errors import ClusterError
from simgd.topology import Interconnect

Numbers = npt.NDArray[np.int64]


class Routes(NamedTuple):
    """What messages cross: `weight[i]` of the bytes of message `flow[i]` cross `resource[i]`; three arrays alike."""

    flow: Numbers
    resource: Numbers
    weight: npt.NDArray[np.float64]


class Net:
    """The cables between *nodes* nodes of *nics* NICs each; NIC n of node i has the number ``i * nics + n``.

    `cables` is the number of cables that each resource stands for, in one direction. Resources are in this order: from
    every NIC, to every NIC, from and to every lowest switch, from and to every pod (between pods in a dragonfly+).

    Raises ClusterError if the groups of a dragonfly+ have too few ports for their NICs, or to be joined to each other.
    """

    def __init__(self, net: Interconnect, nodes: int, nics: int, routing: str) -> None:
        self.nics = nics
        ports, size = net.ports, nodes * nics
        dragonfly = net.topology == "dragonfly"
        self.down = min(max(1, int(ports * net.oversubscription / (1 + net.oversubscription) + 1e-9)), ports - 1)
        up = ports - self.down
        self.single = size <= ports and not (dragonfly and net.group)
        self.rails = nics if net.rails == "optimised" and not self.single else 1
        joined = self.rails == 1 and nics <= self.down
        #: NICs below a lowest switch; where NICs of a node are joined, those of as many nodes as fit.
        self.filled = self.down // nics * nics if joined else self.down
        leaves = 1 if self.single else self.rails * -(-nodes * (nics // self.rails) // self.filled)
        half = max(1, ports // 2)
        self.leaves_a_pod = -(-net.group // self.filled) if dragonfly and net.group else half
        if not dragonfly and leaves <= ports:
            self.leaves_a_pod = leaves
        pods = -(-leaves // self.leaves_a_pod)
        core = ports - self.leaves_a_pod if dragonfly else half
        levels, room = 3, 2 * half**2
        while room < leaves and levels < 9:
            levels, room = levels + 1, room * half
        #: Switches between NICs of different pods.
        self.far = 4 if dragonfly else 2 * levels - 1
        self.spread = routing == "adaptive"
        self.up, self.core = up, core
        self.pods = pods
        self.between = 0
        if dragonfly and min(leaves, self.leaves_a_pod) > ports:
            raise ClusterError(
                f"interconnect: groups of {net.group} nics, but two levels of switches of {ports} ports join "
                f"{ports * self.filled} at most; give smaller groups or more ports"
            )
        if dragonfly and pods > 1:
            self.between = max(0, up * core) // (pods - 1)
            if self.between < 1:
                raise ClusterError(
                    f"interconnect: {pods} groups of {self.leaves_a_pod * self.filled} nics, but switches of {ports} "
                    f"ports join a group with {max(0, up * core)} others at most; give larger groups or more ports"
                )
        counts = [(size, 1), (size, 1)]
        if not self.single:
            counts += 2 * [(leaves, up) if self.spread else (leaves * up, 1)]
        if pods > 1 and dragonfly:
            counts += [(pods * pods, self.between) if self.spread else (pods * pods * self.between, 1)]
        elif pods > 1:
            counts += 2 * [(pods, up * core) if self.spread else (pods * up * core, 1)]
        #: The first resource of each sort.
        self.first = np.cumsum([0, *(number for number, _ in counts)])
        self.cables = np.concatenate([np.full(number, float(wide)) for number, wide in counts])

    def leaf(self, nic: Numbers) -> Numbers:
        """Return the lowest switch of each NIC."""
        if self.single:
            return np.zeros_like(nic)
        if self.rails == 1:
            return nic // self.filled
        node, rail = np.divmod(nic, self.nics)
        return node // self.down * self.rails + rail

    def switches(self, source: Numbers, target: Numbers) -> Numbers:
        """Return how many switches each message crosses."""
        a, b = self.leaf(source), self.leaf(target)
        near = a // self.leaves_a_pod == b // self.leaves_a_pod
        return np.where(a == b, 1, np.where(near, 3, self.far))

    def routes(self, source: Numbers, target: Numbers) -> Routes:
        """Return what messages from NICs *source* to NICs *target* cross."""
        every = np.arange(len(source))
        a, b = self.leaf(source), self.leaf(target)
        found = [(every, source), (every, self.first[1] + target)]
        away = np.flatnonzero(a != b)
        spread = self.spread
        if len(away):
            number = b[away] * self.filled + (target if self.rails == 1 else target // self.nics)[away] % self.filled
            spine = number % self.up
            for sort, leaf in ((2, a[away]), (3, b[away])):
                found.append((away, self.first[sort] + (leaf if spread else leaf * self.up + spine)))
            p, q = a[away] // self.leaves_a_pod, b[away] // self.leaves_a_pod
            apart = p != q
            far, p, q, spine, number = away[apart], p[apart], q[apart], spine[apart], number[apart]
            if len(far) and self.between:
                pair = p * self.pods + q
                found.append((far, self.first[4] + (pair if spread else pair * self.between + number % self.between)))
            elif len(far):
                cable = spine * self.core + number // self.up % self.core
                for sort, pod in ((4, p), (5, q)):
                    found.append((far, self.first[sort] + (pod if spread else pod * self.up * self.core + cable)))
        flow = np.concatenate([flow for flow, _ in found])
        return Routes(flow, np.concatenate([resource for _, resource in found]), np.ones(len(flow)))

    def exchanged(self, nodes: Numbers, traffic: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the bytes on each resource when each of *nodes* sends ``traffic[a, b]`` bytes from its NIC a to NIC b
        of every other one.

        What the lowest switches exchange is summed first: under adaptive routing, which this needs, only that counts.
        """
        nic = nodes[:, None] * self.nics + np.arange(self.nics)
        leaves, first, label = np.unique(self.leaf(nic), return_index=True, return_inverse=True)
        label = label.reshape(nic.shape)
        many = len(leaves)
        held = np.stack([np.bincount(label[:, at], minlength=many) for at in range(self.nics)], axis=1)
        between = held @ traffic @ held.T
        for a, b in zip(*np.nonzero(traffic), strict=True):
            # a node sends itself nothing
            own = np.bincount(label[:, a] * many + label[:, b], minlength=many**2)
            between -= traffic[a, b] * own.reshape(many, many)
        np.fill_diagonal(between, 0.0)
        one, other = np.nonzero(between > 0)
        found = self.routes(nic.ravel()[first[one]], nic.ravel()[first[other]])
        switched = found.resource >= self.first[2]
        carried = np.bincount(
            found.resource[switched], between[one, other][found.flow[switched]], len(self.cables)
        ).astype(float)
        for at, sides in ((0, traffic.sum(axis=1)), (1, traffic.sum(axis=0))):
            carried[self.first[at] + nic] = (len(nodes) - 1) * sides
        return carried

    def name(self, resource: int) -> str:
        """Return what a resource is called in reports."""
        sort = int(np.searchsorted(self.first, resource, side="right")) - 1
        place = resource - int(self.first[sort])
        if sort < 2:
            node, nic = divmod(place, self.nics)
            return f"node{node}/nic{nic} {'to' if sort == 0 else 'from'} its switch"
        wide = self.up if sort < 4 else self.between or self.up * self.core
        place, cable = (place, None) if self.spread else divmod(place, wide)
        one = "" if cable is None else f", cable {cable}"
        if sort < 4:
            return f"switch{place} {'up' if sort == 2 else 'down'}{one}"
        if self.between:
            return "group{} to group{}{}".format(*divmod(place, self.pods), one)
        return f"pod{place} {'up' if sort == 4 else 'down'}{one}"

    def folded(self, values: npt.NDArray[np.float64], nics: Sequence[str]) -> dict[str, float]:
        """Return the largest of *values*, one for each resource, of all nodes' NICs of one number, which are called
        *nics*, and of every sort of cable between switches, by name; zeros are left out."""
        found: dict[str, float] = {}
        for sort, (first, end) in enumerate(zip(self.first, self.first[1:], strict=False)):
            part = values[first:end]
            if sort < 2:
                by_nic = part.reshape(-1, self.nics).max(axis=0)
                arrow = "{}>network" if sort == 0 else "network>{}"
                found |= {arrow.format(nics[nic]): float(by_nic[nic]) for nic in np.flatnonzero(by_nic).tolist()}
            elif part.max(initial=0.0) > 0:
                groups = "group>group" if self.between else ("switch>core", "core>switch")[sort % 2]
                found[("switch>spine", "spine>switch")[sort % 2] if sort < 4 else groups] = float(part.max())
        return found
