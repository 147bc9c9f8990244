"""The training loop: a function of settings and tokens, stopped and resumed at any step."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from demo_model.optimiser import optimisers
from demo_model.report import Report
from demo_model.settings import MAX_POSITIONS_TOKENS, Settings
from demo_model.tokens import END_OF_TEXT_ID, Windows

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CHECKPOINT_NAME = "checkpoint.pt"


class TrainingError(Exception):
    """The run cannot start or go on; the message says what to do."""


@dataclass
class Progress:
    """How far a run has come; seconds include pauses of the process."""

    step: int = 0
    seconds: float = 0.0


def new_model(settings: Settings) -> LlamaForCausalLM:
    """Make a randomly initialised model; the seed decides its weights."""
    torch.manual_seed(settings.seed)
    config = LlamaConfig(
        vocab_size=settings.vocabulary,
        hidden_size=settings.hidden,
        intermediate_size=settings.feed_forward,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.key_value_heads,
        max_position_embeddings=MAX_POSITIONS_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=END_OF_TEXT_ID,
        eos_token_id=END_OF_TEXT_ID,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


def mean_loss(model: LlamaForCausalLM, windows: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of the tokens of int64[rows, n + 1] after the first column."""
    hidden = model.model(input_ids=windows[:, :-1], use_cache=False).last_hidden_state
    logits = model.lm_head(hidden)
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


class Trainer:
    """Owns one model and its optimisers; not safe for use from several threads."""

    def __init__(
        self, settings: Settings, stream: npt.NDArray[np.int64], corpus_sha256: str, folder: Path
    ) -> None:
        torch.set_num_threads(settings.threads)
        torch.use_deterministic_algorithms(True)
        self.settings = settings
        self.model = new_model(settings)
        self.progress = Progress()
        self.stream_tokens = len(stream)
        self._optimisers = optimisers(self.model, settings.matrix_rate, settings.embedding_rate)
        self._windows = Windows(stream, settings.window_tokens, settings.seed)
        self._identity = {**settings.identity(), "corpus_sha256": corpus_sha256}
        self._path = folder / CHECKPOINT_NAME
        if self._windows.count < 1:
            raise TrainingError(
                f"the corpus has {len(stream)} tokens; expected {2 * settings.window_tokens + 1} "
                "or more: choose a smaller --window-tokens or a larger corpus"
            )

    def resume(self) -> bool:
        """Take up the checkpoint in the folder, if there is one that fits these settings."""
        if not self._path.exists():
            return False
        state = torch.load(self._path, weights_only=True)
        self._check_identity(state)
        self.model.load_state_dict(state["model"])
        for optimiser, saved in zip(self._optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.progress = Progress(state["step"], state["seconds"])
        return True

    def _check_identity(self, state: dict[str, Any]) -> None:
        for name, expected in self._identity.items():
            if state["identity"].get(name) != expected:
                raise TrainingError(
                    f"checkpoint {self._path} was made with {name} = "
                    f"{state['identity'].get(name)!r}, this run has {expected!r}: "
                    "use the same settings or another --work folder"
                )
        schedule = [self.settings.steps, self.settings.decay_start]
        begun = min(state["decay_start"], self.settings.decay_start)
        if schedule != [state["steps"], state["decay_start"]] and state["step"] > begun:
            raise TrainingError(
                f"checkpoint {self._path} stands at step {state['step']}, past the start of the "
                f"decay (step {begun}): --steps and --decay-fraction can no longer change"
            )

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        state = {
            "identity": self._identity,
            "steps": self.settings.steps,
            "decay_start": self.settings.decay_start,
            "step": self.progress.step,
            "seconds": self.progress.seconds,
            "model": self.model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self._optimisers],
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self._path, lambda file: torch.save(state, file))

    def run(self, save_every_steps: int) -> None:
        """Train from the current step to the last one, saving now and then and at the end."""
        loss_of = torch.compile(mean_loss) if self.settings.compile else mean_loss
        self.model.train()
        report = Report(self.progress.step, self.settings.steps, self.settings.step_tokens)
        for step in range(self.progress.step, self.settings.steps):
            started = time.monotonic()
            loss = self._step(step, loss_of)
            self.progress.step = step + 1
            self.progress.seconds += time.monotonic() - started
            report.step(step + 1, loss, self.progress.seconds)
            if self.progress.step % save_every_steps == 0 or step + 1 == self.settings.steps:
                self.save()

    def _step(self, step: int, loss_of: Callable[..., torch.Tensor]) -> float:
        factor = self.settings.rate_factor(step)
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = factor * optimiser.defaults["lr"]
        windows = torch.from_numpy(self._windows.batch(step, self.settings.batch_windows))
        loss = loss_of(self.model, windows)
        loss.backward()
        for optimiser in self._optimisers:
            optimiser.step()
            optimiser.zero_grad()
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(f"the loss became {value} at step {step}: lower the rates")
        return value


def replace_file(path: Path, write: Callable[[Any], None]) -> None:
    """Write beside `path`, sync, rename: a crash leaves the old file or the new one."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
