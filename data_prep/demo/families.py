"""Families of word tasks: how each is asked, in several phrasings, and what the one right answer is.

A family is a pure function of a row number: the words are drawn by a hash, so a row never depends on another row, on
the platform or on the version of Python. Every answer follows from the question alone, which is what makes exact
match on held-out rows a proof of learning.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

WORDS_FILE = Path(__file__).with_name("words.txt")


@dataclass(frozen=True)
class Asked:
    """One drawn question: the values for a phrasing's fields, and the answer."""

    fields: Mapping[str, str]
    answer: str


@dataclass(frozen=True)
class Draw:
    """Deterministic choices for one row of one family; each ``slot`` is an independent draw."""

    family: str
    row: int

    def below(self, bound: int, slot: str) -> int:
        """Uniform integer in [0, bound) (64 hash bits; the modulo bias is below 2**-50 here)."""
        key = f"{self.family}/{self.row}/{slot}".encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") % bound

    def one(self, section: str, slot: str = "") -> str:
        options = word_lists()[section]
        return options[self.below(len(options), f"{section}{slot}")]

    def distinct(self, section: str, count: int) -> list[str]:
        """``count`` different words of a section, in drawn order."""
        found: list[str] = []
        attempt = 0
        while len(found) < count:
            word = self.one(section, f"#{attempt}")
            attempt += 1
            if word not in found:
                found.append(word)
        return found


@dataclass(frozen=True)
class Family:
    """``phrasings`` are (instruction, input) format strings; input may be empty."""

    name: str
    phrasings: Sequence[tuple[str, str]]
    draw: Callable[[Draw], Asked]


@lru_cache(maxsize=1)
def word_lists() -> dict[str, list[str]]:
    """Section name -> words, as written in words.txt."""
    sections: dict[str, list[str]] = {}
    current: list[str] = []
    for line in WORDS_FILE.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            current = sections.setdefault(line.strip("[]"), [])
        elif not line.startswith("#"):
            current.extend(line.split())
    return sections


def _reverse(draw: Draw) -> Asked:
    words = draw.distinct("things", 3)
    return Asked({"words": " ".join(words)}, f"Backwards: {' '.join(reversed(words))}")


def _pick(draw: Draw) -> Asked:
    words = draw.distinct("things", 4)
    place = draw.below(2, "place")
    asked = {"words": " ".join(words), "place": ("first", "last")[place]}
    return Asked(asked, f"The {asked['place']} word is {(words[0], words[-1])[place]}.")


def _thank(draw: Draw) -> Asked:
    name, thing = draw.one("names"), draw.one("things")
    return Asked({"name": name, "thing": thing}, f"Dear {name}, thank you for the {thing}.")


def _list(draw: Draw) -> Asked:
    words = draw.distinct("things", 3)
    asked = {"words": f"{words[0]}, {words[1]} and {words[2]}"}
    return Asked(asked, "\n".join(f"{number}. {word}" for number, word in enumerate(words, 1)))


def _replace(draw: Draw) -> Asked:
    *words, new = draw.distinct("things", 4)
    place = draw.below(2, "place")
    answer = (new, *words[1:]) if place == 0 else (*words[:2], new)
    asked = {"words": " ".join(words), "place": ("first", "last")[place], "new": new}
    return Asked(asked, f"Now: {' '.join(answer)}")


def _leave_out(draw: Draw) -> Asked:
    words = draw.distinct("things", 4)
    place = draw.below(2, "place")
    kept = words[1:] if place == 0 else words[:-1]
    return Asked({"words": " ".join(words), "place": ("first", "last")[place]}, f"Left: {' '.join(kept)}")


def _repeat(draw: Draw) -> Asked:
    words = draw.distinct("things", 2)
    times = draw.below(2, "times")
    asked = {"words": " and ".join(words), "times": ("twice", "three times")[times]}
    return Asked(asked, f"I say {', '.join([asked['words']] * (times + 2))}.")


def _ask(draw: Draw) -> Asked:
    name = draw.one("names")
    first, second = draw.distinct("things", 2)
    return Asked(
        {"name": name, "first": first, "second": second}, f"Hello {name}, where are the {first} and the {second}?"
    )


FAMILIES: tuple[Family, ...] = (
    Family(
        "reverse",
        (
            ("Reverse these words: {words}", ""),
            ("Write the words backwards.", "Words: {words}"),
            ("Put in the opposite order: {words}", ""),
        ),
        _reverse,
    ),
    Family(
        "pick",
        (
            ("What is the {place} word?", "Words: {words}"),
            ("Give only the {place} of these words: {words}", ""),
            ("Find the {place} word in this line: {words}", ""),
        ),
        _pick,
    ),
    Family(
        "thank",
        (
            ("Thank {name} for the {thing}.", ""),
            ("My friend {name} gave me the {thing}. Say thanks.", ""),
            ("Write a note to thank {name} for bringing the {thing}.", ""),
        ),
        _thank,
    ),
    Family(
        "list",
        (
            ("Make a list of {words}.", ""),
            ("Turn this into a list.", "Things: {words}"),
            ("Number these things: {words}", ""),
        ),
        _list,
    ),
    Family(
        "replace",
        (
            ("Replace the {place} word with {new}.", "Words: {words}"),
            ("Put {new} where the {place} word stands.", "Words: {words}"),
            ("Change the {place} word to {new}: {words}", ""),
        ),
        _replace,
    ),
    Family(
        "leave_out",
        (
            ("Leave out the {place} word.", "Words: {words}"),
            ("Remove the {place} word from this line: {words}", ""),
            ("Copy this without its {place} word.", "Words: {words}"),
        ),
        _leave_out,
    ),
    Family(
        "repeat",
        (
            ("Say {words} {times}.", ""),
            ("Repeat this {times}.", "Words: {words}"),
            ("Write this {times} in a row: {words}", ""),
        ),
        _repeat,
    ),
)
NEW_FAMILY = Family(
    "ask",
    (
        ("Ask {name} about the {first} and the {second}.", ""),
        ("Write a note to ask {name} for the {first} and the {second}.", ""),
        ("Ask my friend where two things are.", "Name: {name}, things: {first} and {second}"),
    ),
    _ask,
)


def build(family: Family, row: int) -> dict[str, str]:
    """Row number ``row`` of a family in Alpaca's form."""
    draw = Draw(family.name, row)
    asked = family.draw(draw)
    instruction, extra = family.phrasings[draw.below(len(family.phrasings), "phrasing")]
    return {
        "instruction": instruction.format(**asked.fields),
        "input": extra.format(**asked.fields),
        "output": asked.answer,
    }


@lru_cache(maxsize=1)
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    found = []
    for family in (*FAMILIES, NEW_FAMILY):
        for instruction, extra in family.phrasings:
            literal = re.escape(f"{instruction}\n{extra}" if extra else instruction)
            found.append((family.name, re.compile(re.sub(r"\\\{\w+\\\}", r"[\\w ,]+", literal))))
    return found


def family_of(prompt: str) -> str | None:
    """The family that asks ``prompt`` (instruction, then any newlines and the input); None if none does."""
    text = re.sub(r"\n+", "\n", prompt.strip())
    return next((name for name, pattern in _patterns() if pattern.fullmatch(text)), None)
