"""Reads the topology that NCCL writes (NCCL_TOPO_DUMP_FILE), as a cluster of one node.

Model
    `cpu` elements are NUMA nodes, drawn as sockets, each joined with each. `pci` elements are switches, or the slot of
    what they hold: a `gpu`, or a `nic` with one `net` for each port. A slot's rate is its speed in GT/s times its
    width, less what the encoding takes (PCIe 4.0 x16: 31.5 GB/s). An `nvlink` leads to the bus id of another GPU, of a
    processor, or of an NVSwitch, which becomes a vertex. `net` speeds are in Mb/s.

    NVLink rates, latencies and what joins the sockets are those of the shipped machine with this GPU; the file says
    none. Where a width is 0 or a speed unknown (virtual machines), 16 lanes and the shipped machine's rate are taken.

What it leaves out
    One cluster has one sort of NIC: slower ones than the fastest, often of another network, are dropped, and said. So
    are NVLinks to GPUs that the run did not use, and elements of kinds not named above.

Files come from others: entities and DTDs are refused, and size, depth and number of elements are bounded.
"""

import io
import re
from collections.abc import Iterator
from itertools import pairwise
from xml.etree.ElementTree import Element, ParseError

import defusedxml
from defusedxml.ElementTree import iterparse

from calibration import gpus
from simgd.errors import ClusterError, FileError
from simgd.topology import Cluster, Interconnect, Link, VertexKind
from simgd.units import Rate

#: A real file of 16 GPUs has a few hundred elements, ten deep.
MOST_BYTES, MOST_DEPTH, MOST_ELEMENTS, MOST_OF_A_KIND = 2**24, 64, 100_000, 256

#: Compute capability of the GPUs that machines are shipped of: what `sm` must be.
_SM = {"P100": 60, "V100": 70, "A100": 80, "H100": 90, "H200": 90}

#: PCI classes of what an NVLink leads to: a GPU, an NVSwitch, a processor (POWER).
_GPU, _NVSWITCH, _CPU = ("0x0302", "0x0300"), ("0x068000",), ("0x068001",)

_SPEED = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,3})?) GT/s(?: PCIe)?", re.ASCII)


def recognises(text: str) -> bool:
    """Say whether *text* is a file of this format, or another XML file."""
    return text.lstrip("\ufeff \t\r\n").startswith("<")


def tree(content: bytes, where: str) -> Element:
    """Return the root of a topology file; *where* names it in errors.

    Raises FileError with the line that is not XML, or with what no such file has.
    """
    if len(content) > MOST_BYTES:
        raise FileError(f"{where}: is larger than {MOST_BYTES // 2**20} MiB; a topology of one node is not")
    root: Element | None = None
    depth = count = 0
    try:
        events: Iterator[tuple[str, Element]] = iterparse(io.BytesIO(content), ("start", "end"), forbid_dtd=True)
        for event, element in events:
            root = element if root is None else root
            depth += 1 if event == "start" else -1
            count += 1
            if depth > MOST_DEPTH or count > 2 * MOST_ELEMENTS:
                raise FileError(
                    f"{where}: has elements more than {MOST_DEPTH} deep, or more than {MOST_ELEMENTS}; no node has"
                )
    except FileError:
        raise
    except defusedxml.DefusedXmlException:
        raise FileError(f"{where}: holds a DTD or entities, which NCCL never writes; they are refused") from None
    except ParseError as error:
        line, _ = error.position
        raise FileError(f"{where}: line {line}: is not XML: {str(error).partition(':')[0]}") from None
    except (ValueError, LookupError) as error:
        raise FileError(f"{where}: is not XML: {' '.join(str(error).split())[:80]}") from None
    if root is None:
        raise FileError(f"{where}: is empty")
    if root.tag != "system":
        raise FileError(f"{where}: its root is <{str(root.tag)[:40]}>; what NCCL_TOPO_DUMP_FILE writes has <system>")
    if root.get("version") != "1":
        raise FileError(f"{where}: version is {str(root.get('version'))[:20]!r}; this simgd reads version '1'")
    return root


def to_cluster(root: Element, where: str, machine: Cluster, name: str) -> Cluster:
    """Return the node that a topology file describes; *machine* is the shipped one with its GPU.

    Raises FileError with the element that is wrong.
    """
    return _Reader(root, where, machine).cluster(name)


class _Reader:
    """One file on its way to a cluster."""

    def __init__(self, root: Element, where: str, machine: Cluster) -> None:
        self.root = root
        self.where = where
        self.machine = machine
        self.left_out: list[str] = []
        found = self._numbered("gpu", "dev")
        if not found:
            raise FileError(f"{where}: holds no <gpu>; NCCL_TOPO_DUMP_FILE must be written by a run on GPUs")
        self.gpus = {id(gpu): f"gpu{place}" for place, gpu in enumerate(found)}
        self._check_sm(found)
        nets = self._numbered("net", "dev")
        speeds = {id(net): self._whole(net, "speed") for net in nets}
        self.speed = max(speeds.values(), default=0)
        kept = [net for net in nets if speeds[id(net)] == self.speed]
        if len(kept) < len(nets):
            self.left_out.append(f"{len(nets) - len(kept)} slower NICs")
        self.nics = {id(net): f"nic{place}" for place, net in enumerate(kept)}
        self.net_names = [net.get("name", "") for net in kept]
        self.vertices: dict[str, VertexKind] = dict.fromkeys(self.gpus.values(), "device")
        self.vertices |= dict.fromkeys(self.nics.values(), "nic")
        self.links: list[Link] = []
        self.bus: dict[str, str] = {}
        self._switches = 0

    def cluster(self, name: str) -> Cluster:
        """Return the cluster."""
        cpus = [cpu for cpu in self.root if cpu.tag == "cpu"]
        hosts = {cpu.get("host_hash") for cpu in cpus}
        if len(hosts) > 1:
            raise FileError(f"{self.where}: describes {len(hosts)} hosts; a cluster file describes one node")
        sockets = [cpu for cpu in cpus if self._holds(cpu)]
        for number, cpu in enumerate(sockets):
            socket = f"socket{number}"
            self.vertices[socket] = "socket"
            self.links += [gpus.link(self.machine, "socket", f"socket{other}", socket) for other in range(number)]
            for child in cpu:
                self._hang(child, socket, socket)
        self._nvlinks()
        unread = sorted(
            {str(e.tag) for e in self.root.iter()} - {"system", "cpu", "pci", "gpu", "nvlink", "nic", "net"}
        )
        if "xgmi" in unread:
            raise FileError(f"{self.where}: is of AMD GPUs (<xgmi>); none of them is known")
        if unread:
            self.left_out.append(f"elements {', '.join(unread)[:60]}")
        more = f"; left out: {', '.join(self.left_out)}" if self.left_out else ""
        try:
            return Cluster(
                name=name,
                device=self.machine.device,
                vertices=self.vertices,
                links=tuple(self.links),
                interconnect=self._interconnect(),
                description=f"{len(self.gpus)} {self.machine.device.name} in one node",
                source=f"NCCL's topology file; NVLink rates and latencies as of {self.machine.name}{more}",
            )
        except ClusterError as error:
            raise FileError(f"{self.where}: {error}") from None

    def _interconnect(self) -> Interconnect | None:
        like = self.machine.interconnect
        if not self.nics or like is None:
            return None
        return Interconnect(
            kind="infiniband" if self.net_names[0].startswith(("mlx", "ib", "hfi")) else "ethernet",
            bandwidth=Rate(self.speed * 1e6 / 8),
            latency=like.latency,
            ports=like.ports,
            source=f"speed of {self.net_names[0][:20]} in NCCL's topology file; latency and ports as of "
            f"{self.machine.name}",
        )

    # --- the PCIe tree -----------------------------------------------------------------------------------------

    def _hang(self, element: Element, below: str, socket: str) -> None:
        """Join what *element* holds to the vertex *below* which it stands."""
        if element.tag == "nic":
            # NICs without a slot of their own are virtual ones; they move data at their speed.
            like = gpus.link(self.machine, "pcie", "nic", below)
            self._hang_nic(element, below, Rate(self.speed * 1e6 / 8) if self.speed else like.bandwidth)
            return
        if element.tag != "pci" or not self._holds(element):
            return
        where = self._named(element, "busid")
        rate = self._rate(element, where)
        inner = [child for child in element if child.tag == "pci" and self._holds(child)]
        if inner:
            switch = f"pcie{self._switches}"
            self._switches += 1
            self.vertices[switch] = "pcie_switch"
            self._join(switch, below, rate)
            for child in inner:
                self._hang(child, switch, socket)
        for child in element:
            if child.tag == "gpu":
                self.bus[str(element.get("busid")).lower()] = self.gpus[id(child)]
                self.bus[f"socket of {self.gpus[id(child)]}"] = socket
                self._join(self.gpus[id(child)], below, rate)
            elif child.tag == "nic":
                self._hang_nic(child, below, rate)

    def _hang_nic(self, nic: Element, below: str, rate: Rate) -> None:
        for net in nic:
            if id(net) in self.nics:
                self._join(self.nics[id(net)], below, rate)

    def _join(self, a: str, b: str, rate: Rate) -> None:
        like = gpus.link(self.machine, "pcie", a, b)
        self.links.append(Link(ends=(a, b), kind="pcie", bandwidth=rate, latency=like.latency))

    def _holds(self, element: Element) -> bool:
        """Say whether a GPU or a NIC that is kept stands in *element*."""
        return any(id(each) in self.gpus or id(each) in self.nics for each in element.iter())

    def _rate(self, slot: Element, where: str) -> Rate:
        width = self._whole(slot, "link_width") or 16
        found = _SPEED.fullmatch(slot.get("link_speed", ""))
        if found is None:
            return gpus.link(self.machine, "pcie", "slot", "switch").bandwidth
        speed = float(found[1])
        if not 0 < speed <= 256 or width > 32:
            raise FileError(f"{where}: {speed:g} GT/s on {width} lanes is no PCIe link")
        # 8b/10b encoding up to PCIe 2.0, 128b/130b since 3.0
        return Rate(speed * 1e9 * width * (0.8 if speed <= 5 else 128 / 130) / 8)

    # --- NVLink ------------------------------------------------------------------------------------------------

    def _nvlinks(self) -> None:
        counts: dict[tuple[str, str], int] = {}
        missing = switches = 0
        for gpu in self.root.iter("gpu"):
            mine = self.gpus[id(gpu)]
            for element in gpu.iter("nvlink"):
                where = f"{self._named(gpu, 'dev')}: <nvlink>"
                target, kind = element.get("target", "").lower(), element.get("tclass", "")
                count = self._whole(element, "count")
                other = self.bus.get(target)
                if other is None and kind in _NVSWITCH:
                    other = self.bus[target] = f"nvswitch{switches}"
                    switches += 1
                    self.vertices[other] = "nvswitch"
                elif other is None and kind in _CPU:
                    other = self.bus[f"socket of {mine}"]
                elif other is None and kind.startswith(_GPU):
                    missing += count
                    continue
                if other is None or other == mine or not 0 < count <= 64:
                    shown = f"target {target[:20]!r}, class {kind[:12]!r}, count {count}"
                    raise FileError(f"{where}: {shown} leads to no GPU, NVSwitch or processor")
                counts[mine, other] = counts.get((mine, other), 0) + count
        if missing:
            self.left_out.append(f"{missing} NVLinks to GPUs that are not in the file")
        for (a, b), count in counts.items():
            if (back := counts.get((b, a), count)) != count:
                raise FileError(f"{self.where}: {a} has {count} NVLinks to {b}, but {b} has {back} to {a}")
            if (b, a) not in counts or a < b:
                self.links.append(gpus.link(self.machine, "nvlink", a, b, count))
        totals = dict.fromkeys(self.gpus.values(), 0)
        for (a, _), count in counts.items():
            totals[a] += count
        for name, total in totals.items():
            if total > gpus.nvlinks(self.machine) > 0:
                device = self.machine.device.name
                raise FileError(
                    f"{self.where}: {name} has {total} NVLinks; a {device} has {gpus.nvlinks(self.machine)}"
                )

    # --- attributes --------------------------------------------------------------------------------------------

    def _named(self, element: Element, attribute: str) -> str:
        return f"{self.where}: <{element.tag} {attribute}={element.get(attribute, '')[:20]!r}>"

    def _whole(self, element: Element, attribute: str) -> int:
        text = element.get(attribute, "0")
        if not (text.isascii() and text.isdecimal() and len(text) < 10):
            where = self._named(element, "busid" if element.tag == "pci" else "dev")
            raise FileError(f"{where}: {attribute} is {text[:20]!r}; it must be a whole number")
        return int(text)

    def _numbered(self, tag: str, attribute: str) -> list[Element]:
        """Return all elements of that *tag*, in the order of their numbers; each number stands once."""
        found = sorted(self.root.iter(tag), key=lambda element: self._whole(element, attribute))
        if len(found) > MOST_OF_A_KIND:
            raise FileError(f"{self.where}: holds {len(found)} <{tag}>; no node has more than {MOST_OF_A_KIND}")
        for one, other in pairwise(found):
            if self._whole(one, attribute) == self._whole(other, attribute):
                number = one.get(attribute, "")[:20]
                raise FileError(f"{self.where}: <{tag} {attribute}={number!r}> stands twice; a file describes one node")
        return found

    def _check_sm(self, found: list[Element]) -> None:
        model = self.machine.device.name.split()[1]
        for gpu in found:
            sm = self._whole(gpu, "sm")
            if model in _SM and sm and sm != _SM[model]:
                raise FileError(f"{self._named(gpu, 'dev')}: sm is {sm}; that of {model} is {_SM[model]}")
