"""A copy of a model's architecture, small enough to prove things about in seconds on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conf.errors import MissingInput, Unavailable
from conf.schema import ModelConfig

WIDTH, LAYERS, HEADS = 64, 2, 4
SMALL = {
    "hidden_size": WIDTH, "n_embd": WIDTH, "d_model": WIDTH,
    "intermediate_size": 2 * WIDTH, "n_inner": 2 * WIDTH,
    "num_hidden_layers": LAYERS, "n_layer": LAYERS, "num_layers": LAYERS,
    "num_attention_heads": HEADS, "n_head": HEADS, "head_dim": WIDTH // HEADS,
}  # fmt: skip
DERIVED = ("layer_types", "dtype", "torch_dtype", "architectures", "transformers_version", "_name_or_path")
"""Lists per layer are made again for the smaller number of layers; the rest describes files that are not copied."""


def shrunken(model: ModelConfig) -> dict[str, Any]:
    """The config of ``model`` with a few narrow layers; family, head grouping, tying and windows are kept.

    Raises MissingInput or Unavailable if ``model.path`` has no config that can be read.
    """
    full = dict(model.config) if model.config is not None else _read(model)
    small = {key: value for key, value in full.items() if key not in DERIVED}
    for key, value in SMALL.items():
        if isinstance(small.get(key), int):
            small[key] = min(value, small[key])
    heads = full.get("num_attention_heads") or full.get("n_head") or HEADS
    if isinstance(small.get("num_key_value_heads"), int):
        grouped = max(1, heads // full["num_key_value_heads"])
        small["num_key_value_heads"] = max(1, HEADS // grouped)
    return small


def _read(model: ModelConfig) -> dict[str, Any]:
    from transformers import AutoConfig

    assert model.path is not None
    try:
        found: dict[str, Any] = AutoConfig.from_pretrained(model.path, revision=model.revision).to_dict()
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        kind = MissingInput if Path(model.path).exists() else Unavailable
        raise kind(f"model.path={model.path}: its config.json cannot be read ({reason})") from None
    return found
