"""What the schema refuses, and in which words: one line per mistake, path first."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf import walk
from conf.checks import cross_checks
from conf.errors import ConfigError, describe
from conf.problems import nearest
from conf.schema import RunConfig, to_dict, validate

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
            "optim.lr: got '1e-3' (text); allowed: a number > 0.0; it arrived as text: write 0.001 without quotes",
        ),
        (
            {"data.seq_len": "2048"},
            "data.seq_len: got '2048' (text); allowed: an integer >= 8; it arrived as text: write 2048 without quotes",
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
        ({"optim.lr": float("nan")}, "optim.lr: got nan (number); allowed: a number > 0.0"),
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
                "path, fields, template, style, select, validation_fraction, rows, max_epochs, weight, rate, sources)"
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
                "data.sources.a b: 'a b' cannot be a name here; allowed: letters, digits, '.', '_' and '-', "
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
        ({"model": {"config": {}, "init": "random", "tokenizer": "train"}}, ["model.config: it needs a model_type"]),
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
            ["zero.deepspeed: reduce_bucket_size is not passed on", "its own key in zero"],
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
        ({"compute.prune_last_layer": True}, ["compute.prune_last_layer: true was measured to gain nothing"]),
        ({"checkpoint.background": True}, ["checkpoint.background: true is not available"]),
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
            {"data.sources.a.format": "sharegpt", "data.sources.a.style": {"shots": 2}},
            ["data.sources.a.style: it writes one question and one answer, sharegpt rows have several turns"],
        ),
        (
            {"data.sources.b": {"sources": {"c": RAW["data"]["sources"]["a"]}, "style": {}}},
            ["data.sources.b: has sources below it, so style must stand"],
        ),
        (
            {"data.sources.a.format": "messages", "data.sources.a.template": "alpaca"},
            ["data.sources.a.template: alpaca holds one question", "template=chat"],
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
        {"seed": -1, "optim.lrr": 2, "data.sources.a.rows": 0, "zero.offload": "all", "batch.micro_size": 999}
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


# -- properties --------------------------------------------------------------------------------------------------

FULL = {**to_dict(validate(RAW)), "tuning": to_dict(validate(changed({"tuning": {"method": "lora"}})))["tuning"]}


def fields_below(node: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(node, dict):
        return []
    below = [(*path, key) for key in node] if path != ("data", "sources") else []
    return below + [deeper for key, value in node.items() for deeper in fields_below(value, (*path, key))]


PATHS = fields_below(FULL)
EDITS = st.tuples(st.sampled_from(["drop", "swap", "double", "replace"]), st.integers(0, 40), st.sampled_from("abxyz_"))


def mistyped(word: str, edit: tuple[str, int, str]) -> str:
    kind, where, letter = edit
    at = where % len(word)
    middle = {"drop": "", "swap": word[at : at + 2][::-1], "double": word[at] * 2, "replace": letter}[kind]
    return word[:at] + middle + word[at + (2 if kind == "swap" else 1) :]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(PATHS), EDITS)
def test_a_mistyped_key_names_the_nearest(path: tuple[str, ...], edit: tuple[str, int, str]) -> None:
    *parents, key = path
    typo = mistyped(key, edit)
    raw = copy.deepcopy(FULL)
    node = raw
    for parent in parents:
        node = node[parent]
    siblings = list(node)
    if typo in siblings or not typo:
        return
    node[typo] = node.pop(key)
    with pytest.raises(ConfigError) as caught:
        validate(raw)
    (line,) = [each for each in caught.value.problems if each.startswith(f"{'.'.join((*parents, typo))}: unknown key")]
    others = [each for each in siblings if each != key and distance(each, typo) <= distance(key, typo)]
    suggested = line.split("did you mean ")[1].split("?")[0]
    assert len(key) <= 4 or suggested.split(".")[-1] in {key, *others}
    parent = walk.annotation_at(RunConfig, parents, FULL)
    assert f"keys here: {', '.join(walk.keys_at(parent, node))}" in line


def distance(a: str, b: str) -> int:
    """Edit distance."""
    row = list(range(len(b) + 1))
    for i, one in enumerate(a, 1):
        row, before = [i], row
        for j, two in enumerate(b, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (one != two)))
    return row[-1]


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(PATHS), JSON)
def test_any_value_anywhere_is_judged_without_a_traceback(path: tuple[str, ...], value: Any) -> None:
    raw = copy.deepcopy(FULL)
    node = raw
    for parent in path[:-1]:
        node = node[parent]
    node[path[-1]] = value
    try:
        lines = [] if validate(raw) else [""]
    except ConfigError as error:
        lines = error.problems
    assert all(": " in line and "\n" not in line for line in lines)


@settings(max_examples=100, deadline=None)
@given(JSON)
def test_any_mapping_at_all_is_judged(raw: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(raw if isinstance(raw, dict) else {"model": raw})
    assert all(line.strip() for line in caught.value.problems)


def test_nearest_prefers_what_goes_on_longer() -> None:
    assert nearest("alpca", ["demo", "alpaca_llama3_8b_full"]) == "alpaca_llama3_8b_full"
    assert nearest("GPT2", ["gpt2", "pythia"]) == "gpt2"
    assert nearest("x", []) == ""
