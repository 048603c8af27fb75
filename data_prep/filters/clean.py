"""Cleaning by named rules. Every rule is counted on every row; a switch decides whether it also acts.

A rule that rejects sends the row to quarantine under its name; a rule that normalises changes the row and keeps it. A
rule that is switched off (``data.clean.NAME=false``) is only counted: a *flag* in the report. The defaults are
conservative: a row is rejected only if it cannot be right, because a wrongly rejected row is lost for good and a
wrongly kept one is one in thousands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Literal

from conf.errors import ConfigError
from data_prep.rows.conversation import Conversation, Message, Rejected, texts_of
from data_prep.rows.record import Record
from data_prep.rows.stage import Counts, Part

NOINPUT = re.compile(r"\W*(no\s?input\w?( (required|needed))?|n/?a|none)\W*8?", re.IGNORECASE)
NOT_AVAILABLE = re.compile(r"\W*(n/?a|none)\W*", re.IGNORECASE)
# Either in brackets, or as a sentence of its own: "No output device was found" is an answer like any other.
NOOUTPUT = re.compile(
    r"\W*<\s*no\s?output|\W*no\s?output(\W*$|\W*[.,:;]|\s+(required|needed|expected|possible|because|as)\b)",
    re.IGNORECASE,
)
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
SURROGATE = re.compile("[\ud800-\udfff]")
# Not the joiners U+200C and U+200D: emoji, Persian and the scripts of India are spelt with them.
ZERO_WIDTH = re.compile("[\u00ad\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")
SEPARATOR = re.compile(r"^##[ \t]*$", re.MULTILINE)
MARKER = re.compile(r"###|Instruction:|10\. Input")
SPECIAL = re.compile(r"</?s>|<pad>|<unk>|<image>|<\|[\w.-]{1,40}\|>|\[/?INST\]|<</?SYS>>")
HTML = re.compile(r"</?(html|head|body|div|span|p|a|br|h[1-6]|ul|ol|li|table|tr|td|img|script|style)\b[^<>]*>", re.I)
URL = re.compile(r"https?://")
REFUSALS = ("as an ai ", "as an ai,", "i'm sorry", "i am sorry", "i cannot", "i am unable")
IMAGE = re.compile(
    r"\b(attached|provided|following|this) (image|photo|picture|figure)\b|[\[<]((an?|insert) )?(image|photo|picture)\b"
    r"|!\[|<img\b|\.(jpe?g|png|gif|svg|webp|bmp)\b|^(an? )?(image|photo|picture) of\b",
    re.IGNORECASE,
)
EXOTIC_SPACE = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
MOJIBAKE = re.compile("â€|Ã[\u0080-\u00bf]")

Kind = Literal["reject", "normalise"]
Texts = Sequence[str]
"""``_texts`` of a conversation: made once, because ten rules look at it."""
Test = Callable[[Conversation, Texts], bool]


@dataclass(frozen=True)
class Rule:
    name: str
    kind: Kind
    default: bool
    """Whether it acts unless ``data.clean`` says otherwise."""
    found: Test
    why: str
    """The rule and the reason for its default; shown in the report."""


def _answers(conversation: Conversation) -> list[Message]:
    return [message for message in conversation.messages if message.is_target]


def _texts(row: Conversation) -> Iterator[str]:
    """Every text that a sample may contain, with the fields that only template sets use."""
    for message in row.messages:
        yield from texts_of(message)
    if row.tools:
        yield row.tools
    yield from row.fields.values()


def _any_text(pattern: re.Pattern[str]) -> Test:
    return lambda _, texts: any(map(pattern.search, texts))


def _any_answer(test: Callable[[str], object]) -> Test:
    return lambda row, _: any(test(each.content) for each in _answers(row))


def _any_context(test: Callable[[str], object]) -> Test:
    return lambda row, _: any(each.context and test(each.context) for each in row.messages)


def _empty_prompt(row: Conversation, _: Texts) -> bool:
    asked = [message for message in row.messages if message.role == "user"]
    return not asked or any(not message.text.strip() for message in asked)


def _empty_output(row: Conversation, _: Texts) -> bool:
    return any(not each.content.strip() and not each.calls for each in _answers(row))


def _is_one_char(text: str) -> bool:
    return len(text) == 1


def _refuses(text: str) -> bool:
    lowered = text.lower()
    return any(phrase in lowered for phrase in REFUSALS)


def _repeats_input(row: Conversation, _: Texts) -> bool:
    pairs = zip(row.messages, row.messages[1:], strict=False)
    return any(b.is_target and a.context.strip() == b.content.strip() != "" for a, b in pairs)


def _in_context_or_question(pattern: re.Pattern[str]) -> Test:
    return lambda row, _: any(pattern.search(each.context) for each in row.messages if each.role == "user")


RULES: tuple[Rule, ...] = (
    Rule("empty_prompt", "reject", True, _empty_prompt, "no question, or a blank one: nothing to answer"),
    Rule("empty_output", "reject", True, _empty_output, "a blank answer teaches silence"),
    Rule(
        "nooutput_marker", "reject", True, _any_answer(NOOUTPUT.match),
        "the answer is the generator's marker for a task without an output (<nooutput>, No output required)",
    ),
    Rule(
        "control_char", "reject", True, _any_text(CONTROL),
        "control characters other than tab and line break stand where other text was lost",
    ),
    Rule("lone_surrogate", "reject", True, _any_text(SURROGATE), "half a character: cannot be written as UTF-8"),
    Rule(
        "separator_leak", "reject", True, _any_answer(SEPARATOR.search),
        "a line of just ## in the answer: the generator ran on into its next task, and the model would learn to",
    ),
    Rule(
        "noinput_placeholder", "normalise", True, _any_context(NOINPUT.fullmatch),
        "an input that says there is none (<noinput>, N/A) becomes no input, and the template without one is used",
    ),
    Rule("zero_width", "normalise", True, _any_text(ZERO_WIDTH), "invisible format characters are taken out"),
    Rule("carriage_return", "normalise", True, _any_text(re.compile("\r")), "line breaks become \\n"),
    Rule("na_output", "reject", False, _any_answer(NOT_AVAILABLE.fullmatch), "N/A or None may be the right answer"),
    Rule("one_char_output", "reject", False, _any_answer(_is_one_char), "a digit, or A/B/C/D: short and right"),
    Rule(
        "output_equals_input", "reject", False, _repeats_input,
        "right for grammar and spelling tasks whose input had no mistake",
    ),
    Rule("template_leak", "reject", False, _any_text(MARKER), "### is also a Markdown heading and a Python comment"),
    Rule(
        "special_token_text", "reject", False, _any_text(SPECIAL),
        "harmless: tokenised as text, never as control (mind <image> in a multimodal collator)",
    ),
    Rule("html_tag", "reject", False, _any_text(HTML), "HTML is a subject like any other"),
    Rule("url_in_input", "reject", False, _in_context_or_question(URL), "the answer may depend on a page nobody read"),
    Rule("image_reference", "reject", False, _in_context_or_question(IMAGE), "may depend on an unseen picture"),
    Rule("refusal", "reject", False, _any_answer(_refuses), "an apology is also a task (write a letter)"),
    Rule("replacement_char", "reject", False, _any_text(re.compile("\ufffd")), "U+FFFD: a decoding error upstream"),
    Rule("mojibake", "reject", False, _any_text(MOJIBAKE), "UTF-8 read as Latin-1; also right in French"),
    Rule("exotic_space", "reject", False, _any_text(EXOTIC_SPACE), "no-break and typographic spaces: right typography"),
)  # fmt: skip
# Not tests of one row, but switched here like the others.
WHOLE_CORPUS = {"duplicate": True}


def switches(chosen: Mapping[str, bool]) -> dict[str, bool]:
    """Every rule's switch: its default, or what ``data.clean`` says. Raises ConfigError for names that are no rules."""
    known = {rule.name: rule.default for rule in RULES} | WHOLE_CORPUS
    problems = []
    for name in chosen:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; nearest: {near[0]}" if near else ""
            problems.append(f"data.clean.{name}: no such rule{hint} (rules: {', '.join(sorted(known))})")
    if chosen.get("lone_surrogate") is False:
        problems.append("data.clean.lone_surrogate: cannot be switched off; such text cannot be tokenised")
    if problems:
        raise ConfigError(problems)
    return known | dict(chosen)


@dataclass(frozen=True)
class Clean:
    """The stage of ``data.clean``: rejects a record under the name of the first rule that rejects it."""

    switches: Mapping[str, bool]
    """Of every rule, as ``switches`` gives them."""

    def __call__(self, record: Record, counts: Counts) -> Record:
        cleaned = clean(record.conversation, self.switches)
        if cleaned.found:
            counts.found.update(cleaned.found)
        if cleaned.rejected is not None:
            raise Rejected(cleaned.rejected)
        if not cleaned.normalised:
            return record
        counts.normalised.update(cleaned.normalised)
        return replace(record, conversation=cleaned.conversation)

    def identity(self) -> Part:
        return {"data": {"clean": dict(sorted(self.switches.items()))}}


@dataclass(frozen=True)
class Cleaned:
    conversation: Conversation
    found: tuple[str, ...]
    """Every rule that found something in the row as it came."""
    normalised: tuple[str, ...]
    """The rules that changed it."""
    rejected: str | None
    """The first rule that rejects it."""


def clean(conversation: Conversation, switched: Mapping[str, bool]) -> Cleaned:
    """Apply all rules. ``switched``: ``switches(...)``."""
    texts = [*_texts(conversation)]
    found = [rule for rule in RULES if rule.found(conversation, texts)]
    acting = [rule for rule in found if switched[rule.name]]
    normalised = tuple(rule.name for rule in acting if rule.kind == "normalise")
    rejected = next((rule.name for rule in acting if rule.kind == "reject"), None)
    if normalised and rejected is None:
        messages = tuple(_normalise(message, normalised) for message in conversation.messages)
        fields = {name: _normalise_text(text, normalised) for name, text in conversation.fields.items()}
        conversation = replace(conversation, messages=messages, fields=fields)
        # A text of invisible characters only is blank now.
        blank = [rule for rule in RULES[:2] if switched[rule.name] and rule.found(conversation, ())]
        rejected = blank[0].name if blank else None
    return Cleaned(conversation, tuple(rule.name for rule in found), normalised, rejected)


def _normalise(message: Message, rules: tuple[str, ...]) -> Message:
    context = message.context
    if "noinput_placeholder" in rules and NOINPUT.fullmatch(context):
        context = ""
    texts = (message.content, context, message.reasoning)
    content, context, reasoning = (_normalise_text(text, rules) for text in texts)
    parts = tuple(replace(part, text=_normalise_text(part.text, rules)) for part in message.parts)
    return replace(message, content=content, context=context, reasoning=reasoning, parts=parts)


def _normalise_text(text: str, rules: tuple[str, ...]) -> str:
    if "zero_width" in rules:
        text = ZERO_WIDTH.sub("", text)
    if "carriage_return" in rules:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text
