"""The checkpoint from before an incident stays while it is open, and those that a rollback undoes go."""

from __future__ import annotations

from pathlib import Path

import pytest

from train.checkpoint.commit import prune, withdraw
from train.checkpoint.layout import folder_of, steps_before, steps_on_disk


def on_disk(run_dir: Path, *steps: int) -> Path:
    for step in steps:
        folder_of(run_dir, step).mkdir(parents=True)
    return run_dir


@pytest.mark.parametrize(
    ("incident", "order"), [(0, [9, 7, 4, 2]), (6, [4, 2]), (8, [4, 2, 7]), (5, [2, 4]), (3, [2]), (2, [])]
)
def test_to_which_checkpoints_a_run_goes_back(tmp_path: Path, incident: int, order: list[int]) -> None:
    """That of the step right before comes last: the bad step was the first to compute with its weights."""
    assert steps_before(on_disk(tmp_path, 2, 4, 7, 9), incident) == order


@pytest.mark.parametrize(("incident", "left"), [(0, [9, 7]), (5, [9, 7, 2]), (6, [9, 7, 4]), (9, [9, 7]), (2, [9, 7])])
def test_pruning_leaves_the_one_from_before(tmp_path: Path, incident: int, left: list[int]) -> None:
    prune(on_disk(tmp_path, 2, 4, 7, 9), 2, incident)
    assert steps_on_disk(tmp_path) == left


def test_what_a_rollback_undoes_is_removed(tmp_path: Path) -> None:
    withdraw(on_disk(tmp_path, 2, 4, 7, 9), 4)
    assert steps_on_disk(tmp_path) == [4, 2]
    assert (tmp_path / "checkpoints" / "LATEST").read_text() == "step-00000004\n"
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "LATEST", "step-00000002", "step-00000004",
    ]  # fmt: skip
