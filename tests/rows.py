"""The rows of the promises: the one list of their ids, `pytest --row ID`, and a summary by row.

A test says which rows it belongs to with `@pytest.mark.row("F1")`. Every id must be in `ROWS`, every row must
have a test, and `docs/promises.md` must list them all: tests/test_rows.py.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import hypothesis
import pytest

ROWS = {
    "A1": "structures equal their readable twins",
    "A2": "no text makes learning slow",
    "C1": "every limit from both sides",
    "C2/C3": "garbage and mutated requests",
    "C4": "floods of sessions and of idle streams",
    "C5": "clients that hang, crawl or never read",
    "C6": "the same answers and errors in process and over gRPC",
    "P1": "any history of a session, messages lost, repeated, out of order, servers restarted",
    "P2/P3": "real generation while messages are lost and late",
    "F1": "every flipped bit of a file is found",
    "F2": "files that lie under valid checksums",
    "F3": "hostile content under valid checksums, queried",
    "F-fuzz": "coverage-guided fuzzing of what parses",
    "F4": "files changed under an open datastore",
    "F5/F6": "paths, links and devices; no code runs",
    "F7": "mutated FAISS indexes",
    "F8": "other tokenizers are refused",
    "F9": "golden files of every format",
    "D1": "kill -9 before any call of a writer",
    "D2": "power loss: simulated states of the disk",
    "D2m": "planted bugs of the commit protocol are noticed",
    "D3": "full disks, failing disks and short writes at any call",
    "D4": "a crash or failure while another one is cleaned up",
    "D5": "a server that is killed while its datastores change",
    "K1": "readers beside a text that grows",
    "K2": "threads that open, commit, draft, close and evict",
    "K3": "several writers, and datastores exchanged under load",
    "K4": "memory that runs out in the middle",
    "N1": "a kernel cache that is missing, damaged, read-only or foreign",
    "H1": "health, readiness and draining",
    "V1": "servers that are gone, hang, are slow or come and go",
    "V3": "hostile answers",
    "V4": "servers that restart in the middle of a generation",
    "L1": "with any drafts the output is that of plain decoding",
    "L2": "options, ends, limits, caches and batches of the host",
    "L3": "bfloat16: every difference is a measured tie",
    "L4": "sampled output has the target's distribution",
    "L5": "planted bugs of the verifier are noticed",
    "T1": "a tenant's answers do not depend on others",
    "T2": "no tenant's text in another's drafts; what is forgotten is gone",
    "T3": "no text in logs, metrics and errors",
    "T4": "answers of one size, whatever was drafted; how long they take tells nothing of others",
    "S1": "soak: memory, descriptors and threads stay what they are",
    "S2": "memory stays within its budget",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("rows of docs/promises.md")
    group.addoption(
        "--row", action="append", default=[], metavar="ID", help="only tests of this row; repeatable"
    )
    group.addoption("--rows", action="store_true", help="end with a summary by row")
    group.addoption(
        "--more-examples",
        type=int,
        default=1,
        metavar="TIMES",
        help="let property-based tests try so many times as many examples",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        item.user_properties.append(("rows", rows_of(item)))
    wanted = set(config.getoption("--row"))
    check_known(wanted, "--row")
    if wanted:
        left_out = [item for item in items if not wanted & set(rows_of(item))]
        items[:] = [item for item in items if wanted & set(rows_of(item))]
        config.hook.pytest_deselected(items=left_out)
    if config.getoption("--more-examples") > 1:
        for function in {getattr(item, "function", None) for item in items}:
            try_more_examples(function, config.getoption("--more-examples"))


def rows_of(item: pytest.Item) -> list[str]:
    """The rows that a test is marked with, its module's among them only where it has none of its own."""
    own = [row for mark in item.own_markers if mark.name == "row" for row in mark.args]
    rows = own or [row for mark in item.iter_markers("row") for row in mark.args]
    check_known(rows, item.nodeid)
    return sorted(set(rows))


def check_known(rows: Any, where: str) -> None:
    """Stops the run at a row that is in no table."""
    unknown = sorted(set(rows) - set(ROWS))
    if unknown:
        raise pytest.UsageError(f"{where}: no such row: {', '.join(unknown)}; tests/rows.py lists them")


def try_more_examples(function: Any, times: int) -> None:
    """Multiplies the examples of a property-based test; others are left as they are."""
    if not hypothesis.is_hypothesis_test(function):
        return
    now = getattr(function, "_hypothesis_internal_use_settings", hypothesis.settings())
    more = hypothesis.settings(now, max_examples=times * now.max_examples, deadline=None)
    function._hypothesis_internal_use_settings = more


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not (config.getoption("--rows") or config.getoption("--row")):
        return
    outcomes, seconds, reasons = collected(terminalreporter.stats)
    write = terminalreporter.write_line
    terminalreporter.section("rows of docs/promises.md")
    write(f"{'row':7} {'passed':>6} {'failed':>6} {'skipped':>7} {'seconds':>8}")
    for row in ROWS:
        if outcomes[row]:
            write_row(write, row, outcomes[row], seconds[row], reasons[row])
    write(f"without a test in this run: {', '.join(row for row in ROWS if not outcomes[row]) or 'none'}")
    write(
        "Seconds are of the tests themselves, side by side in several workers; a test may belong to two rows."
    )


def write_row(write: Any, row: str, count: Counter, seconds: float, reasons: Counter) -> None:
    numbers = f"{count['passed']:6} {count['failed']:6} {count['skipped']:7} {seconds:8.1f}"
    write(f"{row:7} {numbers}  {ROWS[row]}")
    for reason, number in sorted(reasons.items()):
        write(f"        {number} skipped: {reason}")


def collected(stats: dict[str, list[Any]]) -> tuple[dict, dict, dict]:
    """For each row: tests by outcome, seconds, and skipped tests by reason."""
    outcomes: dict[str, Counter] = defaultdict(Counter)
    seconds: dict[str, float] = defaultdict(float)
    reasons: dict[str, Counter] = defaultdict(Counter)
    reports = [one for some in stats.values() for one in some if hasattr(one, "duration")]
    for report in reports:
        for row in dict(report.user_properties).get("rows", ()):
            seconds[row] += report.duration
            if report.skipped:
                reasons[row][reason_of(report)] += 1
            if report.when == "call" or report.failed or report.skipped:
                outcomes[row][report.outcome] += 1
    return outcomes, seconds, reasons


def reason_of(report: Any) -> str:
    """Why a test was skipped, without where it says so."""
    said = report.longrepr[-1] if isinstance(report.longrepr, (tuple, list)) else str(report.longrepr)
    return said.removeprefix("Skipped: ")
