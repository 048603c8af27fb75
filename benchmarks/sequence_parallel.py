"""What one step over one long document adds to the memory of a rank, shared over the ranks that torchrun starts:

  torchrun --nproc-per-node=N -m benchmarks.sequence_parallel [tokens, default 8192]

A Llama of 8 layers of width 256 in fp32 on CPUs, one sample whose last 200 tokens are targets, forward and backward.
Measured: the peak of resident memory above what the model and a step of 512 tokens have needed.
"""

from __future__ import annotations

import sys
import time

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from train.attention import choose
from train.batch import Batch
from train.distributed import Ranks, end_process, ranks_from_environment
from train.engine import init_distributed
from train.engine.engine import close_distributed
from train.loss import token_nll_sum
from train.metrics import peak_memory_gib
from train.models import family
from train.sequence_parallel import in_teams, share

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
    ranks = ranks_from_environment()
    init_distributed(ranks)
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
