"""What is proposed for rows is tried: it reads them, as the rows mean it, and composes on a command line."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.compose import compose
from conf.judge import validate
from conf.schema import to_dict
from data_prep import sources
from data_prep.advice import detect
from data_prep.rows.conversation import Message, Rejected
from data_prep.rows.files import parse, rows
from data_prep.sources import reader

TURN = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
SHARED = {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}
ALPACA = {"input": "context", "output": "response"}
KNOWN: list[tuple[dict[str, Any], str, dict[str, str]]] = [
    ({"instruction": "Q", "input": "C", "output": "A"}, "alpaca", {}),
    ({"instruction": "Q", "output": "A", "system": "S", "history": []}, "alpaca", {}),
    ({"instruction": "Q", "input": "", "output": "A", "response": "other"}, "alpaca", {}),
    ({"instruction": "Q", "context": "C", "response": "A", "category": "x"}, "alpaca", ALPACA),  # Dolly
    ({"question": "Q", "answer": "A"}, "qa", {}),  # GSM8K
    ({"question": "Q", "answer": 4}, "qa", {}),
    ({"question": "Q", "answer": "A", "options": ["A", "B"]}, "qa", {}),
    ({"Question": "Q", "Answer": "A"}, "prompt_completion", {"prompt": "Question", "completion": "Answer"}),
    (
        {"question": "Q", "context": "C", "answer": "A"},
        "alpaca",
        {"instruction": "question", "input": "context", "output": "answer"},
    ),
    (
        {"question": "Q", "context": "C", "answers": {"text": ["A"], "answer_start": [0]}},  # SQuAD
        "alpaca",
        {"instruction": "question", "input": "context", "output": "answers.text.0"},
    ),
    ({"question": "Q", "answer": ["A", "B"]}, "prompt_completion", {"prompt": "question", "completion": "answer.0"}),
    ({"prompt": "Q", "completion": "A"}, "prompt_completion", {}),
    ({"prompt": "Q", "response": "A"}, "prompt_completion", {"completion": "response"}),
    ({"prompt": [TURN[0]], "completion": [TURN[1]]}, "prompt_completion", {}),
    ({"input": "Q", "output": "A"}, "prompt_completion", {"prompt": "input", "completion": "output"}),
    ({"inputs": "Q", "targets": "A"}, "p3", {}),
    ({"messages": list(TURN)}, "messages", {}),
    ({"conversation": list(TURN), "id": 3}, "messages", {"messages": "conversation"}),
    ({"conversations": list(TURN)}, "messages", {"messages": "conversations"}),
    ({"conversations": list(SHARED)}, "sharegpt", {}),
    ({"dialog": list(SHARED)}, "sharegpt", {"conversations": "dialog"}),
    ({"Definition": ["Q"], "input": "C", "output": ["A"]}, "niv2", {}),
]


@pytest.mark.parametrize(("row", "kind", "fields"), KNOWN)
def test_rows_in_use(row: dict[str, Any], kind: str, fields: dict[str, str]) -> None:
    best = detect.detect([row, row])[0]
    assert (best.format, dict(best.fields)) == (kind, fields)
    assert "; 2 of 2 rows read" in best.evidence
    *_, asked, answer = reader(best.format, best.fields)(row).messages
    assert answer == Message("assistant", "4" if row.get("answer") == 4 else "A")
    assert asked.content.startswith("Q")
    assert asked.context == ("C" if "C" in row.values() else "")


@pytest.mark.parametrize(("row", "kind", "fields"), KNOWN)
def test_the_settings_compose_as_they_are_printed(row: dict[str, Any], kind: str, fields: dict[str, str]) -> None:
    words = shlex.split(" ".join(detect.detect([row])[0].settings("alpaca")))
    plain = to_dict(compose(["data=alpaca", "data.sources.alpaca.template=auto", *words]))
    leaf = validate(plain).data.sources["alpaca"]
    assert (leaf.format, leaf.fields) == (kind, fields)
    chat = kind in ("messages", "sharegpt") or isinstance(row.get("prompt"), list)
    assert leaf.template == ("chat" if chat else "auto")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "Q", "chosen": "A", "rejected": "B"}, "preference pairs"),
        ({"chosen": list(TURN), "rejected": list(TURN)}, "preference pairs"),
        ({"prompt": "Q", "completion": "A", "label": True}, "single preferences"),
        ({"text": "Once upon a time"}, "no answer to train on"),
        ({"input_ids": [1, 2], "labels": [1, 2]}, "token ids already"),
        ({"fields": ["question", "answer"]}, r"\.tsv file.* name the file \.csv"),
        ({"data": [{"instruction": "Q", "output": "A"}]}, "stand in a list under 'data'"),
    ],
)
def test_rows_that_no_format_should_read(row: dict[str, Any], why: str) -> None:
    assert detect.detect([row]) == []
    said = detect.unreadable([row])
    assert said is not None
    assert re.search(why, said)


def test_a_bad_first_row_does_not_hide_the_format() -> None:
    found = detect.detect([{"question": None, "answer": "A"}, {"id": 1}, {"question": "Q", "answer": "A"}])
    assert (found[0].format, round(found[0].share, 2)) == ("qa", 0.33)
    assert detect.detect([]) == detect.detect([{"id": 1, "score": 2.0}]) == []


@pytest.mark.parametrize(
    ("path", "kind", "fields"),
    [
        ("alpaca/alpaca_data.json.gz", "alpaca", {}),
        ("dolly/dolly_3k.json.gz", "alpaca", {}),
        ("codealpaca/new_codealpaca.json.gz", "alpaca", {}),
        ("gsm8k/train.jsonl.gz", "qa", {}),
        ("bbh/bbh.jsonl.gz", "prompt_completion", {"prompt": "input", "completion": "target"}),
        ("t0_sf/t0_sf_sample.jsonl.gz", "prompt_completion", {}),
        ("chat/dummy_conversation.json.gz", "sharegpt", {}),
        ("chat/glaive_toolcall_en_demo.json.gz", "sharegpt", {}),
        ("flan_cot/gsm8k_train.tsv.gz", None, {}),
    ],
)
def test_real_files(path: str, kind: str | None, fields: dict[str, str], real_data: Any) -> None:
    first = [parse(record.text) for record, _ in zip(rows(real_data(path)), range(20), strict=False)]
    found = detect.detect(first)
    assert (found[0].format, found[0].fields, found[0].share) == (kind, fields, 1.0) if kind else not found


Scalar = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
Nested = st.recursive(
    Scalar,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "text"]), inner, max_size=3)
    ),
    max_leaves=6,
)
Names = st.sampled_from([*detect.QUESTIONS, *detect.ANSWERS, *detect.CONTEXTS, *detect.TURNS, "id", "", "a b", "ü: {"])
Rows = st.lists(st.dictionaries(Names, Nested, max_size=5), max_size=4)


@settings(max_examples=300, deadline=None)
@given(Rows)
def test_whatever_is_proposed_reads_that_share_of_the_rows(found: list[dict[str, Any]]) -> None:
    before = repr(found)
    fits = detect.detect(found)
    assert repr(found) == before
    assert [fit.share for fit in fits] == sorted((fit.share for fit in fits), reverse=True)
    assert len({(fit.format, *fit.fields.items()) for fit in fits}) == len(fits)
    assert not fits or detect.unreadable(found) is None
    for fit in fits:
        assert fit.format in sources.formats()
        assert round(fit.share * len(found)) == sum(reads(fit, row) for row in found) > 0
    for row in found:
        assert detect.keys_of(row)


def reads(fit: detect.Fit, row: dict[str, Any]) -> bool:
    try:
        reader(fit.format, fit.fields)(row)
    except Rejected:
        return False
    return True
