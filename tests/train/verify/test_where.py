"""verify names the layer: a fault planted in one part of the production path is named, and nothing else is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from conf.compose import compose
from conf.schema import LoraTuning
from data_prep.corpus.shards import open_corpus
from data_prep.prepare import prepare
from data_prep.tokenizer.tokenizer import load_tokenizer
from tests.distributed import run_distributed
from tests.end_to_end.commands import tiny_run
from train.attention import packed
from train.model.build import TokenIds
from train.objectives import head
from train.ranks.group import Ranks
from train.verify import comparisons
from train.verify import proof as proving
from train.verify.comparisons import ALLOWED, cases, small_run
from train.verify.proof import Case, Proof, reference_record
from train.verify.watch import Record
from train.verify.where import Step, name, whole

LAYER = "model.layers.1"
"""Faults are planted here and not in the first layer, so that a right name is not the first of all names."""


@contextmanager
def changed(module: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """The output of ``module`` of every model that a case builds is changed."""
    right = proving.model_and_engine

    def wrong(*args: Any) -> Any:
        built, engine = right(*args)
        found = next(each for name, each in built.model.named_modules() if name.endswith(module))
        forward = found.forward
        found.forward = lambda *inputs, **more: change(forward(*inputs, **more))
        return built, engine

    with mock.patch.object(proving, "model_and_engine", wrong):
        yield


@contextmanager
def in_attention() -> Iterator[None]:
    """The second layer sees keys of one token too early."""
    right = packed.packed_attention

    def wrong(module: nn.Module, query: Any, key: Any, value: Any, mask: Any, **bounds: Any) -> Any:
        key = key.roll(1, 2) if module.layer_idx == 1 else key
        return right(module, query, key, value, mask, **bounds)

    with mock.patch.object(packed, "packed_attention", wrong):
        yield


@contextmanager
def in_the_gradient_of_attention() -> Iterator[None]:
    """The forward pass is right, and the second layer's values get no gradient."""
    right = packed.packed_attention

    def wrong(module: nn.Module, query: Any, key: Any, value: Any, mask: Any, **bounds: Any) -> Any:
        value = value.detach() if module.layer_idx == 1 else value
        return right(module, query, key, value, mask, **bounds)

    with mock.patch.object(packed, "packed_attention", wrong):
        yield


def in_norm() -> Any:
    return changed("layers.1.post_attention_layernorm", lambda x: x * 1.00001)


@contextmanager
def in_mlp() -> Iterator[None]:
    """The gate of the second layer is not applied to a tenth of the width."""
    right = proving.model_and_engine

    def wrong(*args: Any) -> Any:
        built, engine = right(*args)
        mlp = next(each for name, each in built.model.named_modules() if name.endswith("layers.1.mlp"))
        part = mlp.down_proj.weight.new_ones(mlp.down_proj.weight.shape[1])
        part[:12] = 0.0

        def forward(x: torch.Tensor) -> torch.Tensor:
            gate, up = mlp.act_fn(mlp.gate_proj(x)), mlp.up_proj(x)
            return mlp.down_proj((gate * part + (1 - part)) * up)  # type: ignore[no-any-return]

        mlp.forward = forward
        return built, engine

    with mock.patch.object(proving, "model_and_engine", wrong):
        yield


@contextmanager
def in_head() -> Iterator[None]:
    """The head leaves out the last tenth of its rows: fewer tokens in every softmax."""
    right = head._scores

    def wrong(*args: Any, out: torch.Tensor) -> torch.Tensor:
        scores = right(*args, out=out)
        scores[:, -(scores.shape[1] // 10) :] = float("-inf")
        return scores

    with mock.patch.object(head, "_scores", wrong):
        yield


@contextmanager
def in_adapter() -> Iterator[None]:
    """The adapter of one matrix is scaled twice. It is zero at first, so that only its gradient shows this."""
    right = proving.model_and_engine

    def wrong(*args: Any) -> Any:
        built, engine = right(*args)
        found = next(each for name, each in built.model.named_modules() if name.endswith("layers.1.self_attn.v_proj"))
        found.scaling = {adapter: 2 * scale for adapter, scale in found.scaling.items()}
        return built, engine

    with mock.patch.object(proving, "model_and_engine", wrong):
        yield


@contextmanager
def in_reduction() -> Iterator[None]:
    """Gradients are rounded to bf16 before ranks add them, as DeepSpeed does without communication_data_type."""
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer as Optimizer

    average = Optimizer.average_tensor

    def wrong(self: Any, tensor: torch.Tensor, *args: Any) -> Any:
        tensor.copy_(tensor.bfloat16())
        return average(self, tensor, *args)

    with mock.patch.object(Optimizer, "average_tensor", wrong):
        yield


@contextmanager
def in_factor() -> Iterator[None]:
    """Rank 1 does not count."""
    from train.engine import Engine

    right = Engine.accumulate

    def wrong(self: Any, share: torch.Tensor, *, last: bool) -> None:
        right(self, share if self.ranks.is_main else share * 0.0, last=last)

    with mock.patch.object(Engine, "accumulate", wrong):
        yield


def nothing() -> Any:
    return mock.patch.object(proving, "TIMEOUT_S", proving.TIMEOUT_S)


PLANTS: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "nothing": (nothing, ["no difference is seen"]),
    "attention": (
        in_attention,
        [f"differs is {LAYER}.self_attn, in what it computes before {LAYER}.self_attn.o_proj (sample "],
    ),
    "norm": (in_norm, [f"differs is {LAYER}.post_attention_layernorm (sample "]),
    "mlp": (in_mlp, [f"differs is {LAYER}.mlp, in what it computes before {LAYER}.mlp.down_proj (sample "]),
    "head": (in_head, ["differs is the head, lm_head, with the loss over it"]),
    "gradient": (
        in_the_gradient_of_attention,
        ["all modules give the same", f"the backward pass reaches {LAYER}.self_attn.v_proj.weight first"],
    ),
    "factor": (in_factor, ["the reduction over ranks", "micro-batch 0 of rank 1 enters the backward pass times 0;"]),
    "reduction": (
        in_reduction,
        ["own gradients add up to plain torch's; the reduction over ranks", "differs, first in "],
    ),
}
"""Fault -> its plant, and what is said of it."""
ADAPTER = f"base_model.model.{LAYER}.self_attn.v_proj.lora_B.default.weight"


def records(ranks: Ranks, proof: Proof, case: Case, plants: list[str]) -> dict[str, Record]:
    found = {}
    for plant in plants:
        with {**PLANTS, "adapter": (in_adapter, [])}[plant][0]():
            found[plant] = proving.case_record(proof, case, ranks)
    return found


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> Proof:
    root = tmp_path_factory.mktemp("where")
    cfg = compose(tiny_run(root, "run"))
    corpus = open_corpus(prepare(cfg, argv=[]))
    tokenizer = load_tokenizer(str(corpus.path / "tokenizer"))
    return Proof(small_run(cfg, root / "small"), corpus.path, TokenIds.of(tokenizer))


def said(proof: Proof, case: Case, plants: list[str], allowed: float = 1e-6) -> dict[str, str]:
    exact = proof.cfg.model.dtype == "fp32"
    wanted = whole([reference_record(proof.in_fp32())])
    plain = whole([reference_record(proof, double=exact)])
    ranks = run_distributed(records, case.world, proof, case, plants)
    steps: dict[str, Step] = {plant: whole([each[plant] for each in ranks], case.slices) for plant in plants}
    return {plant: name(step, wanted, plain, allowed) for plant, step in steps.items()}


@pytest.mark.slow
def test_a_fault_is_named_where_it_is(proof: Proof) -> None:
    """On two ranks with packed rows that share prefixes, recomputed: attention, norm, MLP, head, reduction."""
    cfg = dataclasses.replace(proof.cfg, model=dataclasses.replace(proof.cfg.model, recompute="full"))
    case = next(case for case in cases("exact") if case.label == "2 ranks, accumulated")
    found = said(dataclasses.replace(proof, cfg=cfg), case, list(PLANTS))
    for plant, (_, parts) in PLANTS.items():
        print(f"{plant}: {found[plant]}")
        assert all(part in found[plant] for part in parts), (plant, found[plant])


@pytest.mark.slow
def test_a_fault_of_an_adapter_is_named_by_its_gradient(proof: Proof) -> None:
    lora = LoraTuning(method="lora", rank=4, alpha=8.0, targets=["q_proj", "v_proj"])
    adapted = dataclasses.replace(proof, cfg=dataclasses.replace(proof.cfg, tuning=lora))
    case = next(case for case in cases("exact") if case.label == "1 rank, packed")
    found = said(adapted, case, ["nothing", "adapter"])
    assert "no difference is seen" in found["nothing"]
    assert f"the first parameter whose gradient differs is {ADAPTER} (by 1.0e+00)" in found["adapter"]


@pytest.mark.slow
@pytest.mark.parametrize("slices", [1, 2])
def test_every_stage_and_slicing_is_seen_whole(proof: Proof, slices: int) -> None:
    """ZeRO-3, whose weights are gathered module by module, and rows sliced over ranks."""
    zero = dataclasses.replace(proof.cfg.zero, stage=3)
    sharded = dataclasses.replace(proof, cfg=dataclasses.replace(proof.cfg, zero=zero))
    label = "2 ranks" if slices == 1 else "2 ranks, rows sliced over both"
    case = next(case for case in cases("exact", sequence_parallel=2) if case.label == label)
    found = said(sharded, case, ["nothing", "norm"])
    assert "no difference is seen" in found["nothing"], found
    assert f"differs is {LAYER}.post_attention_layernorm (sample " in found["norm"]


@pytest.mark.slow
def test_a_fault_in_bf16_is_told_from_rounding(proof: Proof) -> None:
    model = dataclasses.replace(proof.cfg.model, dtype="bf16")
    case = next(case for case in cases("exact") if case.label == "1 rank, packed")
    half = dataclasses.replace(proof, cfg=dataclasses.replace(proof.cfg, model=model))
    found = said(half, case, ["nothing", "attention", "mlp", "head"], ALLOWED["bf16"])
    for plant, text in found.items():
        assert all(part in text for part in PLANTS[plant][1]), (plant, text)


def test_samples_that_are_not_fed_are_counted() -> None:
    empty = Step({}, frozenset(), 0.0, [[1.0]], {}, {}, "lm_head")
    wanted = dataclasses.replace(empty, uids=frozenset({7, 9}), reduced={"w": torch.ones(2)})
    said = name(dataclasses.replace(wanted, uids=frozenset({9})), wanted, wanted, 1e-6)
    assert said.startswith("1 of 2 samples reach no micro-batch, the first 0000000000000007")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_command_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real processes compute the cases; here the reference is the one that is wrong, from its norm on."""
    argv = tiny_run(tmp_path, "run")
    cfg = compose(argv)
    prepare(cfg, argv=[])
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    right = LlamaRMSNorm.forward
    with mock.patch.object(LlamaRMSNorm, "forward", lambda self, x: right(self, x) * 1.001):
        assert not comparisons.verify(cfg, argv)
    output = " ".join(capsys.readouterr().out.split())
    assert "DOES NOT HOLD" in output
    place = "the first module whose output differs is model.layers.0.input_layernorm"
    assert f"cut up as '1 rank, one sample per row', {place}" in output
