"""Building the model of a run: every source of weights, every family, every mistake, one rank and two."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from conf.errors import BadData, ConfigError, CorralError, MissingInput
from conf.schema import LoraTuning, ModelConfig, OptimConfig, ZeroConfig
from tests.distributed import run_distributed
from tests.tiny import FAMILIES, tiny_config, tiny_model, tiny_run
from train import tuning
from train.model.build import Built, TokenIds, build
from train.model.weights import base_config, base_hash
from train.ranks.group import Ranks

LORA = LoraTuning(method="lora", rank=2)


def random_model(kind: str = "llama", **changes: object) -> ModelConfig:
    config = {key: value for key, value in tiny_config(kind).items() if key != "vocab_size"}
    return ModelConfig(config=config, init="random", dtype="fp32", **changes)  # type: ignore[arg-type]


def built(run_dir: Path, model: ModelConfig, *, vocab_size: int = 61, seed: int = 0, **changes: object) -> Built:
    cfg = dataclasses.replace(tiny_run(run_dir, model, **changes), seed=seed)  # type: ignore[arg-type]
    return build(cfg, Ranks(), TokenIds(vocab_size, pad_id=1, eos_id=0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pretrained tiny Llama whose config has a pad token, attention dropout and a cache."""
    model = tiny_model("llama")
    model.config.pad_token_id, model.config.attention_dropout, model.config.use_cache = 2, 0.1, True
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_builds_from_nothing(tmp_path: Path, kind: str) -> None:
    found = built(tmp_path, random_model(kind), pack="none" if kind == "bloom" else "exact")
    assert found.family.model_type == kind
    assert found.attention.layout == ("padded" if kind == "bloom" else "flat")
    assert found.model.config.vocab_size == 64
    assert found.model.config._attn_implementation == found.attention.implementation
    assert found.model.training
    assert not found.model.config.use_cache
    assert {p.dtype for p in found.model.parameters()} == {torch.float32}


def test_random_weights_follow_from_the_seed(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = built(tmp_path / "a", random_model(), seed=5)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = built(tmp_path / "b", random_model(), seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    other = built(tmp_path / "c", random_model(), seed=6)
    assert first.base_hash == second.base_hash != other.base_hash
    assert base_hash(tmp_path / "a" / "init") == first.base_hash
    for one, two in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_random_start_is_used_again_and_never_mixed_up(tmp_path: Path) -> None:
    first = built(tmp_path, random_model(), seed=5)
    written = (tmp_path / "init" / "model.safetensors").stat().st_mtime_ns
    assert built(tmp_path, random_model(), seed=5).base_hash == first.base_hash
    assert (tmp_path / "init" / "model.safetensors").stat().st_mtime_ns == written
    for changes in ({"seed": 6}, {"seed": 5, "vocab_size": 100}):
        with pytest.raises(ConfigError, match="random weights of another run"):
            built(tmp_path, random_model(), **changes)  # type: ignore[arg-type]
    (tmp_path / "init" / "origin.json").unlink()  # as after a crash half-way
    assert built(tmp_path, random_model(), seed=5).base_hash == first.base_hash


def test_pretrained_weights_come_as_they_are(folder: Path, tmp_path: Path) -> None:
    found = built(tmp_path, ModelConfig(path=str(folder), dtype="bf16", recompute="selective"), seq_len=256)
    for name, parameter in found.model.named_parameters():
        assert torch.equal(parameter, tiny_model("llama").get_parameter(name).bfloat16())
    assert found.folder == folder
    text = " ".join(found.notes)
    assert "attention_dropout=0.1 is set to 0" in text
    assert "256 is more than the 128 positions" in text
    assert "the backward pass computes 2 blocks again" in text
    assert found.model.generation_config.eos_token_id == 0
    assert found.model.generation_config.pad_token_id == 1


def test_generation_ends_at_every_stop_token(folder: Path, tmp_path: Path) -> None:
    cfg = tiny_run(tmp_path, ModelConfig(path=str(folder), dtype="fp32"))
    found = build(cfg, Ranks(), TokenIds(61, pad_id=1, eos_id=0, stop_ids=(0, 7)))
    assert found.model.generation_config.eos_token_id == [0, 7]


def test_no_token_is_without_gradient(folder: Path, tmp_path: Path) -> None:
    """transformers gives the pad token's embedding no gradient; where it is also the end of sequence, that is wrong."""
    model = built(tmp_path, ModelConfig(path=str(folder), dtype="fp32"), pack="none").model
    model.set_attn_implementation("sdpa")
    model(input_ids=torch.tensor([[2, 3, 2, 4]]), use_cache=False).logits.logsumexp(-1).sum().backward()
    assert model.get_input_embeddings().weight.grad[2].any()


def test_lora_freezes_the_base(folder: Path, tmp_path: Path) -> None:
    found = built(tmp_path, ModelConfig(path=str(folder), dtype="bf16"), tuning=LORA)
    names = tuning.trainable(found.model)
    assert {p.dtype for p in names.values()} == {torch.bfloat16}
    assert all("lora_" in name for name in names)


def mistakes(folder: Path) -> list[tuple[ModelConfig, type[CorralError], str]]:
    llama = tiny_config("llama")
    typo = {**{key: value for key, value in llama.items() if key != "hidden_size"}, "hiden_size": 32}
    return [
        (ModelConfig(path=str(folder / "nowhere")), MissingInput, "no folder .*nowhere; give a Hugging Face folder"),
        (ModelConfig(path=str(folder.parent)), MissingInput, "contains no config.json"),
        (ModelConfig(config=typo, init="random"), ConfigError, "hiden_size: .* no such key; did you mean hidden_size"),
        (ModelConfig(config={**llama, "hidden_size": "32"}, init="random"), ConfigError, "hidden_size"),
        (ModelConfig(config={**llama, "hidden_size": 30}, init="random"), ConfigError, "not a multiple"),
        (ModelConfig(config={"hidden_size": 32}, init="random"), ConfigError, "model_type is missing"),
        (ModelConfig(config={**llama, "model_type": "lama"}, init="random"), ConfigError, "did you mean 'llama'"),
        (ModelConfig(config={**llama, "vocab_size": 40}, init="random"), ConfigError, "less than the tokenizer's 61"),
        (ModelConfig(config={**llama, "attention_dropout": 0.1}, init="random"), ConfigError, "dropout must be 0"),
        (ModelConfig(config={**llama, "use_cache": True}, init="random"), ConfigError, "mix the samples"),
    ]


@pytest.mark.parametrize("case", range(10))
def test_mistakes_get_one_sentence(folder: Path, tmp_path: Path, case: int) -> None:
    model, kind, sentence = mistakes(folder)[case]
    with pytest.raises(kind, match=sentence):
        built(tmp_path / "run", model)


def test_a_row_too_large_for_the_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.seq_len: 256 is more than the 128 positions .*set data\.seq_len=128"):
        built(tmp_path, random_model("gpt2"), seq_len=256)


@pytest.mark.parametrize(
    ("kind", "rope"),
    [
        ("llama", {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}),
        (
            "phi3",
            {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 4,
                "long_factor": [4.0] * 4,
            },
        ),
    ],
)
def test_frequencies_that_follow_the_longest_sample_are_refused(
    kind: str, rope: dict[str, Any], tmp_path: Path
) -> None:
    """Two samples, one of them long: transformers would give the short one other frequencies than alone."""
    plain = random_model(kind).config or {}
    limit = {"original_max_position_embeddings": 128} if kind == "phi3" else {}
    model = ModelConfig(config={**plain, **limit, "rope_parameters": rope}, init="random", dtype="fp32")
    with pytest.raises(ConfigError, match=r"256 is more than the 128 positions .*data\.seq_len=128 or data\.pack=none"):
        built(tmp_path / "long", model, seq_len=256)
    built(tmp_path / "short", model, seq_len=128)
    built(tmp_path / "alone", model, seq_len=256, pack="none")


def test_damaged_weights_are_never_replaced_by_random_ones(folder: Path, tmp_path: Path) -> None:
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(BadData, match=r"lacks weights \(model\.layers\.1\.mlp\.up_proj\.weight\)"):
        built(tmp_path, ModelConfig(path=str(folder)))
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(BadData, match="cannot be used"):
        built(tmp_path, ModelConfig(path=str(folder)))
    weights.unlink()
    with pytest.raises(MissingInput, match="contains no weights"):
        built(tmp_path, ModelConfig(path=str(folder)))
    (folder / "config.json").write_text("{")
    save_file(tensors, weights)
    with pytest.raises(BadData, match=r"config\.json cannot be used"):
        built(tmp_path, ModelConfig(path=str(folder)))


def test_the_hash_is_of_the_weights(folder: Path) -> None:
    first = base_hash(folder)
    (folder / "README.md").write_text("other")
    assert base_hash(folder) == first
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    assert base_hash(folder) != first


def test_the_config_is_what_a_step_computes_with(folder: Path) -> None:
    path = folder / "config.json"
    first, said = base_config(folder), json.loads(path.read_text())
    path.write_text(json.dumps(said | {"transformers_version": "9.9", "eos_token_id": 7, "torch_dtype": "float16"}))
    assert base_config(folder) == first
    path.write_text(json.dumps(said | {"rope_theta": 5e5}))
    assert base_config(folder) == first | {"rope_theta": 5e5}


def packed_row() -> dict[str, object]:
    lengths = (6, 3, 8)
    bounds = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    return {
        "input_ids": torch.randint(0, 61, (1, 17), generator=torch.Generator().manual_seed(1)),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "use_cache": False,
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": 8,
        "max_length_k": 8,
    }


def loss_of(model: torch.nn.Module) -> torch.Tensor:
    row = packed_row()
    return torch.nn.functional.cross_entropy(model(**row).logits[0, :-1], row["input_ids"][0, 1:])  # type: ignore[index]


CASES = [(stage, lora, tied) for stage in (2, 3) for lora in (False, True) for tied in (False, True)]


def sharded(ranks: Ranks, run_dir: str) -> tuple[str, list[tuple[str, dict[str, torch.Tensor]]]]:
    """What a missing model says; hash and gradients of every case, built under the stage's own loading context."""
    from train.engine import Engine, deepspeed_settings, loading_context

    cfg = tiny_run(Path(run_dir), ModelConfig(path="/no/such/model"))
    with pytest.raises(MissingInput) as caught:
        build(cfg, ranks, TokenIds(61, pad_id=1, eos_id=0))
    results = []
    for stage, lora, tied in CASES:
        model = random_model(recompute="full" if lora else "selective")
        model = dataclasses.replace(model, config={**(model.config or {}), "tie_word_embeddings": tied})
        cfg = tiny_run(Path(run_dir, f"tied-{tied}"), model, tuning=LORA if lora else None)
        zero = ZeroConfig(stage=stage, persistence_threshold=0)  # type: ignore[arg-type]
        settings = deepspeed_settings(
            model=model, zero=zero, optim=OptimConfig(), batch=cfg.batch, world=ranks.world, on_cpu=True
        )
        found = build(cfg, ranks, TokenIds(61, pad_id=1, eos_id=0), loading_context(settings))
        parameters = tuning.trainable(found.model)
        engine = Engine(found.model, parameters, settings=settings, optim=OptimConfig(), zero=zero, ranks=ranks)
        engine.accumulate(loss_of(engine.module) / ranks.world, last=True)
        results.append((found.base_hash, engine.gradients()))
    return str(caught.value), results


@pytest.mark.slow
def test_two_ranks_and_every_stage_build_the_same_model(tmp_path: Path) -> None:
    """ZeRO-2 and -3 on two ranks, full and LoRA, tied or not: gradients equal those of one plain process."""
    (sentence, first), (other_sentence, second) = run_distributed(sharded, 2, str(tmp_path / "sharded"))
    assert sentence == other_sentence
    for case, (stage, lora, tied) in enumerate(CASES):
        model = random_model()
        model = dataclasses.replace(model, config={**(model.config or {}), "tie_word_embeddings": tied})
        plain = built(tmp_path / f"plain-{tied}", model, tuning=LORA if lora else None)
        loss_of(plain.model).backward()
        wanted = {name: parameter.grad for name, parameter in tuning.trainable(plain.model).items()}
        for hashed, gradients in (first[case], second[case]):
            assert hashed == plain.base_hash
            assert gradients.keys() == wanted.keys(), (stage, lora, tied)
            for name, gradient in gradients.items():
                torch.testing.assert_close(gradient, wanted[name], atol=1e-6, rtol=1e-5)
