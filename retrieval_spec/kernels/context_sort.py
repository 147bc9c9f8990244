"""Sorts corpus positions by their reversed left contexts: bucketed by the last token, then multikey.

The order is by context alone and then by position, so it is the same whatever threads did the work.
A sorting step packs as many tokens as fit above the element's index into one int64, sorts those
stably, and goes that many tokens deeper where they tie; no input makes it worse than
`depth_tokens` steps a position.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.kernels.jit import kernel

Column = NDArray[Any]

KEY_BITS = 63
DIGIT_BITS = 8
NUM_DIGITS = 1 << DIGIT_BITS
SMALL_GROUP = 12
"""Groups up to this size are sorted by comparing contexts in place: cheaper than another round of keys."""
SMALL_KEYS = 96
"""Up to this many keys an insertion sort beats counting digits."""


@kernel
def id_range(tokens: Column, separator: int) -> tuple[int, int]:
    """Returns the smallest and the largest token id that is not the separator: (0, -1) if there is none."""
    smallest = np.int64(0)
    largest = np.int64(-1)
    for i in range(tokens.shape[0]):
        token = tokens[i]
        if token != separator:
            smallest = min(smallest, np.int64(token))
            largest = max(largest, np.int64(token))
    return smallest, largest


@kernel
def count_contexts(tokens: Column, start: int, stop: int, counts: Column) -> None:
    """Adds up, by the token before it, the positions in start..stop that have a context."""
    num_ids = counts.shape[0]
    for i in range(max(start, 1), stop):
        token = np.int64(tokens[i - 1])
        if token < num_ids:
            counts[token] += 1


@kernel
def bucket_positions(positions: Column, tokens: Column, start: int, stop: int, heads: Column) -> None:
    """Writes the positions in start..stop to their buckets; `heads` says where, and moves on."""
    num_ids = heads.shape[0]
    for i in range(max(start, 1), stop):
        token = np.int64(tokens[i - 1])
        if token < num_ids:
            positions[heads[token]] = i
            heads[token] += 1


@kernel
def code_at(tokens, at, num_ids):
    """Returns the token id at an index, or `num_ids` where a document ends (or the file is damaged)."""
    if at < 0:
        return num_ids
    token = np.int64(tokens[at])
    return token if 0 <= token < num_ids else num_ids


@kernel
def packed_context(tokens, position, depth, count, bits, num_ids):
    """Returns `count` tokens of a position's context from `depth` on as one number that sorts like them."""
    key = np.int64(0)
    code = np.int64(0)
    at = position - 1 - depth
    for _ in range(count):
        code = num_ids if code == num_ids else code_at(tokens, at, num_ids)
        key = (key << bits) | code
        at -= 1
    return key


@kernel
def precedes(tokens, first, second, depth, depth_tokens, num_ids):
    """Says whether the first position's context sorts before the second's; both agree up to `depth`."""
    limit = min(depth_tokens, first, second)
    for step in range(depth + 1, limit + 1):
        one = tokens[first - step]
        other = tokens[second - step]
        if one != other:
            return one < other
        if one >= num_ids:
            return False
    # Where the text begins, a document ends, and that sorts last.
    return second == limit < depth_tokens and tokens[first - limit - 1] < num_ids


@kernel
def sort_small_group(tokens, positions, start, stop, depth, depth_tokens, num_ids):
    """Sorts few positions whose contexts agree up to `depth`; equal contexts keep their order."""
    for i in range(start + 1, stop):
        position = np.int64(positions[i])
        slot = i
        while slot > start and precedes(
            tokens, position, np.int64(positions[slot - 1]), depth, depth_tokens, num_ids
        ):
            positions[slot] = positions[slot - 1]
            slot -= 1
        positions[slot] = position


@kernel
def sort_small_keys(keys, count):
    """Sorts few distinct keys."""
    for i in range(1, count):
        key = keys[i]
        slot = i
        while slot > 0 and keys[slot - 1] > key:
            keys[slot] = keys[slot - 1]
            slot -= 1
        keys[slot] = key


@kernel
def sort_by_digit(source, target, count, shift, heads):
    """Copies keys to `target` in the stable order of one digit, unless that is the same in all keys."""
    for digit in range(NUM_DIGITS):
        heads[digit] = 0
    for i in range(count):
        heads[(source[i] >> shift) & (NUM_DIGITS - 1)] += 1
    if heads[(source[0] >> shift) & (NUM_DIGITS - 1)] == count:
        return False
    total = 0
    for digit in range(NUM_DIGITS):
        total, heads[digit] = total + heads[digit], total
    for i in range(count):
        digit = (source[i] >> shift) & (NUM_DIGITS - 1)
        target[heads[digit]] = source[i]
        heads[digit] += 1
    return True


@kernel
def sort_keys(keys, swap, count, low_bit, high_bit, heads):
    """Sorts keys by their bits low_bit..high_bit; below them stands the index, which is in order already."""
    if count <= SMALL_KEYS:
        sort_small_keys(keys, count)
        return
    source, target = keys, swap
    moved = False
    for shift in range(low_bit, high_bit, DIGIT_BITS):
        if sort_by_digit(source, target, count, shift, heads):
            source, target = target, source
            moved = not moved
    if moved:
        for i in range(count):
            keys[i] = swap[i]


@kernel
def bit_length(value):
    """Returns how many bits a non-negative number needs."""
    bits = 0
    while value >> bits:
        bits += 1
    return bits


@kernel
def sort_step(tokens, positions, start, stop, depth, depth_tokens, num_ids, keys, swap, heads):
    """Sorts positions start..stop by the next tokens after `depth` and returns how many these were.

    Afterwards `keys` holds the sorted tokens, one number for each position.
    """
    count = stop - start
    bits = bit_length(num_ids)
    index_bits = bit_length(count - 1)
    taken = min((KEY_BITS - index_bits) // bits, depth_tokens - depth)
    for i in range(count):
        context = packed_context(tokens, np.int64(positions[start + i]), depth, taken, bits, num_ids)
        keys[i] = (context << index_bits) | i
    sort_keys(keys, swap, count, index_bits, index_bits + taken * bits, heads)
    for i in range(count):
        swap[i] = positions[start + (keys[i] & ((1 << index_bits) - 1))]
        keys[i] >>= index_bits
    for i in range(count):
        positions[start + i] = swap[i]
    return taken


@kernel
def sort_ties(tokens, positions, start, stop, depth, depth_tokens, num_ids, keys, stack, pending):
    """Sorts small groups of equal keys at once and puts larger ones on the stack; returns its new height."""
    end_mask = (np.int64(1) << bit_length(num_ids)) - 1
    first = start
    for i in range(start + 1, stop + 1):
        if i < stop and keys[i - start] == keys[first - start]:
            continue
        # A key whose last token is the end of a document says that the whole contexts are equal.
        if i - first > 1 and keys[first - start] & end_mask != num_ids:
            if i - first <= SMALL_GROUP:
                sort_small_group(tokens, positions, first, i, depth, depth_tokens, num_ids)
            else:
                stack[pending, 0] = first
                stack[pending, 1] = i
                stack[pending, 2] = depth
                pending += 1
        first = i
    return pending


@kernel
def sort_buckets(
    tokens: Column, positions: Column, buckets: Column, first: int, last: int, depth_tokens: int
) -> None:
    """Sorts the positions of the buckets first..last, each by the contexts of its positions.

    Args:
        tokens: uint16[n] or int32[n]  the corpus.
        positions: uint32[m]  bucketed by the token before each position, in rising order there.
        buckets: uint32[num_ids + 1]  where each token's bucket starts; the last entry is m.
        first: the first bucket to sort.
        last: the bucket to stop before.
        depth_tokens: how many tokens of a context count.
    """
    num_ids = np.int64(buckets.shape[0] - 1)
    largest = np.int64(0)
    for bucket in range(first, last):
        largest = max(largest, np.int64(buckets[bucket + 1]) - np.int64(buckets[bucket]))
    keys = np.empty(largest, np.int64)
    swap = np.empty(largest, np.int64)
    heads = np.empty(NUM_DIGITS, np.int64)
    # Groups on the stack do not overlap and each has more than SMALL_GROUP positions.
    stack = np.empty((largest // SMALL_GROUP + 1, 3), np.int64)
    for bucket in range(first, last):
        stack[0, 0] = buckets[bucket]
        stack[0, 1] = buckets[bucket + 1]
        stack[0, 2] = 1
        pending = 1 if stack[0, 1] - stack[0, 0] > 1 else 0
        while pending:
            pending -= 1
            start, stop, depth = stack[pending, 0], stack[pending, 1], stack[pending, 2]
            if depth >= depth_tokens:
                continue
            depth += sort_step(
                tokens, positions, start, stop, depth, depth_tokens, num_ids, keys, swap, heads
            )
            pending = sort_ties(
                tokens, positions, start, stop, depth, depth_tokens, num_ids, keys, stack, pending
            )
