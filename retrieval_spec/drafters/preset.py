"""What a preset is: the sources that an engine opens, and the rule that combines them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from retrieval_spec.drafters.blend import Blend
from retrieval_spec.drafters.combination import ask_all
from retrieval_spec.drafters.joint import Combination

MAX_NODES = 256
"""What presets draft at most that name no bound of their own."""


@dataclass(frozen=True, slots=True)
class Source:
    """One source of a preset.

    Attributes:
        kind: its name in `registry`; `corpus` and `dense` stand for one source per datastore of that kind.
        params: what `open` of the drafter takes beside the vocabulary.
    """

    kind: str
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Preset:
    """A set of sources and the rule that combines them.

    Attributes:
        sources: opened in this order, which is also that of the bits in `DraftTree.sources`.
        combine: which cursors are asked, with which budget; or `Blend`, which makes one tree of them all.
        max_nodes: what the published system drafts at most; a caller's smaller budget still holds.
    """

    sources: tuple[Source, ...]
    combine: Combination | type[Blend] = ask_all
    max_nodes: int = MAX_NODES
