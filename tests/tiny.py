"""Tiny models of every family, a tiny tokenizer and tiny corpora, for tests that drive the real thing in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from conf.schema import (
    AttentionConfig,
    BatchConfig,
    CheckpointConfig,
    ClusterConfig,
    ComputeConfig,
    DataConfig,
    EvaluationConfig,
    FullTuning,
    LoraTuning,
    ModelConfig,
    OptimConfig,
    RunConfig,
    ScheduleConfig,
    SourceConfig,
    StopConfig,
    TrackerConfig,
    ZeroConfig,
)

PACKING_FAMILIES = (
    "llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "olmo2", "phi", "phi3", "gpt2", "gpt_neox",
)  # fmt: skip
FAMILIES = (*PACKING_FAMILIES, "bloom")

_LLAMA: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": {**_LLAMA, "head_dim": 16},
    "mistral": {**_LLAMA, "sliding_window": 4},
    # A cap near the scores, so that it matters; windows in two layers of three.
    "gemma2": {
        **_LLAMA,
        "head_dim": 16,
        "sliding_window": 4,
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 1.0,
        "final_logit_softcapping": 5.0,
    },
    "gemma3_text": {
        **_LLAMA,
        "head_dim": 16,
        "sliding_window": 4,
        "query_pre_attn_scalar": 16,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "olmo2": _LLAMA,
    "phi": _LLAMA,
    "phi3": {**_LLAMA, "sliding_window": 4},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128},
    "gpt_neox": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    },
    "bloom": {"hidden_size": 32, "n_layer": 3, "n_head": 4},
}


def tiny_config(family: str, *, vocab_size: int = 64, tied: bool = False) -> dict[str, Any]:
    """A ``model.config`` mapping: three layers of width 32. Windows are 4 tokens, so that tests cross it."""
    specials = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return {
        "model_type": family,
        "vocab_size": vocab_size,
        "tie_word_embeddings": tied,
        **specials,
        **_CONFIGS[family],
    }


def tiny_model(
    family: str,
    *,
    vocab_size: int = 64,
    tied: bool = False,
    seed: int = 0,
    implementation: str | None = None,
    dropout: float = 0.0,
) -> PreTrainedModel:
    """A random fp32 model, in train mode, without dropout and without a pad token.

    The weights are larger than a real initialisation's, so that attention is far from uniform and an error in it shows.
    """
    mapping = tiny_config(family, vocab_size=vocab_size, tied=tied)
    config: PretrainedConfig = AutoConfig.for_model(**mapping)
    for key in [key for key in config.to_dict() if "dropout" in key or key.endswith("_pdrop")]:
        setattr(config, key, dropout if isinstance(getattr(config, key), float) else getattr(config, key))
    config.pad_token_id = config.bos_token_id = config.eos_token_id = None
    config.use_cache = False
    options = {} if implementation is None else {"attn_implementation": implementation}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **options)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() >= 2:
                    parameter.normal_(0.0, 0.15)
    return model.train()


def tiny_run(
    run_dir: Path,
    model: ModelConfig,
    *,
    tuning: FullTuning | LoraTuning | None = None,
    pack: Literal["exact", "none"] = "exact",
    seq_len: int = 64,
    prepared: str | None = None,
) -> RunConfig:
    """A whole config with every section at its default but for what is named."""
    return RunConfig(
        name="tiny",
        model=model,
        data=DataConfig(
            sources={"tiny": SourceConfig(format="alpaca", path="tiny.json")},
            stop=StopConfig(epochs=1.0),
            seq_len=seq_len,
            pack=pack,
            prepared=prepared,
        ),
        tuning=tuning or FullTuning(method="full"),
        attention=AttentionConfig(),
        zero=ZeroConfig(),
        optim=OptimConfig(),
        schedule=ScheduleConfig(),
        batch=BatchConfig(global_size=128),
        checkpoint=CheckpointConfig(),
        evaluation=EvaluationConfig(),
        tracker=TrackerConfig(),
        compute=ComputeConfig(),
        cluster=ClusterConfig(),
        run_dir=str(run_dir),
    )


def tiny_texts(count: int = 64) -> list[str]:
    """Deterministic short English-like lines."""
    line = "red green blue cat dog bird runs sees takes a the big small tree house"
    words = line.split()
    return [" ".join(words[(row * 7 + 3 * place) % len(words)] for place in range(4 + row % 5)) for row in range(count)]


def tiny_tokenizer(folder: Path, *, vocab_size: int = 320) -> Path:
    """A byte-level BPE tokenizer in ``folder``, in Hugging Face's layout; <|endoftext|> is 0 and <|pad|> is 1."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(tiny_texts(), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|pad|>")
    fast.save_pretrained(folder)
    return folder


def tiny_alpaca(path: Path, rows: int = 40) -> Path:
    """An Alpaca file of ``rows`` learnable rows: repeat the words, or say the last one."""
    content = []
    for row, text in enumerate(tiny_texts(rows)):
        last = row % 2 == 0
        task = "Say the last word." if last else "Repeat the words."
        content.append({"instruction": task, "input": text, "output": text.split()[-1] if last else text})
    path.write_text(json.dumps(content))
    return path
