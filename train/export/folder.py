"""``python -m train.export run_dir=DIR [checkpoint=N] [merge=true|false]``: a Hugging Face folder of the tuned model.

It runs in one process without DeepSpeed. The folder run_dir/export contains the weights as safetensors in the run's
dtype, the tokenizer with the chat template of the training, a model card with provenance, and ``corral.json``, from
which ``train.chat`` reads the template. A new export replaces the whole folder: readers see either the old or the new.
"""

from __future__ import annotations

import errno
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from conf.durable import replacing_folder, sha256_of
from conf.errors import CannotCreate, PermissionDenied, StorageError
from conf.safety.secrets import redact_text
from conf.schema import RunConfig
from data_prep.corpus.shards import Corpus
from data_prep.templates.prompts import jinja_for
from data_prep.tokenizer.growth import GROWN
from data_prep.tokenizer.tokenizer import Tokenizer
from train import tuning
from train.checkpoint.reopen import Reopened, reopen
from train.export.model_card import Provenance, card, last_metrics, library_versions

SHARD_SIZE = "5GB"


def export(run_dir: Path, *, step: int | None = None, merge: bool = True, cfg: RunConfig | None = None) -> Path:
    """Write ``run_dir/export`` and return it. ``cfg``: as ``reopen`` takes it.

    Raises the errors of ``reopen``; ConfigError for merge=False without adapters, and for merge=True with adapters
    that fold into no weight; StorageError, CannotCreate or PermissionDenied if the folder cannot be written.
    """
    run = reopen(run_dir, step, cfg)
    provenance = provenance_of(run, merged=merge)
    folder = run_dir / "export"
    try:
        with replacing_folder(folder) as temporary:
            write_weights(run, temporary, merge=merge)
            write_tokenizer(run.tokenizer, run.corpus, temporary)
            (temporary / "corral.json").write_text(json.dumps(asdict(provenance), indent=1) + "\n", encoding="utf-8")
            loader = "corral" if (temporary / tuning.TABLES).is_file() else run.cfg.tuning.FACTS.folder
            (temporary / "README.md").write_text(card(provenance, loader), encoding="utf-8")
            readable(temporary)
    except OSError as error:
        raise refusal(error, folder) from error
    return folder


def write_weights(run: Reopened, folder: Path, *, merge: bool) -> None:
    """Write config.json, generation_config.json and *.safetensors; without ``merge``, the method's adapter files."""
    from safetensors import SafetensorError

    config: Any = run.model.config
    grown = vars(config).pop(GROWN, None)  # the folder is one of a plain model
    try:
        if not merge:
            # Other machines load the base from the hub id or folder of the config, not from this machine's cache.
            base = run.cfg.model.path or str((run.run_dir / "init").resolve())
            if grown is not None and config.vocab_size > grown:
                # Without the padding, PEFT's own loading finds the rows that it expects: one for each token.
                tuning.give_rows(run.model, run.tokenizer.vocab_size)
            tuning.save(run.model, run.cfg.tuning, folder, base=base)
            return
        plain: Any = tuning.merge(run.model, run.cfg.tuning)
        plain.config.use_cache = True
        plain.config.pad_token_id, plain.config.eos_token_id = run.tokenizer.pad_id, run.tokenizer.eos_id
        plain.save_pretrained(folder, max_shard_size=SHARD_SIZE)
    except SafetensorError as error:
        raise StorageError(f"cannot write weights to {folder}: {error}; free some space and export again") from error


def write_tokenizer(tokenizer: Tokenizer, corpus: Corpus, folder: Path) -> None:
    """Write the corpus's tokenizer, with the chat template that the model was trained with.

    The base's chat template stays only if a source used it. After tuning on Alpaca's prompt, another template would
    give the model prompts that it was not tuned on.
    """
    if "chat" not in corpus.templates.values():
        template = jinja_for(main_template(corpus), starts_with_bos=tokenizer.starts_with_bos)
        tokenizer.hf.chat_template = template or tokenizer.hf.chat_template
    tokenizer.save(folder)


def main_template(corpus: Corpus) -> str:
    """The template of most training samples; chat if any source has it, because the export's tokenizer keeps that."""
    if "chat" in corpus.templates.values():
        return "chat"
    rows: dict[str, int] = {}
    for source, template in corpus.templates.items():
        entry = corpus.manifest["sources"][source]["splits"].get("train") or {"rows": 0}
        rows[template] = rows.get(template, 0) + int(entry["rows"])
    return max(rows, key=lambda template: rows[template])


def provenance_of(run: Reopened, *, merged: bool) -> Provenance:
    """The origin of the exported weights."""
    checkpoint = run.run_dir / "checkpoints" / f"step-{run.step:08d}" / "MANIFEST.json"
    return Provenance(
        name=run.cfg.name,
        template=main_template(run.corpus),
        templates=run.corpus.templates,
        base=redact_text(run.cfg.model.path or "random weights (model.config)"),
        base_hash=str(json.loads(checkpoint.read_text(encoding="utf-8"))["base_hash"]),
        tuning=run.cfg.tuning.method,
        merged=merged,
        dtype=run.cfg.model.dtype,
        step=run.step,
        corpus=redact_text(str(run.corpus.path)),
        corpus_sha256=sha256_of(run.corpus.path / "MANIFEST.json"),
        vocabulary=vocabulary_of(run),
        code=run.code,
        config_sha256=sha256_of(run.run_dir / "run.yaml"),
        metrics=last_metrics(run.run_dir / "metrics.jsonl", run.step),
        versions=library_versions(),
    )


def vocabulary_of(run: Reopened) -> str:
    """How the tables of the model differ from the base's; empty if they do not."""
    config: Any = run.model.config
    base: int | None = getattr(config, GROWN, None)
    if base is None:
        return ""
    rows = f"rows for {base:,} tokens in the base, {config.vocab_size:,} while training"
    return f"{run.tokenizer.vocab_size:,} tokens; {rows}; embedding and head were trained whole"


def readable(folder: Path) -> None:
    """Give every file the mode of the user's umask: safetensors writes files that only their owner can read."""
    mode = (folder / "README.md").stat().st_mode & 0o777
    for file in folder.iterdir():
        file.chmod(mode)


def refusal(error: OSError, folder: Path) -> CannotCreate | PermissionDenied | StorageError:
    """The error to raise for an OSError while writing ``folder``."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        return StorageError(f"cannot write {folder}: {error.strerror}; free some space and export again")
    if isinstance(error, PermissionError):
        return PermissionDenied(
            f"cannot write {folder}: no permission for {error.filename}; ask its owner, or copy the run"
        )
    return CannotCreate(f"cannot write {folder}: {error.strerror or error}")
