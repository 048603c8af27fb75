"""Fifty rows and the defaults: a run of enough steps, the same on any number of ranks, that says what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from conf.compose import load_config
from tests.end_to_end.commands import call, demo_rows, lines, tiny_run, train

pytestmark = pytest.mark.slow
NAMED = ("batch.", "optim.lr", "schedule.max_steps", "data.sources.words.validation_fraction")
"""Settings of a tiny run that this test leaves at their defaults."""


def with_defaults(folder: Path, name: str, *more: str) -> list[str]:
    demo_rows(folder / "rows.jsonl", 50)
    return [word for word in tiny_run(folder, name) if not word.startswith(NAMED)] + list(more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("small")
    code, output = call("data_prep", *with_defaults(root, "full"))
    assert code == 0, output
    assert "45 to train on, 5 held out" in output
    assert "of the held-out rows are there because validation_fraction alone gives so few" in output
    return root


def test_more_than_ten_steps_and_the_same_on_two_ranks(folder: Path) -> None:
    found = []
    for ranks in (1, 2):
        code, output = train(ranks, *with_defaults(folder, f"full-{ranks}", "model.recompute=selective"))
        assert code == 0, output
        run = folder / f"full-{ranks}"
        cfg, events = load_config(run / "run.yaml"), lines(run / "events.jsonl")
        assert (cfg.batch.global_size, cfg.optim.lr) == (1, 2e-5)
        assert "batch.global_size=1: " in output
        steps = [line for line in lines(run / "metrics.jsonl") if "train/loss" in line]
        assert len(steps) > 10
        assert min(line["train/lr"] for line in steps) > 0.0
        assert any("eval/loss" in line for line in lines(run / "metrics.jsonl"))
        (note,) = [event["text"] for event in events if event["kind"] == "note"]
        assert note == "model.recompute: the backward pass computes 1 blocks again"
        assert note in output
        warned = [event["text"] for event in events if event["kind"] == "warning" and event["step"] == 0]
        idle = [text for text in warned if text.startswith("batch.global_size=1 gives 1 of 2 ranks no row")]
        assert warned == idle
        assert len(idle) == ranks - 1
        assert all(f"warning: {text}" in output for text in warned)
        found.append([line["digest"] for line in lines(run / "ledger.jsonl")])
    assert found[0] == found[1]


def test_a_resume_keeps_the_size_that_was_frozen(folder: Path) -> None:
    arguments = with_defaults(folder, "kept", "evaluation=skip")
    code, output = train(1, *arguments, "schedule.max_steps=4")
    assert code == 0, output
    code, output = train(1, *arguments, "schedule.max_steps=6")
    assert code == 0, output
    assert lines(folder / "kept" / "ledger.jsonl")[-1]["step"] == 6
    assert load_config(folder / "kept" / "run.yaml").batch.global_size == 1


def test_lora_takes_its_own_rate_and_is_warned_of_another(folder: Path) -> None:
    code, output = train(1, *with_defaults(folder, "lora", "tuning=lora", "evaluation=skip"))
    assert code == 0, output
    assert load_config(folder / "lora" / "run.yaml").optim.lr == 2e-4
    more = ("tuning=lora", "evaluation=skip", "optim.lr=2e-5", "schedule.max_steps=3")
    code, output = train(1, *with_defaults(folder, "slow", *more))
    assert code == 0, output
    assert "warning: the run has 3 steps, in which a model learns little; raise schedule.max_steps=3" in output
    assert "warning: schedule.max_steps=3 ends the run before the data ends (data.stop.epochs=3)" in output
    assert "warning: optim.lr=2e-05 is a rate for full tuning, and tuning=lora trains few new weights" in output
