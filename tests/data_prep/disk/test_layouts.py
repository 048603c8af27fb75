"""The same rows in every layout, encoding and separator that people have: read the same, or refused with the place."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.errors import BadData
from data_prep.disk import decode, json_text
from data_prep.rows import files
from data_prep.rows.conversation import Rejected

ROWS = [{"instruction": f"Größe {n}?\nOder {{", "output": f'"{n}", [ja]'} for n in range(200)]


def parsed(path: Path, encoding: str | None = None) -> list[Any]:
    return [files.parse(record.text) for record in files.rows(path, encoding)]


@pytest.mark.parametrize("key", ["data", "rows", "Instanzen"])
@pytest.mark.parametrize("indent", [None, 2])
def test_one_object_with_one_list_of_rows(tmp_path: Path, key: str, indent: int | None) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"version": "1.0", "tags": ["a"], key: ROWS, "n": 2}, indent=indent), encoding="utf-8")
    assert parsed(path) == ROWS
    assert [record.row for record in files.rows(path)] == list(range(200))


def test_one_row_on_one_line_is_a_row_and_not_a_list_of_turns(tmp_path: Path) -> None:
    path = tmp_path / "row.json"
    chat = {"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}]}
    for row in (chat, {"conversations": [{"from": "human", "value": "x"}]}, {"prompt": "x", "tools": [{"name": "f"}]}):
        path.write_text(json.dumps(row))
        assert parsed(path) == [row]
    path.write_text(f"{json.dumps(chat)}\n{json.dumps({'data': ROWS})}\n")
    assert len(parsed(path)) == 2


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
@pytest.mark.parametrize("between", ["\n", ",\n", "\n\n"])
@pytest.mark.parametrize("chunk", [64, 1 << 20])
def test_objects_over_several_lines(
    tmp_path: Path, name: str, between: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_text, "CHUNK", chunk)
    texts = [json.dumps(row, indent=2, ensure_ascii=False) for row in ROWS]
    path = tmp_path / name
    path.write_text(between.join(texts), encoding="utf-8")
    assert parsed(path) == ROWS
    lines = path.read_text(encoding="utf-8").split("\n")
    assert all(lines[record.row].startswith("{") for record in files.rows(path))


def test_a_broken_object_among_others_is_that_row_alone(tmp_path: Path) -> None:
    texts = [json.dumps(row, indent=1) for row in ROWS[:5]]
    texts[2] = texts[2].replace('"output":', '"output"')
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(texts))
    found: list[Any] = []
    for record in files.rows(path):
        try:
            found.append(files.parse(record.text))
        except Rejected as rejected:
            found.append(rejected.reason)
    assert found == [*ROWS[:2], "bad_json", *ROWS[3:5]]


def test_a_broken_first_line_does_not_make_lines_something_else(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(['{"a": "x', *map(json.dumps, ROWS)]))
    first, *others = files.rows(path)
    with pytest.raises(Rejected, match="bad_json"):
        files.parse(first.text)
    assert [files.parse(record.text) for record in others] == ROWS


Value = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(st.text(), Value, min_size=1), min_size=2, max_size=6), st.sampled_from([1, 2, 4]))
def test_any_objects_survive_being_spread_over_lines(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], indent: int
) -> None:
    path = tmp_path_factory.mktemp("spread") / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row, indent=indent) for row in rows))
    assert parsed(path) == rows


def write_csv(path: Path, separator: str, encoding: str) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(ROWS[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(ROWS)
    path.write_bytes(text.getvalue().encode(encoding))


@pytest.mark.parametrize(("separator", "word"), [(",", ""), (";", "semicolon"), ("\t", "tab"), ("|", "bar")])
def test_separators_are_found_and_said(tmp_path: Path, separator: str, word: str) -> None:
    path = tmp_path / "rows.csv"
    write_csv(path, separator, "utf-8")
    assert parsed(path) == ROWS
    assert files.read_as(path) == (f"fields are separated by a {word}" if word else "")


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("a;b\n1,5;2,5\n3,5;4,5\n", [{"a": "1,5", "b": "2,5"}, {"a": "3,5", "b": "4,5"}]),
        ("a,b\n1;5,2\n", [{"a": "1;5", "b": "2"}]),
        ("a,b;c\nx,y;z\n", [{"a": "x", "b;c": "y;z"}]),
        ("one column\n1;2\n", [{"one column": "1;2"}]),
        (",a,b\n0,x,y\n", [{"": "0", "a": "x", "b": "y"}]),  # pandas' index
        ("a\n", []),
    ],
)
def test_a_comma_wins_unless_another_sign_fits_better(tmp_path: Path, text: str, rows: list[dict[str, str]]) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    assert parsed(path) == rows


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-32", "utf-16-le", "utf-8", "utf-8-sig"])
@pytest.mark.parametrize("name", ["rows.csv", "rows.json", "rows.jsonl"])
def test_encodings(tmp_path: Path, encoding: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "CHUNK", 101)  # characters lie across the edges of chunks
    path = tmp_path / name
    if name.endswith("csv"):
        write_csv(path, ",", encoding)
    else:
        lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
        text = "\n".join(lines) if name.endswith("l") else f"[{','.join(lines)}]"
        path.write_bytes(text.encode(encoding))
    assert parsed(path, encoding) == ROWS
    if encoding in ("utf-16", "utf-32"):
        assert parsed(path) == ROWS
        assert files.read_as(path) == f"encoding {encoding} (by its byte order mark)"


def test_another_encoding_than_the_files_names_the_row_or_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    write_csv(path, ",", "latin-1")
    with pytest.raises(Rejected, match="bad_utf8: byte 0xf6"):
        parsed(path)
    path.write_bytes(b"a,b\n1,\x81\n2,x\n")  # cp1252 has no character for 0x81
    bad, good = files.rows(path, "cp1252")
    with pytest.raises(Rejected, match="bad_utf8"):
        files.parse(bad.text)
    assert files.parse(good.text) == {"a": "2", "b": "x"}
    path.write_bytes("a,b\n1,x\n".encode("utf-16-le") + b"\x00\xdc\x00")
    with pytest.raises(BadData, match=r"rows\.csv is not utf-16-le text .*set the source's encoding"):
        parsed(path, "utf-16-le")
