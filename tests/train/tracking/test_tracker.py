"""Metrics and events on disk, the terminal's lines, truncation on resume, and W&B: offline, dead and slow servers."""

from __future__ import annotations

import errno
import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.errors import StorageError
from conf.safety.secrets import HIDDEN, redact
from train.tracking.figures import clock, eval_line, short_count
from train.tracking.terminal import TerminalTracker
from train.tracking.tracker import Fanout, JsonlTracker, NullTracker, truncate_after, write


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_disk_that_takes_a_part_is_given_the_rest_and_its_refusal_is_told() -> None:
    class Nearly(io.BytesIO):
        room = 7

        def write(self, content: Any) -> int:
            if not self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            taken = super().write(content[: min(3, self.room)])
            self.room -= taken
            return taken

        name = "events.jsonl"

    disk = Nearly()
    write(disk, "12345\n")
    assert disk.getvalue() == b"12345\n"
    with pytest.raises(StorageError, match=r"cannot write events\.jsonl: No space left on device; free"):
        write(disk, "12345\n")


def test_jsonl_appends_one_object_per_line(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path)
    tracker.log(1, {"train/loss": 2.5, "train/lr": 1e-3})
    tracker.log(2, {"train/loss": float("nan"), "train/lr": float("inf")})
    tracker.event("checkpoint", step=2, path="x")
    assert len(lines(tmp_path / "metrics.jsonl")) == 2  # readable while the run goes on
    tracker.sync()
    tracker.close(0)
    again = JsonlTracker(tmp_path)
    again.log(3, {"train/loss": 2.0})
    again.close(0)
    assert lines(tmp_path / "metrics.jsonl") == [
        {"step": 1, "train/loss": 2.5, "train/lr": 1e-3},
        {"step": 2, "train/loss": None, "train/lr": None},
        {"step": 3, "train/loss": 2.0},
    ]
    again = JsonlTracker(tmp_path)
    again.log(3, {"eval/loss": 1.0})  # late metrics join their step, also after a restart
    again.log(3, {"ckpt/bytes": 7})
    again.log(4, {})
    again.log(5, {"train/loss": 1.5})
    again.close(0)
    assert lines(tmp_path / "metrics.jsonl")[2:] == [
        {"step": 3, "train/loss": 2.0, "eval/loss": 1.0, "ckpt/bytes": 7},
        {"step": 5, "train/loss": 1.5},
    ]
    (event,) = lines(tmp_path / "events.jsonl")
    assert event["kind"] == "checkpoint"
    assert event["step"] == 2
    assert abs(event["time"] - time.time()) < 60


def test_a_line_after_a_torn_one_is_whole(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "tra')
    tracker = JsonlTracker(tmp_path)
    tracker.log(2, {"train/loss": 1.0})
    tracker.close(0)
    assert (tmp_path / "metrics.jsonl").read_text().splitlines()[-1] == '{"step": 2, "train/loss": 1.0}'


@given(st.lists(st.integers(0, 30), max_size=20), st.integers(0, 30), st.booleans())
def test_truncate_keeps_exactly_the_steps_up_to_the_checkpoint(steps: list[int], last: int, torn: bool) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        path.write_text("".join(json.dumps({"step": step}) + "\n" for step in steps) + ('{"step"' if torn else ""))
        removed = truncate_after(path, last)
        kept = [step for step in steps if step <= last]
        assert [line["step"] for line in lines(path)] == kept
        assert removed == len(steps) - len(kept) + torn
        assert list(path.parent.iterdir()) == [path]


def test_truncate_of_a_missing_file_and_of_lines_without_step(tmp_path: Path) -> None:
    assert truncate_after(tmp_path / "ledger.jsonl", 3) == 0
    path = tmp_path / "events.jsonl"
    path.write_text('{"kind": "start"}\n{"kind": "checkpoint", "step": 9}\n')
    assert truncate_after(path, 3) == 1
    assert lines(path) == [{"kind": "start"}]


def test_plain_lines_first_last_and_a_score_between(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    tracker = TerminalTracker(200, stream)
    for step in range(1, 201):
        tracker.log(step, {"train/loss": 3.0 / step, "train/lr": 1e-3, "perf/tokens_per_second": 13_210.0})
    tracker.log(200, {"eval/loss": 0.5, "eval/reverse/exact_match": 0.9, "eval/first/exact_match": 0.7})
    tracker.note("a note")
    tracker.close(0)
    shown = stream.getvalue().splitlines()
    assert shown[0].startswith("step   1/200  loss 3.0000  lr 1.00e-03  13.2k tok/s")
    assert shown[-3].startswith("step 200/200  loss 0.0150")
    assert "left" in shown[-4]
    assert "left" not in shown[-3]
    assert shown[-2] == "step 200: held-out loss 0.5000, exact match 80% (first 70%, reverse 90%)"
    assert shown[-1] == "a note"
    assert 15 <= len(shown) <= 25
    assert not capsys.readouterr().out


def test_a_run_that_stops_early_shows_its_last_step() -> None:
    stream = io.StringIO()
    tracker = TerminalTracker(100_000, stream)
    for step in range(1, 8):
        tracker.log(step, {"train/loss": 1.0})
    tracker.close(75)
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["1/100000", "7/100000"]


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Tty()
    tracker = TerminalTracker(10, stream)
    for step in range(1, 11):
        tracker.log(step, {"train/loss": 1.25, "perf/tokens_per_second": 900.0})
    tracker.note("checkpoint [step 10]")
    tracker.close(0)
    assert "loss 1.2500" in stream.getvalue()
    assert "10/10" in stream.getvalue()
    assert "checkpoint [step 10]" in stream.getvalue()  # not taken for rich markup


def test_figures() -> None:
    counts = {3: "3", 812: "812", 13_210: "13.2k", 1_050_000: "1.05M", 999_600: "1M"}
    assert [short_count(value) for value in counts] == list(counts.values())
    assert [clock(seconds) for seconds in (5, 65, 3723)] == ["0:05", "1:05", "1:02:03"]
    assert eval_line({"train/loss": 1.0}) == ""


def test_close_reaches_every_tracker_even_if_one_fails() -> None:
    closed = []

    class Recording(NullTracker):
        def close(self, code: int) -> None:
            closed.append(code)

    class Failing(NullTracker):
        def close(self, code: int) -> None:
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        Fanout([Recording(), Failing(), Recording()]).close(7)
    assert closed == [7, 7]


def test_redact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "s3cr3t-value-xyz")
    config = {
        "model": {"path": "https://user:pw@host/x", "eos_token": "</s>", "config": {"max_new_tokens": 3}},
        "api_key": "abc",
        "hf_token": "zzz",
        "note": ["uses s3cr3t-value-xyz", "hf_abcdefghijklmnopqrst"],
        "api_token": None,
    }
    assert redact(config) == {
        "model": {"path": f"https://{HIDDEN}@host/x", "eos_token": "</s>", "config": {"max_new_tokens": 3}},
        "api_key": HIDDEN,
        "hf_token": HIDDEN,
        "note": [f"uses {HIDDEN}", HIDDEN],
        "api_token": None,
    }
