"""Generated answers: what ``generate`` gives, scored, shared among ranks, everything restored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from tests.tiny import FAMILIES, tiny_model
from tests.train.rows import EOS, PAD, VOCAB, FakeSplit, LoneRanks, Words, answered, fake_split, packed_model
from train.evaluate.answers import Asked, Question, answer_rows, base_model, before, greedy, question_of
from train.evaluate.evaluation import answer_metrics
from train.ranks.group import Ranks


def asked(prompts: list[list[int]]) -> list[Question]:
    return [Question("a", row, prompt, []) for row, prompt in enumerate(prompts)]


@pytest.mark.parametrize("kind", FAMILIES)
def test_greedy_gives_what_generate_gives(kind: str) -> None:
    generator = np.random.default_rng(1)
    prompts = [generator.integers(0, EOS, length).tolist() for length in (3, 9, 1, 14)]
    model = tiny_model(kind, vocab_size=VOCAB).eval()
    with torch.no_grad():
        ours = greedy(model, asked(prompts), Words(), max_new_tokens=12, ranks=Ranks(), synced=False)
    for prompt, found in zip(prompts, ours, strict=True):
        ids = torch.tensor([prompt])
        whole = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=EOS,
            pad_token_id=PAD,
        )
        assert found == before(whole[0, len(prompt) :].tolist(), [EOS])


def test_greedy_stops_at_every_stop_token() -> None:
    """What a model says first, second, third ...: each of these tokens ends the answer where it is a stop token."""
    model = tiny_model("llama", vocab_size=VOCAB).eval()
    how: dict[str, Any] = {"max_new_tokens": 12, "ranks": Ranks(), "synced": False}
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        (free,) = greedy(model, asked([[5, 6, 7]]), Words(stop_ids=(-1,)), **how)
        for place, token in enumerate(dict.fromkeys(free)):
            passes.clear()
            (found,) = greedy(model, asked([[5, 6, 7]]), Words(stop_ids=(-1, token)), **how)
            assert found == before(free, [token])
            assert len(passes) == len(found) + 1, f"stop token {place} is read, and nothing after it"


def test_greedy_stops_where_positions_end() -> None:
    model = tiny_model("gpt2", vocab_size=VOCAB).eval()  # 128 learned positions
    prompts = [list(range(60)) * 2, [5, 6]]
    with torch.no_grad():
        long, short = greedy(
            model, asked(prompts), Words(stop_ids=(-1,)), max_new_tokens=30, ranks=Ranks(), synced=False
        )
    assert (len(long), len(short)) == (9, 30)  # the ninth needs no position of its own


def test_answers_are_scored_and_everything_is_as_before() -> None:
    split = fake_split(rows=9)
    model, attention = packed_model("llama")
    model.model.layers[0].eval()  # a frozen part may be in another mode than the rest
    modes = [module.training for module in model.modules()]
    how: dict[str, Any] = {"max_new_tokens": 6, "batch_size": 4, "ranks": Ranks(), "synced": False}
    answers = answered(model, split, Words(), rows=5, **how)
    assert [answer.uid - 2**63 for answer in answers] == [0, 1, 3, 5, 7]
    assert [module.training for module in model.modules()] == modes
    assert model.config._attn_implementation == attention.implementation
    assert torch.is_grad_enabled()
    assert answered(model, split, Words(), rows=5, **how) == answers
    assert answered(model, split, Words(), rows=0, **how) == []
    ids, mask = split.tokens(3)
    assert answers[2].prompt == Words().decode(ids[mask == 0].tolist())
    assert answers[2].reference == Words().decode(ids[mask == 1].tolist())
    assert answers[2].to_dict()["uid"] == "8000000000000003"
    # The answer that is the reference is right.
    echo = FakeSplit("echo", [with_answer(split, row, model) for row in range(3)])
    assert [answer.exact_match for answer in answered(model, echo, Words(), rows=3, **how)] == [True] * 3
    assert answer_metrics("echo", answered(model, echo, Words(), rows=3, **how)) == {
        "eval/echo/exact_match": 1.0,
        "eval/echo/rouge_l": 1.0,
    }


def with_answer(split: Any, row: int, model: PreTrainedModel) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Row ``row`` with the model's own continuation as its reference."""
    ids, mask = split.tokens(row)
    prompt = ids[mask == 0].tolist()
    plain = tiny_model("llama", vocab_size=VOCAB).eval()
    with torch.no_grad():
        (answer,) = greedy(plain, asked([prompt]), Words(), max_new_tokens=6, ranks=Ranks(), synced=False)
    return np.array([*prompt, *answer, EOS], np.int32), np.array([0] * len(prompt) + [1] * (len(answer) + 1), np.uint8)


def test_sources_share_batches() -> None:
    """Three sources of 3 samples are 9 prompts, so 3 batches of 4 and not one or two of each source."""
    model, _ = packed_model("llama")
    splits: dict[str, Any] = {name: fake_split(rows=3, seed=seed, name=name) for seed, name in enumerate("abc")}
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    how: dict[str, Any] = {"ranks": Ranks(), "synced": False}
    together = answer_rows(model, splits, Words(stop_ids=(-1,)), Asked(3, 5, 4), **how)
    assert len(passes) == 3 * 5
    alone = {
        name: answered(model, split, Words(stop_ids=(-1,)), rows=3, max_new_tokens=5, batch_size=4, **how)
        for name, split in splits.items()
    }
    assert together == alone


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_answers(world: int) -> None:
    split = fake_split(rows=9)
    model, _ = packed_model("llama")
    how: dict[str, Any] = {"rows": 9, "max_new_tokens": 5, "batch_size": 2, "synced": False}
    whole = answered(model, split, Words(), ranks=Ranks(), **how)
    shares = [
        answered(model, split, Words(), ranks=LoneRanks(rank=r, world=world), **how | {"rows": 9}) for r in range(world)
    ]
    assert sorted((answer for share in shares for answer in share), key=lambda answer: answer.uid) == whole


def test_a_question_ends_before_the_last_supervised_span() -> None:
    ids = np.arange(10, dtype=np.int32)
    two_turns = FakeSplit("t", [(ids, np.array([0, 0, 1, 1, 0, 0, 0, 1, 1, 1], np.uint8))])
    assert question_of("a", two_turns, 0) == Question("a", 0, [0, 1, 2, 3, 4, 5, 6], [7, 8, 9])  # type: ignore[arg-type]
    tail = FakeSplit("t", [(ids, np.array([0, 0, 1, 1, 0, 0, 0, 0, 0, 0], np.uint8))])
    assert question_of("a", tail, 0) == Question("a", 0, [0, 1], [2, 3])  # type: ignore[arg-type]
    no_prompt = FakeSplit("t", [(ids, np.ones(10, np.uint8))])
    assert question_of("a", no_prompt, 0) is None  # type: ignore[arg-type]


def test_adapters_are_looked_through() -> None:
    from peft import LoraConfig, get_peft_model

    model = tiny_model("llama", vocab_size=VOCAB)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
    assert base_model(adapted) is model
    how: dict[str, Any] = {"rows": 3, "max_new_tokens": 4, "batch_size": 4, "ranks": Ranks(), "synced": False}
    assert answered(adapted, fake_split(), Words(), **how) == answered(model, fake_split(), Words(), **how)
