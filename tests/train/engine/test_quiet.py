"""DeepSpeed's own lines reach nobody: a run's terminal has the run's."""

from __future__ import annotations

import pytest

from tests.distributed import run_distributed
from tests.train.engine.test_engine import make_engine, one_step
from train.ranks.group import Ranks


def started(ranks: Ranks) -> None:
    for stage, dtype in ((0, "fp32"), (1, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")):
        engine = make_engine(ranks, stage, 1, dtype)
        one_step(engine, ranks, 0, 1)
        engine.step(1e-3)


def test_no_stage_says_anything(capfd: pytest.CaptureFixture[str]) -> None:
    """Stage 1 in bf16 printed a dozen lines about memory, also on the one GPU that it is best for."""
    run_distributed(started, 1)
    assert "".join(capfd.readouterr()) == ""
