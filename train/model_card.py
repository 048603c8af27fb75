"""The README.md of an exported model: what it is and where every part of it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

LIBRARIES = ("torch", "deepspeed", "transformers", "peft")


@dataclass(frozen=True)
class Provenance:
    """The content of corral.json."""

    name: str
    template: str
    """How a prompt is written: alpaca, plain or chat (the tokenizer's); that of most training rows."""
    templates: Mapping[str, str]
    """Template by source."""
    base: str
    base_hash: str
    """train.base.base_hash of the starting weights."""
    tuning: str
    merged: bool
    dtype: str
    step: int
    corpus: str
    corpus_sha256: str
    """sha256 of the corpus's MANIFEST.json, which lists the hash of every source file and shard."""
    config_sha256: str
    """sha256 of run.yaml."""
    metrics: Mapping[str, float]
    versions: Mapping[str, str]


def library_versions() -> dict[str, str]:
    """Versions of the libraries that computed the weights."""
    return {name: version(name) for name in LIBRARIES}


def last_metrics(path: Path, step: int) -> dict[str, float]:
    """The latest ``train/loss`` and ``eval/*`` values logged up to ``step``; empty without the file."""
    found: dict[str, float] = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            logged = json.loads(line)
        except ValueError:  # a line cut short by a kill
            continue
        if logged.get("step", 0) <= step:
            found |= {key: value for key, value in logged.items() if key == "train/loss" or key.startswith("eval/")}
    return found


def card(made: Provenance) -> str:
    """The model card: YAML head for the hub, then a page for people."""
    on_hub = made.base.count("/") == 1 and not Path(made.base).exists() and not made.base.startswith((".", "/", "~"))
    head = ["---", *([f"base_model: {made.base}"] if on_hub else []), "library_name: transformers"]
    head += ["pipeline_tag: text-generation", "tags: [corral, instruction-tuning]", "---"]
    weights = "the whole model" if made.merged else f"what {made.tuning} trained, without the base; {_loading(made)}"
    rows = {
        "base": f"`{made.base}`, weights {_short(made.base_hash)}",
        "tuning": f"{made.tuning}, {made.step} optimizer steps, compute in {made.dtype}",
        "this folder": weights,
        "data": f"`{made.corpus}`, MANIFEST {_short(made.corpus_sha256)}",
        "prompt template": ", ".join(f"{source}: {template}" for source, template in made.templates.items()),
        "config": f"run.yaml {_short(made.config_sha256)}",
        "libraries": ", ".join(f"{name} {number}" for name, number in made.versions.items()),
    }
    page = [
        f"# {made.name}",
        "",
        "Instruction-tuned with Corral. The licences of the base model and of the data apply.",
    ]
    page += ["", "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]
    if made.metrics:
        page += ["", "| metric | value |", "|---|---|"]
        page += [f"| {name} | {value:.4f} |" for name, value in sorted(made.metrics.items())]
    page += ["", "Talk to it as it was taught: `python -m train.chat model=THIS_FOLDER`.", ""]
    return "\n".join([*head, "", *page])


def _loading(made: Provenance) -> str:
    if made.tuning == "bottleneck":
        return "load it with Corral (`python -m train.chat`), PEFT has no such method"
    return "load the base first (PeftModel.from_pretrained)"


def _short(digest: str) -> str:
    return f"sha256 `{digest[:16]}`"
