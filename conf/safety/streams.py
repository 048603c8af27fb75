"""Standard output and standard error through which no secret and no escape sequence of others goes, whoever prints."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO, cast

from conf.safety.secrets import redact_text, without_known
from conf.safety.texts import for_terminal


class Guarded:
    """``raw``, where ``clean`` goes over all that is written."""

    def __init__(self, raw: TextIO, clean: Callable[[str], str]) -> None:
        self.raw, self.clean = raw, clean

    def write(self, text: str) -> int:
        # Bars of other libraries return to the beginning of their line.
        lines = (for_terminal(part) for part in self.clean(text).split("\r"))
        self.raw.write("\r".join(lines))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


def show(text: str) -> None:
    """Print what a model has said: all that is hidden are secrets that are known by value."""
    stream = sys.stdout.raw if isinstance(sys.stdout, Guarded) else sys.stdout
    print(for_terminal(without_known(text)), file=stream, flush=True)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Guard both streams of this process.

    Samples and answers go past it, by ``show`` and conf/safety/console.py: there, a text that looks like a token may be
    a row of the data.
    """
    before = sys.stdout, sys.stderr
    sys.stdout = cast(TextIO, Guarded(before[0], redact_text))
    sys.stderr = cast(TextIO, Guarded(before[1], redact_text))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
