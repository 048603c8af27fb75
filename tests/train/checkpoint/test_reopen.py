"""``train.evaluate`` on a run directory: the checkpoint's weights are the ones evaluated, in one process."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from conf.compose import compose, save_config
from conf.errors import ConfigError, MissingInput, StorageError
from conf.schema import RunConfig
from data_prep.corpus.identity import corpus_path
from data_prep.corpus.shards import open_corpus
from data_prep.prepare import prepare
from data_prep.tokenizer.tokenizer import load_tokenizer
from tests.tiny import tiny_alpaca
from tests.train.checkpoint.sealing import write_sealed
from train.checkpoint.layout import VERSION
from train.checkpoint.reopen import reopen
from train.evaluate import __main__ as evaluate
from train.evaluate.evaluation import evaluate_all
from train.model.build import Built, TokenIds, build
from train.ranks.group import Ranks
from train.tuning import trainable


def config(folder: Path, *more: str) -> list[str]:
    source = f"{{format: alpaca, path: {folder}/a.json, template: plain, validation_fraction: 0.3}}"
    return [
        "experiment=demo",
        "~data.sources.words",
        f"+data.sources.tiny={source}",
        f"data.prepared={folder}/corpus",
        f"run_dir={folder}/run",
        "data.bad_row_budget=1.0",
        "model.vocab_size=300",
        "model.config.num_hidden_layers=2",
        "model.config.hidden_size=32",
        "evaluation.max_new_tokens=4",
        *more,
    ]


def built_of(cfg: RunConfig) -> Built:
    return build(cfg, Ranks(), TokenIds.of(load_tokenizer(str(corpus_path(cfg) / "tokenizer"))))


def write_checkpoint(
    run_dir: Path, step: int, weights: Mapping[str, torch.Tensor], built: Built, tokenizer: str
) -> Path:
    """A checkpoint in the layout of train/checkpoint/layout.py, with one file and no moments."""
    folder = run_dir / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    save_file({f"{name}::weight": weight.flatten() for name, weight in weights.items()}, folder / "state.safetensors")
    tensors = {
        name: {"shape": list(weight.shape), "pieces": [["state.safetensors", 0, weight.numel()]]}
        for name, weight in weights.items()
    }
    manifest = {
        "version": VERSION,
        "step": step,
        "optimizer_steps": 0,
        "world": 1,
        "files": {"state.safetensors": {}},
        "tensors": tensors,
        "base_hash": built.base_hash,
        "tokenizer": tokenizer,
    }
    write_sealed(folder, manifest)
    return folder


@pytest.fixture(scope="module", params=["full", "lora"])
def run_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of random weights with one checkpoint at step 7 whose weights are others, and a tokenizer it fits."""
    folder = tmp_path_factory.mktemp(str(request.param))
    tiny_alpaca(folder / "a.json")
    overrides = config(folder, f"tuning={request.param}")
    cfg = compose(overrides)
    corpus = open_corpus(prepare(cfg, argv=overrides))
    save_config(cfg, folder / "run" / "run.yaml")
    built = built_of(cfg)
    generator = torch.Generator().manual_seed(1)
    shapes = {name: parameter.shape for name, parameter in trainable(built.model).items()}
    weights = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    write_checkpoint(folder / "run", 7, weights, built, corpus.tokenizer_fingerprint)
    return folder / "run"


def test_the_command_evaluates_the_checkpoint(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", f"run_dir={run_dir}", "generate_rows=3", "max_rows=0"])
    assert evaluate.main() == 0
    assert "demo, step 7" in capsys.readouterr().out
    found = json.loads((run_dir / "evaluation-step-7.json").read_text())
    run = reopen(run_dir, 7)
    metrics, _ = evaluate_all(
        run.model, run.corpus, run.cfg, tokenizer=run.tokenizer, attention=run.attention, ranks=run.ranks
    )
    assert found["metrics"]["eval/loss"] == pytest.approx(metrics["eval/loss"], rel=1e-6)
    assert found["metrics"]["eval/tiny/loss"] == found["metrics"]["eval/loss"]
    assert len(found["samples"]) == 3
    started = built_of(run.cfg)
    before, _ = evaluate_all(
        started.model, run.corpus, run.cfg, tokenizer=run.tokenizer, attention=run.attention, ranks=run.ranks
    )
    assert abs(before["eval/loss"] - metrics["eval/loss"]) > 0.01  # not the weights the run started from


def test_a_moved_run_still_loads(run_dir: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(run_dir, tmp_path / "moved"))
    here, there = (reopen(each).model.state_dict() for each in (run_dir, moved))
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)


def test_what_does_not_fit_is_refused(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = Path(shutil.copytree(run_dir, tmp_path / "copied"))
    path = copied / "checkpoints" / "step-00000007" / "MANIFEST.json"
    manifest = json.loads(path.read_text())
    name = sorted(manifest["tensors"])[0]
    manifest["tensors"][name + ".other"] = manifest["tensors"].pop(name)
    content = {f"{key}::weight": torch.zeros(entry["pieces"][0][2]) for key, entry in manifest["tensors"].items()}
    save_file(content, path.parent / "state.safetensors")
    write_sealed(path.parent, manifest)
    with pytest.raises(StorageError, match=r"1 weights are missing, 1 unknown"):
        reopen(copied)
    write_sealed(path.parent, manifest | {"base_hash": "other"})
    with pytest.raises(ConfigError, match="the base model is not the one"):
        reopen(copied)
    write_sealed(path.parent, manifest | {"base_config": {"num_attention_heads": 99}})
    with pytest.raises(ConfigError, match=r"config\.json is not the one that .*num_attention_heads: 99 there, . now"):
        reopen(copied)
    write_sealed(path.parent, manifest | {"base_files": ["other.safetensors"]})
    with pytest.raises(ConfigError, match=r"are read from model\.safetensors, and those of .* from other\.safetensors"):
        reopen(copied)
    with pytest.raises(StorageError, match="no checkpoint that verifies"):
        reopen(copied, 99)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="not with torchrun"):
        reopen(copied)
    (copied / "run.yaml").unlink()
    with pytest.raises(MissingInput, match=r"no run\.yaml in it"):
        reopen(copied)
