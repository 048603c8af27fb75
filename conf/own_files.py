"""``data=own path=FILE``: the files of a user, spelt out as sources.

path=rows.jsonl                 one source, named own
path=[a.json, b.csv]            a source for each, drawn in proportion to its rows
path={a.json: 3, b.csv: 1}      drawn 3 to 1
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

from conf.values import Setting

KEY = "path"
EXAMPLE = "path=rows.jsonl, path='[a.json, b.csv]' or path='{a.json: 3, b.csv: 1}'"
UNNAMED = Setting("", "data.sources.own.path", "FILE")
"""So that a missing file is told once."""


def spelt_out(settings: Sequence[Setting], chosen: bool) -> tuple[list[Setting], list[str]]:
    """(settings with ``path`` as sources of the entry data=own, what is wrong with it). ``chosen``: data=own is."""
    mine = [each for each in settings if each.key == KEY]
    rest = [each for each in settings if each.key != KEY]
    if not chosen:
        return rest, [f"{each.word}: {KEY} names the files of data=own; add data=own to the command" for each in mine]
    if len(mine) > 1:
        return [UNNAMED, *rest], [f"{KEY}: given {len(mine)} times; name several files in one list, {EXAMPLE}"]
    if not mine:
        named = any(each.key.startswith("data.sources") for each in settings)
        return (rest, []) if named else ([UNNAMED, *rest], [f"data=own: no file; name it with {EXAMPLE}"])
    files = _files(mine[-1].value)
    if files is None:
        return [UNNAMED, *rest], [
            f"{mine[-1].word}: not a file, a list of files, or files with a weight each; give {EXAMPLE}"
        ]
    if len(files) < (len(mine[-1].value) if isinstance(mine[-1].value, list) else 0):
        return [UNNAMED, *rest], [f"{mine[-1].word}: a file stands in it twice; name each once, or give it a weight"]
    if len(files) == 1:
        (file,) = files
        return [Setting(mine[-1].word, "data.sources.own.path", file), *rest], []
    names = _names(list(files))
    sources = {
        name: {
            "format": "auto",
            "path": file,
            "validation_fraction": 0.05,
            **({} if weight is None else {"weight": weight}),
        }
        for name, (file, weight) in zip(names, files.items(), strict=True)
    }
    return [Setting(mine[-1].word, "data.sources", sources), *rest], []


def _files(value: Any) -> dict[str, float | None] | None:
    """Weight by file; None for a value that names no files."""
    if isinstance(value, dict):
        right = value and all(isinstance(each, int | float) and not isinstance(each, bool) for each in value.values())
        return {str(file): weight for file, weight in value.items()} if right else None
    found = value if isinstance(value, list) else [value]
    return dict.fromkeys(found) if found and all(isinstance(each, str) and each for each in found) else None


def _names(files: Sequence[str]) -> list[str]:
    """A source's name for each file: its stem, with a number where two have the same."""
    names: list[str] = []
    for file in files:
        stem = Path(file.rstrip("/*")).name.split(".")[0]
        name = re.sub(r"\W+", "_", stem).strip("_") or "own"
        taken = {*names, "tokenizer"}  # a corpus has a folder of that name
        others = (f"{name}_{number}" for number in count(2))
        names.append(next(each for each in chain([name], others) if each not in taken))
    return names
