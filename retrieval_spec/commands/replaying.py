"""Replays of one family each, and what becomes of them: the work that `replay` gives to its processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from retrieval_spec.budget import CostCurve
from retrieval_spec.drafters.presets import preset_or_sources
from retrieval_spec.engine import Engine
from retrieval_spec.match_lengths import RANGES, MatchLengths
from retrieval_spec.own_documents import OthersCorpus, without_own
from retrieval_spec.replay import Observer, Tally, replay
from retrieval_spec.traces import Trace
from retrieval_spec.tree import DraftTree


@dataclass(slots=True)
class Found:
    """What the replays of some generations came to.

    Attributes:
        tally: of the replay that all figures are of, but for those by batch.
        by_match: int64[3, ranges]  as `MatchLengths.counts`.
        session_bytes: of the largest session.
        learned_bytes: of what the sources learned.
        paying: rows of a batch -> replay with the nodes that pay there.
        full: the replay with as many nodes as there are; of use only beside `paying`.
    """

    tally: Tally = field(default_factory=Tally)
    by_match: Any = field(default_factory=lambda: np.zeros((3, len(RANGES)), np.int64))
    session_bytes: int = 0
    learned_bytes: int = 0
    paying: dict[int, Tally] = field(default_factory=dict)
    full: Tally = field(default_factory=Tally)

    def merge(self, other: Found) -> None:
        """Adds what was found of another family."""
        self.tally.merge(other.tally)
        self.full.merge(other.full)
        self.by_match += other.by_match
        self.session_bytes = max(self.session_bytes, other.session_bytes)
        self.learned_bytes += other.learned_bytes
        for rows, tally in other.paying.items():
            self.paying.setdefault(rows, Tally()).merge(tally)


@dataclass(frozen=True, slots=True)
class Replayer:
    """Replays families, each with engines of its own; goes to other processes.

    Attributes:
        vocab_size: token ids lie below it.
        sources: the name of a preset, or sources joined by `+`.
        datastores: folders to draft from.
        max_nodes: nodes of a draft tree at most.
        curves: rows of a batch -> what a pass costs by the nodes of a row; empty where nobody knows.
        leaves_own_out: whether no output is drafted from documents of the datastores that hold it.
    """

    vocab_size: int
    sources: str
    datastores: Sequence[str]
    max_nodes: int
    curves: Mapping[int, CostCurve]
    leaves_own_out: bool = False

    @property
    def num_replays(self) -> int:
        """How often a trace is replayed."""
        return 1 if len(self.curves) < 2 else 1 + len(self.curves)

    def __call__(self, traces: Sequence[Trace], advance: Callable[[int], None] | None = None) -> Found:
        """Returns what came of a family; `advance` is told of output tokens."""
        engine, lengths = self.new_engine(), MatchLengths()
        peak = _SessionPeak(engine)
        tally = self.replay(engine, traces, self.curves.get(1), advance, lengths, peak)
        found = Found(tally, lengths.counts, peak.num_bytes, engine.memory.num_bytes)
        if len(self.curves) > 1:
            found.full = self.replay(self.new_engine(), traces, None, advance)
            found.paying = {
                rows: tally if rows == 1 else self.replay(self.new_engine(), traces, curve, advance)
                for rows, curve in self.curves.items()
            }
        return found

    def new_engine(self) -> Engine:
        """Returns an engine that has learned nothing yet."""
        engine = Engine(self.vocab_size, preset=preset_or_sources(self.sources), datastores=self.datastores)
        if self.leaves_own_out:
            engine.drafters.update(without_own(engine.drafters, self.datastores))
        return engine

    def replay(
        self,
        engine: Engine,
        traces: Sequence[Trace],
        curve: CostCurve | None,
        advance: Callable[[int], None] | None,
        *observers: Observer,
    ) -> Tally:
        """Replays a family with an engine under a cost curve, and tells the observers of every step."""
        tally = Tally()
        others = [source for source in engine.drafters.values() if isinstance(source, OthersCorpus)]
        for trace in traces:
            for source in others:
                source.leave_out(trace.output)
            replay(engine, [trace], self.max_nodes, curve, tally, observers)
            if advance is not None:
                advance(trace.output.shape[0])
        return tally


class _SessionPeak:
    """Sees what the largest session of an engine holds."""

    def __init__(self, engine: Engine) -> None:
        self.num_bytes = 0
        self._ledger = engine.ledger

    def step(self, trace: Trace, at: int, tree: DraftTree, path: list[int], latency_us: float) -> None:
        self.num_bytes = max(self.num_bytes, self._ledger.num_bytes)
