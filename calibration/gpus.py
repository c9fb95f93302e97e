"""What is known of a GPU by its name: the data sheet and the links of the shipped machine that has it.

Topologies that other tools write name neither the GPU's rates nor those of its links. A name is the first word of a
shipped device (`v100`: that of the first shipped machine with one) or its first two (`v100-sxm3`).
"""

import msgspec

from simgd import catalogue
from simgd.errors import FileError, unknown
from simgd.topology import Cluster, Link, LinkKind


def known() -> dict[str, Cluster]:
    """Return the shipped machine that stands for each name of a GPU."""
    found: dict[str, Cluster] = {}
    for name in catalogue.names("cluster"):
        cluster = catalogue.cluster(name)
        if cluster.device.kind == "gpu":
            model, form, *_ = (*cluster.device.name.lower().removeprefix("nvidia ").split(), "")
            found.setdefault(model, cluster)
            if form:
                found.setdefault(f"{model}-{form}", cluster)
    return found


def machine(where: str, gpu: str | None) -> Cluster:
    """Return the shipped machine with the GPU that the user named beside the file *where*."""
    machines = known()
    if gpu is None:
        raise FileError(
            f"{where}: does not say which GPU it is of; write {where}:gpu=NAME, one of {', '.join(machines)}"
        )
    if gpu.lower() not in machines:
        error = unknown(f"{where}: gpu", gpu, machines, f"known are {', '.join(machines)}")
        raise FileError(str(error))
    return machines[gpu.lower()]


def nvlinks(machine: Cluster) -> int:
    """Return how many NVLinks one GPU of a shipped machine has."""
    first = machine.devices[0]
    return sum(link.count for link in machine.links if link.kind == "nvlink" and first in link.ends)


def link(machine: Cluster, kind: LinkKind, a: str, b: str, count: int = 1) -> Link:
    """Return *count* cables between *a* and *b*, nominally as those of that *kind* in a shipped *machine*."""
    like = next(each for each in machine.links if each.kind == kind)
    return msgspec.structs.replace(like, ends=(a, b), count=count)
