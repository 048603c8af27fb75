"""``batch.global_size=auto``: what it becomes, why, and that launch, plan, train and a resume find the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from conf.compose import compose
from conf.frozen import load_config, save_config
from conf.schema import RunConfig
from data_prep.stream.stream import Stream
from launch.plan.table import before_start, planned, table
from tests.data_prep.streams import FakeSplit, fake_split
from train.plan import batch_size, is_open, settle, size_chosen


def config(folder: Path, *more: str) -> RunConfig:
    return compose(
        [
            "data=demo",
            "model=demo_llama",
            f"data.prepared={folder}/corpus",
            f"run_dir={folder}/run",
            "data.stop.epochs=3",
            *more,
        ]
    )


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeSplit]:
    """The splits that a prepared corpus seems to have."""
    splits: dict[str, FakeSplit] = {}
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "MANIFEST.json").write_text("{}")
    opened = SimpleNamespace(split=lambda name: splits)
    monkeypatch.setattr("train.plan.global_size.open_corpus", lambda path, verify: opened)
    return splits


def steps_of_a_run(cfg: RunConfig, splits: dict[str, FakeSplit]) -> int:
    assert cfg.batch.global_size != "auto"
    return Stream(splits, cfg.data, seed=cfg.seed, global_size=cfg.batch.global_size).total_steps()


def test_a_large_corpus_takes_steps_of_32768_tokens(tmp_path: Path, corpus: dict[str, FakeSplit]) -> None:
    corpus["words"] = fake_split("words", 9_000, shortest=150, longest=250)  # 1.8 M tokens: 900 rows of 2,048
    found = batch_size(config(tmp_path, "data.seq_len=2048"))
    assert (found.rows, found.why) == (16, "about 32,768 tokens")
    assert batch_size(config(tmp_path, "data.seq_len=512")).rows == 64


def test_a_small_corpus_takes_smaller_steps_and_so_at_least_20_a_pass(
    tmp_path: Path, corpus: dict[str, FakeSplit]
) -> None:
    corpus["words"] = fake_split("words", 600, shortest=100, longest=100)  # 20 samples to a row of 2,048: 30 rows
    cfg = config(tmp_path, "data.seq_len=2048", "data.window=600")
    found = batch_size(cfg)
    assert found.rows == 1
    assert "30 rows are a pass over the corpus, so it has 30 steps" in found.why
    assert "would be 2" in found.why
    corpus["words"] = fake_split("words", 2_400, shortest=100, longest=100)  # 120 rows: 6 a step, 20 steps, 3 epochs
    settled = settle(config(tmp_path, "data.seq_len=2048", "data.window=2400"), nodes=1, per_node=1)
    assert settled.batch.global_size == 6
    assert steps_of_a_run(settled, corpus) == 60


def test_fifty_rows_take_more_than_ten_steps(tmp_path: Path, corpus: dict[str, FakeSplit]) -> None:
    corpus["words"] = fake_split("words", 45, shortest=200, longest=400)  # 7 rows of 2,048, three times
    settled = settle(config(tmp_path, "data.seq_len=2048"), nodes=1, per_node=1)
    assert settled.batch.global_size == 1
    assert steps_of_a_run(settled, corpus) > 10


def test_less_than_a_pass_counts_what_the_run_draws(tmp_path: Path, corpus: dict[str, FakeSplit]) -> None:
    corpus["words"] = fake_split("words", 24_000, shortest=100, longest=100)  # 1,200 rows
    cfg = config(tmp_path, "data.seq_len=2048", "data.stop.epochs=0.1")  # 120 of them
    assert batch_size(cfg).rows == 6


def test_padded_rows_are_counted_by_their_tokens(tmp_path: Path, corpus: dict[str, FakeSplit]) -> None:
    corpus["words"] = fake_split("words", 10_000, shortest=128, longest=128)
    assert batch_size(config(tmp_path, "data.seq_len=2048", "data.pack=none", "attention=sdpa")).rows == 256


def test_it_does_not_depend_on_ranks_and_holds_a_micro_batch(tmp_path: Path, corpus: dict[str, FakeSplit]) -> None:
    corpus["words"] = fake_split("words", 600, shortest=100, longest=100)
    cfg = config(tmp_path, "data.seq_len=2048")
    sizes = {settle(cfg, nodes=nodes, per_node=ranks).batch.global_size for nodes, ranks in ((1, 1), (1, 8), (4, 8))}
    assert sizes == {1}
    assert batch_size(config(tmp_path, "data.seq_len=2048", "batch.micro_size=4")).rows == 4


def test_a_resumed_run_keeps_its_size(tmp_path: Path, corpus: dict[str, FakeSplit]) -> None:
    corpus["words"] = fake_split("words", 600, shortest=100, longest=100)
    cfg = config(tmp_path, "data.seq_len=2048")
    first = settle(cfg, nodes=1, per_node=1)
    save_config(first, tmp_path / "run" / "run.yaml")
    assert load_config(tmp_path / "run" / "run.yaml").batch.global_size == 1
    (tmp_path / "run" / "checkpoints" / "step-00000001").mkdir(parents=True)
    corpus["words"] = fake_split("words", 20_000, shortest=100, longest=100)  # the data has grown since
    resumed = settle(cfg, nodes=1, per_node=1)
    assert resumed.batch.global_size == 1
    assert not is_open(resumed)
    assert size_chosen(cfg, resumed) == "batch.global_size=1: as when this run began"


def test_an_explicit_size_wins(tmp_path: Path, corpus: dict[str, FakeSplit]) -> None:
    cfg = config(tmp_path, "batch.global_size=7")
    assert settle(cfg, nodes=1, per_node=1) == cfg
    assert size_chosen(cfg, cfg) == ""


def test_before_the_corpus_exists_plan_and_launch_say_that_it_decides(tmp_path: Path) -> None:
    cfg = config(tmp_path, "data.seq_len=2048")
    answer = planned(cfg)
    assert answer.cfg.batch.global_size == 16
    assert answer.global_size.startswith("batch.global_size=16: at most, about 32,768 tokens; the corpus decides")
    assert "batch.global_size=16: at most" in table(answer)
    assert "up to 16 micro-batches per step" in before_start(cfg)
    assert "up to" not in before_start(replace(cfg, batch=replace(cfg.batch, global_size=4)))
