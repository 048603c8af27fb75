"""Lists of options at the end of a question: found, rewritten, left out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from data_prep.samples import options, styles
from data_prep.samples.template_set import Template
from tests.data_prep.samples.test_styles import ZERO, asked, record

BULLETS = "Is it so?\nOptions:\n- yes\n- no"
LETTERS = "How much?\nOptions:\n(A) 300\n(B) 992"


def test_options_are_found_where_they_are_a_list_at_the_end() -> None:
    found = options.find(BULLETS, "no")
    assert found == options.Options("Is it so?", "Options:\n- yes\n- no", ("yes", "no"), 1, lettered=False)
    lettered = options.find(LETTERS, "(B)")
    assert lettered is not None
    assert (lettered.texts, lettered.answer, lettered.lettered) == (("300", "992"), 1, True)
    assert lettered.answer_text() == "992"
    both = options.find("Which?\nOptions:\n\n- A: joy\n\n- B: pay", "B")
    assert both is not None
    assert (both.texts, both.answer, both.lettered) == (("joy", "pay"), 1, True)
    names = options.find("Who?\nChoices:\n- J. Smith\n- K. Jones", "K. Jones")
    assert names is not None
    assert (names.texts, names.answer, names.lettered) == (("J. Smith", "K. Jones"), 1, False)
    spread = options.find("Which?\n\n Choices:\n\n- Muscle\n\n - Skin\n", "Bone")
    assert spread is not None
    assert (spread.stem, spread.texts, spread.answer) == ("Which?", ("Muscle", "Skin"), None)
    for text in ("What options: are there?", "Options:\n- one", BULLETS + "\nSay why.", "- a\n- b"):
        assert options.find(text, "no") is None


@given(
    st.integers(0, options.FORMS - 1), st.lists(st.from_regex(r"[a-z]{1,8}", fullmatch=True), min_size=2, unique=True)
)
def test_every_form_of_the_options_holds_them_all_and_names_the_answer(form: int, texts: list[str]) -> None:
    texts = texts[:26]
    found = options.find("Q?\nOptions:\n" + "\n".join(f"- {text}" for text in texts), texts[-1])
    assert found is not None
    block, answer = found.form(form)
    assert found.can_take(form)
    assert [block.index(text) for text in texts]
    if answer is not None:  # the label stands right before its option, and nowhere else
        item = next(line for line in block.replace(" / ", "\n").split("\n") if line.endswith(f" {texts[-1]}"))
        assert item.startswith(answer)
        assert not replace(found, answer=None).can_take(form)


def test_all_forms_are_different() -> None:
    found = options.find(BULLETS, "no")
    assert found is not None
    assert len({found.form(form) for form in range(options.FORMS)}) == options.FORMS


def styled(mode: Any, template: Template, question: str, answer: str) -> list[tuple[str, str]]:
    style = replace(ZERO, templates=(template,), options=mode)
    made = [styles.write(style, record("t", number, asked(question, answer)), {}) for number in range(60)]
    return list(dict.fromkeys((plan.question, plan.answer.content) for plan in made))


def test_options_given_left_out_and_varied() -> None:
    whole, apart = Template("{question}", "{answer}"), Template("{options_}\n{question}", "{answer}")
    assert styled("given", whole, BULLETS, "no") == [(BULLETS, "no")]
    assert styled("given", apart, BULLETS, "no") == [("Options:\n- yes\n- no\nIs it so?", "no")]
    assert styled("none", whole, BULLETS, "no") == [("Is it so?", "no")]
    assert styled("none", whole, LETTERS, "(B)") == [("How much?", "992")]
    assert styled("none", whole, BULLETS, "perhaps") == [(BULLETS, "perhaps")]
    assert styled("none", Template("{question}\n\n{options_}", "{answer}"), BULLETS, "no") == [("Is it so?", "no")]
    assert styled("varied", whole, LETTERS, "(B)") == [(LETTERS, "(B)")]
    varied = styled("varied", whole, BULLETS, "no")
    assert len(varied) > 30
    assert {answer for _, answer in varied} == {"no", "(B)", "B", "B)", "[B]", "2"}
    # An answer that is not one of the options cannot be said by a label.
    assert {answer for _, answer in styled("varied", whole, BULLETS, "maybe")} == {"maybe"}
    assert len(styled("varied", whole, "No list here.", "yes")) == 1


def test_the_variant_tells_template_and_form_apart_and_fits_the_column() -> None:
    style = replace(ZERO, options="varied")
    seen = {styles.write(style, record("t", number, asked(BULLETS, "no")), {}) for number in range(2000)}
    by_variant = {plan.variant: plan.question for plan in seen}
    assert len(by_variant) > 600
    assert len(by_variant) == len({(plan.variant % 64, plan.question) for plan in seen})
    assert max(by_variant) <= 63 + 64 * options.FORMS < 2**15
