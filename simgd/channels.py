"""The channels of a collective: rings through all its ranks that a library would find, with their shares of the bytes.

Model
    Between GPUs that are linked directly rings are found by search (`rings`). GPUs under NVSwitches are visited in any
    order. Without a circuit of direct links the library falls back to rings through the host (PCIe switches, sockets):
    in a tree, visiting devices depth first crosses each edge once in each direction, and no ring can do with less.
    Across hosts a ring enters a host by a NIC, passes all its devices and leaves by a NIC: devices with the same near
    NICs are a group, and there are as many rings that begin and end in it as it has NICs, if it has the devices.
    Each channel is also a tree: a chain of a host's devices, whose heads a double binary tree of the hosts joins.

What it leaves out
    NVLink hops are not mixed with PCIe hops in one ring (its PCIe hops would limit it all the same).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from simgd.errors import ClusterError
from simgd.interconnects import Numbers
from simgd.rings import Gate, Ring, best_rings
from simgd.routes import NodeRoutes, Way
from simgd.wiring import Wiring

#: What leaving a host at a device, and entering it there, takes of shared resources: (name, bytes each byte).
_Taken = tuple[tuple[str, float], ...]
_Gates = dict[str, tuple[_Taken, _Taken]]


class Inside(NamedTuple):
    """What was found for the devices of one host: rings, or paths from NIC to NIC, with their rates, by which kind of
    link, and whether through the host although some are linked directly; each device's rate into NVSwitches.
    """

    rings: tuple[Ring, ...]
    kind: str
    port_bytes_per_s: float
    hosted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Channels:
    """The rings of a collective: `orders[c]` lists ranks host by host, and `shares[c]` is its part of the bytes.

    `sizes` are the numbers of ranks of the hosts, `hosted` the numbers of those whose rings pass through the host.
    `inside` is what the slowest host offers, by NVLink only if all hosts have rings of it.
    """

    orders: tuple[Numbers, ...]
    shares: tuple[float, ...]
    sizes: Numbers
    inside: Inside
    hosted: Numbers

    def grouped(self) -> list[tuple[list[Numbers], float]]:
        """Return the ranks of each host, in a channel's order, with the channel's share."""
        return [(self._groups(order), share) for order, share in zip(self.orders, self.shares, strict=True)]

    def first_groups(self) -> list[Numbers]:
        """Return the ranks of each host, in the first channel's order."""
        return self._groups(self.orders[0])

    def _groups(self, order: Numbers) -> list[Numbers]:
        # np.split takes ten times as long
        cuts = [0, *np.cumsum(self.sizes).tolist()]
        return [order[start:end] for start, end in pairwise(cuts)]


def channels(wiring: Wiring) -> Channels:
    """Return the channels that a library would find through all ranks."""
    order = np.lexsort((wiring.device, wiring.host))
    sizes = np.bincount(wiring.host)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    # most hosts hold the same devices: each different set is looked at once
    alike: dict[tuple[int, ...], list[int]] = {}
    for host, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        alike.setdefault(tuple(wiring.device[order[start : start + size]].tolist()), []).append(host)
    insides = {devices: _inside(wiring, devices) for devices in alike}
    slowest = min(insides.values(), key=lambda inside: sum(ring.bytes_per_s for ring in inside.rings))
    whole = sum(ring.bytes_per_s for ring in slowest.rings)
    orders = [np.empty(len(order), np.int64) for _ in slowest.rings]
    for devices, hosts in alike.items():
        ranks = order[starts[hosts][:, None] + np.arange(len(devices))]
        rings = insides[devices].rings
        number = {wiring.cluster.devices[device]: place for place, device in enumerate(devices)}
        for at, filled in enumerate(orders):
            ring = rings[at % len(rings)]
            places = starts[hosts][:, None] + np.arange(len(devices))
            filled[places] = ranks[:, [number[name] for name in ring.devices]]
    shares = tuple(ring.bytes_per_s / whole if len(slowest.rings) > 1 else 1.0 for ring in slowest.rings)
    port = min(inside.port_bytes_per_s for inside in insides.values())
    several = (inside.kind for devices, inside in insides.items() if len(devices) > 1)
    kind = next((kind for kind in several if kind != "nvlink"), slowest.kind)
    return Channels(
        orders=tuple(orders),
        shares=shares,
        sizes=sizes,
        inside=slowest._replace(port_bytes_per_s=port, kind=kind),
        hosted=np.array([host for devices, hosts in alike.items() if insides[devices].hosted for host in hosts], int),
    )


def _inside(wiring: Wiring, devices: tuple[int, ...]) -> Inside:
    """Return the rings through *devices* of one host, or paths in and out where there are several hosts."""
    routes = wiring.inside
    names = tuple(wiring.cluster.devices[device] for device in devices)
    if len(names) == 1:
        width = sum(routes.capacity[resource] for resource in routes.port(names[0], back=False).resources)
        return Inside((Ring(names, float("inf")),), routes.kind_at(names[0]), width)
    gates: _Gates | None = None
    ends: list[tuple[str, str]] = []
    shared: dict[str, float] = {}
    if wiring.hosts > 1:
        gates, shared = _gates(wiring, names)
        ends = _ends(routes, names)
    port = min(_port_bytes_per_s(routes, name, names) for name in names)
    if port > 0:
        return Inside(_equal(routes, _around(names, ends)), "nvlink", port)
    capacity: dict[tuple[str, str], float] = {}
    kinds: list[str] = []
    for a in names:
        for b in names:
            way = routes.direct(a, b) if a != b else None
            if way is not None:
                kinds.append(way.kind)
                both = sum(routes.capacity[resource] for resource in way.resources)
                capacity[a, b] = both / (1 if routes.is_full_duplex(way.resources[0]) else 2)
    rings: tuple[Ring, ...] = ()
    if capacity:
        enough = sum(rate for name, rate in shared.items() if name.startswith("nic")) / 2 if shared else float("inf")
        rings = _searched(
            names, tuple(capacity.items()), tuple(gates.items()) if gates else None, tuple(shared.items()), enough
        )
    direct = sum(ring.bytes_per_s for ring in rings)
    hosted = _hosted(routes, names, over_hosts=wiring.hosts > 1)
    if direct > 0 and ("nvlink" in kinds or direct >= sum(ring.bytes_per_s for ring in hosted)):
        return Inside(rings, "nvlink" if "nvlink" in kinds else kinds[0], 0.0)
    if not hosted:
        raise ClusterError(f"no way for a ring through {', '.join(names)}: some have no path without other devices")
    ways = [routes.hosted(a, b) for a, b in zip(hosted[0].devices, hosted[0].devices[1:], strict=False)]
    kind = "pcie" if any(way and way.kind == "pcie" for way in ways) else next(way.kind for way in ways if way)
    return Inside(hosted, kind, 0.0, hosted=True)


@lru_cache(maxsize=512)
def _searched(
    names: tuple[str, ...],
    capacity: tuple[tuple[tuple[str, str], float], ...],
    gates: tuple[tuple[str, tuple[_Taken, _Taken]], ...] | None,
    shared: tuple[tuple[str, float], ...],
    enough: float,
) -> tuple[Ring, ...]:
    opened = None if gates is None else {name: Gate(dict(out), dict(into)) for name, (out, into) in gates}
    return best_rings(names, dict(capacity), gates=opened, shared=dict(shared), enough=enough)


def _gates(wiring: Wiring, names: Sequence[str]) -> tuple[_Gates, dict[str, float]]:
    """Return what leaving and entering a host at each device takes of which shared resources, and their rates."""
    routes = wiring.inside
    shared: dict[str, float] = {}
    gates: _Gates = {}
    joint = wiring.net is not None
    for name in names:
        taken: list[_Taken] = []
        for way, arrow in ((routes.out(name), ">"), (routes.into(name), "<")):
            found = [(f"link{resource}", weight) for resource, weight in zip(way.resources, way.weights, strict=True)]
            shared.update((f"link{resource}", routes.capacity[resource]) for resource in way.resources)
            for nic, weight in way.nics:
                rate = wiring.cable_bytes_per_s if joint else routes.nic_bytes_per_s(nic, back=arrow == "<")
                shared[f"nic{nic}{arrow}"] = rate
                found.append((f"nic{nic}{arrow}", weight))
            taken.append(tuple(found))
        gates[name] = (taken[0], taken[1])
    return gates, shared


def _port_bytes_per_s(routes: NodeRoutes, name: str, names: Sequence[str]) -> float:
    """Return the rate of a device into NVSwitches over which it reaches all others, 0 if there are none."""
    if any(routes.switched(name, other) is None for other in names if other != name):
        return 0.0
    return sum(routes.capacity[resource] for resource in routes.port(name, back=False).resources)


def _ends(routes: NodeRoutes, names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the first and the last device of each path through a host.

    As many paths end as begin at the NICs of a group of devices with the same ones: a path stays in a group of several,
    and devices that have NICs for themselves take turns.
    """
    near: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        near.setdefault(routes.nearest_nics(name), []).append(name)
    groups = [(len(nics), group) for nics, group in near.items() if len(group) > 1]
    alone = [group[0] for group in near.values() if len(group) == 1]
    ends = [(group[at], group[at - 1]) for many, group in groups for at in range(min(many, len(group)))]
    if len(alone) == 1 and ends:
        (first, last), *others = ends
        return [(first, alone[0]), (alone[0], last), *others]
    return [*ends, *((name, alone[at - 1]) for at, name in enumerate(alone))]


def _around(names: Sequence[str], ends: Sequence[tuple[str, str]]) -> list[tuple[str, ...]]:
    """Return an order of devices for each pair of *ends*; one order where none are asked for."""
    orders = [
        (first, *(name for name in names if name not in (first, last)), *([last] if last != first else []))
        for first, last in ends
    ]
    return orders or [tuple(names)]


def _equal(routes: NodeRoutes, orders: Sequence[tuple[str, ...]]) -> tuple[Ring, ...]:
    """Return rings that share alike what the links of a node give them."""
    load: dict[int, float] = {}
    for order in orders:
        for a, b in zip(order, (*order[1:], order[0]), strict=True):
            _add(load, routes.between(a, b), 1 / len(orders))
    rate = 1 / max(load[resource] / routes.capacity[resource] for resource in load)
    return tuple(Ring(order, rate / len(orders)) for order in orders)


def _add(load: dict[int, float], way: Way, share: float) -> None:
    for resource, weight in zip(way.resources, way.weights, strict=True):
        load[resource] = load.get(resource, 0.0) + share * weight


def _hosted(routes: NodeRoutes, names: Sequence[str], *, over_hosts: bool) -> tuple[Ring, ...]:
    """Return rings through the host, which visit devices depth first; none if some are not joined by it."""
    order = routes.depth_first(names)
    if len(order) < len(names):
        return ()
    # devices with the same NICs are neighbours in the tree; each path but a group's first also ends in the group where
    # it begins, and that one ends in the group before, so that all NICs are left as often as they are entered
    turns = [order.index(first) for first, _ in _ends(routes, order)] if over_hosts else [0]
    orders = [(*order[turn:], *order[:turn]) for turn in turns]
    load: dict[int, float] = {}
    for each in orders:
        for a, b in zip(each, (*each[1:], each[0]), strict=True):
            way = routes.hosted(a, b)
            if way is None:
                return ()
            _add(load, way, 1 / len(orders))
    rate = 1 / max(load[resource] / routes.capacity[resource] for resource in load)
    return tuple(Ring(each, rate / len(orders)) for each in orders)
