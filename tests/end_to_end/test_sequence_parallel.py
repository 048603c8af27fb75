"""The real commands with ``compute.sequence_parallel``: two ranks that share every row do what one rank does."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch

from tests.end_to_end.commands import call, lines, tiny_run, train
from tests.end_to_end.test_resume import FEW, fingerprint, kill_when

SLICED = ("compute.sequence_parallel=2", "zero=2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared corpus, a run of one rank and one of two that share its rows."""
    root = tmp_path_factory.mktemp("sliced")
    code, output = call("data_prep", *tiny_run(root, "x"))
    assert code == 0, output
    for name, world, more in (("alone", 1, ("zero=0",)), ("sliced", 2, SLICED)):
        code, output = train(world, *tiny_run(root, name, *more))
        assert code == 0, output
    return root


def curve(run: Path, key: str) -> list[float]:
    return [line[key] for line in lines(run / "metrics.jsonl") if key in line]


@pytest.mark.slow
def test_the_run_is_that_of_one_rank(folder: Path) -> None:
    alone, sliced = folder / "alone", folder / "sliced"
    assert lines(sliced / "ledger.jsonl") == lines(alone / "ledger.jsonl")
    for key in ("train/loss", "train/grad_norm", "eval/loss", "eval/words/loss"):
        assert curve(sliced, key) == pytest.approx(curve(alone, key), rel=1e-6), key
    answers = [lines(run / "samples" / "step-00000008.jsonl") for run in (alone, sliced)]
    assert answers[0] == answers[1]


@pytest.mark.slow
def test_the_model_is_evaluated_and_exported_by_one_process(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    run = folder / "sliced"
    code, output = call("train.evaluate", f"run_dir={run}")
    assert code == 0, output
    found = json.loads((run / "evaluation-step-8.json").read_text())["metrics"]["eval/loss"]
    assert curve(run, "eval/loss") == pytest.approx([found], rel=1e-6)
    weights = []
    for name in ("sliced", "alone"):
        code, output = call("train.export", f"run_dir={folder / name}")
        assert code == 0, output
        weights.append(AutoModelForCausalLM.from_pretrained(folder / name / "export").state_dict())
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_ranks_and_heads_that_do_not_divide_are_refused_in_one_sentence(folder: Path) -> None:
    code, output = train(2, *tiny_run(folder, "uneven", "compute.sequence_parallel=4"), timeout=90)
    assert code != 0
    assert output.count("corral: compute.sequence_parallel: 2 ranks cannot be divided into groups of 4") == 1, output
    assert json.loads((folder / "uneven" / "exit.json").read_text())["code"] == 78
    odd = "model.config.num_attention_heads=3"
    narrow = ("model.config.hidden_size=48", "model.config.num_key_value_heads=1")
    code, output = train(2, *tiny_run(folder, "heads", *SLICED, odd, *narrow), timeout=90)
    assert code != 0
    assert output.count("2 ranks cannot share the model's 3 query heads evenly") == 1, output


@pytest.mark.slow
@pytest.mark.faults
def test_a_killed_run_goes_on_bitwise_and_on_other_slices_with_the_same_samples(folder: Path) -> None:
    code, output = train(2, *tiny_run(folder, "whole", *FEW, *SLICED))
    assert code == 0, output
    for name, more in (("again", SLICED), ("unsliced", ("zero=3", "compute.sequence_parallel=1"))):
        kill_when(folder, name, 2, 5, signal.SIGKILL, *SLICED)
        code, output = train(2, *tiny_run(folder, name, *FEW, *more))
        assert code == 0, output
        assert lines(folder / name / "ledger.jsonl") == lines(folder / "whole" / "ledger.jsonl")
    assert fingerprint(folder / "again") == fingerprint(folder / "whole")
    assert curve(folder / "again", "train/loss") == curve(folder / "whole", "train/loss")
    assert curve(folder / "unsliced", "train/loss") == pytest.approx(curve(folder / "whole", "train/loss"), rel=1e-5)
