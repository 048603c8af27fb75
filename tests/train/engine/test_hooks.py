"""Fragment hooks against plain torch: over ranks, stages and resumes; mistakes are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import run_distributed
from tests.train.engine.hook_runs import (
    BF16,
    CASES,
    CROSSED,
    Case,
    State,
    alone,
    cross,
    crossed,
    end,
    read_state,
    reference,
    together,
)
from tests.train.engine.test_engine import relative
from train.fingerprint import fingerprint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("hooks")
    (one,) = run_distributed(alone, 1, str(folder))
    first, second = run_distributed(together, 2, str(folder))
    run_distributed(cross, 1, str(folder), 2)
    return folder, {"alone": one, "together": first, "second": second}


def worst(found: State, wanted: State) -> float:
    return max(relative(found[kind][name], wanted[kind][name]) for kind in wanted for name in wanted[kind])


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_rules_are_those_of_plain_torch(method: str, runs: tuple[Path, dict[str, Any]]) -> None:
    wanted = reference(method)
    for case in CASES:
        if case.method == method:
            for world in (1, 2):
                found = read_state(end(runs[0] / f"{case.label}-{world}"))
                assert worst(found, wanted) <= 2e-6, (case, world)
                for name, start in wanted["start"].items():
                    assert torch.equal(found["start"][name], start), (case, world, name)


def test_the_model_computes_with_the_rounded_master_weights(runs: tuple[Path, dict[str, Any]]) -> None:
    for part, cases in (("alone", CASES), ("together", CASES + BF16), ("second", CASES + BF16)):
        rounded = runs[1][part]["rounded"]
        assert len(rounded) == len(cases)
        assert all(rounded.values()), (part, rounded)
        assert all(runs[1][part].get("one update", {}).values()), (part, runs[1][part]["one update"])


def test_a_resume_on_the_same_ranks_and_stage_is_bitwise(runs: tuple[Path, dict[str, Any]]) -> None:
    for case in CASES + BF16:
        straight, again = end(runs[0] / f"{case.label}-2"), end(runs[0] / f"{case.label}-again")
        assert fingerprint(straight) == fingerprint(again), case


def test_a_resume_on_other_ranks_and_another_stage_goes_on_the_same_way(runs: tuple[Path, dict[str, Any]]) -> None:
    folder = runs[0]
    for method, before, after in CROSSED:
        for world in (1, 2):
            straight = read_state(end(folder / f"{Case(method, after).label}-{3 - world}"))
            found = read_state(end(crossed(str(folder), method, world, after)))
            assert worst(found, straight) <= 1e-6, (method, before, after, world)
            assert all(torch.equal(found["start"][name], start) for name, start in straight["start"].items())


def test_a_skipped_step_applies_no_hook(runs: tuple[Path, dict[str, Any]]) -> None:
    for part in ("together", "second"):
        assert all(runs[1][part]["skipped"].values()), runs[1][part]["skipped"]


def test_a_mistake_names_the_hook_and_the_parameter(runs: tuple[Path, dict[str, Any]]) -> None:
    for stage, messages in runs[1]["together"]["mistakes"].items():
        for name in ("raises", "resizes", "replaces", "adds", "first"):
            assert messages[name].startswith(f"fragment hook {name} failed on "), (stage, messages)
            assert ", elements 0 to " in messages[name]
        assert "ValueError: no such weight" in messages["raises"]
        assert "hook_runs.py, line" in messages["raises"]
        assert "it replaced weight" in messages["resizes"]
        assert "it replaced start" in messages["replaces"]
        assert "it added or removed other" in messages["adds"]
        assert "extra start must have shape" in messages["first"]
        assert "'exp_avg' cannot be the name of an extra" in messages["named"]


def test_a_checkpoint_and_hooks_that_do_not_fit_are_refused(runs: tuple[Path, dict[str, Any]]) -> None:
    together = runs[1]["together"]
    assert (
        "checkpoint holds no 'start' beside its weights, which the fragment hook l2_sp needs" in together["not stored"]
    )
    assert "checkpoint holds 'average' beside its weights, and no fragment hook" in together["not wanted"]
    assert "extras" not in json.loads((runs[0] / "plain/checkpoints/step-00000001/MANIFEST.json").read_text())


def test_a_fingerprint_covers_names_and_values_of_extras(runs: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    path = end(runs[0] / f"{CASES[0].label}-1")
    manifest = json.loads((path / "MANIFEST.json").read_text())
    assert manifest["extras"] == ["average", "start"]
    (tmp_path / manifest["tensors"]["inner.weight"]["pieces"][0][0]).symlink_to(
        path / manifest["tensors"]["inner.weight"]["pieces"][0][0]
    )
    sums = set()
    for extras in (["average", "start"], ["start", "average"], ["start"], []):
        (tmp_path / "MANIFEST.json").write_text(json.dumps(manifest | {"extras": extras}))
        sums.add(fingerprint(tmp_path))
    assert len(sums) == 4
