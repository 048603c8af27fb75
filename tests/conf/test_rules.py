"""Rules of ``zero.reduce_dtype`` and ``compute.reproducible``; most other rules are held by test_schema.py."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conf.test_schema import problems

REPRODUCIBLE = {"compute.reproducible": True, "compute.deterministic": True, "zero.overlap_comm": False}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (
            {"zero.stage": 1, "zero.reduce_dtype": "bf16"},
            ["zero.reduce_dtype: bf16 is for zero=2 and zero=3, and zero=1", "use zero.reduce_dtype=fp32, or zero=2"],
        ),
        (
            {"zero.stage": 2, "zero.reduce_dtype": "bf16", "model.dtype": "fp32"},
            ["zero.reduce_dtype: bf16 would round the gradients of model.dtype=fp32", "use zero.reduce_dtype=fp32"],
        ),
    ],
)
def test_a_reduction_in_bf16_that_cannot_be(changes: dict[str, Any], parts: list[str]) -> None:
    (line,) = problems(changes)
    for part in parts:
        assert part in line


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({**REPRODUCIBLE, "compute.deterministic": False}, ["needs kernels that repeat", "add debug=deterministic"]),
        ({**REPRODUCIBLE, "zero.stage": 1}, ["needs zero=2 or zero=3 (got zero=1)", "adds up its own micro-batches"]),
        ({**REPRODUCIBLE, "zero.stage": "auto"}, ["needs zero=2 or zero=3 (got zero=auto)"]),
        ({**REPRODUCIBLE, "zero.offload": "optimizer"}, ["cannot hold with zero.offload=optimizer"]),
        (
            {**REPRODUCIBLE, "zero.stage": 3, "zero.deepspeed": {"zero_quantized_weights": True}},
            ["is not proven with zero.deepspeed (zero_quantized_weights)", "remove its keys"],
        ),
        ({**REPRODUCIBLE, "zero.reduce_dtype": "bf16"}, ["would not be read; use zero.reduce_dtype=fp32"]),
        ({**REPRODUCIBLE, "batch.micro_size": "auto"}, ["batch.micro_size=auto follows the memory", "set a number"]),
        (
            {**REPRODUCIBLE, "tuning": {"method": "lora", "dropout": 0.1}, "data.share_prefix": False},
            ["cannot hold with tuning.dropout=0.1", "use tuning.dropout=0"],
        ),
        ({**REPRODUCIBLE, "compute.kernels": "compile"}, ["cannot hold with compute.kernels=compile"]),
        ({**REPRODUCIBLE, "compute.sequence_parallel": 2}, ["compute.sequence_parallel=2 cuts them; set it to 1"]),
    ],
)
def test_what_is_not_reproducible(changes: dict[str, Any], parts: list[str]) -> None:
    (line,) = problems(changes)
    for part in parts:
        assert part in line
