"""infini-gram: a suffix array over a corpus, asked for the longest match and what follows it.

Its package drafts nothing itself. Here a draft copies what follows the first occurrence of the longest
match; a path by its next-token distributions would take such a question for each token.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from infini_gram.engine import InfiniGramEngine

from sides.lookup import Lookup

SEPARATOR = 0xFFFF
MATCHED_TOKENS = 32
"""As many as our corpora tell apart."""


def make(vocab_size: int, max_nodes: int, store: str | None) -> Lookup:
    """Returns an open index."""
    engine = InfiniGramEngine(store, eos_token_id=0, vocab_size=vocab_size, version=4, token_dtype="u16")

    def find(context: Any) -> Any:
        asked = context[-MATCHED_TOKENS:]
        length = engine.infgram_prob(asked, 0)["suffix_len"]
        if not length:
            return []
        first, _ = engine.find(asked[-length:])["segment_by_shard"][0]
        found = engine.get_doc_by_rank_2(s=0, rank=first, needle_len=length, max_ctx_len=max_nodes)
        begin = found["needle_offset"] + length
        return found["token_ids"][begin : begin + max_nodes]

    return Lookup(list, find)


def build(corpus: str, store: str, vocab_size: int) -> None:
    """Writes the token ids as its indexer would, each document after a separator, and has them sorted."""
    tokens, folder = np.fromfile(corpus, np.uint16), Path(store)
    folder.mkdir(parents=True)
    np.concatenate([[SEPARATOR], tokens[:-1]]).astype(np.uint16).tofile(folder / "tokenized.0")
    starts = np.concatenate([[0], np.flatnonzero(tokens == SEPARATOR)[:-1] + 1])
    (starts * 2).astype(np.uint64).tofile(folder / "offset.0")
    files = str(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    command = [sys.executable, "-m", "infini_gram.indexing", "--data_dir", store, "--save_dir", store]
    subprocess.run(
        [*command, "--token_dtype", "u16", "--cpus", "1", "--mem", "2", "--ulimit", files],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def versions() -> dict[str, str]:
    """Returns what runs here."""
    return {name: version(name) for name in ("infini-gram", "numpy")}
