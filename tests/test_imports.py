"""Who imports whom: `predict` needs neither torch nor MPI nor matplotlib, and lines of modules import downwards."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

HEAVY = ("torch", "mpi4py", "matplotlib", "transformers", "torch_geometric")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["predict", "--help"],
        ["predict", "mlp", "--on", "dgx1-p100"],
        ["predict", "mlp", "--on", "dgx1-p100", "--json"],
        ["explain", "mlp", "--on", "dgx1-p100"],
        ["list", "workloads"],
        ["show", "dgx1-p100"],
    ],
    ids=" ".join,
)
def test_nothing_heavy_is_imported(arguments):
    code = f"""
import sys
from simgd import cli
status = cli.run({arguments!r})
found = [name for name in {HEAVY!r} if name in sys.modules]
sys.exit(f"{{status}} {{found}}" if status or found else 0)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_help_needs_no_simulator():
    """What is slow to import is imported by the command that needs it."""
    code = """
import sys
from simgd import cli
cli.run(["--help"])
sys.exit(", ".join(name for name in ("simpy", "networkx", "numpy", "simgd.simulator") if name in sys.modules) or 0)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_the_command_is_installed_and_a_module():
    by_name = subprocess.run([Path(sys.executable).parent / "simgd", "--help"], capture_output=True, check=True)
    by_module = subprocess.run([sys.executable, "-m", "simgd", "--help"], capture_output=True, check=True)
    assert by_name.stdout.splitlines()[1:] == by_module.stdout.splitlines()[1:]


def test_a_bad_command_ends_with_status_2_and_no_traceback():
    ran = subprocess.run(
        [sys.executable, "-m", "simgd", "predict", "nothing"], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("simgd: ")
    assert ran.stderr.count("\n") == 1


def test_a_reader_that_stops_reading_is_no_error():
    line = f"{sys.executable} -m simgd show resnet50 | head -1"
    ran = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
    assert ran.stdout.startswith("resnet50: ")
    assert ran.stderr == ""


def test_somebody_elses_executor_is_refused(tmp_path):
    (tmp_path / "executor.py").write_text("")
    code = "import sys; from simgd import cli; sys.exit(cli.run(['list', 'workloads']))"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert ran.returncode == 2
    assert ran.stderr.startswith("simgd: package 'executor' is not simgd's but ")
    assert ran.stderr.count("\n") == 1


def test_modules_import_only_from_lines_below_their_own():
    ran = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert ran.returncode == 0, ran.stdout
    assert "0 broken" in ran.stdout
