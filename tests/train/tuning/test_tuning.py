"""Tuning methods: what is trained, how adapters start, what unknown targets say, and merging."""

from __future__ import annotations

import math

import pytest
import torch
from peft import PeftModel
from torch import nn

from conf.errors import ConfigError
from conf.schema import FullTuning, LoraTuning
from tests.tiny import FAMILIES, tiny_model
from train import tuning
from train.families import family

LORA = LoraTuning(method="lora", rank=4, alpha=8.0)
IDS = {"input_ids": torch.arange(12)[None], "attention_mask": torch.ones(1, 12).long(), "use_cache": False}


def adapted(
    kind: str = "llama", *, seed: int = 7, lora: LoraTuning = LORA, dtype: torch.dtype = torch.float32
) -> nn.Module:
    return tuning.apply(tiny_model(kind).to(dtype), lora, family(kind), seed=seed)


def shaken(model: nn.Module) -> nn.Module:
    """``model`` as if it had been trained: B is no longer zero."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in tuning.trainable(model).items():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_full_tuning_names_every_weight_once(tied: bool) -> None:
    model = tiny_model("llama", tied=tied).requires_grad_(False)
    names = tuning.trainable(tuning.apply(model, FullTuning(method="full"), family("llama"), seed=0))
    assert ("lm_head.weight" in names) is not tied
    assert "model.embed_tokens.weight" in names
    assert sum(p.numel() for p in names.values()) == sum(p.numel() for p in model.parameters())
    assert tuning.merge(model, FullTuning(method="full")) is model


@pytest.mark.parametrize("kind", FAMILIES)
def test_lora_trains_only_adapters_and_starts_as_the_base(kind: str) -> None:
    base, model = tiny_model(kind), adapted(kind)
    names = tuning.trainable(model)
    assert names
    assert all("lora_" in name for name in names)
    touched = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in names}
    assert touched == set(family(kind).lora_targets)
    torch.testing.assert_close(model(**IDS).logits, base(**IDS).logits, atol=1e-6, rtol=0)


def test_adapters_start_from_the_seed_and_their_names_alone() -> None:
    """Another global random state, another dtype and another set of targets leave every shared adapter as it was."""
    torch.manual_seed(1)
    first = tuning.trainable(adapted())
    torch.manual_seed(2)
    second = tuning.trainable(adapted())
    fewer = tuning.trainable(adapted(lora=LoraTuning(method="lora", rank=4, targets=["v_proj"])))
    other = tuning.trainable(adapted(seed=8))
    assert len(fewer) == 6
    for name, parameter in first.items():
        assert torch.equal(parameter, second[name])
        if name in fewer:
            assert torch.equal(parameter, fewer[name])
        if "lora_A" in name:
            bound = 1 / math.sqrt(parameter.shape[1])
            assert not torch.equal(parameter, other[name])
            assert 0.8 * bound < float(parameter.detach().abs().max()) <= bound
        else:
            assert not parameter.any()
    for name, parameter in tuning.trainable(adapted(dtype=torch.bfloat16)).items():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, first[name].bfloat16())


@pytest.mark.parametrize("targets", [["q_prj"], ["q_proj", "nope"], []])
def test_unknown_targets_list_what_there_is(targets: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"tuning\.targets: .*it has down_proj, gate_proj, k_proj, lm_head, o_proj"):
        adapted(lora=LoraTuning(method="lora", targets=targets))


@pytest.mark.parametrize("kind", FAMILIES)
def test_merging_computes_the_same_function(kind: str) -> None:
    model = shaken(adapted(kind)).eval()
    before = model(**IDS).logits
    assert (before - tiny_model(kind).eval()(**IDS).logits).abs().max() > 1e-2
    merged = tuning.merge(model, LORA)
    assert not isinstance(merged, PeftModel)
    assert {name for name, _ in merged.named_parameters()} == {name for name, _ in tiny_model(kind).named_parameters()}
    torch.testing.assert_close(merged(**IDS).logits, before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_merging_in_bf16_rounds_once(kind: str) -> None:
    """Each merged weight is the bf16 number nearest to W + (alpha / rank) B A in fp32."""
    model = shaken(adapted(kind, dtype=torch.bfloat16))
    name = "q_proj" if kind == "llama" else "c_attn"
    layer = next(module for path, module in model.named_modules() if path.endswith(name))
    a, b = layer.lora_A["default"].weight.float(), layer.lora_B["default"].weight.float()
    delta = 2.0 * (b @ a)
    expected = (layer.base_layer.weight.float() + (delta.T if kind == "gpt2" else delta)).bfloat16()
    merged = tuning.merge(model, LORA)
    found = next(module for path, module in merged.named_modules() if path.endswith(name))
    assert torch.equal(found.weight, expected)
