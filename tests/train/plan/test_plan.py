"""Parameter counts against real models and published sizes; memory against the closed formulas by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from conf.compose import ROOT, compose, groups
from conf.errors import ConfigError
from train.families import Work, family, known_model, known_models, shape_of
from train.plan import GIB, Corpus, plan
from train.plan.activations import step_peaks
from train.plan.blocks import block_bytes, kept_by_block
from train.plan.memory import memory, states

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


def test_the_table_of_known_models_has_their_published_sizes() -> None:
    published = {
        "meta-llama/Llama-3.1-8B": 8_030_261_248,
        "meta-llama/Llama-3.1-70B": 70_553_706_496,
        "meta-llama/Llama-3.2-1B": 1_235_814_400,
        "mistralai/Mistral-7B-v0.1": 7_241_732_096,
        "Qwen/Qwen3-0.6B-Base": 596_049_920,
        "Qwen/Qwen3-1.7B-Base": 1_720_574_976,
        "Qwen/Qwen3-8B-Base": 8_190_735_360,
        "openai-community/gpt2": 124_439_808,
        "EleutherAI/pythia-160m": 162_322_944,
        "bigscience/bloom-560m": 559_214_592,
        "Qwen/Qwen2.5-0.5B": 494_032_768,
        "allenai/OLMo-2-0425-1B": 1_484_916_736,
        "google/gemma-2-2b": 2_614_341_888,
        "google/gemma-3-1b-pt": 999_885_952,
        "microsoft/phi-2": 2_779_683_840,
        "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    }
    table = known_models()
    offered = {compose([f"model={name}"]).model.path for name in groups([ROOT])["model"]}
    assert {path for path in offered if path and not path.startswith("outputs/")} <= table.keys()
    assert {name: shape_of(model).total for name, model in table.items()} == published


def test_states_of_8b_full_tuning_with_fp32_master_weights() -> None:
    one = states(8_030_261_248, 0, stage=2, world=1, dtype="bf16")
    assert (one.device - one.accumulation) / GIB == pytest.approx(119.7, abs=0.05)
    assert one.device / GIB == pytest.approx(134.6, abs=0.05)


@pytest.mark.parametrize(("stage", "expected"), [(1, 8 + 12 / 8), (2, 2 + 16 / 8), (3, 18 / 8)])
def test_bytes_per_parameter_of_each_stage(stage: int, expected: float) -> None:
    assert states(1000, 0, stage=stage, world=8, dtype="bf16").device == pytest.approx(1000 * expected)


def test_a_frozen_base_costs_its_weights_only() -> None:
    lora = states(1000, 2 * 10**6, stage=2, world=1, dtype="bf16")
    assert lora.device == 2 * 10**6 + 18 * 1000
    assert states(1000, 2 * 10**6, stage=3, world=4, dtype="bf16").device == pytest.approx((2e6 + 18 * 1000) / 4)


def test_offload_takes_the_optimizer_off_the_device() -> None:
    at_home = states(1000, 0, stage=3, world=2, dtype="bf16")
    optimizer = states(1000, 0, stage=3, world=2, dtype="bf16", offload="optimizer")
    everything = states(1000, 0, stage=3, world=2, dtype="bf16", offload="all")
    assert optimizer.device == at_home.weights
    assert everything.device == 0
    assert everything.host == optimizer.host + at_home.weights > at_home.optimizer


def work(tokens: int, method: str = "full", logits: int = 1) -> Work:
    adapted = family("llama").lora_targets if method == "lora" else None
    return Work(tokens, logits, tokens, 2, adapted, 16)


def test_bytes_that_a_llama_block_keeps() -> None:
    """By hand: two norms 8h each, queries, keys, values, output and log-sum-exp, and 8i of the MLP."""
    model = LLAMA_31_8B | {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16}
    model |= {"num_key_value_heads": 4}
    full = block_bytes(kept_by_block(model, shape_of(model), work(1)), work(1))
    assert full == 16 * 1024 + 8 + 4 * 1024 + 4 * 256 + 4 * 16 + 8 * 2816
    lora = block_bytes(kept_by_block(model, shape_of(model), work(1, "lora")), work(1, "lora"))
    assert lora == full - 4 * 1024 + 7 * 2 * 16


def test_recomputation_saves_activations_in_order() -> None:
    shape = shape_of(LLAMA_31_8B)
    none, selective, full = (
        step_peaks(LLAMA_31_8B, shape, work(2048), recompute)["deepest"].total
        for recompute in ("none", "selective", "full")  # type: ignore[misc]
    )
    assert none > 1.85 * selective
    assert selective > 5 * full > 0


def test_adapters_with_dropout_keep_a_mask_and_its_output() -> None:
    shape, dry = shape_of(LLAMA_31_8B), work(1, "lora")
    wet = replace(dry, dropout=0.1)
    more = block_bytes(kept_by_block(LLAMA_31_8B, shape, wet), wet) - block_bytes(
        kept_by_block(LLAMA_31_8B, shape, dry), dry
    )
    inputs = {"q": 4096, "k": 4096, "v": 4096, "o": 4096, "gate": 4096, "up": 4096, "down": 14336}
    assert more == 3 * sum(inputs.values()) - 2 * (4096 + 4096 + 14336)


def test_known_fits() -> None:
    """8B in full on one GPU of 139 GiB: only with offload. 8B LoRA: 80 GiB with room.

    Recomputation alone is not enough: DeepSpeed takes the norm of the table's gradient in fp64, a copy of 3.9 GiB.
    """
    sized = ["model=llama31_8b", "model.recompute=none", "batch.global_size=128"]
    cfg = compose([*sized, "cluster.gpu_memory_gib=139.0", "data.seq_len=2048"])
    alpaca = Corpus(rows=52_000, tokens=6_000_000, supervised=0.5)
    full = plan(cfg, LLAMA_31_8B, alpaca)
    assert not full.fits(full.chosen)
    assert full.trained == full.parameters == 8_030_261_248
    recomputed = full.recomputations["full"]
    assert (recomputed.phase, recomputed.passing) == ("reduce", 8 * 128256 * 4096)
    assert recomputed.device - recomputed.passing < 139 * GIB < recomputed.device
    offloaded = plan(replace(cfg, zero=replace(cfg.zero, offload="optimizer")), LLAMA_31_8B, alpaca)
    assert offloaded.fits(offloaded.chosen)
    lora = plan(compose([*sized, "tuning=lora"]), LLAMA_31_8B, alpaca)
    assert lora.chosen.device < 0.6 * 80 * GIB
    json.dumps(lora.to_dict())


def test_70b_in_full_needs_stage_3_over_several_nodes() -> None:
    model = known_model("meta-llama/Llama-3.1-70B")
    assert model is not None
    named = ["model=llama31_8b", "model.path=meta-llama/Llama-3.1-70B", "batch.global_size=128"]
    cfg = compose([*named, "cluster.gpus_per_node=8"])
    for nodes, fitting in ((1, set()), (4, {3}), (16, {3})):
        sized = replace(cfg, cluster=replace(cfg.cluster, nodes=nodes), model=replace(cfg.model, recompute="full"))
        found = plan(sized, model, Corpus(1, 100, 0.5))
        assert {stage for stage, each in found.stages.items() if found.fits(each)} == fitting, nodes


def test_the_targets_only_head_counts_supervised_tokens() -> None:
    cfg, shape = compose(["model=llama32_1b", "data.seq_len=1024", "batch.global_size=128"]), shape_of(LLAMA_32_1B)
    quarter = memory(cfg, LLAMA_32_1B, shape, stage=2, recompute="none", supervised=0.25)
    padded = replace(cfg, data=replace(cfg.data, pack="none"))
    whole = memory(padded, LLAMA_32_1B, shape, stage=2, recompute="none", supervised=0.25)
    assert (whole.logits, whole.phase) == (12 * 1024 * 128256, "loss")
    assert quarter.logits < whole.logits / 2
