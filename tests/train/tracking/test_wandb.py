"""W&B: offline, dead and slow servers, and what it holds after deaths."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from unittest import mock

import pytest

from conf.schema import TrackerConfig
from tests.launch.conftest import until
from tests.train.tracking.wandb_files import all_records
from train.tracking import wandb_tracker
from train.tracking.tracker import JsonlTracker, truncate_after
from train.tracking.wandb_files import records
from train.tracking.wandb_tracker import WandbTracker, has_api_key, run_id


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
    found = all_records(path)
    (run,) = [record.run for record in found if record.HasField("run")]
    assert run.run_id == run_id(run_dir)
    assert run.project == "p"
    history = [record.history for record in found if record.HasField("history")]
    rows = [{"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in h.item} for h in history]
    assert [row["step"] for row in rows] == list(range(1, 301))
    assert rows[3]["train/loss"] == 0.25
    defined = [record.metric for record in found if record.HasField("metric")]
    metrics = {metric.name or metric.glob_name: metric.step_metric for metric in defined}
    assert metrics["*"] == "step"
    assert metrics["data/*"] == "train/tokens"
    for file in run_dir.rglob("*"):
        if file.is_file():
            assert b"do-not-show-me-1234" not in file.read_bytes(), file
            assert b"hidden-too" not in file.read_bytes(), file
    assert not list(run_dir.rglob("requirements.txt"))


ATTEMPT = """
import os, signal, sys
from pathlib import Path
from conf.schema import TrackerConfig
from train.tracking.tracker import JsonlTracker
from train.tracking.wandb_tracker import WandbTracker
run_dir, first, last, dies = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "dies"
wandb = WandbTracker(run_dir, "r", TrackerConfig(wandb="offline"), {}, print)
file = JsonlTracker(run_dir)
for step in range(first, last + 1):
    for tracker in (file, wandb):
        tracker.log(step, {"train/loss": 1.0 / step, "perf/x": 0.5} | ({"train/first": 1.0} if step == 1 else {}))
        if step % 10 == 0:
            tracker.log(step, {"eval/loss": 2.0})
while dies and (wandb.folder is None or not wandb.queue.empty()):
    pass
if dies:
    os.kill(os.getpid(), signal.SIGKILL)
wandb.close(0)
"""


def in_wandb(run_dir: Path) -> Counter[tuple[int, str]]:
    """How often the files of all attempts hold each metric of each step."""
    found: Counter[tuple[int, str]] = Counter()
    for path in run_dir.glob("wandb/offline-run-*/*.wandb"):
        for record in records(path):
            items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            found.update((int(items["step"]), name) for name in items if "/" in name)
    return found


@pytest.mark.parametrize("checkpoint", [-5, 50])
def test_every_step_is_sent_once_over_the_deaths_of_its_attempts(no_key: Path, tmp_path: Path, checkpoint: int) -> None:
    """The file of a killed attempt is cut where its node died. The run goes on from a checkpoint before that place, and
    trains steps again that W&B has, or after it, and W&B has lost steps that are not trained again."""
    attempt = [sys.executable, "-c", ATTEMPT, str(tmp_path)]
    own = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}  # not this process's
    done = subprocess.run([*attempt, "1", "3000", "dies"], env=own, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    until(lambda: time.time() - path.stat().st_mtime > 2.0)  # its service has ended too
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size * 2 // 3)
    written = max(step for step, _ in in_wandb(tmp_path))
    assert 100 < written < 3000, "steps are lost"
    truncate_after(tmp_path / "metrics.jsonl", written + checkpoint)
    subprocess.run([*attempt, str(written + checkpoint + 1), "3020", "ends"], env=own, timeout=120, check=True)
    until(lambda: in_wandb(tmp_path)[3020, "eval/loss"])
    found = in_wandb(tmp_path)
    assert {step for step, name in found if name == "train/loss"} == set(range(1, 3021))
    assert {step for step, name in found if name == "eval/loss"} == set(range(10, 3021, 10))
    assert set(found.values()) == {1}


def test_what_the_server_has_is_not_sent_again(no_key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is resumed online knows its last step from the server; nothing answers here, so it is played."""
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    JsonlTracker(tmp_path).log(1, {"a": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write("".join(f'{{"step": {step}, "a": 1.0}}\n' for step in range(2, 9)) + '{"step": 9, "a"')
    run = mock.Mock(dir=str(tmp_path / "files"), resumed=True, summary={"step": 5})
    with mock.patch.object(WandbTracker, "start", return_value=run):
        tracker = WandbTracker(tmp_path, "r", TrackerConfig(wandb="online"), {}, print)
        tracker.log(8, {"a": 1.0, "b": 2.0})
        tracker.log(9, {"a": 1.0})
        tracker.close(0)
    logged = [call.args[0] for call in run.log.call_args_list]
    assert logged[:3] == [{"step": step, "a": 1.0} for step in (6, 7, 8)]
    assert logged[3:] == [{"step": 8, "b": 2.0}, {"step": 9, "a": 1.0}], "of a line that a death cut, nothing is known"


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
    assert sum(record.HasField("history") for record in all_records(path)) == 1000


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
