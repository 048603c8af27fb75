"""``python -m train.verify experiment=NAME``: the proof that a step does not depend on how the batch is cut up.

On a shrunken copy of the configured model (same family, attention, tying, tuning), on the first rows of the prepared
corpus, with the configured ZeRO stage and loss: gradients of one rank, two ranks, accumulated, packed and unpacked,
against plain torch sample by sample. In fp32 on the CPU in about a minute; with precision=bf16 in that, on the GPU if
there is one and with its attention kernels. Exit code 0 only if all are equal, 1 with the first that is not named.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table

from conf.compose import config_from_argv
from conf.errors import ConfigError, leave_with_code
from conf.schema import AttentionConfig, ModelConfig, RunConfig
from data_prep.identity import prepare_command
from data_prep.prepared import open_prepared
from data_prep.tokenizer import load
from train.plan import settle
from train.proof import Case, Gradients, Job, Proof, reference_gradients, run_cases
from train.shrink import shrunken

Precision = Literal["fp32", "bf16"]

ROWS = 5
"""Odd, so that two ranks and accumulation leave empty slots."""
WHOLE = 100_000
"""A micro-batch that holds every row, packed or not."""
FAINT = 0.05
"""Root mean square of a gradient, against that of all of them, below which its own size is no measure."""
ALLOWED: dict[Precision, float] = {"fp32": 1e-6, "bf16": 2e-2}
"""Largest relative difference per tensor. fp32: the rounding of sums over up to TOKENS tokens stays below. bf16: a few
roundings of 2**-8; there the whole gradient must also be as near as plain torch in bf16 comes."""
TOKENS = 4096
"""With more, the fp32 bound grows with the root of their number, as the error of a sum does (Higham 2002, section 4.2):
the weight of a LayerNorm, summed in one go, was 1.3e-6 off with 10,000 tokens."""
SLACK = 1.1
"""Times plain torch's own distance in bf16: kernels round in other orders."""
OWN = {"precision": "fp32 (default): exact, on the CPU; bf16: against fp32, on the GPU if there is one"}


@dataclass(frozen=True)
class Comparison:
    case: Case
    error: float
    """Largest relative difference of a tensor."""
    tensor: str
    whole: float
    """Relative difference of all tensors at once."""
    fed: int
    targets: int
    allowed: float
    """Of ``error``."""
    holds: bool


def cases(pack: str, ranks: int = 2, sequence_parallel: int = 1) -> list[Case]:
    """What is compared with the reference, each adding one thing to those before it. ``ranks``: 1 or 2.

    Two ranks prove what any ``sequence_parallel`` above 1 adds.
    """
    packed: Literal["exact", "none"] = "exact" if pack == "exact" else "none"
    found = [Case("1 rank, one sample per row", 1, WHOLE, "none", "the loss over the targets")]
    if packed == "exact":
        found += [Case("1 rank, packed", 1, WHOLE, packed, "packed samples that do not see one another")]
    found += [Case("1 rank, accumulated", 1, 1, packed, "accumulation over micro-batches")]
    if ranks > 1:
        found += [
            Case("2 ranks", 2, WHOLE, packed, "the sum over ranks"),
            Case("2 ranks, accumulated", 2, 1, packed, "micro-batches without a row"),
        ]
    if ranks > 1 and packed == "exact":
        found += [Case("2 ranks, one sample per row", 2, 4, "none", "ranks without packing")]
    if ranks > 1 and sequence_parallel > 1:
        found += [Case("2 ranks, rows sliced over both", 2, 2, packed, "slices of a row that meet in attention", 2)]
    return found


def small_run(cfg: RunConfig, run_dir: Path, precision: Precision = "fp32") -> RunConfig:
    """``cfg`` with a shrunken random model; everything that could hide an error is made as hard as possible."""
    model = ModelConfig(
        config=shrunken(cfg.model), init="random", dtype=precision, recompute=cfg.model.recompute, tokenizer="train"
    )
    zero = replace(cfg.zero, persistence_threshold=0, deepspeed={})  # which rounds, or wants more ranks than there are
    batch = replace(cfg.batch, global_size=ROWS, micro_size=1)
    return replace(cfg, model=model, zero=zero, batch=batch, run_dir=str(run_dir))


def worst(found: Gradients, wanted: Gradients) -> tuple[float, str]:
    """Largest relative difference, norm of the difference over the norm, and the tensor it is in."""
    missing = sorted({*found} ^ {*wanted})
    if missing:
        return float("inf"), missing[0]
    elements = sum(value.numel() for value in wanted.values())
    average = (sum(float(value.norm()) ** 2 for value in wanted.values()) / elements) ** 0.5
    errors = {
        # A gradient that is nearly or exactly zero (a bias of keys, which a softmax hardly sees; LoRA's A at first)
        # is the difference of large numbers, whose rounding is not its own: it counts as FAINT of the average.
        name: float((found[name] - value).norm()) / max(float(value.norm()), FAINT * average * value.numel() ** 0.5)
        for name, value in wanted.items()
    }
    name = max(errors, key=errors.__getitem__)
    return errors[name], name


def distance(found: Gradients, wanted: Gradients) -> float:
    """Norm of the difference over the norm, over all tensors at once; infinite if tensors are missing."""
    if found.keys() != wanted.keys():
        return float("inf")
    difference = sum(float((found[name] - value).norm()) ** 2 for name, value in wanted.items())
    whole: float = (difference / sum(float(value.norm()) ** 2 for value in wanted.values())) ** 0.5
    return whole


def compare(
    proof: Proof, chosen: Sequence[Case], results: Sequence[tuple[Gradients, int]]
) -> tuple[list[Comparison], float]:
    """Every case against the reference, and how far plain torch in the proof's dtype is from it (0 in fp32)."""
    wanted = reference_gradients(proof.in_fp32())
    step = proof.plan("none")[1]
    precision: Precision = proof.cfg.model.dtype
    allowed = ALLOWED[precision] * (max(1.0, step.tokens / TOKENS) ** 0.5 if precision == "fp32" else 1.0)
    plain = distance(reference_gradients(proof), wanted) if precision == "bf16" else 0.0
    found = []
    for case, (gradients, fed) in zip(chosen, results, strict=True):
        (error, tensor), whole = worst(gradients, wanted), distance(gradients, wanted)
        near = error <= allowed and (precision == "fp32" or whole <= SLACK * plain)
        holds = near and fed == step.targets
        found.append(Comparison(case, error, tensor, whole, fed, step.targets, allowed, holds))
    return found, plain


def show(name: str, comparisons: Sequence[Comparison]) -> None:
    """The table of comparisons."""
    table = Table(title=f"{name}: gradients of one global batch against plain torch, sample by sample")
    for column in ("cut up as", "adds", "worst tensor", "in", "all", "targets", "verdict"):
        table.add_column(column, overflow="fold")
    for each in comparisons:
        verdict = "equal" if each.holds else "DIFFERENT"
        fed = f"{each.fed}/{each.targets}"
        figures = (f"{each.error:.1e}", each.tensor, f"{each.whole:.1e}", fed)
        table.add_row(each.case.label, each.case.adds, *figures, verdict)
    Console(width=150 if not sys.stdout.isatty() else None).print(table)


def verdict(cfg: RunConfig, comparisons: Sequence[Comparison], plain: float) -> str:
    """One sentence; the first comparison that differs names what is wrong."""
    precision: Precision = cfg.model.dtype
    beside = f", plain torch in bf16 is off by {plain:.1e} in all" if precision == "bf16" else ""
    allowed = f"allowed {comparisons[0].allowed:.1e}"
    settings = f"(ZeRO {cfg.zero.stage}, {cfg.tuning.method}, {precision}, {allowed}{beside})"
    broken = next((each for each in comparisons if not each.holds), None)
    if broken is None:
        return f"exact step holds: a step is one function of the global batch {settings}"
    what = f"{broken.tensor} is off by {broken.error:.1e}"
    if broken.fed != broken.targets:
        what += f", and {broken.fed} of {broken.targets} targets were fed"
    first = f"wrong from '{broken.case.label}' on, which adds {broken.case.adds}"
    return f"exact step DOES NOT HOLD {settings}: {first}; {what}"


def prove(proofs: Sequence[Proof], folder: Path) -> list[tuple[list[Comparison], float]]:
    """The comparisons of every proof, all computed in the same launches."""
    ranks = 2 if proofs[0].device == "cpu" else min(2, torch.cuda.device_count())
    chosen = [cases(proof.cfg.data.pack, ranks, proof.cfg.compute.sequence_parallel) for proof in proofs]
    jobs: list[Job] = [(proof, case) for proof, mine in zip(proofs, chosen, strict=True) for case in mine]
    results = iter(run_cases(jobs, folder))
    return [compare(proof, mine, [next(results) for _ in mine]) for proof, mine in zip(proofs, chosen, strict=True)]


def proof_of(cfg: RunConfig, argv: Sequence[str], folder: Path, precision: Precision) -> Proof:
    """The proof of a user's config, composed of the overrides ``argv``. Raises MissingInput without a corpus."""
    corpus = open_prepared(cfg, hint=prepare_command(cfg, argv))
    tokenizer = load(str(corpus.path / "tokenizer"))
    on_gpu = precision == "bf16" and torch.cuda.is_available()
    return Proof(
        cfg=small_run(_provable(cfg, on_gpu, precision), folder, precision),
        corpus=corpus.path,
        pad_id=tokenizer.pad_id,
        eos_id=tokenizer.eos_id,
        vocab_size=tokenizer.vocab_size,
        device="cuda" if on_gpu else "cpu",
    )


def _provable(cfg: RunConfig, on_gpu: bool, precision: Precision) -> RunConfig:
    """``cfg`` as far as this machine can compute it; what is put in another's place is said."""
    if precision == "bf16" and cfg.zero.stage == 0:
        raise ConfigError("precision: bf16 with zero=0 makes DeepSpeed step wrongly; use zero=1, or precision=fp32")
    if on_gpu or not cfg.attention.backend.startswith("flash"):
        return cfg
    print(
        f"attention={cfg.attention.backend} computes on GPUs in bf16 only; packed is proved in its place "
        "(precision=bf16 on a GPU proves it itself)"
    )
    return replace(cfg, attention=AttentionConfig(backend="packed"))


def verify(cfg: RunConfig, argv: Sequence[str], precision: Precision = "fp32") -> bool:
    """Print the table of comparisons and the verdict. ``argv``: the overrides ``cfg`` was composed of."""
    if precision == "fp32":
        os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")
    with tempfile.TemporaryDirectory(prefix="corral-verify-") as folder:
        proof = proof_of(cfg, argv, Path(folder), precision)
        comparisons, plain = prove([proof], Path(folder))[0]
    show(cfg.name, comparisons)
    print(verdict(proof.cfg, comparisons, plain))
    return all(each.holds for each in comparisons)


def main() -> int:
    cfg, own = config_from_argv(sys.argv[1:], command="python -m train.verify", extra=OWN)
    precision = own.get("precision", "fp32")
    if precision not in ("fp32", "bf16"):
        raise ConfigError(f"precision={precision}: not a precision; fp32 and bf16 are")
    cfg = settle(cfg, nodes=cfg.cluster.nodes, per_node=cfg.cluster.gpus_per_node)
    torch.manual_seed(0)
    return 0 if verify(cfg, sys.argv[1:], precision) else 1  # type: ignore[arg-type]


if __name__ == "__main__":
    leave_with_code(main)
