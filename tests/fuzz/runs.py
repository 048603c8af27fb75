"""What a run leaves: its records, as a report and the next attempt read them, and its checkpoints, as export does."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random

import yaml

from conf.compose import compose
from conf.errors import CorralError
from conf.exits import finished, merge_exits, reduce_exits
from conf.frozen import load_config, save_config
from conf.schema import RunConfig
from tests.fuzz import mutations
from tests.fuzz.target import Target


def make_records(folder: Path) -> None:
    """The files that a run leaves, without a run."""
    cfg = compose(["name=fuzz", f"run_dir={folder}", f"data.prepared={folder / 'corpus'}"])
    save_config(cfg, folder / "run.yaml")
    metrics = [{"step": step, "train/loss": 1.0 / step, "train/lr": 0.1, "eval/loss": 1.0} for step in range(1, 9)]
    events = [{"time": 1.0, "kind": "start", "step": 0, "world": 1}, {"time": 2.0, "kind": "end", "step": 8}]
    ledger = [{"step": step, "digest": "00", "samples": 4, "tokens": 40, "targets": 20} for step in range(1, 9)]
    samples = [{"source": "words", "prompt": "a", "reference": "b", "answer": "b", "exact_match": 1.0, "rouge_l": 1.0}]
    for name in ("samples", "logs", "exit"):
        (folder / name).mkdir()
    lines = {"metrics": metrics, "events": events, "ledger": ledger, "samples/step-00000008": samples}
    for name, content in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in content))
    (folder / "logs" / "launches.jsonl").write_text(json.dumps({"commit": "x", "host": "y", "versions": {}}) + "\n")
    record = {"code": 0, "reason": "done", "step": 8, "hint": "", "attempt": 0}
    (folder / "exit.json").write_text(json.dumps(record))
    ended = record | {"rank": 0, "time": 2.0, "host": "y", "own": False}
    (folder / "exit" / "attempt-0-rank-0.json").write_text(json.dumps(ended))


def damage_records(rng: Random, folder: Path) -> str:
    path = rng.choice(sorted(each for each in folder.rglob("*") if each.is_file()))
    content = path.read_bytes()
    if path.suffix == ".jsonl" and rng.random() < 0.7:
        lines = content.splitlines()
        at = rng.randrange(len(lines))
        lines[at] = mutations.json_text_of(rng, json.loads(lines[at]))
        changed = b"\n".join(lines) + b"\n"
    elif path.suffix == ".json" and rng.random() < 0.7:
        changed = mutations.json_text_of(rng, json.loads(content))
    else:
        changed = mutations.bytes_of(rng, content)
    path.write_bytes(changed)
    return f"{path.name}: {changed[:300]!r}"


def read_records(folder: Path) -> None:
    from train.export.model_card import last_metrics
    from train.report import write_report
    from train.tracking.tracker import truncate_after

    write_report(folder)
    last_metrics(folder / "metrics.jsonl", 8)
    finished(folder)
    for end in (merge_exits, reduce_exits):
        end(folder, 0, 1)
    truncate_after(folder / "metrics.jsonl", 4)
    load_config(folder / "run.yaml")


def make_run(folder: Path) -> None:
    """A real run of two steps, with its corpus."""
    from tests.end_to_end.commands import call, tiny_run

    words = tiny_run(folder, "run", "schedule.max_steps=2", "evaluation=skip", "data.sources.words.rows=80")
    code, output = call("launch", *words)
    assert code == 0, output


def damage_checkpoint(rng: Random, folder: Path) -> str:
    """Half of the times with a new seal, as one who means harm would make it."""
    from tests.train.checkpoint.sealing import write_sealed

    run = folder / "run"
    (step,) = (run / "checkpoints").glob("step-*")
    manifest = json.loads((step / "MANIFEST.json").read_bytes())
    kind = rng.randrange(4)
    if kind == 0:
        path = run / "run.yaml"
        content = path.read_bytes()
        changed = mutations.bytes_of(rng, content)
        if rng.random() < 0.6:
            changed = json.dumps(mutations.json_of(rng, yaml.safe_load(content))).encode()
        path.write_bytes(changed)
    elif kind == 1:
        path = step / "MANIFEST.json"
        changed = mutations.json_text_of(rng, manifest)
        path.write_bytes(changed)
        from train.checkpoint.check import seal_of

        (step / "MANIFEST.sha256").write_bytes(seal_of(changed))
    else:
        path = rng.choice(sorted(each for each in step.iterdir() if each.is_file()))
        changed = mutations.bytes_of(rng, path.read_bytes())
        path.write_bytes(changed)
        if kind == 2:
            write_sealed(step, manifest)
    return f"{path.name}: {changed[:300]!r}{' sealed' if kind in (1, 2) else ''}"


@cache
def mine() -> RunConfig:
    """A config that the user gives beside the run's own."""
    return compose(["experiment=demo"])


def read_checkpoint(folder: Path) -> None:
    """As ``launch`` before a run that continues, ``train.fingerprint``, and ``train.export`` do."""
    from launch.run_dir import refuse_changes
    from train.checkpoint.check import latest_good
    from train.export.folder import export
    from train.fingerprint import fingerprint
    from train.process.causes import causes_named

    run, sentence = folder / "run", None
    for command in (
        lambda: refuse_changes(replace(mine(), run_dir=str(run))),
        lambda: fingerprint(latest_good(run).path),
    ):
        try:
            command()
        except CorralError as error:
            sentence = error
    with causes_named():
        export(run)
    if sentence:
        raise sentence


TARGETS = (
    Target("records", make_records, damage_records, read_records),
    Target("checkpoint", make_run, damage_checkpoint, read_checkpoint),
)
