"""`Progress`: what long work reports to whoever shows it. Knows no terminal."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the stages of long work, one after the other and from one thread at a time."""

    def start(self, stage: str, total: int | None, unit: str) -> None:
        """Begins a stage of `total` units (None: not known before), which ends the one before."""

    def advance(self, amount: int) -> None:
        """Adds `amount` units to the stage."""


class NoProgress:
    """Shows nothing."""

    def start(self, stage: str, total: int | None, unit: str) -> None:
        """Ignores the stage."""

    def advance(self, amount: int) -> None:
        """Ignores the amount."""
