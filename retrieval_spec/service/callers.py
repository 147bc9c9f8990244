"""Whose call it is, to be counted with which others, and what its answer costs its caller at the door."""

from __future__ import annotations

from typing import Any

from retrieval_spec.limits import tenant_of
from retrieval_spec.service.door import OPENED_S, REFUSED_S
from retrieval_spec.service.sessions import SessionTable
from retrieval_spec.v1 import draft_pb2 as pb

MAX_NEW = 64
"""A tenant that opens more sessions than so many without asking about them pays more for the next."""

_MAX_NAME = 64


def caller_of(request: Any, owner: str, peer: str, sessions: SessionTable) -> str:
    """Returns a tenant, a connection or a namespace.

    The connections to a unix socket cannot be told apart. There, what a request names keeps those apart who
    mean no harm.
    """
    if owner or not peer.startswith("unix:"):
        return owner or peer
    if isinstance(request, pb.OpenSessionRequest | pb.DraftSuffixesRequest):
        return tenant_of(request.namespace[:_MAX_NAME])
    return sessions.tenant(_first_session(request))


def price_s(response: Any, sessions: SessionTable, num_opened: int = 0) -> float:
    """Returns what an answer costs for which so many sessions were opened.

    Nothing where drafts of the caller's sessions are in it.
    """
    if isinstance(response, pb.OpenSessionResponse):
        num_new = sessions.num_new(sessions.tenant(response.session_id))
        return OPENED_S if num_new <= MAX_NEW else REFUSED_S
    if isinstance(response, pb.DraftSuffixesResponse):
        return num_opened * OPENED_S
    if isinstance(response, pb.DraftResponse) and response.result.errors:
        return REFUSED_S if 4 * len(response.result.errors) == len(response.result.statuses) else 0.0
    return 0.0


def namespace_of(request: Any, owner: str) -> str:
    """Returns whose text a request learns from: a client that is known chooses among its own alone."""
    name = request.namespace if request.HasField("namespace") else "default"
    return f"{owner}/{name}" if owner else name  # the engine takes no name with a second /


def _first_session(request: Any) -> int:
    if isinstance(request, pb.DraftRequest):
        return int.from_bytes(request.step.session_ids[:8], "little")
    return int(getattr(request, "session_id", 0))
