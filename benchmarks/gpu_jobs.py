"""The jobs of ``make bench-gpu``: models, corpora, and the variants that take turns in a process."""

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
LLAMA_3B: Mapping = LLAMA_1B | {
    "hidden_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "head_dim": 128,
}
"""The shape of Llama 3.2 3B."""
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
"""The small model that replaces all of them in a rehearsal without a GPU."""


@dataclass(frozen=True)
class Job:
    """One process builds a model once, and the variants take turns on it."""

    model: str
    """"1b", "3b" or "8b"."""
    corpus: str = "alpaca"
    """"alpaca": real samples of Alpaca, packed at 2,048; "flan": flan_mini's, with grouped prefixes; "documents" and
    "long-documents": one document of 8,192 or 32,768 tokens per row."""
    overrides: tuple[str, ...] = ()
    variants: tuple[str, ...] = ("corral",)
    """corral: the production loop; evaluated: the same after an evaluation, as with evaluation.at_start; bare: its
    engine on ready tensors; no-sharing, no-targets-head, recompute: the loop with that switch changed; hf, trl,
    trl-packed: the peers (benchmarks/peers.py), each in a separate process."""
    rows: int = 32
    """Packed rows per update."""
    micro: int = 4
    environment: dict[str, str] = field(default_factory=dict)
    needs: str = ""
    """A module that must be installed."""


COMPILE, LIGER = ("compute.kernels=compile",), ("compute.kernels=liger",)
FLASH = ("data.share_prefix=false",)
OFFLOAD = ("zero=2", "zero.offload=optimizer")

JOBS: dict[str, Job] = {
    "1b-compile": Job("1b", overrides=COMPILE, variants=("corral", "bare", "no-sharing")),
    "1b": Job("1b", variants=("corral", "bare", "no-sharing", "no-targets-head", "recompute")),
    "1b-micro8": Job("1b", micro=8),
    "1b-micro16": Job("1b", micro=16),
    "1b-compile-micro8": Job("1b", overrides=COMPILE, micro=8),
    "1b-compile-micro16": Job("1b", overrides=COMPILE, micro=16),
    "1b-compile-evaluated": Job("1b", overrides=COMPILE, variants=("evaluated",)),
    "1b-liger": Job("1b", overrides=LIGER),
    "8b-lora": Job("8b", overrides=("tuning=lora", *COMPILE), rows=16, micro=4),
    "8b-lora-liger": Job("8b", overrides=("tuning=lora", *LIGER), rows=16, micro=4),
    "8b-lora-recompute": Job("8b", overrides=("tuning=lora", "model.recompute=full"), rows=16, micro=8),
    "3b-full": Job("3b", overrides=("zero=2",), rows=16, micro=4),
    "3b-full-offload": Job("3b", overrides=OFFLOAD, rows=16, micro=4),
    "1b-hf": Job("1b", variants=("hf",)),
    "1b-trl": Job("1b", variants=("trl",)),
    "1b-trl-packed": Job("1b", variants=("trl-packed",)),
    "1b-documents": Job("1b", corpus="documents", overrides=COMPILE, rows=8, micro=1),
    "1b-long-documents": Job("1b", corpus="long-documents", overrides=COMPILE, rows=2, micro=1),
    "1b-documents-flash3": Job(
        "1b", "documents", ("attention=flash3", *FLASH, *COMPILE), rows=8, micro=1, needs="flash_attn_interface"
    ),
    "1b-documents-flash4": Job(
        "1b", "documents", ("attention=flash4", *FLASH, *COMPILE), rows=8, micro=1, needs="flash_attn.cute"
    ),
    "1b-flan": Job("1b", corpus="flan", overrides=COMPILE, variants=("corral", "no-sharing")),
    "1b-fixed-segments": Job("1b", environment={"PYTORCH_ALLOC_CONF": "expandable_segments:False"}),
}
TESTS: dict[str, tuple[str, ...]] = {
    "tests-kernels": ("tests/gpu/test_kernels.py",),
    "tests-exact": ("tests/gpu/test_runs.py", "-k", "exact"),
    "tests-resume": ("tests/gpu/test_runs.py", "-k", "killed"),
    "tests-adapters": ("tests/gpu/test_runs.py", "-k", "adapters"),
    "tests-stages": ("tests/gpu/test_runs.py", "-k", "stages"),
}
"""Arguments of pytest: all tests of tests/gpu."""
PARTS = ("gather", "host-adamw", "graph", "fp8")
"""Parts of a step by themselves (benchmarks/gpu_parts.py)."""


@dataclass(frozen=True)
class Question:
    text: str
    jobs: tuple[str, ...]
    """In the order of their value, because time on a GPU is limited."""
    left: str = ""
    """What of it no job answers, and why."""


QUESTIONS: dict[str, Question] = {
    "a": Question(
        "bitwise resume, ZeRO-3, compiled blocks, the exact step in bf16, 4-bit bases",
        ("tests-resume", "tests-stages", "tests-exact", "tests-adapters"),
    ),
    "b": Question("error and price of a shared prefix's fp32 sums", ("gather", "tests-kernels")),
    "c": Question(
        "micro-batches of 8k, 16k and 32k tokens, gradients reduced in fp32",
        ("1b-compile", "1b-compile-micro8", "1b-compile-micro16", "1b-micro8", "1b-micro16"),
    ),
    "d": Question("compiled blocks after an evaluation and without", ("1b-compile-evaluated", "1b-compile")),
    "e": Question(
        "8B with adapters: Liger, compile, recomputation; Liger on 1B",
        ("8b-lora", "8b-lora-liger", "8b-lora-recompute", "1b-liger"),
    ),
    "f": Question(
        "full tuning with the optimizer on the host, its AdamW fused and not",
        ("host-adamw", "3b-full", "3b-full-offload"),
        "8B takes 18 bytes per parameter on the host, 135 GiB, more than such a machine may have: 3B stands for it; "
        "states in bf16 are not built",
    ),
    "g": Question("HF Trainer and TRL on the same samples", ("1b-hf", "1b-trl-packed", "1b-trl")),
    "h": Question("overhead, kernels and idle time of an update, a CUDA graph", ("1b", "ceilings", "graph")),
    "i": Question(
        "documents of 8k and 32k tokens, flash3 and flash4",
        ("1b-documents", "1b-long-documents", "1b-documents-flash3", "1b-documents-flash4"),
        "attention that reads a prefix in place is not built",
    ),
    "j": Question("FLAN with grouped prefixes and without", ("1b-flan",)),
    "k": Question("segments that grow: reserved memory and retries", ("1b-fixed-segments", "1b")),
    "l": Question(
        "fp8: the products and what scaling costs", ("fp8",), "training in fp8 is not built, so no loss is compared"
    ),
}
"""What only a GPU settles, the most valuable first. A letter stands for its jobs on the command line."""
ALL = tuple(dict.fromkeys([*(job for each in QUESTIONS.values() for job in each.jobs), *JOBS]))
"""Every job, in the order of the questions."""
