"""Thirty secrets in fifteen places, and everything that the commands leave, print and start is searched for them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.end_to_end.commands import ROOT, environment, tiny_run

KEY = "Zq7Kd9Wm3"

VARIABLES = {
    "MY_SERVICE_TOKEN": f"planted-01-{KEY}",
    "DB_PASS": "planted-02",
    "GITHUB_PAT": f"planted-03-{KEY}",
    "SIGNING_KEY": f"planted-04-{KEY}/+=",
    "AZURE_SAS": f"sv=1&planted-05-{KEY}",
    "MYSQL_PWD": "planted-06",
    "HTTP_AUTH": "planted-07",
    "DATABASE_URL": "postgres://u:planted-08@db:5432/x",
    "HTTPS_PROXY_OF_SITE": "http://u:planted-09@proxy:3128",
    "WANDB_API_KEY": "planted10" * 5,  # 45 characters
    "COLOUR": "planted-11-colour",  # read by the config, whatever its name
    "PLACE": "planted-12-place",
    "SHELF": "planted-13-shelf",
}
"""Places 1 to 13: variables of the environment. Their values may stand in the environment of children, as the user put
them there."""
TYPED = {
    "a password with a slash": "planted-14/x",
    "a password with an at": "planted-15@y",
    "a quoted password": "planted-16%2Fz",
    "a password alone": "planted-17-alone",
    "token=": f"planted-18-{KEY}",
    "sig=": f"planted-19-{KEY}%3D",
    "X-Amz-Signature=": f"planted-20-{KEY}",
    "access_token=": f"planted-21-{KEY}",
    "GitHub": f"ghp_planted22{KEY}{KEY}",
    "GitLab": f"glpat-planted23-{KEY}",
    "Hugging Face": f"hf_planted24{KEY}",
    "Slack": f"xoxb-planted25-{KEY}",
    "AWS": "AKIAPLANTED26PLANTED",
    "OpenAI": f"sk-planted27-{KEY}-{KEY}",
    "Google": f"AIzaPlanted28{KEY}{KEY}{KEY}",
    "a web token": f"eyJplanted29.eyJplanted29.{KEY}",
    "in a yaml": "planted-30-yaml",
}
"""Places 14 to 30: words of the command line, and a yaml of the user's."""


MARK = re.compile(rb"(?i)planted-?\d\d|" + KEY.encode())
"""What all of them hold, quoted or not, whole or in part."""


def found_in(content: bytes) -> set[bytes]:
    return {*MARK.findall(content)}


@dataclass
class Watched:
    """What a command printed, and the arguments and environments of every process below it."""

    code: int
    output: str
    arguments: dict[int, list[str]] = field(default_factory=dict)
    environments: dict[int, dict[str, str]] = field(default_factory=dict)


def run(command: list[str], variables: Mapping[str, str], timeout: float = 240) -> Watched:
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env={**environment(), **variables}, **how)  # type: ignore[call-overload]
    seen = Watched(0, "")

    def look() -> None:
        me = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                for child in me.children(recursive=True):
                    seen.arguments[child.pid] = child.cmdline() or seen.arguments.get(child.pid, [])
                    seen.environments[child.pid] = child.environ()
            except psutil.Error:
                pass
            time.sleep(0.02)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        seen.output = process.communicate(timeout=timeout)[0]
    finally:
        process.kill()
        watcher.join()
    seen.code = process.returncode
    return seen


@dataclass
class Place:
    """A user's folders: what they wrote, and where commands write."""

    folder: Path
    variables: dict[str, str]

    def python(self, module: str, *words: str, **variables: str) -> Watched:
        done = run([sys.executable, "-m", module, *words], {**self.variables, **variables}, timeout=600)
        self.check(done)
        return done

    def check(self, done: Watched) -> None:
        """Nothing planted in what was printed and in arguments of children; in environments only what was there."""
        assert not found_in(done.output.encode()), (found_in(done.output.encode()), done.output)
        for words in done.arguments.values():
            assert not found_in("\0".join(words).encode()), words
        for variables in done.environments.values():
            own = {name: value for name, value in variables.items() if name not in self.variables}
            assert not found_in(repr(own).encode()), own

    def left(self) -> Iterator[tuple[Path, set[bytes]]]:
        """Files with a secret in their content or name, apart from what the user wrote."""
        for path in self.folder.rglob("*"):
            if "user" in path.relative_to(self.folder).parts:
                continue
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            if names := found_in(content + b"\0" + os.fsencode(path.name)):
                yield path, names


@pytest.fixture
def place(tmp_path: Path) -> Place:
    own, home, temporary = tmp_path / "user", tmp_path / "home", tmp_path / "tmp"
    for folder in (own, home, temporary, own / "experiment"):
        folder.mkdir()
    (own / "sitecustomize.py").write_text(
        "import fsspec\nfsspec.register_implementation('planted', 'tests.end_to_end.planted_driver.Planted')\n"
    )
    variables = {**VARIABLES, "HOME": str(home), "TMPDIR": str(temporary), "PYTHONPATH": f"{ROOT}{os.pathsep}{own}"}
    return Place(tmp_path, variables)


def arguments(place: Place, name: str) -> list[str]:
    """A run whose settings hold every secret that is typed or read from the environment."""
    folder, quoted = place.folder, TYPED["a quoted password"]
    copies = f"planted://me:{TYPED['a password with a slash']}@{folder}/copies?token={TYPED['token=']}"
    (folder / "user" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n"
        f"tracker:\n  project: p-{TYPED['GitLab']}\n"
        f"checkpoint:\n  copy_to: planted://me:{TYPED['in a yaml']}@{folder}/copies\n"
    )
    words = [word for word in tiny_run(folder, name) if not word.startswith(("tracker.wandb", "data.prepared"))]
    further = f"planted://:{TYPED['a password with an at']}@{folder}/corpus?sig={TYPED['sig=']}"
    further += f"&X-Amz-Signature={TYPED['X-Amz-Signature=']}"
    return [
        f"--config-dir={folder / 'user'}",
        "experiment=mine",
        *words,
        f"data.prepared={folder / 'corpus'}",
        "tracker.wandb=offline",
        f"tracker.group=g-{TYPED['GitHub']}-{TYPED['Hugging Face']}-{TYPED['Slack']}",
        f"checkpoint.copy_to='{copies}&access_token={TYPED['access_token=']}'",
        f"evaluation.sources.further='{further}'",
        f"+evaluation.sources.again='planted://me:{quoted}@{folder}/corpus?v=${{oc.env:SHELF}}&k={TYPED['AWS']}'",
        f"data.cache={folder}/tmp/cache",
        "schedule.max_steps=3",
    ]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_nothing_planted_leaves_a_run(place: Place) -> None:
    """Prepared, trained on two ranks with W&B offline, continued, reported, exported, asked, evaluated, verified."""
    run_dir, words = place.folder / "one", arguments(place, "one")
    two = ["cluster.gpus_per_node=2", "tracker.project=p-${oc.env:COLOUR}"]
    done = place.python("launch", *words, *two)
    assert done.code == 0, done.output
    assert any(word.startswith("@/proc/") for words in done.arguments.values() for word in words)
    assert not list(place.left())
    text = (run_dir / "run.yaml").read_text()
    for kept in ("project: p-${oc.env:COLOUR}", "v=${oc.env:SHELF}", "planted://[redacted]@"):
        assert kept in text, text
    # The variable's value has changed since, as a token's does, and no setting has.
    done = place.python("launch", *words, *two, "schedule.max_steps=5", COLOUR="planted-11-other")
    assert done.code == 0, done.output
    assert "schedule.max_steps: 3 -> 5" in done.output
    assert "tracker" not in done.output.partition("changed since")[2].partition("\n")[0]
    ended = f"run_dir={run_dir}"
    assert place.python("train.report", ended).code == 0
    assert place.python("train.export", ended).code == 0
    talk = [f"model={run_dir / 'export'}", f"prompt=Say {TYPED['OpenAI']}", "max_new_tokens=2"]
    for module, more in (("train.fingerprint", [ended]), ("train.chat", talk)):
        assert place.python(module, *more).code == 0, module
    refused = place.python("train.evaluate", ended, "max_rows=4", "generate_rows=0")
    assert refused.code == 78
    assert "evaluation.sources.again: run.yaml keeps no secrets" in refused.output
    assert place.python("train.evaluate", ended, "~evaluation.sources", "max_rows=4", "generate_rows=0").code == 0
    for module, more in (
        ("launch", ["plan"]), ("data_prep.preview", ["rows=1"]), ("data_prep.preview", [f"html={place.folder}/p.html"]),
        ("launch", ["where"]), ("train", ["--cfg", "job"]), ("train.verify", []),
    ):  # fmt: skip
        first, rest = (more, []) if module == "launch" else ([], more)
        done = place.python(module, *first, *words, "tracker.project=${oc.env:COLOUR}", *rest)
        assert done.code == 0, done.output
    assert not list(place.left())


@pytest.mark.slow
def test_nothing_planted_leaves_a_crash(place: Place) -> None:
    """A driver that quotes its password, a config with mistakes, and a defect with its traceback."""
    words = arguments(place, "two")
    assert place.python("data_prep", *words).code == 0
    password = TYPED["a password alone"]
    failing = f"evaluation.sources.further='planted://me:{password}@/x?fail=1&v={TYPED['OpenAI']}'"
    done = place.python("launch", *words, failing, "cluster.gpus_per_node=2")
    assert done.code == 69, done.output
    assert "the password '[redacted]' is not the one of this user" in done.output
    wrong = [f"optim.lr={TYPED['Google']}", f"optim.nothing={TYPED['a web token']}", f"{TYPED['AWS']}=1"]
    done = place.python("launch", *words, *wrong, "tracker.log_every=${oc.env:PLACE}")
    assert done.code == 78, done.output
    fault = "rank=1,step=2,point=step.before_update,action=raise"
    done = place.python("launch", *words, "cluster.gpus_per_node=2", "cluster.max_restarts=0", CORRAL_FAULTS=fault)
    assert done.code == 70, done.output
    assert "Traceback" in (place.folder / "two" / "logs" / "rank-1.log").read_text()
    assert not list(place.left())


def test_nothing_planted_leaves_a_preparation(place: Place) -> None:
    """The quick part: its records, its report, what it prints, and the sentences about mistakes."""
    words = arguments(place, "three")
    done = place.python("data_prep", *words, "data.sources.words.rows=60")
    assert done.code == 0, done.output
    assert "[redacted]" in (place.folder / "corpus" / "preparation.json").read_text()
    assert not list(place.left())
    done = place.python("train", *words, f"optim.lr={TYPED['Google']}", f"data.cache=/{TYPED['OpenAI']}/\x01")
    assert done.code == 78, done.output
