"""Python code that a model's folder brings: which there is, and the word that it runs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from conf.errors import BadData, ConfigError
from conf.foreign.boundary import reading

MAPS = ("config.json", "tokenizer_config.json")
"""Files with an ``auto_map``: transformers' name of a part -> the class of the folder that is it."""
KEY = "model.trust_remote_code"
GENERATE = "custom_generate/generate.py"
"""Where transformers looks for a ``generate`` of the folder's own."""


def code_of(folder: Path) -> list[str]:
    """The code that ``folder`` names, such as ``modeling_x.XForCausalLM``; none if it has none. Raises BadData."""
    found = {name for file in MAPS if (folder / file).is_file() for name in _named(folder / file)}
    return sorted(found | ({GENERATE} if (folder / GENERATE).is_file() else set()))


def _named(file: Path) -> Iterator[str]:
    with reading(file, "copy it again"):
        content = json.loads(file.read_bytes())
        classes = content.get("auto_map") if isinstance(content, dict) else None
    yield from _texts(list(classes.values()) if isinstance(classes, dict) else classes)


def _texts(value: Any) -> Iterator[str]:
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, list):
            yield from _texts(each)
        elif isinstance(each, str):
            yield each


@contextmanager
def without_code(folder: Path, key: str) -> Iterator[None]:
    """Around loading ``folder`` without its code: if it cannot be loaded so, ConfigError names the way out."""
    try:
        yield
    except BadData as error:
        if "trust_remote_code" not in str(error.__cause__):  # transformers' word for it
            raise
        raise ConfigError(
            f"{key}: {folder} cannot be loaded without code that it brings ({', '.join(code_of(folder))}), and none of "
            f"it runs; give another model, or look at the code, which can do all that you can, and set {key}=true"
        ) from error


@cache
def say_that_it_runs(folder: Path) -> None:
    """Tell the user, before it does, that code of ``folder`` runs: once per process, of several ranks the first."""
    found = code_of(folder)
    if found and os.environ.get("RANK", "0") == "0":
        text = f"corral: model.trust_remote_code: code of {folder} runs here: {', '.join(found)}"
        print(text, file=sys.stderr, flush=True)
