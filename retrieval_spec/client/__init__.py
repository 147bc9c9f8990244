"""Where generation loops get draft trees: `LocalClient` in process, `DraftClient` over gRPC, one interface.

Imports numpy, grpc and protobuf alone: the client lives in the inference engine's process.
"""

from __future__ import annotations

from retrieval_spec.client.interface import DraftSession, DraftSource
from retrieval_spec.client.local import LocalClient
from retrieval_spec.client.remote import DraftClient

__all__ = ["DraftClient", "DraftSession", "DraftSource", "LocalClient"]
