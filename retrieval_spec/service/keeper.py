"""Changes to the datastores of a running server, one at a time: work on threads, exchange between drafts.

Knows the shelf, folders and the event loop; nothing of messages.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from retrieval_spec.datastore.background import Background, let_others_go_first
from retrieval_spec.datastore.generation import GENERATION_NAME
from retrieval_spec.datastore.manifest import MANIFEST_NAME
from retrieval_spec.datastore.segments import Segments
from retrieval_spec.datastore.snapshot import snapshot
from retrieval_spec.errors import InvalidRequest, RetrievalSpecError
from retrieval_spec.service.changes import FileChanges
from retrieval_spec.shelf import Prepared, Shelf
from retrieval_spec.tree import Tokens

if TYPE_CHECKING:
    from retrieval_spec.grow import Changed

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_POLL_S = 1.0

T = TypeVar("T")


class Keeper:
    """Changes the datastores. Belongs to one event loop.

    A change that was begun is finished, whether or not somebody still waits for it.

    Args:
        shelf: knows them.
        root: the folder below which others may be named; None: nobody may name any.
        changed: called when what is drafted from is another.
    """

    def __init__(self, shelf: Shelf, root: str | None, changed: Callable[[], None]) -> None:
        self.shelf = shelf
        self._root = root
        self._changed = changed
        self._turn = asyncio.Lock()
        self._begun: set[asyncio.Task[Any]] = set()

    async def load(self, name: str, folder: str) -> str:
        """Drafts from one more datastore; returns its name, which is the folder's unless one is given."""
        place = self._place(folder)
        name = _checked(name or folder, "name")

        async def work() -> str:
            await self._put(await _away(lambda: self.shelf.prepare_new(name, place)))
            return name

        return await self._alone(work())

    async def unload(self, name: str) -> None:
        """Drafts from a datastore no more."""

        async def work() -> None:
            old = [self.shelf.get(name).segments]
            self.shelf.unload(name)
            self._changed()
            logger.info("a datastore is no longer drafted from")
            await _away(old.clear)

        await self._alone(work())

    async def swap(self, name: str, folder: str = "") -> bool:
        """Takes up another folder, or the current generation; returns whether that is another one."""
        self.shelf.get(name)
        place = self._place(folder) if folder else None
        return await self._alone(self._take_up(name, place))

    async def append(self, name: str, documents: Sequence[Tokens], origin: str, fingerprint: str) -> Changed:
        """Adds documents to a datastore on disk, and takes its next generation up."""
        # What builds datastores takes long to import, and a server that starts has to be there soon.
        from retrieval_spec.grow import append_token_documents

        async def work() -> Changed:
            folder = self.shelf.get(name).place
            changed = await _away(
                lambda: append_token_documents(folder, documents, origin, tokenizer_fingerprint=fingerprint)
            )
            await self._take_up(name)
            return changed

        return await self._alone(work())

    async def snapshot(self, name: str, folder: str) -> tuple[Segments, Path]:
        """Makes a datastore of the generation that is drafted from; returns that, and where it lies."""
        target = self._place(folder)

        async def work() -> tuple[Segments, Path]:
            segments = self.shelf.get(name).segments
            await _away(lambda: snapshot(segments, target))
            return segments, target

        return await self._alone(work())

    async def reload(self) -> None:
        """Takes up the current generation of every datastore; the log says of which it was not possible."""
        for name in self.shelf.names:
            await self._reload(name)

    async def watch(self) -> None:
        """Takes up generations as writers leave them, for ever."""
        watched: dict[str, tuple[Path, FileChanges]] = {}
        while True:
            for name in self.shelf.names:
                place = self.shelf.get(name).place
                if watched.get(name, (None,))[0] != place:
                    files = [f"{place}/{GENERATION_NAME}", f"{place}/{MANIFEST_NAME}"]
                    watched[name] = (place, FileChanges(files))
                elif not watched[name][1].seen():
                    continue
                await self._reload(name)
            await asyncio.sleep(_POLL_S)

    async def _reload(self, name: str) -> None:
        try:
            await self.swap(name)
        except RetrievalSpecError as error:
            logger.error("the old generation of a datastore stays in use: %s", error)
        except Exception:
            logger.exception("the old generation of a datastore stays in use")

    async def _take_up(self, name: str, place: Path | None = None) -> bool:
        prepared = await _away(lambda: self.shelf.prepare(name, place))
        if not prepared.sources:
            return False
        await self._put(prepared)
        return True

    async def _put(self, prepared: Prepared) -> None:
        old = [self.shelf.get(prepared.name).segments] if prepared.name in self.shelf.names else []
        self.shelf.put(prepared)
        self._changed()
        segments = prepared.segments
        logger.info(
            "generation %d of a datastore, of %d segments, is in use",
            segments.generation,
            len(segments.stores),
        )
        await _away(old.clear)  # unmapping takes long where much is mapped

    def _place(self, folder: str) -> Path:
        """Returns a folder below the root.

        Raises:
            InvalidRequest: a path, or a link that leads elsewhere; or nobody may name a folder.
        """
        if self._root is None:
            raise InvalidRequest("the server lets nobody name folders", remedy="serve with --admin-root DIR")
        root = Path(self._root).resolve()
        place = root / _checked(folder, "folder")
        if place.resolve().parent != root:
            raise InvalidRequest("the folder is a link that leads elsewhere", got=folder)
        return place

    async def _alone(self, work: Coroutine[Any, Any, T]) -> T:
        """Does the work when it is its turn, to the end: a caller who hangs up leaves nothing half done."""
        task = asyncio.create_task(self._in_turn(work))
        self._begun.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    async def _in_turn(self, work: Awaitable[T]) -> T:
        async with self._turn:
            return await work

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._begun.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited was told; if nobody did, that is no error of the loop's


async def _away(work: Callable[[], T]) -> T:
    """Returns what work on a thread of its own comes to; the loop goes on meanwhile.

    A daemon thread, so that a server that stops does not wait for it: files are whole at any moment.
    """
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def run() -> T:
        let_others_go_first()
        try:
            return work()
        finally:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(done.set)

    result = Background(run)
    await done.wait()
    return result.result()


def _checked(name: str, what: str) -> str:
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"malformed {what}", got=repr(name[:80]), expected="1 to 64 of A-Z a-z 0-9 _ . -, no path"
        )
    return name
