"""A file that is one JSON object: a Super-NaturalInstructions task, whose ``Instances`` are the rows.

Such a file is read as a whole (the largest of the collection has some tens of megabytes), up to ``MOST_BYTES``.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from conf.errors import BadData

MOST_BYTES = 256 << 20
SHARED = "Definition"
EXAMPLES = "Positive Examples"
"""What every row of a task gets from the task: its definition, and the first of its examples."""


def instances(path: Path, stream: BinaryIO) -> Iterator[str]:
    """JSON text of each instance, with the task's definition and example in it; raises BadData for any other object."""
    content = stream.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise BadData(f"{path} is one JSON object of more than {MOST_BYTES >> 20} MiB; write its rows as JSON lines.")
    try:
        task = json.loads(content.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise BadData(
            f"{path} is one JSON object over several lines that cannot be read ({error}); "
            "mend it, write the rows as an array, or name the file .jsonl if each line is a row."
        ) from error
    rows = task.get("Instances")
    if not isinstance(rows, list):
        raise BadData(
            f"{path} is one JSON object over several lines without 'Instances', not an array of rows; "
            "write the rows as an array, or name the file .jsonl if each line is a row."
        )
    shared = ({SHARED: task[SHARED]} if SHARED in task else {}) | _example(task.get(EXAMPLES))
    for row in rows:
        yield json.dumps(row | shared if isinstance(row, dict) else row, ensure_ascii=False)


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


def is_task(line: object) -> bool:
    """Whether the object on a file's first line is a whole task, and not a row."""
    return isinstance(line, dict) and isinstance(line.get("Instances"), list)
