"""What the README shows is run: each command must succeed, and print what stands below it where anything does."""

import re
from pathlib import Path

import pytest

from simgd import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def examples() -> list[tuple[str, str]]:
    """Return (command, expected output) of every console block."""
    found: list[tuple[str, str]] = []
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which the README's paths exist and what its commands write stays out of the repository."""
    made = tmp_path_factory.mktemp("readme")
    for name in ("studies", "tests"):
        (made / name).symlink_to(ROOT / name)
    return made


@pytest.mark.parametrize(("command", "output"), examples(), ids=lambda text: text[:40])
def test_an_example_runs_and_prints_what_the_readme_shows(command, output, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    program, *arguments = command.split()
    assert program == "simgd"
    assert cli.run(arguments) == 0
    printed = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines())
    if output.strip():
        assert printed.strip() == output.strip()


def test_the_readme_has_its_two_commands_each_on_one_line_and_the_checks_run_the_second():
    commands = re.findall(r"^    (python3 -m venv .*)$", README, re.MULTILINE)
    assert len(commands) == 2
    assert commands[0].endswith("simgd demo")
    assert commands[1].endswith("-m pytest")
    assert "README.md" in (ROOT / ".ci/run").read_text()


def test_the_tree_in_the_readme_names_files_that_exist():
    folder, names = "", []
    for line in README.splitlines():
        if re.match(r"    (\w+)/ ", line):
            folder = line.split()[0]
        elif re.match(r"      \w+(\.py|/) ", line):
            names.append(folder + line.split()[0])
    assert len(names) >= 20
    for name in names:
        assert (ROOT / name).exists(), name
