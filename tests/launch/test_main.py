"""``python -m launch`` from its command line to its exit code; preparation and torchrun are played by a stand-in."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conf.compose import compose
from conf.schema import to_dict
from launch.torchrun import ROOT, child_environment

PLAYED = """
import json, os, sys
from pathlib import Path
from conf.exits import ExitRecord, write_rank_exit
with open(os.environ["FAKE_RECORD"], "a") as file:
    file.write(json.dumps(sys.argv[2:]) + "\\n")
run_dir = os.environ.get("CORRAL_STOP_FILE", "")
if sys.argv[2] == "data_prep":
    code = int(os.environ.get("FAKE_PREPARE", "0"))
else:
    code = int(os.environ.get("FAKE_TRAIN", "0"))
    ranks = next(int(word.partition("=")[2]) for word in sys.argv if word.startswith("--nproc-per-node="))
    for rank in range(ranks):
        record = ExitRecord(code, "played", 4, "hint", int(os.environ["CORRAL_ATTEMPT"]))
        write_rank_exit(Path(run_dir).parent, rank, record)
sys.exit(code)
"""

LAUNCH = (
    "import runpy, sys; sys.executable = sys.argv.pop(1); "
    "runpy.run_module('launch', run_name='__main__', alter_sys=True)"
)


class Launcher:
    def __init__(self, folder: Path) -> None:
        self.folder, self.record = folder, folder / "calls"
        (folder / "played.py").write_text(PLAYED)
        self.python = folder / "python"
        self.python.write_text(
            f'#!/bin/sh\n[ "$2" = launch.guard ] && exec {sys.executable} "$@"\n'
            f'exec {sys.executable} {folder}/played.py "$@"\n'
        )
        self.python.chmod(0o755)

    def __call__(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **child_environment(1), "FAKE_RECORD": str(self.record), **variables}
        command = [sys.executable, "-c", LAUNCH, str(self.python), *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self.record.read_text().splitlines()] if self.record.is_file() else []


@pytest.fixture
def launch(tmp_path: Path) -> Launcher:
    return Launcher(tmp_path)


def test_it_prepares_then_trains_with_the_same_overrides(launch: Launcher) -> None:
    arguments = ["experiment=demo", "cluster.gpus_per_node=2", "data.prepared='a corpus'", "name=x"]
    done = launch(*arguments)
    assert done.returncode == 0, done.stderr
    prepare, train = launch.calls()
    assert prepare == ["data_prep", *arguments]
    assert train[-len(arguments) :] == arguments
    assert {"--nproc-per-node=2", "launch.worker"} <= set(train)
    assert "ZeRO-2 on 2 processes" in done.stdout
    assert json.loads((launch.folder / "outputs" / "x" / "exit.json").read_text())["code"] == 0


def test_a_prepared_corpus_is_left_alone(launch: Launcher) -> None:
    (launch.folder / "corpus").mkdir()
    (launch.folder / "corpus" / "MANIFEST.json").write_text("{}")
    assert launch("experiment=demo", "data.prepared=corpus").returncode == 0
    assert [call[0] for call in launch.calls()] == ["torch.distributed.run"]


def test_a_failed_preparation_ends_it_with_its_code(launch: Launcher) -> None:
    assert launch("experiment=demo", FAKE_PREPARE="65").returncode == 65
    assert [call[0] for call in launch.calls()] == ["data_prep"]


@pytest.mark.parametrize("code", [65, 70, 71, 78])
def test_the_runs_code_is_the_launchers(launch: Launcher, code: int) -> None:
    done = launch("experiment=demo", FAKE_TRAIN=str(code))
    assert done.returncode == code
    assert f"ended with {code}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["experiment=demo", "optim.lrr=1"], 78, "optim.lr"),
        (["experiment=demo", "cluster.nodes=2"], 78, "cluster.kind=local"),
        (["experiment=demo", "run_dir=/proc/nowhere"], 73, "run_dir=/proc/nowhere"),
        (["experiment=demo", "cluster=slurm", "run_dir=/proc/nowhere"], 73, "run_dir=/proc/nowhere"),
        (["-m", "experiment=demo"], 78, "no key has several values"),
        (["settle", "experiment=demo"], 78, "attempt, restarts and world"),
    ],
)
def test_mistakes_get_one_sentence(launch: Launcher, arguments: list[str], code: int, sentence: str) -> None:
    if "cluster=slurm" in arguments:
        (launch.folder / "sbatch").write_text("#!/bin/sh\n")
        (launch.folder / "sbatch").chmod(0o755)
    done = launch(*arguments, PATH=f"{launch.folder}{os.pathsep}{os.environ['PATH']}")
    assert done.returncode == code, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [["cluster=local"], ["cluster=slurm"], ["begin"]])
def test_changed_settings_are_refused_before_a_queue(launch: Launcher, command: list[str]) -> None:
    """With the run's own sentence; a MANIFEST without its seal is a matter of the run."""
    (launch.folder / "sbatch").write_text("#!/bin/sh\ntouch submitted\n")
    (launch.folder / "sbatch").chmod(0o755)
    path = f"{launch.folder}{os.pathsep}{os.environ['PATH']}"
    folder = launch.folder / "outputs" / "demo" / "checkpoints" / "step-00000004"
    folder.mkdir(parents=True)
    manifest = json.dumps({"step": 4, "config": to_dict(compose(["experiment=demo", "optim.lr=1e-5"]))}).encode()
    (folder / "MANIFEST.json").write_bytes(manifest)
    (folder / "MANIFEST.sha256").write_text(f"{hashlib.sha256(manifest).hexdigest()}  MANIFEST.json\n")
    done = launch(*command, "experiment=demo", PATH=path)
    assert done.returncode == 78, done.stderr
    assert done.stderr == (
        "corral: resume.allow: since the checkpoint of step 4, settings changed that change what the run computes: "
        "optim.lr: 1e-05 -> 0.004 (the steps to come have another learning rate); set it back, or accept it with "
        "'resume.allow=[optim.lr]', or set another name or run_dir\n"
    )
    assert not launch.calls()
    assert not (launch.folder / "submitted").exists()
    assert not (launch.folder / "outputs" / "demo" / "logs").exists()
    for others in (("resume.allow=[optim.lr]",), ("optim.lr=1e-5",)):
        assert launch("begin", "experiment=demo", *others).returncode == 0
    (folder / "MANIFEST.json").write_bytes(manifest.replace(b"1e-05", b"3e-05"))
    assert launch("begin", "experiment=demo").returncode == 0


def test_a_sweep_gives_every_combination_its_own_folder(launch: Launcher) -> None:
    done = launch("-m", "experiment=demo", "optim.lr=1e-3,3e-3", "zero=1,2", "debug=fast")
    assert done.returncode == 0, done.stderr
    folders = [path.parent.name for path in launch.folder.glob("outputs/*/exit.json")]
    assert len(folders) == 4
    trained = [call for call in launch.calls() if call[0] == "torch.distributed.run"]
    assert [("optim.lr=1e-3" in call, "zero=1" in call) for call in trained] == [
        (True, True),
        (True, False),
        (False, True),
        (False, False),
    ]


def test_a_sweep_goes_on_after_a_failure_and_reports_it(launch: Launcher) -> None:
    done = launch("-m", "experiment=demo", "optim.lr=1e-3,3e-3", FAKE_TRAIN="70")
    assert done.returncode == 70
    assert len([call for call in launch.calls() if call[0] == "torch.distributed.run"]) == 2


def test_plan_is_a_table_of_80_columns(launch: Launcher) -> None:
    for experiment in ("demo", "alpaca_gpt2_full"):
        done = launch("plan", f"experiment={experiment}", "model=demo_llama")
        assert done.returncode == 0, done.stderr
        assert max(len(line) for line in done.stdout.splitlines()) <= 80, done.stdout
        assert "fits" in done.stdout
    assert not launch.calls(), "a plan starts nothing"


def test_plan_as_json(launch: Launcher) -> None:
    found = json.loads(launch("plan", "experiment=demo", "--json").stdout)
    assert found["fits"] is True
    assert set(found["stages"]) == {"0", "1", "2", "3"}


def test_plan_sweeps_and_resolves_what_is_auto(launch: Launcher) -> None:
    """70 B in full: no plan on one node, which the line says; stage 3 on more."""
    arguments = ["experiment=alpaca_llama3_8b_full", "model.path=meta-llama/Llama-3.1-70B", "cluster.gpus_per_node=8"]
    arguments += ["zero=auto", "model.recompute=auto", "batch.micro_size=auto", "--sweep", "nodes=1,8,64"]
    done = launch("plan", *arguments)
    assert done.returncode == 0, done.stderr
    head, one, *more = done.stdout.splitlines()
    assert "GPUs" in head
    assert "too little" in one
    assert [line.split()[:3] for line in more] == [["8", "64", "3"], ["64", "512", "3"]]
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    found = json.loads(launch("plan", *arguments, "--json").stdout)
    assert "gpu_memory_gib" in found["1"]["reason"]
    assert found["8"]["stage"] == 3
    assert not launch.calls(), "a plan starts nothing"


def test_a_sweep_without_values_says_how_to_write_it(launch: Launcher) -> None:
    done = launch("plan", "experiment=demo", "--sweep", "nodes")
    assert done.returncode == 78
    assert "--sweep nodes=1,8,64,512" in done.stderr


def test_plan_of_a_model_that_is_not_here_is_66(launch: Launcher) -> None:
    done = launch("plan", "model.path=nobody/nothing-here", "model.config=null", "model.init=pretrained")
    assert done.returncode == 66
    assert "nobody/nothing-here" in done.stderr


def test_where_and_begin_speak_to_scripts(launch: Launcher) -> None:
    folder = launch.folder / "outputs" / "demo"
    assert launch("where", "experiment=demo").stdout == f"{folder}\n"
    assert not folder.exists()
    assert launch("begin", "experiment=demo").stdout == f"0\n{folder}\n"


def test_the_launcher_never_imports_torch() -> None:
    code = (
        "import sys; sys.argv = ['launch', 'plan', 'experiment=demo']; import launch.__main__ as m; m.main(); "
        "import launch.guard, launch.node, launch.worker; "
        "print([name for name in ('torch', 'transformers', 'deepspeed') if name in sys.modules])"
    )
    environment = {**os.environ, **child_environment(1)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
