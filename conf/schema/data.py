"""The data section: where samples come from, in which shares, how they become rows, and when they end."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.schema.fields import STRICT, Count, Fraction, Name, Positive, PositiveFloat, Processes
from conf.schema.style import SelectConfig, StyleConfig

Format = Literal["alpaca", "prompt_completion", "sharegpt", "messages", "flan_cot", "niv2", "p3", "qa", "auto"]


@dataclass(frozen=True, config=STRICT)
class RateConfig:
    """Size-proportional weight: min(rows * scale, cap) ** (1 / temperature) (SeqIO, ``mixing_rate_num_examples``).

    On an inner node it is the rate of every leaf below, and may stand beside the node's own ``weight``.
    """

    cap: Positive | None = None
    scale: PositiveFloat = 1.0
    temperature: Annotated[float, Field(ge=1.0)] = 1.0


@dataclass(frozen=True, config=STRICT)
class SourceConfig:
    """A node of the source tree: a leaf has ``format`` and ``path``, an inner node has ``sources``."""

    format: Format | None = None
    """How its rows are read: the name of a module of data_prep/sources, which holds all that is known of the format.
    auto: the one that reads the first rows, with ``fields`` and ``template``; found again by every command, and
    printed."""
    path: str | None = None
    """A file, a folder or a glob; .json, .jsonl, .csv, .tsv (each also .gz or .zst), .parquet, .arrow. Of a folder that
    has splits (one of ``save_to_disk``, a clone of a hub repository, files named train and test), the training split.
    Or a data set of the Hugging Face hub, spelt ``hf://datasets/OWNER/NAME[@REVISION][:CONFIG][/SPLIT]`` (split:
    train), which is streamed; preparation pins the revision to its commit and the corpus names it."""
    encoding: str | None = None
    """Of its text files, by Python's name: latin-1, cp1252, shift_jis, ... None: UTF-8, or what a byte order mark says.
    Parquet and Arrow files have none."""
    fields: dict[Name, str] = Field(default_factory=dict)
    """Names that the rows use instead of the format's own: ``{input: context, output: response}`` reads Dolly's rows as
    Alpaca's, ``{prompt: question, completion: answer}`` GSM8K's as prompt_completion. A name with dots that no field
    has is a way into the row: ``{input: instances.0.input, output: instances.0.output}``."""
    template: Literal["auto", "alpaca", "chat", "plain"] = "auto"
    """auto: the one that the format's module names (alpaca: alpaca; sharegpt and messages: chat; the others: plain)."""
    style: StyleConfig | None = None
    """None: each row by itself, in its format's own words."""
    select: SelectConfig | None = None
    """None: all rows of the files."""
    validation_fraction: Fraction = 0.0
    """Share of rows held out, chosen by a hash of the normalised prompt: equal prompts fall on the same side."""
    validation: str | None = None
    """Files that are held out as a whole: another split of ``path`` by its name (test, validation, ...), or a file, a
    folder or a glob, whose files are then no longer part of ``path``. A training row whose prompt stands in them goes
    to quarantine as held_out_prompt. ``validation_fraction`` is then not used."""
    rows: Positive | None = None
    """Use only the first so many rows of ``path``."""
    max_epochs: Positive | None = None
    """The source retires at the exact draw at which every row was used so often; the others share its weight."""
    weight: Annotated[float, Field(ge=0.0)] | None = None
    """Share among its siblings. None: in proportion to the rows (or to ``rate``). 0: absent."""
    rate: RateConfig | None = None
    sources: dict[Name, SourceConfig] | None = None


@dataclass(frozen=True, config=STRICT)
class StopConfig:
    """When the data ends. Exactly one field is set; ``schedule.max_steps`` may end the run earlier."""

    epochs: PositiveFloat | None = None
    """Draws = epochs * rows of all sources."""
    tokens: Positive | None = None
    examples: Positive | None = None
    first_exhausted: Literal[True] | None = None
    all_seen_once: Literal[True] | None = None


@dataclass(frozen=True, config=STRICT)
class DecontaminateConfig:
    """Rows that overlap with evaluation sets go to quarantine (data_prep/filters/decontaminate.py defines it)."""

    paths: Annotated[list[str], Field(min_length=1)]
    """Evaluation files, spelt as a source's ``path``; rows in any format."""
    ngram: Annotated[int, Field(ge=3)] = 13
    """Words in a row that two texts must share; 13 as in Brown et al. 2020, appendix C."""


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    sources: dict[Name, SourceConfig]
    stop: StopConfig
    prepared: str | None = None
    """Folder of the prepared corpus, or the URL of one (s3://, gs://, hf://, file://, ...), which is copied to
    ``cache`` by each node when a run starts. None: ``corpora/<digest of sources, tokenizer, template>``."""
    cache: str | None = None
    """Folder on the node's own disk for corpora named by URL; what is fetched is for its user alone. None:
    ``corral-<user id>`` below $TMPDIR (or /tmp)."""
    unit: Literal["examples", "tokens"] = "examples"
    """What the weights of ``sources`` share out."""
    seq_len: Annotated[int, Field(ge=8, le=2**24)] = 2048
    """Tokens per packed row, and the longest sample preparation keeps."""
    over_length: Literal["drop", "truncate_right"] = "drop"
    """Samples longer than ``seq_len``: to quarantine with reason ``over_length``, or cut at the right and counted."""
    pack: Literal["exact", "none"] = "exact"
    """exact: several samples per row, isolated from one another; none: one sample per row."""
    window: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Samples shuffled and packed together. auto: the power of two from 256 * seq_len / mean length on, 4096..65536."""
    share_prefix: bool = True
    """Samples of a step that begin with the same tokens (template text, task definition, examples) meet in rows that
    compute these once: the same samples, loss and gradients in fewer rows. Needs attention=packed (or auto) and
    adapters without dropout. Nothing to share with pack=none."""
    on_bad_row: Literal["quarantine", "fail"] = "quarantine"
    bad_row_budget: Annotated[float, Field(ge=0.0, le=1.0)] = 0.05
    """Share of rows that may be rejected before preparation stops with exit code 65."""
    clean: dict[Name, bool] = Field(default_factory=dict)
    """Cleaning rules switched on or off by name; what is not named keeps its default (data_prep/filters/clean.py)."""
    near_duplicates: Annotated[float, Field(ge=0.5, le=0.95)] | None = None
    """Also reject rows whose three-word runs overlap this much (Jaccard index, estimated by MinHash) with those of an
    earlier row of their source: 0.8 finds reworded questions, but also two about one long passage. None: exact only."""
    decontaminate: DecontaminateConfig | None = None
    chat_template: str = "own"
    """Of sources with ``template: chat``. own: the tokenizer's; auto: the same, or chatml if it has none. Or chatml,
    llama3, mistral, gemma, alpaca, or a file FILE.jinja, for bases that have none; the export carries it. Control
    tokens that the tokenizer lacks are plain text there; ``model.new_tokens`` adds them."""
    template_date: str | None = None
    """Date (YYYY-MM-DD) for chat templates that ask for today's. None: the day on which preparation begins."""
    turns: Literal["auto", "each", "last"] = "auto"
    """Samples of a conversation with several answers. each: one sample of each answer, with the history before it as
    generation sees it. last: only the last answer. auto: one sample with all answers as targets, where the template
    writes the history as it was generated; else as each (templates that strip earlier thoughts)."""
    fold_system: bool = True
    """Where the chat template takes no system turn, put its text before the first question (counted); else reject."""
    turn_ends: bool = True
    """Ends of turns that a template writes as plain text are targets in every answer; false: in none. Control tokens
    that end a turn always are."""
    style_seed: Count = 0
    """Seed of what preparation draws for sources with a ``style``; the order of samples follows the run's ``seed``."""
    num_proc: Processes = 1
    """Preparation processes. The corpus is the same for any number."""
    allow_change: bool = False
    """Accept, and record, another order of samples on resume."""
