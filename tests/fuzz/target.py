"""What is attacked: a whole thing on disk, damage to it, and the code that reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random


@dataclass(frozen=True)
class Target:
    name: str
    make: Callable[[Path], None]
    """Writes a whole one into an empty folder. Targets with the same function share what it wrote."""
    damage: Callable[[Random, Path], str]
    """Damages a copy of it; returns what was done. The same Random gives the same damage."""
    read: Callable[[Path], object]
    """The real entry point. It returns, or raises a CorralError; an AssertionError says that the answer is wrong."""


@dataclass(frozen=True)
class Case:
    """One damage: ``str`` of it runs it again."""

    target: str
    seed: int
    number: int

    def __str__(self) -> str:
        return f"{self.target}:{self.seed}:{self.number}"

    @property
    def chance(self) -> Random:
        return Random(str(self))
