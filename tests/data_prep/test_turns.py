"""Conversations through the whole of preparation: one sample of each turn, what is counted, what is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from conf.errors import BadData
from data_prep.corpus.shards import open_corpus
from data_prep.prepare import prepare
from data_prep.report import write_report
from data_prep.report.terminal import show
from data_prep.rows.split import FEWEST
from data_prep.tokenizer.tokenizer import load_tokenizer
from tests.data_prep.made import alpaca_rows, byte_tokenizer, config, write_jsonl
from tests.data_prep.templates.published import PUBLISHED

THOUGHTS = {
    "messages": [
        {"role": "user", "content": "cat or dog?", "mood": "curious"},
        {"role": "assistant", "content": "dog", "reasoning_content": "dog runs"},
        {"role": "user", "content": "why so?"},
        {"role": "assistant", "content": "it runs", "reasoning_content": "cat sees"},
    ],
    "source_url": "somewhere",
}


def corpus_of(tmp_path: Path, rows: list[dict[str, Any]], published: str, **data: Any) -> Any:
    one = PUBLISHED[published]
    folder = tmp_path / f"model-{published}"
    byte_tokenizer(folder, specials=one.specials, eos=one.eos, template=one.template).save(folder)
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    leaf = {"format": data.pop("format", "messages"), "path": str(path), "template": "chat"}
    leaf |= {name: data.pop(name) for name in ("validation_fraction",) if name in data}
    model = {"tokenizer": str(folder), "path": str(folder)}
    cfg = config({"chat": leaf}, tmp_path / f"corpus-{len(list(tmp_path.iterdir()))}", model=model, **data)
    return cfg, open_corpus(prepare(cfg, argv=[]))


def samples(corpus: Any) -> list[tuple[str, str]]:
    """(text, targets) of every training sample."""
    words = load_tokenizer(str(corpus.path / "tokenizer"))
    split = corpus.split("train")["chat"]
    found = []
    for row in range(split.rows):
        ids, mask = split.tokens(row)
        found.append((words.hf.decode(ids.tolist()), words.hf.decode(ids[mask > 0].tolist())))
    return found


def test_a_template_that_strips_thoughts_gives_a_sample_of_each_turn(tmp_path: Path) -> None:
    cfg, corpus = corpus_of(tmp_path, [THOUGHTS, THOUGHTS], "qwen3", seq_len=256)
    (first, said), (second, answered) = samples(corpus)
    assert said == "<think>\ndog runs\n</think>\n\ndog<|im_end|>"
    assert answered == "<think>\ncat sees\n</think>\n\nit runs<|im_end|>"
    assert "dog runs" in first
    assert "dog runs" not in second
    split = corpus.split("train")["chat"]
    assert [split.origin(row)[1:] for row in range(2)] == [(0, 0), (0, 1)]
    assert len({split.uid(row) for row in range(2)}) == 2
    entry = corpus.manifest["sources"]["chat"]
    assert (entry["rows"], entry["split"], entry["rejected"]) == (2, 2, {"duplicate": 1})
    assert entry["unread"] == {"source_url": 2, "turn.mood": 2}
    lines = (corpus.path / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == [1]
    console = Console(record=True, width=200)
    show(write_report(cfg, corpus.path), console)
    text = console.export_text()
    assert "2 further samples, because some rows make one of each supervised turn" in text
    assert "key turn.mood" in text
    assert "not read" in text


def test_one_turn_of_a_row_is_no_near_duplicate_of_the_next(tmp_path: Path) -> None:
    long = {"messages": [THOUGHTS["messages"][0] | {"content": "cat dog tree " * 8}, *THOUGHTS["messages"][1:]]}
    _, corpus = corpus_of(tmp_path, [long], "qwen3", seq_len=256, near_duplicates=0.5)
    assert corpus.split("train")["chat"].rows == 2


@pytest.mark.parametrize(("turns", "expected"), [("each", ["dog", "it runs"]), ("last", ["it runs"]), ("auto", None)])
def test_turns_as_asked(turns: str, expected: list[str] | None, tmp_path: Path) -> None:
    plain = {"messages": [{key: turn[key] for key in ("role", "content")} for turn in THOUGHTS["messages"]]}
    _, corpus = corpus_of(tmp_path, [plain], "chatml", turns=turns)
    said = [targets for _, targets in samples(corpus)]
    assert said == ([f"{each}<|im_end|>" for each in expected] if expected else ["dog<|im_end|>it runs<|im_end|>"])


def test_what_is_folded_is_counted(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "system", "content": f"Be {word}."}, *THOUGHTS["messages"]]} for word in "abc"]
    _, corpus = corpus_of(tmp_path, rows, "gemma2", seq_len=256)
    assert corpus.manifest["sources"]["chat"]["normalised"] == {"reasoning_folded": 3, "system_folded": 3}
    assert "<start_of_turn>user\nBe a.\n\ncat or dog?<end_of_turn>" in samples(corpus)[0][0]


def test_alpaca_rows_keep_their_system_text_and_history(tmp_path: Path) -> None:
    row = {
        "instruction": "why so?",
        "input": "",
        "output": "it runs",
        "system": "Be brief.",
        "history": [["cat or dog?", "dog"]],
        "id": 7,
    }
    _, corpus = corpus_of(tmp_path, [row], "chatml", format="alpaca", seq_len=256)
    ((text, said),) = samples(corpus)
    assert said == "dog<|im_end|>it runs<|im_end|>"
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\ncat or dog?<|im_end|>\n")
    assert corpus.manifest["sources"]["chat"]["unread"] == {"id": 1}


def test_the_floor_of_held_out_rows_counts_rows_and_not_their_turns(tmp_path: Path) -> None:
    def row(number: int) -> dict[str, Any]:
        asked = [("user", f"dog {number}?"), ("assistant", "it runs"), ("user", "why?"), ("assistant", "cat")]
        return {"messages": [{"role": role, "content": content} for role, content in asked]}

    held_out = []
    for turns in ("last", "each"):
        (tmp_path / turns).mkdir()
        rows = [row(number) for number in range(100)]
        _, corpus = corpus_of(tmp_path / turns, rows, "chatml", turns=turns, validation_fraction=0.001)
        split = corpus.split("validation")["chat"]
        held_out.append({split.origin(place)[1] for place in range(split.rows)})
    assert held_out[0] == held_out[1]
    assert len(held_out[0]) == FEWEST


def test_null_arguments_of_an_object_are_left_out_and_counted(tmp_path: Path) -> None:
    def row(arguments: object) -> dict[str, Any]:
        call = {"id": "abcdefghi", "function": {"name": "get", "arguments": arguments}}
        asks = [{"role": "user", "content": "dog?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
        return {"messages": [*asks, {"role": "tool", "content": "cat", "tool_call_id": "abcdefghi"}]}

    rows = [row({"city": "Oslo", "day": None}), row('{"city": "Rome", "day": null}'), row({"city": "Bonn"})]
    _, corpus = corpus_of(tmp_path, rows, "qwen25", seq_len=256)
    said = sorted(target for _, target in samples(corpus))
    assert [each.partition('"arguments": ')[2].partition("}\n")[0] for each in said] == [
        '{"city": "Bonn"}',
        '{"city": "Oslo"}',
        '{"city": "Rome", "day": null}',
    ]
    assert corpus.manifest["sources"]["chat"]["normalised"] == {"null_argument": 1}


def test_rows_that_begin_with_the_assistant_are_split_like_others(tmp_path: Path) -> None:
    turns = [{"role": "assistant", "content": "dog"}, {"role": "user", "content": "why?"}]
    rows = [{"messages": [*turns, {"role": "assistant", "content": f"it runs {row}"}]} for row in range(60)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    one = PUBLISHED["chatml"]
    byte_tokenizer(tmp_path / "m", specials=one.specials, eos=one.eos, template=one.template).save(tmp_path / "m")
    leaf = {"format": "messages", "path": str(path), "validation_fraction": 0.3}
    cfg = config({"chat": leaf}, tmp_path / "corpus", model={"tokenizer": str(tmp_path / "m"), "path": "x"})
    corpus = open_corpus(prepare(cfg, argv=[]))
    held_out = corpus.split("validation")["chat"].rows
    assert 8 <= held_out <= 30
    assert corpus.split("train")["chat"].rows == 60 - held_out


def test_a_file_that_is_new_in_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    write_jsonl(tmp_path / "rows" / "a.jsonl", alpaca_rows(20))
    cfg = config({"a": {"format": "alpaca", "path": str(tmp_path / "rows")}}, tmp_path / "corpus")
    prepare(cfg, argv=[])
    prepare(cfg, argv=[])
    write_jsonl(tmp_path / "rows" / "b.jsonl", alpaca_rows(20))
    with pytest.raises(BadData, match=r"b\.jsonl \(data.sources.a.path\) is new since"):
        prepare(cfg, argv=[])


def test_a_corpus_without_a_row_to_train_on_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(20))
    cfg = config(
        {"a": {"format": "alpaca", "path": str(path), "validation_fraction": 0.999999}},
        tmp_path / "corpus",
        seq_len=512,
    )
    with pytest.raises(BadData, match="no row is left to train on"):
        prepare(cfg, argv=[])


def test_a_shipped_template_makes_a_chat_of_a_base_without_one(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    byte_tokenizer(folder).save(folder)
    path = write_jsonl(tmp_path / "rows.jsonl", [THOUGHTS])
    leaf = {"format": "messages", "path": str(path)}
    model = {"tokenizer": str(folder), "path": str(folder)}
    cfg = config({"chat": leaf}, tmp_path / "corpus", model=model, chat_template="chatml", seq_len=256)
    corpus = open_corpus(prepare(cfg, argv=[]))
    ((_, said),) = samples(corpus)
    assert said.endswith("it runs<|im_end|>\n<|endoftext|>")
    assert said.count("<|im_end|>\n") == 2  # plain text here, and a target in every turn
    assert (corpus.path / "tokenizer" / "chat_template.jinja").is_file()
