"""Training rows that overlap with evaluation sets, by n-grams of words.

After appendix C of Brown et al. 2020: texts are lower-cased, without punctuation, and n is 13. A row is contaminated if

- n words in a row also stand in a row in one field of an evaluation row, or
- its whole prompt is a field, or the prompt, of an evaluation row: for texts of fewer than n words.

An evaluation row is read without regard to its format: every string in it, at any depth, is a field, and if one of our
formats reads the row its prompt counts too. What more than COMMON_ROWS evaluation rows share (a task's definition, a
fixed instruction) is the set's wording and not its content, and is left out. The index is made once per preparation
and memory-mapped by every process.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from conf.durable import making_folder
from conf.errors import BadData
from data_prep.filters.ngrams import Hashes, ngram_hashes, word_hashes, words
from data_prep.rows import files, raw
from data_prep.rows.conversation import Conversation, Rejected, texts_of
from data_prep.rows.record import Record
from data_prep.rows.stage import Counts, Part
from data_prep.sources import formats, reader

COMMON_ROWS = 10
REASON = "contaminated"

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Index:
    """Hashes of evaluation text, each with the evaluation row it is from."""

    ngram: int
    paths: tuple[str, ...]
    rows: Places
    """(file, row) of each evaluation row, int64 [rows, 2]."""
    grams: Hashes
    """Sorted; ``gram_rows`` has the place in ``rows`` of each."""
    gram_rows: Places
    wholes: Hashes
    whole_rows: Places

    def check(self, conversation: Conversation) -> None:
        """Raise Rejected (contaminated), with the evaluation row and the words, if the row overlaps."""
        asked, said = _prompt_and_rest(conversation)
        hashed = word_hashes(asked + said)
        place, at = _first(self.grams, ngram_hashes(hashed, self.ngram))
        if place >= 0:
            shared = " ".join((asked + said)[place : place + self.ngram])
            raise Rejected(REASON, f"{self.ngram} words of {self._row(self.gram_rows[at])}: {shared}")
        place, at = _first(self.wholes, _whole(hashed[: len(asked)]))
        if place >= 0:
            raise Rejected(REASON, f"its whole prompt stands in {self._row(self.whole_rows[at])}")

    def _row(self, place: int) -> str:
        file, row = self.rows[place].tolist()
        return f"row {row} of {self.paths[file]}"


@dataclass(frozen=True)
class Decontaminate:
    """The stage of ``data.decontaminate``: rejects, as contaminated, a record that overlaps with an evaluation set."""

    paths: tuple[str, ...]
    ngram: int
    index: str | None
    """Folder that ``build`` wrote; None: nothing is compared."""

    def __call__(self, record: Record, counts: Counts) -> Record:
        if self.index is not None:
            load(self.index).check(record.conversation)
        return record

    def identity(self) -> Part:
        return {"data": {"decontaminate": {"paths": list(self.paths), "ngram": self.ngram}}}


def _first(known: Hashes, asked: Hashes) -> tuple[int, int]:
    """(place in ``asked`` of its first hash that is in the sorted ``known``, place there); -1 if none is."""
    if not len(known) or not len(asked):
        return -1, -1
    at = np.minimum(np.searchsorted(known, asked), len(known) - 1)
    hits = np.flatnonzero(known[at] == asked)
    return (int(hits[0]), int(at[hits[0]])) if len(hits) else (-1, -1)


def _prompt_and_rest(conversation: Conversation) -> tuple[list[str], list[str]]:
    """Words of everything before the first answer, and of everything from there on."""
    messages = conversation.messages
    answers = (place for place, message in enumerate(messages) if message.role == "assistant")
    first = next(answers, len(messages))
    return _joined(conversation, 0, first), _joined(conversation, first, len(messages))


def _joined(conversation: Conversation, start: int, end: int) -> list[str]:
    return words(" ".join(text for message in conversation.messages[start:end] for text in texts_of(message)))


def _whole(hashed: Hashes) -> Hashes:
    """One hash of all the words; none if there are none."""
    return ngram_hashes(hashed, len(hashed)) if len(hashed) else hashed


def build(paths: Sequence[str], ngram: int, folder: Path) -> None:
    """Index the evaluation files ``paths`` (names as ``raw.find`` gives them) and write the index into ``folder``.

    Raises BadData for an evaluation row that cannot be read: a set that is half read protects nothing.
    """
    origins: list[tuple[int, int]] = []
    grams: list[Hashes] = []
    wholes: list[Hashes] = []
    for file, path in enumerate(paths):
        for each in raw.rows(path):
            gram, whole = _row_hashes(_parsed(each, path), ngram)
            origins.append((file, each.row))
            grams.append(gram)
            wholes.append(whole)
    arrays: dict[str, npt.NDArray[Any]] = {"rows": np.array(origins, np.int64).reshape(-1, 2)}
    arrays["grams"], arrays["gram_rows"] = _sorted(grams)
    arrays["wholes"], arrays["whole_rows"] = _sorted(wholes)
    with making_folder(folder) as temporary:
        for name, values in arrays.items():
            np.save(temporary / f"{name}.npy", values)
        (temporary / "index.json").write_text(json.dumps({"ngram": ngram, "paths": list(paths)}), encoding="utf-8")


def _parsed(row: Record, path: str) -> dict[str, Any]:
    try:
        return files.parse(row.text)
    except Rejected as rejected:
        raise BadData(
            f"{path}, row {row.row} (data.decontaminate.paths): {rejected}; correct the row or remove it."
        ) from rejected


def _row_hashes(row: dict[str, Any], ngram: int) -> tuple[Hashes, Hashes]:
    """(distinct n-grams, distinct whole texts) of one evaluation row."""
    fields = [word_hashes(words(text)) for text in _strings(row)]
    prompts = [word_hashes(text) for text in _known_prompt(row)]
    grams = [ngram_hashes(each, ngram) for each in fields]
    wholes = [_whole(each) for each in [*(each for each in fields if len(each) < ngram), *prompts]]
    nothing = np.zeros(0, np.uint64)
    return np.unique(np.concatenate([nothing, *grams])), np.unique(np.concatenate([nothing, *wholes]))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(each)


def _known_prompt(row: dict[str, Any]) -> Iterator[list[str]]:
    """The prompt's words, from the first of our formats that reads the row."""
    for name in formats():
        try:
            yield _prompt_and_rest(reader(name)(row))[0]
            return
        except Rejected:
            continue  # of another format


def _sorted(of_rows: Sequence[Hashes]) -> tuple[Hashes, Places]:
    """All hashes in order, each with the first row that has it; those of more than COMMON_ROWS rows left out."""
    hashes = np.concatenate([np.zeros(0, np.uint64), *of_rows])
    rows = np.repeat(np.arange(len(of_rows)), [len(each) for each in of_rows])
    found, first, count = np.unique(hashes, return_index=True, return_counts=True)
    rare = count <= COMMON_ROWS
    return found[rare], rows[first[rare]]


@lru_cache(maxsize=1)
def load(folder: str) -> Index:
    """The index written into ``folder``, memory-mapped."""
    about = json.loads((Path(folder) / "index.json").read_text(encoding="utf-8"))
    names = ("rows", "grams", "gram_rows", "wholes", "whole_rows")
    # Plain views of the maps: np.memmap itself is slow to index.
    arrays = {name: np.load(Path(folder) / f"{name}.npy", mmap_mode="r").view(np.ndarray) for name in names}
    return Index(about["ngram"], tuple(about["paths"]), **arrays)
