"""A file that is one JSON object with its rows inside, or objects over several lines one after another.

Two objects hold rows: a Super-NaturalInstructions task, whose rows are its ``Instances``, and any object with one list
of objects, such as ``{"version": 1, "data": [...]}``. Such a file is read as a whole (the largest task has some tens of
megabytes), up to ``FILE_BYTES``.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from conf.errors import BadData
from conf.foreign.json_file import bounded, object_in
from conf.foreign.limits import FILE_BYTES
from data_prep.disk import decode, json_text

SHARED = "Definition"
EXAMPLES = "Positive Examples"
"""Fields of the task that all its records get: its definition, and the first of its examples."""
ONE_ROW = frozenset({"tools", "functions", "documents"})
"""Lists of objects that stand in a row, and are no rows."""
SPEAKER = frozenset({"role", "from", "speaker"})
"""Keys of a turn: a list of turns is one row."""


def rows(path: Path, content: Callable[[], BinaryIO]) -> Iterator[tuple[int, str]]:
    """(place, JSON text) of each row. ``content()`` is the file as UTF-8 from its beginning.

    The place is the row's in its list, or the line where an object of several begins. Raises BadData for an object that
    holds no rows, is larger than FILE_BYTES or cannot be read.
    """
    text = content().read(FILE_BYTES + 1)
    if len(text) > FILE_BYTES:
        if json_text.is_first_of_many(path, content()):
            yield from json_text.one_after_another(path, content())
            return
        raise BadData(f"{path} is one JSON object of more than {FILE_BYTES >> 20} MiB; write its rows as JSON lines.")
    try:
        value = bounded(text.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape"))
    except ValueError as error:
        if json_text.is_first_of_many(path, content()):
            yield from json_text.one_after_another(path, content())
            return
        raise BadData(
            f"{path} is one JSON object over several lines that cannot be read ({error}); "
            "correct it, write the rows as an array, or name the file .jsonl if each line is a row."
        ) from error
    yield from enumerate(_rows_of(path, value))


def _rows_of(path: Path, value: dict[str, Any]) -> Iterator[str]:
    if is_task(value):
        shared = ({SHARED: value[SHARED]} if SHARED in value else {}) | _example(value.get(EXAMPLES))
        for row in value["Instances"]:
            yield json.dumps(row | shared if isinstance(row, dict) else row, ensure_ascii=False)
        return
    lists = _lists(value)
    if len(lists) > 1:
        raise BadData(
            f"{path} is one JSON object with {len(lists)} lists of objects ({', '.join(lists)}); "
            "write the rows to train on as an array, in a file of their own."
        )
    if not lists:
        raise BadData(
            f"{path} is one JSON object over several lines without 'Instances' or another list of rows; "
            "write the rows as an array, or name the file .jsonl if each line is a row."
        )
    for row in next(iter(lists.values())):
        yield json.dumps(row, ensure_ascii=False)


def _lists(value: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The lists of rows that an object holds, by key."""
    return {key: each for key, each in value.items() if key not in ONE_ROW and _is_rows(each)}


def _is_rows(value: Any) -> bool:
    if not isinstance(value, list) or not value or not all(isinstance(each, dict) for each in value):
        return False
    return not SPEAKER.intersection(value[0])


def _example(examples: object) -> dict[str, str]:
    """The first example under FLAN's names for its parts; nothing where the task has none."""
    first = examples[0] if isinstance(examples, list) and examples else None
    if (
        not isinstance(first, dict)
        or not isinstance(first.get("input"), str)
        or not isinstance(first.get("output"), str)
    ):
        return {}
    explanation = first.get("explanation")
    return {
        "ex_input": first["input"],
        "ex_output": first["output"],
        "ex_explanation": explanation if isinstance(explanation, str) else "",
    }


def is_lines(path: Path, stream: BinaryIO) -> bool:
    """Whether each line of a text that begins with an object is a row: the first is whole, and holds no rows itself."""
    lines = decode.lines(path, stream)
    value = object_in(next(lines, (0, b""))[1].removeprefix(codecs.BOM_UTF8))
    if not value or is_task(value):
        return False
    return len(_lists(value)) != 1 or next(lines, None) is not None


def is_task(value: object) -> bool:
    """Whether an object is a whole task, and not a row."""
    return isinstance(value, dict) and isinstance(value.get("Instances"), list)
