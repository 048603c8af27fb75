"""MANIFEST.json: what a prepared corpus consists of, and whether its files are still that.

It is written last, so a folder with one is complete; every other file of the corpus has its size and hash in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conf.errors import BadData, MissingInput
from data_prep.durable import file_digest

VERSION = 2
"""2: the lengths of all rows are a file of their own, ``lengths.npy`` of each split."""
MANIFEST = "MANIFEST.json"


def read_manifest(path: Path, *, hint: str = "") -> dict[str, Any]:
    """MANIFEST.json of the corpus at ``path``; MissingInput if it is absent or unfinished, BadData if it is broken."""
    command = hint or f"python -m data_prep data=NAME data.prepared={path}"
    if not path.is_dir():
        raise MissingInput(f"no prepared corpus at {path} (data.prepared); prepare it with: {command}")
    if not (path / MANIFEST).is_file():
        raise MissingInput(f"the corpus at {path} is unfinished (no {MANIFEST}); finish it with: {command}")
    return parse_manifest((path / MANIFEST).read_text(), str(path / MANIFEST))


def parse_manifest(text: str, where: str) -> dict[str, Any]:
    """The MANIFEST read from ``where``; BadData if it is not one, or of another version."""
    try:
        manifest = json.loads(text)
        version = manifest["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadData(f"{where} is not a corpus manifest ({error}); prepare the corpus again.") from error
    if version != VERSION:
        raise BadData(f"{where} has version {version}, this Corral reads {VERSION}; prepare the corpus again.")
    return dict(manifest)


def files_of(source: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The files of one source by its entry: dicts with at least file (path in the corpus), bytes and xxh3."""
    parts = [part for part in source["splits"].values() if part["rows"]]
    return [each for part in parts for each in (part["lengths"], *part["shards"])]


def check_files(path: Path, source: Mapping[str, Any], *, hashes: bool) -> None:
    """Compare the files of one source of the corpus at ``path`` with its MANIFEST entry; raises BadData."""
    for each in files_of(source):
        _check(path / each["file"], each, hashes=hashes)


def _check(path: Path, wanted: Mapping[str, Any], *, hashes: bool) -> None:
    if not path.is_file():
        raise BadData(f"{path} is missing from the corpus; restore it, or prepare the corpus again.")
    size = path.stat().st_size
    if size != wanted["bytes"]:
        raise BadData(f"{path} has {size} bytes, its MANIFEST says {wanted['bytes']}; prepare the corpus again.")
    if hashes and file_digest(path) != wanted["xxh3"]:
        raise BadData(f"{path} is damaged: its hash is not the one in the MANIFEST; prepare the corpus again.")
