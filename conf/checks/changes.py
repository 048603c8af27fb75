"""Settings that differ from those that a checkpoint was made with: refused, or told with what they mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from conf.errors import ConfigError, shown
from conf.safety.secrets import redact
from conf.schema import DataConfig, RunConfig, to_dict
from conf.schema.resuming import change_of, named

Changed = Mapping[str, tuple[Any, Any]]
"""Dotted path -> (old, new) of every setting that differs."""


def differences(old: Any, new: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted path -> (old, new) of every leaf that differs between two plain configs."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for key in sorted({*old, *new}):
            found |= differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        return found
    return {} if old == new else {path: (old, new)}


def changed_settings(cfg: RunConfig, before: RunConfig, step: int) -> dict[str, tuple[Any, Any]]:
    """Settings in which ``cfg`` differs from ``before``, with which the checkpoint of ``step`` was made.

    Raises ConfigError for what the stored state does not fit, and for what changes the computation and is not named in
    ``resume.allow`` (conf/schema/resuming.py).
    """
    made = f"the checkpoint of step {step}"
    old, new = (redact(to_dict(each)) for each in (before, cfg))  # a MANIFEST has no secrets
    found = differences(old, new)
    found = {path: values for path, values in found.items() if not named(path, ["resume"])}
    never = [
        f"{path}: {made} was computed with {old!r}, and the config now says {new!r}; what is stored fits only "
        f"{old!r}. Set it back, or set another name or run_dir"
        for path, (old, new) in found.items()
        if change_of(path).kind == "never"
    ]
    asking = [
        path
        for path, (_, new) in found.items()
        # The launcher has not yet settled auto, for which a run takes what its earlier attempt took.
        if change_of(path).kind == "mathematics"
        and (path, new) != ("batch.global_size", "auto")
        and not _allowed_by(path, cfg)
    ]
    if never or asking:
        raise ConfigError([*never, *([_refusal(made, asking, found, cfg.resume.allow)] if asking else [])])
    return found


def in_words(changed: Changed, cfg: RunConfig) -> Iterator[str]:
    """What a user reads of ``changed``, which was not refused, and of names in ``resume.allow`` that allow nothing."""
    kinds = {path: change_of(path) for path in changed}
    for path, (kind, meaning) in kinds.items():
        if kind != "free":
            by = f", as {_allowed_by(path, cfg)} allows" if kind == "mathematics" else ""
            yield f"changed since the checkpoint: {_arrow(path, changed)}{by}: {meaning}"
    if free := ", ".join(_arrow(path, changed) for path in kinds if kinds[path].kind == "free"):
        yield f"changed since the checkpoint, and nothing that is computed: {free}"
    for key in cfg.resume.allow:
        if not any(named(path, [key]) for path in changed):
            yield f"resume.allow names {key}, which has not changed since the checkpoint"


def data_as_allowed(cfg: RunConfig) -> DataConfig:
    """``cfg.data``; with ``allow_change`` where ``resume.allow`` names a setting of it, whose samples then differ."""
    names_data = any(key.partition(".")[0] == "data" for key in cfg.resume.allow)
    return replace(cfg.data, allow_change=cfg.data.allow_change or names_data)


def _allowed_by(path: str, cfg: RunConfig) -> str:
    """The setting that allows another value at ``path``; empty text if none does."""
    if named(path, cfg.resume.allow):
        return "resume.allow"
    return "data.allow_change" if cfg.data.allow_change and named(path, ["data"]) else ""


def _arrow(path: str, changed: Changed) -> str:
    old, new = changed[path]
    return f"{path}: {shown(old)} -> {shown(new)}"


def _refusal(made: str, paths: Sequence[str], changed: Changed, allow: Sequence[str]) -> str:
    lines = "; ".join(f"{_arrow(path, changed)} ({change_of(path).meaning})" for path in paths)
    them = "it" if len(paths) == 1 else "them"
    override = f"'resume.allow=[{','.join([*allow, *paths])}]'"
    return (
        f"resume.allow: since {made}, settings changed that change what the run computes: {lines}; "
        f"set {them} back, or accept {them} with {override}, or set another name or run_dir"
    )
