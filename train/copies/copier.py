"""Copies published checkpoints to another place in a thread of the first rank: one at a time, and always the newest.

A copy is whole or not there: files first, each read back, then the MANIFEST, and its seal last. Old copies go only when
a newer one is sealed. Nothing here is collective, and nothing waits but ``finish``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from conf.errors import CorralError, StorageError
from conf.schema import RunConfig
from train.checkpoint.layout import MANIFEST, SEAL, folder_of
from train.copies.destination import Destination, folder_name, url_of
from train.ranks.group import Ranks

RECORDS = ("run.yaml", "wandb_id", "events.jsonl", "metrics.jsonl", "ledger.jsonl")
"""Files of run_dir without which a run would go on with no past."""
SUMS = "RECORDS.sha256"
HELD = ".copy-"
"""Begins the name of the folder that keeps a checkpoint's files while they are copied."""


@dataclass(frozen=True)
class Copied:
    step: int
    url: str
    bytes: int
    seconds: float


@dataclass(frozen=True)
class NotCopied:
    step: int
    reason: str


Outcome = Copied | NotCopied


class Copier:
    """Copies checkpoints of ``run_dir`` to ``destination`` and keeps the newest ``keep`` there."""

    def __init__(self, run_dir: Path, destination: Destination, keep: int) -> None:
        self.run_dir, self.destination, self.keep = run_dir, destination, keep
        self._wanted: int | None = None
        """The newest step that was published and whose copy was not begun."""
        self._running: Future[Outcome] | None = None
        self._given_up = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="copies")

    def begin(self, step: int) -> None:
        """Copy the checkpoint of ``step`` as soon as the copy in hand has ended; steps in between are left out."""
        self._wanted = step
        self._start()

    def ended(self) -> Outcome | None:
        """How the last copy ended, once; then the next one begins. Never waits."""
        if self._running is None or not self._running.done():
            return None
        outcome, self._running = self._running.result(), None
        self._start()
        return outcome

    def finish(self, seconds: float) -> list[Outcome]:
        """Wait until the newest checkpoint is copied, at most so long; what has ended meanwhile. Then copy no more."""
        outcomes, until = list[Outcome](), time.monotonic() + seconds
        while self._running is not None:
            wait([self._running], max(0.0, until - time.monotonic()))
            if not self._running.done():
                self._given_up.set()
                left = f"not finished within {seconds:.0f} s of the run's end"
                return [*outcomes, NotCopied(self._step, left)]
            outcomes += [outcome] if (outcome := self.ended()) else []
        return outcomes

    def _start(self) -> None:
        if self._running is None and self._wanted is not None:
            self._step, self._wanted = self._wanted, None
            self._running = self._thread.submit(self._copy, self._step)

    def _copy(self, step: int) -> Outcome:
        began, held = time.monotonic(), self.run_dir / "checkpoints" / f"{HELD}{folder_name(step)}"
        try:
            size = self._copy_from(_held(folder_of(self.run_dir, step), held), step)
        except CorralError as error:
            return NotCopied(step, str(error))
        except (OSError, ValueError, LookupError) as error:
            return NotCopied(step, f"the checkpoint cannot be read: {error}")
        finally:
            shutil.rmtree(held, ignore_errors=True)
        return Copied(step, f"{self.destination.url}/{folder_name(step)}", size, time.monotonic() - began)

    def _copy_from(self, folder: Path, step: int) -> int:
        """Returns the bytes that were copied; 0 if the same checkpoint is there already."""
        there, name = self.destination, folder_name(step)
        manifest, seal = (folder / MANIFEST).read_bytes(), (folder / SEAL).read_bytes()
        if there.has(f"{name}/{SEAL}") and there.read(f"{name}/{SEAL}") == seal:
            return 0
        there.remove(f"{name}/{SEAL}")  # first: from now on the folder is no checkpoint
        size = 0
        for file, entry in json.loads(manifest)["files"].items():
            size += self._put(folder / file, f"{name}/{file}", entry["sha256"])
        self._put_records(name)
        there.write(f"{name}/{MANIFEST}", manifest)
        there.write(f"{name}/{SEAL}", seal)
        there.write("LATEST", f"{name}\n".encode())
        self._prune(step)
        return size

    def _put(self, source: Path, name: str, sha256: str) -> int:
        size, read = self.destination.put(source, name, self._go_on)
        if read != sha256:
            raise StorageError(f"{source} does not have its recorded sha256")
        digest, back = hashlib.sha256(), 0
        for part in self.destination.parts(name):
            self._go_on()
            digest.update(part)
            back += len(part)
        if (back, digest.hexdigest()) != (size, sha256):
            raise StorageError(f"{self.destination.url}/{name} does not hold what was written to it")
        return size

    def _put_records(self, name: str) -> None:
        sums = []
        for record in RECORDS:
            if (self.run_dir / record).is_file():
                content = (self.run_dir / record).read_bytes()
                content = content[: content.rfind(b"\n") + 1]  # a line that is being written is left out
                self.destination.write(f"{name}/records/{record}", content)
                sums.append(f"{hashlib.sha256(content).hexdigest()}  records/{record}\n")
        self.destination.write(f"{name}/{SUMS}", "".join(sums).encode())

    def _prune(self, step: int) -> None:
        """Steps after ``step`` are of a past that the run has left, because it went back."""
        kept = [each for each in self.destination.steps() if each <= step][: self.keep]
        for each in self.destination.begun():
            if each not in kept:
                self.destination.remove(f"{folder_name(each)}/{SEAL}")
                self.destination.remove(folder_name(each))

    def _go_on(self) -> None:
        if self._given_up.is_set():
            raise StorageError("given up, because the run has ended")


def _held(folder: Path, held: Path) -> Path:
    """``folder``, or links to its files in ``held`` where the file system has links: a later save prunes ``folder``."""
    shutil.rmtree(held, ignore_errors=True)
    held.mkdir()
    with contextlib.suppress(OSError):
        for file in folder.iterdir():
            os.link(file, held / file.name)
        return held
    return folder


def copier_of(cfg: RunConfig, run_dir: Path, ranks: Ranks) -> Copier | None:
    """The copier of a run, on its first rank; None without ``checkpoint.copy_to``. Raises what Destination raises."""
    url = url_of(cfg)
    return Copier(run_dir, Destination(url), cfg.checkpoint.keep) if url and ranks.is_main else None
