"""report.html of a corpus: the numbers of report.json, histograms, and samples with the mask visible."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from conf.safety.texts import NO_SCRIPTS, for_html
from data_prep.corpus.shards import Corpus
from data_prep.report.figures import DUPLICATES, WHY, chosen, dirt
from data_prep.samples import marks
from data_prep.tokenizer import tokenizer

STYLE = (
    "body { font: 15px/1.5 system-ui, sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; color: #222; "
    "overflow-wrap: anywhere }"
    "h2 { margin: 1.6em 0 .4em; font-size: 1.25em } table { border-collapse: collapse; margin: .5em 0 }"
    "td, th { padding: .15em .8em .15em 0; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd }"
    ".n { text-align: right; font-variant-numeric: tabular-nums } rect { fill: #4a7ab5 }"
    ".note { color: #666; font-size: .85em; margin: .2em 0 } .side { display: flex; flex-wrap: wrap; gap: 2.5em }"
    ".side > div { max-width: 30em } .side > table { flex: 1; min-width: 30em; align-self: start; margin: 0 }"
    ".side td:not(:last-child) { white-space: nowrap }" + marks.STYLE
)


def document(title: str, parts: Iterable[str]) -> str:
    """A page of its own, without anything from elsewhere."""
    body = "\n".join(parts)
    head = f'<meta charset="utf-8">{NO_SCRIPTS}<title>{for_html(title)}</title><style>{STYLE}</style>'
    return f"<!doctype html><html lang=en><head>{head}</head><body><h1>{for_html(title)}</h1>\n{body}</body></html>\n"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; a column of numbers is aligned to the right, its title with it."""
    body = list(rows)
    numeric = [isinstance(each, int | float) for each in body[0]] if body else [False] * len(head)
    titles = (
        f"<th{' class=n' if right else ''}>{for_html(each)}</th>" for each, right in zip(head, numeric, strict=True)
    )
    lines = ["<tr>" + "".join(titles) + "</tr>", *("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in body)]
    return f"<table>{''.join(lines)}</table>"


def _cell(value: object) -> str:
    if isinstance(value, float):  # a share
        return f'<td class="n">{value:.1%}</td>'
    return f'<td class="n">{value:,}</td>' if isinstance(value, int) else f"<td>{for_html(str(value))}</td>"


def histogram(counts: Sequence[int], edges: Sequence[float]) -> str:
    """Bars of counts over lengths in tokens."""
    tallest, width = max(counts) or 1, 18
    bars = "".join(
        f'<rect x="{place * width}" y="{100 - 100 * count / tallest:.1f}" width="{width - 2}" '
        f'height="{100 * count / tallest:.1f}"><title>{edges[place]:.0f}-{edges[place + 1]:.0f} tokens: {count:,} rows'
        "</title></rect>"
        for place, count in enumerate(counts)
    )
    labels = f'<text x="0" y="116" font-size="12">{edges[0]:.0f}</text>'
    labels += f'<text x="{width * len(counts)}" y="116" font-size="12" text-anchor="end">{edges[-1]:.0f} tokens</text>'
    return f'<svg width="{width * len(counts)}" height="120">{bars}{labels}</svg>'


def page(report: dict[str, Any], corpus: Corpus) -> str:
    """The whole page."""
    return document(f"Corpus {corpus.path.name}", _parts(report, corpus))


def _parts(report: dict[str, Any], corpus: Corpus) -> Iterator[str]:
    yield f"<p><code>{for_html(report['preparation']['command'])}</code></p>"
    yield _overview(report)
    if packing := report["packing"]:
        rows = f"the {packing['rows']:,} rows that training draws first"
        yield f"<p>Packing at {report['seq_len']:,} tokens: {packing['efficiency']:.3%} of {rows} is text; "
        yield f"{packing['shared']:.1%} of the tokens are shared beginnings, which a row computes once.</p>"
    yield f"<p>{DUPLICATES} Every row in quarantine stands in quarantine.jsonl with the reason.</p>"
    if files := report["evaluation_files"]:
        names = ", ".join(for_html(each["path"]) for each in files)
        yield f"<p>Rows that overlap with these evaluation sets were taken out: {names}.</p>"
    for name, source in report["sources"].items():
        yield from _source(name, source)
        yield from (f"<p class=note>{for_html(line)}</p>" for line in report["notes"].get(name, ()))
    yield "<h2>Longest rows</h2>"
    longest = ((each["source"], each["file"], each["row"], each["tokens"]) for each in report["longest"])
    yield table(("source", "file", "row", "tokens"), longest)
    yield "<h2>Samples</h2><p>Targets are green and underlined; hover for token ids.</p>"
    yield from _samples(corpus)


def _overview(report: dict[str, Any]) -> str:
    """One line per source."""
    head = (
        "source",
        "template",
        "rows in",
        "train",
        "validation",
        "in quarantine",
        "cut",
        "tokens",
        "targets",
        "mixture",
    )
    shares = report["packing"].get("token_share", {})
    lines = []
    for name, source in report["sources"].items():
        kept, lost = source["kept"], sum(source["rejected"].values())
        rows = (source["rows"], kept["train"], kept["validation"], lost, source["truncated"], source["tokens"])
        lines.append((name, source["template"], *rows, source["supervised_share"], shares.get(name, 0.0)))
    note = "targets: share of the tokens that are trained on; mixture: share of the tokens that training draws"
    return table(head, lines) + f"<p class=note>{note}</p>"


def _source(name: str, source: dict[str, Any]) -> Iterator[str]:
    yield f"<h2>{for_html(name)}</h2><div class=side>"
    if lengths := source["lengths"]:
        shown = ", ".join(f"{key} {value:,.0f}" for key, value in lengths.items() if key != "histogram")
        bars = histogram(lengths["histogram"]["counts"], lengths["histogram"]["edges"])
        yield f"<div>{bars}<p class=note>tokens per training row: {shown}</p></div>"
    if found := list(dirt(source)):
        yield table(("kind", "rows", "done", "why"), [(*each, WHY.get(each[0], "")) for each in found])
    yield "</div>"


def _samples(corpus: Corpus) -> Iterator[str]:
    words = tokenizer.load_tokenizer(str(corpus.path / "tokenizer"))
    train = corpus.split("train")
    for name, row in chosen(train):
        file, index, _ = train[name].origin(row)
        yield f"<p>{for_html(name)}: row {index} of {for_html(file)}</p>"
        ids, mask = train[name].tokens(row)
        yield marks.to_html(ids.tolist(), mask.tolist(), words)
