"""From samples to tables: medians over repetitions, ratios within one run, how far repetitions differ."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median

from forced.measuring import Sample

ALL = "**all**"


@dataclass(frozen=True, slots=True)
class Figures:
    """What one way came to over some families.

    Attributes:
        seconds: of all batches, of each the median repetition.
        decoding_s: the same without the prompts' passes.
        by_repeat: seconds of all batches in each repetition.
    """

    tokens: int
    seconds: float
    decoding_s: float
    by_repeat: tuple[float, ...]
    mean_acceptance_length: float
    nodes_a_step: float

    @property
    def tokens_per_s(self) -> float:
        """Whole calls: the prompt's pass counts."""
        return self.tokens / self.seconds


def figures(samples: Collection[Sample], way: str, families: Collection[str]) -> Figures:
    """Returns what the samples of a way say of some families."""
    own = [one for one in samples if one.way == way and one.family in families]
    batches = {(one.family, one.batch) for one in own}
    repeats = sorted({one.repeat for one in own})
    of_batch = [[one for one in own if (one.family, one.batch) == batch] for batch in batches]
    steps, tokens = sum(one.steps for one in own), sum(one.tokens for one in own)
    # A prompt's pass decides one token a row, and no step is counted for it.
    first_tokens = sum(one.rows for one in own)
    return Figures(
        tokens // max(len(repeats), 1),
        sum(median(one.seconds for one in group) for group in of_batch),
        sum(median(one.seconds - one.prompt_s for one in group) for group in of_batch),
        tuple(sum(one.seconds for one in own if one.repeat == repeat) for repeat in repeats),
        (tokens - first_tokens) / max(steps, 1),
        sum(one.nodes for one in own) / max(steps, 1),
    )


def fastest(samples: Sequence[Sample], ways: Sequence[str]) -> str:
    """Returns the way that took the least time over everything."""
    families = {one.family for one in samples}
    return min(ways, key=lambda way: figures(samples, way, families).seconds)


def table(samples: Sequence[Sample], plain: str, others: Sequence[str], lookup: str | None) -> list[str]:
    """Returns a row for every family and one for all: ratios of whole calls."""
    families = list(dict.fromkeys(one.family for one in samples))
    drafting = [way for way in others if way != lookup]
    heads = ["family", "plain tokens/s", *(["lookup / plain"] if lookup else [])]
    for way in drafting:
        heads += [f"{way} / plain", *([f"{way} / lookup"] if lookup else [])]
    heads += [*(["lookup tokens/step"] if lookup else []), "tokens/step", "nodes/step"]
    rows = [[family, *_cells(samples, plain, drafting, lookup, [family])] for family in families]
    rows.append([ALL, *_cells(samples, plain, drafting, lookup, families)])
    return ["| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows)]


def _cells(
    samples: Sequence[Sample],
    plain: str,
    drafting: Sequence[str],
    lookup: str | None,
    families: Collection[str],
) -> list[str]:
    base = figures(samples, plain, families)
    cells, looked = [f"{base.tokens_per_s:.1f}"], None
    if lookup:
        looked = figures(samples, lookup, families)
        cells.append(f"{base.seconds / looked.seconds:.2f}")
    ours = [figures(samples, way, families) for way in drafting]
    for own in ours:
        cells.append(f"{base.seconds / own.seconds:.2f}")
        if looked:
            cells.append(f"{looked.seconds / own.seconds:.2f}")
    if looked:
        cells.append(f"{looked.mean_acceptance_length:.2f}")
    return [*cells, f"{ours[0].mean_acceptance_length:.2f}", f"{ours[0].nodes_a_step:.1f}"]


def spread(samples: Sequence[Sample], bases: Sequence[str], others: Sequence[str]) -> list[str]:
    """Returns lines on everything together: ratios by repetition, and without the prompts' passes."""
    families = {one.family for one in samples}
    found = {way: figures(samples, way, families) for way in {*bases, *others}}
    lines = []
    for way in others:
        for base in bases:
            if way == base:
                continue
            ratios = [a / b for a, b in zip(found[base].by_repeat, found[way].by_repeat, strict=True)]
            lines.append(
                f"{way} against {base}: {found[base].seconds / found[way].seconds:.3f}, repetitions "
                f"{', '.join(f'{ratio:.3f}' for ratio in ratios)}; "
                f"decoding alone {found[base].decoding_s / found[way].decoding_s:.3f}"
            )
    return lines


def rates(samples: Sequence[Sample]) -> list[str]:
    """Returns a line for every way: tokens per second of whole calls, and how repetitions differ."""
    families = {one.family for one in samples}
    lines = []
    for way in dict.fromkeys(one.way for one in samples):
        own = figures(samples, way, families)
        least, most = own.tokens / max(own.by_repeat), own.tokens / min(own.by_repeat)
        lines.append(f"{way}: {own.tokens_per_s:.2f} tokens/s ({least:.2f} to {most:.2f})")
    return lines
