"""Command lines and yaml of a user's: composed, judged, planned and frozen."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import yaml

from conf import walk
from conf.compose import compose, config_from_argv
from conf.frozen import load_config, save_config
from conf.schema import RunConfig, to_dict
from tests.fuzz import mutations
from tests.fuzz.target import Target
from train.report.reading import flat

KEYS = list(walk.dotted_fields(RunConfig))
DEFAULTS = flat(to_dict(compose([])))
NUMBERS = [key for key, value in DEFAULTS.items() if isinstance(value, int | float) and not isinstance(value, bool)]
MINE = {
    "defaults": [{"override /tuning": "lora"}, {"override /schedule": "cosine"}, "_self_"],
    "name": "mine",
    "seed": 3,
    "model": {"path": "meta-llama/Llama-3.2-1B", "new_tokens": ["<|a|>"]},
    "tuning": {"rank": 8, "targets": ["q_proj"], "alpha": 16.0},
    "data": {
        "seq_len": 512,
        "sources": {"own": {"format": "alpaca", "path": "rows.json", "weight": 2.0}},
        "stop": {"epochs": 2.0},
    },
    "optim": {"lr": 1e-4, "betas": [0.9, 0.95]},
    "evaluation": {"every_steps": 10, "sources": {"more": "corpora/${name}"}},
    "batch": {"global_size": 64},
}
BOMB = "a: &a [x, x, x, x]\n" + "".join(f"{new}: &{new} [*{old}, *{old}, *{old}, *{old}]\n" for old, new in
                                        zip("abcdefghijklmn", "bcdefghijklmno", strict=True))  # fmt: skip
TEXTS = (
    BOMB, "&a [*a]", "<<: *x", "- 1\n- 2", "%YAML 9\n---\n", "!!python/object/apply:os.system [id]", "? [a]\n: b",
    "[" * 5_000, "{" * 5_000, "x: !!binary ////", "name: &n ${name}", "a: ${a.b}\nb: ${a}", "\ufeff", "name: '\\ud800'",
    "seed: 0x" + "f" * 4_000, "seed: 1" + "0" * 6_000, "defaults: [/experiment: mine]", "defaults: 3", "seed: 1:2:3",
)  # fmt: skip


def damage_words(rng: Random, folder: Path) -> str:
    words = mutations.overrides_of(rng, KEYS, DEFAULTS)
    (folder / "words.json").write_text(json.dumps(words))
    return repr(words)


def read_words(folder: Path) -> None:
    """As every command begins, and as a run keeps what came of it."""
    cfg, _ = config_from_argv(json.loads((folder / "words.json").read_text()), command="train")
    save_config(cfg, folder / "run.yaml")
    load_config(folder / "run.yaml")


SIZES = (
    "1", "2", "3", "7", "8", "64", "100000", "1e4", "1e11", "1e18", "1e-9", "0.5", "0", "-1", "auto",
    str(2**31), str(2**63), str(10**30),
)  # fmt: skip
PLANS = ("experiment=demo", "model=llama31_8b", "model=gpt2", "experiment=alpaca_llama3_8b_lora")


def damage_sizes(rng: Random, folder: Path) -> str:
    words = [rng.choice(PLANS), *(f"{rng.choice(NUMBERS)}={rng.choice(SIZES)}" for _ in range(rng.randint(1, 2)))]
    (folder / "words.json").write_text(json.dumps(words))
    return repr(words)


def read_sizes(folder: Path) -> None:
    """As ``launch plan`` does."""
    from launch.__main__ import show_plan

    show_plan(json.loads((folder / "words.json").read_text()))


def damage_yaml(rng: Random, folder: Path) -> str:
    text = yaml.safe_dump(MINE, sort_keys=False)
    match rng.randrange(4):
        case 0:
            content = mutations.bytes_of(rng, text.encode())
        case 1:
            lines = text.splitlines()
            lines.insert(rng.randrange(len(lines) + 1), " " * rng.choice([0, 2, 4]) + rng.choice(TEXTS))
            content = "\n".join(lines).encode("utf-8", "surrogatepass")
        case _:  # JSON is yaml, surrogates and all
            content = json.dumps(mutations.json_of(rng, MINE), indent=1).encode()
    (folder / "experiment").mkdir(exist_ok=True)
    (folder / "experiment" / "mine.yaml").write_bytes(rng.choice([b"# @package _global_\n", b""]) + content)
    return f"{content[:400]!r}"


def read_yaml(folder: Path) -> None:
    cfg, _ = config_from_argv([f"--config-dir={folder}", "experiment=mine"], command="train")
    save_config(cfg, folder / "run.yaml")
    load_config(folder / "run.yaml")


def nothing(folder: Path) -> None:
    """The damage is all there is."""


TARGETS = (
    Target("overrides", nothing, damage_words, read_words),
    Target("plan", nothing, damage_sizes, read_sizes),
    Target("yaml", nothing, damage_yaml, read_yaml),
)
