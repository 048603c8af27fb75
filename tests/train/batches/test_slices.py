"""Slices of a row: nothing lost, nothing twice; and the exchange of slices for heads, forward and backward."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from conf.errors import ConfigError, InternalError
from data_prep.interop import IGNORE
from data_prep.stream.stream import PackedRow
from tests.distributed import run_distributed
from tests.tiny import PACKING_FAMILIES, tiny_config
from tests.train.attention.test_shared_prefix import exact_nll, in_float64
from tests.train.rows import CPU, PAD, fake_split, packed_model, sharing
from train.attention import Asked, choose
from train.attention.exchange import Exchange, over
from train.attention.gather import uses_of
from train.attention.packed import packed_attention
from train.batches.batch import Batch
from train.batches.collate import collate
from train.batches.feed import Feed
from train.batches.slices import in_teams, share, sliced
from train.families import family, shape_of
from train.model.recompute import set_recompute
from train.objectives.sft import token_nll_sum
from train.plan.communication import exchanged
from train.ranks.group import Ranks

PREFIXES = ((5, 6, 7, 8, 9, 10), (5, 6, 11))


def whole_row(rows: int, seed: int, shared: bool, layout: Any = "flat") -> Batch:
    split = fake_split(rows, seed, prefixes=PREFIXES if shared else ())
    packed = sharing(split, range(rows)) if shared else PackedRow(tuple((0, row) for row in range(rows)))
    return collate([packed] if rows else [], [split], layout=layout, pad_id=PAD)


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(0, 7), seed=st.integers(0, 9), shared=st.booleans(), count=st.integers(2, 9))
def test_slices_are_the_row(rows: int, seed: int, shared: bool, count: int) -> None:
    """Put together they are the row and less than one more token per slice, which predicts nothing."""
    batch = whole_row(rows, seed, shared)
    tokens = batch.input_ids.shape[1]
    parts = [sliced(batch, index, count) for index in range(count)]
    assert {part.input_ids.shape[1] for part in parts} == {math.ceil(tokens / count)}
    for name in ("input_ids", "position_ids", "next_labels"):
        joined = torch.cat([getattr(part, name) for part in parts], dim=1)
        assert joined[:, :tokens].equal(getattr(batch, name)), name
        assert set(joined[0, tokens:].tolist()) <= {IGNORE if name == "next_labels" else 0}
    assert [part.targets for part in parts] == [int((part.next_labels != IGNORE).sum()) for part in parts]
    assert sum(part.targets for part in parts) == batch.targets
    assert tuple(uid for part in parts for uid in part.uids) == batch.uids
    assert sum(part.tokens for part in parts) == batch.tokens


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(0, 7), seed=st.integers(0, 9), shared=st.booleans(), count=st.integers(2, 9))
def test_attention_sees_the_same_bounds_on_every_slice(rows: int, seed: int, shared: bool, count: int) -> None:
    """Those of the whole row, and one segment more for what fills it up."""
    batch = whole_row(rows, seed, shared)
    tokens = batch.input_ids.shape[1]
    filling = -tokens % count
    assert batch.segments is not None
    for part in (sliced(batch, index, count) for index in range(count)):
        assert part.segments is not None
        assert part.segments.tolist() == batch.segments.tolist() + [tokens + filling] * (filling > 0)
        assert part.segments.dtype == torch.int32
        lengths = part.segments.diff()
        assert part.longest == int(lengths.max())
        if batch.keys is None:
            assert part.keys is None
            continue
        assert part.keys is not None
        end = len(batch.keys.index)
        assert part.keys.index.tolist() == [*batch.keys.index.tolist(), *range(tokens, tokens + filling)]
        assert part.keys.segments.tolist() == batch.keys.segments.tolist() + [end + filling] * (filling > 0)
        assert part.keys.longest == int(part.keys.segments.diff().max())
        wanted = uses_of(part.keys.index.numpy(), tokens + filling)
        assert all(torch.equal(one, other) for one, other in zip(part.keys.uses, wanted, strict=True))


class Travelled(TorchDispatchMode):
    """Counts the bytes that go to a device without values, from which nothing can be read back."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if "_to_copy" in str(func) and out.device.type == "meta":
            self.bytes += out.nbytes
        return out


@pytest.mark.parametrize("shared", [False, True])
def test_only_the_slice_travels(shared: bool) -> None:
    """Of ids, labels, positions and targets; bounds, and the keys of rows that share prefixes, are the whole row's."""
    split = fake_split(40, 0, prefixes=PREFIXES if shared else ())
    packed = sharing(split, range(40)) if shared else PackedRow(tuple((0, row) for row in range(40)))
    whole = collate([packed], [split], layout="flat", pad_id=PAD)
    count = 4
    team: Any = SimpleNamespace()  # nothing is exchanged here
    for index in range(count):
        ranks = Ranks(rank=index, world=count, slices=count, team=team, device=torch.device("meta"))
        with Travelled() as travelled:
            part = Feed([split], "flat", PAD, ranks).batch([packed])
        wanted = sliced(whole, index, count)
        assert part.input_ids.device.type == "meta"
        assert (part.targets, part.uids, part.input_ids.shape) == (wanted.targets, wanted.uids, wanted.input_ids.shape)
        assert wanted.segments is not None
        assert wanted.predicted is not None
        length = wanted.input_ids.shape[1]
        own = 8 * (length + length + 1 + length) + 16 * len(wanted.predicted.places)
        of_row = wanted.segments.nbytes
        if wanted.keys is not None:
            of_row += wanted.keys.index.nbytes + wanted.keys.segments.nbytes
            of_row += sum(each.nbytes for each in wanted.keys.uses)
        assert travelled.bytes == own + of_row


def test_padded_rows_are_not_sliced() -> None:
    with pytest.raises(InternalError, match=r"ranks cannot share padded rows; set data\.pack=exact"):
        sliced(whole_row(3, 0, False, layout="padded"), 0, 2)


def test_a_rank_alone_takes_the_whole_batch() -> None:
    batch = whole_row(3, 0, False)
    assert share(batch, in_teams(Ranks(), 1)) is batch


def test_teams_that_do_not_come_out_even_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"sequence_parallel: 6 ranks cannot be divided into groups of 4; use one of 1, 2, 3, 6"
    ):
        in_teams(Ranks(world=6), 4)


def test_a_backend_that_cannot_fetch_the_row_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sdpa cannot attend over a row that is sliced.*attention=packed"):
        choose("sdpa", family=family("llama"), pack="exact", dtype=torch.float32, device=CPU, asked=Asked(slices=2))
    found = choose("auto", family=family("llama"), pack="exact", dtype=torch.float32, device=CPU, asked=Asked(slices=2))
    assert found.name == "packed"


HEADS = [(4, 4), (4, 2), (4, 1), (8, 2), (12, 6), (12, 3)]
"""Query and key heads. On 4 ranks: as many key heads, fewer, one; 6 and 3, which 4 does not divide."""
SLICE, SIZE = 3, 5


def exchanges(ranks: Ranks) -> dict[str, tuple[int, int]]:
    """Team of every rank, as (reader, slice); and the exchange against the same cut out of whole rows."""
    teams = in_teams(ranks, 2)
    together = in_teams(ranks, ranks.world)
    assert together.team is not None
    exchange = over(together.team, ranks.world)
    for query_heads, key_heads in HEADS:
        check_exchange(exchange, ranks, query_heads, key_heads)
    return {"of 2": (teams.reader, teams.slice), "of all": (together.reader, together.slice)}


def check_exchange(exchange: Exchange, ranks: Ranks, query_heads: int, key_heads: int) -> None:
    generator = torch.Generator().manual_seed(query_heads * 100 + key_heads)
    tokens = SLICE * ranks.world
    whole = [torch.randn(1, n, tokens, SIZE, generator=generator) for n in (query_heads, key_heads, key_heads)]
    mine = slice(ranks.rank * SLICE, (ranks.rank + 1) * SLICE)
    own = [each[:, :, mine].clone().requires_grad_() for each in whole]
    rows = exchange.to_heads(*own)
    each_rank, groups = query_heads // ranks.world, query_heads // key_heads
    for place, head in enumerate(range(ranks.rank * each_rank, (ranks.rank + 1) * each_rank)):
        assert rows[0][0, place].equal(whole[0][0, head])
        # attention gives query head i of a rank its key head i // (query heads / key heads), both as they came
        key_place = place // (rows[0].shape[1] // rows[1].shape[1])
        assert rows[1][0, key_place].equal(whole[1][0, head // groups])
        assert rows[2][0, key_place].equal(whole[2][0, head // groups])
    back = exchange.to_tokens(rows[0][0].transpose(0, 1))
    assert back.equal(whole[0][0, :, mine].transpose(0, 1))
    # What a rank's slice gets back is the sum of what all ranks ask of it: rank r asks r + 1 of every value.
    sum(each.sum() * (ranks.rank + 1) for each in rows).backward()  # type: ignore[union-attr]
    asked = torch.arange(1, ranks.world + 1).repeat_interleave(each_rank)
    assert own[0].grad is not None
    assert own[0].grad[0, :, 0, 0].tolist() == asked.tolist()
    keys_of_rank = math.lcm(key_heads, ranks.world) // ranks.world
    wanted = torch.zeros(key_heads)
    for rank, place in itertools.product(range(ranks.world), range(keys_of_rank)):
        wanted[(rank * keys_of_rank + place) * key_heads // (keys_of_rank * ranks.world)] += rank + 1
    assert own[1].grad is not None
    assert own[1].grad[0, :, 0, 0].tolist() == wanted.tolist()


@pytest.mark.slow
def test_the_exchange_and_its_gradient() -> None:
    found = run_distributed(exchanges, 4)
    assert [each["of 2"] for each in found] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [each["of all"] for each in found] == [(0, 0), (0, 1), (0, 2), (0, 3)]


def distances(ranks: Ranks) -> dict[str, float]:
    """Gradients of a row that two ranks share, against the whole row's, by family; norm of the difference over it."""
    ranks, found = in_teams(ranks, 2), {}
    for kind in PACKING_FAMILIES:
        model = in_float64(packed_model(kind)[0])
        for part in (whole_row(7, 0, True), share(whole_row(7, 0, True), ranks)):
            exact_nll(model, part).backward()
            gradients = torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])
            if part.exchange is None:
                whole = gradients
                model.zero_grad()
        dist.all_reduce(gradients)
        found[kind] = float((gradients - whole).norm() / whole.norm())
    return found


@pytest.mark.slow
def test_what_is_left_of_a_difference_is_rounding() -> None:
    """In float64, with slices that end inside a shared prefix or a sample; norms in float64 too."""
    (found, _) = run_distributed(distances, 2)
    print(f"worst: {max(found.values()):.1e}")
    assert max(found.values()) <= 1e-10, found
    assert len(found) == len(PACKING_FAMILIES)


def moved(ranks: Ranks, recompute: str) -> tuple[float, float]:
    """Bytes that one rank handed to the all-to-alls of a micro-batch, and what the plan says."""
    ranks = in_teams(ranks, 2)
    model, _ = packed_model("llama")
    blocks = set_recompute(model, recompute, block_class="LlamaDecoderLayer")
    part = share(whole_row(7, 0, True), ranks)
    with mock.patch.object(dist, "all_to_all_single", wraps=dist.all_to_all_single) as exchanging:
        token_nll_sum(model, part, targets_only=True).backward()  # type: ignore[no-untyped-call]
    seen = sum(call.args[1].nbytes for call in exchanging.call_args_list)
    config = tiny_config("llama")
    tokens, again = part.input_ids.shape[1], blocks / config["num_hidden_layers"]
    return seen, exchanged(shape_of(config), tokens=tokens, slices=2, element=4, recomputed=again)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_the_plan_knows_what_is_exchanged(recompute: str) -> None:
    for seen, planned in run_distributed(moved, 2, recompute):
        assert seen == planned > 0


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
        ),
    ],
)
def test_kernels_take_tensors_in_the_order_in_which_they_arrive(device: str) -> None:
    """An exchange of one rank with itself changes nothing but strides: same values, same gradients."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    generator = torch.Generator().manual_seed(0)
    whole = [torch.randn(1, heads, 21, 32, generator=generator).to(device, dtype) for heads in (4, 2, 2)]
    bounds = torch.tensor([0, 5, 6, 21], dtype=torch.int32, device=device)
    lengths: dict[str, Any] = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": 15, "max_length_k": 15}
    found = []
    for exchange in (None, Exchange(1, torch.clone)):
        own = [each.clone().requires_grad_() for each in whole]
        out, _ = packed_attention(torch.nn.Module(), *own, None, **lengths, exchange=exchange)
        found.append([out, *torch.autograd.grad(out.square().sum(), own)])
    for plain, ordered in zip(*found, strict=True):
        assert plain.equal(ordered)
