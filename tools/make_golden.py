"""Writes the golden datastores of format 1, the files that every later version must still read.

    python tools/make_golden.py [FOLDER]        default: datastores/golden/v1

The index is sorted here in plain Python, from FORMAT.md alone, so that the package is compared with the
specification and not with itself. So are the answers in `answers.json`: what the stores hold and what their
longest matches are. Changed bytes mean a new format version, and a folder of its own.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.datastore.manifest import Facts, TokenizerFacts
from retrieval_spec.datastore.store import write_datastore

GOLDEN = Path(__file__).resolve().parent.parent / "datastores" / "golden" / "v1"
DEPTH_TOKENS = 4
CREATED_BY = "retrieval-spec 0.1.0"

# Repeats within and across documents, an end in the middle of a repeat, contexts longer than the depth.
SMALL = [[3, 1, 4, 1, 5, 9, 2, 6], [1, 4, 1, 5, 9], [7], [2, 2, 2, 2, 2, 2, 2], [3, 1, 4, 1, 5, 9, 2, 6]]
STORES = {
    "uint16": (np.dtype("<u2"), 50_000, SMALL),
    "int32": (np.dtype("<i4"), 151_936, [[id_ + 65_531 for id_ in document] for document in SMALL]),
    "empty": (np.dtype("<u2"), 10, []),
}

# Grown stores: generation, then each segment's place, type and documents with what they came from.
# `grown`: a store of two documents, two appends, and one document removed from the first of these.
# `moved`: one append, then a document of the store's own folder removed: that folder is no segment any more.
GROWN = {
    "grown": (
        3,
        [
            (".", "<u2", [([3, 1, 4, 1, 5, 9, 2, 6], "one.txt"), ([7], "one.txt")]),
            (
                "segments/00000000000000b0",
                "<i4",
                [([1, 4, 1, 5, 70_001], "\u00fc.md"), ([70_001, 5], "one.txt")],
            ),
            ("segments/00000000000000a1", "<u2", [([1, 4, 1, 5, 8, 9], "two.txt")]),
        ],
    ),
    "moved": (
        2,
        [
            ("segments/00000000000000a0", "<u2", [([2, 2, 2, 2], "two.txt"), ([7], "")]),
            ("segments/00000000000000c0", "<u2", [([3, 1, 4, 1, 5, 9, 2, 6], "")]),
        ],
    ),
}
PRUNED_NGRAM_TOKENS = 3
QUERIES = [[8, 4, 1, 5], [1, 4, 1, 5], [2, 2], [7], [5], [70_001], [49_999], []]

# Key tokens, then ids with rank and level; one row is known to be empty, one has no room left.
ROWS = [
    ((3,), [(1, 0, 1), (4, 2, 0)]),
    ((4,), [(10 + rank, rank, 15 - rank % 2) for rank in range(8)]),
    ((49_999,), [(7, 7, 9)]),
    ((3, 1), [(4, 0, 0)]),
    ((1, 4), []),
    ((4, 1), [(5, 0, 2), (9, 1, 0)]),
]


def corpus(documents: list[list[int]], dtype: np.dtype) -> tuple[NDArray, NDArray[np.int64]]:
    """Returns the columns `tokens` and `documents`."""
    separator = int(np.iinfo(dtype).max)
    tokens = [id_ for document in documents for id_ in (*document, separator)]
    lengths = [0] + [len(document) + 1 for document in documents]
    return np.array(tokens, dtype), np.cumsum(lengths)[:-1].astype("<i8")


def context(tokens: list[int], position: int, separator: int) -> list[int]:
    """Returns what stands before a position, read backwards, to the depth or to the document's start."""
    backwards = tokens[:position][::-1][:DEPTH_TOKENS]
    if separator in backwards:
        backwards = backwards[: backwards.index(separator)]
    # The end of a document counts as larger than every id; the separator is larger than every id.
    return backwards if len(backwards) == DEPTH_TOKENS else [*backwards, separator]


def index(tokens: list[int], separator: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Returns the columns `positions` and `buckets`."""
    reachable = [p for p in range(1, len(tokens)) if tokens[p - 1] != separator]
    positions = sorted(reachable, key=lambda p: (context(tokens, p, separator), p))
    num_ids = max((id_ for id_ in tokens if id_ != separator), default=-1) + 1
    before = [tokens[p - 1] for p in positions]
    buckets = np.searchsorted(before, np.arange(num_ids + 1))
    return np.array(positions, "<u4"), buckets.astype("<u4")


def facts_of(name: str, vocab_size: int, **others: object) -> Facts:
    """Returns the facts of a golden store."""
    return Facts(
        name=f"golden-{name}",
        vocab_size=vocab_size,
        tokenizer=TokenizerFacts(
            fingerprint=f"sha256:{hashlib.sha256(name.encode()).hexdigest()}",
            model="BPE",
            vocab_size=vocab_size,
            num_added_tokens=3,
            num_merges=vocab_size // 2,
            normalizer="NFC",
            pre_tokenizer="Sequence(Split, ByteLevel)",
        ),
        created_by=CREATED_BY,
        **others,
    )


def pruned(
    tokens: list[int], positions: NDArray[np.uint32], separator: int
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Returns the columns `positions` and `buckets` of an order that holds each n-gram once."""
    seen, kept = set(), []
    for place in positions.tolist():
        before = tokens[max(place - PRUNED_NGRAM_TOKENS + 1, 0) : place]
        ngram = (*before, tokens[place])
        is_whole = len(ngram) == PRUNED_NGRAM_TOKENS and separator not in before
        if not is_whole or ngram not in seen:
            kept.append(place)
        seen.add(ngram)
    num_ids = max(id_ for id_ in tokens if id_ != separator) + 1
    buckets = np.searchsorted([tokens[place - 1] for place in kept], np.arange(num_ids + 1))
    return np.array(kept, "<u4"), buckets.astype("<u4")


def write_pruned(path: Path) -> None:
    """Writes the golden store that holds each n-gram once."""
    dtype, vocab_size, documents = STORES["uint16"]
    tokens, starts = corpus(documents, dtype)
    separator = int(np.iinfo(dtype).max)
    positions, _ = index(tokens.tolist(), separator)
    positions, buckets = pruned(tokens.tolist(), positions, separator)
    columns = {"tokens": tokens, "positions": positions, "buckets": buckets, "documents": starts}
    facts = facts_of("pruned", vocab_size, depth_tokens=DEPTH_TOKENS, pruned_ngram_tokens=PRUNED_NGRAM_TOKENS)
    write_datastore(path, facts, columns)


def write_rows(path: Path) -> None:
    """Writes the golden store of adjacency rows."""
    tokens, starts = corpus([[*key, *(id_ for id_, _, _ in ids)] for key, ids in ROWS], np.dtype("<u2"))
    placed = [(0,) * len(key) + tuple(16 * rank + level for _, rank, level in ids) for key, ids in ROWS]
    columns = {
        "tokens": tokens,
        "documents": starts,
        "orders": np.array([len(key) for key, _ in ROWS], "<u2"),
        "places": np.array([place for row in placed for place in (*row, 0)], "<u2"),
        "offered": np.arange(100, 31, -1, dtype="<i8"),
        "right": np.arange(100, 31, -1, dtype="<i8") // 2,
    }
    write_datastore(path, facts_of("rows", 50_000, depth_tokens=2, kind="adjacency_rows"), columns)


def document_id(document: list[int]) -> int:
    """Returns the first 8 bytes of the SHA-256 of the ids, as a signed integer."""
    digest = hashlib.sha256(b"".join(id_.to_bytes(4, "little") for id_ in document)).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def segment_columns(documents: list[tuple[list[int], str]], dtype: np.dtype) -> dict[str, NDArray]:
    """Returns all columns of a segment that knows where its documents came from."""
    tokens, starts = corpus([document for document, _ in documents], dtype)
    positions, buckets = index(tokens.tolist(), int(np.iinfo(dtype).max))
    names = list(dict.fromkeys(origin for _, origin in documents))
    return {
        "tokens": tokens,
        "positions": positions,
        "buckets": buckets,
        "documents": starts,
        "ids": np.array([document_id(document) for document, _ in documents], "<i8"),
        "origins": np.array([names.index(origin) for _, origin in documents], "<u4"),
        "origin_names": np.frombuffer("\0".join(names).encode(), np.uint8),
    }


def write_grown(path: Path, generation: int, segments: list) -> None:
    """Writes a store that has changed: its segments, then the list of them."""
    listed = {}
    for number, (place, dtype, documents) in enumerate(segments):
        (path / place).parent.mkdir(parents=True, exist_ok=True)
        facts = facts_of(path.name, 100_000, depth_tokens=DEPTH_TOKENS)
        write_datastore(path / place, facts, segment_columns(documents, np.dtype(dtype)))
        listed[str(number)] = {
            "place": place,
            "manifest_sha256": hashlib.sha256((path / place / "manifest.json").read_bytes()).hexdigest(),
            "num_tokens": sum(len(document) + 1 for document, _ in documents),
            "num_documents": len(documents),
        }
    fields = {
        "format": "retrieval-spec-generation",
        "version": 1,
        "generation": generation,
        "num_segments": len(listed),
        "segments": listed,
        "generation_sha256": "0" * 64,
    }
    data = (json.dumps(fields, indent=2) + "\n").encode("ascii")
    seal = hashlib.sha256(data).hexdigest().encode()
    (path / "generation.json").write_bytes(data.replace(b"0" * 64, seal))


def matches(query: list[int], documents: list[list[int]]) -> dict[str, object]:
    """Returns the longest context of any place that ends like the query, and what follows those places.

    -1 stands for the end of a document.
    """
    found: dict[int, list[int]] = {}
    for document in documents:
        for place in range(1, len(document) + 1):
            length = 0
            while (
                length < min(place, len(query), DEPTH_TOKENS)
                and document[place - 1 - length] == query[-1 - length]
            ):
                length += 1
            found.setdefault(length, []).append(document[place] if place < len(document) else -1)
    longest = max(found, default=0)
    return {"query": query, "length": longest, "next": sorted(found[longest]) if longest else []}


def answers() -> dict[str, object]:
    """Returns what the stores of text hold and what is found in them, from the texts above alone."""
    histories = {
        name: [[(document, None) for document in documents]] for name, (_, _, documents) in STORES.items()
    }
    histories |= {name: [documents for _, _, documents in segments] for name, (_, segments) in GROWN.items()}
    told = {}
    for name, segments in histories.items():
        documents = [document for segment in segments for document, _ in segment]
        told[name] = {
            "documents": documents,
            "ids": [document_id(document) for document in documents],
            "origins": [origin for segment in segments for _, origin in segment],
            "matches": [
                matches([id_ + (65_531 if name == "int32" else 0) for id_ in query], documents)
                for query in QUERIES
            ],
        }
    return told


def write_golden(folder: Path) -> None:
    """Writes all golden stores into `folder`."""
    for name, (generation, segments) in GROWN.items():
        write_grown(folder / name, generation, segments)
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(told)}" for name, told in answers().items())
    (folder / "answers.json").write_text(f"{{\n{lines}\n}}\n")
    write_rows(folder / "rows")
    write_pruned(folder / "pruned")
    for name, (dtype, vocab_size, documents) in STORES.items():
        tokens, starts = corpus(documents, dtype)
        positions, buckets = index(tokens.tolist(), int(np.iinfo(dtype).max))
        columns = {"tokens": tokens, "positions": positions, "buckets": buckets, "documents": starts}
        write_datastore(folder / name, facts_of(name, vocab_size, depth_tokens=DEPTH_TOKENS), columns)


def main() -> None:
    """Replaces the golden stores of the folder named on the command line."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN
    for name in (*STORES, *GROWN, "rows", "pruned"):
        shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_golden(folder)


if __name__ == "__main__":
    main()
