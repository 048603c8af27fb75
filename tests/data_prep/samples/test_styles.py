"""Template sets, options, exemplars: what a row becomes in a style, and that every draw follows from the row alone."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.errors import BadData, MissingInput
from data_prep.flan_templates import convert, few_shot
from data_prep.prepare import prepare
from data_prep.rows.conversation import Conversation, Message, Rejected
from data_prep.rows.record import Record
from data_prep.rows.stage import Counts
from data_prep.samples import styles, template_set
from data_prep.samples.draft import Draft
from data_prep.samples.encode_stage import Encode
from data_prep.samples.exemplars import FEWEST, POOL, Pool, read
from data_prep.samples.styles import Style
from data_prep.samples.template_set import Template
from data_prep.sources import flan_cot, niv2, qa
from tests.data_prep.made import byte_tokenizer, config

PAIRS = tuple(Template(f"{number}) {{question}}", f"{number}: {{answer}}") for number in range(10))
ZERO = Style(PAIRS, 0, "given", 1920, seed=0)


def asked(question: str, answer: str) -> Conversation:
    return Conversation((Message("user", question), Message("assistant", answer)))


def pools(count: int, task: str = "t") -> dict[str, tuple[Conversation, ...]]:
    return {task: tuple(asked(f"question {number}", f"answer {number}") for number in range(count))}


def row(number: int, task: str = "t") -> Record:
    return record(task, number, asked(f"question {number}", f"answer {number}"))


def record(task: str, number: int, conversation: Conversation) -> Record:
    return Record("rows.jsonl", number, "", task=task, conversation=conversation)


def test_templates_go_round_robin_from_a_start_that_the_task_and_seed_draw() -> None:
    taken = [styles.write(ZERO, row(number), {}) for number in range(30)]
    assert Counter(plan.variant for plan in taken) == dict.fromkeys(range(10), 3)
    for number, plan in enumerate(taken):
        assert (plan.variant - taken[0].variant) % 10 == number % 10
        expected = asked(f"{plan.variant}) question {number}", f"{plan.variant}: answer {number}")
        assert plan.conversation(0) == expected
    starts = {styles.write(ZERO, row(0, f"task {each}"), {}).variant for each in range(40)}
    assert len(starts) == 10
    assert {styles.write(replace(ZERO, seed=each), row(0), {}).variant for each in range(40)} == starts


def test_a_few_shot_prompt_is_solved_rows_then_the_question() -> None:
    made = Template("Q: {question}\nA:", "{answer}", head="Do {instruction}.\n", separator="\n--\n")
    plan = styles.write(replace(ZERO, templates=(made,), shots=2), row(3), pools(9))
    prompt, answer = plan.conversation(2).messages
    head, *blocks = prompt.content.split("Q: ")
    assert head == "Do question 3.\n"
    assert blocks[-1] == "question 3\nA:"
    numbers = [block.split("\n")[0].removeprefix("question ") for block in blocks[:-1]]
    assert blocks[:-1] == [f"question {each}\nA:\nanswer {each}\n--\n" for each in numbers]
    assert len({*numbers, "3"}) == 3
    assert answer.content == "answer 3"
    assert plan.conversation(1).messages[0].content == f"{head}Q: {blocks[0]}Q: {blocks[-1]}"


def test_exemplars_separators_and_their_number_are_drawn_evenly_and_repeat_themselves() -> None:
    five, varied = replace(ZERO, shots=5), replace(ZERO, shots="varied")
    plans = [styles.write(five, row(number), pools(64)) for number in range(600)]
    assert plans == [styles.write(five, row(number), pools(64)) for number in range(600)]
    used = Counter(text.split(") ")[1].split("\n")[0] for plan in plans for text in plan.exemplars)
    assert len(used) == 64
    assert max(used.values()) < 2 * 600 * 5 / 64
    assert all(150 < count < 250 for count in Counter(plan.separator for plan in plans).values())
    counts = Counter(len(styles.write(varied, row(number), pools(64)).exemplars) for number in range(2000))
    assert set(counts) <= set(range(1, 11))
    # Binomial(25, 1/10) without 0: mean 2.69, and 1 and 2 are drawn with .215 and .287.
    assert sum(count * times for count, times in counts.items()) / 2000 == pytest.approx(2.69, abs=0.1)
    assert counts[1] / 2000 == pytest.approx(0.215, abs=0.03)
    assert counts[2] / 2000 == pytest.approx(0.287, abs=0.03)


def test_a_row_is_never_its_own_exemplar_and_a_task_of_one_row_is_refused_by_name() -> None:
    two = replace(ZERO, shots=5)
    assert styles.write(two, row(0), pools(2)).exemplars[0].endswith("answer 1")
    for pool in (pools(1), {}):
        with pytest.raises(Rejected) as caught:
            styles.write(two, row(0), pool)
        assert caught.value.reason == "no_exemplar"
    with pytest.raises(Rejected) as caught:
        styles.write(replace(ZERO, templates=(Template("{premise}", "{answer}"),)), row(0), {})
    assert caught.value.reason == "missing_template_field"


def test_exemplars_are_left_out_until_the_prompt_fits(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path)
    style = replace(ZERO, shots=5, prompt_tokens=120)
    rows = [row(number) for number in range(40)] + [record("t", 99, asked("word " * 60, "answer"))]
    tokenizer.save(tmp_path / "saved")
    stage = Encode("plain", str(tmp_path / "saved"), seq_len=200, prompt_tokens=style.prompt_tokens)
    outcomes = stage.batch([Draft(each, styles.write(style, each, pools(64))) for each in rows], Counts())
    for each, (outcome,) in zip(rows[:-1], outcomes, strict=False):
        assert not isinstance(outcome, Rejected)
        assert outcome.record == each
        ids, mask, variant = outcome.tokens.ids, outcome.tokens.mask, outcome.tokens.variant
        prompt, target = tokenizer.decode(ids[: mask.index(1)]), tokenizer.decode(ids[mask.index(1) :])
        plan = styles.write(style, each, pools(64))
        assert mask.index(1) <= 120
        assert (variant, target) == (plan.variant, plan.answer.content)
        shots = prompt.count("answer")
        assert 1 <= shots < 5
        assert prompt == plan.conversation(shots).messages[0].content + "\n"
        # One more would have been too many.
        assert len(tokenizer.encode(plan.conversation(shots + 1).messages[0].content + "\n")) > 120
    (refused,) = outcomes[-1]
    assert isinstance(refused, Rejected)
    assert refused.reason == "no_exemplar_fits"


def test_every_shipped_set_writes_its_rows_in_ten_ways() -> None:
    rows: dict[str, Conversation] = {
        "cot": flan_cot.read({"fields": ["What is {x}?", "4", "Two and two."]}),
        "niv2": niv2.read({"Definition": ["Add."], "input": "2 {2}", "output": ["4"]}),
        "niv2_example": niv2.read(
            {"Definition": "Add.", "input": "2 {2}", "output": "4"}
            | {"ex_input": "1 1", "ex_output": "2", "ex_explanation": "One and one."}
        ),
        "qa": qa.read({"question": "What?", "answer": "That."}),
        "qa_options": qa.read({"question": "What?", "answer": "b", "options": ["a", "b"]}),
    }
    rows["cot_inversion"] = rows["cot"]
    assert {path.stem for path in template_set.FOLDER.glob("*.jsonl")} == set(rows)
    for name, conversation in rows.items():
        for shots in ("zero", "few"):
            templates = template_set.load(template_set.locate(name, "key"), shots)
            assert len(templates) == 10
            style = replace(ZERO, templates=templates)
            made = [styles.write(style, record("t", number, conversation), {}).conversation(0) for number in range(10)]
            assert len({each.messages[0].content for each in made}) == 10
            assert all(message.content.strip() for each in made for message in each.messages)
    inverted = template_set.load(template_set.locate("cot_inversion", "key"), "zero")
    assert all("{answer}" in each.input or "{chain_of_thought}" in each.input for each in inverted)


def test_options_of_a_qa_row_and_what_is_wrong_with_them() -> None:
    made = qa.read({"question": "What? ", "options": ["a", "b  c"], "answer": "a", "passage": "P"})
    assert made.messages[0].content == "What?\nOptions:\n- a\n- b c"
    assert made.fields["passage"] == "P"
    for wrong in ("a", ["a", {}], ["a", " "]):
        with pytest.raises(Rejected):
            qa.read({"question": "What?", "options": wrong, "answer": "a"})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not a template"),
        ('{"input": "x"}', "line 2: not a template"),
        ('{"input": "{a}", "target": "{b}", "shot": "few"}', "line 2: not a template .*shot"),
        ('{"input": "{a}", "target": "{b}", "shots": "two"}', "line 2: shots is 'two'"),
        ('{"input": "{a}", "target": "b"}', "line 2: target has no place"),
        ('{"input": 3, "target": "{b}"}', "line 2: not a template .*texts"),
    ],
)
def test_a_broken_template_file_is_named_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"input": "{q}", "target": "{a}", "shots": "zero"}\n' + line)
    with pytest.raises(BadData, match=message):
        template_set.load(path, "zero")


def test_a_set_without_templates_for_the_style_and_an_unknown_set(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"input": "{q}", "target": "{a}", "shots": "zero"}')
    with pytest.raises(BadData, match="no template for few-shot"):
        template_set.load(path, "few")
    with pytest.raises(MissingInput, match=r"key: no such file: .*cott.*one of cot, cot_inversion"):
        template_set.locate("cott", "key")


def test_flan_templates_are_converted_and_all_of_them_load(tmp_path: Path, real_data: Any) -> None:
    source = real_data("flan_mixture/flan_v2_templates.json.gz")
    written = convert(source, tmp_path)
    assert len(written) == 302
    tables = json.loads(gzip.decompress(source.read_bytes()))
    kinds = ("zero_shot", "zero_shot_no_options", "flan2021_zero_shot", "inline_few_shot")
    pairs = sum(len(each) for kind in kinds for each in tables[kind].values())
    assert sum(len(template_set.load(path, "zero")) for path in written) == pairs
    conversation = flan_cot.read({"fields": ["What is 2+2?", "4", "Two and two."]})
    pool = {"t": (flan_cot.read({"fields": ["What is 1+1?", "2", "One and one."]}),)}
    for shots in (0, 2):
        templates = template_set.load(tmp_path / "cot_gsm8k.jsonl", "few" if shots else "zero")
        assert len(templates) == 10
        plan = styles.write(replace(ZERO, templates=templates, shots=shots), record("t", 0, conversation), pool)
        assert "What is 2+2?" in plan.question
        assert "Two and two." in plan.answer.content
        assert "One and one." in "".join(plan.exemplars) or not shots
    definition = template_set.load(tmp_path / "natinst_v2.jsonl", "few")
    assert {each.head.count("{Definition}") for each in definition} == {1}
    row = {"Definition": "Add.", "input": "5 + 6", "output": "11", "ex_input": "7 + 8", "ex_output": "15"}
    inline = template_set.load(tmp_path / "natinst_v2.example.jsonl", "zero")
    for number in range(10):
        conversation = niv2.read(row | {"ex_explanation": "Eight after seven."})
        made = styles.write(replace(ZERO, templates=inline), record("t", number, conversation), {}).conversation(0)
        places = [made.messages[0].content.index(text) for text in ("Add.", "7 + 8", "15", "Eight after", "5 + 6")]
        assert places == sorted(places)


def test_what_is_no_template_table_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "t.json"
    for content in ("[]", '{"zero_shot": {}}', "no json"):
        source.write_text(content)
        with pytest.raises(BadData):
            convert(source, tmp_path / "sets")
    source.write_text(json.dumps({"zero_shot": {"a": [["x"]]}, "few_shot": {}}))
    with pytest.raises(BadData, match="a in zero_shot"):
        convert(source, tmp_path / "sets")
    with pytest.raises(MissingInput):
        convert(tmp_path / "absent.json", tmp_path / "sets")


def test_a_few_shot_pattern_becomes_a_line() -> None:
    pattern = {
        "inputs": "{input}",
        "targets": "{output}",
        "inputs_prefix": "Q: ",
        "targets_prefix": "A: ",
        "x_y_delimiter": "\n",
        "example_separator": "\n\n",
        "input_pattern": "{{Definition}}\n\n{{inputs}}{final_suffix}",
    }
    line = few_shot(pattern)
    assert Template(**line) == Template("Q: {input}\nA: ", "{output}", "{Definition}\n\n", "\n\n", "few")  # type: ignore[arg-type]


@given(st.integers(0, 2**32), st.lists(st.integers(0, 10**6), min_size=1, max_size=60, unique=True))
def test_a_pool_holds_the_rows_of_smallest_hash_whatever_their_order(seed: int, numbers: list[int]) -> None:
    kept = []
    for order in (numbers, numbers[::-1]):
        pool = Pool(seed)
        for number in order:
            if pool.wants("t", number):
                pool.add("t", number, row(number).conversation)
        kept.append([conversation for *_, conversation in sorted(pool._kept["t"], key=lambda each: each[:2])])
    assert kept[0] == kept[1]


def test_pools_share_a_bounded_room_and_come_back_from_disk(tmp_path: Path) -> None:
    pool = Pool(7)
    for task in range(400):
        for number in range(40):
            if pool.wants(f"t{task}", number):
                pool.add(f"t{task}", number, row(number).conversation)
    pool.add("t0", 99, row(0).conversation)  # the same prompt again
    pool.write(tmp_path / "pools")
    pools = read(tmp_path / "pools")
    assert {len(rows) for rows in pools.values()} == {FEWEST}
    assert len(pools) == 400
    assert all(len(set(map(str, rows))) == FEWEST for rows in pools.values())
    single = Pool(7)
    for number in range(5000):
        if single.wants("t", number):
            single.add("t", number, row(number).conversation)
    single.write(tmp_path / "one")
    assert len(read(tmp_path / "one")["t"]) == POOL
    cot = flan_cot.read({"fields": ["q", "a", "because"]})
    fields = Pool(7)
    fields.add("t", 0, cot)
    fields.write(tmp_path / "fields")
    assert read(tmp_path / "fields")["t"] == (cot,)


def test_a_bad_example_of_a_task_rejects_rows_only_where_it_is_shown(tmp_path: Path) -> None:
    byte_tokenizer(tmp_path / "words").save(tmp_path / "words")
    instances = [{"input": f"{n} + 1", "output": [f"{n + 1}"]} for n in range(8)]
    example = {"input": "1 + 1", "output": "2", "explanation": "a\x00b"}
    task = {"Definition": "Add.", "Positive Examples": [example], "Instances": instances}
    (tmp_path / "task.json").write_text(json.dumps(task))
    leaf = {"format": "niv2", "path": str(tmp_path / "task.json")}
    leaves = {name: leaf | {"style": {"templates": name}} for name in ("niv2", "niv2_example")}
    cfg = config(leaves, tmp_path / "corpus", model={"tokenizer": str(tmp_path / "words")}, seq_len=512)
    with pytest.raises(BadData, match=r"niv2_example: 8 of 8 rows .*control_char 8"):
        prepare(cfg, argv=[])
    quarantined = (tmp_path / "corpus" / "quarantine.jsonl").read_text().splitlines()
    assert {json.loads(line)["source"] for line in quarantined} == {"niv2_example"}
