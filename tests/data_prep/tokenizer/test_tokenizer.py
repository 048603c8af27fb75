"""Loading, fingerprints, training, and text that never becomes control."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conf.errors import BadData, ConfigError, MissingInput, Unavailable
from data_prep.tokenizer.learn import EOS, PAD, train_bpe
from data_prep.tokenizer.tokenizer import Tokenizer, load_tokenizer
from tests.data_prep.made import CHATML, REAL, byte_tokenizer, needs_real_data, texts

SPECIAL_TEXT = "a <|endoftext|> b </s> c <|im_end|> d <s>[INST] e <pad><|pad|>"
FOLDERS = ("tokenizers/gpt2", "tokenizers/mistral_v1", "tokenizers/mistral_v3", "weights/stories260K/hf")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_bpe(texts(), 400, tmp_path_factory.mktemp("tokenizer"))


def test_trained_has_eos_and_pad_and_the_size_asked(trained: Tokenizer) -> None:
    assert trained.control_id(EOS) == trained.eos_id == 0
    assert trained.control_id(PAD) == trained.pad_id == 1
    assert trained.bos_id is None
    assert 258 < trained.vocab_size <= 400


def test_training_is_deterministic(trained: Tokenizer, tmp_path: Path) -> None:
    assert train_bpe(texts(), 400, tmp_path / "again").fingerprint == trained.fingerprint
    assert train_bpe(texts(50), 400, tmp_path / "other").fingerprint != trained.fingerprint


def test_too_small_a_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 258"):
        train_bpe(texts(), 200, tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_byte_level_round_trip(trained: Tokenizer, text: str) -> None:
    assert trained.decode(trained.encode(text)) == text


def test_special_token_text_stays_text(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path, specials=["<|im_start|>", "<|im_end|>", "</s>", "[INST]"])
    ids = tokenizer.encode(SPECIAL_TEXT)
    assert not {tokenizer.control_id(name) for name in tokenizer.controls} & set(ids)
    assert tokenizer.decode(ids) == SPECIAL_TEXT
    assert tokenizer.encode_batch([SPECIAL_TEXT, "x"]) == [ids, tokenizer.encode("x")]


def test_a_special_token_that_is_also_a_word_is_broken_up(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models
    from transformers import PreTrainedTokenizerFast

    backend = Backend(
        models.Unigram([("<unk>", 0.0), ("</s>", -1.0), ("<", -9.0), ("/s>", -9.0), ("a", -2.0)], unk_id=0)
    )
    tokenizer = Tokenizer(
        PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>"), "made"
    )
    assert tokenizer.encode("a</s>a") == [4, 2, 3, 4]


def test_saved_and_loaded_keeps_the_fingerprint(tmp_path: Path) -> None:
    first = byte_tokenizer(tmp_path / "a", specials=["<|im_start|>", "<|im_end|>"], eos="<|im_end|>", template=CHATML)
    first.save(tmp_path / "b")
    again = load_tokenizer(str(tmp_path / "b"))
    assert again.fingerprint == first.fingerprint
    assert again.chat_template == CHATML
    assert (again.eos_id, again.pad_id, again.vocab_size) == (first.eos_id, first.pad_id, first.vocab_size)


def test_fingerprint_sees_every_part(tmp_path: Path) -> None:
    plain = byte_tokenizer(tmp_path / "a")
    prints = {
        plain.fingerprint,
        byte_tokenizer(tmp_path / "b", specials=["<x>"]).fingerprint,
        byte_tokenizer(tmp_path / "c", template=CHATML).fingerprint,
        byte_tokenizer(tmp_path / "d", eos="<|pad|>").fingerprint,
    }
    assert len(prints) == 4


@pytest.mark.parametrize("name", ["/no/such/folder", "./no-such-folder", "a/b/c"])
def test_absent_folder(name: str) -> None:
    with pytest.raises(MissingInput, match=r"model\.tokenizer: no folder"):
        load_tokenizer(name)


def test_folder_without_a_tokenizer_and_broken_json(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="holds no tokenizer"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(BadData, match=r"tokenizer\.json cannot be used"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(BadData, match=f"the tokenizer of {tmp_path} cannot be used"):
        load_tokenizer(str(tmp_path))


def test_hub_out_of_reach_is_one_sentence_within_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.hf_api.HfApi, "__init__", _api_at_nowhere)
    start = time.monotonic()
    with pytest.raises(Unavailable, match="hub cannot be reached") as caught:
        load_tokenizer("nobody-at-all/no-such-model")
    assert time.monotonic() - start < 10
    assert "\n" not in str(caught.value)


def _api_at_nowhere(self: object, *args: object, **options: object) -> None:
    self.endpoint = "http://127.0.0.1:9"  # type: ignore[attr-defined]
    self.token = False  # type: ignore[attr-defined]
    self.library_name = self.library_version = self.user_agent = self.headers = None  # type: ignore[attr-defined]


def test_without_eos_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    train_bpe(texts(), 300, folder)
    settings_file = folder / "tokenizer_config.json"
    content = json.loads(settings_file.read_text())
    content.pop("eos_token")
    settings_file.write_text(json.dumps(content))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(ConfigError, match="no end-of-sequence token"):
        load_tokenizer(str(folder))


@needs_real_data
@pytest.mark.parametrize("folder", FOLDERS)
def test_real_tokenizers(folder: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(REAL / folder))
    ids = tokenizer.encode(SPECIAL_TEXT)
    assert not {tokenizer.control_id(name) for name in tokenizer.controls} & set(ids)
    for text in (SPECIAL_TEXT, "Hello world\n  x = [1, 2]\n\t🙂 ü 你好"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    tokenizer.save(tmp_path)
    assert load_tokenizer(str(tmp_path)).fingerprint == tokenizer.fingerprint


@needs_real_data
def test_sentencepiece_folder_agrees_with_sentencepiece(tmp_path: Path) -> None:
    import sentencepiece

    shutil.copy(REAL / "tokenizers/mistral_v1/tokenizer.model", tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert tokenizer.starts_with_bos
    for text in (*texts(50), "for i in range(10):\n    print(i)  # two  spaces", "Ünïcödé 🙂"):
        assert tokenizer.encode(text) == reference.encode(text)


@needs_real_data
def test_what_cannot_be_converted_says_so(tmp_path: Path) -> None:
    shutil.copy(REAL / "tokenizers/tiny_torchtune/m.model", tmp_path / "tokenizer.model")
    with pytest.raises(Unavailable, match="cannot be converted faithfully"):
        load_tokenizer(str(tmp_path))
