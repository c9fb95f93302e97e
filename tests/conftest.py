"""What all tests share: the command line in process, in a folder of its own."""

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from simgd import cli

# Speed has its own benchmarks: a slow machine must not fail a test.
settings.register_profile("simgd", deadline=None)
settings.load_profile("simgd")


@dataclass(frozen=True)
class Ran:
    """What a command left behind: status, standard output, standard error."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.status == 0, self.err
        return json.loads(self.out)


@pytest.fixture
def simgd(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Ran]:
    """Run ``simgd ...`` as a shell would, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(line: str) -> Ran:
        capsys.readouterr()
        status = cli.run(shlex.split(line))
        return Ran(status, *capsys.readouterr())

    return run
