"""flan_mini through real torchrun: one to four ranks train on the same samples in the same steps, whoever is killed."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.data_prep.flan_files import flan_files
from tests.end_to_end.commands import TINY_LLAMA, call, lines, train
from tests.end_to_end.test_resume import kill_run

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(1800)]

STEPS = 15
Ledger = list[dict[str, Any]]
Run = Callable[[str], tuple[Path, list[str]]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, real_data: Callable[[str], Path]) -> Iterator[Run]:
    """run_dir and arguments of a run by its name; five rows a step, which two to four ranks cannot share evenly.

    Short rows keep it short; the few-shot prompts that do not fit are rejected.
    """
    root = tmp_path_factory.mktemp("flan")
    flan_files(root / "data", real_data)

    def arguments(name: str) -> tuple[Path, list[str]]:
        return root / name, [
            "data=flan_mini",
            "data.seq_len=1024",
            "data.bad_row_budget=0.5",
            "data.stop={examples: 10000, first_exhausted: null}",
            f"data.prepared={root / 'corpus'}",
            "model=demo_llama",
            TINY_LLAMA.replace("256", "1024"),
            f"model.tokenizer={real_data('tokenizers/gpt2')}",
            "model.dtype=fp32",
            f"name={name}",
            f"run_dir={root / name}",
            "batch.global_size=5",
            f"schedule.max_steps={STEPS}",
            "checkpoint.every_steps=2",
            "evaluation.at_end=false",
            "tracker.wandb=disabled",
        ]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CORRAL_DATA", str(root / "data"))
        code, output = call("data_prep", *arguments("x")[1], timeout=400)
        assert code == 0, output
        yield arguments


def finished(run: Run, name: str, world: int) -> Ledger:
    folder, arguments = run(name)
    code, output = train(world, *arguments, timeout=400)
    assert code == 0, output
    return lines(folder / "ledger.jsonl")


@pytest.fixture(scope="module")
def whole(run: Run) -> Ledger:
    """The ledger of one rank that nobody stopped."""
    ledger = finished(run, "one", 1)
    assert [line["step"] for line in ledger] == list(range(1, STEPS + 1))
    assert len({line["digest"] for line in ledger}) == STEPS
    return ledger


@pytest.mark.parametrize("world", [2, 3, 4])
def test_the_ledger_is_the_same_for_any_number_of_ranks(run: Run, whole: Ledger, world: int) -> None:
    assert finished(run, f"ranks{world}", world) == whole


def test_the_ledger_is_the_same_over_kills_onto_other_numbers_of_ranks(run: Run, whole: Ledger) -> None:
    """kill -9 at three random steps; each life has another number of ranks, and the last one ends the run."""
    seed = random.SystemRandom().randrange(2**32)
    draw = random.Random(seed)
    *killed, last = draw.sample([1, 2, 3, 4], 4)
    steps = [draw.randint(2, 4), draw.randint(6, 8), draw.randint(10, 12)]
    print(f"seed {seed}: {killed} ranks killed at steps {steps}, then {last}")
    folder, arguments = run("killed")
    for world, step in zip(killed, steps, strict=True):
        kill_run(folder, world, step, signal.SIGKILL, arguments)
        assert len(lines(folder / "ledger.jsonl")) < STEPS
    assert finished(run, "killed", last) == whole
