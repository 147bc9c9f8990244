"""Named sets of drafting sources: which ones an engine opens when nobody lists them."""

from __future__ import annotations

from retrieval_spec.errors import InvalidRequest

# "corpus" stands for one drafter per datastore that the engine is given.
PRESETS: dict[str, tuple[str, ...]] = {
    "default": ("session", "corpus"),
    "session": ("session",),
    "corpus": ("corpus",),
}


def preset_sources(name: str) -> tuple[str, ...]:
    """Returns the names of the drafters in a preset.

    Raises:
        InvalidRequest: no preset has that name.
    """
    if name not in PRESETS:
        raise InvalidRequest("unknown preset", got=name, expected=" or ".join(sorted(PRESETS)))
    return PRESETS[name]
