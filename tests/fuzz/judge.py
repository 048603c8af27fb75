"""The one rule: an input is taken, or refused with a sentence; nothing hangs, grows, or drives a terminal."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

from conf.errors import ConfigError, CorralError, InternalError

ROOT = Path(__file__).parents[2]
SECONDS = 5.0
"""That one input may take: of the clock, without the time for which other processes had the processors."""
MEMORY = 1536 << 20
"""Bytes that one input may add to the process and its children."""
LONGEST = 2_000
"""Characters of a sentence. Lists of the nearest keys are the longest."""
SIGNS = {
    "Traceback (most recent call last)": "a traceback is printed",
    "panicked at": "a panic is printed",
    "\x1b": "an escape sequence is printed",
}
OBJECT = re.compile(r"<[\w.]+ object at 0x")


def of_error(error: BaseException) -> str:
    """What is wrong with an input's answer ``error``; empty text if it is a sentence of ours."""
    if not isinstance(error, CorralError):
        return f"{type(error).__name__} at {place(error)}: {str(error)[:200]}"
    lines = error.problems if isinstance(error, ConfigError) else str(error).split("\n")
    if isinstance(error, InternalError) or error.code == CorralError.code:
        return f"an error of Corral itself ({error.code}) at {place(error)}: {error}"
    for line in lines:
        if not line.strip() or "\n" in line.strip():
            return f"no sentence at {place(error)}: {line[:200]!r}"
        if len(line) > LONGEST:
            return f"a sentence of {len(line):,} characters at {place(error)}: {line[:200]!r}"
        if "Traceback" in line or OBJECT.search(line):
            return f"no sentence of a user's language at {place(error)}: {line[:300]!r}"
    return ""


def of_output(printed: str) -> str:
    """What is wrong with what was printed meanwhile; empty text if nothing is."""
    return next((f"{said}: {around(printed, sign)!r}" for sign, said in SIGNS.items() if sign in printed), "")


def around(text: str, sign: str) -> str:
    at = text.index(sign)
    return text[max(0, at - 80) : at + 400]


def place(error: BaseException) -> str:
    """The line of ours that is nearest to where ``error`` was raised."""
    frames = [each for each in traceback.extract_tb(error.__traceback__) if str(ROOT) in each.filename]
    ours = [each for each in frames if ".venv" not in each.filename and "/tests/" not in each.filename]
    found = (ours or frames or [None])[-1]
    return f"{Path(found.filename).relative_to(ROOT)}:{found.lineno}" if found else "?"


def kind_of(flaw: str) -> str:
    """Flaws of one kind have the same beginning: the error and its line."""
    return re.sub(r"\d[\d,.]*(?= (characters|s\b|MiB))", "N", flaw.split(": ")[0])
