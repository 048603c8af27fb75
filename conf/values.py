"""Sets and removes single values of a config that is composed and not yet resolved: plain dicts, lists and scalars."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from conf import walk
from conf.advice.near import nearest
from conf.checks.own_sources import is_whole
from conf.problems import dotted
from conf.schema import RunConfig


@dataclass(frozen=True)
class Setting:
    """One KEY=VALUE of a command line, as it was parsed."""

    word: str
    """As the user typed it."""
    key: str
    value: Any
    kind: Literal["set", "add", "remove"] = "set"

    @property
    def typed(self) -> str:
        """The text after the equals sign."""
        return self.word.partition("=")[2].strip()


def set_values(config: dict[str, Any], settings: Iterable[Setting]) -> list[tuple[str, str]]:
    """Change ``config``; (key, sentence) for each setting that cannot be set or removed."""
    return [(setting.key, line) for setting in settings for line in _set_one(config, setting)]


def missing(config: Any, above: str = "") -> Iterator[str]:
    """Dotted keys of the values that must be given and were not (???)."""
    if config == "???":
        yield above
    pairs = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for key, value in pairs:
        yield from missing(value, f"{above}.{key}" if above else str(key))


def make_empty(config: dict[str, Any], key: str) -> str:
    """Put empty text at ``key`` (a.b[1].c), where there is a value; returns that value as text."""
    path = re.findall(r"[^.\[\]]+", key)
    node = walk.value_at(config, path[:-1])
    last = _index(node, path[-1])
    before, node[last] = node[last], ""
    return str(before)


def _set_one(config: dict[str, Any], setting: Setting) -> list[str]:
    key, value, path = setting.key, setting.value, tuple(setting.key.split("."))
    there = walk.value_at(config, path)
    if setting.kind == "remove":
        return _remove(config, path)
    if key == "data.sources" and isinstance(value, dict) and isinstance(there, dict):
        return _set_sources(there, value, adds=setting.kind == "add")
    if setting.kind == "add" and there is not None and isinstance(value, dict):
        return [_exists(key)]
    node: Any = config
    for depth, part in enumerate(path[:-1]):
        if isinstance(node, dict) and node.get(part) in (None, "???"):
            node[part] = {}
        node = walk.step_into(node, _index(node, part))
        if not isinstance(node, dict | list):
            return [f"{setting.word}: {dotted(path[: depth + 1])} is one value and has no key {path[depth + 1]}"]
    last = _index(node, path[-1])
    if isinstance(node, list) and walk.step_into(node, last) is None:
        where = dotted(path[:-1])
        return [f"{setting.word}: {where} is a list of {len(node)}; set it as a whole, such as {where}=[...]"]
    node[last] = _merged(walk.step_into(node, last), _as_text(config, setting, path))
    return []


def _index(node: Any, part: str) -> str | int:
    return int(part) if isinstance(node, list) and part.isdecimal() else part


def _merged(there: Any, value: Any) -> Any:
    """``value``, or where both are mappings the mapping that is there with what ``value`` says."""
    if not isinstance(there, dict) or not isinstance(value, dict):
        return value
    return {**there, **{key: _merged(there.get(key), each) for key, each in value.items()}}


def _set_sources(there: dict[str, Any], sources: Mapping[str, Any], *, adds: bool) -> list[str]:
    """``data.sources={...}`` are all sources there are; ``+data.sources={...}`` stand beside those of the entry."""
    taken = [_exists(f"data.sources.{name}") for name in sources if adds and name in there]
    if taken:
        return taken
    before = dict(there)
    if not adds:
        there.clear()
    for name, source in sources.items():
        there[name] = source if is_whole(source) else _merged(before.get(name), source)
    return []


def _exists(key: str) -> str:
    return f"+{key}: this key exists already; remove the + to change it"


def _as_text(config: dict[str, Any], setting: Setting, path: tuple[str, ...]) -> Any:
    """The value that was parsed; the text as typed if the schema expects text (``name=1e3``)."""
    if isinstance(setting.value, int | float):
        annotation = walk.annotation_at(RunConfig, path, config)
        if annotation is not None and walk.is_text(annotation):
            return setting.typed
    return setting.value


def _remove(config: dict[str, Any], path: tuple[str, ...]) -> list[str]:
    parent = walk.value_at(config, path[:-1])
    if isinstance(parent, dict) and path[-1] in parent:
        del parent[path[-1]]
        return []
    keys = [str(key) for key in parent] if isinstance(parent, dict) else []
    near = f"; did you mean ~{dotted((*path[:-1], nearest(path[-1], keys)))}?" if keys else ""
    return [f"~{dotted(path)}: there is no such key to remove{near}"]
