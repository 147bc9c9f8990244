"""Every limit in one place: what is refused, what is clamped and what makes room, with its bounds.

Standard library alone: a command reads its flags from here before anything else is imported.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal

from retrieval_spec.errors import InvalidRequest

Effect = Literal["refused", "clamped", "dropped"]
"""What becomes of more: data is refused, draft parameters are clamped, what nobody uses is dropped."""

MIB = 1 << 20


def _limit(default: int, highest: int, effect: Effect, meaning: str) -> Any:
    return field(default=default, metadata={"highest": highest, "effect": effect, "meaning": meaning})


@dataclass(frozen=True, slots=True)
class Limits:
    """What one engine and its server accept; in process and over gRPC the same errors come of it.

    A tenant is the part of a namespace before its `/`, and the whole of one without.
    """

    max_context_tokens: int = _limit(1 << 20, 1 << 24, "refused", "tokens of one session, prompt included")
    max_append_tokens: int = _limit(65_536, 1 << 24, "refused", "tokens of one commit")
    max_nodes: int = _limit(256, 4_096, "clamped", "nodes of one draft tree")
    max_depth_nodes: int = _limit(64, 64, "clamped", "nodes on one path of a draft tree")
    max_topk: int = _limit(32, 64, "refused", "ids a node of feedback; a server asks for no more")
    max_ahead_outcomes: int = _limit(16, 64, "clamped", "outcomes of a step that are drafted ahead")
    max_sessions: int = _limit(4_096, 1 << 20, "refused", "sessions open at a time")
    max_tenant_sessions: int = _limit(2_048, 1 << 20, "refused", "sessions of one tenant open at a time")
    max_session_bytes: int = _limit(2_048 * MIB, 1 << 50, "refused", "memory of all open sessions")
    max_learned_bytes: int = _limit(
        2_048 * MIB,
        1 << 50,
        "dropped",
        "memory of what closed sessions taught, the oldest of the largest first",
    )
    max_idle_s: int = _limit(300, 1 << 30, "dropped", "seconds that a session is kept for which nobody asks")
    max_streams: int = _limit(1_024, 1 << 20, "refused", "streams open at a time")
    max_stream_idle_s: int = _limit(
        300, 1 << 30, "dropped", "seconds that a stream is kept on which nothing moves"
    )
    max_message_bytes: int = _limit(16 * MIB, 1 << 30, "refused", "size of one message")

    def __post_init__(self) -> None:
        for entry in fields(self):
            check_limit(entry, getattr(self, entry.name))


def tenant_of(namespace: str) -> str:
    """Returns whose namespace it is: what stands before the `/`, or all of it."""
    return namespace.partition("/")[0]


def check_limit(entry: Field[Any], value: object) -> None:
    """Refuses a value that a limit cannot have.

    Raises:
        InvalidRequest: no whole number, or out of its range.
    """
    highest = entry.metadata["highest"]
    if type(value) is not int or not 1 <= value <= highest:
        raise InvalidRequest(
            f"limit {entry.name} is out of range",
            got=repr(value),
            expected=f"a whole number from 1 to {highest}",
        )
