"""A reader of histories written from datastores/HISTORY.md: plain Python, nothing of the package."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from pathlib import Path

Texts = list[tuple[list[int], list[int]]]


def read_history(folder: Path) -> dict[str, Texts]:
    facts = json.loads((folder / "history.json").read_text())
    assert (facts["format"], facts["version"]) == ("retrieval-spec-history", 1)
    history: dict[str, Texts] = {}
    for place in sorted(folder.iterdir()):
        if not re.fullmatch(r"[0-9a-f]{32}", place.name):
            continue
        for path in sorted(place.iterdir()):
            found = read_segment(path.read_bytes(), facts["vocab_size"])
            if found and hashlib.sha256(found[0].encode()).hexdigest()[:32] == place.name:
                history.setdefault(found[0], []).extend(found[1])
    return history


def read_segment(data: bytes, vocab_size: int) -> tuple[str, Texts] | None:
    magic, length = struct.unpack_from("<8sI", data)
    at = 12 + length
    if magic != b"rsphist1" or hashlib.sha256(data[:at]).digest() != data[at : at + 32]:
        return None
    namespace, texts = data[12:at].decode(), []
    at += 32
    while at + 8 <= len(data):
        prompt, output = struct.unpack_from("<II", data, at)
        end = at + 8 + 4 * (prompt + output)
        if prompt > 16_384 or output > 262_144 or len(data) < end + 32:
            break
        ids = list(struct.unpack_from(f"<{prompt + output}i", data, at + 8))
        is_sealed = hashlib.sha256(data[at:end]).digest() == data[end : end + 32]
        if not is_sealed or not all(0 <= token < vocab_size for token in ids):
            break
        texts.append((ids[:prompt], ids[prompt:]))
        at = end + 32
    return namespace, texts
