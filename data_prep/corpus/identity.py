"""Which corpus a config means: a digest of exactly what changes it, the folder it lives in, and how to prepare it."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from conf.errors import ConfigError
from conf.schema import DataConfig, RunConfig, SourceConfig
from data_prep.corpus import staging
from data_prep.corpus.manifest import VERSION
from data_prep.rows.stage import merged
from data_prep.stages import refusals, stages_of
from data_prep.templates import choose

FOLDER = Path("corpora")


def leaves(sources: Mapping[str, SourceConfig], prefix: str = "") -> dict[str, SourceConfig]:
    """Leaves of the source tree by dotted name ("cot.zsopt.gsm8k"), in the order of the config."""
    found: dict[str, SourceConfig] = {}
    for name, node in sources.items():
        if node.sources is None:
            found[prefix + name] = node
        else:
            found |= leaves(node.sources, f"{prefix}{name}.")
    return found


def tokenizer_reference(cfg: RunConfig) -> tuple[str, str | None]:
    """(folder, hub id or "train"; hub revision). Raises ConfigError if the config names no tokenizer."""
    if cfg.model.tokenizer is not None:
        same = cfg.model.tokenizer == cfg.model.path
        return cfg.model.tokenizer, cfg.model.revision if same else None
    if cfg.model.path is None:
        raise ConfigError(
            "model.tokenizer: not set, and model.path is not set either; name a tokenizer, or set it to train"
        )
    return cfg.model.path, cfg.model.revision


def check_sources(cfg: RunConfig) -> None:
    """Raise one ConfigError for all settings of sources that their formats cannot have.

    conf cannot judge them: only a format's own module knows its turns.
    """
    found = sorted(leaves(cfg.data.sources).items())
    if problems := [line for name, leaf in found for line in refusals(leaf, f"data.sources.{name}")]:
        raise ConfigError(problems)


def identity(cfg: RunConfig) -> dict[str, Any]:
    """Everything that changes the corpus and nothing else (no weights, budgets or process counts). JSON-able.

    Merged from the parts of the stages of every source. Raises ConfigError (no tokenizer; sources whose format cannot
    have their settings), MissingInput and BadData (a template set, a list of tasks).
    """
    reference, revision = tokenizer_reference(cfg)
    tokenizer: dict[str, Any] = {"reference": reference, "revision": revision, **choose.identity(cfg.data)}
    if reference == "train":
        tokenizer["vocab_size"] = cfg.model.vocab_size
    if cfg.model.new_tokens:
        tokenizer["new_tokens"] = list(cfg.model.new_tokens)
    parts = _parts(cfg)
    # What all sources share is the same in the parts of any of them.
    shared = next(iter(parts.values()))["data"]
    sources = {name: part["source"] for name, part in parts.items()}
    return {"version": VERSION, "model": {"tokenizer": tokenizer}, "data": {**shared, "sources": sources}}


def source_identity(cfg: RunConfig, name: str, **found: Any) -> str:
    """Digest of all that the samples of source ``name`` depend on, whatever other sources there are.

    ``found``: what is known only once preparation has begun: hashes of the files, the tokenizer's fingerprint.
    """
    part = _part(cfg, name, leaves(cfg.data.sources)[name])
    return digest_of({"version": VERSION, "name": name, "leaf": part["source"], "data": part["data"], **found})


def _parts(cfg: RunConfig) -> dict[str, dict[str, dict[str, Any]]]:
    """The part of every source, by name."""
    check_sources(cfg)
    return {name: _part(cfg, name, leaf) for name, leaf in sorted(leaves(cfg.data.sources).items())}


def _part(cfg: RunConfig, name: str, leaf: SourceConfig) -> dict[str, dict[str, Any]]:
    """``source``: what the source sets; ``data``: what all sources share."""
    stages = stages_of(leaf, cfg.data, f"data.sources.{name}").identity()
    encoding = {"encoding": leaf.encoding} if leaf.encoding is not None else {}
    return merged([{"source": {"path": leaf.path, "rows": leaf.rows, **encoding}}, stages])


def digest_of(content: Mapping[str, Any]) -> str:
    """sha256 of a JSON-able mapping, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def corpus_digest(cfg: RunConfig) -> str:
    """sha256 of ``identity(cfg)``; the MANIFEST's ``config_sha256``."""
    return digest_of(identity(cfg))


def corpus_path(cfg: RunConfig) -> Path:
    """``data.prepared``, its copy on this node if it is a URL, or ``corpora/<digest>``.

    Every command asks for it before it works, so sources are checked here. Raises what ``check_sources`` does, and,
    without ``data.prepared``, what ``identity`` does.
    """
    check_sources(cfg)
    if cfg.data.prepared is not None and staging.is_remote(cfg.data.prepared):
        return staging.local_folder(cfg.data.prepared, cfg.data.cache)
    if cfg.data.prepared is not None:
        return Path(cfg.data.prepared).expanduser()
    return FOLDER / corpus_digest(cfg)[:16]


def differences(found: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = "") -> list[str]:
    """One line per field in which two identities differ: its path, the corpus's value, the config's value."""
    lines: list[str] = []
    for key in sorted({*found, *asked}):
        here, there = found.get(key), asked.get(key)
        if isinstance(here, Mapping) and isinstance(there, Mapping):
            lines += differences(here, there, f"{prefix}{key}.")
        elif here != there:
            lines.append(f"{prefix}{key}: the corpus has {here!r}, the config asks for {there!r}")
    return lines


def prepare_command(cfg: RunConfig, argv: Sequence[str] | None = None) -> str:
    """The command line that prepares the corpus of ``cfg``.

    ``argv``: the overrides ``cfg`` was composed of; without them every value that matters is spelt out.
    """
    if argv is not None:
        return f"python -m data_prep {shlex.join(argv)}".rstrip()
    reference, revision = tokenizer_reference(cfg)
    sources = ", ".join(f"{name}: {_flow(node)}" for name, node in cfg.data.sources.items())
    words = ["~data.sources", f"+data.sources={{{sources}}}", f"model.tokenizer={_quoted(reference)}"]
    words += [f"model.vocab_size={cfg.model.vocab_size}"] if reference == "train" else []
    words += [f"model.new_tokens={json.dumps(cfg.model.new_tokens)}"] if cfg.model.new_tokens else []
    words += [f"model.path={_quoted(reference)}", f"model.revision={_quoted(revision)}"] if revision else []
    words += _template_words(cfg.data)
    words += [f"data.style_seed={cfg.data.style_seed}"] if cfg.data.style_seed else []
    words += [f"data.seq_len={cfg.data.seq_len}", f"data.over_length={cfg.data.over_length}"]
    words += [f"+data.clean.{name}={str(on).lower()}" for name, on in cfg.data.clean.items()]
    words += [f"data.near_duplicates={cfg.data.near_duplicates}"] if cfg.data.near_duplicates is not None else []
    if cfg.data.decontaminate is not None:
        paths = ", ".join(json.dumps(path) for path in cfg.data.decontaminate.paths)
        words += [f"data.decontaminate={{paths: [{paths}], ngram: {cfg.data.decontaminate.ngram}}}"]
    words += [f"data.prepared={_quoted(str(corpus_path(cfg)))}"]
    return f"python -m data_prep {shlex.join(words)}"


def _template_words(data: DataConfig) -> list[str]:
    """Settings of chat templates that are not the defaults."""
    words = [f"data.chat_template={_quoted(data.chat_template)}"] if data.chat_template != "own" else []
    words += [f"data.template_date={data.template_date}"] if data.template_date else []
    words += [f"data.turns={data.turns}"] if data.turns != "auto" else []
    words += ["data.fold_system=false"] if not data.fold_system else []
    return words + (["data.turn_ends=false"] if not data.turn_ends else [])


def _quoted(text: str) -> str:
    return text if text.replace("/", "").replace("-", "").replace("_", "").isalnum() else json.dumps(text)


def _flow(node: SourceConfig) -> str:
    """A node of the source tree as a Hydra dict."""
    if node.sources is not None:
        inner = ", ".join(f"{name}: {_flow(child)}" for name, child in node.sources.items())
        return f"{{sources: {{{inner}}}}}"
    parts = [f"format: {node.format}", f"path: {json.dumps(node.path)}", f"template: {node.template}"]
    parts += [f"validation_fraction: {node.validation_fraction}"]
    parts += [f"validation: {json.dumps(node.validation)}"] if node.validation else []
    parts += [f"encoding: {json.dumps(node.encoding)}"] if node.encoding else []
    parts += [f"rows: {node.rows}"] if node.rows else []
    fields = ", ".join(f"{ours}: {json.dumps(theirs)}" for ours, theirs in node.fields.items())
    parts += [f"fields: {{{fields}}}"] if fields else []
    parts += [f"style: {_flow_values(asdict(node.style))}"] if node.style else []
    parts += [f"select: {_flow_values(asdict(node.select))}"] if node.select else []
    return "{" + ", ".join(parts) + "}"


def _flow_values(content: Mapping[str, Any]) -> str:
    """Settings as a Hydra dict, without those that are not set."""
    shown = [
        f"{key}: {_flow_values(value) if isinstance(value, Mapping) else json.dumps(value)}"
        for key, value in content.items()
        if value not in (None, {})
    ]
    return "{" + ", ".join(shown) + "}"
