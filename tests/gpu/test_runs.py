"""The commands on one NVIDIA GPU: the exact step in bf16, bitwise resume, bases in 4 bits, stages, fused blocks."""

from __future__ import annotations

import importlib.util
import signal
from pathlib import Path

import pytest
import torch

from tests.end_to_end.commands import call, lines, tiny_run, train
from tests.end_to_end.test_resume import fingerprint, kill_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU; run make test-gpu where one is"),
]

BF16 = ("model.dtype=bf16", "zero=1", "evaluation.at_end=false")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("gpu")
    code, output = call("data_prep", *tiny_run(root, "x"))
    assert code == 0, output
    return root


def losses(run: Path) -> list[float]:
    return [line["train/loss"] for line in lines(run / "metrics.jsonl") if "train/loss" in line]


@pytest.mark.parametrize("more", [(), ("tuning=lora",)], ids=["full", "lora"])
def test_the_exact_step_holds_in_bf16(folder: Path, more: tuple[str, ...]) -> None:
    code, output = call("train.verify", *tiny_run(folder, "verify", *BF16, *more), "precision=bf16", timeout=240)
    assert code == 0, output
    assert "exact step holds" in output


def test_a_killed_run_goes_on_bit_for_bit(folder: Path) -> None:
    """compute.deterministic: attention's backward and the sums over prefixes have no order of their own on a GPU."""
    arguments = [*BF16, "debug=deterministic", "checkpoint.every_steps=10", "schedule.max_steps=60"]
    code, output = train(1, *tiny_run(folder, "whole", *arguments))
    assert code == 0, output
    kill_run(folder / "killed", 1, 15, signal.SIGKILL, tiny_run(folder, "killed", *arguments))
    code, output = train(1, *tiny_run(folder, "killed", *arguments))
    assert code == 0, output
    assert "resume" in [line["kind"] for line in lines(folder / "killed" / "events.jsonl")]
    assert losses(folder / "killed") == losses(folder / "whole")
    assert fingerprint(folder / "killed") == fingerprint(folder / "whole")


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_adapters_over_a_base_in_bf16_or_four_bits_are_tuned_evaluated_and_exported(
    folder: Path, quantize: str
) -> None:
    if quantize == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("needs bitsandbytes: pip install bitsandbytes")
    more = ["model.dtype=bf16", "zero=2", "tuning=lora", f"tuning.quantize={quantize}", "schedule.max_steps=30"]
    code, output = train(1, *tiny_run(folder, quantize, *more))
    assert code == 0, output
    curve = losses(folder / quantize)
    assert curve[-1] < curve[0] - 0.2, curve
    merge = "true" if quantize == "none" else "false"  # merged weights would be rounded to 4 bits again
    code, output = call("train.export", f"run_dir={folder / quantize}", f"merge={merge}")
    assert code == 0, output


@pytest.mark.parametrize(
    "more", [("zero=2",), ("zero=3",), ("zero=1", "compute.kernels=compile")], ids=["zero2", "zero3", "compiled"]
)
def test_stages_and_compiled_blocks_learn_alike(folder: Path, more: tuple[str, ...]) -> None:
    name = more[-1].replace("=", "-")
    for run, own in (("plain", ()), (name, more)):
        if not (folder / run / "metrics.jsonl").exists():
            code, output = train(1, *tiny_run(folder, run, *BF16, *own, "schedule.max_steps=20"), timeout=240)
            assert code == 0, output
    assert losses(folder / name) == pytest.approx(losses(folder / "plain"), rel=2e-2)
