"""The corpus's identity: what changes it, and nothing else."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conf.compose import compose
from conf.errors import ConfigError
from data_prep.corpus.identity import (
    corpus_digest,
    corpus_path,
    differences,
    identity,
    leaves,
    prepare_command,
    source_identity,
)
from tests.data_prep.made import config

LEAF = {"format": "alpaca", "path": "a.json"}
NOWHERE = Path("nowhere")


def digest(leaf: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **data: Any) -> str:
    return corpus_digest(config({"a": {**LEAF, **(leaf or {})}}, NOWHERE, model=model, **data))


@pytest.mark.parametrize(
    "leaf",
    [
        {"path": "b.json"},
        {"format": "prompt_completion"},
        {"template": "plain"},
        {"validation_fraction": 0.1},
        {"rows": 5},
        {"fields": {"output": "response"}},
    ],
)
def test_what_a_source_is_changes_the_digest(leaf: dict[str, Any]) -> None:
    assert digest(leaf) != digest()


@pytest.mark.parametrize(
    "data",
    [
        {"seq_len": 64},
        {"over_length": "truncate_right"},
        {"clean": {"na_output": True}},
        {"near_duplicates": 0.8},
        {"decontaminate": {"paths": ["e.json"]}},
    ],
)
def test_data_settings_that_change_the_corpus(data: dict[str, Any]) -> None:
    assert digest(**data) != digest()


@pytest.mark.parametrize(
    "model",
    [{"tokenizer": "train", "vocab_size": 500}, {"tokenizer": "x"}, {"path": "x"}, {"path": "x", "revision": "r"}],
)
def test_the_tokenizer_changes_the_digest(model: dict[str, Any]) -> None:
    assert digest(model=model) != digest()


def test_revision_counts_only_for_the_models_own_tokenizer() -> None:
    assert digest(model={"path": "x", "revision": "r"}) != digest(model={"path": "x"})
    assert digest(model={"path": "x", "revision": "r", "tokenizer": "y"}) == digest(
        model={"path": "x", "tokenizer": "y"}
    )


def test_what_only_the_stream_or_the_machine_uses_does_not() -> None:
    assert digest({"weight": 3.0}) == digest()
    assert digest({"max_epochs": 2}) == digest()
    assert digest({"template": "alpaca"}) == digest({"template": "auto"})
    for data in (
        {"num_proc": 4},
        {"bad_row_budget": 0.2},
        {"on_bad_row": "fail"},
        {"window": 4096},
        {"clean": {"empty_output": True}},
    ):
        assert digest(**data) == digest()


def test_a_source_has_an_identity_of_its_own() -> None:
    def of(leaves: dict[str, Any], name: str = "a", **data: Any) -> str:
        return source_identity(config(leaves, NOWHERE, **data), name, files=[])

    assert of({"a": LEAF}) == of({"a": {**LEAF, "weight": 2.0}, "b": LEAF})
    assert (
        len({of({"a": LEAF}), of({"b": LEAF}, "b"), of({"a": {**LEAF, "rows": 5}}), of({"a": LEAF}, seq_len=64)}) == 4
    )


def test_leaves_are_dotted_and_nested_digest_follows(tmp_path: Path) -> None:
    cfg = config({"cot": {"weight": 1.0, "sources": {"x": LEAF, "y": {"sources": {"z": LEAF}}}}, "b": LEAF}, tmp_path)
    assert list(leaves(cfg.data.sources)) == ["cot.x", "cot.y.z", "b"]


def test_path_is_what_is_asked_or_the_digest() -> None:
    cfg = config({"a": LEAF}, Path("/somewhere/else"))
    assert corpus_path(cfg) == Path("/somewhere/else")
    free = compose([])
    assert corpus_path(free) == Path("corpora") / corpus_digest(free)[:16]


def test_differences_name_each_field() -> None:
    first, second = (
        identity(config({"a": {**LEAF, "rows": rows}}, NOWHERE, seq_len=size)) for rows, size in ((5, 64), (6, 32))
    )
    assert differences(first, second) == [
        "data.seq_len: the corpus has 64, the config asks for 32",
        "data.sources.a.rows: the corpus has 5, the config asks for 6",
    ]


def test_no_tokenizer_at_all_is_a_config_error() -> None:
    cfg = config({"a": LEAF}, NOWHERE)
    cfg = replace(cfg, model=replace(cfg.model, path=None, tokenizer=None))
    with pytest.raises(ConfigError, match=r"model\.tokenizer: not set"):
        corpus_digest(cfg)


def test_the_command_means_the_same_corpus(tmp_path: Path) -> None:
    leaf = {**LEAF, "path": "my data/*.json", "validation_fraction": 0.25, "rows": 7, "template": "plain"}
    leaf["fields"] = {"input": "the context"}
    cfg = config(
        {"x": leaf, "y": {"sources": {"z": LEAF}}},
        tmp_path / "c",
        clean={"na_output": True},
        over_length="truncate_right",
        near_duplicates=0.8,
        decontaminate={"paths": ["my tests/*.jsonl", "hf://datasets/openai/gsm8k:main/test"], "ngram": 8},
    )
    words = shlex.split(prepare_command(cfg))
    assert words[:3] == ["python", "-m", "data_prep"]
    again = compose(words[3:])
    assert corpus_digest(again) == corpus_digest(cfg)
    assert corpus_path(again) == corpus_path(cfg)


def test_the_command_from_the_users_own_words() -> None:
    assert prepare_command(compose([]), ["data=demo", "name=a b"]) == "python -m data_prep data=demo 'name=a b'"
