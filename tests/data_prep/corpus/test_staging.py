"""A corpus behind a URL: fetched once by real processes, whole after a kill, and every way it can fail is named."""

from __future__ import annotations

import errno
import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from conf.durable import xxh3_of
from conf.errors import (
    BadData,
    CannotCreate,
    ConfigError,
    CorralError,
    MissingInput,
    PermissionDenied,
    StorageError,
    Unavailable,
)
from data_prep.corpus.identity import corpus_path
from data_prep.corpus.manifest import MANIFEST, TOKENIZER, entry_of, files_below
from data_prep.corpus.prepared import open_at, open_prepared
from data_prep.corpus.shards import open_corpus
from data_prep.corpus.staging import stage
from data_prep.prepare import prepare
from launch.prepare import is_prepared
from tests.data_prep.corpus.test_shards import rows, write
from tests.data_prep.made import config

# stage() in a process of its own, over a file system that notes what it fetches and is slow in the middle of it.
CHILD = """
import sys, time, fsspec
from pathlib import Path
from fsspec.implementations.local import LocalFileSystem
from data_prep.corpus.staging import stage

source, target, log, seconds = sys.argv[1:]

class Noted(LocalFileSystem):
    protocol = "noted"
    @classmethod
    def _strip_protocol(cls, path):
        return path.removeprefix("noted://")
    def get_file(self, rpath, lpath, **kwargs):
        with open(log, "a") as file:
            file.write(rpath.removeprefix(source + "/") + "\\n")
        content = Path(rpath).read_bytes()
        with open(lpath, "wb") as file:
            file.write(content[: len(content) // 2])
            file.flush()
            time.sleep(float(seconds))
            file.write(content[len(content) // 2 :])

fsspec.register_implementation("noted", Noted)
stage("noted://" + source, Path(target))
"""

CONTENT = {"a/train": rows(100), "b/train": rows(80, 1), "b/validation": rows(20, 2)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A corpus of ten shards and three files of lengths in two sources, with a tokenizer."""
    root = tmp_path / "bucket" / "corpus"
    (root / "tokenizer").mkdir(parents=True)
    (root / "tokenizer" / "tokenizer.json").write_text("{}")
    wrote(root, {"a/train": rows(100), "b/train": rows(80, 1), "b/validation": rows(20, 2)})
    return root


def wrote(root: Path, rows_of: dict[str, Any]) -> None:
    """The corpus of ``rows_of``, whose MANIFEST has the files of the tokenizer, as preparation writes it."""
    write(root, rows_of, shard_rows=20, batch_rows=10)
    manifest = json.loads((root / MANIFEST).read_text())
    manifest["tokenizer"]["files"] = [entry_of(each, root) for each in files_below(root / TOKENIZER)]
    (root / MANIFEST).write_text(json.dumps(manifest))


def hashed(root: Path) -> list[str]:
    """What the MANIFEST names with a hash."""
    found = [*root.rglob("*.arrow"), *root.rglob("*.npy"), *root.rglob("tokenizer.json")]
    return sorted(path.relative_to(root).as_posix() for path in found)


def content(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(root).as_posix(): xxh3_of(path) for path in files}


def url(root: Path) -> str:
    return f"file://{root}"


def flip(path: Path) -> None:
    changed = bytearray(path.read_bytes())
    changed[len(changed) // 2] ^= 1
    path.write_bytes(changed)


def start(source: Path, target: Path, log: Path, seconds: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CHILD, str(source), str(target), str(log), str(seconds)])


def test_the_processes_of_a_node_fetch_every_file_once(source: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    children = [start(source, tmp_path / "cache", log, 0.02) for _ in range(3)]
    assert [child.wait(timeout=60) for child in children] == [0, 0, 0]
    assert sorted(log.read_text().split()) == hashed(source)
    assert content(tmp_path / "cache") == content(source)
    assert open_corpus(tmp_path / "cache").split("train")["a"].rows == 100


def test_killed_in_the_middle_and_started_again_fetches_only_the_rest(source: Path, tmp_path: Path) -> None:
    log, cache = tmp_path / "log", tmp_path / "cache"
    child = start(source, cache, log, 0.4)
    deadline = time.monotonic() + 60
    while len(hashed(cache)) < 8 or not list(cache.rglob("*.part")):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    finished = hashed(cache)
    assert 8 <= len(finished) < len(hashed(source))
    with pytest.raises(MissingInput, match="unfinished"):
        open_corpus(cache)
    log.unlink()
    assert start(source, cache, log, 0).wait(timeout=60) == 0
    assert sorted(log.read_text().split()) == sorted({*hashed(source)} - {*finished})
    assert content(cache) == content(source)


def test_a_staged_corpus_is_left_alone_and_mended(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    stage(url(source), cache)
    first = {path: path.stat().st_ino for path in cache.rglob("*.arrow")}
    capsys.readouterr()
    stage(url(source), cache)
    assert {path: path.stat().st_ino for path in first} == first
    assert capsys.readouterr().err == ""
    damaged = cache / "b/train/shard-00001.arrow"
    flip(damaged)
    stage(url(source), cache, verify="sizes")
    assert damaged.stat().st_ino == first[damaged]
    stage(url(source), cache)
    assert "b/train/shard-00001.arrow is not what its MANIFEST says" in capsys.readouterr().err
    assert {path for path, inode in first.items() if path.stat().st_ino != inode} == {damaged}
    assert content(cache) == content(source)


def test_another_corpus_under_the_same_url_replaces_the_old(source: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    stage(url(source), cache)
    kept = (cache / "b/train/shard-00000.arrow").stat().st_ino
    other = [([token + 1 for token in ids], mask) for ids, mask in CONTENT["a/train"]]
    wrote(source, {**CONTENT, "a/train": other})
    stage(url(source), cache, verify="sizes")
    assert content(cache) == content(source)
    assert (cache / "b/train/shard-00000.arrow").stat().st_ino == kept


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        ("lengths", BadData, r"corpus/a/train/lengths\.npy is damaged: its hash is not the one in the MANIFEST"),
        ("flip", BadData, r"corpus/a/train/shard-00002\.arrow is damaged: its hash is not the one in the MANIFEST"),
        ("cut", BadData, r"corpus/a/train/shard-00002\.arrow has \d+ bytes, its MANIFEST says \d+"),
        ("remove", MissingInput, r"file://.*corpus/a/train/shard-00002\.arrow is not there"),
        ("outside", BadData, r"corpus/MANIFEST\.json names a file outside of its corpus: \.\./x\.arrow"),
        ("manifest", BadData, r"file://.*corpus/MANIFEST\.json cannot be used"),
        ("tokenizer", MissingInput, r"corpus/tokenizer/tokenizer.json is not there; correct the URL"),
        ("unfinished", MissingInput, r"corpus/MANIFEST\.json is not there; correct the URL"),
    ],
)
def test_what_is_wrong_at_the_url_is_named(
    source: Path, tmp_path: Path, damage: str, kind: type[CorralError], message: str
) -> None:
    shard, manifest = source / "a/train/shard-00002.arrow", source / "MANIFEST.json"
    good = content(source)
    backup = shutil.copytree(source, tmp_path / "backup")
    if damage == "flip":
        flip(shard)
    elif damage == "lengths":
        flip(source / "a/train/lengths.npy")
    elif damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-8])
    elif damage == "remove":
        shard.unlink()
    elif damage == "outside":
        entry = json.loads(manifest.read_text())
        entry["sources"]["a"]["splits"]["train"]["shards"][0]["file"] = "../x.arrow"
        manifest.write_text(json.dumps(entry))
    elif damage == "manifest":
        manifest.write_text("<html>")
    elif damage == "tokenizer":
        shutil.rmtree(source / "tokenizer")
    else:
        manifest.unlink()
    with pytest.raises(kind, match=message):
        stage(url(source), tmp_path / "cache")
    assert not (tmp_path / "cache" / "MANIFEST.json").exists()
    shutil.rmtree(source)
    backup.rename(source)
    assert content(stage(url(source), tmp_path / "cache")) == good


def test_another_key_may_name_a_url(source: Path, tmp_path: Path) -> None:
    there = open_at(url(source), str(tmp_path), key="evaluation.sources.x")
    assert there.split("validation")["b"].rows == open_at(str(source), None).split("validation")["b"].rows
    with pytest.raises(MissingInput, match=r"^evaluation\.sources\.x: file://.*no/MANIFEST\.json is not there"):
        open_at(url(tmp_path / "no"), str(tmp_path), key="evaluation.sources.x")


def test_a_process_stages_a_url_once(source: Path, tmp_path: Path) -> None:
    """Evaluations open their corpora anew, on every rank."""
    with mock.patch("data_prep.corpus.prepared.stage", wraps=stage) as staging:
        rows = [open_at(url(source), str(tmp_path), verify="sizes").split("validation")["b"].rows for _ in range(3)]
    assert staging.call_count == 1
    assert rows == [open_at(str(source), None).split("validation")["b"].rows] * 3


class Broken(LocalFileSystem):  # type: ignore[misc]
    """Fails as a driver may, once a file is fetched."""

    protocol = "broken"
    error: Exception = RuntimeError("x")

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("broken://")

    def get_file(self, rpath: str, lpath: str, **kwargs: Any) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StorageError, "data.cache: the disk is full"),
        (PermissionError("Access Denied"), PermissionDenied, r"may not be read \(Access Denied\)"),
        (RuntimeError("connection lost"), Unavailable, r"corpus/\S+ cannot be read \(RuntimeError: connection lost\)"),
    ],
)
def test_what_a_driver_raises_has_a_name(
    source: Path, tmp_path: Path, error: Exception, kind: type[CorralError], message: str
) -> None:
    fsspec.register_implementation("broken", Broken, clobber=True)
    Broken.error = error
    with pytest.raises(kind, match=message):
        stage(f"broken://{source}", tmp_path / "cache")


def test_a_missing_driver_an_unknown_protocol_and_a_disk_that_is_too_small(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("s3fs") is None:
        with pytest.raises(Unavailable, match=r"s3://b/c needs a package that is not installed: Install s3fs"):
            stage("s3://b/c", tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"nosuch://b/c cannot be opened: Protocol not known: nosuch"):
        stage("nosuch://b/c", tmp_path / "cache")
    (tmp_path / "file").touch()
    with pytest.raises(CannotCreate, match=r"data\.cache: cannot create"):
        stage(url(source), tmp_path / "file" / "cache")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("data_prep.corpus.staging.shutil.disk_usage", lambda path: usage(1, 1, 1))
    with pytest.raises(StorageError, match=r"data\.cache: .* has 0\.0 GB free and the corpus needs"):
        stage(url(source), tmp_path / "cache")


def test_a_run_reads_the_copy_and_preparation_never_writes_to_a_url(source: Path, tmp_path: Path) -> None:
    leaf = {"format": "alpaca", "path": "x.json"}
    cfg = config({"a": leaf}, url(source), cache=str(tmp_path / "cache"))  # type: ignore[arg-type]
    assert corpus_path(cfg).parent == tmp_path / "cache"
    assert is_prepared(cfg)  # launch leaves it to training to fetch and to judge
    corpus = open_prepared(cfg)
    assert corpus.path == corpus_path(cfg)
    assert content(corpus.path) == content(source)
    with pytest.raises(ConfigError, match=r"data\.prepared: file://.* is a URL, which is only read"):
        prepare(cfg, argv=[])
