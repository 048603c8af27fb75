"""Cleaning rules: what each finds, that switches act, and the real file's dirt to the row."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.errors import ConfigError
from data_prep import sources
from data_prep.filters.clean import RULES, Cleaned, clean, switches
from data_prep.rows import files
from data_prep.rows.conversation import Conversation, Message


def alpaca(instruction: str = "Ask.", context: str = "", output: str = "Answer.") -> Conversation:
    return Conversation((Message("user", instruction, context=context), Message("assistant", output)))


def with_passage(passage: str) -> Conversation:
    return sources.reader("qa")({"question": "What?", "answer": "That.", "passage": passage})


def cleaned(row: Conversation, **chosen: bool) -> Cleaned:
    return clean(row, switches(chosen))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (alpaca(instruction=" "), "empty_prompt"),
        (alpaca(output=" \n"), "empty_output"),
        (alpaca(output="\u200b"), "empty_output"),
        (alpaca(output="<nooutput>"), "nooutput_marker"),
        (alpaca(output="No output required"), "nooutput_marker"),
        (alpaca(output="No Output, GPT model cannot create visuals."), "nooutput_marker"),
        (alpaca(output="a\x00b"), "control_char"),
        (alpaca(output="a\ud800b"), "lone_surrogate"),
        (with_passage("a\ud800b"), "lone_surrogate"),
        (with_passage("a\x00b"), "control_char"),
        (alpaca(output="Done.\n##\n18. Instruction: next"), "separator_leak"),
    ],
)
def test_rejects_by_name(row: Conversation, reason: str) -> None:
    assert cleaned(row).rejected == reason


@pytest.mark.parametrize(
    "row",
    [
        alpaca(output="4"),
        alpaca(output="N/A"),
        alpaca(context="Tyrese", output="Tyrese"),
        alpaca(output="No output device was found by the driver."),
        alpaca(output="# Title\n\n## Skills\n\n- Go"),
        alpaca(output="Tabs\tand\nlines"),
        alpaca(output="family: 👨‍👩‍👧"),
        alpaca(output="</s> <|endoftext|>"),
        alpaca(output="<p>HTML</p>, see https://example.org"),
    ],
)
def test_keeps_unchanged_what_may_be_right(row: Conversation) -> None:
    outcome = cleaned(row)
    assert outcome.rejected is None
    assert outcome.conversation == row
    assert outcome.normalised == ()


@pytest.mark.parametrize(
    "context", ["<noinput>", "No input required.", "N/A", '"<noinput>"', "\\<noinput\\>", "<noinput> 8"]
)
def test_placeholder_becomes_no_input(context: str) -> None:
    outcome = cleaned(alpaca(context=context))
    assert outcome.conversation.messages[0].context == ""
    assert outcome.normalised == ("noinput_placeholder",)


def test_normalises_invisible_characters_and_line_breaks() -> None:
    outcome = cleaned(alpaca(instruction="a\u200bb", output="c\r\nd\re\ufeff"))
    assert [message.content for message in outcome.conversation.messages] == ["ab", "c\nd\ne"]
    assert set(outcome.normalised) == {"zero_width", "carriage_return"}


def test_switches_act_both_ways() -> None:
    off = cleaned(alpaca(output=""), empty_output=False)
    assert off.rejected is None
    assert off.found == ("empty_output",)
    on = cleaned(alpaca(output="N/A"), na_output=True)
    assert on.rejected == "na_output"
    kept = cleaned(alpaca(context="N/A"), noinput_placeholder=False)
    assert kept.conversation.messages[0].context == "N/A"


def test_unknown_rule_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"data\.clean\.empty_outptu: no such rule; nearest: empty_output"):
        switches({"empty_outptu": False})
    with pytest.raises(ConfigError, match="cannot be switched off"):
        switches({"lone_surrogate": False})


@given(st.text(), st.text(), st.text())
def test_cleaning_twice_changes_nothing_more(instruction: str, context: str, output: str) -> None:
    outcome = cleaned(alpaca(instruction, context, output))
    if outcome.rejected is None:
        assert cleaned(outcome.conversation).conversation == outcome.conversation
        assert cleaned(outcome.conversation).rejected is None


def test_every_rule_says_why_and_has_a_name_of_its_own() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.why for rule in RULES)


@pytest.fixture(scope="module")
def alpaca_dirt(real_data: Callable[[str], Path]) -> tuple[dict[str, set[int]], dict[str, set[int]]]:
    """(rows in which each of our rules finds something, rows of each kind in the list of dirty rows)."""
    read, switched, found = sources.reader("alpaca"), switches({}), defaultdict(set)
    for raw in files.rows(real_data("alpaca/alpaca_data.json.gz")):
        for name in clean(read(files.parse(raw.text)), switched).found:
            found[name].add(raw.row)
    listed = json.loads(gzip.decompress(real_data("alpaca/alpaca_dirty_rows.json.gz").read_bytes()))
    return found, {kind: set(rows) for kind, rows in listed.items()}


# Our rule, the kind of the list, rows that only our rule finds, rows that only the list has, and why they differ.
KINDS: list[tuple[str, str, int, set[int], str]] = [
    ("empty_output", "empty_output", 0, set(), ""),
    ("empty_output", "whitespace_only_output", 28, set(), "blank means without a character that shows, or empty"),
    ("empty_prompt", "empty_instruction", 0, set(), ""),
    ("nooutput_marker", "nooutput_marker_anywhere", 0, set(), ""),
    ("nooutput_marker", "nooutput_marker_output", 9, set(), "there the marker is all of the output"),
    ("noinput_placeholder", "noinput_placeholder", 0, set(), ""),
    ("na_output", "na_output", 0, set(), ""),
    ("replacement_char", "replacement_char_U+FFFD", 0, set(), ""),
    ("control_char", "control_char(not \\n\\t)", 0, set(), ""),
    ("carriage_return", "carriage_return", 0, set(), ""),
    ("zero_width", "zero_width_or_bom_or_format(Cf)", 0, set(), ""),
    ("exotic_space", "nbsp_or_exotic_space", 0, set(), ""),
    ("lone_surrogate", "lone_surrogate", 0, set(), ""),
    ("mojibake", "mojibake(â€|Ã)", 0, set(), ""),
    ("separator_leak", "generator_separator_leak(##)", 0, set(), ""),
    ("special_token_text", "special_token_text(</s>,<s>,<pad>,<|endoftext|>,[INST])", 0, set(), ""),
    ("url_in_input", "url_in_input", 0, set(), ""),
    ("output_equals_input", "output==input", 0, set(), ""),
    ("one_char_output", "output<=1char", 0, set(), ""),
    ("template_leak", "template_marker_leak(###|Instruction:|10. Input)", 0, {5523, 9959}, "they hold no mark"),
    ("html_tag", "html_tags", 20, set(), "tags with attributes count too, such as <img src=...>"),
    ("refusal", "refusal/as_an_AI", 0, {22126, 27400}, "'as an AI-generated insult': no refusal"),
    ("image_reference", "image_reference_input", 33, {5535}, "photos, pictures and links too; not 'image of God'"),
]  # fmt: skip
# Kinds that no rule of a row looks for, by intention: right text in any language; a kind without a row in Alpaca that
# readers (missing_field, non_string_field) or the duplicate search would name; lengths, which the tokenizer decides.
NO_RULE = {
    "tab", "CJK", "non_bmp(emoji etc)", "not_NFC", "private_use_or_unassigned", "line/paragraph_separator_U+2028/9",
    "leading/trailing_space_instruction", "leading/trailing_space_input", "leading/trailing_space_output",
    "input_whitespace_only", "input_repeats_instruction", "missing_or_extra_key", "non_string_field",
    "dup_exact_row", "dup_instruction+input", "dup_instruction+input_normalised", "dup_instruction_only",
    "over_512_tokens_gpt2", "over_512_tokens_llama2", "over_512_tokens_mistral_v1",
}  # fmt: skip


def test_real_alpaca_dirt_row_by_row(alpaca_dirt: tuple[dict[str, set[int]], dict[str, set[int]]]) -> None:
    found, listed = alpaca_dirt
    for rule, kind, only_ours, only_theirs, _ in KINDS:
        assert (len(found[rule] - listed[kind]), listed[kind] - found[rule]) == (only_ours, only_theirs), (rule, kind)
    assert {kind for _, kind, *_ in KINDS} | NO_RULE == set(listed)
    assert all(why for *_, ours, theirs, why in KINDS if ours or theirs)
    by_readers = {"missing_or_extra_key", "non_string_field"} | {kind for kind in NO_RULE if kind.startswith("dup_")}
    assert not any(listed[kind] for kind in by_readers)
