"""On what something was measured: hosts, library, versions, command, commit and date."""

import msgspec

from simgd.files import Value


class Host(Value, frozen=True, kw_only=True):
    """One machine of the measurement, described and not named."""

    processor: str
    cores: int
    memory_bytes: float
    kernel: str
    gpus: tuple[str, ...] = ()


class Environment(Value, frozen=True, kw_only=True):
    """On what it took place: hosts, the host of each rank, versions and settings, the launcher and the library."""

    hosts: tuple[Host, ...]
    host_of_rank: list[int]
    library: str
    launcher: str
    versions: dict[str, str]
    settings: dict[str, str] = msgspec.field(default_factory=dict)
    command: str = ""
    commit: str = ""
    date: str = ""
