"""A mixture of real files on any number of ranks: one ledger, also over kills at random steps and from behind a URL."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end.commands import TINY_LLAMA, call, lines, train
from tests.end_to_end.test_resume import kill_run

pytestmark = [pytest.mark.slow, pytest.mark.faults]

FILES = {
    "alpaca": ("alpaca", "alpaca/alpaca_data.json.gz", 3.0),
    "code": ("alpaca", "codealpaca/new_codealpaca.json.gz", 1.0),
    "dolly": ("alpaca", "dolly/dolly_3k.json.gz", 1.0),
    "cot": ("flan_cot", "flan_cot", 1.5),
    "medical": ("alpaca", "medical/medical_meadow_wikidoc_patient.json.gz", 0.5),
}
STEPS = 24


def arguments(folder: Path, name: str, real_data: Callable[[str], Path], *more: str) -> list[str]:
    leaves = ", ".join(
        f'{source}: {{format: {kind}, path: "{real_data(path)}", rows: 300, weight: {weight}}}'
        for source, (kind, path, weight) in FILES.items()
    )
    return [
        f"name={name}",
        "~data.sources",
        f"+data.sources={{{leaves}}}",
        "data.seq_len=512",
        "data.bad_row_budget=0.99",
        f"data.prepared={folder / 'corpus'}",
        "model=demo_llama",
        TINY_LLAMA,
        f"model.tokenizer={real_data('tokenizers/tiny_torchtitan')}",
        "model.dtype=fp32",
        f"run_dir={folder / name}",
        "batch.global_size=7",
        "optim.lr=1e-3",
        f"schedule.max_steps={STEPS}",
        "checkpoint.every_steps=3",
        "evaluation.at_end=false",
        "tracker.wandb=disabled",
        *more,
    ]


def test_one_ledger_on_two_ranks_and_on_four_then_three_then_one(
    tmp_path: Path, real_data: Callable[[str], Path]
) -> None:
    code, output = call("data_prep", *arguments(tmp_path, "x", real_data))
    assert code == 0, output
    code, output = train(2, *arguments(tmp_path, "whole", real_data))
    assert code == 0, output
    seed = random.SystemRandom().randrange(2**32)
    print(f"kills drawn from seed {seed}")
    first, second = sorted(random.Random(seed).sample(range(4, STEPS - 4), 2))
    staged = (f"data.prepared=file://{tmp_path / 'corpus'}", f"data.cache={tmp_path / 'cache'}")
    killed = tmp_path / "killed"
    kill_run(killed, 4, first, signal.SIGKILL, arguments(tmp_path, "killed", real_data))
    kill_run(killed, 3, second, signal.SIGKILL, arguments(tmp_path, "killed", real_data, *staged))
    code, output = train(1, *arguments(tmp_path, "killed", real_data, *staged))
    assert code == 0, output
    ledger = lines(killed / "ledger.jsonl")
    assert [line["step"] for line in ledger] == list(range(1, STEPS + 1))
    assert ledger == lines(tmp_path / "whole" / "ledger.jsonl")
    curves = [[x["train/loss"] for x in lines(tmp_path / name / "metrics.jsonl")] for name in ("whole", "killed")]
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
    assert len(list((tmp_path / "cache").glob("*/MANIFEST.json"))) == 1
