"""What the schema refuses, and in which words: one line per mistake, path first."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from conf.checks.rules import cross_checks
from conf.errors import ConfigError, describe
from conf.judge import validate
from conf.schema import to_dict

RAW: dict[str, Any] = {
    "name": "x",
    "model": {"path": "gpt2"},
    "data": {"sources": {"a": {"format": "alpaca", "path": "a.json"}}, "stop": {"epochs": 1}},
    "tuning": {"method": "full"},
    **{section: {} for section in ("attention", "zero", "optim", "schedule", "batch", "checkpoint")},
    **{section: {} for section in ("evaluation", "tracker", "compute", "cluster")},
}

METHODS = "full, lora, ia3, prompt, prefix, bottleneck"


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    raw = copy.deepcopy(RAW)
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = raw
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return raw


def problems(changes: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        validate(changed(changes))
    assert caught.value.code == 78
    return caught.value.problems


def test_a_right_config_is_frozen_and_round_trips() -> None:
    cfg = validate(RAW)
    assert validate(to_dict(cfg)) == cfg
    assert cross_checks(cfg) == []
    with pytest.raises(AttributeError):
        cfg.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("method", "lr"),
    [("full", 2e-5), ("lora", 2e-4), ("ia3", 3e-3), ("prompt", 3e-2), ("prefix", 1e-2), ("bottleneck", 1e-4)],
)
def test_each_tuning_method_has_its_own_learning_rate_and_an_explicit_one_wins(method: str, lr: float) -> None:
    tuning = {"method": method}
    padded = {"data.pack": "none"} if method in ("prompt", "prefix") else {}
    for named in ({}, {"optim.lr": "auto"}):
        assert validate(changed({"tuning": tuning, **padded, **named})).optim.lr == lr
    assert validate(changed({"tuning": tuning, **padded, "optim.lr": 7e-5})).optim.lr == 7e-5


def test_integers_do_where_numbers_are_wanted() -> None:
    cfg = validate(changed({"optim.lr": 1, "optim.betas": [0, 0.5], "tuning": {"method": "lora", "alpha": 3}}))
    assert (cfg.optim.lr, cfg.optim.betas) == (1.0, [0.0, 0.5])


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"data.pack": False},
            "data.pack: got false (boolean); allowed: exact, none; yaml reads no/off/false as a boolean: quote it",
        ),
        (
            {"tracker.wandb": True},
            (
                "tracker.wandb: got true (boolean); allowed: online, offline, disabled; yaml reads yes/on/true "
                "as a boolean: quote it"
            ),
        ),
        (
            {"name": 1000.0},
            (
                "name: got 1000.0 (number); allowed: a name of letters, digits, '.', '_' and '-' that begins "
                "with a letter or digit; yaml reads it as a number: quote it"
            ),
        ),
        (
            {"optim.lr": "1e-3"},
            (
                "optim.lr: got '1e-3' (text); allowed: a number > 0.0, or auto; "
                "it arrived as text: write 0.001 without quotes"
            ),
        ),
        (
            {"data.seq_len": "2048"},
            (
                "data.seq_len: got '2048' (text); allowed: an integer >= 8 and <= 16777216; "
                "it arrived as text: write 2048 without quotes"
            ),
        ),
        ({"schedule.max_steps": 1e3}, "schedule.max_steps: got 1000.0 (number); allowed: an integer >= 0; write 1000"),
        (
            {"zero.overlap_comm": "yes"},
            (
                "zero.overlap_comm: got 'yes' (text); allowed: true, false; it arrived as text: write true or "
                "false without quotes"
            ),
        ),
        ({"zero.stage": 4}, "zero.stage: got 4 (integer); allowed: 0, 1, 2, 3, auto"),
        (
            {"zero.stage": True},
            "zero.stage: got true (boolean); allowed: 0, 1, 2, 3, auto; yaml reads yes/on/true as a boolean: quote it",
        ),
        (
            {"data.near_duplicates": 2},
            "data.near_duplicates: got 2 (integer); allowed: a number >= 0.5 and <= 0.95, or null",
        ),
        ({"seed": -1}, "seed: got -1 (integer); allowed: an integer >= 0"),
        ({"seed": True}, "seed: got true (boolean); allowed: an integer >= 0"),
        ({"optim.lr": float("nan")}, "optim.lr: got nan (number); allowed: a number > 0.0, or auto"),
        ({"optim.betas": [0.9]}, "optim.betas: got [0.9] (list); allowed: a list of 2, each a number >= 0.0 and < 1.0"),
        ({"optim.betas": [0.9, 2.0]}, "optim.betas.1: got 2.0 (number); allowed: a number >= 0.0 and < 1.0"),
        ({"data.window": "big"}, "data.window: got 'big' (text); allowed: an integer >= 1, or auto"),
        ({"batch": 3}, "batch: got 3 (integer); allowed: a mapping with the keys global_size, micro_size"),
        ({"batch": None}, "batch: got null (null); allowed: a mapping with the keys global_size, micro_size"),
        (
            {"data.clean.html": "on"},
            (
                "data.clean.html: got 'on' (text); allowed: true, false; it arrived as text: write true or "
                "false without quotes"
            ),
        ),
        ({"tuning": {"method": "lroa"}}, f"tuning.method: got 'lroa' (text); allowed: {METHODS}"),
        (
            {"tuning": {"method": False}},
            f"tuning.method: got false (boolean); allowed: {METHODS}; yaml reads no/off/false as a boolean: quote it",
        ),
        ({"tuning": {}}, f"tuning.method: missing; it needs {METHODS}"),
        (
            {"tuning": {"method": "lora", "targets": 3}},
            "tuning.targets: got 3 (integer); allowed: a list, each text, or family",
        ),
        ({"tuning.rank": 8}, "tuning.rank: unknown key with tuning=full; it belongs to tuning=lora"),
        (
            {"data.sources.a.formt": "x"},
            (
                "data.sources.a.formt: unknown key; did you mean data.sources.a.format? (keys here: format, "
                "path, encoding, fields, template, style, select, validation_fraction, validation, rows, max_epochs, "
                "weight, rate, sources)"
            ),
        ),
        (
            {"optim.lrr": 1},
            "optim.lrr: unknown key; did you mean optim.lr? (keys here: name, lr, weight_decay, betas, eps, clip)",
        ),
        (
            {"data.stop": {"epoch": 1, "tokens": 1}},
            (
                "data.stop.epoch: unknown key; did you mean data.stop.epochs? (keys here: epochs, tokens, "
                "examples, first_exhausted, all_seen_once)"
            ),
        ),
        (
            {"data.sources": {"a b": {"format": "alpaca", "path": "a"}}},
            (
                "data.sources.a b: 'a b' is not a valid name; allowed: letters, digits, '.', '_' and '-', "
                "beginning with a letter or digit"
            ),
        ),
    ],
)
def test_the_words_for_a_wrong_field(changes: dict[str, Any], line: str) -> None:
    assert problems(changes) == [line]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"lr": 1}, ["lr: unknown key; did you mean optim.lr?"]),
        ({"seq_len": 8}, ["did you mean data.seq_len?"]),
        ({"max_epochs": 8}, ["did you mean data.sources.NAME.max_epochs?"]),
        ({"model.path": None}, ["model.path: missing"]),
        ({"model.config": {"model_type": "llama"}}, ["model.path: 'gpt2' and model.config are both set"]),
        ({"model.init": "random"}, ["model.init: random needs model.config"]),
        (
            {"model": {"config": {"model_type": "llama"}, "tokenizer": "train"}},
            ["model.init: pretrained needs model.path"],
        ),
        ({"model": {"config": {"model_type": "llama"}, "init": "random"}}, ["model.tokenizer: missing"]),
        ({"model": {"config": {}, "init": "random", "tokenizer": "train"}}, ["model.config: model_type is missing"]),
        ({"model.tokenizer": "train", "model.vocab_size": 100}, ["at least 258"]),
        ({"zero.stage": 0}, ["zero.stage: 0 with model.dtype=bf16", "use zero=1, or model.dtype=fp32"]),
        ({"zero.stage": 0, "zero.offload": "optimizer", "model.dtype": "fp32"}, ["zero.offload: optimizer", "zero=1"]),
        ({"zero.offload": "all"}, ["zero.offload: all", "use zero=3"]),
        ({"zero.deepspeed": {"zero_hpz_partition_size": 8}}, ["zero.deepspeed: its keys are of stage 3 (got zero=2)"]),
        (
            {"zero.stage": 3, "zero.deepspeed": {"mics_shard_size": 8}},
            ["zero.deepspeed: mics_shard_size would keep", "zero_hpz_partition_size=GPUS_PER_NODE"],
        ),
        (
            {"zero.stage": 3, "zero.deepspeed": {"reduce_bucket_size": 8}},
            ["zero.deepspeed: reduce_bucket_size is not passed on", "their own keys in zero"],
        ),
        (
            {"zero.stage": 3, "zero.deepspeed": {"zero_hpz_partition_size": True}},
            ["zero.deepspeed: zero_hpz_partition_size got True; it takes a number of ranks"],
        ),
        ({"attention.backend": "sdpa"}, ["sdpa does not isolate", "use attention=packed, or data.pack=none"]),
        (
            {"attention.backend": "flash2", "model.dtype": "fp32", "data.share_prefix": False},
            ["flash2 computes in bf16 only"],
        ),
        ({"tuning": {"method": "prompt"}}, ["data.pack: exact puts several samples into a row", "use data.pack=none"]),
        (
            {"tuning": {"method": "prefix"}, "data.pack": "none", "model.recompute": "full"},
            ["model.recompute: full would compute blocks again without the prefix", "use model.recompute=none"],
        ),
        (
            {"tuning": {"method": "prompt"}, "data.pack": "none", "attention.backend": "packed"},
            ["attention.backend: packed lays samples end to end", "use attention=sdpa"],
        ),
        ({"tuning": {"method": "ia3"}, "optim.weight_decay": 0.1}, ["pull the factors", "use optim.weight_decay=0"]),
        (
            {
                "tuning": {"method": "lora", "variant": "dora", "dropout": 0.1},
                "zero.stage": 3,
                "data.share_prefix": False,
            },
            ["tuning.dropout: 0.1 makes dora", "use tuning.dropout=0, or zero=2"],
        ),
        (
            {"tuning": {"method": "lora", "quantize": "nf4"}, "zero.stage": 3},
            ["tuning.quantize: nf4 was asked for with zero=3", "use zero=2, or tuning.quantize=none"],
        ),
        (
            {"compute.sequence_parallel": 2, "data.pack": "none"},
            ["compute.sequence_parallel: 2 slices rows", "use data.pack=exact, or compute.sequence_parallel=1"],
        ),
        (
            {"compute.sequence_parallel": 2, "data.pack": "none", "tuning": {"method": "prompt"}},
            ["compute.sequence_parallel: 2 slices rows", "tuning=prompt needs", "use another method"],
        ),
        (
            {"compute.sequence_parallel": 2, "data.share_prefix": False, "attention.backend": "flash3"},
            ["attention.backend: flash3 attends to the tokens it is given", "use attention=packed"],
        ),
        ({"data.stop": {}}, ["data.stop: missing; set one of epochs"]),
        ({"data.stop": {"epochs": 1, "tokens": 5}}, ["epochs and tokens are set", "data.stop.epochs=null"]),
        ({"schedule.warmup_steps": 1, "schedule.warmup_fraction": 0.1}, ["are both set", "warmup_fraction=null"]),
        ({"schedule.warmup_steps": 5, "schedule.max_steps": 5}, ["keep it below schedule.max_steps=5"]),
        (
            {"schedule": {"kind": "wsd", "decay_fraction": 0.6, "warmup_fraction": 0.5}},
            ["decay_fraction: 0.6 plus warmup_fraction=0.5 exceeds 1"],
        ),
        (
            {"batch": {"global_size": 2, "micro_size": 3}},
            ["batch.micro_size: 3 rows are more than batch.global_size=2"],
        ),
        ({"compute.deterministic": True}, ["zero.overlap_comm=false"]),
        (
            {"attention.backend": "flash2", "model.dtype": "bf16"},
            ["attention.backend: flash2 cannot let", "attention=packed"],
        ),
        ({"tuning": {"method": "lora", "dropout": 0.1}}, ["tuning.dropout: 0.1 would drop", "data.share_prefix=false"]),
        ({"data.sources": {}}, ["data.sources: empty; add a source with +data.sources.NAME="]),
        ({"data.sources.a.weight": 0}, ["every weight is 0"]),
        ({"data.sources.a.path": None}, ["data.sources.a.path: missing"]),
        ({"data.sources.a.format": None}, ["data.sources.a.format: missing"]),
        ({"data.sources": {"a.b": RAW["data"]["sources"]["a"]}}, ["a name cannot hold a dot", "use a-b"]),
        ({"data.sources.a.weight": 1, "data.sources.a.rate": {}}, ["data.sources.a: weight and rate are both set"]),
        ({"data.sources.a.sources": RAW["data"]["sources"]}, ["data.sources.a: has sources below it, so format, path"]),
        ({"data.sources.b": {"sources": {"c": {"path": "x"}}}}, ["data.sources.b.sources.c.format: missing"]),
        ({"data.sources.b": {"sources": {}}}, ["data.sources.b.sources: empty"]),
        (
            {"data.sources.b": {"sources": {"c": RAW["data"]["sources"]["a"]}, "style": {}}},
            ["data.sources.b: has sources below it, so style must stand"],
        ),
    ],
)
def test_rules_between_settings(changes: dict[str, Any], parts: list[str]) -> None:
    (line,) = problems(changes)
    assert "\n" not in line
    for part in parts:
        assert part in line


def test_all_mistakes_at_once_fields_and_rules() -> None:
    found = problems(
        {
            "seed": -1,
            "optim.lrr": 2,
            "data.sources.a.rows": 0,
            "zero.offload": "all",
            "batch": {"global_size": 8, "micro_size": 9},
        }
    )
    assert [line.split(":")[0] for line in sorted(found)] == [
        "batch.micro_size", "data.sources.a.rows", "optim.lrr", "seed", "zero.offload",
    ]  # fmt: skip


def test_a_rule_is_silent_about_a_field_that_is_wrong_itself() -> None:
    assert len(problems({"zero.stage": 7, "zero.offload": "all"})) == 1
    assert len(problems({"data.stop": {"epoch": 1}})) == 1


def test_values_that_are_no_config_at_all() -> None:
    with pytest.raises(ConfigError, match="JSON cannot"):
        validate({"name": {1, 2}})
    with pytest.raises(ConfigError) as caught:
        validate({})
    assert {line.split(":")[0] for line in caught.value.problems} == {*RAW}
    assert describe(caught.value).startswith(f"corral: {len(RAW)} problems in the config:\n  - ")
