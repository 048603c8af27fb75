"""Element counts of tuning methods equal what real models train."""

from __future__ import annotations

import pytest

from conf.methods import (
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
from train.adapters import frozen_size, new_elements, whole_elements
from train.models import family
from train.parameters import shape_of

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


@pytest.mark.parametrize("kind", FAMILIES)
def test_counts_equal_real_models(kind: str) -> None:
    shape = shape_of(tiny_config(kind))
    for method in METHODS:
        model = tuning.apply(tiny_model(kind), method, family(kind), seed=0)
        trained = sum(parameter.numel() for parameter in tuning.trainable(model).values())
        assert trained == new_elements(method, shape) + whole_elements(method, shape), method
        total = sum(parameter.numel() for parameter in model.parameters())
        assert total - trained == frozen_size(method, shape), method


def test_modules_trained_whole_and_four_bits() -> None:
    shape = shape_of(tiny_config("llama"))
    method = LoraTuning(method="lora", rank=4, targets=["layers.*.v_proj"], modules_to_save=["lm_head", "down_proj"])
    model = tuning.apply(tiny_model("llama"), method, family("llama"), seed=0)
    trained = sum(parameter.numel() for parameter in tuning.trainable(model).values())
    assert trained == new_elements(method, shape) + whole_elements(method, shape)
    matrices = shape.layers * sum(linear.inputs * linear.outputs for linear in shape.linears)
    small = frozen_size(LoraTuning(method="lora", quantize="nf4"), shape)
    assert small == pytest.approx(shape.total - matrices + matrices * 4.127 / 16)
