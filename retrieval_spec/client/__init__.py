"""Where generation loops get draft trees: `LocalClient` in process, `DraftClient` over gRPC, one interface.

Imports numpy, grpc and protobuf alone: the client lives in the inference engine's process.
"""

from __future__ import annotations

from retrieval_spec.client.credentials import Credentials
from retrieval_spec.client.interface import DraftSession, DraftSource, SuffixSource
from retrieval_spec.client.local import LocalClient
from retrieval_spec.client.remote import DraftClient
from retrieval_spec.client.shards import ShardedClient

__all__ = [
    "Credentials",
    "DraftClient",
    "DraftSession",
    "DraftSource",
    "LocalClient",
    "ShardedClient",
    "SuffixSource",
]
