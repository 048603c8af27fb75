"""The chat template of a corpus: the tokenizer's own, a shipped one, the user's; and the date it may ask for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from conf.errors import BadData, ConfigError, MissingInput
from conf.schema import DataConfig
from data_prep.templates import choose
from data_prep.templates.choose import FOLDER, with_template
from data_prep.tokenizer.tokenizer import Tokenizer
from tests.data_prep.made import byte_tokenizer, config
from tests.data_prep.templates.published import PUBLISHED

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi {{ you }}"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "And?"},
]
WRITTEN = {
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi {{ you }}<|im_end|>\n"
    "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<|endoftext|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi {{ you }}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nAnd?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<|endoftext|>[INST] Be brief.\n\nHi {{ you }} [/INST] Hello<|endoftext|>[INST] And? [/INST]",
    "gemma": "<|endoftext|><start_of_turn>user\nBe brief.\n\nHi {{ you }}<end_of_turn>\n"
    "<start_of_turn>model\nHello<end_of_turn>\n<start_of_turn>user\nAnd?<end_of_turn>\n<start_of_turn>model\n",
    "alpaca": "Be brief.\n\n### Instruction:\nHi {{ you }}\n\n### Response:Hello<|endoftext|>"
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nAnd?\n\n### Response:",
}


def data(folder: Path, **settings: Any) -> DataConfig:
    cfg = config({"a": {"format": "messages", "path": "x"}}, folder / "corpus")
    return dataclasses.replace(cfg.data, **settings)


def test_every_shipped_template_is_written_as_documented(tmp_path: Path) -> None:
    assert {*WRITTEN} == {each.stem for each in FOLDER.glob("*.jinja")} | {"alpaca"}
    for name, text in WRITTEN.items():
        tokenizer = with_template(byte_tokenizer(tmp_path / name), data(tmp_path, chat_template=name))
        assert tokenizer.render(TURNS, add_generation_prompt=True) == text


def test_a_file_of_ones_own_and_what_is_wrong_with_it(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path / "t", template="own")
    assert with_template(tokenizer, data(tmp_path)) is tokenizer
    path = tmp_path / "mine.jinja"
    path.write_text("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}")
    assert with_template(tokenizer, data(tmp_path, chat_template=str(path))).chat_template == path.read_text()
    path.write_text("one\n{% for m in messages %}")
    with pytest.raises(BadData, match=r"data.chat_template: .*mine.jinja, line 2: not a jinja template"):
        with_template(tokenizer, data(tmp_path, chat_template=str(path)))
    path.write_bytes(b"\xff")
    with pytest.raises(BadData, match="is not UTF-8 text"):
        with_template(tokenizer, data(tmp_path, chat_template=str(path)))
    with pytest.raises(MissingInput, match=r"data.chat_template: chatmml is no template; give own, auto, alpaca"):
        with_template(tokenizer, data(tmp_path, chat_template="chatmml"))


def llama31(folder: Path) -> Tokenizer:
    published = PUBLISHED["llama31"]
    return byte_tokenizer(folder, specials=published.specials, eos=published.eos, template=published.template)


def test_a_template_that_asks_for_the_date_gets_one_for_the_whole_corpus(tmp_path: Path) -> None:
    before = llama31(tmp_path / "t").fingerprint
    tokenizer = with_template(llama31(tmp_path / "t"), data(tmp_path, template_date="2027-01-05"))
    assert "Today Date: 05 Jan 2027\n" in tokenizer.render(TURNS)
    assert "strftime_now" not in str(tokenizer.chat_template)
    assert tokenizer.fingerprint != before
    tokenizer.save(tmp_path / "saved")  # what the corpus and the export keep
    assert "Today Date: 05 Jan 2027\n" in Tokenizer(tokenizer.hf, "x").render(TURNS)
    odd = byte_tokenizer(tmp_path / "o", template="{% set f = '%Y' %}{{ strftime_now(f) }}")
    with pytest.raises(ConfigError, match=r"data.template_date: the chat template of made asks for the date in a way"):
        with_template(odd, data(tmp_path))
    defined = '{% if strftime_now is defined %}{{ strftime_now("%Y") }}{% endif %}'
    some = with_template(byte_tokenizer(tmp_path / "d", template=defined), data(tmp_path, template_date="2027-01-05"))
    assert some.render(TURNS) == "2027"


def test_only_settings_that_are_used_are_part_of_the_identity(tmp_path: Path) -> None:
    assert choose.identity(data(tmp_path)) == {}
    path = tmp_path / "mine.jinja"
    path.write_text("{{ 1 }}")
    first = choose.identity(data(tmp_path, chat_template=str(path), template_date="2027-01-05"))
    assert first["template_date"] == "2027-01-05"
    path.write_text("{{ 2 }}")
    assert choose.identity(data(tmp_path, chat_template=str(path)))["chat_template"] != first["chat_template"]
