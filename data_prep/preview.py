"""``python -m data_prep.preview data=NAME [rows=3] [html=FILE]``: samples with every token marked as target or not.

From the prepared corpus if there is one, else made from the first usable rows of each source on the spot.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from conf.compose import config_from_argv
from conf.durable import write_whole
from conf.errors import BadData, ConfigError, MissingInput, leave_with_code
from conf.safety.console import SafeConsole
from conf.safety.texts import for_html
from conf.schema import RunConfig
from data_prep import jobs
from data_prep.advice import refused
from data_prep.advice.recognised import recognised
from data_prep.blocks import vocabulary
from data_prep.blocks import workers as pool
from data_prep.blocks.process import samples_of
from data_prep.corpus import identity
from data_prep.corpus.manifest import MANIFEST
from data_prep.corpus.shards import open_corpus
from data_prep.finished import check_finished
from data_prep.report.figures import sample_rows
from data_prep.report.html import document
from data_prep.rows.stage import Counts
from data_prep.samples import marks
from data_prep.templates import choose
from data_prep.tokenizer import tokenizer
from data_prep.tokenizer.tokenizer import Tokenizer

LOOKED_AT = 1_000
"""Rows of a source that may be unusable before its first usable one."""
EXTRA = {"rows": "samples shown per source (default 3)", "html": "write an HTML page to this file instead"}


@dataclass(frozen=True)
class Shown:
    source: str
    origin: str
    ids: list[int]
    mask: list[int]


def samples(cfg: RunConfig, rows: int) -> tuple[Tokenizer, Iterator[Shown]]:
    """(tokenizer, ``rows`` samples of each source)."""
    path = identity.corpus_path(cfg)
    if (path / MANIFEST).is_file():
        check_finished(cfg, path)
        return tokenizer.load_tokenizer(str(path / "tokenizer")), _prepared(path, rows)
    reference, revision = identity.tokenizer_reference(cfg)
    if reference == "train":
        raise MissingInput(
            f"model.tokenizer=train is learnt when the corpus is prepared; first: {identity.prepare_command(cfg)}"
        )
    words = tokenizer.load_tokenizer(
        reference, revision, cfg.model.new_tokens, trust_remote_code=cfg.model.trust_remote_code
    )
    words = choose.with_template(words, cfg.data)
    if words.chat_template is None:
        vocabulary.refuse_chat(jobs.chats(cfg), f"{words.name} has none")
    return words, _made(cfg, words, rows)


def _prepared(path: Path, rows: int) -> Iterator[Shown]:
    for name, split in open_corpus(path, verify="sizes").split("train").items():
        for row in sample_rows(split, rows):
            ids, mask = split.tokens(row)
            yield Shown(name, _origin(*split.origin(row)), ids.tolist(), mask.tolist())


def _origin(file: str, row: int, variant: int) -> str:
    """Where a sample comes from; the variant only where there is a choice of them (see data_prep/samples/styles.py)."""
    return f"row {row} of {file}" + (f", variant {variant}" if variant else "")


def _made(cfg: RunConfig, words: Tokenizer, rows: int) -> Iterator[Shown]:
    with TemporaryDirectory() as folder:
        words.save(Path(folder) / "tokenizer")
        for name in sorted(identity.leaves(cfg.data.sources)):
            yield from _usable(cfg, name, Path(folder), rows)


def _usable(cfg: RunConfig, name: str, folder: Path, rows: int) -> Iterator[Shown]:
    """The first ``rows`` usable rows of a source; raises BadData if none of its first LOOKED_AT rows is."""
    found, leaf = jobs.raw_files(cfg, name), identity.leaves(cfg.data.sources)[name]
    for line in jobs.notes(found, leaf, f"data.sources.{name}"):
        print(line, file=sys.stderr)
    (folder / name).mkdir()
    job = jobs.job_of(cfg, name, found, tokenizer=folder / "tokenizer", folder=folder / name)
    pool.gather_exemplars(job, leaf.rows)
    shown, looked, counts = 0, 0, Counts()
    lines: list[dict[str, Any]] = []
    for record in pool.records_of(job, leaf.rows):
        made, rejected = samples_of(job, [record], counts)
        for sample in made:
            tokens = sample.tokens
            yield Shown(name, _origin(record.file, record.row, tokens.variant), tokens.ids, tokens.mask)
        shown, looked, lines = shown + len(made), looked + 1, lines + rejected
        if shown >= rows or (not shown and looked == LOOKED_AT):
            break
    if lines and not shown:
        first = f"data.sources.{name}: none of the first {looked:,} rows can be used"
        said = refused.explained(name, recognised(leaf, f"data.sources.{name}"), counts.rejected, lines)
        raise BadData("\n  ".join([first, *said]))
    if lines and shown:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in counts.rejected.most_common())
        print(
            f"data.sources.{name}: {len(lines):,} of the first {looked:,} rows are rejected: {reasons}", file=sys.stderr
        )
    if not looked:
        raise BadData(f"data.sources.{name}: no rows in {', '.join(each.name for each in found.kept)}.")


def main() -> None:
    """Print the samples, or write them to ``html``."""
    cfg, own = config_from_argv(sys.argv[1:], command="data_prep.preview", extra=EXTRA)
    count = own.get("rows", "3")
    if not count.isdecimal() or count == "0":
        raise ConfigError(f"rows: {count!r} is not a positive whole number")
    words, shown = samples(cfg, int(count))
    if "html" in own:
        _write_html(Path(own["html"]), words, shown)
        return
    console = SafeConsole()
    for each in shown:
        console.rule(f"{each.source}: {each.origin}; {len(each.ids)} tokens, {sum(each.mask)} targets", align="left")
        console.print(marks.to_terminal(each.ids, each.mask, words), soft_wrap=True)


def _write_html(path: Path, words: Tokenizer, shown: Iterator[Shown]) -> None:
    parts = []
    for each in shown:
        parts.append(f"<p>{for_html(f'{each.source}: {each.origin}')}</p>")
        parts.append(marks.to_html(each.ids, each.mask, words))
    write_whole(path, document("Samples", parts))
    print(f"wrote {path}")


if __name__ == "__main__":
    leave_with_code(main)
