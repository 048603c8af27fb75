"""Sentences about the problems of a config: the setting, its value, the allowed values, the nearest key for a typo."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from conf import walk
from conf.advice.names import key_for, value_for
from conf.advice.near import nearest, nearest_is_close
from conf.errors import shown
from conf.schema.fields import LARGEST, Also

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
KINDS: dict[type, str] = {
    bool: "boolean", int: "integer", float: "number", str: "text", list: "list", dict: "mapping", type(None): "null",
}  # fmt: skip


def dotted(path: Sequence[str | int]) -> str:
    """The path as ``data.sources.a``. Unprintable keys are escaped, so that a path is always one line."""
    return ".".join(str(key) if str(key).isprintable() else repr(key) for key in path)


def allowed(annotation: Any) -> str:
    """The values that ``annotation`` allows, in words: ``an integer >= 1, or auto``."""
    return ", or ".join(dict.fromkeys(_allowed_one(member) for member in walk.members(annotation)))


def _allowed_one(member: Any) -> str:
    base, constraints = walk.unwrap(member)
    if get_origin(base) is Literal:
        return ", ".join("true" if each is True else str(each) for each in get_args(base))
    if walk.sections(base):
        return f"a mapping with the keys {', '.join(walk.keys_at(base))}"
    if get_origin(base) is list:
        return f"a list{_bounds(constraints)}, each {allowed(get_args(base)[0])}"
    if base is str and any(getattr(each, "pattern", None) for each in constraints):
        return "a name of letters, digits, '.', '_' and '-' that begins with a letter or digit"
    words = {bool: "true, false", int: "an integer", float: "a number", str: "text", type(None): "null"}
    also = "".join(f", or {each.word}" for each in constraints if isinstance(each, Also))
    return words.get(base, "a mapping") + _bounds(constraints) + also


def _bounds(constraints: Iterable[Any]) -> str:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    parts = [
        f"{sign} {getattr(each, name)}"
        for each in constraints
        for name, sign in signs.items()
        if getattr(each, name, LARGEST) != LARGEST
    ]
    lengths = [str(each.min_length) for each in constraints if hasattr(each, "min_length")]
    return (" " + " and ".join(parts) if parts else "") + (f" of {lengths[0]}" if lengths else "")


def field_problems(errors: Sequence[Mapping[str, Any]], raw: Any, root: Any) -> dict[walk.Path, str]:
    """One line per wrong path of ``raw``, from pydantic's ``errors`` for dataclass ``root``."""
    lines: dict[walk.Path, str] = {}
    for error in errors:
        kind = error["type"]
        path = _real_path(error["loc"], raw, missing=kind == "missing")
        if kind in ("union_tag_not_found", "union_tag_invalid"):
            # Nothing below a wrong tag was judged: say what can be said of its keys.
            for stray in _stray_keys(path, raw, root):
                lines[stray] = _unknown_key(stray, raw, root)
            path = (*path, walk.discriminator(walk.annotation_at(root, path, raw)) or "")
            kind = kind if path[-1] in _at(raw, path[:-1]) else "missing"
        lines.setdefault(path, _line(kind, error["loc"], path, raw, root))
    return lines


def _at(raw: Any, path: walk.Path) -> Any:
    for key in path:
        raw = walk.step_into(raw, key)
    return raw


def _stray_keys(path: walk.Path, raw: Any, root: Any) -> list[walk.Path]:
    """The keys at ``path`` that no member of the union declares."""
    known = walk.keys_at(walk.annotation_at(root, path, raw))
    return [(*path, key) for key in _at(raw, path) if key not in known]


def _real_path(loc: Sequence[str | int], raw: Any, missing: bool) -> walk.Path:
    """Pydantic's location without its own additions (names of union members, ``[key]``): only keys of ``raw``."""
    path: list[str | int] = []
    content = raw
    for position, key in enumerate(loc):
        there = key in content if isinstance(content, dict) else isinstance(content, list) and isinstance(key, int)
        if there:
            path.append(key)
            content = walk.step_into(content, key)
        elif missing and position == len(loc) - 1:
            path.append(key)
    return tuple(path)


def _line(kind: str, loc: Sequence[str | int], path: walk.Path, raw: Any, root: Any) -> str:
    if loc and loc[-1] == "[key]":
        return f"{dotted(path)}: {shown(path[-1])} is not a valid name; allowed: {_allowed_name()}"
    annotation = walk.annotation_at(root, path, raw)
    if annotation is None:
        return _unknown_key(path, raw, root)
    value = _at(raw, path)
    if kind == "missing":
        return f"{dotted(path)}: missing; it needs {_wanted(path, annotation, root, raw)}"
    got = f"got {shown(value)} ({KINDS.get(type(value), type(value).__name__)})"
    line = f"{dotted(path) or 'the config'}: {got}; allowed: {_wanted(path, annotation, root, raw)}"
    advice = value_for(dotted(path), value) or hint(value, annotation)
    return f"{line}; {advice}" if advice else line


def _allowed_name() -> str:
    return "letters, digits, '.', '_' and '-', beginning with a letter or digit"


def _wanted(path: walk.Path, annotation: Any, root: Any, raw: Any) -> str:
    """``allowed``, but for the tag of a tagged union every member's tag."""
    parent = walk.annotation_at(root, path[:-1], raw) if path else None
    if parent is not None and path[-1] == walk.discriminator(parent):
        return ", ".join(walk.tag_of(section, str(path[-1])) for section in walk.sections(parent))
    return allowed(annotation)


def _unknown_key(path: walk.Path, raw: Any, root: Any) -> str:
    key, where = str(path[-1]), path[:-1]
    if meant := key_for(key):
        return f"{dotted(path)}: unknown key; here it is {meant}"
    content = _at(raw, where)
    parent = walk.annotation_at(root, where, raw)
    keys = walk.keys_at(parent, content)
    tag = walk.discriminator(parent)
    if tag and isinstance(content, dict):
        for section in walk.sections(parent):
            if key in walk.hints(section):
                now, other = content.get(tag), walk.tag_of(section, tag)
                return f"{dotted(path)}: unknown key with {dotted(where)}={now}; it belongs to {dotted(where)}={other}"
    elsewhere = (
        [] if nearest_is_close(key, keys) else [each for each in walk.dotted_fields(root) if each.endswith(f".{key}")]
    )
    guess = " or ".join(elsewhere) or dotted((*where, nearest(key, keys)))
    return f"{dotted(path)}: unknown key; did you mean {guess}? (keys here: {', '.join(keys)})"


def hint(value: Any, annotation: Any) -> str:
    """How yaml probably changed ``value``, and what to write instead; empty if that is unclear."""
    bases = [walk.unwrap(member)[0] for member in walk.members(annotation)]
    if isinstance(value, int) and value > LARGEST:
        return "no run counts so far"
    words = [each for base in bases if get_origin(base) is Literal for each in get_args(base)]
    if isinstance(value, bool) and (str in bases or any(isinstance(word, str) for word in words)):
        read = "yes/on/true" if value else "no/off/false"
        return f"yaml reads {read} as a boolean: quote it"
    if isinstance(value, int | float) and walk.is_text(annotation):
        return "yaml reads it as a number: quote it"
    if isinstance(value, float) and int in bases and value.is_integer():
        return f"write {int(value)}"
    if isinstance(value, str) and (int in bases or float in bases) and NUMBER.fullmatch(value.strip()):
        number = float(value)
        plain = int(number) if number.is_integer() and int in bases else number
        return f"it arrived as text: write {plain} without quotes"
    if isinstance(value, str) and bool in bases and value.lower() in ("true", "false", "yes", "no", "on", "off"):
        return "it arrived as text: write true or false without quotes"
    return ""


def without(raw: Any, paths: Iterable[walk.Path]) -> Any:
    """A copy of ``raw`` without the values at ``paths``."""
    ends = {path[0] for path in paths if len(path) == 1}
    if isinstance(raw, list):
        return list(raw)
    if not isinstance(raw, dict):
        return raw
    deeper = {key: [path[1:] for path in paths if len(path) > 1 and path[0] == key] for key in raw}
    return {key: without(value, deeper[key]) for key, value in raw.items() if key not in ends}
