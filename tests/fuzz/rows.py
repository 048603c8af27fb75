"""Rows of every format and files of every kind that hold them, and their way through preparation, damaged."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from conf.safety.console import SafeConsole
from conf.schema import RunConfig
from data_prep.blocks.process import samples_of
from data_prep.blocks.workers import gather_exemplars, records_of
from data_prep.corpus.shards import open_corpus
from data_prep.jobs import job_of, raw_files
from data_prep.prepare import prepare
from data_prep.preview import main as show_samples
from data_prep.report import write_report
from data_prep.report.terminal import show
from data_prep.rows.stage import Counts
from tests.data_prep.made import CHATML, byte_tokenizer, config
from tests.fuzz.mutations import bytes_of, json_text_of
from tests.fuzz.target import Target

CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
MESSAGES = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "Ask."},
    {"role": "tool", "content": {"degrees": 4}, "tool_call_id": "1", "name": "weather"},
    {"role": "assistant", "content": "It is 4 degrees.", "weight": 0.5},
]
SHAREGPT = [
    {"from": "human", "value": "Weather?"},
    {"from": "function_call", "value": '{"name": "weather", "arguments": {}}'},
    {"from": "observation", "value": "4"},
    {"from": "gpt", "value": "It is 4."},
]
ROWS: dict[str, dict[str, Any]] = {
    "alpaca": {
        "instruction": "Say it.",
        "input": "red",
        "output": "red",
        "system": "Be short.",
        "history": [["a", "b"]],
    },
    "prompt_completion": {"prompt": MESSAGES[:2], "completion": MESSAGES[4:], "tools": [TOOL]},
    "messages": {"messages": MESSAGES, "tools": [TOOL]},
    "sharegpt": {"conversations": SHAREGPT, "system": "Be short.", "tools": json.dumps([TOOL])},
    "flan_cot": {"fields": ["What is 2+2?", "4", "Two and two make four."]},
    "niv2": {"Definition": ["Say it."], "input": "red", "output": ["red", "blue"], "ex_input": "a", "ex_output": "b"},
    "p3": {"inputs": "Say red.", "targets": "red", "task": "say", "template_type": "zs_opt"},
    "qa": {"question": "Which?", "answer": "red", "options": ["red", "blue"], "passage": "It is red."},
}
STYLES: dict[str, dict[str, Any]] = {
    "qa": {"style": {"templates": None, "options": "varied"}},
    "p3": {"select": {"where": {"template_type": "zs_opt"}, "task": "task"}},
}
CHAT = ("messages", "sharegpt", "prompt_completion")
COUNT = 6


def make(folder: Path) -> None:
    """A tokenizer, and for each format its rows as JSON lines; other kinds of files of some of them."""
    byte_tokenizer(folder / "made", specials=["<|im_start|>", "<|im_end|>"], template=CHATML).save(folder / "tokenizer")
    for name, row in ROWS.items():
        rows = [row] * COUNT
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    rows = [ROWS["alpaca"]] * COUNT
    (folder / "alpaca.json").write_text(json.dumps(rows))
    (folder / "qa.json").write_text(json.dumps({"version": 1, "data": [ROWS["qa"]] * COUNT}, indent=1))
    task = {"Definition": ["Say it."], "Positive Examples": [{"input": "a", "output": "b", "explanation": "c"}]}
    instances = [{"id": "1", "input": "red", "output": ["red"]}] * COUNT
    (folder / "niv2.json").write_text(json.dumps(task | {"Instances": instances}, indent=1))
    plain = [{key: row for key, row in ROWS["alpaca"].items() if isinstance(row, str)}] * COUNT
    table = pa.Table.from_pylist(plain)
    pq.write_table(table, folder / "alpaca.parquet")
    with pa.OSFile(str(folder / "alpaca.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    lines = [",".join(plain[0]), *(",".join(f'"{value}"' for value in each.values()) for each in plain)]
    (folder / "alpaca.csv").write_text("\n".join(lines) + "\n")
    (folder / "flan_cot.tsv").write_text("\t".join(ROWS["flan_cot"]["fields"]) + "\n")
    with gzip.open(folder / "alpaca.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(each) + "\n" for each in rows))
    (folder / "alpaca.jsonl.zst").write_bytes(pa.compress(json.dumps(rows[0]).encode(), "zstd", asbytes=True))


def damage(rng: Random, folder: Path) -> str:
    """Damages one file of rows and notes which."""
    if rng.random() < 0.03:
        name = rng.choice([*HEAVY])
        (folder / name).write_bytes(HEAVY[name](rng))
        (folder / "which").write_text(name)
        return f"{name}: {(folder / name).stat().st_size:,} bytes that ask for much"
    path = rng.choice(sorted(each for each in folder.iterdir() if each.is_file()))
    content = path.read_bytes()
    if path.suffix == ".jsonl" and rng.random() < 0.8:
        lines = content.splitlines()
        at = rng.randrange(len(lines))
        lines[at] = json_text_of(rng, json.loads(lines[at])).replace(b"\n", b" ")
        content = b"\n".join(lines) + b"\n"
    elif path.suffix == ".json" and rng.random() < 0.7:
        content = json_text_of(rng, json.loads(content))
    else:
        content = bytes_of(rng, content)
    path.write_bytes(content)
    (folder / "which").write_text(path.name)
    return f"{path.name}: {content[:400]!r}"


def packed(rng: Random) -> bytes:
    """3 GiB in 3 MiB: members of gzip, one after another."""
    part = gzip.compress(rng.choice([b"a", b"\n", b"["]) * (1 << 20), 9)
    return part * (3 << 10)


def long(rng: Random) -> bytes:
    """One row of 72 MiB, or ten million values, or so many lists in one another, or lines without rows."""
    return rng.choice([
        b'{"instruction": "' + b"a " * (36 << 20) + b'", "output": "b"}\n',
        b'{"instruction": [' + b"1," * 9_000_000 + b"1]}\n",
        b'{"instruction": ' + b'{"a": [' * 1_000_000 + b"\n",
        b"\n" * 3_000_000,
    ])  # fmt: skip


def wide(rng: Random) -> bytes:
    """A header of ten million names, a field without an end, or long rows where the separator is read from."""
    return rng.choice([
        b"," * 10_000_000,
        b'instruction,output\n"' + b"a," * (36 << 20),
        b"instruction,output\n" + (b'"' + b"a;" * (4 << 20) + b'"\n') * 6,
    ])  # fmt: skip


def table(rng: Random) -> bytes:
    """6 GiB in a few KiB: one text for thousands of rows, as parquet packs it."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 3_000, pa.int32()), pa.array(["a" * (2 << 20)]))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"instruction": text}), sink, row_group_size=3_000)
    return bytes(sink.getvalue())


HEAVY: Mapping[str, Callable[[Random], bytes]] = {
    "alpaca.jsonl.gz": packed,
    "alpaca.jsonl": long,
    "alpaca.json": lambda rng: b"[" + long(rng) + b"]",
    "alpaca.csv": wide,
    "alpaca.parquet": table,
}
"""Files that are small beside what they ask for, or large for what they say."""


def leaf_of(folder: Path) -> dict[str, Any]:
    """The source whose file was damaged."""
    which = folder / "which"
    path = folder / (which.read_text() if which.is_file() else "alpaca.jsonl")
    name = path.name.split(".")[0]
    template = "chat" if name in CHAT else "auto"
    return {"format": name, "path": str(path), "template": template, **STYLES.get(name, {})}


def config_of(folder: Path) -> RunConfig:
    model = {"tokenizer": str(folder / "tokenizer")}
    return config({"own": leaf_of(folder)}, folder / "corpus", model=model, seq_len=512, bad_row_budget=1.0)


def read(folder: Path) -> None:
    """Through all stages. Every record is a sample or has a line that says why not."""
    cfg = config_of(folder)
    job = job_of(cfg, "own", raw_files(cfg, "own"), tokenizer=folder / "tokenizer", folder=folder)
    gather_exemplars(job, None)
    records, counts = list(records_of(job)), Counts()
    samples, lines = samples_of(job, records, counts)
    places = {(each.record.file, each.record.row) for each in samples} | {(each["file"], each["row"]) for each in lines}
    assert places == {(each.file, each.row) for each in records}, "a row is neither kept nor quarantined"
    json.dumps(lines, ensure_ascii=False).encode()


def read_whole(folder: Path) -> None:
    """As ``data_prep`` does. What was given is in the corpus or in quarantine.jsonl."""
    cfg = config_of(folder)
    path = prepare(cfg, argv=[])
    show(write_report(cfg, path), SafeConsole())
    corpus = open_corpus(path)
    lines = [json.loads(line) for line in (path / "quarantine.jsonl").read_text().splitlines()]
    kept = {split.origin(row)[1] for split in corpus.split("train").values() for row in range(split.rows)}
    rejected = {line["row"] for line in lines}
    assert len(kept) + len(rejected) == corpus.manifest["sources"]["own"]["rows"], "rows are lost"


def preview(folder: Path) -> None:
    """As ``data_prep.preview data=own path=FILE`` does, on the terminal and as a page."""
    words = ["preview", "data=own", f"path={leaf_of(folder)['path']}", f"data.prepared={folder / 'corpus'}"]
    for more in ([], [f"html={folder / 'page.html'}"]):
        sys.argv = [*words, f"model.tokenizer={folder / 'tokenizer'}", *more]
        show_samples()


TARGETS = (
    Target("rows", make, damage, read),
    Target("prepare", make, damage, read_whole),
    Target("preview", make, damage, preview),
)
