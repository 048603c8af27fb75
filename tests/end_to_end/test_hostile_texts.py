"""Rows, names of files and answers that would act on a terminal, a browser or a hub's page are shown as they are."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from tests.conf.safety.test_texts import HOSTILE, acting
from tests.end_to_end.commands import ROOT, call, environment
from train.export.model_card import Provenance, card
from train.report import write_report

NAME = "rows [bold]\x1b[2J\u202e [blink] <b>.jsonl"
"""A file's name may hold everything but a slash and a zero byte."""
OWN = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[2K|\x1b\[1A|\r")
"""What rich sends for styles and bars."""


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A corpus whose rows are hostile, and whose file is."""
    rows = [{"instruction": f"{number} {text}", "output": f"{text} {number}"} for number, text in enumerate(HOSTILE)]
    rows += [{"instruction": f"Say {number}.", "output": str(number)} for number in range(20)]
    text = "".join(json.dumps(row) + "\n" for row in rows if "\udc80" not in row["instruction"])
    (tmp_path / NAME).write_text(text)
    source = f"{{format: alpaca, path: {json.dumps(str(tmp_path / '*.jsonl'))}, validation_fraction: 0.2}}"
    return [
        f"data.sources={{hostile: {source}}}",
        "model=demo_llama",
        "model.vocab_size=600",
        "data.seq_len=8192",
        f"data.prepared={tmp_path / 'corpus'}",
        "data.bad_row_budget=1",
    ]


def on_a_terminal(module: str, *words: str) -> str:
    """What the command sends to a terminal of 200 columns."""
    reader, writer = pty.openpty()
    command, variables = [sys.executable, "-m", module, *words], {**environment(), "COLUMNS": "200"}
    process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=writer, stderr=writer)
    os.close(writer)
    sent = b""
    try:
        while chunk := os.read(reader, 65536):
            sent += chunk
    except OSError:  # a pseudo-terminal without writers
        pass
    os.close(reader)
    assert process.wait(60) == 0, sent.decode()
    return sent.decode()


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes |= {name for name, _ in attrs}


def check_page(path: Path) -> None:
    page = path.read_text()
    assert not acting(page)
    found = Tags(page)
    assert not found.seen & {"script", "img", "iframe", "a"}, found.seen
    assert not {name for name in found.attributes if name.startswith("on")}
    assert "default-src 'none'" in page
    assert "&lt;" in page


@pytest.mark.slow
def test_hostile_rows_and_names_are_prepared_and_looked_at(words: list[str], tmp_path: Path) -> None:
    sent = on_a_terminal("data_prep", *words)
    assert not acting(OWN.sub("", sent)), repr(sent)
    assert "row" in sent
    assert "[bold]\\x1b[2J\\u202e [blink] <b>.jsonl" in OWN.sub("", sent)
    check_page(tmp_path / "corpus" / "report.html")
    sent = on_a_terminal("data_prep.preview", *words, "rows=40")
    assert not acting(OWN.sub("", sent)), repr(sent)
    assert "\\x1b" in OWN.sub("", sent).replace("│", "")
    code, output = call("data_prep.preview", *words, "rows=40", f"html={tmp_path / 'page.html'}")
    assert code == 0, output
    check_page(tmp_path / "page.html")


def test_a_file_that_cannot_be_read_is_named_harmlessly(words: list[str], tmp_path: Path) -> None:
    (tmp_path / NAME).write_text('{"x\x1b[2J": 1}\n' * 9)
    code, output = call("data_prep", *words)
    assert code == 65, output
    assert not acting(output), repr(output)


def test_the_report_of_a_run_with_hostile_records(tmp_path: Path) -> None:
    """Its files may be anybody's: names of metrics, events, reasons, answers, a config."""
    tmp_path /= "<script>run"  # without a config, the page is called after it
    (tmp_path / "samples").mkdir(parents=True)
    for text in HOSTILE:
        if "\udc80" in text:
            continue
        entry = {
            "source": text,
            "prompt": text,
            "reference": text,
            "answer": text,
            "exact_match": False,
            "rouge_l": 0.0,
        }
        with (tmp_path / "samples" / "step-00000002.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 1, f"eval/{text}/loss": 1.0, f"eval/{text}/exact_match": 0.5}) + "\n")
            file.write(json.dumps({"step": 2, f"eval/{text}/loss": 0.5, "train/loss": 1.0}) + "\n")
        with (tmp_path / "events.jsonl").open("a") as file:
            file.write(json.dumps({"time": 1.0, "kind": text, "step": 1, text: text}) + "\n")
    (tmp_path / "exit.json").write_text(json.dumps({"code": 70, "reason": HOSTILE[0] + HOSTILE[15]}))
    check_page(write_report(tmp_path))


@pytest.mark.parametrize("text", HOSTILE)
def test_fields_of_a_model_card(text: str) -> None:
    base = f"owner/{text}".replace("/", "", text.count("/"))
    made = Provenance(
        name=text, template=text, templates={text: text}, base=base, base_hash="0" * 64, tuning="full", merged=True,
        dtype="fp32", step=3, corpus=text, corpus_sha256="1" * 64, config_sha256="2" * 64, vocabulary="",
        code=(text,), metrics={text: 1.0}, versions={"torch": "1"},
    )  # fmt: skip
    page = card(made, "peft")
    assert not acting(page)
    _, head, body = page.split("---\n", 2)
    assert [*yaml.safe_load(head)][-3:] == ["library_name", "pipeline_tag", "tags"]
    assert yaml.safe_load(head)["tags"] == ["corral", "instruction-tuning"]
    assert "<" not in body
    tables = [line for line in body.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {3}
