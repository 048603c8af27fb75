"""What DeepSpeed receives, held by a golden file: regenerate with ``python -m tests.train.engine.test_settings``."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from conf.errors import ConfigError, Unavailable
from conf.schema import BatchConfig, ModelConfig, OptimConfig, ZeroConfig
from train.engine.engine import refuse_wrong_versions
from train.engine.settings import deepspeed_settings, fitted
from train.plan import accumulation_steps

GOLDEN = Path(__file__).parents[2] / "golden" / "deepspeed_settings.json"


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


def settings(world: int = 8, on_cpu: bool = False, **zero: Any) -> dict[str, Any]:
    return deepspeed_settings(
        model=ModelConfig(path="x"),
        zero=ZeroConfig(stage=3, **zero),
        optim=OptimConfig(),
        batch=BatchConfig(global_size=128),
        world=world,
        on_cpu=on_cpu,
    )


@pytest.mark.parametrize(
    ("trained", "block", "bucket", "prefetch"),
    [
        (8_000_000_000, 218_000_000, 50_000_000, 50_000_000),
        (20_000_000, 7_000_000, 20_000_000, 7_000_000),
        (407, 144, 408, 144),  # DeepSpeed takes no odd bucket
        (1, 1, 2, 1),
    ],
)
def test_buckets_are_no_larger_than_what_fills_them(trained: int, block: int, bucket: int, prefetch: int) -> None:
    found = fitted(settings(), trained=trained, block=block)["zero_optimization"]
    assert found["reduce_bucket_size"] == found["allgather_bucket_size"] == bucket
    assert found["stage3_prefetch_bucket_size"] == prefetch


def test_keys_of_zero_plus_plus_reach_deepspeed() -> None:
    given = {"zero_hpz_partition_size": 4, "zero_quantized_weights": True}
    found = settings(deepspeed=given)["zero_optimization"]
    assert {key: found[key] for key in given} == given


@pytest.mark.parametrize(("world", "on_cpu", "wanted"), [(1, False, False), (2, False, True), (2, True, False)])
def test_communication_overlaps_where_there_is_some(world: int, on_cpu: bool, wanted: bool) -> None:
    assert settings(world, on_cpu)["zero_optimization"]["overlap_comm"] is wanted


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, "fp32"),
        ({"reduce_dtype": "bf16"}, "bf16"),
        ({"deepspeed": {"zero_quantized_gradients": True}}, "bf16"),  # its kernels take 16 bits
    ],
)
def test_gradients_meet_in_fp32_unless_asked_otherwise(given: Any, wanted: str) -> None:
    assert settings(**given)["communication_data_type"] == wanted


@pytest.mark.parametrize(
    ("world", "on_cpu", "given", "said"),
    [
        (6, False, {"zero_hpz_partition_size": 4}, "zero_hpz_partition_size=4 was asked for on 6 ranks"),
        (4, True, {"zero_quantized_gradients": True}, "zero_quantized_gradients needs a GPU"),
    ],
)
def test_what_deepspeed_cannot_do_here_is_refused(world: int, on_cpu: bool, given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=f"^zero.deepspeed: {said}"):
        settings(world, on_cpu, deepspeed=given)


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
