"""A refused update changes nothing under any ZeRO stage, and an engine that has trained goes back."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.distributed import run_distributed
from tests.train.engine.test_engine import OPTIM, feed
from tests.train.engine.test_restore import (
    CASES,
    computed_with,
    engine_of,
    equal,
    held,
    label,
    restore,
    save,
    train_one,
)  # fmt: skip
from train.ranks.group import Ranks


def poisoned(accumulate: Callable[..., None]) -> Callable[..., None]:
    return lambda share, last: accumulate(share * math.nan, last=last)


def refusing(ranks: Ranks, folder: str) -> dict[str, dict[str, Any]]:
    found = {}
    for case in CASES:
        engine, twin = engine_of(ranks, case), engine_of(ranks, case)
        for each in (engine, twin):
            train_one(each, ranks, 0)
        before, asked = held(engine), list[float]()

        def refuse(norm: float, asked: list[float] = asked) -> bool:
            asked.append(norm)
            return False

        feed(engine, ranks, 1, 1)
        outcome = engine.step(OPTIM.lr, refuse)
        unmoved = equal(held(engine), before)
        with mock.patch.object(engine, "accumulate", poisoned(engine.accumulate)):
            feed(engine, ranks, 1, 1)
        unmoved = unmoved and engine.step(OPTIM.lr).skipped and equal(held(engine), before)
        for each in (engine, twin):
            feed(each, ranks, 2, 1)
        taken, plain = engine.step(OPTIM.lr, lambda norm: True), twin.step(OPTIM.lr)
        found[label(case)] = {
            "skipped": (outcome.skipped, outcome.grad_norm == asked[0], len(asked), asked[0]),
            "unmoved": unmoved,
            "steps": engine.optimizer_steps,
            "next": taken == plain and equal(held(engine), held(twin)),
        }
        path = save(engine, ranks, Path(folder, label(case)), 2)
        for step in (3, 4):
            train_one(engine, ranks, step)
        fresh = engine_of(ranks, case)
        for each in (engine, fresh):
            restore(each, path)
        found[label(case)]["back"] = equal(held(engine), held(fresh)) and equal(held(engine), held(twin))
        for each in (engine, fresh):
            train_one(each, ranks, 5)
        found[label(case)]["back, one step later"] = equal(computed_with(engine), computed_with(fresh)) and equal(
            held(engine), held(fresh)
        )
    return found


@pytest.mark.slow
def test_a_refused_update_is_none_and_a_trained_engine_goes_back(tmp_path: Path) -> None:
    answers = run_distributed(refusing, 2, str(tmp_path))
    for case in CASES:
        first, second = (answer[label(case)] for answer in answers)
        skipped, same, count, norm = first["skipped"]
        assert skipped
        assert same, case  # the norm that was refused is the one that is reported
        assert count == 1
        assert norm > 0
        assert second["skipped"] == first["skipped"], case  # all ranks were asked about the same number
        for each in (first, second):
            assert (each["unmoved"], each["steps"], each["next"]) == (True, 2, True), (case, each)
            assert each["back"], case
            assert each["back, one step later"], case
