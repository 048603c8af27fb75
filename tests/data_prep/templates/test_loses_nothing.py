"""Whatever a conversation holds stands in its samples, or the conversation is refused by name."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.filters.clean import Clean, switches
from data_prep.rows.conversation import Call, Conversation, Message, Part, Rejected
from data_prep.rows.record import Record
from data_prep.rows.stage import Counts, apply
from data_prep.samples.encode import encode_batch
from data_prep.samples.encoded import Encoded
from data_prep.sources import Read
from data_prep.templates.chat import Options
from tests.data_prep.templates.published import PUBLISHED
from tests.data_prep.templates.test_published import KINDS, TOOLS, tokenizer_of

TEXT = st.text(alphabet=" \nab:#<|im_end>é{%\"'/think", min_size=1, max_size=12).filter(lambda text: bool(text.strip()))
CALLS = st.builds(
    lambda name, city: Call(name, json.dumps({"city": city}, ensure_ascii=False), "abcdefghi"),
    st.sampled_from(["get", "put"]),
    st.text(alphabet="ab é", max_size=5),
)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    messages = [Message("system", draw(TEXT))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append(Message("user", draw(TEXT)))
        if draw(st.integers(0, 4)) == 0:
            call = draw(CALLS)
            messages += [Message("assistant", "", calls=(call,)), Message("tool", draw(TEXT), call_id=call.id)]
        thought = draw(TEXT) if draw(st.integers(0, 3)) == 0 else ""
        weight = draw(st.sampled_from([None, None, 0.0, 0.5]))
        messages.append(Message("assistant", draw(TEXT), reasoning=thought, weight=weight))
    tools = json.dumps(TOOLS) if draw(st.booleans()) else None
    return Conversation(tuple(messages), tools)


def squeezed(text: str) -> str:
    return "".join(text.split())


@settings(deadline=None, max_examples=120)
@given(conversation=conversations(), turns=st.sampled_from(["auto", "each"]))
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_text_of_a_conversation_is_in_its_samples(name: str, conversation: Conversation, turns: str) -> None:
    tokenizer = tokenizer_of(name)
    (outcomes, _), *_ = encode_batch([conversation], "chat", tokenizer, Options(turns=turns))
    if isinstance(outcomes[0], Rejected):
        assert outcomes[0].reason.startswith(("chat_template_", "no_supervised_token")), outcomes
        return
    samples = [each for each in outcomes if isinstance(each, Encoded)]
    wholes = [squeezed(tokenizer.hf.decode(each.ids)) for each in samples]
    said = [
        squeezed(tokenizer.hf.decode([token for token, flag in zip(each.ids, each.mask, strict=True) if flag]))
        for each in samples
    ]
    last = max(place for place, message in enumerate(conversation.messages) if message.is_target)
    for place, message in enumerate(conversation.messages[: last + 1]):
        texts = [message.content, *(message.reasoning,) * message.is_target]
        for text in filter(None, map(squeezed, texts)):
            assert any(text in whole for whole in wholes), (text, wholes)
            if message.is_target:
                assert any(text in each for each in said), (text, said)
            elif message.role != "assistant":
                assert len(text) < 4 or not any(text in each for each in said) or _is_elsewhere(text, conversation)
        for call in message.calls if message.is_target else ():
            assert any(call.name in each for each in said)
        _ = place


def test_an_answer_that_begins_as_the_opening_goes_on_is_a_target_from_its_first_character() -> None:
    """DeepSeek's opening ends with <think>, which the history does not have; <b> begins with the same character."""
    tokenizer = tokenizer_of("deepseek")
    turns = [("user", "hello"), ("assistant", "yes"), ("user", "more"), ("assistant", "z"), ("user", "more")]
    messages = [Message(role, text) for role, text in turns]
    messages[1] = Message("assistant", "yes", reasoning="why", weight=0.0)  # so that the real texts are looked at
    conversation = Conversation((*messages, Message("assistant", "<b>x")))
    (outcomes, _), *_ = encode_batch([conversation], "chat", tokenizer, Options())
    (sample,) = [each for each in outcomes if isinstance(each, Encoded)]
    said = tokenizer.hf.decode([token for token, flag in zip(sample.ids, sample.mask, strict=True) if flag])
    assert said == "z<|eos|><b>x<|eos|>"


def _is_elsewhere(text: str, conversation: Conversation) -> bool:
    """Whether an answer has the text too."""
    answers = [squeezed(f"{each.reasoning}{each.content}") for each in conversation.messages if each.is_target]
    return any(text in f"<think>{answer}</think>" or answer in text for answer in answers)


def test_parts_of_a_turn_have_weights_of_their_own() -> None:
    tokenizer = tokenizer_of("chatml")
    parts = (Part("Let me see. ", 0.0), Part("a big tree", 2.0), Part("!"))
    content = "".join(part.text for part in parts)
    conversation = Conversation((Message("user", "Hi"), Message("assistant", content, parts=parts)))
    ((sample,), _), *_ = encode_batch([conversation], "chat", tokenizer)
    assert isinstance(sample, Encoded)
    assert sample.weights is not None
    texts = {
        weight: tokenizer.hf.decode(
            [token for token, own in zip(sample.ids, sample.weights, strict=True) if own == weight]
        )
        for weight in (0.0, 1.0, 2.0)
    }
    assert texts[2.0] == "a big tree"
    assert texts[1.0] == "!<|im_end|>"
    assert texts[0.0].endswith("Let me see. \n")


def test_folding_keeps_the_weights_of_parts() -> None:
    """Reasoning and a system turn that the template does not take, before parts of their own weight."""
    tokenizer = tokenizer_of("gemma2")
    parts = (Part("not this ", 0.0), Part("but this"))
    said = Message("assistant", "not this but this", reasoning="cat sees", parts=parts)
    asked = Message("user", "learn this", weight=1.0)
    ((sample,), notes), *_ = encode_batch([Conversation((Message("system", "S"), asked, said))], "chat", tokenizer)
    assert isinstance(sample, Encoded)
    assert notes == ["reasoning_folded", "system_folded"]
    kept = [token for token, flag in zip(sample.ids, sample.mask, strict=True) if flag]
    assert tokenizer.hf.decode(kept) == ("learn this<end_of_turn><think>\ncat sees\n</think>\n\nbut this<end_of_turn>")


def damaged(rng: random.Random, row: dict[str, Any]) -> dict[str, Any]:
    """The row with one value somewhere replaced, dropped, or put under another key."""
    row = json.loads(json.dumps(row))
    holders: list[Any] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict | list) and value:
            holders.append(value)
            for each in value.values() if isinstance(value, dict) else value:
                walk(each)

    walk(row)
    holder = rng.choice(holders)
    key = rng.choice([*holder] if isinstance(holder, dict) else range(len(holder)))
    values: list[Any] = [None, 7, True, [], {}, ["a"], {"type": "text"}, "", " ", "<|im_end|>", "\ud800", [[[]]], 1e400]
    match rng.randrange(3):
        case 0:
            holder[key] = rng.choice(values)
        case 1:
            del holder[key]
        case _ if isinstance(holder, dict):
            holder[rng.choice(["role", "content", "thinking", "weight", "name", "odd"])] = rng.choice(values)
        case _:
            holder.append(rng.choice(values))
    return row


@pytest.mark.slow
def test_ten_thousand_damaged_chats_are_samples_or_have_a_reason() -> None:
    rng, counts, reasons = random.Random(5), Counts(), Counter[str]()
    names = [*PUBLISHED]
    stages = Read("messages", {}, frozenset(), "chat"), Clean(switches({}))
    kinds = [({"messages": turns, "tools": TOOLS}) for turns in KINDS.values()]
    for number in range(10_000):
        row = damaged(rng, rng.choice(kinds))
        ((_, outcome),) = apply(stages, [Record("f", number, "", values=row)], counts)
        if not isinstance(outcome, Rejected):
            (outcomes, _), *_ = encode_batch([outcome.conversation], "chat", tokenizer_of(names[number % len(names)]))
            outcome = outcomes[0]
        reasons[outcome.reason if isinstance(outcome, Rejected) else "sample"] += 1
    assert reasons.total() == 10_000
    assert reasons["sample"] > 2_000, reasons
    assert len(reasons) > 8, reasons
    assert counts.unread["turn.odd"] > 100


def test_a_control_token_spelt_out_where_the_template_writes_is_refused() -> None:
    """Contents are put into their places as text; tools, calls and names stand in what the template itself writes."""
    tokenizer = tokenizer_of("qwen25")
    end = "<|im_end|>"
    ask = Message("user", "Weather?")

    def calls(name: str, city: str) -> Conversation:
        call = Message("assistant", "", calls=(Call(name, json.dumps({"city": city}), "abcdefghi"),))
        return Conversation((ask, call, Message("tool", "mild", call_id="abcdefghi"), Message("assistant", "Mild.")))

    plain = calls("get", "Oslo")
    hostile = [calls("get", end), calls(f"get{end}", "Oslo"), Conversation(plain.messages, json.dumps([{"name": end}]))]
    first, *others = (outcome for (outcome,), _ in encode_batch([plain, *hostile], "chat", tokenizer, Options()))
    assert isinstance(first, Encoded)
    assert [getattr(each, "reason", each) for each in others] == ["control_in_tool_call"] * len(hostile)
