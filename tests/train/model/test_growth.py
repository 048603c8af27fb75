"""A base gets rows for tokens that it does not know: which values they have, what is trained, what is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from conf.errors import ConfigError
from conf.schema import FullTuning, LoraTuning, ModelConfig
from conf.schema.methods import BottleneckTuning, Ia3Tuning, PrefixTuning, PromptTuning, Tuning
from tests.tiny import FAMILIES, tiny_model, tiny_run
from train import tuning
from train.model.build import Built, TokenIds, build
from train.ranks.group import Ranks

BASE, TOKENS, ROWS = 70, 75, 128
IDS = TokenIds(TOKENS, pad_id=1, eos_id=0)
METHODS: dict[str, Tuning] = {
    "full": FullTuning(method="full"),
    "lora": LoraTuning(method="lora", rank=2),
    "ia3": Ia3Tuning(method="ia3"),
    "prompt": PromptTuning(method="prompt", virtual_tokens=3),
    "prefix": PrefixTuning(method="prefix", virtual_tokens=3),
    "bottleneck": BottleneckTuning(method="bottleneck", size=4),
}


def base(folder: Path, kind: str = "llama", *, tied: bool = False) -> Path:
    tiny_model(kind, vocab_size=BASE, tied=tied).save_pretrained(folder)
    return folder


def built(folder: Path, method: Tuning = METHODS["full"], ids: TokenIds = IDS, *, dtype: Any = "fp32") -> Built:
    virtual = tuning.virtual_tokens(method)
    kind = "none" if virtual or "bloom" in folder.name else "exact"
    cfg = tiny_run(folder / "run", ModelConfig(path=str(folder), dtype=dtype), tuning=method, pack=kind)  # type: ignore[arg-type]
    return build(cfg, Ranks(), ids)


def tables(model: Any) -> list[torch.Tensor]:
    return [model.get_input_embeddings().weight, model.get_output_embeddings().weight]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", FAMILIES)
def test_new_rows_and_padding_are_the_mean_of_the_old_ones(kind: str, tied: bool, tmp_path: Path) -> None:
    found, before = built(base(tmp_path / kind, kind, tied=tied)), tiny_model(kind, vocab_size=BASE, tied=tied)
    model: Any = found.model
    for table, old in zip(tables(model), tables(before), strict=True):
        assert table.shape == (ROWS, old.shape[1])
        assert table.requires_grad
        assert torch.equal(table[:BASE], old)
        assert torch.equal(table[BASE:], old.double().mean(0).float().expand(ROWS - BASE, -1))
    assert (tables(model)[0] is tables(model)[1]) is tied
    bias = model.get_output_embeddings().bias
    assert (bias is None) or (
        len(bias) == ROWS and float(bias[-1].detach()) == pytest.approx(float(bias[:BASE].detach().mean()))
    )
    assert model.config.vocab_size == ROWS
    ids = {"input_ids": torch.arange(2, 14)[None], "use_cache": False}
    model.set_attn_implementation("eager")
    before.set_attn_implementation("eager")
    torch.testing.assert_close(model(**ids).logits[..., :BASE], before(**ids).logits, atol=1e-5, rtol=1e-5)
    assert "model.tokenizer: it has 75 tokens, the base rows for 70" in " ".join(found.notes)
    assert "5 new rows and 53 of padding begin as the mean of the others" in " ".join(found.notes)


def test_half_precision_rounds_the_mean_once(tmp_path: Path) -> None:
    model = built(base(tmp_path), dtype="bf16").model
    old = tables(tiny_model("llama", vocab_size=BASE).bfloat16())[0]
    assert torch.equal(tables(model)[0][BASE], old.double().mean(0).bfloat16())


def test_a_new_token_in_a_free_row_begins_as_the_mean_too(tmp_path: Path) -> None:
    """As with Qwen, whose embedding has more rows than its tokenizer has tokens."""
    found = built(base(tmp_path), METHODS["lora"], TokenIds(60, pad_id=1, eos_id=0, new=(58, 59)))
    old = tables(tiny_model("llama", vocab_size=BASE))[0]
    others = [*range(58), *range(60, BASE)]
    table = tables(found.model)[0]
    assert table.shape == old.shape
    assert table.requires_grad
    assert torch.equal(table[others], old[others])
    assert torch.equal(table[58], old[others].double().mean(0).float())
    assert torch.equal(table[58], table[59])
    assert "model.new_tokens: 2 tokens take rows of the embedding that the base has free (70 rows)" in " ".join(
        found.notes
    )


def test_a_base_that_knows_all_tokens_stays_as_it_is(tmp_path: Path) -> None:
    found = built(base(tmp_path), METHODS["lora"], TokenIds(BASE, pad_id=1, eos_id=0))
    assert tables(found.model)[0].shape[0] == BASE
    assert all("lora_" in name for name in tuning.trainable(found.model))
    assert not any("rows" in note for note in found.notes)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_embedding_and_head(method: str, tied: bool, tmp_path: Path) -> None:
    names = tuning.trainable(built(base(tmp_path, tied=tied), METHODS[method]).model)
    assert any(name.endswith("embed_tokens.weight") for name in names)
    assert any(name.endswith("lm_head.weight") for name in names) is not tied
    ungrown = built(base(tmp_path, tied=tied), METHODS[method], TokenIds(BASE, pad_id=1, eos_id=0))
    further = {*names} - {*tuning.trainable(ungrown.model)}
    assert len(further) == (0 if method == "full" else 1 if tied else 2)


def test_what_freezes_the_tables_is_said_or_refused(tmp_path: Path) -> None:
    frozen = built(base(tmp_path), FullTuning(method="full", freeze=["embed_tokens"]))
    assert "its new rows stay the mean" in " ".join(frozen.notes)
    with pytest.raises(ConfigError, match=r"tuning\.targets: new tokens train embedding and head whole"):
        built(base(tmp_path), LoraTuning(method="lora", rank=2, targets=["q_proj", "lm_head"]))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "full"])
def test_saved_adapters_bring_the_new_rows(method: str, tied: bool, tmp_path: Path) -> None:
    """The folder alone, on the base as it is published, gives the same logits; what is cut off is padding."""
    model: Any = built(base(tmp_path / "base", tied=tied), METHODS[method]).model
    generator = torch.Generator().manual_seed(3)
    for parameter in tuning.trainable(model).values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    ids = {"input_ids": torch.tensor([[70, 3, 74, 5]]), "attention_mask": torch.ones(1, 4).long(), "use_cache": False}
    model.set_attn_implementation("eager")
    wanted = model.eval()(**ids).logits[..., :TOKENS]
    tuning.give_rows(model, TOKENS)
    tuning.save(model, METHODS[method], tmp_path / "saved", base=str(tmp_path / "base"))
    fresh = tiny_model("llama", vocab_size=BASE, tied=tied, implementation="eager").eval()
    loaded = tuning.load(fresh, tmp_path / "saved").eval()
    torch.testing.assert_close(loaded(**ids).logits, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_peft_alone_loads_the_new_rows(method: str, tmp_path: Path) -> None:
    from peft import PeftModel

    model: Any = built(base(tmp_path / "base"), METHODS[method]).model
    tables(model)[0].data[BASE:] += 1.0
    model.set_attn_implementation("eager")
    ids = {"input_ids": torch.tensor([[70, 3, 74, 5]]), "use_cache": False}
    wanted = model.eval()(**ids).logits[..., :TOKENS]
    tuning.give_rows(model, TOKENS)
    tuning.save(model, METHODS[method], tmp_path / "saved", base=str(tmp_path / "base"))
    fresh = tiny_model("llama", vocab_size=BASE, implementation="eager")
    fresh.resize_token_embeddings(TOKENS)
    loaded = PeftModel.from_pretrained(fresh, tmp_path / "saved").eval()
    torch.testing.assert_close(loaded(**ids).logits, wanted, atol=1e-5, rtol=1e-5)
