"""What others wrote is shown by a terminal, a browser and a reader of Markdown, and acts on none of them."""

from __future__ import annotations

import io
import subprocess
import sys
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from conf.safety.console import SafeConsole
from conf.safety.texts import code_for_markdown, for_html, for_markdown, for_terminal

ANY = st.text(st.characters(), max_size=40)  # with surrogates, controls, private and unassigned characters
HOSTILE = (
    "\x1b[2J\x1b[31mred", "\x1b]0;title\x07", "\x1b]8;;https://x\x1b\\link", "\x9b2J", "a\rb", "a\x08b", "nul\x00",
    "\u202egnp.exe", "\u2066x\u2069", "\udc80", "[red]x[/red]", "[/]", "[link=https://x]y[/link]", ":smile:",
    "\U000e0041", "<script>alert(1)</script>", "`x` | [a](b) <img src=x onerror=y>", "w" * 5000, "]]>", "&lt;",
    "\u2028next",
)  # fmt: skip
"""Escape sequences, directions, markup of rich, HTML and Markdown, halves of characters, very long words."""


def acting(text: str) -> set[str]:
    """The characters of ``text`` that do something instead of being seen."""
    kinds = {each: unicodedata.category(each) for each in text if each not in "\n\t"}
    directions = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    return {
        each
        for each, kind in kinds.items()
        if kind in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(each) in directions
    }


@given(ANY)
def test_no_character_acts(text: str) -> None:
    shown = for_terminal(text)
    assert not acting(shown)
    assert for_terminal(shown) == shown
    assert shown == text or acting(text) or any(each >= "\u200e" for each in text) or "\u061c" in text
    for_html(text).encode()
    for_markdown(text).encode()


def test_plain_text_stays() -> None:
    for text in ("a b\tc\nd", "äöü 漢字 العربية 👩‍👩‍👧", "<|im_start|>", "a_b [c]"):
        assert for_terminal(text) == text


class Seen(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, attrs))

    def handle_data(self, data: str) -> None:
        self.text += data


@given(ANY)
@example("<script>alert(1)</script>")
@example("\"><img src=x onerror='y'>&lt;&amp")
def test_a_browser_reads_the_text_alone(text: str) -> None:
    found = Seen(f'<p title="{for_html(text)}">{for_html(text)}</p>')
    assert found.tags == [("p", [("title", for_terminal(text))])]
    assert found.text == for_terminal(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_is_one_line_without_markup(text: str) -> None:
    for shown in (for_markdown(text), code_for_markdown(text)):
        assert "\n" not in shown
        assert "|" not in shown
        assert not acting(shown)
    assert not {*for_markdown(text)} & {*"<>[]`*\\"} - {"\\"} or "\\x" in for_markdown(text)


def test_names_in_markdown_stay_legible() -> None:
    assert for_markdown("eval/exact_match") == "eval/exact_match"
    assert for_markdown("words: alpaca, chat: plain") == "words: alpaca, chat: plain"
    assert code_for_markdown("org/model-7b") == "`org/model-7b`"


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("text", HOSTILE)
def test_the_console_shows_every_text_as_it_is(text: str, terminal: bool) -> None:
    """In lines, tables with titles, rules, styled texts, and bars."""
    stream = io.StringIO()
    console = SafeConsole(file=stream, force_terminal=terminal, width=200, color_system=None, highlight=False)
    table = Table(text, title=text, caption=text)
    table.add_row(text)
    for part in (text, table, Text(for_terminal(text), style="bold")):
        console.print(part, soft_wrap=True)
    console.rule(text)
    progress = Progress(TextColumn("{task.description}", markup=False), console=console)
    with progress:
        progress.add_task(text, total=1)
    found = stream.getvalue()
    for own in ("\x1b[2K", "\x1b[1A", "\x1b[?25l", "\x1b[?25h", "\x1b[0m", "\x1b[1m", "\r"):
        found = found.replace(own, "")
    assert not acting(found), repr(found[:300])
    if "[" in text and "\x1b" not in text:
        assert text in found.replace("\n", "")  # markup is text


def test_a_known_secret_is_hidden_by_the_console_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in what others print while a bar is shown, which rich sends through its console."""
    monkeypatch.setenv("MY_TOKEN", "s3cr3t-value-xyz")
    stream = io.StringIO()
    console = SafeConsole(file=stream, force_terminal=True, width=24, color_system=None)
    table = Table("x s3cr3t-value-xyz", title="y s3cr3t-value-xyz")
    with Progress(TextColumn("{task.description}", markup=False), console=console) as progress:
        progress.add_task("", total=1)
        print("a line of a library: s3cr3t-value-xyz")  # it would be broken in the middle
    console.print("s3cr3t-value-xyz", table, Text("z s3cr3t-value-xyz", style="bold"))
    assert "s3cr3t" not in stream.getvalue()
    assert stream.getvalue().count("[redacted]") == 5


def test_everything_that_a_command_prints_is_shown(tmp_path: Path) -> None:
    """Also what others print, and tracebacks of defects."""
    code = (
        "import sys\n"
        "from conf.errors import BadData, leave_with_code\n"
        "def main():\n"
        "    print('out \\x1b[2J \\u202e')\n"
        "    print('bar 10%\\rbar 20%', file=sys.stderr)\n"
        "    raise {error}\n"
        "leave_with_code(main)\n"
    )
    for error, code_of in (("BadData('row \\x1b]0;t\\x07 of [red]\\rand over')", 65), ("ValueError('\\x1b[31m')", 1)):
        done = subprocess.run(
            [sys.executable, "-c", code.format(error=error)],
            capture_output=True,
            timeout=60,
            cwd=Path(__file__).parents[3],
        )
        assert done.returncode == code_of
        assert b"\x1b" not in done.stdout + done.stderr
        assert done.stdout == b"out \\x1b[2J \\u202e\n"
        assert b"bar 10%\rbar 20%" in done.stderr
        assert b"bar 10%\rbar 20%\n" in done.stderr
        assert b"\r" not in done.stderr.replace(b"bar 10%\r", b"")  # none that hides what stands before it
    assert b"Traceback" in done.stderr
    assert b"\\x1b[31m" in done.stderr
