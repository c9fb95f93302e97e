"""Small clusters written link by link, whose vertices' names say what they are."""

from random import Random

from simgd.topology import Cluster, Device, Interconnect, Link, LinkKind, VertexKind
from simgd.units import Bytes, FlopRate, Rate, Seconds
from simgd.wiring import Place

#: What a vertex is by its first small letter, as in "g0" and, on host A, "Ag0".
KINDS: dict[str, VertexKind] = {
    "g": "device",
    "v": "nvswitch",
    "p": "pcie_switch",
    "s": "socket",
    "n": "nic",
    "w": "switch",
}

GPU = Device(name="g", kind="gpu", memory=Bytes(1), memory_rate=Rate(1.0), fp32=FlopRate(1.0))

#: Rates of links are counts of cables where every kind's fastest link has one cable of 1 byte a second.
ONES = {"nvlink": 1.0, "pcie": 1.0, "socket": 1.0, "infiniband": 1.0, "ethernet": 1.0}


def vertex_kind(name: str) -> VertexKind:
    return KINDS[name.lstrip("ABCDEFGH")[0]]


def link_kind(a: str, b: str) -> LinkKind:
    """PCIe inside a host; NVLink at NVSwitches and between devices; InfiniBand between hosts and at switches."""
    kinds = {vertex_kind(a), vertex_kind(b)}
    if "switch" in kinds or (a[0] != b[0] and a[0].isupper()):
        return "infiniband"
    if "nvswitch" in kinds or kinds == {"device"}:
        return "nvlink"
    return "socket" if kinds == {"socket"} else "pcie"


def link(ends: str, rate: float = 1.0, kind: LinkKind | None = None, **fields: object) -> Link:
    """A link "g0-p0"."""
    a, b = ends.split("-")
    return Link(ends=(a, b), kind=kind or link_kind(a, b), bandwidth=Rate(rate), **fields)  # type: ignore[arg-type]


def links(pairs: str, rate: float = 1.0) -> tuple[Link, ...]:
    """Links "g0-p0 g1-p0", all of one rate."""
    return tuple(link(ends, rate) for ends in pairs.split())


def cluster(*parts: str | Link | tuple[Link, ...], **fields: object) -> Cluster:
    """A node of these links; its devices come first, by their names."""
    found: list[Link] = []
    for part in parts:
        found += links(part) if isinstance(part, str) else [part] if isinstance(part, Link) else part
    names = sorted({end for each in found for end in each.ends}, key=lambda name: (vertex_kind(name) != "device", name))
    kinds = {name: vertex_kind(name) for name in names}
    return Cluster(**{"name": "lab", "device": GPU, "vertices": kinds, "links": tuple(found)} | fields)  # type: ignore[arg-type]


def flat(rng: Random) -> Cluster:
    """Hosts of a device or more at PCIe switches with NICs, in a random network of switches."""
    made: dict[str, float] = {}
    switches = rng.randint(1, 6)
    for at in range(1, switches):
        made[f"w{rng.randrange(at)}-w{at}"] = rng.choice([1.0, 2.0, 3.0])
    for _ in range(rng.randint(0, 8)):
        a, b = sorted(rng.sample(range(switches), 2)) if switches > 1 else (0, 0)
        if a != b:
            made[f"w{a}-w{b}"] = rng.choice([1.0, 2.0, 3.0])
    for host in "ABC"[: rng.randint(2, 3)]:
        made[f"{host}g0-{host}p0"] = 1.0
        made[f"{host}p0-{host}s0"] = 1.0
        for device in range(1, rng.randint(1, 3)):
            made[f"{host}g{device}-{host}{rng.choice(['p0', 's0'])}"] = 1.0
        for nic in range(rng.randint(1, 3)):
            made[f"{host}n{nic}-{host}{rng.choice(['p0', 's0'])}"] = 1.0
            for switch in rng.sample(range(switches), min(switches, rng.randint(1, 2))):
                made[f"{host}n{nic}-w{switch}"] = rng.choice([1.0, 2.0])
    return cluster(*(link(ends, rate) for ends, rate in made.items()), routing=rng.choice(["static", "adaptive"]))


def joint(**fields: object) -> Interconnect:
    """A network whose cables carry 1 byte a second."""
    right: dict[str, object] = {"kind": "infiniband", "bandwidth": Rate(1.0), "latency": Seconds(0.0)}
    return Interconnect(**right | fields)  # type: ignore[arg-type]


def everywhere(of: Cluster) -> list[Place]:
    """A rank on each device of all nodes."""
    return [Place(node, device) for node in range(of.nodes) for device in range(len(of.devices))]
