"""Opens the sources of a preset, one for each datastore where a source needs one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from retrieval_spec.datastore.manifest import CORPUS_KIND
from retrieval_spec.datastore.segments import Place, Segments, open_segments
from retrieval_spec.drafters.base import Drafter, HiddenStateDrafter
from retrieval_spec.drafters.preset import Preset, Source
from retrieval_spec.drafters.registry import drafter_class
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.projection import Projection

STORE_KINDS = {
    "corpus": CORPUS_KIND,
    "dense": "dense",
    "ngram_cache": CORPUS_KIND,
    "recycling": "adjacency_rows",
    "trigram": CORPUS_KIND,
}
"""Source -> kind of the datastores that it drafts from; other sources need none."""

STORE_IS_OPTIONAL = {"ngram_cache", "recycling", "trigram"}
"""Sources that draft without a datastore too, from what they learn."""

Places = Sequence[Place]


def open_sources(vocab_size: int, preset: Preset, datastores: Places) -> dict[str, Drafter]:
    """Returns name -> drafter, in the preset's order; a source of datastores is named `kind:folder`.

    Raises:
        InvalidRequest: two sources with one name.
        DatastoreError, MissingPath: a datastore that cannot be used.
    """
    stores = [open_segments(place) for place in datastores]
    drafters: dict[str, Drafter] = {}
    for source in preset.sources:
        opened = drafter_class(source.kind).open
        for name, params in _places(source, stores):
            if name in drafters:
                raise InvalidRequest("two datastores have one name", got=name, remedy="rename a folder")
            drafters[name] = opened(vocab_size=vocab_size, **source.params, **params)
    return drafters


def sources_of_store(vocab_size: int, preset: Preset, store: Segments, name: str) -> dict[str, Drafter]:
    """Returns the sources of a preset that draft from one datastore, named `kind:name`.

    Raises:
        InvalidRequest: the preset has none for its kind.
        DatastoreError: the datastore cannot be used.
    """
    kind = store.manifest.kind
    drafters: dict[str, Drafter] = {
        f"{source.kind}:{name}": drafter_class(source.kind).open(
            vocab_size=vocab_size, **source.params, path=store
        )
        for source in preset.sources
        if STORE_KINDS.get(source.kind) == kind
    }
    if not drafters:
        raise InvalidRequest("no source of the preset drafts from such a datastore", got=f"kind {kind}")
    return drafters


def name_of(store: Segments) -> str:
    """Returns what a datastore's sources are called after: its folder."""
    return store.path.resolve().name


def _places(source: Source, opened: Sequence[Segments]) -> list[tuple[str, dict[str, Segments]]]:
    wanted = STORE_KINDS.get(source.kind)
    if wanted is None:
        return [(source.kind, {})]
    stores = [store for store in opened if store.manifest.kind == wanted]
    if not stores and source.kind in STORE_IS_OPTIONAL:
        return [(source.kind, {})]
    return [(f"{source.kind}:{name_of(store)}", {"path": store}) for store in stores]


def common_projection(drafters: Iterable[Drafter]) -> Projection | None:
    """Returns what turns the target's state into what sources are asked with; None if none is.

    Raises:
        InvalidRequest: two sources differ in it.
    """
    projections = [drafter.projection for drafter in drafters if isinstance(drafter, HiddenStateDrafter)]
    for other in projections[1:]:
        if not other.equals(projections[0]):
            raise InvalidRequest(
                "the datastores were built with different projections",
                got=[projection.model_fingerprint for projection in projections],
                remedy="serve dense datastores of one build apart from others",
            )
    return projections[0] if projections else None
