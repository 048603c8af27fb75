"""docs/data_engine.md names, for every invariant, the tests that hold it: they are there under these names."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
NAMES = re.compile(r"`(tests/[\w/]+/test_\w+\.py)`|`(test_\w+)`")


def test_every_invariant_has_tests_that_exist() -> None:
    lines = (ROOT / "docs" / "data_engine.md").read_text().splitlines()
    invariants = {line.split("|")[1].strip(): line for line in lines if re.match(r"\| I\d+ \|", line)}
    assert list(invariants) == [f"I{number}" for number in range(1, 17)]
    for invariant, line in invariants.items():
        content, files = "", 0
        for file, test in NAMES.findall(line):
            if file:
                path = ROOT / file
                content, files = path.read_text(), files + 1
            else:
                assert f"def {test}(" in content, f"{invariant}: {test}"
        assert files, f"{invariant} names no test file"
