"""Every tuning method on every family: what it trains, where it starts, what it exports, and that PEFT agrees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

from conf.errors import ConfigError, InternalError, MissingInput, Unavailable
from conf.schema.methods import (
    BottleneckTuning,
    FullTuning,
    Ia3Tuning,
    LoraTuning,
    PrefixTuning,
    PromptTuning,
    Tuning,
)
from data_prep.stream.stream import PackedRow
from tests.tiny import FAMILIES, tiny_config, tiny_model
from tests.train.rows import ALONE, EOS, PAD, VOCAB, Words, fake_split
from train import tuning
from train.batches.batch import IGNORE
from train.batches.collate import collate
from train.evaluate.answers import Question, greedy
from train.export.exported import load_model
from train.families import family
from train.model.quantize import quantized
from train.objectives.sft import token_nll_sum
from train.tuning import bottleneck

CPU = torch.device("cpu")
DORA = LoraTuning(method="lora", rank=4, variant="dora")
WHOLE = LoraTuning(method="lora", rank=4, scaling="sqrt_rank", targets=["v_proj"], modules_to_save=["embed_tokens"])
IA3 = Ia3Tuning(method="ia3")
PROMPT, PREFIX = PromptTuning(method="prompt", virtual_tokens=3), PrefixTuning(method="prefix", virtual_tokens=3)
HOULSBY = BottleneckTuning(method="bottleneck", size=4, placement="houlsby")
PFEIFFER = BottleneckTuning(method="bottleneck", size=4)
VIRTUAL = [PROMPT, PREFIX]
UNCHANGED = [DORA, IA3, HOULSBY, PFEIFFER]
"""Methods whose start computes what the base computes."""


def made(kind: str, method: Tuning, *, seed: int = 7, tied: bool = False) -> Any:
    model = tiny_model(kind, vocab_size=VOCAB, tied=tied)
    return tuning.apply(model, method, family(kind), seed=seed)


def shaken(model: Any) -> Any:
    """``model`` as if it had been trained."""
    generator = torch.Generator().manual_seed(3)
    for parameter in tuning.trainable(model).values():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def logits(model: nn.Module, ids: list[int]) -> torch.Tensor:
    tokens = torch.tensor([ids])
    kwargs: dict[str, Any] = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "use_cache": False}
    with torch.no_grad():
        return model.eval()(**kwargs).logits  # type: ignore[no-any-return]


IDS = [5, 9, 33, 2, 17, 40, 8]


@pytest.mark.parametrize("kind", FAMILIES)
def test_methods_start_as_the_base_and_train_what_they_add(kind: str) -> None:
    base = tiny_model(kind, vocab_size=VOCAB)
    frozen = {name for name, _ in base.named_parameters()}
    for method in [*UNCHANGED, *VIRTUAL]:
        model = made(kind, method)
        names = tuning.trainable(model)
        assert names
        assert not {name.removeprefix("base_model.model.").replace(".base_layer", "") for name in names} & frozen
        if method in UNCHANGED:
            torch.testing.assert_close(logits(model, IDS), logits(base, IDS), atol=1e-5, rtol=0)
        first, again, other = (dict(tuning.trainable(made(kind, method, seed=seed))) for seed in (7, 7, 8))
        assert all(torch.equal(first[name], again[name]) for name in first)
        if method is not IA3:
            assert not all(torch.equal(first[name], other[name]) for name in first)
        assert (logits(shaken(model), IDS) - logits(base, IDS)).abs().max() > 1e-2


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_padded_batch_is_its_rows_one_by_one(kind: str) -> None:
    """Loss and gradients of right-padded rows, and answers of left-padded prompts, are those of each row alone."""
    split = fake_split(4, seed=2)
    for method in [PROMPT, HOULSBY, *([] if "sliding_window" in tiny_config(kind) else [PREFIX])]:  # 4 tokens: hides it
        model = shaken(made(kind, method)).train()

        def loss(rows: list[int], model: Any = model) -> tuple[float, dict[str, torch.Tensor]]:
            packed = [PackedRow(((0, row),)) for row in rows]
            batch = collate(packed, [split], layout="padded", pad_id=PAD)
            assert int((batch.labels != IGNORE).sum()) == batch.targets
            model.zero_grad()
            nll = token_nll_sum(model, batch, targets_only=True)
            nll.backward()  # type: ignore[no-untyped-call]
            return float(nll.detach()), {
                name: p.grad.clone() for name, p in tuning.trainable(model).items() if p.grad is not None
            }

        together, alone = loss([0, 1, 2, 3]), [loss([row]) for row in range(4)]
        assert together[0] == pytest.approx(sum(nll for nll, _ in alone), rel=1e-5)
        for name, gradient in together[1].items():
            torch.testing.assert_close(gradient, sum(each[name] for _, each in alone), atol=2e-4, rtol=1e-4)
        asked = [
            Question("a", row, [int(each) for each in split.tokens(row)[0][: 3 + 2 * row]], []) for row in range(3)
        ]
        model.eval()
        with torch.no_grad():
            answers = greedy(model, asked, Words((EOS,), PAD), max_new_tokens=6, ranks=ALONE, synced=False)
            singly = [
                greedy(model, [each], Words((EOS,), PAD), max_new_tokens=6, ranks=ALONE, synced=False)[0]
                for each in asked
            ]
        assert answers == singly, (kind, method)
        assert continued(model, asked[1].prompt, len(answers[1])) == answers[1]


def continued(model: nn.Module, ids: list[int], count: int) -> list[int]:
    """The most likely continuation without a cache."""
    for _ in range(count):
        ids = [*ids, int(logits(model, ids)[0, -1].argmax())]
    return ids[len(ids) - count :]


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("method", [DORA, IA3], ids=["dora", "ia3"])
def test_merging_computes_the_same_function(kind: str, method: Tuning) -> None:
    model = shaken(made(kind, method))
    before = logits(model, IDS)
    merged = tuning.merge(model, method)
    assert not isinstance(merged, PeftModel)
    assert {name for name, _ in merged.named_parameters()} == {name for name, _ in tiny_model(kind).named_parameters()}
    torch.testing.assert_close(logits(merged, IDS), before, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", [PROMPT, PREFIX, HOULSBY], ids=lambda each: each.method)
def test_what_no_weight_can_stand_for_is_not_merged(method: Tuning) -> None:
    with pytest.raises(ConfigError, match=f"tuning={method.method} adds cannot be.*; use merge=false"):
        tuning.merge(made("llama", method), method)


@pytest.mark.parametrize("kind", FAMILIES)
def test_an_exported_adapter_loads_and_computes_what_was_trained(kind: str, tmp_path: Path) -> None:
    """PEFT gives the logits of its methods' folders, our loader those and the answers of all."""
    tiny_model(kind, vocab_size=VOCAB).save_pretrained(tmp_path / "base")
    for number, method in enumerate([DORA, IA3, PROMPT, PREFIX, HOULSBY]):
        model, folder = shaken(made(kind, method)), tmp_path / str(number)
        expected, answer = logits(model, IDS), continued(model, IDS, 5)
        tuning.save(model, method, folder, base=str(tmp_path / "base"))
        loaded = load_model(folder).eval()
        torch.testing.assert_close(logits(loaded, IDS), expected, atol=1e-5, rtol=0)
        tokens = torch.tensor([IDS])
        output = loaded.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=5,
            do_sample=False,
            pad_token_id=PAD,
        )
        assert output[0, len(IDS) :].tolist() == answer, (kind, method)
        if method is not HOULSBY:
            peft = PeftModel.from_pretrained(tiny_model(kind, vocab_size=VOCAB), str(folder))
            torch.testing.assert_close(logits(peft, IDS)[:, -len(IDS) :], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("tied", [False, True])
def test_modules_trained_whole_stay_tied_and_are_exported(tied: bool, tmp_path: Path) -> None:
    tiny_model("llama", vocab_size=VOCAB, tied=tied).save_pretrained(tmp_path / "base")
    model = shaken(made("llama", WHOLE, tied=tied))
    names = set(tuning.trainable(model))
    assert {name for name in names if "lora_" not in name} == {"base_model.model.model.embed_tokens.weight"}
    inner = model.get_base_model()
    assert (inner.lm_head.weight is inner.model.embed_tokens.weight) is tied
    assert model.base_model.model.model.layers[0].self_attn.v_proj.scaling["default"] == 32.0 / 2.0
    expected = logits(model, IDS)
    tuning.save(model, WHOLE, tmp_path / "adapter", base=str(tmp_path / "base"))
    torch.testing.assert_close(logits(load_model(tmp_path / "adapter"), IDS), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(tuning.merge(model, WHOLE), IDS), expected, atol=1e-5, rtol=0)


def test_patterns_choose_layers() -> None:
    chosen = LoraTuning(method="lora", targets=["layers.[01].self_attn.?_proj", "down_proj"])
    layers = {name.split(".lora_")[0].split("layers.")[1] for name in tuning.trainable(made("llama", chosen))}
    attention = {f"{layer}.self_attn.{each}_proj" for layer in (0, 1) for each in "qkvo"}
    assert layers == attention | {f"{layer}.mlp.down_proj" for layer in range(3)}


def test_a_module_is_trained_whole_or_adapted() -> None:
    with pytest.raises(ConfigError, match=r"model\.layers\.0\.mlp is trained whole .* gives .*gate_proj an adapter"):
        made("llama", LoraTuning(method="lora", modules_to_save=["layers.0.mlp"]))
    with pytest.raises(ConfigError, match=r"modules_to_save: 'lm_haed' fits nothing .* lm_head"):
        made("llama", LoraTuning(method="lora", modules_to_save=["lm_haed"]))


@pytest.mark.parametrize(
    ("patterns", "trained"),
    [
        (["embed_tokens", "layers.[01]"], lambda name: not any(x in name for x in ("embed_tokens", ".0.", ".1."))),
        (["*norm*"], lambda name: "norm" not in name),
        (["model.layers.*.mlp.down_proj.weight"], lambda name: "down_proj" not in name),
    ],
)  # fmt: skip
def test_freezing_by_pattern(patterns: list[str], trained: Any) -> None:
    full = {name for name, _ in tiny_model("llama").named_parameters()}
    names = set(tuning.trainable(made("llama", FullTuning(method="full", freeze=patterns))))
    assert names == {name for name in full if trained(name)} != full


def test_a_tied_weight_is_frozen_by_either_name() -> None:
    names = tuning.trainable(made("llama", FullTuning(method="full", freeze=["lm_head"]), tied=True))
    assert "model.embed_tokens.weight" not in names
    names = tuning.trainable(made("llama", FullTuning(method="full", freeze=["lm_head"])))
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


@pytest.mark.parametrize(
    ("patterns", "sentence"),
    [
        (
            ["embed_token"],
            r"tuning\.freeze: 'embed_token' fits nothing in this model; the nearest names are embed_tokens",
        ),
        (["layers.0.mpl"], r"nearest names are (layers\.)?0\.mlp|nearest names are .*mlp"),
        (["*"], r"tuning\.freeze: these patterns freeze every parameter"),
    ],
)
def test_patterns_that_freeze_nothing_or_everything(patterns: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        made("llama", FullTuning(method="full", freeze=patterns))


def test_virtual_tokens_refuse_packed_rows() -> None:
    for method in VIRTUAL:
        with pytest.raises(InternalError, match=r"use data\.pack=none"):
            made("llama", method)(input_ids=torch.tensor([IDS]), cu_seq_lens_q=torch.tensor([0, 3, 7]), use_cache=False)


def test_adapters_of_another_model_are_not_loaded(tmp_path: Path) -> None:
    tuning.save(made("llama", PFEIFFER), PFEIFFER, tmp_path, base="elsewhere")
    with pytest.raises(MissingInput, match="adapters of another model than elsewhere"):
        bottleneck.load(tiny_model("gpt2"), tmp_path)


def test_four_bits_are_refused_where_they_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    nf4 = LoraTuning(method="lora", quantize="nf4")
    assert quantized(LoraTuning(method="lora"), dtype=torch.bfloat16, device=CPU) is None
    with pytest.raises(ConfigError, match=r"nf4 needs an NVIDIA GPU, but .* is cpu; use tuning\.quantize=none"):
        quantized(nf4, dtype=torch.bfloat16, device=CPU)
    gpu = torch.device("cuda")
    monkeypatch.setattr("train.model.quantize.find_spec", lambda _: None)
    with pytest.raises(Unavailable, match=r"bitsandbytes, which is not installed; pip install bitsandbytes"):
        quantized(nf4, dtype=torch.bfloat16, device=gpu)
    monkeypatch.setattr("train.model.quantize.find_spec", lambda _: True)
    asked = quantized(nf4, dtype=torch.bfloat16, device=gpu)
    assert asked is not None
    assert (asked.load_in_4bit, asked.bnb_4bit_quant_type, asked.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert asked.bnb_4bit_compute_dtype == torch.bfloat16


def test_a_base_in_four_bits_is_not_merged() -> None:
    """A weight of packed bytes, as bitsandbytes keeps two 4-bit numbers in each, stands for the real thing here."""
    model = made("llama", LoraTuning(method="lora", rank=2))
    layer = model.base_model.model.model.layers[1].mlp.down_proj.get_base_layer()
    layer.weight = nn.Parameter(torch.zeros(32 * 24, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ConfigError, match="round the adapted weights to 4 bits again; use merge=false"):
        tuning.merge(model, LoraTuning(method="lora", quantize="nf4"))
