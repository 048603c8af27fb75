"""Metrics and events on disk, the terminal's lines, truncation on resume, and W&B: offline, dead and slow servers."""

from __future__ import annotations

import io
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.schema import TrackerConfig
from train import wandb_tracker
from train.figures import clock, eval_line, short_count
from train.redact import HIDDEN, redact
from train.terminal import TerminalTracker
from train.tracker import Fanout, JsonlTracker, NullTracker, truncate_after
from train.wandb_tracker import WandbTracker, has_api_key, run_id


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


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


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home without W&B credentials."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    return home


def test_api_key_is_found_in_environment_or_netrc(no_key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not has_api_key()
    (no_key / ".netrc").write_text("machine example.org login a password b\n")
    assert not has_api_key()
    (no_key / ".netrc").write_text("machine api.wandb.ai login user password b\n")
    assert has_api_key()
    (no_key / ".netrc").write_text("nonsense here\n")
    assert not has_api_key()
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert has_api_key()


def test_run_id_is_minted_once(tmp_path: Path) -> None:
    first = run_id(tmp_path)
    assert len(first) == 8
    assert run_id(tmp_path) == first


def wandb_records(path: Path) -> Iterator[Any]:
    """Records of a .wandb file: a 7-byte header, then LevelDB-style blocks of 32 KiB: crc32, length, type, data."""
    from wandb.proto import wandb_internal_pb2

    content, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(content):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def test_online_without_a_key_is_recorded_offline_and_read_back(
    no_key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "do-not-show-me-1234")
    run_dir, notes = tmp_path / "run", []
    config = {"name": "r", "optim": {"lr": 0.5}, "model": {"path": "x?k=do-not-show-me-1234", "hf_token": "hidden-too"}}
    tracker = WandbTracker(run_dir, "r", TrackerConfig(wandb="online", project="p"), config, notes.append)
    slowest = 0.0
    for step in range(1, 301):
        began = time.perf_counter()
        tracker.log(step, {"train/loss": 1.0 / step, "train/tokens": 10.0 * step, "data/share/a": 0.5})
        slowest = max(slowest, time.perf_counter() - began)
    tracker.close(0)
    assert slowest < 1.0
    assert "no API key" in notes[0]
    assert f"wandb sync {run_dir}/wandb/offline-run-" in notes[1]
    (path,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    records = list(wandb_records(path))
    (run,) = [record.run for record in records if record.HasField("run")]
    assert run.run_id == run_id(run_dir)
    assert run.project == "p"
    history = [record.history for record in records if record.HasField("history")]
    rows = [{"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in h.item} for h in history]
    assert [row["step"] for row in rows] == list(range(1, 301))
    assert rows[3]["train/loss"] == 0.25
    defined = [record.metric for record in records if record.HasField("metric")]
    metrics = {metric.name or metric.glob_name: metric.step_metric for metric in defined}
    assert metrics["*"] == "step"
    assert metrics["data/*"] == "train/tokens"
    for file in run_dir.rglob("*"):
        if file.is_file():
            assert b"do-not-show-me-1234" not in file.read_bytes(), file
            assert b"hidden-too" not in file.read_bytes(), file
    assert not list(run_dir.rglob("requirements.txt"))


def test_a_full_queue_drops_lines_and_says_so(no_key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_tracker, "QUEUE_SIZE", 5)
    monkeypatch.setattr(WandbTracker, "start", lambda self: None)
    notes: list[str] = []
    tracker = WandbTracker(tmp_path, "r", TrackerConfig(wandb="offline"), {}, notes.append)
    for step in range(8):
        tracker.log(step, {})
    tracker.close(0)
    assert "3 lines were not sent" in notes[-1]


@pytest.mark.slow
@pytest.mark.parametrize("server", ["silent", "refusing", "absent"])
def test_a_dead_server_costs_training_nothing(
    server: str, no_key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_tracker, "PROBE_TIMEOUT_S", 2)
    monkeypatch.setattr(wandb_tracker, "INIT_TIMEOUT_S", 3)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if server != "absent":
            threading.Thread(target=serve, args=(listener, server == "refusing"), daemon=True).start()
        port = listener.getsockname()[1] if server != "absent" else 9
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        notes: list[str] = []
        began = time.perf_counter()
        tracker = WandbTracker(tmp_path, "r", TrackerConfig(wandb="online"), {}, notes.append)
        for step in range(1000):
            tracker.log(step, {"train/loss": 1.0})
        assert time.perf_counter() - began < 2.0  # less than the first wait for the server
        tracker.close(0)
    assert len(notes) == 2, notes
    assert "recording offline instead" in notes[0]
    assert "wandb sync" in notes[1]
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert sum(record.HasField("history") for record in wandb_records(path)) == 1000


def serve(listener: socket.socket, refusing: bool) -> None:
    """Accept connections and never answer, or answer 500 to everything."""
    held = []
    while True:
        try:
            connection = listener.accept()[0]
        except OSError:
            return
        held.append(connection)
        if refusing:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            connection.close()
