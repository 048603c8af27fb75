"""What the launcher says to SLURM, recorded by stand-ins for its clients, and a node's view of itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from conf.errors import ConfigError, Unavailable
from conf.safety.arguments import spelt_out
from conf.schema import RunConfig
from launch import node
from launch.slurm.submit import submit
from tests.launch.stand_ins import WHOLE, stand_ins

ODD = ["name=x", "a b", "[1, 2]", "quo\"te's", "$HOME", "*", "", "semi;colon", "new\nline"]


def test_a_job_is_tried_out_and_then_sent_unchanged(
    cfg: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = stand_ins(tmp_path, monkeypatch)
    assert submit(cfg, ODD) == {"train": "123"}
    _, tried, sent = (json.loads(line) for line in record.read_text().splitlines())
    assert tried[1][0] == "--test-only"
    assert sent[1][0] == "--parsable"
    assert tried[1][1:] == sent[1][1:]
    options, script, arguments = sent[1][1 : -len(ODD) - 1], sent[1][-len(ODD) - 1], sent[1][-len(ODD) :]
    assert arguments == ODD
    assert Path(script).read_text().startswith("#!/usr/bin/env bash")
    assert {"--nodes=2", "--gpus-per-node=8", "--partition=gpu", "--account=lab", "--time=12:00:00"} <= set(options)
    output = next(option.partition("=")[2] for option in options if option.startswith("--output="))
    assert Path(output).parent.is_dir(), "without the folder SLURM loses the log"


def test_a_secret_is_sent_in_a_file_for_its_user(
    cfg: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLURM shows the arguments of a job to everyone."""
    record, words = stand_ins(tmp_path, monkeypatch), ["name=x", "data.prepared=s3://me:typed-secret@host/b"]
    submit(cfg, words)
    assert "typed-secret" not in record.read_text()
    word = json.loads(record.read_text().splitlines()[-1])[1][-1]
    path = Path(word[1:])
    assert (word[0], path.parent) == ("@", Path(cfg.run_dir) / "logs")
    assert path.stat().st_mode & 0o777 == 0o600
    assert spelt_out([word]) == words


def test_without_gpus_in_slurm_the_processes_are_counted_in_the_environment(
    cfg: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = stand_ins(tmp_path, monkeypatch, nodes="cpu*|(null)|64|256000")
    submit(cfg, [])
    sent = json.loads(record.read_text().splitlines()[-1])
    assert sent[2] == "8"
    assert not any(option.startswith(("--gpus", "--exclusive", "--mem")) for option in sent[1])


@pytest.mark.parametrize(
    ("lines", "gpus", "options"),
    [
        (WHOLE, 8, ["--exclusive", "--mem=0"]),
        (WHOLE, 2, ["--cpus-per-task=48", "--mem=515750M"]),
        ("gpu|gpu:4(S:0,2),nic:2|64|512000\ngpu|gpu:8|256|2000000", 4, ["--cpus-per-task=64", "--mem=512000M"]),
        ("gpu|gpu:4|64|512000\ngpu|gpu:8|256|2000000", 8, ["--exclusive", "--mem=0"]),
        ("mix|gpu:a100:4,gpu:v100:4|64|512000", 8, ["--exclusive", "--mem=0"]),
        ("all*|gpu:2|16|64000\nlarge|gpu:8|256|2000000\nall*|(null)|64|512000", 2, ["--exclusive", "--mem=0"]),
        ("all*|(null)|64|512000\nlarge|gpu:8|256+|2000000+", 4, ["--cpus-per-task=128", "--mem=1000000M"]),
        ("small|gpu:2|1|4000", 1, ["--cpus-per-task=1", "--mem=2000M"]),
        ("gpu|gpu:4|64|512000", 8, ["--exclusive", "--mem=0"]),
    ],
)
def test_gpus_come_with_their_cpus_and_memory(
    cfg: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, gpus: int, options: list[str]
) -> None:
    record = stand_ins(tmp_path, monkeypatch, nodes=lines)
    submit(replace(cfg, cluster=replace(cfg.cluster, gpus_per_node=gpus)), [])
    sent = json.loads(record.read_text().splitlines()[-1])[1]
    at = sent.index(f"--gpus-per-node={gpus}")
    assert sent[at + 1 : at + 3] == options


def test_a_refusal_is_passed_on_and_nothing_is_sent(
    cfg: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = stand_ins(tmp_path, monkeypatch, refusal="invalid partition specified: gpu")
    with pytest.raises(ConfigError, match="invalid partition specified: gpu"):
        submit(cfg, [])
    assert "--parsable" not in record.read_text()


def test_a_silent_controller_is_not_the_users_mistake(
    cfg: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_ins(tmp_path, monkeypatch, refusal="Unable to contact slurm controller (connect failure)")
    with pytest.raises(Unavailable, match="cannot be reached"):
        submit(cfg, [])


def test_without_sbatch_one_sentence(cfg: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="sbatch is not on PATH"):
        submit(cfg, [])


def test_a_node_finds_its_place() -> None:
    environment = {"SLURM_NNODES": "2", "SLURM_NODEID": "1", "CORRAL_NPROC": "8", "CORRAL_HEAD": "10.0.0.1"}
    environment |= {"CORRAL_PORT": "15016", "SLURM_JOB_ID": "1"}
    found = node.torchrun_arguments(environment, ODD)
    assert found[-len(ODD) :] == ODD
    assert {"--nnodes=2", "--node-rank=1", "--nproc-per-node=8", "--master-addr=10.0.0.1"} <= set(found)
