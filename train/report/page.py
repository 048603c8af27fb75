"""The HTML of the report: style sheet, tiles, figures, tables. These functions escape every text that they receive."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from conf.safety.texts import NO_SCRIPTS, for_html
from train.report.plots import style_of

STYLE = """
:root{--paper:#fff;--soft:#f5f6f8;--ink:#1c2430;--dim:#667085;--rule:#e2e5ea;--good:#08745a;--bad:#b42318;
--p0:#0b6bb5;--p1:#d1570b;--p2:#08875f;--p3:#b1588f;--p4:#c58a05;--p5:#3a9fd8;--p6:#7a7f87}
@media(prefers-color-scheme:dark){:root{--paper:#14181f;--soft:#1c222b;--ink:#e6e9ee;--dim:#98a2b3;--rule:#2d3540;
--good:#3ccb9b;--bad:#ff8a7a;--p0:#5db3f0;--p1:#f58b4c;--p2:#3ccb9b;--p3:#e08fc3;--p4:#f0bc3d;--p5:#9ad4f5;--p6:#a9afb8}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1120px;margin:0 auto;padding:24px 20px 64px}
h1{font-size:1.7rem;margin:0 0 4px;overflow-wrap:anywhere}h2{font-size:1.15rem;margin:40px 0 12px}
h3{font-size:.95rem;margin:0 0 4px}p{margin:4px 0}.dim{color:var(--dim)}.good{color:var(--good)}.bad{color:var(--bad)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(max(150px,23%),1fr));gap:12px;margin:20px 0}
.tile{background:var(--soft);border-radius:10px;padding:12px 14px}
.tile b{display:block;font-size:1.15rem;white-space:nowrap;line-height:1.3;font-variant-numeric:tabular-nums}
.tile span{color:var(--dim);font-size:.85rem}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));gap:16px}
figure{margin:0;display:flex;flex-direction:column;background:var(--soft);border-radius:10px;padding:12px 14px}
svg{display:block;width:100%;height:auto;margin-top:auto;padding-top:6px}
svg text{fill:var(--dim);font:15px system-ui,sans-serif}svg .grid{stroke:var(--rule);stroke-width:1}
polyline{fill:none;stroke-width:2;stroke-linejoin:round}.dashed{stroke-dasharray:5 4}
.c0{stroke:var(--p0)}.c1{stroke:var(--p1)}.c2{stroke:var(--p2)}.c3{stroke:var(--p3)}.c4{stroke:var(--p4)}
.c5{stroke:var(--p5)}.c6{stroke:var(--p6)}circle{fill:var(--soft);stroke-width:2}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px;font-size:.85rem;color:var(--dim)}
.legend svg{display:inline-block;width:18px;height:8px;margin:0 5px 1px 0;padding:0}.faint{opacity:.35}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td{text-align:left;padding:6px 14px 6px 0;border-bottom:1px solid var(--rule);vertical-align:top}
th{color:var(--dim);font-weight:600}td.num,th.num{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
td.key{font-family:ui-monospace,Menlo,monospace;font-size:.85rem;white-space:nowrap;width:1%}
td.value{font-family:ui-monospace,Menlo,monospace;font-size:.85rem;overflow-wrap:anywhere}
.samples{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,420px),1fr));gap:12px;margin:12px 0}
.sample{border:1px solid var(--rule);border-radius:10px;padding:10px 14px;min-width:0}
.sample pre{margin:2px 0 8px;white-space:pre-wrap;overflow-wrap:anywhere;font:.88rem/1.45 ui-monospace,Menlo,monospace}
.sample pre:last-child{margin-bottom:0}.sample .pair{display:grid;grid-template-columns:1fr 1fr;gap:0 20px}
.mark{float:right;font-weight:600}details{margin:8px 0}summary{cursor:pointer;color:var(--dim)}
@media(max-width:560px){main{padding:16px 12px 48px}.sample .pair{grid-template-columns:1fr}h1{font-size:1.35rem}}
"""


def document(title: str, body: str) -> str:
    """A whole page."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"{NO_SCRIPTS}"
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{for_html(title)}</title><style>{STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )


def tiles(figures: Mapping[str, str]) -> str:
    """Large figures with their names under them."""
    cells = "".join(
        f'<div class="tile"><b>{for_html(value)}</b><span>{for_html(name)}</span></div>'
        for name, value in figures.items()
    )
    return f'<div class="tiles">{cells}</div>'


def figure(title: str, svg: str, legend: Mapping[str, str]) -> str:
    """A plot with its title; ``legend``: series name -> last value, in the order of the plot. Empty without ``svg``."""
    if not svg:
        return ""
    return f"<figure><h3>{for_html(title)}</h3>{legend_line(legend)}{svg}</figure>"


def legend_line(legend: Mapping[str, str]) -> str:
    entries = []
    for index, (name, value) in enumerate(legend.items()):
        line = f'<polyline class="{style_of(index)}" points="0,4 18,4"/>'
        key = f'<svg viewBox="0 0 18 8">{line}</svg>' if len(legend) > 1 else ""
        entries.append(f"<span>{key}{for_html(f'{name} {value}'.strip())}</span>")
    return f'<div class="legend">{"".join(entries)}</div>'


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, numbers_from: int = 1) -> str:
    """A table whose columns from ``numbers_from`` on are numbers. Empty without rows."""
    body = "".join(table_row("td", row, numbers_from) for row in rows)
    if not body:
        return ""
    head = table_row("th", headings, numbers_from)
    return f'<div class="wide"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def table_row(tag: str, texts: Sequence[str], numbers_from: int) -> str:
    styles = ["" if index < numbers_from else ' class="num"' for index in range(len(texts))]
    cells = [f"<{tag}{style}>{for_html(text)}</{tag}>" for style, text in zip(styles, texts, strict=True)]
    return f"<tr>{''.join(cells)}</tr>"


def settings(values: Mapping[str, str]) -> str:
    """Keys and values in two columns."""
    rows = "".join(
        f'<tr><td class="key">{for_html(key)}</td><td class="value">{for_html(value)}</td></tr>'
        for key, value in values.items()
    )
    return f'<div class="wide"><table><tbody>{rows}</tbody></table></div>' if rows else ""


def sample(source: str, prompt: str, reference: str, answer: str, right: bool, rouge: float) -> str:
    """One answered sample: its prompt, its reference and the model's answer."""
    style, word = ("good", "right") if right else ("bad", f"wrong · ROUGE-L {rouge:.2f}")
    return (
        f'<div class="sample"><span class="mark {style}">{for_html(word)}</span>'
        f'<span class="dim">{for_html(source)}</span>'
        f"<pre>{for_html(prompt)}</pre>"
        f'<div class="pair"><div><span class="dim">reference</span><pre>{for_html(reference)}</pre></div>'
        f'<div><span class="dim">answer</span><pre class="{style}">{for_html(answer) or "(empty)"}</pre></div></div>'
        "</div>"
    )


def samples(cards: Sequence[str]) -> str:
    return f'<div class="samples">{"".join(cards)}</div>' if cards else ""


def folded(summary: str, content: str) -> str:
    return f"<details><summary>{for_html(summary)}</summary>{content}</details>" if content else ""


def section(title: str, content: str) -> str:
    """A part of the page under a heading; an empty string without content."""
    return f"<section><h2>{for_html(title)}</h2>{content}</section>" if content else ""
