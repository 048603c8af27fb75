"""Rows of tables: .tsv without a header, .csv with one and any usual separator, .parquet, .arrow in both its forms.

A row's text is a JSON object of its columns, as in a .jsonl file, so every format reads every table. A value that JSON
has no type for (a date, a decimal) becomes an object that says its type, so that no format mistakes it for text.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from conf.errors import BadData, shown
from conf.foreign.limits import COLUMN_BYTES, MIB, ROW_BYTES
from conf.foreign.memory import at_most
from data_prep.disk import decode

FIELDS = "fields"
"""Key of a headless row: the list of its fields."""
MISCOUNTED = "fields of a row that has more or fewer than the header"
SUFFIXES = (".csv", ".csv.gz", ".csv.zst", ".tsv", ".tsv.gz", ".tsv.zst", ".parquet", ".arrow")
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
HEAD_LINES = 50
"""Lines of a .csv file that its separator is read from, at most,"""
HEAD_CHARACTERS = MIB
"""and characters. No header is as long."""
BATCH_ROWS = 1_000
PART_BYTES = 64 << 20
"""Of rows that are unpacked at a time."""
ARROW_FILE_MAGIC = b"ARROW1"
ARROW_STREAM_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def tsv(path: Path, stream: BinaryIO) -> Iterator[tuple[int, str]]:
    """(line, text) of lines cut at tabs; nothing is quoted in such a file. Blank lines count, but are no rows."""
    for number, line in decode.lines(path, stream):
        text = line.decode("utf-8", "surrogateescape").rstrip("\r\n")
        if text.strip():
            yield number, json.dumps({FIELDS: text.split("\t")}, ensure_ascii=False)


def delimited(path: Path, stream: BinaryIO) -> Iterator[tuple[int, str]]:
    """(row, text) after the header line; raises BadData with the line. A field may hold line breaks in quotes.

    The separator is the one that ``separator_of`` finds. A first column without a name, as pandas writes its index, is
    named "".
    """
    # Closed here: left to the collector, it would let go of a file that has been closed meanwhile.
    with closing(_lines(path, stream)) as text:
        head = _head(path, text)
        lines = csv.reader(chain(head, text), delimiter=_separator(head), strict=True)
        try:
            yield from _rows_of(path, lines)
        except csv.Error as error:
            raise BadData(
                f"{path} line {lines.line_num:,}: not valid CSV ({error}); correct it, or download it again."
            ) from error


def _rows_of(path: Path, lines: Iterator[list[str]]) -> Iterator[tuple[int, str]]:
    header = next(lines, [])
    if not header or len(set(header)) < len(header) or "" in header[1:]:
        raise BadData(f"{path} line 1: a .csv file begins with a line of distinct column names, not {shown(header)}.")
    for row, values in enumerate(line for line in lines if line):
        whole = dict(zip(header, values, strict=True)) if len(values) == len(header) else {MISCOUNTED: values}
        yield row, json.dumps(whole, ensure_ascii=False)


def separator_of(path: Path, stream: BinaryIO) -> str:
    """What stands between the fields of a .csv file: the sign of SEPARATORS that its first lines agree on.

    That is one that cuts the header into two or more distinct names, and every row that follows into as many fields. A
    comma wins where several do, and where none does.
    """
    with closing(_lines(path, stream)) as text:
        return _separator(_head(path, text))


def _head(path: Path, lines: Iterator[str]) -> list[str]:
    """The first of ``lines``, which a separator is read from. Raises BadData for a first line that is no header."""
    head: list[str] = []
    for line in lines:
        head.append(line)
        if _goes_on(head):
            break
    if head and len(head[0]) > HEAD_CHARACTERS:
        raise BadData(
            f"{path} line 1: longer than {HEAD_CHARACTERS >> 20} MiB, which no line of column names is; is it a file "
            "of another kind?"
        )
    return head


def _goes_on(head: list[str]) -> bool:
    """Whether ``head`` is as much as is looked at, so that more may stand behind it."""
    return len(head) == HEAD_LINES or sum(map(len, head)) > HEAD_CHARACTERS


def _lines(path: Path, stream: BinaryIO) -> Generator[str]:
    csv.field_size_limit(ROW_BYTES)  # the standard limit of 128 KiB would refuse long answers
    text = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="")
    number = 0
    try:
        while line := text.readline(ROW_BYTES + 1):
            number += 1
            if len(line) > ROW_BYTES:
                raise decode.too_long(path, f"line {number:,}")
            yield line
    finally:
        text.detach()  # it would close the file, whose place somebody asks for


def _separator(head: list[str]) -> str:
    shares = {sign: _agreement(head, sign) for sign in SEPARATORS}
    return max(SEPARATORS, key=lambda sign: shares[sign])  # the first of equals


def _agreement(head: list[str], sign: str) -> float:
    """Share of the rows that have as many fields as the header; 0 for a header that is none."""
    try:
        header, *rows = (line for line in csv.reader(head, delimiter=sign) if line)
    except (csv.Error, ValueError):
        return 0.0
    if len(header) < 2 or len(set(header)) < len(header):
        return 0.0
    whole = rows[:-1] if _goes_on(head) else rows  # the last one may go on behind the head
    return sum(len(row) == len(header) for row in whole) / len(whole) if whole else 1.0


def columnar(path: Path, stream: BinaryIO) -> Iterator[tuple[int, str]]:
    """(row, text) of a .parquet or .arrow file; raises BadData naming the rows read before it broke.

    A file of a kilobyte may claim a billion equal values, so the memory for a batch of rows has a bound.
    """
    pa.allocate_buffer(
        1
    )  # the library takes address space for all its memory when it is first asked, and fails inside the bound
    row, most = 0, COLUMN_BYTES + stream.seek(0, io.SEEK_END)
    stream.seek(0)
    try:
        batches = _parquet(stream) if path.suffix == ".parquet" else _arrow(stream)
        while True:
            with at_most(most):
                batch = next(batches, None)
            if batch is None:
                return
            for start, end in _parts(batch):
                with at_most(most):
                    part = _values(batch.slice(start, end - start))
                for values in part:
                    text = json.dumps(values, ensure_ascii=False, default=foreign)
                    if len(text) > ROW_BYTES:
                        raise decode.too_long(path, f"row {row:,}")
                    yield row, text
                    row += 1
    except MemoryError as error:  # Arrow's own is one too
        raise BadData(
            f"{path}, after {row:,} rows: the next ones take more than {COLUMN_BYTES >> 30} GiB; write it in smaller "
            "row groups, or download it again."
        ) from error
    except (pa.ArrowException, OSError) as error:
        why = " ".join(str(error).split())
        raise BadData(
            f"{path} is broken or cut short after {row:,} rows ({why}); download or copy it again."
        ) from error


def _parquet(stream: BinaryIO) -> Iterator[pa.RecordBatch]:
    file = pq.ParquetFile(stream)
    groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
    widest = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=1)
    # Threads would take address space of their own, of which there is little.
    yield from file.iter_batches(max(1, min(BATCH_ROWS, PART_BYTES // max(1, widest))), use_threads=False)


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


def _check(batch: pa.RecordBatch) -> None:
    """Raise ArrowInvalid unless every value lies inside of its buffers: others would be read from anywhere in memory.

    Text that is not UTF-8 is no reason: its row is named when it is read. In a nested column it is one, because the
    library stops there and has not looked at the rest.
    """
    for column in batch.columns:
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            if not (_is_text(column.type) and "UTF8" in str(error)):
                raise


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _parts(batch: pa.RecordBatch) -> Iterator[tuple[int, int]]:
    """(start, end) of parts of few enough rows to become Python's objects at a time."""
    rows = max(1, min(BATCH_ROWS, PART_BYTES * batch.num_rows // max(1, batch.nbytes)))
    yield from ((start, min(start + rows, batch.num_rows)) for start in range(0, batch.num_rows, rows))


def _values(part: pa.RecordBatch) -> list[dict[str, Any]]:
    _check(part)
    try:
        return list(part.to_pylist())
    except UnicodeDecodeError:
        # As bytes, so that only the rows with bad bytes are refused; see foreign.
        columns = [each.cast(pa.large_binary()) if _is_text(each.type) else each for each in part.columns]
        return list(pa.RecordBatch.from_arrays(columns, part.schema.names).to_pylist())


def foreign(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return {"type": type(value).__name__, "value": str(value)}
