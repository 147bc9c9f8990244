"""Progress that a test can look at, or that ends a build."""

from __future__ import annotations


class ToldProgress:
    """Keeps what it was told: stage, total, unit and what was done of every stage."""

    def __init__(self) -> None:
        self.stages: list[list] = []

    def start(self, stage, total, unit):
        self.stages.append([stage, total, unit, 0])

    def advance(self, amount):
        self.stages[-1][3] += amount

    def is_complete(self) -> bool:
        """Whether something was to do in every stage, and all was done."""
        return all(total == done > 0 for _, total, _, done in self.stages)


class InterruptedProgress:
    """Interrupts a stage as soon as it gets on."""

    def __init__(self, stage: str) -> None:
        self.stage = stage

    def start(self, stage, total, unit):
        self.is_now = stage == self.stage

    def advance(self, amount):
        if self.is_now:
            raise KeyboardInterrupt
