"""Preparation from files to corpus: nothing lost, the same for any process count, restartable, mistakes by name."""

from __future__ import annotations

import gzip
import json
import os
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from conf.durable import xxh3_of
from conf.errors import BadData, CannotCreate, ConfigError, MissingInput
from conf.schema import RunConfig
from data_prep.blocks import workers as pool
from data_prep.corpus.shards import Corpus, open_corpus
from data_prep.prepare import prepare
from data_prep.tokenizer.tokenizer import load_tokenizer
from tests.data_prep.made import REAL, alpaca_rows, config, needs_real_data, write_json, write_jsonl

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "BLOCK_ROWS", 16)


def leaf(path: Path, **options: Any) -> dict[str, Any]:
    return {"format": "alpaca", "path": str(path), **options}


def prepared(cfg: RunConfig) -> Corpus:
    return open_corpus(prepare(cfg, argv=["data=test"]))


def quarantine(corpus: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (corpus / "quarantine.jsonl").read_text().splitlines()]


def digests(corpus: Path) -> dict[str, str]:
    """Every file of a corpus but what is about the machine."""
    found = (
        path for path in sorted(corpus.rglob("*")) if path.is_file() and path.name not in ("preparation.json", ".lock")
    )
    return {str(path.relative_to(corpus)): xxh3_of(path) for path in found}


DIRTY: list[object] = [
    {"instruction": "x", "output": ""},
    {"instruction": "x", "input": "", "output": "<nooutput>"},
    {"instruction": "x", "output": [3]},
    {"instruction": "y"},
    {"instruction": "long", "output": "word " * 400},
    [1],
]
REASONS = {
    "empty_output": 1,
    "nooutput_marker": 1,
    "non_string_field": 1,
    "missing_field": 1,
    "over_length": 1,
    "not_an_object": 1,
    "duplicate": 2,
}


def dirty_rows() -> list[object]:
    rows: list[object] = [*alpaca_rows(50)]
    return [*rows[:20], *DIRTY, *rows[20:], rows[3], rows[40]]


def test_every_row_is_kept_or_in_quarantine(tmp_path: Path) -> None:
    path = write_json(tmp_path / "rows.json", dirty_rows())
    corpus = prepared(config({"a": leaf(path, validation_fraction=0.2)}, tmp_path / "corpus"))
    entry = corpus.manifest["sources"]["a"]
    lines = quarantine(corpus.path)
    kept = {name: part["rows"] for name, part in entry["splits"].items()}
    assert entry["rows"] == len(dirty_rows()) == sum(kept.values()) + len(lines)
    assert kept["validation"] > 0
    assert Counter(line["reason"] for line in lines) == entry["rejected"] == REASONS
    seen = {
        split.origin(row)[1]
        for name in ("train", "validation")
        for split in corpus.split(name).values()
        for row in range(split.rows)
    }  # type: ignore[arg-type]
    assert seen | {line["row"] for line in lines} == set(range(len(dirty_rows())))
    assert [line["row"] for line in lines] == sorted(line["row"] for line in lines)
    duplicate = next(line for line in lines if line["reason"] == "duplicate")
    assert json.loads(duplicate["row_text"]) == alpaca_rows(50)[3]
    assert duplicate["detail"] == f"the same as row 3 of {path}"
    assert all(set(line) >= {"source", "file", "row", "reason", "row_text"} for line in lines)


def test_manifest_and_tokens(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(40))
    corpus = prepared(config({"a": leaf(path)}, tmp_path / "corpus"))
    manifest, split = corpus.manifest, corpus.split("train")["a"]
    tokenizer = load_tokenizer(str(corpus.path / "tokenizer"))
    assert tokenizer.fingerprint == corpus.tokenizer_fingerprint
    assert manifest["files"]["a"] == [{"path": str(path), "bytes": path.stat().st_size, "xxh3": xxh3_of(path)}]
    assert manifest["max_tokens"] == split.lengths.max()
    assert manifest["min_vocab"] <= tokenizer.vocab_size
    ids, mask = split.tokens(1)
    answer = [token for token, flag in zip(ids.tolist(), mask.tolist(), strict=True) if flag]
    assert tokenizer.decode(answer) == alpaca_rows(2)[1]["output"]
    assert answer[-1] == tokenizer.eos_id
    assert "### Input:\n" + alpaca_rows(2)[1]["input"] in tokenizer.decode(ids.tolist())


def test_several_sources_files_and_formats(tmp_path: Path) -> None:
    write_json(tmp_path / "part-1.json", alpaca_rows(30)[:10])
    write_jsonl(tmp_path / "part-2.json", alpaca_rows(30)[10:])
    pairs = write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": f"{n}+1=", "completion": f"{n + 1}"} for n in range(25)])
    sources = {
        "all": leaf(tmp_path / "part-*.json"),
        "sub": {"sources": {"pairs": {"format": "prompt_completion", "path": str(pairs), "rows": 20}}},
    }
    corpus = prepared(config(sources, tmp_path / "corpus"))
    assert {name: split.rows for name, split in corpus.split("train").items()} == {"all": 30, "sub.pairs": 20}
    assert corpus.templates == {"all": "alpaca", "sub.pairs": "plain"}
    assert corpus.split("train")["all"].origin(12) == (str(tmp_path / "part-2.json"), 2, 0)


@pytest.mark.slow
def test_the_same_corpus_for_any_number_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"instruction": "Name the sea east of the island where the old lighthouse stood for years.", "output": "No."}
    near = [{"instruction": "Repeat number 3.", "output": f"{row['output']} again"} for row in alpaca_rows(9)[3:4]]
    path = write_json(tmp_path / "rows.json", [*dirty_rows(), held, *near, *near])
    options = {"near_duplicates": 0.5, "decontaminate": {"paths": [str(write_json(tmp_path / "eval.json", [held]))]}}
    found = []
    for count in (1, 3):
        source = leaf(path, validation_fraction=0.2)
        cfg = config({"a": source}, tmp_path / f"corpus-{count}", num_proc=count, **options)
        found.append(digests(prepare(cfg, argv=[])))
    assert found[0] == found[1]
    assert len(found[0]) >= 6
    assert {"contaminated", "near_duplicate"} <= {line["reason"] for line in quarantine(tmp_path / "corpus-3")}


def test_split_is_by_prompt_whatever_the_order(tmp_path: Path) -> None:
    rows = [{**row, "output": f"{row['output']} {again}"} for again in range(2) for row in alpaca_rows(60)]
    sides = []
    for order in (rows, rows[::-1]):
        path = write_json(tmp_path / f"rows-{len(sides)}.json", order)
        corpus = prepared(config({"a": leaf(path, validation_fraction=0.3)}, tmp_path / f"corpus-{len(sides)}"))
        split = corpus.split("validation")["a"]
        sides.append({json.dumps(order[split.origin(row)[1]]) for row in range(split.rows)})
    assert sides[0] == sides[1]
    prompts = Counter(json.loads(row)["instruction"] for row in sides[0])
    assert set(prompts.values()) == {2}
    assert 8 <= len(prompts) <= 30


def test_finished_corpus_returns_at_once_and_another_is_refused(tmp_path: Path) -> None:
    path = write_json(tmp_path / "rows.json", alpaca_rows(30))
    cfg = config({"a": leaf(path)}, tmp_path / "corpus")
    prepare(cfg, argv=[])
    before = digests(tmp_path / "corpus")
    start = time.monotonic()
    prepare(cfg, argv=[])
    assert time.monotonic() - start < 0.5
    assert digests(tmp_path / "corpus") == before
    other = config({"a": leaf(path, template="plain")}, tmp_path / "corpus", seq_len=64)
    with pytest.raises(ConfigError) as caught:
        prepare(other, argv=[])
    assert caught.value.problems[1:] == [
        "data.seq_len: the corpus has 128, the config asks for 64",
        "data.sources.a.template: the corpus has 'alpaca', the config asks for 'plain'",
    ]


def test_changed_raw_file_is_named(tmp_path: Path) -> None:
    path = write_json(tmp_path / "rows.json", alpaca_rows(30))
    cfg = config({"a": leaf(path)}, tmp_path / "corpus")
    prepare(cfg, argv=[])
    content = path.read_text()
    path.write_text(content.replace("red", "RED"))
    os.utime(path, (time.time() + 10, time.time() + 10))
    with pytest.raises(BadData, match=r"rows\.json .*has changed since .*same size, different content"):
        prepare(cfg, argv=[])
    path.write_text(content[:-1] + " ]")
    with pytest.raises(BadData, match="bytes before"):
        prepare(cfg, argv=[])
    path.unlink()
    assert prepare(cfg, argv=[]) == tmp_path / "corpus"


def test_budget_counts_reasons_and_keeps_the_quarantine(tmp_path: Path) -> None:
    path = write_json(tmp_path / "rows.json", dirty_rows())
    cfg = config({"a": leaf(path)}, tmp_path / "corpus", bad_row_budget=0.05)
    with pytest.raises(
        BadData, match=r"(?s)data\.sources\.a: 8 of 58 rows \(13\.8%\) were rejected.*duplicate 2.*quarantine\.jsonl"
    ):
        prepare(cfg, argv=[])
    assert len(quarantine(tmp_path / "corpus")) == 8
    with pytest.raises(MissingInput, match="unfinished"):
        open_corpus(tmp_path / "corpus")
    # The rows need not be tokenised again once the budget is raised.
    made = (tmp_path / "corpus/.work/a/000000.json").stat().st_mtime_ns
    times = block_times(tmp_path / "corpus")
    assert made in times
    assert prepared(config({"a": leaf(path)}, tmp_path / "corpus", bad_row_budget=0.5)).split("train")["a"].rows == 50


def block_times(corpus: Path) -> list[int]:
    return [path.stat().st_mtime_ns for path in sorted((corpus / ".work/a").glob("0*.json"))]


@pytest.mark.parametrize("clean", [{}, {"empty_output": False, "nooutput_marker": False}])
def test_fail_stops_at_the_first_bad_row(tmp_path: Path, clean: dict[str, bool]) -> None:
    path = write_json(tmp_path / "rows.json", dirty_rows())
    cfg = config({"a": leaf(path)}, tmp_path / "corpus", on_bad_row="fail", clean=clean)
    row, reason = (22, "non_string_field") if clean else (20, "empty_output")
    with pytest.raises(BadData, match=rf"rows\.json, row {row} \(data\.sources\.a\): {reason}"):
        prepare(cfg, argv=[])


def test_over_length_can_be_cut_instead(tmp_path: Path) -> None:
    path = write_json(tmp_path / "rows.json", dirty_rows())
    corpus = prepared(config({"a": leaf(path)}, tmp_path / "corpus", over_length="truncate_right"))
    entry = corpus.manifest["sources"]["a"]
    assert entry["truncated"] == 1
    assert "over_length" not in entry["rejected"]
    assert corpus.manifest["max_tokens"] == 128


def test_a_prompt_longer_than_the_limit_is_rejected_not_emptied(tmp_path: Path) -> None:
    rows: list[object] = [*alpaca_rows(20), {"instruction": "word " * 300, "output": "x"}]
    cfg = config({"a": leaf(write_json(tmp_path / "r.json", rows))}, tmp_path / "c", over_length="truncate_right")
    assert prepared(cfg).manifest["sources"]["a"]["rejected"] == {"no_supervised_token": 1}


def test_foreign_files_and_impossible_folders_are_left_alone(tmp_path: Path) -> None:
    path = write_json(tmp_path / "rows.json", alpaca_rows(5))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    with pytest.raises(CannotCreate, match=r"not empty and holds no corpus \(thesis\.txt"):
        prepare(config({"a": leaf(path)}, tmp_path / "mine"), argv=[])
    assert (tmp_path / "mine/thesis.txt").read_text() == "x"
    with pytest.raises(CannotCreate, match="cannot create"):
        prepare(config({"a": leaf(path)}, tmp_path / "rows.json/corpus"), argv=[])


def test_mistakes_of_the_config_are_one_sentence(tmp_path: Path) -> None:
    path = write_json(tmp_path / "rows.json", alpaca_rows(5))
    with pytest.raises(MissingInput, match=r"data\.sources\.a\.path: no such file: .*row\.json; is it .*rows\.json"):
        prepare(config({"a": leaf(tmp_path / "row.json")}, tmp_path / "c1"), argv=[])
    with pytest.raises(ConfigError, match=r"data\.sources\.a\.template: 'chat' needs a tokenizer with a chat template"):
        prepare(config({"a": leaf(path, template="chat")}, tmp_path / "c2"), argv=[])
    with pytest.raises(ConfigError, match="give the source another name"):
        prepare(config({"tokenizer": leaf(path)}, tmp_path / "c3"), argv=[])
    with pytest.raises(MissingInput, match=r"model\.tokenizer: no folder"):
        prepare(config({"a": leaf(path)}, tmp_path / "c4", model={"tokenizer": "/no/such"}), argv=[])
    with pytest.raises(BadData, match="no rows in"):
        prepare(config({"a": leaf(write_json(tmp_path / "none.json", []))}, tmp_path / "c5"), argv=[])
    (tmp_path / "half.json").write_text(path.read_text()[:-40])
    with pytest.raises(BadData, match=r"half\.json is cut short"):
        prepare(config({"a": leaf(tmp_path / "half.json")}, tmp_path / "c6"), argv=[])


def test_bad_bytes_and_lone_surrogates_reach_the_quarantine_readable(tmp_path: Path) -> None:
    good = "".join(json.dumps(row) + "\n" for row in alpaca_rows(20)).encode()
    bad = b'{"instruction": "\xff", "output": "x"}\n{"instruction": "\\ud800", "output": "x"}\n{"instruction": "cut'
    (tmp_path / "rows.jsonl").write_bytes(good + bad)
    corpus = prepared(config({"a": leaf(tmp_path / "rows.jsonl")}, tmp_path / "corpus"))
    lines = quarantine(corpus.path)
    assert [line["reason"] for line in lines] == ["bad_utf8", "lone_surrogate", "bad_json"]
    assert lines[0]["row_text"] == '{"instruction": "\\xff", "output": "x"}'


def _tokenizers() -> Iterable[str]:
    return ("tokenizers/gpt2", "tokenizers/mistral_v1", "weights/stories260K/hf")


@needs_real_data
@pytest.mark.parametrize("folder", _tokenizers())
def test_first_rows_of_the_real_file(tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "BLOCK_ROWS", 2048)
    sources = {"alpaca": leaf(REAL / "alpaca/alpaca_data.json.gz", validation_fraction=0.01, rows=3000)}
    corpus = prepared(config(sources, tmp_path / "c", model={"tokenizer": str(REAL / folder)}, seq_len=2048))
    entry = corpus.manifest["sources"]["alpaca"]
    kept = sum(part["rows"] for part in entry["splits"].values())
    assert entry["rows"] == 3000 == kept + len(quarantine(corpus.path))
    assert load_tokenizer(str(REAL / folder)).fingerprint == corpus.tokenizer_fingerprint


@needs_real_data
@pytest.mark.slow
def test_the_whole_real_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "BLOCK_ROWS", 2048)
    sources = {"alpaca": leaf(REAL / "alpaca/alpaca_data.json.gz", validation_fraction=0.01)}
    model = {"tokenizer": str(REAL / "tokenizers/gpt2")}
    corpus = prepared(config(sources, tmp_path / "c", model=model, seq_len=512, bad_row_budget=0.05))
    entry = corpus.manifest["sources"]["alpaca"]
    kept = sum(part["rows"] for part in entry["splits"].values())
    assert entry["rows"] == 52_002 == kept + len(quarantine(corpus.path))
    dirt = {"control_char": 2, "empty_output": 28, "nooutput_marker": 53, "separator_leak": 13}
    listed = json.loads(gzip.decompress((REAL / "alpaca/alpaca_dirty_rows.json.gz").read_bytes()))
    lines = quarantine(corpus.path)
    long = {line["row"] for line in lines if line["reason"] == "over_length"}
    assert entry["rejected"] == dirt | {"over_length": len(long)}
    other = {line["row"] for line in lines if line["reason"] != "over_length"}
    assert long == set(listed["over_512_tokens_gpt2"]) - other
