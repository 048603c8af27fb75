"""The house's own rules: which imports are allowed, that a broken rule is seen, and that no imports form a cycle."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("conf", "data_prep", "train", "launch")
LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"

PLANTED = {
    "imports point down the floors": ("data_prep/interop.py", "import train.optim"),
    "hydra is known to conf.compose alone": ("conf/walk.py", "import omegaconf"),
    "deepspeed is known to train.engine alone": ("train/tracking/metrics.py", "import deepspeed"),
    "launch uses of train the plan alone": ("launch/guard.py", "from train.state import TrainState"),
    "what plans a run is torch-free, with all it uses": ("data_prep/interop.py", "import torch"),
    "transformers stays in train, and in data_prep in the tokenizer's room": (
        "data_prep/jobs.py",
        "import transformers",
    ),
}
"""Contract of pyproject.toml: a line that breaks it, and the file that the line is put into."""


def lint(folder: Path) -> tuple[int, str]:
    command = [sys.executable, "-c", LINT, "--no-cache"]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    return found.returncode, found.stdout + found.stderr


def test_every_contract_sees_its_violation(tmp_path: Path) -> None:
    for floor in FLOORS:
        shutil.copytree(ROOT / floor, tmp_path / floor, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    code, output = lint(tmp_path)
    assert code == 0, output
    for file, line in PLANTED.values():
        path = tmp_path / file
        path.write_text(f"{path.read_text()}\n\ndef _planted() -> None:\n    {line}\n")
    code, output = lint(tmp_path)
    assert code == 1
    kept = [name for name in PLANTED if f"{name} BROKEN" not in output]
    assert not kept, f"not seen as broken: {kept}\n{output}"
    assert f"Contracts: 0 kept, {len(PLANTED)} broken." in output, output


@pytest.fixture
def imports() -> grimp.ImportGraph:
    """Of all floors, the tests' and the benchmarks' own imports too; lazy ones and those for type checking included."""
    return grimp.build_graph(*FLOORS, "benchmarks", "tests", cache_dir=None)


def test_no_imports_form_a_cycle(imports: grimp.ImportGraph) -> None:
    assert [" <-> ".join(ring) for ring in cycles(imports)] == []


def test_no_rooms_form_a_cycle(imports: grimp.ImportGraph) -> None:
    """A room may use another one or be used by it, not both."""
    for room in sorted(imports.modules):
        if room.count(".") == 1 and room.startswith(FLOORS) and imports.find_children(room):
            imports.squash_module(room)
    assert [" <-> ".join(ring) for ring in cycles(imports)] == []


def cycles(graph: grimp.ImportGraph) -> Iterator[list[str]]:
    """Modules each of which imports, by itself or over others, every other one of its ring."""
    reached = {module: graph.find_upstream_modules(module) for module in graph.modules}
    seen: set[str] = set()
    for module in sorted(graph.modules):
        ring = {other for other in reached[module] if module in reached[other]} - {module}
        if ring and module not in seen:
            yield sorted(ring | {module})
        seen |= ring
