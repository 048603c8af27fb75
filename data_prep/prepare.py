"""Raw files -> a finished corpus: restartable at any point, the same for any number of processes, MANIFEST last.

DIR/.lock                 held while a process prepares here
DIR/.work/identity.json   what is being prepared; blocks of anything else are thrown away
DIR/.work/NAME/000000.*   finished blocks (block.py)      -> collected, duplicates out, budget checked (merge.py)
DIR/tokenizer/, DIR/NAME/train/shard-00000.arrow ...      -> then MANIFEST.json, then .work is removed
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from conf.errors import BadData, CannotCreate, ConfigError, StorageError
from conf.schema import RunConfig
from data_prep import identity, merge, pool, vocabulary
from data_prep.block import Job
from data_prep.durable import commit, file_digest
from data_prep.jobs import job_of, raw_files
from data_prep.progress import Progress
from data_prep.shards import MANIFEST, VERSION, open_corpus, read_manifest
from data_prep.tokenizer import Tokenizer

WORK = ".work"


def prepare(cfg: RunConfig, *, argv: Sequence[str]) -> Path:
    """Prepare the corpus of ``cfg`` and return its folder; at once if it is finished.

    ``argv`` is written into the report. Raises ConfigError (the folder holds another corpus, settings that cannot
    work), MissingInput (a raw file, the tokenizer), BadData (over the bad-row budget, a broken or changed raw file),
    CannotCreate (the folder, or another process prepares in it) and StorageError.
    """
    path = identity.corpus_path(cfg)
    if (path / MANIFEST).is_file():
        _check_finished(cfg, path)
        return path
    with _locked(path):
        if (path / MANIFEST).is_file():  # another process finished it while this one waited to look
            _check_finished(cfg, path)
            return path
        _Preparation(cfg, path, list(argv)).run()
    return path


def _check_finished(cfg: RunConfig, path: Path) -> None:
    manifest = read_manifest(path)
    asked = identity.identity(cfg)
    if manifest["config_sha256"] != identity.digest_of(asked):
        lines = identity.differences(manifest["config"], asked)
        raise ConfigError(
            [f"data.prepared: {path} holds another corpus; name another folder, or delete it to prepare anew", *lines]
        )
    finished = (path / MANIFEST).stat().st_mtime
    for name, entries in manifest["files"].items():
        for entry in entries:
            raw = Path(entry["path"]).expanduser()
            if raw.is_file() and (changed := _change(raw, entry, finished)):
                raise BadData(
                    f"{raw} (data.sources.{name}.path) has changed since {path} was prepared from it ({changed}); "
                    "restore it, or delete the corpus to prepare it anew."
                )


def _change(raw: Path, entry: dict[str, Any], finished: float) -> str:
    """How a raw file differs from its MANIFEST entry; its hash is taken only if it was touched since."""
    status = raw.stat()
    if status.st_size != entry["bytes"]:
        return f"{entry['bytes']:,} bytes then, {status.st_size:,} now"
    if status.st_mtime > finished and file_digest(raw) != entry["xxh3"]:
        return "same size, other content"
    return ""


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / ".lock").open("w")
    except OSError as error:
        raise CannotCreate(f"data.prepared: cannot create {path}: {error.strerror or error}.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CannotCreate(f"another process is preparing {path}; wait for it, or stop it first.") from error
        yield


@dataclass(frozen=True)
class _Raw:
    """One raw file as it was found."""

    name: str
    path: Path
    bytes: int
    modified_ns: int
    xxh3: str


class _Preparation:
    """The stages, in order; what they share is here."""

    def __init__(self, cfg: RunConfig, path: Path, argv: list[str]) -> None:
        self.cfg, self.path, self.argv = cfg, path, argv
        self.work = path / WORK
        self.console = Console(stderr=True)
        self.leaves = dict(sorted(identity.leaves(cfg.data.sources).items()))
        self.left_out: dict[str, list[Path]] = {}
        """Files that ``select`` leaves out, by source."""
        self.started = time.monotonic()

    def run(self) -> None:
        self._refuse_foreign_files()
        self.raw = {name: self._raw_files(name) for name in self.leaves}
        self._open_work()
        tokenizer = self._tokenizer()
        jobs = [self._job(name) for name in self.leaves]
        merged = self._blocks(jobs)
        self._check_unchanged()
        merge.write_quarantine(self.path / "quarantine.jsonl", merged)
        self._check_budget(merged)
        self._finish(merged, tokenizer)

    def _refuse_foreign_files(self) -> None:
        if "tokenizer" in self.leaves:
            raise ConfigError("data.sources.tokenizer: that name is taken by the corpus's tokenizer; choose another")
        ours = {".lock", WORK, "tokenizer", "quarantine.jsonl"}
        found = {each.name for each in self.path.iterdir()} - ours
        if found and not self.work.is_dir():
            raise CannotCreate(
                f"data.prepared: {self.path} is not empty and holds no corpus ({sorted(found)[0]}, ...); "
                "name an empty or new folder."
            )

    def _raw_files(self, name: str) -> list[_Raw]:
        found = []
        kept, self.left_out[name] = raw_files(self.cfg, name)
        for each in kept:
            status = each.stat()
            found.append(_Raw(str(each), each, status.st_size, status.st_mtime_ns, file_digest(each)))
        return found

    def _open_work(self) -> None:
        """Keep finished blocks only if they are of the same config, the same raw files and the same tokenizer."""
        files_now = {name: [(each.name, each.xxh3) for each in found] for name, found in self.raw.items()}
        now = identity.digest_of({"identity": identity.identity(self.cfg), "files": files_now})
        mark = self.work / "identity.json"
        if not mark.is_file() or json.loads(mark.read_text()) != now:
            for name in (*self.leaves, WORK, "tokenizer"):
                shutil.rmtree(self.path / name, ignore_errors=True)
            self.work.mkdir(parents=True)
            commit(mark, json.dumps(now).encode())

    def _tokenizer(self) -> Tokenizer:
        jobs = [self._job(name) for name in self.leaves]
        chats = [f"data.sources.{job.source}.template" for job in jobs if job.template == "chat"]
        return vocabulary.provide(self.cfg, self.path / "tokenizer", jobs, chats)

    def _job(self, name: str) -> Job:
        paths = tuple(each.name for each in self.raw[name])
        return job_of(self.cfg, name, paths, tokenizer=self.path / "tokenizer", folder=self.work / name)

    def _blocks(self, jobs: list[Job]) -> list[merge.Merged]:
        total = sum(each.bytes for found in self.raw.values() for each in found)
        merged = []
        fail = self.cfg.data.on_bad_row == "fail"
        with pool.workers(self.cfg.data.num_proc) as run, Progress(self.console, total) as progress:
            for job in jobs:
                whole = pool.process_source(job, self.leaves[job.source].rows, run, progress, stop_at_bad_row=fail)
                merged.append(merge.collect(job, whole.blocks, whole.left_out))
                if fail and merged[-1].duplicates:
                    raise pool.bad_row(next(merged[-1].quarantine()))
        return merged

    def _check_unchanged(self) -> None:
        for found in self.raw.values():
            for each in found:
                status = each.path.stat()
                if (status.st_size, status.st_mtime_ns) != (each.bytes, each.modified_ns):
                    raise BadData(f"{each.path} was changed while it was read; run the preparation again.")

    def _check_budget(self, merged: list[merge.Merged]) -> None:
        """Stop if a source lost more rows than allowed, or has none."""
        budget = self.cfg.data.bad_row_budget
        for each in merged:
            rows, lost = each.counts.rows, each.counts.rejected.total()
            name = f"data.sources.{each.job.source}"
            if rows == 0 and each.left_out:
                raise BadData(f"{name}.select: takes none of the {each.left_out:,} rows of its files; mend or drop it.")
            if rows == 0:
                raise BadData(f"{name}: no rows in {', '.join(each.job.paths)}.")
            if lost > budget * rows or lost == rows:
                reasons = ", ".join(f"{reason} {count:,}" for reason, count in each.counts.rejected.most_common())
                raise BadData(
                    f"{name}: {lost:,} of {rows:,} rows ({lost / rows:.1%}) were rejected, over "
                    f"data.bad_row_budget={budget}: {reasons}; see each of them in {self.path / 'quarantine.jsonl'}, "
                    "then mend the rows, change data.clean or data.seq_len, or raise the budget."
                )

    def _finish(self, merged: list[merge.Merged], tokenizer: Tokenizer) -> None:
        written = {each.job.source: merge.write_shards(each, self.path) for each in merged}
        content = identity.identity(self.cfg)
        manifest = {
            "version": VERSION,
            "tokenizer": {
                "fingerprint": tokenizer.fingerprint,
                "reference": content["model"]["tokenizer"]["reference"],
                "vocab_size": tokenizer.vocab_size,
                "bos_id": tokenizer.bos_id,
                "eos_id": tokenizer.eos_id,
                "pad_id": tokenizer.pad_id,
            },
            "template": {each.job.source: each.job.template for each in merged},
            "config_sha256": identity.digest_of(content),
            "config": content,
            "seq_len": self.cfg.data.seq_len,
            "max_tokens": max(each.max_tokens for each in written.values()),
            "min_vocab": max(each.min_vocab for each in written.values()),
            "files": {
                name: [{"path": each.name, "bytes": each.bytes, "xxh3": each.xxh3} for each in found]
                for name, found in self.raw.items()
            },
            "files_left_out": {name: [str(each) for each in found] for name, found in self.left_out.items() if found},
            "sources": {name: each.entry for name, each in written.items()},
        }
        try:
            self._write_timing()
            commit(self.path / MANIFEST, json.dumps(manifest, indent=1).encode())
        except OSError as error:
            raise StorageError(f"cannot write to {self.path}: {error.strerror or error}.") from error
        open_corpus(self.path)
        shutil.rmtree(self.work, ignore_errors=True)

    def _write_timing(self) -> None:
        """What is true of this preparation but not of the corpus; the report takes it up."""
        content = {
            "command": identity.prepare_command(self.cfg, self.argv),
            "seconds": round(time.monotonic() - self.started, 2),
            "num_proc": self.cfg.data.num_proc,
            "processors": os.cpu_count(),
        }
        commit(self.path / "preparation.json", json.dumps(content, indent=1).encode())
