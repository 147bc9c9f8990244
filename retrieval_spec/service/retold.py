"""How much of a prompt was in an earlier one: a chat sends all of itself again with every turn.

What is on disk already need not be written again. Outputs do not count: what a model wrote teaches another
source when it comes back in a prompt. Keeps checksums, no text. Not thread-safe.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from retrieval_spec.tree import Tokens

BLOCK_TOKENS = 64
"""Beginnings are compared in blocks of so many tokens."""
MAX_BLOCKS = 16_384
"""Of one namespace, the newest: as many tokens as its files hold."""
MAX_NAMESPACES = 64
_DIGEST_BYTES = 16

Known = OrderedDict[bytes, None]


class Retold:
    """The beginnings of each namespace's prompts."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Known] = OrderedDict()

    def new_part(self, namespace: str, prompt: Tokens) -> Tokens:
        """Returns a prompt without the beginning that an earlier one had too, and notes all of it.

        A block of that beginning stays, so that what leads over to the rest is there in one piece.
        """
        known = self._of(namespace)
        num_told = 0
        is_told = True
        for end, chain in _chains(prompt):
            is_told = is_told and chain in known
            num_told = end if is_told else num_told
            known[chain] = None
            known.move_to_end(chain)
        while len(known) > MAX_BLOCKS:
            known.popitem(last=False)
        return prompt[max(num_told - BLOCK_TOKENS, 0) :]

    def forget(self, namespace: str) -> None:
        """Takes everything for new again."""
        self._known.pop(namespace, None)

    def _of(self, namespace: str) -> Known:
        known = self._known.setdefault(namespace, OrderedDict())
        self._known.move_to_end(namespace)
        if len(self._known) > MAX_NAMESPACES:
            self._known.popitem(last=False)
        return known


def _chains(tokens: Tokens) -> list[tuple[int, bytes]]:
    """Returns where each block ends, and a checksum of everything up to there."""
    data, chains, chain = tokens.tobytes(), [], b""
    size = BLOCK_TOKENS * tokens.itemsize
    for begin in range(0, len(data) - size + 1, size):
        chain = hashlib.blake2b(chain + data[begin : begin + size], digest_size=_DIGEST_BYTES).digest()
        chains.append(((begin + size) // tokens.itemsize, chain))
    return chains
