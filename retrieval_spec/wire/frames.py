"""Frames: the messages of a stream over a plain socket, each behind its length and kind."""

from __future__ import annotations

import struct
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from retrieval_spec.errors import InvalidRequest, LimitExceeded

MESSAGE, OTHER = 0, 1
"""Kinds of frames: messages of the stream, and what begins it (`FramedHello`) or ends it."""

_HEAD = struct.Struct("<IB")
HEAD_BYTES = _HEAD.size


SomeMessage = TypeVar("SomeMessage", bound=Message)


def parsed(message_type: type[SomeMessage], message: bytes) -> SomeMessage:
    """Returns what a frame holds.

    Raises:
        InvalidRequest: it is no such message.
    """
    try:
        return message_type.FromString(message)
    except DecodeError:
        raise InvalidRequest("the bytes are no message", expected=message_type.__name__) from None


def frame(kind: int, message: bytes) -> bytes:
    """Returns a message as it travels."""
    return _HEAD.pack(len(message), kind) + message


def read_head(head: bytes | bytearray, max_bytes: int) -> tuple[int, int]:
    """Returns how long the message is that follows, and its kind.

    Args:
        head: at least `HEAD_BYTES`; what comes after is not looked at.
        max_bytes: of a message.

    Raises:
        InvalidRequest: a kind that there is none of.
        LimitExceeded: the message is longer.
    """
    num_bytes, kind = _HEAD.unpack_from(head)
    if kind not in (MESSAGE, OTHER):
        raise InvalidRequest("unknown kind of frame", got=kind, expected=f"{MESSAGE} or {OTHER}")
    if num_bytes > max_bytes:
        raise LimitExceeded("message too long", got=num_bytes, expected=f"<= {max_bytes} bytes")
    return num_bytes, kind
