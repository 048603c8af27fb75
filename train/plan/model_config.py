"""The config.json of a run's model: inline, from a folder, the local hub cache, or train/families/known/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conf.errors import MissingInput
from conf.foreign import model_config as foreign
from conf.schema import ModelConfig
from data_prep.tokenizer.growth import GROWN, check_vocabulary, config_file, growth_of, token_count
from train.families import known_model


def read_model_config(model: ModelConfig) -> dict[str, Any]:
    """The Hugging Face config of ``model`` as a mapping, with the rows that its tokenizer needs. Nothing is downloaded.

    Raises MissingInput, which says where the model was looked for, BadData for a file that cannot be used, and
    ConfigError for a model.config with fewer rows than tokens.
    """
    if model.config is not None:
        if model.tokenizer == "train":
            return {**model.config, "vocab_size": model.vocab_size + len(model.new_tokens)}
        check_vocabulary(model.config, token_count(model) or 0)
        return dict(model.config)
    return _grown(_found(model), model)


def _grown(config: dict[str, Any], model: ModelConfig) -> dict[str, Any]:
    growth = growth_of(model, config.get("vocab_size"))
    return config if growth is None else {**config, "vocab_size": growth.rows, GROWN: growth.base}


def _found(model: ModelConfig) -> dict[str, Any]:
    name = model.path or ""
    path = _config_file(name, model.revision)
    if path is not None:
        return foreign.read_model_config(path)
    known = known_model(name)
    if known is None:
        raise MissingInput(
            f"model.path={name} is neither a local folder nor in the local hub cache, so its size is not known yet; "
            f"fetch it with: hf download {name} config.json"
        )
    return known


def _config_file(name: str, revision: str | None) -> Path | None:
    """The config.json of ``name`` on this machine; None if neither a folder nor the hub cache has it."""
    found = config_file(name, revision)
    if found is None and Path(name).is_dir():
        raise MissingInput(f"model.path={name} has no config.json; a Hugging Face model folder is expected")
    return found
