"""A corpus that lies behind a URL (s3://, gs://, hf://, file://, ...), copied to this node's disk before it is read.

    MANIFEST.json of the URL  ->  what is not here yet, in parallel: .x.part -> size and hash -> renamed to x
                              ->  MANIFEST.json, last: a folder with a MANIFEST is complete

Every process of a node calls ``stage``. A file lock lets one in at a time: the first fetches, the others wait and then
find everything there. The kernel frees the lock of a process that was killed, and the next one goes on with the files
that are left. Instruction data fits on a disk (15 M rows of 350 tokens are 26 GB), so nothing is ever evicted.
"""

from __future__ import annotations

import errno
import hashlib
import secrets
import shutil
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import fsspec

from conf.disk.folders import leads_out, own_local_folder, temporary_root
from conf.durable import commit, opened, publish, wait_for_lock, xxh3_of
from conf.errors import (
    BadData,
    CannotCreate,
    ConfigError,
    MissingInput,
    PermissionDenied,
    StorageError,
    Unavailable,
)
from conf.safety.secrets import without_shapes
from data_prep.corpus.manifest import (
    MANIFEST,
    TOKENIZER,
    files_below,
    files_of,
    parse_manifest,
    tokenizer_files,
)

PART = ".part"
"""Ending of a file that is being fetched."""
PARALLEL = 8
"""Files fetched at once: one stream from an object store rarely fills a node's link."""
SAID_EVERY_S = 15.0

Verify = Literal["sizes", "hashes"]


def is_remote(prepared: str | None) -> bool:
    """Whether ``data.prepared`` is a URL."""
    return prepared is not None and "://" in prepared


def local_folder(url: str, cache: str | None) -> Path:
    """Where the corpus of ``url`` is kept on this node, below ``data.cache``."""
    root = Path(cache).expanduser() if cache else temporary_root()
    place = without_shapes(url.rstrip("/"))  # who reads with another password reads the same corpus
    return root / hashlib.blake2b(place.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class _File:
    name: str
    """Path in the corpus, with forward slashes."""
    bytes: int
    xxh3: str | None
    """None for a tokenizer's file of an earlier release: its MANIFEST does not name it."""


def stage(url: str, folder: Path, *, verify: Verify = "hashes", key: str = "data.prepared") -> Path:
    """Bring ``folder`` up to date with the corpus at ``url`` and return it; only what is missing or wrong is fetched.

    ``verify``: files that are here already are compared with the MANIFEST by size, or also by hash. ``key``: the
    setting that names the URL, for messages. Raises MissingInput (66: no such bucket, corpus or file), Unavailable (69:
    no driver for the URL, no answer), BadData (65: a file that is not what the MANIFEST says), PermissionDenied (77:
    the URL; a cache that is not ours), StorageError (74: the disk) and CannotCreate (73: the cache folder).
    """
    url = url.rstrip("/")
    with _locked(folder):
        remote = _Remote(url, key)
        content = remote.read(MANIFEST)
        manifest = parse_manifest(content.decode("utf-8", "replace"), f"{url}/{MANIFEST}")
        mark = folder / MANIFEST
        known = mark.is_file() and mark.read_bytes() == content
        # Without the same MANIFEST, a file of the right name and size may still be of another corpus.
        checked: Verify = verify if known else "hashes"
        words = list(map(_as_file, tokenizer_files(manifest))) or remote.files_below(TOKENIZER)
        rows = [_as_file(each) for source in manifest["sources"].values() for each in files_of(source)]
        wanted = [each for each in rows if not _is_here(folder / each.name, each, checked)]
        wanted += [each for each in words if not _is_here(folder / each.name, each, "hashes")]  # small, so always
        _remove_others(folder, {each.name for each in words})
        if known and not wanted:
            return folder
        mark.unlink(missing_ok=True)
        _fetch(remote, wanted, folder)
        commit(mark, content)
    return folder


def _as_file(entry: dict[str, Any]) -> _File:
    return _File(entry["file"], entry["bytes"], entry["xxh3"])


def _remove_others(folder: Path, words: Collection[str]) -> None:
    """Remove what a killed process left, and files beside the tokenizer's own: transformers would read them too."""
    for path in {*folder.rglob(f"*{PART}"), *files_below(folder / TOKENIZER)}:
        if path.name.endswith(PART) or path.relative_to(folder).as_posix() not in words:
            path.unlink()


def _is_here(path: Path, wanted: _File, verify: Verify) -> bool:
    if not path.is_file() or path.stat().st_size != wanted.bytes:
        return False
    if wanted.xxh3 is None:
        return False
    if verify == "hashes" and xxh3_of(path) != wanted.xxh3:
        _say(f"{path} is not what its MANIFEST says and is fetched again")
        return False
    return True


class _Remote:
    """The files below a URL; whatever goes wrong there has a name."""

    def __init__(self, url: str, key: str) -> None:
        self.url, self.key = url, key
        with self._named(url):
            self._files, self._root = fsspec.core.url_to_fs(url)

    def read(self, name: str) -> bytes:
        with self._named(f"{self.url}/{name}"):
            return bytes(self._files.cat_file(f"{self._root}/{name}"))

    def files_below(self, name: str) -> list[_File]:
        with self._named(f"{self.url}/{name}"):
            found = self._files.find(f"{self._root}/{name}", detail=True)
        if not found:
            raise MissingInput(f"{self.key}: {self.url}/{name} is not there; copy the whole corpus to {self.url}.")
        paths = {PurePosixPath(path).relative_to(PurePosixPath(self._root)): each for path, each in found.items()}
        if outside := [path for path in paths if leads_out(path.as_posix())]:
            raise BadData(f"{self.url} lists a file outside of itself: {outside[0]}; copy the corpus there again.")
        return [_File(path.as_posix(), each["size"], None) for path, each in paths.items()]

    def get(self, name: str, path: Path) -> None:
        with self._named(f"{self.url}/{name}"):
            self._files.get_file(f"{self._root}/{name}", str(path))

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise MissingInput(
                f"{self.key}: {what} is not there; correct the URL, or prepare the corpus into a folder and copy "
                f"the whole folder to {self.url}."
            ) from None
        except PermissionError as error:
            raise PermissionDenied(
                f"{self.key}: {what} may not be read ({error}); give this machine credentials for it."
            ) from None
        except ImportError as error:
            raise Unavailable(f"{self.key}: {what} needs a package that is not installed: {error}.") from None
        except ValueError as error:
            raise ConfigError(f"{self.key}: {what} cannot be opened: {error}") from None
        except Exception as error:  # each driver raises kinds of its own, which are known only where it is installed
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageError(f"data.cache: the disk is full ({error}); set it to another disk.") from None
            raise Unavailable(f"{self.key}: {what} cannot be read ({type(error).__name__}: {error}).") from error


def _fetch(remote: _Remote, wanted: Sequence[_File], folder: Path) -> None:
    """All files in parallel; the first error ends it, and what is finished stays."""
    total, done = sum(each.bytes for each in wanted), 0
    _check_room(folder, total)
    began = said = time.monotonic()
    _say(f"{remote.url}: fetching {len(wanted)} files, {total / 1e6:,.0f} MB, to {folder}")
    pool = ThreadPoolExecutor(PARALLEL, thread_name_prefix="corral-stage")
    try:
        running = {pool.submit(_fetch_one, remote, each, folder / each.name): each for each in wanted}
        for future in as_completed(running):
            future.result()
            done += running[future].bytes
            now = time.monotonic()
            if now - said >= SAID_EVERY_S:
                said, rate = now, done / (now - began)
                _say(f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB, about {(total - done) / rate:.0f} s left")
    finally:
        pool.shutdown(cancel_futures=True)


def _fetch_one(remote: _Remote, wanted: _File, path: Path) -> None:
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}{PART}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened(part, "xb").close()
        remote.get(wanted.name, part)
        size, source = part.stat().st_size, f"{remote.url}/{wanted.name}"
        if size != wanted.bytes:
            raise BadData(f"{source} has {size} bytes, its MANIFEST says {wanted.bytes}; copy the corpus there again.")
        if wanted.xxh3 is not None and xxh3_of(part) != wanted.xxh3:
            raise BadData(f"{source} is damaged: its hash is not the one in the MANIFEST; copy the corpus there again.")
        publish(part, path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}; set data.cache to another disk.") from None


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            f"data.cache: {folder} has {free / 1e9:.1f} GB free and the corpus needs {needed / 1e9:.1f} GB more; "
            "free space, or set data.cache to another disk."
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        own_local_folder(folder, "data.cache")
        lock = wait_for_lock(folder / ".lock")
    except OSError as error:
        raise CannotCreate(
            f"data.cache: cannot create {folder}: {error.strerror or error}; set data.cache to another folder."
        ) from None
    with lock:
        yield


def _say(text: str) -> None:
    print(f"corral: {text}", file=sys.stderr, flush=True)
