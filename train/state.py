"""What a run has done so far: small, JSON-able, the same on every rank."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class TrainState:
    step: int = 0
    """Completed optimizer steps, skipped ones included."""
    samples: int = 0
    tokens: int = 0
    targets: int = 0
    skipped: int = 0
    """Steps whose gradients were not finite."""
    source_tokens: dict[str, int] = field(default_factory=dict)
    source_samples: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    """Wall time spent in steps, over all attempts."""
    restarts: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> TrainState:
        return cls(**stored)


def due(step: int, every: int) -> bool:
    """Whether something that happens every ``every`` steps (0: never) happens after ``step`` steps."""
    return every > 0 and step % every == 0
