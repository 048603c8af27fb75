"""The report of a whole run, of half a run and of an empty folder; escaping, secrets, plots."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.compose import compose, save_config
from train.report import write_report
from train.report.plots import MAX_POINTS, line_plot, number, smoothed, thinned, ticks
from train.report.reading import by_step, flat

FAMILIES = ("reverse", "first", "last", "thank", "list", "replace")
HOSTILE = "<script>alert('x')</script>"
VOID = {"meta"}
SELF_CLOSING = {"line", "circle", "polyline"}


def files(split: str, rows: int, tokens: int) -> dict[str, Any]:
    """The files of a split as a MANIFEST names them."""
    file = {"file": f"{split}/x", "bytes": 1, "xxh3": "0"}
    sizes = {"rows": rows, "tokens": tokens}
    return {**sizes, "lengths": file, "shards": [{**file, **sizes}]}


def make_run(run_dir: Path, steps: int = 300) -> Path:
    """A run directory as training leaves it, with a hostile answer, a secret and a line that is cut off."""
    run_dir.mkdir(parents=True, exist_ok=True)
    corpus = run_dir.parent / "corpus"
    corpus.mkdir(exist_ok=True)
    save_config(compose(["experiment=demo", f"data.prepared={corpus}"]), run_dir / "run.yaml")
    sizes = {"train": (3000, 60_000, 21_000), "validation": (50, 1_000, 350)}
    splits = {
        name: {
            "supervised_tokens": targets,
            "prefixes": [],
            **files(name, rows, tokens),
        }
        for name, (rows, tokens, targets) in sizes.items()
    }
    manifest = {
        "version": 2,
        "sources": {name: {"rejected": {"empty_output": 3}, "splits": splits} for name in FAMILIES},
        "files": {name: [] for name in FAMILIES},
        "template": {},
        "config": {},
        "config_sha256": "ab" * 32,
        "tokenizer": {"fingerprint": "cd" * 32, "vocab_size": 8},
        "seq_len": 64,
        "max_tokens": 64,
        "min_vocab": 8,
    }
    (corpus / "MANIFEST.json").write_text(json.dumps(manifest))
    lines = [evaluation(0, 0.02, 4.1)]
    for step in range(1, steps + 1):
        loss = 4.0 * math.exp(-step / 60) + 0.05 + 0.12 * math.sin(step * 1.7) * math.exp(-step / 90)
        line = {
            "step": step,
            "train/loss": loss,
            "train/lr": 1e-3 * min(1, step / 20) * (0.5 + 0.5 * math.cos(math.pi * step / steps)),
            "train/grad_norm": 0.4 + loss / 2 + 0.2 * math.sin(step),
            "train/tokens": step * 8192,
            "train/samples": step * 128,
            "perf/tokens_per_second": 21_000 + 900 * math.sin(step / 3),
            "perf/step_time_s": 0.18,
            "memory/peak_gib": 0.61,
        }
        line |= {f"data/share/{name}": (1 + 0.2 * math.sin(step / 9 + i)) / 6 for i, name in enumerate(FAMILIES)}
        lines += [line] + ([evaluation(step, 1 - math.exp(-step / 70), loss + 0.03)] if step % 60 == 0 else [])
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run_dir / "metrics.jsonl").write_text(text + '{"step": 301, "train/lo')
    events = [
        {"time": 1_760_000_000.0, "kind": "start", "step": 0, "world": 2, "total_steps": steps, "attention": "packed"},
        {"time": 1_760_000_030.0, "kind": "checkpoint", "step": 100, "bytes": 9_000_000},
        {"time": 1_760_000_040.0, "kind": "resume", "step": 100, "note": "https://user:hunter2@host/x"},
        {"time": 1_760_000_090.0, "kind": "end", "step": steps},
    ]
    (run_dir / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    samples = [answer_row(name, row) for name in FAMILIES for row in range(7)]
    (run_dir / "samples").mkdir(exist_ok=True)
    for step in (0, steps):
        path = run_dir / "samples" / f"step-{step:08d}.jsonl"
        path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    (run_dir / "exit.json").write_text(json.dumps({"code": 0, "reason": "done", "step": steps}))
    return run_dir


def evaluation(step: int, right: float, loss: float) -> dict[str, Any]:
    line: dict[str, Any] = {"step": step, "eval/loss": loss}
    for index, name in enumerate(FAMILIES):
        line[f"eval/{name}/loss"] = loss * (0.8 + 0.08 * index)
        line[f"eval/{name}/exact_match"] = right ** (1 + index / 3)
        line[f"eval/{name}/rouge_l"] = right ** (1 + index / 6)
    return line


def answer_row(name: str, row: int) -> dict[str, Any]:
    prompt = f"### Instruction:\nReverse the words: {HOSTILE if row == 1 else 'tree house cat'}\n\n### Response:\n"
    wrong = row == 2
    answer = HOSTILE if wrong else "cat house tree"
    scores = {"exact_match": not wrong, "rouge_l": 0.25 if wrong else 1.0}
    return {"source": name, "uid": "0f", "prompt": prompt, "reference": "cat house tree", "answer": answer, **scores}


class Checker(HTMLParser):
    """Tags are balanced, nothing runs, nothing is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "img", "iframe")
        assert not any(name in ("src", "href") or name.startswith("on") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SELF_CLOSING

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(path: Path) -> str:
    html = path.read_text()
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert not checker.open
    assert set(re.findall(r"https?://[^<\s;]*", html)) <= {"https://[redacted]@host/x"}
    for svg in re.findall(r"<svg.*?</svg>", html, re.S):
        ElementTree.fromstring(svg)
    return html


def test_a_whole_run(tmp_path: Path) -> None:
    html = checked(write_report(make_run(tmp_path / "run")))
    assert "300 steps · finished" in html
    assert "4.100 → 0.111" in html  # held-out loss
    assert "0% → 97%" in html  # exact match
    assert html.count("<figure>") == 9  # eight plots and the planned memory
    assert "&lt;script&gt;alert" in html
    assert "hunter2" not in html
    assert "36 of 42 right" in html
    assert "24 more" in html
    assert "3,000" in html
    assert "optim.lr" in html
    assert "checkpoint" in html


def test_half_a_run_and_an_empty_folder(tmp_path: Path) -> None:
    half = make_run(tmp_path / "half", steps=5)
    for name in ("exit.json", "events.jsonl", "run.yaml"):
        (half / name).unlink()
    for path in (half / "samples").iterdir():
        path.unlink()
    lines = [line for line in (half / "metrics.jsonl").read_text().splitlines() if "eval/" not in line]
    (half / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    html = checked(write_report(half))
    assert "5 steps · no end recorded yet" in html
    assert "Answers" not in html
    (tmp_path / "empty").mkdir()
    assert "not started · 0 steps" in checked(write_report(tmp_path / "empty"))


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", steps=2)
    (run_dir / "exit.json").write_text(json.dumps({"code": 71, "reason": "out of memory <here>", "step": 2}))
    (run_dir / "run.yaml").write_text("name: [broken")
    assert "ended with code 71: out of memory &lt;here&gt;" in checked(write_report(run_dir))


def test_the_command(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", steps=3)
    done = command(f"run_dir={run_dir}")
    assert (done.returncode, done.stdout.strip()) == (0, str(run_dir / "report.html")), done.stderr
    missing = command("run_dir=nowhere")
    assert missing.returncode == 66
    assert missing.stderr.startswith("corral: run_dir=nowhere: no such folder")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    whole = [sys.executable, "-m", "train.report", *arguments]
    return subprocess.run(whole, capture_output=True, text=True, env=environment, timeout=120, check=False)


FINITE = st.floats(-1e12, 1e12)


@given(FINITE, FINITE)
def test_ticks_span_the_values_with_few_round_numbers(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    found = ticks(low, high)
    assert 1 <= len(found) <= 8
    size = max((high - low) or abs(high) or 1.0, sys.float_info.min)
    assert found[0] <= low + 1e-6 * size
    assert found[-1] >= high - 1e-6 * size


def test_ticks_of_a_span_too_small_for_a_normal_number() -> None:
    assert ticks(0.0, 5e-324) == [0.0]


@given(st.integers(0, 10**7), st.integers(0, 10**7))
def test_step_ticks_are_whole_and_inside(one: int, other: int) -> None:
    low, high = min(one, other), max(one, other)
    assert all(low <= tick <= high and tick == int(tick) for tick in ticks(low, high, whole=True))


@given(st.lists(st.tuples(FINITE, FINITE), min_size=1, max_size=50), st.booleans(), st.booleans())
def test_any_series_gives_valid_svg(points: list[tuple[float, float]], dots: bool, zero: bool) -> None:
    svg = ElementTree.fromstring(line_plot({"a <&>": points}, dots=dots, show=[0.0] if zero else []))
    pixels = [each for line in svg.iter("polyline") for each in re.split("[ ,]", line.get("points", ""))]
    assert all(0 <= float(each) <= 480 for each in pixels)
    assert len(pixels) == (2 * len(points) if len(points) > 1 else 0)


def test_plots_without_points_are_absent_and_long_ones_keep_their_peaks() -> None:
    assert line_plot({}) == ""
    assert line_plot({"a": []}) == ""
    points = [(float(step), 100.0 if step == 7777 else 1.0) for step in range(20_000)]
    kept = thinned(points)
    assert len(kept) <= MAX_POINTS
    assert (7777.0, 100.0) in kept
    assert kept == sorted(kept)
    assert thinned(points[:10]) == points[:10]


def test_smoothing_starts_at_the_first_value() -> None:
    flat_line = [(0.0, 4.0), (1.0, 4.0), (2.0, 4.0)]
    assert [value for _, value in smoothed(flat_line, 10)] == pytest.approx([4.0, 4.0, 4.0])
    assert smoothed([(0.0, 0.0), (1.0, 1.0)], 1) == [(0.0, 0.0), (1.0, 1.0)]


def test_labels_and_settings() -> None:
    assert [number(value) for value in (0, 0.25, 12, 1500, 2e-5)] == ["0", "0.25", "12", "1.5k", "2e-05"]
    assert flat({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}
    assert by_step([{"step": 2, "x": 1}, {"step": 1}, {"step": 2, "y": 2}, {"z": 1}]) == [
        {"step": 1},
        {"step": 2, "x": 1, "y": 2},
    ]


def test_the_bar_of_planned_memory_shows_every_part(tmp_path: Path) -> None:
    """Parts add up to the whole, in the bar as in the plan; a folder without a config has no bar."""
    from conf.compose import compose
    from conf.frozen import save_config
    from train.plan import plan, read_model_config
    from train.report.memory import parts, planned_memory
    from train.report.reading import read_run

    assert planned_memory(read_run(tmp_path)) == ""
    cfg = compose(["model=llama31_8b", "data.prepared=none", "cluster.gpus_per_node=2", "batch.global_size=128"])
    save_config(cfg, tmp_path / "run.yaml")
    (tmp_path / "events.jsonl").write_text('{"kind": "start", "step": 0, "world": 2}\n')
    memory = plan(cfg, read_model_config(cfg.model)).chosen
    assert sum(parts(memory).values()) == pytest.approx(memory.device)
    drawn = planned_memory(read_run(tmp_path))
    assert drawn.count("stroke-width:44") == len(parts(memory))
    assert f"{memory.device / 2**30:.2f} GiB" in drawn
