"""Prepared corpora, damaged with and without new hashes: opened, read row by row, dealt out in steps."""

from __future__ import annotations

from pathlib import Path

from conf.schema import RunConfig
from data_prep.corpus.shards import open_corpus
from data_prep.interop import RankSteps
from data_prep.prepare import prepare
from data_prep.stream.stream import Stream
from data_prep.tokenizer.tokenizer import load_tokenizer
from tests.data_prep.made import config
from tests.fuzz import mutations
from tests.fuzz.target import Target


def settings(folder: Path) -> RunConfig:
    from tests.tiny import tiny_alpaca

    raw = folder.parent / "fuzz-rows.json"
    path = str(raw if raw.is_file() else tiny_alpaca(raw, 60))
    source = {"format": "alpaca", "path": path, "validation_fraction": 0.2}
    return config({"own": source, "other": {**source, "validation_fraction": 0.0}}, folder, seq_len=256)


def make(folder: Path) -> None:
    folder.rmdir()
    prepare(settings(folder), argv=[])


def read(folder: Path) -> None:
    corpus = open_corpus(folder)
    cfg = settings(folder)
    splits = corpus.split("train")
    vocabulary = load_tokenizer(str(folder / "tokenizer")).vocab_size
    _ = corpus.tokenizer_fingerprint, corpus.new_ids, corpus.templates
    for split in (*splits.values(), *corpus.split("validation").values()):
        for row in range(split.rows):
            ids, mask = split.tokens(row)
            assert 0 <= ids.min() <= ids.max() < vocabulary, "an id that no token has"
            assert len(ids) == len(mask)
            split.uid(row)
            index, tokens = split.prefix(row)
            assert index < 0 or len(split.prefixes[index]) == tokens
            split.weights(row)
    stream = Stream(splits, cfg.data, seed=0, global_size=4, max_steps=3)
    if not stream.shares:
        list(RankSteps(stream, splits))
    stream.total_steps()


TARGETS = (Target("corpus", make, mutations.corpus_of, read),)
