"""Ids are those of transformers' ``apply_chat_template``, and targets exactly what the assistant says and ends with."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from data_prep import sources
from data_prep.rows.conversation import Conversation, Rejected
from data_prep.samples.encode import encode_batch, encode_prompt
from data_prep.samples.encoded import Encoded
from data_prep.tokenizer.tokenizer import Tokenizer
from tests.data_prep.made import byte_tokenizer
from tests.data_prep.templates.published import PUBLISHED, Published

Turns = list[dict[str, Any]]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


def call(city: str, number: int) -> dict[str, Any]:
    """As OpenAI writes it: the arguments are text."""
    arguments = json.dumps({"city": city})
    return {"id": f"call0000{number}", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}


def answer_of(number: int) -> dict[str, Any]:
    return {"role": "tool", "content": f"{number} degrees", "tool_call_id": f"call0000{number}"}


SYSTEM = {"role": "system", "content": "Be brief, {{ please }}."}
ASKED, SAID = {"role": "user", "content": "Hello  world?"}, {"role": "assistant", "content": "a big tree"}
MORE = [{"role": "user", "content": "And é?"}, {"role": "assistant", "content": "red\n\ngreen"}]
THOUGHT, SECOND = SAID | {"reasoning_content": "dog runs"}, MORE[1] | {"reasoning_content": "cat sees"}
CALLS = {"role": "assistant", "content": None, "tool_calls": [call("Oslo", 1)]}
KINDS: dict[str, Turns] = {
    "one": [ASKED, SAID],
    "turns": [ASKED, SAID, *MORE],
    "system": [SYSTEM, ASKED, SAID],
    "system_turns": [SYSTEM, ASKED, SAID, *MORE],
    "reasoning": [ASKED, THOUGHT],
    "thoughts": [ASKED, THOUGHT, MORE[0], SECOND],
    "tools": [ASKED, CALLS, answer_of(1), SAID],
    "two_calls": [
        ASKED, CALLS | {"tool_calls": [call("Oslo", 1), call("Rome", 2)]}, answer_of(1), answer_of(2), SAID,
    ],
}  # fmt: skip


@functools.cache
def tokenizer_of(name: str) -> Tokenizer:
    import tempfile

    published = PUBLISHED[name]
    with tempfile.TemporaryDirectory() as folder:
        made = byte_tokenizer(Path(folder), specials=published.specials, eos=published.eos, template=published.template)
    made.hf.bos_token = next((each for each in ("<s>", "<bos>") if each in published.specials), "<|endoftext|>")
    return Tokenizer(made.hf, name)


def row_of(kind: str) -> dict[str, Any]:
    return {"messages": KINDS[kind]} | ({"tools": TOOLS} if "call" in kind or "tool" in kind else {})


def as_taken(kind: str, published: Published) -> tuple[Turns, list[Any] | None]:
    """The messages as a user of transformers would have to write them for this template, and the tools."""
    turns = [{**turn, "content": turn["content"] or ""} for turn in KINDS[kind]]
    tools = row_of(kind).get("tools")
    for turn in turns:
        calls = [each["function"] for each in turn.get("tool_calls", [])]
        calls = [each | {"arguments": json.loads(each["arguments"])} for each in calls]
        if calls and published.calls:
            pairs = zip(turn["tool_calls"], calls, strict=True)
            turn["tool_calls"] = [each | {"function": function} for each, function in pairs]
        elif calls:
            del turn["tool_calls"]
            turn["content"] = "\n".join(json.dumps(each) for each in calls)
        if not published.reasoning and (thought := turn.pop("reasoning_content", "")):
            turn["content"] = f"<think>\n{thought}\n</think>\n\n{turn['content']}"
    if tools and not published.calls:
        turns.insert(0, {"role": "system", "content": f"Tools:\n{json.dumps(tools)}"})
        tools = None
    if not published.system and turns[0]["role"] == "system":
        system, asked, *rest = turns
        turns = [asked | {"content": f"{system['content']}\n\n{asked['content']}"}, *rest]
    return turns, tools


def said(name: str, turn: dict[str, Any], *, last: bool = True) -> str:
    """What a model writes for the turn, by hand."""
    published, content = PUBLISHED[name], turn["content"]
    functions = [each["function"] for each in turn.get("tool_calls", [])]
    lead = published.lead
    if published.reasoning and turn.get("reasoning_content"):
        lead = f"<think>\n{turn['reasoning_content']}\n</think>\n\n"
    written = [json.dumps(each) for each in functions]
    if functions and name.startswith("qwen"):
        content = "\n".join(f"<tool_call>\n{each}\n</tool_call>" for each in written)
    elif functions and name == "llama31":
        content = written[0].replace('"arguments"', '"parameters"')
    elif functions and name == "mistral3":
        ids = [each["id"] for each in turn["tool_calls"]]
        each = ", ".join(f'{text[:-1]}, "id": "{number}"}}' for text, number in zip(written, ids, strict=True))
        lead, content = "", f"[TOOL_CALLS] [{each}]"
    elif functions and name == "granite":
        content = f"<|tool_call|>[{', '.join(written)}]"
    return f"{lead if last else ''}{content}{published.end}"


def by_transformers(tokenizer: Tokenizer, turns: Turns, tools: list[Any] | None, **options: Any) -> list[int]:
    ids: list[int] = tokenizer.hf.apply_chat_template(turns, tools=tools, tokenize=True, return_dict=False, **options)
    return ids


def targets(sample: Encoded, tokenizer: Tokenizer) -> str:
    return str(tokenizer.hf.decode([token for token, flag in zip(sample.ids, sample.mask, strict=True) if flag]))


CASES = [(name, kind) for name in PUBLISHED for kind in KINDS]


@pytest.mark.parametrize(("name", "kind"), [each for each in CASES if each[1] not in PUBLISHED[each[0]].refuses])
def test_ids_are_those_of_transformers_and_targets_are_what_is_said(name: str, kind: str) -> None:
    published, tokenizer = PUBLISHED[name], tokenizer_of(name)
    turns, tools = as_taken(kind, published)
    (samples, _), *_ = encode_batch([sources.reader("messages")(row_of(kind))], "chat", tokenizer)
    answers = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
    if kind in published.rewrites:  # one sample of each answer, as it was generated
        for sample, place in zip(samples, answers, strict=True):
            assert isinstance(sample, Encoded), sample
            assert sample.ids == by_transformers(tokenizer, turns[: place + 1], tools)
            assert targets(sample, tokenizer) == said(name, turns[place])
        return
    (sample,) = samples
    assert isinstance(sample, Encoded), sample
    assert sample.ids == by_transformers(tokenizer, turns, tools)
    assert targets(sample, tokenizer) == "".join(said(name, turns[place]) for place in answers)


@pytest.mark.parametrize(("name", "kind"), [each for each in CASES if each[1] not in PUBLISHED[each[0]].refuses])
def test_a_prompt_is_what_transformers_opens_generation_with(name: str, kind: str) -> None:
    tokenizer, row = tokenizer_of(name), row_of(kind)
    turns, tools = as_taken(kind, PUBLISHED[name])
    conversation = sources.reader("messages")(row)
    prompt = encode_prompt(Conversation(conversation.messages[:-1], conversation.tools), "chat", tokenizer)
    opened = by_transformers(tokenizer, turns[:-1], tools, add_generation_prompt=True)
    if name == "deepseek":  # it opens with a thought that no turn keeps
        assert tokenizer.hf.decode(opened) == tokenizer.hf.decode(prompt) + "<think>\n"
    else:
        assert prompt == opened


@pytest.mark.parametrize("name", [name for name, each in PUBLISHED.items() if "alternate" not in each.template])
def test_a_conversation_may_begin_with_the_assistant(name: str) -> None:
    """Its header, BOS and a system text that the template adds are no targets."""
    tokenizer = tokenizer_of(name)
    row = {"messages": [SAID, ASKED, MORE[1]]}
    (outcomes, _), *_ = encode_batch([sources.reader("messages")(row)], "chat", tokenizer)
    found = [targets(each, tokenizer) for each in outcomes if isinstance(each, Encoded)]
    assert "".join(found) == f"{SAID['content']}{PUBLISHED[name].end}{said(name, MORE[1])}"


@pytest.mark.parametrize(("name", "kind"), [each for each in CASES if each[1] in PUBLISHED[each[0]].refuses])
def test_what_a_template_cannot_hold_is_rejected_by_name(name: str, kind: str) -> None:
    ((outcome,), _), *_ = encode_batch([sources.reader("messages")(row_of(kind))], "chat", tokenizer_of(name))
    assert isinstance(outcome, Rejected)
    assert outcome.reason in ("chat_template_refuses", "chat_template_drops_message")
    assert outcome.detail
