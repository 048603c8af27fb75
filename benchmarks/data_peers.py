"""The loaders of ``data_engine``, set up for speed as their documentation says. They are imported where they run.

A loader is made from the folder that its ``write`` filled and from a Job. Iteration yields the steps of one rank; a
step is a list of the loader's rows, and ``samples`` reads (source, sample number, tokens) from a row. ``state`` returns
the state from which the loader can continue after the last step.

corral        packed rows of 2,048 tokens with labels and positions; Arrow shards, their hashes checked at every start
grain         MapDataset mixed, sharded, then packed first-fit into 64 bins; a memory map as source, no threads
grain-elastic Grain's ElasticIterator, which promises the same batches for any number of ranks; does not pack
hf            datasets: Arrow files, interleaved iterables with their default buffer of 1,000 samples; does not pack
mosaic        Mosaic Streaming: MDS with xxh64 hashes, no worker processes; does not pack

The settings are the fastest of 0, 1, 2 threads for Grain, of 0, 1 workers for Mosaic, and of reading numpy, plain
Python or batches of Arrow (the fastest) for datasets.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.data_corpus import SEQ_LEN, SHAPES, VOCABULARY, read

SEED = 17
ROWS = 12
"""Packed rows in a global batch; 1, 2, 3 and 4 ranks divide it."""
SAMPLES = 96
"""Samples in a global batch of loaders that do not pack: about as many as ROWS packed rows contain."""

Samples = list[tuple[int, int, int]]
WEIGHTS = [shape.weight for shape in SHAPES.values()]


@dataclass(frozen=True)
class Job:
    folder: Path
    order: Literal["mixture", "once"] = "mixture"
    """mixture: by the weights of the sources; once: every sample of every source exactly once."""
    rank: int = 0
    world: int = 1
    state: Any = None

    @property
    def draws(self) -> int:
        """The number of samples of an epoch."""
        return int(json.loads((self.folder / "rows.json").read_text(encoding="utf-8")))


def one_sample(ids: Any) -> Samples:
    return [(int(ids[0]), int(ids[1]), len(ids))]


class Corral:
    modules = ("conf.schema", "conf.durable", "data_prep.interop", "data_prep.corpus.shard_writer")

    @staticmethod
    def write(raw: Path, folder: Path) -> None:
        from conf.durable import commit
        from data_prep.corpus.manifest import MANIFEST, VERSION
        from data_prep.corpus.shard_writer import Sample, SplitWriter

        sources = {}
        for name, source in read(raw).items():
            writer = SplitWriter(folder / name, folder)
            for row, each in enumerate(source):
                writer.add(Sample(each["input_ids"], each["loss_mask"], 0, row))
            sources[name] = {"splits": {"train": writer.finish()}}
        manifest = {
            "version": VERSION,
            "tokenizer": {"fingerprint": "", "vocab_size": VOCABULARY},
            "min_vocab": VOCABULARY,
            "config": {},
            "config_sha256": "",
            "seq_len": SEQ_LEN,
            "max_tokens": SEQ_LEN,
            "template": {},
            "files": {name: [{"path": "made"}] for name in sources},
            "sources": sources,
        }
        commit(folder / MANIFEST, json.dumps(manifest).encode())

    def __init__(self, job: Job) -> None:
        from conf.schema import DataConfig, SourceConfig, StopConfig
        from data_prep.corpus.shards import open_corpus
        from data_prep.interop import RankSteps
        from data_prep.stream.stream import Stream

        sources = {
            name: SourceConfig(format="alpaca", path="x", weight=shape.weight if job.order == "mixture" else None)
            for name, shape in SHAPES.items()
        }
        data = DataConfig(sources=sources, stop=StopConfig(epochs=1.0), seq_len=SEQ_LEN, share_prefix=False)
        splits = open_corpus(job.folder).split("train")
        self._stream = Stream(splits, data, seed=SEED, global_size=ROWS)
        if job.state:
            self._stream.load_state_dict(job.state)
        self._steps = RankSteps(self._stream, splits, rank=job.rank, world=job.world)

    def __iter__(self) -> Iterator[list[Any]]:
        return iter(self._steps)

    def state(self) -> Any:
        return self._stream.state_dict()

    @staticmethod
    def samples(row: Any) -> Samples:
        starts = [*(row["position_ids"] == 0).nonzero()[0].tolist(), len(row["input_ids"])]
        return [s for a, b in pairwise(starts) for s in one_sample(row["input_ids"][a:b])]


class Grain:
    modules = ("grain", "grain.experimental")

    @staticmethod
    def write(raw: Path, folder: Path) -> None:
        for path in raw.iterdir():
            (folder / path.name).symlink_to(path)

    def __init__(self, job: Job) -> None:
        import grain

        self._take = ROWS // job.world
        mine = self._mixed(job)[job.rank :: job.world].to_iter_dataset(grain.ReadOptions(num_threads=0))
        packed = grain.experimental.FirstFitPackIterDataset(
            mine,
            length_struct={"input_ids": SEQ_LEN, "loss_mask": SEQ_LEN},
            num_packing_bins=64,
            meta_features=("loss_mask",),
        )
        self._rows = iter(packed)
        if job.state:
            self._rows.set_state(job.state)

    @staticmethod
    def _mixed(job: Job) -> Any:
        import grain

        sources = [grain.MapDataset.source(source) for source in read(job.folder).values()]
        if job.order == "once":
            return grain.MapDataset.concatenate(sources).seed(SEED).shuffle()
        shuffled = [source.seed(SEED + number).shuffle().repeat() for number, source in enumerate(sources)]
        return grain.MapDataset.mix(shuffled, WEIGHTS)[: job.draws]

    def __iter__(self) -> Iterator[list[Any]]:
        while step := list(islice(self._rows, self._take)):
            yield step

    def state(self) -> Any:
        return self._rows.get_state()

    @staticmethod
    def samples(row: Any) -> Samples:
        real = row["input_ids_segment_ids"] != 0
        return Corral.samples({"input_ids": row["input_ids"][real], "position_ids": row["input_ids_positions"][real]})


class GrainElastic(Grain):
    def __init__(self, job: Job) -> None:
        import grain
        import numpy as np

        def boxed(sample: Any) -> Any:
            """Grain stacks a batch. Samples of different lengths cannot be stacked, but objects can."""
            box = np.empty((), object)
            box[()] = sample
            return box

        self._rows = grain.experimental.ElasticIterator(
            self._mixed(job).map(boxed),
            SAMPLES,
            grain.sharding.ShardOptions(shard_index=job.rank, shard_count=job.world),
            read_options=grain.ReadOptions(num_threads=0),
        )
        if job.state:
            self._rows.set_state(job.state)

    def __iter__(self) -> Iterator[list[Any]]:
        return iter(self._rows)

    @staticmethod
    def samples(row: Any) -> Samples:
        return one_sample(row["input_ids"])


class HuggingFace:
    modules = ("datasets", "datasets.distributed", "pyarrow")
    shards = 12
    """Shards of each source: ranks get whole shards if the number of ranks divides this number."""

    @staticmethod
    def write(raw: Path, folder: Path) -> None:
        import pyarrow as pa

        schema = pa.schema([("input_ids", pa.list_(pa.int32())), ("loss_mask", pa.list_(pa.uint8()))])
        for name, source in read(raw).items():
            with pa.ipc.new_stream(folder / f"{name}.arrow", schema) as writer:
                for start in range(0, len(source), 1000):
                    rows = [source[row] for row in range(start, min(start + 1000, len(source)))]
                    columns = [pa.array([row[each.name] for row in rows], each.type) for each in schema]
                    writer.write_batch(pa.record_batch(columns, schema))

    def __init__(self, job: Job) -> None:
        from datasets import Dataset, concatenate_datasets, interleave_datasets
        from datasets.distributed import split_dataset_by_node

        self._take = SAMPLES // job.world
        files = (Dataset.from_file(str(job.folder / f"{name}.arrow")) for name in SHAPES)
        parts = [each.to_iterable_dataset(self.shards) for each in files]
        if job.order == "once":
            whole = concatenate_datasets(parts).shuffle(seed=SEED)
        else:
            parts = [part.shuffle(seed=SEED) for part in parts]
            whole = interleave_datasets(parts, WEIGHTS, seed=SEED, stopping_strategy="all_exhausted")
        self._data = split_dataset_by_node(whole, job.rank, job.world).with_format("arrow")
        if job.state:
            self._data.load_state_dict(job.state)

    def __iter__(self) -> Iterator[list[Any]]:
        for table in self._data.iter(self._take):
            yield [row.values.to_numpy() for row in table["input_ids"]]

    def state(self) -> Any:
        return self._data.state_dict()

    samples = staticmethod(one_sample)


class Mosaic:
    modules = ("streaming", "torch")

    @staticmethod
    def write(raw: Path, folder: Path) -> None:
        from streaming import MDSWriter

        columns = {"input_ids": "ndarray:int32", "loss_mask": "ndarray:uint8"}
        for name, source in read(raw).items():
            with MDSWriter(out=str(folder / name), columns=columns, hashes=["xxh64"]) as writer:
                for sample in source:
                    writer.write(sample)

    def __init__(self, job: Job) -> None:
        from streaming import Stream, StreamingDataLoader, StreamingDataset

        mixed = job.order == "mixture"
        own = SAMPLES // job.world
        folders = {name: str(job.folder / name) for name in SHAPES}
        data = StreamingDataset(
            streams=[
                Stream(local=folders[name], proportion=shape.weight if mixed else None)
                for name, shape in SHAPES.items()
            ],
            epoch_size=job.draws if mixed else None,
            shuffle=True,
            shuffle_seed=SEED,
            num_canonical_nodes=1,
            batch_size=own,
        )
        self._loader = StreamingDataLoader(data, batch_size=own, num_workers=0, collate_fn=self._collate)
        if job.state:
            self._loader.load_state_dict(job.state)

    @staticmethod
    def _collate(rows: list[Any]) -> dict[str, list[Any]]:
        """The loader counts samples by the length of the first value."""
        return {key: [row[key] for row in rows] for key in ("input_ids", "loss_mask")}

    def __iter__(self) -> Iterator[list[Any]]:
        return (batch["input_ids"] for batch in self._loader)

    def state(self) -> Any:
        return self._loader.state_dict()

    samples = staticmethod(one_sample)


Loader = Corral | Grain | HuggingFace | Mosaic
LOADERS: dict[str, type[Loader]] = {
    "corral": Corral,
    "grain": Grain,
    "grain-elastic": GrainElastic,
    "hf": HuggingFace,
    "mosaic": Mosaic,
}
