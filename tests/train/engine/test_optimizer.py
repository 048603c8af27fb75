"""The optimizer as DeepSpeed gets it: buckets of odd content, and the fused update on the host."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.distributed import run_distributed
from tests.train.engine.test_engine import OPTIM, make_engine, one_step
from train.engine.fragments import base_optimizer, flat_states
from train.engine.restoring import create_moments
from train.ranks.group import Ranks


def step_an_odd_model(ranks: Ranks, stage: int) -> list[float]:
    """One AdamW step of 15 elements with the gradient 1; returns how far each has moved."""
    torch.manual_seed(0)  # the ranks start alike
    model = nn.Linear(5, 3, bias=False)
    before = model.weight.detach().clone()
    engine = make_engine(ranks, stage, 1, model=model)
    engine.accumulate(engine.module(torch.ones(1, 5)).sum() / ranks.world, last=True)
    engine.step(OPTIM.lr)
    with engine.whole(list(engine.parameters.values())):
        after = engine.parameters["weight"].detach().clone()
    return (after - before * (1 - OPTIM.lr * OPTIM.weight_decay)).flatten().tolist()  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_an_odd_number_of_trained_elements(stage: int) -> None:
    """The first update of AdamW is the learning rate against the gradient's sign, beside the decay."""
    for moved in run_distributed(step_an_odd_model, 2, stage):
        assert moved == pytest.approx([-OPTIM.lr] * 15, rel=1e-4)


def offloaded(ranks: Ranks, stage: int, offload: str) -> list[tuple[bool, str, str, float]]:
    """Of each flat state, after one step and as a restore makes it: fused, its device, that of its count, the count."""
    engine = make_engine(ranks, stage, 1, offload=offload)
    wrapper = engine._deepspeed.optimizer
    base = base_optimizer(wrapper)

    def told() -> list[tuple[bool, str, str, float]]:
        return [
            (bool(base.defaults["fused"]), str(flat.device), str(base.state[flat]["step"].device), count(flat))
            for flat in flat_states(wrapper)
        ]

    def count(flat: torch.Tensor) -> float:
        return float(base.state[flat]["step"])

    one_step(engine, ranks, 0, 1)
    engine.step(OPTIM.lr)
    found = told()
    create_moments(wrapper, 7)
    return found + told()


@pytest.mark.parametrize(("stage", "offload"), [(2, "optimizer"), (3, "all"), (2, "none")])
def test_the_update_on_the_host_is_fused(stage: int, offload: str) -> None:
    """Its numbers are those of plain torch: test_engine.py, test_restore.py."""
    (found,) = run_distributed(offloaded, 1, stage, offload)
    fused = offload != "none"
    half = len(found) // 2
    assert half >= 1
    assert [each[:3] for each in found] == [(fused, "cpu", "cpu")] * len(found)
    assert [each[3] for each in found[half:]] == [7.0] * half
    assert {each[3] for each in found[:half]} == {found[0][3]}
