"""Which rows and tasks a source takes, and that what must not be trained on is kept out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from conf.schema.style import SelectConfig
from data_prep.rows import selection
from data_prep.rows.conversation import Rejected
from data_prep.sources import p3


def test_tasks_are_files_or_a_field_and_the_held_out_ones_are_left_out() -> None:
    held_out = selection.Select(exclude=selection.read(SelectConfig(exclude="niv2_held_out"), "key").exclude)
    for name in ("task664_mmmlu_x", "task737_mmmlu_y", "task957_e2e_nlg", "task020_mctaco", "task1728_z"):
        assert held_out.leaves_out_file(f"folder/{name}.json.gz")
    for name in ("task663_x", "task668_x", "task684_x", "task1664x_y", "task002_quoref", "task6640_x"):
        assert not held_out.leaves_out_file(f"folder/{name}.json")
    assert held_out.task_of("a/task1529_scitail1.1_classification.json.zst", {}) == "task1529_scitail1.1_classification"
    named = replace(held_out, task="task_name")
    assert not named.leaves_out_file("task664_x.json")
    assert named.task_of("x.jsonl", {"task_name": "rte"}) == "rte"
    with pytest.raises(Rejected):
        named.task_of("x.jsonl", {})


def test_every_official_test_task_is_on_the_list(real_data: Callable[[str], Path]) -> None:
    chosen = selection.read(SelectConfig(exclude="niv2_held_out"), "key")
    tasks = real_data("niv2/official_test_tasks.txt").read_text().split()
    assert len(tasks) == 119
    assert all(chosen.leaves_out_file(f"{task}.json") for task in tasks)


def test_rows_are_chosen_by_their_fields(tmp_path: Path) -> None:
    path = tmp_path / "dump.jsonl"
    rows = [
        {"inputs": "a", "targets": "b", "template_type": kind, "task_name": task}
        for kind in ("zs_opt", "fs_opt")
        for task in ("rte", "task664_x")
    ]
    path.write_text("".join(json.dumps(each) + "\n" for each in rows) + '{"inputs": "c", "targets": "d"}\nbroken\n')
    chosen = selection.read(
        SelectConfig(where={"template_type": "zs_opt"}, task="task_name", exclude="niv2_held_out"), "key"
    )
    taken = [raw.row for raw, own in chosen.rows(str(path)) if own]
    assert taken == [0, 4, 5]  # a row that cannot be judged stays in, and gets its name in quarantine
    with pytest.raises(Rejected):
        chosen.check({"inputs": "c"})
    assert p3.read(rows[0]).messages[0].content == "a"
