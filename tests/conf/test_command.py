"""Command lines of commands that compose no config: their own keys, the folder of a run, help."""

from __future__ import annotations

from pathlib import Path

import pytest

from conf.command import own_keys_from_argv, run_dir_from_argv, whole_number
from conf.errors import ConfigError, MissingInput

KEYS = {"model": "folder (required)", "prompt": "one instruction"}


def test_own_keys_are_taken_byte_for_byte() -> None:
    argv = ["model=x", "prompt=a=b, [c] 'd'"]
    assert own_keys_from_argv(argv, command="train.chat", keys=KEYS) == {"model": "x", "prompt": "a=b, [c] 'd'"}


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["promt=x"], ["promt: unknown key; did you mean prompt? (keys of this command: model, prompt)"]),
        (["modle=x", "+prompts"], ["modle: unknown key; did you mean model?", "prompts: unknown key"]),
        (["--hepl"], ["--hepl: unknown option; did you mean --help?"]),
        (["--cfg", "all"], ["--cfg: got 'all'"]),
        (["--config-dir", "x"], ["--config-dir: unknown option"]),
    ],
)
def test_every_unknown_key_names_the_nearest(argv: list[str], expected: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        own_keys_from_argv(argv, command="train.chat", keys=KEYS)
    for line, part in zip(caught.value.problems, expected, strict=True):
        assert part in line


def test_help_and_the_keys_as_read(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        own_keys_from_argv(["model=x", "--help"], command="train.chat", keys=KEYS)
    text = capsys.readouterr().out
    assert (left.value.code, text.splitlines()[0]) == (0, "usage: python -m train.chat model=... [prompt=...]")
    assert "run_dir" not in text
    assert "KEY=VALUE" not in text
    with pytest.raises(SystemExit) as left:
        own_keys_from_argv(["model=x", "--cfg", "job"], command="train.chat", keys=KEYS)
    assert (left.value.code, capsys.readouterr().out) == (0, "model: x\n")


def test_a_run_is_found_whatever_its_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [f"run_dir={tmp_path}", "checkpoint=3"]
    how = {"checkpoint": "step"}
    assert run_dir_from_argv(argv, command="train.fingerprint", extra=how) == (tmp_path, {"checkpoint": "3"})
    with pytest.raises(MissingInput, match=r"holds no run\.yaml"):
        run_dir_from_argv([*argv, "--cfg=job"], command="train.fingerprint", extra=how)
    (tmp_path / "run.yaml").write_text("name: [broken\n")
    assert run_dir_from_argv(argv, command="train.fingerprint", extra=how)[0] == tmp_path
    with pytest.raises(SystemExit):
        run_dir_from_argv([*argv, "--cfg=job"], command="train.fingerprint", extra=how)
    assert capsys.readouterr().out == "name: [broken\n"


def test_a_run_must_be_named_and_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run_dir: missing"):
        run_dir_from_argv([], command="train.report")
    with pytest.raises(MissingInput, match="nowhere: no such folder"):
        run_dir_from_argv([f"run_dir={tmp_path}/nowhere"], command="train.report")
    with pytest.raises(ConfigError, match="checkpoint: unknown key"):
        run_dir_from_argv([f"run_dir={tmp_path}", "checkpoint=3"], command="train.report")


def test_whole_numbers() -> None:
    assert whole_number({}, "checkpoint") is None
    assert whole_number({"checkpoint": "30"}, "checkpoint") == 30
    for wrong in ("last", "-1", "1.0", ""):
        with pytest.raises(ConfigError, match=f"checkpoint={wrong}: not a whole number"):
            whole_number({"checkpoint": wrong}, "checkpoint")
