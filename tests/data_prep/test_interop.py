"""Other trainers read the same rows: torch's DataLoader, Hugging Face datasets, and Corral's own collation as judge."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from conf.errors import ConfigError
from conf.schema import StopConfig
from data_prep.corpus.shards import Split, open_corpus
from data_prep.interop import IGNORE, PackedView, RankSteps, SampleView, row_arrays
from data_prep.stream.stream import EMPTY, Stream
from tests.data_prep.corpus.test_shards import rows, write
from tests.data_prep.streams import all_rows, data_config, leaf
from train.batches.collate import collate

CONTENT = {"a/train": rows(90), "b/train": rows(40, 1)}


@pytest.fixture
def splits(tmp_path: Path) -> dict[str, Split]:
    write(tmp_path, CONTENT, shard_rows=32, batch_rows=8)
    return open_corpus(tmp_path).split("train")


def stream(splits: dict[str, Split], **stop: Any) -> Stream:
    tree = {"a": leaf(weight=3.0), "b": leaf(weight=1.0)}
    data = data_config(tree, stop=StopConfig(**stop or {"examples": 200}), window=37)
    return Stream(splits, data, seed=5, global_size=4)


def test_the_map_is_the_run_row_by_row_in_any_order(splits: dict[str, Split]) -> None:
    view, own = PackedView(stream(splits), splits), all_rows(stream(splits))
    assert len(view) == len(own)
    for number in (*range(len(view)), *reversed(range(len(view))), np.int64(3)):
        found, wanted = view[number], row_arrays(own[number], [splits["a"], splits["b"]])
        assert {name: array.tolist() for name, array in found.items()} == {k: v.tolist() for k, v in wanted.items()}
    with pytest.raises(IndexError, match=f"row {len(view)} of {len(view)}"):
        view[len(view)]


def test_a_stream_that_shares_prefixes_is_refused(splits: dict[str, Split]) -> None:
    data = data_config(["a", "b"], share_prefix=True)
    for view in (PackedView, RankSteps):
        with pytest.raises(ConfigError, match=r"data\.share_prefix=false"):
            view(Stream(splits, data, seed=5, global_size=4), splits)


def test_rows_hold_what_training_feeds(splits: dict[str, Split]) -> None:
    """Tokens, labels and positions equal those of the collation that training uses, token for token."""
    device, both = torch.device("cpu"), [splits["a"], splits["b"]]
    for packed in all_rows(stream(splits)):
        batch = collate([packed], both, layout="flat", pad_id=0).to(device)
        row = row_arrays(packed, both)
        assert row["input_ids"].tolist() == batch.input_ids[0].tolist()
        assert row["labels"].tolist() == batch.labels[0].tolist()
        assert row["position_ids"].tolist() == batch.position_ids[0].tolist()
    assert [len(array) for array in row_arrays(EMPTY, both).values()] == [0, 0, 0]


def test_no_token_is_lost_or_added_and_labels_hide_prompts_and_first_tokens_only(splits: dict[str, Split]) -> None:
    """One epoch of one source through the whole path: every token once, and exactly the supervised ones as labels."""
    only = {"a": splits["a"]}
    data = data_config(["a"], stop=StopConfig(epochs=1.0), window=37)
    view = PackedView(Stream(only, data, seed=5, global_size=4), only)
    found: Counter[tuple[tuple[int, int], ...]] = Counter()
    for number in range(len(view)):
        row = view[number]
        starts = [*np.flatnonzero(row["position_ids"] == 0), len(row["position_ids"])]
        for first, last in pairwise(starts):
            pairs = zip(row["input_ids"][first:last].tolist(), row["labels"][first:last].tolist(), strict=True)
            found[tuple(pairs)] += 1
    wanted = Counter(
        tuple((token, token if supervised and place else IGNORE) for place, (token, supervised) in enumerate(pairs))
        for pairs in (list(zip(ids, mask, strict=True)) for ids, mask in CONTENT["a/train"])
    )
    assert found == wanted


def test_a_torch_data_loader_reads_either_map(splits: dict[str, Split]) -> None:
    view = PackedView(stream(splits), splits)
    batches = BatchSampler(SequentialSampler(view), batch_size=3, drop_last=False)
    loader = DataLoader(view, batch_sampler=batches, collate_fn=list)  # type: ignore[arg-type,var-annotated]
    read = [row["input_ids"].tolist() for batch in loader for row in batch]
    assert read == [view[number]["input_ids"].tolist() for number in range(len(view))]
    shuffled = DataLoader(SampleView(splits["b"]), batch_size=1, shuffle=True)  # type: ignore[arg-type,var-annotated]
    sampled = sorted(tuple(batch["input_ids"][0].tolist()) for batch in shuffled)
    assert sampled == sorted(tuple(ids) for ids, _ in CONTENT["b/train"])


@pytest.mark.parametrize("world", [1, 3])
def test_the_iterator_gives_each_rank_its_rows_and_resumes(splits: dict[str, Split], world: int) -> None:
    everything = [[row["input_ids"].tolist() for row in step] for step in RankSteps(stream(splits), splits)]
    ranks = [RankSteps(stream(splits), splits, rank=rank, world=world) for rank in range(world)]
    assert {len(each) for each in ranks} == {len(everything)}
    head = [[row["input_ids"].tolist() for row in step] for step in islice(ranks[0], 2)]
    state = json.loads(json.dumps(ranks[0].stream.state_dict()))
    together = list(zip(*ranks[1:], strict=True))
    assert len(together) == (len(everything) if world > 1 else 0)
    again = stream(splits)
    again.load_state_dict(state)
    tail = [[row["input_ids"].tolist() for row in step] for step in RankSteps(again, splits, world=world)]
    block = -(-4 // world)
    assert head + tail == [step[:block] for step in everything]


def test_datasets_reads_the_same_samples_from_the_shards(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    write(tmp_path, CONTENT, shard_rows=32, batch_rows=8)
    view = SampleView(open_corpus(tmp_path).split("train")["a"])
    shards = sorted((tmp_path / "a/train").glob("*.arrow"))
    whole = datasets.concatenate_datasets([datasets.Dataset.from_file(str(path)) for path in shards])
    assert len(whole) == len(view)
    for number, row in enumerate(whole):
        assert row["input_ids"] == view[number]["input_ids"].tolist()
        supervised = [bool(each) and place > 0 for place, each in enumerate(row["loss_mask"])]
        assert supervised == (view[number]["labels"] != IGNORE).tolist()
