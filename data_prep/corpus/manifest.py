"""MANIFEST.json: what a prepared corpus consists of, and whether its files are still that.

It is written last, so a folder with one is complete; every other file of the corpus has its size and hash in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conf.disk.folders import leads_out, refuse_foreign_links
from conf.durable import xxh3_of
from conf.errors import BadData, MissingInput
from conf.foreign.boundary import reading
from data_prep.corpus.manifest_shape import problem

VERSION = 2
"""2: the lengths of all rows are a file of their own, ``lengths.npy`` of each split."""
EXTENDED = 3
"""3: some samples have weights other than 0 and 1, or parts. A corpus without them keeps version 2 and its bytes; one
with them must not be read by whoever knows no weights."""
MANIFEST = "MANIFEST.json"
TOKENIZER = "tokenizer"
"""The folder of the corpus's tokenizer."""
CURE = "prepare the corpus again"


def read_manifest(path: Path, *, hint: str = "") -> dict[str, Any]:
    """MANIFEST.json of the corpus at ``path``; MissingInput if it is absent or unfinished, BadData if it is broken.

    PermissionDenied for a link of another user on the way.
    """
    refuse_foreign_links(path / MANIFEST, "data.prepared")
    command = hint or f"python -m data_prep data=NAME data.prepared={path}"
    if not path.is_dir():
        raise MissingInput(f"no prepared corpus at {path} (data.prepared); prepare it with: {command}")
    if not (path / MANIFEST).is_file():
        raise MissingInput(f"the corpus at {path} is unfinished (no {MANIFEST}); finish it with: {command}")
    with reading(path / MANIFEST, CURE):
        content = (path / MANIFEST).read_bytes()
    return parse_manifest(content, str(path / MANIFEST))


def parse_manifest(text: str | bytes, where: str) -> dict[str, Any]:
    """The MANIFEST read from ``where``; BadData if it is not one, or of another version."""
    with reading(where, CURE):
        manifest = json.loads(text)
        if not isinstance(manifest, dict) or "version" not in manifest:
            raise ValueError("it is no MANIFEST of a corpus")
    version = manifest["version"]
    if version not in (VERSION, EXTENDED):
        raise BadData(f"{where} has version {version}, this Corral reads {VERSION} and {EXTENDED}; {CURE}.")
    if wrong := problem(manifest):
        raise BadData(f"{where} cannot be used: {wrong}; {CURE}.")
    if outside := [*filter(leads_out, _names(manifest))]:
        raise BadData(f"{where} names a file outside of its corpus: {outside[0]}; {CURE}.")
    return manifest


def _names(manifest: Mapping[str, Any]) -> list[str]:
    """The path in the corpus of every file that a MANIFEST names, and of every folder that a source's name makes."""
    sources: Mapping[str, Any] = manifest["sources"]
    files = [*tokenizer_files(manifest), *(each for source in sources.values() for each in files_of(source))]
    return [*sources, *(each["file"] for each in files)]


def tokenizer_files(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The files of the corpus's tokenizer, as ``files_of``; of corpora of earlier releases nothing is known of them."""
    return list(manifest.get("tokenizer", {}).get("files", ()))


def files_of(source: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The files of one source by its entry: dicts with at least file (path in the corpus), bytes and xxh3."""
    parts = [part for part in source["splits"].values() if part["rows"]]
    beside = ("lengths", "weights")
    return [each for part in parts for each in (*(part[name] for name in beside if name in part), *part["shards"])]


def entry_of(path: Path, corpus: Path) -> dict[str, Any]:
    """How a MANIFEST lists the file ``path`` of ``corpus``."""
    return {"file": path.relative_to(corpus).as_posix(), "bytes": path.stat().st_size, "xxh3": xxh3_of(path)}


def version_of(sources: Mapping[str, Mapping[str, Any]]) -> int:
    """The version of a MANIFEST with these entries of sources."""
    extended = (
        source.get("kind", "text") != "text" or any("weights" in split for split in source["splits"].values())
        for source in sources.values()
    )
    return EXTENDED if any(extended) else VERSION


def check_files(path: Path, source: Mapping[str, Any], *, hashes: bool) -> None:
    """Compare the files of one source of the corpus at ``path`` with its MANIFEST entry; raises BadData."""
    for each in files_of(source):
        _check(path / each["file"], each, hashes=hashes)


def check_tokenizer(path: Path, manifest: Mapping[str, Any]) -> None:
    """Compare the tokenizer's files of the corpus at ``path`` with its MANIFEST; raises BadData, also for one more."""
    wanted = {each["file"]: each for each in tokenizer_files(manifest)}
    for name, each in wanted.items():
        _check(path / name, each, hashes=True)  # small, and what a chat template says is seen in no other way
    for extra in files_below(path / TOKENIZER) if wanted else ():
        if extra.relative_to(path).as_posix() not in wanted:
            raise BadData(f"{extra} is no file of this corpus; remove it, or prepare the corpus again.")


def files_below(folder: Path) -> list[Path]:
    """All files in ``folder`` and below, in order."""
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


def _check(path: Path, wanted: Mapping[str, Any], *, hashes: bool) -> None:
    refuse_foreign_links(path, "data.prepared")
    if not path.is_file():
        raise BadData(f"{path} is missing from the corpus; restore it, or prepare the corpus again.")
    size = path.stat().st_size
    if size != wanted["bytes"]:
        raise BadData(f"{path} has {size} bytes, its MANIFEST says {wanted['bytes']}; prepare the corpus again.")
    if hashes and xxh3_of(path) != wanted["xxh3"]:
        raise BadData(f"{path} is damaged: its hash is not the one in the MANIFEST; prepare the corpus again.")
