"""Looks up the schema by path: the type declared at ``data.sources.alpaca.rows``, and the keys that exist there.

It reads the annotations of the dataclasses, so a new field or section needs no change here.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

Path = tuple[str | int, ...]


def unwrap(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """The plain type and its constraints: ``Annotated[int, Field(ge=1)]`` -> ``(int, (Ge(1),))``."""
    if get_origin(annotation) is not Annotated:
        return annotation, ()
    base, *metadata = get_args(annotation)
    constraints: list[Any] = []
    for each in metadata:
        constraints += each.metadata if isinstance(each, FieldInfo) else [each]
    return base, tuple(constraints)


def members(annotation: Any) -> list[Any]:
    """The alternatives of a union (constraints kept); a list of one for anything else."""
    base, _ = unwrap(annotation)
    if get_origin(base) in (Union, types.UnionType):
        return [inner for member in get_args(base) for inner in members(member)]
    return [annotation]


def discriminator(annotation: Any) -> str | None:
    """The key that selects the member of a tagged union (``method`` of ``tuning``); None for anything else."""
    if get_origin(annotation) is Annotated:
        for each in get_args(annotation)[1:]:
            if isinstance(each, FieldInfo) and isinstance(each.discriminator, str):
                return each.discriminator
    return None


def hints(section: Any) -> dict[str, Any]:
    """Field name -> annotation of a dataclass, in declared order."""
    return typing.get_type_hints(section, include_extras=True)


def tag_of(section: Any, key: str) -> str:
    """The literal value of ``key`` that selects this member of a tagged union."""
    return str(get_args(hints(section)[key])[0])


def sections(annotation: Any, content: Any = None) -> list[Any]:
    """The dataclasses that ``annotation`` allows; of a tagged union only the one that ``content`` selects, if any."""
    found = [base for base in (unwrap(member)[0] for member in members(annotation)) if is_dataclass(base)]
    key = discriminator(annotation)
    if key and isinstance(content, dict):
        named = [each for each in found if tag_of(each, key) == content.get(key)]
        return named or found
    return found


def child(annotation: Any, key: str | int, content: Any = None) -> Any | None:
    """The annotation of ``key`` below a node; ``content`` is the node's raw value. None: no such key."""
    for section in sections(annotation, content):
        if key in hints(section):
            return hints(section)[str(key)]
    for base in (unwrap(member)[0] for member in members(annotation)):
        if get_origin(base) is dict:
            return get_args(base)[1]
        if get_origin(base) is list and isinstance(key, int):
            return get_args(base)[0]
    return None


def annotation_at(root: Any, path: Sequence[str | int], raw: Any) -> Any | None:
    """The annotation at ``path`` below dataclass ``root``, where ``raw`` is the whole raw config. None: no such key."""
    annotation, content = root, raw
    for key in path:
        annotation = child(annotation, key, content)
        if annotation is None:
            return None
        content = step_into(content, key)
    return annotation


def step_into(content: Any, key: str | int) -> Any:
    """``content[key]``, or None if ``content`` has no such key or index."""
    if isinstance(content, dict):
        return content.get(key)
    if isinstance(content, list) and isinstance(key, int) and -len(content) <= key < len(content):
        return content[key]
    return None


def value_at(content: Any, path: Sequence[str | int]) -> Any:
    """The value at ``path`` below ``content``, or None; the index of a list may be text."""
    for key in path:
        content = step_into(content, int(key) if isinstance(content, list) and str(key).isdecimal() else key)
    return content


def keys_at(annotation: Any, content: Any = None) -> list[str]:
    """The keys allowed below ``annotation``; empty if every name is allowed (sources, model.config)."""
    return list(dict.fromkeys(key for section in sections(annotation, content) for key in hints(section)))


def dotted_fields(root: Any, prefix: str = "", above: tuple[Any, ...] = ()) -> Iterator[str]:
    """Every path that the schema declares, such as ``optim.lr``. NAME stands for any name; no section appears twice."""
    for key, annotation in hints(root).items():
        yield prefix + key
        for section in sections(annotation):
            yield from dotted_fields(section, f"{prefix}{key}.", (*above, root))
        named = child(annotation, "NAME") if not sections(annotation) else None
        for section in sections(named):
            if section not in (*above, root):
                yield from dotted_fields(section, f"{prefix}{key}.NAME.", (*above, root))


def is_text(annotation: Any) -> bool:
    """True if ``annotation`` allows text (or null) only."""
    bases = [unwrap(member)[0] for member in members(annotation)]
    kinds = [base for base in bases if base is not type(None)]
    return bool(kinds) and all(
        base is str or (get_origin(base) is Literal and all(isinstance(each, str) for each in get_args(base)))
        for base in kinds
    )
