"""Attention backends: right numbers, no leak between the samples of a row, and refusals that say what works."""

from __future__ import annotations

import itertools
from importlib import import_module
from types import SimpleNamespace
from typing import get_args, get_type_hints

import pytest
import torch

from conf.errors import ConfigError, InternalError
from conf.schema import AttentionConfig
from conf.schema.facts import BACKENDS
from tests.tiny import FAMILIES, PACKING_FAMILIES, tiny_model
from train.attention import Attention, backends, choose, flash, packed, selftest
from train.attention.packed import packed_attention
from train.families import family

CPU = torch.device("cpu")
LENGTHS = (7, 1, 12, 9)


def chosen(backend: str, kind: str = "llama", *, pack: str = "exact", dtype: torch.dtype = torch.float32) -> object:
    return choose(backend, family=family(kind), pack=pack, dtype=dtype, device=CPU)


def flat(pieces: list[torch.Tensor]) -> dict[str, object]:
    """The keywords of a packed row, as batch.forward_kwargs makes them."""
    lengths = [len(piece) for piece in pieces]
    bounds = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    return {
        "input_ids": torch.cat(pieces)[None],
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "attention_mask": None,
        "use_cache": False,
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


def samples(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 64, (length,), generator=generator) for length in LENGTHS]


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("backend", ["packed", "sdpa"])
@pytest.mark.parametrize("kind", PACKING_FAMILIES)
def test_a_packed_row_is_its_separate_samples(kind: str, backend: str) -> None:
    """Logits and every gradient, for every family; the reference is transformers' eager attention, one at a time."""
    attention = chosen(backend, kind)
    model = tiny_model(kind, implementation=attention.implementation)
    separate = tiny_model(kind, implementation="eager")
    pieces = samples()
    row = flat(pieces)
    logits = model(**row).logits[0]
    expected = torch.cat([separate(input_ids=piece[None], use_cache=False).logits[0] for piece in pieces])
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    # A sample's last token predicts nothing; all others predict their successor.
    inside = [i for i in range(sum(LENGTHS) - 1) if i + 1 not in itertools.accumulate(LENGTHS)]
    targets = row["input_ids"][0][1:][inside]
    for found, wanted in zip(
        gradients(model, torch.nn.functional.cross_entropy(logits[inside], targets)),
        gradients(separate, torch.nn.functional.cross_entropy(expected[inside], targets)),
        strict=True,
    ):
        assert float((found - wanted).norm()) <= 1e-5 * max(1.0, float(wanted.norm()))


@pytest.mark.parametrize("kind", PACKING_FAMILIES)
def test_no_bit_of_a_sample_depends_on_another(kind: str) -> None:
    chosen("packed", kind)
    model = tiny_model(kind, implementation=packed.IMPLEMENTATION)
    pieces = samples()
    other = [(pieces[0] + 1) % 64, *pieces[1:]]
    before, after = model(**flat(pieces)).logits, model(**flat(other)).logits
    first = LENGTHS[0]
    assert torch.equal(before[:, first:], after[:, first:])
    assert not torch.equal(before[:, :first], after[:, :first])


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_takes_positions_to_keep(kind: str) -> None:
    """``logits_to_keep`` as a vector of indices, which the loss relies on, for flat rows (padded for BLOOM)."""
    keep = torch.tensor([0, 5, 11])
    if kind == "bloom":
        row: dict[str, object] = {"input_ids": torch.arange(12)[None], "attention_mask": torch.ones(1, 12).long()}
        model = tiny_model(kind)
    else:
        chosen("packed", kind)
        row, model = flat(samples()), tiny_model(kind, implementation=packed.IMPLEMENTATION)
    torch.testing.assert_close(
        model(**row, logits_to_keep=keep).logits, model(**row).logits[:, keep], atol=2e-6, rtol=0
    )


def test_auto_prefers_packed_and_reports_its_error() -> None:
    found = chosen("auto")
    assert (found.name, found.implementation, found.layout) == ("packed", "corral_packed", "flat")
    assert 0 < found.error < 1e-5
    assert chosen("auto", "gemma2").error < 1e-5
    assert chosen("auto", pack="none").layout == "flat"
    assert 1e-5 < chosen("auto", dtype=torch.bfloat16).error < 3e-2


def test_auto_falls_back_when_the_self_test_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend with wrong numbers, or with a leak, is not taken; asked for by name it is refused with its error."""

    def leaking(*args: object, **kwargs: object) -> tuple[torch.Tensor, None]:
        whole = torch.tensor([0, sum(selftest.LENGTHS)], dtype=torch.int32)
        bounds = {"cu_seq_lens_q": whole, "cu_seq_lens_k": whole, "max_length_q": 15, "max_length_k": 15}
        return packed_attention(*args, **{**kwargs, **bounds})  # type: ignore[arg-type]

    selftest.measure.cache_clear()
    monkeypatch.setattr(packed, "packed_attention", leaking)
    try:
        assert chosen("auto").name == "sdpa"
        with pytest.raises(ConfigError, match=r"self-test found an error of .* a leak .*attention=sdpa works"):
            chosen("packed")
    finally:
        selftest.measure.cache_clear()
        monkeypatch.undo()
        chosen("packed")


def test_bloom_is_refused_by_name_for_packing_and_trained_padded() -> None:
    with pytest.raises(ConfigError, match=r"type bloom, .*ALiBi.*data\.pack=none works"):
        chosen("auto", "bloom")
    for backend in ("auto", "sdpa"):
        found = chosen(backend, "bloom", pack="none")
        assert (found.implementation, found.layout) == ("eager", "padded")
    with pytest.raises(ConfigError, match="attention=auto works"):
        chosen("packed", "bloom", pack="none")


def test_sdpa_pads_only_without_packing() -> None:
    assert chosen("sdpa", pack="none").layout == "padded"
    assert chosen("sdpa", pack="exact").layout == "flat"


def test_capped_scores_are_left_to_the_family_where_no_kernel_caps_them() -> None:
    assert chosen("auto", "gemma2").name == "packed"
    for pack, layout in (("exact", "flat"), ("none", "padded")):
        found = chosen("sdpa", "gemma2", pack=pack)
        assert (found.implementation, found.layout) == ("eager", layout)


def test_a_kernel_that_forgets_the_cap_fails_the_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(*args: object, **kwargs: object) -> tuple[torch.Tensor, None]:
        return packed_attention(*args, **{**kwargs, "softcap": None})  # type: ignore[arg-type]

    selftest.measure.cache_clear()
    monkeypatch.setattr(packed, "packed_attention", forgetful)
    try:
        assert chosen("packed", "llama").name == "packed"
        with pytest.raises(ConfigError, match="self-test found an error"):
            chosen("packed", "gemma2")
    finally:
        selftest.measure.cache_clear()
        monkeypatch.undo()
        chosen("packed")


def refusal(device: str, dtype: torch.dtype, backend: str = "flash2", kind: str = "llama") -> str:
    with pytest.raises(ConfigError) as caught:
        choose(backend, family=family(kind), pack="exact", dtype=dtype, device=torch.device(device))
    return str(caught.value)


@pytest.mark.parametrize(
    ("backend", "module"), [("flash2", "flash_attn"), ("flash3", "flash_attn_interface"), ("flash4", "flash_attn.cute")]
)
def test_flash_says_what_it_found_and_what_works(backend: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence per rule; nothing here has a GPU or the packages, so what would be found is put in their place."""
    assert f"{backend} was asked for and a cpu device was found" in refusal("cpu", torch.bfloat16, backend)
    absent = refusal("cuda", torch.bfloat16, backend)
    assert f"no {module} package was found" in absent
    assert "attention=packed works without it" in absent
    assert "type bloom" in refusal("cuda", torch.bfloat16, backend, "bloom")
    monkeypatch.setattr(flash.importlib.util, "find_spec", lambda name: SimpleNamespace())
    assert f"no {module} package was found" in refusal("cuda", torch.bfloat16, backend)  # some other flash_attn
    monkeypatch.setattr(flash.importlib.metadata, "version", lambda name: "1.0.9")
    if backend == "flash2":
        assert "flash_attn 1.0.9 was found, but it needs 2.x" in refusal("cuda", torch.bfloat16)
        monkeypatch.setattr(flash.importlib.metadata, "version", lambda name: "2.8.3")
    assert "model.dtype=bf16 or attention=auto works" in refusal("cuda", torch.float32, backend)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "compute capability 7.5" in refusal("cuda", torch.bfloat16, backend)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    require = import_module(f"train.attention.{backend}").require
    found = require(family("gemma2"), pack="exact", dtype=torch.bfloat16, device=torch.device("cuda"))
    assert (found.implementation, found.layout) == (f"flash_attention_{backend[-1]}", "flat")


def test_packed_refuses_what_its_kernel_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "model.dtype=bf16 or attention=sdpa works" in refusal("cuda", torch.float32, "packed")
    assert "kernels for cpu and cuda only" in refusal("mps", torch.float32, "packed")
    assert "gemma2, whose attention scores are soft-capped" in refusal("cuda", torch.bfloat16, "packed", "gemma2")
    monkeypatch.setattr(packed, "_find_varlen", lambda: None)
    assert "torch >= 2.10" in refusal("cuda", torch.bfloat16, "packed")


def test_a_batch_without_bounds_is_refused_not_mixed() -> None:
    """Generation with the packed function would silently attend over the padding; it must stop instead."""
    chosen("packed")
    model = tiny_model("llama", implementation=packed.IMPLEMENTATION)
    with pytest.raises(InternalError, match="set_attn_implementation"):
        model(input_ids=torch.arange(6)[None])
    model.set_attn_implementation("sdpa")
    assert model(input_ids=torch.arange(6)[None]).logits.shape == (1, 6, 64)


def test_what_a_config_is_refused_for_is_what_the_backends_cannot_do() -> None:
    """conf knows the shipped backends before torch is imported; it must not know them better than their modules do."""
    offered = set(get_args(get_type_hints(AttentionConfig)["backend"])) - {"auto"}
    assert set(backends()) == offered == BACKENDS.keys()
    for name, facts in BACKENDS.items():
        attention: Attention = import_module(f"train.attention.{name}").ATTENTION
        assert attention.name == name
        assert (facts.shares, facts.exchanges) == (attention.shares, attention.exchanges)
        assert facts.rows == {"flat": "packed", "padded": "padded"}[attention.layout]
    assert backends() == ["flash4", "flash3", "packed", "flash2", "sdpa"]
