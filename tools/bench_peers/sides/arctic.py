"""ArcticInference's suffix decoding: a tree of a request's own tokens, and one of all outputs."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
from arctic_inference.suffix_decoding import SuffixDecodingCache

KEEPS = "outputs"


class Arctic:
    """The better match of the two trees, as a path or a tree."""

    def __init__(self, depth: int, rule: dict[str, Any]) -> None:
        self._cache, self._rule, self._request = SuffixDecodingCache(depth), rule, -1

    def held(self, token_ids: list[int]) -> Any:
        """Returns an array."""
        return np.array(token_ids, np.int32)

    def open(self, prompt: Any) -> None:
        """Starts a request."""
        self._request += 1
        self._cache.start_request(self._request, prompt)

    def draft(self, context: Any) -> Any:
        """Speculates."""
        return self._cache.speculate(self._request, context, **self._rule)

    def commit(self, tokens: Any) -> None:
        """Appends to the request's tree and to the common one."""
        self._cache.add_active_response(self._request, tokens)

    def close(self) -> None:
        """Drops the request's tree; the common one keeps the output."""
        self._cache.stop_request(self._request)

    def tree(self, draft: Any) -> tuple[list[int], list[int]]:
        """Returns its columns."""
        return list(draft.token_ids), list(draft.parents)


def make(
    vocab_size: int, max_nodes: int, store: str | None, depth: int, factor: float, use_tree: bool
) -> Arctic:
    """Returns a cache with its own rule for how many tokens a match is worth."""
    rule = {"max_spec_tokens": max_nodes, "max_spec_factor": factor, "use_tree_spec": use_tree}
    return Arctic(depth, rule)


def versions() -> dict[str, str]:
    """Returns what runs here."""
    return {name: version(name) for name in ("arctic-inference", "numpy")}
