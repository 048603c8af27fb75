"""JSON values in a text of any size: the elements of one array, or objects one after another."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from conf.errors import BadData
from conf.foreign.limits import ROW_BYTES
from data_prep.disk.decode import lines, too_long

CHUNK = 1 << 20
SPACE = re.compile(r"[ \t\n\r]*")
NEXT_OBJECT = re.compile(r"\n\{")


def array(path: Path, stream: BinaryIO) -> Iterator[tuple[int, str]]:
    """(row, text) of the elements of one JSON array, each as soon as it is wholly read; raises BadData."""
    source = _Buffer(path, stream)
    source.skip("[")
    row = 0
    while True:
        if source.peek() == "]" and row == 0:
            source.skip("]")
            break
        try:
            end = source.end_of_value()
        except (ValueError, RecursionError) as error:
            raise BadData(_broken(path, row, source, error, cut=source.is_cut(error))) from error
        yield row, source.text[source.at : end]
        row += 1
        source.at = end
        if source.peek() == "]":
            source.skip("]")
            break
        if source.peek() != ",":
            raise BadData(_broken(path, row, source, "no comma between two rows", cut=not source.peek()))
        source.skip(",")
    if source.peek():
        raise BadData(_broken(path, row, source, "text after the end of the array", cut=False))


def one_after_another(path: Path, stream: BinaryIO) -> Iterator[tuple[int, str]]:
    """(line from 0, text) of objects over several lines each, with or without commas between them.

    What is no object is text up to the next line that begins with ``{``; whoever parses it rejects it.
    """
    source = _Buffer(path, stream)
    while source.peek():
        line = source.line - 1
        try:
            end = source.end_of_value()
        except (ValueError, RecursionError):
            end = source.end_of_broken()
        yield line, source.text[source.at : end].rstrip()
        source.at = end
        source.skip(",")


def is_over_several_lines(path: Path, stream: BinaryIO) -> bool:
    """Whether a text that begins with an object has that object on more than its first line."""
    _, first = next((each for each in lines(path, stream) if each[1].strip(codecs.BOM_UTF8).strip()), (0, b""))
    text = first.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
    if not text.lstrip().startswith("{") or _is_value(text):
        return False
    text += stream.read(CHUNK).decode("utf-8", "surrogateescape")
    try:
        json.JSONDecoder().raw_decode(text.lstrip())
    except (ValueError, RecursionError):
        return first.strip(codecs.BOM_UTF8 + b" \t\r\n") == b"{"  # an object longer than a chunk, or a broken one
    return True


def is_first_of_many(path: Path, stream: BinaryIO) -> bool:
    """Whether a text begins with an object and has another one, or a comma, behind it."""
    source = _Buffer(path, stream)
    source.peek()
    try:
        source.at = source.end_of_value()
    except (ValueError, RecursionError, BadData):
        return False
    return source.peek() in ("{", ",")


def _is_value(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _broken(path: Path, row: int, source: _Buffer, why: object, *, cut: bool) -> str:
    where = f"line {source.line:,}, character {source.passed + source.at:,}"
    reason = why.msg if isinstance(why, json.JSONDecodeError) else why
    if cut:
        return (
            f"{path} is cut short: it ends inside its JSON array, after {row:,} whole rows ({where}); "
            "download or copy it again."
        )
    return f"{path} is not valid JSON after {row:,} whole rows ({where}): {reason}; correct it, or download it again."


class _Buffer:
    """A window of the file's text that grows at the end and is dropped at the front."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self._path, self._stream = path, stream
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
        self._scan = json.JSONDecoder().raw_decode
        self.text = ""
        self.at = 0
        self.passed = 0
        """Characters dropped at the front."""
        self._lines = 1

    @property
    def line(self) -> int:
        return self._lines + self.text.count("\n", 0, self.at)

    def more(self) -> bool:
        """Read further; False at the end. Doubles what it holds, so that a long record is scanned only a few times.

        Raises BadData for a record that no row is as long as.
        """
        if len(self.text) - self.at > ROW_BYTES:
            raise too_long(self._path, f"line {self.line:,}")
        chunk = self._stream.read(max(CHUNK, len(self.text) - self.at))
        if not chunk:
            return False
        self._lines += self.text.count("\n", 0, self.at)
        self.passed += self.at
        self.text = self.text[self.at :] + self._decode(chunk)
        self.at = 0
        return True

    def end_of_value(self) -> int:
        """Where the value ends that begins here, read with the C decoder. Raises ValueError and RecursionError."""
        while True:
            try:
                _, end = self._scan(self.text, self.at)
                if end < len(self.text) or not self.more():
                    return end
            except (ValueError, RecursionError) as error:
                if self._is_hopeless(error) or not self.more():
                    raise

    def end_of_broken(self) -> int:
        """Where the next line begins with ``{``, or the text ends."""
        while True:
            if found := NEXT_OBJECT.search(self.text, self.at):
                return found.start()
            if not self.more():
                return len(self.text)

    def peek(self) -> str:
        """The next character that is not white space, to which it moves; "" at the end."""
        while True:
            self.at = cast(re.Match[str], SPACE.match(self.text, self.at)).end()
            if self.at < len(self.text) or not self.more():
                return self.text[self.at : self.at + 1]

    def skip(self, character: str) -> None:
        """Move behind ``character`` if it is the next one, and behind the white space after it."""
        if self.peek() == character:
            self.at += 1
        self.peek()

    def _is_hopeless(self, error: Exception) -> bool:
        """Whether further text cannot repair ``error``, because it lies well before the end of the text held."""
        if not isinstance(error, json.JSONDecodeError):
            return True
        return not error.msg.startswith("Unterminated string") and error.pos < len(self.text) - 16

    def is_cut(self, error: Exception) -> bool:
        """Whether ``error``, raised at the end of the file, means that the text stops in the middle."""
        if not isinstance(error, json.JSONDecodeError):
            return False
        return error.msg.startswith("Unterminated string") or error.pos >= len(self.text.rstrip())
