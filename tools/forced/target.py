"""Forcing: every pass of a model is computed in full, and then the recorded token wins at its place."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

WINNING_LOGIT = 1e4
"""Above all that random weights say, and exact in every precision."""


class ForcedTarget:
    """A model that writes what was recorded, whoever runs its passes.

    The token that follows place `p` of a row wins wherever the row's pass has a node at `p`, on the recorded
    path or beside it. A node beside it was not what its parent said, so nobody reads what it says. Tokens
    are counted without padding, as the model's positions are.

    Attributes:
        model: to be called as ever.
        num_passes: since `record`.
        prompt_done_s: when the first of them had been computed.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.num_passes = 0
        self.prompt_done_s = 0.0
        self._recorded: Any = None
        model.register_forward_hook(self._force, with_kwargs=True)

    def record(self, rows: Sequence[Sequence[int]], end_id: int) -> None:
        """Takes prompt and output of every row of the next generation; `end_id` follows them."""
        longest = max(map(len, rows))
        table = [[*row, *[end_id] * (longest + 1 - len(row))] for row in rows]
        self._recorded = torch.tensor(table, device=self.model.device)
        self.num_passes = 0

    def release(self) -> None:
        """Lets the model say what it computes."""
        self._recorded = None

    def _force(self, _: Any, __: Any, inputs: dict[str, Any], outputs: Any) -> None:
        if self._recorded is None:
            return
        logits = outputs.logits
        places = inputs["position_ids"][:, -logits.shape[1] :] + 1
        places = places.clamp(max=self._recorded.shape[1] - 1).expand(logits.shape[0], -1)
        logits.scatter_(2, self._recorded.gather(1, places)[..., None], WINNING_LOGIT)
        if self.num_passes == 0:
            wait_for(self.model.device)
            self.prompt_done_s = time.perf_counter()
        self.num_passes += 1


def wait_for(device: Any) -> None:
    """Returns when the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
