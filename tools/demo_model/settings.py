"""Every number that decides which weights come out; nothing here reads a file or a clock."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

MAX_POSITIONS_TOKENS = 2048


@dataclass(frozen=True)
class Settings:
    """One training run; two runs with equal settings on one corpus give equal weights."""

    steps: int = 860
    batch_windows: int = 4
    window_tokens: int = 1024
    vocabulary: int = 4096
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    key_value_heads: int = 2
    feed_forward: int = 704
    matrix_rate: float = 0.02
    embedding_rate: float = 0.004
    warmup_steps: int = 40
    decay_fraction: float = 0.3
    seed: int = 0
    threads: int = 2
    compile: bool = False

    @property
    def step_tokens(self) -> int:
        """Tokens that one optimiser step sees."""
        return self.batch_windows * self.window_tokens

    @property
    def decay_start(self) -> int:
        """First step of the linear decay; up to here the rates do not depend on when it comes."""
        return self.steps - max(1, round(self.steps * self.decay_fraction))

    def rate_factor(self, step: int) -> float:
        """Warm up, hold, then fall linearly towards zero at `steps`."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        left = min(1.0, (self.steps - step) / (self.steps - self.decay_start))
        return warm * left

    def problem(self) -> str | None:
        """What makes these settings unusable, or None."""
        positive = ("steps", "batch_windows", "window_tokens", "layers", "threads", "warmup_steps")
        for name in positive:
            if getattr(self, name) < 1:
                return f"{name} is {getattr(self, name)}; expected 1 or more"
        if self.window_tokens > MAX_POSITIONS_TOKENS:
            return f"window_tokens is {self.window_tokens}; expected {MAX_POSITIONS_TOKENS} at most"
        if self.hidden % self.heads or self.heads % self.key_value_heads:
            return "hidden must be a multiple of heads, and heads of key_value_heads"
        if self.vocabulary < 300:
            return f"vocabulary is {self.vocabulary}; expected 300 or more (256 bytes and merges)"
        return None

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree on; when the decay comes may differ until it has begun."""
        fields = asdict(self)
        del fields["steps"], fields["decay_fraction"]
        return fields
