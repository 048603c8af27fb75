"""The raw inputs of a source, by name: local files (files.py) and data sets of the hub (hub.py)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep import files, hub
from data_prep.durable import file_digest
from data_prep.files import RawRow


@dataclass(frozen=True)
class Raw:
    """One raw input as it was found."""

    name: str
    """As the MANIFEST names it: a path, or a hub name with its commit."""
    bytes: int
    """0 for a data set of the hub."""
    modified_ns: int
    xxh3: str
    """Hash of the content; empty for a data set of the hub, whose commit is in its name."""

    def is_changed(self) -> bool:
        """Whether a local file is no longer what was found."""
        if hub.is_hub(self.name):
            return False
        status = Path(self.name).stat()
        return (status.st_size, status.st_mtime_ns) != (self.bytes, self.modified_ns)


def find(pattern: str, key: str) -> list[Raw]:
    """Inputs for a hub name, path, folder or glob (the setting ``key``), sorted; raises what files.find and hub do."""
    if hub.is_hub(pattern):
        return [Raw(hub.pinned(pattern, key), 0, 0, "")]
    found = []
    for path in files.find(pattern, key):
        status = path.stat()
        found.append(Raw(str(path), status.st_size, status.st_mtime_ns, file_digest(path)))
    return found


def rows(name: str) -> Iterator[RawRow]:
    """All rows of one input, in order; raises what files.rows and hub.texts do."""
    if hub.is_hub(name):
        return (RawRow(row, text, 0) for row, text in enumerate(hub.texts(name)))
    return files.rows(Path(name))


def size(name: str) -> int:
    """Bytes of one input; 0 for a data set of the hub, whose size is not known beforehand."""
    return 0 if hub.is_hub(name) else Path(name).stat().st_size
