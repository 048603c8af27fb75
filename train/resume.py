"""Whether and from where a run continues, and what may have changed in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conf.compose import load
from conf.errors import CannotCreate, ConfigError, MissingInput
from conf.schema import RunConfig, to_dict
from train.checkpoint.layout import Stored, has_history, latest_good

IDENTITY = ("model.path", "model.config", "model.init", "model.revision", "tuning", "seed")
"""Settings without which the stored state means something else."""


def find_start(cfg: RunConfig, run_dir: Path) -> Stored | None:
    """The checkpoint to continue from, or None for a fresh start. Rank 0 only: it renames corrupt ones."""
    history = has_history(run_dir)
    if cfg.resume == "never" and history:
        raise CannotCreate(f"run_dir={run_dir} holds checkpoints and resume=never; set another name or run_dir")
    if cfg.resume == "must" and not history:
        raise MissingInput(f"run_dir={run_dir} holds no checkpoint and resume=must; use resume=auto to start fresh")
    if not history:
        return None
    path = latest_good(run_dir)
    return Stored(path, json.loads((path / "MANIFEST.json").read_text()))


def was_finished(run_dir: Path) -> bool:
    """Whether the last attempt ended with code 0. Its exit.json is removed: from now on another attempt is running."""
    record = run_dir / "exit.json"
    code = json.loads(record.read_text())["code"] if record.is_file() else None
    record.unlink(missing_ok=True)
    return code == 0


def differences(old: Any, new: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted path -> (old, new) of every leaf that differs between two plain configs."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for key in sorted({*old, *new}):
            found |= differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        return found
    return {} if old == new else {path: (old, new)}


def changed_settings(cfg: RunConfig, run_dir: Path) -> dict[str, tuple[Any, Any]]:
    """What differs from the run.yaml of the earlier attempt. Raises ConfigError if it is another model or method."""
    if not has_history(run_dir) or not (run_dir / "run.yaml").is_file():
        return {}
    found = differences(to_dict(load(run_dir / "run.yaml")), to_dict(cfg))
    refused = {
        path: values
        for path, values in found.items()
        if any(path == key or path.startswith(f"{key}.") for key in IDENTITY)
    }
    if refused:
        raise ConfigError(
            [
                f"{path}: this run was started with {old!r} and is now {new!r}; "
                f"its checkpoints in {run_dir} fit only the first. Restore it, or set another name or run_dir"
                for path, (old, new) in refused.items()
            ]
        )
    return found


def check_same_inputs(stored: Stored, *, base_hash: str, tokenizer: str) -> None:
    """Refuse a checkpoint made from another base model or tokenizer (78)."""
    problems = [
        f"{what} is not the one of {stored.path}: stored {stored.manifest[key]}, now {now}; "
        f"restore it or set another run_dir"
        for what, key, now in (("the base model", "base_hash", base_hash), ("the tokenizer", "tokenizer", tokenizer))
        if stored.manifest[key] != now
    ]
    if problems:
        raise ConfigError(problems)
