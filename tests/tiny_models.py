"""Tiny random-weight models of several architectures: the worst case for equality, since gaps are small."""

from __future__ import annotations

import functools
import os
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import transformers

torch.set_num_threads(1)

VOCAB_SIZE = 311
ARCHITECTURES = ("Llama", "Qwen2", "Qwen3", "Mistral")


@functools.cache
def tiny_model(
    architecture: str = "Llama", dtype: str = "float32", attention: str = "sdpa", **changes: Any
) -> Any:
    """Returns the model whose weights follow from the architecture and the changes alone."""
    settings: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "eos_token_id": None,
        "bos_token_id": None,
        "pad_token_id": None,
    }
    settings.update({name: list(value) if type(value) is tuple else value for name, value in changes.items()})
    torch.manual_seed(20_26)
    config_class = getattr(transformers, f"{architecture}TextConfig", None)  # of those that also see
    config_class = config_class or getattr(transformers, f"{architecture}Config")
    config = config_class(**settings, attn_implementation=attention)
    model = getattr(transformers, f"{architecture}ForCausalLM")(config)
    model.generation_config.pad_token_id = 0
    return model.to(getattr(torch, dtype)).eval()
