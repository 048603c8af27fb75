"""``compute.reproducible``: real runs on 1, 2 and 4 ranks end with the same bits, and without it they do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.commands import call, lines, tiny_run, train

DETERMINISTIC = ("debug=deterministic", "compute.threads=1", "evaluation.at_end=false", "schedule.max_steps=6")
REPRODUCIBLE = (*DETERMINISTIC, "compute.reproducible=true")
LORA = ("tuning=lora", "zero=3", "model.recompute=full", "model.dtype=bf16")
FULL = ("zero=2", "batch.global_size=7")
"""Seven rows in micro-batches of two: the last is half full, and on four ranks some have none."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("reproducible")
    code, output = call("data_prep", *tiny_run(root, "x"))
    assert code == 0, output
    return root


def ended(folder: Path, name: str, world: int, *more: str) -> dict[str, Any]:
    """What a run leaves that could depend on the number of ranks."""
    code, output = train(world, *tiny_run(folder, name, *more), timeout=400)
    assert code == 0, output
    run = folder / name
    code, fingerprint = call("train.fingerprint", f"run_dir={run}")
    assert code == 0, fingerprint
    assert "repeats" in [line["kind"] for line in lines(run / "events.jsonl")]
    metrics = [line for line in lines(run / "metrics.jsonl") if "train/loss" in line]
    return {
        "fingerprint": fingerprint.strip(),
        "ledger": lines(run / "ledger.jsonl"),
        "figures": [(line["train/loss"], line["train/grad_norm"]) for line in metrics],
    }


@pytest.mark.slow
def test_one_two_and_four_ranks_end_with_the_same_bits(folder: Path) -> None:
    alone = ended(folder, "full-1", 1, *FULL, *REPRODUCIBLE)
    assert len(alone["ledger"]) == len(alone["figures"]) == 6
    for world in (2, 4):
        assert ended(folder, f"full-{world}", world, *FULL, *REPRODUCIBLE) == alone


@pytest.mark.slow
def test_four_ranks_go_on_where_two_were_as_if_one_had_done_it_all(folder: Path) -> None:
    ended(folder, "moves", 2, *FULL, *REPRODUCIBLE, "schedule.max_steps=3", "schedule.kind=constant")
    moved = ended(folder, "moves", 4, *FULL, *REPRODUCIBLE, "schedule.kind=constant")
    assert moved == ended(folder, "stays", 1, *FULL, *REPRODUCIBLE, "schedule.kind=constant")


@pytest.mark.slow
def test_adapters_in_half_precision_too(folder: Path) -> None:
    alone = ended(folder, "lora-1", 1, *LORA, *REPRODUCIBLE)
    for world in (2, 4):
        assert ended(folder, f"lora-{world}", world, *LORA, *REPRODUCIBLE) == alone


@pytest.mark.slow
def test_without_it_the_number_of_ranks_shows(folder: Path) -> None:
    """The control: the same samples in every step, other bits."""
    alone, three = (ended(folder, f"plain-{world}", world, *FULL, *DETERMINISTIC) for world in (1, 3))
    assert alone["ledger"] == three["ledger"]
    assert alone["fingerprint"] != three["fingerprint"]
    assert [loss for loss, _ in alone["figures"]] == pytest.approx([loss for loss, _ in three["figures"]], rel=1e-4)


def test_threads_that_follow_the_ranks_are_refused(folder: Path) -> None:
    arguments = [each for each in REPRODUCIBLE if not each.startswith("compute.threads")]
    code, output = call("train", *tiny_run(folder, "threads", *FULL, *arguments))
    assert code == 78, output
    assert "compute.threads: 0 divides the cores among the processes" in output
    assert "Traceback" not in output
