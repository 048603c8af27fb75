"""Flan 2022's mixture arithmetic on its own numbers: shares of submixes and styles, and the length of SeqIO's epoch."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from conf.compose import compose
from conf.schema import RateConfig, SourceConfig, StopConfig
from data_prep.stream.mixture import Size, fractions, leaves_of
from data_prep.stream.phases import Amounts, Schedule, total_draws

DRAWS = 4_000_000
EPOCH = 3_886_000
FORMS = {"zsopt": ["zero_shot"], "fsopt": ["five_shot", "x_shot"], "zsnoopt": ["zero_shot"], "fsnoopt": ["x_shot"]}
"""Style -> FLAN's kinds of few-shot whose cases are its entries."""
SHARES = {
    "flan2021": {"zsopt": 0.1, "fsopt": 0.1, "zsnoopt": 0.1, "fsnoopt": 0.1},
    "t0": {"zsopt": 0.08, "fsopt": 0.08, "zsnoopt": 0.08, "fsnoopt": 0.08},
    "niv2": {"zsopt": 0.1, "fsopt": 0.1},
    "cot": {"zsopt.direct": 0.025 / 1.3, "fsopt.direct": 0.025 / 1.3, "zsopt.inverted": 0.0075 / 1.3}
    | {"fsopt.inverted": 0.0075 / 1.3},
    "dialog": {"zsopt.direct": 0.015 / 1.3, "fsopt.direct": 0.015 / 1.3, "zsopt.inverted": 0.0045 / 1.3}
    | {"fsopt.inverted": 0.0045 / 1.3},
}
"""What each style of a submix has of all samples (run_example.py, mixtures.py)."""


@pytest.fixture(scope="module")
def spec(real_data: Callable[[str], Path]) -> dict[str, Any]:
    path = real_data("flan_mixture/flan2022_mixture_spec.json.gz")
    return dict(json.loads(gzip.decompress(path.read_bytes())))


def submix_of(task: str) -> str:
    dialog = task.startswith(("wiki_dialog", "qrecc"))
    if task.startswith(("cot_", "stream_")) or dialog:
        return ("dialog" if dialog else "cot") + (".inverted" if "input_inversion" in task else ".direct")
    return "t0" if task.startswith("t0_") else "niv2" if task == "tfds_natural_instructions" else "flan2021"


def group(children: Mapping[str, SourceConfig], **settings: Any) -> SourceConfig:
    return SourceConfig(sources=dict(children), **settings)


def flan_tree(spec: dict[str, Any]) -> tuple[dict[str, SourceConfig], dict[str, Size]]:
    """(tree with a leaf per task and kind, its sizes) from FLAN's weights, caps and numbers of cases."""
    sizes: dict[str, Size] = {}

    def style(path: str, tasks: list[str], name: str, **settings: Any) -> SourceConfig:
        leaves = {}
        for task in tasks:
            for kind in FORMS[name]:
                leaf = f"{task}_{kind}".replace(":", "_").replace(".", "_")
                rows = spec["num_cases"][task][kind]
                leaves[leaf], sizes[f"{path}.{leaf}"] = SourceConfig(format="p3", path="x"), Size(rows, 100 * rows)
        return group(leaves, **settings)

    def branch(name: str, style_name: str) -> SourceConfig:
        here = f"{name}.{style_name}"
        if f"{name}.direct" not in tasks:
            return style(here, tasks[name], style_name, weight=1.0)
        pair = {
            kind: style(f"{here}.{kind}", tasks[f"{name}.{kind}"], style_name, weight=weight)
            for kind, weight in (("direct", 1.0), ("inverted", 0.3))
        }
        return group(pair, weight=1.0)

    tasks: dict[str, list[str]] = defaultdict(list)
    for task in spec["num_cases"]:
        tasks[submix_of(task)].append(task)
    caps = {"flan2021": "FLAN", "t0": "T0", "niv2": "NIv2", "cot": "CoT", "dialog": "Dialog"}
    tree = {}
    for name, cap in caps.items():
        children = {
            each: branch(name, each) for each in FORMS if each in ("zsopt", "fsopt") or name in ("flan2021", "t0")
        }
        rate = RateConfig(cap=spec["max_examples_per_task"][cap])
        tree[name] = group(children, weight=spec["flan2022_submix_weights"][f"{name}_submix"], rate=rate)
    return tree, sizes


def by_style(counts: Mapping[str, int | Fraction], prefix: str) -> float:
    return float(sum(count for name, count in counts.items() if name.startswith(f"{prefix}.") or name == prefix))


def planned(tree: dict[str, SourceConfig], sizes: dict[str, Size]) -> tuple[list[str], Schedule]:
    shares = fractions(tree, sizes, "examples")
    return list(shares), Schedule(list(shares.values()), [None] * len(shares))


def test_four_million_draws_have_the_shares_of_the_paper(spec: dict[str, Any]) -> None:
    tree, sizes = flan_tree(spec)
    names, schedule = planned(tree, sizes)
    assert len(names) == len(sizes) == 1389
    counts = dict(zip(names, schedule.counts(DRAWS), strict=True))
    assert sum(counts.values()) == DRAWS
    for submix, styles in SHARES.items():
        for style, share in styles.items():
            assert by_style(counts, f"{submix}.{style}") / DRAWS == pytest.approx(share, rel=1e-3)
    zero_shot = sum(count for name, count in counts.items() if ".zs" in name)
    with_options = sum(count for name, count in counts.items() if "noopt" not in name)
    assert zero_shot / DRAWS == pytest.approx(0.5, rel=1e-3)
    assert with_options / DRAWS == pytest.approx(0.64, rel=1e-3)


def test_a_task_has_its_capped_rate(spec: dict[str, Any]) -> None:
    """Sums of the capped rates and the shares of single tasks, as FLAN's mixtures_utils.register_mixture gives them."""
    tree, sizes = flan_tree(spec)
    names, schedule = planned(tree, sizes)
    counts = dict(zip(names, schedule.counts(DRAWS), strict=True))
    expected = {"flan2021.zsopt": 1_495_430, "flan2021.fsopt": 2_935_543, "flan2021.fsnoopt": 1_468_341}
    expected |= {"t0.zsopt": 2_724_840, "t0.fsopt": 5_235_720, "t0.fsnoopt": 2_618_050, "dialog.zsopt.direct": 210_170}
    for style, total in expected.items():
        submix, rest = style.split(".", 1)
        cap = {"flan2021": 30_000, "t0": 20_000, "dialog": 200_000}[submix]
        rates = {name: min(sizes[name].rows, cap) for name in names if name.startswith(f"{style}.")}
        assert sum(rates.values()) == total
        share = SHARES[submix][rest]
        assert all(abs(counts[name] - DRAWS * share * rate / total) <= 2.1 for name, rate in rates.items())


def epoch(tree: dict[str, SourceConfig], sizes: dict[str, Size]) -> tuple[int, str]:
    """(draws until the first source has been used whole, that source)."""
    names, schedule = planned(tree, sizes)
    rows = [sizes[name].rows for name in names]
    amounts = Amounts(rows, [100 * each for each in rows], lambda first, last: 0)
    draws = total_draws(StopConfig(first_exhausted=True), schedule, amounts)
    used = schedule.counts(draws)
    return draws, next(name for name, count, size in zip(names, used, rows, strict=True) if count >= size)


def test_seqios_epoch_ends_with_the_zero_shot_chain_of_thought(spec: dict[str, Any]) -> None:
    draws, first = epoch(*flan_tree(spec))
    assert draws == pytest.approx(EPOCH, rel=1e-3)
    assert first.startswith("cot.zsopt.direct")


def test_the_yaml_has_the_same_shares_and_the_same_epoch(spec: dict[str, Any]) -> None:
    """conf/data/flan2022.yaml with FLAN's numbers of cases: its leaves hold many tasks, so their sizes are sums."""
    tree = compose(["data=flan2022"]).data.sources
    tasks: dict[str, list[str]] = defaultdict(list)
    for task in spec["num_cases"]:
        tasks[submix_of(task)].append(task)
    sizes = {}
    for leaf in leaves_of(tree):
        submix, style, *kind = leaf.name.split(".")
        members = tasks[f"{submix}.{kind[0]}"] if submix == "cot" else tasks.get(submix) or tasks["dialog.direct"]
        form = FORMS[style][-1 if "some" in kind else 0]
        rows = sum(spec["num_cases"][task][form] for task in members)
        sizes[leaf.name] = Size(rows, rows * 100)
    shares = fractions(tree, sizes, "examples")
    for submix, styles in SHARES.items():
        for style, share in styles.items():
            if submix != "dialog":
                assert by_style(shares, f"{submix}.{style}") == pytest.approx(share, rel=1e-3)
    assert [by_style(shares, f"dialog.{style}") for style in ("zsopt", "fsopt")] == pytest.approx([0.015, 0.015])
    draws, first = epoch(tree, sizes)
    assert draws == pytest.approx(EPOCH, rel=1e-3)
    assert first == "cot.zsopt.direct"


def test_flan_2021_reads_thirty_thousand_rows_and_rates_three_thousand(spec: dict[str, Any]) -> None:
    tree = compose(["data=flan2021"]).data.sources
    leaves = list(leaves_of(tree))
    assert len(leaves) == 69
    assert {leaf.node.rows for leaf in leaves} == {30_000}
    names = [leaf.name.removeprefix("flan2021.") for leaf in leaves]
    rows = {name: min(30_000, spec["num_cases"][name]["zero_shot"]) for name in names}
    shares = fractions(tree, {f"flan2021.{name}": Size(count, count) for name, count in rows.items()}, "examples")
    total = sum(min(count, 3000) for count in rows.values())
    assert all(shares[f"flan2021.{name}"] == Fraction(min(count, 3000), total) for name, count in rows.items())
    assert reduce(max, shares.values()) == Fraction(3000, total)
