"""Finds what a name or a file stands for: workloads, clusters, profiles.

Workloads and clusters are shipped with simgd, profiles with calibration, which makes them. A name may also be the path
of a file.
"""

from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files as resources
from importlib.resources.abc import Traversable
from typing import TypeVar

import msgspec

from simgd import fabrics, files
from simgd.errors import ClusterError, FileError, unknown
from simgd.profile import Profile
from simgd.topology import Cluster
from simgd.workload import Workload

T = TypeVar("T")

_FOLDERS: dict[str, tuple[str, str, str]] = {
    "workload": ("simgd", "data/workloads", ".toml"),
    "cluster": ("simgd", "data/clusters", ".toml"),
    "profile": ("calibration", "profiles", ".json"),
}


def _folder(what: str) -> Traversable:
    package, folder, _ = _FOLDERS[what]
    place: Traversable = resources(package)
    for part in folder.split("/"):
        place = place / part
    return place


@lru_cache
def names(what: str) -> tuple[str, ...]:
    """Return the names of all shipped workloads, clusters or profiles."""
    suffix = _FOLDERS[what][2]
    return tuple(
        sorted(item.name.removesuffix(suffix) for item in _folder(what).iterdir() if item.name.endswith(suffix))
    )


def is_file(name: str) -> bool:
    """Say whether *name* is meant as the path of a file."""
    return name.endswith((".toml", ".json", ".json.gz", ".csv")) or "/" in name


def _shipped(what: str, name: str, kind: type[T]) -> T:
    if name not in names(what):
        raise unknown(what, name, names(what), f"`simgd list {what}s` shows all")
    suffix = _FOLDERS[what][2]
    content = (_folder(what) / f"{name}{suffix}").read_bytes()
    return files.parse(content, kind, where=f"{name}{suffix}", toml=suffix == ".toml")


def text(what: str, name: str) -> str:
    """Return the shipped file of that name as it stands, with its units and comments."""
    return (_folder(what) / f"{name}{_FOLDERS[what][2]}").read_text(encoding="utf-8")


@lru_cache(maxsize=64)
def _workload(name: str) -> Workload:
    return _shipped("workload", name, Workload)


def workload(name: str) -> Workload:
    """Return a workload by its name or file."""
    if is_file(name):
        return files.read(name, Workload)
    return _workload(name)


def _split_nodes(name: str) -> tuple[str, str, str]:
    """Split ``NAME:NODES``; a colon that belongs to a path (``C:/lab.toml``) splits nothing."""
    if is_file(name):
        return name, "", ""
    base, colon, count = name.rpartition(":")
    return (base, colon, count) if is_file(base) else name.partition(":")


def cluster(name: str) -> Cluster:
    """Return a cluster by its name or file, perhaps with ``:NODES``; of a profile's file, the one it was measured on.

    Raises ClusterError if the number of nodes is none.
    """
    base, colon, count = _split_nodes(name)
    if not is_file(base):
        found = _shipped("cluster", base, Cluster)
    elif base.endswith(".toml"):
        found = files.read(base, Cluster)
    else:
        found = files.read(base, Profile).cluster
    if not colon:
        return found
    if not (count.isascii() and count.isdecimal() and int(count[:9]) > 0 and len(count) < 8):
        raise ClusterError(f"cluster {name[:60]!r}: {count[:40]!r} is not a number of nodes; write {base}:4")
    return fabrics.resized(found, int(count))


def profile(name: str) -> Profile:
    """Return a profile by its name or file."""
    if is_file(name):
        return files.read(name, Profile)
    return _shipped("profile", name, Profile)


def profile_for(on: str, cluster_: Cluster, given: Sequence[str]) -> Profile:
    """Return the costs for the machine named *on*: the *given* profiles, the later winning entry by entry, else the
    shipped one of that name, else a shipped one of the same device without its collectives' curves, else what the
    cluster's own data sheet says.

    Raises FileError if a profile speaks of another device than the cluster has.
    """
    if given:
        profiles = [profile(name) for name in given]
        for name, each in zip(given, profiles, strict=True):
            _check_device(name, each, cluster_)
        merged = profiles[0]
        for later in profiles[1:]:
            merged = merged.updated(later)
        return merged
    path = base = _split_nodes(on)[0]
    if is_file(path):
        if not path.endswith(".toml"):
            return profile(path)
        base = cluster_.name
    if base in names("profile"):
        found = profile(base)
        if is_file(path) and _data_sheet(found.cluster) != _data_sheet(cluster_):
            raise FileError(
                f"{on}: is called {base!r} but has another device than that one; give it a name of its own, or a "
                "--profile"
            )
        return found
    for name in names("profile"):
        if _data_sheet(profile(name).cluster) == _data_sheet(cluster_):
            # Another machine with the same device: what was measured between devices stays with the machine it is of.
            return msgspec.structs.replace(profile(name), name=f"{name}, costs of its device", curves=(), fits=())
    return Profile(name=f"nominal {cluster_.name}", cluster=cluster_)


def _data_sheet(cluster_: Cluster) -> tuple[object, ...]:
    device = cluster_.device
    return tuple(getattr(device, name) for name in device.__struct_fields__ if name != "source")


def _check_device(name: str, profile_: Profile, cluster_: Cluster) -> None:
    """Compare devices by name: a laboratory may state its own rates for the same device."""
    theirs, ours = profile_.cluster.device.name, cluster_.device.name
    if theirs != ours:
        raise FileError(
            f"{name}: speaks of {theirs}, but cluster {cluster_.name!r} has {ours}; give the profile of that device"
        )
