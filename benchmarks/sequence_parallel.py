"""Measures the memory that one step over one long document adds to a rank, if all ranks of torchrun share the document:

  torchrun --nproc-per-node=N -m benchmarks.sequence_parallel [tokens, default 8192]

The model is a Llama of 8 layers of width 256 in fp32 on CPUs. One sample, whose last 200 tokens are targets, goes
forward and backward. The figure is the peak of resident memory above that of the model and a step of 512 tokens.
"""

from __future__ import annotations

import sys
import time

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from train.attention import choose
from train.batches.batch import Batch
from train.batches.slices import in_teams, share
from train.engine import init_distributed
from train.engine.engine import close_distributed
from train.families import family
from train.objectives.sft import token_nll_sum
from train.ranks.group import Ranks, end_process, on_device, ranks_from_environment
from train.tracking.metrics import peak_memory_gib

VOCAB, TARGETS = 1024, 200


def document(tokens: int) -> Batch:
    ids = torch.randint(VOCAB, (1, tokens), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :-TARGETS] = -100
    return Batch(
        input_ids=ids,
        labels=labels,
        position_ids=torch.arange(tokens)[None],
        attention_mask=None,
        segments=torch.tensor([0, tokens], dtype=torch.int32),
        longest=tokens,
        uids=(0,),
        tokens=tokens,
        targets=TARGETS,
        weight=float(TARGETS),
    )


def model(ranks: Ranks) -> torch.nn.Module:
    attention = choose("packed", family=family("llama"), pack="exact", dtype=torch.float32, device=ranks.device)
    config = AutoConfig.for_model(
        "llama",
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=VOCAB,
    )
    made: torch.nn.Module = AutoModelForCausalLM.from_config(config, attn_implementation=attention.implementation)
    return made


def main() -> None:
    tokens = int(sys.argv[1]) if len(sys.argv) > 1 else 8192
    ranks = init_distributed(on_device(ranks_from_environment()))
    ranks = in_teams(ranks, ranks.world)
    network = model(ranks)

    def step(tokens: int) -> None:
        token_nll_sum(network, share(document(tokens), ranks), targets_only=True).backward()  # type: ignore[no-untyped-call]

    step(512)
    before, began = peak_memory_gib(), time.perf_counter()
    step(tokens)
    added = ranks.gather((peak_memory_gib() - before) * 1024)
    if ranks.is_main:
        print(f"{ranks.world} ranks, {tokens} tokens: {max(added):,.0f} MiB, {time.perf_counter() - began:.1f} s")
    close_distributed()
    end_process(0)


if __name__ == "__main__":
    main()
