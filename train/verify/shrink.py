"""Makes a copy of a model's architecture that is small enough for a proof in seconds on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conf.errors import Unavailable
from conf.schema import ModelConfig
from train.families import Keys, family
from train.loading.pretrained import CONFIG, known_config, read_config

WIDTH, LAYERS, HEADS, WINDOW = 64, 2, 4, 16
SMALL = {"head_dim": WIDTH // HEADS, "sliding_window": WINDOW, "_sliding_window_pattern": LAYERS}
"""The window is smaller than most samples, so that it is crossed. The other sizes go by the names of each family."""
DERIVED = (
    "layer_types", "vocab_size", "use_cache", "dtype", "torch_dtype", "architectures", "transformers_version",
    "_name_or_path", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
"""Keys that are derived from other keys, or belong to the corpus's tokenizer or to files that are not copied."""


def shrunken(model: ModelConfig) -> dict[str, Any]:
    """The config of ``model`` with a few narrow layers; family, head grouping, tying and windows are kept.

    Raises MissingInput or Unavailable if ``model.path`` has no config that can be read, ConfigError for a family that
    Corral does not know.
    """
    full = dict(model.config) if model.config is not None else _read(model)
    kind = family(full["model_type"])
    small = {key: value for key, value in full.items() if key not in DERIVED}
    for key, value in (SMALL | _small(kind.keys)).items():
        if isinstance(small.get(key), int):
            small[key] = min(value, small[key])
    heads = next((full[key] for key in kind.keys.heads if full.get(key)), HEADS)
    for key in kind.keys.key_heads:
        if isinstance(small.get(key), int):
            grouped = max(1, heads // full[key])
            small[key] = max(1, HEADS // grouped)
    kinds = list(dict.fromkeys(full.get("layer_types") or ()))
    if len(kinds) > 1:  # one layer of each kind
        small["layer_types"] = [kinds[index % len(kinds)] for index in range(LAYERS)]
    return {**small, **dict.fromkeys(kind.dropouts, 0.0)}


def _small(keys: Keys) -> dict[str, int]:
    """The sizes of the copy, by every name that the family may use."""
    sizes = (
        (keys.hidden, WIDTH),
        (keys.inner, 2 * WIDTH),
        (keys.layers, LAYERS),
        (keys.heads, HEADS),
    )
    return {name: size for names, size in sizes for name in names}


def _read(model: ModelConfig) -> dict[str, Any]:
    """The keys of config.json that the model's class knows; hub files have keys that no class reads any more."""
    assert model.path is not None
    folder = Path(model.path).expanduser()
    if not folder.is_dir():
        folder = _snapshot(model.path, model.revision)
    config = read_config(folder, key="model.path", trust_remote_code=False)  # the copy is of transformers' class
    known = known_config(family(config.model_type).model_type).to_dict()
    return {key: value for key, value in config.to_dict().items() if key in known or key == "model_type"}


def _snapshot(name: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, CONFIG, revision=revision)).parent
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise Unavailable(
            f"model.path={name}: {CONFIG} cannot be read ({reason}); give a Hugging Face folder or hub id"
        ) from None
