"""Lists of options at the end of a question: found, left out, or written in another form.

A list is recognised by its header on a line of its own and one option per line to the end of the text, as in FLAN's
and P3's files: ``Options:``, then ``- yes``, ``- no``. Lists that are lettered already keep their form, because a
rationale may speak of the letters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LIST = re.compile(r"(?:^|\n)[ \t]*(?:options|choices)[ \t]*:[ \t]*\n\s*", re.IGNORECASE)
BULLET = re.compile(r"-\s+(?P<text>\S.*)")
LETTERED = re.compile(r"(?:-\s+)?\(?(?P<label>[A-Za-z])[).:]\s+(?P<text>\S.*)")

STARTS = (
    "",
    "Options:",
    "Choices:",
    "Candidate answers:",
    "The answer is one of these:",
    "Choose among the following:",
    "Here is what you can answer:",
    "Only one of these is right:",
)
BARE = ("- {text}", "* {text}", "{text}")
"""Forms without labels, in which the answer is the option's text."""
LABELLED = (
    ("({letter}) {text}", "({letter})"),
    ("{letter}. {text}", "{letter}"),
    ("{letter}) {text}", "{letter})"),
    ("[{letter}] {text}", "[{letter}]"),
    ("{number}. {text}", "{number}"),
)
"""(form of an option, form of the answer)."""
JOINS = ("\n", " / ")
FORMS = len(STARTS) * (len(BARE) + len(LABELLED)) * len(JOINS)


@dataclass(frozen=True)
class Options:
    """A question's list, taken off the question."""

    stem: str
    """The question without it."""
    block: str
    """The list as it stood, header included."""
    texts: tuple[str, ...]
    answer: int | None
    """Which of them the row's answer is: its text, or its label. None if it is none of them."""
    lettered: bool

    def form(self, number: int) -> tuple[str, str | None]:
        """(the list in form ``number`` of ``FORMS``, the answer in it); needs ``can_take(number)``.

        The answer is None where it stays as it is.
        """
        head, rest = divmod(number, (len(BARE) + len(LABELLED)) * len(JOINS))
        kind, join = divmod(rest, len(JOINS))
        if kind < len(BARE):
            lines, answer = [BARE[kind].replace("{text}", text) for text in self.texts], None
        else:
            item, label = LABELLED[kind - len(BARE)]
            lines = [_labelled(item, place).replace("{text}", text) for place, text in enumerate(self.texts)]
            answer = _labelled(label, self.answer or 0)
        return "\n".join(filter(None, [STARTS[head], JOINS[join].join(lines)])), answer

    def can_take(self, number: int) -> bool:
        """Whether the answer can be said in that form: labels need an answer that is one of the options."""
        return number // len(JOINS) % (len(BARE) + len(LABELLED)) < len(BARE) or self.answer is not None

    def answer_text(self) -> str:
        """The answer for a question without the list; needs an ``answer``."""
        return self.texts[self.answer or 0]


def find(question: str, answer: str) -> Options | None:
    """The list at the end of ``question``, if there is one of two to 26 options."""
    for match in reversed(list(LIST.finditer(question))):
        lines = [line.strip() for line in question[match.end() :].split("\n") if line.strip()]
        if 2 <= len(lines) <= 26 and (items := _items(lines)):
            stem, block = question[: match.start()].rstrip(), question[match.start() :].strip()
            texts, lettered = tuple(text for _, text in items), bool(items[0][0])
            return Options(stem, block, texts, _place(items, answer.strip()), lettered)
    return None


def _items(lines: list[str]) -> list[tuple[str, str]]:
    """(label or "", text) of each line of a list; empty if it is none. Labels must count up from A."""
    lettered = [match for match in map(LETTERED.fullmatch, lines) if match]
    if [match["label"].upper() for match in lettered] == [chr(ord("A") + place) for place in range(len(lines))]:
        return [(match["label"], match["text"].strip()) for match in lettered]
    bullets = [match for match in map(BULLET.fullmatch, lines) if match]
    return [("", match["text"].strip()) for match in bullets] if len(bullets) == len(lines) else []


def _place(items: list[tuple[str, str]], answer: str) -> int | None:
    """Which option the answer is, by its text or its label; None if none, or if two read alike."""
    if len({text for _, text in items}) < len(items):
        return None
    named = (
        place for place, (label, text) in enumerate(items) if answer == text or answer.strip("().:") == label != ""
    )
    return next(named, None)


def _labelled(form: str, place: int) -> str:
    return form.replace("{letter}", chr(ord("A") + place)).replace("{number}", str(place + 1))
