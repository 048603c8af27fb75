"""Tokenizers are what AutoTokenizer gives, and the text of SentencePiece models has SentencePiece's ids."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from data_prep.rows.conversation import Conversation, Message
from data_prep.samples.encode import encode
from data_prep.tokenizer.tokenizer import Tokenizer, load_tokenizer
from tests.data_prep.made import CHATML

Data = Callable[[str], Path]
CHATML_TOKENS = {"<|im_start|>": 32000, "<|im_end|>": 32001}
FOLDERS = ("tokenizers/gpt2", "tokenizers/tiny_torchtitan", "weights/stories260K/hf")
BARE = ("tokenizers/mistral_v1", "tokenizers/mistral_v3")


def sentences(data: Path, count: int = 300) -> list[str]:
    """Outputs of Alpaca, which has few of other languages, and some lines that are hard to cut."""
    rows = json.loads(gzip.decompress(data.read_bytes()))
    hard = ["naïve 你好 🙂", "for i in range(10):\n    print(i)  # two  spaces", "1,000.50 €", "a\tb\r\nc\u00a0d"]
    return [text for row in rows[:: len(rows) // count] if (text := row["output"].strip())][:count] + hard


def chatml_folder(data: Data, folder: Path) -> Path:
    """Mistral v1 as its tuners publish it: a SentencePiece model, two added tokens, a template in a file of its own."""
    shutil.copy(data("tokenizers/mistral_v1/tokenizer.model"), folder)
    added = {str(index): {"content": text, "special": True} for text, index in CHATML_TOKENS.items()}
    settings = {
        "added_tokens_decoder": added,
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
        "pad_token": "</s>",
        "add_bos_token": False,
        "tokenizer_class": "LlamaTokenizer",
    }
    for name, content in (("tokenizer_config.json", settings), ("added_tokens.json", CHATML_TOKENS)):
        (folder / name).write_text(json.dumps(content))
    (folder / "chat_template.jinja").write_text(CHATML)
    return folder


def processor(folder: Path) -> Any:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def specials(hf: Any) -> dict[str, Any]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "special_tokens_map", "chat_template")
    return {name: getattr(hf, name) for name in names} | {"size": len(hf), "added": sorted(hf.get_added_vocab())}


def as_auto(ours: Tokenizer, auto: Any, texts: list[str]) -> int:
    """Compares all but the ids of text; returns how many texts have other ids than AutoTokenizer's."""
    assert specials(ours.hf) == specials(auto)
    assert ours.vocab_size == max(auto.get_vocab().values()) + 1
    assert ours.encode_batch(texts) == [ours.hf.encode(text, add_special_tokens=False) for text in texts]
    return sum(ours.encode(text) != auto.encode(text, add_special_tokens=False) for text in texts)


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_with_a_tokenizer_json(folder: str, real_data: Data) -> None:
    ours, auto = load_tokenizer(str(real_data(folder))), AutoTokenizer.from_pretrained(real_data(folder))
    texts = sentences(real_data("alpaca/alpaca_data.json.gz"))
    assert as_auto(ours, auto, texts) == 0
    assert [ours.hf.encode(text) for text in texts] == [auto.encode(text) for text in texts]


@pytest.mark.parametrize(("folder", "differing"), [(BARE[0], 304), (BARE[1], 304)])
def test_a_bare_model_keeps_sentencepieces_ids(folder: str, differing: int, real_data: Data) -> None:
    """The first claim: transformers gives such a folder no dummy prefix, so that every text begins otherwise."""
    ours, auto = load_tokenizer(str(real_data(folder))), AutoTokenizer.from_pretrained(real_data(folder))
    texts, model = sentences(real_data("alpaca/alpaca_data.json.gz")), processor(real_data(folder))
    assert as_auto(ours, auto, texts) == differing
    assert [text for text in texts if ours.encode(text) != model.encode(text)] == []
    assert (ours.starts_with_bos, auto.encode("a")[0] == auto.bos_token_id) == (True, False)


def test_a_sentencepiece_folder_with_chat_tokens(real_data: Data, tmp_path: Path) -> None:
    folder = chatml_folder(real_data, tmp_path)
    ours, auto = load_tokenizer(str(folder)), AutoTokenizer.from_pretrained(folder)
    texts, model = sentences(real_data("alpaca/alpaca_data.json.gz"), 3000), processor(folder)
    assert (ours.eos_id, ours.pad_id, ours.bos_id, ours.vocab_size) == (32001, 2, 1, 32002)
    assert (ours.chat_template, ours.starts_with_bos) == (CHATML, False)
    assert {text: ours.control_id(text) for text in CHATML_TOKENS} == CHATML_TOKENS
    # The second claim: its merges come in another order.
    assert 0 < as_auto(ours, auto, texts) < 0.1 * len(texts)
    assert sum(ours.encode(text) != model.encode(text) for text in texts) <= 3  # long runs of spaces
    ours.save(tmp_path / "saved")
    again = load_tokenizer(str(tmp_path / "saved"))
    assert again.fingerprint == ours.fingerprint
    assert [again.hf.encode(text) for text in texts[:50]] == [ours.hf.encode(text) for text in texts[:50]]


def test_added_tokens_are_sentencepieces_symbols(real_data: Data) -> None:
    """Mistral v3 has symbols that are tokens wherever they stand."""
    ours, model = (
        load_tokenizer(str(real_data("tokenizers/mistral_v3"))),
        processor(real_data("tokenizers/mistral_v3")),
    )
    assert ours.encode("see [REFERENCE_DOC_3]") == model.encode("see [REFERENCE_DOC_3]")


CONVERSATION = [
    ("user", "Name a colour."),
    ("assistant", "Blue."),
    ("user", "And another,\nplease"),
    ("assistant", "Deep red 🙂"),
]


@pytest.mark.parametrize("folder", [*FOLDERS, "chatml"])
def test_a_chat_has_the_ids_of_apply_chat_template(folder: str, real_data: Data, tmp_path: Path) -> None:
    """Texts after a special token get the space before them, or none, that AutoTokenizer gives them."""
    place = chatml_folder(real_data, tmp_path) if folder == "chatml" else real_data(folder)
    ours, auto = load_tokenizer(str(place)), AutoTokenizer.from_pretrained(place)
    tokens = list(CHATML_TOKENS)
    if folder != "chatml":
        for hf in (ours.hf, auto):
            hf.add_tokens(tokens, special_tokens=True)
            hf.chat_template = CHATML
        ours = Tokenizer(ours.hf, "with ChatML")
    said = [{"role": role, "content": text} for role, text in CONVERSATION]
    wanted = auto.apply_chat_template(said, tokenize=True, return_dict=False)
    found = encode(Conversation(tuple(Message(role, text) for role, text in CONVERSATION)), "chat", ours).ids  # type: ignore[arg-type]
    assert found[: len(wanted)] == ours.hf.apply_chat_template(said, tokenize=True, return_dict=False) == wanted
    assert found[len(wanted) :] in ([], [ours.eos_id])


def test_further_templates_are_read(real_data: Data, tmp_path: Path) -> None:
    folder = chatml_folder(real_data, tmp_path)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools{{ messages[0]['content'] }}")
    ours, auto = load_tokenizer(str(folder)), AutoTokenizer.from_pretrained(folder)
    assert (
        ours.hf.chat_template
        == auto.chat_template
        == {"default": CHATML, "tool_use": ours.hf.chat_template["tool_use"]}
    )
    assert ours.chat_template == CHATML
    assert ours.render([{"role": "user", "content": "x"}], tools=[{"type": "function"}]) == "toolsx"


def test_a_hub_id_and_its_folder_give_one_tokenizer(
    real_data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the hub's cache, laid out as the hub client does."""
    import huggingface_hub

    folder = tmp_path / "models--someone--mistral" / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    chatml_folder(real_data, folder)
    refs = tmp_path / "models--someone--mistral" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub._snapshot_download.constants, "HF_HUB_CACHE", str(tmp_path))
    ours = load_tokenizer("someone/mistral")
    assert ours.name == "someone/mistral"
    assert ours.fingerprint == load_tokenizer(str(folder)).fingerprint


def test_new_tokens_stand_behind_all_others(real_data: Data) -> None:
    folder = str(real_data("weights/stories260K/hf"))
    plain, grown = load_tokenizer(folder), load_tokenizer(folder, None, ["<|im_start|>", "</s>", "<|im_end|>"])
    assert (plain.vocab_size, grown.vocab_size) == (512, 514)
    assert [grown.control_id(text) for text in ("<|im_start|>", "<|im_end|>", "</s>")] == [512, 513, plain.eos_id]
    assert grown.encode("Once upon a time") == plain.encode("Once upon a time")
    assert not {512, 513} & set(grown.encode("<|im_start|>"))


def test_a_locale_of_ascii_reads_the_same(real_data: Data, tmp_path: Path) -> None:
    folder = chatml_folder(real_data, tmp_path)
    (folder / "chat_template.jinja").write_text("｜" + CHATML, encoding="utf-8")
    code = (
        "import sys; from data_prep.tokenizer import tokenizer as t; print(t.load_tokenizer(sys.argv[1]).fingerprint)"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-1000:]
    assert done.stdout.split()[-1] == load_tokenizer(str(folder)).fingerprint
