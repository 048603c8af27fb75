"""Raw rows: every way a file can be stored, and every way it can be broken."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.errors import BadData, MissingInput
from data_prep.disk import json_text
from data_prep.rows import files
from data_prep.rows.conversation import Rejected

ROWS = [{"a": 1}, {"b": "ü🙂\u2028"}, {"c": [1, {"d": "]},["}]}]


def parsed(path: Path) -> list[object]:
    return [json.loads(raw.text) for raw in files.rows(path)]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("indent", [None, 2])
def test_array_plain_or_gzipped(tmp_path: Path, pack: type, indent: int | None) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(pack(json.dumps(ROWS, indent=indent).encode()))
    assert parsed(path) == ROWS
    assert [raw.row for raw in files.rows(path)] == [0, 1, 2]


def test_lines_count_blank_lines_but_do_not_yield_them(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\r\n{"a": 3}')
    assert [(raw.row, raw.text) for raw in files.rows(path)] == [(0, '{"a": 1}'), (2, '{"a": 2}'), (3, '{"a": 3}')]


def test_lines_in_a_json_file_and_byte_order_marks(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n{"a": 2}\n')
    assert parsed(path) == [{"a": 1}, {"a": 2}]
    path.write_bytes(b'\xef\xbb\xbf[{"a": 1}]')
    assert parsed(path) == [{"a": 1}]


@given(
    st.lists(
        st.recursive(
            st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
        )
    )
)
def test_array_rows_survive_any_chunk_size(tmp_path_factory: pytest.TempPathFactory, values: list[object]) -> None:
    path = tmp_path_factory.mktemp("array") / "rows.json"
    path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8", errors="surrogatepass")
    before = json_text.CHUNK
    json_text.CHUNK = 7
    try:
        assert [json.loads(raw.text) for raw in files.rows(path)] == values
    finally:
        json_text.CHUNK = before


@pytest.mark.parametrize("keep", [0.3, 0.5, 0.999])
def test_array_cut_short_names_file_row_and_line(tmp_path: Path, keep: float) -> None:
    whole = json.dumps([{"text": f"row {row}"} for row in range(1000)], indent=1).encode()
    path = tmp_path / "half.json"
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(BadData, match=r"half\.json is cut short: .* after \d+ whole rows \(line [\d,]+, character"):
        parsed(path)


def test_truncated_gzip_names_file_and_offset(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    packed = gzip.compress(b"".join(json.dumps({"n": row * 7919 % 9973}).encode() + b"\n" for row in range(20_000)))
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(
        BadData,
        match=r"rows\.jsonl\.gz is a broken or truncated file .*, after [\d,]+ bytes; download or copy",
    ):
        parsed(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"a": 1} {"a": 2}]', "after 1 whole rows .*no comma"),
        (b'[{"a": 1},]', "after 1 whole rows .*Expecting value"),
        (b'[{"a": 1}] x', "text after the end of the array"),
        (b'[{"a": 1}, {a: 2}, {"a": 3333333333333333333333333333333333}]', "after 1 whole rows"),
        (b"hello", "neither a JSON array nor JSON lines: it starts with 'hello'"),
        (b"", "neither"),
        (b'{"x": {\n"a": 1}, "y": {"a": 2}}', "one JSON object over several lines without"),
        (b'{"a": [\n{"n": 1}], "b": [{"n": 2}]}', r"one JSON object with 2 lists of objects \(a, b\)"),
        (b'{"a": [\n{"n": 1}', "one JSON object over several lines that cannot be read"),
    ],
)
def test_what_is_no_array_is_refused_with_the_place(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    with pytest.raises(BadData, match=message):
        parsed(path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": "\xff"}', "bad_utf8"),
        (b'{"a": ', "bad_json"),
        (b"[" * 100_000, "bad_json"),
        (b"[1]", "not_an_object"),
        (b"null", "not_an_object"),
    ],
)
def test_a_bad_line_is_that_rows_rejection(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    first, bad, last = files.rows(path)
    with pytest.raises(Rejected) as caught:
        files.parse(bad.text)
    assert caught.value.reason == reason
    assert files.parse(first.text) == {"a": 1}
    assert files.parse(last.text) == {"a": 2}


def test_find_takes_files_folders_and_globs(tmp_path: Path) -> None:
    for name in ("b.json", "a.jsonl", "c.txt"):
        (tmp_path / name).write_text("[]")
    assert [path.name for path in files.find(str(tmp_path), "k")] == ["a.jsonl", "b.json"]
    assert [path.name for path in files.find(f"{tmp_path}/*.json*", "k")] == ["a.jsonl", "b.json"]


def test_find_names_key_path_and_nearest_file(tmp_path: Path) -> None:
    (tmp_path / "alpaca_data.json").write_text("[]")
    with pytest.raises(
        MissingInput, match=r"data\.sources\.x\.path: no such file: .*alpacca_data\.json; is it .*/alpaca_data\.json"
    ):
        files.find(str(tmp_path / "alpacca_data.json"), "data.sources.x.path")
    with pytest.raises(MissingInput, match="there is no folder"):
        files.find(str(tmp_path / "nope" / "x.json"), "k")
