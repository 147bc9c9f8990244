"""MinHash signatures of documents, and a table that finds documents whose signatures agree in a band.

A shingle is `SHINGLE_TOKENS` tokens in a row; a shorter document is one shingle. Each of `NUM_HASHES` hash
functions keeps its smallest value over all shingles of a document: two documents agree in a share of them
that estimates the Jaccard similarity of their sets of shingles.
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.context_sort import Column
from retrieval_spec.kernels.jit import inlined_kernel, kernel

SHINGLE_TOKENS = 5
NUM_HASHES = 128
MAX_ALIKE = 64
"""So many documents with one band are known and compared; of pages from one template there are thousands."""
NONE_FOUND = -1
_FREE = 0

_BASE = np.uint64(0x9E3779B97F4A7C15)
_LEAVING = np.uint64(pow(int(_BASE), SHINGLE_TOKENS, 1 << 64))
_ONE = np.uint64(1)


@inlined_kernel
def mixed(number):
    """Returns a number whose every bit depends on all bits of another one (the finaliser of SplitMix64)."""
    number = np.uint64(number)
    number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return number ^ (number >> np.uint64(31))


@kernel
def sign(tokens: Column, factors: Column, offsets: Column, minima: Column, signature: Column) -> None:
    """Writes the signature of a document.

    Args:
        tokens: uint16[n] or int32[n]  its ids, none of them negative; n > 0.
        factors: uint32[NUM_HASHES]  odd.
        offsets: uint32[NUM_HASHES]
        minima: uint32[NUM_HASHES]  scratch memory.
        signature: uint16[NUM_HASHES]  written: the lower halves of the smallest values.
    """
    minima[:] = np.uint32(0xFFFFFFFF)
    rolling = np.uint64(0)
    num_tokens = tokens.shape[0]
    for at in range(num_tokens):
        # Plus one, so that a document of zeros depends on its length.
        rolling = rolling * _BASE + (np.uint64(tokens[at]) + _ONE)
        if at >= SHINGLE_TOKENS:
            rolling -= (np.uint64(tokens[at - SHINGLE_TOKENS]) + _ONE) * _LEAVING
        if at >= SHINGLE_TOKENS - 1 or at == num_tokens - 1:
            shingle = np.uint32(mixed(rolling) >> np.uint64(32))
            for i in range(NUM_HASHES):
                minima[i] = min(minima[i], np.uint32(shingle * factors[i] + offsets[i]))
    for i in range(NUM_HASHES):
        signature[i] = np.uint16(minima[i] & np.uint32(0xFFFF))


@inlined_kernel
def key_of(signature, band, num_rows):
    """Returns a number that stands for a band of a signature."""
    key = np.uint64(band + 1)
    for row in range(band * num_rows, (band + 1) * num_rows):
        key = mixed(key * _BASE + np.uint64(signature[row]))
    return key


@inlined_kernel
def home_of(key, num_slots):
    """Returns the slot where the search for a band begins."""
    return np.int64(((key >> np.uint64(32)) * np.uint64(num_slots)) >> np.uint64(32))


@inlined_kernel
def tag_of(key):
    """Returns what a slot says of its band at once: 1 to 255, the other 254 of 255 are passed by."""
    return np.uint8(key % np.uint64(255) + _ONE)


@inlined_kernel
def same_band(one, other, band, num_rows):
    """Says whether two signatures agree in a band."""
    is_same = True
    for row in range(band * num_rows, (band + 1) * num_rows):
        is_same &= one[row] == other[row]
    return is_same


@inlined_kernel
def num_equal(one, other):
    """Returns in how many hashes two signatures agree."""
    count = 0
    for i in range(NUM_HASHES):
        count += one[i] == other[i]
    return count


@kernel
def find_similar(
    signature: Column,
    signatures: Column,
    tags: Column,
    documents: Column,
    num_bands: int,
    num_rows: int,
    min_equal: int,
) -> int:
    """Returns a document that agrees in `min_equal` hashes, or `NONE_FOUND`.

    Args:
        signature: uint16[NUM_HASHES]  the one that is looked for.
        signatures: uint16[d, NUM_HASHES]  those of known documents.
        tags: uint8[s]  0 for a slot that is free, at least one is; filled by `enter`.
        documents: uint32[s]  the document in each slot.
        num_bands: of a signature.
        num_rows: hashes in a band; bands * rows is at most NUM_HASHES.
        min_equal: hashes that must agree.
    """
    for band in range(num_bands):
        key = key_of(signature, band, num_rows)
        tag, slot = tag_of(key), home_of(key, tags.shape[0])
        while tags[slot] != _FREE:
            if tags[slot] == tag:
                other = signatures[documents[slot]]
                if same_band(signature, other, band, num_rows) and num_equal(signature, other) >= min_equal:
                    return np.int64(documents[slot])
            slot = slot + 1 if slot + 1 < tags.shape[0] else 0
    return NONE_FOUND


@kernel
def enter(
    signatures: Column,
    first: int,
    last: int,
    tags: Column,
    documents: Column,
    num_bands: int,
    num_rows: int,
) -> None:
    """Enters documents by all their bands, but those by which many others stand there already.

    Args:
        signatures: uint16[d, NUM_HASHES]
        first: the first document to enter.
        last: the document to stop before.
        tags: uint8[s]  changed; free ones must be more than the bands that are entered.
        documents: uint32[s]  changed.
        num_bands: of a signature.
        num_rows: hashes in a band.
    """
    for document in range(first, last):
        for band in range(num_bands):
            key = key_of(signatures[document], band, num_rows)
            tag, slot = tag_of(key), home_of(key, tags.shape[0])
            num_alike = 0
            while tags[slot] != _FREE and num_alike < MAX_ALIKE:
                if tags[slot] == tag:
                    num_alike += same_band(signatures[document], signatures[documents[slot]], band, num_rows)
                slot = slot + 1 if slot + 1 < tags.shape[0] else 0
            if num_alike < MAX_ALIKE:
                tags[slot] = tag
                documents[slot] = document
