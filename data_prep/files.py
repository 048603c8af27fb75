"""Raw rows of files in bounded memory: JSON arrays, JSON lines, task files and tables, plain, gzipped or zstd.

Rows come as JSON text, not parsed: a worker parses them, and quarantine shows them as they stand. What is wrong with
one row is that row's rejection (``parse``); what makes the rest of a file unreadable is BadData, naming the place.
"""

from __future__ import annotations

import codecs
import glob
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa

from conf.errors import BadData, MissingInput, PermissionDenied, StorageError
from data_prep import tables, task_file
from data_prep.conversation import Rejected

CHUNK = 1 << 20
SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".json.zst", ".jsonl.zst", *tables.SUFFIXES)
GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
SPACE = re.compile(r"[ \t\n\r]*")
# Bytes that are not UTF-8 arrive as these (errors="surrogateescape"), so that the row they are in can be named.
BAD_BYTES = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True)
class RawRow:
    row: int
    """Place in the file from 0: element of the array, instance of the task, row of the table, or line (blank lines
    count, but are no rows)."""
    text: str
    """Its JSON text."""
    position: int
    """Bytes of the file (as stored) read so far; for progress."""


def find(pattern: str, key: str) -> list[Path]:
    """Files for a path, folder or glob, sorted. Raises MissingInput naming ``key`` and the nearest existing name."""
    path = Path(pattern).expanduser()
    if path.is_dir():
        found = sorted(each for each in path.iterdir() if each.name.endswith(SUFFIXES))
        if not found:
            raise MissingInput(f"{key}: the folder {pattern} holds no {', '.join(SUFFIXES)} file.")
        return found
    if path.is_file():
        return [path]
    found = sorted(Path(each) for each in glob.glob(str(path), recursive=True) if Path(each).is_file())  # noqa: PTH207
    if not found:
        raise MissingInput(f"{key}: no such file: {pattern}{_nearest(path)}; give a file, a folder or a glob.")
    return found


def _nearest(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f" (there is no folder {parent} either)"
    names = [each.name for each in parent.iterdir() if each.is_file()]
    near = get_close_matches(path.name, names, n=1, cutoff=0.4)
    return f"; is it {parent / near[0]}?" if near else ""


def parse(text: str) -> dict[str, Any]:
    """The object a row's text holds; raises Rejected: bad_utf8, bad_json, not_an_object, wrong_field_count."""
    if found := BAD_BYTES.search(text):
        raise Rejected("bad_utf8", f"byte 0x{ord(found.group()) - 0xDC00:02x} at character {found.start()}")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Rejected("bad_json", str(error)) from error
    if not isinstance(value, dict):
        raise Rejected("not_an_object", f"the row is {type(value).__name__}")
    if tables.MISCOUNTED in value:
        raise Rejected("wrong_field_count", f"{len(value[tables.MISCOUNTED])} fields, unlike the header")
    return value


def rows(path: Path) -> Iterator[RawRow]:
    """All rows of one file, in order.

    The name's ending says whether it is a table or JSON lines; any other is read by its first character. Raises
    BadData with the place for a file that is cut short or is not what it seems, PermissionDenied if it may not be read.
    """
    try:
        raw = path.open("rb")
    except PermissionError as error:
        raise PermissionDenied(f"{path} may not be read; ask its owner, or copy it.") from error
    with raw:
        try:
            yield from _rows(path, raw)
        except (EOFError, zlib.error, pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # the disk's word, not a decoder's
                raise StorageError(
                    f"{path} cannot be read: {error.strerror}; mend the disk or copy the file."
                ) from error
            why = " ".join(str(error).split())
            raise BadData(
                f"{path} is a broken or truncated file ({why}), after {raw.tell():,} bytes of it; get it again."
            ) from error


def _rows(path: Path, raw: BinaryIO) -> Iterator[RawRow]:
    kind = next((suffix for suffix in reversed(path.suffixes) if suffix not in (".gz", ".zst")), "")
    if kind in (".parquet", ".arrow"):
        numbered = tables.columnar(path, raw)
    elif kind == ".csv":
        numbered = tables.comma_separated(path, _unpacked(raw))
    elif kind == ".tsv":
        numbered = tables.tsv(_unpacked(raw))
    elif kind == ".jsonl":
        yield from _lines(_unpacked(raw), raw)
        return
    else:
        yield from _json(path, raw)
        return
    for row, text in numbered:
        yield RawRow(row, text, raw.tell())


def _unpacked(raw: BinaryIO) -> BinaryIO:
    raw.seek(0)
    magic = raw.read(4)
    raw.seek(0)
    if magic[:2] == GZIP_MAGIC:
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if magic == ZSTD_MAGIC:
        return cast(BinaryIO, io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd"), CHUNK))
    return raw


def _json(path: Path, raw: BinaryIO) -> Iterator[RawRow]:
    stream = _unpacked(raw)
    head = stream.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
    if head[:1] not in (b"[", b"{"):
        shown = head[:20].decode("utf-8", "backslashreplace")
        raise BadData(f"{path} is neither a JSON array nor JSON lines: it starts with {shown!r}.")
    if head[:1] == b"[":
        yield from _array(path, _unpacked(raw), raw)
    elif _is_lines(_unpacked(raw)):
        yield from _lines(_unpacked(raw), raw)
    else:
        for row, text in enumerate(task_file.instances(path, _unpacked(raw))):
            yield RawRow(row, text, raw.tell())


def _is_lines(stream: BinaryIO) -> bool:
    """Whether the first line of a file that begins with an object is one row."""
    try:
        return not task_file.is_task(json.loads(stream.readline().removeprefix(codecs.BOM_UTF8)))
    except (ValueError, RecursionError):
        return False


def _lines(stream: BinaryIO, raw: BinaryIO) -> Iterator[RawRow]:
    for number, line in enumerate(stream):
        text = line.removeprefix(codecs.BOM_UTF8 if number == 0 else b"").decode("utf-8", "surrogateescape")
        if text.strip():
            yield RawRow(number, text.rstrip("\r\n"), raw.tell())


def _array(path: Path, stream: BinaryIO, raw: BinaryIO) -> Iterator[RawRow]:
    """Elements of one JSON array: each is scanned with the C decoder as soon as it is wholly in the buffer."""
    source = _Buffer(stream)
    scan = json.JSONDecoder().raw_decode
    source.skip("[")
    row = 0
    while True:
        if source.peek() == "]" and row == 0:
            source.skip("]")
            break
        while True:
            try:
                _, end = scan(source.text, source.at)
                if end < len(source.text) or not source.more():
                    break
            except (ValueError, RecursionError) as error:
                if source.is_hopeless(error) or not source.more():
                    raise BadData(_broken(path, row, source, error, cut=source.is_cut(error))) from error
        yield RawRow(row, source.text[source.at : end], raw.tell())
        row += 1
        source.advance(end)
        if source.peek() == "]":
            source.skip("]")
            break
        if source.peek() != ",":
            raise BadData(_broken(path, row, source, "no comma between two rows", cut=not source.peek()))
        source.skip(",")
    if source.peek():
        raise BadData(_broken(path, row, source, "text after the end of the array", cut=False))


def _broken(path: Path, row: int, source: _Buffer, why: object, *, cut: bool) -> str:
    where = f"line {source.line:,}, character {source.passed + source.at:,}"
    reason = why.msg if isinstance(why, json.JSONDecodeError) else why
    if cut:
        return f"{path} is cut short: it ends inside its JSON array, after {row:,} whole rows ({where}); get it again."
    return f"{path} is not valid JSON after {row:,} whole rows ({where}): {reason}; mend or get it again."


class _Buffer:
    """A window of the file's text that grows at the end and is dropped at the front."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
        self.text = ""
        self.at = 0
        self.passed = 0
        """Characters dropped at the front."""
        self._lines = 1

    @property
    def line(self) -> int:
        return self._lines + self.text.count("\n", 0, self.at)

    def more(self) -> bool:
        """Read on; False at the end. Reads as much again as it holds: a long row is scanned few times."""
        chunk = self._stream.read(max(CHUNK, len(self.text) - self.at))
        if not chunk:
            return False
        self._lines += self.text.count("\n", 0, self.at)
        self.passed += self.at
        self.text = self.text[self.at :] + self._decode(chunk)
        self.at = 0
        return True

    def peek(self) -> str:
        """The next character that is not white space, to which it moves; "" at the end."""
        while True:
            self.at = cast(re.Match[str], SPACE.match(self.text, self.at)).end()
            if self.at < len(self.text) or not self.more():
                return self.text[self.at : self.at + 1]

    def skip(self, character: str) -> None:
        """Move behind ``character``, which is the next one, and behind the white space after it."""
        if self.peek() == character:
            self.at += 1
        self.peek()

    def advance(self, end: int) -> None:
        self.at = end

    def is_hopeless(self, error: Exception) -> bool:
        """Whether reading on cannot mend ``error``: it lies well before the end of what has been read."""
        if not isinstance(error, json.JSONDecodeError):
            return True
        return not error.msg.startswith("Unterminated string") and error.pos < len(self.text) - 16

    def is_cut(self, error: Exception) -> bool:
        """Whether ``error``, met at the end of the file, is that the text just stops."""
        if not isinstance(error, json.JSONDecodeError):
            return False
        return error.msg.startswith("Unterminated string") or error.pos >= len(self.text.rstrip())
