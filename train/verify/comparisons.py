"""``python -m train.verify experiment=NAME`` proves that a step does not depend on how its batch is cut up.

It takes a shrunken copy of the configured model (same family, attention, tying, tuning), the first samples of the
prepared corpus, and the configured ZeRO stage and objective. It compares the gradients of one rank, two ranks,
accumulated, packed and unpacked with plain torch, sample by sample. fp32 runs on the CPU in about a minute;
precision=bf16 runs on the GPU, if there is one, with the GPU's attention kernels. Exit code 0: all gradients are equal;
1: the output names the first that differs.
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
from rich.table import Table

from conf.errors import ConfigError
from conf.safety.console import SafeConsole
from conf.schema import AttentionConfig, ModelConfig, RunConfig
from data_prep.corpus.identity import prepare_command
from data_prep.corpus.prepared import open_prepared
from data_prep.tokenizer.growth import base_rows
from data_prep.tokenizer.tokenizer import load_tokenizer
from train.model.build import TokenIds
from train.verify.distance import distance, worst
from train.verify.proof import Case, Gradients, Job, Proof, reference_gradients, run_cases
from train.verify.shrink import shrunken
from train.verify.where import locate

Precision = Literal["fp32", "bf16"]

ROWS = 5
"""An odd number, so that two ranks and accumulation leave empty slots."""
WHOLE = 100_000
"""Rows of a micro-batch: enough for every row, packed or not."""
ALLOWED: dict[Precision, float] = {"fp32": 1e-6, "bf16": 2e-2}
"""Largest relative difference per tensor. fp32: above the rounding of sums over up to TOKENS tokens. bf16: a few
roundings of 2**-8; the whole gradient must also be as near to fp32 as plain torch's in bf16."""
TOKENS = 4096
"""Beyond this many tokens, the fp32 bound grows with the root of their number, as the error of a sum does (Higham 2002,
section 4.2): the weight of a LayerNorm, one long sum, differed by 1.3e-6 at 10,000 tokens."""
ROUNDINGS = 2
"""In fp32, a case may also differ by this many times plain torch's own distance from fp64: the reference and the case
each round once. Gemma 3's soft gradients of its norms of keys cost plain torch 1.2e-6."""
SLACK = 1.1
"""Allowed distance in bf16 as a multiple of plain torch's distance: kernels round in another order."""
OWN = {"precision": "fp32 (default): exact, on the CPU; bf16: compared with fp32, on the GPU if there is one"}


@dataclass(frozen=True)
class Comparison:
    case: Case
    error: float
    """Largest relative difference of any tensor."""
    tensor: str
    """The tensor with that difference."""
    whole: float
    """Relative difference of all tensors at once."""
    fed: int
    targets: int
    allowed: float
    """Largest allowed ``error``."""
    holds: bool
    rounded: bool = False
    """bf16 only: every number of the gradient is one of bf16, though it is a sum that fp32 should hold."""
    precision: Precision = "fp32"

    @property
    def word(self) -> str:
        """In bf16 gradients that are right are near, as far as roundings go, and not equal."""
        return ("equal" if self.precision == "fp32" else "near") if self.holds else "DIFFERENT"


def cases(pack: str, ranks: int = 2, sequence_parallel: int = 1) -> list[Case]:
    """The cases to compare with the reference; every case adds one thing to the cases before it. ``ranks``: 1 or 2.

    Two ranks prove any ``sequence_parallel`` above 1.
    """
    packed: Literal["exact", "none"] = "exact" if pack == "exact" else "none"
    chosen = [Case("1 rank, one sample per row", 1, WHOLE, "none", "the loss over the targets")]
    if packed == "exact":
        chosen += [Case("1 rank, packed", 1, WHOLE, packed, "packed samples that do not see one another")]
    chosen += [Case("1 rank, accumulated", 1, 1, packed, "accumulation over micro-batches")]
    if ranks > 1:
        chosen += [
            Case("2 ranks", 2, WHOLE, packed, "the sum over ranks"),
            Case("2 ranks, accumulated", 2, 1, packed, "micro-batches without a row"),
        ]
    if ranks > 1 and packed == "exact":
        chosen += [Case("2 ranks, one sample per row", 2, 4, "none", "ranks without packing")]
    if ranks > 1 and sequence_parallel > 1:
        chosen += [Case("2 ranks, rows sliced over both", 2, 1, packed, "slices of a row that meet in attention", 2)]
    return chosen


def small_run(cfg: RunConfig, run_dir: Path, precision: Precision = "fp32") -> RunConfig:
    """``cfg`` with a shrunken random model, and without settings that could hide an error: in fp32 those that round."""
    model = ModelConfig(
        config=shrunken(cfg.model), init="random", dtype=precision, recompute=cfg.model.recompute, tokenizer="train"
    )
    zero = replace(cfg.zero, persistence_threshold=0, deepspeed={})  # its keys may round, or need more ranks
    zero = replace(zero, reduce_dtype="fp32") if precision == "fp32" else zero
    batch = replace(cfg.batch, global_size=ROWS, micro_size=1)
    return replace(cfg, model=model, zero=zero, batch=batch, run_dir=str(run_dir))


def compare(
    proof: Proof, chosen: Sequence[Case], results: Sequence[tuple[Gradients, int]]
) -> tuple[list[Comparison], float]:
    """Compare every case with the reference; also return plain torch's distance in the proof's dtype (fp32: 0)."""
    wanted = reference_gradients(proof.in_fp32())
    step = proof.plan("none")[1]
    precision: Precision = proof.cfg.model.dtype
    allowed = ALLOWED[precision] * (max(1.0, step.tokens / TOKENS) ** 0.5 if precision == "fp32" else 1.0)
    plain = distance(reference_gradients(proof), wanted) if precision == "bf16" else 0.0
    differences = [worst(gradients, wanted) for gradients, _ in results]
    if precision == "fp32":
        allowed = allowed_in_fp32(proof, wanted, max(error for error, _ in differences), allowed)
    comparisons = []
    for case, (gradients, fed), (error, tensor) in zip(chosen, results, differences, strict=True):
        whole = distance(gradients, wanted)
        near = error <= allowed and (precision == "fp32" or whole <= SLACK * plain)
        summed = case.world > 1 or case.micro_size == 1
        exact = precision == "bf16" and proof.cfg.zero.reduce_dtype == "fp32"
        rounded = exact and summed and all(torch.equal(each, each.bfloat16().float()) for each in gradients.values())
        holds = near and fed == step.targets and not rounded
        comparisons.append(
            Comparison(case, error, tensor, whole, fed, step.targets, allowed, holds, rounded, precision)
        )
    return comparisons, plain


def allowed_in_fp32(proof: Proof, wanted: Gradients, largest: float, allowed: float) -> float:
    """``allowed``, or more where ``largest`` is above it and fp64 shows that plain torch in fp32 rounds by so much."""
    if largest <= allowed:
        return allowed
    return max(allowed, ROUNDINGS * worst(wanted, reference_gradients(proof.in_fp32(), double=True))[0])


def show(name: str, comparisons: Sequence[Comparison]) -> None:
    """Print the table of comparisons."""
    table = Table(title=f"{name}: gradients of one global batch, compared with plain torch sample by sample")
    for column in ("cut up as", "adds", "largest error", "of tensor", "error of all", "targets", "verdict"):
        table.add_column(column, overflow="fold")
    for comparison in comparisons:
        case, verdict = comparison.case, comparison.word
        fed = f"{comparison.fed}/{comparison.targets}"
        figures = (f"{comparison.error:.1e}", comparison.tensor, f"{comparison.whole:.1e}", fed)
        table.add_row(case.label, case.adds, *figures, verdict)
    SafeConsole(width=150 if not sys.stdout.isatty() else None).print(table)


def verdict(cfg: RunConfig, comparisons: Sequence[Comparison], plain: float) -> str:
    """One sentence, which names the first case that differs and the thing that this case adds."""
    precision: Precision = cfg.model.dtype
    beside = f", plain torch in bf16 differs by {plain:.1e} over all tensors" if precision == "bf16" else ""
    allowed = f"allowed {comparisons[0].allowed:.1e}"
    reduced = "" if cfg.zero.reduce_dtype == "fp32" else f" reducing in {cfg.zero.reduce_dtype}"
    settings = f"(ZeRO {cfg.zero.stage}{reduced}, {cfg.tuning.method}, {precision}, {allowed}{beside})"
    broken = next((comparison for comparison in comparisons if not comparison.holds), None)
    if broken is None:
        return f"exact step holds: a step is one function of the global batch {settings}"
    difference = f"{broken.tensor} differs by {broken.error:.1e}"
    if broken.fed != broken.targets:
        difference += f", and {broken.fed} of {broken.targets} targets were fed"
    if broken.rounded:
        difference += ", and every number of the gradient is rounded to bf16 after it was added up"
    first = f"the first case that differs is '{broken.case.label}', which adds {broken.case.adds}"
    return f"exact step DOES NOT HOLD {settings}: {first}; {difference}"


def prove(proofs: Sequence[Proof], folder: Path) -> list[tuple[list[Comparison], float]]:
    """The comparisons of every proof; all proofs share the launches of processes."""
    ranks = 2 if proofs[0].device == "cpu" else min(2, torch.cuda.device_count())
    chosen = [cases(proof.cfg.data.pack, ranks, proof.cfg.compute.sequence_parallel) for proof in proofs]
    pairs = list(zip(proofs, chosen, strict=True))
    jobs: list[Job] = [(proof, case) for proof, cases_of_proof in pairs for case in cases_of_proof]
    results = iter(run_cases(jobs, folder))
    return [compare(proof, of_proof, [next(results) for _ in of_proof]) for proof, of_proof in pairs]


def proof_of(cfg: RunConfig, argv: Sequence[str], folder: Path, precision: Precision) -> Proof:
    """The proof of the user's config ``cfg``, composed from the overrides ``argv``.

    Raises MissingInput without a corpus.
    """
    corpus = open_prepared(cfg, hint=prepare_command(cfg, argv))
    tokenizer = load_tokenizer(str(corpus.path / "tokenizer"))
    on_gpu = precision == "bf16" and torch.cuda.is_available()
    small = small_run(_provable(cfg, on_gpu, precision), folder, precision)
    base = base_rows(cfg.model)  # the shrunken copy has a row for every token, but the same of them are new
    beyond = range(base, tokenizer.vocab_size) if base else ()
    return Proof(
        cfg=small,
        corpus=corpus.path,
        ids=TokenIds.of(tokenizer, sorted({*corpus.new_ids, *beyond})),
        device="cuda" if on_gpu else "cpu",
    )


def _provable(cfg: RunConfig, on_gpu: bool, precision: Precision) -> RunConfig:
    """``cfg`` with attention that this machine can compute; prints a sentence for every setting that is not proved."""
    if precision == "bf16" and cfg.zero.stage == 0:
        raise ConfigError(
            "precision=bf16 with zero=0 cannot be verified, because DeepSpeed then steps wrongly; use zero=1 or "
            "precision=fp32"
        )
    if precision == "fp32" and cfg.zero.reduce_dtype == "bf16":
        print(
            "zero.reduce_dtype=bf16 rounds the sum over ranks, so the exact step is verified with fp32 instead; to "
            "verify with it, as near as bf16 can be, give precision=bf16"
        )
    if on_gpu or not cfg.attention.backend.startswith("flash"):
        return cfg
    print(
        f"attention={cfg.attention.backend} runs only on GPUs in bf16, so attention=packed is verified instead; to "
        f"verify {cfg.attention.backend}, give precision=bf16 on a GPU"
    )
    return replace(cfg, attention=AttentionConfig(backend="packed"))


def verify(cfg: RunConfig, argv: Sequence[str], precision: Precision = "fp32") -> bool:
    """Print the table of comparisons and the verdict. ``argv``: the overrides that ``cfg`` was composed from."""
    if precision == "fp32":
        os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")
    with tempfile.TemporaryDirectory(prefix="corral-verify-") as folder:
        proof = proof_of(cfg, argv, Path(folder), precision)
        comparisons, plain = prove([proof], Path(folder))[0]
        show(cfg.name, comparisons)
        print(verdict(proof.cfg, comparisons, plain))
        broken = next((comparison for comparison in comparisons if not comparison.holds), None)
        if broken is not None:
            print(locate(proof, broken.case, Path(folder), broken.allowed))
    return broken is None
