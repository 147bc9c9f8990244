"""Real text as token ids for the benchmarks: the Python sources that this environment holds.

Encoded once with the tokenizer of the shipped model (or another) and kept in `.cache/bench`.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.datastore.tokenizer import load_tokenizer

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "bench"
HELD_OUT_SHARE = 0.02


def python_sources(max_bytes: int) -> Iterator[str]:
    """Yields the distinct Python files of the standard library and of the installed packages."""
    seen: set[bytes] = set()
    size = 0
    for key in ("stdlib", "purelib"):
        for path in sorted(Path(sysconfig.get_path(key)).rglob("*.py")):
            text = path.read_text(encoding="utf-8", errors="ignore")
            digest = hashlib.sha256(text.encode()).digest()
            if digest in seen or not text.strip() or len(text) > 1_000_000:
                continue
            seen.add(digest)
            size += len(text)
            if size > max_bytes:
                return
            yield text


def corpus(tokenizer_path: Path, num_tokens: int) -> tuple[list[NDArray[np.int32]], list[NDArray[np.int32]]]:
    """Returns documents to index, about `num_tokens` in all, and documents held out as queries."""
    kept = CACHE / f"{tokenizer_path.resolve().name}-{num_tokens}.npz"
    if not kept.exists():
        _encode(tokenizer_path, num_tokens, kept)
    with np.load(kept) as arrays:
        documents = np.split(arrays["tokens"], arrays["ends"][:-1])
    order = np.random.default_rng(0).permutation(len(documents))
    num_held_out = max(1, int(len(documents) * HELD_OUT_SHARE))
    shuffled = [documents[index] for index in order]
    return shuffled[num_held_out:], shuffled[:num_held_out]


def _encode(tokenizer_path: Path, num_tokens: int, kept: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_path)
    documents: list[NDArray[np.int32]] = []
    batch: list[str] = []
    size = 0
    for text in python_sources(max_bytes=num_tokens * 8):
        batch.append(text)
        if len(batch) == 256:
            documents += tokenizer.encode_batch(batch)
            size = sum(map(len, documents))
            batch.clear()
            print(f"\rencoding: {size:,} tokens", end="", flush=True)
            if size > num_tokens * (1 + HELD_OUT_SHARE):
                break
    documents += tokenizer.encode_batch(batch) if batch else []
    print()
    kept.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        kept, tokens=np.concatenate(documents), ends=np.cumsum([len(document) for document in documents])
    )


def joined(documents: list[NDArray[np.int32]], dtype: type) -> NDArray[np.int32] | NDArray[np.uint16]:
    """Returns one array with every document ended by the dtype's largest value."""
    separator = np.array([np.iinfo(dtype).max], dtype)
    return np.concatenate([part for document in documents for part in (document.astype(dtype), separator)])
