"""The one redaction: what stands in place of a secret in whatever Corral writes, prints, sends or starts.

A secret is recognised in three ways. By its shape, wherever it stands: the user of a URL, a parameter whose name says
it (``sig=``), a token of a known kind. By its origin: the value of an environment variable whose name says it, and what
the config takes from ``${oc.env:NAME}``, whatever the name. And by its value: what was once recognised is learnt, and
hidden in all further texts, however a library quotes it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from conf.safety.names import is_public_variable, names_secret

HIDDEN = "[redacted]"
INTERPOLATION = r"\$\{oc\.env:\w+\}"
"""How a value of the environment is kept: ``${oc.env:NAME}``."""

_USER = re.compile(
    r"""(?<=://)(?:
        [^/\s:@'"]*:(?!\d{1,5}(?:[/?\#\s'"]|$))(?P<password>[^\s'"<>]*)  # to the last @: passwords hold / and @
      | (?P<user>[^/\s:@'"]+)
    )(?=@)""",
    re.VERBOSE,
)
_PARAMETER = re.compile(
    r"""(?P<query>[?&])?(?<![\w.-])(?P<name>[A-Za-z][\w.-]*)=(?P<value>[^\s&;"'<>]+)  # name=value
      | [{,]\s*(?P<key>[A-Za-z][\w.-]*):\s+(?P<each>[^\s,;}"'<>]+)                      # {name: value}""",
    re.VERBOSE,
)
_QUOTED = re.compile(
    r"""(?P<quote>["']?)(?<![\w.-])(?P<name>[A-Za-z][\w.-]*)(?P=quote)\s*[:=]\s*(?P<marks>["'])(?P<value>.+?)(?P=marks)"""
)
_HEADER = re.compile(r"\b(?i:bearer|basic)\s+(?=\S*[\d=])(?P<value>[A-Za-z0-9+/._~-]{8,}=*)")
_TOKEN = re.compile(
    r"""(?<![A-Za-z0-9])(?:
        (?:AKIA|ASIA)[0-9A-Z]{16}                              # AWS
      | gh[pousr]_[A-Za-z0-9]{20,} | github_pat_\w{20,}        # GitHub
      | gl(?:pat|dt|rt|ptt|cbt|soat)-[\w-]{16,}                # GitLab
      | xox[a-z]-[\w-]{10,} | xapp-[\w-]{10,}                  # Slack
      | (?:api_org|hf)_[A-Za-z0-9]{16,}                        # Hugging Face
      | sk-(?=[\w-]*\d)(?=[\w-]*[A-Z])[\w-]{20,}               # OpenAI and those that do as it does
      | [sr]k_(?:live|test)_[A-Za-z0-9]{16,}                   # Stripe
      | eyJ[\w-]{8,}\.[\w-]{4,}\.[\w-]*                        # JSON web tokens
      | AIza[\w-]{30,} | ya29\.[\w-]{20,}                      # Google
      | wandb_v1_\w{20,}                                       # W&B
      | npm_[A-Za-z0-9]{30,} | pypi-[\w-]{40,} | dckr_pat_[\w-]{20,} | nvapi-[\w-]{20,} | SG\.[\w-]{16,}\.[\w-]{16,}
    ) | -----BEGIN\ [A-Z ]*PRIVATE\ KEY-----.*?(?:-----END\ [A-Z ]*PRIVATE\ KEY-----|$)""",
    re.VERBOSE | re.DOTALL,
)
_PLAIN = frozenset({
    "true", "false", "none", "null", "yes", "no", "on", "off", "auto", "default", "local", "disabled", "enabled",
    "basic", "password",
})  # fmt: skip
"""Values that hide nothing, and that other text is full of."""
_WHOLE_WORD = 8
"""A known secret of fewer characters is hidden only where it is a word of its own."""
_SHORTEST = 6
"""Of a variable that the config does not name: a shorter value may be any word."""

Shown = Callable[[str], str]
"""A secret -> what stands in its place."""

_learnt: dict[str, str] = {}


def learn(secret: str, shown: str = HIDDEN) -> None:
    """Hide ``secret`` in all texts from now on, also as URLs quote it; ``shown`` stands in its place.

    What hides nothing (a word such as ``true``, a number of a few digits, an existing path) is not learnt.
    """
    if _tells_nothing(secret):
        return
    for form in _forms(secret):
        _learnt.setdefault(form, shown)


def learn_from(content: Any) -> None:
    """Learn every secret that can be recognised in plain data (dicts, lists, scalars)."""

    def take(secret: str) -> str:
        learn(secret)
        return HIDDEN

    _through(content, lambda text: _by_shape(text, take), take)


def redact(content: Any) -> Any:
    """A copy of plain data without secrets."""
    return _through(content, redact_text, lambda secret: HIDDEN)


def redact_text(text: str) -> str:
    """``text`` without secrets."""
    return _by_shape(without_known(text), lambda secret: HIDDEN)


def without_known(text: str) -> str:
    """``text`` without the secrets that are known by value; what only looks like one stays."""
    known = _learnt | _of_environment(tuple(os.environ.items()))
    return _pattern(tuple(known)).sub(lambda found: known[found[0]], text) if known else text


def without_shapes(text: str) -> str:
    """``text`` without what looks like a secret, whatever this process knows: the same in every process."""
    return _by_shape(text, lambda secret: HIDDEN)


def holds_secret(text: str) -> bool:
    return redact_text(text) != text


def _through(content: Any, text: Shown, named: Shown) -> Any:
    if isinstance(content, Mapping):
        return {
            key: named(each)
            if isinstance(each, str) and each and names_secret(str(key)) and not _kept(each)
            else _through(each, text, named)
            for key, each in content.items()
        }
    if isinstance(content, list | tuple):
        return [_through(each, text, named) for each in content]
    return text(content) if isinstance(content, str) else content


def _by_shape(text: str, shown: Shown) -> str:
    if "://" in text:
        text = _USER.sub(lambda found: _user(found, shown), text)
    if "=" in text or ":" in text:
        text = _PARAMETER.sub(lambda found: _named(found, shown), text)
        text = _QUOTED.sub(lambda found: _named(found, shown), text)
    text = _HEADER.sub(lambda found: _value(found, shown), text)
    return _TOKEN.sub(lambda found: shown(found[0]), text)


def _user(found: re.Match[str], shown: Shown) -> str:
    secret = found["password"] if found["password"] is not None else found["user"]
    if re.search(INTERPOLATION, secret):
        return found[0]
    return HIDDEN if _kept(secret) else shown(secret)


def _named(found: re.Match[str], shown: Shown) -> str:
    groups = found.groupdict()
    name = groups["name"] or groups["key"]
    return _value(found, shown) if names_secret(name, in_query=bool(groups.get("query"))) else found[0]


def _value(found: re.Match[str], shown: Shown) -> str:
    group = "value" if found["value"] is not None else "each"
    if _kept(found[group]):
        return found[0]
    start, end = (place - found.start() for place in found.span(group))
    return found[0][:start] + shown(found[group]) + found[0][end:]


def _kept(text: str) -> bool:
    """Whether ``text`` is only what stands in a secret's place."""
    return re.fullmatch(rf"(?:{INTERPOLATION}|{re.escape(HIDDEN)})+", text) is not None


def _forms(secret: str) -> set[str]:
    """As a URL quotes it, and the lines of several, which records and logs may part."""
    lines = [line for line in secret.splitlines() if len(line) >= 2 * _WHOLE_WORD] if "\n" in secret else []
    return {secret, unquote(secret), quote(secret), quote(secret, safe=""), *lines}


def _tells_nothing(value: str) -> bool:
    if len(value) < 4 or value.lower() in _PLAIN or (value.isdecimal() and len(value) < _WHOLE_WORD):
        return True
    try:
        return len(value) < 256 and Path(value).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # no name that a file can have, or of no user
        return False


@lru_cache(maxsize=2)
def _of_environment(variables: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Values of variables whose names say that they are secret, and secrets within the others' values."""
    found: dict[str, str] = {}

    def take(secret: str) -> str:
        if len(secret) >= _SHORTEST and not _tells_nothing(secret):
            found.update(dict.fromkeys(_forms(secret), HIDDEN))
        return HIDDEN

    for name, value in variables:
        if not is_public_variable(name):
            _by_shape(value, take)
            if names_secret(name, variable=True):
                take(value)
    return found


@lru_cache(maxsize=8)
def _pattern(known: tuple[str, ...]) -> re.Pattern[str]:
    longest = sorted(known, key=len, reverse=True)
    return re.compile(
        "|".join(
            re.escape(each) if len(each) >= _WHOLE_WORD else rf"(?<![A-Za-z0-9]){re.escape(each)}(?![A-Za-z0-9])"
            for each in longest
        )
    )
