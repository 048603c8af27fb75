"""FLAN's chain of thought, Super-NaturalInstructions and P3 as their publishers store them: nothing lost, nothing
refused without a name; and a mixture of them prepared by the command."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from conf.errors import BadData
from data_prep import files, sources
from data_prep.conversation import Conversation, Rejected

Real = Callable[[str], Path]


def read_all(path: Path, kind: str) -> tuple[list[Conversation], Counter[str]]:
    kept, refused = [], Counter[str]()
    for raw in files.rows(path):
        try:
            kept.append(sources.reader(kind)(files.parse(raw.text)))
        except Rejected as rejected:
            refused[rejected.reason] += 1
    return kept, refused


def test_flan_cot_whole_submix(real_data: Real) -> None:
    counts = {}
    for path in files.find(str(real_data("flan_cot")), "k"):
        kept, refused = read_all(path, "flan_cot")
        assert not refused
        counts[path.name.split("_")[0]] = len(kept)
        assert not any("\\n" in message.text for each in kept for message in each.messages)
    expected = {"aqua": 2728, "creak": 6915, "ecqa": 7112, "gsm8k": 7473, "sensemaking": 6070, "strategyqa": 2061}
    assert counts == expected


def test_niv2_every_instance_of_every_task_in_both_schemas(real_data: Real) -> None:
    total = 0
    schemas = Counter[str]()
    for path in files.find(str(real_data("niv2/tasks")), "k"):
        task = json.loads(gzip.decompress(path.read_bytes()))
        kept, refused = read_all(path, "niv2")
        assert not refused
        definition = task["Definition"]
        schemas[type(definition).__name__] += 1
        first = definition if isinstance(definition, str) else definition[0]
        assert [raw.row for raw in files.rows(path)] == list(range(len(task["Instances"])))
        for instance, each in zip(task["Instances"], kept, strict=True):
            assert each.messages[0].content == first.strip()
            assert (each.messages[0].context, each.messages[1].content) == (instance["input"], instance["output"][0])
        total += len(kept)
    assert schemas == {"list": 60, "str": 6}
    assert total == 23_031


def test_p3_rows_lose_only_the_end_mark(real_data: Real) -> None:
    kept, refused = read_all(real_data("t0_sf/t0_sf_sample.jsonl.gz"), "p3")
    assert (len(kept), refused) == (5160, {})
    assert not any("<|endoftext|>" in each.messages[1].content for each in kept)


@pytest.mark.parametrize(
    ("kind", "row", "reason"),
    [
        ("flan_cot", {"question": "x"}, "missing_field"),
        ("flan_cot", {"fields": ["q", "a"]}, "wrong_field_count"),
        ("flan_cot", {"fields": ["q", " ", "r"]}, "empty_field"),
        ("niv2", {"Definition": "d", "input": "x", "output": []}, "missing_field"),
        ("niv2", {"Definition": "d", "input": "x", "output": [3]}, "non_string_field"),
        ("niv2", {"input": "x", "output": "y"}, "missing_field"),
        ("p3", {"question": "x"}, "missing_field"),
        ("p3", {"inputs": [1, 2], "targets": [3]}, "non_string_field"),
    ],
)
def test_refused_by_name(kind: str, row: dict[str, object], reason: str) -> None:
    with pytest.raises(Rejected) as caught:
        sources.reader(kind)(row)
    assert caught.value.reason == reason


def test_a_task_on_one_line_and_an_object_that_is_no_task(tmp_path: Path) -> None:
    path = tmp_path / "task.json"
    path.write_text(json.dumps({"Definition": ["Add."], "Instances": [{"input": "1 1", "output": ["2", "two"]}, 7]}))
    first, second = files.rows(path)
    assert sources.reader("niv2")(files.parse(first.text)).messages[1].content == "2"
    with pytest.raises(Rejected, match="not_an_object"):
        files.parse(second.text)
    path.write_text(json.dumps({"Definition": "Add."}, indent=1))
    with pytest.raises(BadData, match=r"task\.json is one JSON object .* without 'Instances'"):
        list(files.rows(path))


def test_the_command_prepares_a_mixture(tmp_path: Path, real_data: Real) -> None:
    leaves = {
        "alpaca": ("alpaca", "alpaca/alpaca_data.json.gz"),
        "cot": ("flan_cot", "flan_cot"),
        "niv2": ("niv2", "niv2/tasks"),
        "p3": ("p3", "t0_sf"),
    }
    flow = ", ".join(
        f'{name}: {{format: {kind}, path: "{real_data(path)}", rows: 1500}}' for name, (kind, path) in leaves.items()
    )
    arguments = ["~data.sources", f"+data.sources={{{flow}}}", f"data.prepared={tmp_path / 'corpus'}"]
    arguments += ["data.seq_len=2048", f"model.tokenizer={real_data('tokenizers/gpt2')}"]
    command = [sys.executable, "-m", "data_prep", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    manifest = json.loads((tmp_path / "corpus" / "MANIFEST.json").read_text())
    quarantined = Counter(
        json.loads(line)["source"] for line in (tmp_path / "corpus" / "quarantine.jsonl").read_text().splitlines()
    )
    refused = {}
    for name in leaves:
        entry = manifest["sources"][name]
        kept = sum(split["rows"] for split in entry["splits"].values())
        assert entry["rows"] == 1500
        assert kept + sum(entry["rejected"].values()) == 1500
        assert quarantined[name] == sum(entry["rejected"].values())
        refused[name] = entry["rejected"]
    assert refused == {
        "alpaca": {"empty_output": 3, "nooutput_marker": 3},
        "cot": {"control_char": 1},
        "niv2": {},
        "p3": {},
    }
