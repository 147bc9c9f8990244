"""Tokenizers of whole words, as files."""

from __future__ import annotations

import json
from pathlib import Path


def write_tokenizer(folder: Path, words: dict[str, int]) -> Path:
    """Writes a `tokenizer.json` whose ids are those of the words; others become the first one."""
    fields = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": next(iter(words))},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    return folder
