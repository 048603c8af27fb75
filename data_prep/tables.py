"""Rows of tables: .tsv without a header, .csv with one, .parquet, and .arrow in both of its forms.

A row's text is a JSON object of its columns, as in a .jsonl file, so every format reads every table. A value that JSON
has no type for (a date, a decimal) becomes an object that says its type, so that no format mistakes it for text.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from conf.errors import BadData

FIELDS = "fields"
"""Key of a headless row: the list of its fields."""
MISCOUNTED = "fields of a row that has more or fewer than the header"
SUFFIXES = (".csv", ".csv.gz", ".csv.zst", ".tsv", ".tsv.gz", ".tsv.zst", ".parquet", ".arrow")
BATCH_ROWS = 1_000
ARROW_FILE_MAGIC = b"ARROW1"
ARROW_STREAM_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def tsv(stream: BinaryIO) -> Iterator[tuple[int, str]]:
    """(line, text) of lines cut at tabs; nothing is quoted in such a file. Blank lines count, but are no rows."""
    for number, line in enumerate(stream):
        text = line.decode("utf-8", "surrogateescape").rstrip("\r\n")
        if text.strip():
            yield number, json.dumps({FIELDS: text.split("\t")}, ensure_ascii=False)


def comma_separated(path: Path, stream: BinaryIO) -> Iterator[tuple[int, str]]:
    """(row, text) after the header line; raises BadData with the line. A field may hold line breaks in quotes."""
    csv.field_size_limit(sys.maxsize)  # the standard limit of 128 KiB would refuse long answers
    lines = csv.reader(io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline=""), strict=True)
    try:
        header = next(lines, [])
        if not header or len(set(header)) < len(header) or "" in header:
            raise BadData(f"{path} line 1: a .csv file begins with a line of distinct column names, not {header!r}.")
        for row, values in enumerate(line for line in lines if line):
            whole = dict(zip(header, values, strict=True)) if len(values) == len(header) else {MISCOUNTED: values}
            yield row, json.dumps(whole, ensure_ascii=False)
    except csv.Error as error:
        raise BadData(f"{path} line {lines.line_num:,}: not valid CSV ({error}); mend or get it again.") from error


def columnar(path: Path, stream: BinaryIO) -> Iterator[tuple[int, str]]:
    """(row, text) of a .parquet or .arrow file; raises BadData naming the rows read before it broke."""
    row = 0
    try:
        for batch in _parquet(stream) if path.suffix == ".parquet" else _arrow(stream):
            for values in _values(batch):
                yield row, json.dumps(values, ensure_ascii=False, default=foreign)
                row += 1
    except (pa.ArrowException, OSError) as error:
        why = " ".join(str(error).split())
        raise BadData(f"{path} is broken or cut short after {row:,} rows ({why}); get it again.") from error


def _parquet(stream: BinaryIO) -> Iterator[pa.RecordBatch]:
    yield from pq.ParquetFile(stream).iter_batches(BATCH_ROWS)


def _arrow(stream: BinaryIO) -> Iterator[pa.RecordBatch]:
    magic = stream.read(len(ARROW_FILE_MAGIC))
    stream.seek(0)
    if magic == ARROW_FILE_MAGIC:
        with pa.ipc.open_file(stream) as reader:
            yield from (reader.get_batch(index) for index in range(reader.num_record_batches))
        return
    with pa.ipc.open_stream(stream) as reader:
        yield from reader
    # The format lets the end mark be absent, but then a stream cut between two batches looks whole.
    stream.seek(-len(ARROW_STREAM_END), io.SEEK_END)
    if stream.read() != ARROW_STREAM_END:
        raise pa.ArrowInvalid("the stream has no end mark")


def _values(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    for start in range(0, batch.num_rows, BATCH_ROWS):
        part = batch.slice(start, BATCH_ROWS)
        try:
            yield from part.to_pylist()
        except UnicodeDecodeError:
            # As bytes, so that only the rows with bad bytes are refused; see foreign.
            text = [pa.types.is_string(each.type) or pa.types.is_large_string(each.type) for each in part.columns]
            columns = [
                each.cast(pa.large_binary()) if is_text else each
                for each, is_text in zip(part.columns, text, strict=True)
            ]
            yield from pa.RecordBatch.from_arrays(columns, part.schema.names).to_pylist()


def foreign(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return {"type": type(value).__name__, "value": str(value)}
