"""The demonstration model's folder: a small Llama-style model and its tokenizer, see MODEL_CARD.md.

Knows where the files lie and loads nothing.
"""

from __future__ import annotations

from pathlib import Path


def demo_model_dir() -> Path:
    """Return the folder that `from_pretrained` and `--tokenizer` take."""
    return Path(__file__).resolve().parent


def demo_draft_model_dir() -> Path:
    """Return the folder of a draft model for the demonstration model: a smaller one with its tokenizer."""
    return demo_model_dir() / "draft"
