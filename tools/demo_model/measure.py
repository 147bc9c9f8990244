"""Held-out perplexity and sample text of a model; changes nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from demo_model.training import mean_loss

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

WINDOW_TOKENS = 1024
SAMPLE_WINDOWS = 8
SAMPLE_TOKENS = 96
PROMPT = "class Queue:\n    def __init__(self"


@dataclass(frozen=True)
class HeldOut:
    """Likelihood of held-out text in windows that do not overlap."""

    tokens: int
    nats_per_token: float

    @property
    def perplexity(self) -> float:
        """Perplexity per token."""
        return math.exp(self.nats_per_token)


@dataclass(frozen=True)
class Measured:
    """Everything the card says about how good the model is."""

    whole: HeldOut
    sample: HeldOut
    stream_tokens: int
    greedy: str
    drawn: str


def measure(model: LlamaForCausalLM, tokenizer: Tokenizer, stream: npt.NDArray[np.int64]) -> Measured:
    """Score the held-out token stream and write two samples.

    Args:
        model: In evaluation mode, with the weights that are shipped.
        tokenizer: The model's tokenizer.
        stream: int64[n]  held-out tokens, one end-of-text token before each document.
    """
    return Measured(
        whole=held_out(model, stream, windows=len(stream)),
        sample=held_out(model, stream, windows=SAMPLE_WINDOWS),
        stream_tokens=len(stream),
        greedy=continuation(model, tokenizer, temperature=0.0),
        drawn=continuation(model, tokenizer, temperature=0.8),
    )


@torch.no_grad()
def held_out(model: LlamaForCausalLM, stream: npt.NDArray[np.int64], windows: int) -> HeldOut:
    """Score the first `windows` windows, each from an empty context.

    A window's first token is given, all others and the one after the window are predicted; a
    stream shorter than a window is one window.
    """
    length = min(WINDOW_TOKENS, len(stream) - 1)
    count = min(windows, (len(stream) - 1) // length)
    rows = [stream[i * length : (i + 1) * length + 1] for i in range(count)]
    losses = [mean_loss(model, torch.from_numpy(row)[None]).item() for row in rows]
    return HeldOut(tokens=count * length, nats_per_token=sum(losses) / count)


@torch.no_grad()
def continuation(model: LlamaForCausalLM, tokenizer: Tokenizer, temperature: float) -> str:
    """Continue `PROMPT`; temperature 0 is greedy, any other draws with a fixed seed."""
    ids = torch.tensor([tokenizer.encode(PROMPT).ids])
    torch.manual_seed(0)
    draw = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=SAMPLE_TOKENS, **draw)
    return tokenizer.decode(output[0].tolist())
