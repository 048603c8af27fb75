"""Every source format: good rows, and each way a row is refused by name."""

from __future__ import annotations

import json
import typing
from typing import Any

import pytest

from conf.schema.data import Format
from data_prep import sources
from data_prep.rows.conversation import Call, Conversation, Message, Rejected, content_key, prompt_key
from data_prep.rows.record import Record
from data_prep.rows.stage import Counts


def test_module_names_are_the_schema_tags() -> None:
    tags = {*typing.get_args(Format)} - {"auto"}
    assert sources.formats() == tuple(sorted(tags))


def test_alpaca_reads_instruction_input_output() -> None:
    row = {"instruction": "Add.", "input": "1 2", "output": "3", "id": 7}
    assert sources.reader("alpaca")(row) == Conversation(
        (Message("user", "Add.", context="1 2"), Message("assistant", "3"))
    )
    for absent in ({"instruction": "Hi", "output": "Ho"}, {"instruction": "Hi", "input": None, "output": "Ho"}):
        assert sources.reader("alpaca")(absent).messages[0].context == ""


def test_prompt_completion() -> None:
    found = sources.reader("prompt_completion")({"prompt": "2+2=", "completion": "4"})
    assert found.messages == (Message("user", "2+2="), Message("assistant", "4"))


def test_prompt_and_completion_as_messages() -> None:
    """TRL's conversational rows: every turn in order, the assistant's of the completion alone are targets."""
    row = {
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": "4"},
            {"role": "user", "content": "And 3+3?"},
        ],
        "completion": [{"role": "assistant", "content": "6"}],
        "tools": [{"name": "f"}],
    }
    read = sources.reader("prompt_completion")
    found = read(row)
    assert [(each.role, each.content, each.target_weight) for each in found.messages] == [
        ("system", "Be brief.", 0.0),
        ("user", "2+2?", 0.0),
        ("assistant", "4", 0.0),
        ("user", "And 3+3?", 0.0),
        ("assistant", "6", 1.0),
    ]
    assert (found.needs_chat, found.tools) == (True, '[{"name": "f"}]')
    mixed = read({"prompt": row["prompt"], "completion": "6", "weight": 0.5})
    assert [each.content for each in mixed.messages] == [each.content for each in found.messages]
    assert mixed.messages[-1].target_weight == 0.5
    own = [{"role": "assistant", "content": "x", "weight": 1}, {"role": "user", "content": "y"}]
    assert read({"prompt": own, "completion": "z"}).messages[0].target_weight == 1.0
    with pytest.raises(Rejected, match="missing_field: 'completion' is an empty list"):
        read({"prompt": own, "completion": []})


def test_messages_need_the_chat_template() -> None:
    record = Record("f", 0, "", values={"prompt": [{"role": "user", "content": "x"}], "completion": "y"})
    with pytest.raises(Rejected, match="needs_chat_template: its turns are messages, template 'plain' writes texts"):
        sources.Read("prompt_completion", {}, frozenset(), "plain")(record, Counts())
    found = sources.Read("prompt_completion", {}, frozenset(), "chat")(record, Counts())
    assert [each.content for each in found.conversation.messages] == ["x", "y"]


@pytest.mark.parametrize(
    ("value", "text", "name"),
    [
        (1, "1", "number_as_text"),
        (-0.5, "-0.5", "number_as_text"),
        (10**30, "1" + "0" * 30, "number_as_text"),
        (True, "true", "boolean_as_text"),
        (False, "false", "boolean_as_text"),
        ("1", "1", None),
    ],
)
def test_numbers_and_booleans_are_text_as_json_spells_them(value: Any, text: str, name: str | None) -> None:
    counts = Counts()
    read = sources.Read("alpaca", {}, frozenset(), "alpaca")
    for row in ({"instruction": value, "input": value, "output": value}, {"instruction": "x", "output": "y"}):
        last = read(Record("f", 0, "", values=row), counts)
        assert last.conversation.messages[1].content == (text if row["output"] == value else "y")
    assert counts.normalised == ({name: 1} if name else {})
    qa = sources.reader("qa")({"question": "?", "answer": value, "options": [value, "no"]})
    assert qa.messages[0].content == f"?\nOptions:\n- {text}\n- no"
    assert sources.reader("niv2")({"Definition": "d", "input": value, "output": [value]}).messages[1].content == text


def test_null_and_nan_are_absent() -> None:
    for absent in (None, float("nan")):
        found = sources.reader("alpaca")({"instruction": "Hi", "input": absent, "output": "Ho"})
        assert found.messages[0].context == ""
        with pytest.raises(Rejected, match="missing_field: 'output' is null"):
            sources.reader("alpaca")({"instruction": "Hi", "output": absent})


def test_a_system_turn_without_text_is_no_turn() -> None:
    counts = Counts()
    openai = [{"role": "system", "content": None}, {"role": "user", "content": "x"}]
    row = {"messages": openai, "conversations": [{"from": "system", "value": None}, {"from": "human", "value": "x"}]}
    for kind in ("messages", "sharegpt"):
        found = sources.Read(kind, {}, frozenset(), "chat")(Record("f", 0, "", values=row), counts)
        assert found.conversation.messages == (Message("user", "x"),)
    assert counts.normalised == {"null_system_turn": 2}
    empty = [{"role": "system", "content": ""}, {"role": "user", "content": "x"}]
    assert len(sources.reader("messages")({"messages": empty}).messages) == 2  # it says something: no system text


def test_sharegpt_roles_tools_and_system() -> None:
    row = {
        "system": "Be brief.",
        "tools": '[{"name": "f"}]',
        "conversations": [
            {"from": "human", "value": "Hi"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
            {"from": "observation", "value": "42"},
            {"from": "gpt", "value": "42", "train": False},
        ],
    }
    found = sources.reader("sharegpt")(row)
    assert [message.role for message in found.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert [message.is_target for message in found.messages] == [False, False, True, False, False]
    assert found.messages[2].calls == (Call("f", '{"a": 1}'),)
    assert found.tools == '[{"name": "f"}]'
    assert sources.reader("sharegpt")({**row, "tools": "[]"}).tools is None


def test_messages_parts_tool_calls_and_weight() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    row = {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "1"},
            {"role": "assistant", "content": "one", "weight": 0},
        ],
        "tools": [{"name": "f"}],
    }
    found = sources.reader("messages")(row)
    assert [message.role for message in found.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert found.messages[1].content == "ab"
    assert found.messages[2].content == ""
    assert found.messages[2].calls == (Call("f", '{"x": 1}'),)
    assert [message.is_target for message in found.messages] == [False, False, True, False, False]
    assert json.loads(found.tools or "") == [{"name": "f"}]


def test_older_spellings_of_tools() -> None:
    row = {
        "functions": [{"name": "f"}],
        "messages": [
            {"role": "user", "content": "Go"},
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": "1"},
            {"role": "assistant", "content": "Gone", "function_call": None, "tool_calls": None},
        ],
    }
    found = sources.reader("messages")(row)
    assert [message.role for message in found.messages] == ["user", "assistant", "tool", "assistant"]
    assert found.messages[1].calls == (Call("f"),)
    assert found.messages[2].name == "f"
    assert found.messages[3].content == "Gone"
    assert json.loads(found.tools or "") == [{"name": "f"}]
    shared = {"tools": [{"name": "f"}], "conversations": [{"from": "gpt", "value": "x"}]}
    assert sources.reader("sharegpt")(shared).tools == '[{"name": "f"}]'


def test_rows_whose_fields_have_other_names() -> None:
    dolly = {"instruction": "Add.", "context": "1 2", "response": "3", "category": "x"}
    read = sources.reader("alpaca", {"input": "context", "output": "response"})
    assert read(dolly).messages == (Message("user", "Add.", context="1 2"), Message("assistant", "3"))
    with pytest.raises(Rejected, match="missing_field: no 'output' among context, input, instruction"):
        read({"instruction": "Add.", "context": "1 2"})


@pytest.mark.parametrize(
    ("kind", "row", "reason"),
    [
        ("alpaca", {"instruction": "x"}, "missing_field"),
        ("alpaca", {"instruction": None, "output": "x"}, "missing_field"),
        ("alpaca", {"instruction": "x", "output": {}}, "non_string_field"),
        ("alpaca", {"instruction": "x", "input": ["y"], "output": "z"}, "non_string_field"),
        ("prompt_completion", {"question": "x", "answer": "y"}, "missing_field"),
        ("sharegpt", {"conversations": []}, "missing_field"),
        ("sharegpt", {"conversations": ["x"]}, "non_mapping_turn"),
        ("sharegpt", {"conversations": [{"from": "alien", "value": "x"}]}, "unknown_role"),
        ("sharegpt", {"conversations": [{"from": "gpt", "value": "x", "weight": -0.5}]}, "bad_supervised_flag"),
        ("messages", {}, "missing_field"),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "non_text_content"),
        ("messages", {"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}, "bad_tool_call"),
        ("messages", {"messages": [{"role": "assistant", "tool_calls": {"name": "f"}}]}, "bad_tool_call"),
    ],
)
def test_refused_by_name(kind: str, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(Rejected) as caught:
        sources.reader(kind)(row)
    assert caught.value.reason == reason


def test_prompt_key_ignores_case_space_and_answer() -> None:
    def key(question: str, answer: str) -> int:
        return prompt_key(Conversation((Message("user", question), Message("assistant", answer))))

    assert key("What  is\n1+1?", "2") == key("what is 1+1? ", "two")
    assert key("What is 1+1?", "2") != key("What is 1+2?", "2")


def test_content_key_tells_fields_apart() -> None:
    def key(content: str, context: str) -> int:
        return content_key(Conversation((Message("user", content, context=context),)))

    assert key("ab", "c") != key("a", "bc")
    assert key("ab", "c") == key("ab", "c")


def test_fields_may_lie_deeper_in_the_row() -> None:
    read = sources.reader("alpaca", {"input": "instances.0.input", "output": "instances.0.output"})
    row: dict[str, object] = {"instruction": "Add.", "instances": [{"input": "2 2", "output": "4"}]}
    question, answer = read(row).messages
    assert (question.context, answer.content) == ("2 2", "4")
    assert read(row | {"instances.0.output": "four"}).messages[1].content == "four"  # a field of that very name
    for other in ([], [3], {"0": {}}, "text", None):
        with pytest.raises(Rejected, match="missing_field"):
            read(row | {"instances": other})
