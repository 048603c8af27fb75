"""How a run stands, its log, and asking it to stop, for runs on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conf.errors import ConfigError, MissingInput
from launch.follow import ask_to_stop, show_logs, show_status
from launch.torchrun import ROOT
from tests.launch.conftest import until

LAUNCHER = """
import signal, sys, time
from pathlib import Path
from launch.run_dir import claimed
run_dir = Path(sys.argv[2])
with claimed(run_dir) as logs:
    signal.signal(signal.SIGTERM, lambda *_: (run_dir / "asked").touch())
    (logs / "rank-0.log").write_text("step 1\\n")
    (run_dir / "ready").touch()
    while not (run_dir / "asked").exists():
        time.sleep(0.02)
    (logs / "rank-0.log").open("a").write("\\x1b[31mstep 2\\n")
"""


def test_a_run_of_this_machine_is_followed_and_asked_to_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, "launch", str(run_dir)], env=environment)
    try:
        until((run_dir / "ready").exists)
        (run_dir / "metrics.jsonl").write_text('{"step": 41, "train/loss": 1.25}\n{"step": 42, "train/lo')
        assert show_status([f"run_dir={run_dir}"]) == 0
        said = capsys.readouterr().out
        assert "step 41, loss 1.25, newest checkpoint at step 0" in said
        assert f"process {launcher.pid} of this machine supervises it" in said
        assert ask_to_stop([str(run_dir)]) == 0
        assert f"process {launcher.pid} is asked to stop" in capsys.readouterr().out
        assert launcher.wait(20) == 0
    finally:
        launcher.kill()
    assert show_logs([str(run_dir)]) == 0
    said = capsys.readouterr().out
    assert "step 1\n" in said
    assert "step 2\n" in said
    assert "\x1b" not in said
    assert ask_to_stop([str(run_dir)]) == 0
    assert "nothing of" in capsys.readouterr().out


def test_a_log_is_followed_as_long_as_the_run_lives(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, "launch", str(run_dir)], env=environment)
    try:
        until((run_dir / "ready").exists)
        command = [sys.executable, "-m", "launch", "logs", f"run_dir={run_dir}"]
        follower = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert follower.stdout
        assert follower.stdout.readline() == "step 1\n"
        assert follower.poll() is None
        launcher.send_signal(signal.SIGTERM)
        rest, _ = follower.communicate(timeout=30)
        assert "step 2" in rest
        assert follower.returncode == 0
    finally:
        launcher.kill()


def test_an_ended_run_says_how(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "launch.lock").write_text("1\n")  # another process has this number now
    (tmp_path / "exit.json").write_text(json.dumps({"code": 74, "reason": "disk full", "attempt": 3}))
    assert show_status([str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "no step yet" in said
    assert "attempt 3 ended with 74: disk full" in said
    assert "supervises" not in said


@pytest.mark.parametrize("words", [[], ["run_dir=a", "name=b"], ["a", "b"], ["optim.lr=1"], ["run_dir="]])
def test_one_folder_and_nothing_else(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="launch status: give the folder of a run"):
        show_status(words)


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    for command in (show_status, show_logs, ask_to_stop):
        with pytest.raises(MissingInput, match="no run was started there"):
            command([f"run_dir={tmp_path}"])
    (tmp_path / "logs").mkdir()
    with pytest.raises(MissingInput, match="holds no log"):
        show_logs([f"run_dir={tmp_path}"])


def test_help_says_what_the_commands_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        show_status(["--help"])
    assert ended.value.code == 0
    assert "python -m launch cancel run_dir=DIR" in capsys.readouterr().out
