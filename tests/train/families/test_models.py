"""What the family files claim is true of transformers' models; recomputation changes nothing but memory."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoConfig
from transformers.pytorch_utils import Conv1D

from conf.errors import ConfigError, InternalError
from conf.schema import LoraTuning
from tests.tiny import FAMILIES, tiny_config, tiny_model
from train import tuning
from train.attention import choose
from train.families import families, family, shape_of
from train.model.recompute import set_recompute


def test_every_family_file_names_itself() -> None:
    assert {family(name).model_type for name in families()} == set(families())
    assert set(FAMILIES) <= set(families())


def test_unknown_family_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'mistral'.*known: bloom, gemma2, gemma3_text, gpt2"):
        family("mistal")


@pytest.mark.parametrize("kind", FAMILIES)
def test_blocks_and_targets_are_those_of_the_model(kind: str) -> None:
    """``lora_targets`` is exactly the set of linear layers inside blocks, and every dropout key exists."""
    facts, model = family(kind), tiny_model(kind)
    blocks = [module for module in model.modules() if type(module).__name__ == facts.block_class]
    assert len(blocks) == 3
    linear = {
        name.rsplit(".", 1)[-1]
        for block in blocks
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }
    assert set(facts.lora_targets) == linear
    keys = model.config.to_dict()
    assert set(facts.dropouts) <= set(keys)
    assert not facts.position_limit or facts.position_limit in keys
    assert facts.fan_in_fan_out == any(isinstance(module, Conv1D) for module in model.modules())


def test_an_architecture_that_no_objective_trains_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = dataclasses.replace(family("llama"), model_type="t5", architecture="seq2seq")
    monkeypatch.setitem(sys.modules, "train.families.t5", SimpleNamespace(FAMILY=facts))
    monkeypatch.setattr("train.families.families", lambda: ["t5"])
    with pytest.raises(ConfigError, match="'t5' is of architecture seq2seq"):
        family("t5")


@pytest.mark.parametrize("kind", FAMILIES)
def test_layers_have_the_widths_of_their_roles(kind: str) -> None:
    """Every path names one linear layer of a block, and its role gives its sizes."""
    model, shape = tiny_model(kind), shape_of(tiny_config(kind))
    block = next(module for module in model.modules() if type(module).__name__ == family(kind).block_class)
    for linear in shape.linears:
        module = block.get_submodule(linear.path)
        size = module.weight.shape[::-1] if isinstance(module, nn.Linear) else module.weight.shape  # Conv1D: [in, out]
        assert tuple(size) == (linear.inputs, linear.outputs), linear
        assert (module.bias is not None) == linear.bias, linear
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert (shape.heads, shape.query) == (config.num_attention_heads, config.num_attention_heads * width)
    assert shape.key == (getattr(config, "num_key_value_heads", None) or shape.heads) * width
    assert model.get_submodule(shape.head) is model.get_output_embeddings()


@pytest.mark.parametrize("kind", FAMILIES)
def test_defaults_are_those_of_the_class(kind: str) -> None:
    bare = AutoConfig.for_model(kind)
    for key, value in family(kind).defaults.items():
        rotated = (getattr(bare, "rope_parameters", None) or {}).get("partial_rotary_factor")
        assert getattr(bare, key, rotated) == value, key
    sparse = {key: value for key, value in tiny_config(kind).items() if key != "tie_word_embeddings"}
    assert shape_of(sparse).tied == bool(bare.tie_word_embeddings)


@pytest.mark.parametrize("kind", FAMILIES)
def test_no_dropout_is_left_out(kind: str) -> None:
    """With the named keys at 0 a model in train mode is a function: two passes agree bit for bit."""
    model = tiny_model(kind, dropout=0.5)
    for key in family(kind).dropouts:
        setattr(model.config, key, 0.0)
    again = type(model)(model.config).train()
    row = {"input_ids": torch.arange(20)[None], "attention_mask": torch.ones(1, 20).long(), "use_cache": False}
    assert torch.equal(again(**row).logits, again(**row).logits)


def packed_row() -> dict[str, object]:
    lengths = (6, 3, 8)
    bounds = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    return {
        "input_ids": torch.randint(0, 64, (1, 17), generator=torch.Generator().manual_seed(1)),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "use_cache": False,
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": 8,
        "max_length_k": 8,
    }


def gradients(model: nn.Module, row: dict[str, object]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    logits = model(**row).logits
    nn.functional.cross_entropy(logits[0, :-1], row["input_ids"][0, 1:]).backward()  # type: ignore[index]
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_recomputation_leaves_every_gradient_alone(kind: str, adapted: bool) -> None:
    facts = family(kind)
    if facts.packing:
        found = choose("packed", family=facts, pack="exact", dtype=torch.float32, device=torch.device("cpu"))
        model: nn.Module = tiny_model(kind, implementation=found.implementation)
        row = packed_row()
    else:
        model = tiny_model(kind)
        row = {"input_ids": packed_row()["input_ids"], "attention_mask": torch.ones(1, 17).long(), "use_cache": False}
    if adapted:
        # With dropout: the second pass must draw the same mask.
        lora = LoraTuning(method="lora", rank=2, dropout=0.3)
        model = tuning.apply(model, lora, facts, seed=1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter)
    calls = count_block_calls(model, facts.block_class)
    results, passes = {}, {}
    for policy in ("none", "selective", "full"):
        set_recompute(model, policy, block_class=facts.block_class)
        calls.clear()
        torch.manual_seed(0)
        results[policy] = gradients(model, row)
        passes[policy] = len(calls)
    assert passes == {"none": 3, "selective": 5, "full": 6}
    for policy in ("selective", "full"):
        assert results[policy].keys() == results["none"].keys()
        for name, gradient in results["none"].items():
            torch.testing.assert_close(results[policy][name], gradient, atol=1e-6, rtol=1e-5)


def count_block_calls(model: nn.Module, block_class: str) -> list[int]:
    """Grows by one whenever the inside of a block is computed: its first norm is called once per pass."""
    calls: list[int] = []
    for block in model.modules():
        if type(block).__name__ == block_class:
            norm = next(module for module in block.modules() if "Norm" in type(module).__name__)
            norm.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def test_a_wrong_block_name_is_a_defect_not_a_silence() -> None:
    with pytest.raises(InternalError, match="NoSuchBlock"):
        set_recompute(tiny_model("llama"), "full", block_class="NoSuchBlock")
