"""Text that others wrote (rows, names of files, answers of models) as it is shown: on a terminal, in HTML, in Markdown.

A terminal obeys control characters, and text that runs from right to left hides what it says. Both are shown by their
codes instead: ``\\x1b[2J``, ``\\u202e``.
"""

from __future__ import annotations

import html
import re

ACTING = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and line feed, DEL, C1: what begins every escape sequence
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # directions (Unicode's bidi algorithm)
    "\u2028\u2029"  # ends of lines
    "\U000e0000-\U000e007f"  # tags: a whole text that nobody sees
    "\ud800-\udfff"  # half of a character, which no file in UTF-8 can hold
    "]"
)
MARKDOWN = re.compile(r"[\\`*\[\]<>|~#&!$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def for_terminal(text: str) -> str:
    """``text`` whose every character is only shown. Line feeds and tabs stay."""
    return ACTING.sub(_code, text)


NO_SCRIPTS = """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">"""
"""For the head of a page: a browser then runs nothing and asks no server, whatever stands in the page."""


def for_html(text: object) -> str:
    """``text`` for an element or a quoted attribute."""
    return html.escape(for_terminal(str(text)), quote=True)


def for_markdown(text: object) -> str:
    """``text`` for a paragraph or the cell of a table, on one line."""
    return MARKDOWN.sub(_reference, for_terminal(" ".join(str(text).split())))


def code_for_markdown(text: object) -> str:
    """``text`` as code, if it can stand there as it is, for a paragraph or a cell."""
    if {*str(text)} & {*"`|<>&"}:  # a bar ends a cell inside of code too, and not every reader leaves code alone
        return for_markdown(text)
    return f"`{for_terminal(' '.join(str(text).split()))}`"


def _code(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def _reference(found: re.Match[str]) -> str:
    return f"&#{ord(found[0])};"
