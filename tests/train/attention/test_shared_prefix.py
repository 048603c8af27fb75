"""Samples that share a prefix give the gradients they give apart: to 1e-10 in float64, norms in float64 too."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from data_prep.stream.stream import PackedRow
from tests.tiny import PACKING_FAMILIES
from tests.train.rows import EOS, PAD, FakeSplit, packed_model, sharing
from train.batches.batch import IGNORE, Batch, forward_kwargs
from train.batches.collate import collate
from train.objectives.sft import token_nll_sum

PREFIXES = ((5, 6, 7, 8, 9, 10), (5, 6, 7, 8), (5, 6, 11), (5, 6))
"""Longest first among those with a common beginning; two of them begin with (5, 6), and one of these with four more."""


def split() -> Any:
    """Twelve samples: one after another begins with each of the prefixes, and with none."""
    generator = np.random.default_rng(3)
    samples = []
    for row in range(12):
        head = [PREFIXES[0], PREFIXES[2], (), PREFIXES[1], PREFIXES[0]][row % 5]
        ids = np.array([*head, *generator.integers(0, EOS, 4 + row % 5), EOS], np.int32)
        answer = 2 + row % 3
        samples.append((ids, np.array([0] * (len(ids) - answer) + [1] * answer, np.uint8)))
    return FakeSplit("a", samples, PREFIXES)


def batches(rows: list[list[int]], data: Any, *, share: bool) -> Batch:
    packed = [sharing(data, row) if share else PackedRow(tuple((0, index) for index in row)) for row in rows]
    return collate(packed, [data], layout="flat", pad_id=PAD)


def exact_nll(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The loss in the model's own dtype: production rounds logits to fp32."""
    logits = model(**forward_kwargs(batch)).logits
    return nn.functional.cross_entropy(logits[0], batch.next_labels[0], ignore_index=IGNORE, reduction="sum")


def in_float64(model: nn.Module) -> nn.Module:
    """``model`` with nothing rounded to fp32 on the way: transformers' RMSNorm is."""
    model.double()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            epsilon = getattr(module, "variance_epsilon", None) or getattr(module, "eps", 1e-6)
            offset = 1.0 if type(module).__name__.startswith("Gemma") else 0.0

            def forward(x: torch.Tensor, m: Any = module, e: float = epsilon, o: float = offset) -> torch.Tensor:
                return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + e) * (m.weight + o)

            module.forward = forward  # type: ignore[method-assign, assignment]
    return model


def gradients(model: nn.Module, losses: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.stack(losses).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_a_prefix_stands_once_in_its_row() -> None:
    data = split()
    batch, apart = (batches([[0, 3, 1, 2, 4], [6, 9]], data, share=share) for share in (True, False))
    assert batch.keys is not None
    assert apart.keys is None
    assert batch.uids == apart.uids
    assert (batch.tokens, batch.targets) == (apart.tokens, apart.targets)
    # Of row 0: 3 has (5, 6, 7, 8) from 0, 1 has (5, 6), 4 all six. Of row 6: 9 has (5, 6).
    saved = 4 + 2 + 6 + 2
    assert batch.input_ids.shape[1] == apart.input_ids.shape[1] - saved
    assert int((batch.labels != IGNORE).sum()) == batch.targets
    assert len(batch.keys.index) == int(batch.keys.segments[-1])


@pytest.mark.parametrize("kind", PACKING_FAMILIES)
def test_gradients_are_those_of_the_samples_apart(kind: str) -> None:
    data = split()
    model, _ = packed_model(kind)
    model = in_float64(model)  # type: ignore[assignment]
    rows = [[0, 1, 2, 3, 4, 5], [6, 9, 7, 11, 8, 10]]
    shared = gradients(model, [exact_nll(model, batches(rows, data, share=True))])
    apart = gradients(model, [exact_nll(model, batches([[index]], data, share=False)) for row in rows for index in row])
    assert shared.keys() == apart.keys()
    for name, wanted in apart.items():
        scale = max(float(wanted.norm()), 1e-3)
        assert float((shared[name] - wanted).norm()) <= 1e-10 * scale, name


@pytest.mark.parametrize("targets_only", [False, True])
def test_the_production_loss_is_the_same(targets_only: bool) -> None:
    data = split()
    model, _ = packed_model("llama")
    rows = [[0, 1, 2, 3, 4, 5], [6, 9, 7, 11, 8, 10]]
    shared = token_nll_sum(model, batches(rows, data, share=True), targets_only=targets_only)
    apart = [token_nll_sum(model, batches([[i]], data, share=False), targets_only=True) for row in rows for i in row]
    assert float(shared.detach()) == pytest.approx(float(torch.stack(apart).detach().sum()), rel=1e-6)


def test_a_wrong_gather_is_seen() -> None:
    """The comparison above can fail: keys of another sample change the loss."""
    data = split()
    model, _ = packed_model("llama")
    batch = batches([[0, 3, 6]], data, share=True)
    assert batch.keys is not None
    wrong = dataclasses.replace(batch, keys=dataclasses.replace(batch.keys, index=batch.keys.index.roll(1)))
    right, moved = (float(token_nll_sum(model, each, targets_only=True).detach()) for each in (batch, wrong))
    assert abs(right - moved) > 1e-3
