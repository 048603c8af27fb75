"""Every container gives the rows that were put in, and none gives a part of them without a word."""

from __future__ import annotations

import csv
import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.errors import BadData
from data_prep.rows.conversation import Rejected
from data_prep.rows.files import parse, rows

ROWS = [
    {
        "instruction": f"Say {number}, please",
        "input": "two\nlines" if number % 3 else "",
        "output": f'"{number}" \u00e9',
    }
    for number in range(5_000)
]


def write_csv(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)


def write_zstd(path: Path) -> None:
    plain = path.with_suffix("")
    WRITERS[plain.suffix](plain)
    with pa.OSFile(str(path), "wb") as raw, pa.CompressedOutputStream(raw, "zstd") as packed:
        packed.write(plain.read_bytes())
    plain.unlink()


def write_stream(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=500)


def write_file(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=500)


WRITERS: dict[str, Callable[[Path], object]] = {
    ".csv": write_csv,
    ".jsonl": lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in ROWS)),
    ".json": lambda path: path.write_text(json.dumps(ROWS)),
    ".parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=700),
}
NAMES = ["a.csv", "a.csv.zst", "a.jsonl.zst", "a.json.zst", "a.parquet", "stream.arrow", "file.arrow"]


def written(folder: Path, name: str) -> Path:
    path = folder / name
    special = {".zst": write_zstd, ".arrow": write_stream if name.startswith("stream") else write_file}
    (special | WRITERS)[path.suffix](path)
    return path


def read(path: Path) -> list[Any]:
    return [parse(raw.text) for raw in rows(path)]


@pytest.mark.parametrize("name", NAMES)
def test_what_goes_in_comes_out_in_order(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name)
    assert read(path) == ROWS
    assert [raw.row for raw in rows(path)] == list(range(len(ROWS)))


@pytest.mark.parametrize("name", NAMES)
def test_half_a_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if path.suffix == ".csv":  # cut inside a quoted field, or the last row has too few fields
        with pytest.raises((BadData, Rejected)):
            read(path)
        return
    with pytest.raises(BadData, match=path.name):
        read(path)


def test_an_arrow_stream_cut_between_two_batches_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "stream.arrow")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(BadData, match=r"stream\.arrow.*no end mark"):
        read(path)


def test_fields_without_a_column_reject_their_row_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("instruction,output\na,b\nc,d,e\nf,g\n")
    found = []
    for raw in rows(path):
        try:
            found.append(parse(raw.text))
        except Rejected as rejected:
            found.append(rejected.reason)
    assert found == [{"instruction": "a", "output": "b"}, "wrong_field_count", {"instruction": "f", "output": "g"}]


def test_a_header_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,x\n1,2\n")
    with pytest.raises(BadData, match=r"line 1.*distinct column names"):
        read(tmp_path / "a.csv")


WIDE = {
    "a header of a million names": ("," * 1_100_000, "line 1: longer than 1 MiB, which no line of column names is"),
    "names that are not distinct": ("a," * 300_000, "line 1: a .csv file begins with a line of distinct column names"),
    "no end of a quote": ('a,b\n"' + "x," * 400_000, "not valid CSV (unexpected end of data)"),
}


@pytest.mark.parametrize("name", WIDE)
def test_a_csv_that_is_none_is_one_short_sentence(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    content, said = WIDE[name]
    path = tmp_path / "rows.csv"
    path.write_text(content)
    for read in (lambda: list(rows(path)), lambda: next(iter(rows(path)))):
        with pytest.raises(BadData) as caught:
            read()
        assert said in str(caught.value)
        assert len(str(caught.value)) < 400
        del caught
        gc.collect()
        assert capfd.readouterr() == ("", "")  # a generator that is left open would complain of its closed file


def test_the_separator_is_read_from_a_mebibyte(tmp_path: Path) -> None:
    """Fifty lines may be a gigabyte. The row in which the head ends is not judged by."""
    path = tmp_path / "rows.csv"
    text = "x;" * 300_000
    path.write_text("a,b\n" + "".join(f'{row},"{text}"\n' for row in range(3)))
    found = [json.loads(each.text) for each in rows(path)]
    assert found == [{"a": str(row), "b": text} for row in range(3)]
