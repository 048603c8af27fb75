"""The stages of a source: all that happens to a record between its raw file and its block of samples, as a list.

To add a stage (retrieval that adds text to a prompt, a model that writes answers): one file with a frozen dataclass
that keeps the contract of rows/stage.py, and one line in ``stages_of``, where the stage belongs in the order. Nothing
else has to know of it: identity, counters, quarantine, exemplars, vocabulary and preview run the same list.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from conf.errors import ConfigError
from conf.schema import DataConfig, SourceConfig
from data_prep import sources
from data_prep.advice.recognised import AUTO, recognised
from data_prep.filters.clean import Clean, switches
from data_prep.filters.decontaminate import Decontaminate
from data_prep.filters.dedup import Deduplicate
from data_prep.rows import selection
from data_prep.rows.parse import Parse
from data_prep.rows.selection import Select
from data_prep.rows.split import Split
from data_prep.rows.stage import HasIdentity, Stage, merged
from data_prep.samples import styles
from data_prep.samples.encode_stage import Encode
from data_prep.samples.fit import Fit
from data_prep.samples.render import Render
from data_prep.sources import Read
from data_prep.templates.chat import Options


@dataclass(frozen=True)
class Workspace:
    """Where preparation keeps what the stages of a source need. No identity depends on it."""

    tokenizer: str = ""
    """Folder of the corpus's tokenizer."""
    exemplars: str = ""
    """File of the pools of a few-shot source."""
    evaluation: str | None = None
    """Folder of the index of the evaluation sets; None: nothing is compared with them (a preview)."""
    held_out: frozenset[str] = frozenset()
    """Raw files that the source's ``validation`` stands for."""


@dataclass(frozen=True)
class Stages:
    """What happens to the records of one source."""

    select: Select
    """Which rows of the raw files are the source's records; also the second stage."""
    reading: tuple[Stage, ...]
    """A record's text -> a clean conversation."""
    render: Render
    encode: Encode
    fit: Fit
    split: Split
    repeats: Deduplicate
    """Looks at all records of the source together, once their blocks are finished."""

    @property
    def writing(self) -> tuple[Stage, ...]:
        """A clean conversation -> a sample."""
        return self.render, self.encode, self.fit

    def identity(self) -> dict[str, dict[str, Any]]:
        """``source``: all that the source sets; ``data``: all that the sources share. JSON-able."""
        parts: tuple[HasIdentity, ...] = (*self.reading, *self.writing, self.split, self.repeats)
        return merged(part.identity() for part in parts)


def stages_of(leaf: SourceConfig, data: DataConfig, key: str, at: Workspace | None = None) -> Stages:
    """The stages of the source at config ``key``, in order. ``at``: needed to run them, not for their identity.

    Raises ConfigError (settings that the format cannot have), MissingInput and BadData (template set, task list).
    """
    leaf = recognised(leaf, key)
    if problems := [*refusals(leaf, key)]:
        raise ConfigError(problems)
    at = at or Workspace()
    source_format = sources.format_of(str(leaf.format))
    style = styles.read(leaf.style, data.style_seed, f"{key}.style") if leaf.style else None
    select = selection.read(leaf.select, f"{key}.select")
    render = Render(style, at.exemplars)
    template = template_of(leaf, key)
    wanted = data.decontaminate
    return Stages(
        select=select,
        reading=(
            Parse(),
            select,
            Read(source_format.name, dict(leaf.fields), render.places, template),
            Clean(switches(data.clean)),
            *([Decontaminate(tuple(wanted.paths), wanted.ngram, at.evaluation)] if wanted else []),
        ),
        render=render,
        encode=Encode(
            template,
            at.tokenizer,
            data.seq_len,
            style.prompt_tokens if style else 0,
            Options(data.turns, data.fold_system, data.turn_ends),
        ),
        fit=Fit(data.seq_len, data.over_length),
        split=Split(leaf.validation_fraction, leaf.validation, at.held_out),
        repeats=Deduplicate(exact=switches(data.clean)["duplicate"], near=data.near_duplicates),
    )


def template_of(leaf: SourceConfig, key: str) -> str:
    """The template of the source at config ``key``: alpaca, plain or chat."""
    leaf = recognised(leaf, key)
    return sources.format_of(str(leaf.format)).template if leaf.template == "auto" else leaf.template


def refusals(leaf: SourceConfig, key: str) -> Iterator[str]:
    """What the source at config ``key`` asks for and cannot have, most often because of its format."""
    if leaf.validation and leaf.style and leaf.style.shots != 0 and not (leaf.select and leaf.select.task):
        yield (
            f"{key}.validation: without select.task a task is a file, so held-out files would have no solved rows for "
            "their prompts; name the field of the task in select.task, or use validation_fraction"
        )
    if leaf.format == AUTO or sources.format_of(str(leaf.format)).turns == "one":
        return
    if leaf.style is not None:
        yield (
            f"{key}.style: a style writes one question and one answer, {leaf.format} records have several turns; "
            "remove the style"
        )
