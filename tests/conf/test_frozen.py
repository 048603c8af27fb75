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

from conf.compose import compose, config_of_run, load_config, save_config, to_yaml
from conf.errors import ConfigError, MissingInput
from conf.judge import validate
from conf.schema import to_dict


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
    save_config(cfg, file)
    assert load_config(file) == cfg
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
        load_config(tmp_path / "run.yaml")
    assert all(line.startswith(str(tmp_path / "run.yaml")) for line in caught.value.problems)
    assert expected in str(caught.value)


def test_the_run_yaml_of_an_older_version_is_read(tmp_path: Path) -> None:
    cfg, file = compose(["experiment=demo"]), tmp_path / "run.yaml"
    text = to_yaml(cfg)
    assert "compute:\n" in text
    file.write_text(text.replace("compute:\n", "compute:\n  prune_last_layer: false\n"))
    assert load_config(file) == cfg
    file.write_text(text.replace("compute:\n", "compute:\n  prune_last_layer: true\n"))
    with pytest.raises(ConfigError, match=r"compute\.prune_last_layer: unknown key"):
        load_config(file)


def test_a_run_yaml_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=r"is not there; is .* the folder of a run"):
        load_config(tmp_path / "no" / "run.yaml")


def test_config_of_a_run_moves_with_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_config(compose(["experiment=demo"]), tmp_path / "run.yaml")
    argv = [f"run_dir={tmp_path}", "checkpoint=7", "evaluation.max_rows=0"]
    how: Any = {"command": "train.evaluate", "sections": ("evaluation",), "extra": {"checkpoint": "step"}}
    cfg, own = config_of_run(argv, **how)
    assert (cfg.run_dir, cfg.evaluation.max_rows, own) == (str(tmp_path), 0, {"checkpoint": "7"})
    with pytest.raises(SystemExit):
        config_of_run([*argv, "--cfg=job"], **how)
    assert "max_rows: 0" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        config_of_run(["--help"], **how)
    text = capsys.readouterr().out
    for part in ("train.evaluate run_dir=... [checkpoint=...]", "evaluation.KEY=VALUE", "example:"):
        assert part in text
    assert max(len(line) for line in text.splitlines()) <= 120


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "run_dir: missing"),
        (["run_dri=x"], "run_dri: unknown key; did you mean run_dir?"),
        (["run_dir=RUN", "max_rows=3"], "max_rows: unknown key; did you mean evaluation.max_rows?"),
        (["run_dir=RUN", "evaluation.max_row=3"], "did you mean evaluation.max_rows?"),
        (["run_dir=RUN", "evaluation.max_rows=many"], "evaluation.max_rows: got 'many'"),
        (["run_dir=RUN", "+optim.lr=3"], "optim.lr: this command does not read it; it reads of the config: evaluation"),
        (["run_dir=RUN", "--config-dir=x"], "--config-dir=x: unknown option"),
    ],
)
def test_wrong_keys_of_a_command_on_a_run_are_named(tmp_path: Path, argv: list[str], expected: str) -> None:
    save_config(compose(["experiment=demo"]), tmp_path / "run.yaml")
    with pytest.raises(ConfigError) as caught:
        config_of_run(
            [word.replace("RUN", str(tmp_path)) for word in argv], command="train.evaluate", sections=("evaluation",)
        )
    assert expected in str(caught.value)


def test_a_folder_that_is_no_run_is_missing_input(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="no such folder"):
        config_of_run([f"run_dir={tmp_path}/no"], command="train.export", sections=())
    with pytest.raises(MissingInput, match=r"is not there; is .* the folder of a run"):
        config_of_run([f"run_dir={tmp_path}"], command="train.export", sections=())
