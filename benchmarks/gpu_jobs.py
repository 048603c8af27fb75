"""What ``make bench-gpu`` measures: models, corpora, and the turns each process takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Mapping = dict[str, Any]

LLAMA_1B: Mapping = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}
"""The shape of Llama 3.2 1B."""
LLAMA_8B: Mapping = LLAMA_1B | {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "head_dim": 128,
    "tie_word_embeddings": False,
}
"""The shape of Llama 3.1 8B."""
TINY: Mapping = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "vocab_size": 50304,
}
"""What both become in a dry run."""


@dataclass(frozen=True)
class Job:
    """One process: a model built once, and the variants that take turns on it."""

    model: str
    """"1b" or "8b"."""
    corpus: str = "alpaca"
    """"alpaca": real samples of Alpaca, packed at 2,048; "documents": one document of 8,192 tokens per row."""
    overrides: tuple[str, ...] = ()
    variants: tuple[str, ...] = ("corral",)
    """corral: the production loop; bare: its engine over ready tensors; no-sharing, no-targets-head, recompute: one
    switch the other way. hf, trl, trl-packed: the peers (benchmarks/peers.py), each a process of its own."""
    rows: int = 32
    """Packed rows per update."""
    micro: int = 4
    peers: dict[str, int] = field(default_factory=dict)
    """Padded samples per micro-batch of the peers."""


JOBS: dict[str, Job] = {
    "1b-compile": Job("1b", overrides=("compute.kernels=compile",), variants=("corral", "bare", "no-sharing")),
    "1b": Job("1b", variants=("corral", "bare", "no-sharing", "no-targets-head", "recompute")),
    "1b-compile-micro8": Job("1b", overrides=("compute.kernels=compile",), micro=8),
    "1b-liger": Job("1b", overrides=("compute.kernels=liger",)),
    "1b-hf": Job("1b", variants=("hf",)),
    "1b-trl": Job("1b", variants=("trl",)),
    "1b-trl-packed": Job("1b", variants=("trl-packed",)),
    "1b-documents": Job("1b", corpus="documents", overrides=("compute.kernels=compile",), rows=8, micro=1),
    "8b-lora": Job("8b", overrides=("tuning=lora", "compute.kernels=compile"), rows=16, micro=4),
    "8b-lora-recompute": Job("8b", overrides=("tuning=lora", "model.recompute=full"), rows=16, micro=8),
}
"""In the order of their worth, because time on a GPU ends."""
