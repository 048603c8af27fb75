"""A command line taken apart: options, the command's own keys, and the overrides that make the config."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from conf.errors import ConfigError
from conf.problems import nearest, nearest_is_close

OPTIONS = ("--help", "--cfg", "--config-dir")


@dataclass(frozen=True)
class CommandLine:
    overrides: list[str] = field(default_factory=list)
    """GROUP=NAME, KEY=VALUE, +KEY=VALUE, ~KEY: what Hydra parses."""
    own: dict[str, str] = field(default_factory=dict)
    """The command's own keys with their values as typed, byte for byte."""
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


def split(argv: Sequence[str], own_keys: Collection[str]) -> CommandLine:
    """Take ``argv`` apart; options as ``--cfg job`` or ``--cfg=job``. Raises ConfigError for an unknown option."""
    line = CommandLine()
    words = iter(argv)
    for word in words:
        key, equals, value = word.partition("=")
        if word in ("--help", "-h"):
            line.options["--help"] = ""
        elif key in OPTIONS[1:]:
            line.options[key] = value if equals else next(words, "")
        elif word.startswith("-"):
            known = ", ".join(OPTIONS)
            raise ConfigError(f"{word}: unknown option; did you mean {nearest(key, OPTIONS)}? (options: {known})")
        elif equals and key in own_keys:
            line.own[key] = value
        else:
            line.overrides.append(word)
    _check_options(line.options)
    return line


def _check_options(options: Mapping[str, str]) -> None:
    if options.get("--cfg", "job") != "job":
        raise ConfigError(f"--cfg: got {options['--cfg']!r}; allowed: job (prints the resolved config)")
    if options.get("--config-dir") == "":
        raise ConfigError("--config-dir: needs a folder; write --config-dir DIR")


def refuse_mistyped(overrides: Sequence[str], own_keys: Collection[str], config_keys: Collection[str]) -> None:
    """Name the command's own key where one was mistyped: the schema knows only the config's."""
    keys = [override.partition("=")[0].lstrip("+~") for override in overrides]
    stray = [key for key in keys if "." not in key and key not in config_keys and nearest_is_close(key, own_keys)]
    if stray:
        known = ", ".join(own_keys)
        raise ConfigError(
            [
                f"{key}: unknown key; did you mean {nearest(key, own_keys)}? (keys of this command: {known})"
                for key in stray
            ]
        )
