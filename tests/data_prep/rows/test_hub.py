"""Hub data sets: the real ``datasets`` stream over a local folder, and every failure as one sentence."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.errors import ConfigError, MissingInput, Unavailable
from data_prep.corpus.shards import open_corpus
from data_prep.prepare import prepare
from data_prep.rows import hub, raw
from tests.data_prep.made import alpaca_rows, config, write_jsonl
from tests.data_prep.test_prepare import leaf, quarantine
from tests.data_prep.tokenizer.test_tokenizer import _api_at_nowhere

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the hub's ``made/up``; asks about it are answered, rows come through ``datasets``."""
    folder = tmp_path / "repository"
    folder.mkdir()
    real = datasets.load_dataset

    def load(repo: str, name: str | None, *, revision: str, **options: Any) -> Any:
        assert (repo, revision) == ("made/up", SHA)
        return real(str(folder), name, **options)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(
        huggingface_hub.HfApi, "dataset_info", lambda self, repo, revision, timeout: SimpleNamespace(sha=SHA)
    )
    return folder


def test_a_hub_data_set_is_prepared_as_its_files_would_be(repository: Path, tmp_path: Path) -> None:
    rows = [*alpaca_rows(40), {"instruction": "x", "input": None, "output": ""}, alpaca_rows(3)[2]]
    pq.write_table(pa.Table.from_pylist(rows), repository / "train-0.parquet")
    write_jsonl(tmp_path / "rows.jsonl", rows)
    source = {"format": "alpaca", "path": "hf://datasets/made/up"}
    remote = open_corpus(prepare(config({"a": source}, tmp_path / "r"), argv=[]))
    local = open_corpus(prepare(config({"a": leaf(tmp_path / "rows.jsonl")}, tmp_path / "l"), argv=[]))
    name = f"hf://datasets/made/up@{SHA}/train"
    assert remote.manifest["files"]["a"] == [{"path": name, "bytes": 0, "xxh3": ""}]
    assert remote.split("train")["a"].origin(7) == (name, 7, 0)
    shards = [corpus.manifest["sources"]["a"]["splits"]["train"]["shards"][0]["xxh3"] for corpus in (remote, local)]
    assert shards[0] == shards[1]
    assert [(line["row"], line["reason"]) for line in quarantine(remote.path)] == [
        (40, "empty_output"),
        (41, "duplicate"),
    ]
    assert quarantine(remote.path)[1]["detail"] == f"the same as row 2 of {name}"


def test_splits_limits_and_mistakes(repository: Path) -> None:
    write_jsonl(repository / "test.jsonl", [{"n": n} for n in range(5)])
    (found,) = raw.find("hf://datasets/made/up/test", "data.sources.a.path")
    assert [json.loads(row.text) for row in raw.rows(found.name)] == [{"n": n} for n in range(5)]
    with pytest.raises(MissingInput, match=r"up@[0-9a-f]{40}/validation cannot be opened: .*validation"):
        list(raw.rows(raw.find("hf://datasets/made/up/validation", "k")[0].name))
    with pytest.raises(MissingInput, match=r"up@[0-9a-f]{40}:french/test cannot be opened: .*french"):
        list(raw.rows(raw.find("hf://datasets/made/up:french/test", "k")[0].name))


@pytest.mark.parametrize("name", ["hf://made/up", "hf://datasets/up", "hf://datasets/made/up/train/x.parquet", "hf://"])
def test_another_spelling_is_a_config_error(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^data\.sources\.a\.path: .* is not the name of a data set of the hub"):
        raw.find(name, "data.sources.a.path")


def test_parts_of_a_name() -> None:
    found = hub._parts("hf://datasets/made/up@refs.2:fr-FR/test", "k")
    assert found == {"repo": "made/up", "revision": "refs.2", "config": "fr-FR", "split": "test"}


def test_no_network_is_one_sentence_within_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.hf_api.HfApi, "__init__", _api_at_nowhere)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(
        Unavailable, match=r"^data\.sources\.a\.path: the hub cannot be reached for data set made/up"
    ) as e:
        raw.find("hf://datasets/made/up", "data.sources.a.path")
    assert time.monotonic() - start < 10
    assert "\n" not in str(e.value)
    assert e.value.code == 69


def test_another_split_of_a_hub_data_set_is_held_out(repository: Path, tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(alpaca_rows(40)[:30]), repository / "train-0.parquet")
    pq.write_table(pa.Table.from_pylist(alpaca_rows(40)[28:]), repository / "test-0.parquet")
    source = {"format": "alpaca", "path": "hf://datasets/made/up", "validation": "test"}
    corpus = open_corpus(prepare(config({"a": source}, tmp_path / "c"), argv=[]))
    assert [each["path"].rpartition("/")[2] for each in corpus.manifest["files"]["a"]] == ["test", "train"]
    assert corpus.split("train")["a"].rows == 28
    assert corpus.split("validation")["a"].rows == 12
    assert corpus.manifest["sources"]["a"]["rejected"] == {"held_out_prompt": 2}
