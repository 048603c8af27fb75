"""A real small base taught to chat with tokens that it does not know: trained on two ranks, exported, asked, killed."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from conf.compose import compose
from data_prep.prepare import prepare
from data_prep.rows.conversation import Message
from tests.data_prep.made import CHATML, write_jsonl
from tests.distributed import run_distributed
from tests.end_to_end.commands import call, lines, train
from tests.end_to_end.test_methods import train_all
from tests.end_to_end.test_resume import kill_run
from train.chat.speaker import open_speaker
from train.checkpoint.reopen import reopen
from train.evaluate.evaluation import evaluate_all
from train.export.folder import export

WORDS = ("red", "blue", "green", "old", "big", "small", "kind", "sad")
RUNS = {"full": 3, "lora": 2}
"""ZeRO stage by method."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, real_data: Callable[[str], Path]) -> Path:
    """stories260K with a ChatML template that nothing in its tokenizer stands for, chat rows, and their corpus."""
    root = tmp_path_factory.mktemp("grown")
    shutil.copytree(real_data("weights/stories260K/hf"), root / "base")
    (root / "base" / "chat_template.jinja").write_text(CHATML)
    pairs = [(WORDS[row % 8], WORDS[(row * 3 + 1) % 8]) for row in range(160)]
    said = [
        [("user", f"Say {a} and {b} {row}."), ("assistant", f"The {a} dog saw the {b} cat.")]
        for row, (a, b) in enumerate(pairs)
    ]
    turns = [[{"role": role, "content": text} for role, text in each] for each in said]
    write_jsonl(root / "rows.jsonl", ({"messages": each} for each in turns))
    prepare(compose(arguments(root, "lora")), argv=[])
    return root


def arguments(root: Path, method: str, name: str = "", *more: str) -> list[str]:
    source = "data.sources.alpaca"
    return [
        f"name={name or method}", f"run_dir={root / (name or method)}", "data=alpaca",
        f"{source}.path={root}/rows.jsonl", f"{source}.format=messages", f"{source}.template=chat",
        f"{source}.validation_fraction=0.1", "data.seq_len=128", f"data.prepared={root / 'corpus'}",
        f"model.path={root / 'base'}", "model.dtype=fp32", "model.new_tokens=['<|im_start|>','<|im_end|>']",
        f"tuning={method}", f"zero={RUNS[method]}", "zero.persistence_threshold=0", "batch.global_size=8",
        "batch.micro_size=2", "optim.lr=3e-3", "schedule.kind=constant", "schedule.max_steps=6",
        "evaluation.at_start=true", "evaluation.max_rows=8", "evaluation.generate_rows=0", "tracker.wandb=disabled",
        *more,
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_new_tokens_are_learnt_and_exported(folder: Path) -> None:
    run_distributed(train_all, 2, [arguments(folder, method) for method in RUNS], timeout=300)
    for method in RUNS:
        check(folder / method)


def check(run_dir: Path) -> None:
    losses = [line["eval/loss"] for line in lines(run_dir / "metrics.jsonl") if "eval/loss" in line]
    assert losses[-1] < 0.6 * losses[0]
    run = reopen(run_dir)
    metrics, _ = evaluate_all(
        run.model, run.corpus, run.cfg, tokenizer=run.tokenizer, attention=run.attention, ranks=run.ranks
    )
    assert metrics["eval/loss"] == pytest.approx(losses[-1], rel=1e-5)
    table: Any = run.model.get_input_embeddings().weight  # type: ignore[operator]
    assert table.shape[0] == 576
    assert not torch.equal(table[512], table[513])  # both began as the mean
    run.model.set_attn_implementation("eager")  # type: ignore[operator]
    words = AutoTokenizer.from_pretrained(run.corpus.path / "tokenizer")
    ids = words.apply_chat_template([{"role": "user", "content": "Say red."}], return_tensors="pt", return_dict=False)
    wanted = run.model(ids, use_cache=False).logits
    exported = export(run_dir)
    whole = AutoModelForCausalLM.from_pretrained(exported)
    assert (whole.config.vocab_size, hasattr(whole.config, "base_vocab_size")) == (576, False)
    assert len(AutoTokenizer.from_pretrained(exported)) == 514
    torch.testing.assert_close(whole(ids).logits, wanted, atol=1e-4, rtol=1e-4)
    assert "| vocabulary | 514 tokens; rows for 512 tokens in the base" in (exported / "README.md").read_text()
    answer = open_speaker(exported, max_new_tokens=12, temperature=0.0).answer([Message("user", "Say red and blue 1.")])
    assert answer.startswith("The")
    if run.cfg.tuning.method != "full":
        check_adapters(run_dir, ids, wanted, answer)


def check_adapters(run_dir: Path, ids: torch.Tensor, wanted: torch.Tensor, answer: str) -> None:
    """PEFT alone finds the rows it expects, one for each token of the tokenizer in the folder."""
    from peft import AutoPeftModelForCausalLM

    exported = export(run_dir, merge=False)
    with safe_open(exported / "adapter_model.safetensors", framework="pt") as file:
        rows = {file.get_slice(key).get_shape()[0] for key in file.keys() if "embed_tokens" in key}  # noqa: SIM118
    assert rows == {514}
    found = AutoPeftModelForCausalLM.from_pretrained(exported).eval()(ids).logits
    torch.testing.assert_close(found, wanted[..., :514], atol=1e-4, rtol=1e-4)
    asked = [Message("user", "Say red and blue 1.")]
    assert open_speaker(exported, max_new_tokens=12, temperature=0.0).answer(asked) == answer


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(500)
def test_a_kill_changes_no_bit(folder: Path) -> None:
    more = ("zero=3", "evaluation.at_start=false", "evaluation.at_end=false", "checkpoint.every_steps=2")
    more = (*more, "schedule.max_steps=12")
    code, output = train(2, *arguments(folder, "lora", "straight", *more))
    assert code == 0, output
    killed = arguments(folder, "lora", "killed", *more)
    kill_run(folder / "killed", 2, 3, signal.SIGKILL, killed)
    code, output = train(2, *killed)
    assert code == 0, output
    prints = [call("train.fingerprint", f"run_dir={folder / name}") for name in ("straight", "killed")]
    assert prints[0] == prints[1]
    assert prints[0][0] == 0
    resumed = [json.loads(line) for line in (folder / "killed" / "events.jsonl").read_text().splitlines()]
    assert "resume" in {event["kind"] for event in resumed}
