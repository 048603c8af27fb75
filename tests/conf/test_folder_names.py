"""Settings that name folders: what no folder, or no command line, can take is refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from conf.checks.folders import fault, unusable
from conf.command import take_run_dir
from conf.compose import compose
from conf.errors import ConfigError

WRONG = {
    " ": "empty; name a folder, such as outputs/mine",
    "\t": "empty; name a folder, such as outputs/mine",
    "-rf": "-rf begins with a dash, so commands would take it for an option; write ./-rf",
    "--config-dir": "--config-dir begins with a dash, so commands would take it for an option; write ./--config-dir",
    "x" * 300: f"{'x' * 40}... has 300 bytes, and a file system takes 255; choose a shorter name",
    "ä" * 128: f"{'ä' * 40}... has 256 bytes, and a file system takes 255; choose a shorter name",
    "d/" * 2000: f"{'d/' * 20}... has 4000 bytes, and a file system takes 3800; choose a shorter name",
    "a\nb": "'a\\nb' holds characters that cannot be shown; write it without them",
    "a\x00b": "'a\\x00b' holds characters that cannot be shown; write it without them",
    "a\x1b[2J": "'a\\x1b[2J' holds characters that cannot be shown; write it without them",
    "a\u202eb": "'a\\u202eb' holds characters that cannot be shown; write it without them",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_name_that_no_folder_can_have(text: str) -> None:
    assert fault(text) == WRONG[text]
    with pytest.raises(ConfigError) as caught:
        take_run_dir({"run_dir": text})
    assert caught.value.problems == [f"run_dir: {WRONG[text]}"]


@pytest.mark.parametrize("text", ["outputs/x", "./-rf", "/a b/c", "x" * 255, "s3://b/" + "x" * 200, "Läufe/1", "~/x"])
def test_names_that_folders_have(text: str) -> None:
    assert fault(text) == ""


@pytest.mark.parametrize("key", ["run_dir", "data.prepared", "data.cache", "checkpoint.copy_to"])
def test_every_setting_that_names_a_folder_is_judged(key: str) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: -rf begins with a dash"):
        compose([f"{key}=-rf"])
    with pytest.raises(ConfigError, match=f"^{key}: empty"):
        compose([f"{key}=' '"])


def test_a_name_that_is_a_folder_is_judged_too() -> None:
    with pytest.raises(ConfigError) as caught:
        compose([f"name={'n' * 300}"])
    assert [line.partition(":")[0] for line in caught.value.problems] == ["run_dir", "name"]
    assert list(unusable({"run_dir": None, "data": {}})) == []


def test_a_run_dir_that_is_not_there_is_told_as_before(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run_dir: missing"):
        take_run_dir({"run_dir": ""})
