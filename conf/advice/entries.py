"""A group was given a name that it has no entry of: what was probably meant."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from conf.advice.near import nearest

PROMPTS = "learnt embeddings before every sample are tuning=prompt, learnt keys and values tuning=prefix"
ENTRIES: Mapping[tuple[str, str], str] = {
    ("tuning", "qlora"): "QLoRA is tuning=lora tuning.quantize=nf4",
    ("tuning", "dora"): "DoRA is tuning=lora tuning.variant=dora",
    ("tuning", "rslora"): "rsLoRA is tuning=lora tuning.scaling=sqrt_rank",
    ("tuning", "freeze"): "freezing is tuning=full with patterns, such as tuning.freeze=[embed_tokens]",
    ("tuning", "none"): "every weight is trained by tuning=full",
    ("tuning", "adapter"): "adapters of two layers are tuning=bottleneck, low-rank ones tuning=lora",
    ("tuning", "adapters"): "adapters of two layers are tuning=bottleneck, low-rank ones tuning=lora",
    ("tuning", "p_tuning"): PROMPTS,
    ("tuning", "ptuning"): PROMPTS,
    ("tuning", "prompt_tuning"): "prompt tuning is tuning=prompt",
    ("tuning", "prefix_tuning"): "prefix tuning is tuning=prefix",
    ("attention", "flash_attention_2"): "it is attention=flash2; attention=auto takes the best that works here",
    ("attention", "flash_attention_3"): "it is attention=flash3; attention=auto takes the best that works here",
    ("attention", "flash"): "it is attention=flash2; attention=auto takes the best that works here",
    ("attention", "flash_attn"): "it is attention=flash2; attention=auto takes the best that works here",
    ("attention", "eager"): "plain attention is attention=sdpa with data.pack=none; attention=auto takes the best",
    ("attention", "xformers"): "attention=auto takes the best that works here",
    ("optim", "adam"): "AdamW is optim=adamw; weight decay is optim.weight_decay",
    ("optim", "adamw_torch"): "it is optim=adamw",
    ("optim", "adamw_torch_fused"): "it is optim=adamw, fused on a GPU by itself",
    ("optim", "adamw_8bit"): "8-bit moments are not here: optim=adamw with zero.offload=optimizer for memory",
    ("optim", "paged_adamw_8bit"): "8-bit moments are not here: optim=adamw with zero.offload=optimizer for memory",
    ("optim", "adafactor"): "Adafactor is not here: optim=adamw, with zero=2 or zero.offload=optimizer for memory",
    ("tracker", "none"): "without W&B it is tracker=jsonl",
    ("tracker", "tensorboard"): "TensorBoard is not here: tracker=jsonl writes metrics.jsonl, tracker=wandb sends them",
    ("schedule", "cosine_with_restarts"): "restarts are not here: schedule=cosine",
    ("schedule", "constant_with_warmup"): "it is schedule=constant with schedule.warmup_fraction=0.03",
    ("zero", "stage3"): "it is zero=3",
    ("zero", "3_offload"): "it is zero=3 zero.offload=all",
    ("zero", "offload"): "offloading is zero.offload=optimizer or, with zero=3, zero.offload=all",
}  # fmt: skip
"""(group, entry as other projects name it) -> the way to say it here."""

DATA_ENDINGS = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".gz", ".zst")
FORMATS = "alpaca, prompt_completion, sharegpt, messages, ..."


def wrong_entry(group: str, name: str, known: Mapping[str, Sequence[str]]) -> str:
    """One sentence about ``group=name``, which is no entry; ``known`` maps groups to their entries."""
    meant = _meant(group, name, known)
    if meant:
        return f"{group}={name}: no such entry; {meant}"
    guess, every = nearest(name, known[group]), ", ".join(known[group])
    return f"{group}={name}: no such entry; did you mean {group}={guess}? ({group} has: {every})"


def _meant(group: str, name: str, known: Mapping[str, Sequence[str]]) -> str:
    """What was meant, for names that are no typo of an entry; empty otherwise."""
    if (group, name.lower()) in ENTRIES:
        return ENTRIES[group, name.lower()]
    if name.endswith((".yaml", ".yml")):
        return _yaml_file(group, Path(name))
    looks_like_path = "/" in name or name.startswith(("~", ".")) or Path(name).exists()
    if group == "model" and looks_like_path:
        return f"a folder or hub id is {shlex.quote(_set('model.path', name))} (model has: {', '.join(known['model'])})"
    if group == "data" and (looks_like_path or name.endswith(DATA_ENDINGS)):
        return _data_file(name, known["data"])
    if looks_like_path:
        return (
            f"{group} takes the name of an entry, not a path; your own entries are read with --config-dir DIR, where "
            f"DIR/{group}/mine.yaml is {group}=mine"
        )
    return ""


def _yaml_file(group: str, path: Path) -> str:
    if path.parent.name == group:
        folder, where = str(path.parent.parent), "which reads that file"
    else:
        folder, where = "DIR", f"which reads DIR/{group}/{path.stem}.yaml: put the file there"
    return (
        f"an entry of your own is named, not its file: --config-dir {shlex.quote(folder)} {group}={path.stem}, {where}"
    )


def _data_file(name: str, entries: Sequence[str]) -> str:
    if "own" in entries:
        return f"a file or folder of yours is data=own {shlex.quote(f'path={name}')}"
    source = f"data.sources={{mine: {{format: alpaca, path: {json.dumps(name)}}}}}"
    return f"a file or folder of yours is a source: {shlex.quote(source)} (format: {FORMATS})"


def _set(key: str, value: str) -> str:
    """KEY=VALUE, quoted for the config where the value needs it."""
    plain = value.replace("/", "").replace("-", "").replace("_", "").replace(".", "").isalnum()
    return f"{key}={value}" if plain else f"{key}={json.dumps(value)}"


IN_ENTRY = re.compile(r"[Ii]n '([^']+)'")
NOT_FOUND = re.compile(r"[Cc]ould not (?:find|load) '([^']+)'")
NOT_LISTED = re.compile(r"Could not override '([^']+)'")
TWICE = re.compile(r"Multiple values for (\S+?)\. To override a value use 'override \S+ ([^']+)'")
SELF_TWICE = re.compile(r"Duplicate _self_ defined in (\S+)")
CUT_OFF = re.compile(r"at input '(\$\{[^']*)'")
EXAMPLE = "such as 'defaults: [{override /data: alpaca}]'"


def not_composed(problem: str, known: Mapping[str, Sequence[str]]) -> str:
    """One sentence about entries whose defaults lists do not fit together; ``problem`` is what Hydra says of them."""
    entry = IN_ENTRY.search(problem)
    where = f"{entry[1]}.yaml" if entry and entry[1] != "config" else "a yaml group"
    if found := NOT_FOUND.search(problem):
        group, _, name = found[1].rpartition("/")
        if group in known:
            return f"a defaults list names {found[1]}: {wrong_entry(group, name, known)}"
        return f"a defaults list names {found[1]}, which is no entry; entries are GROUP/NAME of {', '.join(known)}"
    if found := NOT_LISTED.search(problem):
        return (
            f"{where}: its defaults override {found[1]}, which is in no defaults list; write 'override /GROUP: NAME' "
            f"with a group of conf/config.yaml, or '/{found[1]}: NAME' to add one"
        )
    if found := TWICE.search(problem):
        return (
            f"{found[1]}: a defaults list names {found[1]}/{found[2]} beside the entry that is chosen already; write "
            f"'override /{found[1]}: {found[2]}'"
        )
    if found := SELF_TWICE.search(problem):
        return f"{found[1]}.yaml: its defaults hold _self_ twice; keep one"
    if "defaults must be a list" in problem:
        return f"{where}: its defaults are no list; write one, {EXAMPLE}"
    if found := CUT_OFF.search(problem):
        return f"{where}: {found[1]} is no complete reference; it is written ${{KEY}} or ${{oc.env:VARIABLE,DEFAULT}}"
    if "Invalid loaded object type" in problem:
        return f"{where}: it is one value, and an entry is a mapping of settings; write KEY: VALUE"
    if "merge" in problem.lower():
        return f"{where}: a setting in it is a list or a value, and another file makes it a mapping; give it one kind"
    return (
        f"{where}: its defaults list cannot be read; write entries as GROUP: NAME or override /GROUP: NAME, {EXAMPLE}"
    )
