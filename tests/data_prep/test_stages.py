"""The list of stages: its contract, what it refuses, and that a stage or a format added to it needs no other edit."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from conf.errors import ConfigError
from conf.schema import DataConfig, SourceConfig
from data_prep import sources, stages
from data_prep.corpus import identity
from data_prep.corpus.shards import open_corpus
from data_prep.prepare import prepare
from data_prep.rows.conversation import Message, Rejected
from data_prep.rows.record import Record
from data_prep.rows.stage import Counts, Part, apply
from data_prep.tokenizer.tokenizer import load_tokenizer
from tests.data_prep.made import alpaca_rows, config, write_jsonl


@dataclass(frozen=True)
class Shout:
    """A stage of one record."""

    word: str

    def __call__(self, record: Record, counts: Counts) -> Record:
        if record.row == 3:
            raise Rejected("too_quiet", "row 3")
        asked, answer = record.conversation.messages
        loud = Message("assistant", f"{answer.content} {self.word}")
        return replace(record, conversation=replace(record.conversation, messages=(asked, loud)))

    def identity(self) -> Part:
        return {"data": {"shout": self.word}}


@dataclass(frozen=True)
class Remember:
    """A stage of many records."""

    seen: list[int]

    def batch(self, records: Sequence[Record], counts: Counts) -> list[Record | Rejected]:
        self.seen.append(len(records))
        return [Rejected("odd") if each.row % 2 else each for each in records]

    def identity(self) -> Part:
        return {}


def test_a_rejected_record_meets_no_further_stage_and_outcomes_keep_their_order() -> None:
    message = (Message("user", "q"), Message("assistant", "a"))
    records = [Record("f", row, "") for row in range(5)]
    records = [replace(each, conversation=replace(each.conversation, messages=message)) for each in records]
    seen: list[int] = []
    places, found = zip(*apply([Shout("!"), Remember(seen), Shout("?")], records, Counts()), strict=True)
    assert seen == [4]
    assert places == (0, 1, 2, 3, 4)
    assert [each.reason if isinstance(each, Rejected) else each.row for each in found] == [
        0,
        "odd",
        2,
        "too_quiet",
        4,
    ]
    assert found[4].conversation.messages[1].content == "a ! ?"


def test_a_stage_in_the_list_is_in_samples_quarantine_and_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(40))
    cfg = config({"a": {"format": "alpaca", "path": str(path)}}, tmp_path / "corpus")
    before, source_before = identity.corpus_digest(cfg), identity.source_identity(cfg, "a")
    built = stages.stages_of

    def with_one_more(leaf: SourceConfig, data: DataConfig, key: str, at: Any = None) -> stages.Stages:
        whole = built(leaf, data, key, at)
        return replace(whole, reading=(*whole.reading, Shout("indeed")))

    monkeypatch.setattr("data_prep.jobs.stages_of", with_one_more)
    monkeypatch.setattr("data_prep.corpus.identity.stages_of", with_one_more)
    assert identity.identity(cfg)["data"]["shout"] == "indeed"
    assert identity.corpus_digest(cfg) != before
    assert identity.source_identity(cfg, "a") != source_before
    corpus = open_corpus(prepare(cfg, argv=[]))
    (line,) = map(json.loads, (corpus.path / "quarantine.jsonl").read_text().splitlines())
    assert (line["row"], line["reason"], line["detail"]) == (3, "too_quiet", "row 3")
    ids, mask = corpus.split("train")["a"].tokens(0)
    assert load_tokenizer(str(corpus.path / "tokenizer")).decode(ids[mask == 1].tolist()).endswith(" indeed")


def test_stages_travel_between_processes(tmp_path: Path) -> None:
    leaf = {"format": "qa", "path": "x", "style": {"shots": 2}, "select": {"task": "t"}, "fields": {"question": "q"}}
    cfg = config({"a": leaf}, tmp_path, near_duplicates=0.8, decontaminate={"paths": ["e.json"]})
    made = stages.stages_of(cfg.data.sources["a"], cfg.data, "data.sources.a")
    assert pickle.loads(pickle.dumps(made)) == made
    assert json.loads(json.dumps(made.identity())) == made.identity()


@pytest.mark.parametrize("name", sources.formats())
def test_a_format_says_its_template_and_turns(name: str) -> None:
    found = sources.format_of(name)
    assert found.template in ("alpaca", "plain", "chat")
    assert found.turns in ("one", "many")
    assert found.turns == "one" or found.template == "chat"  # no other default could hold several turns


def test_settings_that_a_format_cannot_have_are_refused_together_before_anything_is_made(tmp_path: Path) -> None:
    chat = {"format": "sharegpt", "path": "x", "style": {"shots": 2}}
    other = {"format": "messages", "path": "x", "style": {}}
    cfg = config({"a": chat, "b": {"sources": {"c": other}}}, tmp_path / "corpus")
    with pytest.raises(ConfigError) as caught:
        prepare(cfg, argv=[])
    for key, problem in zip(("a", "b.c"), caught.value.problems, strict=True):
        assert problem.startswith(f"data.sources.{key}.style: a style writes one question and one answer")
    assert not (tmp_path / "corpus").exists()
