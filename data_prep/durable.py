"""Files that are either whole or not there, and their hashes."""

from __future__ import annotations

import os
from pathlib import Path

import xxhash


def file_digest(path: Path) -> str:
    """xxh3_128 of a file's bytes, as hex."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def commit(path: Path, content: bytes) -> None:
    """Write ``content`` so that ``path`` is never seen half-written, and survives a power cut once this returns."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    publish(temporary, path)


def publish(temporary: Path, path: Path) -> None:
    """Rename, then flush the folder entry."""
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
