"""One file per model family, named after transformers' ``model_type``, with all that Corral knows of the family.

A file holds one ``FAMILY``; this folder is the list of families. ``parts/`` has the types and the blocks that several
families share, ``known/`` what the config.json of some models on the hub says of their sizes. Nothing here needs torch.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from conf.errors import ConfigError
from conf.foreign.model_config import MOST as SIZES
from conf.foreign.model_config import problems_of
from data_prep.tokenizer.growth import GROWN
from train.families.parts.family import Family
from train.families.parts.kept import Kept, Work, key_repeats
from train.families.parts.shape import Config, Keys, Linear, Role, Shape

__all__ = [
    "Config",
    "Family",
    "Kept",
    "Keys",
    "Linear",
    "Role",
    "Shape",
    "Work",
    "families",
    "family",
    "key_repeats",
    "known_model",
    "known_models",
    "shape_of",
]

KNOWN = Path(__file__).with_name("known")


@cache
def families() -> tuple[str, ...]:
    """Every known ``model_type``. Listed once: the figures of every step ask, on every rank."""
    return tuple(sorted(module.name for module in iter_modules(__path__) if not module.ispkg))


def family(model_type: str) -> Family:
    """The family of a transformers ``model_type``.

    Raises ConfigError for a family without a file here, and for one that is no causal language model.
    """
    known = families()
    if model_type not in known:
        near = difflib.get_close_matches(model_type, known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ConfigError(
            f"model: model_type {model_type!r} is not a known family{hint}; known: {', '.join(known)}; "
            "a new one is one file in train/families/"
        )
    found: Family = import_module(f"train.families.{model_type}").FAMILY
    if found.architecture != "causal":
        raise ConfigError(
            f"model: model_type {model_type!r} is of architecture {found.architecture}, and every objective here "
            "trains causal language models; choose a causal model"
        )
    return found


def shape_of(config: Config) -> Shape:
    """The sizes of the model of a Hugging Face config (with ``model_type``). ConfigError names a missing key."""
    kind = family(str(config.get("model_type")))
    if problems := [f"model.config: {problem}" for problem in problems_of(config)]:
        raise ConfigError(problems)
    given = {key: value for key, value in config.items() if value is not None or key not in SIZES}  # null: not given
    try:
        return replace(kind.shape(kind.filled(given)), base_vocab=config.get(GROWN))
    except KeyError as error:
        raise ConfigError(
            f"model.config: a {kind.model_type} config needs the key {error.args[0]!r}, which is missing"
        ) from None


def known_model(name: str) -> dict[str, Any] | None:
    """The sizes of the model with the hub id ``name``, as its config.json gives them; None if no file here has them."""
    file = KNOWN / f"{name.replace('/', '--')}.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def known_models() -> dict[str, dict[str, Any]]:
    """All of them by hub id."""
    names = sorted(file.stem.replace("--", "/", 1) for file in KNOWN.glob("*.json"))
    return {name: model for name in names if (model := known_model(name)) is not None}
