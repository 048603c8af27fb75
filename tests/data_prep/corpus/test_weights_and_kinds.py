"""Weights of targets and kinds of samples: what is written is read back, summed by the plan, and refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.durable import commit
from conf.errors import BadData, ConfigError
from conf.schema import SftObjective, StopConfig
from conf.schema.fields import SampleKind
from data_prep.corpus.kinds import KINDS, check_kind
from data_prep.corpus.manifest import EXTENDED, VERSION, version_of
from data_prep.corpus.shard_writer import Sample, SplitWriter
from data_prep.corpus.shards import Split, open_corpus
from data_prep.interop import rows_arrays
from data_prep.stream.stream import Stream
from tests.data_prep.streams import data_config, leaf

Entries = dict[str, dict[str, Any]]


def samples(count: int, seed: int = 0, *, weighted: bool = True) -> list[Sample]:
    draw = np.random.default_rng(seed)
    made = []
    for row in range(count):
        length = int(draw.integers(2, 30))
        mask = draw.integers(0, 2, length).astype(np.uint8)
        weights = (draw.uniform(0.1, 3.0, length) * mask).astype(np.float32)
        ids = draw.integers(0, 1000, length).astype(np.int32)
        made.append(Sample(ids, mask, file=0, row=row, weights=weights if weighted else None))
    return made


def written(root: Path, name: str, made: list[Sample], *, weighted: bool, kind: SampleKind = "text") -> dict[str, Any]:
    writer = SplitWriter(root / name / "train", root, kind=kind, weighted=weighted, shard_rows=16, batch_rows=5)
    for each in made:
        writer.add(each)
    of_kind = {} if kind == "text" else {"kind": kind}
    return {"rejected": {}, "splits": {"train": writer.finish()}, **of_kind}


def publish(root: Path, entries: Entries) -> None:
    manifest = {
        "version": version_of(entries),
        "tokenizer": {"fingerprint": "f", "vocab_size": 1002},
        "min_vocab": 1001,
        "config": {},
        "config_sha256": "",
        "seq_len": 64,
        "max_tokens": 64,
        "template": dict.fromkeys(entries, "alpaca"),
        "files": {name: [{"path": "raw.json", "bytes": 1, "xxh3": "x"}] for name in entries},
        "sources": entries,
    }
    commit(root / "MANIFEST.json", json.dumps(manifest).encode())


def opened(root: Path, entries: Entries) -> dict[str, Split]:
    publish(root, entries)
    return open_corpus(root).split("train")


def test_weights_are_read_back_and_summed_per_row(tmp_path: Path) -> None:
    made = samples(40)
    split = opened(tmp_path, {"a": written(tmp_path, "a", made, weighted=True)})["a"]
    assert json.loads((tmp_path / "MANIFEST.json").read_text())["version"] == EXTENDED
    assert split.row_weights is not None
    for row, sample in enumerate(made):
        found = split.weights(row)
        assert found is not None
        assert found.dtype == np.float32
        assert np.array_equal(found, sample.weights)  # type: ignore[arg-type]
        assert split.row_weights[row] == float(np.sum(found[1:], dtype=np.float64))


def test_a_corpus_without_weights_is_as_it_was(tmp_path: Path) -> None:
    """No column, no file, no new version: what earlier releases wrote and read."""
    entry = written(tmp_path, "a", samples(20, weighted=False), weighted=False)
    split = opened(tmp_path, {"a": entry})["a"]
    assert json.loads((tmp_path / "MANIFEST.json").read_text())["version"] == VERSION
    assert "weights" not in entry["splits"]["train"]
    assert split.weights(3) is None
    assert not list(tmp_path.rglob("weights.npy"))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), global_size=st.integers(1, 7))
def test_the_plan_knows_the_weight_of_every_step(
    tmp_path_factory: pytest.TempPathFactory, seed: int, global_size: int
) -> None:
    """A mixture of a source with weights and one without: each step's weight is the sum over its samples' targets."""
    root = tmp_path_factory.mktemp("corpus")
    entries = {
        "a": written(root, "a", samples(30, seed), weighted=True),
        "b": written(root, "b", samples(20, seed + 1, weighted=False), weighted=False),
    }
    splits = opened(root, entries)
    tree = {"a": leaf(weight=2.0), "b": leaf(weight=1.0)}
    data = data_config(tree, stop=StopConfig(examples=60), window=17)
    for step in Stream(splits, data, seed=seed, global_size=global_size):
        wanted, targets = 0.0, 0
        for row in step.rows:
            for source, number in row.samples:
                split = splits["ab"[source]]
                mask, weights = split.tokens(number)[1], split.weights(number)
                each = mask if weights is None else weights
                wanted += float(np.sum(each[1:], dtype=np.float64))
                targets += int(mask[1:].sum())
        assert step.weight == pytest.approx(wanted, rel=1e-12)
        assert step.targets == targets


def test_other_trainers_get_the_weights(tmp_path: Path) -> None:
    entries = {
        "a": written(tmp_path, "a", samples(10), weighted=True),
        "b": written(tmp_path, "b", samples(10, 1, weighted=False), weighted=False),
    }
    splits = opened(tmp_path, entries)
    tree = {"a": leaf(weight=1.0), "b": leaf(weight=1.0)}
    data = data_config(tree, stop=StopConfig(examples=20), window=20)
    step = next(Stream(splits, data, seed=0, global_size=4))
    for row, packed in zip(rows_arrays(step.rows, [splits["a"], splits["b"]]), step.rows, strict=True):
        assert row["weights"].dtype == np.float32
        assert np.array_equal(row["weights"] > 0, row["labels"] != -100)
        alone = [splits["ab"[source]].weights(number) for source, number in packed.samples]
        lengths = [int(splits["ab"[source]].lengths[number]) for source, number in packed.samples]
        for start, length, weights in zip(np.cumsum([0, *lengths]), lengths, alone, strict=False):
            part = row["weights"][start : start + length]
            assert part[0] == 0
            assert np.array_equal(part[1:], weights[1:] if weights is not None else (part[1:] != 0))


@pytest.mark.parametrize(
    "weights", [[0.0, 1.0, 0.0], [0.0, 1.0, -1.0], [0.0, 1.0, float("nan")], [0.0, 1.0], [0.5, 1.0, 1.0]]
)
def test_weights_that_do_not_fit_the_mask_are_no_sample(tmp_path: Path, weights: list[float]) -> None:
    writer = SplitWriter(tmp_path / "a", tmp_path, weighted=True)
    with pytest.raises(ValueError, match="not above 0 exactly at its targets"):
        writer.add(Sample([1, 2, 3], [0, 1, 1], file=0, row=0, weights=weights))
    with pytest.raises(ValueError, match="opened without them"):
        SplitWriter(tmp_path / "b", tmp_path).add(Sample([1, 2, 3], [0, 1, 1], file=0, row=0, weights=[0.0, 1.0, 2.0]))


def test_damaged_weights_are_refused_by_file_name(tmp_path: Path) -> None:
    entry = written(tmp_path, "a", samples(10), weighted=True)
    publish(tmp_path, {"a": entry})
    path = tmp_path / entry["splits"]["train"]["weights"]["file"]
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadData, match=r"weights\.npy is damaged"):
        open_corpus(tmp_path)
    path.unlink()
    with pytest.raises(BadData, match=r"weights\.npy is missing"):
        open_corpus(tmp_path)


def test_parts_of_every_kind_are_read_back(tmp_path: Path) -> None:
    ids, mask = list(range(10)), [0, 0, 0, 1, 1, 1, 1, 1, 1, 1]
    made: dict[SampleKind, dict[str, list[int]]] = {
        "text": {},
        "pair": {"parts": [3, 7]},
        "source_target": {"parts": [4]},
        "image_text": {"images": [5, 2], "image_at": [0, 6]},
    }
    assert made.keys() == KINDS.keys()
    entries = {
        name: written(tmp_path, name, [Sample(ids, mask, 0, 0, extras=extras)], weighted=False, kind=name)
        for name, extras in made.items()
    }
    splits = opened(tmp_path, entries)
    assert {name: split.kind for name, split in splits.items()} == {name: name for name in KINDS}
    cut = {name: {part: ids[at] for part, at in split.parts(0).items()} for name, split in splits.items()}
    assert cut["pair"] == {"prompt": [0, 1, 2], "chosen": [3, 4, 5, 6], "rejected": [7, 8, 9]}
    assert cut["source_target"] == {"source": [0, 1, 2, 3], "target": [4, 5, 6, 7, 8, 9]}
    assert cut["text"] == cut["image_text"] == {"text": ids}
    assert splits["image_text"].extra("images", 0).tolist() == [5, 2]
    assert splits["image_text"].extra("image_at", 0).tolist() == [0, 6]
    with pytest.raises(KeyError, match="samples of kind text have no column images"):
        splits["text"].extra("images", 0)


@pytest.mark.parametrize(
    ("kind", "extras", "message"),
    [
        ("pair", {}, "has the columns"),
        ("pair", {"parts": [3]}, "not 2 rising places among 10 tokens"),
        ("pair", {"parts": [7, 3]}, "not 2 rising places"),
        ("source_target", {"parts": [10]}, "not 1 rising places"),
        ("image_text", {"images": [1], "image_at": [0, 3]}, "differ in length"),
        ("text", {"parts": [1]}, "has the columns"),
    ],
)
def test_parts_that_do_not_fit_are_no_sample(tmp_path: Path, kind: SampleKind, extras: Any, message: str) -> None:
    writer = SplitWriter(tmp_path / "a", tmp_path, kind=kind)
    with pytest.raises(ValueError, match=message):
        writer.add(Sample(list(range(10)), [0] * 5 + [1] * 5, 0, 0, extras=extras))


def test_a_kind_that_the_objective_cannot_use_is_refused_by_name() -> None:
    check_kind("a", "text", SftObjective())
    refusal = r"data\.sources\.a: .* of kind pair, and objective\.kind=sft uses samples of kind text; .* two answers"
    with pytest.raises(ConfigError, match=refusal):
        check_kind("a", "pair", SftObjective())
