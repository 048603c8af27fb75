"""Model folders: tokenizer, config, weights whole and in parts, adapters; planned, built, loaded and talked to."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

from conf.schema import LoraTuning, ModelConfig
from data_prep.tokenizer.growth import token_count
from data_prep.tokenizer.tokenizer import load_tokenizer
from tests.fuzz import mutations
from tests.fuzz.target import Target

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
WEIGHTS = ("model.safetensors", "config.json", "generation_config.json")
IN_PARTS = ("model.safetensors.index.json", "model-00001-of-00004.safetensors", "config.json")
TEXTS = ("Hello world", "  naïve 你好\n", "<|endoftext|>", "")
VOCAB = 320


def make(folder: Path) -> None:
    from tests.foreign.folders import honest

    honest(folder)
    (folder / "corral.json").write_text(json.dumps({"template": "plain"}))


def make_in_parts(folder: Path) -> None:
    from tests.foreign.folders import honest
    from tests.tiny import tiny_model

    honest(folder)
    (folder / "model.safetensors").unlink()
    tiny_model("llama", vocab_size=VOCAB).save_pretrained(folder, max_shard_size="50KB")
    assert all((folder / name).is_file() for name in IN_PARTS), sorted(folder.iterdir())


def make_adapter(folder: Path) -> None:
    from tests.foreign.folders import honest
    from tests.tiny import tiny_model
    from train import tuning
    from train.families import family

    honest(folder / "base")
    method = LoraTuning(method="lora", rank=2)
    adapted = tuning.apply(tiny_model("llama", vocab_size=VOCAB), method, family("llama"), seed=0)
    (folder / "adapter").mkdir()
    tuning.save(adapted, method, folder / "adapter", base=str(folder / "base"))


def read_tokenizer(folder: Path) -> None:
    token_count(ModelConfig(path=str(folder)))
    words = load_tokenizer(str(folder), None, ["<|new|>"])
    words.encode_batch(TEXTS)
    words.decode([0, 1, 2])
    _ = words.fingerprint, words.vocab_size, words.starts_with_bos, words.pad_id, words.bos_id, words.stop_ids


def read_config(folder: Path) -> None:
    from tests.tiny import tiny_run
    from train.loading import pretrained
    from train.plan import corpus_of, plan, read_model_config, settle

    model = ModelConfig(path=str(folder), tokenizer=str(folder))
    cfg = replace(tiny_run(folder / "run", model), batch=replace(tiny_run(folder, model).batch, global_size=8))
    plan(settle(cfg, nodes=1, per_node=1), read_model_config(model), corpus_of(cfg))
    pretrained.read_config(folder, key="model.path", trust_remote_code=False)


def build_model(folder: Path) -> None:
    from tests.tiny import tiny_run
    from train.model.build import TokenIds, build
    from train.ranks.group import Ranks

    model = ModelConfig(path=str(folder), dtype="fp32")
    build(tiny_run(folder / "run", model), Ranks(), TokenIds(vocab_size=VOCAB, pad_id=1, eos_id=0))


def talk(folder: Path) -> None:
    """As ``train.chat model=DIR prompt=...`` does."""
    from train.chat.__main__ import talk as answer
    from train.process.causes import causes_named

    with causes_named():
        answer({"model": str(folder), "prompt": "Say red.", "max_new_tokens": "3"})


def read_adapter(folder: Path) -> None:
    from train.export.exported import load_model

    mutations.redirect(folder / "adapter" / "adapter_config.json", folder / "base")
    load_model(folder / "adapter")


def files(*names: str) -> Callable[[Random, Path], str]:
    return lambda rng, folder: mutations.folder_of(rng, folder, names)


def damage_adapter(rng: Random, folder: Path) -> str:
    return mutations.folder_of(rng, folder / "adapter", ("adapter_config.json", "adapter_model.safetensors"))


TARGETS = (
    Target("tokenizer", make, files(*TOKENIZER), read_tokenizer),
    Target("config", make, files("config.json"), read_config),
    Target("build", make, files(*WEIGHTS), build_model),
    Target("parts", make_in_parts, files(*IN_PARTS), build_model),
    Target("chat", make, files(*WEIGHTS, *TOKENIZER, "corral.json"), talk),
    Target("adapter", make_adapter, damage_adapter, read_adapter),
)
