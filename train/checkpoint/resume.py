"""Whether a run continues, and from which checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.checks.changes import differences
from conf.errors import CannotCreate, ConfigError, MissingInput, StorageError, shown
from conf.exits import finished
from conf.schema import RunConfig
from train.checkpoint.check import newest_good, pass_over
from train.checkpoint.history import has_history, published_before
from train.checkpoint.layout import MANIFEST, Damaged, Stored
from train.ranks.group import Ranks


def find_start(cfg: RunConfig, run_dir: Path, ranks: Ranks) -> Stored | None:
    """The checkpoint to continue from, or None for a fresh start. Collective; damaged ones are renamed.

    Raises StorageError (74) if a run that had checkpoints has none that verifies, CannotCreate and MissingInput for
    what ``resume`` forbids.
    """
    if not ranks.once(lambda: _continues(cfg, run_dir)):
        return None
    return newest_good(run_dir, ranks)


def _continues(cfg: RunConfig, run_dir: Path) -> bool:
    """Whether there is something to continue from; raises what ``find_start`` raises of a folder."""
    stored, past = has_history(run_dir), published_before(run_dir)
    if cfg.resume.mode == "never" and (stored or past):
        raise CannotCreate(f"run_dir={run_dir} holds checkpoints and resume=never; set another name or run_dir")
    if past and not stored:
        raise StorageError(
            f"{run_dir / 'checkpoints'} holds no checkpoint, and {past}; restore that folder from a backup, or start "
            "over with another name or run_dir (this one would begin at step 0 and lose its records)"
        )
    if cfg.resume.mode == "must" and not stored:
        raise MissingInput(f"run_dir={run_dir} holds no checkpoint and resume=must; use resume=auto to start fresh")
    return stored


def resume_from(stored: Stored | None, run_dir: Path, ranks: Ranks, load: Callable[[Stored], None]) -> Stored | None:
    """``load`` the checkpoint, or the newest before it that can be loaded; returns it, None without one. Collective.

    ``load`` raises Damaged on all ranks or on none. Raises StorageError (74) if no checkpoint can be loaded.
    """
    while stored is not None:
        try:
            load(stored)
        except Damaged as fault:
            pass_over(run_dir, stored.path, str(fault), ranks)
            stored = newest_good(run_dir, ranks)
        else:
            break
    return stored


def was_finished(run_dir: Path) -> bool:
    """Whether the last attempt ended with code 0. Its exit.json is removed: from now on another attempt is running."""
    ended = finished(run_dir)
    (run_dir / "exit.json").unlink(missing_ok=True)
    return ended


@dataclass(frozen=True)
class MadeFrom:
    """What a checkpoint was made from; the MANIFEST has these under the same names."""

    base_hash: str
    """train.model.weights.base_hash"""
    base_config: dict[str, Any]
    """train.model.weights.base_config"""
    tokenizer: str
    """Its fingerprint."""
    base_files: list[str]
    """train.model.weights.loaded_files: the hash covers all files of the folder, this says which of them count."""


def refuse_lacking(stored: Stored, *keys: str) -> None:
    """Raise Damaged for a checkpoint whose MANIFEST lacks one of ``keys``: not all readers need all of it."""
    if lacking := [key for key in keys if key not in stored.manifest]:
        raise Damaged(f"{MANIFEST} has no {', '.join(lacking)}")


def check_same_inputs(stored: Stored, made_from: MadeFrom) -> None:
    """Refuse a checkpoint made from another base model or tokenizer (78), or one that does not say (Damaged)."""
    refuse_lacking(stored, "base_hash", "tokenizer")
    problems = [
        f"{what} is not the one of {stored.path}: it was made with {stored.manifest[key]}, this run has {now}; "
        f"restore the former or set another run_dir"
        for what, key, now in (
            ("the base model", "base_hash", made_from.base_hash),
            ("the tokenizer", "tokenizer", made_from.tokenizer),
        )
        if stored.manifest[key] != now
    ]
    # Checkpoints of earlier releases do not know which files were loaded, and not the base's config.json.
    files = stored.manifest.get("base_files", made_from.base_files)
    if files != made_from.base_files:
        problems.append(
            f"the base's weights are read from {', '.join(made_from.base_files)}, and those of {stored.path} from "
            f"{', '.join(files)}; restore the index of the weights, or set another run_dir"
        )
    changed = differences(stored.manifest.get("base_config", made_from.base_config), made_from.base_config)
    if changed:
        keys = ", ".join(f"{key}: {shown(old)} there, {shown(new)} now" for key, (old, new) in changed.items())
        problems.append(
            f"the base's config.json is not the one that {stored.path} was made with ({keys}), so the same weights "
            "would compute something else; restore it or set another run_dir"
        )
    if problems:
        raise ConfigError(problems)
