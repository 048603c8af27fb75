"""Whole files and folders, locks between processes, hashes against independent programs."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from conf.durable import (
    LockHeld,
    commit,
    making_folder,
    replacing,
    replacing_folder,
    sha256_of,
    take_lock,
    wait_for_lock,
    write_whole,
    xxh3_of,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_hashes_are_those_of_other_programs(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert xxh3_of(tmp_path / "empty") == "99aa06d3014798d86001c324468d497f"  # XXH3_128bits of nothing, from its README
    (tmp_path / "large").write_bytes(bytes(range(256)) * (1 << 15))  # two chunks
    expected = subprocess.run(["sha256sum", tmp_path / "large"], capture_output=True, text=True, check=True)
    assert sha256_of(tmp_path / "large") == expected.stdout.split()[0]


def test_a_reader_sees_a_whole_file_at_any_time(tmp_path: Path) -> None:
    path, seen, stop = tmp_path / "state.json", set(), threading.Event()
    contents = ["a" * 300_000, "é" * 200_000]
    write_whole(path, contents[0])

    def read() -> None:
        while not stop.is_set():
            seen.add(path.read_text(encoding="utf-8"))

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(60):
        write_whole(path, contents[turn % 2])
    stop.set()
    reader.join()
    assert seen <= set(contents)
    assert names(tmp_path) == ["state.json"]


@pytest.mark.parametrize("write", [lambda path: write_whole(path, b"new"), lambda path: commit(path, b"new")])
def test_bytes_replace_what_was_there(tmp_path: Path, write: Callable[[Path], None]) -> None:
    (tmp_path / "file").write_bytes(b"old and longer")
    write(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert names(tmp_path) == ["file"]


def test_what_fails_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "file") as stream:
        stream.write(b"x" * (1 // 0))
    assert (tmp_path / "file").read_bytes() == b"old"
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        write_whole(tmp_path / "folder", "a folder cannot be replaced by a file")
    assert [name for name in names(tmp_path) if name.startswith(".")] == []


FOLDERS: list[Callable[[Path], AbstractContextManager[Path]]] = [making_folder, replacing_folder]


@pytest.mark.parametrize("make", FOLDERS)
def test_a_folder_appears_whole_or_not_at_all(
    tmp_path: Path, make: Callable[[Path], AbstractContextManager[Path]]
) -> None:
    folder = tmp_path / "made"
    with pytest.raises(FileNotFoundError), make(folder) as temporary:
        (temporary / "absent" / "file").touch()
    assert names(tmp_path) == []
    with make(folder) as temporary:
        (temporary / "whole").touch()
        assert not folder.exists()
    assert (names(tmp_path), names(folder)) == (["made"], ["whole"])


def test_what_a_killed_process_left_is_not_taken_for_ours(tmp_path: Path) -> None:
    (tmp_path / "made.tmp").mkdir()
    (tmp_path / "made.tmp" / "stale").touch()
    with making_folder(tmp_path / "made") as temporary:
        (temporary / "new").touch()
    assert (names(tmp_path), names(tmp_path / "made")) == (["made"], ["new"])


def test_a_replaced_folder_keeps_nothing_of_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(RuntimeError), replacing_folder(folder):
        raise RuntimeError
    assert (names(tmp_path), names(folder)) == (["export"], ["old"])
    with replacing_folder(folder) as temporary:
        (temporary / "new").touch()
    assert (names(tmp_path), names(folder)) == (["export"], ["new"])


def in_a_process(code: str, path: Path) -> subprocess.CompletedProcess[str]:
    start = f"from pathlib import Path; from conf.durable import *; path = Path({str(path)!r})\n"
    return subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, timeout=60, check=False)


def test_one_process_at_a_time_holds_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    refused = "try:\n    take_lock(path)\nexcept LockHeld as held:\n    print(held.holder)"
    with take_lock(path, holder="process 7\n"):
        assert in_a_process(refused, path).stdout == "process 7\n"
        with pytest.raises(LockHeld, match="process 7"):
            take_lock(path)
    assert in_a_process("take_lock(path, 'the other')", path).returncode == 0  # and its end frees the lock
    assert path.read_text() == "the other"
    take_lock(path).close()
    assert path.read_text() == ""


def test_waiting_for_a_lock_ends_when_it_is_free(tmp_path: Path) -> None:
    path, order = tmp_path / "lock", []
    held = take_lock(path)

    def wait() -> None:
        with wait_for_lock(path):
            order.append("second")

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.1)
    order.append("first")
    held.close()
    waiting.join(timeout=30)
    assert order == ["first", "second"]


def test_a_lock_in_no_folder_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        take_lock(tmp_path / "nowhere" / "lock")
