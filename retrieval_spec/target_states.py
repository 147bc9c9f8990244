"""The target model's hidden states: which model they are of, and reading them off where they are made.

A state is what the output embedding multiplies: the last layer's, after the final norm. The one of a token
decides the next token. Knows torch models as they are passed in; imports torch when it is needed.
"""

from __future__ import annotations

import hashlib
from typing import Any

from retrieval_spec.errors import UnsupportedModel

_SAMPLES = 64
"""Weights of each parameter that the fingerprint reads."""


def model_fingerprint(model: Any) -> str:
    """Returns `sha256:` and 64 hexadecimal digits that tell models with different weights apart.

    Reads names, shapes and some weights of every parameter, rounded to bfloat16: the same weights loaded
    in another precision or on another device give the same fingerprint, a fine-tuned model gives another.
    """
    import torch

    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name}{list(parameter.shape)}\n".encode())
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(flat.shape[0] // _SAMPLES, 1)][:_SAMPLES]
        digest.update(sample.to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


class StateTap:
    """Keeps the hidden states of a model's newest forward pass; costs the pass nothing.

    Attributes:
        states: float[batch, n, h]  one state for each row of logits; None before the first pass.

    Raises:
        UnsupportedModel: the model has no output embedding to listen at.
    """

    def __init__(self, model: Any) -> None:
        head = model.get_output_embeddings()
        if head is None:
            raise UnsupportedModel("the target model has no output embedding", got=type(model).__name__)
        self.states: Any = None
        self._handle = head.register_forward_pre_hook(self._keep)

    def close(self) -> None:
        """Stops listening."""
        self._handle.remove()

    def _keep(self, module: Any, inputs: tuple[Any, ...]) -> None:
        self.states = inputs[0]


def body_of(model: Any) -> Any:
    """Returns the part of a causal model that ends in the hidden states: no logits are computed.

    Raises:
        UnsupportedModel: the model is not made of a body and an output embedding.
    """
    body = model.get_decoder() if hasattr(model, "get_decoder") else None
    if body is None or body is model:
        raise UnsupportedModel("the target model's body cannot be told from its output embedding")
    return body
