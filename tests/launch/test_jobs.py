"""Which jobs a run or a sweep becomes, with which options, and on which code."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conf.errors import ConfigError, MissingInput, Unavailable
from conf.safety.arguments import spelt_out
from conf.schema import RunConfig
from launch.provenance import changed, provenance
from launch.run_dir import note_launch
from launch.slurm.array import submit_array
from launch.slurm.jobs import note_job, noted
from launch.slurm.options import environment, of_training
from launch.slurm.snapshot import snapshot
from launch.slurm.submit import shown, steps, submit
from tests.launch.stand_ins import stand_ins


def with_cluster(cfg: RunConfig, **settings: Any) -> RunConfig:
    return replace(cfg, cluster=replace(cfg.cluster, **settings))


def unprepared(cfg: RunConfig, folder: Path) -> RunConfig:
    return replace(cfg, data=replace(cfg.data, prepared=str(folder / "absent")))


def sent(record: Path) -> list[list[str]]:
    lines = (json.loads(line) for line in record.read_text().splitlines())
    return [words for _, words, _ in lines if "--parsable" in words]


def option(words: list[str], name: str) -> str:
    return next((word.partition("=")[2] for word in words if word.startswith(f"--{name}=")), "")


def test_an_absent_corpus_is_prepared_by_a_job_of_its_own(
    cfg: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = stand_ins(tmp_path, monkeypatch)
    cfg = with_cluster(unprepared(cfg, tmp_path), cpu_partition="cpu")
    cfg = replace(cfg, data=replace(cfg.data, num_proc=6), evaluation=replace(cfg.evaluation, at_end=False))
    assert submit(cfg, ["name=x"]) == {"prepare": "123", "train": "124", "evaluate": "125"}
    prepare, train, evaluate = sent(record)
    assert (option(prepare, "partition"), option(prepare, "cpus-per-task")) == ("cpu", "6")
    assert not any(word.startswith(("--gpus", "--exclusive", "--dependency")) for word in prepare)
    assert (option(train, "dependency"), option(evaluate, "dependency")) == ("afterok:123", "afterok:124")
    assert "--kill-on-invalid-dep=yes" in train
    assert "--kill-on-invalid-dep=yes" in evaluate
    assert option(evaluate, "gpus-per-node") == "1"
    assert evaluate[-1].startswith("run_dir=")
    assert prepare[-1] == train[-1] == "name=x"
    scripts = [Path(word).name for words in (prepare, train, evaluate) for word in words if word.endswith(".sh")]
    assert scripts == ["data_prep.sh", "train.sh", "evaluate.sh"]
    assert list(noted(Path(cfg.run_dir) / "logs")) == [("123", "prepare"), ("124", "train"), ("125", "evaluate")]


def test_a_refused_job_of_a_chain_keeps_the_others_back(
    cfg: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = stand_ins(tmp_path, monkeypatch, refusal="invalid partition")
    with pytest.raises(ConfigError, match="invalid partition"):
        submit(unprepared(cfg, tmp_path), [])
    assert sent(record) == []


def test_the_lead_of_the_signal_is_handed_over(cfg: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = stand_ins(tmp_path, monkeypatch)
    submit(with_cluster(cfg, signal_seconds=120), [])
    assert option(sent(record)[0], "signal") == "B:USR1@120"
    with pytest.raises(ConfigError, match="the time limit is 150 s"):
        submit(with_cluster(cfg, signal_seconds=120, time="2:30"), [])
    assert len(sent(record)) == 1


@pytest.mark.parametrize(
    ("settings", "expected", "absent"),
    [
        ({}, ["--exclusive", "--mem=0", "--nodes=2"], []),
        ({"exclusive": False, "mem": "100G"}, ["--mem=100G"], ["--exclusive", "--mem=0"]),
        ({"exclusive": True, "gpus_per_node": 1}, ["--exclusive", "--mem=0"], ["--cpus-per-task=24"]),
        ({"cpus_per_gpu": 12}, ["--cpus-per-task=96", "--exclusive"], []),
        ({"qos": "high", "constraint": "ib", "reservation": "r1"}, ["--qos=high", "--constraint=ib"], []),
        ({"mail": "me@site"}, ["--mail-user=me@site", "--mail-type=END,FAIL,REQUEUE"], []),
        ({"min_nodes": 1}, ["--nodes=1-2"], ["--nodes=2"]),
        ({"sbatch": ["--comment=a b", "--nice"]}, ["--comment=a b", "--nice"], []),
    ],
)
def test_a_sites_settings_become_options(
    cfg: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    expected: list[str],
    absent: list[str],
) -> None:
    record = stand_ins(tmp_path, monkeypatch)
    submit(with_cluster(cfg, **settings), [])
    words = sent(record)[0]
    assert set(expected) <= set(words)
    assert not set(absent) & set(words)


def test_more_nodes_at_least_than_at_most_is_a_mistake(cfg: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.min_nodes=3 and cluster\.nodes=2"):
        of_training(with_cluster(cfg, min_nodes=3).cluster, [], 60)


def test_a_sites_shell_reaches_the_scripts(cfg: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "env").touch()
    settings = {"setup": ["module load cuda", "ulimit -n 9999"], "env_file": str(tmp_path / "env")}
    found = environment(with_cluster(cfg, container=["apptainer", "exec", "a.sif"], srun=["--x=1"], **settings).cluster)
    assert found["CORRAL_SETUP"] == "module load cuda\nulimit -n 9999"
    assert found["CORRAL_ENV_FILE"] == str(tmp_path / "env")
    assert found["CORRAL_CONTAINER"] == "apptainer exec a.sif"
    assert found["CORRAL_SRUN_ARGS"] == "--x=1"
    with pytest.raises(MissingInput, match=r"cluster\.env_file"):
        environment(with_cluster(cfg, env_file=str(tmp_path / "none")).cluster)
    with pytest.raises(ConfigError, match=r"cluster\.container: 'apptainer exec' is no single word"):
        environment(with_cluster(cfg, container=["apptainer exec"]).cluster)


def test_what_would_be_sent_is_shown_and_nothing_is_made(
    cfg: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = stand_ins(tmp_path, monkeypatch)
    words = ["name=x", "data.prepared=s3://me:typed-secret@host/b"]
    said = shown(steps(unprepared(cfg, tmp_path), words))
    prepare, train = said.splitlines()
    assert "data_prep.sh" in prepare
    assert "--dependency=afterok:JOB_1 --kill-on-invalid-dep=yes" in train
    assert "CORRAL_SIGNAL_SECONDS=300" in train
    assert "typed-secret" not in said
    assert sent(record) == []
    assert not Path(cfg.run_dir).exists()


def runs_of(cfg: RunConfig, count: int = 3) -> list[tuple[RunConfig, list[str]]]:
    return [(replace(cfg, run_dir=f"{cfg.run_dir}-{n}"), ["experiment=demo", f"seed={n}"]) for n in range(count)]


def test_a_sweep_is_one_array(cfg: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = stand_ins(tmp_path, monkeypatch)
    runs = runs_of(with_cluster(unprepared(cfg, tmp_path), at_once=2))
    found = submit_array(runs)
    assert found
    prepare, array = sent(record)
    assert "data_prep.sh" in prepare[-3], "all of them read one corpus"
    assert option(array, "array") == "0-2%2"
    assert option(array, "dependency") == "afterok:123"
    assert array[-1].endswith("/train.sh"), "its tasks have their arguments in files"
    folder = Path(found["log"]).parent
    for task, (run, words) in enumerate(runs):
        path = folder / f".arguments-of-job-{task}"
        assert path.stat().st_mode & 0o777 == 0o600
        assert spelt_out([f"@{path}"]) == words
        assert list(noted(Path(run.run_dir) / "logs")) == [("123", "prepare"), (f"124_{task}", "train")]


def test_a_sweep_over_sizes_is_no_array(cfg: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = stand_ins(tmp_path, monkeypatch)
    first, second = runs_of(cfg, 2)
    assert submit_array([first, (with_cluster(second[0], nodes=4), second[1])]) is None
    assert sent(record) == []


def test_a_job_is_noted_once_and_a_cut_line_hides_no_other(tmp_path: Path) -> None:
    note_job(tmp_path, "1", "train")
    note_job(tmp_path, "1", "train")
    with (tmp_path / "jobs.jsonl").open("a") as file:
        file.write('{"job": "2", "wh')
    note_job(tmp_path, "3_4", "evaluate")
    assert list(noted(tmp_path)) == [("1", "train"), ("3_4", "evaluate")]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A small clone with one commit."""
    folder = tmp_path / "clone"
    for name in ("train/a.py", "tests/b.py", ".gitignore"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("ignored\n")
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(folder)]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    return folder


def test_a_snapshot_holds_the_code_as_it_is_and_knows_where_it_is_from(repository: Path, tmp_path: Path) -> None:
    (repository / "train" / "a.py").write_text("changed")
    (repository / "train" / "new.py").write_text("untracked")
    (repository / "ignored").write_text("a venv")
    copy = snapshot(tmp_path / "run", repository)
    assert sorted(str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()) == [
        ".gitignore",
        ".origin.json",
        "train/a.py",
        "train/new.py",
    ]
    assert (copy / "train" / "a.py").read_text() == "changed"
    assert not changed(provenance(repository), provenance(copy))
    assert snapshot(tmp_path / "run", repository) == copy
    (repository / "train" / "a.py").write_text("changed again")
    assert snapshot(tmp_path / "run", repository) != copy
    shutil.rmtree(repository / ".git")
    with pytest.raises(Unavailable, match=r"cluster\.snapshot=true: git cannot list"):
        snapshot(tmp_path / "run", repository)


def test_a_restart_with_other_code_says_so(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = tmp_path / "logs"
    note_launch(logs, repository)
    note_launch(logs, repository)
    assert capsys.readouterr().err == ""
    (repository / "train" / "a.py").write_text("edited while the job waited")
    note_launch(logs, repository)
    assert "ran other code: other uncommitted changes" in capsys.readouterr().err
    with (logs / "launches.jsonl").open("a") as file:
        file.write('{"cut')
    note_launch(logs, repository)
    assert capsys.readouterr().err == "", "the start before is the last whole line"


def test_what_changed_between_two_starts_is_named() -> None:
    before = {"commit": "a" * 40, "diff_sha256": None, "python": "3.11.2", "versions": {"torch": "2.12"}}
    now = {**before, "commit": "b" * 40, "versions": {"torch": "2.13"}}
    assert changed(before, before) == ""
    assert changed(before, now) == "commit aaaaaaaaaaaa, now bbbbbbbbbbbb; torch 2.12, now 2.13"
