"""Real runs whose disk is lost: they come home from ``checkpoint.copy_to`` and end as if nothing had happened."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests.end_to_end.commands import call, finish, lines, start, tiny_run
from tests.end_to_end.test_resume import FEW, fingerprint, kill_run
from tests.launch.conftest import until
from train.copies.destination import Destination

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("copies")
    code, output = call("data_prep", *tiny_run(root, "whole"))
    assert code == 0, output
    return root


@pytest.mark.slow
def test_a_run_whose_disk_is_lost_ends_as_one_that_was_never_interrupted(folder: Path) -> None:
    code, output = call("train", *tiny_run(folder, "whole", *FEW))
    assert code == 0, output
    arguments = tiny_run(folder, "lost", *FEW, f"checkpoint.copy_to={folder}/there")
    run, there = folder / "lost", Destination(f"{folder}/there/lost")
    kill_run(run, 1, 9, signal.SIGKILL, arguments, there.steps)  # bits are equal for equal numbers of ranks
    home = there.steps()[0]
    assert home in (3, 6, 9)
    shutil.rmtree(run)
    (run / "checkpoints" / ".copy-step-00000003").mkdir(parents=True)  # a kill within a copy leaves a checkpoint's size
    code, output = call("train", *arguments)
    assert code == 0, output
    assert not list((run / "checkpoints").glob(".*"))
    assert f"bringing {there.url}/step-{home:08d} home" in output
    assert fingerprint(run) == fingerprint(folder / "whole")
    assert lines(run / "ledger.jsonl") == lines(folder / "whole" / "ledger.jsonl")
    events = lines(run / "events.jsonl")
    assert {"step": home, "kind": "resume"}.items() <= next(each for each in events if each["kind"] == "resume").items()
    assert [each["step"] for each in events if each["kind"] == "copy"][-1] == 14
    assert there.steps()[0] == 14
    # A setting that changed meanwhile is found, because run.yaml came home too.
    shutil.rmtree(run)
    code, output = call("train", *arguments, "optim.eps=1e-7")
    assert code == 78, output
    assert "resume.allow=[optim.eps]" in output


@pytest.mark.slow
def test_copies_that_fail_are_told_and_training_goes_on(folder: Path) -> None:
    there = folder / "gone" / "told"
    process = start(
        [sys.executable, "-m", "train", *tiny_run(folder, "told", *FEW, f"checkpoint.copy_to={folder}/gone")]
    )
    until((folder / "told" / "ledger.jsonl").is_file, 60)  # training has begun
    there.rename(folder / "unmounted")  # what a lost mount leaves behind
    there.write_text("no folder")
    code, output = finish(process, 120)
    assert code == 0, output
    assert "warning: the checkpoint of step 14 was not copied: checkpoint.copy_to: " in output
    failed = [line["step"] for line in lines(folder / "told" / "events.jsonl") if line["kind"] == "copy_failed"]
    assert failed[-1] == 14
    assert json.loads((folder / "told" / "exit.json").read_text())["code"] == 0


def test_a_destination_that_cannot_be_made_is_refused_before_anything_is_trained(folder: Path) -> None:
    (folder / "a_file").write_text("no folder")
    code, output = call("train", *tiny_run(folder, "refused", *FEW, f"checkpoint.copy_to={folder}/a_file"))
    assert code == 73, output
    assert f"checkpoint.copy_to: {folder}/a_file/refused cannot be made: {folder}/a_file: " in output
    assert "Traceback" not in output
    assert not (folder / "refused" / "checkpoints").exists()
