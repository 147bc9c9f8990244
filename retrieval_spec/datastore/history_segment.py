"""One segment of a namespace's history as bytes: a header, then one record a session.

Nothing that is read is trusted before its length and its checksum were looked at. Knows bytes and token
ids, nothing of files. `datastores/HISTORY.md` says it all byte by byte.
"""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from retrieval_spec.tree import TOKEN, Tokens

MAGIC = b"rsphist1"
MAX_PROMPT_TOKENS = 16_384
"""Of one prompt its newest ones, as many as a source learns of it."""
MAX_OUTPUT_TOKENS = 1 << 18
"""Of one output its newest ones."""

_HASH_BYTES = 32
_HEADER = struct.Struct("<8sI")
_LENGTHS = struct.Struct("<II")
_NAMESPACE = re.compile(r"(?:[A-Za-z0-9_.-]{1,64}/)?[A-Za-z0-9_-]{1,64}", re.ASCII)
_MAX_NAMESPACE_BYTES = 129
MAX_HEADER_BYTES = _HEADER.size + _MAX_NAMESPACE_BYTES + _HASH_BYTES
MAX_RECORD_BYTES = _LENGTHS.size + 4 * (MAX_PROMPT_TOKENS + MAX_OUTPUT_TOKENS) + _HASH_BYTES


class Text(NamedTuple):
    """What one session was asked and what was written: int32 token ids each."""

    prompt: Tokens
    output: Tokens


@dataclass(frozen=True, slots=True)
class Content:
    """What a segment holds up to the first byte that does not fit.

    Attributes:
        namespace: whose it is.
        texts: oldest first.
        num_valid_bytes: as far as it could be read: what follows is torn or altered.
    """

    namespace: str
    texts: list[Text]
    num_valid_bytes: int


def header_bytes(namespace: str) -> bytes:
    """Returns what a segment begins with."""
    name = namespace.encode("ascii")
    return _sealed(_HEADER.pack(MAGIC, len(name)) + name)


def record_bytes(text: Text) -> bytes:
    """Returns the record of a text, of which the oldest tokens are left out if it is too long."""
    prompt, output = text.prompt[-MAX_PROMPT_TOKENS:], text.output[-MAX_OUTPUT_TOKENS:]
    lengths = _LENGTHS.pack(prompt.shape[0], output.shape[0])
    return _sealed(lengths + prompt.astype("<i4").tobytes() + output.astype("<i4").tobytes())


def read_header(data: bytes) -> tuple[str, int] | None:
    """Returns the namespace, and where the first record begins; None if no segment begins like this."""
    if len(data) < _HEADER.size:
        return None
    magic, length = _HEADER.unpack_from(data)
    if magic != MAGIC or not 1 <= length <= _MAX_NAMESPACE_BYTES:
        return None
    end = _HEADER.size + length
    if not _is_sealed(data, 0, end):
        return None
    name = data[_HEADER.size : end].decode("ascii", "replace")
    return (name, end + _HASH_BYTES) if _NAMESPACE.fullmatch(name) else None


def read_segment(data: bytes, vocab_size: int) -> Content | None:
    """Returns what a segment holds; None if not even its header can be relied on."""
    header = read_header(data)
    if header is None:
        return None
    namespace, at = header
    texts: list[Text] = []
    while (record := _read_record(data, at, vocab_size)) is not None:
        text, at = record
        texts.append(text)
    return Content(namespace, texts, at)


def _read_record(data: bytes, at: int, vocab_size: int) -> tuple[Text, int] | None:
    if len(data) - at < _LENGTHS.size:
        return None
    num_prompt, num_output = _LENGTHS.unpack_from(data, at)
    if num_prompt > MAX_PROMPT_TOKENS or num_output > MAX_OUTPUT_TOKENS:
        return None
    first = at + _LENGTHS.size
    end = first + 4 * (num_prompt + num_output)
    if not _is_sealed(data, at, end):
        return None
    tokens = np.frombuffer(data, "<i4", num_prompt + num_output, first).astype(TOKEN, copy=False)
    if tokens.shape[0] and (int(tokens.min()) < 0 or int(tokens.max()) >= vocab_size):
        return None
    return Text(tokens[:num_prompt], tokens[num_prompt:]), end + _HASH_BYTES


def _sealed(data: bytes) -> bytes:
    return data + hashlib.sha256(data).digest()


def _is_sealed(data: bytes, begin: int, end: int) -> bool:
    """Tells whether the bytes are all there, with their checksum behind them."""
    if len(data) - end < _HASH_BYTES:
        return False
    return hashlib.sha256(memoryview(data)[begin:end]).digest() == data[end : end + _HASH_BYTES]
