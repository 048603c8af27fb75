"""Figures of all ranks: the worst of them, with the rank's name; a rank that is slow for long is named once."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from train.tracking.device import FIGURES, LONG, Sensors, Straggler, device_metrics

NAN = math.nan


def test_the_worst_of_all_ranks_is_logged_with_its_name() -> None:
    table = np.array(
        [
            [0.5, 70.0, 75.0, 0.0, 600.0, 0.9],
            [0.7, 71.0, 74.0, 2.0, 500.0, 0.7],
            [0.6, 69.0, 76.0, 1.0, 650.0, 1.0],
        ]
    )
    assert table.shape[1] == len(FIGURES)
    assert device_metrics(table, local_world=2) == {
        "perf/busy_s": 0.7,
        "perf/busy_median_s": 0.6,
        "rel/straggler_rank": 1,
        "memory/peak_gib": 71.0,
        "memory/peak_rank": 1,
        "memory/reserved_gib": 76.0,
        "memory/alloc_retries": 3.0,
        "gpu/watts/node0": 1100.0,
        "gpu/utilisation/node0": pytest.approx(0.8),
        "gpu/watts/node1": 650.0,
        "gpu/utilisation/node1": 1.0,
    }


def test_what_a_device_does_not_say_is_absent() -> None:
    read = Sensors(torch.device("cpu")).read(0.25)
    assert read[0] == 0.25
    found = device_metrics(np.array([read]), local_world=1)
    assert found.keys() == {
        "perf/busy_s",
        "perf/busy_median_s",
        "rel/straggler_rank",
        "memory/peak_gib",
        "memory/peak_rank",
    }
    assert 0.1 < found["memory/peak_gib"] < 64


def test_a_gpu_without_nvml_still_says_its_memory() -> None:
    gib = 2.0**30
    stats = {
        "allocated_bytes.all.peak": 3 * gib,
        "reserved_bytes.all.peak": 4 * gib,
        "num_alloc_retries": 5,
    }
    asked: list[Any] = []

    def power(device: torch.device) -> float:
        asked.append(device)
        raise ModuleNotFoundError("nvidia-ml-py does not seem to be installed")

    with mock.patch.multiple(torch.cuda, memory_stats=lambda _: stats, power_draw=power, utilization=lambda _: 50):
        sensors = Sensors(torch.device("cuda", 0))
        first, second = sensors.read(0.1), sensors.read(0.2)
    assert first[:4] == [0.1, 3.0, 4.0, 5.0]
    assert math.isnan(first[4])
    assert (first[5], second[0], second[5]) == (0.5, 0.2, 0.5)
    assert len(asked) == 1  # not at every step


def test_a_rank_that_is_slow_for_long_is_named_once_and_another_one_again() -> None:
    straggler = Straggler(["a", "a", "b", "b"])
    even, third, fourth = (np.array(each) for each in ([1, 1, 1.1, 1], [1, 1, 1.5, 1], [1, 1, 1, 9]))
    said = [straggler.watch(busy) for busy in [third] * (LONG - 1) + [even] + [third] * (LONG + 60) + [fourth] * LONG]
    (one, other) = [text for text in said if text]
    assert said.index(one) == 2 * LONG - 1
    assert one.startswith(
        "rank 2 on b was the slowest in 50 steps in a row, now with 1.5 s of its own work per step where"
    )
    assert other.startswith("rank 3 on b")
    assert said[-1] == other
