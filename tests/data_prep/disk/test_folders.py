"""Folders as libraries and people leave them: the training split is read, the others are named and can be held out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from conf.errors import BadData, MissingInput
from data_prep import jobs
from data_prep.disk.folders import split_of
from data_prep.rows import files, raw
from tests.data_prep.made import config

datasets.disable_progress_bars()
TRAIN = [{"instruction": f"Say {n}.", "input": "", "output": str(n)} for n in range(40)]
TEST = [{"instruction": f"Sing {n}.", "input": "", "output": str(n)} for n in range(10)]


def read(path: Path) -> list[Any]:
    """All rows that a source at ``path`` is trained on."""
    found = raw.inputs(str(path), None, "data.sources.a")
    return [files.parse(record.text) for each in found.training for record in raw.rows(each.name)]


def unread(path: Path) -> dict[str, list[str]]:
    found = raw.inputs(str(path), None, "data.sources.a").unread
    return {split: [str(Path(name).relative_to(path)) for name in names] for split, names in found.items()}


def held_out(path: Path, validation: str) -> list[Any]:
    found = raw.inputs(str(path), validation, "data.sources.a")
    return [files.parse(record.text) for each in found.held_out for record in raw.rows(each.name)]


def write(path: Path, *names: str) -> Path:
    """JSON lines at each of ``names`` below ``path``: the test's rows where the name says so."""
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        rows = TEST if any(word in name for word in ("test", "dev", "val")) else TRAIN
        (path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def both() -> datasets.DatasetDict:
    return datasets.DatasetDict({"train": datasets.Dataset.from_list(TRAIN), "test": datasets.Dataset.from_list(TEST)})


def test_a_saved_data_set_in_several_files_beside_a_cache(tmp_path: Path) -> None:
    saved = datasets.Dataset.from_list(TRAIN)
    saved.save_to_disk(tmp_path / "d", num_shards=3)
    (tmp_path / "d" / "cache-0123.arrow").write_bytes((tmp_path / "d" / "data-00000-of-00003.arrow").read_bytes())
    assert read(tmp_path / "d") == TRAIN
    assert unread(tmp_path / "d") == {}
    (tmp_path / "d" / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(MissingInput, match=r"data-00001-of-00003\.arrow is not there, but .*state\.json names it"):
        read(tmp_path / "d")


def test_a_saved_dict_of_splits(tmp_path: Path) -> None:
    both().save_to_disk(tmp_path / "d")
    assert read(tmp_path / "d") == TRAIN
    assert unread(tmp_path / "d") == {"test": ["test/data-00000-of-00001.arrow"]}
    assert held_out(tmp_path / "d", "test") == TEST
    assert read(tmp_path / "d" / "test") == TEST
    with pytest.raises(MissingInput, match=r"data\.sources\.a\.validation: .* has no split 'validation'.* it has test"):
        held_out(tmp_path / "d", "validation")
    (tmp_path / "d" / "test" / "state.json").write_text("{")
    with pytest.raises(BadData, match=r"state\.json cannot be read"):
        read(tmp_path / "d")


def test_a_saved_dict_without_a_training_split_is_refused(tmp_path: Path) -> None:
    splits = both()
    datasets.DatasetDict({"sft": splits["train"], "test": splits["test"]}).save_to_disk(tmp_path / "two")
    with pytest.raises(MissingInput, match=r"holds no training split, only sft \(1 file\), test \(1 file\)"):
        read(tmp_path / "two")
    datasets.DatasetDict({"sft": splits["train"]}).save_to_disk(tmp_path / "one")
    assert read(tmp_path / "one") == TRAIN


def test_a_clone_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name, split in both().items():
        split.to_parquet(tmp_path / "data" / f"{name}-00000-of-00001.parquet")
    (tmp_path / "README.md").write_text("about")
    (tmp_path / ".git" / "objects").mkdir(parents=True)
    (tmp_path / "dataset_infos.json").write_text('{"default": {}}')
    assert read(tmp_path) == TRAIN
    assert unread(tmp_path) == {"test": ["data/test-00000-of-00001.parquet"]}
    assert held_out(tmp_path, "test") == TEST
    pointer = tmp_path / "data" / "train-00000-of-00001.parquet"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(BadData, match=r"train-00000.* is a Git LFS pointer.* git lfs pull"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("names", "trained", "others"),
    [
        (["train.jsonl", "test.jsonl"], ["train.jsonl"], {"test": ["test.jsonl"]}),
        (["train_sft.jsonl", "test_sft.jsonl"], ["train_sft.jsonl"], {"test_sft": ["test_sft.jsonl"]}),
        (["q_train.jsonl", "q_dev.jsonl"], ["q_train.jsonl"], {"dev": ["q_dev.jsonl"]}),
        (["train/a.jsonl", "val/a.jsonl"], ["train/a.jsonl"], {"val": ["val/a.jsonl"]}),
        (["data/train/a.jsonl", "data/test/a.jsonl"], ["data/train/a.jsonl"], {"test": ["data/test/a.jsonl"]}),
        (["main/train-0.jsonl", "main/test-0.jsonl"], ["main/train-0.jsonl"], {"test": ["main/test-0.jsonl"]}),
        (["a.jsonl", "b.jsonl"], ["a.jsonl", "b.jsonl"], {}),
        (["more.jsonl", "test.jsonl"], ["more.jsonl"], {"test": ["test.jsonl"]}),
        (["task1_test.jsonl", "task2.jsonl"], ["task1_test.jsonl", "task2.jsonl"], {}),
        (["latest.jsonl", "contest.jsonl"], ["contest.jsonl", "latest.jsonl"], {}),
    ],
)
def test_files_beside_each_other(tmp_path: Path, names: list[str], trained: list[str], others: dict[str, Any]) -> None:
    write(tmp_path, *names)
    found = files.look(str(tmp_path), "k")
    assert [str(path.relative_to(tmp_path)) for path in found.files] == trained
    assert unread(tmp_path) == others
    assert files.find(str(tmp_path), "k") == sorted(tmp_path / name for name in names)  # an evaluation set is all of it


def test_a_glob_takes_what_it_matches_and_says_so(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl", "test.jsonl")
    cfg = config({"a": {"format": "alpaca", "path": f"{tmp_path}/*.jsonl"}}, tmp_path / "c")
    found = jobs.raw_files(cfg, "a")
    assert [Path(each.name).name for each in found.kept] == ["test.jsonl", "train.jsonl"]
    said = f"a: trained on although the name says another split: {tmp_path / 'test.jsonl'}"
    assert list(jobs.notes(found, cfg.data.sources["a"], "a")) == [said]
    cfg = config({"a": {"format": "alpaca", "path": str(tmp_path)}}, tmp_path / "c")
    assert list(jobs.notes(jobs.raw_files(cfg, "a"), cfg.data.sources["a"], "a")) == [
        f"a: its test split is not read ({tmp_path / 'test.jsonl'}); a.validation=test holds it out"
    ]


def test_several_folders_and_folders_without_training_files_are_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "configs", "main/train.jsonl", "socratic/train.jsonl")
    with pytest.raises(MissingInput, match=r"holds data in 2 folders \(main, socratic\); name one of them"):
        read(tmp_path / "configs")
    write(tmp_path / "tests", "test.jsonl")
    with pytest.raises(MissingInput, match=r"holds no training split, only test \(1 file\); name .*test\.jsonl"):
        read(tmp_path / "tests")
    (tmp_path / "nothing" / "deep").mkdir(parents=True)
    with pytest.raises(MissingInput, match=r"data\.sources\.a\.path: the folder .*nothing holds no \.json"):
        read(tmp_path / "nothing")


def test_what_validation_names(tmp_path: Path) -> None:
    """A split in the folder's spelling or by its kind; a file, which is then not trained on; a folder of its own."""
    write(tmp_path, "train.jsonl", "dev.jsonl", "more.jsonl")
    assert held_out(tmp_path, "dev") == held_out(tmp_path, "validation") == TEST
    found = raw.inputs(str(tmp_path), str(tmp_path / "more.jsonl"), "k")
    assert [Path(each.name).name for each in found.training] == ["train.jsonl"]
    assert list(found.unread) == ["dev"]
    write(tmp_path / "other", "test.jsonl")
    assert held_out(tmp_path / "train.jsonl", str(tmp_path / "other")) == TEST
    with pytest.raises(MissingInput, match="holds out all files"):
        held_out(tmp_path / "train.jsonl", str(tmp_path / "train.jsonl"))
    with pytest.raises(MissingInput, match=r"k\.validation: no such file"):
        raw.inputs(str(tmp_path), str(tmp_path / "gone.jsonl"), "k")


@pytest.mark.parametrize(
    ("stem", "beside", "split"),
    [
        ("train", [], "train"),
        ("Test", [], "Test"),
        ("validation_matched", [], "validation_matched"),
        ("gsm8k_test", ["gsm8k_train"], "test"),
        ("gsm8k-test", ["gsm8k-training"], "test"),
        ("gsm8k_test", ["other_train"], None),
        ("development", [], None),
        ("attest", [], None),
    ],
)
def test_the_split_in_a_name(stem: str, beside: list[str], split: str | None) -> None:
    assert split_of(stem, [stem, *beside]) == split
