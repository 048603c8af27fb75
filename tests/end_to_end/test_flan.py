"""flan_mini through real torchrun: what one rank trains on is what two do, sample by sample."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data_prep.flan_files import flan_files
from tests.end_to_end.commands import TINY_LLAMA, call, lines, train


@pytest.mark.slow
def test_one_and_two_ranks_have_the_same_ledger(
    tmp_path: Path, real_data: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORRAL_DATA", str(flan_files(tmp_path / "data", real_data)))
    arguments = [
        "data=flan_mini",
        "data.stop={examples: 24, first_exhausted: null}",
        f"data.prepared={tmp_path / 'corpus'}",
        "model=demo_llama",
        TINY_LLAMA.replace("256", "2560"),
        f"model.tokenizer={real_data('tokenizers/gpt2')}",
        "model.dtype=fp32",
        "batch.global_size=2",
        "tracker.wandb=disabled",
        "evaluation.at_end=false",
    ]
    code, output = call("data_prep", *arguments, timeout=240)
    assert code == 0, output
    ledgers = []
    for world in (1, 2):
        run = tmp_path / f"run{world}"
        code, output = train(world, *arguments, f"name=w{world}", f"run_dir={run}", timeout=240)
        assert code == 0, output
        ledgers.append(lines(run / "ledger.jsonl"))
    assert ledgers[0] == ledgers[1]
    assert len(ledgers[0]) >= 3
    assert sum(line["samples"] for line in ledgers[0]) == 24
