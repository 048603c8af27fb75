"""The frozen config of a run on disk: ``run.yaml``."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from conf.errors import ConfigError, MissingInput
from conf.schema import RunConfig, to_dict, validate

HEADER = "# The resolved config of this run, frozen at its start.\n"
EXPONENT = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+\Z")
"""Numbers that yaml 1.1 takes for text (1e-3, 1.5e3), and that Hydra and yaml 1.2 take for numbers."""


@cache
def _with_exponents(base: Any) -> Any:
    """A yaml loader or dumper that takes 1e-3 for a number: loaded as one, quoted where it is text (a name)."""
    kind = type(base.__name__, (base,), {})
    kind.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+0123456789"))  # type: ignore[attr-defined]
    return kind


@cache
def _dumper() -> Any:
    dumper = _with_exponents(yaml.SafeDumper)
    dumper.add_representer(str, _text)
    return dumper


def _text(dumper: Any, text: str) -> Any:
    # PyYAML writes line breaks such as U+0085 plainly and reads them back as blanks; in double quotes it escapes them.
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def to_yaml(cfg: RunConfig) -> str:
    """The resolved config as yaml that ``load`` and other yaml readers take for the same values."""
    return str(yaml.dump(to_dict(cfg), Dumper=_dumper(), sort_keys=False, width=110, allow_unicode=True))


def save(cfg: RunConfig, path: Path) -> None:
    """Write the frozen config; a reader sees the old or the new file, never a part. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(HEADER + to_yaml(cfg), encoding="utf-8")
    temporary.replace(path)


def load(path: Path) -> RunConfig:
    """Read a frozen config. Raises MissingInput if it is not there, ConfigError (naming the file) if it is wrong."""
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_with_exponents(yaml.SafeLoader))
    except (FileNotFoundError, NotADirectoryError):
        raise MissingInput(f"{path} is not there; is {path.parent} the folder of a run?") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: a folder stands where the frozen config should be") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as yaml: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: holds no config; a mapping of sections is needed")
    try:
        return validate(raw)
    except ConfigError as error:
        raise ConfigError([f"{path}: {line}" for line in error.problems]) from None
