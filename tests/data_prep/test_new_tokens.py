"""model.new_tokens in preparation: identity, tokenizer, samples, manifest, and what is said before rows are read."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from conf.compose import compose
from conf.errors import ConfigError
from conf.schema import RunConfig
from data_prep.corpus.identity import corpus_digest, identity, prepare_command
from data_prep.corpus.shards import open_corpus
from data_prep.prepare import prepare
from data_prep.tokenizer.tokenizer import load_tokenizer
from tests.data_prep.made import CHATML, texts, write_jsonl
from tests.tiny import tiny_config
from train.assembly import check_tokenizer
from train.ranks.group import Ranks

TOKENS = ["<|im_start|>", "<|im_end|>"]


@pytest.fixture
def base(real_data: Callable[[str], Path], tmp_path: Path) -> Path:
    """stories260K with a ChatML template; its embedding has 512 rows, its tokenizer as many tokens."""
    folder = tmp_path / "base"
    shutil.copytree(real_data("weights/stories260K/hf"), folder)
    (folder / "chat_template.jinja").write_text(CHATML)
    return folder


def overrides(folder: Path, base: Path, *more: str) -> list[str]:
    rows = folder / "rows.jsonl"
    said = [[{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}] for text in texts(20)]
    write_jsonl(rows, ({"messages": turns} for turns in said))
    source = "data.sources.alpaca"
    return [
        "data=alpaca", f"{source}.path={rows}", f"{source}.format=messages", f"{source}.template=chat",
        f"model.path={base}", "data.seq_len=128", f"data.prepared={folder / 'corpus'}", *more,
    ]  # fmt: skip


def grown(folder: Path, base: Path) -> RunConfig:
    return compose(overrides(folder, base, f"model.new_tokens={TOKENS}"))


def test_the_identity_has_them_only_where_there_are_some(tmp_path: Path, base: Path) -> None:
    plain, more = compose(overrides(tmp_path, base)), grown(tmp_path, base)
    assert identity(plain)["model"] == {"tokenizer": {"reference": str(base), "revision": None}}
    assert identity(more)["model"]["tokenizer"]["new_tokens"] == TOKENS
    assert corpus_digest(plain) != corpus_digest(more)
    again = compose(shlex.split(prepare_command(more))[3:])
    assert identity(again) == identity(more)


def test_samples_have_them_as_control_tokens(tmp_path: Path, base: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cfg = grown(tmp_path, base)
    corpus = open_corpus(prepare(cfg, argv=[]))
    said = " ".join(capfd.readouterr().err.split())
    assert "model.tokenizer: it has 514 tokens, the base rows for 512; embedding and head grow to 576 rows" in said
    assert "and name the base's own tokenizer in model.tokenizer." in said
    assert corpus.new_ids == (512, 513)
    assert corpus.manifest["tokenizer"]["vocab_size"] == 514
    ids, mask = corpus.split("train")["alpaca"].tokens(0)
    words = load_tokenizer(str(corpus.path / "tokenizer"))
    start, end = (words.control_id(token) for token in TOKENS)
    assert [int(index) for index in ids if index >= 512] == [start, end, start, end]
    assert mask[[*ids].index(end)] == 0
    assert mask[len(ids) - 1 - [*ids][::-1].index(end)] == 1
    check_tokenizer(cfg, corpus, Ranks())
    with pytest.raises(ConfigError, match="is not the tokenizer that"):
        check_tokenizer(compose(overrides(tmp_path, base)), corpus, Ranks())


def test_a_corpus_without_them_says_and_keeps_nothing(
    tmp_path: Path, base: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = json.loads((base / "tokenizer_config.json").read_text())
    content = json.loads((base / "tokenizer.json").read_text())
    assert "<|im_start|>" not in json.dumps([settings, content])
    corpus = open_corpus(prepare(compose(overrides(tmp_path, base)), argv=[]))
    assert "new_ids" not in corpus.manifest["tokenizer"]
    assert "rows for" not in capfd.readouterr().err


def test_a_token_that_is_there_already_is_not_new(tmp_path: Path, base: Path) -> None:
    cfg = compose(overrides(tmp_path, base, "model.new_tokens=['</s>','<|im_end|>']"))
    assert open_corpus(prepare(cfg, argv=[])).new_ids == (512,)


def test_a_learnt_tokenizer_gets_them_too(tmp_path: Path, base: Path) -> None:
    more = ["data.sources.alpaca.template=plain", "model.tokenizer=train", "model.vocab_size=300"]
    cfg = compose(overrides(tmp_path, base, *more, f"model.new_tokens={TOKENS}"))
    corpus = open_corpus(prepare(cfg, argv=[]))
    words = load_tokenizer(str(corpus.path / "tokenizer"))
    assert [words.control_id(token) for token in TOKENS] == [words.vocab_size - 2, words.vocab_size - 1]


def test_a_random_model_with_too_few_rows_is_refused_before_preparation(tmp_path: Path, base: Path) -> None:
    small = {key: value for key, value in {**tiny_config("llama"), "vocab_size": 500}.items() if value is not None}
    config = ", ".join(f"{key}: {str(value).lower()}" for key, value in small.items())
    more = ["model.path=null", "model.init=random", f"model.config={{{config}}}", f"model.tokenizer={base}"]
    with pytest.raises(ConfigError, match=r"model\.config\.vocab_size: 500 is less than the tokenizer's 512"):
        prepare(compose(overrides(tmp_path, base, *more)), argv=[])
    assert not (tmp_path / "corpus" / "MANIFEST.json").exists()
