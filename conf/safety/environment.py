"""What the config takes from the environment: ``${oc.env:NAME}``.

run.yaml and every other record keep the interpolation. Whoever reads run.yaml again reads the variable again, so that a
run may be continued with another password, and its folder may be shown.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_origin

from conf import walk
from conf.safety.names import is_public_variable, names_secret
from conf.safety.secrets import HIDDEN, INTERPOLATION, holds_secret, learn, redact
from conf.schema import RunConfig

FOLDERS = ("name", "run_dir")
"""Settings that name folders: who puts a value there shows it."""
_READ = re.compile(rf"(?P<escaped>\\)?(?P<whole>{INTERPOLATION})")
_kept: dict[walk.Path, tuple[str, str]] = {}
"""Path of a setting -> its value, and the text that is kept of it."""


class Reading:
    """The resolver of ``${oc.env:NAME,DEFAULT}``: the value; and within ``as_text`` what is kept of it."""

    def __init__(self) -> None:
        self._text = False
        self.reads = False
        """Whether the config takes anything from there that records do not hold."""

    def __call__(self, name: str, *default: Any) -> str | None:
        known = name in os.environ
        if not is_public_variable(name) and (known or names_secret(name, variable=True)):
            self.reads = True
            if self._text:
                return f"${{oc.env:{name}}}"
        if not known and not default:
            raise KeyError(name)
        value = os.environ.get(name, *default)
        return None if value is None else str(value)

    @contextmanager
    def as_text(self) -> Iterator[None]:
        self._text = True
        try:
            yield
        finally:
            self._text = False


def keep(plain: Any, kept: Any) -> None:
    """Remember which settings of the resolved config ``plain`` are, in records, what ``kept`` says; learn the values.

    Numbers, and texts of which there are only a few, are no secrets.
    """
    shown = " ".join(str(plain.get(key, "")) for key in FOLDERS)
    for path, value, text in _differing(plain, kept):
        if path[0] in FOLDERS or _is_word(path, plain):
            continue
        _kept[path] = (value, text)
        for name in _variables(text):
            secret = os.environ.get(name, value)
            if secret not in shown or names_secret(name, variable=True):
                learn(secret, f"${{oc.env:{name}}}")


def showing(plain: Mapping[str, Any]) -> list[str]:
    """A sentence about each setting that would show a secret in the name of a folder."""
    return [
        f"{key}: {redact(plain[key])} would show a secret, because folders are named so; choose another name"
        for key in FOLDERS
        if isinstance(plain.get(key), str) and holds_secret(plain[key])
    ]


def recorded(plain: dict[str, Any]) -> dict[str, Any]:
    """The config as records hold it: without secrets, with the interpolations that ``keep`` remembers."""
    found: dict[str, Any] = redact(_each(plain, lambda path, text: _text_at(path, text)))
    return found


def literal(plain: dict[str, Any]) -> dict[str, Any]:
    """Plain data whose texts a resolver of interpolations gives back as they are here."""
    found: dict[str, Any] = _each(plain, lambda path, text: re.sub(r"(\\*)\$\{", r"\1\1\\${", text))
    return found


def read_again(raw: dict[str, Any]) -> dict[str, Any]:
    """The config of records with the values of variables in their place; one that is not set stays as it is kept."""

    def read(path: walk.Path, text: str) -> str:
        value = _READ.sub(lambda found: found["whole"] if found["escaped"] else _value(found["whole"]), text)
        if value != text and _variables(text):
            _kept.setdefault(path, (value, text))
        return value

    found: dict[str, Any] = _each(raw, read)
    return found


def variables(raw: Any) -> set[str]:
    """Names of all variables that the config of records reads."""
    if isinstance(raw, Mapping | list):
        each = raw.values() if isinstance(raw, Mapping) else raw
        return {name for value in each for name in variables(value)}
    return set(_variables(raw))


def unread(plain: dict[str, Any], sections: Sequence[str]) -> list[str]:
    """A sentence about each setting of ``sections`` whose value a record has not got."""
    lines: list[str] = []
    prepared = (plain.get("data") or {}).get("prepared")

    def look(path: walk.Path, text: str) -> str:
        key = ".".join(map(str, path))
        if path[0] not in sections or (prepared and path[:2] == ("data", "sources")):
            return text
        if names := _variables(text):
            lines.append(f"{key}: {text} cannot be read, because {', '.join(names)} is not set; set it, or {key}=VALUE")
        elif HIDDEN in text:
            lines.append(f"{key}: run.yaml keeps no secrets, and {text} had one; give it again with {key}=VALUE")
        return text

    _each(plain, look)
    return lines


def _value(interpolation: str) -> str:
    name = interpolation[len("${oc.env:") : -1]
    if name not in os.environ:
        return interpolation
    learn(os.environ[name], interpolation)
    return os.environ[name]


def _text_at(path: walk.Path, text: str) -> str:
    value, kept = _kept.get(path, ("", ""))
    if value == text and kept:
        return kept
    return _READ.sub(lambda found: f"\\{found['whole']}", text)


def _is_word(path: walk.Path, plain: Any) -> bool:
    annotation = walk.annotation_at(RunConfig, path, plain)
    bases = [walk.unwrap(member)[0] for member in walk.members(annotation)] if annotation is not None else []
    return bool(bases) and all(get_origin(base) is Literal or base is type(None) for base in bases)


def _variables(text: Any) -> list[str]:
    found = _READ.finditer(text) if isinstance(text, str) else ()
    return [each["whole"][len("${oc.env:") : -1] for each in found if not each["escaped"]]


def _differing(plain: Any, kept: Any, path: walk.Path = ()) -> Iterator[tuple[walk.Path, str, str]]:
    if isinstance(plain, Mapping) and isinstance(kept, Mapping):
        for key in plain:
            yield from _differing(plain[key], kept.get(key), (*path, key))
    elif isinstance(plain, list) and isinstance(kept, list):
        for place, (one, other) in enumerate(zip(plain, kept, strict=False)):
            yield from _differing(one, other, (*path, place))
    elif isinstance(plain, str) and isinstance(kept, str) and plain != kept:
        yield path, plain, kept


def _each(content: Any, change: Callable[[walk.Path, str], str], path: walk.Path = ()) -> Any:
    """A copy of plain data in which ``change(path, text)`` stands for every text."""
    if isinstance(content, Mapping):
        return {key: _each(value, change, (*path, key)) for key, value in content.items()}
    if isinstance(content, list):
        return [_each(value, change, (*path, place)) for place, value in enumerate(content)]
    return change(path, content) if isinstance(content, str) else content
