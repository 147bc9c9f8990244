"""llama.cpp's static lookup cache: its counts as dictionaries over documents, and a reader of its file."""

from __future__ import annotations

import struct
from collections import Counter, defaultdict
from collections.abc import Sequence


def counted(documents: Sequence[Sequence[int]]) -> dict[tuple[int, int], Counter[int]]:
    """What followed every two tokens inside a document, and how often."""
    counts: dict[tuple[int, int], Counter[int]] = defaultdict(Counter)
    for document in documents:
        for older, newer, token in zip(document, document[1:], document[2:], strict=False):
            counts[older, newer][token] += 1
    return dict(counts)


def bounded(
    counts: dict[tuple[int, int], Counter[int]], min_count: int, max_continuations: int | None
) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """The continuations within bounds, the most frequent ones first."""
    kept = {
        key: sorted(
            ((token, count) for token, count in after.items() if count >= min_count),
            key=lambda pair: (-pair[1], pair[0]),
        )[:max_continuations]
        for key, after in counts.items()
    }
    return {key: pairs for key, pairs in kept.items() if pairs}


def read_lookup(data: bytes) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """The records of a file, read as llama.cpp reads them; it ends on what llama.cpp asserts."""
    found, at = {}, 0
    while at < len(data):
        *key, size = struct.unpack_from("<5i", data, at)
        assert min(key[:2]) >= 0
        assert key[2:] == [-1, -1]
        assert size > 0
        pairs = list(struct.iter_unpack("<2i", data[at + 20 : at + 20 + 8 * size]))
        assert len(pairs) == size
        assert all(count > 0 for _, count in pairs)
        assert tuple(key[:2]) not in found  # a second record of a key is not read
        found[tuple(key[:2])] = pairs
        at += 20 + 8 * size
    assert at == len(data)
    return found


def write_lookup(kept: dict[tuple[int, int], list[tuple[int, int]]]) -> bytes:
    """The file of these continuations, keys in rising order of their last token, then of the one before."""
    records = [
        struct.pack("<5i", *key, -1, -1, len(pairs)) + b"".join(struct.pack("<2i", *pair) for pair in pairs)
        for key, pairs in sorted(kept.items(), key=lambda item: item[0][::-1])
    ]
    return b"".join(records)
