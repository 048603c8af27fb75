"""Held-out files: all of their rows are held out, and none of their prompts is trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conf.compose import compose
from conf.errors import ConfigError
from conf.judge import validate
from conf.schema import to_dict
from data_prep.blocks import workers as pool
from data_prep.corpus import identity
from data_prep.corpus.shards import Corpus
from data_prep.prepare import prepare
from data_prep.report.figures import build
from data_prep.tokenizer.tokenizer import load_tokenizer
from tests.data_prep.made import alpaca_rows, config, write_jsonl
from tests.data_prep.test_prepare import digests, leaf, prepared, quarantine


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "BLOCK_ROWS", 16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """60 training rows and 20 test rows. In both: row 3 as it is, row 7 with another answer in other letters."""
    rows = alpaca_rows(80)
    again = rows[67] | {"instruction": rows[67]["instruction"].upper(), "output": "something else"}
    (tmp_path / "d").mkdir()
    write_jsonl(tmp_path / "d/train.jsonl", [*rows[:10], rows[63], again, again, *rows[10:60]])
    write_jsonl(tmp_path / "d/test.jsonl", rows[60:])
    return tmp_path / "d"


def origins(corpus: Corpus, split: str) -> list[tuple[str, int]]:
    found = corpus.split(split)["a"]  # type: ignore[arg-type]
    return [(Path(found.origin(row)[0]).name, found.origin(row)[1]) for row in range(found.rows)]


@pytest.mark.parametrize("validation", ["test", "FOLDER/test.jsonl"])
def test_every_row_of_the_file_is_held_out_and_no_prompt_of_it_is_trained_on(
    folder: Path, tmp_path: Path, validation: str
) -> None:
    source = leaf(folder, validation=validation.replace("FOLDER", str(folder)), validation_fraction=0.5)
    cfg = config({"a": source}, tmp_path / "corpus")
    corpus = prepared(cfg)
    assert origins(corpus, "validation") == [("test.jsonl", row) for row in range(20)]
    assert origins(corpus, "train") == [("train.jsonl", row) for row in range(63) if row not in (10, 11, 12)]
    lines = quarantine(corpus.path)
    assert [(line["row"], line["reason"]) for line in lines] == [(row, "held_out_prompt") for row in (10, 11, 12)]
    assert lines[0]["detail"] == f"row 3 of {folder / 'test.jsonl'} has the same prompt and is held out"
    assert corpus.manifest["sources"]["a"]["found"].get("duplicate", 0) == 0
    report = build(cfg, corpus)
    assert report["sources"]["a"]["rejected"] == {"held_out_prompt": 3}
    assert report["notes"]["a"] == [
        f"data.sources.a: held out as a whole, instead of a validation_fraction: {folder / 'test.jsonl'}"
    ]


def test_the_same_for_any_number_of_processes_and_after_a_restart(folder: Path, tmp_path: Path) -> None:
    source = leaf(folder, validation="test", rows=30)
    one = prepared(config({"a": source}, tmp_path / "one"))
    two = prepared(config({"a": source}, tmp_path / "two", num_proc=2))
    assert digests(one.path) == digests(two.path)
    # ``rows`` counts training rows: 30 of them, of which three are in the test file.
    assert one.manifest["sources"]["a"]["rows"] == 50
    assert (len(origins(one, "train")), len(origins(one, "validation"))) == (27, 20)


def test_without_the_key_the_other_split_is_named_and_not_read(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    corpus = prepared(config({"a": leaf(folder)}, tmp_path / "corpus"))
    assert {name for name, _ in origins(corpus, "train")} == {"train.jsonl"}
    (said,) = corpus.manifest["notes"]["a"]
    assert said == (
        f"data.sources.a: its test split is not read ({folder / 'test.jsonl'}); "
        "data.sources.a.validation=test holds it out"
    )
    assert said in capfd.readouterr().err


def test_a_few_shot_source_takes_no_exemplar_from_the_held_out_file(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        rows = [json.loads(line) | {"task": "t"} for line in path.read_text().splitlines()]
        write_jsonl(path, rows)
    style = {"shots": 2, "templates": "qa", "prompt_tokens": 400}
    few = leaf(folder, validation="test", template="plain", style=style)
    corpus = prepared(config({"a": few | {"select": {"task": "task"}}}, tmp_path / "corpus", seq_len=512))
    held_out = {json.loads(line)["instruction"] for line in (folder / "test.jsonl").read_text().splitlines()}
    words = load_tokenizer(str(corpus.path / "tokenizer"))
    for name, rows in (("train", 60), ("validation", 20)):
        split = corpus.split(name)["a"]  # type: ignore[arg-type]
        texts = [words.decode(split.tokens(row)[0].tolist()) for row in range(split.rows)]
        assert len(texts) == rows
        assert all(sum(text.count(prompt) for prompt in held_out) == (name == "validation") for text in texts)
    # Where a task is a file, the test file has no solved rows.
    with pytest.raises(
        ConfigError, match=r"data\.sources\.a\.validation: .* name the field of the task in select\.task"
    ):
        prepare(config({"a": few}, tmp_path / "other"), argv=[])


def test_new_keys_are_in_the_identity_only_where_they_are_set(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(5))
    plain = config({"a": leaf(path)}, tmp_path / "c")
    source = identity.identity(plain)["data"]["sources"]["a"]
    assert sorted(source) == ["format", "path", "rows", "template", "validation_fraction"]
    with_both = config({"a": leaf(path, validation="test", encoding="latin-1")}, tmp_path / "c")
    source = identity.identity(with_both)["data"]["sources"]["a"]
    assert (source["validation"], source["encoding"]) == ("test", "latin-1")
    words = identity.prepare_command(with_both).split()
    assert '"latin-1"' in " ".join(words)
    assert "validation: " in " ".join(words)


@pytest.mark.parametrize("encoding", ["rot13", "no-such", "utf-8 "])
def test_an_encoding_that_is_none_is_refused_by_name(encoding: str) -> None:
    plain: dict[str, Any] = to_dict(compose(["data=alpaca"]))
    plain["data"]["sources"]["alpaca"]["encoding"] = encoding
    if encoding.strip() == "utf-8":
        validate(plain)
        return
    with pytest.raises(ConfigError, match=r"data\.sources\.alpaca\.encoding: .* is no text encoding; such are utf-8"):
        validate(plain)
