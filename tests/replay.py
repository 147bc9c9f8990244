"""Contexts to compare a preset and its twin on: random ones, and recorded outputs step by step."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator

import numpy as np

from retrieval_spec.session import Session
from tests.reference.acceptance import drafted_paths

Paths = set[tuple[int, ...]]


def random_streams(num_streams: int, seed: int, num_tokens: int = 60) -> Iterator[list[list[int]]]:
    """Token streams over small alphabets, so that repeats happen, each cut into what a step commits."""
    rng = np.random.default_rng(seed)
    for _ in range(num_streams):
        alphabet = rng.integers(1, 9)
        stream = rng.integers(0, alphabet, rng.integers(0, num_tokens)).tolist()
        cuts = np.sort(rng.integers(0, len(stream) + 1, 5)).tolist()
        yield [stream[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


def recorded(data_dir, family: str, num_traces: int, skip: int = 0) -> list[tuple[list[int], list[int]]]:
    """Prompts and outputs of real language models, as token ids."""
    with (data_dir / "tok_qwen2" / f"{family}.jsonl").open() as lines:
        items = [json.loads(line) for line, _ in zip(lines, range(skip + num_traces), strict=False)]
    return [(item["prompt_ids"], item["output_ids"]) for item in items[skip:]]


def chain_paths(chain: list[int]) -> Paths:
    """The paths of a tree that is one chain."""
    return {tuple(chain[: size + 1]) for size in range(len(chain))}


def num_accepted(paths: Collection[tuple[int, ...]], continuation: list[int]) -> int:
    """How many of the tokens that follow were drafted."""
    size = 0
    while size < len(continuation) and tuple(continuation[: size + 1]) in paths:
        size += 1
    return size


def replayed(
    session: Session, prompt: list[int], output: list[int], twin: Callable[[list[int]], Paths], max_nodes: int
) -> list[int]:
    """Replays an output, comparing every draft with the twin's; returns the accepted tokens of each step."""
    context, at, accepted = list(prompt), 0, []
    while at < len(output):
        paths = drafted_paths(session.draft(max_nodes))
        assert paths == twin(context)
        size = num_accepted(paths, output[at:])
        news = output[at : at + size + 1]
        session.commit(news)
        context, at = context + news, at + len(news)
        accepted.append(size)
    return accepted
