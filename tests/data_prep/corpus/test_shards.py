"""The corpus on disk: what is written is read back, opens elsewhere, and damage is refused by name."""

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.durable import commit, xxh3_of
from conf.errors import BadData, MissingInput
from data_prep.corpus.manifest import EXTENDED, VERSION
from data_prep.corpus.shard_writer import Sample, SplitWriter
from data_prep.corpus.shards import open_corpus

Row = tuple[list[int], list[int]]


def rows(count: int, seed: int = 0) -> list[Row]:
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 40, count)
    return [(draw.integers(0, 1000, n).tolist(), draw.integers(0, 2, n).tolist()) for n in lengths]


def write(root: Path, content: dict[str, list[Row]], **sizes: int) -> dict[str, Any]:
    """A corpus with one split per name "source/split"; returns its manifest."""
    sources: dict[str, Any] = {}
    for name, samples in content.items():
        source, split = name.split("/")
        writer = SplitWriter(root / source / split, root, **sizes)
        for place, (ids, mask) in enumerate(samples):
            writer.add(Sample(ids, mask, file=0, row=place * 3))
        sources.setdefault(source, {"rejected": {}, "splits": {}})["splits"][split] = writer.finish()
    manifest = {
        "version": VERSION,
        "tokenizer": {"fingerprint": "f", "vocab_size": 1002},
        "min_vocab": 1001,
        "config": {},
        "config_sha256": "",
        "seq_len": 64,
        "max_tokens": 64,
        "template": dict.fromkeys(sources, "alpaca"),
        "files": {source: [{"path": "raw.json", "bytes": 1, "xxh3": "x"}] for source in sources},
        "sources": sources,
    }
    commit(root / "MANIFEST.json", json.dumps(manifest).encode())
    return manifest


@settings(max_examples=15, deadline=None)
@given(count=st.integers(1, 60), shard_rows=st.integers(1, 25), batch_rows=st.integers(1, 12), seed=st.integers(0, 99))
def test_round_trip_over_any_shard_and_batch_size(
    tmp_path_factory: pytest.TempPathFactory, count: int, shard_rows: int, batch_rows: int, seed: int
) -> None:
    root, samples = tmp_path_factory.mktemp("corpus"), rows(count, seed)
    write(root, {"a/train": samples}, shard_rows=shard_rows, batch_rows=batch_rows)
    split = open_corpus(root).split("train")["a"]
    assert split.rows == count
    for row, (ids, mask) in enumerate(samples):
        found_ids, found_mask = split.tokens(row)
        assert found_ids.tolist() == ids
        assert found_mask.tolist() == mask
        assert split.origin(row) == ("raw.json", row * 3, 0)
        assert split.prefix(row) == (-1, 0)
    assert split.lengths.tolist() == [len(ids) for ids, _ in samples]
    assert split.targets.tolist() == [sum(mask[1:]) for _, mask in samples]


def test_views_are_zero_copy_typed_and_read_only(tmp_path: Path) -> None:
    write(tmp_path, {"a/train": rows(10)})
    split = open_corpus(tmp_path).split("train")["a"]
    ids, mask = split.tokens(3)
    assert (ids.dtype, mask.dtype) == (np.int32, np.uint8)
    assert (split.lengths.dtype, split.targets.dtype) == (np.uint16, np.uint16)
    assert not ids.flags.owndata
    assert not ids.flags.writeable
    with pytest.raises(IndexError, match="row 10 of 10"):
        split.tokens(10)


def test_rows_of_more_tokens_than_two_bytes_count(tmp_path: Path) -> None:
    long = ([1] * 70_000, [1] * 70_000)
    write(tmp_path, {"a/train": [*rows(3), long]})
    split = open_corpus(tmp_path).split("train")["a"]
    assert (split.lengths.dtype, split.targets.dtype) == (np.uint32, np.uint32)
    assert (int(split.lengths[3]), int(split.targets[3])) == (70_000, 69_999)


def test_datasets_opens_a_shard(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    samples = rows(30)
    manifest = write(tmp_path, {"a/train": samples}, shard_rows=16, batch_rows=8)
    shards = manifest["sources"]["a"]["splits"]["train"]["shards"]
    assert len(shards) == 2
    found = datasets.Dataset.from_file(str(tmp_path / shards[0]["file"]))
    assert found.num_rows == 16
    assert found[5]["input_ids"] == samples[5][0]
    assert found[5]["loss_mask"] == samples[5][1]


def test_manifest_entry_counts(tmp_path: Path) -> None:
    samples = rows(50)
    entry = write(tmp_path, {"a/train": samples}, shard_rows=20, batch_rows=10)["sources"]["a"]["splits"]["train"]
    assert entry["rows"] == 50
    assert entry["tokens"] == sum(len(ids) for ids, _ in samples)
    assert entry["supervised_tokens"] == sum(sum(mask[1:]) for _, mask in samples)
    assert [shard["rows"] for shard in entry["shards"]] == [20, 20, 10]
    assert sum(shard["tokens"] for shard in entry["shards"]) == entry["tokens"]
    assert np.load(tmp_path / entry["lengths"]["file"]).tolist() == [
        [len(ids) for ids, _ in samples],
        [sum(mask[1:]) for _, mask in samples],
        [0] * 50,
    ]
    for shard in (entry["lengths"], *entry["shards"]):
        path = tmp_path / shard["file"]
        assert (path.stat().st_size, xxh3_of(path)) == (shard["bytes"], shard["xxh3"])


def test_sources_are_ordered_and_empty_ones_absent(tmp_path: Path) -> None:
    write(tmp_path, {"b/train": rows(3), "a/train": rows(2), "c/validation": rows(1), "c/train": []})
    corpus = open_corpus(tmp_path)
    assert list(corpus.split("train")) == ["a", "b"]
    assert list(corpus.split("validation")) == ["c"]
    assert corpus.templates == {"a": "alpaca", "b": "alpaca", "c": "alpaca"}
    assert corpus.tokenizer_fingerprint == "f"


def test_uids_are_64_bit_distinct_and_stable(tmp_path: Path) -> None:
    write(tmp_path, {"a/train": rows(100), "b/train": rows(100)})
    corpus = open_corpus(tmp_path)
    uids = [split.uid(row) for split in corpus.split("train").values() for row in range(100)]
    assert len(set(uids)) == 200
    assert all(0 <= uid < 2**64 for uid in uids)
    assert uids[0] == 629280168657854537  # golden: resuming and ledgers rest on it


def test_bad_samples_are_refused(tmp_path: Path) -> None:
    writer = SplitWriter(tmp_path / "a" / "train", tmp_path)
    for ids, mask in (([], []), ([1, 2], [1])):
        with pytest.raises(ValueError, match="empty or its mask"):
            writer.add(Sample(ids, mask, file=0, row=0))


def test_a_waiting_sample_keeps_nothing_but_itself(tmp_path: Path) -> None:
    writer = SplitWriter(tmp_path / "a" / "train", tmp_path)
    tracemalloc.start()
    for row in range(50):
        block = np.zeros(500_000, np.int32)
        writer.add(Sample(block[:10], np.ones(10, np.uint8), file=0, row=row))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 3 * 500_000 * 4


def test_absent_unfinished_and_foreign_corpora(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=r"no prepared corpus at .*python -m data_prep x=y"):
        open_corpus(tmp_path / "nope", hint="python -m data_prep x=y")
    with pytest.raises(MissingInput, match="unfinished"):
        open_corpus(tmp_path)
    (tmp_path / "MANIFEST.json").write_text('{"version": 1, ')
    with pytest.raises(BadData, match=r"MANIFEST\.json cannot be used"):
        open_corpus(tmp_path)
    (tmp_path / "MANIFEST.json").write_text('{"version": 99}')
    with pytest.raises(
        BadData, match=f"has version 99, this Corral reads {VERSION} and {EXTENDED}; prepare the corpus again"
    ):
        open_corpus(tmp_path)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
@pytest.mark.parametrize("name", ["shard-00000.arrow", "lengths.npy"])
def test_damage_is_refused_by_file_name(tmp_path: Path, name: str, damage: str) -> None:
    write(tmp_path, {"a/train": rows(100)})
    shard, named = tmp_path / "a/train" / name, re.escape(name)
    content = bytearray(shard.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
        open_corpus(tmp_path, verify="sizes")
    elif damage == "cut":
        shard.write_bytes(content[:-8])
    else:
        shard.unlink()
    with pytest.raises(BadData, match=named):
        open_corpus(tmp_path)
    if damage != "flip":
        with pytest.raises(BadData, match=named):
            open_corpus(tmp_path, verify="sizes")


def test_a_shard_is_opened_when_a_row_of_it_is_read(tmp_path: Path) -> None:
    """Lengths alone say how a run goes on, so that opening costs no more for a large corpus than for a small one."""
    samples = rows(40)
    write(tmp_path, {"a/train": samples}, shard_rows=20, batch_rows=10)
    second = tmp_path / "a/train/shard-00001.arrow"
    second.write_bytes(bytes(second.stat().st_size))
    split = open_corpus(tmp_path, verify="sizes").split("train")["a"]
    assert split.lengths.tolist() == [len(ids) for ids, _ in samples]
    assert split.tokens(19)[0].tolist() == samples[19][0]
    with pytest.raises(BadData, match=r"shard-00001\.arrow cannot be used"):
        split.tokens(20)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (np.ones((3, 4), np.uint16), r"uint16 \[3, 4\], not uint16 or uint32 \[3, 5\]"),
        (np.ones((3, 5), np.float32), r"float32 \[3, 5\], not uint16"),
        (np.ones((3, 5), np.uint16), r"row 0 of .*shard-00000\.arrow is not what lengths\.npy beside it says"),
        (b"<html>", r"lengths\.npy cannot be used: This file contains pickled \(object\) data; prepare"),
    ],
)
def test_lengths_that_no_writer_makes_are_refused(tmp_path: Path, lengths: Any, message: str) -> None:
    manifest = write(tmp_path, {"a/train": rows(5)})
    path = tmp_path / "a/train/lengths.npy"
    if isinstance(lengths, bytes):
        path.write_bytes(lengths)
    else:
        np.save(path, lengths)
    manifest["sources"]["a"]["splits"]["train"]["lengths"] |= {"bytes": path.stat().st_size, "xxh3": xxh3_of(path)}
    commit(tmp_path / "MANIFEST.json", json.dumps(manifest).encode())
    with pytest.raises(BadData, match=message):
        open_corpus(tmp_path)


def rewritten(shard: Path, batch: Any) -> None:
    with shard.open("wb") as sink, pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[1], [2, 3], [], [4]], [[1], [1, 1], [], [1]], r"row 2 of .*shard-00000\.arrow has no tokens"),
        ([[1], [2, 3], [4]], [[1], [1], [1, 1]], r"row 1 of .*shard-00000\.arrow has a mask of another length"),
    ],
)
def test_rows_that_no_writer_makes_are_refused_by_file_name(
    tmp_path: Path, ids: list[list[int]], mask: list[list[int]], message: str
) -> None:
    """The bytes are what the MANIFEST says, and wrong all the same: another program wrote them."""
    manifest = write(tmp_path, {"a/train": rows(len(ids))})
    shard = tmp_path / "a/train/shard-00000.arrow"
    with pa.ipc.open_stream(shard.read_bytes()) as reader:
        batch = reader.read_next_batch()
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    columns |= {"input_ids": pa.array(ids, pa.list_(pa.int32())), "loss_mask": pa.array(mask, pa.list_(pa.uint8()))}
    rewritten(shard, pa.record_batch(columns, schema=batch.schema))
    entry = manifest["sources"]["a"]["splits"]["train"]["shards"][0]
    entry |= {"bytes": shard.stat().st_size, "xxh3": xxh3_of(shard)}
    commit(tmp_path / "MANIFEST.json", json.dumps(manifest).encode())
    with pytest.raises(BadData, match=message):
        open_corpus(tmp_path).split("train")


def test_an_id_beyond_the_vocabulary_is_refused_by_file_name(tmp_path: Path) -> None:
    manifest = write(tmp_path, {"a/train": rows(5)})
    commit(tmp_path / "MANIFEST.json", json.dumps(manifest | {"min_vocab": 1003}).encode())
    with pytest.raises(BadData, match=r"MANIFEST\.json says that the largest token id is 1002, .* ids below 1002"):
        open_corpus(tmp_path)


def test_a_shard_with_other_rows_than_its_manifest(tmp_path: Path) -> None:
    manifest = write(tmp_path, {"a/train": rows(5)})
    part = manifest["sources"]["a"]["splits"]["train"]
    part["shards"][0]["rows"] = 6
    commit(tmp_path / "MANIFEST.json", json.dumps(manifest).encode())
    with pytest.raises(BadData, match=r"sources\.a\.splits\.train\.rows is not the sum of those of its shards"):
        open_corpus(tmp_path)
    part["rows"] = 6
    np.save(tmp_path / "a" / "train" / "lengths.npy", np.ones((3, 6), np.uint16))
    lengths = tmp_path / "a" / "train" / "lengths.npy"
    part["lengths"] |= {"bytes": lengths.stat().st_size, "xxh3": xxh3_of(lengths)}
    commit(tmp_path / "MANIFEST.json", json.dumps(manifest).encode())
    with pytest.raises(BadData, match="has 5 rows, its MANIFEST says 6"):
        open_corpus(tmp_path).split("train")
