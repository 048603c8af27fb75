"""The bytes of a raw file as UTF-8 text, whatever packed or encoded it."""

from __future__ import annotations

import codecs
import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa

from conf.errors import BadData
from conf.foreign.limits import BLANK_LINES, ROW_BYTES, UNPACKED_BYTES, UNPACKED_TIMES

CHUNK = 1 << 20
GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
LFS_POINTER = b"version https://git-lfs"
# UTF-32 first: its little-endian mark begins with that of UTF-16.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def unpacked(raw: BinaryIO) -> BinaryIO:
    """The content of a plain, gzipped or zstd file from its beginning.

    Reading raises BadData where the content is too many times the file's size.
    """
    size = raw.seek(0, io.SEEK_END)
    raw.seek(0)
    magic = raw.read(4)
    raw.seek(0)
    if magic[:2] == GZIP_MAGIC:
        content: Any = gzip.GzipFile(fileobj=raw)
    elif magic == ZSTD_MAGIC:
        content = pa.CompressedInputStream(pa.PythonFile(_LeftOpen(raw), "r"), "zstd")
    else:
        return raw
    return cast(BinaryIO, io.BufferedReader(_Bounded(content, raw.name, size), CHUNK))


def text(path: Path, raw: BinaryIO, encoding: str | None) -> BinaryIO:
    """The unpacked content as UTF-8 from its beginning. ``encoding``: Python's name of it; None: UTF-8, or what a byte
    order mark says.

    A byte that the encoding has no character for stays as it is, so that its row can be named. Reading raises BadData
    where the encoding cannot go on after one.
    """
    found = encoding or byte_order_mark(raw)
    if found is None or codecs.lookup(found).name == "utf-8":
        return unpacked(raw)
    return cast(BinaryIO, io.BufferedReader(_Recoded(path, unpacked(raw), found), CHUNK))


def byte_order_mark(raw: BinaryIO) -> str | None:
    """utf-16 or utf-32 if the content begins with its mark."""
    head = unpacked(raw).read(4)
    return next((name for mark, name in MARKS if head.startswith(mark)), None)


def refuse_pointer(path: Path, raw: BinaryIO) -> None:
    """Raise BadData for what a clone without Git LFS has where a large file should be."""
    if raw.read(len(LFS_POINTER)) == LFS_POINTER:
        raise BadData(f"{path} is a Git LFS pointer, not the file itself; fetch it with: git lfs pull")


def lines(path: Path, stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(number from 0, line) of every line that is not blank. Raises BadData for a line that no row is as long as."""
    blank = number = 0
    while line := stream.readline(ROW_BYTES + 1):
        if len(line) > ROW_BYTES:
            raise too_long(path, f"line {number + 1:,}")
        if line.isspace():
            blank += 1
            if blank > BLANK_LINES:
                raise BadData(f"{path} line {number + 1:,}: more than {BLANK_LINES:,} blank lines; download it again.")
        else:
            blank = 0
            yield number, line
        number += 1


def too_long(path: Path, where: str) -> BadData:
    return BadData(
        f"{path}, {where}: longer than {ROW_BYTES >> 20} MiB, which no row is; is it a file of another kind? "
        "Take the row out, or divide its text into several rows."
    )


class _Bounded(io.RawIOBase):
    """What a packed file unpacks to, up to what an honest one may."""

    def __init__(self, content: Any, name: str, packed: int) -> None:
        self._content, self._name, self._packed = content, name, packed
        self._left = UNPACKED_BYTES + UNPACKED_TIMES * packed

    def readable(self) -> bool:
        return True

    def readinto(self, target: memoryview) -> int:  # type: ignore[override]
        found = self._content.read(len(target))
        self._left -= len(found)
        if self._left < 0:
            raise BadData(
                f"{self._name} unpacks to more than {UNPACKED_TIMES} times its {self._packed:,} bytes, which text does "
                "not; unpack it yourself and look at it."
            )
        target[: len(found)] = found
        return len(found)


class _LeftOpen(io.RawIOBase):
    """A file that stays open when a decoder of it is dropped, because it is read again from its beginning."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._raw.read(size)


class _Recoded(io.RawIOBase):
    """A stream of another encoding, read as UTF-8."""

    def __init__(self, path: Path, stream: BinaryIO, encoding: str) -> None:
        self._path, self._stream, self._encoding = path, stream, encoding
        self._decode = codecs.getincrementaldecoder(encoding)("surrogateescape").decode
        self._left = memoryview(b"")
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, target: memoryview) -> int:  # type: ignore[override]
        while not self._left and not self._ended:
            self._left = memoryview(self._next())
        size = min(len(target), len(self._left))
        target[:size] = self._left[:size]
        self._left = self._left[size:]
        return size

    def _next(self) -> bytes:
        chunk = self._stream.read(CHUNK)
        self._ended = not chunk
        try:
            return self._decode(chunk, final=self._ended).encode("utf-8", "surrogateescape")
        except UnicodeError as error:
            raise BadData(
                f"{self._path} is not {self._encoding} text ({error}); set the source's encoding to that of the file."
            ) from error
