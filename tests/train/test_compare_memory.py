"""At the end of a run on a GPU the plan is held against what was measured; elsewhere nothing is said."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conf.compose import compose
from train import main
from train.plan import GIB, plan, read_model_config


class Told:
    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.notes: list[str] = []

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.metrics |= metrics

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_planned_and_measured_memory_are_said_on_a_gpu(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "peak_memory_gib", lambda: 12.5)
    cfg = compose(
        ["model=llama32_1b", "data.prepared=none", "cluster.gpus_per_node=4", "zero=3", "batch.global_size=128"]
    )
    ranks = SimpleNamespace(device=torch.device(device), world=4, local_world=4)
    model, told = read_model_config(cfg.model), Told()
    run: Any = SimpleNamespace(cfg=cfg, ranks=ranks, model_config=model, tracker=told, state=SimpleNamespace(step=7))
    main.compare_memory(run)
    if device == "cpu":
        assert not told.metrics
        assert not told.notes
        return
    planned = plan(cfg, model).chosen
    allocated = (planned.device - planned.context - planned.fragmentation) / GIB
    assert told.metrics == {"memory/predicted_gib": pytest.approx(allocated)}
    assert "measured 12.50 GiB" in told.notes[0]
