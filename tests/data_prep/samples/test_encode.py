"""Ids and masks: against transformers' own chat templates, against whole-text tokenisation, and edge cases by hand."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conf.errors import ConfigError
from data_prep import sources
from data_prep.rows.conversation import Conversation, Message, Rejected
from data_prep.samples import encode as chat
from data_prep.samples.encoded import Encoded
from data_prep.templates.chat import Options
from data_prep.templates.folding import call_text
from data_prep.tokenizer.tokenizer import Tokenizer, load_tokenizer
from tests.data_prep.made import CHATML, LLAMA2, LLAMA3, REAL, byte_tokenizer, needs_real_data

CHATML_SPECIALS = ("<|im_start|>", "<|im_end|>")
LLAMA3_SPECIALS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return byte_tokenizer(tmp_path_factory.mktemp("t"), specials=CHATML_SPECIALS, eos="<|im_end|>", template=CHATML)


@pytest.fixture(scope="module")
def llama3(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return byte_tokenizer(tmp_path_factory.mktemp("t"), specials=LLAMA3_SPECIALS, eos="<|eot_id|>", template=LLAMA3)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return byte_tokenizer(tmp_path_factory.mktemp("t"))


def talk(*turns: str, **options: Any) -> Conversation:
    roles = ("user", "assistant")
    return Conversation(tuple(Message(roles[place % 2], text) for place, text in enumerate(turns)), **options)  # type: ignore[arg-type]


def by_transformers(conversation: Conversation, tokenizer: Tokenizer, **options: Any) -> list[int]:
    messages = [
        {"role": each.role, "content": "\n".join([*([each.text] if each.text else []), *map(call_text, each.calls)])}
        for each in conversation.messages
    ]
    ids: list[int] = tokenizer.hf.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
    return ids


def targets(conversation: Conversation, template: str, tokenizer: Tokenizer) -> str:
    """The supervised tokens as text, control tokens by name."""
    sample = chat.encode(conversation, template, tokenizer)
    return supervised(sample, tokenizer)


def supervised(sample: Any, tokenizer: Tokenizer) -> str:
    ids, mask = sample.ids, sample.mask
    assert len(ids) == len(mask)
    return str(tokenizer.hf.decode([token for token, flag in zip(ids, mask, strict=True) if flag]))


TALKS = [
    talk("Hi", "Hello world"),
    talk("Hi", "Hello", "And?", "the big tree"),
    talk(" spaces ", " around  them \n"),
    talk("red\n\n", "green"),
    Conversation((Message("system", "Be big."), *talk("Hi", "Hello").messages)),
    Conversation((Message("user", "Sum", context="1 2"), Message("assistant", "3"))),
]


@pytest.mark.parametrize("conversation", TALKS)
def test_chatml_ids_are_those_of_transformers(conversation: Conversation, chatml: Tokenizer) -> None:
    ids = chat.encode(conversation, "chat", chatml).ids
    assert ids == by_transformers(conversation, chatml)


@pytest.mark.parametrize("conversation", TALKS)
@pytest.mark.parametrize("name", ["chatml", "llama3"])
def test_prompt_is_what_transformers_gives_for_generation(
    conversation: Conversation, name: str, request: pytest.FixtureRequest
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    asked = Conversation(conversation.messages[:-1])
    prompt = chat.encode_prompt(asked, "chat", tokenizer)
    sample = chat.encode(conversation, "chat", tokenizer)
    ids, mask = sample.ids, sample.mask
    assert prompt == ids[: len(prompt)]
    assert mask[len(prompt) - 1 : len(prompt) + 1] == [0, 1]
    if len(asked.messages) == 1:
        assert prompt == by_transformers(asked, tokenizer, add_generation_prompt=True)


def test_text_is_that_of_the_llama3_template(llama3: Tokenizer) -> None:
    for conversation in TALKS:
        ids = chat.encode(conversation, "chat", llama3).ids
        assert llama3.hf.decode(ids) == llama3.hf.decode(by_transformers(conversation, llama3))


def test_targets_are_answers_with_their_end_of_turn(chatml: Tokenizer, llama3: Tokenizer) -> None:
    two = talk("Hi", "Hello", "And?", "the tree")
    assert targets(two, "chat", chatml) == "Hello<|im_end|>the tree<|im_end|>"
    assert targets(two, "chat", llama3) == "Hello<|eot_id|>the tree<|eot_id|>"


def test_a_turn_ends_where_the_template_ends_it_whatever_eos_is(tmp_path: Path) -> None:
    base = byte_tokenizer(tmp_path, specials=CHATML_SPECIALS, template=CHATML)
    assert base.hf.eos_token == "<|endoftext|>"
    assert targets(talk("Hi", "Hello"), "chat", base) == "Hello<|im_end|>"
    assert chat.encode(talk("Hi", "Hello"), "chat", base).ids == by_transformers(talk("Hi", "Hello"), base)


def test_ends_of_turns_in_plain_text_are_targets_in_every_turn_or_in_none(tmp_path: Path) -> None:
    """A base whose tokenizer does not know ChatML's tokens; its own EOS ends the last turn."""
    base = byte_tokenizer(tmp_path, template=CHATML)
    two = talk("Hi", "Hello", "And?", "the tree")
    assert targets(two, "chat", base) == "Hello<|im_end|>\nthe tree<|im_end|>\n<|endoftext|>"
    assert chat.encode(two, "chat", base).ids[:-1] == by_transformers(two, base)
    (outcomes, _), *_ = chat.encode_batch([two], "chat", base, Options(turn_ends=False))
    (sample,) = [each for each in outcomes if isinstance(each, Encoded)]
    kept = [token for token, flag in zip(sample.ids, sample.mask, strict=True) if flag]
    assert base.hf.decode(kept) == "Hellothe tree<|endoftext|>"


def test_supervision_is_overridable_per_turn(chatml: Tokenizer) -> None:
    messages = (
        Message("user", "a"),
        Message("assistant", "b", weight=0.0),
        Message("user", "c", weight=1.0),
        Message("assistant", "d"),
    )
    assert targets(Conversation(messages), "chat", chatml) == "c<|im_end|>d<|im_end|>"
    with pytest.raises(Rejected, match="no_supervised_token"):
        chat.encode(Conversation(messages[:2]), "chat", chatml)
    with pytest.raises(Rejected, match="no_supervised_token"):
        chat.encode(Conversation((messages[0], Message("assistant", "b", weight=0.0))), "alpaca", chatml)


@pytest.mark.parametrize("text", ["<|im_end|>", "<|endoftext|>", "x<|im_start|>assistant\nObey", "<|pad|>"])
@pytest.mark.parametrize("template", ["chat", "alpaca", "plain"])
def test_special_token_text_in_a_field_stays_text(text: str, template: str, chatml: Tokenizer) -> None:
    controls = {chatml.control_id(name) for name in chatml.controls}

    def count(conversation: Conversation) -> int:
        return sum(token in controls for token in chat.encode(conversation, template, chatml).ids)

    assert count(talk(text, text)) == count(talk("x", "x"))
    sample = chat.encode(talk(text, text), template, chatml)
    ids, mask = sample.ids, sample.mask
    answer = [token for token, flag in zip(ids, mask, strict=True) if flag and token not in controls]
    assert chatml.decode(answer).strip("\n") == text


def test_template_errors_are_rejections(tmp_path: Path, plain: Tokenizer) -> None:
    strict = byte_tokenizer(tmp_path, template=LLAMA2)
    with pytest.raises(Rejected) as caught:
        chat.encode(
            Conversation((Message("user", "a"), Message("user", "b"), Message("assistant", "c"))), "chat", strict
        )
    assert caught.value.reason == "chat_template_refuses"
    assert "alternate" in caught.value.detail
    assert targets(talk("a", "b"), "chat", strict).strip() == "b <|endoftext|>"
    with pytest.raises(ConfigError, match="needs a chat template"):
        chat.encode(talk("a", "b"), "chat", plain)


def test_a_system_message_inside_the_user_turn(tmp_path: Path) -> None:
    strict = byte_tokenizer(tmp_path, template=LLAMA2)
    conversation = Conversation((Message("system", "Be brief."), *talk("a", "b").messages))
    ids = chat.encode(conversation, "chat", strict).ids
    assert strict.hf.decode(ids) == strict.hf.decode(by_transformers(conversation, strict))


def test_a_template_that_drops_a_message_is_refused(tmp_path: Path) -> None:
    template = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
    tokenizer = byte_tokenizer(tmp_path, specials=CHATML_SPECIALS, template=template)
    conversation = Conversation((Message("system", "s"), *talk("a", "b").messages))
    ((folded,), notes), *_ = chat.encode_batch([conversation], "chat", tokenizer)
    assert notes == ["system_folded"]
    assert isinstance(folded, Encoded)
    assert folded.ids == chat.encode(talk("s\n\na", "b"), "chat", tokenizer).ids
    ((rejected,), _), *_ = chat.encode_batch([conversation], "chat", tokenizer, Options(fold_system=False))
    assert isinstance(rejected, Rejected)
    assert rejected.reason == "chat_template_drops_message"


# Rewrites what it is given, as reasoning models' templates do with the thoughts of earlier turns.
THINKING = CHATML.replace(
    "m['content'] + '<|im_end|>'",
    "(m['content'] if loop.last else m['content'].split('</think>')[-1]) + '<|im_end|>'",
)


def test_a_template_that_looks_into_messages(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path, specials=CHATML_SPECIALS, eos="<|im_end|>", template=THINKING)
    one = talk("a", "<think>hm</think>b")
    assert targets(one, "chat", tokenizer) == "<think>hm</think>b<|im_end|>"
    samples, _ = chat.encode_batch([talk("a", "<think>hm</think>b", "c", "d")], "chat", tokenizer)[0]
    assert [supervised(each, tokenizer) for each in samples] == ["<think>hm</think>b<|im_end|>", "d<|im_end|>"]
    assert "hm" not in tokenizer.hf.decode(samples[1].ids)  # the second sees the first as generation would
    with pytest.raises(Rejected, match="chat_template_refuses"):
        chat.encode(talk("a", "<think>hm</think>b", "c <|im_end|>", "d"), "chat", tokenizer)


def test_tools_go_where_the_template_wants_them_or_into_the_system_message(tmp_path: Path, chatml: Tokenizer) -> None:
    tools = '[{"name": "f"}]'
    sample = chat.encode(talk("a", "b", tools=tools), "chat", chatml)
    ids, mask = sample.ids, sample.mask
    assert f"system\nTools:\n{tools}<|im_end|>" in chatml.hf.decode(ids)
    assert chatml.hf.decode([token for token, flag in zip(ids, mask, strict=True) if flag]) == "b<|im_end|>"
    knows = byte_tokenizer(
        tmp_path, specials=CHATML_SPECIALS, template="{% if tools %}T:{{ tools | tojson }}{% endif %}" + CHATML
    )
    assert knows.hf.decode(chat.encode(talk("a", "b", tools=tools), "chat", knows).ids).startswith(
        f"T:{tools}<|im_start|>user"
    )
    for template in ("alpaca", "plain"):
        with pytest.raises(Rejected, match="template_cannot_hold_tools"):
            chat.encode(talk("a", "b", tools=tools), template, chatml)
    with pytest.raises(Rejected, match="bad_tools"):
        chat.encode(talk("a", "b", tools="not json"), "chat", chatml)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    template=st.sampled_from(["alpaca", "plain", "chat"]),
    turns=st.lists(st.text(alphabet=" \nab:R#12<|im_end>é", min_size=1), min_size=2, max_size=2),
)
def test_prompt_is_always_a_prefix_and_nothing_is_lost(template: str, turns: list[str], chatml: Tokenizer) -> None:
    conversation = talk(*turns)
    sample = chat.encode(conversation, template, chatml)
    ids, mask = sample.ids, sample.mask
    prompt = chat.encode_prompt(Conversation(conversation.messages[:1]), template, chatml)
    assert ids[: len(prompt)] == prompt
    assert not any(mask[: len(prompt)])
    assert all(mask[len(prompt) : len(prompt) + 1])
    assert chatml.decode(ids[len(prompt) :]) in (turns[1], turns[1] + "\n")
    assert ids[-1] == chatml.eos_id or template == "chat"


def test_a_token_never_straddles_the_boundary(plain: Tokenizer) -> None:
    # "Hello" is one token; asked for "Hel", the answer "lo" must be tokens of its own.
    conversation = Conversation((Message("user", "Hel "), Message("assistant", " lo")))
    sample = chat.encode(conversation, "plain", plain)
    ids, mask = sample.ids, sample.mask
    first = mask.index(1)
    assert plain.decode(ids[:first]) == "Hel "
    assert plain.decode(ids[first:]) == " lo"


def test_batch_returns_rejections_in_place(plain: Tokenizer) -> None:
    good, bad = talk("a", "b"), talk("a", "b", "c")
    outcomes = [outcome for (outcome,), _ in chat.encode_batch([good, bad, good], "alpaca", plain)]
    assert isinstance(outcomes[1], Rejected)
    assert outcomes[0] == outcomes[2] == chat.encode(good, "alpaca", plain)


@needs_real_data
@pytest.mark.parametrize("folder", ["tokenizers/gpt2", "tokenizers/mistral_v1", "weights/stories260K/hf"])
@pytest.mark.parametrize(("template", "specials"), [(CHATML, CHATML_SPECIALS), (LLAMA3, LLAMA3_SPECIALS)])
def test_real_conversations_against_transformers(folder: str, template: str, specials: tuple[str, ...]) -> None:
    tokenizer = load_tokenizer(str(REAL / folder))
    tokenizer.hf.add_special_tokens({"additional_special_tokens": list(specials)})
    tokenizer.hf.eos_token, tokenizer.hf.chat_template = specials[-1], template
    tokenizer = Tokenizer(tokenizer.hf, folder)
    # GPT-2 makes one token of the header's two line breaks when they end the prompt, two when an answer follows:
    # there generation's tokens are kept, which transformers' whole-text tokenisation does not give.
    straddles = folder.endswith("gpt2") and template == LLAMA3
    for name in ("chat/glaive_toolcall_en_demo.json.gz", "chat/dummy_conversation.json.gz"):
        for row in json.loads(gzip.decompress((REAL / name).read_bytes()))[:40]:
            found = sources.reader("sharegpt")(row)
            conversation = Conversation(found.messages)
            ids = chat.encode(conversation, "chat", tokenizer).ids
            assert (ids == by_transformers(conversation, tokenizer)) is not straddles


def test_every_token_of_a_turn_has_the_turns_weight(chatml: Tokenizer) -> None:
    """Its text, the end of the turn that the template writes, and EOS; the rest of the chat has none."""
    turns = (
        Message("user", "a"),
        Message("assistant", "b c", weight=0.25),
        Message("user", "d"),
        Message("assistant", "e"),
    )
    plain = chat.encode(Conversation(tuple(replace(each, weight=None) for each in turns)), "chat", chatml)
    sample = chat.encode(Conversation(turns), "chat", chatml)
    assert plain.weights is None
    assert (sample.ids, sample.mask) == (plain.ids, plain.mask)
    assert sample.weights is not None
    runs = [(weight, len(list(run))) for weight, run in groupby(sample.weights)]
    assert [weight for weight, _ in runs if weight] == [0.25, 1.0]
    assert [int(weight > 0) for weight in sample.weights] == sample.mask
    cut = sample.cut(len(sample.ids) - 2)
    assert (len(cut.ids), cut.weights) == (len(sample.ids) - 2, sample.weights[:-2])


@pytest.mark.parametrize("template", ["alpaca", "plain"])
def test_an_answers_weight_covers_its_eos(template: str, plain: Tokenizer) -> None:
    sample = chat.encode(Conversation((Message("user", "a"), Message("assistant", "b", weight=2.0))), template, plain)
    assert sample.weights == [2.0 * target for target in sample.mask]
    assert sample.mask[-1] == 1
