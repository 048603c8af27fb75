"""Words of a command line that cannot be read as KEY=VALUE: what is wrong with them, and how to quote them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Sequence

PAIRS = (("(", ")"), ("[", "]"), ("{", "}"))
TOKEN = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[{}\[\](),:]|\\.|[^{}\[\](),:'"\\]+""")
"""Of a value: a quoted text, a mark, an escaped character, or plain text."""


def unreadable(words: Sequence[str], reads: Callable[[str], bool]) -> Iterator[str]:
    """One sentence per value of ``words`` that ``reads`` refuses. A value that the shell has split is one value."""
    place = 0
    while place < len(words):
        taken = 1 if reads(words[place]) else _split_by_shell(words[place:], reads)
        if taken > 1:
            whole = " ".join(words[place : place + taken])
            yield f"{words[place]}: the shell has split this value at its blanks; quote it: {shlex.quote(whole)}"
        elif not reads(words[place]):
            yield _alone(words[place], reads)
        place += taken


def _split_by_shell(words: Sequence[str], reads: Callable[[str], bool]) -> int:
    """How many of ``words`` are one value together; 1 if the first is wrong by itself."""
    if _depth(words[0]) <= 0:
        return 1
    for count in range(2, len(words) + 1):
        whole = " ".join(words[:count])
        if _depth(whole) == 0:
            return count if reads(whole) else 1
    return 1


def _depth(text: str) -> int:
    """Brackets that are opened in ``text`` and not closed."""
    return sum(text.count(opening) - text.count(closing) for opening, closing in PAIRS)


def _alone(word: str, reads: Callable[[str], bool]) -> str:
    key, equals, value = word.partition("=")
    if not equals:
        return f"{word}: not KEY=VALUE; write GROUP=NAME or KEY=VALUE (--help lists them)"
    if not key.strip("+~ "):
        return f"{word}: no key before the equals sign; write KEY=VALUE (--help lists them)"
    missing = "".join(closing * max(0, value.count(opening) - value.count(closing)) for opening, closing in PAIRS)
    if missing and reads(word + missing):
        return f"{word}: {missing} is missing at its end; write {shlex.quote(word + missing)}"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    if reads(f'{key}="{escaped}"'):
        return f"{word}: the value cannot be read as it stands; quote it twice: '{key}=\"{escaped}\"'"
    return f"{word}: {key} cannot be read as a key; keys are names with dots, such as optim.lr (--help lists them)"


def twice(words: Sequence[str]) -> Iterator[str]:
    """One sentence per key that stands twice in one mapping of a value: the parser keeps the last one silently."""
    for word in words:
        key, _, value = word.partition("=")
        for name in dict.fromkeys(_twice(value)):
            yield f"{key}: {name} stands twice in one mapping, and only the last would count; name each once"


def _twice(value: str) -> Iterator[str]:
    open_keys: list[set[str] | None] = []  # of every bracket that is open; None for a list
    name: list[str] | None = None  # what is read of a key, until its colon
    for token in TOKEN.findall(value):
        if token in ("{", "[", "("):
            open_keys.append(set() if token == "{" else None)
            name = [] if token == "{" else None
        elif token in ("}", "]", ")"):
            open_keys[-1:] = []
            name = None
        elif token == ",":
            name = [] if open_keys and open_keys[-1] is not None else None
        elif token == ":" and name is not None and open_keys and (keys := open_keys[-1]) is not None:
            key = "".join(name).strip().strip("'\"")
            if key in keys:
                yield key
            keys.add(key)
            name = None
        elif name is not None:
            name.append(token)
