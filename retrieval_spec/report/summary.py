"""What a report says, as plain values that JSON holds: totals of families, curves, generations, trees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from retrieval_spec import __version__
from retrieval_spec.budget import CostCurve
from retrieval_spec.datastore.tokenizer import Tokenizer
from retrieval_spec.match_lengths import RANGES
from retrieval_spec.replay import NUM_BINS, Tally
from retrieval_spec.report.curves import ASSUMED_COSTS_PER_NODE, BATCH_SIZES, StepSample, batch_curves
from retrieval_spec.report.recording import Recorder, Shown, Step
from retrieval_spec.report.texts import TokenTexts

MAX_POSITIONS = 32
MAX_TREE_NODES = 60_000
"""That are drawn of all trees together, so that a page stays below 5 MB."""
ALL = "all"
_FIXED_NODES = (1, 2, 4, 8, 16, 32, 64, 128)
_MAX_FIXED = 4


class Replayed(NamedTuple):
    """What came of the replay of one family.

    Attributes:
        tally: its totals.
        recorder: closed.
        by_match: as `MatchLengths.counts`.
    """

    tally: Tally
    recorder: Recorder
    by_match: Any


class Asked(NamedTuple):
    """What was asked for.

    Attributes:
        preset: which sources drafted.
        max_nodes: of a tree.
        curves: rows of a batch -> what the target's passes cost by the nodes of a row; none if nobody said.
    """

    preset: str
    max_nodes: int
    curves: Mapping[int, CostCurve] = MappingProxyType({})


def summary_of(
    families: Mapping[str, Replayed], asked: Asked, tokenizer: Tokenizer | None = None
) -> dict[str, Any]:
    """Returns all that a report shows: what page, terminal and plots are drawn from."""
    recorders = [one.recorder for one in families.values()]
    totals = {ALL: _all(families.values(), asked)}
    if len(families) > 1:
        totals |= {
            name: _totals(one.tally, one.recorder.sample, one.by_match, asked)
            for name, one in families.items()
        }
    texts = TokenTexts(tokenizer)
    generations = [one for recorder in recorders for one in recorder.shown]
    max_nodes = MAX_TREE_NODES // max(sum(len(one.trees) for one in generations), 1)
    shown = [_shown(one, texts, max_nodes) for one in generations]
    return {
        "version": __version__,
        "preset": asked.preset,
        "max_nodes": asked.max_nodes,
        "has_costs": bool(asked.curves),
        "has_text": tokenizer is not None,
        "source_names": max((recorder.source_names for recorder in recorders), key=len),
        "corpus_mask": max(recorder.corpus_mask for recorder in recorders),
        "batch_sizes": list(batch_curves(asked.curves)) if asked.curves else list(BATCH_SIZES),
        "totals": totals,
        "generations": shown,
        "texts": texts.pool,
    }


def _all(families: Iterable[Replayed], asked: Asked) -> dict[str, Any]:
    total, sample, by_match = Tally(), StepSample(asked.max_nodes), 0
    for tally, recorder, counts in families:
        total.merge(tally)
        sample.merge(recorder.sample)
        by_match = by_match + counts
    return _totals(total, sample, by_match, asked)


def _totals(tally: Tally, sample: StepSample, by_match: Any, asked: Asked) -> dict[str, Any]:
    p50, p99 = np.percentile(tally.draft_us, [50, 99]).tolist()
    reached = max(1, min(MAX_POSITIONS, int(np.count_nonzero(tally.accepted_at))))
    totals = {
        "traces": tally.traces,
        "tokens": tally.tokens,
        "steps": tally.steps,
        "mean_acceptance_length": round(tally.mean_acceptance_length, 4),
        "accepted_share_of_nodes": round(tally.accepted_tokens / max(tally.drafted_nodes, 1), 4),
        "calibration_error": round(tally.calibration_error, 4),
        "draft_us_p50": round(p50, 1),
        "draft_us_p99": round(p99, 1),
        "sources": {
            name: [source.drafted_nodes, source.accepted_nodes, source.won_nodes]
            for name, source in tally.sources.items()
        },
        "positions": _rounded(tally.accepted_at[:reached] / max(tally.steps, 1)),
        "reliability": _reliability(tally),
        "match_lengths": [
            [name, int(steps), round(1.0 + accepted / max(steps, 1), 4)]
            for name, steps, accepted in zip(RANGES, by_match[0], by_match[2], strict=True)
        ],
        "lengths_by_nodes": _rounded(sample.lengths_by_nodes()),
        "speedups": _speedups(sample, asked),
    }
    return {**totals, "speedup": round(tally.speedup, 4)} if asked.curves else totals


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 4) for value in values]


def _reliability(tally: Tally) -> list[list[float]]:
    """Returns nodes, mean probability and the share that came true of each bin that has any."""
    return [
        [int(nodes), round(expected / nodes, 4), round(accepted / nodes, 4)]
        for nodes, expected, accepted in tally.predicted.T.reshape(NUM_BINS, 3).tolist()
        if nodes
    ]


def _speedups(sample: StepSample, asked: Asked) -> dict[str, list[float]]:
    """Returns the curves over batch sizes, by what they are called."""
    if not asked.curves:
        return {
            f"{cost:g} a node": _rounded(sample.speedups(batch_curves({1: CostCurve.linear(cost)})))
            for cost in ASSUMED_COSTS_PER_NODE
        }
    fixed = [number for number in _FIXED_NODES if number <= asked.max_nodes][-_MAX_FIXED:]
    curves = batch_curves(asked.curves)
    return {
        "what pays": _rounded(sample.speedups(curves)),
        **{f"up to {number} nodes": _rounded(sample.speedups(curves, number)) for number in fixed},
    }


def _shown(one: Shown, texts: TokenTexts, max_nodes: int) -> dict[str, Any]:
    return {
        "family": one.family,
        "number": one.number,
        "prompt": texts.text_of(one.prompt_ids),
        "prompt_tokens": one.prompt_tokens,
        "output_tokens": one.output_tokens,
        "steps": one.num_steps,
        "accepted": one.num_accepted,
        "tokens": texts.numbers_of(one.token_ids),
        "masks": one.masks,
        "percents": one.percents,
        "rejected": texts.number_of_each(one.rejected_ids),
        "match": one.match_tokens,
        "generations": one.generations,
        "corpus_match": one.corpus_tokens,
        "documents": [texts.number_of_text(name) for name in one.documents],
        "trees": [_tree(name, step, texts, max_nodes) for name, step in one.trees],
    }


def _tree(name: str, step: Step, texts: TokenTexts, max_nodes: int) -> dict[str, Any]:
    """Returns a tree as it is drawn: its first nodes, which are the best."""
    tree = step.tree.prefix(max_nodes)
    return {
        "name": name,
        "at": step.at,
        "us": round(step.latency_us),
        "tokens": texts.number_of_each(tree.token_ids.tolist()),
        "parents": tree.parents.tolist(),
        "percents": np.rint(tree.path_probs() * 100).astype(int).tolist(),
        "masks": tree.sources.tolist(),
        "path": [node for node in step.path if node < max_nodes],
        "accepted": len(step.path),
        "nodes": len(step.tree),
    }
