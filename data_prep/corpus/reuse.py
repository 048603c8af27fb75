"""Finished sources of other corpora: a source that a corpus beside the new one already has is not prepared again.

A source's identity covers all that its samples depend on (files, settings, tokenizer), so equal identities mean equal
shards. They become part of the new corpus as hard links: no work, no disk, and neither corpus depends on the other.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.disk.folders import is_ours
from conf.errors import BadData, CorralError, StorageError
from data_prep.corpus.manifest import MANIFEST, check_files, files_of, read_manifest

QUARANTINE = "quarantine.jsonl"


@dataclass(frozen=True)
class Reused:
    """A source as another corpus has it; a merge.Finished."""

    source: str
    corpus: Path
    entry: Mapping[str, Any]
    """Its entry in that corpus's MANIFEST."""

    @property
    def rows(self) -> int:
        return int(self.entry["rows"])

    @property
    def left_out(self) -> int:
        return int(self.entry["left_out"])

    @property
    def rejected(self) -> Counter[str]:
        return Counter(self.entry["rejected"])

    def quarantine(self) -> Iterator[dict[str, Any]]:
        """The source's lines, as they stand there."""
        with (self.corpus / QUARANTINE).open(encoding="utf-8") as lines:
            yield from (line for line in map(json.loads, lines) if line["source"] == self.source)

    def write(self, root: Path) -> dict[str, Any]:
        """Link both splits under ``root`` (copy where the file system has no links); raises StorageError."""
        for each in files_of(self.entry):
            _link(self.corpus / each["file"], root / each["file"])
        return dict(self.entry)


def _link(found: Path, wanted: Path) -> None:
    try:
        wanted.parent.mkdir(parents=True, exist_ok=True)
        wanted.unlink(missing_ok=True)
        try:
            wanted.hardlink_to(found)
        except OSError:
            shutil.copyfile(found, wanted)
    except OSError as error:
        raise StorageError(f"cannot write {wanted}: {error.strerror or error}") from error


def find(corpus: Path, wanted: Mapping[str, str]) -> dict[str, Reused]:
    """Sources by name that a finished corpus beside ``corpus`` holds unharmed. ``wanted``: identity of each."""
    found: dict[str, Reused] = {}
    for manifest_file in sorted(corpus.parent.glob(f"*/{MANIFEST}")):
        if manifest_file.parent == corpus or not is_ours(manifest_file.parent):
            continue  # another user may say that rows of theirs are ours
        for name, entry in _sources(manifest_file.parent).items():
            if name not in found and entry.get("identity") == wanted.get(name, ""):
                found[name] = Reused(name, manifest_file.parent, entry)
    return {name: each for name, each in found.items() if _is_whole(each)}


def _sources(corpus: Path) -> Mapping[str, Any]:
    try:
        sources = read_manifest(corpus).get("sources", {})
    except (CorralError, OSError):
        return {}  # a manifest of something else, or of another version: nothing to take from there
    return sources if isinstance(sources, dict) else {}


def _is_whole(each: Reused) -> bool:
    try:
        check_files(each.corpus, each.entry, hashes=True)
    except BadData:
        return False  # that corpus is damaged: whoever reads it is told; here the source is prepared anew
    return (each.corpus / QUARANTINE).is_file()
