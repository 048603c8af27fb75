"""A second user of the machine waits at the places that Corral writes to: refused by name, nothing of ours touched.

The second user is real: what waits was made by processes of another user id. The first one is root, and in one test a
third user, because everything may belong to root.
"""

from __future__ import annotations

import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conf.errors import BadData, PermissionDenied
from data_prep.corpus.staging import local_folder, stage
from tests.data_prep.corpus.test_shards import rows, write
from tests.end_to_end.commands import call, tiny_run

STRANGER, VICTIM = 54321, 54322

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """As /tmp: everyone makes files in it. pytest's own folders let nobody else in, so they are opened."""
    path = tmp_path / "shared"
    path.mkdir()
    path.chmod(0o1777)
    for above in path.parents[:4]:
        above.chmod(above.stat().st_mode | 0o011)
    return path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Files of the user's."""
    path = tmp_path / "home"
    (path / ".ssh").mkdir(parents=True)
    for name in ("metrics.jsonl", ".bashrc", ".ssh/authorized_keys", "MANIFEST.json", "lock"):
        (path / name).write_text(f"mine: {name}\n")
    return path


def stranger(script: str, folder: Path) -> None:
    """Run ``script`` in ``folder`` as the second user."""
    subprocess.run(["/bin/sh", "-euc", script], cwd=folder, user=STRANGER, group=STRANGER, extra_groups=[], check=True)


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def as_victim(task: Callable[[], Any]) -> Any:
    """What ``task`` gives or raises in a process of a third user."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setresgid(VICTIM, VICTIM, VICTIM)
            os.setresuid(VICTIM, VICTIM, VICTIM)
            found = task()
        except BaseException as error:
            found = error
        os.write(writer, pickle.dumps(found))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        found = pickle.loads(stream.read())
    os.waitpid(child, 0)
    return found


RUNS = {
    "a link": "ln -s {home} run",
    "a link to nowhere": "ln -s {home}/new run",
    "a link above": "ln -s {home} out",
    "a folder": "mkdir run; chmod 777 run; ln -s {home}/metrics.jsonl run/metrics.jsonl; ln -s {home}/lock run/lock",
}


@pytest.mark.parametrize("waiting", RUNS)
@pytest.mark.parametrize("command", ["train", "launch"])
def test_a_run_dir_of_a_stranger(tmp_path: Path, shared: Path, home: Path, waiting: str, command: str) -> None:
    if command == "launch" and waiting not in ("a link", "a folder"):
        pytest.skip("the same rule")
    stranger(RUNS[waiting].format(home=home), shared)
    before = content(home)
    run_dir = shared / ("out/run" if waiting == "a link above" else "run")
    code, output = call(command, *tiny_run(tmp_path, "own"), f"run_dir={run_dir}")
    assert code == 77, output
    assert f"corral: run_dir: {shared}/{'out' if waiting == 'a link above' else 'run'} " in output, output
    assert f"user {STRANGER}" in output
    assert "Traceback" not in output
    assert content(home) == before


@pytest.mark.parametrize(
    "waiting", ["ln -s {home} corpus", "mkdir corpus; chmod 777 corpus; ln -s {home} corpus/.work"]
)
def test_a_corpus_of_a_stranger_is_not_written(tmp_path: Path, shared: Path, home: Path, waiting: str) -> None:
    stranger(waiting.format(home=home), shared)
    before = content(home)
    code, output = call("data_prep", *tiny_run(tmp_path, "own"), f"data.prepared={shared / 'corpus'}")
    assert code == 77, output
    assert f"corral: data.prepared: {shared}/corpus " in output
    assert f"user {STRANGER}" in output
    assert content(home) == before


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    """A corpus behind a URL."""
    root = tmp_path / "bucket"
    (root / "tokenizer").mkdir(parents=True)
    (root / "tokenizer" / "tokenizer.json").write_text("{}")
    write(root, {"a/train": rows(20)}, shard_rows=20, batch_rows=10)
    return root


CACHES = {
    "the root": "mkdir {root}; chmod 777 {root}",
    "a link": "ln -s {home} {root}",
    "filled": "mkdir -p {folder}/a/train {folder}/tokenizer; chmod -R 777 {root}; ln -s {home}/.bashrc "
    "{folder}/MANIFEST.json; ln -s {home}/.ssh/authorized_keys {folder}/tokenizer/tokenizer.json",
}


@pytest.mark.parametrize("waiting", CACHES)
def test_a_cache_of_a_stranger(
    shared: Path, home: Path, bucket: Path, waiting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was filled before the user came, with links to the user's own files."""
    monkeypatch.setattr("tempfile.tempdir", str(shared))
    url, root = f"file://{bucket}", shared / f"corral-{VICTIM}"
    folder = root / local_folder(url, None).name
    stranger(CACHES[waiting].format(home=home, root=root, folder=folder), shared)
    for path in (home, *home.rglob("*"), bucket, *bucket.rglob("*")):
        os.lchown(path, VICTIM, VICTIM)
    before = content(home)
    found = as_victim(lambda: stage(url, local_folder(url, None)))
    assert isinstance(found, PermissionDenied), found
    assert str(found).startswith(f"data.cache: {root} ")
    assert f"user {STRANGER}" in str(found)
    assert content(home) == before
    found = as_victim(lambda: stage(url, shared / "mine" / "x"))  # as the message says
    assert found == shared / "mine" / "x"
    assert oct((shared / "mine" / "x").stat().st_mode & 0o777) == "0o700"


def test_a_staged_corpus_is_compared_as_a_whole(bucket: Path, tmp_path: Path) -> None:
    """A chat template that was altered, or added, after it was fetched."""
    cache = stage(f"file://{bucket}", tmp_path / "cache")
    words = cache / "tokenizer"
    (words / "tokenizer.json").write_text("[]")
    (words / "chat_template.jinja").write_text("{{ evil }}")
    stage(f"file://{bucket}", cache, verify="sizes")
    assert [each.name for each in words.iterdir()] == ["tokenizer.json"]
    assert (words / "tokenizer.json").read_text() == "{}"


@pytest.mark.parametrize("name", ["../x.arrow", "/etc/passwd", "a/../../x"])
def test_a_local_manifest_names_no_file_outside(bucket: Path, name: str) -> None:
    from data_prep.corpus.shards import open_corpus

    manifest = bucket / "MANIFEST.json"
    text = manifest.read_text()
    manifest.write_text(text.replace("a/train/shard-00000.arrow", name))
    assert manifest.read_text() != text
    with pytest.raises(BadData, match=r"MANIFEST\.json names a file outside of its corpus: "):
        open_corpus(bucket)
