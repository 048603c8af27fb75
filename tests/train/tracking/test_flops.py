"""FLOPs counted by the formulas against torch's counter on real models; peaks of devices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from conf.compose import compose
from data_prep.stream.stream import GlobalStep, Stream
from tests.data_prep.streams import FakeSplit, data_config
from tests.tiny import tiny_config, tiny_model
from train.families import shape_of
from train.tracking.flops import device_peak, recomputed_flops, step_flops, training_flops

LENGTH = 32


def counted(kind: str) -> float:
    """Forward and backward of one sample as torch counts them: every matrix product, whole attention squares."""
    model = tiny_model(kind, vocab_size=64, implementation="eager")
    ids = torch.arange(LENGTH)[None] % 64
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False).logits.float().sum().backward()
    return float(counter.get_total_flops())


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "gpt_neox"])
def test_full_tuning_equals_the_counter(kind: str) -> None:
    found = training_flops(
        shape_of(tiny_config(kind)),
        positions=LENGTH,
        pairs=LENGTH * LENGTH,  # eager attention computes the masked half too
        head_positions=LENGTH,
        adapter=0,
        full=True,
    )
    assert found == pytest.approx(counted(kind), rel=0.01)  # the counter also sees the rotary embedding


def plan(lengths: list[int], targets: int) -> GlobalStep:
    """The first step of a run over samples of these lengths; ``targets`` in the first of them."""
    supervised = np.zeros(len(lengths), np.int32)
    supervised[:1] = targets
    split = FakeSplit("a", np.array(lengths, np.int32), supervised)
    return next(Stream({"a": split}, data_config(["a"]), seed=0, global_size=2))


def test_a_step_counts_tokens_pairs_and_targets() -> None:
    step = plan([5, 7], targets=4)
    model = tiny_config("llama")
    shape = shape_of(model)
    cfg = compose(["experiment=demo"])
    pairs = 5 * 6 / 2 + 7 * 8 / 2
    expected = training_flops(shape, positions=12, pairs=pairs, head_positions=4, adapter=0, full=True)
    assert step_flops(model, step, cfg) == expected
    whole_head = compose(["experiment=demo", "compute.targets_only_head=false"])
    assert step_flops(model, step, whole_head) - expected == 6 * 8 * shape.hidden * shape.vocab


def test_frozen_matrices_cost_two_thirds() -> None:
    cfg = compose(["experiment=demo", "tuning=lora", "tuning.rank=2"])
    model = tiny_config("llama")
    lora = step_flops(model, plan([10], targets=10), cfg)
    shape = shape_of(model)
    matrices = (
        shape.layers * sum(linear.inputs * linear.outputs for linear in shape.linears) + shape.hidden * shape.vocab
    )
    adapters = shape.adapters(2)
    attention = 12 * 32 * shape.layers * 55
    assert lora == pytest.approx(4 * 10 * matrices + 6 * 10 * adapters + attention)


@pytest.mark.parametrize(("policy", "again"), [("none", 0), ("selective", 2), ("full", 3)])
def test_recomputation_adds_a_forward_pass_of_the_blocks_it_computes_again(policy: str, again: int) -> None:
    """Of three blocks: forward is a third of what the step needs without its head."""
    cfg, model = compose(["experiment=demo", f"model.recompute={policy}"]), tiny_config("llama")
    step = plan([5, 7], targets=4)
    head = 6 * 4 * shape_of(model).hidden * shape_of(model).vocab
    assert recomputed_flops(model, step, cfg) == pytest.approx(again / 3 * (step_flops(model, step, cfg) - head) / 3)


def test_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert device_peak(torch.device("cuda", 0), "bf16") == 989.4e12
    assert device_peak(torch.device("cuda", 0), "fp32") == 0.0
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 PCIe")
    assert device_peak(torch.device("cuda", 0), "bf16") == 756e12
    assert device_peak(torch.device("cpu"), "bf16") == 0.0
