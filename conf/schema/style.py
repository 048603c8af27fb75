"""Which rows of its files a source takes, and how it writes them out: FLAN's styles."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.schema.fields import STRICT, Count, Tokens


@dataclass(frozen=True, config=STRICT)
class StyleConfig:
    """How FLAN 2022 writes rows out: a template set, zero-shot or after solved rows of the same task.

    What is drawn for a row (template, exemplars, separator, form of the options) follows from ``data.style_seed``, the
    task and the row's place in its file, so the corpus is the same for any number of processes.
    """

    templates: str | None = None
    """A set of data_prep/template_sets by name, or a .jsonl file of your own. None: question and answer as they are."""
    shots: Count | Literal["varied"] = 0
    """Solved rows of the same task before the question. varied: 1 to 10, about 2.7 on average, as FLAN's x_shot."""
    options: Literal["given", "none", "varied"] = "given"
    """A list of options at the end of the question: as it stands, left out, or in one of 128 forms.

    Left out only where the answer is one of them; rewritten only where they are not lettered already.
    """
    prompt_tokens: Tokens = 1920
    """Longest prompt with exemplars, in tokens; exemplars are left out until it fits (FLAN's FEW_SHOT_MAX_LEN)."""


@dataclass(frozen=True, config=STRICT)
class SelectConfig:
    """Which rows of the files belong to the source. Only those are counted, by ``rows`` too."""

    where: dict[str, str] = Field(default_factory=dict)
    """Field -> value that a row must have, such as template_type: zs_opt."""
    task: str | None = None
    """Field with the name of a row's task. None: the task is the file, named without folder and endings."""
    exclude: str | None = None
    """A list of data_prep/task_lists by name, or a text file of your own: patterns of tasks that are left out."""
