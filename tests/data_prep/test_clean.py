"""Cleaning rules: what each finds, that switches act, and the real file's dirt to the row."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.errors import ConfigError
from data_prep import sources
from data_prep.clean import RULES, Cleaned, clean, switches
from data_prep.conversation import Conversation, Message
from tests.data_prep.made import REAL, needs_real_data


def alpaca(instruction: str = "Ask.", context: str = "", output: str = "Answer.") -> Conversation:
    return Conversation((Message("user", instruction, context=context), Message("assistant", output)))


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


# Kinds of the list of dirty rows whose definition is sharp, by our rule's name.
SHARP = {
    "empty_output": "empty_output",
    "nooutput_marker": "nooutput_marker_anywhere",
    "noinput_placeholder": "noinput_placeholder",
    "na_output": "na_output",
    "control_char": "control_char(not \\n\\t)",
    "zero_width": "zero_width_or_bom_or_format(Cf)",
    "special_token_text": "special_token_text(</s>,<s>,<pad>,<|endoftext|>,[INST])",
    "separator_leak": "generator_separator_leak(##)",
    "output_equals_input": "output==input",
    "one_char_output": "output<=1char",
    "url_in_input": "url_in_input",
    "exotic_space": "nbsp_or_exotic_space",
    "carriage_return": "carriage_return",
    "lone_surrogate": "lone_surrogate",
    "replacement_char": "replacement_char_U+FFFD",
    "empty_prompt": "empty_instruction",
}


@needs_real_data
def test_real_alpaca_dirt_row_by_row() -> None:
    rows = json.loads(gzip.decompress((REAL / "alpaca/alpaca_data.json.gz").read_bytes()))
    expected = json.loads(gzip.decompress((REAL / "alpaca/alpaca_dirty_rows.json.gz").read_bytes()))
    switched, read = switches({}), sources.reader("alpaca")
    found = defaultdict(list)
    for index, row in enumerate(rows):
        for name in clean(read(row), switched).found:
            found[name].append(index)
    for rule, kind in SHARP.items():
        assert found[rule] == expected[kind], rule
    # "###", "Instruction:" and "10. Input", as the kind's name says; two more rows in the list hold none of them.
    leaks = expected["template_marker_leak(###|Instruction:|10. Input)"]
    assert set(found["template_leak"]) <= set(leaks)
    assert len(found["template_leak"]) == 51
