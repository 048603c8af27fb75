"""Which files of a folder are meant, and of which split each is: folders as people and libraries leave them.

- what ``Dataset.save_to_disk`` and ``DatasetDict.save_to_disk`` of the datasets library write;
- a clone of a hub repository: files in ``data/`` or in a folder per split;
- files beside each other whose names say their split (``train.jsonl``, ``test-00000-of-00001.parquet``);
- any other folder of data files: all of them.

Only training files are trained on. A file belongs to another split if its name begins with the split's word, or ends
with it and a training file is its twin: ``gsm8k_test`` beside ``gsm8k_train``, but no lonely ``math_test``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conf.errors import BadData, MissingInput

WORDS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
    "evaluation": "validation",
}
"""Words in the names of files and folders, and the kind of split that they mean."""
SHARD = re.compile(r"[-_.]\d+([-_.]of[-_.]\d+([-_.][0-9a-f]{8,})?)?$")
PARTS = re.compile(r"[-_. ]+")
NOT_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""JSON files that the datasets library and the hub put beside the rows."""
DEEPEST = 3
"""Levels of folders below the named one that are looked into."""


@dataclass(frozen=True)
class Found:
    """What a name stands for."""

    files: list[Path]
    """What is trained on, sorted."""
    others: dict[str, list[Path]] = field(default_factory=dict)
    """Files of the other splits, by the split's name as the folder has it."""

    @property
    def all(self) -> list[Path]:
        return sorted([*self.files, *(path for paths in self.others.values() for path in paths)])

    def split(self, name: str) -> list[Path]:
        """Files of the other split ``name``: as the folder spells it, or of that kind (validation: dev, val, ...)."""
        if name in self.others:
            return self.others[name]
        return sorted(path for each, paths in self.others.items() if kind(each) == kind(name) for path in paths)


def kind(split: str) -> str:
    """train, test or validation, if the name begins with a word that means it; else the name itself."""
    return WORDS.get(PARTS.split(split.lower())[0], split)


def look(folder: Path, suffixes: Sequence[str], key: str) -> Found:
    """The data files of ``folder``. Raises MissingInput, led by the setting ``key``, and BadData (a broken state)."""
    found = _look(folder, tuple(suffixes), key)
    if not found.all:
        raise MissingInput(f"{key}: the folder {folder} holds no {', '.join(suffixes)} file.")
    return found


def require_training(found: Found, name: str, key: str) -> None:
    """Raise MissingInput if what ``name`` stands for has other splits only."""
    if not found.files:
        held = ", ".join(f"{split} ({_count(paths)})" for split, paths in found.others.items())
        raise MissingInput(
            f"{key}: the folder {name} holds no training split, only {held}; "
            f"name the files that you want to train on, such as {found.all[0]}."
        )


def _count(paths: Sequence[Path]) -> str:
    return f"{len(paths)} file{'s' if len(paths) > 1 else ''}"


def _look(folder: Path, suffixes: tuple[str, ...], key: str, deeper: int = DEEPEST) -> Found:
    if (folder / "dataset_dict.json").is_file():
        names = _json(folder / "dataset_dict.json").get("splits", [])
        return _of_splits({str(name): _saved(folder / str(name)) for name in names})
    if (folder / "state.json").is_file() and "_data_files" in _json(folder / "state.json"):
        return Found(_saved(folder))
    files = sorted(each for each in folder.iterdir() if each.name.endswith(suffixes) and each.name not in NOT_ROWS)
    if files:
        return _of_names(files)
    return _below(folder, suffixes, key, deeper - 1) if deeper else Found([])


def _below(folder: Path, suffixes: tuple[str, ...], key: str, deeper: int) -> Found:
    """A folder without data files: those of ``data/``, of its folders if splits name them, or of its only one."""
    folders = [each for each in sorted(folder.iterdir()) if each.is_dir() and not each.name.startswith(".")]
    if folder / "data" in folders and (found := _look(folder / "data", suffixes, key, deeper)).all:
        return found
    below = {each.name: found for each in folders if (found := _look(each, suffixes, key, deeper)).all}
    if below and all(kind(name) in WORDS.values() for name in below):
        return _of_splits({name: found.all for name, found in below.items()})
    if len(below) > 1:
        raise MissingInput(
            f"{key}: the folder {folder} holds data in {len(below)} folders ({', '.join(below)}); name one of them."
        )
    return next(iter(below.values()), Found([]))


def _saved(folder: Path) -> list[Path]:
    """The files that save_to_disk wrote into ``folder``, in order; others there are the library's caches."""
    state = folder / "state.json"
    if not state.is_file():
        raise MissingInput(f"{folder} belongs to a saved data set but has no state.json; copy the folder again.")
    found = [folder / str(each.get("filename")) for each in _json(state).get("_data_files") or []]
    for path in found:
        if not path.is_file():
            raise MissingInput(f"{path} is not there, but {state} names it; copy the folder again.")
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadData(f"{path} cannot be read ({error}); copy the folder again.") from error
    return content if isinstance(content, dict) else {}


def _of_splits(named: Mapping[str, list[Path]]) -> Found:
    """A folder that says its splits: its training splits, or the only one it has."""
    train = [name for name in named if kind(name) == "train"] or (list(named) if len(named) == 1 else [])
    others = {name: paths for name, paths in named.items() if name not in train and paths}
    return Found(sorted(path for name in train for path in named[name]), others)


def of_other_splits(files: Sequence[Path]) -> list[Path]:
    """Those of ``files`` whose names say that they are not for training."""
    others = _of_names(files).others
    return sorted(path for paths in others.values() for path in paths)


def _of_names(files: Iterable[Path]) -> Found:
    """Files beside each other; one whose name says no split is trained on."""
    stems = {path: _stem(path.name) for path in files}
    known = set(stems.values())
    train: list[Path] = []
    others: dict[str, list[Path]] = {}
    for path, stem in stems.items():
        split = split_of(stem, known)
        if split is None or kind(split) == "train":
            train.append(path)
        else:
            others.setdefault(split, []).append(path)
    return Found(train, others)


def _stem(name: str) -> str:
    """A file's name without endings and the number of its shard: test-00000-of-00001.parquet -> test."""
    base = name.removesuffix(".gz").removesuffix(".zst").rpartition(".")[0]
    return SHARD.sub("", base)


def split_of(stem: str, known: Iterable[str]) -> str | None:
    """The split that a stem names, as it spells it; ``known``: the stems beside it."""
    words = PARTS.split(stem)
    if words[0].lower() in WORDS:
        return stem
    last = words[-1]
    if last.lower() not in WORDS:
        return None
    if WORDS[last.lower()] == "train":
        return last
    front = stem[: -len(last)].lower()
    twins = (front + word for word, meant in WORDS.items() if meant == "train")
    return last if {each.lower() for each in known}.intersection(twins) else None
