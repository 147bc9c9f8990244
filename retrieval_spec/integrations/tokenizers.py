"""Which tokenizer a host's model has, and whether a source's datastores were built with it.

Knows no host: a tokenizer is a folder with `tokenizer.json`, or an object that holds a fast one.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval_spec.errors import InvalidRequest, ServiceUnavailable, TokenizerMismatch

if TYPE_CHECKING:
    from retrieval_spec.client import DraftSource


def check_datastores(source: DraftSource, *whose: Any) -> None:
    """Refuses a source with a datastore whose ids mean other text to the model.

    Args:
        source: a source; one that cannot be reached, or that does not tell, is not checked.
        *whose: the model's tokenizer, the model, or a folder of either; the first that says enough decides.

    Raises:
        TokenizerMismatch: a datastore was built with another tokenizer.
        InvalidRequest: a tokenizer was given that has no `tokenizer.json`.
    """
    datastores = [(name, theirs) for name, theirs in _datastores(source) if theirs]
    fingerprint = next(filter(None, map(fingerprint_of, whose)), "") if datastores else ""
    for name, theirs in datastores:
        if fingerprint and theirs != fingerprint:
            from retrieval_spec.datastore.manifest import TRANSLATE

            raise TokenizerMismatch(
                f"the datastore {name} was built with another tokenizer than the model's",
                got=theirs,
                expected=fingerprint,
                remedy=TRANSLATE,
            )


def fingerprint_of(whose: Any) -> str:
    """Returns the fingerprint of a folder's tokenizer, of a tokenizer's, or of a model's; "" if unknown.

    Raises:
        InvalidRequest: a tokenizer without a `tokenizer.json`.
    """
    if whose is None:
        return ""
    folder = Path(whose if isinstance(whose, str | Path) else getattr(whose, "name_or_path", "") or "")
    file = folder / "tokenizer.json"
    # The file itself: a tokenizer that was loaded may hold what its loading added.
    if folder.parts and file.is_file():
        return _fingerprint(file, file.stat().st_mtime_ns)
    if not hasattr(whose, "get_vocab"):
        return ""
    backend = getattr(whose, "backend_tokenizer", None)
    if backend is None:
        raise InvalidRequest("not a fast tokenizer", got=type(whose).__name__, expected="a tokenizer.json")
    from retrieval_spec.datastore.tokenizer import fingerprint_of as of_fields

    return of_fields(json.loads(backend.to_str()))


@functools.lru_cache(maxsize=64)
def _fingerprint(file: Path, changed_ns: int) -> str:
    from retrieval_spec.datastore.tokenizer import fingerprint_of as of_fields

    return of_fields(json.loads(file.read_bytes()))


def _datastores(source: DraftSource) -> Iterator[tuple[str, str]]:
    """Yields name and fingerprint of what the source and its parts draft from, where they can tell."""
    with suppress(ServiceUnavailable):
        told: Mapping[str, str] = getattr(source, "datastores", {})
        yield from told.items()
    for part in (*getattr(source, "sources", ()), *getattr(source, "clients", ())):
        yield from _datastores(part)
