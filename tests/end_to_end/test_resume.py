"""Kill -9 in the middle, start again: the same weights, moments and samples as a run that was never interrupted."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.end_to_end.commands import call, finish, lines, tiny_run, torchrun, train

pytestmark = pytest.mark.faults

FEW = ("evaluation.at_end=false", "checkpoint.every_steps=3", "schedule.max_steps=14")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("resume")
    code, output = call("data_prep", *tiny_run(root, "x"))
    assert code == 0, output
    return root


def fingerprint(run: Path) -> str:
    code, output = call("train.fingerprint", f"run_dir={run}")
    assert code == 0, output
    return output.strip()


def kill_when(folder: Path, name: str, world: int, step: int, number: signal.Signals, *more: str) -> tuple[int, str]:
    """Start a tiny run and send ``number`` to it once ``step`` is in the ledger."""
    return kill_run(folder / name, world, step, number, tiny_run(folder, name, *FEW, *more))


def kill_run(
    run: Path,
    world: int,
    step: int,
    number: signal.Signals,
    arguments: list[str],
    saved: Callable[[], object] | None = None,
) -> tuple[int, str]:
    """Start a run and send ``number`` to torchrun and every worker once ``step`` is in the ledger.

    A run that saves is left until something is ``saved`` (its first checkpoint) too: what is written in the background
    may need longer than the steps after it, and a run killed before it starts over, which shows nothing of resuming.
    """
    if saved is None and "checkpoint.every_steps=0" not in arguments:
        saved = lambda: list(run.glob("checkpoints/step-*/MANIFEST.json"))  # noqa: E731
    process = torchrun(world, *arguments)
    ledger = run / "ledger.jsonl"
    deadline = time.monotonic() + 120
    while not ledger.exists() or len(ledger.read_text().splitlines()) < step or (saved and not saved()):
        assert process.poll() is None, finish(process, 10)[1]
        assert time.monotonic() < deadline, "no step within 120 s"
        time.sleep(0.02)
    # Not killpg: torchrun gives each worker a session of its own, and SIGTERM when it dies itself.
    for each in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.send_signal(number)
    return finish(process, 90)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        pytest.param(("zero=2",), id="full"),
        pytest.param(("zero=3", "tuning=lora", "tuning.dropout=0.1", "data.share_prefix=false"), id="lora"),
    ],
)
def test_kill_nine_and_restart_ends_at_the_same_fingerprint(folder: Path, more: tuple[str, ...]) -> None:
    kind = more[0].replace("=", "")
    code, output = train(2, *tiny_run(folder, f"whole-{kind}", *FEW, *more))
    assert code == 0, output
    kill_when(folder, f"killed-{kind}", 2, 5, signal.SIGKILL, *more)
    code, output = train(2, *tiny_run(folder, f"killed-{kind}", *FEW, *more))
    assert code == 0, output
    whole, killed = folder / f"whole-{kind}", folder / f"killed-{kind}"
    assert fingerprint(killed) == fingerprint(whole)
    assert lines(killed / "ledger.jsonl") == lines(whole / "ledger.jsonl")
    curves = [[x["train/loss"] for x in lines(run / "metrics.jsonl") if "train/loss" in x] for run in (whole, killed)]
    assert curves[0] == curves[1]
    assert "resume" in [line["kind"] for line in lines(killed / "events.jsonl")]


@pytest.mark.slow
def test_another_number_of_ranks_and_stage_continues_with_the_same_samples(folder: Path) -> None:
    code, output = train(2, *tiny_run(folder, "two", *FEW, "zero=2"))
    assert code == 0, output
    kill_when(folder, "three", 3, 7, signal.SIGKILL, "zero=3")
    code, output = train(1, *tiny_run(folder, "three", *FEW, "zero=1"))
    assert code == 0, output
    assert lines(folder / "three" / "ledger.jsonl") == lines(folder / "two" / "ledger.jsonl")
    curves = [
        [x["train/loss"] for x in lines(folder / name / "metrics.jsonl") if "train/loss" in x]
        for name in ("two", "three")
    ]
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


@pytest.mark.slow
def test_a_kill_before_the_first_checkpoint_starts_over_and_counts_every_step_once(folder: Path) -> None:
    kill_when(folder, "early", 1, 1, signal.SIGKILL, "checkpoint.every_steps=0", "schedule.max_steps=2000")
    assert not list((folder / "early" / "checkpoints").glob("step-*"))
    code, output = train(1, *tiny_run(folder, "early", *FEW, "optim.lr=2e-2"))
    assert code == 0, output
    for name in ("ledger.jsonl", "metrics.jsonl"):
        assert [line["step"] for line in lines(folder / "early" / name)] == list(range(1, 15))


def test_sigterm_checkpoints_and_asks_to_be_started_again(folder: Path) -> None:
    kill_when(folder, "term", 2, 4, signal.SIGTERM, "schedule.max_steps=2000", "zero=2")
    ending = json.loads((folder / "term" / "exit.json").read_text())
    assert ending["code"] == 75, ending
    assert (folder / "term" / "checkpoints" / f"step-{ending['step']:08d}" / "MANIFEST.json").is_file()


@pytest.mark.slow
def test_a_request_to_stop_is_heard_before_the_model_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = folder / "stop"
    stop.touch()
    monkeypatch.setenv("CORRAL_STOP_FILE", str(stop))
    code, output = call("train", *tiny_run(folder, "early-stop", *FEW))
    assert code == 75, output
    ending = json.loads((folder / "early-stop" / "exit.json").read_text())
    assert ending["reason"] == f"stopped before the model was loaded because of stop file {stop}"
    assert not (folder / "early-stop" / "init").exists()


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(folder: Path) -> None:
    code, output = train(1, *tiny_run(folder, "damaged", *FEW))
    assert code == 0, output
    newest = folder / "damaged" / "checkpoints" / "step-00000014"
    file = next(newest.glob("state-*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    before = [line["digest"] for line in lines(folder / "damaged" / "ledger.jsonl")]
    code, output = train(1, *tiny_run(folder, "damaged", *FEW))
    assert code == 0, output
    assert "does not have its recorded sha256" in output
    assert [line["digest"] for line in lines(folder / "damaged" / "ledger.jsonl")] == before
    for path in (folder / "damaged" / "checkpoints").glob("step-*/MANIFEST.json"):
        path.unlink()
    code, output = call("train", *tiny_run(folder, "damaged", *FEW))
    assert code == 74, output
    assert "no checkpoint that verifies" in output
    fallbacks = [line["step"] for line in lines(folder / "damaged" / "events.jsonl") if line["kind"] == "fallback"]
    assert fallbacks[0] == 14
    shutil.rmtree(folder / "damaged" / "checkpoints")
    code, output = call("train", *tiny_run(folder, "damaged", *FEW))
    assert code == 74, output
    assert "events.jsonl says that there was one at step" in output
    assert [line["digest"] for line in lines(folder / "damaged" / "ledger.jsonl")] == before  # nothing was cut
