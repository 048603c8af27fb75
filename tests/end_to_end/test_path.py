"""The whole path as a user walks it: prepare, train on two ranks, evaluate, export, chat, report, fingerprint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.end_to_end.commands import call, lines, tiny_run, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A prepared corpus and one finished run on two ranks."""
    root = tmp_path_factory.mktemp("path")
    code, output = call("data_prep", *tiny_run(root, "run"))
    assert code == 0, output
    code, output = train(2, *tiny_run(root, "run", "evaluation.at_start=true", "evaluation.every_steps=4", "zero=2"))
    assert code == 0, output
    return root


def test_the_run_leaves_what_the_readme_promises(folder: Path) -> None:
    run = folder / "run"
    assert json.loads((run / "exit.json").read_text())["code"] == 0
    steps = [line for line in lines(run / "metrics.jsonl") if "train/loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 9))
    assert steps[-1]["train/loss"] < steps[0]["train/loss"]
    for name in ("train/grad_norm", "train/lr", "perf/tokens_per_second", "data/padding_fraction", "data/epoch/words"):
        assert name in steps[0]
    evaluations = [line for line in lines(run / "metrics.jsonl") if "eval/loss" in line]
    assert [line["step"] for line in evaluations] == [0, 4, 8]
    assert evaluations[-1]["eval/loss"] < evaluations[0]["eval/loss"]
    assert {"eval/words/exact_match", "eval/words/rouge_l"} <= evaluations[-1].keys()
    assert [line["step"] for line in lines(run / "ledger.jsonl")] == list(range(1, 9))
    kinds = [line["kind"] for line in lines(run / "events.jsonl")]
    assert kinds[0] == "start"
    assert kinds[-1] == "end"
    assert "checkpoint" in kinds
    warned = [line["text"] for line in lines(run / "events.jsonl") if line["kind"] == "warning"]
    assert warned[0].startswith("the run has 8 steps, in which a model learns little; raise schedule.max_steps=8")
    assert warned[1].startswith("schedule.max_steps=8 ends the run before the data ends (data.stop.epochs=3)")
    assert (run / "run.yaml").is_file()
    assert "<svg" in (run / "report.html").read_text()
    assert len(list((run / "samples").glob("step-*.jsonl"))) == 3


def test_the_ledger_is_the_plan_and_the_same_on_one_rank(folder: Path) -> None:
    code, output = train(1, *tiny_run(folder, "alone", "evaluation.at_end=false", "zero=0"))
    assert code == 0, output
    assert lines(folder / "alone" / "ledger.jsonl") == lines(folder / "run" / "ledger.jsonl")
    curves = [
        [line["train/loss"] for line in lines(folder / name / "metrics.jsonl") if "train/loss" in line]
        for name in ("alone", "run")
    ]
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


def test_a_finished_run_is_not_trained_again(folder: Path) -> None:
    before = (folder / "run" / "ledger.jsonl").read_text()
    code, output = train(1, *tiny_run(folder, "run", "evaluation.at_end=false", "zero=2"))
    assert code == 0, output
    assert (folder / "run" / "ledger.jsonl").read_text() == before


def test_evaluate_gives_what_the_run_measured(folder: Path) -> None:
    code, output = call("train.evaluate", f"run_dir={folder / 'run'}")
    assert code == 0, output
    found = json.loads((folder / "run" / "evaluation-step-8.json").read_text())
    wanted = next(line for line in lines(folder / "run" / "metrics.jsonl") if line["step"] == 8 and "eval/loss" in line)
    flat = json.dumps(found)
    assert found.get("metrics", found)["eval/loss"] == pytest.approx(wanted["eval/loss"], rel=1e-5), flat


def test_export_loads_in_transformers_and_chat_says_the_same(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    code, output = call("train.export", f"run_dir={folder / 'run'}")
    assert code == 0, output
    export = folder / "run" / "export"
    code, answer = call("train.chat", f"model={export}", "prompt=Say thank you for the lamp.", "max_new_tokens=12")
    assert code == 0, answer
    model, tokenizer = AutoModelForCausalLM.from_pretrained(export), AutoTokenizer.from_pretrained(export)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Say thank you for the lamp."}], add_generation_prompt=True, return_dict=False
    )
    generated = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)
    text = tokenizer.decode(generated[0][len(ids) :], skip_special_tokens=True)
    assert answer.strip().endswith(text.strip())


def test_fingerprint_and_report_are_repeatable(folder: Path) -> None:
    sums = [call("train.fingerprint", f"run_dir={folder / 'run'}") for _ in range(2)]
    assert sums[0] == sums[1]
    assert sums[0][0] == 0
    assert len(sums[0][1].strip()) == 64
    code, output = call("train.report", f"run_dir={folder / 'run'}")
    assert code == 0, output


def test_a_mistake_under_torchrun_is_said_once(tmp_path: Path) -> None:
    code, output = train(2, *tiny_run(tmp_path, "typo", "optim.lrr=1"), timeout=60)
    assert code != 0
    assert output.count("corral: optim.lrr: unknown key; did you mean optim.lr?") == 1
    code, output = train(2, *tiny_run(tmp_path, "absent"), timeout=90)
    assert code != 0
    assert output.count("corral: no prepared corpus at") == 1
    assert json.loads((tmp_path / "absent" / "exit.json").read_text())["code"] == 66
