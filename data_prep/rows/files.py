"""Records of raw files in bounded memory: JSON arrays, lines and objects, task files and tables, packed or not.

A record comes as JSON text that is not parsed: a preparation process parses it, and quarantine shows it as the file has
it. A mistake in one record rejects that record (``parse``); a mistake that makes the rest of a file unreadable raises
BadData and names the line.
"""

from __future__ import annotations

import codecs
import glob
import re
import zlib
from collections.abc import Iterator
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from conf.errors import BadData, MissingInput, PermissionDenied, StorageError
from conf.foreign.boundary import reading
from conf.foreign.json_file import bounded
from data_prep.disk import decode, folders, json_text
from data_prep.disk.folders import Found
from data_prep.rows import tables, task_file
from data_prep.rows.conversation import Rejected
from data_prep.rows.record import Record

CURE = "download or copy it again"
SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".json.zst", ".jsonl.zst", *tables.SUFFIXES)
# Bytes that are not UTF-8 arrive as these (errors="surrogateescape"), so that the row they are in can be named.
BAD_BYTES = re.compile("[\udc80-\udcff]")


def find(pattern: str, key: str) -> list[Path]:
    """Files for a path, folder or glob, of all splits, sorted; raises what ``look`` does."""
    return look(pattern, key).all


def look(pattern: str, key: str) -> Found:
    """Files for a path, folder or glob, by split. Raises MissingInput naming ``key`` and the nearest existing name."""
    path = Path(pattern).expanduser()
    if path.is_dir():
        return folders.look(path, SUFFIXES, key)
    if path.is_file():
        return Found([path])
    found = sorted(Path(each) for each in glob.glob(str(path), recursive=True) if Path(each).is_file())  # noqa: PTH207
    if not found:
        raise MissingInput(f"{key}: no such file: {pattern}{_nearest(path)}; give a file, a folder or a glob.")
    return Found(found)


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
        value = bounded(text)
    except ValueError as error:
        raise Rejected("bad_json", str(error)) from error
    if not isinstance(value, dict):
        raise Rejected("not_an_object", f"the row is {type(value).__name__}")
    if tables.MISCOUNTED in value:
        raise Rejected("wrong_field_count", f"{len(value[tables.MISCOUNTED])} fields, unlike the header")
    return value


def rows(path: Path, encoding: str | None = None) -> Iterator[Record]:
    """All records of one file, in order. ``encoding``: of a text file; see disk/decode.py.

    The ending of its name says whether it is a table or JSON lines; in any other file the first character decides.
    Raises BadData with the place (a file that is cut short or has another format), PermissionDenied and StorageError.
    """
    try:
        raw = path.open("rb")
    except PermissionError as error:
        raise PermissionDenied(
            f"{path} cannot be read: permission denied; ask its owner for read access, or copy it."
        ) from error
    with raw, reading(path, CURE):
        try:
            yield from (Record(str(path), row, text, raw.tell()) for row, text in _rows(path, raw, encoding))
        except (EOFError, zlib.error, pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # reported by the disk, not by a decoder
                raise StorageError(
                    f"{path} cannot be read: {error.strerror}; check the disk, or copy the file from another one."
                ) from error
            why = " ".join(str(error).split())
            raise BadData(
                f"{path} is a broken or truncated file ({why}), after {raw.tell():,} bytes; download or copy it again."
            ) from error


def read_as(path: Path, encoding: str | None = None) -> str:
    """What the reader finds out by looking into a text file, in words: its encoding, its separator; mostly nothing."""
    if _kind(path) in (".parquet", ".arrow"):
        return ""
    with reading(path, CURE), path.open("rb") as raw:
        mark = None if encoding else decode.byte_order_mark(raw)
        said = [f"encoding {mark} (by its byte order mark)"] if mark else []
        if _kind(path) == ".csv":
            separator = tables.separator_of(path, decode.text(path, raw, encoding))
            said += [] if separator == "," else [f"fields are separated by a {tables.SEPARATORS[separator]}"]
    return ", ".join(said)


def _kind(path: Path) -> str:
    return next((suffix for suffix in reversed(path.suffixes) if suffix not in (".gz", ".zst")), "")


def _rows(path: Path, raw: BinaryIO, encoding: str | None) -> Iterator[tuple[int, str]]:
    decode.refuse_pointer(path, raw)
    raw.seek(0)
    kind = _kind(path)
    if kind in (".parquet", ".arrow"):
        yield from tables.columnar(path, raw)
        return
    content = partial(decode.text, path, raw, encoding)
    if kind == ".csv":
        yield from tables.delimited(path, content())
    elif kind == ".tsv":
        yield from tables.tsv(path, content())
    elif kind == ".jsonl":
        spread = json_text.is_over_several_lines(path, content())
        yield from json_text.one_after_another(path, content()) if spread else _lines(path, content())
    elif _starts_with(path, content()) == b"[":
        yield from json_text.array(path, content())
    elif task_file.is_lines(path, content()):
        yield from _lines(path, content())
    else:
        yield from task_file.rows(path, content)


def _starts_with(path: Path, stream: BinaryIO) -> bytes:
    """The first character of a JSON file; raises BadData if it can be neither an array nor an object."""
    head = stream.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
    if head[:1] not in (b"[", b"{"):
        shown = head[:20].decode("utf-8", "backslashreplace")
        raise BadData(
            f"{path} is neither a JSON array nor JSON lines: it starts with {shown!r}; convert it to one of them."
        )
    return head[:1]


def _lines(path: Path, stream: BinaryIO) -> Iterator[tuple[int, str]]:
    for number, line in decode.lines(path, stream):
        text = line.removeprefix(codecs.BOM_UTF8 if number == 0 else b"").decode("utf-8", "surrogateescape")
        if text.strip():
            yield number, text.rstrip("\r\n")
