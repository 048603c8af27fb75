"""What samples of a step that begin alike save, beside what they could: the table of docs/data_engine.md.

python -m benchmarks.shared_prefixes FOLDER [alpaca] [niv2] [flan_mini]     prepares below FOLDER what is not there

Needs CORRAL_TEST_DATA. Alpaca and niv2 take a minute each to prepare, flan_mini a quarter of an hour. niv2 are the
tasks of Super-NaturalInstructions as Tk-Instruct writes them: the definition and two examples before every instance.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

from conf.compose import compose
from conf.schema import RunConfig
from data_prep.corpus.prefixes import agreed, in_order, shareable
from data_prep.corpus.shards import Split, open_corpus
from data_prep.prepare import prepare
from data_prep.stream.stream import GlobalStep, Stream

SIZES = (16, 64, 256, 600)
ROWS = 1_500
"""Rows that are looked at for every size of a step, of at least three steps."""


def main(argv: Sequence[str]) -> int:
    folder, data = Path(argv[0]), Path(os.environ["CORRAL_TEST_DATA"])
    os.environ["CORRAL_DATA"] = str(data)
    print("corpus, rows per step: shared tokens (limit), rows more or less")
    for name in argv[1:] or ("alpaca", "niv2", "flan_mini"):
        cfg = config(name, folder, data)
        splits = open_corpus(prepare(cfg, argv=[]), verify="sizes").split("train")
        for size in SIZES:
            apart, shared = (steps(replace(cfg.data, share_prefix=share), splits, size) for share in (False, True))
            tokens = sum(each.tokens for each in shared)
            saved = 1 - sum(each.positions for each in shared) / tokens
            limit = sum(could_save(each, [*splits.values()]) for each in shared) / tokens
            rows = sum(each.filled for each in shared) / sum(each.filled for each in apart) - 1
            print(f"{name}, {size}: {saved:.1%} ({limit:.1%}), {rows:+.1%}", flush=True)
    return 0


def config(name: str, folder: Path, data: Path) -> RunConfig:
    words = {
        "alpaca": ["data=own", f"path={data / 'alpaca' / 'alpaca_data.json.gz'}"],
        "niv2": ["data=own", f"path={folder / 'tk_instruct.jsonl'}"],
        "flan_mini": ["data=flan_mini"],
    }[name]
    folder.mkdir(parents=True, exist_ok=True)
    if name == "niv2":
        lines = (json.dumps(each) + "\n" for each in tk_instruct(data / "niv2" / "tasks"))
        (folder / "tk_instruct.jsonl").write_text("".join(lines), encoding="utf-8")
    tokenizer = f"model.tokenizer={data / 'tokenizers' / 'gpt2'}"
    return compose([*words, f"data.prepared={folder / name}", tokenizer, "data.bad_row_budget=0.2"])


def tk_instruct(tasks: Path) -> Iterator[dict[str, str]]:
    """Rows of prompt and completion."""
    for path in sorted(tasks.glob("*.json*")):
        task = json.loads(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
        (definition,) = task["Definition"] if isinstance(task["Definition"], list) else [task["Definition"]]
        head = f"Definition: {definition}\n\n"
        for number, each in enumerate(task["Positive Examples"][:2], 1):
            head += f" Positive Example {number} -\nInput: {each['input']}\n Output: {each['output']}\n\n"
        for each in task["Instances"]:
            output = each["output"] if isinstance(each["output"], str) else each["output"][0]
            prompt = f"{head}Now complete the following example -\nInput: {each['input']}\nOutput: "
            yield {"prompt": prompt, "completion": output}


def steps(data: object, splits: dict[str, Split], size: int) -> list[GlobalStep]:
    return list(islice(Stream(splits, data, seed=0, global_size=size), max(3, ROWS // size)))  # type: ignore[arg-type]


def could_save(step: GlobalStep, splits: Sequence[Split]) -> int:
    """Tokens that a row as long as the step would share: those of all samples less those of their trie."""
    heads = []
    for packed in step.rows:
        for source, row in packed.samples:
            ids, mask = splits[source].tokens(row)
            heads.append(in_order(ids[: shareable(mask)]))
    return sum(agreed(one, other) for one, other in pairwise(sorted(heads)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
