"""Listens to the replay of a family and keeps what a page can show: some generations, and some trees."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from retrieval_spec.report.curves import StepSample
from retrieval_spec.report.matches import CorpusMatches
from retrieval_spec.structures.context_array import MAX_DEPTH_TOKENS
from retrieval_spec.text_matches import TextMatches
from retrieval_spec.traces import Trace
from retrieval_spec.tree import CONTEXT, DraftTree, Tokens

MAX_PROMPT_TOKENS = 64
"""Of a prompt its end is shown."""
MAX_TEXT_TOKENS = 1 << 20
"""Of one family, in which matches are looked for."""
NO_PROB = -1


class Step(NamedTuple):
    """One step of a generation that is shown; see `replay.Observer`."""

    at: int
    tree: DraftTree
    path: list[int]
    latency_us: float


@dataclass(slots=True)
class Shown:
    """One generation as far as it is shown: a value for each of its first tokens.

    Attributes:
        family: the kind of traffic.
        number: of the generation in its family, counted from 0.
        prompt_ids: how the prompt ends.
        prompt_tokens: of the whole prompt.
        output_tokens: of the whole output.
        token_ids: the tokens that are shown.
        masks: which sources drafted each, as in `DraftTree.sources`; 0 if the target alone had it.
        percents: the path probability of a drafted token; of another one that of the best node that was
            drafted in its place; `NO_PROB` if there was none.
        rejected_ids: the tokens of those nodes, one after the other.
        match_tokens: the longest run before each token that the family's texts had before.
        generations: the first generation with that run, for each token that has one.
        corpus_tokens: the longest run before each token that a datastore drafted, in the datastore.
        documents: where it has that run with the token, for each of them.
        trees: what was drafted in some steps, and why these are shown.
        num_steps: of the whole generation.
        num_accepted: drafted tokens of the whole generation that came true.
    """

    family: str
    number: int
    prompt_ids: list[int]
    prompt_tokens: int
    output_tokens: int
    token_ids: list[int] = field(default_factory=list)
    masks: list[int] = field(default_factory=list)
    percents: list[int] = field(default_factory=list)
    rejected_ids: list[int] = field(default_factory=list)
    match_tokens: list[int] = field(default_factory=list)
    generations: list[int] = field(default_factory=list)
    corpus_tokens: list[int] = field(default_factory=list)
    documents: list[str] = field(default_factory=list)
    trees: list[tuple[str, Step]] = field(default_factory=list)
    num_steps: int = 0
    num_accepted: int = 0


class Recorder:
    """Records the replay of one family; an observer of `replay.replay`.

    Attributes:
        shown: the chosen generations, the one that is being replayed among them.
        sample: steps, also of other generations.
        source_names: of the engine, the lowest bit first.
        corpus_mask: the bits of those that draft from a datastore.

    Args:
        chosen: numbers of the generations to show, counted from 0.
        max_tokens: of an output that is shown.
        max_nodes: of a tree.
        corpora: the datastores that are drafted from.
    """

    def __init__(
        self, chosen: Collection[int], max_tokens: int, max_nodes: int, corpora: CorpusMatches
    ) -> None:
        self.shown: list[Shown] = []
        self.sample = StepSample(max_nodes)
        self.source_names: tuple[str, ...] = ()
        self.corpus_mask = 0
        self._chosen = frozenset(chosen)
        self._max_tokens = max_tokens
        self._corpora = corpora
        self._texts = TextMatches(MAX_TEXT_TOKENS)
        self._number = -1
        self._steps: list[Step] = []

    def step(self, trace: Trace, at: int, tree: DraftTree, path: list[int], latency_us: float) -> None:
        """Sees one step before its tokens are committed."""
        self.sample.add(tree, path)
        if at == 0:
            self._begin(trace)
        if tree.source_names != self.source_names:
            self._name(tree.source_names)
        decided = trace.output[at : at + len(path) + 1]
        if self._number not in self._chosen:
            self._texts.append(decided)
            return
        now = self.shown[-1]
        now.num_steps += 1
        now.num_accepted += len(path)
        if at >= self._max_tokens:
            self._texts.append(decided)
            return
        step = Step(at, tree, path, latency_us)
        self._note(now, step, decided)
        self._find(now, trace, at, decided)
        self._steps.append(step)

    def _name(self, source_names: tuple[str, ...]) -> None:
        self.source_names = source_names
        self.corpus_mask = sum(1 << bit for bit, name in enumerate(source_names) if self._corpora.knows(name))

    def close(self) -> None:
        """Ends the last generation and lets go of texts and datastores; what is left can go elsewhere."""
        self._end()
        self._texts, self._corpora = TextMatches(MAX_TEXT_TOKENS), CorpusMatches([])

    def _end(self) -> None:
        if self._steps:
            self.shown[-1].trees = telling(self._steps)
        self._steps = []

    def _begin(self, trace: Trace) -> None:
        self._end()
        self._number += 1
        self._texts.begin(trace.prompt)
        if self._number in self._chosen:
            end = trace.prompt[max(0, trace.prompt.shape[0] - MAX_PROMPT_TOKENS) :].tolist()
            sizes = int(trace.prompt.shape[0]), int(trace.output.shape[0])
            self.shown.append(Shown(trace.family, self._number, end, *sizes))

    def _note(self, now: Shown, step: Step, decided: Tokens) -> None:
        """Notes who drafted each token, and how probable it was thought."""
        percents = np.rint(step.tree.path_probs() * 100).astype(np.int64)
        now.token_ids += decided.tolist()
        now.masks += [int(step.tree.sources[node]) for node in step.path]
        now.percents += [int(percents[node]) for node in step.path]
        if len(decided) == len(step.path):
            return
        now.masks.append(0)
        parent = step.path[-1] if step.path else CONTEXT
        others = np.flatnonzero(step.tree.parents == parent)
        now.percents.append(int(percents[others[0]]) if others.size else NO_PROB)
        now.rejected_ids += step.tree.token_ids[others[:1]].tolist()

    def _find(self, now: Shown, trace: Trace, at: int, decided: Tokens) -> None:
        """Notes where the tokens before each decided one stood before."""
        masks = now.masks[len(now.match_tokens) :]
        for place in range(decided.shape[0]):
            match = self._texts.here()
            now.match_tokens.append(match.num_tokens)
            if match.num_tokens:
                now.generations.append(match.generation)
            self._texts.append(decided[place : place + 1])
            if masks[place] & self.corpus_mask:
                self._find_document(now, trace, at + place)

    def _find_document(self, now: Shown, trace: Trace, at: int) -> None:
        """Notes where the first datastore that drafted a token has it."""
        drafted = now.masks[at] & self.corpus_mask
        name = self.source_names[(drafted & -drafted).bit_length() - 1]
        prompt = trace.prompt[max(0, trace.prompt.shape[0] - MAX_DEPTH_TOKENS) :]
        before = np.concatenate([prompt, trace.output[max(0, at - MAX_DEPTH_TOKENS) : at]])
        found = self._corpora.find(name, before, int(trace.output[at]))
        now.corpus_tokens.append(found.num_tokens if found else 0)
        now.documents.append(found.document if found else "")


def telling(steps: Sequence[Step]) -> list[tuple[str, Step]]:
    """Returns steps that tell what drafts are like, each with its name: the best, the worst and a usual one.

    The best accepted most; in the worst nothing came true of what was thought most probable; a usual one
    accepted as many as the median of those with a draft. None is shown twice.
    """
    drafted = [step for step in steps if len(step.tree)]
    if not drafted:
        return []
    best = max(drafted, key=lambda step: len(step.path))
    chosen = {"best": best} if best.path else {}
    missed = [step for step in drafted if not step.path]
    if missed:
        chosen["worst"] = max(missed, key=lambda step: float(step.tree.path_probs().sum()))
    taken = {step.at for step in chosen.values()}
    left = [step for step in drafted if step.at not in taken]
    if left:
        median = sorted(len(step.path) for step in drafted)[len(drafted) // 2]
        distance = min(abs(len(step.path) - median) for step in left)
        usual = [step for step in left if abs(len(step.path) - median) == distance]
        chosen["usual"] = usual[len(usual) // 2]
    return list(chosen.items())


def choose(sizes: Mapping[str, int], max_traces: int) -> dict[str, list[int]]:
    """Returns which generations of each family are shown: as many as there is room for, evenly spaced.

    Args:
        sizes: generations of each family.
        max_traces: to show of all families.
    """
    shares = dict.fromkeys(sizes, 0)
    left = min(max_traces, sum(sizes.values()))
    while left > 0:
        open_families = [name for name in sizes if shares[name] < sizes[name]][:left]
        each = max(1, left // len(open_families))
        for name in open_families:
            more = min(each, sizes[name] - shares[name])
            shares[name] += more
            left -= more
    return {
        name: np.linspace(0, sizes[name] - 1, share).round().astype(int).tolist()
        for name, share in shares.items()
    }
