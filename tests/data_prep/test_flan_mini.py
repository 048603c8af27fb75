"""flan_mini from the published files to the stream: every style, the same corpus for any blocks and processes, and the
same samples in the same order for any number of ranks. A few rows of each file keep it short."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conf.compose import compose
from conf.durable import xxh3_of
from conf.errors import BadData, MissingInput
from conf.schema import RunConfig
from data_prep import preview
from data_prep.blocks import workers as pool
from data_prep.corpus import identity
from data_prep.corpus.shards import Corpus, Split, open_corpus
from data_prep.jobs import job_of, raw_files
from data_prep.prepare import prepare
from data_prep.rows import selection
from data_prep.rows.files import parse
from data_prep.rows.stage import Counts, apply
from data_prep.stream.stream import Stream, rank_rows
from data_prep.templates.prompts import plain_prompt
from data_prep.tokenizer import tokenizer
from tests.data_prep import made
from tests.data_prep.flan_files import COT_ROWS, HELD_OUT_TASKS, NIV2_ROWS, flan_files

Real = Callable[[str], Path]
STYLES = {
    *(f"t0.{style}" for style in ("zsopt", "fsopt", "zsnoopt", "fsnoopt")),
    *(f"niv2.{style}" for style in ("zsopt", "fsopt")),
    *(f"cot.zsopt.{kind}" for kind in ("direct", "inverted")),
    *(f"cot.fsopt.{kind}.{shots}" for kind in ("direct", "inverted") for shots in ("five", "some")),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, real_data: Real) -> Path:
    return flan_files(tmp_path_factory.mktemp("flan"), real_data)


def config(root: Path, real_data: Real, name: str, *more: str) -> RunConfig:
    words = ["data=flan_mini", f"data.prepared={root / name}", f"model.tokenizer={real_data('tokenizers/gpt2')}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CORRAL_DATA", str(root))
        return compose([*words, "data.bad_row_budget=0.2", *more])


@pytest.fixture(scope="module")
def corpus(root: Path, real_data: Real) -> Corpus:
    return open_corpus(prepare(config(root, real_data, "corpus"), argv=[]))


@pytest.fixture(scope="module")
def words(corpus: Corpus) -> tokenizer.Tokenizer:
    return tokenizer.load_tokenizer(str(corpus.path / "tokenizer"))


def splits(corpus: Corpus, source: str) -> Iterator[Split]:
    for name in ("train", "validation"):
        if source in (found := corpus.split(name)):  # type: ignore[arg-type]
            yield found[source]


def samples(corpus: Corpus, source: str, words: tokenizer.Tokenizer) -> Iterator[tuple[str, str, tuple[str, int, int]]]:
    """(prompt, target, (file, row, variant)) of every sample of a source."""
    for split in splits(corpus, source):
        for row in range(split.rows):
            ids, mask = (each.tolist() for each in split.tokens(row))
            first = mask.index(1)
            yield words.decode(ids[:first]), words.decode(ids[first:]), split.origin(row)


def digests(path: Path) -> dict[str, str]:
    kept = [*path.rglob("*.arrow"), *path.glob("quarantine.jsonl")]
    assert kept
    return {str(each.relative_to(path)): xxh3_of(each) for each in sorted(kept)}


def test_every_style_is_there_and_nothing_is_lost(corpus: Corpus) -> None:
    entries = corpus.manifest["sources"]
    assert set(entries) == STYLES
    quarantine = Counter(
        json.loads(line)["source"] for line in (corpus.path / "quarantine.jsonl").read_text().splitlines()
    )
    for name, entry in entries.items():
        kept = sum(split["rows"] for split in entry["splits"].values())
        if not name.startswith("t0"):
            assert entry["rows"] == {"niv2": 3 * NIV2_ROWS, "cot": 6 * COT_ROWS}[name.split(".")[0]]
        assert kept + sum(entry["rejected"].values()) == entry["rows"]
        assert quarantine[name] == sum(entry["rejected"].values())
        assert set(entry["rejected"]) <= {"no_exemplar_fits", "over_length", "duplicate"}
    assert corpus.manifest["max_tokens"] <= 2560


def test_mmlu_and_the_official_test_tasks_are_kept_out(corpus: Corpus) -> None:
    for style in ("niv2.zsopt", "niv2.fsopt"):
        names = [Path(each["path"]).name for each in corpus.manifest["files"][style]]
        assert len(names) == 3
        assert not any(name.startswith(HELD_OUT_TASKS) for name in names)
        left_out = sorted(Path(each).name[:8] for each in corpus.manifest["files_left_out"][style])
        assert left_out == sorted(HELD_OUT_TASKS)


def test_templates_are_used_alike_and_the_variant_says_which(corpus: Corpus, words: tokenizer.Tokenizer) -> None:
    used = Counter[int]()
    per_task = Counter[tuple[str, int]]()
    for _, _, (file, _, variant) in samples(corpus, "niv2.zsopt", words):
        used[variant] += 1
        per_task[file, variant] += 1
    assert set(used) == set(range(10))
    assert set(per_task.values()) <= {1, 2}
    rewritten = {variant // 64 for *_, (_, _, variant) in samples(corpus, "cot.zsopt.direct", words)}
    assert len(rewritten) > 10  # forms of the options


def test_few_shot_prompts_hold_solved_rows_of_the_same_task(
    root: Path, real_data: Real, corpus: Corpus, words: tokenizer.Tokenizer
) -> None:
    """Against the raw rows: P3 rows stand in a prompt word for word, each followed by its answer."""
    cfg, source = config(root, real_data, "corpus"), "t0.fsopt"
    job = job_of(cfg, source, raw_files(cfg, source), tokenizer=corpus.path / "tokenizer", folder=corpus.path)
    read = apply(job.stages.reading, list(pool.records_of(job)), Counts())
    rows = {record.row: record.conversation for _, record in read}
    records = {record.row: record for _, record in read}
    tasks = {record.row: parse(record.text)["template"] for _, record in read}
    counts = Counter[int]()
    for prompt, target, (_, number, _) in samples(corpus, source, words):
        question, answer = rows[number].messages
        assert target == answer.content
        assert prompt.endswith(plain_prompt(question))
        found = [
            each for each, row in rows.items() if plain_prompt(row.messages[0]) + row.messages[1].content in prompt
        ]
        assert {tasks[each] for each in found} == {tasks[number]}
        assert not any(job.stages.split.holds_out(records[each]) for each in found)
        assert number not in found
        counts[len(found)] += 1
    assert counts.most_common(1)[0][0] == 5
    assert set(counts) <= {1, 2, 3, 4, 5}


def test_niv2_prompts_hold_two_exemplars(corpus: Corpus, words: tokenizer.Tokenizer) -> None:
    made = list(samples(corpus, "niv2.fsopt", words))
    passages = Counter(prompt.count("Passage:") for prompt, _, (file, *_) in made if "task002" in file)
    assert passages.most_common(1)[0][0] == 3
    assert set(passages) <= {2, 3}
    file = next(file for _, _, (file, *_) in made if "task002" in file)
    definition = json.loads(Path(file).read_text())["Definition"][0].strip()
    assert all(prompt.count(definition) == 1 for prompt, _, (file, *_) in made if "task002" in file)


def test_input_inversion_asks_for_what_was_given(corpus: Corpus, words: tokenizer.Tokenizer) -> None:
    direct = {origin[:2]: target for _, target, origin in samples(corpus, "cot.zsopt.direct", words)}
    inverted = {origin[:2]: (prompt, target) for prompt, target, origin in samples(corpus, "cot.zsopt.inverted", words)}
    assert direct.keys() == inverted.keys()
    gsm = [key for key in direct if "gsm8k" in key[0]]
    assert len(gsm) >= 7
    for key in gsm:
        number = re.findall(r"-?[\d,.]*\d", direct[key])[-1]
        assert number in inverted[key][0] or number in inverted[key][1]
        assert direct[key] != inverted[key][1]


def test_all_styles_of_a_row_are_on_the_same_side_of_the_split(corpus: Corpus) -> None:
    sides: dict[tuple[str, int], set[str]] = {}
    for name in ("train", "validation"):
        for source, split in corpus.split(name).items():  # type: ignore[arg-type]
            assert source in STYLES
            for row in range(split.rows):
                sides.setdefault(split.origin(row)[:2], set()).add(name)
    assert all(len(side) == 1 for side in sides.values())


def test_the_corpus_does_not_depend_on_the_blocks(
    root: Path, real_data: Real, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "BLOCK_ROWS", 7)
    again = prepare(config(root, real_data, "again", "~data.sources.t0", "~data.sources.cot"), argv=[])
    assert digests(again / "niv2.fsopt") == digests(corpus.path / "niv2.fsopt")
    assert digests(again / "niv2.zsopt") == digests(corpus.path / "niv2.zsopt")


@pytest.mark.slow
def test_the_corpus_does_not_depend_on_the_processes_but_on_the_seed(
    root: Path, real_data: Real, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "BLOCK_ROWS", 37)
    words = ("~data.sources.t0", "~data.sources.cot", "data.num_proc=2")
    two = prepare(config(root, real_data, "two", *words), argv=[])
    other = prepare(config(root, real_data, "other", *words, "data.style_seed=1"), argv=[])
    for source in ("niv2.zsopt", "niv2.fsopt"):
        assert digests(two / source) == digests(corpus.path / source)
        assert digests(other / source) != digests(corpus.path / source)


def test_the_stream_is_the_same_for_one_to_four_ranks(root: Path, real_data: Real, corpus: Corpus) -> None:
    """The ledger's digests, from the rows that each rank is dealt."""
    cfg = config(root, real_data, "corpus", "data.stop={examples: 600, first_exhausted: null}")
    ledgers = []
    for world in (1, 2, 3, 4):
        stream = Stream(corpus.split("train"), cfg.data, seed=cfg.seed, global_size=12)
        found = corpus.split("train")
        ledger = []
        for step in stream:
            dealt = [row for rank in range(world) for row in rank_rows(step, rank, world)]
            uids = [found[stream.names[source]].uid(row) for each in dealt for source, row in each.samples]
            ledger.append(hashlib.blake2b(repr(uids).encode()).hexdigest())
        ledgers.append(ledger)
    assert ledgers == [ledgers[0]] * 4
    assert len(ledgers[0]) > 5
    drawn = Stream(corpus.split("train"), cfg.data, seed=cfg.seed, global_size=12)
    counts = Counter[str]()
    for step in drawn:
        for name, count in zip(drawn.names, step.source_samples, strict=True):
            counts[name.split(".")[0]] += count
    assert {name: counts[name] for name in ("t0", "niv2", "cot")} == {
        name: pytest.approx(600 * weight / 0.57, abs=8) for name, weight in (("t0", 0.32), ("niv2", 0.2), ("cot", 0.05))
    }


def test_preview_shows_a_row_of_every_style_before_and_after_preparation(
    root: Path, real_data: Real, corpus: Corpus, words: tokenizer.Tokenizer
) -> None:
    for name in ("corpus", "not_prepared"):
        loaded, shown = preview.samples(config(root, real_data, name), 1)
        found = list(shown)
        assert Counter(each.source for each in found) == dict.fromkeys(STYLES, 1)
        prompts = {each.source: loaded.decode(each.ids[: each.mask.index(1)]) for each in found}
        assert len(prompts["cot.fsopt.direct.five"]) > len(prompts["cot.zsopt.direct"])
        assert any("variant" in each.origin for each in found)


def test_the_command_that_prepares_it_is_spelt_out_and_means_the_same_corpus(root: Path, real_data: Real) -> None:
    cfg = config(root, real_data, "corpus", "data.style_seed=3")
    command = shlex.split(identity.prepare_command(cfg))
    assert command[:3] == ["python", "-m", "data_prep"]
    assert identity.corpus_digest(compose(command[3:])) == identity.corpus_digest(cfg)


def test_all_tasks_excluded_is_a_sentence(root: Path, real_data: Real, tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text("# everything\ntask*\n")
    cfg = config(root, real_data, "none", f"data.sources.niv2.sources.zsopt.select.exclude={tmp_path / 'all.txt'}")
    with pytest.raises(MissingInput, match=r"select\.exclude: the list leaves out the tasks of all 5 files"):
        prepare(cfg, argv=[])
    assert selection.read(cfg.data.sources["niv2"].sources["zsopt"].select, "k").exclude == ("task*",)  # type: ignore[index]


def test_rows_passed_over_are_counted(tmp_path: Path) -> None:
    dump = tmp_path / "dump.jsonl"
    kinds = ["zs_opt", "fs_opt", "zs_opt", "zs_noopt"] * 20
    rows = [{"inputs": f"question {n}", "targets": "yes", "template_type": kind} for n, kind in enumerate(kinds)]
    dump.write_text("".join(json.dumps(row) + "\n" for row in rows))
    leaf = {"format": "p3", "path": str(dump), "select": {"where": {"template_type": "zs_opt"}}}
    corpus = open_corpus(prepare(made.config({"a": leaf, "b": leaf | {"rows": 5}}, tmp_path / "corpus"), argv=[]))
    entries = corpus.manifest["sources"]
    assert [(entries[name]["rows"], entries[name]["left_out"]) for name in "ab"] == [(40, 40), (5, 4)]
    assert [corpus.split("train")["b"].origin(row)[1] for row in range(5)] == [0, 2, 4, 6, 8]
    none = {"a": leaf | {"select": {"where": {"template_type": "zs"}}}}
    with pytest.raises(BadData, match=r"data\.sources\.a\.select: none of the 80 rows of its files match"):
        prepare(made.config(none, tmp_path / "none"), argv=[])
