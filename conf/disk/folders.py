"""A folder of our own, on a machine that others use too: the one rule for every folder that Corral writes into.

Whoever owns a folder, or a link on the way to it, decides what a write into it changes: a folder that another user has
made, with links inside it to our own files, would have us overwrite them. So links on the way are our own or root's,
and so is the folder with all that lies in it. Files are made under names that nobody has, and never through a link.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import secrets
import stat
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from conf.errors import CannotCreate, PermissionDenied, leave_with_code


def own_folder(folder: Path, key: str, *, private: bool = False) -> Path:
    """Make ``folder`` (with mode 0700 if ``private``), or check that it is ours; returns it.

    ``private``: nobody else may write into it, and nobody has. ``key``: the setting that names it, for messages. Raises
    PermissionDenied, which names what is not ours, and OSError if it cannot be made.
    """
    refuse_foreign_links(folder, key)
    mode = 0o700 if private else 0o777
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(mode)
    except FileExistsError:
        _check(folder, key, private=private)
    return folder


@contextlib.contextmanager
def own_run_dir(run_dir: Path) -> Iterator[None]:
    """``own_folder`` of a run, for what is done in it first.

    Raises PermissionDenied (77) or CannotCreate (73), in one sentence, also for an OSError within.
    """
    try:
        own_folder(run_dir, "run_dir")
        yield
    except PermissionError as error:
        raise PermissionDenied(
            f"run_dir={run_dir}: no permission to write there ({error.filename}); set run_dir to a folder you may write"
        ) from None
    except OSError as error:
        reason = "the file system is read-only" if error.errno == errno.EROFS else error.strerror
        raise CannotCreate(f"run_dir={run_dir}: cannot be created: {reason}; set run_dir to another folder") from None


def own_local_folder(folder: Path, key: str) -> Path:
    """A private ``own_folder`` on this node's disk; below ``temporary_root``, that is checked first."""
    root = temporary_root()
    if folder.parent == root:
        own_folder(root, key, private=True).chmod(0o700)  # earlier releases let others read there
    return own_folder(folder, key, private=True)


def temporary_root() -> Path:
    """The folder of this user's files in the temporary folder that all users of the machine share."""
    return Path(tempfile.gettempdir(), f"corral-{os.geteuid()}")


def refuse_foreign_links(path: Path, key: str) -> None:
    """Raise PermissionDenied for a link on the way to ``path``, or at its end, that another user has made."""
    for link in _links(path):
        if not _is_mine(link.lstat().st_uid):
            raise PermissionDenied(
                f"{key}: {link} is a link to {link.readlink()} that {owner_of(link)} has made, and whoever made it "
                "may have it lead elsewhere at any time; name the place that you mean"
            )


def leads_out(name: str) -> bool:
    """Whether a path that a file of others gives, within a folder, leads out of that folder."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


def is_ours(path: Path) -> bool:
    """Whether we, or root, own a file or folder."""
    return _is_mine(path.lstat().st_uid)


def owner_of(path: Path) -> str:
    """The owner of ``path``, for messages."""
    number = path.lstat().st_uid
    try:
        return f"{pwd.getpwuid(number).pw_name} (user {number})"
    except KeyError:
        return f"user {number}"


def _check(folder: Path, key: str, *, private: bool) -> None:
    status, above = folder.stat(), folder.parent.stat().st_mode
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(20, "Not a directory", str(folder))
    mapped = None if _is_mine(status.st_uid) else _owner_of_new_files(folder)
    if mapped != (None if _is_mine(status.st_uid) else status.st_uid):
        raise PermissionDenied(
            f"{key}: {folder} belongs to {owner_of(folder)}, who could have this command write elsewhere; name a "
            "folder of your own, or one that is not there yet"
        )
    open_to_all = above & 0o002 and not above & stat.S_ISVTX  # where anyone may put another folder in its place
    if private and (status.st_mode & 0o022 or open_to_all):
        where = folder.parent if open_to_all else folder
        raise PermissionDenied(
            f"{key}: others may write into {where}, so what is in {folder} may be theirs; name a folder elsewhere, or "
            "delete this one"
        )
    if private:
        refuse_foreign_content(folder, key)


def refuse_foreign_content(folder: Path, key: str) -> None:
    """Raise PermissionDenied for a file, folder or link in ``folder`` that belongs to another user than that does."""
    ours = (os.geteuid(), 0, folder.stat().st_uid)
    for path in _everything(folder):
        with contextlib.suppress(FileNotFoundError):  # another process of ours is at work there
            if path.lstat().st_uid not in ours:
                raise PermissionDenied(
                    f"{key}: {path} belongs to {owner_of(path)}, and {folder} is to hold nothing of others; remove it, "
                    "or name another folder"
                )


def _is_mine(number: int) -> bool:
    return number in (os.geteuid(), 0)


def _owner_of_new_files(folder: Path) -> int | None:
    """Whom the file system gives our own files to: a server may map root to nobody. None if we make none there."""
    probe = folder / f".probe-{secrets.token_hex(8)}"
    try:
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
    except OSError:
        return None
    try:
        found = probe.lstat().st_uid
        return None if found == os.geteuid() else found
    finally:
        probe.unlink()


def _everything(folder: Path) -> Iterator[Path]:
    """All files, folders and links below ``folder``; links are not followed."""
    for here, folders, files in os.walk(folder):
        yield from (Path(here, name) for name in (*folders, *files))


def _links(path: Path) -> Iterator[Path]:
    """Every link that the kernel follows on the way to ``path``."""
    here, parts, followed = Path("/"), deque(Path.cwd().joinpath(path).parts[1:]), 0
    while parts and followed < 40:  # as many as the kernel follows
        part = parts.popleft()
        if part == "..":
            here = here.parent
            continue
        if not (here / part).is_symlink():
            here /= part
            continue
        yield here / part
        target, followed = (here / part).readlink(), followed + 1
        if target.is_absolute():
            here = Path("/")
        parts.extendleft(reversed(target.parts[target.is_absolute() :]))


def main() -> None:
    """``python -m conf.disk.folders DIR``, for shell scripts."""
    own_local_folder(Path(sys.argv[1]), "CORRAL_LOCAL_DIR")


if __name__ == "__main__":
    leave_with_code(main)
