"""report.html of a corpus: the numbers of report.json, histograms, and samples with the mask visible."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from data_prep import marks, tokenizer
from data_prep.report import SAMPLES, sample_rows
from data_prep.shards import Corpus

STYLE = (
    "body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222 }"
    "table { border-collapse: collapse; margin: .5em 0 } td, th { padding: .15em .8em; text-align: left;"
    " border-bottom: 1px solid #ddd } td.n { text-align: right } rect { fill: #4a7ab5 }" + marks.STYLE
)


def document(title: str, parts: Iterable[str]) -> str:
    """A page of its own, without anything from elsewhere."""
    body = "\n".join(parts)
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return (
        f"<!doctype html><html lang=en><head>{head}</head><body><h1>{html.escape(title)}</h1>\n{body}</body></html>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["<tr>" + "".join(f"<th>{html.escape(each)}</th>" for each in head) + "</tr>"]
    for row in rows:
        lines.append("<tr>" + "".join(_cell(each) for each in row) + "</tr>")
    return f"<table>{''.join(lines)}</table>"


def _cell(value: object) -> str:
    if isinstance(value, int | float):
        return f'<td class="n">{value:,}</td>' if isinstance(value, int) else f'<td class="n">{value:,.3f}</td>'
    return f"<td>{html.escape(str(value))}</td>"


def histogram(counts: Sequence[int], edges: Sequence[float]) -> str:
    """Bars of counts over lengths in tokens."""
    tallest, width = max(counts) or 1, 24
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
    packing = report["packing"]
    yield f"<p><code>{html.escape(report['preparation']['command'])}</code></p>"
    if packing:
        share = f"{packing['efficiency']:.3%} of {packing['rows']:,} rows is real"
        yield f"<p>Packing at {report['seq_len']} tokens: {share}.</p>"
        yield table(("source", "share of the tokens drawn"), packing["token_share"].items())
    for name, source in report["sources"].items():
        yield from _source(name, source)
    yield "<h2>Longest rows</h2>"
    rows = ((each["source"], each["file"], each["row"], each["tokens"]) for each in report["longest"])
    yield table(("source", "file", "row", "tokens"), rows)
    yield "<h2>Samples</h2><p>Targets are green and underlined; hover for token ids.</p>"
    yield from _samples(corpus)


def _source(name: str, source: dict[str, Any]) -> Iterator[str]:
    yield f"<h2>{html.escape(name)}</h2>"
    kept, lengths = source["kept"], source["lengths"]
    counts = [("rows in", source["rows"]), ("train", kept["train"]), ("validation", kept["validation"])]
    counts += [("in quarantine", sum(source["rejected"].values())), ("cut at the right", source["truncated"])]
    yield table(
        ("what", "value"), [*counts, ("tokens", source["tokens"]), ("supervised share", source["supervised_share"])]
    )
    for title in ("rejected", "normalised", "flagged"):
        if source[title]:
            yield f"<h3>{title}</h3>" + table(("rule", "rows"), source[title].items())
    if lengths:
        yield "<h3>lengths</h3>" + histogram(lengths["histogram"]["counts"], lengths["histogram"]["edges"])
        yield table(("measure", "tokens"), ((key, value) for key, value in lengths.items() if key != "histogram"))


def _samples(corpus: Corpus) -> Iterator[str]:
    words = tokenizer.load(str(corpus.path / "tokenizer"))
    train = corpus.split("train")
    each = max(1, SAMPLES // max(1, len(train)))
    for name, split in train.items():
        for row in sample_rows(split, each):
            file, index, _ = split.origin(row)
            yield f"<p>{html.escape(name)}: row {index} of {html.escape(file)}</p>"
            ids, mask = split.tokens(row)
            yield marks.to_html(ids.tolist(), mask.tolist(), words)
