"""``train.verify`` holds for every shipped experiment, with the models' published configs and real rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conf.compose import ROOT, compose, groups
from data_prep.prepare import prepare
from tests.end_to_end.commands import tiny_run
from train.families import family, known_models
from train.verify.comparisons import proof_of, prove, verdict

PUBLISHED: dict[str, dict[str, Any]] = {
    "alpaca_gpt2_full": {
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "attn_pdrop": 0.1,
        "bos_token_id": 50256,
        "embd_pdrop": 0.1,
        "eos_token_id": 50256,
        "n_ctx": 1024,
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "n_positions": 1024,
        "resid_pdrop": 0.1,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "vocab_size": 50257,
    },
    "alpaca_llama32_1b_full": {
        "model_type": "llama",
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "head_dim": 64,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": 128256,
    },
    "demo_lora": {
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "vocab_size": 1024,
    },
}
"""config.json of the experiments' models as published, which are not to be had without a network."""
PUBLISHED["alpaca_llama3_8b_full"] = PUBLISHED["alpaca_llama32_1b_full"] | {
    "head_dim": 128,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "tie_word_embeddings": False,
}
PUBLISHED["alpaca_llama3_8b_lora"] = PUBLISHED["alpaca_llama3_8b_full"]


def experiment(name: str, alpaca: Path, folder: Path) -> list[str]:
    """Overrides of a shipped experiment for a machine without network: its model's config, a corpus of real rows."""
    overrides = [f"experiment={name}", f"data.prepared={folder / 'corpus' / name}"]
    if name in PUBLISHED:
        model = folder / name
        model.mkdir()
        (model / "config.json").write_text(json.dumps(PUBLISHED[name]))
        overrides += [f"model.path={model}", "model.tokenizer=train", "model.vocab_size=512"]
    sources = compose(overrides).data.sources
    rows = [f"data.sources.{source}.rows=200" for source in sources]
    overrides += ["data.bad_row_budget=0.9"]  # a vocabulary of 512 makes some samples longer than a row
    return overrides + rows + [f"data.sources.{source}.path={alpaca}" for source in sources if source == "alpaca"]


@pytest.mark.parity
@pytest.mark.timeout(900)
def test_a_shrunken_copy_of_every_experiment_holds(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    """As ``python -m train.verify experiment=NAME`` would, all experiments in the same two launches."""
    names = groups([ROOT])["experiment"]
    proofs = []
    for name in names:
        overrides = experiment(name, real_data("alpaca/alpaca_data.json.gz"), tmp_path)
        cfg = compose(overrides)
        prepare(cfg, argv=overrides)
        proofs.append(proof_of(cfg, overrides, tmp_path / "small" / name, "fp32"))
    for name, proof, (comparisons, plain) in zip(names, proofs, prove(proofs, tmp_path), strict=True):
        print(f"{name}: {max(comparisons, key=lambda each: each.error)}")
        assert all(each.holds for each in comparisons), (name, verdict(proof.cfg, comparisons, plain))


@pytest.mark.parity
@pytest.mark.timeout(900)
def test_a_shrunken_copy_of_every_family_holds(tmp_path: Path) -> None:
    """As ``python -m train.verify model=NAME`` would, one model of each family, on one corpus."""
    models = {model["model_type"]: model for model in known_models().values()}
    proofs, run = [], tiny_run(tmp_path, "run")
    prepare(compose(run), argv=run)
    for kind, model in models.items():
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "config.json").write_text(json.dumps(model))
        overrides = [*run, "model.config=null", "model.init=pretrained", f"model.path={tmp_path / kind}", "zero=3"]
        overrides += [] if family(kind).packing else ["data.pack=none"]
        proofs.append(proof_of(compose(overrides), overrides, tmp_path / "small" / kind, "fp32"))
    for kind, proof, (comparisons, plain) in zip(models, proofs, prove(proofs, tmp_path), strict=True):
        print(f"{kind}: {max(comparisons, key=lambda each: each.error)}")
        assert all(each.holds for each in comparisons), (kind, verdict(proof.cfg, comparisons, plain))


@pytest.mark.parity
def test_half_precision_is_no_worse_than_plain_torch(tmp_path: Path) -> None:
    overrides = tiny_run(tmp_path, "run", "model.dtype=bf16")
    cfg = compose(overrides)
    prepare(cfg, argv=overrides)
    (comparisons, plain), *_ = prove([proof_of(cfg, overrides, tmp_path / "small", "bf16")], tmp_path)
    assert all(each.holds for each in comparisons), verdict(cfg, comparisons, plain)
    assert 1e-4 < plain < 2e-2
