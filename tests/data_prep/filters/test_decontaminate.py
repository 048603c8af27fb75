"""Overlap with evaluation sets: what counts, what does not, and that preparation names the evaluation row."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from conf.errors import BadData, MissingInput
from data_prep import sources
from data_prep.corpus.shards import open_corpus
from data_prep.filters import decontaminate
from data_prep.prepare import prepare
from data_prep.rows import files
from data_prep.rows.conversation import Conversation, Message, Rejected
from tests.data_prep.made import REAL, alpaca_rows, config, needs_real_data, write_json, write_jsonl
from tests.data_prep.test_prepare import leaf, quarantine

QUESTION = "Natalia sold clips to 48 of her friends in April, and then she sold half as many in May."


def row(text: str, answer: str = "Yes.", context: str = "") -> Conversation:
    return Conversation((Message("user", text, context=context), Message("assistant", answer)))


def index(folder: Path, rows: list[Any], ngram: int = 13) -> decontaminate.Index:
    path = write_jsonl(folder / "eval.jsonl", rows)
    decontaminate.build([str(path)], ngram, folder / "index")
    return decontaminate.load(str(folder / "index"))


def hit(found: decontaminate.Index, conversation: Conversation) -> str:
    try:
        found.check(conversation)
    except Rejected as rejected:
        return rejected.detail
    return ""


def test_thirteen_words_in_a_row_whatever_their_case_and_punctuation(tmp_path: Path) -> None:
    found = index(tmp_path, [{"question": "An entirely different one."}, {"question": QUESTION, "answer": "72"}])
    same = row(f"Solve: {QUESTION.upper().replace(',', ' --')}")
    assert hit(found, same) == (
        f"13 words of row 1 of {tmp_path / 'eval.jsonl'}: natalia sold clips to 48 of her friends in april and then she"
    )
    assert hit(found, row("What?", answer=f"It is said that {QUESTION}"))
    twelve = " ".join(QUESTION.split()[:12])
    assert hit(found, row(f"{twelve} something else entirely, and more words to be long enough")) == ""


def test_short_texts_count_only_as_a_whole_prompt(tmp_path: Path) -> None:
    rows = [
        {"instruction": "What is the capital of France?", "output": "Paris", "dataset": "helpful_base"},
        {"instruction": "Translate to French.", "input": "Good morning", "output": "Bonjour"},
        {"turns": ["Write a poem about rain.", "Now shorten it."]},
    ]
    found = index(tmp_path, rows)
    assert hit(found, row("what is the capital of france")).startswith("its whole prompt stands in row 0 of ")
    assert hit(found, row("Translate to French.", context="Good morning")).startswith(
        "its whole prompt stands in row 1"
    )
    assert hit(found, row("Write a poem about rain")).startswith("its whole prompt stands in row 2")
    for innocent in (
        row("What is the capital of France called in Latin?"),
        row("Which city is the capital?", answer="Paris"),
        row("Translate to French.", context="Good night"),
    ):
        assert hit(found, innocent) == ""


def test_wording_that_many_evaluation_rows_share_is_not_content(tmp_path: Path) -> None:
    definition = "In this task you are given a question and four options, and you write the letter of the right one."
    rows = [{"Definition": [definition], "input": f"Question number {n}", "output": ["A"]} for n in range(11)]
    found = index(tmp_path, rows)
    assert hit(found, row(definition, context="Something new")) == ""
    assert hit(found, row(definition, context="Question number 7"))
    (tmp_path / "few").mkdir()
    assert hit(index(tmp_path / "few", rows[:3]), row(definition, context="Something new"))


def test_a_row_that_cannot_be_read_stops_preparation(tmp_path: Path) -> None:
    path = tmp_path / "eval.jsonl"
    path.write_text('{"question": "fine"}\n{"question": \n')
    with pytest.raises(BadData, match=r"eval\.jsonl, row 1 \(data\.decontaminate\.paths\): bad_json"):
        decontaminate.build([str(path)], 13, tmp_path / "index")


def test_preparation_names_the_evaluation_row(tmp_path: Path) -> None:
    rows = [*alpaca_rows(20), {"instruction": f"Answer. {QUESTION}", "output": "72"}]
    path, held = write_json(tmp_path / "rows.json", rows), write_json(tmp_path / "eval.json", [{"question": QUESTION}])

    def cfg(corpus: str, **chosen: Any) -> Any:
        return config({"a": leaf(path)}, tmp_path / corpus, decontaminate={"paths": [str(held)], **chosen})

    corpus = open_corpus(prepare(cfg("corpus"), argv=[]))
    (line,) = quarantine(corpus.path)
    assert (line["row"], line["reason"]) == (20, "contaminated")
    assert line["detail"].startswith(f"13 words of row 0 of {held}: natalia sold")
    assert corpus.manifest["evaluation_files"][0]["path"] == str(held)
    assert not (corpus.path / ".work").exists()
    assert quarantine(prepare(cfg("longer", ngram=40), argv=[])) == []
    held.write_text(held.read_text().replace("Natalia", "Nathalie"))
    os.utime(held, (time.time() + 10, time.time() + 10))
    with pytest.raises(BadData, match=r"eval\.json \(data\.decontaminate\.paths\) has changed since"):
        prepare(cfg("corpus"), argv=[])
    absent = config({"a": leaf(path)}, tmp_path / "other", decontaminate={"paths": [str(tmp_path / "evil.json")]})
    with pytest.raises(MissingInput, match=r"data\.decontaminate\.paths: no such file"):
        prepare(absent, argv=[])


@needs_real_data
def test_flans_gsm8k_is_the_training_half_of_gsm8k(tmp_path: Path) -> None:
    rows = [raw for raw, _ in zip(files.rows(REAL / "flan_cot/gsm8k_train.tsv.gz"), range(400), strict=False)]
    conversations = [sources.reader("flan_cot")(files.parse(raw.text)) for raw in rows]
    counts = {}
    for half in ("train", "test"):
        decontaminate.build([str(REAL / f"gsm8k/{half}.jsonl.gz")], 13, tmp_path / half)
        found = decontaminate.load(str(tmp_path / half))
        counts[half] = sum(1 for each in conversations if hit(found, each))
    assert counts == {"train": 400, "test": counts["test"]}
    assert counts["test"] <= 2
