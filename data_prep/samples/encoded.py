"""The token form of a sample: the one type that the stages behind the tokenizer hand on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Encoded:
    """A sample as tokens."""

    ids: list[int]
    """Token ids [tokens]."""
    mask: list[int]
    """1 for a token that is a target, 0 for any other [tokens]."""
    variant: int = 0
    """Which of its possible forms the record took (data_prep/samples/styles.py); 0 where there is only one."""

    weights: list[float] | None = None
    """How much each token counts, 0 where it is no target [tokens]; None: 1 per target."""

    def cut(self, tokens: int) -> Encoded:
        """The first ``tokens`` tokens."""
        weights = None if self.weights is None else self.weights[:tokens]
        return Encoded(self.ids[:tokens], self.mask[:tokens], self.variant, weights)
