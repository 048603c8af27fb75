"""CONTRIBUTING's table, kept: one new part per row, planted in a copy of the tree, goes through every command.

The parts are in tests/adding/parts, as a contributor would write them. What is edited beside them is what the table
says: one word in a union or a Literal.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ROOT / "tests" / "adding" / "parts"

FILES = {
    "source.py": "data_prep/sources/planted.py",
    "template_set.jsonl": "data_prep/template_sets/planted.jsonl",
    "data.yaml": "conf/data/planted.yaml",
    "family.py": "train/families/smollm3.py",
    "model.yaml": "conf/model/planted.yaml",
    "tuning.py": "train/tuning/norms.py",
    "attention.py": "train/attention/planted.py",
    "objective.py": "train/objectives/focal.py",
}
"""Part -> where a contributor puts it."""
YAML = {"conf/tuning/norms.yaml": "method: norms\n", "conf/attention/planted.yaml": "backend: planted\n"}
WORDS = {
    "conf/schema/data.py": ('Format = Literal["alpaca"', 'Format = Literal["planted", "alpaca"'),
    "conf/schema/run.py": ('backend: Literal["auto"', 'backend: Literal["planted", "auto"'),
    "conf/schema/methods.py": ("Tuning = FullTuning |", "Tuning = NormsTuning | FullTuning |"),
    "conf/schema/objectives.py": ("\nObjective = SftObjective\n", "\nObjective = SftObjective | FocalObjective\n"),
}
"""The one word that a new part adds to a list of names that are allowed in a config."""
DATACLASSES = {
    "method.txt": ("conf/schema/methods.py", "\n\nTuning = "),
    "objective_settings.txt": ("conf/schema/objectives.py", "\n\nObjective = "),
}
"""Settings of a part -> the file they go into, and the line they stand before."""
RUN = (
    "data=planted", "model=planted", "tuning=norms", "attention=planted", "objective.kind=focal", "objective.gamma=1.5",
    "zero=2", "batch.global_size=4", "batch.micro_size=2", "schedule.max_steps=3", "optim.lr=0.01",
    "evaluation.generate_rows=2", "evaluation.max_new_tokens=4", "tracker.wandb=disabled", "name=planted",
)  # fmt: skip


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with every part planted, and a file of records in the new format."""
    root = tmp_path_factory.mktemp("adding") / "tree"
    for floor in ("conf", "data_prep", "train", "launch"):
        shutil.copytree(ROOT / floor, root / floor, ignore=shutil.ignore_patterns("__pycache__"))
    for part, place in FILES.items():
        assert not (root / place).exists(), place
        shutil.copy(PARTS / part, root / place)
    for place, content in YAML.items():
        (root / place).write_text(content)
    for part, (place, before) in DATACLASSES.items():
        replaced(root / place, before, f"\n\n\n{(PARTS / part).read_text().strip()}{before}")
    for place, (old, new) in WORDS.items():
        replaced(root / place, old, new)
    (root / "talk.jsonl").write_text("".join(json.dumps(record(number)) + "\n" for number in range(80)))
    return root


def record(number: int) -> dict[str, Any]:
    word = ("red", "green", "blue", "grey")[number % 4]
    return {"ask": f"Say {word} {number} times", "reply": f"{word} {number}", "sure": 1.0 - number % 3 / 4}


def replaced(path: Path, old: str, new: str) -> None:
    content = path.read_text()
    assert content.count(old) == 1, f"{path.name}: {content.count(old)} times {old!r}"
    path.write_text(content.replace(old, new))


def call(root: Path, *words: str, launcher: tuple[str, ...] = ()) -> str:
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONSAFEPATH": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", *launcher, *words]
    found = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=240)
    assert found.returncode == 0, f"{' '.join(words)}\n{found.stdout[-3000:]}\n{found.stderr[-3000:]}"
    return found.stdout + found.stderr


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tree: Path) -> Path:
    """The folder of a run of all the new parts together, on two ranks."""
    call(tree, "data_prep", *RUN)
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node=2")
    call(tree, "-m", "train", *RUN, launcher=torchrun)
    return tree / "outputs" / "planted"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_source_format_and_a_template_set_are_one_file_each(tree: Path, run: Path) -> None:
    shown = call(tree, "data_prep.preview", *RUN, "rows=2").replace("│", "")
    assert "Asked: Say" in shown or "Q Say" in shown
    (manifest,) = (json.loads(path.read_text()) for path in (tree / "corpora").glob("*/MANIFEST.json"))
    assert manifest["version"] == 3, "answers that count less than 1 make a corpus with weights"
    kept = manifest["sources"]["talk"]["splits"]
    assert kept["train"]["rows"] + kept["validation"]["rows"] == 80


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_family_a_method_and_a_backend_are_trained_and_reported(run: Path) -> None:
    start = next(line for line in lines(run / "events.jsonl") if line["kind"] == "start")
    assert start["attention"] == "planted"
    assert start["trainable_parameters"] == (4 * 2 + 1) * 32
    steps = [line for line in lines(run / "metrics.jsonl") if "train/focal" in line]
    assert len(steps) == 3
    assert all(0 < line["train/focal"] < line["train/loss"] for line in steps)
    assert any("eval/talk/loss" in line for line in lines(run / "metrics.jsonl"))


@pytest.mark.timeout(600)
def test_the_plan_knows_the_new_family_and_method(tree: Path) -> None:
    found = json.loads(call(tree, "launch", "plan", *RUN, "cluster.gpus_per_node=2", "--json"))
    assert "smollm3" in json.dumps(found) or found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_verify_proves_the_new_objective_unedited(tree: Path, run: Path) -> None:
    assert "exact step holds" in call(tree, "train.verify", *RUN)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_run_is_exported_and_answers(tree: Path, run: Path) -> None:
    call(tree, "train.evaluate", f"run_dir={run}")
    call(tree, "train.export", f"run_dir={run}")
    call(tree, "train.chat", f"model={run / 'export'}", "prompt=Say red 3 times", "max_new_tokens=4")
