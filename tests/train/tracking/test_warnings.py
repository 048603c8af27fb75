"""Runs that teach little say so: each warning appears for its mistake and for no other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from conf.compose import compose
from train.tracking.warnings import Facts, cut_answers, notes_of, warnings_of

GOOD = Facts(total_steps=100, goes_on=False, pass_steps=34, held_out={"words": 20}, readers=2)
BASE = ["data=demo", "batch.global_size=4"]


def told(facts: Facts, *overrides: str) -> list[str]:
    return list(warnings_of(compose([*BASE, *overrides]), facts))


@pytest.mark.parametrize("tuning", ["full", "lora", "ia3", "bottleneck"])
def test_a_good_run_is_told_nothing(tuning: str) -> None:
    assert told(GOOD, f"tuning={tuning}") == []
    assert told(GOOD, f"tuning={tuning}", "schedule.max_steps=100") == []


def test_few_steps() -> None:
    (line,) = told(replace(GOOD, total_steps=1))
    assert line.startswith("the run has 1 step, in which a model learns little; raise data.stop.epochs, or lower batch")
    assert told(replace(GOOD, total_steps=10)) == []


def test_max_steps_before_and_after_the_data() -> None:
    (before,) = told(replace(GOOD, total_steps=20, goes_on=True), "schedule.max_steps=20")
    assert before.startswith(
        "schedule.max_steps=20 ends the run before the data ends (data.stop.epochs=3), and before a"
    )
    assert "takes about 34 steps" in before
    (after,) = told(replace(GOOD, total_steps=60), "schedule.max_steps=600")
    assert after.startswith("the data ends (data.stop.epochs=3) after 60 steps, before schedule.max_steps=600; raise")
    few = told(replace(GOOD, total_steps=3, goes_on=True), "schedule.max_steps=3")
    assert few[0].endswith("raise schedule.max_steps=3")


def test_a_limit_after_a_pass_is_a_note_and_no_warning() -> None:
    facts, cfg = replace(GOOD, total_steps=60, goes_on=True), compose([*BASE, "schedule.max_steps=60"])
    assert list(warnings_of(cfg, facts)) == []
    assert list(notes_of(cfg, facts)) == [
        "schedule.max_steps=60 ends the run before the data ends (data.stop.epochs=3)",
    ]
    assert list(notes_of(cfg, replace(facts, goes_on=False))) == []


@pytest.mark.parametrize(("overrides", "warned"), [([], True), (["evaluation=skip"], False)])
def test_evaluation_without_rows(overrides: list[str], warned: bool) -> None:
    found = told(replace(GOOD, held_out={}), *overrides)
    assert bool(found) == warned
    assert all("no row is held out, so evaluation measures nothing" in line for line in found)


def test_the_rate_of_full_tuning_with_adapters() -> None:
    (line,) = told(GOOD, "tuning=lora", "optim.lr=2e-5")
    assert line.startswith("optim.lr=2e-05 is a rate for full tuning, and tuning=lora trains few new weights")
    assert "0.0002" in line
    assert told(GOOD, "optim.lr=2e-5") == []


def test_ranks_without_rows() -> None:
    (line,) = told(replace(GOOD, readers=8))
    assert line.startswith("batch.global_size=4 gives 4 of 8 ranks no row")


def test_answers_that_were_cut() -> None:
    (line,) = cut_answers([{"cut": True}, {"cut": False}, {"cut": True}], 8)
    assert line.startswith("2 of 3 answers were cut at evaluation.max_new_tokens=8")
    assert not list(cut_answers([{"cut": False}], 8))
