"""Parameter counts against real models and published sizes; memory against the closed formulas by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conf.compose import compose
from conf.errors import ConfigError, MissingInput
from conf.schema import ModelConfig
from train.parameters import shape_of
from train.plan import GIB, activation_bytes, memory, plan, read_model_config, states

LLAMA_31_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
LLAMA_32_1B = LLAMA_31_8B | {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "head_dim": 64,
    "tie_word_embeddings": True,
}
GPT2 = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}
PYTHIA_160M = {
    "model_type": "gpt_neox",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 50304,
}
BLOOM_560M = {"model_type": "bloom", "n_embed": 1024, "n_layer": 24, "n_head": 16, "vocab_size": 250880}
MISTRAL_7B = LLAMA_31_8B | {"model_type": "mistral", "vocab_size": 32000}


@pytest.mark.parametrize(
    ("config", "published"),
    [
        (LLAMA_31_8B, 8_030_261_248),
        (LLAMA_32_1B, 1_235_814_400),
        (GPT2, 124_439_808),
        (PYTHIA_160M, 162_322_944),
        (BLOOM_560M, 559_214_592),
        (MISTRAL_7B, 7_241_732_096),
    ],
)
def test_published_sizes(config: dict[str, Any], published: int) -> None:
    assert shape_of(config).total == published


SMALL = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 101,
}
SMALL_GPT2 = {"model_type": "gpt2", "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": 101}
SMALL_BLOOM = {"model_type": "bloom", "hidden_size": 48, "n_layer": 2, "n_head": 4, "vocab_size": 101}
TINY: list[dict[str, Any]] = [
    {"model_type": "llama"} | SMALL,
    {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 16}
    | SMALL,
    {"model_type": "mistral"} | SMALL,
    {"model_type": "qwen2"} | SMALL,
    {"model_type": "qwen3"} | SMALL,
    {"model_type": "qwen3", "head_dim": 16, "attention_bias": True} | SMALL,
    {"model_type": "gemma2", "tie_word_embeddings": False, "attention_bias": True} | SMALL,
    {"model_type": "gemma3_text", "head_dim": 16} | SMALL,
    {"model_type": "olmo2"} | SMALL,
    {"model_type": "phi"} | SMALL,
    {"model_type": "phi", "qk_layernorm": True, "tie_word_embeddings": True} | SMALL,
    {"model_type": "phi3", "pad_token_id": None} | SMALL,
    {"model_type": "gpt_neox"} | SMALL,
    {"model_type": "gpt_neox", "attention_bias": False, "tie_word_embeddings": True} | SMALL,
    SMALL_GPT2,
    SMALL_GPT2 | {"n_inner": 100, "tie_word_embeddings": False},
    SMALL_BLOOM,
]


@pytest.mark.parametrize("config", TINY, ids=lambda config: config["model_type"])
def test_counts_and_lora_targets_equal_real_models(config: dict[str, Any]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    real = AutoConfig.for_model(**config)
    model = AutoModelForCausalLM.from_config(real)
    shape = shape_of(config)
    assert shape.total == sum(parameter.numel() for parameter in model.parameters())
    head = model.get_output_embeddings()
    adapted = 0
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head:
            adapted += 4 * sum(module.weight.shape)
    assert shape.adapters(4) == adapted


def test_lora_targets_by_name() -> None:
    assert shape_of(GPT2).adapters(8, ["c_attn"]) == 12 * 8 * (768 + 3 * 768)
    assert shape_of(LLAMA_31_8B).adapters(16, ["q_proj", "v_proj"]) == 32 * 16 * (4096 + 4096 + 4096 + 1024)


def test_a_family_or_a_key_that_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match="model_type 'rwkv'"):
        shape_of({"model_type": "rwkv"})
    with pytest.raises(ConfigError, match="needs the key 'intermediate_size'"):
        shape_of({key: value for key, value in LLAMA_31_8B.items() if key != "intermediate_size"})


def test_states_of_8b_full_tuning_with_fp32_master_weights() -> None:
    one = states(8_030_261_248, 0, stage=2, world=1, dtype="bf16")
    assert one.states / GIB == pytest.approx(119.7, abs=0.05)
    assert (one.states + one.accumulation) / GIB == pytest.approx(134.6, abs=0.05)


@pytest.mark.parametrize(("stage", "expected"), [(0, 16.0), (1, 4 + 12 / 8), (2, 2 + 14 / 8), (3, 16 / 8)])
def test_bytes_per_parameter_of_each_stage(stage: int, expected: float) -> None:
    assert states(1000, 0, stage=stage, world=8, dtype="bf16").states == pytest.approx(1000 * expected)


def test_a_frozen_base_costs_its_weights_only() -> None:
    lora = states(1000, 10**6, stage=2, world=1, dtype="bf16")
    assert lora.states == 2 * 10**6 + 16 * 1000
    assert states(1000, 10**6, stage=3, world=4, dtype="bf16").states == pytest.approx((2 * 10**6 + 16 * 1000) / 4)


def test_offload_moves_and_loses_nothing() -> None:
    at_home = states(1000, 0, stage=3, world=2, dtype="bf16")
    optimizer = states(1000, 0, stage=3, world=2, dtype="bf16", offload="optimizer")
    everything = states(1000, 0, stage=3, world=2, dtype="bf16", offload="all")
    assert optimizer.optimizer == 0
    assert everything.weights == 0
    for moved in (optimizer, everything):
        assert moved.device + moved.host == pytest.approx(at_home.device)


def test_recomputation_saves_activations_in_order() -> None:
    shape = shape_of(LLAMA_31_8B)
    none, selective, full = (
        activation_bytes(shape, 2048, per_unit=58, recompute=kind, dtype="bf16")
        for kind in ("none", "selective", "full")
    )
    assert none == 2048 * 4096 * 32 * 58
    assert full == 2048 * 4096 * (32 * 2 + 58)
    assert full < selective < none


def test_known_fits() -> None:
    cfg = compose(["model=llama31_8b", "cluster.gpu_memory_gib=139.0", "data.seq_len=2048"])
    full = plan(cfg, LLAMA_31_8B)
    assert not full.fits(full.chosen)
    assert full.trained == full.parameters == 8_030_261_248
    offloaded = plan(replace(cfg, zero=replace(cfg.zero, offload="optimizer")), LLAMA_31_8B)
    assert offloaded.fits(offloaded.chosen)
    lora = plan(compose(["model=llama31_8b", "tuning=lora", "data.seq_len=2048"]), LLAMA_31_8B)
    assert lora.fits(lora.chosen)
    json.dumps(lora.to_dict())


def test_the_targets_only_head_counts_supervised_tokens() -> None:
    cfg, shape = compose(["model=llama32_1b", "data.seq_len=1024"]), shape_of(LLAMA_32_1B)
    quarter = memory(cfg, shape, stage=2, recompute="none", supervised=0.25)
    assert quarter.logits == 14 * 256 * 128256
    padded = replace(cfg, data=replace(cfg.data, pack="none"))
    assert memory(padded, shape, stage=2, recompute="none", supervised=0.25).logits == 14 * 1024 * 128256


def test_the_model_config_is_read_from_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GPT2))
    assert read_model_config(ModelConfig(path=str(tmp_path))) == GPT2
    inline = ModelConfig(config={"model_type": "gpt2"}, init="random", tokenizer="train", vocab_size=512)
    assert read_model_config(inline)["vocab_size"] == 512
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        read_model_config(ModelConfig(path=str(tmp_path)))
    (tmp_path / "config.json").unlink()
    with pytest.raises(MissingInput, match=r"no config\.json"):
        read_model_config(ModelConfig(path=str(tmp_path)))


@pytest.mark.parametrize("name", ["nobody/nothing-here", "no such/folder/at all"])
def test_a_model_that_is_not_on_this_machine_is_not_downloaded(name: str) -> None:
    with pytest.raises(MissingInput, match="neither a local folder nor in the local hub cache"):
        read_model_config(ModelConfig(path=name))
