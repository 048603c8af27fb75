"""``-m key=a,b``: one run per combination of values, each in its own run_dir."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from conf.errors import ConfigError

OPENING, CLOSING = "[{(", "]})"
PLAIN_VALUE = re.compile(r"[A-Za-z0-9_./-]+")


@dataclass(frozen=True)
class Combination:
    arguments: tuple[str, ...]
    """The command line; every swept key has one value."""
    digest: str
    """8 hex digits of the swept overrides. They do not depend on the order of the keys."""
    swept: tuple[str, ...]


def choices(value: str) -> list[str]:
    """Split at the commas that stand outside brackets and quotes: ``[1,2],[3]`` -> ``[1,2]`` and ``[3]``."""
    parts, depth, quote, start, position = [], 0, "", 0, 0
    while position < len(value):
        letter = value[position]
        if letter == "\\":
            position += 1
        elif quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in OPENING:
            depth += 1
        elif letter in CLOSING:
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append(value[start:position])
            start = position + 1
        position += 1
    return [*parts, value[start:]]


def combinations(arguments: Sequence[str]) -> list[Combination]:
    """Every combination of the swept overrides of a command line, the last key varying fastest."""
    options = [_options(argument) for argument in arguments]
    swept = [index for index, option in enumerate(options) if len(option) > 1]
    if not swept:
        raise ConfigError("-m: no key has several values; separate them with commas, as in -m optim.lr=1e-4,3e-4")
    found = []
    for chosen in itertools.product(*options):
        values = tuple(chosen[index] for index in swept)
        digest = hashlib.blake2b("\n".join(sorted(values)).encode(), digest_size=4).hexdigest()
        found.append(Combination(chosen, digest, values))
    return found


def _options(argument: str) -> list[str]:
    key, equals, value = argument.partition("=")
    if not equals or argument.startswith("-"):
        return [argument]
    return [f"{key}={each.strip()}" for each in choices(value)]


def override(key: str, value: str) -> str:
    """``key=value`` as Hydra reads it back, quoted where the value needs it."""
    if PLAIN_VALUE.fullmatch(value):
        return f"{key}={value}"
    escaped = re.sub(r"(\\*)'", lambda found: found[1] * 2 + "\\'", value)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"{key}='{escaped}{chr(92) * trailing}'"
