"""The README.md of an exported model: its name, and the origin of its base, data, config and weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from conf.foreign.json_file import object_in
from conf.safety.texts import code_for_markdown, for_markdown

LOADING = {
    "peft": "load the base first (PeftModel.from_pretrained)",
    "corral": "load it with Corral (`python -m train.chat`), PEFT cannot",
}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
LIBRARIES = ("torch", "deepspeed", "transformers", "peft")


@dataclass(frozen=True)
class Provenance:
    """The content of corral.json."""

    name: str
    template: str
    """The template of most training samples: alpaca, plain or chat (the tokenizer's)."""
    templates: Mapping[str, str]
    """Template by source."""
    base: str
    base_hash: str
    """train.model.weights.base_hash of the base."""
    tuning: str
    merged: bool
    dtype: str
    step: int
    corpus: str
    corpus_sha256: str
    """sha256 of the corpus's MANIFEST.json, which lists the hash of every source file and shard."""
    config_sha256: str
    """sha256 of run.yaml."""
    vocabulary: str
    """How the embedding differs from the base's; empty if it does not."""
    code: Sequence[str]
    """Code of the base's own that the model needs (model.trust_remote_code)."""
    metrics: Mapping[str, float]
    versions: Mapping[str, str]


def library_versions() -> dict[str, str]:
    """Versions of the libraries that computed the weights."""
    return {name: version(name) for name in LIBRARIES}


def last_metrics(path: Path, step: int) -> dict[str, float]:
    """The latest ``train/loss`` and ``eval/*`` values logged up to ``step``; empty without the file."""
    metrics: dict[str, float] = {}
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        logged = object_in(line)  # a kill cuts a line short
        at = logged.get("step", 0)
        if isinstance(at, int) and at <= step:
            told = {key: value for key, value in logged.items() if key == "train/loss" or key.startswith("eval/")}
            metrics |= {key: value for key, value in told.items() if isinstance(value, int | float)}
    return metrics


def card(made: Provenance, loader: Literal["peft", "corral"]) -> str:
    """The model card: YAML head for the hub, then a page for people.

    ``loader``: what loads the folder if it holds adapters.
    """
    on_hub = HUB_ID.fullmatch(made.base) and not Path(made.base).exists()
    head = ["---", *([f"base_model: {made.base}"] if on_hub else []), "library_name: transformers"]
    head += ["pipeline_tag: text-generation", "tags: [corral, instruction-tuning]", "---"]
    weights = "the whole model" if made.merged else f"what {made.tuning} trained, without the base; {LOADING[loader]}"
    rows = {
        "base": f"{code_for_markdown(made.base)}, weights {_short(made.base_hash)}",
        "tuning": f"{made.tuning}, {made.step} optimizer steps, compute in {made.dtype}",
        "this folder": weights,
        **({"vocabulary": made.vocabulary} if made.vocabulary else {}),
        **(
            {"code": f"{for_markdown(', '.join(made.code))}, of the base; it ran in training, and loading runs it"}
            if made.code
            else {}
        ),
        "data": f"{code_for_markdown(made.corpus)}, MANIFEST {_short(made.corpus_sha256)}",
        "prompt template": for_markdown(
            ", ".join(f"{source}: {template}" for source, template in made.templates.items())
        ),
        "config": f"run.yaml {_short(made.config_sha256)}",
        "libraries": ", ".join(f"{name} {number}" for name, number in made.versions.items()),
    }
    page = [
        f"# {for_markdown(made.name)}",
        "",
        "Instruction-tuned with Corral. The licences of the base model and of the data apply.",
    ]
    page += ["", "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]
    if made.metrics:
        page += ["", "| metric | value |", "|---|---|"]
        page += [f"| {for_markdown(name)} | {value:.4f} |" for name, value in sorted(made.metrics.items())]
    page += ["", "Talk to it with its training template: `python -m train.chat model=THIS_FOLDER`.", ""]
    return "\n".join([*head, "", *page])


def _short(digest: str) -> str:
    return f"sha256 `{digest[:16]}`"
