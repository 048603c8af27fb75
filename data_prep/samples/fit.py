"""Last stage: the length policy, for samples that are longer than a packed row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from data_prep.rows.conversation import Rejected
from data_prep.rows.stage import Counts, Part
from data_prep.samples.draft import Sample


@dataclass(frozen=True)
class Fit:
    """At most ``seq_len`` tokens. Rejects over_length, and no_supervised_token where the cut would leave no target."""

    seq_len: int
    over_length: Literal["drop", "truncate_right"]

    def __call__(self, sample: Sample, counts: Counts) -> Sample:
        """A cut answer gets no EOS: it would teach the model to stop in mid-sentence."""
        tokens, length = sample.tokens, len(sample.tokens.ids)
        if length <= self.seq_len:
            return sample
        if self.over_length == "drop":
            raise Rejected("over_length", f"{length} tokens, data.seq_len is {self.seq_len}")
        # The first token has no predecessor that could predict it.
        if not any(tokens.mask[1 : self.seq_len]):
            raise Rejected("no_supervised_token", f"none among the first {self.seq_len} of {length} tokens")
        counts.truncated += 1
        return replace(sample, tokens=tokens.cut(self.seq_len))

    def identity(self) -> Part:
        return {"data": {"seq_len": self.seq_len, "over_length": self.over_length}}
