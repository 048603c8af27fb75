"""Element counts of tuning methods equal what real models train."""

from __future__ import annotations

import dataclasses

import pytest

from conf.compose import compose
from conf.schema.methods import (
    BottleneckTuning,
    FullTuning,
    Ia3Tuning,
    LoraTuning,
    PrefixTuning,
    PromptTuning,
    Tuning,
)
from tests.tiny import FAMILIES, tiny_config, tiny_model
from train import tuning
from train.families import family, shape_of
from train.plan.memory import trained_and_frozen

METHODS: list[Tuning] = [
    FullTuning(method="full"),
    LoraTuning(method="lora", rank=4),
    LoraTuning(method="lora", rank=4, variant="dora"),
    Ia3Tuning(method="ia3"),
    PromptTuning(method="prompt", virtual_tokens=3),
    PrefixTuning(method="prefix", virtual_tokens=3),
    BottleneckTuning(method="bottleneck", size=5),
    BottleneckTuning(method="bottleneck", size=5, placement="houlsby"),
]


def split(method: Tuning, kind: str) -> tuple[int, float]:
    """Elements that are trained, and those that are not."""
    cfg = dataclasses.replace(compose(["model=llama31_8b"]), tuning=method)
    return trained_and_frozen(cfg, shape_of(tiny_config(kind)))


@pytest.mark.parametrize("kind", FAMILIES)
def test_counts_equal_real_models(kind: str) -> None:
    for method in METHODS:
        model = tuning.apply(tiny_model(kind), method, family(kind), seed=0)
        trained = sum(parameter.numel() for parameter in tuning.trainable(model).values())
        total = sum(parameter.numel() for parameter in model.parameters())
        assert split(method, kind) == (trained, total - trained), method


def test_modules_trained_whole_and_four_bits() -> None:
    shape = shape_of(tiny_config("llama"))
    method = LoraTuning(method="lora", rank=4, targets=["layers.*.v_proj"], modules_to_save=["lm_head", "down_proj"])
    model = tuning.apply(tiny_model("llama"), method, family("llama"), seed=0)
    trained = sum(parameter.numel() for parameter in tuning.trainable(model).values())
    assert split(method, "llama")[0] == trained
    matrices = shape.layers * sum(linear.inputs * linear.outputs for linear in shape.linears)
    _, small = split(LoraTuning(method="lora", quantize="nf4"), "llama")
    assert small == pytest.approx(shape.total - matrices + matrices * 4.127 / 16)


def test_only_what_replaces_the_head_wraps_it() -> None:
    llama = shape_of(tiny_config("llama"))
    other = dataclasses.replace(llama, head="embed_out")
    whole = LoraTuning(method="lora", modules_to_save=["embed_*"])
    assert (whole.trained(llama).head, whole.trained(other).head) == ("plain", "wrapped")
    assert LoraTuning(method="lora", targets=["lm_*"]).trained(llama).head == "wrapped"
    assert LoraTuning(method="lora").trained(llama).head == "plain"
