"""Models of published shapes with random weights: what they compute is noise, what it costs is not."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import transformers


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a decoder.

    Attributes:
        architecture: of transformers, `Llama` or `Qwen2`.
        is_tied: whether the head shares the embedding's weights.
    """

    architecture: str
    hidden: int
    layers: int
    feed_forward: int
    heads: int
    key_value_heads: int
    is_tied: bool = True


SHAPES = {
    "tiny": Shape("Llama", 32, 2, 64, 4, 2),
    "llama-0.1b": Shape("Llama", 512, 8, 1_408, 8, 2),
    "llama-0.2b": Shape("Llama", 576, 30, 1_536, 9, 3),
    "qwen2-0.5b": Shape("Qwen2", 896, 24, 4_864, 14, 2),
    "llama-1b": Shape("Llama", 2_048, 16, 8_192, 32, 8),
    "llama-8b": Shape("Llama", 4_096, 32, 14_336, 32, 8, is_tied=False),
}
"""0.1b is made up; 0.2b has the layers of SmolLM2-135M, the others those of their namesakes."""


def random_model(shape: Shape, vocab_size: int, dtype: str, device: str, max_tokens: int) -> Any:
    """Returns the model, made where it will run.

    Args:
        shape: its layers.
        vocab_size: of the traces; the head is computed over all of it.
        dtype: of torch, `float32` or `bfloat16`.
        device: of torch.
        max_tokens: prompt and output together.
    """
    config = getattr(transformers, f"{shape.architecture}Config")(
        vocab_size=vocab_size,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        intermediate_size=shape.feed_forward,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        tie_word_embeddings=shape.is_tied,
        max_position_embeddings=max_tokens,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    options = {"dtype": getattr(torch, dtype), "attn_implementation": "sdpa"}
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, **options).eval()
    model.generation_config.pad_token_id = 0
    return model


def num_parameters(model: Any) -> int:
    """Returns how many weights a pass reads: shared ones count once."""
    return sum(weights.numel() for weights in model.parameters())


def best_num_threads(model: Any) -> tuple[int, dict[int, float]]:
    """Returns the number of threads with which a plain step is fastest, and its milliseconds by threads."""
    from retrieval_spec.verifier.costs import measure_step_costs

    cores = os.cpu_count() or 1
    found = {}
    for threads in sorted({min(1 << power, cores) for power in range(cores.bit_length() + 1)}):
        torch.set_num_threads(threads)
        found[threads] = measure_step_costs(model, [0], context_tokens=64, rounds=12).costs[0]
    return min(found, key=lambda threads: found[threads]), found
