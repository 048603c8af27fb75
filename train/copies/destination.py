"""The place of a run's copies: a folder or a URL of any driver of fsspec, below it one folder per checkpoint.

step-00000100/
    state-..., rng-...          as in run_dir/checkpoints
    records/                    run.yaml, events.jsonl, ... as they were when the checkpoint was copied
    RECORDS.sha256              their sums
    MANIFEST.json               then
    MANIFEST.sha256             last: without this seal, a folder is not a checkpoint
LATEST                          name of the newest, for people
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from conf.disk.folders import own_folder, refuse_foreign_content
from conf.errors import CannotCreate, ConfigError, CorralError, StorageError, Unavailable
from conf.schema import RunConfig
from train.checkpoint.layout import SEAL

PART = 1 << 24
"""Bytes that are read and written at a time."""
KEY = "checkpoint.copy_to"


class Missing(StorageError):
    """A file is not at the destination."""


class Destination:
    """The files below ``url``. Every method raises a CorralError for whatever goes wrong there.

    Opening it asks no server: ConfigError (78) for a URL of no known kind, Unavailable (69) for a missing driver,
    PermissionDenied (77) for a folder of this machine that holds what another user has made, CannotCreate (73) for one
    that cannot be made.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        with self._named(self.url):
            self._files, root = fsspec.core.url_to_fs(self.url)
            if isinstance(self._files, LocalFileSystem):
                _own(Path(root))
        self._root = str(root).rstrip("/")

    def steps(self) -> list[int]:
        """Steps with a whole checkpoint, newest first; its content is not verified."""
        return [step for step in self.begun() if self.has(f"{folder_name(step)}/{SEAL}")]

    def begun(self) -> list[int]:
        """Steps with a folder, whole or not, newest first."""
        with self._named(self.url):
            self._files.invalidate_cache()
            names = self._files.ls(self._root, detail=False) if self._files.isdir(self._root) else []
        found = (str(name).rstrip("/").rpartition("/")[2] for name in names)
        return sorted(
            (int(name[5:]) for name in found if name.startswith("step-") and name[5:].isdigit()), reverse=True
        )

    def has(self, name: str) -> bool:
        with self._named(f"{self.url}/{name}"):
            self._files.invalidate_cache()
            return bool(self._files.exists(f"{self._root}/{name}"))

    def read(self, name: str) -> bytes:
        with self._named(f"{self.url}/{name}"):
            return bytes(self._files.cat_file(f"{self._root}/{name}"))

    def write(self, name: str, content: bytes) -> None:
        """Write and read back a small file."""
        with self._named(f"{self.url}/{name}"):
            self._files.makedirs(f"{self._root}/{name}".rpartition("/")[0], exist_ok=True)
            self._files.pipe_file(f"{self._root}/{name}", content)
        if self.read(name) != content:
            raise StorageError(f"{self.url}/{name} does not hold what was written to it")

    def put(self, source: Path, name: str, go_on: Callable[[], None]) -> tuple[int, str]:
        """Write the file ``source``; size and sha256 of what was read from it. ``go_on`` may raise between parts."""
        digest, size = hashlib.sha256(), 0
        with self._named(f"{self.url}/{name}"), source.open("rb") as stream:
            self._files.makedirs(f"{self._root}/{name}".rpartition("/")[0], exist_ok=True)
            with self._files.open(f"{self._root}/{name}", "wb") as out:
                while part := stream.read(PART):
                    go_on()
                    digest.update(part)
                    out.write(part)
                    size += len(part)
        return size, digest.hexdigest()

    def parts(self, name: str) -> Iterator[bytes]:
        """The content of a file, in parts."""
        with self._named(f"{self.url}/{name}"):
            self._files.invalidate_cache()
            with self._files.open(f"{self._root}/{name}", "rb", block_size=PART) as stream:
                while part := stream.read(PART):
                    yield part

    def remove(self, name: str) -> None:
        """Remove a file or a folder, if it is there."""
        with self._named(f"{self.url}/{name}"):
            self._files.invalidate_cache()
            if self._files.exists(f"{self._root}/{name}"):
                self._files.rm(f"{self._root}/{name}", recursive=True)

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        try:
            yield
        except CorralError:
            raise
        except FileNotFoundError as error:
            raise Missing(f"{KEY}: {error.filename or what} is not there") from None
        except ImportError as error:
            raise Unavailable(f"{KEY}: {what} needs a package that is not installed: {error}") from None
        except ValueError as error:
            raise ConfigError(f"{KEY}: {what} cannot be opened: {error}") from None
        except Exception as error:  # each driver raises kinds of its own, which are known only where it is installed
            said = " ".join(str(error).split())[:300]
            raise Unavailable(f"{KEY}: {what}: {type(error).__name__}: {said}") from error


def _own(folder: Path) -> None:
    try:
        refuse_foreign_content(own_folder(folder, KEY), KEY)
    except OSError as error:
        raise CannotCreate(
            f"{KEY}: {folder} cannot be made: {error.filename}: {error.strerror}; name a folder that can"
        ) from None


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def url_of(cfg: RunConfig) -> str:
    """Where the copies of a run are; empty text if there are none. Runs of other names have folders of their own."""
    return f"{cfg.checkpoint.copy_to.rstrip('/')}/{cfg.name}" if cfg.checkpoint.copy_to else ""
