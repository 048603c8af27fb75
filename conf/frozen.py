"""The frozen config of a run on disk: ``run.yaml``."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from conf.disk.folders import is_ours, owner_of
from conf.durable import write_whole
from conf.errors import ConfigError, MissingInput
from conf.foreign.yaml_text import checked
from conf.judge import validate
from conf.safety.environment import read_again, recorded, variables
from conf.schema import RunConfig, to_dict

HEADER = "# The resolved config of this run, frozen at its start.\n"
EXPONENT = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+\Z")
"""Numbers (1e-3, 1.5e3) that yaml 1.1 reads as text, and Hydra and yaml 1.2 as numbers."""


@cache
def _with_exponents(base: Any) -> Any:
    """A yaml loader that reads 1e-3 as a number, or a dumper that quotes 1e-3 where it is text (a name)."""
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


def to_record(cfg: RunConfig) -> dict[str, Any]:
    """The resolved config as records keep it: without secrets, and with ``${oc.env:NAME}`` for what came from there."""
    return recorded(to_dict(cfg))


def to_yaml(cfg: RunConfig) -> str:
    """The resolved config as yaml, without secrets. ``load_config`` and other yaml readers read the same values."""
    return str(yaml.dump(to_record(cfg), Dumper=_dumper(), sort_keys=False, width=110, allow_unicode=True))


def save_config(cfg: RunConfig, path: Path) -> None:
    """Write the frozen config; a reader sees the old or the new file, never a part. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, HEADER + to_yaml(cfg))


def load_config(path: Path) -> RunConfig:
    """Read a frozen config, and again the environment's variables that it names.

    Raises MissingInput if there is no such file, ConfigError with its path if it is wrong.
    """
    try:
        raw = yaml.load(checked(path), Loader=_with_exponents(yaml.SafeLoader))
    except (FileNotFoundError, NotADirectoryError):
        raise MissingInput(f"{path} is not there; is {path.parent} the folder of a run?") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: it is a folder, and it should be the file of the frozen config") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as yaml: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: it holds no config; a config is a mapping of sections")
    if (names := variables(raw)) and not is_ours(path):
        raise ConfigError(
            f"{path}: it reads {', '.join(sorted(names))} of your environment, and {owner_of(path)} wrote it; copy the "
            "run's folder if you trust it"
        )
    return thawed(raw, str(path))


def thawed(raw: dict[str, Any], where: str) -> RunConfig:
    """The config of plain values that this release or an earlier one has frozen. Raises ConfigError with ``where``."""
    try:
        return validate(_without_retired(read_again(raw)))
    except ConfigError as error:
        raise ConfigError([f"{where}: {line}" for line in error.problems]) from None


def _without_retired(raw: dict[str, Any]) -> dict[str, Any]:
    """The config without settings that no longer exist, where they have the one value that was ever allowed."""
    # compute.prune_last_layer: true was always refused, so every older run.yaml says false, and its run must resume.
    compute = raw.get("compute")
    if not isinstance(compute, dict) or compute.get("prune_last_layer") is not False:
        return raw
    kept = {key: value for key, value in compute.items() if key != "prune_last_layer"}
    return {**raw, "compute": kept}
