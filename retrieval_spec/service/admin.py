"""The calls of `DatastoreService` and `NamespaceService`, on a listener of their own.

A unix socket, or loopback with a token.

Decodes, asks the keeper, encodes. Drafts are not asked for here, and datastores nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import wraps
from typing import Any

import grpc
import numpy as np

from retrieval_spec import wire
from retrieval_spec.datastore.residency import residency
from retrieval_spec.datastore.segments import Segments
from retrieval_spec.errors import InvalidRequest, LimitExceeded, RetrievalSpecError
from retrieval_spec.service.bugs import internal_error
from retrieval_spec.service.config import ServerConfig
from retrieval_spec.service.keeper import Keeper
from retrieval_spec.service.listen import TcpListener, UnixListener, listener
from retrieval_spec.service.peers import Anyone, Peers, TokenHolders
from retrieval_spec.service.registration import register_tolerant
from retrieval_spec.service.servicer import Servicer, _expect_message
from retrieval_spec.shelf import Shelf, Shelved
from retrieval_spec.tree import Tokens
from retrieval_spec.v1 import datastore_pb2 as pb
from retrieval_spec.v1.datastore_pb2_grpc import (
    DatastoreServiceServicer,
    add_DatastoreServiceServicer_to_server,
)
from retrieval_spec.v1.namespace_pb2 import ForgetRequest, ForgetResponse
from retrieval_spec.v1.namespace_pb2_grpc import (
    NamespaceServiceServicer,
    add_NamespaceServiceServicer_to_server,
)

logger = logging.getLogger(__name__)

MAX_DOCUMENTS = 65_536
"""Documents of one `Append`; their tokens are bounded by the size of a message."""
MAX_ORIGIN_CHARACTERS = 1_024
MAX_NAMESPACE_CHARACTERS = 129
"""Of a tenant, the / and a namespace."""
_MAX_CALLS = 16
_OPERATOR = "operator/"
"""Whose refused calls wait at the door; no tenant has that name."""
_GRACE_S = 0.5

_OPTIONS = (
    ("grpc.max_receive_message_length", wire.MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 3_600_000),
)


def admin_place(config: ServerConfig) -> TcpListener | UnixListener | None:
    """Returns where changes are listened for; None if nowhere.

    Raises:
        InvalidRequest: other machines could connect, or others on this one without a token.
    """
    if config.admin is None:
        return None
    place = listener(config.admin)
    if not place.is_private:
        raise InvalidRequest(
            "changes are never taken from other machines",
            got=config.admin,
            expected="unix:/path or 127.0.0.1:port",
        )
    if isinstance(place, TcpListener) and config.admin_tokens is None:
        raise InvalidRequest(
            "anybody on this machine could connect",
            got=config.admin,
            remedy="give --admin-tokens, or a unix: path",
        )
    return place


class Administration:
    """Takes changes to the datastores of a running server. Belongs to its event loop.

    SIGHUP and, where the configuration says so, a new generation on disk make it take up what is current.
    """

    def __init__(self, servicer: Servicer, shelf: Shelf, config: ServerConfig) -> None:
        self._config = config
        self._place = admin_place(config)
        self._keeper = Keeper(shelf, config.admin_root, servicer.refresh_info)
        self._servicer = servicer
        self._server: Any = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str | None:
        """Where it listens; None if nowhere."""
        return None if self._place is None else self._place.address

    async def start(self) -> None:
        """Listens.

        Raises:
            ServiceUnavailable: the address is taken.
        """
        if hasattr(signal, "SIGHUP"):
            # Only the main thread may handle signals.
            with suppress(RuntimeError, ValueError):
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)
        if self._config.reload_datastores:
            self._begin(self._keeper.watch())
        if self._place is None:
            return
        tokens = self._config.admin_tokens
        peers = TokenHolders(tokens) if tokens is not None else Anyone()
        self._server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=_MAX_CALLS)
        calls = DatastoreServicer(self._keeper, peers, self._servicer)
        register_tolerant(add_DatastoreServiceServicer_to_server, calls, self._server)
        forgetting = NamespaceServicer(peers, self._servicer)
        register_tolerant(add_NamespaceServiceServicer_to_server, forgetting, self._server)
        self._place.bind(self._server.add_insecure_port)
        await self._server.start()
        self._place.publish()

    async def stop(self) -> None:
        """Ends it; a change that is under way on disk is left as its writer leaves it when killed."""
        for task in self._tasks:
            task.cancel()
        if self._server is not None:
            await self._server.stop(_GRACE_S)
        if self._place is not None:
            self._place.remove()

    def _reload(self) -> None:
        logger.info("taking up what is current of all datastores")
        self._begin(self._keeper.reload())

    def _begin(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _call(method: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any, Any], Awaitable[Any]]:
    """Makes a gRPC call of a method that need not ask who calls."""

    @wraps(method)
    async def call(self: DatastoreServicer | NamespaceServicer, request: Any, context: Any) -> Any:
        try:
            self.peers.refresh()
            self.peers.owner(context)
            return await method(self, _expect_message(request))
        except RetrievalSpecError as error:
            refusal = error
        except Exception as error:
            refusal = internal_error(error)
        await self.drafts.refuse(context, refusal, _OPERATOR)
        raise refusal  # not reached: refusing raises

    return call


class DatastoreServicer(DatastoreServiceServicer):
    """Answers operators. Belongs to one event loop."""

    def __init__(self, keeper: Keeper, peers: Peers, drafts: Servicer) -> None:
        self._keeper = keeper
        self.peers = peers
        self.drafts = drafts

    @_call
    async def List(self, request: pb.ListRequest) -> pb.ListResponse:  # noqa: D102 - the proto says it
        shelf = self._keeper.shelf
        return pb.ListResponse(datastores=[self._served(name) for name in shelf.names])

    @_call
    async def Load(self, request: pb.LoadRequest) -> pb.LoadResponse:  # noqa: D102
        name = await self._keeper.load(request.name, request.folder)
        return pb.LoadResponse(datastore=self._served(name))

    @_call
    async def Unload(self, request: pb.UnloadRequest) -> pb.UnloadResponse:  # noqa: D102
        await self._keeper.unload(request.name)
        return pb.UnloadResponse()

    @_call
    async def Swap(self, request: pb.SwapRequest) -> pb.SwapResponse:  # noqa: D102
        is_changed = await self._keeper.swap(request.name, request.folder)
        return pb.SwapResponse(datastore=self._served(request.name), is_changed=is_changed)

    @_call
    async def Append(self, request: pb.AppendRequest) -> pb.AppendResponse:  # noqa: D102
        documents = _documents_of(request)
        changed = await self._keeper.append(
            request.name, documents, request.origin, request.tokenizer_fingerprint
        )
        return pb.AppendResponse(
            datastore=self._served(request.name),
            num_added=changed.num_added,
            num_duplicates=changed.num_duplicates,
        )

    @_call
    async def Snapshot(self, request: pb.SnapshotRequest) -> pb.SnapshotResponse:  # noqa: D102
        segments, path = await self._keeper.snapshot(request.name, request.folder)
        return pb.SnapshotResponse(datastore=_described(request.name, segments), path=str(path))

    @_call
    async def Stats(self, request: pb.StatsRequest) -> pb.StatsResponse:  # noqa: D102
        shelf = self._keeper.shelf
        served = [(name, shelf.get(name)) for name in shelf.names]  # some may be taken away meanwhile
        return pb.StatsResponse(datastores=[await self._stats(name, one) for name, one in served])

    def _served(self, name: str) -> pb.ServedDatastore:
        return _described(name, self._keeper.shelf.get(name).segments)

    async def _stats(self, name: str, shelved: Shelved) -> pb.DatastoreStats:
        segments = shelved.segments
        taken = await asyncio.to_thread(residency, segments.stores)
        return pb.DatastoreStats(
            datastore=_described(name, segments),
            mapped_bytes=taken.mapped,
            resident_bytes=taken.resident,
            retired_bytes=shelved.retired.num_bytes,
            num_sessions=self._keeper.shelf.engine.num_sessions,
        )


class NamespaceServicer(NamespaceServiceServicer):
    """Forgets what operators name. Belongs to one event loop."""

    def __init__(self, peers: Peers, drafts: Servicer) -> None:
        self.peers = peers
        self.drafts = drafts

    @_call
    async def Forget(self, request: ForgetRequest) -> ForgetResponse:  # noqa: D102
        if not 1 <= len(request.namespace) <= MAX_NAMESPACE_CHARACTERS:
            raise InvalidRequest(
                "no name of a namespace",
                got=f"{len(request.namespace)} characters",
                expected=f"1 to {MAX_NAMESPACE_CHARACTERS}, with its tenant and / where there are tenants",
            )
        was_kept = await self.drafts.forget(request.namespace)
        logger.info("a namespace was forgotten")
        return ForgetResponse(was_kept=was_kept)


def _described(name: str, segments: Segments) -> pb.ServedDatastore:
    manifest = segments.manifest
    return pb.ServedDatastore(
        name=name,
        folder=str(segments.path),
        kind=manifest.kind,
        generation=segments.generation,
        num_segments=len(segments.stores),
        num_tokens=manifest.num_tokens,
        num_documents=manifest.num_documents,
        num_bytes=segments.num_bytes,
        vocab_size=manifest.vocab_size,
        tokenizer_fingerprint=manifest.tokenizer.fingerprint,
    )


def _documents_of(request: pb.AppendRequest) -> list[Tokens]:
    """Returns the documents of a message; what their ids are is checked where they are written.

    Raises:
        InvalidRequest: the columns do not fit each other, or a text is malformed.
        LimitExceeded: too many documents.
    """
    lengths = wire.read_tokens(request.document_lengths, "document_lengths")
    if not 1 <= lengths.shape[0] <= MAX_DOCUMENTS:
        raise LimitExceeded(
            "wrong number of documents", got=lengths.shape[0], expected=f"1 to {MAX_DOCUMENTS} in one message"
        )
    if len(request.origin) > MAX_ORIGIN_CHARACTERS or "\0" in request.origin:
        raise InvalidRequest(
            "malformed origin", expected=f"at most {MAX_ORIGIN_CHARACTERS} characters, no NUL"
        )
    if int(lengths.min()) < 1:
        raise InvalidRequest("a document without tokens", got=int(lengths.min()), expected=">= 1")
    ends = np.cumsum(lengths.astype(np.int64))
    tokens = wire.read_tokens(request.token_ids, "token_ids", int(ends[-1]))
    return np.split(tokens, ends[:-1])
