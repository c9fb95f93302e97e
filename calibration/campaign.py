"""A study's `validation.toml`: which runs it has, what predicts each, and what calibration has seen of them."""

from pathlib import Path

from calibration.validation import Measured, read_runs
from simgd import catalogue, files
from simgd.errors import FileError
from simgd.files import Document, Value
from simgd.predict import Machine


class Entry(Value, frozen=True, kw_only=True):
    """Files of runs, the profiles that predict them (the later wins), and the cluster where it is not the profile's.

    `own_compute`: see `validation.Measured`. `calibrated_on` names schedules of these runs that calibration has seen;
    `held_out` false says that it saw all.
    """

    files: tuple[str, ...]
    profile: tuple[str, ...]
    cluster: str = ""
    held_out: bool = True
    own_compute: bool = False
    calibrated_on: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.files or not self.profile:
            raise FileError("runs: needs at least one file and one profile")


class Campaign(Document, frozen=True, kw_only=True, tag="simgd validation"):
    """All runs of a study."""

    title: str = ""
    runs: tuple[Entry, ...]

    def __post_init__(self) -> None:
        if not self.runs:
            raise FileError("validation: has no [[runs]]")


def read(path: str) -> list[Measured]:
    """Return the runs that a validation.toml lists; its names of files are relative to it.

    Raises a SimgdError for a file that is missing or cannot be what it should be.
    """
    campaign = files.read(path, Campaign)
    return [_measured(entry, Path(path).parent) for entry in campaign.runs]


def _measured(entry: Entry, folder: Path) -> Measured:
    names = [_named(name, folder) for name in entry.profile]
    machine = machine_of(names, _named(entry.cluster, folder) if entry.cluster else None)
    return Measured(
        runs=[run for name in entry.files for run in read_runs(str(folder / name))],
        machine=machine,
        profile=", ".join(Path(name).name for name in entry.profile),
        held_out=entry.held_out,
        own_compute=entry.own_compute,
        seen=frozenset(entry.calibrated_on),
    )


def machine_of(profiles: list[str], cluster: str | None) -> Machine:
    """Return the machine of *profiles*, on *cluster* if it is another one than they were measured on."""
    found = catalogue.cluster(cluster) if cluster else catalogue.profile(profiles[0]).cluster
    return Machine(found, catalogue.profile_for(found.name, found, profiles))


def _named(name: str, folder: Path) -> str:
    return str(folder / name) if catalogue.is_file(name) else name
