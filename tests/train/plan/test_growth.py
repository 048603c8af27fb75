"""A vocabulary that grows in the plan: tokens by a tokenizer's files, parameters, memory, and what the user reads."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.plan_accuracy import CASES
from benchmarks.plan_accuracy import config as run_of
from conf.compose import compose
from conf.errors import ConfigError
from conf.schema import ModelConfig
from conf.schema.methods import BottleneckTuning, FullTuning, Ia3Tuning, LoraTuning, PromptTuning, Tuning
from data_prep.tokenizer.growth import GROWN, growth_of, token_count
from data_prep.tokenizer.tokenizer import load_tokenizer
from launch.plan.table import before_start, planned, table, to_json
from tests.data_prep.tokenizer.test_auto import chatml_folder
from tests.tiny import FAMILIES, tiny_config, tiny_model
from train import tuning
from train.families import family, shape_of
from train.plan import read_model_config
from train.plan.activations import step_peaks
from train.plan.memory import trained_and_frozen, work_of
from train.trace import trace

Data = Callable[[str], Path]
CHATML = ["<|im_start|>", "<|im_end|>"]
METHODS: list[Tuning] = [
    FullTuning(method="full"),
    LoraTuning(method="lora", rank=4),
    Ia3Tuning(method="ia3"),
    PromptTuning(method="prompt", virtual_tokens=3),
    BottleneckTuning(method="bottleneck", size=5),
]


@pytest.mark.parametrize(
    "folder",
    [
        "tokenizers/gpt2",
        "tokenizers/tiny_torchtitan",
        "tokenizers/mistral_v1",
        "tokenizers/mistral_v3",
        "weights/stories260K/hf",
        "chatml",
    ],
)
def test_files_say_as_many_tokens_as_the_tokenizer_has(folder: str, real_data: Data, tmp_path: Path) -> None:
    place = str(chatml_folder(real_data, tmp_path) if folder == "chatml" else real_data(folder))
    plain, grown = ModelConfig(path="x", tokenizer=place), ModelConfig(path="x", tokenizer=place, new_tokens=CHATML)
    assert token_count(plain) == load_tokenizer(place).vocab_size
    assert token_count(grown) == load_tokenizer(place, None, CHATML).vocab_size


def test_a_token_that_a_config_names_and_the_vocabulary_lacks_is_counted(real_data: Data, tmp_path: Path) -> None:
    for file in real_data("tokenizers/gpt2").iterdir():
        shutil.copy(file, tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": "<pad>"}))
    assert (
        token_count(ModelConfig(path="x", tokenizer=str(tmp_path))) == load_tokenizer(str(tmp_path)).vocab_size == 50258
    )


def test_rows_follow_from_base_and_tokens(real_data: Data) -> None:
    stories = str(real_data("weights/stories260K/hf"))
    model = ModelConfig(path=stories, new_tokens=CHATML)
    grown = growth_of(model, 512)
    assert grown is not None
    assert (grown.tokens, grown.rows, grown.new) == (514, 576, 2)
    free = growth_of(model, 600)  # as Qwen's embedding, which has rows without tokens
    assert free is not None
    assert (free.rows, free.new) == (600, 2)
    assert growth_of(ModelConfig(path=stories), 512) is None
    assert growth_of(ModelConfig(path=stories, tokenizer=str(real_data("tokenizers/gpt2"))), 512).rows == 50304  # type: ignore[union-attr]
    unknown = growth_of(ModelConfig(path="nobody/nowhere", new_tokens=CHATML), 32000)
    assert unknown is not None
    assert (unknown.tokens, unknown.rows) == (32002, 32064)
    found = read_model_config(model)
    assert (found["vocab_size"], found[GROWN]) == (576, 512)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", FAMILIES)
def test_counts_equal_real_models(kind: str, tied: bool) -> None:
    shape = shape_of({**tiny_config(kind, tied=tied), GROWN: 60})
    for method in METHODS:
        model = tuning.apply(tiny_model(kind, tied=tied), method, family(kind), seed=0)
        tuning.train_tables(model, method)
        trained = sum(parameter.numel() for parameter in tuning.trainable(model).values())
        total = sum(parameter.numel() for parameter in model.parameters())
        cfg = dataclasses.replace(compose(["model=llama31_8b"]), tuning=method)
        assert trained_and_frozen(cfg, shape) == (trained, total - trained), method


@pytest.mark.parametrize("case", [case for case in CASES if case.method == "lora"][:4], ids=lambda case: case.name)
def test_the_closed_form_of_a_grown_model_follows_the_trace(case: Any) -> None:
    cfg, model = run_of(case), {**case.model, GROWN: 1000}
    shape = shape_of(model)
    moments = step_peaks(model, shape, work_of(cfg, shape, case.supervised), case.recompute)
    found = max(moment.total for moment in moments.values()) / trace(cfg, model, case.supervised).peak - 1
    assert -0.02 <= found <= 0.03, case


def overrides(base: Path, *more: str) -> list[str]:
    return ["data=alpaca", f"model.path={base}", "model.dtype=fp32", "tuning=lora", "name=x", *more]


def test_plan_and_launch_say_it_before_anything_is_prepared(real_data: Data) -> None:
    base = real_data("weights/stories260K/hf")
    plain, grown = compose(overrides(base)), compose(overrides(base, f"model.new_tokens={CHATML}"))
    assert "tokens, the base" not in table(planned(plain)) + before_start(plain)
    assert "growth" not in json.loads(to_json(planned(plain), None))
    sentence = (
        "model.tokenizer: it has 514 tokens, the base rows for 512; embedding and head grow to 576 rows (a multiple of "
        "64) and are trained whole; 2 new rows and 62 of padding begin as the mean of the others."
    )
    said = planned(grown)
    assert sentence in before_start(grown)
    assert sentence in " ".join(table(said).split())
    assert sentence in json.loads(to_json(said, None))["growth"]
    # 64 more rows in the base; with the adapters, all 576 of the tied table are trained.
    was = planned(plain).found
    assert said.found.parameters == was.parameters + 64 * 64
    assert said.found.trained == was.trained + 576 * 64
    assert said.found.checkpoint_bytes == was.checkpoint_bytes + 12 * 576 * 64


def test_a_random_model_with_too_few_rows_is_refused_by_plan(real_data: Data) -> None:
    small = {**tiny_config("llama"), "vocab_size": 100}
    model = ModelConfig(config=small, init="random", tokenizer=str(real_data("tokenizers/gpt2")))
    with pytest.raises(ConfigError, match=r"model\.config\.vocab_size: 100 is less than the tokenizer's 50257"):
        read_model_config(model)
    assert (
        read_model_config(ModelConfig(config=small, tokenizer="train", vocab_size=300, new_tokens=CHATML))["vocab_size"]
        == 302
    )


@pytest.mark.parametrize(
    ("tokens", "said"), [("['<a>','<a>']", "'<a>' stands there twice"), ("['<a> ']", "begins or ends with a space")]
)
def test_mistakes_are_told(tokens: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.new_tokens: .*{said}"):
        compose(["experiment=demo", f"model.new_tokens={tokens}"])
