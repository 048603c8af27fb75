"""Lists of options at the end of a question: found, left out, or written in another form.

A list is recognised by its header on a line of its own and one option per line to the end of the text, as in FLAN's
and P3's files: ``Options:``, then ``- yes``, ``- no``. Lists that are lettered already keep their form, because a
rationale may speak of the letters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

LIST = re.compile(r"(?:^|\n)[ \t]*(?:options|choices)[ \t]*:[ \t]*\n\s*", re.IGNORECASE)
BULLET = re.compile(r"-\s+(?P<text>\S.*)")
LETTERED = re.compile(r"\(?(?P<label>[A-Za-z])[).:]\s+(?P<text>\S.*)")

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

    def answer_text(self) -> str | None:
        """The answer for a question without the list, where the row's own is only a label."""
        return self.texts[self.answer] if self.lettered and self.answer is not None else None


def find(question: str, answer: str) -> Options | None:
    """The list at the end of ``question``, if there is one of two to 26 options."""
    for match in reversed(list(LIST.finditer(question))):
        lines = [line.strip() for line in question[match.end() :].split("\n") if line.strip()]
        for pattern in (LETTERED, BULLET):
            items = [pattern.fullmatch(line) for line in lines]
            if 2 <= len(items) <= 26 and all(items):
                found = [item for item in items if item]
                lettered = pattern is LETTERED
                texts = tuple(item["text"].strip() for item in found)
                place = next(_places(found, texts, answer.strip(), lettered), None)
                return Options(
                    question[: match.start()].rstrip(), question[match.start() :].strip(), texts, place, lettered
                )
    return None


def _places(items: list[re.Match[str]], texts: tuple[str, ...], answer: str, lettered: bool) -> Iterator[int]:
    if len(set(texts)) < len(texts):
        return
    for place, (item, text) in enumerate(zip(items, texts, strict=True)):
        if answer == text or (lettered and answer.strip("().:") == item["label"]):
            yield place


def _labelled(form: str, place: int) -> str:
    return form.replace("{letter}", chr(ord("A") + place)).replace("{number}", str(place + 1))
