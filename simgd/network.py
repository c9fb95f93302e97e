"""What a collective demands of the network: its time alone, and which resources it shares.

Precedence, from strong to weak
    1. A curve measured for the same kind, ranks and nodes: model x g, where g = (a time linear in bytes between the
       points) / model; g is held beyond the ends (marked `extrapolated` there).
    2. A fit, linear in bytes by segments, for the same kind, ranks and nodes, likewise as a ratio to the model. Fits
       taken at several rates of the interconnect give the time at another rate: a message costs work of the host and
       its bytes over the rate, so time is linear in 1/rate between the two nearest ones ("modelled"). Beyond them both
       parts go on, neither below 0; marked.
    3. Curves and fits for other numbers of ranks on as many nodes (or with one rank on each node): g linear in log
       ranks, held beyond the ends; marked.
    4. For reduce-scatter and all-gather, the g of the all-reduce (the same rings serve both, so that schedules that
       differ in kind stay comparable); marked.
    5. The model (`nccl`, `mpi` on what `fabrics` finds) with the profile's rates: origin "modelled".
    6. The model with rates taken as a share of nominal ones: origin "assumed".
    g multiplies latency and volume alike, so that a what-if that scales a kind of link (`link_scale`) acts on
    measured collectives as on modelled ones: the model's ratio times what was measured.

What it leaves out
    Traffic of other jobs, but for `Network.together`, which simulates several collectives flow by flow.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from simgd import fabrics, mpi, nccl, transfers
from simgd.collectives import Cost
from simgd.errors import ClusterError, ProfileError, unknown
from simgd.interconnects import Numbers
from simgd.profile import CollectiveKind, Curve, Fit, Origin, Profile, weakest
from simgd.topology import Cluster
from simgd.transfers import Copy, Transfer
from simgd.units import Rate
from simgd.wiring import Wiring

#: 90 % interval of the model. Against published NCCL curves (tests/test_curves.py) it is mostly within 0.25 where
#: bandwidth rules; small messages of one process that launches several GPUs, and of several nodes, take up to three
#: times as long, which NCCL's own latencies leave out. So the interval widens by LATENCY_DOUBT times the share of
#: latency in the time.
MODEL_UNCERTAINTY, LATENCY_DOUBT = 0.25, 0.5

#: And where even link rates are taken as a share of nominal ones.
ASSUMED_UNCERTAINTY = 0.5

#: Software's part of a message where no profile says it: one-way times of small messages in MPI over InfiniBand are
#: 1.3-1.8 us (the tables of the shipped profiles), most of it software.
ASSUMED_LATENCY_S = 1.5e-6

#: Latency of a step of a collective among GPUs where no library is known: NCCL's Simple protocol, tuning.cc.
ASSUMED_STEP_S = 5.7e-6


class Call(NamedTuple):
    """A collective: its kind, the bytes of the whole buffer, and the ranks, in device order or on *devices*."""

    kind: CollectiveKind
    nbytes: int
    ranks: int
    devices: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a collective asks of the network.

    `solo_s` is its time alone, `latency_s` the part of it that no bandwidth shortens; `use` the share of each
    resource that it takes while it moves data. `path` is the kind of link that limits it, by which interference is
    looked up. `extrapolated` says that a measured cost was used beyond what was measured.
    """

    latency_s: float
    solo_s: float
    use: Mapping[str, float]
    algorithm: str
    origin: Origin
    uncertainty: float
    extrapolated: bool
    path: str


#: A link that is less busy than this while a collective runs hinders no other one.
LEAST_USE = 0.02

#: How closely a collective is looked at: one cost by its steps, or each message.
Fidelity = Literal["collectives", "flows"]

_Model = Callable[[float], Cost]


class _Ratio(NamedTuple):
    """Measured over modelled time of one message, and how far that may be trusted."""

    factor: float
    origin: Origin
    uncertainty: float
    extrapolated: bool


_Correction = Callable[[float], _Ratio]


def nominal(cluster: Cluster) -> dict[str, tuple[float, float]]:
    """Return the largest nominal bandwidth and the largest latency of each kind of link of *cluster*."""
    found: dict[str, tuple[float, float]] = {}
    for link in cluster.links:
        rate, latency = found.get(link.kind, (0.0, 0.0))
        found[link.kind] = max(rate, float(link.bandwidth)), max(latency, float(link.latency))
    if cluster.interconnect is not None:
        found[cluster.interconnect.kind] = float(cluster.interconnect.bandwidth), float(cluster.interconnect.latency)
    return found


class _Modelled(NamedTuple):
    """A model of one kind of collective on one set of places: its cost by message size, with the flows of which it is
    made, and its origin."""

    cost: _Model
    transfer: Callable[[float, Wiring | None, Numbers | None], Transfer]
    origin: Origin


class _Prepared(NamedTuple):
    """All that calls of one kind on one set of places have in common: only the message size is left to vary."""

    model: _Modelled
    correction: _Correction
    path: str
    busy: Mapping[str, Mapping[str, float]]
    latency_doubt: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """The network of *cluster* with the costs of *profile*; `link_scale` makes kinds of links faster or slower.

    A CPU cluster has as many nodes as ranks are asked for; see `fabrics.placement`. The time of a collective is one
    cost by its algorithm's steps, or with *fidelity* "flows" that of its messages one by one (`transfers`). *algorithm*
    names the only one to use, which no measured curve speaks of.
    """

    cluster: Cluster
    profile: Profile
    link_scale: Mapping[str, float] = field(default_factory=dict)
    fidelity: Fidelity = "collectives"
    algorithm: str = ""
    _demands: dict[Call, Demand] = field(default_factory=dict, repr=False)
    _prepared: dict[tuple[CollectiveKind, int, tuple[int, ...] | None], _Prepared] = field(
        default_factory=dict, repr=False
    )
    _fabrics: dict[tuple[int, tuple[int, ...] | None, tuple[tuple[str, float], ...] | None], fabrics.Fabric] = field(
        default_factory=dict, repr=False
    )
    _scaled: dict[tuple[tuple[str, float], ...], "Network"] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Refuse factors that no link could have."""
        for kind, factor in self.link_scale.items():
            if not 0 < factor < math.inf:
                where = f"cluster {self.cluster.name!r}: links of kind {kind!r}"
                raise ClusterError(f"{where}: made {factor} times as fast; the factor must be above 0")

    def scaled(self, link_scale: Mapping[str, float]) -> "Network":
        """Return this network with kinds of links so many times as fast; the same one to whoever asks for the same."""
        if not link_scale:
            return self
        key = tuple(sorted(link_scale.items()))
        found = self._scaled.get(key)
        if found is None:
            factors = {kind: self.link_scale.get(kind, 1.0) * factor for kind, factor in link_scale.items()}
            found = self._scaled[key] = Network(
                self.cluster,
                self.profile,
                {**self.link_scale, **factors},
                fidelity=self.fidelity,
                algorithm=self.algorithm,
            )
        return found

    def demand(self, call: Call) -> Demand:
        """Return what *call* asks of the network.

        Raises ClusterError for ranks that the cluster has no place for, ProfileError for a message below 0 bytes.
        """
        found = self._demands.get(call)
        if found is None:
            found = self._demands[call] = self._demand(call)
        return found

    def seconds(self, kind: CollectiveKind, nbytes: int, ranks: int) -> float:
        """Return the time of a collective alone."""
        return self.demand(Call(kind, nbytes, ranks)).solo_s

    def fabric(self, ranks: int, devices: tuple[int, ...] | None = None) -> fabrics.Fabric:
        """Return what the links between the places of *ranks* offer, with this network's `link_scale`."""
        return self._fabric(ranks, devices)

    def spread(self, ranks: int, nodes: int) -> tuple[int, ...] | None:
        """Return the devices of *ranks* dealt out evenly to *nodes*; None if the cluster cannot hold them so."""
        per_node = len(self.cluster.devices)
        many = self.cluster.device.kind == "cpu" or nodes <= self.cluster.nodes
        if ranks % nodes or ranks // nodes > per_node or not many:
            return None
        return tuple(node * per_node + device for node in range(nodes) for device in range(ranks // nodes))

    def _fabric(
        self, ranks: int, devices: tuple[int, ...] | None, scale: Mapping[str, float] | None = None
    ) -> fabrics.Fabric:
        """Return what links offer: those of this cluster, or with *scale* those that the profile was made on, made
        faster by these factors."""
        key = (ranks, devices, None if scale is None else tuple(scale.items()))
        found = self._fabrics.get(key)
        if found is None:
            places = fabrics.placement(self.cluster, ranks, devices)
            found = fabrics.fabric(self.cluster, places, *self._rates(self._scale() if scale is None else scale))
            if scale is None:
                later = self._later(found.inside)
                net = self.cluster.interconnect.kind if self.cluster.interconnect is not None else ""
                net_later_s = max(-found.net_extra_s, 2 * self._later(net))
                found = replace(
                    found, inside_extra_s=later, net_extra_s=found.net_extra_s + net_later_s, net_later_s=net_later_s
                )
            self._fabrics[key] = found
        return found

    def _scale(self) -> dict[str, float]:
        """Return how many times as fast each kind of link is as where the profile was made, by nominal rates and by
        `link_scale`."""
        kinds = [*nominal(self.cluster), *self.link_scale]
        return {kind: self._faster(kind) * self.link_scale.get(kind, 1.0) for kind in kinds}

    def _faster(self, kind: str) -> float:
        """Return how many times as fast a kind of link is nominally as where the profile was made."""
        here, there = nominal(self.cluster), nominal(self.profile.cluster)
        return here[kind][0] / there[kind][0] if kind in here and kind in there else 1.0

    def _later(self, kind: str) -> float:
        """Return how much longer the latency of a kind of link is than where the profile was made."""
        here, there = nominal(self.cluster), nominal(self.profile.cluster)
        return here[kind][1] - there[kind][1] if kind in here and kind in there else 0.0

    def _moved(self, at: Mapping[str, float] | None = None) -> bool:
        """Say whether links of this cluster differ nominally from those that costs were measured on: the profile's,
        but for the rates *at* which kinds of links ran."""
        here, there = nominal(self.cluster), nominal(self.profile.cluster)
        at = at or {}
        return any(
            here[kind] != there[kind]
            if kind not in at
            else here[kind][1] != there[kind][1] or not _same_rate(here[kind][0], at[kind])
            for kind in here
            if kind in there
        )

    def _demand(self, call: Call) -> Demand:
        nbytes, ranks = call.nbytes, call.ranks
        prepared = self._prepared_for(call)
        cost = prepared.model.cost(nbytes)
        if self.fidelity == "flows" and ranks > 1:
            (seconds,) = transfers.seconds([prepared.model.transfer(nbytes, None, None)])
            cost = Cost(seconds, min(cost.latency_s, seconds), cost.algorithm)
        factor, origin, uncertainty, extrapolated = prepared.correction(nbytes)
        if prepared.latency_doubt:
            uncertainty += prepared.latency_doubt * cost.latency_s / cost.seconds
        return Demand(
            latency_s=cost.latency_s * factor,
            solo_s=cost.seconds * factor,
            use=_use(prepared.busy, cost.algorithm),
            algorithm=cost.algorithm,
            origin=origin,
            uncertainty=uncertainty,
            extrapolated=extrapolated,
            path=prepared.path,
        )

    def _prepared_for(self, call: Call) -> _Prepared:
        kind, nbytes, ranks, devices = call
        if nbytes < 0:
            raise ProfileError(f"{kind} of {nbytes} bytes: a message has 0 bytes or more")
        prepared = self._prepared.get((kind, ranks, devices))
        if prepared is None:
            prepared = self._prepared[kind, ranks, devices] = self._prepare(kind, ranks, devices)
        return prepared

    def together(self, calls: Sequence[Call], copies: Sequence[Copy] = ()) -> tuple[float, ...]:
        """Return the time of each of *calls*, all begun at once, flow by flow, while *copies* between hosts and devices
        move as well.

        Raises ClusterError as `demand` does, or if there are too many flows.
        """
        prepared = [self._prepared_for(call) for call in calls]
        chosen = [fabrics.placement(self.cluster, call.ranks, call.devices) for call in calls]
        copied = [fabrics.placement(self.cluster, 1, (copy.device,))[0] for copy in copies]
        places = list(dict.fromkeys([*(place for places in chosen for place in places), *copied]))
        number = {place: at for at, place in enumerate(places)}
        wiring = Wiring(self.cluster, places, *self._rates(self._scale()))
        running = [
            one.model.transfer(call.nbytes, wiring, np.array([number[place] for place in each], np.int64))
            for one, call, each in zip(prepared, calls, chosen, strict=True)
        ]
        others = [transfers.copied(wiring, number[place], copy) for place, copy in zip(copied, copies, strict=True)]
        found = transfers.seconds(running, others)
        return tuple(
            seconds * one.correction(call.nbytes).factor
            for seconds, one, call in zip(found, prepared, calls, strict=True)
        )

    def _rates(self, factors: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
        """Return what each kind of link reaches by the profile, and *factors* on that.

        Of the network it may say so by its longest messages between two nodes. The rate of a kind that the profile says
        nothing of is a share of this cluster's, not of the profile's.
        """
        rates = {entry.kind: entry.bytes_per_s for entry in self.profile.links}
        table, joint = self.profile.point_to_point, self.cluster.interconnect
        if table is not None and joint is not None and joint.kind not in rates:
            (size, time), (longest, later) = table.points[-2:]
            if later > time:
                rates[joint.kind] = (longest - size) / (later - time)
        return rates, {
            kind: factor / (1.0 if kind in rates else self._faster(kind)) for kind, factor in factors.items()
        }

    def _prepare(self, kind: CollectiveKind, ranks: int, devices: tuple[int, ...] | None) -> _Prepared:
        fabric = self._fabric(ranks, devices)
        if ranks == 1:
            nothing = Cost(0.0, 0.0, "none")
            exactly = _Ratio(1.0, "measured", 0.0, False)
            alone = _Modelled(lambda nbytes: nothing, lambda *_: transfers.nothing(fabric.wiring), "measured")
            return _Prepared(alone, lambda nbytes: exactly, fabric.path, {})
        model = self._model(kind, ranks, devices)
        origin = model.origin
        correction = None
        # a measured curve speaks of the first devices of each node, not of any that a user picks
        if not self.algorithm and (devices is None or devices == self.spread(ranks, fabric.nodes)):
            correction = self._correction(kind, ranks, fabric.nodes)
        if correction is None:
            plain = _Ratio(1.0, origin, MODEL_UNCERTAINTY if origin == "modelled" else ASSUMED_UNCERTAINTY, False)
            gpu = self.cluster.device.kind == "gpu"
            doubt = LATENCY_DOUBT if gpu and origin == "modelled" else 0.0
            return _Prepared(model, lambda nbytes: plain, fabric.path, _busy(kind, fabric), doubt)
        return _Prepared(model, correction, fabric.path, _busy(kind, fabric))

    def _model(
        self,
        kind: CollectiveKind,
        ranks: int,
        devices: tuple[int, ...] | None,
        scale: Mapping[str, float] | None = None,
    ) -> _Modelled:
        """Return the model of a kind of collective; *scale* as for `_fabric`."""
        library = self.profile.library
        fabric = self._fabric(ranks, devices, scale)
        if library.name == "nccl" if library is not None else self.cluster.device.kind == "gpu":
            return self._nccl(kind, fabric)
        return self._mpi(kind, fabric, self._scale() if scale is None else scale)

    def _nccl(self, kind: CollectiveKind, fabric: fabrics.Fabric) -> _Modelled:
        library, memory = self.profile.library, self.profile.memory
        found: tuple[nccl.Candidate, ...] = ()
        if library is not None:
            found = nccl.candidates(kind, fabric, library, memory.kernel if memory is not None else 0.0)
        if library is not None and found:
            origin = weakest("modelled", library.origin, "assumed" if fabric.assumed else "modelled")
        else:
            origin = "assumed"
            found = (nccl.unknown(kind, fabric, ASSUMED_STEP_S),)
        if self.algorithm:
            names = [candidate.algorithm for candidate in found]
            if self.algorithm not in names:
                raise unknown(f"algorithm of {kind}", self.algorithm, names)
            found = tuple(candidate for candidate in found if candidate.algorithm == self.algorithm)

        def transfer(nbytes: float, wiring: Wiring | None, ranks: Numbers | None) -> Transfer:
            return transfers.of_nccl(kind, nbytes, nccl.chosen(found, nbytes), fabric, wiring, ranks)

        return _Modelled(lambda nbytes: nccl.cheapest(found, nbytes), transfer, origin)

    def _mpi(self, kind: CollectiveKind, fabric: fabrics.Fabric, scale: Mapping[str, float]) -> _Modelled:
        library, table, joint = self.profile.library, self.profile.point_to_point, self.cluster.interconnect
        if table is not None:
            faster = scale.get(joint.kind, 1.0) if joint is not None else 1.0
            first = table.points[0][1]
            # Measured times of small messages may fall by noise, which no slower link makes larger.
            points = [(size, first + max(0.0, time - first) / faster) for size, time in table.points]
            origin = weakest("modelled", table.origin)
        else:
            start = ASSUMED_LATENCY_S + (2 * float(joint.latency) if joint is not None else 0.0)
            points = [(0.0, start), (1e9, start + 1e9 / fabric.message_bytes_per_s)]
            origin = "assumed"
        messages = mpi.Messages(
            points=points,
            extra_s=fabric.net_later_s,
            switch_s=self.cluster.switch_latency_s,
            add_s_per_byte=1 / library.reduce_bytes_per_s
            if library is not None and library.reduce_bytes_per_s
            else 0.0,
        )
        choice = library.choice if library is not None else "fastest"
        algorithms = mpi.Algorithms(kind, fabric.wiring, choice, self.algorithm)

        def transfer(nbytes: float, wiring: Wiring | None, ranks: Numbers | None) -> Transfer:
            return transfers.of_mpi(nbytes, algorithms, messages, fabric, wiring, ranks)

        return _Modelled(lambda nbytes: algorithms.cost(messages, nbytes), transfer, origin)

    def _correction(self, kind: CollectiveKind, ranks: int, nodes: int) -> _Correction | None:
        """Return measured / modelled by message size, from the strongest entry that the profile has; see above."""
        exact = self._measured(kind, ranks, nodes)
        if exact is not None:
            return exact
        others: dict[int, _Correction] = {}
        entries: tuple[Curve | Fit, ...] = (*self.profile.fits, *self.profile.curves)
        for entry in sorted(entries, key=lambda entry: entry.ranks):
            alike = entry.nodes == nodes or (ranks == nodes and entry.ranks == entry.nodes)
            if entry.kind == kind and entry.ranks > 1 and alike:
                other = self._measured(kind, entry.ranks, entry.nodes)
                if other is not None:
                    others[entry.ranks] = other
        if others:
            return _between_ranks(list(others.items()), ranks)
        if kind in ("reduce_scatter", "all_gather"):
            same = self._correction("all_reduce", ranks, nodes)
            if same is not None:
                return lambda nbytes: _weaker(same(nbytes))
        return None

    def _measured(self, kind: CollectiveKind, ranks: int, nodes: int) -> _Correction | None:
        """Return measured / modelled of exactly this call, where it was measured and the cluster can hold it."""
        about, devices = (kind, ranks, nodes), self.spread(ranks, nodes)
        if devices is None:
            return None
        for curve in self.profile.curves:
            if (curve.kind, curve.ranks, curve.nodes) == about:
                ratio = _curve_ratio(curve, self._model(kind, ranks, devices, {}).cost)
                return _weakened(ratio) if self._moved() else ratio
        fits = [fit for fit in self.profile.fits if (fit.kind, fit.ranks, fit.nodes) == about]
        return self._fitted(kind, ranks, devices, fits) if fits else None

    def _fitted(self, kind: CollectiveKind, ranks: int, devices: tuple[int, ...], fits: Sequence[Fit]) -> _Correction:
        """Return fitted / modelled time of fits of one call, which were taken at one rate of the interconnect or more.

        The model below the fraction runs at the rate that its numerator speaks of, so that what comes out at that rate
        is what was fitted.
        """
        net, origin = self.cluster.interconnect, self.profile.cluster.interconnect
        crosses = fits[0].nodes > 1
        if not crosses or net is None or origin is None or net.kind != origin.kind:
            ratio = _ratio_to(fits[-1], self._model(kind, ranks, devices, {}).cost)
            return _weakened(ratio) if crosses or self._moved() else ratio
        there = float(origin.bandwidth)
        at: dict[float, Fit] = {}
        for fit in fits:
            rate = fit.link_bytes_per_s or there
            at[next((known for known in at if _same_rate(known, rate)), rate)] = fit
        wanted = float(net.bandwidth) * self.link_scale.get(net.kind, 1.0)
        rates = sorted(at)
        exact = [rate for rate in rates if _same_rate(rate, wanted)]
        if exact or len(rates) == 1:
            rate = (exact or rates)[0]
            ratio = _ratio_to(at[rate], self._model(kind, ranks, devices, {net.kind: rate / there}).cost)
            # What a made-up `link_scale` does to a link follows from the model, and is no other place.
            moved = self._moved({net.kind: rate if len(rates) == 1 else float(net.bandwidth)})
            return _weakened(ratio) if moved else ratio
        place = min(max(bisect_right(rates, wanted), 1), len(rates) - 1)
        slow, fast = rates[place - 1], rates[place]
        base = self._model(kind, ranks, devices, {net.kind: wanted / there}).cost
        ratio = _between_rates((slow, at[slow]), (fast, at[fast]), wanted, base)
        inside = slow < wanted < fast and not self._moved({net.kind: float(net.bandwidth)})
        return ratio if inside else _weakened(ratio)


def at_link_rate(cluster: Cluster, bytes_per_s: float) -> Cluster:
    """Return *cluster* with another nominal rate of its interconnect; as it is for 0, or if it has none."""
    if not bytes_per_s or cluster.interconnect is None:
        return cluster
    net = msgspec.structs.replace(cluster.interconnect, bandwidth=Rate(bytes_per_s))
    return msgspec.structs.replace(cluster, interconnect=net)


def _same_rate(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-3)


def at_rate(slow: tuple[float, float], fast: tuple[float, float], bytes_per_s: float) -> float:
    """Return the time of a message over a link of *bytes_per_s*, from two (rate, seconds): linear in 1/rate.

    Beyond the two rates neither the host's part nor the link's is let below 0, as noise of nearly equal times would.

    >>> at_rate((1e8, 5.0), (2e8, 3.0), 4e8)  # 1 s of the host, and 4e8 bytes
    2.0
    >>> at_rate((1e8, 5.0), (2e8, 2.0), 4e8)  # -1 s of the host is none
    1.0
    """
    (low, at_low_s), (high, at_high_s) = slow, fast
    link = (at_low_s - at_high_s) / (1 / low - 1 / high)
    if low <= bytes_per_s <= high:
        return at_high_s + link * (1 / bytes_per_s - 1 / high)
    rate, near_s = slow if bytes_per_s < low else fast
    ends = near_s, near_s * rate / bytes_per_s
    return min(max(near_s + link * (1 / bytes_per_s - 1 / rate), min(ends)), max(ends))


def _curve_ratio(curve: Curve, base: _Model) -> _Correction:
    """Return g: of a time linear in bytes between the points of *curve*; the ratio at its ends is held beyond them.

    A line between neighbours is a latency and a rate, as between messages of a table. Of 20 captured curves of NCCL it
    met the sizes left out with a mean error of 3.2 %, where a ratio linear in log bytes had over 4 % (tests/curves.py);
    where the model changes its algorithm between two points, that ratio jumps and the time must not.
    """
    sizes = [size for size, _ in curve.points]
    (least, at_least_s), (most, at_most_s) = curve.points[0], curve.points[-1]

    def ratio(nbytes: float) -> _Ratio:
        if nbytes <= least or nbytes >= most:
            held = at_least_s / base(least).seconds if nbytes <= least else at_most_s / base(most).seconds
            exact = _Ratio(held, curve.origin, curve.uncertainty, False)
            return exact if least <= nbytes <= most else _weaker(exact)
        place = bisect_right(sizes, nbytes)
        (low, at_low_s), (high, at_high_s) = curve.points[place - 1], curve.points[place]
        seconds = at_low_s + (nbytes - low) / (high - low) * (at_high_s - at_low_s)
        return _Ratio(seconds / base(nbytes).seconds, curve.origin, curve.uncertainty, False)

    return ratio


def _ratio_to(fit: Fit, base: _Model) -> _Correction:
    """Return g of a fit, which says that it is stretched outside the sizes that it was measured at."""
    least, most = fit.range

    def ratio(nbytes: float) -> _Ratio:
        found = _Ratio(fit.seconds(nbytes) / base(nbytes).seconds, fit.origin, fit.uncertainty, False)
        return found if least <= nbytes <= most else _weaker(found)

    return ratio


def _between_rates(slow: tuple[float, Fit], fast: tuple[float, Fit], rate: float, base: _Model) -> _Correction:
    """Return g at a *rate* of the interconnect, from fits at two others; *base* is the model at that rate."""
    (low, at_low), (high, at_high) = slow, fast
    about = weakest("modelled", at_low.origin, at_high.origin), max(at_low.uncertainty, at_high.uncertainty)
    least, most = (max(at_low.range[0], at_high.range[0]), min(at_low.range[1], at_high.range[1]))

    def ratio(nbytes: float) -> _Ratio:
        seconds = at_rate((low, at_low.seconds(nbytes)), (high, at_high.seconds(nbytes)), rate)
        found = _Ratio(seconds / base(nbytes).seconds, *about, False)
        return found if least <= nbytes <= most else _weaker(found)

    return ratio


def _weakened(ratio: _Correction) -> _Correction:
    """Mark a ratio for every size."""
    return lambda nbytes: _weaker(ratio(nbytes))


def _between_ranks(ratios: Sequence[tuple[int, _Correction]], ranks: int) -> _Correction:
    """Return g for a number of ranks without a curve: linear in log ranks between its neighbours, held beyond."""
    above = next((place for place, (count, _) in enumerate(ratios) if count > ranks), len(ratios))
    low, high = ratios[max(0, above - 1)], ratios[min(above, len(ratios) - 1)]
    share = 0.0 if low[0] == high[0] else math.log(ranks / low[0]) / math.log(high[0] / low[0])

    def ratio(nbytes: float) -> _Ratio:
        a, b = low[1](nbytes), high[1](nbytes)
        factor = a.factor + share * (b.factor - a.factor)
        return _weaker(_Ratio(factor, weakest(a.origin, b.origin), max(a.uncertainty, b.uncertainty), True))

    return ratio


def _weaker(ratio: _Ratio) -> _Ratio:
    """Mark a ratio that was taken from another size, number of ranks, kind of collective or machine."""
    return _Ratio(ratio.factor, weakest(ratio.origin, "modelled"), max(ratio.uncertainty, MODEL_UNCERTAINTY), True)


def _busy(kind: CollectiveKind, fabric: fabrics.Fabric) -> Mapping[str, Mapping[str, float]]:
    """Return how busy links are, by algorithm. With one rank a node an all-to-all keeps all as busy as a ring does."""
    if kind not in nccl.DIRECT or (kind == "all_to_all" and fabric.most == 1):
        return fabric.busy
    return {"ring": fabric.direct(kind).busy}


def _use(busy: Mapping[str, Mapping[str, float]], algorithm: str) -> Mapping[str, float]:
    """Return how busy an algorithm keeps each link; one without an entry of its own is as a ring."""
    links = busy.get(algorithm.partition("/")[0], busy.get("ring", {}))
    return {name: share for name, share in links.items() if share >= LEAST_USE} or {"network": 1.0}
