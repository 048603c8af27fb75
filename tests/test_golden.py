"""Losses and samples of ten steps are those that are committed, in four geometries.

``losses.json`` was first written by the tree before its folders were divided into rooms: moving code changes nothing.
``python -m tests.golden.write`` writes it anew, for a change that is meant to change losses or samples.

Digests of the ledger are compared exactly, because they follow from integers alone. Losses follow from sums whose order
a CPU's kernels choose. The same runs with the kernels of a CPU without AVX (ATEN_CPU_CAPABILITY=default,
ONEDNN_MAX_CPU_ISA=SSE41) were within 2e-7 of these in fp32 and 5e-4 in bf16, so 1e-5 and 2e-3 leave room for other
CPUs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.golden.runs import RUNS, record
from tests.golden.write import LOSSES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all runs, which read the same corpus."""
    return tmp_path_factory.mktemp("golden")


def test_sharing_prefixes_changes_neither_the_samples_of_a_step_nor_its_loss() -> None:
    golden: dict[str, Any] = json.loads(LOSSES.read_text())
    apart, shared = (golden[f"full, fp32, ZeRO-2, 2 ranks{more}"] for more in ("", ", shared prefixes"))
    assert apart["ledger"] == shared["ledger"]
    assert apart["losses"] == pytest.approx(shared["losses"], rel=1e-6)
    assert apart["losses"] != shared["losses"]  # other rows


@pytest.mark.parametrize("name", RUNS)
def test_ten_steps_are_the_committed_ones(folder: Path, name: str) -> None:
    golden: dict[str, Any] = json.loads(LOSSES.read_text())[name]
    found = record(folder, name)
    assert found["ledger"] == golden["ledger"]
    assert found["losses"] == pytest.approx(golden["losses"], rel=RUNS[name].tolerance)
