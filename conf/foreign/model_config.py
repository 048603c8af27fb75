"""A model's config.json as plain values, its sizes within bounds.

transformers computes with the sizes while it reads the file, and makes a list of as many entries as there are layers.
So they are looked at before anybody else sees the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from conf.errors import BadData
from conf.foreign.json_file import read_object
from conf.foreign.limits import MOST_HEADS, MOST_LAYERS, MOST_OF_A_SIZE

CURE = "correct the file, or give another model"
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "num_decoder_layers")
HEADS = ("num_attention_heads", "n_head", "num_key_value_heads", "num_heads", "n_heads")
SIZES = (
    "hidden_size", "n_embd", "intermediate_size", "n_inner", "head_dim", "vocab_size", "max_position_embeddings",
    "n_positions", "sliding_window", "base_vocab_size", "num_experts", "num_local_experts",
)  # fmt: skip
FACTORS = ("rotary_pct", "partial_rotary_factor", "final_logit_softcapping", "attn_logit_softcapping", "rope_theta")
MOST = dict.fromkeys(LAYERS, MOST_LAYERS) | dict.fromkeys(HEADS, MOST_HEADS) | dict.fromkeys(SIZES, MOST_OF_A_SIZE)
"""The largest value of every size."""


def read_model_config(path: Path, key: str = "model.path") -> dict[str, Any]:
    """The object in the config.json at ``path``. Raises BadData, and what ``read_object`` does."""
    config = read_object(path, CURE, key=key)
    for problem in problems_of(config):
        raise BadData(f"{key}: {path} cannot be used: {problem}; {CURE}")
    return config


def problems_of(config: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the sizes of ``config`` and of the configs inside it. A size may be null or absent."""
    for name, value in config.items():
        if name in MOST and value is not None:
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST[name]:
                yield f"{name} is {_shown(value)}, and it must be a whole number from 1 to {MOST[name]:,}"
        elif name in FACTORS and value is not None:
            if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
                yield f"{name} is {_shown(value)}, and it must be a number"
        elif isinstance(value, dict) and name.endswith("_config"):
            yield from problems_of(value)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
