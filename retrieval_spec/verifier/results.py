"""What the host's `generate` returns, put together from rows that ended at different lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.generation import GenerateDecoderOnlyOutput

from retrieval_spec.verifier.rows import Row


def wants_scores(generation_config: Any) -> bool:
    """Whether scores or logits of every decided token are to be returned."""
    wanted = generation_config.output_scores or generation_config.output_logits
    return bool(generation_config.return_dict_in_generate and wanted)


def result(generation_config: Any, rows: Sequence[Row], cache: Any) -> Any:
    """Returns the token ids, or the host's output object where it is asked for.

    Behind the end of a row stand padding tokens, as in the host's output. The host's scores there are what
    the model says after padding; here they are zeros, since it is not asked.
    """
    sequences = _sequences(generation_config, rows)
    if not generation_config.return_dict_in_generate:
        return sequences
    return GenerateDecoderOnlyOutput(
        sequences=sequences,
        scores=_columns([row.chooser.scores or () for row in rows])
        if generation_config.output_scores
        else None,
        logits=_columns([row.chooser.logits for row in rows]) if generation_config.output_logits else None,
        past_key_values=cache,
    )


def _sequences(generation_config: Any, rows: Sequence[Row]) -> Any:
    if len(rows) == 1:
        # A copy made here is an ordinary tensor, free of the buffer and of inference mode.
        return rows[0].context.ids().clone()
    padding = getattr(generation_config, "_pad_token_tensor", None)
    length = max(row.context.length for row in rows)
    first = rows[0].context.ids()
    sequences = first.new_full((len(rows), length), 0 if padding is None else int(padding))
    for row in rows:
        sequences[row.index, : row.context.length] = row.context.ids()[0]
    return sequences


def _columns(of_rows: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    """Returns float32[rows, vocab_size] for every token, zeros for rows that have ended."""
    longest = max(of_rows, key=len)
    return tuple(
        torch.cat([own[place] if place < len(own) else torch.zeros_like(some) for own in of_rows])
        for place, some in enumerate(longest)
    )
