"""Files and the output of other programs are text in UTF-8, whatever the locale.

Ruff's PLW1514 sees a path only where its type is plain to it. So the calls are found here by their names.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.corpus.shards import open_corpus
from data_prep.tokenizer.tokenizer import load_tokenizer
from launch.torchrun import child_environment
from tests.data_prep.made import CHATML, byte_tokenizer

ROOT = Path(__file__).parents[1]
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
"""A locale in which Python reads and writes ASCII unless it is told otherwise."""
FOLDERS = ("conf", "data_prep", "train", "launch", "benchmarks")


def without_encoding(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every call that decodes or encodes by the locale."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and _by_locale(node):
            yield node.lineno, ast.unparse(node)


def _by_locale(call: ast.Call) -> bool:
    keywords = {each.arg for each in call.keywords}
    if "encoding" in keywords:
        return False
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in ("read_text", "write_text"):
        return len(call.args) <= (name == "write_text")  # the encoding may stand behind the text
    if name != "open":
        return any(each.arg in ("text", "universal_newlines") and _is_true(each.value) for each in call.keywords)
    if getattr(getattr(call.func, "value", None), "id", "") == "os":
        return False
    modes = [*call.args, *(each.value for each in call.keywords if each.arg == "mode")]
    words = [each.value for each in modes if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    return not any("b" in word and len(word) <= 3 for word in words)


def _is_true(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is True


def test_every_text_names_its_encoding() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, text in without_encoding(path.read_text(encoding="utf-8"))
    ]
    assert not found, 'give encoding="utf-8":\n' + "\n".join(found)


@pytest.mark.parametrize(
    ("call", "seen"),
    [
        ("path.read_text()", True),
        ("(a / b).read_text()", True),
        ("path.read_text(encoding='utf-8')", False),
        ("path.write_text(x)", True),
        ("path.write_text(x, 'utf-8')", False),
        ("path.open()", True),
        ("path.open('a')", True),
        ("path.open('rb')", False),
        ("gzip.open(path, 'rt')", True),
        ("os.open(path, os.O_RDONLY)", False),
        ("subprocess.run(command, text=True)", True),
        ("Segment(text=other)", False),
        ("subprocess.run(command, text=True, encoding='utf-8')", False),
    ],
)
def test_a_planted_call_is_seen(call: str, seen: bool) -> None:
    assert bool(list(without_encoding(call))) is seen


def test_preparation_and_preview_in_an_ascii_locale(tmp_path: Path) -> None:
    """Rows, tokenizer and template hold other letters; what stdout cannot hold is an escape."""
    byte_tokenizer(tmp_path / "made", specials=["<｜im｜>"], template="<｜im｜>｜" + CHATML).save(
        tmp_path / "tokenizer"
    )
    rows = [[("user", f"Größe {row}?"), ("assistant", f"naïve 你好 {row}")] for row in range(20)]
    said = [{"messages": [{"role": role, "content": text} for role, text in each]} for each in rows]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in said), encoding="utf-8")
    source = "data.sources.alpaca"
    arguments = [
        "data=alpaca", f"{source}.path={path}", f"{source}.format=messages", f"{source}.template=chat",
        f"model.tokenizer={tmp_path / 'tokenizer'}", "data.seq_len=256", f"data.prepared={tmp_path / 'corpus'}",
    ]  # fmt: skip
    environment = {**os.environ, **child_environment(1), **ASCII}
    for module in ("data_prep", "data_prep.preview"):
        command = [sys.executable, "-m", module, *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
    assert "\\u4f60" in done.stdout
    words = load_tokenizer(str(tmp_path / "corpus" / "tokenizer"))
    ids, _ = open_corpus(tmp_path / "corpus").split("train")["alpaca"].tokens(0)
    assert "naïve 你好" in words.decode(ids)
