"""Real runs whose steps go wrong: each ends as the guard says, a good checkpoint survives, a kill changes no bit."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.commands import call, finish, lines, start, tiny_run
from train.checkpoint.check import latest_good
from train.checkpoint.layout import steps_on_disk

pytestmark = pytest.mark.timeout(300)
STEPS = 14
COMMON = (
    "evaluation=skip", "zero=2", "checkpoint.every_steps=2", f"schedule.max_steps={STEPS}", "schedule=constant",
    "optim.lr=3e-3", "guard.patience=3", "checkpoint.background=never",
)  # fmt: skip
BAD = {"nan": [5, 6, 7]}
"""Three refused updates: an incident from step 5, after which the run goes back to step 2, because nobody has seen the
weights of step 4 at work."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("guard")
    code, output = call("data_prep", *tiny_run(root, "x"))
    assert code == 0, output
    return root


def planted(folder: Path, name: str, plan: dict[str, Any], *more: str, world: int = 1) -> tuple[int, str]:
    """The code in exit.json (-9: killed) and the output of a run of ``name`` that goes wrong as ``plan`` says."""
    head = [sys.executable, "-m"]
    if world > 1:
        head += ["torch.distributed.run", "--standalone", f"--nproc-per-node={world}", "-m"]
    words = tiny_run(folder, name, *COMMON, *more)
    _, output = finish(start([*head, "tests.end_to_end.planted_guard", json.dumps(plan), *words]), 240)
    end = folder / name / "exit.json"
    return (json.loads(end.read_text())["code"] if end.exists() else -9), output


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in lines(run / "events.jsonl") if line["kind"] == kind]


def fingerprint(run: Path) -> str:
    code, output = call("train.fingerprint", f"run_dir={run}")
    assert code == 0, output
    return output


def losses(run: Path) -> dict[int, float]:
    return {line["step"]: line["train/loss"] for line in lines(run / "metrics.jsonl") if "train/loss" in line}


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """A run on one rank that goes back once, not killed."""
    code, output = planted(folder, "whole", BAD)
    assert code == 0, output
    assert "the run went back to the checkpoint of step 2 and goes on with step 8" in output
    return folder / "whole"


@pytest.mark.slow
def test_planted_nans_end_in_a_rollback_that_is_recorded(whole: Path) -> None:
    assert [line["step"] for line in events(whole, "skip")] == [5, 6, 7]
    (back,) = events(whole, "rollback")
    assert (back["step"], back["to"], back["undone"], back["incident"]) == (7, 2, [3, 7], 5)
    (recovered,) = events(whole, "recovered")
    assert recovered["step"] == 10
    # Nothing is saved at step 8, inside the incident; what was due then is saved when it is over.
    assert [line["step"] for line in events(whole, "checkpoint")] == [2, 4, 10, 12, 14]
    ledger = lines(whole / "ledger.jsonl")
    assert [line["step"] for line in ledger if "digest" in line] == list(range(1, STEPS + 1))
    assert [line["step"] for line in ledger if line.get("skipped")] == [5, 6, 7]
    assert [line for line in ledger if "digest" not in line] == [{"step": 7, "undone": [3, 7]}]
    dumped = lines(whole / "incidents" / "step-00000005.jsonl")
    assert [each["uid"] for each in dumped] == [each["uid"] for each in events(whole, "skip")[0]["samples"]]
    rows = [json.loads(row) for row in (whole.parent / "rows.jsonl").read_text().splitlines()]
    assert all(any(str(value) in each["text"] for value in rows[each["row"]].values()) for each in dumped)
    last = latest_good(whole).manifest
    assert (last["optimizer_steps"], last["state"]["skipped"]) == (2 + 7, 3)
    assert (last["state"]["rollbacks"], last["state"]["undone"]) == (1, 2)
    metrics = [line for line in lines(whole / "metrics.jsonl") if "guard/rollbacks" in line]
    assert [line["guard/rollbacks"] for line in metrics] == [0] * 7 + [1] * 7
    assert metrics[-1]["guard/undone_updates"] == 2


@pytest.mark.slow
def test_the_weights_are_those_of_a_run_that_never_took_the_undone_steps(folder: Path, whole: Path) -> None:
    """Steps 3 to 7 without an update, from the first run's step 2 on: the same bits without any rollback."""
    code, output = planted(folder, "refused", {"nan": [3, 4, 5, 6, 7]}, "guard.patience=9")
    assert code == 0, output
    assert fingerprint(folder / "refused") == fingerprint(whole)


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("kill", [6, "rollback", 9, 11])
def test_a_kill_before_in_or_after_a_rollback_changes_no_bit(folder: Path, whole: Path, kill: Any) -> None:
    name = f"killed-{kill}"
    code, _ = planted(folder, name, {**BAD, "kill": kill})
    assert code == -9
    at = 10 if kill == 11 else 4  # until the incident is over, the newest is the one of step 4
    assert steps_on_disk(folder / name)[0] == (2 if kill == 9 else at)
    code, output = planted(folder, name, BAD)
    assert code == 0, output
    assert fingerprint(folder / name) == fingerprint(whole)
    assert lines(folder / name / "ledger.jsonl") == lines(whole / "ledger.jsonl")
    assert losses(folder / name) == losses(whole)


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize(
    "more",
    [
        ("zero=3", "tuning=lora", "tuning.dropout=0.1", "data.share_prefix=false", "checkpoint.background=always"),
        ("zero=1", "model.dtype=bf16"),
    ],
    ids=["LoRA, ZeRO 3", "bf16, ZeRO 1"],
)
def test_a_rollback_of_shards_adapters_and_bf16_leaves_no_trace_and_survives_a_kill(
    folder: Path, more: tuple[str, ...]
) -> None:
    """Random generators included: dropout draws what it draws in a run that never took the undone steps."""
    whole, refused, killed = (f"{each}-{more[0][-1]}" for each in ("returned", "never-took", "killed"))
    code, output = planted(folder, whole, BAD, *more, world=2)
    assert code == 0, output
    assert [line["to"] for line in events(folder / whole, "rollback")] == [2]
    code, output = planted(folder, refused, {"nan": [3, 4, 5, 6, 7]}, *more, "guard.patience=9", world=2)
    assert code == 0, output
    assert fingerprint(folder / refused) == fingerprint(folder / whole)
    planted(folder, killed, {**BAD, "kill": "rollback"}, *more, world=2)
    assert not events(folder / killed, "rollback")
    code, output = planted(folder, killed, BAD, *more, world=2)
    assert code == 0, output
    assert fingerprint(folder / killed) == fingerprint(folder / whole)
    assert lines(folder / killed / "ledger.jsonl") == lines(folder / whole / "ledger.jsonl")
    assert losses(folder / killed) == losses(folder / whole)


@pytest.mark.slow
@pytest.mark.faults
def test_two_ranks_agree_and_a_killed_run_goes_on_on_one(folder: Path, whole: Path) -> None:
    """Elastic: the same samples; sums over two ranks differ in the last bits."""
    planted(folder, "two", {**BAD, "kill": 9}, world=2)
    assert [line["to"] for line in events(folder / "two", "rollback")] == [2]
    code, output = planted(folder, "two", BAD)
    assert code == 0, output
    assert lines(folder / "two" / "ledger.jsonl") == lines(whole / "ledger.jsonl")
    found, wanted = losses(folder / "two"), losses(whole)
    assert found.keys() == wanted.keys()
    assert list(found.values()) == pytest.approx(list(wanted.values()), rel=1e-5)


@pytest.mark.slow
def test_a_gradient_times_a_million_is_told_and_refused_on_request(folder: Path) -> None:
    plan = {"grad": {"9": 1e6}}
    code, output = planted(folder, "told", plan)
    assert code == 0, output
    assert "the gradient norm of step 9 is" in output
    assert "the update was made (guard.grad_norm=warn)" in output
    (spike,) = events(folder / "told", "spike")
    assert (spike["step"], spike["what"], spike["updated"]) == (9, "grad_norm", True)
    assert spike["value"] > 1e5 * spike["median"]
    assert not events(folder / "told", "skip")
    code, output = planted(folder, "refuses", plan, "guard.grad_norm=skip")
    assert code == 0, output
    assert latest_good(folder / "refuses").manifest["optimizer_steps"] == STEPS - 1
    assert fingerprint(folder / "refuses") != fingerprint(folder / "told")
    before, after = losses(folder / "told"), losses(folder / "refuses")
    assert all(before[step] == after[step] for step in range(1, 10))
    code, output = planted(folder, "stops", plan, "guard.grad_norm=stop")
    assert code == 70
    assert "and guard says stop" in output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "more", "why"),
    [
        (10.0, (), "it diverged: the median loss of its last 5 updates is"),
        (10.0, ("guard.loss=rollback", "guard.max_rollbacks=1"), "made no update"),
        (10.0, ("guard.loss=skip",), "3 of the last 10 steps made no update"),
        (1e20, ("guard.max_rollbacks=1",), "made no update"),
    ],
)
def test_a_rate_that_destroys_the_model_is_no_success_and_a_good_checkpoint_survives(
    folder: Path, rate: float, more: tuple[str, ...], why: str
) -> None:
    """The rate holds from step 7 on, so step 8 is the first to compute with what it left."""
    name = f"rate-{rate:g}-{len(more)}-{more[:1]}".replace("'", "").replace("=", "_").replace(",", "")
    name = "".join(each for each in name if each.isalnum() or each in "-_.")
    code, output = planted(folder, name, {"lr": [7, rate]}, *more)
    assert code == 70, output
    assert why in output, output
    run = folder / name
    assert 6 in steps_on_disk(run)
    assert latest_good(run, 6).step == 6
    assert "the checkpoint of step 6 is from before" in output
    assert not events(run, "end")
    code, output = planted(folder, name, {"lr": [7, rate]}, *more)  # trying again does not make it one
    assert code == 70, output
    assert 6 in steps_on_disk(run)


@pytest.mark.slow
def test_without_a_checkpoint_to_go_back_to_a_run_ends_and_says_so(folder: Path) -> None:
    code, output = planted(folder, "none", BAD, "checkpoint.every_steps=0")
    assert code == 70
    assert "and the run cannot go back: nothing was saved before step 5" in output
