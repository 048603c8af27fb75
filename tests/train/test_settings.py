"""What DeepSpeed receives, held by a golden file: regenerate with ``python -m tests.train.test_settings``."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from conf.errors import Unavailable
from conf.schema import BatchConfig, ModelConfig, OptimConfig, ZeroConfig
from train.engine.engine import refuse_wrong_versions
from train.engine.settings import deepspeed_settings
from train.plan import accumulation_steps

GOLDEN = Path(__file__).parent.parent / "golden" / "deepspeed_settings.json"


def current() -> dict[str, Any]:
    found = {}
    for stage, dtype, offload, on_cpu in itertools.product(
        (0, 1, 2, 3), ("fp32", "bf16"), ("none", "optimizer", "all"), (True, False)
    ):
        if (offload != "none" and stage == 0) or (offload == "all" and stage < 3) or (dtype == "bf16" and stage == 0):
            continue
        found[f"zero{stage} {dtype} offload={offload} {'cpu' if on_cpu else 'gpu'}"] = deepspeed_settings(
            model=ModelConfig(path="x", dtype=dtype),  # type: ignore[arg-type]
            zero=ZeroConfig(stage=stage, offload=offload),  # type: ignore[arg-type]
            optim=OptimConfig(),
            batch=BatchConfig(global_size=100, micro_size=4),
            world=8,
            on_cpu=on_cpu,
        )
    return found


def test_every_value_deepspeed_receives_is_the_golden_one() -> None:
    assert current() == json.loads(GOLDEN.read_text())


@pytest.mark.parametrize(
    ("rows", "micro", "world", "wanted"), [(1, 1, 1, 1), (100, 4, 8, 4), (96, 4, 8, 3), (5, 1, 2, 3), (5, 8, 2, 1)]
)
def test_accumulation_follows_from_the_batch(rows: int, micro: int, world: int, wanted: int) -> None:
    assert accumulation_steps(BatchConfig(global_size=rows, micro_size=micro), world) == wanted


@pytest.mark.parametrize("version", ["0.17.6", "0.18.0", "0.18.3", "0.19.3+cu130"])
def test_releases_with_wrong_gradients_are_refused(version: str) -> None:
    with pytest.raises(Unavailable, match=r"wrong ZeRO-2 gradients.*pip install deepspeed==0\.19\.8"):
        refuse_wrong_versions(version)


@pytest.mark.parametrize("version", ["0.17.5", "0.19.4", "0.19.8"])
def test_other_releases_pass(version: str) -> None:
    refuse_wrong_versions(version)


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(current(), indent=1, sort_keys=True) + "\n")
