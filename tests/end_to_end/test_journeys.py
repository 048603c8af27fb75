"""Six newcomers with files of their own: one command each, the defaults, a real small model; each run teaches."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.commands import call, lines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROWS = 200
Write = Callable[[Path, list[dict[str, str]]], str]


def question(row: dict[str, str]) -> str:
    return f"{row['instruction']}\n{row['input']}".strip()


def fifty_alpaca_rows(folder: Path, rows: list[dict[str, str]]) -> str:
    (folder / "rows.json").write_text(json.dumps(rows[:50]))
    return str(folder / "rows.json")


def sharegpt(folder: Path, rows: list[dict[str, str]]) -> str:
    turns = [
        [{"from": "human", "value": question(row)}, {"from": "gpt", "value": row["output"]}] for row in rows[:ROWS]
    ]
    (folder / "talks.json").write_text(json.dumps([{"conversations": each} for each in turns]))
    return str(folder / "talks.json")


def messages_with_system(folder: Path, rows: list[dict[str, str]]) -> str:
    def turns(row: dict[str, str]) -> list[dict[str, str]]:
        texts = ("system", "Be brief."), ("user", question(row)), ("assistant", row["output"])
        return [{"role": role, "content": text} for role, text in texts]

    (folder / "m.jsonl").write_text("".join(json.dumps({"messages": turns(row)}) + "\n" for row in rows[:ROWS]))
    return str(folder / "m.jsonl")


def csv_of_questions(folder: Path, rows: list[dict[str, str]]) -> str:
    with (folder / "faq.csv").open("w", newline="") as stream:
        table = csv.writer(stream, delimiter=";")
        table.writerow(["q", "a"])
        table.writerows([question(row), row["output"]] for row in rows[:ROWS])
    return str(folder / "faq.csv")


def saved_to_disk(folder: Path, rows: list[dict[str, str]]) -> str:
    import datasets

    datasets.Dataset.from_list(rows[:ROWS]).save_to_disk(str(folder / "disk"))
    return str(folder / "disk")


def two_with_weights(folder: Path, rows: list[dict[str, str]]) -> str:
    return f"{{{messages_with_system(folder, rows)}: 3, {csv_of_questions(folder, rows[ROWS:])}: 1}}"


@pytest.mark.parametrize(
    "write", [fifty_alpaca_rows, sharegpt, messages_with_system, csv_of_questions, saved_to_disk, two_with_weights]
)
def test_one_command_teaches_and_says_what_is_next(
    write: Write, tmp_path: Path, real_data: Callable[[str], Path], alpaca_rows: list[dict[str, str]]
) -> None:
    path = write(tmp_path, alpaca_rows)
    run_dir = tmp_path / "run"
    code, output = call(
        "launch",
        "data=own",
        f"path={path}",
        f"model.path={real_data('weights/stories260K/hf')}",
        f"run_dir={run_dir}",
        f"data.prepared={tmp_path / 'corpus'}",
        "evaluation.at_start=true",
        timeout=800,
    )
    assert code == 0, output
    assert "rows read)" in output
    metrics: list[dict[str, Any]] = lines(run_dir / "metrics.jsonl")
    losses = [each["eval/loss"] for each in metrics if "eval/loss" in each]
    assert sum("train/loss" in each for each in metrics) >= 10
    assert losses[-1] < losses[0], losses
    assert f"next: python -m train.export run_dir={run_dir}" in output


@pytest.fixture(scope="module")
def alpaca_rows(real_data: Callable[[str], Path]) -> list[dict[str, str]]:
    import gzip

    whole = json.loads(gzip.decompress(real_data("alpaca/alpaca_data.json.gz").read_bytes()))
    return [row for row in whole[:3000] if row["output"].strip()][: 3 * ROWS]
