"""What this machine finds out about itself, and how it says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conf.attempts.preflight import FAULT, heard, say
from conf.errors import Unavailable
from launch.preflight import gpus, node
from launch.preflight.command import has_gpus


def test_lines_among_others_are_heard(capsys: pytest.CaptureFixture[str]) -> None:
    say(FAULT, "head", 'ü: "it" does not\nresolve')
    line = capsys.readouterr().out
    assert heard(line) == (
        os.environ.get("SLURMD_NODENAME") or os.uname().nodename,
        FAULT,
        ["head", 'ü: "it" does not\nresolve'],
    )
    say(FAULT, "config", "ü" * 900)
    line = capsys.readouterr().out
    assert len(line.encode()) < 1024
    assert set(heard(line)[2][1]) == {"ü"}  # type: ignore[index]
    assert heard("Loading module cuda/12.4\n") is None
    assert heard("corral-preflight {broken") is None


def test_a_node_that_cannot_write_says_so(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "seen").touch()
    assert node.free_bytes(tmp_path, "seen") > 0
    with pytest.raises(Unavailable, match="another folder than the first node's"):
        node.free_bytes(tmp_path, "other")
    with pytest.raises(Unavailable, match="it cannot write to run_dir"):
        node.free_bytes(tmp_path / "absent", "seen")


def test_a_node_finds_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unavailable, match=r"localhost, is 127\.0\.0\.1 there, which leads back to itself"):
        node.way_to("localhost")
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth1")
    node.way_to("localhost")
    with pytest.raises(Unavailable, match=r"no-such-host\.invalid, does not resolve there"):
        node.way_to("no-such-host.invalid")


def test_a_look_that_never_ends_costs_its_limit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(node, "LOOK_S", 0.2)
    began = time.monotonic()
    node.look({"corpus": lambda: time.sleep(60), "code": lambda: "a"})
    assert time.monotonic() - began < 2
    words = [heard(line) for line in capsys.readouterr().out.splitlines()]
    assert [each[1:] for each in words if each] == [
        ("fact", ["code", "a"]),
        ("fault", ["corpus", "its corpus gives no answer within 0 s; look at its file systems and services"]),
    ]


def smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("lines", "processes", "needed", "found"),
    [
        ("GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)", 1, True, ["NVIDIA H100 80GB HBM3"]),
        ("GPU 0: A (UUID: x)\nGPU 1: B (UUID: y)", 2, True, ["A", "B"]),
        ("GPU 0: A (UUID: x)", 2, True, "lists 1 GPU and 2 were requested"),
        ("GPU 0: A (UUID: x)", 2, False, "lists 1 GPU and 2 were requested"),
        ("No devices were found", 1, True, "lists 0 GPUs and 1 was requested"),
        ("No devices were found", 8, False, []),
    ],
)
def test_gpus_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, processes: int, needed: bool, found: list[str] | str
) -> None:
    smi(tmp_path, monkeypatch, f"cat <<'END'\n{lines}\nEND")
    if isinstance(found, list):
        assert node.gpus(processes, needed=needed) == found
        return
    with pytest.raises(Unavailable, match=found):
        node.gpus(processes, needed=needed)


def test_a_driver_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(tmp_path, monkeypatch, "exec sleep 60")
    monkeypatch.setattr(gpus, "SMI_S", 0.2)
    with pytest.raises(Unavailable, match="nvidia-smi gives no answer"):
        gpus.listed_gpus()


@pytest.mark.parametrize(
    ("variables", "asked"),
    [
        ({}, False),
        ({"SLURM_GPUS_ON_NODE": "8"}, True),
        ({"SLURM_GPUS_ON_NODE": "0"}, False),
        ({"SLURM_GPUS_PER_NODE": "gpu:0"}, False),
        ({"SLURM_GPUS_PER_NODE": "h100:4"}, True),
    ],
)
def test_gpus_are_needed_where_slurm_was_asked_for_them(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], asked: bool
) -> None:
    for name in ("SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert has_gpus() is asked


def test_one_machine_looks_at_itself(tmp_path: Path) -> None:
    """Without SLURM, and without a word of it to stdout; nothing but the run's folder is left."""
    command = [sys.executable, "-m", "launch", "preflight", "experiment=demo", f"run_dir={tmp_path / 'run'}"]
    variables = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=variables)
    assert (done.returncode, done.stdout) == (0, "")
    assert f"corral: preflight: {os.uname().nodename} is fit, in " in done.stderr
    assert [path.name for path in (tmp_path / "run").rglob("*") if path.is_file()] == ["launch.lock"]


def test_an_attempt_gets_the_verdict_as_its_record(tmp_path: Path) -> None:
    """No disk has room for three checkpoints of this model."""
    model = "{model_type: llama, hidden_size: 65536, intermediate_size: 262144, num_hidden_layers: 400}"
    command = [sys.executable, "-m", "launch", "preflight", "attempt=3", "experiment=demo", f"model.config={model}"]
    variables = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    command.append(f"run_dir={tmp_path / 'run'}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=variables)
    record = json.loads((tmp_path / "run" / "exit" / "attempt-3-rank-0.json").read_text())
    assert (done.returncode, record["code"]) == (74, 74), done.stderr
    assert "checkpoint.keep + 1 checkpoints need" in record["reason"]
