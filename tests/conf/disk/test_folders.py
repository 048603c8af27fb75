"""Folders and links that a second user has made are refused by name, and nothing is written through them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from conf.disk import folders
from conf.disk.folders import own_folder, own_local_folder, refuse_foreign_content, refuse_foreign_links
from conf.durable import append_line, commit, opened, take_lock, write_whole
from conf.errors import PermissionDenied

Give = Callable[[Path], Path]


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A file of the user's that no attack may touch."""
    path = tmp_path / "home" / "precious"
    path.parent.mkdir()
    path.write_text("precious")
    return path


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder in which every user makes files, as /tmp is."""
    path = tmp_path / "shared"
    path.mkdir()
    path.chmod(0o1777)
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_private_folder_is_for_its_user_alone(shared: Path) -> None:
    before = os.umask(0)
    try:
        assert mode(own_folder(shared / "mine", "key", private=True)) == 0o700
        assert mode(own_folder(shared / "deep" / "er", "key")) == 0o777
    finally:
        os.umask(before)
    (shared / "mine" / "file").touch()
    assert own_folder(shared / "mine", "key", private=True) == shared / "mine"  # again


@pytest.mark.parametrize("private", [True, False])
def test_a_folder_of_another_user_is_refused(shared: Path, give: Give, private: bool) -> None:
    (shared / "theirs").mkdir()
    give(shared / "theirs")
    with pytest.raises(PermissionDenied, match=rf"^run_dir: {shared}/theirs belongs to user 54321, who could have"):
        own_folder(shared / "theirs", "run_dir", private=private)
    assert list((shared / "theirs").iterdir()) == []  # no probe is left


@pytest.mark.parametrize("place", ["end", "way", "target"])
def test_a_link_of_another_user_is_refused_wherever_it_stands(
    shared: Path, precious: Path, give: Give, place: str
) -> None:
    link = shared / "link"
    link.symlink_to(precious.parent)
    asked = link if place == "end" else link / "run"
    if place == "target":  # our own link leads to theirs
        asked = shared / "mine"
        asked.symlink_to(link)
    give(link)
    for check in (own_folder, refuse_foreign_links):
        with pytest.raises(PermissionDenied, match=rf"^key: {link} is a link to {precious.parent} that user 54321"):
            check(asked, "key")
    assert [each.name for each in precious.parent.iterdir()] == ["precious"]


def test_our_own_links_and_those_of_root_are_followed(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (shared / "mine").symlink_to("../disk")
    assert own_folder(shared / "mine" / "run", "key").resolve() == tmp_path / "disk" / "run"
    (shared / "loop").symlink_to("loop")
    refuse_foreign_links(shared / "loop", "key")  # whoever opens it is told


def test_what_others_could_write_into_is_not_private(shared: Path) -> None:
    (shared / "open").mkdir()
    (shared / "open").chmod(0o777)
    with pytest.raises(PermissionDenied, match=r"others may write into .*/open, so what is in .*/open may be theirs"):
        own_folder(shared / "open", "data.cache", private=True)
    own_folder(shared / "open", "run_dir")  # everything may be open on file systems without owners
    shared.chmod(0o777)  # without the sticky bit anyone may put another folder in the place of ours
    (shared / "mine").mkdir(mode=0o700)
    with pytest.raises(PermissionDenied, match=rf"others may write into {shared}, so what is in {shared}/mine may be"):
        own_folder(shared / "mine", "data.cache", private=True)


def test_a_file_of_another_user_within_our_folder_is_refused(shared: Path, precious: Path, give: Give) -> None:
    run = own_folder(shared / "run", "run_dir")
    (run / "logs").mkdir()
    refuse_foreign_content(run, "run_dir")
    (run / "logs" / "events").symlink_to(precious)
    refuse_foreign_content(run, "run_dir")  # a link of our own
    give(run / "logs" / "events")
    with pytest.raises(PermissionDenied, match=rf"^run_dir: {run}/logs/events belongs to user 54321, and {run} is to"):
        refuse_foreign_content(run, "run_dir")


def test_a_file_system_that_gives_our_files_to_nobody(
    shared: Path, give: Give, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NFS does with root's: the owner of a file that is made there now is the owner of our folder."""
    (shared / "run").mkdir()
    give(shared / "run")
    monkeypatch.setattr(folders, "_owner_of_new_files", lambda folder: 54321)
    own_folder(shared / "run", "run_dir")
    monkeypatch.setattr(folders, "_owner_of_new_files", lambda folder: 12)
    with pytest.raises(PermissionDenied):
        own_folder(shared / "run", "run_dir")


def test_the_temporary_folder_of_a_user(shared: Path, monkeypatch: pytest.MonkeyPatch, give: Give) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(shared))
    root = shared / f"corral-{os.geteuid()}"
    root.mkdir(mode=0o755)  # as earlier releases made it
    found = own_local_folder(root / "corpus", "data.cache")
    assert (mode(root), mode(found)) == (0o700, 0o700)
    give(root)
    with pytest.raises(PermissionDenied, match=rf"^data\.cache: {root} belongs to user 54321"):
        own_local_folder(root / "corpus", "data.cache")


def test_nothing_is_written_through_a_link_that_waits_for_us(tmp_path: Path, precious: Path) -> None:
    """Names that are known beforehand: those of files that are appended to, and of temporary files."""
    link = tmp_path / "link"
    link.symlink_to(precious)
    for write in (
        lambda: opened(link, "xb"), lambda: opened(link, "ab"), lambda: opened(link, "r+b"),
        lambda: append_line(link, {}), lambda: take_lock(link),
    ):  # fmt: skip
        with pytest.raises(OSError, match=r"symbolic links|exists"):
            write()
    (tmp_path / "file.tmp").symlink_to(precious)
    commit(tmp_path / "file", b"content")
    write_whole(link, "content")  # takes the link's place
    assert precious.read_text() == "precious"
    assert not link.is_symlink()


def test_temporary_names_are_not_known_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: [seen.append(self.name), replace(self, target)][1])
    for _ in range(2):
        write_whole(tmp_path / "file", "content")
    assert len({*seen}) == 2
    assert all(len(name.rpartition(".")[2]) == 16 for name in seen)
