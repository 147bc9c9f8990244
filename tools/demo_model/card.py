"""The text of MODEL_CARD.md; computes nothing but figures from what was measured."""

from __future__ import annotations

import math
import os
import platform
from typing import TYPE_CHECKING

import torch

from demo_model.corpus import Corpus, text_bytes, text_sha256
from demo_model.measure import SAMPLE_TOKENS, SAMPLE_WINDOWS, WINDOW_TOKENS, HeldOut, Measured
from demo_model.settings import MAX_POSITIONS_TOKENS, Settings

if TYPE_CHECKING:
    from demo_model.training import Trainer

CARD_NAME = "MODEL_CARD.md"

TEMPLATE = """\
# Demonstration model

A small Llama-style language model and its byte-level BPE tokenizer, trained from scratch on the
sources of Python's standard library. The demo and the end-to-end tests of retrieval-spec run on it.

**Limits.** It is a demonstration model: it writes text that looks like Python and is not useful for
writing code. It was trained on windows of {window_tokens} tokens; longer contexts are accepted up
to {max_positions} and get worse. It knows the standard library's style and nothing else, and repeats
passages of it, so what it writes falls under the licence below. Its greedy output soon falls into
loops, which any drafter predicts well: judge drafting speed by other models or drawn text.

## Model

| | |
|---|---|
| architecture | `LlamaForCausalLM`: {layers} layers, hidden size {hidden}, {heads} heads, \
{key_value_heads} key-value heads, feed-forward {feed_forward}, tied embeddings, RoPE |
| parameters | {parameters:,} |
| stored as | float16 safetensors; loads and runs in float32 |
| vocabulary | {vocabulary:,} tokens (byte-level BPE, a run of spaces is one piece, digits alone) |
| special token | `<\\|endoftext\\|>` (id 0): begins each document and ends generation |
| positions | {max_positions:,} |

## Text

| | |
|---|---|
| corpus | {corpus}: `*.py` without tests, generated character tables and installed packages |
| licence | {licence} |
| training files | {training_files} |
| training bytes | {training_bytes:,} |
| training tokens | {training_tokens:,} |
| training text SHA-256 | `{training_sha256}` |
| held-out files | {held_out_files} (`held_out.txt`; chosen by a hash of the name, never trained on) |
| held-out bytes | {held_out_bytes:,} |
| held-out text SHA-256 | `{held_out_sha256}` |

A text's SHA-256 is taken over the UTF-8 text of its files sorted by name, each followed by a zero
byte.

## Held-out likelihood

Windows of {measured_window} tokens that do not overlap, each read from an empty context, with the
weights as stored.

| | tokens | nats per token | perplexity per token |
|---|---|---|---|
| all held-out text | {whole.tokens:,} | {whole.nats_per_token:.5f} | {whole.perplexity:.3f} |
| its first {sample_windows} windows | {sample.tokens:,} | {sample.nats_per_token:.5f} | \
{sample.perplexity:.3f} |

That is {bits_per_byte:.3f} bits per byte.

## Training

| | |
|---|---|
| command | `{command}` |
| tokens seen | {tokens_seen:,} ({steps:,} steps of {step_tokens:,}; {epochs:.1f} times the text) |
| rates | Muon {matrix_rate:g} for matrices, AdamW {embedding_rate:g} for embeddings and norms; \
{warmup_steps} steps of warm-up, constant, then {decay_percent} % of the steps linearly to zero |
| wall time | {minutes:.0f} minutes, other work on the machine and pauses included |
| machine | {cores} {machine} CPU cores ({capability}), {threads} torch threads, no accelerator |
| software | Python {python}, torch {torch} |

The same command on the same text and software gives the same weights, whether or not it was
interrupted (the tests check this without `--compile`); another number of threads or kind of CPU
gives other roundings.

## What it writes

The prompt is `class Queue:` with a next line `def __init__(self`; {sample_tokens} tokens follow it.
Greedy:

```python
{greedy}
```

Drawn at temperature 0.8:

```python
{drawn}
```
"""


def render(trainer: Trainer, corpus: Corpus, measured: Measured, command: str) -> str:
    """Fill the card."""
    return TEMPLATE.format(
        **model_values(trainer),
        **corpus_values(corpus),
        **training_values(trainer),
        whole=measured.whole,
        sample=measured.sample,
        measured_window=WINDOW_TOKENS,
        sample_windows=SAMPLE_WINDOWS,
        sample_tokens=SAMPLE_TOKENS,
        bits_per_byte=bits_per_byte(measured.whole, measured.stream_tokens, corpus),
        greedy=measured.greedy.rstrip(),
        drawn=measured.drawn.rstrip(),
        command=command,
    )


def bits_per_byte(whole: HeldOut, stream_tokens: int, corpus: Corpus) -> float:
    """Bits of the average token over the bytes of the average token."""
    return whole.nats_per_token / math.log(2) * stream_tokens / text_bytes(corpus.held_out)


def model_values(trainer: Trainer) -> dict[str, object]:
    """Figures of the model's shape."""
    settings: Settings = trainer.settings
    names = ("layers", "hidden", "heads", "key_value_heads", "feed_forward", "vocabulary")
    return {
        **{name: getattr(settings, name) for name in names},
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "max_positions": MAX_POSITIONS_TOKENS,
    }


def corpus_values(corpus: Corpus) -> dict[str, object]:
    """Figures of the text."""
    return {
        "corpus": corpus.title,
        "licence": corpus.licence,
        "training_files": len(corpus.training),
        "training_bytes": text_bytes(corpus.training),
        "training_sha256": text_sha256(corpus.training),
        "held_out_files": len(corpus.held_out),
        "held_out_bytes": text_bytes(corpus.held_out),
        "held_out_sha256": text_sha256(corpus.held_out),
    }


def training_values(trainer: Trainer) -> dict[str, object]:
    """Figures of the run."""
    settings: Settings = trainer.settings
    seen = settings.steps * settings.step_tokens
    return {
        "tokens_seen": seen,
        "steps": settings.steps,
        "step_tokens": settings.step_tokens,
        "window_tokens": settings.window_tokens,
        "epochs": seen / trainer.stream_tokens,
        "training_tokens": trainer.stream_tokens,
        "matrix_rate": settings.matrix_rate,
        "embedding_rate": settings.embedding_rate,
        "warmup_steps": settings.warmup_steps,
        "decay_percent": round(100 * settings.decay_fraction),
        "minutes": trainer.progress.seconds / 60,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": settings.threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
