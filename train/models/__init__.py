"""What a model family needs told, one file per family, named after transformers' ``model_type``."""

from __future__ import annotations

import difflib
from importlib import import_module
from pkgutil import iter_modules

from conf.errors import ConfigError
from train.models.types import Family

__all__ = ["Family", "families", "family"]


def families() -> list[str]:
    """Every known ``model_type``."""
    return sorted(module.name for module in iter_modules(__path__) if module.name != "types")


def family(model_type: str) -> Family:
    """The family of a transformers ``model_type``. Raises ConfigError for one that no file here describes."""
    known = families()
    if model_type not in known:
        near = difflib.get_close_matches(model_type, known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ConfigError(
            f"model: model_type {model_type!r} is not a known family{hint}; known: {', '.join(known)}; "
            "a new one is one file in train/models/"
        )
    found: Family = import_module(f"train.models.{model_type}").FAMILY
    return found
