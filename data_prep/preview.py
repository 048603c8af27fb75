"""``python -m data_prep.preview data=NAME [rows=3] [html=FILE]``: samples with every token marked as target or not.

From the prepared corpus if there is one, else made from the first usable rows of each source on the spot.
"""

from __future__ import annotations

import html
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from conf.compose import config_from_argv
from conf.errors import ConfigError, MissingInput, leave_with_code
from conf.schema import RunConfig
from data_prep import identity, jobs, marks, pool, tokenizer
from data_prep.block import Counts, make
from data_prep.manifest import MANIFEST
from data_prep.report import sample_rows
from data_prep.report_html import document
from data_prep.shards import open_corpus
from data_prep.tokenizer import Tokenizer

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
        return tokenizer.load(str(path / "tokenizer")), _prepared(path, rows)
    reference, revision = identity.tokenizer_reference(cfg)
    if reference == "train":
        raise MissingInput(
            f"model.tokenizer=train is learnt when the corpus is prepared; first: {identity.prepare_command(cfg)}"
        )
    words = tokenizer.load(reference, revision)
    return words, _made(cfg, words, rows)


def _prepared(path: Path, rows: int) -> Iterator[Shown]:
    for name, split in open_corpus(path, verify="sizes").split("train").items():
        for row in sample_rows(split, rows):
            ids, mask = split.tokens(row)
            yield Shown(name, _origin(*split.origin(row)), ids.tolist(), mask.tolist())


def _origin(file: str, row: int, variant: int) -> str:
    """Where a sample comes from; the variant only where there is a choice of them (see data_prep/styles.py)."""
    return f"row {row} of {file}" + (f", variant {variant}" if variant else "")


def _made(cfg: RunConfig, words: Tokenizer, rows: int) -> Iterator[Shown]:
    with TemporaryDirectory() as folder:
        words.save(Path(folder) / "tokenizer")
        for name in sorted(identity.leaves(cfg.data.sources)):
            yield from islice(_usable(cfg, name, Path(folder)), rows)


def _usable(cfg: RunConfig, name: str, folder: Path) -> Iterator[Shown]:
    paths = tuple(each.name for each in jobs.raw_files(cfg, name)[0])
    (folder / name).mkdir()
    job = jobs.job_of(cfg, name, paths, tokenizer=folder / "tokenizer", folder=folder / name)
    pool.gather_exemplars(job, identity.leaves(cfg.data.sources)[name].rows)
    for file, raw in pool.rows_of(job):
        kept, _ = make(job, [(file, raw)], Counts())  # what is refused is named when the corpus is prepared
        for ids, mask, variant, *_ in kept:
            yield Shown(name, _origin(paths[file], raw.row, variant), ids, mask)


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
    console = Console()
    for each in shown:
        console.rule(f"{each.source}: {each.origin}; {len(each.ids)} tokens, {sum(each.mask)} targets", align="left")
        console.print(marks.to_terminal(each.ids, each.mask, words), soft_wrap=True)


def _write_html(path: Path, words: Tokenizer, shown: Iterator[Shown]) -> None:
    parts = []
    for each in shown:
        parts.append(f"<p>{html.escape(f'{each.source}: {each.origin}')}</p>")
        parts.append(marks.to_html(each.ids, each.mask, words))
    path.write_text(document("Samples", parts), encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    leave_with_code(main)
