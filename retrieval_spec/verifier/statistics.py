"""What the drafts of some generations did: counts alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Statistics:
    """Counts over generations; whoever made it may read it and set it back between them.

    Attributes:
        steps: forward passes after the prompts', counted once for each sequence that was not finished.
        accepted_tokens: decided tokens that had been drafted.
        drafted_nodes: nodes that went through the target model, roots not counted.
    """

    steps: int = 0
    accepted_tokens: int = 0
    drafted_nodes: int = 0

    @property
    def mean_acceptance_length(self) -> float:
        """1 + accepted drafts per step; plain decoding has 1.0."""
        return 1.0 + self.accepted_tokens / max(self.steps, 1)
