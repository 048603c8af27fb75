from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest

from launch.terminal import PlainLog, open_channel, plain_line, relay


@pytest.mark.parametrize(
    ("shown", "kept"),
    [
        (b"plain\n", b"plain"),
        (b"\x1b[1;32mgreen\x1b[0m\r\n", b"green"),
        (b"10%\r50%\r100%\n", b"100%"),
        (b"\x1b]0;title\x07text", b"text"),
        (b"\r\x1b[2K\x1b[?25lstep 3", b"step 3"),
        ("größe ✓".encode(), "größe ✓".encode()),
    ],
)
def test_a_line_as_it_is_finally_seen(shown: bytes, kept: bytes) -> None:
    assert plain_line(shown) == kept


def test_lines_cut_anywhere_arrive_whole(tmp_path: Path) -> None:
    text = b"one\n\x1b[31mtwo\x1b[0m\n1%\r2%\nunfinished"
    for cut in range(1, len(text)):
        path = tmp_path / f"{cut}.log"
        with PlainLog(path) as log:
            log.write(text[:cut])
            log.write(text[cut:])
        assert path.read_bytes() == b"one\ntwo\n2%\nunfinished\n"


def test_the_log_is_appended_to(tmp_path: Path) -> None:
    for _ in range(2):
        with PlainLog(tmp_path / "log") as log:
            log.write(b"line\n")
    assert (tmp_path / "log").read_bytes() == b"line\nline\n"


class ClosedPipe(io.BytesIO):
    def write(self, chunk: object) -> int:
        raise BrokenPipeError


def test_a_reader_that_left_does_not_end_the_run(tmp_path: Path) -> None:
    reader, writer = os.pipe()

    def speak() -> None:
        for _ in range(3):
            os.write(writer, b"line\n")
        os.close(writer)

    speaker = threading.Thread(target=speak)
    speaker.start()
    with PlainLog(tmp_path / "log") as log:
        relay(reader, ClosedPipe(), log)
    speaker.join()
    os.close(reader)
    assert (tmp_path / "log").read_bytes() == b"line\n" * 3


def test_on_a_terminal_the_child_has_one_of_the_same_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, own = pty.openpty()
    fcntl.ioctl(own, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 111, 0, 0))
    with os.fdopen(own, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        reader, writer = open_channel()
        child = "import os, sys; print(sys.stdout.isatty(), *os.get_terminal_size())"
        subprocess.run([sys.executable, "-c", child], stdout=writer, check=True)
        os.close(writer)
        screen = io.BytesIO()
        with PlainLog(tmp_path / "log") as log:
            relay(reader, screen, log)
        os.close(reader)
    assert screen.getvalue() == b"True 111 33\r\n"
    assert (tmp_path / "log").read_bytes() == b"True 111 33\n"
