"""The settings of the parity matrix, and how one of them is compared with plain torch."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from conf.schema import BatchConfig, FullTuning, LoraTuning, ModelConfig, SftObjective, ZeroConfig
from data_prep.stream.stream import GlobalStep, PackedRow, Stream
from tests.tiny import tiny_config, tiny_run
from tests.train.rows import fake_split
from train.assembly import objective_for
from train.batches.feed import Feed
from train.engine import settings as engine_settings
from train.model.build import TokenIds, build
from train.model.weights import _write_random, random_config
from train.ranks.group import Ranks
from train.tuning import trainable
from train.verify.comparisons import ALLOWED, allowed_in_fp32, distance, worst
from train.verify.proof import Case, Gradients, Proof, case_gradients, reference_gradients

ROWS = 5
BASE, TOKENS = 50, 66
"""Of a base that grows: the rows in use, and rows of padding up to 128."""
Recompute = Literal["none", "selective", "full"]
MODELS: list[tuple[str, bool]] = list(itertools.product(("full", "lora"), (False, True)))
"""Tuning method, tied embeddings."""


@dataclass(frozen=True)
class Setting:
    world: int
    micro_size: int
    pack: Literal["exact", "none"]
    stage: Literal[0, 1, 2, 3]
    method: str
    tied: bool
    recompute: Recompute
    share: bool
    """Samples of a packed row share their prefixes; the split has two."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    slices: int = 1
    """Ranks that share a row."""
    family: str = "llama"
    key_heads: int = 2
    """Of 4 query heads, where the family has fewer of them."""
    grown: bool = False
    """The base has ``BASE`` rows for ``TOKENS`` tokens (``grown_bases`` writes it)."""


@dataclass(frozen=True)
class Found:
    error: float
    """Largest relative difference of a tensor from the fp32 reference, norm over norm."""
    tensor: str
    whole: float
    """The same over all tensors at once."""
    plain: float
    """``whole`` of plain torch in the setting's dtype, sample by sample: what that dtype costs anyone."""
    summed: float
    """``whole`` of plain torch that adds up the setting's own micro-batches in fp32, bf16 only: the best that bf16 can
    do."""
    beside: float
    """Relative difference of the whole gradient from that one: what the engine's sums add."""
    allowed: float
    """Largest allowed ``error``."""
    fed: bool
    """Every target was fed once."""


@dataclass(frozen=True)
class MemoryProof(Proof):
    """A proof whose rows are in memory instead of a prepared corpus."""

    def plan(self, pack: str) -> tuple[list[Any], GlobalStep]:
        split = fake_split(40, seed=3, name="tiny", prefixes=PREFIXES)
        step = next(Stream({"tiny": split}, self.cfg.data, seed=0, global_size=ROWS))
        if pack == "none":
            samples = [sample for row in step.rows for sample in row.samples]
            alone = tuple(PackedRow(samples=(each,), tokens=int(split.lengths[each[1]])) for each in samples)
            step = replace(step, rows=alone)
        return [split], step


SHAPES: list[tuple[int, str, bool]] = [
    (1, "exact", True),
    (2, "none", False),
    (ROWS, "exact", False),
    (2, "exact", True),
    (1, "none", False),
]
"""Micro-batch, packing, shared prefixes."""
PREFIXES = ((5, 6, 7, 8, 9, 10), (5, 6, 11))


def settings(world: int) -> list[Setting]:
    """Stage x method x tied x recompute in full; micro-batch and packing go round, so that every pair of values meets.

    ROWS is odd: with several ranks, packed rows leave empty slots on the last one.
    """
    shapes = itertools.cycle(SHAPES)
    product = itertools.product((0, 1, 2, 3), MODELS, ("none", "selective", "full"))
    return [
        Setting(world, micro, pack, stage, method, tied, recompute, share)  # type: ignore[arg-type]
        for (stage, (method, tied), recompute), (micro, pack, share) in zip(product, shapes, strict=False)
    ]


def settings_bf16(world: int) -> list[Setting]:
    """Stages 1 to 3 (0 is refused with bf16) x method x tied; the rest goes round."""
    rest = itertools.cycle(itertools.product(("none", "full"), SHAPES))
    return [
        Setting(world, micro, pack, stage, method, tied, recompute, share, "bf16")  # type: ignore[arg-type]
        for (stage, (method, tied)), (recompute, (micro, pack, share)) in zip(
            itertools.product((1, 2, 3), MODELS), rest, strict=False
        )
    ]


def proof_of(setting: Setting, folder: str) -> MemoryProof:
    tuning: Any = LoraTuning(method="lora", rank=4, alpha=4.0) if setting.method == "lora" else FullTuning("full")
    config = {
        key: value for key, value in tiny_config(setting.family, tied=setting.tied).items() if key != "vocab_size"
    }
    if "num_key_value_heads" in config:
        config["num_key_value_heads"] = setting.key_heads
    model = ModelConfig(
        config=config, init="random", dtype=setting.dtype, tokenizer="train", recompute=setting.recompute
    )
    base = f"{setting.family}-{setting.key_heads}-tied-{setting.tied}"
    ids = TokenIds(64, pad_id=1, eos_id=0)
    if setting.grown:
        path = grown_base(setting.family, setting.tied, folder)
        model = ModelConfig(path=str(path), dtype=setting.dtype, recompute=setting.recompute)
        ids = TokenIds(TOKENS, pad_id=1, eos_id=0)
    cfg = tiny_run(Path(folder, base), model, tuning=tuning, seq_len=40)
    zero = ZeroConfig(stage=setting.stage, persistence_threshold=0)
    data = replace(cfg.data, share_prefix=setting.share)
    # Logits everywhere in a third of the settings, which differ in everything else.
    compute = replace(cfg.compute, targets_only_head=setting.recompute != "selective")
    cfg = replace(cfg, zero=zero, batch=BatchConfig(global_size=ROWS, micro_size=1), data=data, compute=compute)
    if setting.tied:  # the options of the loss go with these, so that both are in many settings
        cfg = replace(cfg, objective=SftObjective(z_loss=1e-3, label_smoothing=0.1))
    return MemoryProof(cfg, Path(folder), ids)


def grown_base(family: str, tied: bool, folder: str) -> Path:
    return Path(folder, f"{family}-tied-{tied}-grows")


def grown_bases(family: str, folder: str) -> None:
    """Write the bases that settings with ``grown`` load, before the ranks start: of random weights, as all others."""
    for tied in (False, True):
        mapping = {**tiny_config(family, tied=tied), "vocab_size": BASE}
        start = {"config": mapping, "seed": 0, "vocab_size": BASE}
        _write_random(random_config(mapping, vocab_size=BASE), grown_base(family, tied, folder), seed=0, origin=start)


def settings_grown(world: int) -> list[Setting]:
    """Every stage x method x tied, fp32 and (but for stage 0) bf16; the rest goes round."""
    rest = itertools.cycle(itertools.product(("none", "full"), SHAPES))
    return [
        Setting(world, micro, pack, stage, method, tied, recompute, share, dtype, grown=True)  # type: ignore[arg-type]
        for (stage, (method, tied), dtype), (recompute, (micro, pack, share)) in zip(
            itertools.product((0, 1, 2, 3), MODELS, ("fp32", "bf16")), rest, strict=False
        )
        if (stage, dtype) != (0, "bf16")
    ]


def summed_in_fp32(proof: MemoryProof, case: Case, ranks: Ranks) -> Gradients:
    """Plain torch on the micro-batches that the engine of ``case`` gets: added up in fp32, over the ranks too."""
    splits, step = proof.plan(case.pack)
    batch = replace(proof.cfg.batch, global_size=len(step.rows), micro_size=case.micro_size)
    cfg = replace(proof.cfg, batch=batch, data=replace(proof.cfg.data, pack=case.pack), zero=ZeroConfig(stage=1))
    built = build(cfg, ranks, proof.ids)
    objective = objective_for(cfg, ranks, proof.ids)
    feed = Feed(splits, built.attention.layout, proof.ids.pad_id, ranks, case.micro_size)
    parameters, denominator = trainable(built.model), objective.denominator(step)
    total = {name: torch.zeros(each.shape) for name, each in parameters.items()}
    for micro_batch in feed.batches(step):
        (objective.sums(built.model, micro_batch).objective / denominator).backward()  # type: ignore[no-untyped-call]
        for name, each in parameters.items():
            if each.grad is not None:
                total[name] += each.grad
                each.grad = None
    for each in total.values():
        dist.all_reduce(each)
    return total


def errors(ranks: Ranks, chosen: list[Setting], folder: str, planted: str = "") -> dict[Setting, Found]:
    """Every setting's gradients against plain torch in fp32, and what plain torch makes of its dtype.

    ``planted``: the dtype in which DeepSpeed reduces, whatever the settings say.
    """
    if planted:
        engine_settings._reduced_in = lambda zero: planted
    references: dict[tuple[Any, ...], Gradients] = {}
    found = {}
    for setting in chosen:
        case = Case("", setting.world, setting.micro_size, setting.pack, slices=setting.slices)
        gradients, fed = case_gradients(proof_of(setting, folder), case, ranks)
        same = (setting.family, setting.key_heads, setting.method, setting.tied, setting.share, setting.grown)
        for dtype in ("fp32", setting.dtype):  # after the ranks have made the random base together
            if (*same, dtype) not in references:
                proof = proof_of(replace(setting, dtype=dtype), folder)  # type: ignore[arg-type]
                references[*same, dtype] = reference_gradients(proof)
        wanted = references[*same, "fp32"]
        error, tensor = worst(gradients, wanted)
        plain = distance(references[*same, setting.dtype], wanted)
        all_fed = fed == proof_of(setting, folder).plan("none")[1].targets
        allowed = ALLOWED[setting.dtype]
        if setting.dtype == "fp32":
            allowed = allowed_in_fp32(proof_of(setting, folder), wanted, error, allowed)
        whole, summed, beside = distance(gradients, wanted), 0.0, 0.0
        if setting.dtype == "bf16":
            best = summed_in_fp32(proof_of(setting, folder), case, ranks)
            summed, beside = distance(best, wanted), distance(gradients, best)
        found[setting] = Found(error, tensor, whole, plain, summed, beside, allowed, all_fed)
    return found
