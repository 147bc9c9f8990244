"""The page `docs/benchmarks.md`, written whole from the results of one run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from catalogue import BASE, BUDGETS, HELPED, SHOWN_BUDGET, STATIC, STATIC_BASE, SYSTEMS, System
from figures import LEAST_SPREAD, MARGIN, Comparison, Ratio, mean_acceptance, middle, per_token, ratio
from losses import losses

TITLES = {
    "library": "Text that every machine has",
    "recorded": "Recorded outputs of large models",
}
ABOUT = {
    "library": """\
Python {python}'s standard library in the shipped model's tokens: modules that go on after their first tokens,
and functions to be written again with a name changed. Another Python has another text, and other figures.""",
    "recorded": """\
The first items of each family, in file order, by the tokens of Qwen2. The corpus is chats of other models,
Python and English.""",
}
HEAD = """# Beside other systems

`make bench` writes this page: every system in an environment of its own, all on the same recordings with the
same budgets, on one core of one machine, in turns. A step accepts the longest path of a draft that the
recording follows, and one token besides; each family begins with fresh systems, and earlier outputs are the
history of those that keep one.

{machine}

Times are medians over {repeats} repeats, which take turns. A ratio is to `{base}`,
in the same repeat; beside it stands how far a second run may be from it: {margin} times the furthest repeat,
{least} % at least. Acceptance is exact: a run whose repeats accept different tokens fails. **Bold** is the
best of a column. *All calls* are a system's own: opening, drafting, committing and closing.
"""
NO_RECORDINGS = """
## Recorded outputs of large models
Not in this run: set RETRIEVAL_SPEC_DATA to a folder of `tok_qwen2/FAMILY.jsonl` (`{"id", "prompt_ids",
"output_ids"}`), `corpora/NAME_20mb.jsonl` (`{"text"}`) and `tokenizers/qwen2`.
"""
NOT_COMPARED = """
Not compared: REST's retriever, which the index does not have (`draftretriever` there is ADED's), and SGLang's
n-gram trie, which is compiled inside its engine ([a replay of it](acceptance.md)).
"""
SIZES = """\
{items} recordings of {output_tokens:,} tokens. The corpus has {corpus_tokens:,} tokens; lookup in it is asked
for {static_tokens:,} tokens of the recordings. {fed_tokens:,} tokens of other outputs are taken in."""


def cell(value: float | None, digits: int = 1) -> str:
    """Returns a figure, or that there is none."""
    return "-" if value is None else f"{value:,.{digits}f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines) + "\n"


def best(systems: Sequence[str], values: Sequence[float | None], digits: int, *, most: bool) -> list[str]:
    """Returns the figures of a column, bold the best of those that had the same text."""
    judged = [s not in HELPED for s in systems]
    told = [value for value, counts in zip(values, judged, strict=True) if counts and value is not None]
    winner = cell((max if most else min)(told), digits) if told else None
    return [
        f"**{winner}**" if counts and cell(value, digits) == winner else cell(value, digits)
        for value, counts in zip(values, judged, strict=True)
    ]


def columns(*parts: Sequence[str]) -> list[tuple[str, ...]]:
    """Returns rows of columns."""
    return list(zip(*parts, strict=True))


def shown(found: Ratio | None, *, is_base: bool) -> str:
    """Returns a ratio as it stands in a table."""
    return "1" if is_base else "-" if found is None else str(found)


def absent(systems: Sequence[System], missing: dict[str, str]) -> list[list[str]]:
    """Returns rows for the systems that took no part, with the reason."""
    return [
        [system.key, missing[system.environment], *["-"] * (len(BUDGETS) - 1)]
        for system in systems
        if system.environment in missing
    ]


def means_table(by_budget: dict[str, Any], others: list[list[str]]) -> str:
    """Returns the mean acceptance length of each system at all budgets, and rows for others below."""
    systems = list(by_budget[str(SHOWN_BUDGET)])
    means = [
        best(systems, [mean_acceptance(by_budget[str(n)][s]) for s in systems], 3, most=True) for n in BUDGETS
    ]
    header = ["mean acceptance length", *(f"{n} nodes" for n in BUDGETS)]
    return table(header, [*columns(systems, *means), *others])


def ratios_to(base: str, repeats: dict[str, Any], *keys: str) -> dict[str, list[str]]:
    """Returns each system's figures, by the base's, with their spread."""
    return {
        key: [shown(ratio(repeats, system, base, key), is_base=system == base) for system in repeats]
        for key in keys
    }


def acceptance_tables(part: dict[str, Any]) -> str:
    """Returns the means at all budgets, and all families at one."""
    by_budget = part["replays"]
    systems = list(by_budget[str(SHOWN_BUDGET)])
    out = means_table(by_budget, absent(SYSTEMS, part["missing"]))
    at_one = by_budget[str(SHOWN_BUDGET)]
    families = [
        [family, *best(systems, [at_one[s][0]["acceptance"][family] for s in systems], 2, most=True)]
        for family in at_one[BASE][0]["acceptance"]
    ]
    return f"{out}\n{table([f'{SHOWN_BUDGET} nodes', *systems], families)}"


def cost_table(repeats: dict[str, Any], budget: int, base: str) -> str:
    """Returns what drafts cost at one budget."""
    systems = list(repeats)
    ratios = ratios_to(base, repeats, "draft_p50_us", "token_us")
    cells = [
        best(systems, [middle(repeats[s], key) for s in systems], 1, most=False)
        for key in ("draft_p50_us", "draft_p99_us", "token_us")
    ]
    nodes = [cell(middle(repeats[s], "nodes")) for s in systems]
    header = [f"{budget} nodes", "drafted a step", "draft us p50", "p99", f"p50 / {base}"]
    rows = columns(systems, nodes, cells[0], cells[1], ratios["draft_p50_us"], cells[2], ratios["token_us"])
    return table([*header, "all calls, us a token", f"/ {base}"], rows)


def rate_table(tables: dict[str, Any], what: str, base: str) -> str:
    """Returns how fast tokens are taken in, and what they take."""
    taken = per_token(tables)
    systems = list(taken)
    rates = best(systems, [middle(taken[s], "rate") for s in systems], 0, most=True)
    sizes = best(systems, [middle(taken[s], "bytes") for s in systems], 1, most=False)
    ratios = ratios_to(base, taken, "rate", "bytes")
    rows = columns(systems, rates, ratios["rate"], sizes, ratios["bytes"])
    return table([what, "tokens/s", f"/ {base}", "bytes a token", f"/ {base}"], rows)


def static_tables(part: dict[str, Any]) -> str:
    """Returns what static lookup accepts and costs."""
    by_budget = part["static"]
    out = means_table(by_budget, absent(STATIC, part["missing"]))
    costs = cost_table(by_budget[str(SHOWN_BUDGET)], SHOWN_BUDGET, STATIC_BASE)
    return f"{out}\n{costs}\n{rate_table(part['built'], 'build, one core', STATIC_BASE)}"


def section(part: dict[str, Any], machine: dict[str, str]) -> str:
    """Returns what one set of recordings says."""
    facts = part["facts"]
    name, sizes = facts["name"], SIZES.format(**facts)
    costs = "\n".join(cost_table(part["replays"][str(n)], n, BASE) for n in BUDGETS)
    return f"""## {TITLES[name]}
{ABOUT[name].format(**machine)}
{sizes}

### Acceptance
{acceptance_tables(part)}
### What drafts cost
{costs}
### Taking text in
Outputs come in commits of 4 tokens, without drafts. Bytes are what the process grows by, over the tokens that
a system keeps: of `default` prompts and outputs, of ArcticInference outputs. Lookups in the own context keep
nothing.

{rate_table(part["fed"], "taken in", BASE)}
### Static lookup
Ids are renamed to small ones, in their order: infini-gram's index of ids above 65,535 asks for 34 GB.

{static_tables(part)}
### Where we lose
{losses(part)}"""


def described(systems: Sequence[System], missing: dict[str, str]) -> str:
    """Returns a line a system: what it is, or why it is not here."""
    return "".join(
        f"- `{system.key}`: {system.says}"
        + (f". **Here {missing[system.environment]}**\n" if system.environment in missing else "\n")
        for system in systems
    )


def second_run(comparison: Comparison | None) -> str:
    """Returns what the run before this one said of the same text."""
    if comparison is None:
        return "No run on the same text came before this one.\n"
    changed, strayed = len(comparison.changed), len(comparison.strayed)
    out = (
        f"Of {comparison.num_acceptances} acceptance figures {changed} differ from the run before;\n"
        f"of {comparison.num_ratios} ratios {strayed} lie outside the spread that it stated.\n"
    )
    return out + "".join(f"- {line}\n" for line in (*comparison.changed, *comparison.strayed))


def page(results: dict[str, Any], comparison: Comparison | None) -> str:
    """Returns the whole page."""
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(results["versions"].items()))
    facts = (
        f"{results['date']}; {machine['cpu']}, {machine['cores']} cores, {machine['system']}; "
        f"Python {machine['python']}; {results['seconds']:.0f} s.\n{versions}.\n\n"
        f"    {results['command']}"
    )
    head = HEAD.format(
        machine=facts,
        repeats=results["repeats"],
        base=f"{BASE}`, of static lookup to `{STATIC_BASE}",
        margin=MARGIN,
        least=round(100 * LEAST_SPREAD),
    )
    parts = [section(part, machine) for part in results["sets"]] + (
        [NO_RECORDINGS] if len(results["sets"]) == 1 else []
    )
    systems = described([*SYSTEMS, *STATIC], results["missing"])
    return (
        f"{head}\n## The systems\n{systems}{NOT_COMPARED}\n"
        + "\n".join(parts)
        + f"\n## A second run\n{second_run(comparison)}"
    )
