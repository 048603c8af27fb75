"""Devices before any process group, rehearsed on a CPU: what they do wrong is a record, a sentence and a code."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conf.compose import compose
from conf.errors import ConfigError
from tests.end_to_end.commands import tiny_run
from tests.train.process.test_causes import accelerator
from train import main
from train.ranks import group
from train.ranks.group import Ranks, on_device, ranks_from_environment


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """A node of ``gpus`` GPUs on which torchrun has started ``processes``; this is the one of ``local_rank``."""

    def made(gpus: int, *, processes: int, local_rank: int = 0, failure: BaseException | None = None) -> list[Any]:
        done: list[Any] = []

        def set_device(device: torch.device) -> None:
            if failure is not None:
                raise failure
            done.append(device)

        monkeypatch.setattr(os, "environ", {**os.environ, "CUDA_VISIBLE_DEVICES": "4,5"})
        local = {"LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": processes}
        os.environ.update({name: str(value) for name, value in local.items()} | {"RANK": str(8 + local_rank)})
        os.environ["WORLD_SIZE"] = str(8 + processes)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "set_device", set_device)
        monkeypatch.setattr(group, "gpu_address", lambda device: f"0000:{device.index:02x}:00.0")
        monkeypatch.setattr(group, "cpus_beside", lambda address: {address})
        monkeypatch.setattr(group, "stay_on", lambda near, ranks: done.append((near, ranks)))
        return done

    return made


def test_the_environment_says_which_process_this_is(node: Callable[..., list[Any]]) -> None:
    done = node(2, processes=2, local_rank=1)
    assert ranks_from_environment() == Ranks(rank=9, world=10, local_rank=1, local_world=2)
    assert done == []  # no device yet


def test_a_rank_has_its_gpu_and_the_cpus_beside_it(node: Callable[..., list[Any]]) -> None:
    done = node(2, processes=2, local_rank=1)
    assert on_device(ranks_from_environment()).device == torch.device("cuda", 1)
    assert done == [torch.device("cuda", 1), ({"0000:01:00.0"}, 2)]


@pytest.mark.parametrize("local_rank", [0, 2])
def test_more_processes_than_gpus_are_refused_on_all_of_them(node: Callable[..., list[Any]], local_rank: int) -> None:
    """torch would say "invalid device ordinal" on some of them, and the others would wait for those."""
    done = node(2, processes=3, local_rank=local_rank)
    with pytest.raises(ConfigError) as caught:
        on_device(ranks_from_environment())
    said = str(caught.value)
    assert said.startswith("cluster.gpus_per_node: 3 processes were started on ")
    assert said.endswith(
        ", where torch sees 2 GPUs (CUDA_VISIBLE_DEVICES=4,5); start one per GPU, with cluster.gpus_per_node=2 or "
        "torchrun --nproc-per-node=2"
    )
    assert done == []


@pytest.mark.parametrize(
    ("gpus", "failure", "code", "said"),
    [
        (1, None, 78, "cluster.gpus_per_node: 2 processes were started"),
        (2, RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable"), 76, "a device of this node"),
        (2, accelerator("CUDA error: out of memory"), 71, "out of memory: lower batch.micro_size"),
        (2, accelerator("CUDA error: invalid device ordinal"), 70, "CUDA error: invalid device ordinal"),
    ],
    ids=["too few", "busy", "full", "defect"],
)
def test_a_device_that_fails_leaves_a_record(
    node: Callable[..., list[Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    gpus: int,
    failure: BaseException | None,
    code: int,
    said: str,
) -> None:
    node(gpus, processes=2, failure=failure)
    cfg = compose(tiny_run(tmp_path, "run"))
    assert main.start(cfg, []) == code
    ended = json.loads((tmp_path / "run" / "exit" / "attempt-0-rank-8.json").read_text())
    assert (ended["code"], ended["own"]) == (code, code == 76)
    assert said in ended["reason"]
    assert json.loads((tmp_path / "run" / "exit.json").read_text())["reason"] == ended["reason"]
    assert ("Traceback" in capsys.readouterr().err) == (code == 70)
