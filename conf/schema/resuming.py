"""What a change of each setting means for a run that continues: told, allowed by ``resume.allow``, or refused.

A run that continues is one run only if every step is computed as if it had never stopped. So a setting that changes
what a step computes must not change by an oversight, such as another default or a forgotten word on a command line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Literal, NamedTuple

from conf.schema.data import SourceConfig

Kind = Literal["free", "content", "course", "mathematics", "never"]
"""free: how a run works, not what it computes; or nothing that a step reads.
content: names or makes what is compared by its content: samples with data.allow_change, tokenizers always.
course: when the run ends, and which steps the guard refuses or undoes. mathematics: what a step computes; refused
unless ``resume.allow`` names it. never: the stored state fits no other value."""


class Change(NamedTuple):
    kind: Kind
    meaning: str = ""
    """What follows from another value; completes "it changed, so ..."."""


def _each(kind: Kind, meaning: str, *keys: str) -> dict[str, Change]:
    return dict.fromkeys(keys, Change(kind, meaning))


SOURCE = "data.sources.NAME"
LATER = "the steps to come"
CHANGES: Mapping[str, Change] = {
    **_each(
        "free", "",
        "name", "run_dir", "resume", "checkpoint", "evaluation", "tracker", "cluster", "watchdog",
    ),
    "guard": Change("course", f"{LATER} are judged otherwise"),
    **_each("never", "the base and the order of samples follow from it", "seed"),
    # model
    **_each("never", "it is another base", "model.path", "model.config", "model.init", "model.revision"),
    **_each("never", "it is another tokenizer", "model.vocab_size", "model.new_tokens"),
    **_each("content", "the tokenizer is compared by its content", "model.tokenizer"),
    "model.dtype": Change("mathematics", f"{LATER} are rounded otherwise"),
    "model.recompute": Change("free"),
    "model.trust_remote_code": Change("mathematics", f"{LATER} are computed by other code"),
    # data
    **_each(
        "content", "the samples are compared by their content",
        "data.prepared", f"{SOURCE}.path", f"{SOURCE}.encoding", "data.on_bad_row",
        f"{SOURCE}.format", f"{SOURCE}.fields", f"{SOURCE}.template", f"{SOURCE}.style", f"{SOURCE}.select",
        f"{SOURCE}.rows", f"{SOURCE}.validation_fraction", f"{SOURCE}.validation",
        "data.over_length", "data.clean", "data.near_duplicates", "data.decontaminate", "data.chat_template",
        "data.template_date", "data.turns", "data.fold_system", "data.turn_ends", "data.style_seed",
    ),
    **_each(
        "mathematics", f"{LATER} draw other shares of the sources",
        SOURCE, f"{SOURCE}.weight", f"{SOURCE}.rate", f"{SOURCE}.max_epochs", f"{SOURCE}.sources", "data.unit",
    ),
    **_each(
        "mathematics", f"{LATER} read the samples in other rows",
        "data.seq_len", "data.pack", "data.window",
    ),
    "data.share_prefix": Change("free"),
    "data.stop": Change("course", "the run ends elsewhere, and a rate that decays follows its new length"),
    **_each("free", "", "data.cache", "data.num_proc", "data.bad_row_budget", "data.allow_change"),
    # tuning: a method's settings are the shape of its weights, or what they mean
    "tuning": Change("never", "the stored weights are those of another method or shape"),
    "tuning.dropout": Change("mathematics", f"{LATER} drop another share"),
    # steps
    "objective": Change("mathematics", f"{LATER} minimise something else"),
    "optim": Change("mathematics", f"{LATER} are other steps, from moments that were gathered with the old value"),
    "optim.lr": Change("mathematics", f"{LATER} have another learning rate"),
    "optim.weight_decay": Change("mathematics", f"weights decay otherwise in {LATER}"),
    "optim.clip": Change("mathematics", f"gradients are cut elsewhere in {LATER}"),
    **_each(
        "mathematics", f"the learning rate of {LATER} jumps to that of the new schedule",
        "schedule.kind", "schedule.warmup_steps", "schedule.warmup_fraction", "schedule.min_ratio",
        "schedule.decay_fraction",
    ),
    "schedule.max_steps": Change("course", "the run ends elsewhere, and a rate that decays follows its new length"),
    "batch.global_size": Change("mathematics", f"{LATER} have batches of another size"),
    "batch.micro_size": Change("free"),
    # how it is computed
    **_each(
        "free", "", "attention", "zero.stage", "zero.offload", "zero.bucket_elements", "zero.overlap_comm",
        "zero.persistence_threshold", "zero.prefetch_elements", "zero.max_live_parameters",
        "compute.targets_only_head", "compute.kernels", "compute.deterministic", "compute.threads",
        "compute.sequence_parallel",
    ),
    "compute.reproducible": Change("mathematics", f"gradients of {LATER} are added up in another order"),
    "zero.reduce_dtype": Change("mathematics", f"gradients of {LATER} are rounded otherwise"),
    "zero.deepspeed": Change("mathematics", f"weights or gradients of {LATER} travel in fewer bits, or in more"),
    "zero.deepspeed.zero_hpz_partition_size": Change("free"),
}  # fmt: skip
"""Setting, or section that is all of its settings -> what a change is. The longest entry decides."""

_OF_SOURCE = {each.name for each in fields(SourceConfig)}
WHOLE = (
    "resume",
    "checkpoint",
    "evaluation",
    "tracker",
    "cluster",
    "watchdog",
    "guard",
    "tuning",
    "objective",
    "optim",
    "attention",
)
"""Sections of one kind, in which a new setting needs no entry; everywhere else each has its own."""


def pattern(path: str) -> str:
    """``data.sources.NAME.weight`` for the weight of any source, at any depth of the tree; other paths unchanged."""
    parts = path.split(".")
    if parts[:2] != ["data", "sources"] or len(parts) < 3:
        return path
    rest = parts[2:]
    while True:
        known = next((at for at in range(1, len(rest)) if rest[at] in _OF_SOURCE), len(rest))  # a name may hold dots
        if rest[known:][:1] != ["sources"] or len(rest) == known + 1:
            return ".".join([SOURCE, *rest[known:]])
        rest = rest[known + 1 :]


def change_of(path: str) -> Change:
    """What another value at the dotted ``path`` of a config means. A setting that nobody has judged is mathematics."""
    parts = pattern(path).split(".")
    for end in range(len(parts), 0, -1):
        if found := CHANGES.get(".".join(parts[:end])):
            return found
    return Change("mathematics", f"{LATER} may be computed otherwise")


def named(path: str, allow: Iterable[str]) -> bool:
    """Whether ``allow`` names the setting at ``path`` or a section that it lies in."""
    return any(path == each or path.startswith(f"{each}.") for each in allow)
