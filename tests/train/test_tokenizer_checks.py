"""A corpus, its tokenizer folder and the model's tokenizer belong together, or the run is refused by name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conf.errors import BadData, ConfigError
from data_prep.tokenizer.tokenizer import load_tokenizer
from tests.data_prep.made import byte_tokenizer, config
from train.assembly import check_own_tokenizer, check_tokenizer
from train.ranks.group import Ranks


def corpus_of(folder: Path, fingerprint: str) -> Any:
    return SimpleNamespace(path=folder, tokenizer_fingerprint=fingerprint)


def test_another_tokenizer_is_refused_by_the_name_of_its_folder(tmp_path: Path) -> None:
    byte_tokenizer(tmp_path / "made").save(tmp_path / "corpus" / "tokenizer")
    byte_tokenizer(tmp_path / "other", specials=["<x>"]).save(tmp_path / "model")
    own, other = load_tokenizer(str(tmp_path / "corpus" / "tokenizer")), load_tokenizer(str(tmp_path / "model"))
    corpus = corpus_of(tmp_path / "corpus", own.fingerprint)
    check_own_tokenizer(own, corpus)
    with pytest.raises(BadData, match=r"corpus/tokenizer is not the tokenizer that the corpus was prepared with"):
        check_own_tokenizer(other, corpus)
    leaf = {"format": "alpaca", "path": "x.json"}
    same = config({"a": leaf}, tmp_path / "corpus", model={"tokenizer": str(tmp_path / "corpus" / "tokenizer")})
    check_tokenizer(same, corpus, Ranks())
    with pytest.raises(ConfigError, match=r"model\.tokenizer: .*/model is not the tokenizer that .*/corpus was"):
        check_tokenizer(
            config({"a": leaf}, tmp_path / "corpus", model={"tokenizer": str(tmp_path / "model")}), corpus, Ranks()
        )


@pytest.mark.parametrize("named", ["own", "auto"])
def test_another_chat_template_than_the_corpus_has_is_refused(tmp_path: Path, named: str) -> None:
    """The same vocabulary asks and answers in other tokens: what was prepared is not what inference would send."""
    byte_tokenizer(tmp_path / "model", template="{{ messages }}").save(tmp_path / "model")
    byte_tokenizer(tmp_path / "was", template="{{ messages }} before").save(tmp_path / "corpus" / "tokenizer")
    byte_tokenizer(tmp_path / "same", template="{{ messages }}").save(tmp_path / "other" / "tokenizer")
    sources, model = {"a": {"format": "alpaca", "path": "x.json"}}, {"tokenizer": str(tmp_path / "model")}
    own = load_tokenizer(str(tmp_path / "model")).fingerprint
    cfg = config(sources, tmp_path / "corpus", model=model, chat_template=named)
    check_tokenizer(cfg, corpus_of(tmp_path / "other", own), Ranks())
    with pytest.raises(
        ConfigError, match=r"data\.chat_template: .*/model has another chat template than .*/corpus was"
    ):
        check_tokenizer(cfg, corpus_of(tmp_path / "corpus", own), Ranks())
