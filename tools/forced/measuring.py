"""Runs every way over the same batches in turn, checks what comes out, and keeps what it took."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forced.target import ForcedTarget, wait_for
from forced.texts import Batch
from forced.ways import Trees, Way


@dataclass(frozen=True, slots=True)
class Sample:
    """One way's generation of one batch.

    Attributes:
        batch: its number within the family.
        rows: generations in it.
        tokens: recorded ones that were generated.
        seconds: of the whole call.
        prompt_s: of these, until the first pass was done.
        steps: passes after the first, counted for each row; over trees only for rows that had not ended.
        nodes: drafted ones that were verified; 0 where the host drafts, which does not tell.
    """

    way: str
    family: str
    repeat: int
    batch: int
    rows: int
    tokens: int
    seconds: float
    prompt_s: float
    steps: int
    nodes: int


def measure(
    target: ForcedTarget, ways: Sequence[Way], texts: Mapping[str, Sequence[Batch]], repeats: Iterable[int]
) -> list[Sample]:
    """Returns samples of all ways, which take turns batch by batch, in an order that rotates."""
    gc.collect()
    gc.freeze()  # a collection of what the libraries hold takes longer than a small model's generation
    warm_up(target, ways, next(iter(texts.values()))[0])
    samples = []
    for repeat in repeats:
        for family, batches in texts.items():
            for way in ways:
                way.begin(family, repeat)
            for number, batch in enumerate(batches):
                turn = (repeat + number) % len(ways)
                samples += [
                    sample(target, way, batch, family, repeat, number) for way in [*ways[turn:], *ways[:turn]]
                ]
    gc.unfreeze()
    return samples


def warm_up(target: ForcedTarget, ways: Sequence[Way], batch: Batch) -> None:
    """Generates once with every way: what is done once is done here."""
    for way in ways:
        way.begin("warm-up", 0)
        sample(target, way, batch, "warm-up", 0, 0)


def sample(target: ForcedTarget, way: Way, batch: Batch, family: str, repeat: int, number: int) -> Sample:
    """Generates a batch, checks it and returns what it took."""
    inputs = batch.inputs(target.model.device)
    target.record(batch.rows(), batch.end_id)
    steps, nodes = _counts(way)
    gc.collect()
    began_s = time.perf_counter()
    sequences = way(target.model, inputs)
    wait_for(target.model.device)
    seconds = time.perf_counter() - began_s
    batch.check(sequences, way.name)
    if isinstance(way, Trees):
        steps, nodes = way.counts.steps - steps, way.counts.drafted_nodes - nodes
    else:
        steps = (target.num_passes - 1) * len(batch.items)
    prompt_s = target.prompt_done_s - began_s
    return Sample(
        way.name, family, repeat, number, len(batch.items), batch.num_tokens, seconds, prompt_s, steps, nodes
    )


def _counts(way: Any) -> tuple[int, int]:
    return (way.counts.steps, way.counts.drafted_nodes) if isinstance(way, Trees) else (0, 0)
