"""A new source does not redo the others: finished sources of corpora beside, and blocks of an unfinished one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conf.errors import BadData
from data_prep.blocks import process as block
from data_prep.blocks import workers as pool
from data_prep.corpus.shards import open_corpus
from data_prep.prepare import prepare
from data_prep.report import write_report
from tests.data_prep.made import alpaca_rows, byte_tokenizer, config, write_jsonl
from tests.data_prep.test_prepare import DIRTY, digests, leaf, quarantine


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Source of every block that is made from here on."""
    found: list[str] = []
    real = block.process
    monkeypatch.setattr(pool, "process", lambda job, part: found.append(job.source) or real(job, part))
    return found


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Any]:
    byte_tokenizer(tmp_path / "words").save(tmp_path / "words")
    first = write_jsonl(tmp_path / "a.jsonl", [*alpaca_rows(40), *DIRTY, alpaca_rows(1)[0]])
    second = write_jsonl(tmp_path / "b.jsonl", [{"instruction": f"Say {n}.", "output": f"{n}"} for n in range(30)])
    return {"a": leaf(first, validation_fraction=0.2), "b": leaf(second)}


def cfg(tmp_path: Path, name: str, sources: dict[str, Any], **data: Any) -> Any:
    return config(sources, tmp_path / name, model={"tokenizer": str(tmp_path / "words")}, **{"seq_len": 256, **data})


def test_a_new_source_leaves_the_others_as_they_are(tmp_path: Path, sources: dict[str, Any], done: list[str]) -> None:
    old = prepare(cfg(tmp_path, "one/old", {"a": sources["a"]}), argv=[])
    before, blocks = digests(old), done.copy()
    new = prepare(cfg(tmp_path, "one/new", sources, num_proc=1), argv=[])
    assert set(done[len(blocks) :]) == {"b"}
    assert digests(old) == before
    shard = "a/train/shard-00000.arrow"
    assert (new / shard).stat().st_ino == (old / shard).stat().st_ino
    assert len([line for line in quarantine(new) if line["source"] == "a"]) == len(DIRTY) + 1
    assert json.loads((new / "preparation.json").read_text())["reused"] == ["a"]
    fresh = prepare(cfg(tmp_path, "two/new", sources), argv=[])
    assert digests(new) == digests(fresh) | {"MANIFEST.json": digests(new)["MANIFEST.json"]}
    assert open_corpus(new).manifest == open_corpus(fresh).manifest


def test_nothing_is_taken_from_the_corpus_of_another_user(
    tmp_path: Path, sources: dict[str, Any], done: list[str], give: Callable[[Path], Path]
) -> None:
    """It would say of rows of its own that they are ours: whoever knows the config knows the identities."""
    old = prepare(cfg(tmp_path, "one/old", {"a": sources["a"]}), argv=[])
    give(old)
    done.clear()
    prepare(cfg(tmp_path, "one/new", sources), argv=[])
    assert set(done) == {"a", "b"}
    before = digests(old)
    write_report(cfg(tmp_path, "one/old", {"a": sources["a"]}), old)  # to look at it writes nothing there
    assert digests(old) == before


def test_a_source_with_rejected_rows_is_not_taken_over_where_none_is_allowed(
    tmp_path: Path, sources: dict[str, Any]
) -> None:
    prepare(cfg(tmp_path, "old", {"a": sources["a"]}), argv=[])
    with pytest.raises(BadData, match=r"a\.jsonl, row 40 \(data\.sources\.a\): empty_output"):
        prepare(cfg(tmp_path, "new", sources, on_bad_row="fail"), argv=[])


@pytest.mark.parametrize("name", ["shard-00000.arrow", "lengths.npy"])
def test_what_differs_or_is_damaged_is_prepared_anew(
    tmp_path: Path, sources: dict[str, Any], done: list[str], name: str
) -> None:
    old = prepare(cfg(tmp_path, "old", {"a": sources["a"]}), argv=[])
    del done[:]
    prepare(cfg(tmp_path, "shorter", {"a": sources["a"]}, seq_len=250), argv=[])
    assert set(done) == {"a"}
    shard = old / "a/train" / name
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    del done[:]
    prepare(cfg(tmp_path, "new", sources), argv=[])
    assert set(done) == {"a", "b"}
    open_corpus(tmp_path / "new")


def test_a_vocabulary_learnt_from_all_sources_redoes_all(
    tmp_path: Path, sources: dict[str, Any], done: list[str]
) -> None:
    prepare(config({"a": sources["a"]}, tmp_path / "old"), argv=[])
    del done[:]
    prepare(config(sources, tmp_path / "new"), argv=[])
    assert set(done) == {"a", "b"}


def test_unfinished_blocks_are_kept_source_by_source(tmp_path: Path, sources: dict[str, Any], done: list[str]) -> None:
    with pytest.raises(BadData, match=r"data\.sources\.a: .* were rejected"):
        prepare(cfg(tmp_path, "corpus", sources, bad_row_budget=0.1), argv=[])
    del done[:]
    changed = {"a": sources["a"], "b": sources["b"] | {"template": "plain"}}
    (tmp_path / "corpus/.work/gone").mkdir()
    (tmp_path / "corpus/gone/train").mkdir(parents=True)
    corpus = prepare(cfg(tmp_path, "corpus", changed), argv=[])
    assert set(done) == {"b"}
    assert not (corpus / "gone").exists()
    assert digests(corpus) == digests(prepare(cfg(tmp_path, "elsewhere/corpus", changed), argv=[]))
