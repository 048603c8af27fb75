"""A library in Rust that panics over a file prints nothing: the sentence says it. What others print stays."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from conf.errors import BadData
from conf.foreign.panics import untold
from data_prep.tokenizer.tokenizer import load_tokenizer
from tests.tiny import tiny_tokenizer


@pytest.mark.parametrize("backtrace", ["0", "1"])
def test_a_tokenizer_whose_merges_panic_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], backtrace: str
) -> None:
    monkeypatch.setenv("RUST_BACKTRACE", backtrace)
    path = tiny_tokenizer(tmp_path) / "tokenizer.json"
    content = json.loads(path.read_text())
    # A prefix for the inside of words that is longer than a piece: the library cuts the piece there.
    content["model"] |= {"continuing_subword_prefix": "x" * 40}
    path.write_text(json.dumps(content))
    with pytest.raises(BadData, match=r"the tokenizer of .* cannot be used: PanicException: range"):
        load_tokenizer(str(tmp_path))
    assert capfd.readouterr() == ("", "")


def test_what_others_print_meanwhile_stays(capfd: pytest.CaptureFixture[str]) -> None:
    with untold():
        print("a warning", file=sys.stderr)
        os.write(2, b"and another\n")
    assert capfd.readouterr().err == "a warning\nand another\n"
    with untold():
        os.write(2, b"thread '<unnamed>' panicked at src/x.rs:1:\n")
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "afterwards\n"
