"""A record written in a style: by a template of its set, after exemplars of its task, with its options in some form.

Every draw follows from (seed, task, row) and the number of exemplars that the style asks for, so it is the same for any
number of processes and on every run. The records of a task take the templates in turn from a drawn start, as in FLAN,
so every template is used equally often. The column ``variant`` records the choice: the number of the template, plus
64 * (1 + the form of the options) where the options were rewritten.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import accumulate
from typing import Any, Literal

import numpy as np

from conf.durable import xxh3_of
from conf.schema.style import StyleConfig
from data_prep.rows.conversation import Conversation, Message, Rejected, prompt_key
from data_prep.rows.record import Record
from data_prep.samples import options, template_set
from data_prep.samples.exemplars import Pools
from data_prep.samples.options import Options
from data_prep.samples.template_set import AS_GIVEN, MOST, PLACE, Template, fill
from data_prep.stream.permutation import key_of, permute
from data_prep.templates.prompts import plain_prompt

SEPARATORS = ("\n", "\n\n", "\n\n\n")
"""What may stand between two exemplars (FLAN's mix_five_shot)."""
VARIED = (1, 10)
"""Fewest and most exemplars of ``shots: varied``."""

Parts = Mapping[str, str]


@dataclass(frozen=True)
class Style:
    """A source's ``style``, with its templates read. Plain values, so that it travels between processes."""

    templates: tuple[Template, ...]
    shots: int | Literal["varied"]
    options: Literal["given", "none", "varied"]
    prompt_tokens: int
    seed: int
    named: str | None = None
    """Its template set, as the config names it."""
    templates_xxh3: str | None = None
    """Hash of the set's file."""

    def identity(self) -> dict[str, Any]:
        """All that changes what it writes. JSON-able."""
        asked = StyleConfig(self.named, self.shots, self.options, self.prompt_tokens)
        return asdict(asked) | {"seed": self.seed, "templates_xxh3": self.templates_xxh3}

    @property
    def few_shot(self) -> bool:
        return self.shots != 0

    @property
    def places(self) -> frozenset[str]:
        """Parts of a row that its templates ask for; question and answer are always looked at, for options."""
        patterns = "".join(each.head + each.input + each.target for each in self.templates)
        return frozenset({"question", "answer", *PLACE.findall(patterns)})


@dataclass(frozen=True)
class Prompt:
    """A record with everything drawn and every template filled; how many of its exemplars fit is still open."""

    head: str
    exemplars: tuple[str, ...]
    separator: str
    question: str
    answer: Message
    variant: int

    def conversation(self, shots: int) -> Conversation:
        """One question, with the first ``shots`` exemplars in it, and one answer."""
        prompt = self.head + self.separator.join([*self.exemplars[:shots], self.question])
        return Conversation((Message("user", prompt), self.answer))


def read(style: StyleConfig, seed: int, key: str) -> Style:
    """The style of ``style``, which stands at config ``key``. Raises MissingInput and BadData for its template set."""
    templates: tuple[Template, ...] = (AS_GIVEN,)
    digest = None
    if style.templates is not None:
        path = template_set.locate(style.templates, f"{key}.templates")
        templates = template_set.load(path, "zero" if style.shots == 0 else "few")
        digest = xxh3_of(path)
    return Style(templates, style.shots, style.options, style.prompt_tokens, seed, style.templates, digest)


def write(style: Style, record: Record, pools: Pools) -> Prompt:
    """Draw and fill; raises Rejected: not one question and one answer, a place without text, no exemplar."""
    chosen = (record.row + _key(style, "template", record.task)) % len(style.templates)
    template = style.templates[chosen]
    rows = [parts_of(record.conversation)] + [parts_of(each) for each in _exemplars(style, record, pools)]
    lists = [options.find(parts["question"], parts["answer"]) for parts in rows]
    form = _form(style, record, lists)
    asked = [_ask(style, template, parts, found, form) for parts, found in zip(rows, lists, strict=True)]
    (question, answer), exemplars = asked[0], asked[1:]
    separator = template.separator or SEPARATORS[_draw(style, "separator", record, len(SEPARATORS))]
    return Prompt(
        head=fill(template.head, rows[0]),
        exemplars=tuple(plain_prompt(Message("user", each)) + target for each, target in exemplars),
        separator=separator,
        question=question,
        answer=Message("assistant", answer, weight=record.conversation.messages[-1].weight),
        variant=chosen + (0 if form is None else MOST * (1 + form)),
    )


def parts_of(conversation: Conversation) -> Parts:
    """What templates may ask for: FLAN's names for the parts of any row, and the fields of formats that have more."""
    roles = [message.role for message in conversation.messages]
    if roles != ["user", "assistant"]:
        raise Rejected("not_single_turn", f"a style holds one question and one answer, not {roles}")
    asked, answer = conversation.messages
    names = {"question": asked.text, "instruction": asked.content, "Definition": asked.content, "input": asked.context}
    return names | {"answer": answer.content, "output": answer.content} | dict(conversation.fields)


def _key(style: Style, purpose: str, *of: int | str) -> int:
    return key_of(style.seed, f"{purpose} {style.shots}", *of)


def _draw(style: Style, purpose: str, record: Record, choices: int) -> int:
    return _key(style, purpose, record.task, record.row) % choices


def _exemplars(style: Style, record: Record, pools: Pools) -> list[Conversation]:
    """Rows of the pool in drawn order, the row itself and others with its prompt left out."""
    if not style.few_shot:
        return []
    pool, wanted = pools.get(record.task, ()), _wanted(style, record)
    key = _key(style, "exemplars", record.task, record.row)
    # One more than wanted: at most one row of the pool has this row's prompt.
    order = permute(np.arange(min(len(pool), wanted + 1)), len(pool), key).tolist() if pool else []
    own = prompt_key(record.conversation)
    found = [pool[place] for place in order if prompt_key(pool[place]) != own][:wanted]
    if not found:
        raise Rejected("no_exemplar", f"task {record.task} has no other usable row to train on")
    return found


def _wanted(style: Style, record: Record) -> int:
    if style.shots != "varied":
        return style.shots
    bounds = _varied_bounds()
    drawn = _key(style, "shots", record.task, record.row) * bounds[-1] >> 64
    return VARIED[0] + sum(drawn >= bound for bound in bounds[:-1])


@cache
def _varied_bounds() -> list[int]:
    """Running sums of Binomial(25, 1/10) over 1..10, in whole numbers.

    FLAN's x_shot draws 25 rows, each with one of ten templates, keeps those with the row's own, at most ten, and drops
    a row that is left with none.
    """
    return list(accumulate(math.comb(25, count) * 9 ** (25 - count) for count in range(VARIED[0], VARIED[1] + 1)))


def _form(style: Style, record: Record, lists: Sequence[Options | None]) -> int | None:
    """One form for the options of the row and of its exemplars; None if there are none to rewrite."""
    found = [each for each in lists if each is not None and not each.lettered]
    if style.options != "varied" or not found:
        return None
    first = _draw(style, "options", record, options.FORMS)
    forms = ((first + step) % options.FORMS for step in range(options.FORMS))
    return next(form for form in forms if all(each.can_take(form) for each in found))


def _ask(style: Style, template: Template, parts: Parts, found: Options | None, form: int | None) -> tuple[str, str]:
    """(question, answer) as the template has them."""
    has_place = "options_" in PLACE.findall(template.input)
    filled = {**parts, "options_": ""} if found is None else _with_options(style, parts, found, form, has_place)
    question = fill(template.input, filled)
    # Where the template would have had the options there is nothing: take the blank lines before it away too.
    return question if filled["options_"] or not has_place else question.rstrip(), fill(template.target, filled)


def _with_options(style: Style, parts: Parts, found: Options, form: int | None, has_place: bool) -> dict[str, str]:
    block, answer, question = found.block, None, parts["question"]
    if style.options == "none" and found.answer is not None:  # else the list says what kind of answer is meant
        block, answer, question = "", found.answer_text(), found.stem
    elif form is not None and not found.lettered:
        block, answer = found.form(form)
        question = f"{found.stem}\n{block}"
    if has_place:
        question = found.stem
    changed = {} if answer is None else {"answer": answer, "output": answer}
    return {**parts, "question": question, "options_": block, **changed}
