"""Exports: what others load is exactly what was trained, with the prompt it was taught and where it came from."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from conf.compose import compose, save_config
from conf.errors import CannotCreate, ConfigError, CorralError, PermissionDenied, StorageError
from conf.schema import LoraTuning, ModelConfig, RunConfig
from data_prep.corpus.manifest import VERSION as CORPUS_VERSION
from data_prep.rows.conversation import Conversation, Message
from data_prep.samples.encode import encode_prompt
from data_prep.tokenizer import tokenizer as tokenizers
from tests.tiny import tiny_config, tiny_run, tiny_tokenizer
from tests.train.checkpoint.sealing import write_sealed
from train import tuning
from train.checkpoint.layout import VERSION, folder_of
from train.checkpoint.reopen import reopen
from train.export.__main__ import asked_for
from train.export.folder import export, main_template, refusal
from train.export.model_card import last_metrics
from train.model.build import TokenIds, build
from train.ranks.group import Ranks

STEP = 40
LORA = LoraTuning(method="lora", rank=2, alpha=16.0)


def write_corpus(folder: Path, template: str = "alpaca") -> tokenizers.Tokenizer:
    """As much of a prepared corpus as an export reads: manifest and tokenizer."""
    tokenizer = tokenizers.load_tokenizer(str(tiny_tokenizer(folder / "tokenizer")))
    manifest = {
        "version": CORPUS_VERSION,
        "tokenizer": {"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size},
        "min_vocab": tokenizer.vocab_size,
        "config": {},
        "config_sha256": "",
        "seq_len": 64,
        "max_tokens": 64,
        "files": {"tiny": []},
        "template": {"tiny": template},
        "sources": {"tiny": {"splits": {}}},
    }
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))
    return tokenizer


def write_checkpoint(run_dir: Path, weights: Mapping[str, torch.Tensor], *, base_hash: str, tokenizer: str) -> None:
    """The canonical layout, from one rank: a flat fp32 fragment per parameter."""
    folder = folder_of(run_dir, STEP)
    folder.mkdir(parents=True)
    name = "state-00000-of-00001.safetensors"
    save_file({f"{key}::weight": value.flatten().contiguous() for key, value in weights.items()}, folder / name)
    manifest = {
        "version": VERSION,
        "step": STEP,
        "optimizer_steps": 0,
        "world": 1,
        "files": {name: {}},
        "tensors": {
            key: {"shape": list(value.shape), "pieces": [[name, 0, value.numel()]]} for key, value in weights.items()
        },
        "base_hash": base_hash,
        "tokenizer": tokenizer,
    }
    write_sealed(folder, manifest)


def trained_run(
    root: Path,
    kind: str = "llama",
    *,
    lora: bool = False,
    dtype: str = "fp32",
    tied: bool = False,
    template: str = "alpaca",
) -> tuple[RunConfig, dict[str, torch.Tensor]]:
    """A run folder with a checkpoint of random "trained" fp32 weights, and those weights by canonical name."""
    run_dir = root / "run"
    run_dir.mkdir(parents=True)
    tokenizer = write_corpus(root / "corpus", template)
    config = {key: value for key, value in tiny_config(kind, tied=tied).items() if key != "vocab_size"}
    cfg = tiny_run(
        run_dir,
        ModelConfig(config=config, init="random", dtype=dtype, tokenizer=str(root / "corpus" / "tokenizer")),  # type: ignore[arg-type]
        tuning=LORA if lora else None,
        pack="none" if kind == "bloom" else "exact",
        prepared=str(root / "corpus"),
    )
    save_config(cfg, run_dir / "run.yaml")
    found = build(cfg, Ranks(), TokenIds.of(tokenizer))
    generator = torch.Generator().manual_seed(9)
    weights = {
        name: parameter.detach().float() + 0.2 * torch.randn(parameter.shape, generator=generator)
        for name, parameter in tuning.trainable(found.model).items()
    }
    write_checkpoint(run_dir, weights, base_hash=found.base_hash, tokenizer=tokenizer.fingerprint)
    log = [
        {"step": 10, "eval/loss": 2.0},
        {"step": 40, "eval/loss": 1.5, "train/loss": 1.25},
        {"step": 50, "eval/loss": 9},
    ]
    (run_dir / "metrics.jsonl").write_text("\n".join(map(json.dumps, log)) + '\n{"step": 6')
    return cfg, weights


def ask(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("kind", "tied"), [("llama", False), ("llama", True), ("gpt2", True), ("bloom", True)])
def test_a_full_export_is_the_trained_weights(tmp_path: Path, kind: str, tied: bool, dtype: str) -> None:
    cfg, weights = trained_run(tmp_path, kind, dtype=dtype, tied=tied)
    folder = export(Path(cfg.run_dir))
    model = AutoModelForCausalLM.from_pretrained(folder)
    as_computed = torch.bfloat16 if dtype == "bf16" else torch.float32
    found = dict(model.named_parameters())
    assert found.keys() == weights.keys()
    for name, parameter in found.items():
        assert torch.equal(parameter, weights[name].to(as_computed)), name
    modes = {file.stat().st_mode for file in folder.iterdir()}
    assert list(folder.glob("*.safetensors"))
    assert modes == {(folder / "config.json").stat().st_mode}
    config = json.loads((folder / "config.json").read_text())
    assert config["use_cache"] is True
    assert "corral" not in json.dumps(config)
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (0, 1)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_lora_exports_merged_or_apart_compute_what_was_trained(tmp_path: Path, kind: str) -> None:
    cfg, weights = trained_run(tmp_path, kind, lora=True)
    run_dir = Path(cfg.run_dir)
    trained = reopen(run_dir).model
    trained.set_attn_implementation("sdpa")  # type: ignore[operator]
    expected = ask(trained)
    merged = AutoModelForCausalLM.from_pretrained(export(run_dir)).eval()
    torch.testing.assert_close(ask(merged), expected, atol=2e-5, rtol=0)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    folder = export(run_dir, merge=False)
    assert not (folder / "config.json").exists()
    base = AutoModelForCausalLM.from_pretrained(run_dir / "init")
    adapted = PeftModel.from_pretrained(base, folder).eval()
    torch.testing.assert_close(ask(adapted), expected, atol=2e-5, rtol=0)
    assert adapted.peft_config["default"].base_model_name_or_path == str((run_dir / "init").resolve())
    found = {name: p for name, p in adapted.named_parameters() if "lora_" in name}
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    # By itself, too: transformers finds the base through the adapter's own config.
    torch.testing.assert_close(ask(AutoModelForCausalLM.from_pretrained(folder).eval()), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("template", ["alpaca", "plain"])
def test_the_tokenizer_asks_as_the_model_was_taught(tmp_path: Path, template: str) -> None:
    cfg, _ = trained_run(tmp_path, template=template)
    folder = export(Path(cfg.run_dir))
    assert json.loads((folder / "corral.json").read_text())["template"] == template
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Repeat: red cat"}], tokenize=False)
    taught = tokenizers.load_tokenizer(cfg.model.tokenizer)  # type: ignore[arg-type]
    prompt = Conversation((Message("user", "Repeat: red cat"),))
    assert tokenizer(text, add_special_tokens=False).input_ids == encode_prompt(prompt, template, taught)


def test_the_export_asks_with_the_template_of_most_samples_but_keeps_a_chat_template_that_was_trained(
    tmp_path: Path,
) -> None:
    rows = {"a": ("alpaca", 5), "b": ("plain", 3), "c": ("plain", 4)}

    def corpus(**sources: tuple[str, int]) -> Any:
        splits = {name: {"splits": {"train": {"rows": count}}} for name, (_, count) in sources.items()}
        templates = {name: template for name, (template, _) in sources.items()}
        return SimpleNamespace(templates=templates, manifest={"sources": splits})

    assert main_template(corpus(**rows)) == "plain"
    assert main_template(corpus(**(rows | {"a": ("alpaca", 8)}))) == "alpaca"
    assert main_template(corpus(**rows, d=("chat", 1))) == "chat"


def test_the_card_says_where_everything_comes_from(tmp_path: Path) -> None:
    cfg, _ = trained_run(tmp_path)
    folder = export(Path(cfg.run_dir), step=STEP)
    made = json.loads((folder / "corral.json").read_text())
    assert made["step"] == STEP
    assert made["metrics"] == {"eval/loss": 1.5, "train/loss": 1.25}
    assert made["corpus_sha256"] == hashlib.sha256((tmp_path / "corpus" / "MANIFEST.json").read_bytes()).hexdigest()
    assert made["config_sha256"] == hashlib.sha256((tmp_path / "run" / "run.yaml").read_bytes()).hexdigest()
    assert made["versions"]["torch"] == torch.__version__
    page = (folder / "README.md").read_text()
    assert page.startswith("---\nlibrary_name: transformers")
    for part in (made["base_hash"][:16], made["corpus_sha256"][:16], "40 optimizer steps", "tiny: alpaca", "1.5000"):
        assert part in page


def test_an_export_replaces_the_one_before_as_a_whole(tmp_path: Path) -> None:
    cfg, _ = trained_run(tmp_path)
    run_dir = Path(cfg.run_dir)
    (run_dir / "export").mkdir()
    (run_dir / "export" / "model-00001-of-00009.safetensors").write_text("stale")
    export(run_dir)
    assert not (run_dir / "export" / "model-00001-of-00009.safetensors").exists()
    assert not list(run_dir.glob(".export*"))


def test_a_failed_export_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, _ = trained_run(tmp_path)
    run_dir = Path(cfg.run_dir)
    before = sorted((file.name, file.stat().st_mtime_ns) for file in export(run_dir).iterdir())

    def full(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("train.export.folder.card", full)
    with pytest.raises(StorageError, match="No space left on device; free some space"):
        export(run_dir)
    assert sorted((file.name, file.stat().st_mtime_ns) for file in (run_dir / "export").iterdir()) == before
    assert not list(run_dir.glob(".export*"))


def test_merge_false_needs_adapters(tmp_path: Path) -> None:
    cfg, _ = trained_run(tmp_path)
    with pytest.raises(ConfigError, match="this run tuned every weight; leave merge out"):
        export(Path(cfg.run_dir), merge=False)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(28, "No space left on device"), StorageError),
        (PermissionError(13, "Permission denied", "x"), PermissionDenied),
        (NotADirectoryError(20, "Not a directory"), CannotCreate),
    ],
)
def test_each_failure_to_write_has_its_kind(error: OSError, kind: type[CorralError]) -> None:
    assert type(refusal(error, Path("run/export"))) is kind


def test_wrong_arguments_are_all_named(tmp_path: Path) -> None:
    save_config(compose(["experiment=demo"]), tmp_path / "run.yaml")
    with pytest.raises(ConfigError) as caught:
        asked_for([f"run_dir={tmp_path}", "checkpoint=last", "merge=maybe"])
    assert len(caught.value.problems) == 2
    cfg, step, merge = asked_for([f"run_dir={tmp_path}", "checkpoint=7", "merge=False", "data.prepared=elsewhere"])
    assert (cfg.run_dir, cfg.data.prepared, step, merge) == (str(tmp_path), "elsewhere", 7, False)


def test_metrics_without_a_file_are_none(tmp_path: Path) -> None:
    assert last_metrics(tmp_path / "metrics.jsonl", 5) == {}


def test_the_command_as_a_user_types_it(tmp_path: Path) -> None:
    """Exit codes and what is printed: done (0), no such run (66), no such checkpoint (74)."""
    cfg, _ = trained_run(tmp_path, lora=True)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "train.export", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    done = run(f"run_dir={cfg.run_dir}")
    assert done.returncode == 0, done.stderr
    assert f"python -m train.chat model={cfg.run_dir}/export" in done.stdout
    absent = run(f"run_dir={tmp_path}/nowhere")
    assert (absent.returncode, "Traceback" in absent.stderr) == (66, False)
    unknown = run(f"run_dir={cfg.run_dir}", "checkpoint=7")
    assert (unknown.returncode, "Traceback" in unknown.stderr) == (74, False)
