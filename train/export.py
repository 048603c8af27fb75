"""``python -m train.export run_dir=DIR [checkpoint=N] [merge=true|false]``: a Hugging Face folder of the tuned model.

One process, no DeepSpeed. The folder run_dir/export holds the weights as safetensors in the run's dtype, the
tokenizer with the chat template the model was taught, a model card with provenance, and ``corral.json``, from which
``train.chat`` takes the same prompt. It is replaced as a whole: a reader sees the old one or the new one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from conf.errors import CannotCreate, ConfigError, PermissionDenied, StorageError, leave_with_code
from data_prep.shards import Corpus
from data_prep.templates import jinja_for
from data_prep.tokenizer import Tokenizer
from train import tuning
from train.arguments import run_arguments, whole_number
from train.model_card import Provenance, card, last_metrics, library_versions
from train.restored import Restored, restored

USAGE = """usage: python -m train.export run_dir=DIR [checkpoint=N] [merge=true|false]
  run_dir     folder of a run; the export is written to run_dir/export
  checkpoint  step of a checkpoint; default: the newest that verifies
  merge       true (default): a whole model that loads anywhere, adapters folded into the base; false: what was trained
              alone (PEFT's folder), the only way for prompt, prefix and bottleneck tuning, which fold into no weight"""
SHARD_SIZE = "5GB"


def export(run_dir: Path, *, step: int | None = None, merge: bool = True) -> Path:
    """Write ``run_dir/export`` and return it.

    Raises what ``restored`` raises; ConfigError for merge=False without adapters, and for merge=True where they fold
    into no weight; StorageError, CannotCreate or PermissionDenied if the folder cannot be written.
    """
    run = restored(run_dir, step)
    provenance = provenance_of(run, merged=merge)
    temporary = run_dir / f".export.{os.getpid()}"
    try:
        write_weights(run, temporary, merge=merge)
        write_tokenizer(run.tokenizer, run.corpus, temporary)
        (temporary / "corral.json").write_text(json.dumps(asdict(provenance), indent=1) + "\n")
        (temporary / "README.md").write_text(card(provenance))
        readable(temporary)
        return replace_folder(temporary, run_dir / "export")
    except OSError as error:
        raise refusal(error, run_dir / "export") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_weights(run: Restored, folder: Path, *, merge: bool) -> None:
    """config.json, generation_config.json and *.safetensors; or the method's own files of what was trained alone."""
    from safetensors import SafetensorError

    try:
        if not merge:
            # Where others find the base: the hub id or folder of the config, not this machine's cache.
            base = run.cfg.model.path or str((run.run_dir / "init").resolve())
            tuning.save(run.model, run.cfg.tuning, folder, base=base)
            return
        plain: Any = tuning.merge(run.model, run.cfg.tuning)
        plain.config.use_cache = True
        plain.config.pad_token_id, plain.config.eos_token_id = run.tokenizer.pad_id, run.tokenizer.eos_id
        plain.save_pretrained(folder, max_shard_size=SHARD_SIZE)
    except SafetensorError as error:
        raise StorageError(f"cannot write the weights to {folder}: {error}; free space and export again") from error


def write_tokenizer(tokenizer: Tokenizer, corpus: Corpus, folder: Path) -> None:
    """The corpus's tokenizer. Its chat template becomes the one the model was taught, if that is not its own.

    A base's own chat template stays only where a source used it: after tuning on Alpaca's prompt, a server that
    renders anything else would ask the model in words it was not tuned on.
    """
    if "chat" not in corpus.templates.values():
        template = jinja_for(main_template(corpus), starts_with_bos=tokenizer.starts_with_bos)
        tokenizer.hf.chat_template = template or tokenizer.hf.chat_template
    tokenizer.save(folder)


def main_template(corpus: Corpus) -> str:
    """The template of most training rows."""
    rows: dict[str, int] = {}
    for source, template in corpus.templates.items():
        entry = corpus.manifest["sources"][source]["splits"].get("train") or {"rows": 0}
        rows[template] = rows.get(template, 0) + int(entry["rows"])
    return max(rows, key=lambda template: rows[template])


def provenance_of(run: Restored, *, merged: bool) -> Provenance:
    """Where the exported weights come from."""
    checkpoint = run.run_dir / "checkpoints" / f"step-{run.step:08d}" / "MANIFEST.json"
    return Provenance(
        name=run.cfg.name,
        template=main_template(run.corpus),
        templates=run.corpus.templates,
        base=run.cfg.model.path or "random weights (model.config)",
        base_hash=str(json.loads(checkpoint.read_text())["base_hash"]),
        tuning=run.cfg.tuning.method,
        merged=merged,
        dtype=run.cfg.model.dtype,
        step=run.step,
        corpus=str(run.corpus.path),
        corpus_sha256=sha256_of(run.corpus.path / "MANIFEST.json"),
        config_sha256=sha256_of(run.run_dir / "run.yaml"),
        metrics=last_metrics(run.run_dir / "metrics.jsonl", run.step),
        versions=library_versions(),
    )


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def readable(folder: Path) -> None:
    """Give every file the mode the user's umask gives: safetensors makes its files for their owner alone."""
    mode = (folder / "README.md").stat().st_mode & 0o777
    for file in folder.iterdir():
        file.chmod(mode)


def replace_folder(temporary: Path, final: Path) -> Path:
    """Rename ``temporary`` to ``final``; what was there before goes only once the new one is in place."""
    old = final.with_name(f".{final.name}.old.{os.getpid()}")
    if final.exists():
        final.rename(old)
    temporary.rename(final)
    shutil.rmtree(old, ignore_errors=True)
    return final


def refusal(error: OSError, folder: Path) -> CannotCreate | PermissionDenied | StorageError:
    """The kind of failure an OSError while writing ``folder`` is."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        return StorageError(f"cannot write {folder}: {error.strerror}; free space and export again")
    if isinstance(error, PermissionError):
        return PermissionDenied(f"no permission to write {folder} ({error.filename}); ask its owner, or copy the run")
    return CannotCreate(f"cannot write {folder}: {error.strerror or error}")


def options(argv: list[str]) -> tuple[Path, int | None, bool]:
    """run_dir, checkpoint and merge of the command line. Raises ConfigError or MissingInput."""
    found = run_arguments(argv, ("run_dir", "checkpoint", "merge"), USAGE)
    merge, step = found.get("merge", "true").lower(), None
    problems = [] if merge in ("true", "false") else [f"merge={merge}: must be true or false"]
    try:
        step = whole_number(found, "checkpoint")
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return Path(found["run_dir"]), step, merge == "true"


def main() -> int:
    run_dir, step, merge = options(sys.argv[1:])
    folder = export(run_dir, step=step, merge=merge)
    size = sum(file.stat().st_size for file in folder.iterdir())
    what = "merged model" if merge else "adapters (base not included)"
    print(f"{folder}  {what}, {size / 1e6:.1f} MB, written from {run_dir}")
    print(f"next: python -m train.chat model={folder}")
    return 0


if __name__ == "__main__":
    leave_with_code(main)
