"""slurm/environment.sh, which all scripts source: a setup, secrets from a file, a container, a missing python."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.torchrun import ROOT

SHOWN = 'source "$1/slurm/environment.sh"; printf "%s\\n" "${python[@]}"; echo "$FROM_FILE|$FROM_SETUP|$PYTHONPATH"'


def source(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """environment.sh in a folder that is not the repository, and what it has set."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CORRAL_", "SLURM_"))}
    environment = {**kept, "CORRAL_LOCAL_DIR": str(folder / "local"), "FROM_FILE": "", "FROM_SETUP": "", **variables}
    command = ["bash", "-euo", "pipefail", "-c", SHOWN, "bash", str(ROOT)]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_setup_and_file_come_before_python(tmp_path: Path) -> None:
    (tmp_path / "site env").write_text("FROM_FILE='a secret'\n")
    python = {"CORRAL_PYTHON": sys.executable, "PYTHONPATH": "/before"}
    setup = {"CORRAL_SETUP": "FROM_SETUP=one\nexport FROM_SETUP=$FROM_SETUP-two"}
    done = source(tmp_path, **python, **setup, CORRAL_ENV_FILE=str(tmp_path / "site env"))
    assert done.stdout.splitlines() == [sys.executable, f"a secret|one-two|{ROOT}:/before"], done.stderr


def test_a_failing_setup_ends_the_job(tmp_path: Path) -> None:
    done = source(tmp_path, CORRAL_PYTHON=sys.executable, CORRAL_SETUP="false\ntrue")
    assert done.returncode == 1
    assert done.stdout == ""


def test_a_host_without_python_runs_all_of_it_in_the_container(tmp_path: Path) -> None:
    """The container is played: a command that says that it was entered, and runs the rest with a python of its own."""
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "python3").symlink_to(sys.executable)
    enter = tmp_path / "enter"
    enter.write_text(f'#!/bin/bash\necho "$*" >>{tmp_path}/entered\nshift\nPATH={inside} exec "$@"\n')
    enter.chmod(0o755)
    done = source(tmp_path, CORRAL_CONTAINER=f"{enter} corral.sif")
    assert done.stdout.splitlines()[:3] == [str(enter), "corral.sif", "python3"], done.stderr
    assert (tmp_path / "entered").read_text().startswith("corral.sif python3 -m conf.disk.folders ")
    assert (tmp_path / "local").is_dir()


@pytest.mark.parametrize(
    "variables", [{"CORRAL_PYTHON": "/no/python"}, {"CORRAL_CONTAINER": "no-such-apptainer exec image"}]
)
def test_what_is_missing_is_named(tmp_path: Path, variables: dict[str, str]) -> None:
    done = source(tmp_path, **variables)
    assert done.returncode == 66
    assert f"there is no {next(iter(variables.values())).split()[0]}" in done.stderr
    assert "CORRAL_CONTAINER" in done.stderr
