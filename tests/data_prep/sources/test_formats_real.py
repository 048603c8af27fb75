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
from data_prep import sources
from data_prep.prepare import prepare
from data_prep.rows import files
from data_prep.rows.conversation import Conversation, Rejected
from data_prep.tokenizer.tokenizer import load_tokenizer
from tests.data_prep.made import CHATML, config

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
            assert each.fields["ex_output"] == task["Positive Examples"][0]["output"]
            assert (each.messages[0].context, each.messages[1].content) == (instance["input"], instance["output"][0])
        total += len(kept)
    assert schemas == {"list": 60, "str": 6}
    assert total == 23_031


def test_p3_rows_lose_only_the_end_mark(real_data: Real) -> None:
    kept, refused = read_all(real_data("t0_sf/t0_sf_sample.jsonl.gz"), "p3")
    assert (len(kept), refused) == (5160, {})
    assert not any("<|endoftext|>" in each.messages[1].content for each in kept)


INSIDE = {"input": "instances.0.input", "output": "instances.0.output"}
EXAMPLE = {"instruction": "definition", "input": "positive_example.input", "output": "positive_example.output"}
# Format and files of every set of instructions, and what is refused, by source.
WHOLE_SETS: dict[str, tuple[str, str, dict[str, str], dict[str, int]]] = {
    "alpaca": (
        "alpaca", "alpaca/alpaca_data.json.gz", {},
        {"control_char": 2, "empty_output": 28, "nooutput_marker": 53, "separator_leak": 13},
    ),
    "alpaca_zh": ("alpaca", "alpaca_zh", {}, {"empty_output": 4, "nooutput_marker": 1}),
    "alpaca_eval": ("alpaca", "eval_instructions", {}, {"empty_output": 1}),
    "bbh": ("prompt_completion", "bbh/bbh.jsonl.gz", {"prompt": "input", "completion": "target"}, {"duplicate": 2}),
    "vicuna": ("sharegpt", "chat/dummy_conversation.json.gz", {}, {}),
    "glaive": ("sharegpt", "chat/glaive_toolcall_en_demo.json.gz", {}, {"duplicate": 35, "over_length": 1}),
    "gsm8k": ("prompt_completion", "gsm8k", {"prompt": "question", "completion": "answer"}, {}),
    "dolly": ("alpaca", "dolly", {}, {"duplicate": 2, "over_length": 2}),
    "codealpaca": ("alpaca", "codealpaca", {}, {"empty_output": 2}),
    "flan_cot": ("flan_cot", "flan_cot", {}, {"control_char": 2, "duplicate": 1}),
    "gpteacher": ("alpaca", "gpteacher", {}, {}),
    "niv2": (
        "niv2", "niv2/tasks", {},
        {"control_char": 18, "duplicate": 151, "empty_output": 6, "over_length": 16},
    ),
    "niv2_examples": ("alpaca", "niv2/niv2_metadata.jsonl.gz", EXAMPLE, {"duplicate": 42, "over_length": 8}),
    "seed_tasks": ("alpaca", "alpaca/seed_tasks.jsonl.gz", INSIDE, {}),
    "wikidoc": ("alpaca", "medical/medical_meadow_wikidoc_patient.json.gz", {}, {"duplicate": 92, "over_length": 1}),
    "t0": ("p3", "t0_sf", {}, {"control_char": 2, "duplicate": 59, "over_length": 91}),
}  # fmt: skip
# Every other file, and what it is instead.
NO_INSTRUCTIONS = {
    "README.md": "about the files",
    "manifest.json": "about the files",
    "LICENSES": "about the files",
    "alpaca/alpaca_dirty_rows.json.gz": "row numbers",
    "alpaca/alpaca_stats.json": "statistics",
    "bbh/cot_prompts.json.gz": "one prompt per task, without answers of its own",
    "chat/mt_bench_question.jsonl.gz": "questions without answers",
    "finance": "tables with several questions each, whose answers are numbers, texts or lists",
    "flan_mixture": "FLAN's templates and proportions",
    "medical/pubmedqa_pqal.json.gz": "abstracts by number, not rows",
    "niv2/cl_eval_ids.json.gz": "names of instances",
    "niv2/official_test_tasks.txt": "names of tasks",
    "nlvr_vlm": "questions about pictures",
    "tokenizers": "tokenizers",
    "weights": "weights",
}


def test_every_file_is_known(real_data: Real) -> None:
    """A new file is either prepared whole below, or listed as something else."""
    root = real_data(".")
    known = [Path(path) for _, path, *_ in WHOLE_SETS.values()] + [Path(path) for path in NO_INSTRUCTIONS]
    files_there = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    assert [str(path) for path in files_there if not {path, *path.parents} & set(known)] == []
    assert [str(path) for path in known if not (root / path).exists()] == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_set_of_instructions_is_prepared_with_explained_rejections(tmp_path: Path, real_data: Real) -> None:
    words = load_tokenizer(str(real_data("tokenizers/gpt2")))
    words.hf.chat_template = CHATML
    words.save(tmp_path / "words")
    leaves = {
        name: {"format": kind, "path": str(real_data(path)), "fields": fields}
        for name, (kind, path, fields, _) in WHOLE_SETS.items()
    }
    cfg = config(leaves, tmp_path / "corpus", model={"tokenizer": str(tmp_path / "words")}, seq_len=2048)
    manifest = json.loads((prepare(cfg, argv=[]) / "MANIFEST.json").read_text())
    found = {name: entry["rejected"] for name, entry in manifest["sources"].items()}
    assert found == {name: refused for name, (*_, refused) in WHOLE_SETS.items()}
    assert {name: entry["rows"] for name, entry in manifest["sources"].items()} == {
        "alpaca": 52_002, "bbh": 4261, "flan_cot": 32_359, "niv2": 23_031, "niv2_examples": 1477, "seed_tasks": 175,
        "alpaca_zh": 3247, "alpaca_eval": 553, "vicuna": 500, "glaive": 300, "gsm8k": 7473,
        "dolly": 2017, "codealpaca": 6552, "gpteacher": 5542, "wikidoc": 5942, "t0": 5160,
    }  # fmt: skip


@pytest.mark.parametrize("path", ["chat/mt_bench_question.jsonl.gz", "alpaca/seed_tasks.jsonl.gz"])
def test_questions_without_answers_are_refused_by_name(path: str, real_data: Real) -> None:
    for kind in ("alpaca", "messages", "sharegpt", "prompt_completion"):
        kept, refused = read_all(real_data(path), kind)
        assert (kept, set(refused)) == ([], {"missing_field"})


@pytest.mark.parametrize(
    ("kind", "row", "reason"),
    [
        ("flan_cot", {"question": "x"}, "missing_field"),
        ("flan_cot", {"fields": ["q", "a"]}, "wrong_field_count"),
        ("flan_cot", {"fields": ["q", " ", "r"]}, "empty_field"),
        ("niv2", {"Definition": "d", "input": "x", "output": []}, "missing_field"),
        ("niv2", {"Definition": "d", "input": "x", "output": [[3]]}, "non_string_field"),
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


@pytest.mark.slow
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
