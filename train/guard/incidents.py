"""The samples of a bad step, with their texts, for a person who looks for the cause: incidents/step-N.jsonl."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from conf.durable import opened
from conf.errors import StorageError
from data_prep.corpus.shards import Split
from data_prep.stream.stream import GlobalStep
from data_prep.tokenizer.tokenizer import Tokenizer

MOST_FILES = 100
"""Of a run: a run that warns of many steps must not fill the disk."""


def dump(run_dir: Path, step: int, plan: GlobalStep, splits: Sequence[Split], tokenizer: Tokenizer) -> str:
    """Write the samples of ``plan``, the global batch of step ``step``; returns the file's path in the run's folder.

    One object per sample in row order: uid, source, file, row (of the record in that file), text. Returns "" where the
    run has as many files as it may. Raises StorageError (74). Not collective.
    """
    path = run_dir / "incidents" / f"step-{step:08d}.jsonl"
    if not path.exists() and len(list(path.parent.glob("step-*.jsonl"))) >= MOST_FILES:
        return ""
    try:
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        with opened(path, "xb") as lines:
            for packed in plan.rows:
                for source, row in packed.samples:
                    split = splits[source]
                    file, index, _ = split.origin(row)
                    sample = {"uid": f"{split.uid(row):016x}", "source": split.name, "file": file, "row": index}
                    text = tokenizer.decode(split.tokens(row)[0].tolist())
                    lines.write((json.dumps({**sample, "text": text}, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}; free space or choose another run_dir") from None
    return path.relative_to(run_dir).as_posix()
