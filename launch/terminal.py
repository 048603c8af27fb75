"""Copies a child's output to the user's terminal and, as plain lines, to a log file."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import sys
import termios
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from conf.durable import opened

# Escape sequences of colours, cursor movement and titles (ECMA-48: CSI; OSC), which mean nothing in a file.
ESCAPES = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")


def plain_line(line: bytes) -> bytes:
    """``line`` as a terminal shows it in the end: without escapes, and only the text after the last carriage return."""
    text = ESCAPES.sub(b"", line).rstrip(b"\r\n")
    return text.rpartition(b"\r")[2]


class PlainLog:
    """Appends its input to ``path``, line by line, in the form of ``plain_line``."""

    def __init__(self, path: Path) -> None:
        self.file = opened(path, "ab", buffering=0)
        self.rest = b""

    def write(self, chunk: bytes) -> None:
        *lines, self.rest = (self.rest + chunk).split(b"\n")
        for line in lines:
            self.file.write(plain_line(line) + b"\n")

    def __enter__(self) -> PlainLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.rest:
            self.file.write(plain_line(self.rest) + b"\n")
        self.file.close()


def open_channel() -> tuple[int, int]:
    """(read end, write end): a pseudo-terminal of the same size if the user has one, so that progress bars live."""
    if not sys.stdout.isatty():
        return os.pipe()
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, b"\0" * 8))
    return reader, writer


def relay(reader: int, screen: BinaryIO, log: PlainLog) -> None:
    """Copy until the last writer has closed its end."""
    while chunk := _read(reader):
        log.write(chunk)
        try:
            screen.write(chunk)
            screen.flush()
        except BrokenPipeError:  # the reader of our own output left (such as `| head`): the run goes on, into the log
            screen = Path(os.devnull).open("wb")  # noqa: SIM115


def _read(reader: int) -> bytes:
    try:
        return os.read(reader, 65536)
    except OSError:  # a pseudo-terminal without writers answers EIO instead of an end of file
        return b""
