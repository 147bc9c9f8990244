"""Steps over a plain unix socket beside the gRPC one: a fraction of the latency, for clients on this machine.

Knows sockets and frames. What a stream means, who may open one and when it ends, the servicer says as ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from functools import partial
from typing import Any, NoReturn, cast

import grpc

from retrieval_spec import wire
from retrieval_spec.errors import InvalidRequest, RetrievalSpecError, Unauthenticated
from retrieval_spec.service.bugs import internal_error
from retrieval_spec.service.listen import UnixListener, listener
from retrieval_spec.service.servicer import Servicer
from retrieval_spec.v1 import draft_pb2 as pb

HELLO_TIMEOUT_S = 10.0
_MAX_HELLO_BYTES = 8_192
_MORE_THAN_STREAMS = 64
"""So many may be open besides streams: not greeted yet, or about to be refused."""
_BACKLOG = 128
_LEAVE_TIMEOUT_S = 2.0
"""For the last frames to be read by whoever reads at all."""


class _Ended(Exception):
    """The last frame was written."""


class _Stream:
    """A connection as the servicer sees the context of a stream."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, max_message_bytes: int
    ) -> None:
        self._reader, self._writer = reader, writer
        self._max_message_bytes = max_message_bytes
        self._authorization = ""

    async def greet(self) -> None:
        """Reads who calls.

        Raises:
            Unauthenticated: it does not say so, or not in time.
            IncompleteReadError: it went away.
        """
        try:
            hello = await asyncio.wait_for(self._read(wire.OTHER, _MAX_HELLO_BYTES), HELLO_TIMEOUT_S)
            self._authorization = wire.parsed(pb.FramedHello, hello).authorization
        except (asyncio.TimeoutError, RetrievalSpecError) as error:
            raise Unauthenticated("no hello", expected="a frame with a FramedHello comes first") from error

    async def requests(self) -> AsyncIterator[Any]:
        """Yields messages until the client has no more.

        Raises:
            LimitExceeded: one is too long.
            InvalidRequest: a frame of another kind, or no message in it.
        """
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                message = await self._read(wire.MESSAGE, self._max_message_bytes)
                yield wire.parsed(pb.DraftStreamRequest, message)

    async def _read(self, kind: int, max_bytes: int) -> bytes:
        head = await self._reader.readexactly(wire.HEAD_BYTES)
        num_bytes, found = wire.read_head(head, max_bytes)
        if found != kind:
            raise InvalidRequest("another kind of frame than comes here", got=found, expected=kind)
        return await self._reader.readexactly(num_bytes)

    async def write(self, response: pb.DraftStreamResponse) -> None:
        """Sends an answer; waits where the client does not read."""
        self._writer.write(wire.frame(wire.MESSAGE, response.SerializeToString()))
        await self._writer.drain()

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """Returns what a call would carry."""
        return (("authorization", self._authorization),) if self._authorization else ()

    def auth_context(self) -> dict[str, list[bytes]]:
        """Returns nothing: nobody shows a certificate here."""
        return {}

    async def abort(
        self, code: grpc.StatusCode, details: str, metadata: tuple[tuple[str, str], ...]
    ) -> NoReturn:
        """Says why the stream ends."""
        number, type_name = wire.STATUS_NUMBERS[code.name], dict(metadata).get(wire.ERROR_TYPE_KEY, "")
        refusal = pb.FramedRefusal(status=number, type=type_name, message=details)
        self._writer.write(wire.frame(wire.OTHER, refusal.SerializeToString()))
        await self._writer.drain()
        raise _Ended


class FrameListener:
    """Listens for streams of frames. Belongs to the event loop of its servicer.

    Raises:
        InvalidRequest: no unix path, or something that is no socket is in the way.
        ServiceUnavailable: somebody listens there already.
    """

    def __init__(self, servicer: Servicer, listen: str) -> None:
        self._servicer = servicer
        place = listener(listen)
        if not isinstance(place, UnixListener):
            raise InvalidRequest("frames need a unix socket", got=repr(listen), expected="unix:/path")
        self._place = place
        self._listening: asyncio.AbstractServer | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def address(self) -> str:
        """Where clients find it."""
        return self._place.address

    async def start(self) -> None:
        """Takes connections."""
        listening = socket.socket(socket.AF_UNIX)
        try:
            self._place.bind(partial(_bind, listening))
            self._listening = await asyncio.start_unix_server(self._serve, sock=listening, backlog=_BACKLOG)
        except BaseException:
            listening.close()
            raise
        self._place.publish()

    async def stop(self, grace_s: float) -> None:
        """Lets streams that the servicer ends finish for so long, and ends the others."""
        if self._listening is not None:
            self._listening.close()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._place.remove()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        limits, task = self._servicer.engine.limits, asyncio.current_task()
        assert task is not None
        if len(self._tasks) >= limits.max_streams + _MORE_THAN_STREAMS:
            writer.close()
            return
        self._tasks.add(task)
        try:
            with contextlib.suppress(_Ended, ConnectionError, asyncio.IncompleteReadError):
                await self._answer(_Stream(reader, writer, limits.max_message_bytes))
        except Exception as error:
            internal_error(error)
        finally:
            self._tasks.remove(task)
            writer.close()
            asyncio.get_running_loop().call_later(_LEAVE_TIMEOUT_S, writer.transport.abort)

    async def _answer(self, stream: _Stream) -> None:
        try:
            await stream.greet()
            answers = cast(AsyncGenerator[Any, None], self._servicer.DraftStream(stream.requests(), stream))
            async with contextlib.aclosing(answers):
                async for answer in answers:
                    await stream.write(answer)
        except RetrievalSpecError as error:
            await self._servicer.refuse(stream, error)


def _bind(listening: socket.socket, address: str) -> int:
    listening.bind(address.removeprefix("unix:"))
    return 0
