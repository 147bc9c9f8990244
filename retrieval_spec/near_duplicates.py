"""Which documents are nearly those that came before: MinHash signatures, found by bands that agree.

Knows token ids and nothing of corpora or files. Everything is fixed but the threshold: equal documents in
equal order are judged alike on every machine.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.errors import InvalidRequest
from retrieval_spec.kernels.minhash import NONE_FOUND, NUM_HASHES, enter, find_similar, sign

THRESHOLD = 0.8
MIN_THRESHOLD = 0.5
_FOUND_AT_THRESHOLD = 0.999
"""The least probability that documents which are similar to just the threshold agree in a band."""
_FIRST_CAPACITY = 1 << 10
_SEED = 20_408


def check_threshold(threshold: float) -> float:
    """Returns a similarity from which on documents are nearly the same.

    Raises:
        InvalidRequest: it is none that makes sense.
    """
    if not MIN_THRESHOLD <= threshold <= 1.0:  # refuses NaN too
        raise InvalidRequest(
            "the similarity of near-duplicates is out of range",
            got=threshold,
            expected=f"{MIN_THRESHOLD} to 1.0",
        )
    return float(threshold)


class NearDuplicates:
    """The documents that were kept; owned by one thread.

    Two documents are similar by the share of runs of 5 tokens that they have in common (Jaccard). That
    is estimated by 128 hashes, with a standard error of 0.035 at 0.8. A document takes 256 bytes for its
    signature and 8 to 12 for each band: at most 540 at the default threshold, 980 at the lowest one. For a
    moment, while the arrays grow, it takes two thirds more.

    Args:
        threshold: the estimated similarity from which on a document is nearly another one.
    """

    def __init__(self, threshold: float = THRESHOLD) -> None:
        check_threshold(threshold)
        rng = np.random.default_rng(_SEED)
        self._factors = rng.integers(0, 1 << 32, NUM_HASHES, np.uint32) | np.uint32(1)
        self._offsets = rng.integers(0, 1 << 32, NUM_HASHES, np.uint32)
        self._minima = np.empty(NUM_HASHES, np.uint32)
        self._min_equal = math.ceil(threshold * NUM_HASHES - 1e-9)
        self._num_bands, self._num_rows = bands_for(threshold)
        self._signatures = np.empty((_FIRST_CAPACITY, NUM_HASHES), np.uint16)
        self._num_documents = 0
        self._tags, self._slots = self._free_slots()

    def __len__(self) -> int:
        """Returns how many documents were kept."""
        return self._num_documents

    def add(self, token_ids: NDArray[Any]) -> bool:
        """Keeps a document that is not empty, unless it is nearly one of those; returns whether it did."""
        is_new = self._signed(token_ids) == NONE_FOUND
        if is_new:
            self._keep()
        return is_new

    def know(self, token_ids: NDArray[Any]) -> None:
        """Keeps a document, whatever it is like."""
        self._signed(token_ids)
        self._keep()

    def _signed(self, token_ids: NDArray[Any]) -> int:
        """Writes a signature behind those that are kept; returns the document that it is like."""
        if self._num_documents == len(self._signatures):
            self._grow()
        signature = self._signatures[self._num_documents]
        sign(np.asarray(token_ids), self._factors, self._offsets, self._minima, signature)
        return find_similar(
            signature,
            self._signatures,
            self._tags,
            self._slots,
            self._num_bands,
            self._num_rows,
            self._min_equal,
        )

    def _keep(self) -> None:
        self._enter(self._num_documents, self._num_documents + 1)
        self._num_documents += 1

    def _enter(self, first: int, last: int) -> None:
        enter(self._signatures, first, last, self._tags, self._slots, self._num_bands, self._num_rows)

    def _free_slots(self) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
        """Returns slots of which a third stays free when there is no room for more signatures."""
        num_slots = len(self._signatures) * self._num_bands * 3 // 2
        return np.zeros(num_slots, np.uint8), np.empty(num_slots, np.uint32)

    def _grow(self) -> None:
        wider = np.empty((len(self._signatures) * 3 // 2, NUM_HASHES), np.uint16)
        wider[: self._num_documents] = self._signatures
        self._signatures = wider
        self._tags, self._slots = self._free_slots()
        self._enter(0, self._num_documents)


def bands_for(threshold: float) -> tuple[int, int]:
    """Returns how many bands of how many hashes find what is similar to the threshold: the widest that do."""
    for num_rows in range(NUM_HASHES, 1, -1):
        num_bands = NUM_HASHES // num_rows
        if 1 - (1 - threshold**num_rows) ** num_bands >= _FOUND_AT_THRESHOLD:
            return num_bands, num_rows
    return NUM_HASHES, 1
