"""The shared memory of a node is this user's own: /dev/shm is everyone's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from train.watchdog.board import Board, create


def test_only_our_own_board_is_joined(tmp_path: Path, give: Callable[[Path], Path]) -> None:
    path = tmp_path / "board"
    create(path, 2, 3)
    assert [slot.words[3] for slot in Board(path, 2).slots] == [3, 3]
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(OSError, match="symbolic links"):
        Board(tmp_path / "link", 2)
    give(path)
    with pytest.raises(PermissionError, match="belongs to another user"):
        Board(path, 2)


def test_a_link_that_waits_is_replaced(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / "board").symlink_to(precious)
    create(tmp_path / "board", 1, 0)
    assert precious.read_text() == "precious"
    assert not (tmp_path / "board").is_symlink()
