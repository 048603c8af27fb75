"""Start, resume and memory against the size of a corpus: ``python benchmarks/scale.py [most rows]``; about a minute.

Shards on disk contain samples of 4 to 12 tokens (15 million samples are 1.2 GB) and are in the page cache; every size
has a new process. The benchmark measures: opening with a check of sizes; the stream's first global batch of 64 rows of
128 tokens; the process's own memory after that ("Anonymous" in /proc/self/smaps_rollup, without mapped files, which
share the page cache); opening again and the first batch of a stream that resumes at 90% of the epoch; and one rank
reading all tokens of that batch, whose samples are in almost every shard.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from conf.durable import commit
from conf.schema import DataConfig, SourceConfig, StopConfig
from data_prep.corpus.manifest import MANIFEST, VERSION
from data_prep.corpus.shard_file import BATCH_ROWS, LENGTHS, SHARD_ROWS, schema
from data_prep.corpus.shards import open_corpus
from data_prep.stream.stream import Stream

SIZES = (52_002, 500_000, 5_000_000, 15_000_000)
SOURCES = ("a", "b", "c")
GLOBAL_SIZE = 64
SEQ_LEN = 128


def batch(lengths: np.ndarray) -> pa.RecordBatch:
    """An Arrow record batch of samples of these lengths; every token is 7 and a target."""
    rows, tokens = len(lengths), int(lengths.sum())
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    columns = [
        pa.ListArray.from_arrays(offsets, pa.array(np.full(tokens, 7, np.int32))),
        pa.ListArray.from_arrays(offsets, pa.array(np.ones(tokens, np.uint8))),
        pa.array((lengths - 1).astype(np.int32)),
        *(pa.array(np.full(rows, value, kind)) for value, kind in ((-1, np.int32), (0, np.int32), (0, np.int32))),
        pa.array(np.arange(rows)),
        pa.array(np.zeros(rows, np.int16)),
    ]
    return pa.record_batch(columns, schema=schema())


def write_split(folder: Path, source: str, rows: int) -> dict[str, object]:
    """Write shards of one source without a tokenizer, which would be slower; return their entry for the MANIFEST."""
    draw, shards = np.random.default_rng(len(source)), []
    columns = np.zeros((3, rows), np.uint16)
    for number, start in enumerate(range(0, rows, SHARD_ROWS)):
        lengths = draw.integers(4, 13, min(SHARD_ROWS, rows - start))
        columns[:, start : start + len(lengths)] = lengths, lengths - 1, np.zeros_like(lengths)
        path = folder / source / f"shard-{number:05d}.arrow"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as sink, pa.ipc.new_stream(sink, schema()) as writer:
            for at in range(0, len(lengths), BATCH_ROWS):
                writer.write_batch(batch(lengths[at : at + BATCH_ROWS]))
        shards.append({"rows": len(lengths), "tokens": int(lengths.sum())} | entry(folder, path))
    np.save(folder / source / LENGTHS, columns)
    tokens = int(columns[0].sum(dtype=np.int64))
    sizes = {"rows": rows, "tokens": tokens, "supervised_tokens": tokens - rows}
    return {**sizes, "prefixes": [], "lengths": entry(folder, folder / source / LENGTHS), "shards": shards}


def entry(folder: Path, path: Path) -> dict[str, object]:
    return {"file": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size, "xxh3": "0"}


def write_corpus(folder: Path, rows: int) -> None:
    sources = {name: {"splits": {"train": write_split(folder, name, rows // len(SOURCES))}} for name in SOURCES}
    manifest = {
        "version": VERSION,
        "tokenizer": {"fingerprint": "", "vocab_size": 8},
        "min_vocab": 8,
        "config": {},
        "config_sha256": "",
        "seq_len": SEQ_LEN,
        "max_tokens": SEQ_LEN,
        "template": {},
        "files": {name: [{"path": "made"}] for name in SOURCES},
        "sources": sources,
    }
    commit(folder / MANIFEST, json.dumps(manifest).encode())


def own_memory() -> float:
    """Anonymous memory of this process, MiB."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous")) / 1024


def measure(folder: Path) -> dict[str, float]:
    """Milliseconds and MiB for the corpus in ``folder``; call it in a new process."""
    data = DataConfig(
        sources={name: SourceConfig(format="alpaca", path="x") for name in SOURCES},
        stop=StopConfig(epochs=1.0),
        seq_len=SEQ_LEN,
        share_prefix=False,
    )
    before, began = own_memory(), time.perf_counter()
    splits = open_corpus(folder, verify="sizes").split("train")
    opened = time.perf_counter()
    stream = Stream(splits, data, seed=0, global_size=GLOBAL_SIZE)
    next(stream)
    first, memory = time.perf_counter(), own_memory() - before
    state = stream.state_dict()
    window = int(0.9 * sum(split.rows for split in splits.values()) / stream.window_size)
    state |= {"window": window, "start": window * stream.window_size, "offset": 0, "stop": None}
    began_again, cpu = time.perf_counter(), time.process_time()
    splits = open_corpus(folder, verify="sizes").split("train")
    resumed = Stream(splits, data, seed=0, global_size=GLOBAL_SIZE)
    resumed.load_state_dict(json.loads(json.dumps(state)))
    step = next(resumed)
    end, cpu = time.perf_counter(), time.process_time() - cpu
    for row in step.rows:
        for source, index in row.samples:
            splits[resumed.names[source]].tokens(index)
    read = time.perf_counter() - end
    return {
        "open": (opened - began) * 1e3,
        "first": (first - opened) * 1e3,
        "resume": (end - began_again) * 1e3,
        "cpu": cpu * 1e3,
        "read": read * 1e3,
        "memory": memory,
    }


def main() -> None:
    most = int(sys.argv[1]) if len(sys.argv) > 1 else SIZES[-1]
    table = Table(title="Start, resume at 90% and memory", title_justify="left")
    columns = ("samples", "open ms", "first batch ms", "resume ms", "resume CPU ms", "tokens ms", "own memory MiB")
    for column in (*columns, "bytes per sample"):
        table.add_column(column, justify="right")
    small = 0.0
    for rows in (size for size in SIZES if size <= most):
        with tempfile.TemporaryDirectory() as folder:
            write_corpus(Path(folder), rows)
            command = [sys.executable, __file__, "--measure", folder]
            runs = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(3)]
        best = {name: min(run[name] for run in runs) for name in runs[0]}
        small = small or best["memory"]
        per_row = (best["memory"] - small) * 2**20 / rows
        table.add_row(f"{rows:,}", *(f"{best[name]:,.1f}" for name in best), f"{per_row:.1f}")
    Console(width=110).print(table)
    print("best of 3; bytes per sample: memory beyond that of the smallest corpus")


if __name__ == "__main__":
    if "--measure" in sys.argv:
        print(json.dumps(measure(Path(sys.argv[-1]))))
    else:
        main()
