"""A run that continues with other settings: refused before the model loads, or told; more steps are always possible."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from tests.end_to_end.commands import call, lines, tiny_run
from tests.train.checkpoint.sealing import write_sealed

pytestmark = pytest.mark.slow

FEW = ("evaluation=skip", "schedule=constant", "schedule.max_steps=3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three steps."""
    root = tmp_path_factory.mktemp("changes")
    code, output = call("data_prep", *tiny_run(root, "first"))
    assert code == 0, output
    code, output = call("train", *tiny_run(root, "first", *FEW))
    assert code == 0, output
    return root


def again(folder: Path, name: str, *more: str) -> tuple[int, str]:
    """Continue a copy of the run."""
    if not (folder / name).exists():
        shutil.copytree(folder / "first", folder / name)
    return call("train", *tiny_run(folder, name, *FEW, *more))


def test_another_rate_is_refused_and_then_allowed(folder: Path) -> None:
    changed = ("optim.lr=2e-2", "schedule.max_steps=5", "tracker.log_every=2")
    code, output = again(folder, "rate", *changed)
    assert code == 78, output
    assert "optim.lr: 0.01 -> 0.02 (the steps to come have another learning rate)" in output
    assert "accept it with 'resume.allow=[optim.lr]'" in output
    assert "max_steps" not in output
    code, output = again(folder, "rate", *changed, "resume.allow=[optim.lr,optim.eps]")
    assert code == 0, output
    assert "changed since the checkpoint: optim.lr: 0.01 -> 0.02, as resume.allow allows: the steps to come" in output
    assert "changed since the checkpoint: schedule.max_steps: 3 -> 5: the run ends elsewhere" in output
    assert "nothing that is computed: name: 'first' -> 'rate', run_dir: " in output
    assert "tracker.log_every: 1 -> 2" in output
    assert "resume.allow names optim.eps, which has not changed" in output
    (event,) = [line for line in lines(folder / "rate" / "events.jsonl") if line["kind"] == "config_changed"]
    assert event["changed"]["optim.lr"] == [0.01, 0.02]
    rates = {line["step"]: line["train/lr"] for line in lines(folder / "rate" / "metrics.jsonl") if "train/lr" in line}
    assert rates == pytest.approx({1: rates[1], 2: rates[2], 3: 0.01, 4: 0.02, 5: 0.02})
    code, output = again(folder, "rate", *changed)  # the change is the run's own by now
    assert code == 0, output


def test_a_checkpoint_of_another_run_is_refused_and_so_is_a_change_beside_a_lost_run_yaml(folder: Path) -> None:
    """What the run continues from is the checkpoint, whatever run.yaml says."""
    code, output = call("train", *tiny_run(folder, "other", *FEW, "optim.lr=2e-2"))
    assert code == 0, output
    again(folder, "foreign")
    run, kept = folder / "foreign", (folder / "foreign" / "run.yaml").read_bytes()
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(folder / "other" / "checkpoints", run / "checkpoints")
    code, output = again(folder, "foreign", "schedule.max_steps=5")
    assert code == 78, output
    assert "settings changed that change what the run computes: optim.lr: 0.02 -> 0.01" in output
    assert (run / "run.yaml").read_bytes() == kept
    (run / "run.yaml").unlink()
    code, output = again(folder, "foreign", "optim.lr=2e-2", "schedule.max_steps=5")
    assert code == 0, output
    code, output = again(folder, "foreign", "optim.lr=1e-2", "schedule.max_steps=6")
    assert code == 78, output


def test_a_run_that_finished_with_its_data_goes_on_with_more_of_it(folder: Path) -> None:
    def run(epochs: float) -> tuple[int, str]:
        stop = ("schedule.max_steps=0", f"data.stop={{epochs: {epochs}}}")
        return call("train", *tiny_run(folder, "longer", *FEW, *stop))

    code, output = run(0.2)
    assert code == 0, output
    first = lines(folder / "longer" / "ledger.jsonl")
    code, output = run(0.4)
    assert code == 0, output
    both = lines(folder / "longer" / "ledger.jsonl")
    assert both[: len(first)] == first
    assert f"step {len(both)}/{len(both)}" in output
    drawn = [sum(line["samples"] for line in ledger) for ledger in (first, both)]
    manifest = json.loads((folder / "corpus" / "MANIFEST.json").read_text())
    rows = manifest["sources"]["words"]["splits"]["train"]["rows"]
    assert drawn == [math.ceil(0.2 * rows), math.ceil(0.4 * rows)]
    assert "data.stop.epochs: 0.2 -> 0.4: the run ends elsewhere" in output


def test_another_config_of_the_base_is_found(folder: Path) -> None:
    """The weights alone do not tell another rope_theta."""
    more = ("schedule.max_steps=5", "checkpoint.every_steps=4")
    again(folder, "base")
    path = folder / "base" / "init" / "config.json"
    content = path.read_text()
    said = json.loads(content)
    said["rope_parameters"]["rope_theta"] = 500.0
    path.write_text(json.dumps(said))
    code, output = again(folder, "base", *more)
    assert code == 78, output
    assert "(rope_parameters.rope_theta: 10000.0 there, 500.0 now)" in output
    path.write_text(content)
    # A checkpoint of an earlier release does not know the config: it continues, and the next ones do.
    for checkpoint in (folder / "base" / "checkpoints").glob("step-*"):
        manifest = json.loads((checkpoint / "MANIFEST.json").read_text())
        del manifest["base_config"]
        write_sealed(checkpoint, manifest)
    code, output = again(folder, "base", *more)
    assert code == 0, output
    path.write_text(json.dumps(said))
    code, output = again(folder, "base", "schedule.max_steps=6")
    assert code == 78, output


def test_other_samples_are_refused_before_the_model_is_loaded(folder: Path) -> None:
    again(folder, "weights", "schedule.max_steps=3")
    code, output = again(folder, "weights", "data.seq_len=128", "data.window=64", "schedule.max_steps=5")
    assert code == 78, output
    assert "resume.allow=[data.window]" in output
    code, output = again(folder, "weights", "data.window=64", "schedule.max_steps=5", "resume.allow=[data.window]")
    assert code == 0, output
    assert "the order of samples changes here: data.window: " in output
    assert len(lines(folder / "weights" / "ledger.jsonl")) == 5
