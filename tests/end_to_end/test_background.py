"""Signals while a thread writes a checkpoint: a kill leaves the one before, a request to stop ends both in order."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.end_to_end.commands import call, finish, lines, tiny_run, torchrun, train

pytestmark = pytest.mark.faults

LARGER = (
    "model.config={model_type: llama, hidden_size: 256, intermediate_size: 1024, num_hidden_layers: 4, "
    "num_attention_heads: 4, num_key_value_heads: 2, max_position_embeddings: 256, tie_word_embeddings: false}"
)
"""Its states are written for some tenths of a second."""
FEW = (LARGER, "evaluation.at_end=false", "zero=2", "optim.lr=1e-3", "checkpoint.background=always")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("background")
    code, output = call("data_prep", *tiny_run(root, "x"))
    assert code == 0, output
    return root


def signal_while_writing(run: Path, number: signal.Signals, arguments: list[str]) -> tuple[int, str]:
    """Start a run of two ranks; signal its workers while the thread writes its second checkpoint. Returns its step."""
    process = torchrun(2, *arguments)
    deadline = time.monotonic() + 120
    while not list(run.glob("checkpoints/step-*")):
        assert process.poll() is None, finish(process, 10)[1]
        assert time.monotonic() < deadline, "no checkpoint within 120 s"
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children(recursive=True)
    while not (files := list(run.glob("checkpoints/.tmp-*/state-*"))):
        assert time.monotonic() < deadline, "no second checkpoint within 120 s"
        time.sleep(0.001)
    for each in workers:
        with contextlib.suppress(psutil.NoSuchProcess):
            os.kill(each.pid, number)
    process.send_signal(number)
    finish(process, 90)
    return int(files[0].parent.name.split("-")[2]), files[0].parent.name


@pytest.mark.slow
def test_a_kill_while_the_thread_writes_leaves_the_checkpoint_before(folder: Path) -> None:
    more = (*FEW, "checkpoint.every_steps=4", "schedule.max_steps=10")
    code, output = train(2, *tiny_run(folder, "whole", *more))
    assert code == 0, output
    step, temporary = signal_while_writing(folder / "killed", signal.SIGKILL, tiny_run(folder, "killed", *more))
    assert step == 8
    checkpoints = folder / "killed" / "checkpoints"
    assert (checkpoints / temporary).is_dir(), "the kill came too late to prove anything"
    assert [path.name for path in checkpoints.glob("step-*")] == ["step-00000004"]
    code, output = train(2, *tiny_run(folder, "killed", *more))
    assert code == 0, output
    prints = [call("train.fingerprint", f"run_dir={folder / name}") for name in ("whole", "killed")]
    assert prints[0] == prints[1]
    assert prints[0][0] == 0, prints[0]
    assert lines(folder / "killed" / "ledger.jsonl") == lines(folder / "whole" / "ledger.jsonl")
    assert {line["step"] for line in lines(folder / "killed" / "events.jsonl") if line["kind"] == "resume"} == {4}
    assert not list(checkpoints.glob(".tmp-*"))


@pytest.mark.slow
def test_auto_measures_its_first_checkpoint_which_goes_on_during_an_evaluation(folder: Path) -> None:
    more = ("checkpoint.every_steps=auto", "evaluation.every_steps=10", "schedule.max_steps=14")
    code, output = train(2, *tiny_run(folder, "auto", *FEW, *more))
    assert code == 0, output
    events = lines(folder / "auto" / "events.jsonl")
    assert [line["step"] for line in events if line["kind"] == "checkpoint"] == [10, 14]
    (note,) = [line["text"] for line in events if "every_steps: auto is" in line.get("text", "")]
    assert "2 GPUs fail once in 1,055.8 days (Young 1974)" in note
    assert output.count("checkpoint.every_steps: auto is a checkpoint every") == 1
    (first,) = [line for line in lines(folder / "auto" / "metrics.jsonl") if line["step"] == 10]
    assert first["eval/loss"] > 0
    assert first["ckpt/stall_s"] < first["ckpt/commit_s"]


@pytest.mark.slow
def test_a_request_to_stop_ends_the_save_in_flight_and_saves_the_newest_step(folder: Path) -> None:
    run = folder / "term"
    more = (*FEW, "checkpoint.every_steps=4", "schedule.max_steps=2000")
    step, _ = signal_while_writing(run, signal.SIGTERM, tiny_run(folder, "term", *more))
    ending = json.loads((run / "exit.json").read_text())
    assert ending["code"] == 75, ending
    assert ending["step"] >= step
    published = [line["step"] for line in lines(run / "events.jsonl") if line["kind"] == "checkpoint"]
    assert step in published
    assert published[-1] == ending["step"]
    assert sorted(path.name for path in (run / "checkpoints").glob("step-*")) == [
        f"step-{each:08d}" for each in sorted({*published})[-2:]
    ]
    assert not list((run / "checkpoints").glob(".tmp-*"))
    logged = [line for line in lines(run / "metrics.jsonl") if "ckpt/stall_s" in line]
    assert logged
    assert all(0 < line["ckpt/stall_s"] <= line["ckpt/commit_s"] for line in logged)
