"""Raw files -> a finished corpus: restartable at any point, the same for any number of processes, MANIFEST last.

DIR/.lock                     held while a process prepares here
DIR/.work/NAME/identity.json  what source NAME is made of; blocks of anything else are thrown away, source by source
DIR/.work/NAME/000000.*       finished blocks (block.py)      -> collected, duplicates out, budget checked (merge.py)
DIR/tokenizer/, DIR/NAME/train/shard-00000.arrow ...          -> then MANIFEST.json, then .work is removed

A source that a finished corpus in the same parent folder holds already is taken from there (reuse.py), so a new source,
or a change of one, does not redo the others; the older corpus stays as it is.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from conf.errors import BadData, CannotCreate, ConfigError, StorageError
from conf.schema import RunConfig
from data_prep import decontaminate, identity, merge, pool, raw, reuse, vocabulary
from data_prep.block import Job
from data_prep.durable import commit, file_digest
from data_prep.jobs import job_of, raw_files
from data_prep.manifest import MANIFEST, VERSION, read_manifest
from data_prep.progress import Progress
from data_prep.shards import open_corpus
from data_prep.staging import is_remote
from data_prep.tokenizer import Tokenizer

WORK = ".work"


def prepare(cfg: RunConfig, *, argv: Sequence[str]) -> Path:
    """Prepare the corpus of ``cfg`` and return its folder; at once if it is finished.

    ``argv`` is written into the report. Raises ConfigError (the folder holds another corpus, settings that cannot
    work), MissingInput (a raw file, the tokenizer), BadData (over the bad-row budget, a broken or changed raw file),
    CannotCreate (the folder, or another process prepares in it) and StorageError.
    """
    if is_remote(cfg.data.prepared):
        raise ConfigError(
            f"data.prepared: {cfg.data.prepared} is a URL, which is only read; prepare into a folder and copy it there"
        )
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
        first = f"data.prepared: {path} holds another corpus; name another folder beside it (sources that are the same "
        first += "are taken over from here), or delete it to prepare anew"
        raise ConfigError([first, *identity.differences(manifest["config"], asked)])
    finished = (path / MANIFEST).stat().st_mtime
    named = [(f"data.sources.{name}.path", each) for name, entries in manifest["files"].items() for each in entries]
    named += [("data.decontaminate.paths", each) for each in manifest.get("evaluation_files", ())]
    for key, entry in named:
        file = Path(entry["path"])
        if file.is_file() and (changed := _change(file, entry, finished)):
            raise BadData(
                f"{file} ({key}) has changed since {path} was prepared from it ({changed}); "
                "restore it, or delete the corpus to prepare it anew."
            )


def _change(file: Path, entry: dict[str, Any], finished: float) -> str:
    """How a raw file differs from its MANIFEST entry; its hash is taken only if it was touched since."""
    status = file.stat()
    if status.st_size != entry["bytes"]:
        return f"{entry['bytes']:,} bytes then, {status.st_size:,} now"
    if status.st_mtime > finished and file_digest(file) != entry["xxh3"]:
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


class _Preparation:
    """The stages, in order; what they share is here."""

    def __init__(self, cfg: RunConfig, path: Path, argv: list[str]) -> None:
        self.cfg, self.path, self.argv = cfg, path, argv
        self.work = path / WORK
        self.console = Console(stderr=True)
        self.leaves = dict(sorted(identity.leaves(cfg.data.sources).items()))
        """Files that ``select`` leaves out, by source."""
        self.started = time.monotonic()

    def run(self) -> None:
        self._refuse_foreign_files()
        found = {name: raw_files(self.cfg, name) for name in self.leaves}
        self.raw = {name: kept for name, (kept, _) in found.items()}
        self.left_out = {name: others for name, (_, others) in found.items()}
        self.evaluation = self._evaluation_files()
        self.overlap = self._overlap()
        tokenizer = self._tokenizer()
        jobs = [self._job(name) for name in self.leaves]
        identities = {job.source: self._identity(job, tokenizer.fingerprint) for job in jobs}
        self._forget_other_sources()
        reused = self._reused(identities)
        for job in jobs:
            self._open_work(job, identities[job.source])
        merged = self._blocks([job for job in jobs if job.source not in reused])
        self._check_unchanged()
        sources: list[merge.Finished] = sorted([*merged, *reused.values()], key=lambda each: each.source)
        merge.write_quarantine(self.path / reuse.QUARANTINE, sources)
        self._check_budget(sources)
        entries = {each.source: each.write(self.path) | {"identity": identities[each.source]} for each in sources}
        self._write_timing(sorted(reused))
        self._finish(entries, {job.source: job.template for job in jobs}, tokenizer)

    def _refuse_foreign_files(self) -> None:
        if "tokenizer" in self.leaves:
            raise ConfigError("data.sources.tokenizer: that name is taken by the corpus's tokenizer; choose another")
        ours = {".lock", WORK, "tokenizer", reuse.QUARANTINE}
        found = {each.name for each in self.path.iterdir()} - ours
        if found and not self.work.is_dir():
            raise CannotCreate(
                f"data.prepared: {self.path} is not empty and holds no corpus ({sorted(found)[0]}, ...); "
                "name an empty or new folder."
            )

    def _evaluation_files(self) -> list[raw.Raw]:
        wanted = self.cfg.data.decontaminate
        return [each for path in wanted.paths for each in raw.find(path, "data.decontaminate.paths")] if wanted else []

    def _overlap(self) -> str | None:
        """Folder of the index of the evaluation sets, made first if need be."""
        wanted = self.cfg.data.decontaminate
        if wanted is None:
            return None
        digest = identity.digest_of({"ngram": wanted.ngram, "files": _hashes(self.evaluation)})
        folder = self.work / f".overlap-{digest[:16]}"
        if not folder.is_dir():
            decontaminate.build([each.name for each in self.evaluation], wanted.ngram, folder)
        return str(folder)

    def _tokenizer(self) -> Tokenizer:
        """The corpus's tokenizer; one of another config, or learnt from other rows, is thrown away."""
        jobs = [self._job(name) for name in self.leaves]
        now: dict[str, Any] = identity.identity(self.cfg)["model"]
        if now["tokenizer"]["reference"] == "train":
            now |= {"rows": [self._identity(job, "") for job in jobs]}
        self._keep_if(self.work / ".tokenizer.json", identity.digest_of(now), self.path / "tokenizer")
        chats = [f"data.sources.{job.source}.template" for job in jobs if job.template == "chat"]
        return vocabulary.provide(self.cfg, self.path / "tokenizer", jobs, chats)

    def _identity(self, job: Job, fingerprint: str) -> str:
        found = {"files": _hashes(self.raw[job.source]), "evaluation": _hashes(self.evaluation)}
        return identity.source_identity(self.cfg, job.source, tokenizer=fingerprint, **found)

    def _reused(self, identities: dict[str, str]) -> dict[str, reuse.Reused]:
        """Sources that another corpus has already; raises BadData for a rejected row if none is allowed."""
        found = reuse.find(self.path, identities)
        for name, each in found.items():
            self.console.print(f"{name}: the same as in {each.corpus}, taken over from there", highlight=False)
            if self.cfg.data.on_bad_row == "fail" and each.rejected:
                raise pool.bad_row(next(each.quarantine()))
        return found

    def _forget_other_sources(self) -> None:
        """Throw away what an earlier attempt left of sources that the config no longer has."""
        for folder in self.work.iterdir():
            if folder.is_dir() and folder.name not in self.leaves and not folder.name.startswith("."):
                shutil.rmtree(folder)
                shutil.rmtree(self.path / folder.name, ignore_errors=True)

    def _open_work(self, job: Job, now: str) -> None:
        """Keep finished blocks of a source only if they are of the same settings, raw files and tokenizer."""
        folder = Path(job.folder)
        self._keep_if(folder / "identity.json", now, folder, self.path / job.source)

    def _keep_if(self, mark: Path, now: str, *folders: Path) -> None:
        """Throw ``folders`` away unless ``mark`` says that they belong to ``now``; then it does."""
        if mark.is_file() and json.loads(mark.read_text()) == now:
            return
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        mark.parent.mkdir(parents=True, exist_ok=True)
        commit(mark, json.dumps(now).encode())

    def _job(self, name: str) -> Job:
        paths = tuple(each.name for each in self.raw[name])
        folders = {"tokenizer": self.path / "tokenizer", "folder": self.work / name}
        return job_of(self.cfg, name, paths, overlap=self.overlap, **folders)

    def _blocks(self, jobs: list[Job]) -> list[merge.Merged]:
        total = sum(each.bytes for found in self.raw.values() for each in found)
        merged = []
        fail = self.cfg.data.on_bad_row == "fail"
        with pool.workers(self.cfg.data.num_proc) as run, Progress(self.console, total) as progress:
            for job in jobs:
                whole = pool.process_source(job, self.leaves[job.source].rows, run, progress, stop_at_bad_row=fail)
                merged.append(merge.collect(job, whole.blocks, whole.left_out))
                if fail and merged[-1].repeats:
                    raise pool.bad_row(next(merged[-1].quarantine()))
        return merged

    def _check_unchanged(self) -> None:
        for each in [*self.evaluation, *(each for found in self.raw.values() for each in found)]:
            if each.is_changed():
                raise BadData(f"{each.name} was changed while it was read; run the preparation again.")

    def _check_budget(self, sources: list[merge.Finished]) -> None:
        """Stop if a source lost more rows than allowed, or has none."""
        budget = self.cfg.data.bad_row_budget
        for each in sources:
            rows, lost = each.rows, each.rejected.total()
            name = f"data.sources.{each.source}"
            if rows == 0 and each.left_out:
                raise BadData(f"{name}.select: takes none of the {each.left_out:,} rows of its files; mend or drop it.")
            if rows == 0:
                raise BadData(f"{name}: no rows in {', '.join(found.name for found in self.raw[each.source])}.")
            if lost > budget * rows or lost == rows:
                reasons = ", ".join(f"{reason} {count:,}" for reason, count in each.rejected.most_common())
                raise BadData(
                    f"{name}: {lost:,} of {rows:,} rows ({lost / rows:.1%}) were rejected, over "
                    f"data.bad_row_budget={budget}: {reasons}; see each of them in {self.path / reuse.QUARANTINE}, "
                    "then mend the rows, change data.clean or data.seq_len, or raise the budget."
                )

    def _finish(self, entries: dict[str, dict[str, Any]], templates: dict[str, str], tokenizer: Tokenizer) -> None:
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
            "template": templates,
            "config_sha256": identity.digest_of(content),
            "config": content,
            "seq_len": self.cfg.data.seq_len,
            "max_tokens": max(each["max_tokens"] for each in entries.values()),
            "min_vocab": max(each["min_vocab"] for each in entries.values()),
            "files": {name: _as_entries(found) for name, found in self.raw.items()},
            "files_left_out": {name: found for name, found in self.left_out.items() if found},
            "evaluation_files": _as_entries(self.evaluation),
            "sources": entries,
        }
        try:
            commit(self.path / MANIFEST, json.dumps(manifest, indent=1).encode())
        except OSError as error:
            raise StorageError(f"cannot write to {self.path}: {error.strerror or error}.") from error
        open_corpus(self.path)
        shutil.rmtree(self.work, ignore_errors=True)

    def _write_timing(self, reused: list[str]) -> None:
        """What is true of this preparation but not of the corpus; the report takes it up."""
        content = {
            "command": identity.prepare_command(self.cfg, self.argv),
            "seconds": round(time.monotonic() - self.started, 2),
            "num_proc": self.cfg.data.num_proc,
            "reused": reused,
            "processors": os.cpu_count(),
        }
        try:
            commit(self.path / "preparation.json", json.dumps(content, indent=1).encode())
        except OSError as error:
            raise StorageError(f"cannot write to {self.path}: {error.strerror or error}.") from error


def _hashes(found: list[raw.Raw]) -> list[tuple[str, str]]:
    return [(each.name, each.xxh3) for each in found]


def _as_entries(found: list[raw.Raw]) -> list[dict[str, Any]]:
    """As the MANIFEST lists files."""
    return [{"path": each.name, "bytes": each.bytes, "xxh3": each.xxh3} for each in found]
