"""The datastores of a running engine: replaced, added and taken away while sessions draft.

What takes long, such as opening, checking and warming up, is done by `prepare`, on any thread; `put` and
`unload` exchange what is drafted from in one step, and are called between drafts. So no draft mixes two
generations, and what fails in `prepare` has changed nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from retrieval_spec.datastore.loading import Load
from retrieval_spec.datastore.manifest import TRANSLATE
from retrieval_spec.datastore.residency import Residency, Retired, residency
from retrieval_spec.datastore.segments import Segments, open_segments
from retrieval_spec.datastore.store import Datastore
from retrieval_spec.drafters.base import Budget, Drafter, HiddenStateDrafter, RenewableDrafter
from retrieval_spec.drafters.blend import Blend
from retrieval_spec.drafters.combination import ask_all
from retrieval_spec.drafters.namespaces import Learner
from retrieval_spec.drafters.opening import name_of, sources_of_store
from retrieval_spec.engine import MAX_SOURCES, Engine
from retrieval_spec.errors import (
    DatastoreExists,
    InvalidRequest,
    LimitExceeded,
    MissingPath,
    TokenizerMismatch,
)
from retrieval_spec.projection import Projection
from retrieval_spec.tree import TOKEN

_WARM_UP_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is ready to be drafted from, open and checked.

    Attributes:
        name: of the datastore.
        place: its folder, as it was named: a link is followed again when it is opened again.
        segments: the generation.
        sources: what drafts from it, by the engine's names of sources; none if it is drafted from already.
    """

    name: str
    place: Path
    segments: Segments
    sources: Mapping[str, Drafter]


@dataclass(slots=True)
class Shelved:
    """One datastore of the engine.

    Attributes:
        place: its folder, as it was named.
        segments: the generation that is drafted from.
        retired: what was drafted from before, if anybody still does.
    """

    place: Path
    segments: Segments
    retired: Retired = field(default_factory=Retired)


class Shelf:
    """Knows an engine's datastores by name. One thread at a time prepares; the engine's own puts.

    Args:
        engine: drafts from them already.
        stores: what it was opened with.
        load: how later ones are opened.
        is_trusted: whether checksums are skipped.
    """

    def __init__(
        self, engine: Engine, stores: Iterable[Segments] = (), load: Load = "auto", is_trusted: bool = False
    ) -> None:
        self.engine = engine
        self._load = load
        self._is_trusted = is_trusted
        self._shelved = {name_of(store): Shelved(store.path, store) for store in stores}

    @property
    def names(self) -> tuple[str, ...]:
        """The datastores that are drafted from."""
        return tuple(self._shelved)

    def get(self, name: str) -> Shelved:
        """Returns a datastore.

        Raises:
            MissingPath: none has that name.
        """
        if name not in self._shelved:
            raise MissingPath(
                "no datastore has this name",
                got=name[:80],
                expected=" or ".join(self.names) or "none is served",
            )
        return self._shelved[name]

    def residency(self, name: str) -> Residency:
        """Returns what the generation that is drafted from takes of the memory; takes milliseconds."""
        return residency(self.get(name).segments.stores)

    def prepare(self, name: str, place: Path | None = None) -> Prepared:
        """Opens and checks what is to take the place of a datastore; segments that stay are not read again.

        Args:
            name: of the datastore.
            place: another folder; by default the current generation of its own.

        Raises:
            MissingPath: there is no such datastore, or no such folder.
            DatastoreError: what is there is damaged, was encoded by another tokenizer, or does not fit.
            InvalidRequest: a source cannot go on with it.
        """
        shelved = self.get(name)
        place = place or shelved.place
        segments = _sharing(open_segments(place, self._load), shelved.segments)
        fresh = _others(segments.stores, shelved.segments.stores)
        if not fresh and len(segments.stores) == len(shelved.segments.stores):
            return Prepared(name, place, segments, {})
        _expect_tokenizer(segments, [shelved.segments.manifest.tokenizer.fingerprint])
        return self._prepared(name, place, segments, fresh)

    def prepare_new(self, name: str, place: Path) -> Prepared:
        """Does as `prepare` for a datastore that is drafted from beside the others.

        Raises:
            DatastoreExists: one of that name is.
            RetrievalSpecError: as `prepare`.
        """
        if name in self._shelved:
            raise DatastoreExists("a datastore of this name is served", got=name, remedy="swap it")
        segments = open_segments(place, self._load)
        _expect_tokenizer(segments, list(self.engine.datastores.values()))
        prepared = self._prepared(name, place, segments, segments.stores)
        self._expect_room(prepared.sources)
        return prepared

    def put(self, prepared: Prepared) -> None:
        """Drafts from what was prepared from here on.

        Raises:
            MissingPath: the datastore was taken away meanwhile.
            InvalidRequest: open sessions could not go on with it; nothing is changed.
        """
        self._expect_room(prepared.sources)
        known = {name: one for name, one in prepared.sources.items() if name in self.engine.drafters}
        for drafter, fresh in [(self._renewable(name), fresh) for name, fresh in known.items()]:
            drafter.take_up(fresh)
        if len(known) < len(prepared.sources):
            self.engine.drafters |= {n: one for n, one in prepared.sources.items() if n not in known}
            self.engine.source_names = self.engine.joining.source_names = tuple(self.engine.drafters)
        self._note(prepared)
        self.engine.datastores[prepared.name] = prepared.segments.manifest.tokenizer.fingerprint

    def unload(self, name: str) -> None:
        """Drafts nothing from a datastore any more; its sources keep their bits, for when it comes back.

        Raises:
            MissingPath: none has that name.
            InvalidRequest: a source cannot go on without it.
        """
        self.get(name)
        renewable = [self._renewable(source) for source in self._sources_of(name)]
        for drafter in renewable:
            drafter.let_go()
        del self._shelved[name]
        self.engine.datastores.pop(name, None)

    def _prepared(self, name: str, place: Path, segments: Segments, unread: Sequence[Datastore]) -> Prepared:
        sources = sources_of_store(self.engine.vocab_size, self.engine.preset, segments, name)
        for source in sources:
            if source in self.engine.drafters:
                self._renewable(source)
        for store in unread:
            if self._is_trusted:
                store.prefault()
            else:
                store.check()
        for drafter in sources.values():
            _warm_up(drafter, segments)
        return Prepared(name, place, segments, sources)

    def _note(self, prepared: Prepared) -> None:
        shelved = self._shelved.setdefault(prepared.name, Shelved(prepared.place, prepared.segments))
        for store in _others(shelved.segments.stores, prepared.segments.stores):
            shelved.retired.add(store)
        shelved.place, shelved.segments = prepared.place, prepared.segments

    def _renewable(self, source: str) -> RenewableDrafter:
        drafter = self.engine.drafters.get(source)
        if not isinstance(drafter, RenewableDrafter):
            raise InvalidRequest(
                "a source cannot take up another datastore", got=source, remedy="start the server again"
            )
        return drafter

    def _sources_of(self, name: str) -> list[str]:
        return [source for source in self.engine.drafters if source.partition(":")[2] == name]

    def _expect_room(self, sources: Mapping[str, Drafter]) -> None:
        """Refuses sources for which there is no bit, or that would change how the others are asked."""
        fresh = [name for name in sources if name not in self.engine.drafters]
        if not fresh:
            return
        if len(self.engine.drafters) + len(fresh) > MAX_SOURCES:
            raise LimitExceeded(
                "too many drafting sources", expected=f"<= {MAX_SOURCES}", remedy="swap one of the datastores"
            )
        if self.engine.preset.combine not in (Blend, ask_all):
            raise InvalidRequest(
                "the preset asks its sources in an order of its own",
                remedy="start the server with all datastores",
            )
        for drafter in (sources[name] for name in fresh):
            if not isinstance(drafter, RenewableDrafter) or isinstance(drafter, Learner):
                raise InvalidRequest("a source that learns cannot be added", got=fresh)
            if isinstance(drafter, HiddenStateDrafter):
                self._expect_told(drafter.projection)

    def _expect_told(self, projection: Projection) -> None:
        if self.engine.projection is None or not self.engine.projection.equals(projection):
            raise InvalidRequest(
                "verifiers were told no projection for this datastore",
                got=projection.model_fingerprint,
                remedy="start the server with it",
            )


def _sharing(segments: Segments, known: Segments) -> Segments:
    """Returns the segments with those that are open already in their place: mapped once, checked once."""
    by_place = {(store.path, store.manifest_sha256): store for store in known.stores}
    stores = [by_place.get((store.path, store.manifest_sha256), store) for store in segments.stores]
    return replace(segments, stores=tuple(stores))


def _others(stores: Sequence[Datastore], known: Sequence[Datastore]) -> list[Datastore]:
    """Returns the segments that are not among others."""
    return [store for store in stores if not any(store is other for other in known)]


def _expect_tokenizer(segments: Segments, known: Sequence[str]) -> None:
    fingerprint = segments.manifest.tokenizer.fingerprint
    if known and fingerprint not in known:
        raise TokenizerMismatch(
            f"datastore {segments.path} was built with another tokenizer",
            got=fingerprint,
            expected=" or ".join(sorted(set(known))),
            remedy=TRANSLATE,
        )


def _warm_up(drafter: Drafter, segments: Segments) -> None:
    """Drafts once, so that no kernel is compiled for a new type of column while others wait."""
    tokens = segments.stores[0].columns["tokens"][:_WARM_UP_TOKENS].astype(TOKEN)
    context = np.ascontiguousarray(tokens[tokens < segments.manifest.vocab_size])
    cursor = drafter.start(context)
    cursor.observe(context[-1:])
    cursor.propose(Budget())
