"""What the launcher says to SLURM, recorded by stand-ins for its clients, and a node's view of itself."""

from __future__ import annotations

import json
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from conf.compose import compose
from conf.errors import ConfigError, Unavailable
from conf.schema import RunConfig
from launch import node
from launch.slurm import submit

ODD = ["name=x", "a b", "[1, 2]", "quo\"te's", "$HOME", "*", "", "semi;colon", "new\nline"]

CLIENT = """#!{python}
import json, os, sys
name = os.path.basename(sys.argv[0])
with open({record!r}, "a") as file:
    file.write(json.dumps([name, sys.argv[1:], os.environ.get("CORRAL_NPROC")]) + "\\n")
if name == "sinfo":
    print({gres!r})
elif "--test-only" in sys.argv and {refusal!r}:
    sys.exit("sbatch: error: " + {refusal!r})
elif "--parsable" in sys.argv:
    print("123;cluster")
"""


@pytest.fixture
def cfg(tmp_path: Path) -> RunConfig:
    found = compose(["experiment=demo", "cluster=slurm", "cluster.partition=gpu", "cluster.account=lab"])
    return replace(found, run_dir=str(tmp_path / "run dir"))


def stand_ins(folder: Path, monkeypatch: pytest.MonkeyPatch, *, gres: str = "gpu:8", refusal: str = "") -> Path:
    record = folder / "calls.jsonl"
    for name in ("sbatch", "sinfo"):
        path = folder / name
        path.write_text(CLIENT.format(python=sys.executable, record=str(record), gres=gres, refusal=refusal))
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return record


def test_a_job_is_tried_out_and_then_sent_unchanged(
    cfg: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = stand_ins(tmp_path, monkeypatch)
    assert submit(cfg, ODD) == "123"
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


def test_without_gpus_in_slurm_the_processes_are_counted_in_the_environment(
    cfg: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = stand_ins(tmp_path, monkeypatch, gres="(null)")
    submit(cfg, [])
    sent = json.loads(record.read_text().splitlines()[-1])
    assert sent[2] == "8"
    assert not any(option.startswith("--gpus") for option in sent[1])


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


def test_a_node_finds_its_interface_and_its_place() -> None:
    assert node.own_address("127.0.0.1") == "127.0.0.1"
    assert node.interface_of("127.0.0.1") in [name for _, name in socket.if_nameindex()]
    assert node.interface_of("203.0.113.77") is None
    environment = {"SLURM_NNODES": "2", "SLURM_NODEID": "1", "CORRAL_NPROC": "8", "CORRAL_HEAD": "10.0.0.1"}
    environment |= {"CORRAL_PORT": "15016", "SLURM_JOB_ID": "1"}
    found = node.torchrun_arguments(environment, ODD)
    assert found[-len(ODD) :] == ODD
    assert {"--nnodes=2", "--node-rank=1", "--nproc-per-node=8", "--master-addr=10.0.0.1"} <= set(found)


def test_a_node_that_cannot_write_is_named(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    node.look_over(tmp_path, 1)
    with pytest.raises(Unavailable, match=f"node {socket.gethostname()} cannot write"):
        node.look_over(tmp_path / "absent", 1)
