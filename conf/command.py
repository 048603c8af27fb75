"""Splits a command line into options, the command's own keys, and the overrides that make the config."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from conf.advice.names import key_for
from conf.advice.near import nearest, nearest_is_close
from conf.checks.folders import fault
from conf.errors import ConfigError, MissingInput
from conf.help import help_text

OPTIONS = ("--help", "--cfg", "--config-dir")
WITHOUT_GROUPS = ("--help", "--cfg")
"""The options of a command that composes no groups."""
TOLD = "CORRAL_TOLD"
"""Set in the environment of child processes: the parent has told the user."""
RUN_DIR = {"run_dir": "folder of the run (required)"}
"""The first own key of every command on a run that exists."""


@dataclass(frozen=True)
class CommandLine:
    overrides: list[str] = field(default_factory=list)
    """GROUP=NAME, KEY=VALUE, +KEY=VALUE, ~KEY, as Hydra parses them."""
    own: dict[str, str] = field(default_factory=dict)
    """The command's own keys and their values, exactly as the user typed them."""
    options: dict[str, str] = field(default_factory=dict)
    """Option -> its value; empty text for ``--help``."""

    @property
    def wants_help(self) -> bool:
        return "--help" in self.options

    @property
    def wants_config(self) -> bool:
        return "--cfg" in self.options

    @property
    def config_dir(self) -> Path | None:
        return Path(self.options["--config-dir"]) if "--config-dir" in self.options else None


def split(argv: Sequence[str], own_keys: Collection[str], options: Sequence[str] = OPTIONS) -> CommandLine:
    """Split ``argv``; an option is ``--cfg job`` or ``--cfg=job``. Raises ConfigError for an unknown option."""
    line = CommandLine()
    words = iter(argv)
    for word in words:
        key, equals, value = word.partition("=")
        if word in ("--help", "-h"):
            line.options["--help"] = ""
        elif key in options and key != "--help":
            line.options[key] = value if equals else next(words, "")
        elif word.startswith("-"):
            raise ConfigError(_unknown_option(word, options))
        elif equals and key in own_keys:
            line.own[key] = value
        else:
            line.overrides.append(word)
    _check_options(line.options)
    return line


def _unknown_option(word: str, options: Sequence[str]) -> str:
    name = word.partition("=")[0].lstrip("-").replace("-", "_")
    if meant := key_for(name):
        return f"{word}: settings are written KEY=VALUE, without dashes; this one is {meant}"
    near = nearest(word.partition("=")[0], options)
    return f"{word}: unknown option; did you mean {near}? (options: {', '.join(options)})"


def _check_options(options: Mapping[str, str]) -> None:
    if options.get("--cfg", "job") != "job":
        raise ConfigError(f"--cfg: got {options['--cfg']!r}; allowed: job (prints the resolved config)")
    if options.get("--config-dir") == "":
        raise ConfigError("--config-dir: needs a folder; write --config-dir DIR")


def mistyped(overrides: Sequence[str], own_keys: Collection[str], config_keys: Collection[str]) -> dict[str, str]:
    """A sentence for each override whose key resembles one of the command's own, which the schema does not know."""
    found = {}
    for override in overrides:
        key = key_of(override)
        if "." not in key and key not in config_keys and not key_for(key) and nearest_is_close(key, own_keys):
            found[override] = _unknown(key, own_keys)
    return found


def tell(text: str) -> None:
    """A line for the user beside the command's output: once, though ranks and children compose the same config."""
    if os.environ.get("RANK", "0") == "0" and not os.environ.get(TOLD):
        print(f"corral: {text}", file=sys.stderr, flush=True)


def key_of(override: str) -> str:
    """The key that an override is about: ``+a.b=1`` -> ``a.b``."""
    return override.partition("=")[0].lstrip("+~")


def _unknown(key: str, own_keys: Collection[str]) -> str:
    known = ", ".join(own_keys)
    return f"{key}: unknown key; did you mean {nearest(key, own_keys)}? (keys of this command: {known})"


def own_keys_from_argv(argv: Sequence[str], *, command: str, keys: Mapping[str, str]) -> dict[str, str]:
    """The keys of a command that takes no config, as text by name; ``keys`` maps each to its help.

    ``--help`` and ``--cfg job`` print and leave with SystemExit(0). Raises ConfigError for every key it does not know.
    """
    line = _own_line(argv, command, keys)
    if line.wants_config:
        print_and_leave("".join(f"{key}: {value}\n" for key, value in line.own.items()))
    return line.own


def run_dir_from_argv(
    argv: Sequence[str], *, command: str, extra: Mapping[str, str] | None = None
) -> tuple[Path, dict[str, str]]:
    """As ``own_keys_from_argv``, for a command that reads the files of a run but not its config.

    It works on a run whose run.yaml is not there or cannot be read. Returns the run's folder and the keys of ``extra``
    that were given. Raises ConfigError if ``run_dir`` was not given, MissingInput if that folder does not exist.
    """
    line = _own_line(argv, command, {**RUN_DIR, **(extra or {})})
    run_dir = take_run_dir(line.own)
    if line.wants_config:
        frozen = run_dir / "run.yaml"
        if not frozen.is_file():
            raise MissingInput(f"run_dir={run_dir}: it holds no run.yaml, so there is no config to print")
        print_and_leave(frozen.read_text(encoding="utf-8"))
    return run_dir, line.own


def _own_line(argv: Sequence[str], command: str, own_keys: Mapping[str, str]) -> CommandLine:
    line = split(argv, own_keys, WITHOUT_GROUPS)
    if line.wants_help:
        print_and_leave(help_text(command, own_keys))
    if line.overrides:
        raise ConfigError([_unknown(key_of(override), own_keys) for override in line.overrides])
    return line


def take_run_dir(own: dict[str, str]) -> Path:
    """Take ``run_dir`` out of a command's own keys. Raises ConfigError or MissingInput, as ``run_dir_from_argv``."""
    run_dir = own.pop("run_dir", "")
    if not run_dir:
        raise ConfigError("run_dir: missing; name the run's folder with run_dir=DIR")
    if why := fault(run_dir):
        raise ConfigError(f"run_dir: {why}")
    if not Path(run_dir).is_dir():
        raise MissingInput(f"run_dir={run_dir}: no such folder; give the folder of a run")
    return Path(run_dir)


def whole_number(own: Mapping[str, str], key: str) -> int | None:
    """The value of ``key`` as a whole number >= 0, or None if it was not given. Raises ConfigError."""
    if key not in own:
        return None
    if not own[key].isdecimal():
        raise ConfigError(f"{key}={own[key]}: not a whole number of 0 or more")
    return int(own[key])


def print_and_leave(text: str) -> NoReturn:
    """Print ``text`` and leave with SystemExit(0)."""
    try:
        print(text.rstrip("\n"), flush=True)
    except BrokenPipeError:
        # The reader (head, less) has seen enough. Python would complain again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)
