"""The commands: report and preview, on a terminal, in JSON and in HTML."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from data_prep import preview
from data_prep.corpus.shards import open_corpus
from data_prep.prepare import prepare
from data_prep.report import write_report
from data_prep.report.figures import SAMPLES, sample_rows
from data_prep.report.terminal import LEVELS, show
from data_prep.samples import marks
from data_prep.tokenizer.tokenizer import Tokenizer
from tests.data_prep.made import alpaca_rows, byte_tokenizer, config, write_json

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared corpus with some dirt, at folder/corpus, from folder/rows.json."""
    folder = tmp_path_factory.mktemp("report")
    rows = [
        *alpaca_rows(80),
        {"instruction": "<b>", "output": ""},
        {"instruction": "Q?", "input": "N/A", "output": "</p>"},
    ]
    cfg = config({"a": _leaf(write_json(folder / "rows.json", rows))}, folder / "corpus")
    write_report(cfg, prepare(cfg, argv=["data=test"]))
    return folder


def _leaf(path: Path) -> dict[str, object]:
    return {"format": "alpaca", "path": str(path), "validation_fraction": 0.1}


def test_report_adds_up(folder: Path) -> None:
    found = json.loads((folder / "corpus/report.json").read_text())
    source = found["sources"]["a"]
    assert source["rows"] == 82 == sum(source["kept"].values()) + sum(source["rejected"].values())
    assert source["rejected"] == {"empty_output": 1}
    assert source["normalised"] == {"noinput_placeholder": 1}
    assert source["flagged"]["html_tag"] == 1
    train = open_corpus(folder / "corpus").split("train")["a"]
    assert source["lengths"]["max"] == train.lengths.max() == found["longest"][0]["tokens"]
    assert sum(source["lengths"]["histogram"]["counts"]) <= train.rows
    assert 0.8 < found["packing"]["efficiency"] <= 1.0
    assert 0.0 <= found["packing"]["shared"] < 1.0
    assert found["packing"]["token_share"] == {"a": 1.0}
    assert 0 < source["supervised_share"] < 1
    assert found["preparation"]["command"] == "python -m data_prep data=test"


def test_shares_samples_and_duplicates_of_several_sources(tmp_path: Path) -> None:
    leaves = {}
    for name, count in (("a", 60), ("b", 30), ("c", 2)):
        rows = [{"instruction": f"{name} {row}?", "output": "red " * (row % 5 + 1)} for row in range(count)]
        leaves[name] = {"format": "alpaca", "path": str(write_json(tmp_path / f"{name}.json", [*rows, rows[0]]))}
    cfg = config(leaves, tmp_path / "corpus")
    found = write_report(cfg, prepare(cfg, argv=[]))
    assert sum(found["packing"]["token_share"].values()) == pytest.approx(1.0)
    assert [each["source"] for each in found["samples"]] == [*"aaaabbbbcc"]
    assert [source["rejected"] for source in found["sources"].values()] == [{"duplicate": 1}] * 3
    assert page(tmp_path / "corpus/report.html").classes.count("sample") == 10
    console = Console(record=True, width=160)
    show(found, console)
    shown = console.export_text()
    assert "share of the tokens drawn: a " in shown
    assert "within each source" in shown
    assert f"row {found['longest'][0]['row']} of {found['longest'][0]['file']}" in shown
    assert any(level in shown for level in LEVELS)


def test_report_on_a_terminal_names_each_kind(folder: Path) -> None:
    console = Console(record=True, width=160)
    show(json.loads((folder / "corpus/report.json").read_text()), console)
    shown = console.export_text()
    for words in (
        "82 rows in",
        "1 to quarantine",
        "1 normalised",
        "counted only",
        "html_tag",
        "packing at 128",
        "rows/s",
    ):
        assert words in shown


class _Page(HTMLParser):
    """Checks that tags are balanced and collects classes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.classes: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "rect"):
            self.open.append(tag)
        if tag == "rect":
            self.open.append(tag)
        self.classes += [value or "" for name, value in attrs if name == "class"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page(path: Path) -> _Page:
    parser = _Page()
    parser.feed(path.read_text())
    assert parser.open == []
    return parser


def test_report_html_is_whole_and_shows_samples(folder: Path) -> None:
    found = page(folder / "corpus/report.html")
    assert found.classes.count("sample") == SAMPLES
    assert "t" in found.classes
    assert "t c" in found.classes
    assert "rows in" in found.text
    assert "://" not in (folder / "corpus/report.html").read_text().split("<body>")[0]


def test_pieces_are_the_tokens_and_the_text(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path)
    text = " Hello wörld 🙂<|endoftext|>"
    ids = [*tokenizer.encode(text), tokenizer.eos_id]
    mask = [0, 0, *[1] * (len(ids) - 2)]
    found = list(marks.pieces(ids, mask, tokenizer))
    assert [token for piece in found for token in piece.ids] == ids
    assert "".join(piece.text for piece in found) == text + "<|endoftext|>"
    assert [piece.control for piece in found] == [False] * (len(found) - 1) + [True]
    assert "".join(piece.text for piece in found if not piece.supervised) == tokenizer.decode(ids[:2])


def test_terminal_marks_read_without_colour(tmp_path: Path) -> None:
    tokenizer: Tokenizer = byte_tokenizer(tmp_path)
    prompt, answer = tokenizer.encode("red"), [*tokenizer.encode("green"), tokenizer.eos_id]
    shown = marks.to_terminal(prompt + answer, [0] * len(prompt) + [1] * len(answer), tokenizer).plain
    assert shown.replace("│", "") == "red«green<|endoftext|>»"


def test_sample_rows_are_distinct_and_repeatable(folder: Path) -> None:
    split = open_corpus(folder / "corpus").split("train")["a"]
    assert sample_rows(split, 10) == sample_rows(split, 10)
    assert len(set(sample_rows(split, 10))) == 10
    assert sample_rows(split, 10_000) == list(range(split.rows))


def test_preview_without_a_corpus_shows_the_same_tokens(folder: Path, tmp_path: Path) -> None:
    sources = {"a": _leaf(folder / "rows.json")}
    finished = open_corpus(folder / "corpus").split("train")["a"]
    cfg = config(sources, tmp_path / "none", model={"tokenizer": str(folder / "corpus/tokenizer")})
    _, shown = preview.samples(cfg, 3)
    made = list(shown)
    assert len(made) == 3
    by_row = {finished.origin(row)[1]: finished.tokens(row)[0].tolist() for row in range(finished.rows)}
    same = [each for each in made if int(each.origin.split()[1]) in by_row]
    assert same
    for each in same:
        assert each.ids == by_row[int(each.origin.split()[1])]


def run(module: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160"}
    return subprocess.run(
        [sys.executable, "-m", module, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )


def words_for(path: Path, corpus: Path) -> list[str]:
    source = f"+data.sources.a={{format: alpaca, path: {path}}}"
    return ["~data.sources.words", source, "model.tokenizer=train", "model.vocab_size=300", f"data.prepared={corpus}"]


def test_commands_end_to_end(tmp_path: Path) -> None:
    words = words_for(write_json(tmp_path / "rows.json", alpaca_rows(60)), tmp_path / "corpus")
    early = run("data_prep.preview", *words, "rows=2")
    assert early.returncode == 66
    assert "python -m data_prep" in early.stderr
    done = run("data_prep", *words)
    assert done.returncode == 0, done.stderr
    assert f"corpus      {tmp_path / 'corpus'}" in done.stdout
    assert "60 rows in: 60 to train on" in done.stdout
    shown = run("data_prep.preview", *words, "rows=2", f"html={tmp_path / 'p.html'}")
    assert shown.returncode == 0, shown.stderr
    assert page(tmp_path / "p.html").classes.count("sample") == 2


def test_mistakes_leave_one_sentence_and_their_code(tmp_path: Path) -> None:
    words = words_for(tmp_path / "rows.json", tmp_path / "corpus")
    absent = run("data_prep", *words)
    assert absent.returncode == 66
    left_out, said = absent.stderr.splitlines()
    assert left_out.startswith("corral: data=demo, the default entry, is left out")
    assert said.startswith("corral: data.sources.a.path: no such file")
    assert "Traceback" not in absent.stderr
