"""Held-out loss against a plain reference, metrics of several corpora, ZeRO-3 on two ranks."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from conf.compose import compose, save_config
from conf.errors import ConfigError
from tests.distributed import run_distributed
from tests.tiny import PACKING_FAMILIES, tiny_model
from tests.train.rows import ALONE, PAD, PADDED, VOCAB, FakeSplit, LoneRanks, Words, answered, fake_split, packed_model
from train.attention import Attention
from train.batches.feed import Feed
from train.evaluate.__main__ import asked_for
from train.evaluate.evaluation import evaluate_all, held_out_splits, write_samples
from train.evaluate.held_out import evenly_spaced, held_out_loss, pack_in_order
from train.ranks.group import Ranks


def reference_nll(kind: str, split: Any, rows: Sequence[int]) -> tuple[float, int]:
    """One sample at a time through an eager model, no packing and no padding."""
    model = tiny_model(kind, vocab_size=VOCAB, implementation="eager").eval()
    total, tokens = 0.0, 0
    for row in rows:
        ids, mask = (torch.from_numpy(each.astype(np.int64)) for each in split.tokens(row))
        with torch.no_grad():
            logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1].double()
        nll = functional.cross_entropy(logits, ids[1:], reduction="none")
        total += float(nll[mask[1:] == 1].sum())
        tokens += int(mask[1:].sum())
    return total, tokens


def loss_of(model: torch.nn.Module, split: Any, attention: Attention, ranks: Ranks = ALONE, **how: Any) -> Any:
    settings: dict[str, Any] = {"seq_len": 40, "max_rows": 0} | how
    feed = Feed([split], attention.layout, PAD, ranks, settings.pop("micro_size", 2))
    return held_out_loss(model, feed, **settings)


@pytest.mark.parametrize("kind", PACKING_FAMILIES)
def test_loss_of_packed_rows_equals_one_sample_at_a_time(kind: str) -> None:
    split = fake_split()
    model, attention = packed_model(kind)
    found = loss_of(model, split, attention)
    total, tokens = reference_nll(kind, split, range(split.rows))
    assert (found.weight, found.rows) == (tokens, split.rows)
    assert found.loss == pytest.approx(total / tokens, rel=2e-6)
    whole_head = loss_of(model, split, attention, targets_only=False)
    assert whole_head.nll == pytest.approx(found.nll, rel=1e-6)


@pytest.mark.parametrize("kind", ["llama", "bloom"])
def test_loss_of_padded_rows_equals_one_sample_at_a_time(kind: str) -> None:
    split = fake_split()
    implementation = "sdpa" if kind == "llama" else None
    found = loss_of(tiny_model(kind, vocab_size=VOCAB, implementation=implementation), split, PADDED)
    total, tokens = reference_nll(kind, split, range(split.rows))
    assert found.loss == pytest.approx(total / tokens, rel=2e-6)


@pytest.mark.parametrize("world", [2, 3, 5])
def test_shares_of_the_ranks_add_up_and_all_make_as_many_passes(world: int) -> None:
    split = fake_split(rows=13)
    model, attention = packed_model("llama")
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    model.register_forward_hook(count)
    shares, counts = [], []
    for rank in range(world):
        passes = 0
        shares.append(loss_of(model, split, attention, LoneRanks(rank=rank, world=world), seq_len=25))
        counts.append(passes)
    whole = loss_of(model, split, attention, seq_len=25)
    assert len(set(counts)) == 1
    assert sum(share.weight for share in shares) == whole.weight
    assert sum(share.nll for share in shares) == pytest.approx(whole.nll, rel=1e-6)


def test_loss_of_some_rows_and_of_none() -> None:
    split = fake_split(rows=10)
    model, attention = packed_model("llama")
    total, tokens = reference_nll("llama", split, [0, 3, 6])
    found = loss_of(model, split, attention, max_rows=3)
    assert (found.rows, found.weight) == (3, tokens)
    assert found.nll == pytest.approx(total, rel=2e-6)
    nothing = loss_of(model, FakeSplit("empty", []), attention)
    assert nothing.weight == 0
    assert math.isnan(nothing.loss)


@given(st.integers(0, 300), st.integers(0, 300))
def test_evenly_spaced_rows(rows: int, count: int) -> None:
    chosen = evenly_spaced(rows, count)
    assert len(chosen) == (rows if count == 0 else min(rows, count))
    assert chosen == sorted(set(chosen))
    assert all(0 <= row < rows for row in chosen)
    gaps = [after - row for row, after in pairwise(chosen)]
    assert not gaps or max(gaps) - min(gaps) <= 1


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(0, 64))
def test_packs_hold_every_row_once_in_order(lengths: list[int], seq_len: int) -> None:
    split: Any = FakeSplit("x", [(np.zeros(each, np.int32), np.ones(each, np.uint8)) for each in lengths])
    packed = pack_in_order(split, range(len(lengths)), seq_len)
    assert [row for each in packed for _, row in each.samples] == list(range(len(lengths)))
    assert all(sum(lengths[row] for _, row in each.samples) <= seq_len for each in packed if len(each.samples) > 1)


@dataclass
class FakeCorpus:
    splits: dict[str, Any]
    path: Path = Path("corpus")
    tokenizer_fingerprint: str = "f"
    manifest: dict[str, Any] = field(default_factory=lambda: {"max_tokens": 20})

    def split(self, name: str) -> dict[str, Any]:
        assert name == "validation"
        return self.splits


def run_config(**evaluation: Any) -> Any:
    from conf.compose import compose

    cfg = compose(["experiment=demo", "evaluation.generate_rows=2", "evaluation.max_new_tokens=3", "data.seq_len=64"])
    return replace(cfg, evaluation=replace(cfg.evaluation, **evaluation))


def test_evaluate_all_names_and_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    own: Any = FakeCorpus({"a": fake_split(rows=7, name="a"), "b": fake_split(rows=3, seed=5, name="b")})
    further: Any = FakeCorpus({"a": fake_split(rows=4, seed=9, name="a")})
    monkeypatch.setattr("train.evaluate.evaluation.open_at", lambda place, cache, **_: further)
    model, attention = packed_model("llama")
    cfg = run_config(sources={"extra": "somewhere"})
    metrics, samples = evaluate_all(model, own, cfg, tokenizer=Words(), attention=attention, ranks=Ranks())
    names = ("a", "b", "extra.a")
    expected = {f"eval/{name}/{figure}" for name in names for figure in ("loss", "exact_match", "rouge_l")}
    assert set(metrics) == {"eval/loss", *expected}
    parts = [reference_nll("llama", own.splits[name], range(own.splits[name].rows)) for name in ("a", "b")]
    assert metrics["eval/loss"] == pytest.approx(sum(nll for nll, _ in parts) / sum(n for _, n in parts), rel=2e-6)
    assert [sample["source"] for sample in samples] == ["a", "a", "b", "b", "extra.a", "extra.a"]


def test_further_corpora_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    own: Any = FakeCorpus({"x.a": fake_split()})
    with pytest.raises(ConfigError, match=r"x\.a is also a source of the run"):
        held_out_splits(own.splits, {"x": FakeCorpus({"a": fake_split()})})  # type: ignore[dict-item]
    other: Any = FakeCorpus({}, tokenizer_fingerprint="g", manifest={"max_tokens": 65})
    monkeypatch.setattr("train.evaluate.evaluation.open_at", lambda place, cache, **_: other)
    model, attention = packed_model("llama")
    with pytest.raises(ConfigError) as caught:
        evaluate_all(model, own, run_config(sources={"x": "p"}), tokenizer=Words(), attention=attention, ranks=Ranks())
    assert len(caught.value.problems) == 2
    assert "another tokenizer" in caught.value.problems[0]
    assert "65 tokens" in caught.value.problems[1]


def test_samples_file(tmp_path: Path) -> None:
    assert write_samples(tmp_path, 3, []) is None
    path = write_samples(tmp_path, 3, [{"source": "a", "answer": "é\n"}])
    assert path == tmp_path / "samples" / "step-00000003.jsonl"
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"source": "a", "answer": "é\n"}]


def test_the_short_keys_change_the_evaluation_section(tmp_path: Path) -> None:
    save_config(compose(["experiment=demo", "evaluation.max_rows=5"]), tmp_path / "run.yaml")
    frozen, step = asked_for([f"run_dir={tmp_path}"])
    assert (frozen.evaluation.max_rows, frozen.evaluation.generate_rows > 0, step) == (5, True, None)
    cfg, step = asked_for([f"run_dir={tmp_path}", "checkpoint=30", "max_rows=0", "evaluation.generate_rows=0"])
    assert (cfg.evaluation.max_rows, cfg.evaluation.generate_rows, step) == (0, 0, 30)
    with pytest.raises(ConfigError, match="max_rows=all: not a whole number"):
        asked_for([f"run_dir={tmp_path}", "max_rows=all"])
    with pytest.raises(ConfigError, match=r"optim\.lr: this command does not read it"):
        asked_for([f"run_dir={tmp_path}", "optim.lr=1"])


def in_zero3(ranks: Ranks) -> tuple[float, list[Any], float]:
    """Loss and answers of a model whose parameters lie in shards; then a training step still works."""
    from conf.schema import BatchConfig, ModelConfig, OptimConfig, ZeroConfig
    from train.engine import Engine, deepspeed_settings

    model, attention = packed_model("llama")
    optim, zero = OptimConfig(), ZeroConfig(stage=3, persistence_threshold=0)
    settings = deepspeed_settings(
        model=ModelConfig(path="x", dtype="fp32"),
        zero=zero,
        optim=optim,
        batch=BatchConfig(4, 2),
        world=ranks.world,
        on_cpu=True,
    )
    engine = Engine(model, dict(model.named_parameters()), settings=settings, optim=optim, zero=zero, ranks=ranks)
    norms = []
    for _ in range(2):
        loss = held_out_loss(
            engine.module, Feed([fake_split()], attention.layout, PAD, ranks, 2), seq_len=40, max_rows=0
        )
        answers = answered(
            engine.module, fake_split(), Words(), rows=5, max_new_tokens=6, batch_size=2, ranks=ranks, synced=True
        )
        engine.module.train()
        ids = torch.arange(6)[None]
        bounds = torch.tensor([0, 6], dtype=torch.int32)
        logits = engine.module(
            input_ids=ids,
            position_ids=ids,
            attention_mask=None,
            use_cache=False,
            cu_seq_lens_q=bounds,
            cu_seq_lens_k=bounds,
            max_length_q=6,
            max_length_k=6,
        ).logits
        engine.accumulate(logits.float().square().sum() / ranks.world, last=True)
        norms.append(engine.step(0.0).grad_norm)
    assert norms[0] == pytest.approx(norms[1])
    return loss.loss, answers, norms[0]


@pytest.mark.slow
def test_under_zero3_on_two_ranks_as_on_one() -> None:
    model, attention = packed_model("llama")
    loss = loss_of(model, fake_split(), attention)
    answers = answered(
        model, fake_split(), Words(), rows=5, max_new_tokens=6, batch_size=2, ranks=Ranks(), synced=False
    )
    for found_loss, found_answers, norm in run_distributed(in_zero3, 2):
        assert found_loss == pytest.approx(loss.loss, rel=1e-6)
        assert found_answers == answers
        assert norm > 0
