"""Progress of a run: a bar with loss and time left on a terminal, log lines anywhere else."""

from __future__ import annotations

import sys

from tqdm import tqdm

LOG_EVERY_STEPS = 25


class Report:
    """Shows one run; the loss it shows is a moving average."""

    def __init__(self, done_steps: int, steps: int, step_tokens: int) -> None:
        self._steps = steps
        self._step_tokens = step_tokens
        self._loss: float | None = None
        self._bar = tqdm(
            desc="training",
            unit="step",
            initial=done_steps,
            total=steps,
            disable=not sys.stderr.isatty(),
        )

    def step(self, done_steps: int, loss: float, seconds: float) -> None:
        """Take note of one more step; `seconds` is the time of all `done_steps` together."""
        self._loss = loss if self._loss is None else 0.95 * self._loss + 0.05 * loss
        self._bar.set_postfix(loss=f"{self._loss:.3f}", refresh=False)
        self._bar.update()
        if self._bar.disable and (done_steps % LOG_EVERY_STEPS == 0 or done_steps == self._steps):
            self._log(done_steps, seconds)

    def _log(self, done_steps: int, seconds: float) -> None:
        step_seconds = max(seconds, 1e-9) / done_steps
        left_minutes = step_seconds * (self._steps - done_steps) / 60
        print(
            f"step {done_steps}/{self._steps}  loss {self._loss:.3f}  "
            f"{self._step_tokens / step_seconds:.0f} tokens/s  {left_minutes:.0f} min left",
            flush=True,
        )
