"""A tiny twin of every shipped model's family, full and LoRA, learns through the real loop on two ranks."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conf.compose import compose
from conf.schema import BatchConfig, FullTuning, LoraTuning, ModelConfig, StopConfig
from data_prep.stream.stream import Stream
from tests.distributed import run_distributed
from tests.tiny import FAMILIES, tiny_config, tiny_run
from tests.train.rows import FakeSplit
from train.assembly import model_and_engine
from train.batches.feed import Feed
from train.loop import training_steps
from train.model.build import TokenIds
from train.objectives import objective_of
from train.ranks.group import Ranks

SHIPPED = {
    "bloom_560m": "bloom",
    "demo_llama": "llama",
    "demo_tuned": "llama",
    "gemma2_2b": "gemma2",
    "gemma3_1b": "gemma3_text",
    "gpt2": "gpt2",
    "llama31_8b": "llama",
    "llama32_1b": "llama",
    "mistral_7b": "mistral",
    "olmo2_1b": "olmo2",
    "phi2": "phi",
    "phi3_mini": "phi3",
    "pythia_160m": "gpt_neox",
    "qwen25_0p5b": "qwen2",
    "qwen3_0p6b": "qwen3",
    "qwen3_1p7b": "qwen3",
    "qwen3_8b": "qwen3",
}
"""Entry of conf/model -> the family of its twin."""
ADAPTED = ("llama", "phi3", "gpt2", "bloom")
"""Plain, fused and transposed linear layers; adapters of every family are looked at in test_tuning.py."""
STEPS = 20


def rows() -> FakeSplit:
    """Ragged samples that repeat one pattern: a few steps are enough to see the loss fall."""
    samples = []
    for length in itertools.islice(itertools.cycle((5, 9, 14, 7)), 24):
        ids = np.arange(length, dtype=np.int32) % 7 + 3
        mask = np.ones(length, dtype=np.uint8)
        mask[:2] = 0
        samples.append((ids, mask))
    return FakeSplit("tiny", samples)


def losses(ranks: Ranks, folder: str, kinds: list[tuple[str, str]]) -> dict[tuple[str, str], list[float]]:
    found = {}
    for kind, method in kinds:
        config = {key: value for key, value in tiny_config(kind).items() if key != "vocab_size"}
        tuning: Any = FullTuning(method="full") if method == "full" else LoraTuning(method="lora", rank=8, alpha=8.0)
        cfg = tiny_run(
            Path(folder, f"{kind}-{method}"),
            ModelConfig(config=config, init="random", dtype="fp32", tokenizer="train"),
            tuning=tuning,
            pack="none" if kind == "bloom" else "exact",
            seq_len=32,
        )
        data = dataclasses.replace(cfg.data, stop=StopConfig(epochs=20.0))
        cfg = dataclasses.replace(cfg, data=data, batch=BatchConfig(global_size=5, micro_size=2))
        found[kind, method] = _train(cfg, ranks)
    return found


def _train(cfg: Any, ranks: Ranks) -> list[float]:
    built, engine = model_and_engine(cfg, ranks, TokenIds(61, pad_id=1, eos_id=0))
    split: Any = rows()
    stream = Stream({"tiny": split}, cfg.data, seed=0, global_size=5, max_steps=STEPS)
    reports = training_steps(
        engine,
        stream,
        Feed([split], built.attention.layout, 1, ranks, 2),
        objective_of(cfg, None),
        lr_at=lambda step: 1e-2,
    )
    return [report.loss for report in reports]


@pytest.mark.slow
def test_every_family_learns_in_full_and_by_lora(tmp_path: Path) -> None:
    kinds = [(kind, "full") for kind in FAMILIES] + [(kind, "lora") for kind in ADAPTED]
    first, second = run_distributed(losses, 2, str(tmp_path), kinds)
    assert first == second  # the loss is one number, whoever reports it
    for (kind, method), curve in first.items():
        assert len(curve) == STEPS, (kind, method)
        assert sum(curve[-3:]) / 3 < curve[0] - 0.1, (kind, method, curve)


def test_every_shipped_model_has_a_twin() -> None:
    entries = {path.stem for path in Path("conf/model").glob("*.yaml")}
    assert entries == SHIPPED.keys()
    assert set(SHIPPED.values()) == set(FAMILIES)
    for entry, kind in SHIPPED.items():
        assert compose([f"model={entry}"]).data.pack == ("none" if kind == "bloom" else "exact")
