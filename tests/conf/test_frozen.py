"""run.yaml: what is saved is what is loaded, and a bad one is named."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.compose import compose, config_of_run, load, save, to_yaml
from conf.errors import ConfigError, MissingInput
from conf.schema import to_dict, validate


@pytest.fixture(scope="module")
def demo() -> dict[str, Any]:
    return to_dict(compose(["experiment=demo"]))


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}", fullmatch=True)
FLOATS = st.floats(min_value=1e-12, max_value=1e12)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=20)


@settings(max_examples=100, deadline=None)
@given(NAMES, FLOATS, TEXT)
def test_save_and_load_give_the_same_config_back(
    tmp_path_factory: pytest.TempPathFactory, demo: dict[str, Any], name: str, lr: float, path: str
) -> None:
    raw = copy.deepcopy(demo)
    raw |= {"name": name, "run_dir": path}
    raw["optim"]["lr"] = lr
    raw["data"]["sources"]["words"]["path"] = path
    cfg = validate(raw)
    file = tmp_path_factory.mktemp("run") / "deep" / "run.yaml"
    save(cfg, file)
    assert load(file) == cfg
    assert json.loads(json.dumps(to_dict(cfg))) == to_dict(cfg)
    assert [each.name for each in file.parent.iterdir()] == ["run.yaml"]


def test_frozen_text_is_quoted_where_readers_differ() -> None:
    text = to_yaml(compose(["name=1e3"]))
    assert "name: '1e3'" in text
    assert yaml.safe_load(text)["optim"]["lr"] == 2e-5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: [", "cannot be read as yaml"),
        ("- 1\n", "holds no config"),
        ("", "holds no config"),
        ("nmae: x\n", "nmae: unknown key"),
    ],
)
def test_a_bad_run_yaml_is_named(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "run.yaml")
    assert all(line.startswith(str(tmp_path / "run.yaml")) for line in caught.value.problems)
    assert expected in str(caught.value)


def test_a_run_yaml_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=r"is not there; is .* the folder of a run"):
        load(tmp_path / "no" / "run.yaml")


def test_config_of_a_run_moves_with_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(compose(["experiment=demo"]), tmp_path / "run.yaml")
    argv = [f"run_dir={tmp_path}", "checkpoint=7", "evaluation.max_rows=0"]
    cfg, own = config_of_run(argv, command="train.evaluate", extra={"checkpoint": "step"})
    assert (cfg.run_dir, cfg.evaluation.max_rows, own) == (str(tmp_path), 0, {"checkpoint": "7"})
    with pytest.raises(SystemExit):
        config_of_run([*argv, "--cfg=job"], command="train.evaluate", extra={"checkpoint": "step"})
    assert "max_rows: 0" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        config_of_run(["--help"], command="train.evaluate", extra={"checkpoint": "step"})
    assert "run_dir=..." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "expected"), [([], "run_dir: missing"), (["run_dri=x"], "run_dri: unknown key; did you mean run_dir?")]
)
def test_config_of_a_run_needs_its_folder(argv: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of_run(argv, command="train.evaluate", extra={})
    assert expected in str(caught.value)
