"""The report of a corpus on a terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from conf.safety.console import SafeConsole
from conf.whole_numbers import ceil_div
from data_prep.report.figures import DUPLICATES, WHY, dirt

LEVELS = "▁▂▃▄▅▆▇█"


def show(report: dict[str, Any], console: SafeConsole) -> None:
    """Print the report."""
    for name, source in report["sources"].items():
        lengths = source["lengths"]
        rows = (
            f"  {source['rows']:,} rows in: {source['kept']['train']:,} to train on, "
            f"{source['kept']['validation']:,} held out, {sum(source['rejected'].values()):,} in quarantine"
        )
        console.print(Text(name, style="bold"), rows, sep="", soft_wrap=True)
        if lengths:
            console.print(
                f"  {source['tokens']:,} tokens, {source['supervised_share']:.1%} of them targets; "
                f"length mean {lengths['mean']:.1f}, p50 {lengths['p50']}, p99 {lengths['p99']}, max {lengths['max']}",
                soft_wrap=True,
            )
            console.print(f"  {_bars(lengths['histogram'])}", highlight=False)
        if source["left_out"]:
            console.print(f"  {source['left_out']:,} further rows of its files were left out by select")
        if source["floor"]:
            console.print(
                f"  {source['floor']:,} of the held-out rows are there because validation_fraction alone gives so few",
                soft_wrap=True,
            )
        if source["truncated"]:
            console.print(f"  {source['truncated']:,} rows were cut at {report['seq_len']} tokens")
        if source["split"]:
            console.print(f"  {source['split']:,} further samples, because some rows make one of each supervised turn")
        if any(source[name] for name in ("found", "rejected", "normalised", "unread")):
            console.print(_dirt(source))
    _show_whole(report, console)
    timing = report["preparation"]
    reused = timing.get("reused", [])
    rows = sum(source["rows"] for name, source in report["sources"].items() if name not in reused)
    console.print(f"{rows:,} rows in {timing['seconds']} s, {rows / max(timing['seconds'], 1e-3):,.0f} rows/s")
    if reused:
        console.print(f"taken over from corpora beside this one: {', '.join(reused)}", soft_wrap=True)


def _show_whole(report: dict[str, Any], console: SafeConsole) -> None:
    """What is about all sources together."""
    packing = report["packing"]
    if packing:
        full = f"{packing['efficiency']:.3%} of {packing['rows']:,} rows is real"
        console.print(f"packing at {report['seq_len']}: {full}{_shared(packing)}", soft_wrap=True)
        if len(packing["token_share"]) > 1:
            shares = ", ".join(f"{name} {share:.1%}" for name, share in packing["token_share"].items())
            console.print(f"share of the tokens drawn: {shares}", soft_wrap=True)
    for each in report["longest"][:3]:
        console.print(f"longest: {each['tokens']:,} tokens, row {each['row']} of {each['file']}", soft_wrap=True)
    if any("duplicate" in source["found"] for source in report["sources"].values()):
        console.print(DUPLICATES, soft_wrap=True)


def _bars(histogram: dict[str, Any]) -> str:
    """The histogram of lengths as one line."""
    counts, edges = histogram["counts"], histogram["edges"]
    tallest = max(counts)
    # A bar with rows in it is never invisible.
    heights = (ceil_div(count * len(LEVELS), tallest) for count in counts)
    bars = "".join(LEVELS[height - 1] if height else " " for height in heights)
    return f"{edges[0]:.0f} {bars} {edges[-1]:,.0f} tokens"


def _dirt(source: dict[str, Any]) -> Table:
    table = Table("kind", "rows", "done", "why", box=None, padding=(0, 1), pad_edge=True)
    for name, count, done in dirt(source):
        table.add_row(name, f"{count:,}", done, WHY.get(name, ""))
    return table


def _shared(packing: dict[str, Any]) -> str:
    """What the samples of a row need not compute twice, as a clause; empty if nothing."""
    return f"; {packing['shared']:.1%} of the tokens are prefixes that rows share" if packing["shared"] else ""
