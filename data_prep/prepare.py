"""Raw files -> a finished corpus: restartable at any point, the same for any number of processes, MANIFEST last.

DIR/.lock                     held while a process prepares here
DIR/.work/NAME/identity.json  what source NAME is made of; blocks of anything else are thrown away, source by source
DIR/.work/NAME/000000.*       finished blocks (block.py)      -> collected, duplicates out, budget checked (merge.py)
DIR/tokenizer/, DIR/NAME/train/shard-00000.arrow ...          -> then MANIFEST.json, then .work is removed

A source that a finished corpus in the same parent folder holds already is taken from there (reuse.py), so a new source,
or a change of one, does not redo the others; the older corpus stays as it is.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conf.disk.folders import own_folder, refuse_foreign_content
from conf.durable import LockHeld, commit, take_lock
from conf.errors import BadData, CannotCreate, ConfigError, StorageError
from conf.safety.console import SafeConsole
from conf.safety.secrets import redact, redact_text
from conf.schema import RunConfig
from data_prep.advice import refused
from data_prep.advice.recognised import recognised
from data_prep.blocks import merge, vocabulary
from data_prep.blocks import workers as pool
from data_prep.blocks.process import BLOCK_FORMAT, Job
from data_prep.blocks.progress import Progress
from data_prep.corpus import identity, reuse
from data_prep.corpus.manifest import MANIFEST, TOKENIZER, entry_of, files_below, version_of
from data_prep.corpus.shards import open_corpus
from data_prep.corpus.staging import is_remote
from data_prep.filters import decontaminate
from data_prep.finished import check_finished
from data_prep.jobs import chats, job_of, notes, raw_files
from data_prep.rows import raw
from data_prep.tokenizer.tokenizer import Tokenizer

WORK = ".work"


def prepare(cfg: RunConfig, *, argv: Sequence[str]) -> Path:
    """Prepare the corpus of ``cfg`` and return its folder; at once if it is finished.

    ``argv`` is written into the report. Raises ConfigError (the folder holds another corpus, settings that cannot
    work), MissingInput (a raw file, the tokenizer), BadData (over the bad-row budget, a broken or changed raw file),
    CannotCreate (the folder, or another process prepares in it), PermissionDenied (a folder or link of another user)
    and StorageError.
    """
    if is_remote(cfg.data.prepared):
        raise ConfigError(
            f"data.prepared: {cfg.data.prepared} is a URL, which is only read; "
            "prepare into a folder, then copy the folder to the URL"
        )
    path = identity.corpus_path(cfg)
    if (path / MANIFEST).is_file():
        check_finished(cfg, path)
        return path
    with _locked(path):
        if (path / MANIFEST).is_file():  # another process finished it before this one got the lock
            check_finished(cfg, path)
            return path
        _Preparation(cfg, path, list(argv)).run()
    return path


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        own_folder(path, "data.prepared")
        refuse_foreign_content(path, "data.prepared")
        lock = take_lock(path / ".lock")
    except LockHeld:
        raise CannotCreate(f"another process is preparing {path}; wait for it, or stop it first.") from None
    except OSError as error:
        raise CannotCreate(f"data.prepared: cannot create {path}: {error.strerror or error}.") from error
    with lock:
        yield


class _Preparation:
    """The steps of one preparation in their order, and the values that they share."""

    def __init__(self, cfg: RunConfig, path: Path, argv: list[str]) -> None:
        self.cfg, self.path, self.argv = cfg, path, argv
        self.work = path / WORK
        self.console = SafeConsole(stderr=True)
        self.leaves = dict(sorted(identity.leaves(cfg.data.sources).items()))
        self.started = time.monotonic()

    def run(self) -> None:
        self._refuse_foreign_files()
        self.found = {name: raw_files(self.cfg, name) for name in self.leaves}
        self.raw = {name: found.kept for name, found in self.found.items()}
        self.notes = {
            name: list(notes(found, self.leaves[name], f"data.sources.{name}")) for name, found in self.found.items()
        }
        for line in (line for lines in self.notes.values() for line in lines):
            self.console.print(line, highlight=False, soft_wrap=True)
        self.evaluation = self._evaluation_files()
        self.overlap = self._overlap()
        tokenizer = self._tokenizer()
        self.new_ids = vocabulary.tell_growth(self.cfg, tokenizer, self.console)
        jobs = [self._job(name) for name in self.leaves]
        self._tell_templates(jobs)
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
        self._refuse_nothing(entries)
        self._write_timing(sorted(reused))
        self._finish(entries, {job.source: job.stages.encode.template for job in jobs}, tokenizer)

    def _refuse_foreign_files(self) -> None:
        if "tokenizer" in self.leaves:
            raise ConfigError(
                "data.sources.tokenizer: a corpus keeps its tokenizer in a folder of that name; "
                "give the source another name"
            )
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
        """The corpus's tokenizer. A tokenizer of another config, or learnt from other records, is deleted first."""
        jobs = [self._job(name) for name in self.leaves]
        now: dict[str, Any] = identity.identity(self.cfg)["model"]
        if now["tokenizer"]["reference"] == "train":
            now |= {"rows": [self._identity(job, "") for job in jobs]}
        self._keep_if(self.work / ".tokenizer.json", identity.digest_of(now), self.path / "tokenizer")
        return vocabulary.provide(self.cfg, self.path / "tokenizer", jobs, chats(self.cfg))

    def _tell_templates(self, jobs: list[Job]) -> None:
        templates = {job.source: job.stages.encode.template for job in jobs}
        if len({*templates.values()}) > 1 and "chat" in templates.values():
            each = ", ".join(f"{name}: {template}" for name, template in templates.items())
            self.console.print(
                f"data.sources: the sources are written in different templates ({each}); the export talks in the chat "
                "template. Set template: chat at the others to write all alike.",
                highlight=False, soft_wrap=True,
            )  # fmt: skip

    def _identity(self, job: Job, fingerprint: str) -> str:
        found = {"files": _hashes(self.raw[job.source]), "evaluation": _hashes(self.evaluation)}
        return identity.source_identity(self.cfg, job.source, tokenizer=fingerprint, **found)

    def _reused(self, identities: dict[str, str]) -> dict[str, reuse.Reused]:
        """Sources that another corpus has already; raises BadData for a rejected row if none is allowed."""
        found = reuse.find(self.path, identities)
        for name, each in found.items():
            self.console.print(f"{name}: unchanged since {each.corpus}, reused from there", highlight=False)
            if self.cfg.data.on_bad_row == "fail" and each.rejected:
                raise pool.bad_row(next(each.quarantine()))
        return found

    def _forget_other_sources(self) -> None:
        """Delete the work of an earlier attempt on sources that the config no longer has."""
        for folder in self.work.iterdir():
            if folder.is_dir() and folder.name not in self.leaves and not folder.name.startswith("."):
                shutil.rmtree(folder)
                shutil.rmtree(self.path / folder.name, ignore_errors=True)

    def _open_work(self, job: Job, now: str) -> None:
        """Keep finished blocks of a source only if they are of the same settings, raw files and tokenizer."""
        folder = Path(job.folder)
        self._keep_if(folder / "identity.json", f"{now} {BLOCK_FORMAT}", folder, self.path / job.source)

    def _keep_if(self, mark: Path, now: str, *folders: Path) -> None:
        """Delete ``folders`` unless ``mark`` says that they belong to ``now``, and write ``now`` into ``mark``."""
        if mark.is_file() and json.loads(mark.read_text(encoding="utf-8")) == now:
            return
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        mark.parent.mkdir(parents=True, exist_ok=True)
        commit(mark, json.dumps(now).encode())

    def _job(self, name: str) -> Job:
        folders = {"tokenizer": self.path / "tokenizer", "folder": self.work / name}
        return job_of(self.cfg, name, self.found[name], overlap=self.overlap, **folders)

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
                raise BadData(f"{each.name} changed while preparation read it; run the preparation again.")

    def _check_budget(self, sources: list[merge.Finished]) -> None:
        """Raise BadData for all sources that lost more records than the budget allows, or have none."""
        problems = [line for each in sources for line in self._over_budget(each)]
        if problems:
            raise BadData("\n".join([*problems, f"all rejected rows stand in {self.path / reuse.QUARANTINE}."]))

    def _refuse_nothing(self, entries: dict[str, dict[str, Any]]) -> None:
        """Raise BadData if no source has a row to train on."""
        if all(entry["splits"]["train"]["rows"] == 0 for entry in entries.values()):
            names = ", ".join(entries)
            raise BadData(
                f"data.sources: no row is left to train on (of {names}): all are rejected or held out; see "
                f"{self.path / reuse.QUARANTINE}, or set validation_fraction lower."
            )

    def _over_budget(self, each: merge.Finished) -> Iterator[str]:
        name, budget = f"data.sources.{each.source}", self.cfg.data.bad_row_budget
        if each.rows == 0 and each.left_out:
            raise BadData(
                f"{name}.select: none of the {each.left_out:,} rows of its files match; "
                "correct select, or remove the source."
            )
        if each.rows == 0:
            raise BadData(f"{name}: no rows in {', '.join(found.name for found in self.raw[each.source])}.")
        lost = each.rejected.total()
        if lost > budget * each.rows or lost == each.rows:
            yield refused.over_budget(each.source, each.rows, each.rejected, budget)
            leaf = recognised(self.leaves[each.source], name)
            said = refused.explained(each.source, leaf, each.rejected, each.quarantine())
            yield from (f"  {line}" for line in said)

    def _finish(self, entries: dict[str, dict[str, Any]], templates: dict[str, str], tokenizer: Tokenizer) -> None:
        content = identity.identity(self.cfg)
        manifest = {
            "version": version_of(entries),
            "tokenizer": {
                "fingerprint": tokenizer.fingerprint,
                "reference": content["model"]["tokenizer"]["reference"],
                "vocab_size": tokenizer.vocab_size,
                "bos_id": tokenizer.bos_id,
                "eos_id": tokenizer.eos_id,
                "pad_id": tokenizer.pad_id,
                **({"new_ids": self.new_ids} if self.new_ids else {}),
                "files": [entry_of(each, self.path) for each in files_below(self.path / TOKENIZER)],
            },
            "template": templates,
            "config_sha256": identity.digest_of(content),
            "config": redact(content),
            "seq_len": self.cfg.data.seq_len,
            "max_tokens": max(each["max_tokens"] for each in entries.values()),
            "min_vocab": max(each["min_vocab"] for each in entries.values()),
            "files": {name: _as_entries(found) for name, found in self.raw.items()},
            "files_left_out": redact({name: each.left_out for name, each in self.found.items() if each.left_out}),
            "notes": redact({name: lines for name, lines in self.notes.items() if lines}),
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
        """Facts of this preparation, not of the corpus; the report shows them."""
        content = {
            "command": identity.prepare_command(self.cfg, self.argv),
            "seconds": round(time.monotonic() - self.started, 2),
            "num_proc": self.cfg.data.num_proc,
            "reused": reused,
            "processors": os.cpu_count(),
        }
        try:
            commit(self.path / "preparation.json", json.dumps(redact(content), indent=1).encode())
        except OSError as error:
            raise StorageError(f"cannot write to {self.path}: {error.strerror or error}.") from error


def _hashes(found: list[raw.Raw]) -> list[tuple[str, str]]:
    return [(each.name, each.xxh3) for each in found]


def _as_entries(found: list[raw.Raw]) -> list[dict[str, Any]]:
    """As the MANIFEST lists files."""
    return [{"path": redact_text(each.name), "bytes": each.bytes, "xxh3": each.xxh3} for each in found]
