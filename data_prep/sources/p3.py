"""P3, the prompted sets of T0: rows whose template is applied already.

Three spellings are in use: ``prompt``/``completion`` (T0 training files, which end a completion with GPT-2's
end-of-text mark), ``inputs_pretokenized``/``targets_pretokenized`` (bigscience/P3, beside lists of token ids) and
``inputs``/``targets`` (SeqIO and the FLAN submixes).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_prep.rows.conversation import Conversation, Message, Rejected, text_field, turn_weight
from data_prep.rows.turns import WEIGHTS

TEMPLATE = "plain"
TURNS = "one"
SPELLINGS = (("prompt", "completion"), ("inputs_pretokenized", "targets_pretokenized"), ("inputs", "targets"))
KEYS = frozenset({*(key for pair in SPELLINGS for key in pair), *WEIGHTS})
END_MARK = "<|endoftext|>"


def read(row: Mapping[str, Any]) -> Conversation:
    """One prompt and one answer. The answer loses its end mark and the white space around it: the template adds EOS."""
    question, target = next((pair for pair in SPELLINGS if row.get(pair[0]) is not None), (None, None))
    if question is None or target is None:
        known = ", ".join("/".join(pair) for pair in SPELLINGS)
        raise Rejected("missing_field", f"none of {known} among {', '.join(sorted(map(str, row))) or 'no fields'}")
    answer = text_field(row, target).rstrip().removesuffix(END_MARK).strip()
    return Conversation(
        (Message("user", text_field(row, question)), Message("assistant", answer, weight=turn_weight(row)))
    )
