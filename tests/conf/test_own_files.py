"""``data=own path=...``: which sources result, and what is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from conf.compose import compose
from conf.errors import ConfigError

MODEL = "model.path=x"


def sources(path: str) -> dict[str, Any]:
    return {name: (leaf.path, leaf.weight) for name, leaf in compose(["data=own", path, MODEL]).data.sources.items()}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("path=rows.jsonl", {"own": ("rows.jsonl", None)}),
        ("path=[a.json,b/c.csv]", {"a": ("a.json", None), "c": ("b/c.csv", None)}),
        ("path={a.json: 3, b.csv.gz: 1}", {"a": ("a.json", 3.0), "b": ("b.csv.gz", 1.0)}),
        ("path=[x/a.jsonl,x/a_2.jsonl,y/a.jsonl]",
         {"a": ("x/a.jsonl", None), "a_2": ("x/a_2.jsonl", None), "a_3": ("y/a.jsonl", None)}),
        ("path=[tokenizer.json,b.json]", {"tokenizer_2": ("tokenizer.json", None), "b": ("b.json", None)}),
    ],
)  # fmt: skip
def test_every_file_is_a_source(path: str, expected: dict[str, Any]) -> None:
    assert sources(path) == expected
    cfg = compose(["data=own", path, MODEL])
    assert all(leaf.format == "auto" and leaf.validation_fraction == 0.05 for leaf in cfg.data.sources.values())
    assert cfg.data.chat_template == "auto"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data=own"], "data=own: no file; name it with path=rows.jsonl"),
        (["data=own", "path=[a.json,a.json]"], "a file stands in it twice"),
        (["data=own", "path=a.json", "path=b.json"], "path: given 2 times; name several files in one list"),
        (["data=own", "path=3"], "not a file, a list of files, or files with a weight each"),
        (["data=own", "path={a.json: x}"], "not a file, a list of files, or files with a weight each"),
        (["data=alpaca", "path=a.json"], "path=a.json: path names the files of data=own; add data=own"),
    ],
)
def test_what_is_wrong_is_told_once(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([*words, MODEL])
    (problem,) = caught.value.problems
    assert said in problem


@pytest.mark.parametrize("date", ["2024-02-30", "tomorrow", "20240726"])
def test_a_date_is_a_day(date: str) -> None:
    with pytest.raises(ConfigError, match="is no day; write it as YYYY-MM-DD"):
        compose(["data=own", "path=a.json", MODEL, f"data.template_date={date}"])
