"""Every shipped yaml composes and is judged right, agrees with the schema's defaults, and matches its module's name."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from conf import compose as composing
from conf import walk
from conf.compose import ROOT, compose, groups
from conf.schema import RunConfig, to_dict

REPOSITORY = ROOT.parent
# What an entry needs of the other groups where it cannot stand alone.
NEEDS = {
    "data=own": ["path=rows.jsonl"],
    "attention=sdpa": ["data.pack=none"],
    "zero=0": ["model.dtype=fp32"],
    "tuning=prompt": ["data.pack=none"],
    "tuning=prefix": ["data.pack=none"],
}
ENTRIES = [
    f"{group}={name}"
    for group, names in groups([ROOT]).items()
    for name in names
    if group not in ("experiment", "local")
]
EXPERIMENTS = groups([ROOT])["experiment"]
DIFFS = ("experiment", "debug", "local")


@pytest.fixture(autouse=True)
def _without_local_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's own conf/local/ must not decide what the shipped entries are."""
    if not (ROOT / "local").exists():
        return
    for path in ROOT.iterdir():
        if path.name != "local":
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.setattr(composing, "ROOT", tmp_path)


@pytest.mark.parametrize("entry", ENTRIES)
def test_each_entry_composes(entry: str) -> None:
    cfg = compose([entry, *NEEDS.get(entry, [])])
    assert cfg.run_dir == f"outputs/{cfg.name}"


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("debug", ["null", "fast", "overfit", "deterministic", "[fast,deterministic]"])
def test_each_experiment_composes_and_carries_its_name(name: str, debug: str) -> None:
    cfg = compose([f"experiment={name}", f"debug={debug}"])
    assert (cfg.name, cfg.run_dir) == (name, f"outputs/{name}")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_opens_with_the_command_that_runs_it(name: str) -> None:
    first, second = (ROOT / "experiment" / f"{name}.yaml").read_text().splitlines()[:2]
    assert first == "# @package _global_"
    assert re.match(rf"# python -m launch experiment={name}\b", second)


def test_every_tuning_works_with_every_stage() -> None:
    for tuning in groups([ROOT])["tuning"]:
        for stage in range(1, 4):
            cfg = compose([f"tuning={tuning}", f"zero={stage}", *NEEDS.get(f"tuning={tuning}", [])])
            assert (cfg.tuning.method, cfg.zero.stage) == (tuning, stage)


def test_what_the_entries_say() -> None:
    bloom = compose(["model=bloom_560m", "data=alpaca"])
    assert (bloom.data.pack, bloom.attention.backend) == ("none", "sdpa")
    assert compose(["model=bloom_560m", "attention=auto"]).attention.backend == "auto"
    assert [compose([f"zero={stage}", "model.dtype=fp32"]).zero.stage for stage in range(4)] == [0, 1, 2, 3]
    demo = compose(["experiment=demo"])
    assert (demo.model.dtype, demo.model.init, demo.model.tokenizer) == ("fp32", "random", "train")
    assert (demo.zero.stage, demo.tracker.wandb) == (2, "offline")
    mixture = compose(["data=alpaca_dolly"]).data.sources
    assert sum(node.weight or 0.0 for node in mixture.values()) == 1.0


def test_default_entries_repeat_the_schemas_defaults() -> None:
    """What a group's default entry says and what a config without that key gets must never drift apart."""
    defaults = yaml.safe_load((ROOT / "config.yaml").read_text())["defaults"]
    chosen = {group: str(name) for each in defaults if isinstance(each, dict) for group, name in each.items()}
    compared = 0
    for group in ("attention", "zero", "optim", "evaluation", "tracker", "cluster"):
        plain = yaml.safe_load((ROOT / group / f"{chosen[group]}.yaml").read_text())
        default = walk.unwrap(walk.hints(RunConfig)[group])[0]()
        judged = getattr(compose([]), group)
        for key in plain:
            assert getattr(judged, key) == getattr(default, key), f"{group}.{key}"
            compared += 1
    for method in groups([ROOT])["tuning"]:
        entry = f"tuning={method}"
        tuning: Any = compose([entry, *NEEDS.get(entry, [])]).tuning
        assert tuning == type(tuning)(method=method)
    root = yaml.safe_load((ROOT / "config.yaml").read_text())
    for section in ("batch", "objective", "checkpoint", "compute"):
        default = walk.sections(walk.hints(RunConfig)[section], root[section])[0]()
        assert root[section] == {key: getattr(default, key) for key in root[section]}
    assert compared > 25


def test_no_yaml_word_is_read_as_a_boolean_by_accident() -> None:
    """off, on, yes, no and unquoted 12:00:00 are traps of yaml 1.1; only true and false may make booleans."""
    for path in ROOT.glob("**/*.yaml"):
        for line in path.read_text().splitlines():
            value = line.split(" #")[0].partition(":")[2].strip()
            assert value.lower() not in ("off", "on", "yes", "no", "y", "n"), f"{path}: {line}"
            assert not re.fullmatch(r"\d+(:\d+)+", value), f"{path}: {line}"


def test_entries_of_a_group_set_that_section_only() -> None:
    sections = set(walk.keys_at(RunConfig))
    for group in groups([ROOT]):
        assert group in sections or group in DIFFS


def modules(folder: str) -> set[str]:
    return {path.stem for path in (REPOSITORY / folder).glob("*.py") if not path.stem.startswith("_")}


def tags(path: tuple[str, ...]) -> set[str]:
    members = walk.members(walk.annotation_at(RunConfig, path, {}))
    return {str(tag) for member in members for tag in get_args(walk.unwrap(member)[0])}


def test_attention_module_yaml_and_tag_have_one_name() -> None:
    named = tags(("attention", "backend"))
    assert set(groups([ROOT])["attention"]) == named
    backends = {path.stem for path in (REPOSITORY / "train/attention").glob("*.py")} & named
    if not backends:
        pytest.skip("train/attention holds no backend yet")
    assert backends == named - {"auto"}


def test_tuning_module_yaml_and_tag_have_one_name() -> None:
    named = {walk.tag_of(section, "method") for section in walk.sections(walk.hints(RunConfig)["tuning"])}
    assert set(groups([ROOT])["tuning"]) == named
    if not modules("train/tuning"):
        pytest.skip("train/tuning holds no method yet")
    assert modules("train/tuning") == named


def test_source_module_and_tag_have_one_name() -> None:
    raw = {"data": {"sources": {"x": {}}}}
    members = walk.members(walk.annotation_at(RunConfig, ("data", "sources", "x", "format"), raw))
    named = {str(tag) for member in members for tag in get_args(walk.unwrap(member)[0])}
    if not modules("data_prep/sources"):
        pytest.skip("data_prep/sources holds no format yet")
    assert modules("data_prep/sources") == named - {"auto"}


def test_zero_and_schedule_entries_are_the_schemas_choices() -> None:
    assert set(groups([ROOT])["zero"]) == tags(("zero", "stage"))
    assert set(groups([ROOT])["schedule"]) == tags(("schedule", "kind"))
    assert tags(("cluster", "kind")) < set(groups([ROOT])["cluster"])


def test_composing_is_quick() -> None:
    compose(["experiment=demo"])
    start = time.process_time()  # not the wall: another process may have the cores
    cfg = compose(["experiment=alpaca_llama3_8b_lora", "debug=fast", "zero=3", "optim.lr=1e-5"])
    assert time.process_time() - start < 1.0
    assert to_dict(cfg)["optim"]["lr"] == 1e-5
