"""What a run has done so far: small, JSON-able, the same on every rank."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Health:
    """What the guard remembers of the last steps (train/guard). Steps count from 1; 0: none."""

    first_loss: float = 0.0
    """Of the first step that had one: of the weights that the run began with."""
    losses: list[float] = field(default_factory=list)
    """Of the last steps that were not bad, at most ``guard.window``."""
    norms: list[float] = field(default_factory=list)
    """Gradient norms of the same steps."""
    latest: list[float] = field(default_factory=list)
    """Losses of the last updates, whatever they were."""
    incident: int = 0
    """The first bad step of the incident that is open."""
    last_bad: int = 0
    """The last bad step of the incident."""
    bad: int = 0
    """Bad steps of the incident."""
    refused: list[int] = field(default_factory=list)
    """Steps without an update among the last ``guard.window``, since the last rollback."""
    withheld: bool = False
    """Whether checkpoints wait: an update of the open incident was refused."""
    returned: bool = False
    """Whether the run went back in the open incident."""


@dataclass
class TrainState:
    step: int = 0
    """Completed optimizer steps, skipped ones included."""
    samples: int = 0
    tokens: int = 0
    targets: int = 0
    skipped: int = 0
    """Steps without an update: their gradients were not finite, or the guard refused it."""
    spikes: int = 0
    """Steps whose loss or gradient norm was one."""
    rollbacks: int = 0
    undone: int = 0
    """Updates that rollbacks undid."""
    source_tokens: dict[str, int] = field(default_factory=dict)
    source_samples: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    """Wall time spent in steps, over all attempts."""
    restarts: int = 0
    health: Health = field(default_factory=Health)

    def load(self, stored: dict[str, Any]) -> None:
        """Take over what ``to_dict`` gave; what an older release did not count keeps its value."""
        for key, value in stored.items():
            setattr(self, key, Health(**value) if key == "health" else value)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def due(step: int, every: int) -> bool:
    """Whether something that happens every ``every`` steps (0: never) happens after ``step`` steps."""
    return every > 0 and step % every == 0
