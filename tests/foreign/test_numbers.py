"""Numbers that no run has: in a config, a model's sizes, a batch, a machine. Each is one sentence, at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from conf.compose import compose
from conf.errors import BadData, ConfigError, CorralError
from conf.foreign.interpolation import size_of
from conf.frozen import load_config
from conf.schema import ModelConfig
from data_prep.tokenizer.tokenizer import load_tokenizer
from launch.__main__ import PER_CORE, refuse_crowd
from tests.data_prep.streams import fake_split
from tests.foreign.folders import changed, honest
from train.families import shape_of
from train.loading.pretrained import read_config
from train.model.weights import random_config
from train.plan import read_model_config, refuse_empty_steps

HUGE = "1" + "0" * 30


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("data.seq_len=100000000000", "data.seq_len: got 100000000000 (integer); allowed: an integer >= 8 and <= "),
        ("data.seq_len=1e11", "data.seq_len: got 100000000000.0 (number); allowed: an integer >= 8 and <= 16777216"),
        (f"model.vocab_size={HUGE}", "allowed: an integer >= 1 and <= 16777216; no run counts so far"),
        ("batch.global_size=1000000000000", "allowed: an integer >= 1 and <= 10000000, or auto"),
        ("batch.micro_size=1000000000", "allowed: an integer >= 1 and <= 10000000, or auto"),
        ("cluster.gpus_per_node=100000", "got 100000 (integer); allowed: an integer >= 1 and <= 1024"),
        ("cluster.nodes=1000000", "allowed: an integer >= 1 and <= 100000"),
        ("data.num_proc=1000000", "allowed: an integer >= 1 and <= 1024"),
        (f"schedule.max_steps={HUGE}", "allowed: an integer >= 0; no run counts so far"),
    ],
)  # fmt: skip
def test_settings(word: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        compose([word])
    assert said in str(refused.value)


def test_the_rank_of_an_adapter() -> None:
    with pytest.raises(ConfigError, match=r"tuning\.rank: got 1000000000 .*allowed: an integer >= 1 and <= 65536"):
        compose(["tuning=lora", "tuning.rank=1000000000"])


SIZES = [
    ("num_hidden_layers", 10**9, "must be a whole number from 1 to 10,000"),
    ("num_hidden_layers", -1, "must be a whole number from 1"),
    ("num_attention_heads", 10**9, "must be a whole number from 1 to 100,000"),
    ("vocab_size", 10**30, "must be a whole number from 1 to 1,000,000,000"),
    ("hidden_size", "32", "hidden_size is '32', and it must be a whole number"),
    ("intermediate_size", [1], "intermediate_size is [1]"),
    ("head_dim", True, "head_dim is True"),
]


@pytest.mark.parametrize(("name", "value", "said"), SIZES)
def test_sizes_of_a_model(tmp_path_factory: pytest.TempPathFactory, name: str, value: object, said: str) -> None:
    """In a folder for every reader of it, and in model.config; before a list of a billion layers is made."""
    folder = honest(tmp_path_factory.mktemp("model"))
    changed(folder / "config.json", model_type="qwen2", **{name: value})
    start = time.process_time()
    for read in (
        lambda: read_config(folder, key="model.path", trust_remote_code=False),
        lambda: read_model_config(ModelConfig(path=str(folder))),
        lambda: load_tokenizer(str(folder)),
    ):
        with pytest.raises(BadData) as refused:
            read()
        assert f"{folder}/config.json cannot be used" in str(refused.value)
        assert said in str(refused.value)
    mapping = {"model_type": "qwen2", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, name: value}
    for judge in (lambda: shape_of({"intermediate_size": 8, "vocab_size": 8, **mapping}), lambda: random(mapping)):
        with pytest.raises(ConfigError, match=r"model\.config"):
            judge()
    assert time.process_time() - start < 5


def random(mapping: dict[str, object]) -> object:
    return random_config(dict(mapping), vocab_size=8)


def test_token_ids(tmp_path: Path) -> None:
    """The library makes a table with a place for every id below the largest: 8 GB for this one."""
    folder = honest(tmp_path)
    changed(folder / "vocab.json", a=2**31)
    with pytest.raises(BadData, match=r"has a token with the id 2,147,483,648; ids are below 16,777,216"):
        load_tokenizer(str(folder))


def test_a_step_of_empty_rows() -> None:
    splits = {"words": fake_split("words", 600, shortest=100, longest=100)}  # 20 samples to a row: 30 rows, 3 epochs
    cfg = compose(["data=demo", "data.seq_len=2048", "data.stop.epochs=3", "batch.global_size=1000000"])
    with pytest.raises(ConfigError, match=r"batch\.global_size: 1,000,000 is more than 1,000 times the \d\d rows"):
        refuse_empty_steps(cfg, splits)
    refuse_empty_steps(compose(["data=demo", "data.seq_len=2048", "batch.global_size=900"]), splits)


def test_processes_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("launch.__main__.listed_gpus", lambda: None)
    refuse_crowd(2 * PER_CORE)
    with pytest.raises(ConfigError, match="1000 processes, and this machine has 2 CPU cores and no GPU; set cluster"):
        refuse_crowd(1000)
    monkeypatch.setattr("launch.__main__.listed_gpus", lambda: ["H100"] * 4)
    refuse_crowd(4)
    with pytest.raises(ConfigError, match="8 processes, and this machine has 4 GPUs, of which each takes one"):
        refuse_crowd(8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # on the CPUs on purpose
    refuse_crowd(8)


LAUGHS = "a0: &a0 [x, x, x]\n" + "".join(f"a{at}: &a{at} [{', '.join([f'*a{at - 1}'] * 9)}]\n" for at in range(1, 12))
TWICE = "model:\n  config:\n    a0: xxxxxxxxxxxx\n" + "".join(
    f"    a{at}: ${{REF{at - 1}}}${{REF{at - 1}}}\n" for at in range(1, 60)
)
YAMLS = {
    "aliases": (LAUGHS, "it stands for more than 200,000 values"),
    "an alias in itself": ("a: &a [*a]\n", "it stands for more than 200,000 values"),
    "depth": ("a: " + "[" * 100_000 + "]" * 100_000, "nested more than 100 deep"),
    "depth of a key": ("? " + "[" * 2_000 + "]" * 2_000 + "\n: 1\n", "nested more than 100 deep"),
    "size": ("a: " + "x" * 5_000_000, "larger than 4 MiB"),
    "interpolations": (TWICE.replace("REF", "model.config.a"), "the interpolations of the config"),
    "relative interpolations": (TWICE.replace("REF", ".a"), "the interpolations of the config"),
    "a resolver": (TWICE.replace("REF", "oc.select:model.config.a"), "the interpolations of the config"),
    "self-inclusion": ("defaults: [/experiment/foreign]\n", "the defaults list of an entry leads back to it"),
    "one value": ("3\n", "it is one value, and an entry is a mapping of settings"),
    "a zero byte": ("name: \x00\n", "yaml"),
    "a number of 5,000 digits": ("seed: " + "9" * 5_000, "yaml"),
}


@pytest.mark.parametrize("name", YAMLS)
def test_yaml_that_grows(tmp_path: Path, name: str) -> None:
    text, said = YAMLS[name]
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "foreign.yaml").write_text(f"# @package _global_\n{text}")
    (tmp_path / "run.yaml").write_text(text)
    start = time.process_time()
    with pytest.raises(ConfigError) as refused:
        compose(["experiment=foreign"], tmp_path)
    assert said in str(refused.value)
    with pytest.raises(CorralError):
        load_config(tmp_path / "run.yaml")
    assert time.process_time() - start < 5


def test_aliases_and_interpolations_that_people_write(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = "name: ${tracker.project}-2\ntracker: {project: &name mine, group: *name}\n"
    text += "optim: {eps: '${optim.weight_decay}'}\n"
    (tmp_path / "experiment" / "own.yaml").write_text(f"# @package _global_\n{text}")
    cfg = compose(["experiment=own", "optim.weight_decay=0.1"], tmp_path)
    assert (cfg.tracker.group, cfg.name, cfg.optim.eps) == ("mine", "mine-2", 0.1)


def test_the_size_of_interpolations() -> None:
    assert size_of({"a": "xx", "b": ["${a}", "${a}"]}) == 1 + 2 + 1 + 2 * (4 + 2)
    assert size_of({"a": "${b}", "b": "${a}"}) < 20  # a circle
