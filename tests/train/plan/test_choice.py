"""The stage, recomputation and micro-batch that `auto` chooses, and from where a plan takes its model and samples."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from conf.compose import compose
from conf.errors import BadData, ConfigError, MissingInput
from conf.frozen import save_config
from conf.schema import ModelConfig
from tests.train.plan.test_plan import GPT2, LLAMA_31_8B
from train.plan import GIB, Corpus, plan, read_model_config, settle
from train.plan.choice import MARGIN, choose, keep_frozen, options

OPEN = ["zero=auto", "model.recompute=auto", "batch.micro_size=auto", "batch.global_size=128"]


@pytest.mark.parametrize("gpus", [1, 2, 8])
@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("gib", [40.0, 80.0, 141.0])
def test_the_choice_fits_with_its_margin_and_nothing_that_fits_is_faster(gpus: int, tuning: str, gib: float) -> None:
    cfg = compose(
        [
            "model=llama31_8b",
            f"tuning={tuning}",
            f"cluster.gpus_per_node={gpus}",
            f"cluster.gpu_memory_gib={gib}",
            *OPEN,
        ]
    )
    found = options(cfg, LLAMA_31_8B, 0.5)
    chosen = choose(found)
    fitting = [each for each in found if each.memory.device <= gib * GIB * (1 - MARGIN)]
    assert (chosen is None) == (not fitting)
    if chosen is not None:
        assert chosen in fitting
        assert chosen.cost == min(each.cost for each in fitting)
        assert all(each.against(chosen, gib) for each in found)


def test_auto_is_resolved_and_an_earlier_choice_is_kept(tmp_path: Path) -> None:
    cfg = compose(["model=llama31_8b", f"run_dir={tmp_path}", *OPEN])
    chosen = settle(cfg, nodes=1, per_node=8)
    assert "auto" not in (chosen.zero.stage, chosen.model.recompute, chosen.batch.micro_size)
    assert chosen == settle(cfg, nodes=1, per_node=8)
    assert chosen.cluster == cfg.cluster
    earlier = replace(chosen, zero=replace(chosen.zero, stage=3), batch=replace(chosen.batch, micro_size=1))
    kept = keep_frozen(cfg, earlier)
    assert (kept.zero.stage, kept.batch.micro_size) == (3, 1)
    save_config(earlier, tmp_path / "run.yaml")
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    assert settle(cfg, nodes=1, per_node=8).zero.stage == 3


def test_what_fits_nowhere_is_said_with_what_would() -> None:
    cfg = compose(["model=llama31_8b", "cluster.gpu_memory_gib=16.0", *OPEN])
    # Recomputation needs as much: the peak is the norm of the embedding's gradient, after all blocks.
    smallest = r"the smallest plan \(zero=2 recompute=none micro=1\) needs 139\.6 .* tuning=lora"
    with pytest.raises(ConfigError, match=smallest):
        settle(cfg, nodes=1, per_node=1)


def test_steps_and_samples_come_from_the_corpus() -> None:
    corpus = Corpus(rows=52_000, tokens=52_000 * 128, supervised=0.4)
    cfg = compose(["model=llama31_8b", "data=alpaca", "data.stop.epochs=3.0", "batch.global_size=16"])
    found = plan(cfg, LLAMA_31_8B, corpus)
    assert found.samples_per_step == 16 * 16
    assert found.steps == 610  # 3 * 52000 / 256 = 609.4
    assert plan(cfg, LLAMA_31_8B).steps is None


def test_the_model_config_is_read_from_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GPT2))
    assert read_model_config(ModelConfig(path=str(tmp_path))) == GPT2
    inline = ModelConfig(config={"model_type": "gpt2"}, init="random", tokenizer="train", vocab_size=512)
    assert read_model_config(inline)["vocab_size"] == 512
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadData, match=r"config\.json cannot be used"):
        read_model_config(ModelConfig(path=str(tmp_path)))
    (tmp_path / "config.json").unlink()
    with pytest.raises(MissingInput, match=r"no config\.json"):
        read_model_config(ModelConfig(path=str(tmp_path)))


@pytest.mark.parametrize("name", ["nobody/nothing-here", "no such/folder/at all"])
def test_a_model_that_is_not_on_this_machine_is_not_downloaded(name: str) -> None:
    with pytest.raises(MissingInput, match="neither a local folder nor in the local hub cache"):
        read_model_config(ModelConfig(path=name))
