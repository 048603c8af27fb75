"""The chunked head against logits that exist: values and gradients, however the positions are cut into chunks."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from conf.errors import InternalError
from conf.schema import SftObjective
from train.batches.batch import Predicted
from train.objectives import head
from train.objectives.head import head_losses, losses_for_logits, plain_head
from train.plan import chunks

HIDDEN, VOCAB = 6, 11
LOSSES = st.builds(SftObjective, z_loss=st.sampled_from([0.0, 1e-2]), label_smoothing=st.sampled_from([0.0, 0.1]))


def chunks_of(positions: int) -> Any:
    return mock.patch.dict(chunks.CHUNK_ELEMENTS, cpu=positions * VOCAB)


def made(positions: int, seed: int, *, bias: bool, dtype: torch.dtype = torch.float64) -> list[torch.Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, offset = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in ((positions, HIDDEN), (VOCAB, HIDDEN), (VOCAB,))
    )
    return [hidden, weight, offset if bias else None]


def losses_of(
    inputs: list[Any], labels: torch.Tensor, loss: SftObjective, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """``head_losses`` of a row in which every second position has a target."""
    hidden = torch.stack([inputs[0], torch.ones_like(inputs[0])], dim=1).flatten(0, 1)
    return head_losses(hidden, *inputs[1:], Predicted(2 * torch.arange(len(labels)), labels, weights), loss)


def by_hand(
    inputs: list[Any], labels: torch.Tensor, loss: SftObjective, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both losses from whole logits, from the definitions."""
    logits = functional.linear(*inputs)
    log_z = logits.logsumexp(-1)
    log_p = logits - log_z[:, None]
    own = -log_p[torch.arange(len(labels)), labels]
    share = loss.label_smoothing
    objective = (1 - share) * own - share * log_p.mean(-1) + loss.z_loss * log_z**2
    each = torch.ones_like(own) if weights is None else weights
    return (own * each).sum(), (objective * each).sum()


@settings(deadline=None, max_examples=60)
@given(
    positions=st.integers(1, 9),
    chunk=st.integers(1, 10),
    seed=st.integers(0, 5),
    bias=st.booleans(),
    weighted=st.booleans(),
    loss=LOSSES,
)
def test_values_and_gradients_are_those_of_whole_logits(
    positions: int, chunk: int, seed: int, bias: bool, weighted: bool, loss: SftObjective
) -> None:
    inputs = made(positions, seed, bias=bias)
    labels = torch.randint(VOCAB, (positions,), generator=torch.Generator().manual_seed(seed))
    weights = torch.rand(positions, generator=torch.Generator().manual_seed(seed)).double() + 0.1 if weighted else None
    wanted = by_hand(inputs, labels, loss, weights)
    with chunks_of(chunk):
        found = losses_of(inputs, labels, loss, weights)
    given_ = [each for each in inputs if each is not None]
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad(found[1] / 7, given_), torch.autograd.grad(wanted[1] / 7, given_), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("trained", [(True, False), (False, True), (False, False)])
def test_only_what_is_trained_gets_a_gradient(trained: tuple[bool, bool]) -> None:
    hidden, weight, _ = made(5, 0, bias=False)
    assert hidden is not None
    assert weight is not None
    for each, on in zip((hidden, weight), trained, strict=True):
        each.requires_grad_(on)
    with chunks_of(2):
        _, objective = losses_of([hidden, weight, None], torch.arange(5), SftObjective())
    assert objective.requires_grad == any(trained)
    if any(trained):
        objective.backward()  # type: ignore[no-untyped-call]
    assert [each.grad is not None for each in (hidden, weight)] == list(trained)


def test_nothing_is_differentiated_without_gradients() -> None:
    """Evaluation pays for no gradient, though the weights could have one."""
    inputs = made(5, 0, bias=True)
    with torch.no_grad(), mock.patch.object(torch, "mm", side_effect=AssertionError("a gradient was made")):
        nll, _ = losses_of(inputs, torch.arange(5), SftObjective())
    assert float(nll) == pytest.approx(float(by_hand(inputs, torch.arange(5), SftObjective())[0].detach()))


def test_sixteen_bit_chunks_are_added_up_in_fp32() -> None:
    """64 chunks: the weight's gradient is as near to the exact one as that of one chunk, and not 64 roundings off."""
    positions = 512
    inputs = made(positions, 0, bias=False, dtype=torch.bfloat16)
    labels = torch.randint(VOCAB, (positions,), generator=torch.Generator().manual_seed(1))
    exact = [None if each is None else each.detach().double().requires_grad_() for each in inputs]
    wanted = torch.autograd.grad(by_hand(exact, labels, SftObjective())[1], exact[1])[0]

    def error(chunk: int) -> float:
        with chunks_of(chunk):
            _, objective = losses_of(inputs, labels, SftObjective())
        (gradient,) = torch.autograd.grad(objective, inputs[1:2])
        assert gradient.dtype == torch.bfloat16
        return float((gradient.double() - wanted).norm() / wanted.norm())

    assert error(8) <= 1.5 * error(positions) <= 0.02


def test_the_gradient_can_be_used_once() -> None:
    inputs = made(3, 0, bias=False)
    _, objective = losses_of(inputs, torch.arange(3), SftObjective())
    objective.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    with pytest.raises(InternalError, match="twice"):
        objective.backward()  # type: ignore[no-untyped-call]


def test_the_heads_own_hooks_run_and_its_forward_comes_back() -> None:
    layer, calls = nn.Linear(HIDDEN, VOCAB), []
    layer.register_forward_pre_hook(lambda *_: calls.append("before"))
    hidden = torch.randn(1, 4, HIDDEN)
    with losses_for_logits(layer, Predicted(torch.arange(4), torch.arange(4)), SftObjective()):
        nll, _ = layer(hidden).unbind()
    assert calls == ["before"]
    assert layer(hidden).shape == (1, 4, VOCAB)
    wanted = functional.cross_entropy(layer(hidden)[0], torch.arange(4), reduction="sum")
    torch.testing.assert_close(nll, wanted.detach())


def test_only_a_plain_linear_head_is_replaced() -> None:
    class Model(nn.Module):
        def __init__(self, layer: nn.Module, cap: float | None = None) -> None:
            super().__init__()
            self.layer, self.config = layer, mock.Mock(final_logit_softcapping=cap)

        def get_output_embeddings(self) -> nn.Module:
            return self.layer

    class Adapted(nn.Linear):
        pass

    assert plain_head(Model(nn.Linear(2, 3))) is not None
    assert plain_head(Model(nn.Linear(2, 3), cap=30.0)) is None
    assert plain_head(Model(Adapted(2, 3))) is None
    assert plain_head(nn.Linear(2, 3)) is None

    class Engine(nn.Module):
        """As DeepSpeed's: what it has not it takes from the model, but ``config`` it has."""

        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module, self.config = module, {"train_batch_size": 1}

        def __getattr__(self, name: str) -> object:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("module"), name)

    assert plain_head(Engine(Model(nn.Linear(2, 3)))) is not None
    assert plain_head(Engine(Model(nn.Linear(2, 3), cap=30.0))) is None


@pytest.mark.parametrize("weights", [None, torch.linspace(0.1, 2.0, 7)])
@pytest.mark.parametrize("loss", [SftObjective(), SftObjective(z_loss=1e-2, label_smoothing=0.1)])
def test_the_form_that_gpus_compile_is_the_same(loss: SftObjective, weights: torch.Tensor | None) -> None:
    """The gradient at the target by comparison instead of by index; not compiled here, which would take a minute."""
    logits, labels = torch.randn(7, VOCAB + 5, dtype=torch.float64), torch.arange(7)
    logits[:, VOCAB:] = float("-inf")
    forms = []
    for fused in (False, True):
        scores = logits.clone()
        options = head.ChunkOptions(VOCAB, loss.label_smoothing, loss.z_loss, fused=fused)
        losses = head.chunk_losses(scores, labels, weights, options)
        forms.append((*losses, scores[:, :VOCAB]))
    torch.testing.assert_close(forms[0], forms[1], rtol=1e-12, atol=1e-12)
