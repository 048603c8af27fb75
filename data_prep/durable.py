"""Files that are either whole or not there, and their hashes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

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
    with replacing(path) as stream:
        stream.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content becomes ``path``, as ``commit`` writes it, when the block ends without an error."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as stream:
        yield stream
        flushed(stream)
    publish(temporary, path)


def flushed(stream: BinaryIO) -> None:
    """Return when what was written is on the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def publish(temporary: Path, path: Path) -> None:
    """Rename, then flush the folder entry."""
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
