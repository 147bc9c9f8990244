"""Writes the golden history of format 1, the files that every later version must still read.

    python tools/make_golden_history.py [FOLDER]        default: datastores/golden/history-v1

Written from HISTORY.md alone, so that the package is compared with the specification and not with itself.
Changed bytes mean a new format version, and a folder of its own.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from pathlib import Path

GOLDEN = Path(__file__).resolve().parent.parent / "datastores" / "golden" / "history-v1"
FACTS = {
    "format": "retrieval-spec-history",
    "version": 1,
    "vocab_size": 151_936,
    "tokenizer_fingerprint": "unknown",
}
# Namespace -> segments: when each was begun, and what the sessions in it were asked and wrote.
HISTORY = {
    "default": [
        (1_700_000_000, [([3, 1, 4], [1, 5, 9, 2, 6]), ([], [151_935])]),
        (1_700_000_600, [([7], [])]),
    ],
    "acme.example/code_1": [(1_700_000_300, [([70_001] * 3, [70_002] * 4)])],
}


def sealed(data: bytes) -> bytes:
    """Returns bytes with their checksum behind them."""
    return data + hashlib.sha256(data).digest()


def segment(namespace: str, texts: list[tuple[list[int], list[int]]]) -> bytes:
    """Returns the bytes of one segment."""
    data = sealed(struct.pack("<8sI", b"rsphist1", len(namespace)) + namespace.encode())
    for prompt, output in texts:
        ids = [*prompt, *output]
        data += sealed(struct.pack(f"<II{len(ids)}i", len(prompt), len(output), *ids))
    return data


def main(folder: Path) -> None:
    """Writes the files."""
    folder.mkdir(parents=True, exist_ok=True)
    unsealed = json.dumps({**FACTS, "history_sha256": "0" * 64}, indent=2) + "\n"
    seal = hashlib.sha256(unsealed.encode()).hexdigest()
    (folder / "history.json").write_text(unsealed.replace("0" * 64, seal))
    for namespace, segments in HISTORY.items():
        place = folder / hashlib.sha256(namespace.encode()).hexdigest()[:32]
        place.mkdir(exist_ok=True)
        for number, (begun_s, texts) in enumerate(segments):
            (place / f"{number:08x}-{begun_s:010x}").write_bytes(segment(namespace, texts))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN)
