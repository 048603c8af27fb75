"""Configs, raw files and tokenizers for the tests of preparation."""

from __future__ import annotations

import copy
import functools
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from conf.compose import compose
from conf.judge import validate
from conf.schema import RunConfig, to_dict
from data_prep.tokenizer.learn import train_bpe
from data_prep.tokenizer.tokenizer import Tokenizer

REAL = Path(os.environ.get("CORRAL_TEST_DATA", "/nonexistent"))
needs_real_data = pytest.mark.skipif(not REAL.is_dir(), reason="CORRAL_TEST_DATA does not name the folder of real data")

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
    " + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = '<<SYS>>\n' +"
    " messages[0]['content'] + '\n<</SYS>>\n\n' %}{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}"
    "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token+'[INST] ' + (system if loop.first else '') + m['content'] + ' [/INST]'}}"
    "{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)

WORDS = (
    "red",
    "green",
    "blue",
    "cat",
    "dog",
    "bird",
    "runs",
    "sees",
    "takes",
    "a",
    "big",
    "small",
    "tree",
    "Hello",
    "world",
)


def texts(count: int = 200) -> list[str]:
    return [" ".join(WORDS[(row * 7 + 3 * place) % len(WORDS)] for place in range(3 + row % 6)) for row in range(count)]


def alpaca_rows(count: int) -> list[dict[str, str]]:
    """Clean rows, no two alike."""
    return [
        {"instruction": f"Repeat number {row}.", "input": text if row % 2 else "", "output": f"{text} {row}"}
        for row, text in enumerate(texts(count))
    ]


def write_json(path: Path, rows: Iterable[object]) -> Path:
    path.write_text(json.dumps(list(rows)))
    return path


def write_jsonl(path: Path, rows: Iterable[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@functools.lru_cache(maxsize=1)
def _base() -> dict[str, Any]:
    return to_dict(compose([]))


def config(
    sources: Mapping[str, Any], prepared: Path, *, model: Mapping[str, Any] | None = None, **data: Any
) -> RunConfig:
    """A whole config with these sources; the tokenizer is learnt from them unless ``model`` says otherwise."""
    raw = copy.deepcopy(_base())
    raw["model"] |= model or {"tokenizer": "train", "vocab_size": 400}
    defaults = {"bad_row_budget": 0.5, "seq_len": 128}
    raw["data"] |= {**defaults, **data, "sources": dict(sources), "prepared": str(prepared)}
    return validate(raw)


def byte_tokenizer(folder: Path, *, specials: Iterable[str] = (), eos: str = "", template: str = "") -> Tokenizer:
    """A byte-level BPE with further special tokens and a chat template."""
    base = train_bpe(texts(), 400, folder)
    base.hf.add_special_tokens({"additional_special_tokens": list(specials)})
    if eos:
        base.hf.eos_token = eos
    base.hf.bos_token = "<|endoftext|>"
    base.hf.chat_template = template or None
    return Tokenizer(base.hf, "made")
