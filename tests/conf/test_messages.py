"""What a user reads who writes something else than Corral does: the key, the way out, and no phrase of Hydra's."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from conf import walk
from conf.advice.names import NAMES, VALUES
from conf.compose import compose, config_from_argv, groups
from conf.errors import ConfigError, describe
from conf.groups import ROOT
from conf.schema import RunConfig
from conf.walk import annotation_at

HYDRA = (
    "full_key", "object_type", "Interpolation key", "Unsupported interpolation", "Could not", "raised while",
    "No match in the defaults",
    "mismatched input", "no viable alternative", "ConfigTypeError", "ConfigKeyError", "DictConfig",
    "ListConfig", "LexerNoViableAlt", "extraneous input", "Error merging", "not a container", "Multiple values for",
)  # fmt: skip


def problems(*argv: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config_from_argv(list(argv), command="data_prep", extra={"rows": "how many"})
    text = describe(caught.value)
    assert not [phrase for phrase in HYDRA if phrase in text]
    assert all("\n" not in line for line in caught.value.problems)
    return caught.value.problems


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["model=Qwen/Qwen3-8B"], "a folder or hub id is model.path=Qwen/Qwen3-8B"),
        (["model=/a/folder"], "a folder or hub id is model.path=/a/folder"),
        (["model=./folder"], "a folder or hub id is model.path=./folder"),
        (
            ["experiment=/x.yaml"],
            "--config-dir DIR experiment=x, which reads DIR/experiment/x.yaml: put the file there",
        ),
        (["experiment=mine/experiment/x.yaml"], "--config-dir mine experiment=x, which reads that file"),
        (["data=/there/data/x.yaml"], "--config-dir /there data=x, which reads that file"),
        (["experiment=../x"], "experiment takes the name of an entry, not a path; your own entries are read with"),
        (["data=rows.jsonl"], "rows.jsonl"),
        (["data=a/folder"], "a/folder"),
        (["tuning=qlora"], "QLoRA is tuning=lora tuning.quantize=nf4"),
        (["tuning=QLoRA"], "QLoRA is tuning=lora tuning.quantize=nf4"),
        (["tuning=dora"], "tuning=lora tuning.variant=dora"),
        (["attention=flash_attention_2"], "attention=flash2"),
        (["optim=adamw_torch"], "optim=adamw"),
        (["tracker=none"], "tracker=jsonl"),
        (["zero=stage3"], "zero=3"),
        (["tuning=lora", "tuning.targets=all-linear"], "tuning.targets=family"),
        (["model.dtype=bfloat16"], "it is model.dtype=bf16"),
        (["learning_rate=1e-4"], "learning_rate: unknown key; here it is optim.lr"),
        (["optim.learning_rate=1e-4"], "optim.learning_rate: unknown key; here it is optim.lr"),
        (["lr=1e-4"], "lr: unknown key; did you mean optim.lr?"),
        (["+lr=1e-4"], "lr: unknown key; did you mean optim.lr?"),
        (["epochs=3"], "here it is data.stop.epochs"),
        (["num_train_epochs=3"], "here it is data.stop.epochs"),
        (["batch_size=3"], "here it is batch.global_size"),
        (["per_device_train_batch_size=3"], "here it is batch.micro_size"),
        (["gradient_accumulation_steps=3"], "here it is batch.global_size"),
        (["max_length=512"], "here it is data.seq_len"),
        (["cutoff_len=512"], "here it is data.seq_len"),
        (["output_dir=x"], "here it is run_dir"),
        (["--learning_rate", "1e-4"], "settings are written KEY=VALUE, without dashes; this one is optim.lr"),
        (["--max-length=512"], "settings are written KEY=VALUE, without dashes; this one is data.seq_len"),
        (["load_in_4bit=true"], "here it is tuning=lora tuning.quantize=nf4"),
        (["name=${nmae}"], "there is no setting nmae; did you mean ${name}?"),
        (["name=${name}"], "it refers to itself"),
        (["name=${hydra:job.name}"], "Hydra's own settings are not here"),
        (["name=${upper:x}"], "there is no resolver named upper"),
        (['name="${"'], "it is no complete reference"),
        (["name=${x"], "} is missing at its end"),
        (["data.stop={epochs: 1"], "} is missing at its end; write 'data.stop={epochs: 1}'"),
        (["=1"], "no key before the equals sign"),
        (["optim..lr=1"], "optim..lr cannot be read as a key"),
        (["seed.x=1"], "seed is one value and has no key x"),
        (["optim.betas.7=1"], "optim.betas is a list of 2; set it as a whole"),
        (["data.sources.words.path.x=1"], "data.sources.words.path is one value and has no key x"),
    ],
)
def test_the_way_out_is_named(argv: list[str], expected: str) -> None:
    (line,) = problems(*argv)
    assert expected in line


def test_an_own_file_is_named_by_a_command_that_composes() -> None:
    (line,) = problems("data=my rows.jsonl")
    if "own" in groups([ROOT])["data"]:
        assert "data=own 'path=my rows.jsonl'" in line
        return
    (word,) = [word for word in shlex.split(line[line.index("'") :]) if word.startswith("data.sources=")]
    assert compose([word]).data.sources["mine"].path == "my rows.jsonl"


def test_a_date_in_the_run_dir_is_left_to_the_shell() -> None:
    (line,) = problems("run_dir=outputs/${now:%Y-%m-%d}/${name}")
    assert "every attempt of a run" in line
    assert line.endswith('"run_dir=outputs/$(date +%Y-%m-%d)/\\${name}"')


@pytest.mark.parametrize(
    "whole",
    ["data.stop={epochs: 1}", "data.sources={mine: {format: alpaca, path: a.jsonl}}", "optim.betas=[0.9, 0.98]"],
)
def test_a_value_that_the_shell_has_split_is_quoted_as_a_whole(whole: str) -> None:
    (line,) = problems(*whole.split())
    assert line.endswith(f"the shell has split this value at its blanks; quote it: {shlex.quote(whole)}")
    (word,) = shlex.split(line.rpartition("quote it: ")[2])
    assert word == whole
    compose([word, *(["data.stop.epochs=1"] if "sources" in whole else [])])


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("data.sources={a: {format: alpaca, path: x}, a: {format: alpaca, path: y}}", "a"),
        ("path={a.json: 1, b.csv: 2, a.json: 3}", "a.json"),
        ("data.sources={a: {format: alpaca, path: x, fields: {input: p, 'input': q}}}", "input"),
    ],
)
def test_a_key_that_stands_twice_is_refused_because_one_of_them_would_be_lost(word: str, name: str) -> None:
    found = problems("data=own" if word.startswith("path") else "data.stop.epochs=1", word)
    key = word.partition("=")[0]
    assert f"{key}: {name} stands twice in one mapping, and only the last would count; name each once" in found


def test_one_wrong_group_does_not_hide_the_other_mistakes() -> None:
    found = problems("model=gtp2", "optim.lrr=3", "data.sources.words.format=xx", "seed=-1", "rwos=3", "a=(", "zero=9")
    assert [line.split(":")[0].split("=")[0] for line in sorted(found)] == [
        "a", "data.sources.words.format", "model", "optim.lrr", "rwos", "seed", "zero",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "argv",
    [
        ["tuning=qlora", "tuning.rank=8"],
        ["data=alpca", "data.sources.alpaca.path=x", "~data.sources.alpaca"],
        ["experiment=alpca", "tuning.rank=3", "data.sources.alpaca.rows=3", "compute.kernels=compile"],
        ["zero=9", "compute.kernels=compile"],
    ],
)
def test_nothing_is_said_of_what_the_right_entry_would_have_brought(argv: list[str]) -> None:
    (line,) = problems(*argv)
    assert line.startswith(f"{argv[0]}: no such entry")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("defaults: [{override /data: nope}]", "a defaults list names data/nope: data=nope: no such entry"),
        ("defaults: [{override /dataa: alpaca}]", "its defaults override dataa, which is in no defaults list"),
        ("defaults: {override /data: alpaca}", "its defaults are no list"),
        ("defaults: [_self_, _self_]", "experiment/bad.yaml: its defaults hold _self_ twice; keep one"),
        ("defaults: [/model: qwen3_8b]", "write 'override /model: qwen3_8b'"),
        ("defaults: [bad]", "leads back to it"),
        (
            "optim: [1]",
            "experiment/bad.yaml: a setting in it is a list or a value, and another file makes it a mapping",
        ),
        ('name: "${x"', "${x is no complete reference"),
        ('name: "${now:%Y}"', "every attempt of a run"),
    ],
)
def test_a_users_yaml_that_does_not_compose(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/bad.yaml").write_text(f"# @package _global_\n{text}\n")
    (line,) = problems("experiment=bad", "--config-dir", str(tmp_path))
    assert expected in line


def test_every_name_of_another_project_leads_to_a_key_that_exists() -> None:
    """The first word of each piece of advice is a key of the schema, or a group's entry."""
    known, fields = groups([ROOT]), {*walk.dotted_fields(RunConfig), "data.stop.epochs"}
    methods = {
        f"tuning.{key}" for section in walk.sections(walk.hints(RunConfig)["tuning"]) for key in walk.hints(section)
    }
    for name, advice in NAMES.items():
        key, _, value = advice.split()[0].rstrip(",:;").partition("=")
        assert key in {*fields, *methods, *known}, name
        assert annotation_at(RunConfig, (name,), {}) is None, f"{name} is a key here"
        if value and key in known:
            assert value in known[key], name
    assert {key for key, _ in VALUES} <= {*fields, *methods}
