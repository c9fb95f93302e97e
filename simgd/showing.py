"""What `simgd show` shows: finds everything that a name or a file stands for."""

from collections.abc import Sequence

from rich.console import RenderableType
from rich.text import Text

from simgd import catalogue, files, profilereport, report, runreport, simgrid
from simgd.errors import ClusterError, FileError, SimgdError, UnknownNameError, unknown
from simgd.fabrics import Fabric
from simgd.network import Network
from simgd.profile import Profile
from simgd.run import Run
from simgd.schedule import Schedule, to_text
from simgd.schedules import NAMES, parse
from simgd.topology import Cluster
from simgd.workload import Workload

Shown = Workload | Cluster | Profile | Schedule | Run | str

_FORMATS: dict[str, type[Workload] | type[Cluster] | type[Profile] | type[Schedule] | type[Run]] = {
    "simgd workload": Workload,
    "simgd cluster": Cluster,
    "simgd profile": Profile,
    "simgd schedule": Schedule,
    "simgd run": Run,
}


def find(name: str) -> tuple[Shown, ...]:
    """Return what *name* stands for; a cluster comes with its shipped profile.

    Raises UnknownNameError with the nearest name, or FileError for a file of another format.
    """
    if catalogue.is_file(name):
        return (_read(name),)
    base = name.partition(":")[0]
    if any(base == known.partition(":")[0] for known in NAMES) and ":" not in name:
        return (_described(name),)
    if base in catalogue.names("workload"):
        return (catalogue.workload(base),)
    if base in catalogue.names("cluster"):
        profiles = [catalogue.profile(base)] if base in catalogue.names("profile") else []
        return (catalogue.cluster(name), *profiles)
    if base in catalogue.names("profile"):
        return (catalogue.profile(base),)
    try:
        parse(name)
    except UnknownNameError:
        known = [*catalogue.names("workload"), *catalogue.names("cluster"), *NAMES]
        raise unknown(
            "name", name, known, "`simgd list workloads`, `clusters`, `schedules` or `profiles` shows what there is"
        ) from None
    return (_described(name),)


def _described(name: str) -> str:
    family = name.partition(":")[0]
    lines = [f"{known}: {text}" for known, text in NAMES.items() if known.partition(":")[0] == family]
    return "\n".join([*lines, "`simgd schedule NAME --workload W --out S.json` writes one, `simgd show` its ops"])


def _read(name: str) -> Shown:
    content = files.read_bytes(name)
    toml = name.endswith(".toml")
    raw = files.parse(content, dict, where=name, toml=toml)
    kind = _FORMATS.get(str(raw.get("format")))
    if kind is None:
        found = f"holds {str(raw['format'])[:60]!r}" if "format" in raw else "has no `format`"
        raise FileError(f"{name}: {found}; `simgd show` shows {', '.join(_FORMATS)}")
    return files.convert(raw, kind, where=name)


def drawn(name: str, values: Sequence[Shown]) -> Cluster | Profile:
    """Return what of *values* a picture shows: a cluster, or a profile by itself if it holds times, else its cluster.

    Raises ClusterError where there is nothing to draw.
    """
    for value in values:
        if isinstance(value, Cluster):
            return value
        if isinstance(value, Profile):
            timed = value.fits or value.curves or value.layers or value.point_to_point
            return value if timed else value.cluster
    raise ClusterError(f"{name}: only a cluster or a profile can be drawn")


def as_file(name: str, values: Sequence[Shown]) -> str:
    """Return the first of *values* as the TOML that people start from."""
    value = values[0]
    for what, kind in (("workload", Workload), ("cluster", Cluster)):
        if isinstance(value, kind) and name in catalogue.names(what):
            return catalogue.text(what, name)
    if isinstance(value, (Workload, Cluster)):
        return files.to_toml(value).decode()
    raise SimgdError(f"{name}: only workloads and clusters are TOML files; profiles and schedules are JSON")


def as_platform(name: str, values: Sequence[Shown]) -> str:
    """Return the cluster among *values*, or that of a profile, as a platform file of SimGrid."""
    for value in values:
        if isinstance(value, (Cluster, Profile)):
            return simgrid.platform(value if isinstance(value, Cluster) else value.cluster)
    raise ClusterError(f"{name}: only a cluster or a profile is a platform for SimGrid")


def table(value: Shown, among: Sequence[Shown] = ()) -> RenderableType:
    """Return *value* for a terminal; a cluster with the rates of the profile *among* what is shown."""
    match value:
        case Workload():
            return report.workload(value)
        case Cluster():
            return report.cluster(value, _fabric(value, among))
        case Profile():
            return profilereport.profile(value)
        case Run():
            return runreport.run(value)
        case Schedule():
            return Text(to_text(value) + f"digest {value.digest}")
        case str():
            return Text(value)


def _fabric(cluster: Cluster, among: Sequence[Shown]) -> Fabric | None:
    if cluster.size == 1:
        return None
    profiles = [value for value in among if isinstance(value, Profile)]
    profile = profiles[0] if profiles else Profile(name="nominal", cluster=cluster)
    return Network(cluster, profile).fabric(cluster.size)
