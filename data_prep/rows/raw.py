"""The raw files of a source, by name: local files (files.py) and data sets of the hub (hub.py)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from conf.durable import xxh3_of
from conf.errors import MissingInput
from data_prep.disk import folders
from data_prep.disk.folders import Found
from data_prep.rows import files, hub
from data_prep.rows.record import Record

SPLIT = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Raw:
    """One raw file, as it was when preparation began."""

    name: str
    """As the MANIFEST names it: a path, or a hub name with its commit."""
    bytes: int
    """0 for a data set of the hub."""
    modified_ns: int
    xxh3: str
    """Hash of the content; empty for a data set of the hub, whose commit is in its name."""
    read_as: str = ""
    """What was found out about it by a look into it, in words: its separator, its encoding."""

    def is_changed(self) -> bool:
        """Whether a local file has changed since then."""
        if hub.is_hub(self.name):
            return False
        status = Path(self.name).stat()
        return (status.st_size, status.st_mtime_ns) != (self.bytes, self.modified_ns)


class Inputs(NamedTuple):
    """The raw files of a source."""

    training: list[Raw]
    held_out: list[Raw]
    """Files whose rows are all held out (``validation``)."""
    unread: dict[str, list[str]]
    """Names of the files of other splits, by split; nobody reads them."""


def find(pattern: str, key: str) -> list[Raw]:
    """Inputs for a hub name, path, folder or glob (the setting ``key``), of all splits; raises what inputs does."""
    if hub.is_hub(pattern):
        return [Raw(hub.pinned(pattern, key), 0, 0, "")]
    return [_raw(path) for path in files.find(pattern, key)]


def inputs(pattern: str, validation: str | None, key: str, encoding: str | None = None) -> Inputs:
    """The files that a source at config ``key`` is made of: its ``path`` and ``validation``, sorted.

    Raises what files.look and hub do, and MissingInput for a split that is not there.
    """
    if hub.is_hub(pattern):
        return _of_hub(pattern, validation, key, encoding)
    found = files.look(pattern, f"{key}.path")
    folders.require_training(found, pattern, f"{key}.path")
    held_out, local = _held_out(pattern, found, validation, f"{key}.validation")
    names = {path.resolve() for path in local}
    training = [path for path in found.files if path.resolve() not in names]
    if not training:
        raise MissingInput(f"{key}.validation: {validation} holds out all files of {pattern}; name other files.")
    unread = {
        split: left
        for split, paths in found.others.items()
        if (left := [str(path) for path in paths if path.resolve() not in names])
    }
    held_out += [_raw(path, encoding) for path in local]
    return Inputs([_raw(path, encoding) for path in training], held_out, unread)


def _held_out(pattern: str, found: Found, validation: str | None, key: str) -> tuple[list[Raw], list[Path]]:
    """(data sets of the hub, local files) that ``validation`` names: a split of ``found``, or something of its own."""
    if validation is None:
        return [], []
    if hub.is_hub(validation):
        return [Raw(hub.pinned(validation, key), 0, 0, "")], []
    if split := found.split(validation):
        return [], split
    if SPLIT.fullmatch(validation) and not Path(validation).exists() and Path(pattern).is_dir():
        held = ", ".join(found.others) or "no other split"
        raise MissingInput(f"{key}: {pattern} has no split {validation!r} and there is no such file; it has {held}.")
    return [], files.find(validation, key)


def _of_hub(pattern: str, validation: str | None, key: str, encoding: str | None) -> Inputs:
    training = [Raw(hub.pinned(pattern, f"{key}.path"), 0, 0, "")]
    if validation is None:
        return Inputs(training, [], {})
    if SPLIT.fullmatch(validation) and not Path(validation).exists():
        name = f"{training[0].name.rpartition('/')[0]}/{validation}"
        return Inputs(training, [Raw(name, 0, 0, "")], {})
    held_out, local = _held_out(pattern, Found([]), validation, f"{key}.validation")
    return Inputs(training, held_out + [_raw(path, encoding) for path in local], {})


def _raw(path: Path, encoding: str | None = None) -> Raw:
    status = path.stat()
    return Raw(str(path), status.st_size, status.st_mtime_ns, xxh3_of(path), files.read_as(path, encoding))


def rows(name: str, encoding: str | None = None) -> Iterator[Record]:
    """All records of one raw file, in order; raises what files.rows and hub.texts do."""
    if hub.is_hub(name):
        return (Record(name, row, text) for row, text in enumerate(hub.texts(name)))
    return files.rows(Path(name), encoding)


def size(name: str) -> int:
    """Bytes of one input; 0 for a data set of the hub, whose size is not known beforehand."""
    return 0 if hub.is_hub(name) else Path(name).stat().st_size
