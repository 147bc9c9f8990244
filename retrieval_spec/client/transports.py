"""The ways in which steps travel, by name."""

from __future__ import annotations

from retrieval_spec.client import frames
from retrieval_spec.client.streams import StreamTransport, grpc_streams
from retrieval_spec.client.transport import Connection, Pushes, Transport, UnaryTransport
from retrieval_spec.errors import InvalidRequest


def open_transport(name: str, connection: Connection, pushes: Pushes) -> Transport:
    """Returns the transport of that name; what comes beside answers it puts into `pushes`.

    Raises:
        InvalidRequest: there is none, or it cannot keep what it is told secret.
    """
    if name == "stream":
        return StreamTransport(grpc_streams(connection, pushes))
    if name == "unary":
        return UnaryTransport(connection)
    if not name.startswith(frames.PREFIX):
        raise InvalidRequest("unknown transport", got=name, expected="stream, unary or unix:PATH")
    if connection.credentials.ca_file is not None:
        raise InvalidRequest("frames travel without TLS", got=name, expected="stream or unary")
    return StreamTransport(frames.frame_streams(name, connection))
