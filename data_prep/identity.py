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
from data_prep import selection, staging, template_set
from data_prep.clean import switches
from data_prep.durable import file_digest
from data_prep.manifest import VERSION
from data_prep.templates import resolve

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
        raise ConfigError("model.tokenizer: not set, and there is no model.path to take it from; name one, or 'train'")
    return cfg.model.path, cfg.model.revision


def identity(cfg: RunConfig) -> dict[str, Any]:
    """Everything that changes the corpus and nothing else (no weights, budgets or process counts). JSON-able."""
    reference, revision = tokenizer_reference(cfg)
    tokenizer: dict[str, Any] = {"reference": reference, "revision": revision}
    if reference == "train":
        tokenizer["vocab_size"] = cfg.model.vocab_size
    sources = {
        name: _leaf(f"data.sources.{name}", leaf, cfg.data.style_seed)
        for name, leaf in sorted(leaves(cfg.data.sources).items())
    }
    return {
        "version": VERSION,
        "model": {"tokenizer": tokenizer},
        "data": {**_row_settings(cfg.data), "sources": sources},
    }


def source_identity(cfg: RunConfig, name: str, **found: Any) -> str:
    """Digest of all that the samples of source ``name`` depend on, whatever other sources there are.

    ``found``: what is known only once preparation has begun: hashes of the files, the tokenizer's fingerprint.
    """
    leaf = _leaf(f"data.sources.{name}", leaves(cfg.data.sources)[name], cfg.data.style_seed)
    return digest_of({"version": VERSION, "name": name, "leaf": leaf, "data": _row_settings(cfg.data), **found})


def _row_settings(data: DataConfig) -> dict[str, Any]:
    """Settings that every source shares. Options appear only where they are used: others leave a corpus its name."""
    found: dict[str, Any] = {
        "seq_len": data.seq_len,
        "over_length": data.over_length,
        "clean": dict(sorted(switches(data.clean).items())),
    }
    if data.near_duplicates is not None:
        found["near_duplicates"] = data.near_duplicates
    if data.decontaminate is not None:
        found["decontaminate"] = asdict(data.decontaminate)
    return found


def _leaf(key: str, leaf: SourceConfig, seed: int) -> dict[str, Any]:
    content: dict[str, Any] = {
        "format": leaf.format,
        "path": leaf.path,
        "template": resolve(leaf.template, str(leaf.format)),
        "validation_fraction": leaf.validation_fraction,
        "rows": leaf.rows,
    }
    # Absent where they are not used, so that a corpus without them keeps its name.
    if leaf.fields:
        content["fields"] = dict(leaf.fields)
    if leaf.style is not None:
        name = leaf.style.templates
        digest = name and file_digest(template_set.locate(name, f"{key}.style.templates"))
        content["style"] = asdict(leaf.style) | {"seed": seed, "templates_xxh3": digest}
    if leaf.select is not None:
        name = leaf.select.exclude
        digest = name and file_digest(selection.locate(name, f"{key}.select.exclude"))
        content["select"] = asdict(leaf.select) | {"exclude_xxh3": digest}
    return content


def digest_of(content: Mapping[str, Any]) -> str:
    """sha256 of a JSON-able mapping, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def corpus_digest(cfg: RunConfig) -> str:
    """sha256 of ``identity(cfg)``; the MANIFEST's ``config_sha256``."""
    return digest_of(identity(cfg))


def corpus_path(cfg: RunConfig) -> Path:
    """``data.prepared``, its copy on this node if it is a URL, or ``corpora/<digest>``."""
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
    words += [f"model.path={_quoted(reference)}", f"model.revision={_quoted(revision)}"] if revision else []
    words += [f"data.style_seed={cfg.data.style_seed}"] if cfg.data.style_seed else []
    words += [f"data.seq_len={cfg.data.seq_len}", f"data.over_length={cfg.data.over_length}"]
    words += [f"+data.clean.{name}={str(on).lower()}" for name, on in cfg.data.clean.items()]
    words += [f"data.near_duplicates={cfg.data.near_duplicates}"] if cfg.data.near_duplicates is not None else []
    if cfg.data.decontaminate is not None:
        paths = ", ".join(json.dumps(path) for path in cfg.data.decontaminate.paths)
        words += [f"data.decontaminate={{paths: [{paths}], ngram: {cfg.data.decontaminate.ngram}}}"]
    words += [f"data.prepared={_quoted(str(corpus_path(cfg)))}"]
    return f"python -m data_prep {shlex.join(words)}"


def _quoted(text: str) -> str:
    return text if text.replace("/", "").replace("-", "").replace("_", "").isalnum() else json.dumps(text)


def _flow(node: SourceConfig) -> str:
    """A node of the source tree as a Hydra dict."""
    if node.sources is not None:
        inner = ", ".join(f"{name}: {_flow(child)}" for name, child in node.sources.items())
        return f"{{sources: {{{inner}}}}}"
    parts = [f"format: {node.format}", f"path: {json.dumps(node.path)}", f"template: {node.template}"]
    parts += [f"validation_fraction: {node.validation_fraction}"]
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
