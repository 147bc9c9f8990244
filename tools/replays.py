"""Replays recorded outputs against drafts: what a verifier under greedy decoding would have accepted.

A recording is a file `FAMILY.jsonl` of `{"id", "prompt_ids", "output_ids"}`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.budget import CostCurve
from retrieval_spec.engine import Engine
from retrieval_spec.replay import accepted_path

VOCAB_SIZE = 151_936
Ids = NDArray[np.int32]


class Step(NamedTuple):
    """What one draft said and what came of it.

    Attributes:
        path_probs: float32[n]  of all nodes, as drafted.
        is_accepted: bool[n]  whether the path to a node came true.
    """

    path_probs: NDArray[np.float32]
    is_accepted: NDArray[np.bool_]

    @property
    def num_accepted(self) -> int:
        """Returns how many drafted tokens came true."""
        return int(self.is_accepted.sum())


def traces(path: Path, wanted: set[str] | None, max_output_tokens: int) -> Iterator[tuple[Ids, Ids]]:
    """Yields prompt and output of every wanted item, in file order."""
    with path.open() as lines:
        for line in lines:
            item = json.loads(line)
            if wanted is None or item["id"] in wanted:
                output = item["output_ids"][:max_output_tokens]
                yield np.array(item["prompt_ids"], np.int32), np.array(output, np.int32)


def replay_item(
    engine: Engine, prompt: Ids, output: Ids, max_nodes: int, cost_curve: CostCurve | None = None
) -> list[Step]:
    """Drafts and commits one recorded output step by step."""
    session = engine.open_session(prompt)
    steps = []
    at = 0
    while at < output.size:
        tree = session.draft(max_nodes, cost_curve)
        is_accepted = np.zeros(len(tree), np.bool_)
        is_accepted[accepted_path(tree, output[at:])] = True
        steps.append(Step(tree.path_probs(), is_accepted))
        news = steps[-1].num_accepted + 1
        session.commit(output[at : at + news])
        at += news
    session.close()
    return steps
