"""Generates the demo corpus: ``python -m data_prep.demo.make`` writes the two shipped files again.

Prompts are unique after normalisation (lower case, letters and digits only), and so is what is asked (the same words
in the same task under another phrasing count as the same question): a split by the hash of the prompt can then put no
question on both sides.
"""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Iterable, Iterator
from itertools import count, islice
from pathlib import Path

from data_prep.demo.families import FAMILIES, NEW_FAMILY, Draw, Family, build

FOLDER = Path(__file__).parent
WORDS = FOLDER / "words.jsonl.gz"
NEW = FOLDER / "new_family.jsonl.gz"
ROWS_PER_FAMILY = 2_900
NEW_ROWS = 4_000


def normalise(prompt: str) -> str:
    """Lower case, with every run of other characters than letters and digits as one space."""
    return re.sub(r"[^a-z0-9]+", " ", prompt.lower()).strip()


def _unique(family: Family) -> Iterator[dict[str, str]]:
    """Rows of a family without end; a question that was asked before is passed over."""
    seen: set[str] = set()
    for number in count():
        row = build(family, number)
        question = json.dumps(sorted(family.draw(Draw(family.name, number)).fields.items()))
        keys = {normalise(f"{row['instruction']} {row['input']}"), question}
        if seen.isdisjoint(keys):
            seen |= keys
            yield row


def rows(families: Iterable[Family], per_family: int) -> Iterator[dict[str, str]]:
    """``per_family`` rows of each family, taken in turn, so that any beginning of the file holds all families."""
    columns = [islice(_unique(family), per_family) for family in families]
    for group in zip(*columns, strict=True):
        yield from group


def words_rows() -> Iterator[dict[str, str]]:
    return rows(FAMILIES, ROWS_PER_FAMILY)


def new_rows() -> Iterator[dict[str, str]]:
    return rows((NEW_FAMILY,), NEW_ROWS)


def jsonl(content: Iterable[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content).encode()


def compress(content: bytes) -> bytes:
    """gzip without a time or a name in its header: the same bytes on every run."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=buffer, mtime=0) as out:
        out.write(content)
    return buffer.getvalue()


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a shipped file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def main() -> None:
    for path, content in ((WORDS, words_rows()), (NEW, new_rows())):
        packed = compress(jsonl(content))
        path.write_bytes(packed)
        print(f"{path}  {len(packed):,} bytes")


if __name__ == "__main__":
    main()
