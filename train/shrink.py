"""A copy of a model's architecture, small enough to prove things about in seconds on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conf.errors import MissingInput, Unavailable
from conf.schema import ModelConfig
from train.models import family

WIDTH, LAYERS, HEADS, WINDOW = 64, 2, 4, 16
SMALL = {
    "hidden_size": WIDTH, "n_embd": WIDTH, "d_model": WIDTH, "n_embed": WIDTH,
    "intermediate_size": 2 * WIDTH, "n_inner": 2 * WIDTH,
    "num_hidden_layers": LAYERS, "n_layer": LAYERS, "num_layers": LAYERS,
    "num_attention_heads": HEADS, "n_head": HEADS, "head_dim": WIDTH // HEADS,
    "sliding_window": WINDOW, "_sliding_window_pattern": LAYERS,
}  # fmt: skip
"""The window is smaller than most samples, so that it is crossed."""
DERIVED = (
    "layer_types", "vocab_size", "use_cache", "dtype", "torch_dtype", "architectures", "transformers_version",
    "_name_or_path", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
"""Made again from the rest, or what belongs to the corpus's tokenizer or to files that are not copied."""


def shrunken(model: ModelConfig) -> dict[str, Any]:
    """The config of ``model`` with a few narrow layers; family, head grouping, tying and windows are kept.

    Raises MissingInput or Unavailable if ``model.path`` has no config that can be read, ConfigError for a family that
    Corral does not know.
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
    kinds = list(dict.fromkeys(full.get("layer_types") or ()))
    if len(kinds) > 1:  # one layer of each kind
        small["layer_types"] = [kinds[index % len(kinds)] for index in range(LAYERS)]
    return {**small, **dict.fromkeys(family(full["model_type"]).dropouts, 0.0)}


def _read(model: ModelConfig) -> dict[str, Any]:
    """What the model's class knows of its config.json; hub files carry keys that no class reads any more."""
    from transformers import AutoConfig

    assert model.path is not None
    try:
        found = AutoConfig.from_pretrained(model.path, revision=model.revision)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        kind = MissingInput if Path(model.path).exists() else Unavailable
        raise kind(f"model.path={model.path}: its config.json cannot be read ({reason})") from None
    known = AutoConfig.for_model(found.model_type).to_dict()
    return {key: value for key, value in found.to_dict().items() if key in known or key == "model_type"}
