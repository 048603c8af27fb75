"""The shape of the model of a run, from a config.json alone: inline, a folder, the local hub cache, or a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conf.errors import ConfigError, MissingInput
from conf.schema import ModelConfig

KNOWN = Path(__file__).with_name("known.json")
"""What the config.json of every model in conf/model/ says of its shape, so that their plans need no hub. Tests hold
each against its published number of parameters."""


def read_model_config(model: ModelConfig) -> dict[str, Any]:
    """The Hugging Face config of ``model`` as a mapping.

    Nothing is downloaded. MissingInput says what was looked for; ConfigError names a file that is no JSON object.
    """
    if model.config is not None:
        trained = {"vocab_size": model.vocab_size} if model.tokenizer == "train" else {}
        return {**model.config, **trained}
    path = _config_file(model.path or "", model.revision)
    if path is None:
        return dict(json.loads(KNOWN.read_text(encoding="utf-8"))[model.path])
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"model.path: {path} is not valid JSON ({error})") from None
    if not isinstance(found, dict):
        raise ConfigError(f"model.path: {path} holds no JSON object")
    return found


def _config_file(name: str, revision: str | None) -> Path | None:
    """The config.json of ``name``; None if only the table of known models has it."""
    local = Path(name) / "config.json"
    if local.is_file():
        return local
    if Path(name).is_dir():
        raise MissingInput(f"model.path={name} has no config.json; a Hugging Face model folder is expected")
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        cached = None
    if isinstance(cached, str):
        return Path(cached)
    if name in json.loads(KNOWN.read_text(encoding="utf-8")):
        return None
    raise MissingInput(
        f"model.path={name} is neither a local folder nor in the local hub cache, so its size is not known yet; "
        f"fetch it with: hf download {name} config.json"
    )
