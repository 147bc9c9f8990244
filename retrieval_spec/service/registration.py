"""Registers the service's methods so that bytes which are no message are refused like any bad request.

gRPC itself would answer UNKNOWN and log a stack for each of them: any client could fill the log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from retrieval_spec.service.servicer import MALFORMED, Servicer
from retrieval_spec.v1.draft_pb2_grpc import add_DraftServiceServicer_to_server


def register(servicer: Servicer, server: Any) -> None:
    """Adds the service to a server."""
    register_tolerant(add_DraftServiceServicer_to_server, servicer, server)


def register_tolerant(add: Callable[[Any, Any], None], servicer: object, server: Any) -> None:
    """Adds any service to a server, by its generated function."""
    add(servicer, _Registrar(server))


class _Registrar:
    """Stands for the server where generated code adds methods to it."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Does nothing: the same methods come by name."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Adds methods that get `MALFORMED` for what is no message."""
        tolerant = {
            name: handler._replace(request_deserializer=_tolerant(handler.request_deserializer))
            for name, handler in handlers.items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, tolerant),))


def _tolerant(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def message(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return MALFORMED

    return message
