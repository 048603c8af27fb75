"""A real pretrained base, read as a run reads it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from conf.schema import ModelConfig
from tests.train.model.test_build import built


def test_real_weights_load_and_know_english() -> None:
    root = os.environ.get("CORRAL_TEST_DATA")
    if not root:
        pytest.skip("CORRAL_TEST_DATA names no folder with real data")
    folder = Path(root, "weights", "stories260K", "hf")
    found = built(Path("unused"), ModelConfig(path=str(folder), dtype="fp32"), vocab_size=512)
    assert json.loads((folder / "config.json").read_text())["hidden_size"] == found.model.config.hidden_size
    assert found.family.model_type == "llama"
    assert found.attention.name == "packed"
