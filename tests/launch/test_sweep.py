from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.compose import compose
from conf.errors import ConfigError
from launch.sweep import choices, combinations, override

NO_COMMA = st.text(st.characters(blacklist_characters=",'\"\\()[]{}", min_codepoint=33, max_codepoint=126), min_size=1)
BRACKETED = st.lists(NO_COMMA, min_size=1, max_size=3).map(lambda parts: f"[{','.join(parts)}]")
QUOTED = st.lists(NO_COMMA, min_size=1, max_size=3).map(lambda parts: f"'{','.join(parts)}'")


@given(st.lists(st.one_of(NO_COMMA, BRACKETED, QUOTED), min_size=1, max_size=5))
def test_only_outer_commas_split(parts: list[str]) -> None:
    assert choices(",".join(parts)) == parts


def test_every_combination_once_with_its_own_digest() -> None:
    found = combinations(["experiment=demo", "optim.lr=1e-3,3e-3", "zero=0,1,2", "optim.betas=[0.9,0.95]"])
    assert len({each.digest for each in found}) == 6
    pairs = [(each.arguments[1], each.arguments[2]) for each in found]
    assert pairs == list(itertools.product(["optim.lr=1e-3", "optim.lr=3e-3"], ["zero=0", "zero=1", "zero=2"]))
    assert all(each.arguments[3] == "optim.betas=[0.9,0.95]" for each in found)


def test_the_digest_does_not_depend_on_the_order_of_keys() -> None:
    one = combinations(["a=1,2", "b=3,4"])
    other = combinations(["b=3,4", "a=1,2"])
    assert {each.digest for each in one} == {each.digest for each in other}


def test_nothing_to_sweep_is_said() -> None:
    with pytest.raises(ConfigError, match="no key has several values"):
        combinations(["experiment=demo", "optim.betas=[0.9,0.95]"])


@pytest.mark.parametrize(
    "text",
    ["outputs/demo-1a2b", "my runs/ü, [1] {x}", "it's", "back\\slash", "ends with \\", "\\'", "a$b=c", "1e3", "no"],
)
def test_a_quoted_override_is_read_back_as_it_was(text: str) -> None:
    assert compose(["experiment=demo", override("run_dir", text)]).run_dir == text
