"""What passes between the last three stages: Render makes a Draft of a record, Encode and Fit make a Sample of it."""

from __future__ import annotations

from dataclasses import dataclass

from data_prep.rows.conversation import Conversation
from data_prep.rows.record import Record
from data_prep.samples.encoded import Encoded
from data_prep.samples.styles import Prompt


@dataclass(frozen=True)
class Draft:
    """A record with the words of its sample chosen; how many of its exemplars fit is still open."""

    record: Record
    prompt: Prompt | None = None
    """None: the record's own words."""

    @property
    def shots(self) -> int:
        """Exemplars it may have at most."""
        return len(self.prompt.exemplars) if self.prompt else 0

    @property
    def variant(self) -> int:
        """Which of its possible forms the record took; 0 where there is only one."""
        return self.prompt.variant if self.prompt else 0

    def conversation(self, shots: int) -> Conversation:
        """The messages with the first ``shots`` exemplars."""
        return self.prompt.conversation(shots) if self.prompt else self.record.conversation


@dataclass(frozen=True)
class Sample:
    """What a record has become."""

    record: Record
    tokens: Encoded
