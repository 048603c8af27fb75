"""When and how checkpoints are written: words, numbers, and what older configs said."""

from __future__ import annotations

from typing import Any

import pytest

from conf.errors import ConfigError
from conf.judge import validate
from tests.conf.test_schema import RAW, changed


def test_background_saves_of_older_configs_were_true_or_false() -> None:
    assert validate(RAW).checkpoint.background == "auto"
    for value, word in ((True, "always"), (False, "never"), ("never", "never")):
        assert validate(changed({"checkpoint.background": value})).checkpoint.background == word


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("background", 1),
        ("background", "sometimes"),
        ("every_steps", -1),
        ("every_steps", True),
        ("every_minutes", -0.5),
    ],
)
def test_other_values_are_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"checkpoint\.{key}"):
        validate(changed({f"checkpoint.{key}": value}))


def test_steps_may_be_auto_and_minutes_a_fraction() -> None:
    found = validate(changed({"checkpoint.every_steps": "auto", "checkpoint.every_minutes": 0.5})).checkpoint
    assert (found.every_steps, found.every_minutes) == ("auto", 0.5)
