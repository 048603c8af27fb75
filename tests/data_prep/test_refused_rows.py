"""Rows that do not fit: preparation and preview say which row is the first, why, and which settings would read it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conf.errors import BadData
from data_prep import preview
from data_prep.prepare import prepare
from tests.data_prep.made import CHATML, alpaca_rows, byte_tokenizer, config, write_json, write_jsonl
from tests.data_prep.test_prepare import leaf

QA = [{"question": f"What is {n}+1?", "answer": str(n + 1)} for n in range(30)]
TRL = [
    {
        "prompt": [{"role": "user", "content": row["question"]}],
        "completion": [{"role": "assistant", "content": row["answer"]}],
    }
    for row in QA
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("words")
    byte_tokenizer(folder / "made", specials=["<|im_start|>", "<|im_end|>"], eos="<|im_end|>", template=CHATML).save(
        folder / "saved"
    )
    return {"tokenizer": str(folder / "saved")}


def refused(sources: dict[str, Any], tmp_path: Path, model: dict[str, Any], **data: Any) -> list[str]:
    with pytest.raises(BadData) as caught:
        prepare(config(sources, tmp_path / "corpus", model=model, bad_row_budget=0.05, seq_len=512, **data), argv=[])
    return str(caught.value).splitlines()


def test_the_message_names_the_row_its_keys_and_settings_that_work(tmp_path: Path, model: dict[str, Any]) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", QA)
    head, advice, first, keys, settings, end = refused({"mine": leaf(path)}, tmp_path, model)
    assert head == (
        "data.sources.mine: 30 of 30 rows (100.0%) were rejected, over data.bad_row_budget=0.05: missing_field 30"
    )
    assert "data.sources.mine.format" in advice
    assert first == f"  the first is {path}:1: missing_field (no 'instruction' among answer, question)"
    assert keys == "  such a row has the keys question (text), answer (text)"
    assert settings.startswith("  these settings would read it: data.sources.mine.format=qa (question, answer are")
    assert end == f"all rejected rows stand in {tmp_path / 'corpus' / 'quarantine.jsonl'}."


def test_the_settings_read_the_rows(tmp_path: Path, model: dict[str, Any]) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", TRL)
    for kind in ("alpaca", "prompt_completion"):
        lines = refused({"a": leaf(path) | {"format": kind}}, tmp_path, model)
        (settings,) = (line for line in lines if "would read it" in line)
        assert "data.sources.a.format=prompt_completion data.sources.a.template=chat" in settings
    source = {"format": "prompt_completion", "path": str(path), "template": "chat"}
    prepare(config({"a": source}, tmp_path / "corpus", model=model), argv=[])


def test_all_sources_over_the_budget_are_named_together(tmp_path: Path, model: dict[str, Any]) -> None:
    long = [{"instruction": f"Say {n}", "output": "word " * 600} for n in range(20)]
    pairs = [{"prompt": f"{n}?", "chosen": "a", "rejected": "b"} for n in range(20)]
    sources = {
        "fine": leaf(write_json(tmp_path / "fine.json", alpaca_rows(20))),
        "long": leaf(write_json(tmp_path / "long.json", long)),
        "pairs": leaf(write_json(tmp_path / "pairs.json", pairs)),
    }
    lines = refused(sources, tmp_path, model)
    assert [line.split(":")[0] for line in lines if not line.startswith("  ")][:2] == [
        "data.sources.long",
        "data.sources.pairs",
    ]
    text = "\n".join(lines)
    assert "over_length 20: set data.seq_len higher, or data.over_length=truncate_right" in text
    assert f"the first is {tmp_path / 'long.json'}, row 0: over_length (" in text
    assert "the rows are preference pairs (chosen and rejected)" in text
    assert text.count("such a row has the keys") == 1  # a row that is too long needs no other format


def test_the_first_bad_row_of_on_bad_row_fail_has_its_way_out(tmp_path: Path, model: dict[str, Any]) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", QA)
    (line,) = refused({"a": leaf(path)}, tmp_path, model, on_bad_row="fail")
    assert "row 0 (data.sources.a): missing_field" in line
    assert "name the rows' own keys in data.sources.a.fields" in line


def test_preview_says_why_there_is_nothing_to_see(tmp_path: Path, model: dict[str, Any]) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", QA)
    sources = {"a": leaf(write_json(tmp_path / "f.json", alpaca_rows(5))), "b": leaf(path)}
    cfg = config(sources, tmp_path / "c", model=model, seq_len=512)
    _, shown = preview.samples(cfg, 2)
    assert [next(shown).source, next(shown).source] == ["a", "a"]
    with pytest.raises(BadData) as caught:
        next(shown)
    head, *lines = str(caught.value).splitlines()
    assert head == "data.sources.b: none of the first 30 rows can be used"
    assert any("these settings would read it: data.sources.b.format=qa" in line for line in lines)


def test_preview_names_the_rows_it_passed_over(
    tmp_path: Path, model: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"id": 1}, *alpaca_rows(5)])
    _, shown = preview.samples(config({"a": leaf(path)}, tmp_path / "c", model=model, seq_len=512), 2)
    assert len(list(shown)) == 2
    assert capsys.readouterr().err == "data.sources.a: 1 of the first 3 rows are rejected: missing_field 1\n"


def test_the_command_leaves_with_the_code_of_bad_data(tmp_path: Path, model: dict[str, Any]) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", QA)
    words = ["data=alpaca", f"data.sources.alpaca.path={path}", f"model.tokenizer={model['tokenizer']}"]
    command = [sys.executable, "-m", "data_prep.preview", *words]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (found.returncode, found.stdout) == (65, "")
    (settings,) = (line for line in found.stderr.splitlines() if "would read it: " in line)
    proposed = shlex.split(settings.partition("would read it: ")[2].partition(" (")[0])
    again = subprocess.run([*command, *proposed], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert json.dumps(QA[0]["question"])[1:-1] in again.stdout.replace("│", "")
