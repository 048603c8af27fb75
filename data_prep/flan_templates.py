"""``python -m data_prep.flan_templates SRC DEST``: FLAN's published templates as template sets of our format.

SRC is a JSON file (plain or gzipped) with the values of flan/v2/templates.py and flan_templates_branched.py:
``{"zero_shot": {TASK: [[input, target], ...]}, "few_shot": {TASK: [{"inputs", "targets", ...}, ...]}, ...}``. DEST gets
one file per task, TASK.jsonl, with the zero-shot and the few-shot templates; the zero-shot ones without options and
those of FLAN 2021 go to TASK.no_options.jsonl and TASK.flan2021.jsonl, with the same few-shot ones; those of NIv2 that
show the task's own example, to TASK.example.jsonl.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conf.durable import write_whole
from conf.errors import BadData, CannotCreate, ConfigError, MissingInput, leave_with_code
from data_prep.disk.decode import GZIP_MAGIC

ZERO_SHOT = {
    "zero_shot": "",
    "zero_shot_no_options": ".no_options",
    "flan2021_zero_shot": ".flan2021",
    "inline_few_shot": ".example",
}
"""Table of SRC -> ending of the file's name."""
INPUTS = "{{inputs}}"


def convert(source: Path, destination: Path) -> list[Path]:
    """Write the sets and return their files. Raises MissingInput, BadData (SRC), CannotCreate (DEST)."""
    tables = _read(source)
    written = []
    for table, ending in ZERO_SHOT.items():
        for task in tables.get(table, {}):
            path = destination / f"{_file_name(task)}{ending}.jsonl"
            _write(path, _lines(source, tables, table, task))
            written.append(path)
    return written


def _lines(source: Path, tables: Mapping[str, Any], table: str, task: str) -> list[dict[str, str]]:
    try:
        return [*map(zero_shot, tables[table][task]), *map(few_shot, tables["few_shot"].get(task, []))]
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise BadData(f"{source}: {task} in {table} is not in the form of FLAN's templates ({error!r}).") from error


def _write(path: Path, lines: list[dict[str, str]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    except OSError as error:
        raise CannotCreate(f"cannot write {path}: {error.strerror or error}.") from error


def zero_shot(pair: Sequence[str]) -> dict[str, str]:
    """A line of a set from FLAN's (input pattern, target pattern)."""
    question, answer = pair
    return {"input": question, "target": answer, "shots": "zero"}


def few_shot(template: Mapping[str, Any]) -> dict[str, str]:
    """A line of a set from a FewShotPattern.

    A question ends in the prefix of its answer, and what ``input_pattern`` has before the examples is the head.
    """
    head = template["input_pattern"].partition(INPUTS)[0].replace("{{", "{").replace("}}", "}")
    question = template["inputs_prefix"] + template["inputs"] + template["x_y_delimiter"] + template["targets_prefix"]
    line = {"input": question, "target": template["targets"], "head": head, "shots": "few"}
    return line | {"separator": template["example_separator"]}


def _file_name(task: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", task)


def _read(source: Path) -> Mapping[str, Mapping[str, Any]]:
    try:
        content = source.read_bytes()
    except OSError as error:
        raise MissingInput(f"{source} cannot be read ({error.strerror}); name FLAN's templates as JSON.") from error
    try:
        tables = json.loads(gzip.decompress(content) if content.startswith(GZIP_MAGIC) else content)
    except (ValueError, EOFError, OSError) as error:
        raise BadData(f"{source} is not JSON, plain or gzipped ({error}).") from error
    if not isinstance(tables, dict) or not {"zero_shot", "few_shot"} <= tables.keys():
        raise BadData(f"{source} has no tables zero_shot and few_shot; they are flan/v2/templates.py's, by task.")
    return tables


def main() -> None:
    """Convert, and say where the sets lie."""
    if len(sys.argv) != 3 or sys.argv[1].startswith("-"):
        raise ConfigError("usage: python -m data_prep.flan_templates SRC DEST")
    written = convert(*map(Path, sys.argv[1:]))
    print(f"wrote {len(written)} template sets to {sys.argv[2]}; name one with style.templates: {written[0]}")


if __name__ == "__main__":
    leave_with_code(main)
